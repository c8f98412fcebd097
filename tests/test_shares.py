"""A study in shares: joined, they are the bytes of one run; what cannot be joined."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxstudy import __main__ as command
from jaxstudy.study.shares import join_shares, parse_share
from jaxstudy.types import UserError
from tests.conftest import Ask, Smoke, load, run_script

SCRIPT = load("benchmarks", "optimizers")
SETTINGS = (
    "--preset", "smoke", "--optimizers", "sgd", "adam", "momentum", "--problems",
    "admissions_regression", "--epochs", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("shares")
    folders = [root / f"share{i}" for i in range(2)]
    for i, folder in enumerate(folders):
        where = ("--run-dir", folder)
        assert run_script(SCRIPT, *SETTINGS, "--share", f"{i}/2", *where) == 0
        metrics = json.loads((folder / "result.json").read_text())["metrics"]
        assert metrics == {"cells trained": 2 - i, "cells of the study": 3}
        assert not (folder / "study.json").exists()
    return folders


def test_joined_shares_are_the_bytes_of_one_run(
    shares: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, joined = tmp_path / "whole", tmp_path / "joined"
    assert run_script(SCRIPT, *SETTINGS, "--run-dir", whole) == 0
    assert (whole / "figures" / "sensitivity.png").exists()
    monkeypatch.setattr(SCRIPT, "save_study", lambda *_: None)  # takes seconds

    def call(arguments: list[str]) -> Any:  # in this process
        assert Path(arguments[1]).name == "optimizers.py"
        return run_script(SCRIPT, *arguments[2:])

    monkeypatch.setattr(command.subprocess, "call", call)
    command.join((shares[1], shares[0]), joined)
    assert (joined / "study.json").read_bytes() == (whole / "study.json").read_bytes()
    metrics = [json.loads((f / "result.json").read_text()) for f in (joined, whole)]
    assert metrics[0]["metrics"] == metrics[1]["metrics"]
    # nothing was trained anew
    attempts = [
        json.loads((folder / "attempts.json").read_text())
        for folder in (*shares, joined)
    ]
    first, second, both = (fields["parts"] for fields in attempts)
    assert both == first | second
    assert attempts[2]["wall_s"][:2] == [f["wall_s"][0] for f in attempts[:2]]
    with pytest.raises(UserError, match="already holds a run; --out names another"):
        join_shares(shares, joined)


def test_a_share_of_a_lesson_has_its_cells_and_is_joined_by_the_lesson(
    smoke: Smoke, tmp_path: Path
) -> None:
    """The rows of the one run, for the optimizer of the share alone."""
    folder, whole = tmp_path / "share", smoke("ch1_optimizers")
    share = ("--share", "2/2", "--run-dir", folder)  # the first of two
    lesson = load("experiments", "ch1_optimizers")
    assert run_script(lesson, "--preset", "smoke", *share) == 0
    assert not (folder / "study.json").exists()

    def rows(folder: Path) -> list[dict[str, Any]]:
        found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [row | {"seconds per step": 0} for row in found]

    own = rows(folder)
    assert {row["part"] for row in own} == {"tune digits sgd", "report digits sgd"}
    assert own == [
        row for row in rows(whole) if row["part"] in {r["part"] for r in own}
    ]
    with pytest.raises(UserError, match="missing shares: 1/2"):
        join_shares([folder], tmp_path / "joined")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", r"missing shares: 0/2"),
        ("twice", r"share 0/2 is there twice: .*share0 and .*again"),
        ("unfinished", r"share1 has not finished: --resume goes on with it"),
        ("seed", r"of different studies: seed 0 there, 1 here"),
        ("whole", r"share1 is no share of a study: it was run without --share"),
        ("other code", r"of different studies: git .* there, 'other' here"),
        ("changed code", r"of different studies: source .* there, 'other' here"),
        ("many missing", r"missing shares: 1/5000, .*, 20/5000 and 4979 more$"),
        ("no attempts", r"attempts.json cannot be read: No such file"),
        ("bad attempts", r"attempts.json cannot be read: .*wall_s"),
        ("nothing", r"join needs the run folders"),
    ],
)
def test_shares_that_do_not_belong_together(
    shares: list[Path], tmp_path: Path, change: str, says: str
) -> None:
    folders = [tmp_path / folder.name for folder in shares]
    for folder, copy in zip(shares, folders, strict=True):
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoints"))

    def edit(name: str, key: str, value: Any) -> None:
        path = folders[-1] / name
        fields = json.loads(path.read_text())
        (fields["config"] if name == "config.json" else fields)[key] = value
        path.write_text(json.dumps(fields))

    if change == "missing":
        del folders[0]
    elif change == "twice":
        shutil.copytree(folders[0], tmp_path / "again")
        folders = [folders[0], tmp_path / "again"]
    elif change == "unfinished":
        (folders[1] / "result.json").unlink()
    elif change == "seed":
        edit("config.json", "seed", 1)
    elif change == "whole":
        edit("config.json", "share", None)
    elif change == "other code":
        edit("environment.json", "git", "other")
    elif change == "changed code":  # which git does not tell, or there is none
        edit("environment.json", "source", "other")
    elif change == "many missing":
        del folders[0]
        edit("config.json", "share", "0/5000")
    elif change == "no attempts":
        (folders[1] / "attempts.json").unlink()
    elif change == "bad attempts":
        edit("attempts.json", "wall_s", "long")
    else:
        folders = []
    with pytest.raises(UserError, match=says):
        join_shares(folders, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_shares_are_joined_into_a_folder(shares: list[Path], tmp_path: Path) -> None:
    (tmp_path / "joined").touch()
    with pytest.raises(UserError, match=r"/joined is no folder; --out names one"):
        join_shares(shares, tmp_path / "joined")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("benchmarks", "optimizers"), ("experiments", "ch1_optimizers")],
)
def test_a_share_that_an_unset_variable_names_trains_nothing(
    ask: Ask, tmp_path: Path, folder: str, name: str
) -> None:
    """An empty one is not the whole study."""
    run = ("--preset", "smoke", "--run-dir", tmp_path / "run")
    for share in ("", "/7", "8/7"):
        answer = ask(load(folder, name), *run, "--share", share)
        assert answer.code == 2
        sentence = f"error: --share {share}: I/N is expected, with I from 0 to N - 1"
        assert answer.error.startswith(sentence)
        assert answer.error.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_shares_are_counted_from_0_or_1() -> None:
    assert [parse_share(f"{i}/3").index for i in range(4)] == [0, 1, 2, 0]
    cells = [n for i in range(3) for n in range(7) if parse_share(f"{i}/3").has(n)]
    assert sorted(cells) == list(range(7))
    for text in ("4/3", "0/0", "3", "-1/3", "1/2/3", "", "a/b"):
        with pytest.raises(UserError, match=f"--share {text}: I/N is expected"):
            parse_share(text)
