"""What mkdocs asks for while it builds docs/: tables, lessons' pages, the reference.

Of measurements it says what results/ and benchmarks/results/ hold, so that no number is
typed. A lesson's page is its prose, docs/lessons/SCRIPT.md, in a frame made from the
LESSON of its script and from its full run.
"""

import functools
import html
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import laws
import readme

from jaxstudy.runs.lesson import Lesson, find_lessons
from jaxstudy.runs.pages import escaped, expanded, inline, read_page, unresolved
from jaxstudy.runs.values import duration, value_of

ROOT = readme.ROOT
# What a browser would fetch
TAGS = "script|link|img|iframe"
LOADED = re.compile(rf'<(?:{TAGS})\b[^>]*\b(?:src|href)="(?:https?:)?//.*?>')
log = logging.getLogger("mkdocs.hooks")
GUIDES = {
    "Your own data": "guides/your-own-data.md",
    "Runs and checkpoints": "guides/runs.md",
    "Optimizers, compared": "guides/optimizers.md",
    "Speed": "guides/speed.md",
    "GPU, TPU, many devices": "guides/scaling.md",
    "Reading the code": "guides/reading-the-code.md",
}


@functools.cache
def lessons() -> dict[str, Lesson]:
    """All lessons by script, in the order of the course."""
    return find_lessons(ROOT / "experiments")


def modules() -> dict[str, list[str]]:
    """The public modules of every package, "jaxstudy" being what lies at the top."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "jaxstudy").rglob("*.py")):
        if not path.stem.startswith("_"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return found


# What mkdocs calls


def on_config(config: Any) -> Any:
    """The navigation: lessons in the order of the course."""
    pages = [
        {f"{lesson.number} {lesson.title}": f"lessons/{name}.md"}
        for name, lesson in lessons().items()
    ]
    config.nav = [
        {"Start": "index.md"},
        {"Lessons": ["lessons/index.md", *pages]},
        {"From Keras": "keras-to-jax.md"},
        {"Guides": [{title: path} for title, path in GUIDES.items()]},
        {"Reference": [{name: f"api/{name}.md"} for name in modules()]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the stored figures and the reference."""
    from mkdocs.structure.files import File

    def add(uri: str, **source: Any) -> None:
        files.append(File.generated(config, uri, **source))

    for path in (ROOT / "results" / "figures").rglob("*.png"):
        uri = path.relative_to(ROOT / "results").as_posix()
        add(uri, abs_src_path=str(path))
    for package, names in modules().items():
        reference = "\n\n".join(f"::: {name}" for name in names)
        add(f"api/{package}.md", content=f"# {package}\n\n{reference}\n")
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page as it is built: a lesson in its frame, others with their tables."""
    del config, files
    folder, _, file = page.file.src_uri.rpartition("/")
    name = file.removesuffix(".md")
    if folder == "api":  # who searches for dropout finds the lessons first
        page.meta["search"] = {"boost": 0.5}
    if folder == "lessons" and name in lessons():
        return lesson_page(name, lessons()[name])
    tables = {
        "<!-- lessons -->": lambda: readme.lessons_table(lessons(), "{}.md"),
        "<!-- optimizers -->": readme.optimizers_table,
        "<!-- communication -->": readme.communication_table,
        "<!-- problems -->": readme.problems_table,
        "<!-- speed -->": readme.speed_tables,
        "<!-- curves -->": lambda: laws.section(ROOT),
    }
    for marker, make in tables.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return filled(markdown, {}, lambda key: "")


def on_post_build(config: Any) -> None:
    """The search as a script, for pages opened as files; nothing is of a network."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text("utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", "utf-8")
    for path in Path(config.site_dir).rglob("*.html"):
        for loaded in LOADED.findall(path.read_text("utf-8")):
            log.warning(f"{path} would be read over a network: {loaded}")


# The frame of a lesson


def lesson_page(name: str, lesson: Lesson) -> str:
    """The Markdown of a lesson's page: what it asks and found, prose, what to try."""
    stored = readme.stored_result(name)
    metrics = stored["result"]["metrics"] if stored else {}
    placed: set[str] = set()

    def figure(key: str) -> str:
        placed.add(key)
        return figure_html(name, key, lesson.figures.get(key, ""))

    text = read_page(name) or ""
    for missing in unresolved(text, lesson):  # which fails a strict build
        log.warning(f"docs/lessons/{name}.md: there is no {missing}")
    prose = filled(text, metrics, figure)
    mistakes = {f"--mistake {key}": fakes for key, fakes in lesson.mistakes.items()}
    unplaced = [figure(key) for key in lesson.figures if key not in placed]
    parts = [
        f"# {lesson.number} {lesson.title}",
        f'<p class="question">{html.escape(lesson.question)}</p>',
        warning(stored, lesson),
        claims_table(lesson, metrics),
        prose,
        "\n\n".join(["## Figures", *unplaced]) if unplaced else "",
        metrics_table(lesson, metrics),
        commands("Try it", name, lesson.try_it),
        commands("Mistakes", name, mistakes),
        provenance(name, stored),
    ]
    return "\n\n".join(part for part in parts if part)


def filled(text: str, metrics: dict[str, Any], figure: Callable[[str], str]) -> str:
    """A page's text `expanded`, so that mkdocs keeps formulas within their lines."""
    text = expanded(text, metrics, figure)
    # Python-Markdown takes <math> for a block where a line begins with it
    return re.sub('^(?=<math[^>]*"inline")', "<span></span>", text, flags=re.MULTILINE)


def figure_html(name: str, key: str, caption: str) -> str:
    """A figure of the full run with its caption, or where to see it."""
    stored = readme.stored_figures(name, key)
    if stored:
        source = stored[-1].relative_to(ROOT / "results").as_posix()
        shown = f'<img src="../{source}" alt="{html.escape(key)}" loading="lazy">'
    else:
        command = f"<code>python experiments/{name}.py</code>"
        shown = f'<div class="absent">{key}: run the lesson to see it, {command}</div>'
    caption = f"<figcaption>{inline(caption)}</figcaption>"
    return f'<figure class="lesson">{shown}{caption}</figure>'


def warning(stored: dict[str, Any] | None, lesson: Lesson) -> str:
    """What is wrong with the measurement, where that is known."""
    title, text = "Outdated numbers", readme.outdated(stored, lesson)
    if stored is None:
        title, text = "Not measured yet", "There is no full run in results/."
    return f'!!! warning "{title}"\n\n    {text}' if text else ""


def claims_table(lesson: Lesson, metrics: dict[str, Any]) -> str:
    """Every claim with its verdict and the numbers that decide it."""
    rows = [["claim", "verdict", "evidence"]]
    for claim, judged in zip(lesson.claims, lesson.judge(metrics), strict=True):
        verdict, evidence = judged.verdict, judged.evidence
        if any(isinstance(m, str) and m not in metrics for m in claim.metrics):
            verdict, evidence = "unmeasured", "not measured yet"
        shown = f'<span class="verdict {verdict}">{verdict}</span>'
        rows.append([escaped(claim.sentence), shown, escaped(evidence)])
    heading = "## What the full run says\n\n"
    return heading + readme.table(rows) if lesson.claims else ""


def metrics_table(lesson: Lesson, metrics: dict[str, Any]) -> str:
    """The metrics that the lesson names, with their intervals."""
    rows = [["metric", "value", "95 % interval", "over"]]
    for name in lesson.metrics:
        cells = ["not measured yet", "", ""]
        if name in metrics:
            stored, value = metrics[name], value_of(metrics[name])
            old = isinstance(stored, dict) and stored.get("interval") == "earlier"
            over = value.over + ", by an earlier method" * old
            cells = [value.text, value.interval, over]
        rows.append([escaped(cell) for cell in (name, *cells)])
    return f"## Measured\n\n{readme.table(rows)}"


def commands(title: str, name: str, options: Mapping[str, str]) -> str:
    """What to try on the command line, and what to expect of it."""
    parts = [
        f"```sh\npython experiments/{name}.py {words}\n```\n\n{expected}"
        for words, expected in options.items()
    ]
    return "\n\n".join([f"## {title}", *parts]) if parts else ""


def provenance(name: str, stored: dict[str, Any] | None) -> str:
    """The command, the time, the machine and the revision of the full run."""
    command = f"## How it was measured\n\n`python experiments/{name}.py --preset full`"
    if stored is None:
        return f"{command}: not yet."
    environment, result = stored["environment"], stored["result"]
    packages = environment["packages"]
    revision = (environment.get("git") or "unknown").replace("+changes", ", changed")
    return (
        f"{command} ran for {duration(result['wall_s'])}, compiling included, on "
        f"{environment['cores']} cores of {environment['processor']} "
        f"({environment['device']}), Python {environment['python']}, jax "
        f"{packages['jax']}; revision `{revision}`."
    )
