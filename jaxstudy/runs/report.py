"""One self-contained page, report.html: the course as the runs under a folder tell it.

A section for each lesson that ran, then every other run. Made from the files of the
runs and the pages in docs/lessons, with the images inside it: the same runs give the
same bytes, and the page needs no network. reading.py reads the runs, charts.py draws,
report.html.jinja lays out.
"""

import base64
import hashlib
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxstudy.runs import generic, pages
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.lesson import shows
from jaxstudy.runs.reading import Attachment, Drawn, ReportedRun, find_runs, natural
from jaxstudy.runs.values import duration, flat, plain
from jaxstudy.types import UserError

FOLDER = Path(__file__).parent
PRESETS = ("full", "quick", "smoke")
VERDICT_MARKS = {
    "holds": "\N{CHECK MARK}",
    "fails": "\N{BALLOT X}",
    "undetermined": "?",
}


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
    for run in sorted(runs, key=lambda r: (natural(r.experiment), natural(r.path))):
        experiments.setdefault(run.experiment, []).append(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "report.js").read_text()
    environment.globals.update(
        plain=plain, duration=duration, flat=flat, marks=VERDICT_MARKS, generic=generic,
        style=Markup((FOLDER / "report.css").read_text() + pages.colours()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    environment.filters |= {
        "urlencode": _anchor,
        "inline": lambda text: Markup(pages.inline(text)),
    }
    sections = [Section(name, members) for name, members in experiments.items()]
    lessons = sorted(
        (section for section in sections if section.lesson),
        key=lambda section: natural(section.lesson["number"]),
    )
    others = [section for section in sections if not section.lesson]
    figure = environment.get_template("report_parts.html.jinja").module.figure  # type: ignore[attr-defined]
    text = environment.get_template("report.html.jinja").render(
        chapters=chapters(lessons),
        lessons=lessons,
        prose={lesson.experiment: prose(lesson, figure) for lesson in lessons},
        others=[generic.compare_runs(s.experiment, s.runs) for s in others],
        count=len(runs),
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


@dataclass
class Section:
    """The runs of one experiment; of a lesson one is shown and the others are folded.

    `placed` are the keys of the figures that the page has shown.
    """

    experiment: str
    runs: Sequence[ReportedRun]
    placed: list[str] = field(default_factory=list)

    @cached_property
    def run(self) -> ReportedRun:
        """The run that is shown: a finished lesson, whole, of the largest preset."""

        def rank(run: ReportedRun) -> tuple[bool, bool, int]:
            known = run.preset in PRESETS
            place = PRESETS.index(run.preset) if known else len(PRESETS)
            return not run.lesson, run.status != "finished", place

        return min(self.runs, key=rank)

    @property
    def lesson(self) -> Drawn:
        """What the run says of its lesson; empty for what is none."""
        return self.run.lesson

    @property
    def claims(self) -> list[Drawn]:
        """The judged claims of the run."""
        return self.run.result.get("claims", [])

    @cached_property
    def figures(self) -> dict[str, list[Attachment]]:
        """The files that the lesson has captions for, by key in its order."""
        found: dict[str, list[Attachment]] = {}
        files = [*self.run.figures, *self.run.samples]
        for key in self.lesson["figures"]:
            taken = [file for group in found.values() for file in group]
            found[key] = [
                file
                for file in files
                if shows(key, file.path)
                and file not in taken
                and (file.mime or file.text)
            ]
        return {key: group for key, group in found.items() if group}

    @property
    def rest(self) -> dict[str, list[Attachment]]:
        """Those of them that the page does not show."""
        return {k: files for k, files in self.figures.items() if k not in self.placed}

    @property
    def uncaptioned(self) -> list[Attachment]:
        """The other files of the run."""
        shown = [file for files in self.figures.values() for file in files]
        files = [*self.run.figures, *self.run.samples]
        return [file for file in files if file not in shown]

    @cached_property
    def thumbnail(self) -> str:
        """The first image in small."""
        images = (f for files in self.figures.values() for f in files[-1:] if f.mime)
        return next((image.thumbnail for image in images), "")

    @property
    def mistaken(self) -> dict[str, Any]:
        """The metrics of a mistake that was made on purpose."""
        metrics = self.run.metrics
        return {n: v for n, v in metrics.items() if n.startswith("mistake")}

    @property
    def comparison(self) -> Drawn:
        """The runs side by side."""
        return generic.compare_runs(self.experiment, self.runs, with_charts=False)


def chapters(lessons: Sequence[Section]) -> dict[str, list[Section]]:
    """Lessons by the title of their chapter, the first part of their number."""
    out: dict[str, list[Section]] = {}
    for section in lessons:
        number = re.split("[.,]", section.lesson["number"])[0]
        title = f"{number}. {pages.CHAPTERS.get(number, '')}".rstrip(". ")
        out.setdefault(title, []).append(section)
    return out


def prose(section: Section, figure: Any) -> Markup:
    """The page of a lesson as HTML, with the numbers and the figures of its run."""
    text = pages.read_page(section.experiment)
    if text is None:
        return Markup()
    drawn: list[str] = []  # put in at the end: Markdown is slow at reading images

    def place(key: str) -> str:
        if key not in section.figures:
            return ""
        section.placed.append(key)
        drawn.append(figure(section.lesson["figures"][key], section.figures[key]))
        return f"<!--{len(drawn) - 1}-->"

    page = pages.html(pages.expanded(text, section.run.result["metrics"], place))
    return Markup(re.sub(r"<!--(\d+)-->", lambda m: drawn[int(m[1])], page))
