"""The runs under a folder, read as far as they can be read: for the report."""

import base64
import contextlib
import functools
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from jaxstudy.runs.files import (
    Description,
    LoggedRecord,
    Object,
    Result,
    StepTimes,
    Study,
    json_lines,
    read_file,
    read_json,
)
from jaxstudy.runs.values import Value, value_of
from jaxstudy.study import comparison
from jaxstudy.types import UserError

TableRow = Mapping[str, Any]  # of metrics.jsonl
Drawn = dict[str, Any]  # what the template has to draw

MARKERS = ("config.json", "metrics.jsonl", "result.json")  # any of them makes a run
# Folders of a run: what is in them is its own, even trainings with folders like runs.
INSIDE = ("checkpoints", "figures", "samples", "tensorboard", "trainings")
IMAGES = {".png": (b"\x89PNG\r\n", "image/png"), ".gif": (b"GIF8", "image/gif")}
TEXTS = (".txt", ".abc")
MAX_WIDTH, LARGE = 1600, 100_000  # of a picture: pixels; bytes that are made fewer


@dataclass
class Attachment:
    """A file in figures/ or samples/: an image, a text, or of others only the path."""

    path: str
    data: bytes = b""
    mime: str = ""
    text: str = ""

    @property
    def name(self) -> str:
        """The path within figures/ or samples/."""
        return self.path.partition("/")[2]

    @property
    def title(self) -> str:
        """The name in words."""
        text = re.sub(r"[_\s]+", " ", os.path.splitext(self.name)[0].replace("/", ", "))
        return text[:1].upper() + text[1:]

    @property
    def wide(self) -> bool:
        """Whether it is an image over twice as wide as high, or a text."""
        width, height = (int.from_bytes(self.data[i : i + 4], "big") for i in (16, 20))
        return bool(self.text) or (self.mime == "image/png" and width > 2 * height)

    @functools.cached_property
    def source(self) -> str:
        """The image as a data URI, a large one with fewer pixels and colours."""
        large = self.mime == "image/png" and len(self.data) > LARGE
        return data_uri(smaller(self.data) if large else self.data, self.mime)

    @property
    def thumbnail(self) -> str:
        """The image in small, as a data URI."""
        small = smaller(self.data, 320, 64)
        return data_uri(small, "image/png") if small is not self.data else self.source


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as the address of an image; of none an empty one."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}" if data else ""


def smaller(image: bytes, width: int = MAX_WIDTH, colours: int = 256) -> bytes:
    """An image as a PNG of at most this width and so many colours, where it is shorter.

    Else, and where it cannot be read, as it is.
    """
    try:
        with warnings.catch_warnings(action="error"):  # as of one of too many pixels
            picture = Image.open(io.BytesIO(image)).convert("RGB")
        if picture.width > width:
            height = max(1, round(picture.height * width / picture.width))
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        how = Image.Quantize.MEDIANCUT
        picture.quantize(colours, how, dither=Image.Dither.NONE).save(file, "PNG")
    except Exception:  # a file may be anything, and Pillow raises what its readers do
        return image
    return min(image, file.getvalue(), key=len)


@dataclass
class ReportedRun:
    """What was read of one run; `problems` says what could not be."""

    path: str
    folder: Path
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
    figures: list[Attachment] = field(default_factory=list)
    samples: list[Attachment] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path without the experiment it begins with."""
        return self.path.removeprefix(f"{self.experiment}/")

    @property
    def metrics(self) -> dict[str, Value]:
        """The metrics of the result."""
        return {k: value_of(v) for k, v in self.result.get("metrics", {}).items()}

    @property
    def lesson(self) -> Drawn:
        """What the result says of the lesson; empty for what is none."""
        return self.result.get("lesson", {})


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
    run = ReportedRun(folder.resolve().name if relative == "." else relative, folder)
    described = _read(run, "config.json", Description)
    run.config, run.options = described.get("config", {}), described.get("options", {})
    run.environment = _read(run, "environment.json", Object)
    if os.path.lexists(folder / "result.json"):
        run.status = "finished"
        run.result = _read(run, "result.json", Result)
    if os.path.lexists(folder / "study.json"):
        run.study = _read_study(run)
    torn = False
    if os.path.lexists(folder / "metrics.jsonl"):
        run.records, torn = _read_records(run)
    run.figures = _attachments(run, "figures")
    run.samples = _attachments(run, "samples")
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


def _leads_out(run: ReportedRun, name: str) -> bool:
    """Whether a link leads out of the run folder: the page has nothing from there."""
    inside = Path(os.path.realpath(run.folder / name))
    return not inside.is_relative_to(os.path.realpath(run.folder))


def _inside(run: ReportedRun, name: str) -> Path:
    """The path of a file of a run. Raises UserError where it is none of the run's."""
    if _leads_out(run, name):
        raise UserError(f"{name} is a link out of the run folder and left out")
    return run.folder / name


@contextlib.contextmanager
def _noting(run: ReportedRun) -> Iterator[None]:
    """Note a UserError among the problems of a run, with paths within its folder."""
    try:
        yield
    except UserError as error:
        run.problems.append(str(error).removeprefix(f"{run.folder}/"))


def _read(run: ReportedRun, name: str, kind: Any) -> Drawn:
    """What a JSON file of a run holds; empty where it is damaged."""
    with _noting(run):
        return read_json(_inside(run, name), kind)
    return {}


def _read_study(run: ReportedRun) -> Drawn:
    """The conclusions and the tables of a study."""
    record, step_times = _read(run, "study.json", Study), {}
    if not record:
        return {}
    if os.path.lexists(run.folder / "timing.json"):
        step_times = _read(run, "timing.json", StepTimes)
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
        run.problems.append(f"study.json cannot be read: {error!r}")
        return {}


def _read_records(run: ReportedRun) -> tuple[list[TableRow], bool]:
    """The good records of metrics.jsonl, and whether its last line is torn."""
    with _noting(run):
        content = read_file(_inside(run, "metrics.jsonl"))
        rows, bad, torn = json_lines(content, LoggedRecord)
        if bad:
            where = ", ".join(map(str, [*bad][:5])) + (", ..." if len(bad) > 5 else "")
            first = next(iter(bad.values()))
            run.problems.append(
                f"metrics.jsonl is damaged and left out in line {where} ({first})"
            )
        return [{"part": "", **row} for row in rows], torn
    return [], False


def _attachments(run: ReportedRun, kind: str) -> list[Attachment]:
    """Images and texts of this kind in order; of other files only the name."""
    where, out = run.folder / kind, []
    files = [] if _leads_out(run, kind) else where.rglob("*")
    if where.is_symlink() and not files:
        run.problems.append(f"{kind} is a link out of the run folder and left out")
    names = [path.relative_to(run.folder).as_posix() for path in files]
    for name in sorted(names, key=natural):
        path = run.folder / name
        if path.is_file() and not path.name.startswith("."):
            with _noting(run):
                out.append(_attachment(run, name))
    return out


def _attachment(run: ReportedRun, name: str) -> Attachment:
    path = run.folder / name
    suffix = path.suffix.lower()
    if _leads_out(run, name):
        return Attachment(f"{name} (a link out of the run folder)")
    if suffix in IMAGES:
        data, (magic, mime) = read_file(path), IMAGES[suffix]
        if data.startswith(magic):
            return Attachment(name, data, mime)
        run.problems.append(f"{name} is no {suffix[1:].upper()} image")
    elif suffix in TEXTS:
        text = read_file(path).decode("utf-8", "replace")
        text = text if len(text) < 4000 else f"{text[:4000]}\n..."
        return Attachment(name, text=text)
    return Attachment(name)


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key that puts "epoch 9" before "epoch 10", with numbers of any length."""
    pieces = re.split(r"0*([0-9]+)", text)
    return [(len(p) if i % 2 else 0, p) for i, p in enumerate(pieces)], text
