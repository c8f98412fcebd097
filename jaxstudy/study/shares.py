"""A study in shares: jobs that never talk, each with its cells, and their union.

The union is a run folder with the metrics of all shares. Resumed, its script finds
every cell trained, and writes what a single run would have written.
"""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from jaxstudy.runs.files import (
    Description,
    LoggedRecord,
    Object,
    json_lines,
    read_file,
    read_json,
    to_json,
    write_atomically,
)
from jaxstudy.runs.run import Attempts
from jaxstudy.types import UserError


class Share(NamedTuple):
    """The cells whose numbers leave the remainder `index` when divided by `count`."""

    index: int
    count: int

    def has(self, number: int) -> bool:
        """Whether the cell of this number belongs to it."""
        return number % self.count == self.index


WHOLE = Share(0, 1)
NAMED = 20  # shares that an error names one by one


def parse_share(text: str) -> Share:
    """I/N, with I from 0 to N - 1, as job arrays count; N/N is 0/N.

    Raises UserError for anything else.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    index, count = map(int, match.groups()) if match else (1, 0)
    if not count or index > count:
        raise UserError(
            f"--share {text}: I/N is expected, with I from 0 to N - 1 (or 1 to N)"
        )
    return Share(index % count, count)


def join_shares(folders: Sequence[Path], out: Path) -> str:
    """Write a run folder with the cells of all shares; returns its experiment.

    Raises UserError where a folder is no finished share, one is missing or there twice,
    or they are of different studies, code or data.
    """
    if not folders:
        raise UserError("join needs the run folders of all shares")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder; --out names one")
    if (out / "config.json").exists():
        raise UserError(f"{out} already holds a run; --out names another folder")
    configs = {folder: _description(folder) for folder in folders}
    first, *others = folders
    for folder in others:
        _refuse_another_study(first, configs[first], folder, configs[folder])
    shares = {
        folder: parse_share(str(c["config"]["share"])) for folder, c in configs.items()
    }
    by_index: dict[int, Path] = {}
    for folder, share in shares.items():
        if share.index in by_index:
            both = f"{by_index[share.index]} and {folder}"
            raise UserError(f"share {share.index}/{share.count} is there twice: {both}")
        by_index[share.index] = folder
    count = shares[first].count
    if missing := [f"{i}/{count}" for i in range(count) if i not in by_index]:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(f"missing shares: {', '.join(missing[:NAMED])}{more}")
    ordered = [by_index[i] for i in range(count)]
    _write(out, configs[first], ordered)
    return configs[first]["experiment"]


def _description(folder: Path) -> Description:
    """config.json of a share that has been trained to its end."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no run in {folder}: there is no config.json")
    fields = read_json(path, Description)
    if not isinstance(fields["config"].get("share"), str):
        raise UserError(f"{folder} is no share of a study: it was run without --share")
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} has not finished: --resume goes on with it")
    return fields


def _refuse_another_study(
    first: Path, there: Description, folder: Path, here: Description
) -> None:
    """Raise UserError with the first thing in which two shares differ."""
    environments = [read_json(f / "environment.json", Object) for f in (first, folder)]
    count = [parse_share(str(d["config"]["share"])).count for d in (there, here)]
    pairs: dict[str, tuple[Any, Any]] = {
        "experiment": (there["experiment"], here["experiment"]),
        "preset": (there["preset"], here["preset"]),
        "number of shares": (count[0], count[1]),
        **{
            name: (there["config"].get(name), here["config"].get(name))
            for name in {**there["config"], **here["config"]}
            if name != "share"
        },
        "files": (there["files"], here["files"]),
        **{
            name: (environments[0].get(name), environments[1].get(name))
            for name in ("git", "source", "packages")
        },
    }
    for name, (a, b) in pairs.items():
        if a != b:
            raise UserError(
                f"{first} and {folder} are of different studies: {name} {a!r} there, "
                f"{b!r} here"
            )


def _write(out: Path, description: Description, shares: Sequence[Path]) -> None:
    """The run folder of the union, ready to be resumed."""
    records, joined_attempts = [], Attempts()
    for folder in shares:
        logged, bad, _ = json_lines(read_file(folder / "metrics.jsonl"), LoggedRecord)
        for number, what in bad.items():
            raise UserError(f"{folder / 'metrics.jsonl'}, line {number}: {what}")
        records += logged
        attempts = read_json(folder / "attempts.json", Attempts)
        joined_attempts = joined_attempts.joined(attempts)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(to_json(record) + "\n" for record in records)
    write_atomically(out / "metrics.jsonl", text)
    fields = asdict(joined_attempts)
    write_atomically(out / "attempts.json", to_json(fields) + "\n")
    environment = (shares[0] / "environment.json").read_text(encoding="utf-8")
    write_atomically(out / "environment.json", environment)
    config = {**description["config"], "share": None}
    joined = {**description, "run": uuid.uuid4().hex, "config": config}
    # last: with it, the folder is a run
    write_atomically(out / "config.json", json.dumps(joined, indent=1) + "\n")
