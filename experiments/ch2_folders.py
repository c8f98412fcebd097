"""Lesson 2.2.1: from a flat folder to batches.

A flat folder holds drawings of emoji by two vendors, some of them with a skin tone, and
three damaged files, which the lesson plants. They are sorted by copying into a folder
for each category, audited, split into training and validation set, and visited in
batches. A nearest-neighbour classifier, which only remembers, measures what it is worth
if the two drawings of one emoji are in both sets.

`--folder DIR` takes a folder of yours, FOLDER/CLASS/FILE, which needs no sorting.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from jaxstudy.data.sources import EMOJI, check_folder
from jaxstudy.dataset import dataset, epoch_batches, gather
from jaxstudy.images import folders
from jaxstudy.images.emoji import emoji_group, emoji_label
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import SHARE, SHARE_DIFFERENCE, Estimate, mean_over_runs
from jaxstudy.types import Batch

FLATTERY = "accuracy gained by splitting file by file"
LESSON = Lesson(
    number="2.2.1",
    title="From a flat folder to batches",
    question="What can go wrong between a folder of images and a batch?",
    metrics=(
        *("files lost", "source files changed"),
        *("planted faults not found", "groups in both subsets", FLATTERY),
        "groups in both subsets, split file by file",
        "nearest neighbour, split by group: accuracy",
        "nearest neighbour, split file by file: accuracy",
        *("files in the flat folder", "files left out by the rule", "usable images"),
        "images missed or repeated in an epoch",
    ),
    claims=(
        Claim("Sorting loses no file.", ("files lost", 0), "="),
        Claim("Sorting by copying changes no source file.",
              ("source files changed", 0), "="),
        Claim("The audit names the three planted faults.",
              ("planted faults not found", 0), "="),
        Claim("No group is in both sets.", ("groups in both subsets", 0), "="),
        Claim("Split file by file, a classifier that only remembers looks better by "
              "more than 0.05.", (FLATTERY, 0.0), ">", 0.05),
    ),
    figures={
        "batch": "Images of one batch of the training set with their labels. Check by "
        "eye that every label fits, and that classes are mixed: if they are not, the "
        "order was not shuffled.",
        "twins": "Validation images (below) and the nearest training image of each "
        "(above), split file by file. Where both show the same emoji by two vendors, "
        "the classifier needs no skill to be right.",
        "splits": "Left: accuracy of the nearest neighbour, split in both ways, with "
        "95 % intervals over random splits. Right: what splitting file by file seems "
        "to gain; the claim asks for more than the dashed 0.05.",
    },
    try_it={
        "--emoji 8": "Fewer files: the same checks hold; the interval gets wider.",
        "--validation-split 0.5": "A validation image has its twin in the training set "
        "half of the time, not three quarters: expect a smaller gain.",
        "--image-size 8": "The nearest neighbour is a twin less often.",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Config(Settings):
    """The files, and how they are split."""

    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the flat folder."""
    emoji: Annotated[int, pydantic.Field(ge=4, le=100)] = 20
    """Emoji of each category in the flat folder, each drawn by two vendors."""
    image_size: Count = 32
    """Height and width that images are brought to."""
    validation_split: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.25
    """Share of the images in the validation set."""
    batch_size: Count = 24
    """Images in a batch."""


Result = dict[str, Estimate | float]
PRESETS = {
    "smoke": Config(emoji=4, image_size=8),
    "quick": Config(),
    "full": Config(emoji=60),
}

SPLITS = 20  # random ones, by group and file by file
TONES = 10  # drawings with a skin tone, which the rule leaves out
FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "zero bytes": lambda content: b"",
    "truncated or damaged": lambda content: content[: len(content) // 2],
    "not an image": lambda content: b"drawings of emoji, by vendor\n",
}


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_flat(flat: Path, count: int, seed: int) -> dict[str, str]:
    """Fill a flat folder; the kind of fault planted in each of three files, by name."""
    vendors = {name: check_folder(source) / "images" for name, source in EMOJI.items()}
    found = [{p.name.partition("-")[2] for p in f.iterdir()} for f in vendors.values()]
    drawn = sorted(set.intersection(*found))  # by both
    toned = [code for code in drawn if code.removesuffix(".png").endswith("-1f3fd")]
    labels = {code: emoji_label(Path(f"google-{code}")) for code in drawn}
    order = np.random.default_rng(seed).permutation([c for c in drawn if labels[c]])
    by_label = [[c for c in order if labels[c] == k] for k in {*labels.values()}]
    codes = [code for group in by_label for code in group[:count]]
    flat.mkdir(parents=True, exist_ok=True)
    for vendor, images in vendors.items():
        for code in (*codes, *toned[:TONES]):
            shutil.copy2(images / f"{vendor}-{code}", flat)
    others = [f"google-{code}" for code in order if code not in codes]
    planted = dict(zip(others, FAULTS, strict=False))
    for name, kind in planted.items():
        content = (vendors["google"] / name).read_bytes()
        (flat / name).write_bytes(FAULTS[kind](content))
    return planted


def tree(folder: Path) -> str:
    """Class folders with the number of their files, and the first two of these."""
    lines = [f"{folder.name}/"]
    for label in sorted(folder.iterdir()):
        names = sorted(path.name for path in label.iterdir())
        lines.append(f"  {label.name}/ ({len(names)}): {', '.join(names[:2])}, ...")
    return "\n".join(lines)


def sort_flat(run: Run, config: Config) -> tuple[folders.Audit, Result]:
    """Sort a flat folder and look at the copies: what was found, and the counts.

    A file is lost if the rule names its label, and no copy with its content lies there.
    A folder of the user's is sorted already.
    """
    if config.folder:
        return folders.audit(config.folder), {}
    flat, target = (run.folder / "images" / name for name in ("flat", "sorted"))
    planted = make_flat(flat, config.emoji, config.seed)
    before = hashes(flat)
    folders.sort_into_folders(flat, target, emoji_label)
    after, copies = hashes(flat), hashes(target)
    print(tree(target))
    audited = folders.audit(target)
    labels = {name: emoji_label(Path(name)) for name in before}
    wanted = {f"{label}/{name}": name for name, label in labels.items() if label}
    faults = {Path(problem.path).name: problem.kind for problem in audited.problems}
    return audited, {
        "files in the flat folder": len(before),
        "files left out by the rule": len(before) - len(wanted),
        "files lost": sum(copies.get(p) != before[n] for p, n in wanted.items()),
        "source files changed": len(set(before.items()) ^ set(after.items())),
        "planted faults not found": len(planted.items() - faults.items()),
    }


def nearest(x: np.ndarray, train: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of every other row of images x the training row with the least distance."""
    flat = x.reshape(len(x), -1).astype(np.float32) / 255
    square = np.sum(flat**2, 1)
    distances = square[train] - 2 * flat[other] @ flat[train].T  # but for a constant
    return train[distances.argmin(1)]


def compare_splits(
    config: Config, audited: folders.Audit, images: folders.ImageFolder, run: Run
) -> Result:
    """Split by group and file by file: shared groups, and what these are worth."""
    groups = np.array([emoji_group(Path(path)) for path in audited.paths])
    ways = {"by group": emoji_group, "file by file": None}
    accuracy: dict[str, list[float]] = {way: [] for way in ways}
    result: Result = {}
    for way, group_of in ways.items():
        shared = 0  # the most in any split
        for n in range(SPLITS):
            train, validation = folders.stratified_split(
                audited, config.validation_split, config.seed + n, group_of
            )
            match = nearest(images.x, train, validation)
            accuracy[way].append(np.mean(images.y[match] == images.y[validation]))
            shared = max(shared, len({*groups[train]} & {*groups[validation]}))
        suffix = "" if group_of else ", split file by file"
        result[f"groups in both subsets{suffix}"] = shared
        name = f"nearest neighbour, split {way}: accuracy"
        result[name] = mean_over_runs(np.array(accuracy[way]), SHARE, "splits")
    pairs = [[*images.x[rows[:10]]] for rows in (match, validation)]
    plots.save_images(run, "twins", pairs, rows=["nearest", "validation"])
    gap = np.subtract(accuracy["file by file"], accuracy["by group"])
    result[FLATTERY] = mean_over_runs(gap, SHARE_DIFFERENCE, "splits")
    each = {way: result[f"nearest neighbour, split {way}: accuracy"] for way in ways}
    gain = {"file by file - by group": result[FLATTERY]}
    plots.save_estimates(run, "splits", [
        plots.EstimatePanel("nearest neighbour", "accuracy", each, False),
        plots.EstimatePanel("paired by split", "accuracy gained", gain, levels=[0.05]),
    ])  # fmt: skip
    return result


def draw_batch(run: Run, batch: Batch, classes: Sequence[str]) -> None:
    """At most 24 images of a batch with their labels, as batch.png."""
    x, y = np.asarray(batch["x"]), np.asarray(batch["y"])
    rows = np.split(np.arange(min(len(y), 24)), range(8, min(len(y), 24), 8))
    titles = [[classes[int(y[i])] for i in row] for row in rows]
    plots.save_images(run, "batch", [[x[i] for i in row] for row in rows], titles)


def main(config: Config, run: Run) -> Result:
    """Sort, look at what there is, split, and visit it in batches."""
    group_of = None if config.folder else emoji_group
    audited, result = sort_flat(run, config)
    print(folders.report(audited))
    size, share = (config.image_size, config.image_size), config.validation_split
    images = folders.load_folder(audited, image_size=size)
    if group_of:
        result |= compare_splits(config, audited, images, run)
    train, _ = folders.stratified_split(audited, share, config.seed, group_of)
    data = dataset({"x": images.x[train], "y": images.y[train]})
    key, count = jax.random.key(config.seed), config.batch_size
    batches = epoch_batches(data, count, key, jnp.int32(0))
    visits = np.bincount(np.ravel(batches.indices), np.ravel(batches.mask), len(train))
    first = jax.tree.map(lambda a: a[0], batches)
    draw_batch(run, gather(data.arrays, first), images.classes)
    result["usable images"] = len(images.y)
    result["images missed or repeated in an epoch"] = int(np.sum(visits != 1))
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
