"""Put measured figures into the README: from results/*.json, and from nowhere else.

`make full` runs the lessons; this copies what they wrote to results/, and writes the
tables between the README's markers. `--check` only says whether they are up to date.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parent))
import harness

from jaxstudy.runs.lesson import find_lessons
from jaxstudy.runs.run import write_atomically
from jaxstudy.runs.statistics import values_text
from jaxstudy.study import comparison, problems

ROOT = Path(__file__).resolve().parents[1]


# of results/ that say by "outdated" what has been mended since
OUTDATED = " \N{DOUBLE DAGGER}"
# of what a method of before made in results/, until it is measured again
EARLIER = " \N{DAGGER}"
FOOTNOTE = (
    f"{EARLIER.strip()} By an earlier method, to be measured again: intervals that "
    "cover less than 95 %, or of rows taken for independent that are not; whether an "
    "optimizer is better or worse, by another statistic than its p."
)


@dataclass(frozen=True)
class Command:
    """Update the README's tables from the full runs."""

    runs: Path = Path("runs")
    """Where the run folders are."""
    check: bool = False
    """Write nothing; exit with 1 if the README is not what the results say."""


def shown(value: Any) -> str:
    """A metric as the README has it: with its interval and n, where it has one."""
    if isinstance(value, dict):
        units = f"n = {value['n']} {value['of']}"
        if value["low"] is None:
            return f"**{value['mean']:.3g}** ({values_text(value)}; {units})"
        ends = [value[name] for name in ("mean", "low", "high")]
        form = ".3f" if max(map(abs, ends)) >= 0.01 else ".2g"
        mean, low, high = (format(end, form) for end in ends)
        mark = EARLIER if value.get("interval") == "earlier" else ""
        return f"**{mean}** [{low}, {high}]{mark} ({units})"
    return f"**{value:.3g}**" if isinstance(value, float) else f"**{value}**"


def stored(folder: Path) -> dict[str, Any] | None:
    """What a full run wrote, if there is one."""
    if not (folder / "result.json").exists():
        return None
    names = ("config", "environment", "result")
    return {n: json.loads((folder / f"{n}.json").read_text()) for n in names}


def store(runs: Path) -> None:
    """Copy into results/ what full runs wrote, and the figures of the optimizers'."""
    scripts = [path.stem for path in (ROOT / "experiments").glob("ch*.py")]
    for name in (*scripts, "optimizers"):
        folder = runs / name / "full"
        content = stored(folder)
        if content is None:
            continue
        if name == "optimizers":
            record = json.loads((folder / "study.json").read_text())
            kept = ("schema", "protocol", "problems", "optimizers")
            found = {"comparison": comparison.compare(record)}
            content["study"] = {key: record[key] for key in kept} | found
            content["targets of AlgoPerf"] = {
                problem: comparison.algoperf_target(
                    record, problem, problems.REFERENCES
                )
                for problem in record["problems"]
            }
            for figure in ("sensitivity", "reached"):
                image = (folder / "figures" / f"{figure}.png").read_bytes()
                (ROOT / "results" / f"optimizers_{figure}.png").write_bytes(image)
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(ROOT / "results" / f"{name}.json", text)


def optimizers_table() -> str:
    """What the benchmark of optimizers found, from results/optimizers.json."""
    stored = json.loads((ROOT / "results" / "optimizers.json").read_text())
    study, result = stored["study"], stored["result"]
    protocol, environment = study["protocol"], stored["environment"]
    mark = EARLIER if study.get("interval") == "earlier" else ""
    heading, *body = comparison.summary_table(study)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *body]
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    about = (
        f"`python benchmarks/optimizers.py --preset full`: {len(body)} optimizers, "
        f"{protocol['trials']} trials of each on each problem with "
        f"{protocol['tuning_seeds']} seeds to choose by, test loss of "
        f"{protocol['seeds']} others with 95 % intervals{mark}; "
        f"{result['steps']:,} steps in {result['wall_s']:.0f} s, "
        f"{environment['cores']} cores, {environment['processor']}."
    )
    sentences = [f"- {sentence}" for sentence in study["comparison"]["sentences"]]
    summary = f"What the study says of it{mark}"
    folded = [f"<details><summary>{summary}</summary>", "", *sentences]
    note = ["", FOOTNOTE] if mark else []
    return "\n".join([*table, "", about, "", *folded, "", "</details>", *note])


def lessons_table() -> str:
    """One row per lesson, from results/*.json."""
    lines = [
        "| | shows | command | measured (95 % interval) | time | on |",
        "|---|---|---|---|---|---|",
    ]
    outdated: dict[str, str] = {}
    for experiment, lesson in find_lessons(ROOT / "experiments").items():
        command = f"`python experiments/{experiment}.py --preset full`"
        path = ROOT / "results" / f"{experiment}.json"
        if not path.exists():
            cells = (lesson.number, lesson.title, command, "not measured yet", "", "")
            lines.append("| " + " | ".join(cells) + " |")
            continue
        stored = json.loads(path.read_text())
        result, environment = stored["result"], stored["environment"]
        metrics, number = result["metrics"], lesson.number
        if "outdated" in stored:
            outdated[number] = stored["outdated"]
            number += OUTDATED
        parts = [f"{m} {shown(metrics[m])}" for m in lesson.metrics if m in metrics]
        time = f"{result['wall_s']:.0f} s" if result["wall_s"] >= 1 else "1 s"
        hardware = f"{environment['cores']} cores, {environment['processor']}"
        cells = (number, lesson.title, command, "; ".join(parts), time, hardware)
        lines.append("| " + " | ".join(cells) + " |")
    notes = [FOOTNOTE] if any(EARLIER in line for line in lines) else []
    if outdated:
        listed = "; ".join(f"{number} ({why})" for number, why in outdated.items())
        notes.append(
            f"{OUTDATED.strip()} Measured before an error was mended: {listed}."
        )
    return "\n".join([*lines, *(line for note in notes for line in ("", note))])


def speed_table() -> str:
    """The tables of benchmarks/results/*.json."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return "\n\n".join(harness.table(json.loads(path.read_text())) for path in files)


def fill(text: str, name: str, table: str) -> str:
    """Replace what stands between the markers of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def rendered(text: str) -> str:
    """The README with its tables as the results say."""
    tables = {
        "lessons": lessons_table(),
        "optimizers": optimizers_table(),
        "speed": speed_table(),
    }
    for name, table in tables.items():
        text = fill(text, name, table)
    return text


def main(command: Command) -> int:
    """Store, render, write or compare."""
    readme = ROOT / "README.md"
    if not command.check:
        (ROOT / "results").mkdir(exist_ok=True)
        store(command.runs)
    text = readme.read_text()
    new = rendered(text)
    if command.check:
        return int(new != text)
    write_atomically(readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command)))
