"""One self-contained page, report.html, over all runs under a folder.

Made from the JSON files alone, with the images of the runs inside it: the same runs
give the same bytes, and the page needs no network. This module reads the runs and
puts their numbers into words; charts.py draws, report.html.jinja lays out.
"""

import base64
import contextlib
import json
import math
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jinja2

from jaxstudy.runs import charts
from jaxstudy.runs.files import (
    Description,
    LoggedRecord,
    Object,
    Result,
    StepTimes,
    Study,
    from_json,
    json_lines,
    read_file,
    reason,
)
from jaxstudy.runs.plots import curve
from jaxstudy.runs.run import write_atomically
from jaxstudy.runs.statistics import Estimate, estimate_texts
from jaxstudy.study import comparison
from jaxstudy.types import UserError

TableRow = Mapping[str, Any]  # of metrics.jsonl
# of a curve: panel, name, colour, rows
Series = tuple[str, str, int, Sequence[TableRow]]
_T = TypeVar("_T")
Drawn = dict[str, Any]  # what the template has to draw

MARKERS = ("config.json", "metrics.jsonl", "result.json")  # any of them makes a run
# Folders of a run: what is in them is its own, even trainings with folders like runs.
INSIDE = ("checkpoints", "figures", "samples", "tensorboard", "trainings")
IMAGES = {".png": (b"\x89PNG\r\n", "image/png"), ".gif": (b"GIF8", "image/gif")}
TEXTS = (".txt", ".abc")
STUDY_PARTS = ("tune ", "report ")  # of a study: trainings by the hundred
TOGETHER = len(charts.LINE_COLOURS)  # parts in one chart


def write_report(root: Path) -> Path:
    """Write root/report.html over every run under root, and return its path.

    A run that cannot be read in full is listed with the reason. Raises UserError
    when there is no such folder, no run in it, or the page cannot be written.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root} to report on")
    runs = find_runs(root)
    if not runs:
        raise UserError(f"there is no run under {root}: no folder with a config.json")
    experiments: dict[str, list[ReportedRun]] = {}
    for run in sorted(runs, key=lambda r: (_natural(r.experiment), _natural(r.path))):
        experiments.setdefault(run.experiment, []).append(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(plain=plain, duration=duration, flat=flat)
    environment.filters["urlencode"] = _anchor
    text = environment.get_template("report.html.jinja").render(
        experiments=[
            compare_runs(name, members) for name, members in experiments.items()
        ]
    )
    path = root / "report.html"
    # ASCII, so that no locale can spoil it; outside of <style> and <script>, which
    # hold nothing else, a character reference means the same as the character
    text = text.encode("utf-8", "backslashreplace").decode()  # names that are not UTF-8
    try:
        write_atomically(path, text.encode("ascii", "xmlcharrefreplace").decode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _anchor(name: str) -> str:
    """A name in the address of a link, also where it is not UTF-8."""
    return urllib.parse.quote(name.encode("utf-8", "backslashreplace"))


# Reading


@dataclass
class ReportedRun:
    """What was read of one run; `problems` says what could not be."""

    path: str
    experiment: str = ""
    preset: str = ""
    seed: Any = None
    status: str = "unfinished"
    problems: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    records: list[TableRow] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    study: Drawn = field(default_factory=dict)
    figures: list[Drawn] = field(default_factory=list)
    samples: list[Drawn] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path without the experiment it begins with."""
        return self.path.removeprefix(f"{self.experiment}/")

    @property
    def metrics(self) -> dict[str, "Value"]:
        """The metrics of the result."""
        return {k: value_of(v) for k, v in self.result.get("metrics", {}).items()}

    @property
    def headline(self) -> tuple[str, list[tuple[str, "Value"]]]:
        """For the front page: of "variant: measure" the first measure, and variants."""
        metrics = self.metrics
        names = [n for n, v in metrics.items() if v.interval] or list(metrics)
        _, colon, measure = (names or [""])[0].rpartition(": ")
        end = colon + measure if colon else ""
        chosen = [(n.removesuffix(end), metrics[n]) for n in names if n.endswith(end)]
        return measure if colon else "", chosen

    @property
    def results(self) -> Drawn:
        """The metrics as tables, and a chart of those with several estimates."""
        tables = tabulate(self.metrics)
        drawn = {title: _estimates(rows) for title, rows in tables.items() if title}
        return {"tables": tables, "chart": _intervals(drawn)}

    @property
    def drawn_parts(self) -> dict[str, list[TableRow]]:
        """The records by part; the hundreds of trials of a study have their figures."""
        rows = self.records
        if self.study:
            rows = [r for r in rows if not r["part"].startswith(STUDY_PARTS)]
        return _by(rows, "part")

    @property
    def curves(self) -> list[Drawn]:
        """The logged metrics: a panel for each part, and one for all where few."""
        parts = self.drawn_parts
        series: list[Series] = []
        if 1 < len(parts) <= TOGETHER:
            series += [
                ("all parts", p or "main", i, parts[p]) for i, p in enumerate(parts)
            ]
        kept = [row for rows in parts.values() for row in rows]
        splits = sorted(_by(kept, "split"), key=_split_order)
        for part, rows in parts.items():
            mine = _by(rows, "split")
            for i, split in enumerate(splits):
                series.append((part, split, i, mine.get(split, [])))
        return _curves(series)


def find_runs(root: Path) -> list[ReportedRun]:
    """Every run under a folder, which may itself be one."""
    runs = []
    for place, folders, files in os.walk(root):
        if any(name in files for name in MARKERS):
            runs.append(read_run(Path(place), root))
            folders[:] = [name for name in folders if name not in INSIDE]
    return runs


def read_run(folder: Path, root: Path) -> ReportedRun:
    """Read a run folder as far as it can be read."""
    relative = folder.relative_to(root).as_posix()
    run = ReportedRun(folder.resolve().name if relative == "." else relative)
    described: Drawn = dict(_read(folder, "config.json", Description, run.problems))
    run.config, run.options = described.get("config", {}), described.get("options", {})
    run.environment = _read(folder, "environment.json", Object, run.problems)
    if os.path.lexists(folder / "result.json"):
        run.status = "finished"
        run.result = dict(_read(folder, "result.json", Result, run.problems))
    if os.path.lexists(folder / "study.json"):
        run.study = _read_study(folder, run.problems)
    torn = False
    if os.path.lexists(folder / "metrics.jsonl"):
        run.records, torn = _read_records(folder, run.problems)
    run.figures = _attachments(folder, "figures", run.problems)
    run.samples = _attachments(folder, "samples", run.problems)
    facts = {**run.result, **described}
    run.experiment = str(facts.get("experiment", folder.resolve().parent.name))
    run.preset = str(facts.get("preset", ""))
    run.seed = run.config.get("seed", run.result.get("seed"))
    # of an unfinished run a torn line is no damage: it was killed, or is writing now
    if run.problems or (torn and run.status == "finished"):
        run.status = "damaged"
    if torn:
        run.problems.append("the last line of metrics.jsonl is torn and left out")
    return run


def _leads_out(path: Path, folder: Path) -> bool:
    """Whether a link leads out of the run folder: the page has nothing from there."""
    inside = Path(os.path.realpath(path))
    return not inside.is_relative_to(os.path.realpath(folder))


def _content(folder: Path, name: str) -> bytes:
    """A file of a run. Raises UserError where it cannot be read."""
    if _leads_out(folder / name, folder):
        raise UserError(f"{name} is a link out of the run folder and left out")
    return read_file(folder / name)


@contextlib.contextmanager
def _noting(folder: Path, problems: list[str]) -> Iterator[None]:
    """Note a UserError among the problems of a run, with paths within its folder."""
    try:
        yield
    except UserError as error:
        problems.append(str(error).removeprefix(f"{folder}/"))


def _read(folder: Path, name: str, kind: type[_T], problems: list[str]) -> _T | Drawn:
    """What a JSON file of a run holds; empty where it is damaged."""
    with _noting(folder, problems):
        try:
            return from_json(_content(folder, name), kind)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} cannot be read: {reason(error)}") from error
    return {}


def _read_study(folder: Path, problems: list[str]) -> Drawn:
    """The conclusions and the tables of a study."""
    record: Drawn = dict(_read(folder, "study.json", Study, problems))
    if not record:
        return {}
    step_times: Drawn = {}
    if os.path.lexists(folder / "timing.json"):
        step_times = dict(_read(folder, "timing.json", StepTimes, problems))
    try:
        if record["schema"] != comparison.STUDY_SCHEMA:
            raise ValueError(
                f"schema {record['schema']}, not {comparison.STUDY_SCHEMA}"
            )
        tables = {
            f"{facts['title']} ({name})": comparison.problem_table(
                record, name, step_times.get(name, {})
            )
            for name, facts in record["problems"].items()
        }
        return {
            "sentences": record["comparison"]["sentences"],
            "summary": comparison.summary_table(record),
            "tables": tables,
            "protocol": record["protocol"],
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"study.json cannot be read: {error!r}")
        return {}


def _read_records(folder: Path, problems: list[str]) -> tuple[list[TableRow], bool]:
    """The good records of metrics.jsonl, and whether its last line is torn."""
    with _noting(folder, problems):
        rows, bad, torn = json_lines(_content(folder, "metrics.jsonl"), LoggedRecord)
        if bad:
            where = ", ".join(map(str, [*bad][:5])) + (", ..." if len(bad) > 5 else "")
            first = next(iter(bad.values()))
            problems.append(
                f"metrics.jsonl is damaged and left out in line {where} ({first})"
            )
        return [{"part": "", **row} for row in rows], torn
    return [], False


def _attachments(folder: Path, kind: str, problems: list[str]) -> list[Drawn]:
    """Images and texts of this kind in order; of other files only the name."""
    where, out = folder / kind, []
    files = [] if _leads_out(where, folder) else where.rglob("*")
    if where.is_symlink() and not files:
        problems.append(f"{kind} is a link out of the run folder and left out")
    names = [path.relative_to(where).as_posix() for path in files]
    for name in sorted(names, key=_natural):
        path = where / name
        if not path.is_file() or path.name.startswith("."):
            continue
        with _noting(folder, problems):
            out.append(_attachment(folder, kind, name, problems))
    return out


def _attachment(folder: Path, kind: str, name: str, problems: list[str]) -> Drawn:
    suffix = Path(name).suffix.lower()
    caption = re.sub(r"[_\s]+", " ", name[: -len(suffix) or None].replace("/", ", "))
    source = text = ""
    wide = False
    if _leads_out(folder / kind / name, folder):
        name += " (a link out of the run folder)"
    elif suffix in IMAGES:
        data, (magic, mime) = _content(folder, f"{kind}/{name}"), IMAGES[suffix]
        if data.startswith(magic):
            wide = suffix == ".png" and _aspect(data) > 2
            source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        else:
            problems.append(f"{kind}/{name} is no {suffix[1:].upper()} image")
    elif suffix in TEXTS:
        text = _content(folder, f"{kind}/{name}").decode("utf-8", "replace")
        text = text if len(text) < 4000 else f"{text[:4000]}\n..."
    caption = caption[:1].upper() + caption[1:]
    facts = {"name": name, "caption": caption, "wide": wide}
    return {**facts, "source": source, "text": text}


def _aspect(png: bytes) -> float:
    """Width over height, from the header of a PNG file."""
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    return width / max(height, 1)


def _natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key that puts "epoch 9" before "epoch 10", with numbers of any length."""
    pieces = re.split(r"0*([0-9]+)", text)
    return [(len(p) if i % 2 else 0, p) for i, p in enumerate(pieces)], text


def _by(rows: Iterable[TableRow], tag: str) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(row[tag], []).append(row)
    return groups


def _split_order(split: str) -> int:
    known = ("train", "validation", "test")
    return known.index(split) if split in known else len(known)


# Numbers as text


def number_of(value: Any) -> float:
    """A float; NaN for what is no number, not finite, or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    size = abs(value)
    return math.nan if not size < 1e100 else float(value) if size > 1e-100 else 0.0


def plain(value: Any) -> str:
    """A JSON value for people: numbers to four digits, but whole ones in full."""
    number = number_of(value)
    if math.isnan(number):
        return value if isinstance(value, str) else json.dumps(value)
    whole = number == round(number) or abs(number) >= 1000
    return f"{number:,.0f}" if whole and abs(number) < 1e12 else f"{number:.4g}"


def duration(seconds: Any) -> str:
    """Seconds as "22.7 s", "3 min 05 s" or "2 h 10 min"; empty where not known."""
    value = number_of(seconds)
    if not value >= 60:
        return "" if math.isnan(value) else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours = f"{minutes // 60} h {minutes % 60:02d} min"
    return hours if minutes >= 60 else f"{minutes} min {rest:02d} s"


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested fields as "outer.inner": text; numbers in full, as the JSON has them."""
    out = {}
    for name, value in record.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            out[prefix + name] = text
    return out


class Value(NamedTuple):
    """A metric as text, and as an estimate where it can be drawn."""

    text: str
    interval: str = ""
    over: str = ""
    estimate: Estimate | None = None


def value_of(value: Any) -> Value:
    """A metric of a result; a number that has no interval is an estimate of n = 1."""
    if not isinstance(value, dict):
        mean, text = _finite(value), "not finite" if value is None else plain(value)
        drawn = None if mean is None else Estimate(mean, None, None, 1, "")
        return Value(text, estimate=drawn)
    mean, low, high = (_finite(value[name]) for name in ("mean", "low", "high"))
    values = [v for v in map(_finite, value.get("values", ())) if v is not None]
    texts = estimate_texts({**value, "mean": mean, "low": low, "high": high})
    over, drawn = f"{value['n']} {value['of']}", None
    if mean is not None:
        drawn = Estimate(mean, low, high, value["n"], value["of"], tuple(values))
    return Value(*texts, over, drawn)


def _finite(value: Any) -> float | None:
    number = number_of(value)
    return None if math.isnan(number) else number


# Curves


def _curves(series: Sequence[Series], least: int = 1) -> list[Drawn]:
    """The charts of all metrics that have `least` lines.

    One for each metric with several panels, and one for all others together.
    """
    tags = ("part", "step", "epoch", "split")
    metrics = {m for *_, rows in series for row in rows for m in row if m not in tags}
    groups: list[Drawn] = []
    single: list[charts.ChartPanel] = []
    notes: list[str] = []
    for metric in sorted(metrics, key=lambda m: (m != "loss", _natural(m))):
        kept = [(a, b, c, _numbers(rows, metric)) for a, b, c, rows in series]
        titles = dict.fromkeys(title for title, _, _, rows in kept if rows)
        panels = [
            _panel(title, metric, [line for line in kept if line[0] == title])
            for title in titles
        ]
        panels = [panel for panel in panels if len(panel.curves) >= least]
        note = _note([row[metric] for *_, rows in kept for row in rows])
        name = metric.replace("_", " ")
        if len(panels) > 1:
            groups.append(_group(name, panels, [note]))
        elif panels:
            title = ", ".join(filter(None, (name, panels[0].title)))
            single.append(panels[0]._replace(title=title))
            notes.append(note)
    if single:
        groups.append(_group("metrics of one part" if groups else "", single, notes))
    return groups


def _numbers(rows: Sequence[TableRow], metric: str) -> list[TableRow]:
    """The records that have a metric, with the numbers of its replicas, or NaN."""
    return [
        {**row, metric: [*map(number_of, v if isinstance(v, list) else [v])]}
        for row in rows
        if (v := row.get(metric, row)) is not row
    ]


def _panel(title: str, metric: str, lines: Sequence[Series]) -> charts.ChartPanel:
    """The curves of a metric; where a line has several splits, validation's."""
    drawn, splits, x = [], {}, "epoch"
    for _, name, colour, rows in lines:
        if not rows:
            continue
        there = _by(rows, "split")
        split = "validation" if "validation" in there else min(there, key=_split_order)
        if any(math.isnan(number_of(row.get("epoch"))) for row in there[split]):
            x = "step"
        if name != split:
            splits[split] = None
        drawn.append((name.replace("_", " "), colour, there[split], split))
    title = ", ".join(filter(None, (title.replace("_", " "), *splits)))
    found = [
        charts.Curve(name, colour, curve(rows, split, metric, x))
        for name, colour, rows, split in drawn
    ]
    return charts.ChartPanel(title, x, found)


def _note(values: Sequence[Sequence[float]]) -> str:
    """What stands under a chart of replicas, or of values that are not finite."""
    replicas = max(map(len, values))
    lost = max(sum(map(math.isnan, v)) for v in values)
    text = ""
    if replicas > 1:
        text = f"Line: median of the replicas (up to {replicas}); band: 80 % of them."
    if lost:
        of = f"Up to {lost} of {replicas} replicas were"
        text += f" {of if replicas > 1 else 'Gaps: it was'} not finite."
    return text


def _group(
    name: str, panels: Sequence[charts.ChartPanel], notes: Iterable[str]
) -> Drawn:
    chart = charts.curves(panels)
    alt = f"{name}: {chart['alt']}" if name else chart["alt"]
    shared = charts.have_one_scale(panels)
    return {"name": name, "chart": {**chart, "alt": alt}, "count": len(panels),
            "notes": dict.fromkeys(filter(None, notes)), "shared": shared}  # fmt: skip


# Results


def tabulate(metrics: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Tables of "variant: measure" by measure, of "a - b: measure" apart, of others."""
    tables: dict[str, dict[str, Value]] = {"": {}}
    for name, value in metrics.items():
        variant, _, measure = name.rpartition(": ")
        title = f"difference in {measure}" if " - " in variant else measure
        alone = sum(n.endswith(f": {measure}") for n in metrics) == 1
        if variant and not (alone and " - " not in variant):
            tables.setdefault(title, {})[variant] = value
        else:
            tables[""][name] = value
    return {title: rows for title, rows in tables.items() if rows}


def _estimates(rows: Mapping[str, Value]) -> dict[str, Estimate]:
    return {name: value.estimate for name, value in rows.items() if value.estimate}


def _intervals(tables: Mapping[str, dict[str, Estimate]]) -> Drawn | None:
    """A chart of the tables with several estimates that are not all the same."""
    drawn = {
        title: rows
        for title, rows in tables.items()
        if len({v for e in rows.values() for v in e[:3]} - {None}) > 1
    }
    return charts.intervals(drawn) if drawn else None


def compare_runs(experiment: str, runs: Sequence[ReportedRun]) -> Drawn:
    """The runs of one experiment; what several of them have, side by side."""
    out: Drawn = {"experiment": experiment, "runs": runs, "differ": {}, "metrics": []}
    if len(runs) == 1:
        return out
    facts = [flat({**run.config, "environment": run.environment}) for run in runs]
    for name in dict.fromkeys(name for fact in facts for name in fact):
        texts = [fact.get(name, "") for fact in facts]
        if len(set(texts)) > 1:
            out["differ"][name] = texts
    results = {run.name: run.metrics for run in runs}
    drawn = {}
    for name in dict.fromkeys(name for metrics in results.values() for name in metrics):
        rows = {run: m.get(name, Value("")) for run, m in results.items()}
        if sum(name in metrics for metrics in results.values()) > 1:
            out["metrics"].append((name, rows.values()))
            drawn[name] = _estimates(rows)
    out["chart"] = _intervals(drawn)
    series: list[Series] = []
    for i, run in enumerate(runs):
        parts = run.drawn_parts
        series += [(part, run.name, i, rows) for part, rows in parts.items()]
    out["curves"] = _curves(series, least=2)
    return out
