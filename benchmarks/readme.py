"""Put what was measured into results/ and the README: from runs, and nothing by hand.

`make full` runs the lessons; this copies what they wrote to results/, draws the contact
sheet of their pictures, and writes the tables between the README's markers. `--check`
only says whether these are up to date. The tables of docs/ are made by docs_hooks.py.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).parent))
import harness
import study_speed

from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.lesson import Judgement, Lesson, find_lessons
from jaxstudy.runs.values import duration
from jaxstudy.study import comparison, problems

ROOT = Path(__file__).resolve().parents[1]

# of results of an earlier version of a lesson
OUTDATED = " \N{DOUBLE DAGGER}"
# Pictures that a network made; others are published where they hold no image at all,
# which might be one of a data set.
GENERATED = ("ch5_gan/interpolation.png", "ch5_gan/samples/epoch*.png")
OF_OPTIMIZERS = ("ranks.png", "sensitivity.png", "reached.png")
COLUMNS, THUMBNAIL, MARGIN, LINE = 4, (330, 220), 12, 24  # of the contact sheet
WIDEST, NARROWEST = 3.2, 1.1  # width by height: what is beyond is cut off


@dataclass(frozen=True)
class Command:
    """Update results/ and the README from the full runs."""

    runs: Path = Path("runs")
    """Where the run folders are."""
    check: bool = False
    """Write nothing; exit with 1 if the README is not what the results say."""


# From runs to results/


def store(runs: Path) -> None:
    """Copy into results/ what full runs wrote, and those of their figures we may."""
    scripts = [path.stem for path in (ROOT / "experiments").glob("ch*.py")]
    for name in (*scripts, "optimizers"):
        folder = runs / name / "full"
        if not (folder / "result.json").exists():
            continue
        names = ("config", "environment", "result")
        content: dict[str, Any] = {
            n: json.loads((folder / f"{n}.json").read_text()) for n in names
        }
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
            target = ROOT / "results" / "baselines"
            target.mkdir(exist_ok=True)
            for path in (folder / "baselines").glob("*.json"):
                shutil.copy(path, target)
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(ROOT / "results" / f"{name}.json", text)
        store_figures(folder, ROOT / "results" / "figures" / name)


def store_figures(folder: Path, target: Path) -> None:
    """Copy the pictures of a run that hold no image of a data set, in 128 colours."""
    shutil.rmtree(target, ignore_errors=True)
    samples = sorted(folder.glob("samples/*.png"))[-1:]
    for path in (*sorted(folder.glob("figures/*.png")), *samples):
        name = path.relative_to(folder).as_posix().removeprefix("figures/")
        with Image.open(path) as picture:
            published = picture.info.get("Title") == "chart" or any(
                Path(target.name, name).match(pattern) for pattern in GENERATED
            )
            if target.name == "optimizers":
                published = name in OF_OPTIMIZERS
            if published:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                colours = picture.convert("RGB").quantize(128)
                colours.save(target / name, optimize=True)


def contact_sheet(lessons: Mapping[str, Lesson]) -> Image.Image:
    """The first picture of every lesson that has one, and of the optimizers', small.

    Of a wide one the left part, of a tall one the upper, so that one sees what it is.
    """
    pictures = []
    for name, lesson in lessons.items():
        stored = [p for key in lesson.figures for p in stored_figures(name, key)]
        if stored:
            pictures.append((f"{lesson.number}  {lesson.title}", stored[0]))
    for path in stored_figures("optimizers", "sensitivity"):
        pictures.append(("Optimizers compared", path))
    rows = math.ceil(len(pictures) / COLUMNS)
    width, height = THUMBNAIL[0] + MARGIN, THUMBNAIL[1] + LINE + MARGIN
    columns = min(COLUMNS, len(pictures))
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (title, path) in enumerate(pictures):
        x, y = MARGIN + i % COLUMNS * width, i // COLUMNS * height
        draw.text((x, y + 3), title, fill="black", font=font)
        with Image.open(path) as picture:
            most = round(picture.height * WIDEST), round(picture.width / NARROWEST)
            size = min(picture.width, most[0]), min(picture.height, most[1])
            shown = picture.convert("RGB").crop((0, 0, *size))
        sheet.paste(ImageOps.contain(shown, THUMBNAIL), (x, y + LINE))
    return sheet.quantize(128)


def stored_figures(name: str, key: str) -> list[Path]:
    """The files in results/figures/ of a key of a lesson's figures."""
    return sorted((ROOT / "results" / "figures" / name).glob(f"{key}.png"))


# From results/ to tables


def stored_result(experiment: str) -> dict[str, Any] | None:
    """What results/ holds of a full run of a lesson or benchmark, if there was one."""
    path = ROOT / "results" / f"{experiment}.json"
    return json.loads(path.read_text()) if path.exists() else None


def outdated(stored: Mapping[str, Any] | None, lesson: Lesson) -> str:
    """Why a full run does not stand for the lesson as it is now; empty if it does."""
    if stored is None:
        return ""
    judged = [claim["sentence"] for claim in stored["result"].get("claims", ())]
    if "outdated" in stored:
        return f"They were measured before an error was mended: {stored['outdated']}."
    if judged != [claim.sentence for claim in lesson.claims]:
        return "They were measured by an earlier version of the lesson."
    return ""


def main_claim(lesson: Lesson, metrics: Mapping[str, Any]) -> str:
    """The first claim, its verdict, and the numbers that decide it."""
    claim: Judgement = lesson.judge(metrics)[0]
    if any(isinstance(m, str) and m not in metrics for m in lesson.claims[0].metrics):
        return f"{claim.sentence} **Not measured yet.**"
    evidence, *others = claim.evidence.split("; ")
    more = f"; and {len(others)} more" if others else ""
    return f"{claim.sentence} **{claim.verdict.capitalize()}**: {evidence}{more}"


def lessons_table(
    lessons: Mapping[str, Lesson], link: str = "docs/lessons/{}.md"
) -> str:
    """A row per lesson, with the links of the page that it stands in."""
    rows = [["", "question", "main claim", "time"]]
    notes = ""
    for name, lesson in lessons.items():
        stored = stored_result(name)
        mark = OUTDATED if outdated(stored, lesson) else ""
        notes = notes or mark
        number = f"[{lesson.number}]({link.format(name)}){mark}"
        result = stored["result"] if stored else {"metrics": {}, "wall_s": None}
        claim = main_claim(lesson, result["metrics"])
        rows.append([number, lesson.question, claim, duration(result["wall_s"])])
    if notes:
        notes = (
            f"\n\n{OUTDATED.strip()} Measured by an earlier version of the lesson, or "
            "before an error was mended, as its page says; to be measured again."
        )
    return table(rows) + notes


def table(rows: list[list[str]]) -> str:
    """Markdown of a heading and its rows."""
    heading, *body = rows
    lines = [heading, ["---"] * len(heading), *body]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def optimizers_summary() -> str:
    """A row per problem: who was chosen, and how the others compare with it."""
    stored: Any = stored_result("optimizers")
    study = stored["study"]
    others = ("better", "not told apart", "worse")
    loss = f"its test loss (n = {study['protocol']['seeds']} seeds)"
    rows = [["problem", "best by tuning", loss, *others]]
    for problem, found in study["comparison"]["problems"].items():
        best = found["best_tuned"][0]
        loss = comparison.test_text(found["optimizers"][best])
        groups = comparison.against_best(found)
        counts = [str(len(names)) for names in groups.values()]
        title = f"`{problem}`: {study['problems'][problem]['title']}"
        rows.append([title, best, loss, *counts])
    note = (
        f"\n\n{OUTDATED.strip()} {stored['outdated']}" if "outdated" in stored else ""
    )
    return table(rows) + note


def optimizers_table() -> str:
    """What the benchmark of optimizers found, on each problem and in words."""
    stored: Any = stored_result("optimizers")
    study, result = stored["study"], stored["result"]
    rows = comparison.summary_table(study)
    protocol, environment = study["protocol"], stored["environment"]
    about = (
        f"`python benchmarks/optimizers.py --preset full`: {len(rows) - 1} optimizers, "
        f"{protocol['trials']} trials of each on each problem with "
        f"{protocol['tuning_seeds']} seeds to choose by, test loss of "
        f"{protocol['seeds']} others with 95 % intervals; "
        f"{result['steps']:,} steps in {result['wall_s']:.0f} s, "
        f"{environment['cores']} cores, {environment['processor']}."
    )
    sentences = [f"- {sentence}" for sentence in study["comparison"]["sentences"]]
    return "\n".join([table(rows), "", about, "", *sentences])


def problems_table() -> str:
    """What a run of each problem takes, as the baselines' studies have measured it."""
    rows = [["problem", "tier", "steps of a run", "seconds of a run, median"]]
    missing = []
    for name in (n for names in problems.TIERS.values() for n in names):
        stored = stored_result(f"baselines/{name}")
        if stored is None:
            missing.append(name)
            continue
        steps = [b["step_s"] for b in stored["optimizers"].values() if b["step_s"]]
        seconds = duration(stored["steps"] * float(np.median(steps)))
        rows.append([stored["title"], stored["tier"], f"{stored['steps']:,}", seconds])
    note = f"\n\nNot measured yet: {', '.join(missing)}." if missing else ""
    return (table(rows) if len(rows) > 1 else "") + note


def communication_table() -> str:
    """What sharing a batch costs on paper, and what a study would take."""
    stored = json.loads((ROOT / "results" / "communication.json").read_text())
    rates = [f"{b / 1e9:.0f} GB/s" for b in stored["assumed"]["bandwidths"]]
    heading = ["problem", "batch", "bytes of a step", "operations", "compute [us]"]
    heading += [f"sum at {rate} [us]" for rate in rates]
    rows = [heading + [f"rows a device at {rate}" for rate in rates]]
    most = []
    for name, costs in stored["problems"].items():
        of_rates = [costs[rate] for rate in rates]
        most.append(max(of["devices"] for of in of_rates))
        rows.append([
            name, f"{costs['batch']}", f"{costs['bytes']:,}",
            f"{costs['operations']:.2g}", f"{1e6 * costs['compute_s']:.2g}",
            *(f"{1e6 * of['sum_s']:.2g}" for of in of_rates),
            *(f"{of['rows']:,}" for of in of_rates),
        ])  # fmt: skip
    number = f"{max(most)} device{'s' if max(most) > 1 else ''}"
    shared = (
        f"With the batch as it is, {number} at most compute for "
        f"{stored['assumed']['efficiency']:.0%} of the time, at any of the bandwidths."
    )
    return f"{table(rows)}\n\n{shared}\n\n{study_on_paper()}"


def study_on_paper() -> str:
    """How long a million trainings would take on a thousand machines like this one."""
    path = ROOT / "benchmarks" / "results" / "study.json"
    stored = json.loads(path.read_text())
    seconds = stored["candidates"][harness.OURS]["figures"]["total_s"]["median"]
    return (
        f"The {study_speed.REPLICAS} trainings of `benchmarks/study_speed.py` took "
        f"{seconds:.1f} s on {stored['environment']['cores']} cores, compiling "
        "included. In shares that never talk, a million of them would take a thousand "
        f"such machines {duration(1e3 * seconds / study_speed.REPLICAS)}. On "
        "accelerators it has not been measured."
    )


def speed_results() -> Iterator[dict[str, Any]]:
    """What `make bench` measured, by workload."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if "candidates" in result:  # curves.json has none
            yield result


def speed_summary() -> str:
    """A row per workload: this project, the best peer, and the ratio."""
    rows = [["workload", "this project", "best peer", "", "faster by"]]
    for result in speed_results():
        ours = result["candidates"][harness.OURS]["figures"]
        peer = result["candidates"][result["best_peer"]]
        unit = {"step_ms": "ms per step", "total_s": "s"}[result["time"]]
        times = [
            f"{harness.cell(result['time'], f[result['time']]).split(' (')[0]} {unit}"
            for f in (ours, peer["figures"])
        ]
        ratio = harness.cell("times_as_fast", peer["figures"]["times_as_fast"])
        title, label = result["title"].split(":")[0], peer["label"]
        rows.append([title, times[0], label, times[1], ratio])
    return table(rows)


def speed_tables() -> str:
    """The full tables of all workloads, each with what was measured."""
    parts = []
    for result in speed_results():
        title = result["title"].split(":")[0]
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{harness.table(result)}")
    return "\n\n".join(parts)


# The README


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Replace what stands between the markers of each table."""
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def main(command: Command) -> int:
    """Store, draw, render; write or compare."""
    readme = ROOT / "README.md"
    lessons = find_lessons(ROOT / "experiments")
    if not command.check:
        store(command.runs)
        contact_sheet(lessons).save(ROOT / "results" / "contact.png", optimize=True)
    text = readme.read_text()
    tables = {
        "lessons": lessons_table(lessons),
        "optimizers": optimizers_summary(),
        "speed": speed_summary(),
    }
    new = fill(text, tables)
    if command.check:
        return int(new != text)
    write_atomically(readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command)))
