"""What a lesson says on the terminal: its question, its numbers, its claims."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.padding
import rich.table
import rich.text

from jaxstudy.runs.lesson import Lesson, shows
from jaxstudy.runs.statistics import estimate_texts

MAX_ROWS = 12  # of the table of metrics
VERDICT_COLOURS = {"holds": "green", "fails": "red", "undetermined": "yellow"}


def _console() -> rich.console.Console:
    console = rich.console.Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console.width = 120
    return console  # no markup: names are not ours


def print_question(lesson: Lesson) -> None:
    """What the run is to answer."""
    console = _console()
    console.print(f"Lesson {lesson.number}: {lesson.title}")
    console.print(lesson.question, style="bold")


def print_result(
    name: str, result: Mapping[str, Any], folder: Path, everything: bool = False
) -> None:
    """The metrics as a table, the judged claims, what to look at, what to try next.

    Of a lesson's metrics the first dozen that it names, and what a mistake fakes,
    unless asked for everything.
    """
    console, metrics = _console(), result["metrics"]
    lesson = result.get("lesson")
    if lesson and not everything:
        named = [m for m in lesson["metrics"] if m in metrics][:MAX_ROWS]
        named += [m for m in metrics if m.startswith("mistake") and m not in named]
        metrics = {m: metrics[m] for m in named}
    console.print(_table(name, metrics))
    left_out = len(result["metrics"]) - len(metrics)
    if left_out:
        console.print(f"and {left_out} more metrics: --resume --all prints them")
    times = f"{result['wall_s']:.1f} s, of which compiling {result['compile_s']:.1f} s"
    times += f", training {result['train_s']:.1f} s"
    peak = result.get("peak_memory_gib")
    memory = f"; {peak:.1f} GiB of memory at most" if peak else ""
    console.print(f"{result['steps']:,} steps; {times}{memory}")
    if result.get("claims"):
        console.print("\nclaims", style="bold")
    for claim in result.get("claims", ()):
        verdict = rich.text.Text(
            f"  {claim['verdict']:<14}", VERDICT_COLOURS[claim["verdict"]]
        )
        console.print(verdict + rich.text.Text(claim["sentence"]))
        evidence = rich.text.Text(claim["evidence"], style="dim")
        console.print(rich.padding.Padding(evidence, (0, 0, 0, 16), expand=False))
    if lesson:
        _print_next(console, name, lesson, folder)
    console.print(f"\nsaved in {folder}")


def _table(name: str, metrics: Mapping[str, Any]) -> rich.table.Table:
    table = rich.table.Table(title=name, title_justify="left")
    for heading in ("metric", "value", "95 % interval", "over"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for metric, value in metrics.items():
        if isinstance(value, dict):
            over = f"{value['n']} {value['of']}"
            table.add_row(metric, *estimate_texts(value), over)
        elif isinstance(value, float):
            table.add_row(metric, f"{value:.6g}", "", "")
        else:
            table.add_row(metric, str(value), "", "")
    return table


def _print_next(
    console: rich.console.Console, name: str, lesson: Mapping[str, Any], folder: Path
) -> None:
    """The two figures to look at, and a command to go on with."""
    paths = [
        path.relative_to(folder).as_posix()
        for kind in ("figures", "samples")
        for path in sorted(folder.glob(f"{kind}/*"))
    ]
    figures = {}
    for key, caption in lesson["figures"].items():
        found = [path for path in paths if shows(key, path)]
        figures |= {folder / path: caption for path in found[-1:]}
    if figures:
        console.print("\nlook at", style="bold")
    for path, caption in [*figures.items()][:2]:
        console.print(f"  {path}")
        console.print(rich.padding.Padding(caption, (0, 0, 0, 4), expand=False))
    for options, expected in [*lesson["try_it"].items()][:1]:
        console.print("\ntry next", style="bold")
        console.print(f"  python experiments/{name}.py {options}")
        console.print(rich.padding.Padding(expected, (0, 0, 0, 4), expand=False))
