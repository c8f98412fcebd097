"""Lesson 2.2.1 and 2.2.3: images in folders, and learning from random versions of them.

The emoji lie in a folder for each class. `make data` has sorted a flat folder that way,
copying, by a rule that names the class of a file:

    sort_into_folders(Path("flat"), Path("sorted"), emoji_label)

They are loaded with an image size, a validation split and a seed; drawings of the same
thing are never in two of the sets. `--folder DIR` takes any such tree instead. All of
it is looked at first, and every fault named: what is faulty is left out and listed in
faults.json of the run; with `--strict` nothing is run.

Then a CNN learns from sets of several sizes, as they are and flipped, rotated, zoomed
and shifted at random, another way each time. A seed fixes the images, the first weights
and the order, so the two are compared in pairs; all are replicas of one program. Small
sets are repeated to the length of the largest, an epoch here, so all make as many
steps. A run is reported at the epoch with its best validation accuracy.

Expected (quick): as they are 0.48, 0.54 and 0.60 of the nine categories are told apart;
augmented no better, and with all images worse: fifteen epochs are too few for them to
overfit, and random versions take longer to learn.
Expected (full, 36 epochs, 22 minutes): as they are 0.47, 0.54, 0.59 and 0.62 with 150,
500, 1500 and all images; augmented 0.007, 0.023, 0.011 and 0.006 more. Of these only
the second is more than chance: no help with very few images, nor with many.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.data.sources import EMOJI_FOLDERS, check_folder
from jaxstudy.dataset import evenly_spaced
from jaxstudy.images import augment, folders
from jaxstudy.images.augment import Flip, Layer, Rotation, Translation, Zoom
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.images.sets import Images, ImageSet, read_images
from jaxstudy.images.splits import (
    ImageSplits,
    image_splits,
    nested_subsets,
    sizes_at_most,
)
from jaxstudy.messages import warn
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, write_atomically
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    Range,
    at_best_epoch,
    mean_over_runs,
)
from jaxstudy.training import (
    Evaluator,
    Replicas,
    TrainState,
    TrainStep,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Batch, Metrics, UserError

LESSON = Lesson(
    number="2.2.1, 2.2.3",
    title="Images in folders, looked at before training; what augmentation is "
    "worth, by the number of images",
    headline={
        "150 images: accuracy gained by augmentation": (
            "accuracy gained with 150 images"
        ),
        "500 images: accuracy gained by augmentation": "500",
        "1500 images: accuracy gained by augmentation": "1500",
        "2286 images: accuracy gained by augmentation": "2286",
        "time of a step, augmented / as they are": (
            "time of a step, augmented / as they are"
        ),
    },
)

ARMS = ("as they are", "augmented")
LAYERS = (Flip(), Rotation(0.05), Zoom(0.2), Translation(0.1, 0.1))
TEST_SPLIT = 0.2  # of a folder that has no test set of its own
EVALUATED = 2000  # images of a validation or test set, at most
TIMED = 20  # steps of each arm
DRAWN = 64  # pixels a side of the versions' picture


@dataclass(frozen=True)
class Config(Settings):
    """The images, how many of them to learn from, and how long."""

    data: str = "emoji"
    """emoji (from their folders), fashion_mnist or tfds:NAME."""
    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the data."""
    strict: bool = False
    """Refuse a folder with faults, instead of leaving out what is faulty."""
    image_size: Annotated[int, pydantic.Field(ge=8)] = 32
    """Height and width that images are brought to."""
    validation_split: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.25
    """Share of a folder's images, test set aside, that chooses the epoch."""
    sizes: tuple[Count, ...] = (150, 500, 1500, 2286)
    """Numbers of images to learn from, at most as many as there are."""
    filters: tuple[Count, ...] = (16, 32)
    """Filters of each convolution."""
    rate: Positive = 0.001
    """Learning rate of Adam."""
    epochs: Count = 36
    """Passes over as many images as the largest set has."""
    batch_size: Count = 32
    """Images in a gradient step."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 5
    """Trainings of each size, as they are and augmented."""


PRESETS = {
    "smoke": Config(
        image_size=8, sizes=(20, 60), filters=(4,), epochs=2, seeds=2, batch_size=20
    ),
    "quick": Config(image_size=16, sizes=(150, 600, 2286), epochs=15, seeds=4),
    "full": Config(),
}


def some_of(audited: folders.Audit, rows: np.ndarray) -> folders.Audit:
    """An audited folder with only these of its images."""
    paths, labels = (tuple(x[r] for r in rows) for x in (audited.paths, audited.labels))
    return audited._replace(paths=paths, labels=labels)


def read_folder(config: Config) -> tuple[ImageSet, folders.Audit]:
    """The images of a folder as three sets, and what was found when looking at them.

    The test set is the same for every seed; of the emoji it is that of `emoji_splits`.
    """
    size, emoji = (config.image_size, config.image_size), config.folder is None
    folder = config.folder or check_folder(EMOJI_FOLDERS)
    audited = folders.audit(folder)
    # reads nothing yet, but refuses faults (if strict) and folders without an image
    folders.folder_source(audited, image_size=size, strict=config.strict)
    if audited.faults:
        warn(f"not all in {folder} can be used:\n{folders.report(audited)}")
    if len(audited.classes) < 2:
        raise UserError(f"{folder} has one class only: there is nothing to tell apart")
    if emoji:
        held_out = np.isin(audited.paths, emoji_splits(audited.paths)["test"])
        rest, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    else:
        try:
            rest, test = folders.stratified_split(audited, TEST_SPLIT, seed=0)
        except UserError as error:
            raise UserError(f"{folder} is too small for a test set: {error}") from error
    load = functools.partial(
        folders.load_folder,
        some_of(audited, rest),
        image_size=size,
        validation_split=config.validation_split,
        seed=config.seed,
        group_of=emoji_group if emoji else None,
    )
    loaded = {
        "train": load(subset="training"),
        "validation": load(subset="validation"),
        "test": folders.load_folder(some_of(audited, test), image_size=size),
    }
    splits = {name: Images(images.x, images.y) for name, images in loaded.items()}
    return ImageSet(splits, audited.classes), audited


def train_step_of_arms(model: Model, config: Config) -> TrainStep:
    """The step (state, batch, arm): on the images as they are, or on new versions."""
    plain, optimizer = cross_entropy(model), optax.adam(config.rate)
    objectives = plain, augment.augmented(plain, LAYERS)
    steps = [make_train_step(objective, optimizer) for objective in objectives]

    def train_step(
        state: TrainState, batch: Batch, arm: Array
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.switch(arm, steps, state, batch)

    return train_step


def start(model: Model, config: Config) -> tuple[TrainState, Array]:
    """The states of all replicas [sizes x seeds x arms] and keys of their data orders.

    Both depend on the seed alone.
    """
    seeds = jnp.repeat(jnp.arange(config.seeds), len(ARMS))
    seeds = jnp.tile(seeds, len(config.sizes))
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))[seeds]
    return init_replicas(model, optax.adam(config.rate), keys[:, 0]), keys[:, 1]


def seconds_of_steps(
    train_step: TrainStep, state: TrainState, config: Config, data: ImageSplits
) -> np.ndarray:
    """What a step takes, [TIMED, arms], in turns: other load slows both alike."""
    one = jax.tree.map(lambda a: a[0], state)
    batch = {
        "x": jnp.zeros((config.batch_size, *data.shape), jnp.uint8),
        "y": jnp.zeros(config.batch_size, jnp.int32),
        "mask": jnp.ones(config.batch_size),
    }
    step = jax.jit(train_step).lower(one, batch, jnp.int32(0)).compile()
    times = [time.perf_counter()]
    for turn in range((1 + TIMED) * len(ARMS)):
        jax.block_until_ready(step(one, batch, jnp.int32(turn % len(ARMS))))
        times.append(time.perf_counter())
    return np.diff(times).reshape(-1, len(ARMS))[1:]  # the first warms up


def train(
    model: Model,
    train_step: TrainStep,
    start: tuple[TrainState, Array],
    config: Config,
    data: ImageSplits,
    run: Run,
) -> dict[str, np.ndarray]:
    """Accuracy on each set after each epoch, [epochs, sizes, seeds, arms]."""
    state, keys = start
    rows = nested_subsets(data.train, config.sizes, config.seeds, config.seed)
    rows = rows.repeat(len(ARMS), axis=1)
    rows = jnp.asarray(rows.reshape(-1, rows.shape[2]))
    few = {
        name: evenly_spaced(held_out, EVALUATED)
        for name, held_out in (("validation", data.validation), ("test", data.test))
    }
    fitted = fit(
        state,
        train_step,
        dataclasses.replace(data.train, indices=rows, mask=jnp.ones(rows.shape, bool)),
        key=keys,
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={
            name: Evaluator(make_eval_step(cross_entropy(model)), held_out, 500)
            for name, held_out in few.items()
        },
        replicas=Replicas((jnp.arange(len(rows)) % len(ARMS),)),
        evaluate_first=False,
        log=run.sub_run(),
    )
    accuracy = {name: [] for name in ("train", *few)}
    for row in fitted.records:
        accuracy[row["split"]].append(row["accuracy"])
    shape = (-1, len(config.sizes), config.seeds, len(ARMS))
    return {name: np.reshape(rows, shape) for name, rows in accuracy.items()}


def draw_versions(run: Run, image: np.ndarray) -> None:
    """An image [H, H, 3] in 16 versions, and what each layer alone makes of it."""
    keys, size = jax.random.split(jax.random.key(0), 15), (len(image), len(image))

    def maps(*layers: Layer) -> Array:
        return jax.vmap(lambda key: augment.draw(key, size, layers))(keys)

    def alone(layer: Layer) -> Array:
        """The map that changes most: a flip leaves every other image as it is."""
        drawn = maps(layer)
        return drawn[jnp.abs(drawn - jnp.eye(3)).sum((1, 2)).argmax()]

    shown: dict[str, dict[str, Layer]] = {
        "flip": {mode: Flip(mode) for mode in ("horizontal", "vertical", "both")},
        "rotation": {
            f"{360 * f:+.0f} degrees": Rotation((f, f))
            for f in (-0.1, -0.05, 0.05, 0.1)
        },
        "zoom": {f"{f:+.0%}": Zoom((f, f)) for f in (-0.4, -0.2, 0.2, 0.4)},
        "translation": {
            f"{f:+.0%}": Translation((f, f), (f, f)) for f in (-0.2, -0.1, 0.1, 0.2)
        },
    }
    singles = [alone(layer) for row in shown.values() for layer in row.values()]
    every = jnp.concatenate([maps(*LAYERS), jnp.stack(singles)])
    copies = jnp.broadcast_to(jnp.asarray(image), (len(every), *image.shape))
    versions = iter(np.asarray(augment.warp_batch(copies, every)) / 255)
    grid = [image / 255, *(next(versions) for _ in keys)]
    plots.save_images(
        run,
        "versions",
        [grid[i : i + 4] for i in range(0, 16, 4)],
        [["original", "", "", ""], *[[""] * 4] * 3],
    )
    plots.save_images(
        run,
        "layers",
        [[image / 255, *(next(versions) for _ in row)] for row in shown.values()],
        [["original", *row] for row in shown.values()],
        list(shown),
    )


def draw_accuracies(
    run: Run, config: Config, accuracy: dict[str, np.ndarray], found: np.ndarray
) -> None:
    """Test accuracy by the number of images; for the middle one, by epoch."""

    def line(
        x: Sequence[float], values: np.ndarray, within: Range = SHARE
    ) -> plots.Line:
        return x, [mean_over_runs(value, within) for value in values]

    def arms(x: Sequence[float], values: np.ndarray) -> dict[str, plots.Line]:
        return {arm: line(x, values[..., i]) for i, arm in enumerate(ARMS)}

    label, scales = "images to learn from", ("log", "linear")
    gain = {"": line(config.sizes, found[..., 1] - found[..., 0], SHARE_DIFFERENCE)}
    plots.save_lines(
        run,
        "sizes",
        [
            plots.Panel("test, paired by seed", label, "accuracy gained", gain, scales),
            plots.Panel("test", label, "accuracy", arms(config.sizes, found), scales),
        ],
    )
    middle, epochs = len(config.sizes) // 2, range(1, config.epochs + 1)
    curves = [
        plots.Panel(
            f"{config.sizes[middle]} images, {split}", "epoch", "accuracy",
            arms(epochs, accuracy[split][:, middle]),
        )
        for split in ("train", "validation")
    ]  # fmt: skip
    plots.save_lines(run, "curves", curves)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Look at the images, learn from them as they are and augmented, compare."""
    if config.folder is not None or config.data == "emoji":
        images, audited = read_folder(config)
    else:
        size = config.image_size, config.image_size
        images, audited = read_images(config.data, image_size=size), None
    data = image_splits(images)
    sizes = sizes_at_most(config.sizes, len(data.train.indices))
    config = dataclasses.replace(config, sizes=sizes)
    if audited is not None:
        faults = json.dumps([fault._asdict() for fault in audited.faults], indent=1)
        write_atomically(run.folder / "faults.json", faults + "\n")
    if audited is None:
        first = images.splits["train"]
        image = np.asarray(first.x[0] if isinstance(first, Images) else first[0]["x"])
    else:  # larger than those to learn from: it is there to be looked at
        path = audited.folder / audited.paths[0]
        image = folders.read_image(path, (DRAWN, DRAWN))
    draw_versions(run, image)

    model = cnn(data.shape, len(data.classes), filters=config.filters)
    train_step, begin = train_step_of_arms(model, config), start(model, config)
    seconds = seconds_of_steps(train_step, begin[0], config, data)
    accuracy = train(model, train_step, begin, config, data, run)
    found = at_best_epoch(accuracy["validation"], accuracy["test"])
    draw_accuracies(run, config, accuracy, found)
    result: dict[str, Estimate | float] = {}
    for size, values in zip(config.sizes, found, strict=True):
        for i, arm in enumerate(ARMS):
            of_arm = mean_over_runs(values[:, i], SHARE)
            result[f"{size} images, {arm}: test accuracy"] = of_arm
        gain = mean_over_runs(
            values[:, 1] - values[:, 0], SHARE_DIFFERENCE, "seeds, paired"
        )
        result[f"{size} images: accuracy gained by augmentation"] = gain
    steps = -(-max(config.sizes) // config.batch_size)
    for i, arm in enumerate(ARMS):
        result[f"{arm}: seconds an epoch"] = float(steps * np.median(seconds[:, i]))
    ratio = mean_over_runs(seconds[:, 1] / seconds[:, 0], NONNEGATIVE, "pairs of steps")
    result["time of a step, augmented / as they are"] = ratio
    return result


if __name__ == "__main__":
    experiment(main, PRESETS)
