"""One self-contained page, report.html, over all runs under a folder.

Made from the JSON files alone, with the images of the runs inside it: the same runs
give the same bytes, and the page needs no network. This module reads the runs and
works out every number and coordinate; report.html.jinja next to it draws them.
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
import numpy as np

from jaxstudy.runs.files import (
    Description,
    Object,
    Record,
    Result,
    StepTimes,
    Study,
    from_json,
    json_lines,
    read_file,
    reason,
)
from jaxstudy.runs.run import write_atomically
from jaxstudy.study import comparison
from jaxstudy.types import UserError

Row = Mapping[str, Any]  # of metrics.jsonl
Series = tuple[str, str, int, Sequence[Row]]  # of a curve: panel, name, colour, rows
T = TypeVar("T")
Drawn = dict[str, Any]  # what the template has to draw

MARKERS = ("config.json", "metrics.jsonl", "result.json")  # any of them makes a run
# Folders of a run: what is in them is its own, even trainings with folders like runs.
INSIDE = ("checkpoints", "figures", "samples", "tensorboard", "trainings")
IMAGES = {".png": (b"\x89PNG\r\n", "image/png"), ".gif": (b"GIF8", "image/gif")}
TEXTS = (".txt", ".abc")
STUDY_PARTS = ("tune ", "report ")  # of a study: trainings by the hundred
POINTS = 160  # of a drawn line
TOGETHER = 8  # lines in one chart: as many as the style sheet has colours


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
    experiments: dict[str, list[Run]] = {}
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
        experiments=[compare(name, members) for name, members in experiments.items()]
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
class Run:
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
    records: list[Row] = field(default_factory=list)
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
    def results(self) -> list[Drawn]:
        """The metrics as tables."""
        return tabulate(self.metrics)

    @property
    def drawn_parts(self) -> dict[str, list[Row]]:
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
        return curves(series)


def find_runs(root: Path) -> list[Run]:
    """Every run under a folder, which may itself be one."""
    runs = []
    for place, folders, files in os.walk(root):
        if any(name in files for name in MARKERS):
            runs.append(read_run(Path(place), root))
            folders[:] = [name for name in folders if name not in INSIDE]
    return runs


def read_run(folder: Path, root: Path) -> Run:
    """Read a run folder as far as it can be read."""
    relative = folder.relative_to(root).as_posix()
    run = Run(folder.resolve().name if relative == "." else relative)
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


def _read(folder: Path, name: str, kind: type[T], problems: list[str]) -> T | Drawn:
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
        if record["schema"] != comparison.SCHEMA:
            raise ValueError(f"schema {record['schema']}, not {comparison.SCHEMA}")
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


def _read_records(folder: Path, problems: list[str]) -> tuple[list[Row], bool]:
    """The good records of metrics.jsonl, and whether its last line is torn."""
    with _noting(folder, problems):
        rows, bad, torn = json_lines(_content(folder, "metrics.jsonl"), Record)
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


def _by(rows: Iterable[Row], tag: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
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
    """A metric as text, and as (mean, low, high) where it can be drawn."""

    text: str
    interval: str = ""
    over: str = ""
    point: tuple[float, ...] | None = None


def value_of(value: Any) -> Value:
    """Format a metric; a mean to two digits of its interval's half-width."""
    interval = isinstance(value, dict) and {"mean", "low", "high"} <= value.keys()
    keys = ("mean", "low", "high")
    point = tuple(number_of(value[k] if interval else value) for k in keys)
    over = f"{value.get('n', '')} {value.get('of', '')}".strip() if interval else ""
    if math.isnan(point[0]):
        empty = value is None or interval
        return Value("not finite" if empty else plain(value), over=over)
    if not interval:
        return Value(plain(value), point=point)
    if math.isnan(sum(point)):
        values = value.get("values")  # few: they stand in the place of an interval
        listed = ", ".join(map(plain, values)) if isinstance(values, list) else ""
        each = f"each: {listed}" if listed else "not finite"
        return Value(plain(point[0]), each, over, (point[0],) * 3)
    half = (point[2] - point[1]) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 99
    texts = [f"{v:,.{digits}f}" if digits <= 6 else plain(v) for v in point]
    return Value(texts[0], f"{texts[1]} to {texts[2]}", over, point)


# Scales


class Scale(NamedTuple):
    """Maps values to 0..1, by their logarithm where they span over two decades."""

    low: float
    high: float
    log: bool

    def __call__(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """Round values as text, with their places; between about / 2 and about + 1."""
        if self.log:
            first = math.ceil(math.log10(self.low))
            last = math.floor(math.log10(self.high))
            skip = max(1, math.ceil((last - first) / about))
            decades = [10.0**e for e in range(first, last + 1, skip)]
            return [(self(v), f"{v:g}" if v < 1e4 else f"{v:.0e}") for v in decades]
        raw = (self.high - self.low) / about
        exponent = math.floor(math.log10(raw))
        unit = 10.0**exponent
        factor = next(f for f in (1, 2, 2.5, 5, 10) if f * unit >= 0.999 * raw)
        step = factor * unit
        digits = max(0, (factor == 2.5) - exponent - (factor == 10))
        first = math.ceil(self.low / step - 1e-9)
        numbers = range(first, math.floor(self.high / step + 1e-9) + 1)
        return [(self(n * step), _tick(n * step, digits)) for n in numbers]


def _tick(value: float, digits: int) -> str:
    if digits == 0 and abs(value) >= 1e4:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.{digits}f}" if digits <= 4 or abs(value) > 0.1 else f"{value:.3g}"


def scale_over(values: Iterable[float], room: float, log: bool = True) -> Scale:
    """The scale that holds all the finite values, with some room at both ends."""
    finite = [v for v in values if not math.isnan(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log and low > 0 and high / low > 100:
        factor = (high / low) ** room
        return Scale(low / factor, high * factor, True)
    same = high - low <= 1e-9 * max(abs(low), abs(high))
    margin = (abs(low) * 0.05 or 0.5) if same else (high - low) * room
    return Scale(low - margin, high + margin, False)


# Curves


class Line(NamedTuple):
    """A curve: table [points, 4] of x, median, 10 % and 90 % of the replicas."""

    name: str
    colour: int
    split: str
    x_label: str
    table: np.ndarray
    replicas: int
    lost: int  # the most replicas that were not finite at one time


def line_of(rows: Iterable[Row], metric: str, name: str, colour: int) -> Line | None:
    """The curve of a metric, None without one; of several splits, validation's."""
    splits = _by((row for row in rows if metric in row), "split")
    if not splits:
        return None
    split = "validation" if "validation" in splits else min(splits, key=_split_order)
    chosen = splits[split]
    in_epochs = not any(math.isnan(number_of(row.get("epoch"))) for row in chosen)
    x_label = "epoch" if in_epochs else "step"
    table, replicas, lost = [], 1, 0
    for row in chosen:
        values = row[metric] if isinstance(row[metric], list) else [row[metric]]
        finite = [v for v in map(number_of, values) if not math.isnan(v)]
        replicas, lost = (
            max(replicas, len(values)),
            max(lost, len(values) - len(finite)),
        )
        three = np.quantile(finite, [0.5, 0.1, 0.9]) if len(finite) > 1 else 3 * finite
        table.append([number_of(row[x_label]), *(three if finite else [math.nan] * 3)])
    return Line(name, colour, split, x_label, np.array(table), replicas, lost)


def curves(series: Sequence[Series], least: int = 1) -> list[Drawn]:
    """The charts of every metric that have `least` lines: a group of panels each."""
    tags = ("part", "step", "epoch", "split")
    metrics = dict.fromkeys(m for *_, rows in series for row in rows for m in row)
    groups = []
    for metric in sorted(
        metrics.keys() - tags, key=lambda m: (m != "loss", _natural(m))
    ):
        panels: dict[str, list[Line]] = {}
        for title, name, colour, rows in series:
            line = line_of(rows, metric, name.replace("_", " "), colour)
            if line is not None:
                panels.setdefault(title.replace("_", " "), []).append(line)
        panels = {
            title: lines for title, lines in panels.items() if len(lines) >= least
        }
        groups += [_group(metric, panels)] if panels else []
    return groups


def _group(metric: str, panels: Mapping[str, Sequence[Line]]) -> Drawn:
    """The panels of one metric, on one vertical scale unless it flattened half."""
    values = [_y_values(lines) for lines in panels.values()]
    every = [line for lines in panels.values() for line in lines]
    common = scale_over([v for panel in values for v in panel], 0.05)
    spans = [common(max(v)) - common(min(v)) for v in values if len({*v}) > 1]
    shared = not spans or float(np.quantile(spans, 0.25)) > 0.12
    dense = len(panels) > TOGETHER + 1
    replicas, lost = (
        max(getattr(ln, key) for ln in every) for key in ("replicas", "lost")
    )
    notes = []
    if replicas > 1:
        band = "; band: 80 % of them" if any(map(_banded, panels.values())) else ""
        notes.append(f"Line: median of the replicas (up to {replicas}){band}.")
    if lost:
        of = (
            f"Up to {lost} of {replicas} replicas were"
            if replicas > 1
            else "Gaps: it was"
        )
        notes.append(f"{of} not finite.")
    if max(len(line.table) for line in every) > POINTS:
        notes.append(f"Long curves: {POINTS} bins, their medians and extremes.")
    drawn = [
        draw(metric, title, lines, common if shared else scale_over(v, 0.05), dense)
        for (title, lines), v in zip(panels.items(), values, strict=True)
    ]
    return {"metric": metric, "panels": drawn, "notes": notes, "shared": shared,
            "dense": dense}  # fmt: skip


def _banded(lines: Sequence[Line]) -> bool:
    return len(lines) <= 3  # more bands than that hide each other


def _y_values(lines: Sequence[Line]) -> list[float]:
    columns = slice(1, 4) if _banded(lines) else slice(1, 2)
    values = np.concatenate([line.table[:, columns].ravel() for line in lines])
    return values[~np.isnan(values)].tolist()


def draw(
    metric: str, title: str, lines: Sequence[Line], scale: Scale, dense: bool
) -> Drawn:
    """Work out one chart: ticks, and each line as an SVG path and as numbers."""
    width, height = (208, 158) if dense else (360, 226)
    left, top, right, bottom = 40, 18, width - 8, height - 32
    across = np.concatenate([line.table[:, 0] for line in lines])
    xs = scale_over(across.tolist(), 0.02, log=False)

    def at(x: float, y: float) -> str:
        px, py = left + xs(x) * (right - left), bottom - scale(y) * (bottom - top)
        return f"{px:.1f} {py:.1f}"

    drawn, numbers = [], []
    for line in lines:
        table = _binned(line.table)
        gaps = np.split(table, np.flatnonzero(np.isnan(table[:, 1])))
        pieces = [p[~np.isnan(p[:, 1])].tolist() for p in gaps]
        path = "".join("M" + "L".join(at(x, y) for x, y, *_ in p) for p in pieces if p)
        band = ""
        if _banded(lines) and np.nanmax(table[:, 3] - table[:, 2], initial=0) > 0:
            for p in filter(None, pieces):
                edge = [at(r[0], r[2]) for r in p] + [at(r[0], r[3]) for r in p[::-1]]
                band += f"M{'L'.join(edge)}Z"
        dots = [at(x, y).split() for p in pieces for x, y, *_ in p
                if len(table) <= 12 or len(p) == 1]  # fmt: skip
        last = table[-1, 1]
        text = "not finite" if np.isnan(last) else f"{last:#.4g}"
        facts = {"name": line.name, "colour": line.colour, "last": text}
        drawn.append({**facts, "path": path, "band": band, "dots": dots})
        columns = table.T.tolist()[: 4 if band else 2]
        numbers.append([line.name, *([_short(v) for v in c] for c in columns)])
    splits = dict.fromkeys(line.split for line in lines if line.name != line.split)
    return {
        "title": title,
        "split": ", ".join(splits),
        "metric": metric,
        "size": (width, height),
        "box": (left, top, right, bottom),
        "x_label": lines[0].x_label,
        "x_ticks": [(round(left + f * (right - left), 1), text)
                    for f, text in xs.ticks(4 if dense else 6)],
        "y_ticks": [(round(bottom - f * (bottom - top), 1), text)
                    for f, text in scale.ticks(4 if dense else 6)],
        "log": scale.log,
        "lines": drawn,
        "numbers": json.dumps(numbers, separators=(",", ":")),
        "axis": json.dumps([xs.low, xs.high, left, right, width]),
    }  # fmt: skip


def _binned(table: np.ndarray) -> np.ndarray:
    """At most POINTS rows: medians and the extremes, so that no spike is lost."""
    if len(table) <= POINTS:
        return table
    out = np.full((POINTS, 4), math.nan)
    for i, rows in enumerate(np.array_split(table, POINTS)):
        good = rows[~np.isnan(rows[:, 1])]
        out[i, 0] = np.median(rows[:, 0])
        if len(good):
            middle = np.median(good[:, 1])
            out[i, 1:] = middle, good[:, 2].min(), good[:, 3].max()
    out[-1, :2] = table[-1, :2]
    return out


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")


# Results


def tabulate(metrics: Mapping[str, Value]) -> list[Drawn]:
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
    return [_table(title, rows, bool(title)) for title, rows in tables.items() if rows]


def _table(title: str, rows: Mapping[str, Value], on_scale: bool = True) -> Drawn:
    """Rows of (name, value, places in %), the axis' ticks, and the place of zero."""
    points = [v.point if on_scale else None for v in rows.values()]
    known = [v for p in points if p for v in p]
    zero = [0.0] if title.startswith("difference in ") else []
    scale = scale_over([*zero, *known], 0.06)

    def place(value: float) -> float:
        return round(100 * scale(value), 2)

    places = [tuple(map(place, p)) if p else None for p in points]
    return {
        "title": title,
        "rows": list(zip(rows, rows.values(), places, strict=True)),
        "axis": [(round(100 * f, 2), text) for f, text in scale.ticks(4)],
        "drawn": len({*zero, *known}) > 1,
        "zero": place(0.0) if not scale.log and scale.low < 0 < scale.high else None,
        "log": scale.log,
    }


def compare(experiment: str, runs: Sequence[Run]) -> Drawn:
    """The runs of one experiment; what several of them have, side by side."""
    out: Drawn = {"experiment": experiment, "runs": runs, "differ": {}, "metrics": []}
    if len(runs) == 1:
        return out
    facts = [flat({**run.config, "environment": run.environment}) for run in runs]
    for name in dict.fromkeys(name for fact in facts for name in fact):
        texts = [fact.get(name, "") for fact in facts]
        if len(set(texts)) > 1:
            out["differ"][name] = texts
    results = [run.metrics for run in runs]
    for name in dict.fromkeys(name for metrics in results for name in metrics):
        values = [metrics.get(name, Value("")) for metrics in results]
        if sum(name in metrics for metrics in results) > 1:
            rows = {run.path: value for run, value in zip(runs, values, strict=True)}
            out["metrics"].append(_table(name, rows))
    series: list[Series] = []
    for i, run in enumerate(runs):
        parts = run.drawn_parts
        series += [(part, run.name, i, rows) for part, rows in parts.items()]
    out["curves"] = curves(series, least=2)
    return out
