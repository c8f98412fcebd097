"""Put measured figures into the README: from results/*.json, and from nowhere else.

`make full` runs the lessons; this copies what they wrote to results/, and writes the
tables between the README's markers. `--check` only says whether they are up to date.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

sys.path.insert(0, str(Path(__file__).parent))
import contest
import speed
import study_speed

from jaxstudy.runs.run import write_atomically
from jaxstudy.runs.statistics import values_text
from jaxstudy.study import comparison, problems

ROOT = Path(__file__).resolve().parents[1]


class Lesson(NamedTuple):
    """A row of the README: what it shows, and which of its metrics say so."""

    number: str
    experiment: str
    shows: str
    metrics: tuple[tuple[str, str], ...]  # name in the row, name in result.json


LESSONS = (
    Lesson(
        "1.1",
        "ch1_forward",
        "A 3-2-1 network by hand: every product, every gradient, three ways",
        (
            ("by hand - `Model.apply`", "forward: largest difference"),
            ("chain rule - `jax.grad`", "jax.grad - chain rule: largest difference"),
            ("chain rule - differences", "finite differences - chain rule: largest"),
        ),
    ),
    Lesson(
        "1.2",
        "ch1_activations",
        "Six activations, 1 to 16 layers: who still learns, where the gradient goes",
        (
            ("test log-loss at 4 hidden layers: none", "none, 4 hidden: test log-loss"),
            ("sigmoid", "sigmoid, 4 hidden: test log-loss"),
            ("tanh", "tanh, 4 hidden: test log-loss"),
            ("relu", "relu, 4 hidden: test log-loss"),
            ("none is one affine map to", "none = one affine map: largest difference"),
        ),
    ),
    Lesson(
        "1.3",
        "ch1_optimizers",
        "Eight optimizers, each at its best rate; their paths, how long a step is",
        (
            ("test log-loss on the digits: sgd", "sgd: test loss on digits"),
            ("momentum", "momentum: test loss on digits"),
            ("nesterov", "nesterov: test loss on digits"),
            ("adagrad", "adagrad: test loss on digits"),
            ("rmsprop", "rmsprop: test loss on digits"),
            ("adadelta", "adadelta: test loss on digits"),
            ("adam", "adam: test loss on digits"),
            ("adamw", "adamw: test loss on digits"),
        ),
    ),
    Lesson(
        "1.4",
        "ch1_admission",
        "400 real admissions: a network, cross-validated beside logistic regression",
        (
            ("accuracy: network", "network: accuracy"),
            ("logistic regression", "logistic regression: accuracy"),
            ("majority class", "majority class: accuracy"),
            (
                "log-loss, network minus regression",
                "network - logistic regression: log-loss",
            ),
        ),
    ),
    Lesson(
        "2.0, 2.1",
        "ch2_cnn",
        "A flattened image against convolutions, on images shifted by 0 to 6 pixels; "
        "pooling, padding, feature maps",
        (
            ("test accuracy: flattened", "flatten: test accuracy"),
            ("convolutions, max pooling", "max pooling: test accuracy"),
            (
                "shifted by 3 pixels: flattened",
                "flatten: accuracy, shifted by 3 pixels",
            ),
            ("max pooling", "max pooling: accuracy, shifted by 3 pixels"),
            ("no pooling", "no pooling: accuracy, shifted by 3 pixels"),
        ),
    ),
    Lesson(
        "2.1.2",
        "ch2_overfitting",
        "Overfitting: what another dense layer, a convolution and dropout are worth",
        (
            ("test accuracy: base", "base: test accuracy"),
            ("+ dense", "+ dense: test accuracy"),
            ("+ convolution", "+ convolution: test accuracy"),
            ("+ dropout", "+ dropout: test accuracy"),
            ("all of it", "all: test accuracy"),
            ("and 54,000 images for 10,000", "all, every image: test accuracy"),
            (
                "generalization gap in accuracy: base",
                "base: generalization gap",
            ),
            ("with dropout", "+ dropout: generalization gap"),
            ("all of it", "all: generalization gap"),
            ("and 54,000 images", "all, every image: generalization gap"),
        ),
    ),
    Lesson(
        "2.2.2",
        "ch2_saving",
        "Every way to save and load, each checked",
        (
            (
                "promises kept: resumed, the same bits",
                "resume: stopped half-way and gone on, the same bits",
            ),
            ("a flipped bit is noticed", "a flipped bit is noticed, not loaded"),
            ("checkpoints, MiB: every epoch's", "every: MiB on the disk"),
            ("last", "last: MiB on the disk"),
            ("weights alone", "params: MiB on the disk"),
        ),
    ),
    Lesson(
        "2.2.1, 2.2.3",
        "ch2_augmentation",
        "Images in folders, looked at before training; what augmentation is worth, by "
        "the number of images",
        (
            (
                "accuracy gained with 150 images",
                "150 images: accuracy gained by augmentation",
            ),
            ("500", "500 images: accuracy gained by augmentation"),
            ("1500", "1500 images: accuracy gained by augmentation"),
            ("2286", "2286 images: accuracy gained by augmentation"),
            (
                "time of a step, augmented / as they are",
                "time of a step, augmented / as they are",
            ),
        ),
    ),
    Lesson(
        "2.3",
        "ch2_transfer",
        "Transfer: a regression on the frozen features of EfficientNet, fine-tuning, "
        "and starting from scratch, by the number of images",
        (
            (
                "test accuracy with 100 images: pixels",
                "100 images, pixels: test accuracy",
            ),
            ("scratch", "100 images, scratch: test accuracy"),
            ("frozen", "100 images, frozen: test accuracy"),
            ("fine-tuned", "100 images, fine-tuned: test accuracy"),
            ("with all 2286: pixels", "2286 images, pixels: test accuracy"),
            ("scratch", "2286 images, scratch: test accuracy"),
            ("scratch, augmented", "2286 images, scratch, augmented: test accuracy"),
            ("frozen", "2286 images, frozen: test accuracy"),
            ("fine-tuned", "2286 images, fine-tuned: test accuracy"),
            ("majority class", "majority class: test accuracy"),
        ),
    ),
    Lesson(
        "3.1",
        "ch3_next_word",
        "The next word of Moby Dick: a bag of the last words, the words in order, a "
        "simple RNN, an LSTM, n-grams; and the same words shuffled",
        (
            ("test perplexity: bag of words", "bag of words: test perplexity"),
            ("words in order", "words in order: test perplexity"),
            ("simple RNN", "simple RNN: test perplexity"),
            ("LSTM", "LSTM: test perplexity"),
            ("n-gram", "n-gram: test perplexity"),
            (
                "of the last 8 words alone, in order: LSTM",
                "LSTM: perplexity, last words in order",
            ),
            ("shuffled", "LSTM: perplexity, last words shuffled"),
            ("the bag, in order", "bag of words: perplexity, last words in order"),
            ("shuffled", "bag of words: perplexity, last words shuffled"),
        ),
    ),
    Lesson(
        "3.1.1",
        "ch3_shapes",
        "Three shapes: a digit's image spelled in letters, sunspots forecast, sums "
        "written digit by digit",
        (
            ("names spelled right", "spelling: exact match"),
            ("sunspots, root mean squared error: simple", "sunspots, simple: error"),
            ("GRU", "sunspots, gru: error"),
            ("LSTM", "sunspots, lstm: error"),
            ("persistence (previous year)", "sunspots, persistence: error"),
            ("linear regression", "sunspots, linear regression: error"),
            ("sums right", "addition: exact match"),
        ),
    ),
    Lesson(
        "3.1.2, 3.2",
        "ch3_memory",
        "The vanishing gradient: adding two of T numbers with SimpleRNN, GRU and LSTM",
        (
            ("squared error at T = 200: SimpleRNN", "simple, T = 200: squared error"),
            ("GRU", "gru, T = 200: squared error"),
            ("LSTM", "lstm, T = 200: squared error"),
            ("at T = 400: SimpleRNN", "simple, T = 400: squared error"),
            ("GRU", "gru, T = 400: squared error"),
            ("LSTM", "lstm, T = 400: squared error"),
            ("always the mean", "always the mean: squared error"),
            (
                "untrained gradient at the first of 200 steps / the last: SimpleRNN",
                "simple, T = 200: gradient at the first step / the last",
            ),
            ("LSTM", "lstm, T = 200: gradient at the first step / the last"),
        ),
    ),
    Lesson(
        "3.1.1",
        "ch3_translate",
        "An encoder-decoder from Korean to English, dates and messages, with and "
        "without attention, greedy and by beam",
        (
            (
                "exact match on dates, greedy: attention",
                "dates, attention: exact match, greedy",
            ),
            ("no attention", "dates, no attention: exact match, greedy"),
            (
                "on messages, beam of 4: attention",
                "messages, attention: exact match, beam of 4",
            ),
            ("no attention", "messages, no attention: exact match, beam of 4"),
            ("chrF: attention", "messages, attention: chrF, beam of 4"),
            ("no attention", "messages, no attention: chrF, beam of 4"),
            (
                "share of messages whose Korean has other English too",
                "messages, noise: several English",
            ),
        ),
    ),
    Lesson(
        "3.2.1",
        "ch3_compose",
        "Composing: an LSTM over the characters of 4233 tunes, judged by a parser",
        (
            (
                "bits per character, validation: LSTM",
                "LSTM: validation bits per character",
            ),
            ("n-gram", "n-gram: validation bits per character"),
            ("xz -9", "xz -9: validation bits per character"),
            ("test: LSTM", "LSTM: test bits per character"),
            ("n-gram", "n-gram: test bits per character"),
            ("xz -9", "xz -9: test bits per character"),
            ("music21 accepts, of composed tunes", "composed: accepted by music21"),
            ("of real ones", "real: accepted by music21"),
            (
                "and all bars add up, of composed",
                "composed: accepted, and all bars add up",
            ),
            ("of real ones", "real: accepted, and all bars add up"),
            ("copies among the composed", "composed: copies of a training tune"),
        ),
    ),
    Lesson(
        "4",
        "ch4_csv",
        "Columns of a table scaled, bucketed, embedded, hashed, crossed: who survived "
        "the Titanic, beside logistic regression on the same folds; the effect of "
        "target leakage",
        (
            ("cross-validated accuracy: network", "network: accuracy"),
            ("logistic regression", "logistic regression: accuracy"),
            ("network less that", "network - logistic regression: accuracy"),
            (
                "network less one that gets all columns",
                "network - logistic regression, all columns: accuracy",
            ),
            (
                "log-loss, network less that",
                "network - logistic regression, all columns: log-loss",
            ),
            ("with a leak", "with boat and body (a leak): accuracy"),
            (
                "log-loss when sex is shuffled: increase",
                "log-loss when sex is shuffled: increase",
            ),
        ),
    ),
    Lesson(
        "5",
        "ch5_gan",
        "A GAN of the course's two networks: samples after every epoch, what a CNN "
        "sees in them, whether they copy; real images first, alternating and mixed",
        (
            (
                "Frechet distance of a CNN's features to test images': generated",
                "generated images: Frechet distance of this CNN's features",
            ),
            ("new real ones", "new images: Frechet distance of this CNN's features"),
            (
                "untrained generator",
                "untrained generator: Frechet distance of this CNN's features",
            ),
            ("noise", "noise: Frechet distance of this CNN's features"),
            (
                "classes with over 2 % of them",
                "generated images: classes with over 2 %",
            ),
            ("top probability, generated", "generated images: top probability"),
            ("test images", "test images: top probability"),
            ("distance in small: alternating", "alternating: Frechet distance"),
            ("real first", "real first: Frechet distance"),
            ("mixed", "mixed: Frechet distance"),
            ("no BatchNorm", "alternating, no BatchNorm: Frechet distance"),
            (
                "running BatchNorm statistics",
                "alternating, predicted: Frechet distance",
            ),
        ),
    ),
)


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


def store(runs: Path, experiment: str) -> None:
    """Copy what a full run wrote into results/, if there is one."""
    folder = runs / experiment / "full"
    if (folder / "result.json").exists():
        names = ("config", "environment", "result")
        content = {n: json.loads((folder / f"{n}.json").read_text()) for n in names}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(ROOT / "results" / f"{experiment}.json", text)


def store_optimizers(runs: Path) -> None:
    """Copy what the full benchmark of optimizers found, and its figures."""
    folder = runs / "optimizers" / "full"
    if not (folder / "result.json").exists():
        return
    content = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "environment", "result")
    }
    record = json.loads((folder / "study.json").read_text())
    targets = {
        name: comparison.algoperf_target(record, name, problems.REFERENCES)
        for name in record["problems"]
    }
    kept = ("schema", "protocol", "problems", "optimizers")
    found = {"comparison": comparison.compare(record)}
    content["study"] = {name: record[name] for name in kept} | found
    content["targets of AlgoPerf"] = targets
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(ROOT / "results" / "optimizers.json", text)
    for name in ("sensitivity", "reached"):
        image = (folder / "figures" / f"{name}.png").read_bytes()
        (ROOT / "results" / f"optimizers_{name}.png").write_bytes(image)


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
    for lesson in LESSONS:
        command = f"`python experiments/{lesson.experiment}.py --preset full`"
        path = ROOT / "results" / f"{lesson.experiment}.json"
        if not path.exists():
            cells = (lesson.number, lesson.shows, command, "not measured yet", "", "")
            lines.append("| " + " | ".join(cells) + " |")
            continue
        stored = json.loads(path.read_text())
        result, environment = stored["result"], stored["environment"]
        metrics, number = result["metrics"], lesson.number
        if "outdated" in stored:
            outdated[number] = stored["outdated"]
            number += OUTDATED
        parts = [f"{name} {shown(metrics[m])}" for name, m in lesson.metrics]
        time = f"{result['wall_s']:.0f} s" if result["wall_s"] >= 1 else "1 s"
        hardware = f"{environment['cores']} cores, {environment['processor']}"
        cells = (number, lesson.shows, command, "; ".join(parts), time, hardware)
        lines.append("| " + " | ".join(cells) + " |")
    notes = [FOOTNOTE] if any(EARLIER in line for line in lines) else []
    if outdated:
        listed = "; ".join(f"{number} ({why})" for number, why in outdated.items())
        notes.append(
            f"{OUTDATED.strip()} Measured before a fault was mended: {listed}."
        )
    return "\n".join([*lines, *(line for note in notes for line in ("", note))])


def speed_table() -> str:
    """The tables of benchmarks/results/*.json."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    results = [json.loads(path.read_text()) for path in files]
    tables = {
        None: speed.table,
        "images": contest.table,
        "sequences": contest.table,
        "gan": contest.table,
    }
    return "\n\n".join(
        tables.get(result.get("kind"), study_speed.table)(result) for result in results
    )


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
        for lesson in LESSONS:
            store(command.runs, lesson.experiment)
        store_optimizers(command.runs)
    text = readme.read_text()
    new = rendered(text)
    if command.check:
        return int(new != text)
    write_atomically(readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command)))
