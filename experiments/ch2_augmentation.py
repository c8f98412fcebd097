"""Lesson 2.2.1 and 2.2.3: images in folders, and learning from random versions of them.

The emoji lie in a folder for each class. `make data` has sorted a flat folder that way,
copying, by a rule that names the class of a file:

    sort_into_folders(Path("flat"), Path("sorted"), emoji_label)

They are loaded with an image size, a validation split and a seed; drawings of the same
thing are never in two of the sets. `--folder DIR` takes any such tree instead. All of
it is looked at first, and every problem named: such files are left out and listed in
problems.json of the run; with `--strict` nothing is run.

Then a CNN learns from sets of several sizes, as they are and flipped, rotated, zoomed
and shifted at random, another way each time. A seed fixes the images, the first weights
and the order, so the two are compared in pairs; all are replicas of one program. Small
sets are repeated to the length of the largest, an epoch here, so all make as many
steps. A run is reported at the epoch with its best validation accuracy.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.dataset import evenly_spaced
from jaxstudy.images import augment, folders, splits
from jaxstudy.images.augment import Flip, Rotation, Translation, Zoom
from jaxstudy.images.figures import draw_versions
from jaxstudy.images.folder_sets import read_folder_sets
from jaxstudy.images.sets import Images, ImageSet, read_images
from jaxstudy.images.subsets import EVALUATED
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run, write_atomically
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    SHARE_DIFFERENCE,
    Estimate,
    mean_over_runs,
)
from jaxstudy.study import sizes
from jaxstudy.types import Array, Batch, Metrics

LESSON = Lesson(
    number="2.2.1, 2.2.3",
    title="Image folders and augmentation",
    question="When does augmentation help?",
    metrics=(
        "middle size: accuracy gained by augmentation",
        "150 images: accuracy gained by augmentation",
        "2286 images: accuracy gained by augmentation",
        "time of a step, augmented / as they are",
        "150 images, as they are: test accuracy",
        "150 images, augmented: test accuracy",
        "2286 images, as they are: test accuracy",
        "2286 images, augmented: test accuracy",
    ),
    claims=(
        Claim(
            "At the middle size, augmentation raises the test accuracy.",
            ("middle size: accuracy gained by augmentation", 0.0),
            ">",
        ),
        Claim(
            "With 150 images it changes the test accuracy by less than 0.03.",
            ("150 images: accuracy gained by augmentation", 0.0),
            "within",
            0.03,
        ),
        Claim(
            "With all 2,286 images it changes the test accuracy by less than 0.03.",
            ("2286 images: accuracy gained by augmentation", 0.0),
            "within",
            0.03,
        ),
        Claim(
            "A gradient step on augmented images takes longer.",
            ("time of a step, augmented / as they are", 1.0),
            ">",
        ),
    ),
    figures={
        "sizes": "Left: test accuracy with augmentation less without, paired by seed, "
        "with 95 % intervals; where the band is above 0, augmentation helps. Right: "
        "both accuracies by the number of images to learn from.",
        "versions": "One image and 15 random versions of it, as training sees them: "
        "all layers multiplied into one map, so that pixels are interpolated once. "
        "Ask of each whether it still belongs to its class.",
        "layers": "What each kind of layer does alone, one row each, at stated "
        "strengths; beyond the border the image is continued by its reflection.",
        "curves": "Accuracy by epoch at the middle size, on what is trained on (left) "
        "and on the validation set (right). Where the augmented line on the left "
        "still rises at the end, its training is not finished, and a smaller gain "
        "says little.",
    },
    try_it={
        "--epochs 30": "Twice the steps: random versions take longer to learn, so the "
        "gain should grow.",
        "--seeds 8": "Twice the pairs: intervals about 0.6 times as wide, so smaller "
        "gains are told from 0.",
        "--data fashion_mnist": "Garments face one way and fill their images: flips "
        "and shifts are less like what the test set holds.",
    },
)

ARMS = ("as they are", "augmented")
LAYERS = (Flip(), Rotation(0.05), Zoom(0.2), Translation(0.1, 0.1))
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
    """Refuse a folder with problems, instead of leaving out what is faulty."""
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


def train_step_of_arms(model: Model, config: Config) -> training.TrainStep:
    """The step (state, batch, arm): on the images as they are, or on new versions."""
    plain, optimizer = cross_entropy(model), optax.adam(config.rate)
    objectives = plain, augment.augmented(plain, LAYERS)
    steps = [training.make_train_step(objective, optimizer) for objective in objectives]

    def train_step(
        state: training.TrainState, batch: Batch, arm: Array
    ) -> tuple[training.TrainState, Metrics]:
        return jax.lax.switch(arm, steps, state, batch)

    return train_step


def start(model: Model, config: Config) -> tuple[training.TrainState, Array]:
    """The states of all replicas [sizes x seeds x arms] and keys of their data orders.

    Both depend on the seed alone.
    """
    seeds = jnp.repeat(jnp.arange(config.seeds), len(ARMS))
    seeds = jnp.tile(seeds, len(config.sizes))
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))[seeds]
    return training.init_replicas(model, optax.adam(config.rate), keys[:, 0]), keys[
        :, 1
    ]


def seconds_of_steps(
    train_step: training.TrainStep,
    state: training.TrainState,
    config: Config,
    data: splits.ImageSplits,
) -> np.ndarray:
    """What a step takes, [TIMED, arms], in turns: other load slows both alike."""
    single = jax.tree.map(lambda a: a[0], state)
    batch = {
        "x": jnp.zeros((config.batch_size, *data.shape), jnp.uint8),
        "y": jnp.zeros(config.batch_size, jnp.int32),
        "mask": jnp.ones(config.batch_size),
    }
    step = jax.jit(train_step).lower(single, batch, jnp.int32(0)).compile()
    times = [time.perf_counter()]
    for turn in range((1 + TIMED) * len(ARMS)):
        jax.block_until_ready(step(single, batch, jnp.int32(turn % len(ARMS))))
        times.append(time.perf_counter())
    return np.diff(times).reshape(-1, len(ARMS))[1:]  # the first warms up


def train(
    model: Model,
    train_step: training.TrainStep,
    start: tuple[training.TrainState, Array],
    config: Config,
    data: splits.ImageSplits,
    run: Run,
) -> dict[str, np.ndarray]:
    """Accuracy on each set after each epoch, [epochs, sizes, seeds, arms]."""
    state, keys = start
    rows = splits.nested_subsets(data.train, config.sizes, config.seeds, config.seed)
    rows = rows.repeat(len(ARMS), axis=1)
    rows = jnp.asarray(rows.reshape(-1, rows.shape[2]))
    eval_step = training.make_eval_step(cross_entropy(model))
    evaluators = {
        name: training.Evaluator(eval_step, evenly_spaced(part, EVALUATED), 500)
        for name, part in (("validation", data.validation), ("test", data.test))
    }
    fitted = training.fit(
        state,
        train_step,
        dataclasses.replace(data.train, indices=rows, mask=jnp.ones(rows.shape, bool)),
        key=keys,
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators=evaluators,
        replicas=training.Replicas((jnp.arange(len(rows)) % len(ARMS),)),
        evaluate_first=False,
        log=run.sub_run(),
    )
    shape = (len(config.sizes), config.seeds, len(ARMS))
    return sizes.accuracies(fitted.records, shape)


def read(config: Config, run: Run) -> tuple[ImageSet, np.ndarray]:
    """The images, and a larger one to show; a folder's problems go to problems.json."""
    size = config.image_size, config.image_size
    if config.folder is None and config.data != "emoji":
        images = read_images(config.data, image_size=size)
        first = images.splits["train"]
        shown = first.x[0] if isinstance(first, Images) else first[0]["x"]
        return images, np.asarray(shown)
    images, audited = read_folder_sets(
        config.folder, size=size, strict=config.strict, seed=config.seed,
        validation_split=config.validation_split,
    )  # fmt: skip
    problems = json.dumps([problem._asdict() for problem in audited.problems], indent=1)
    write_atomically(run.folder / "problems.json", problems + "\n")
    path = audited.folder / audited.paths[0]
    return images, folders.read_image(path, (DRAWN, DRAWN))


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Look at the images, learn from them as they are and augmented, compare."""
    images, shown = read(config, run)
    data = splits.image_splits(images)
    counts = splits.sizes_at_most(config.sizes, len(data.train.indices))
    config = dataclasses.replace(config, sizes=counts)
    draw_versions(run, shown, LAYERS)

    model = cnn(data.shape, len(data.classes), filters=config.filters)
    train_step, begin = train_step_of_arms(model, config), start(model, config)
    seconds = seconds_of_steps(train_step, begin[0], config, data)
    accuracy = train(model, train_step, begin, config, data, run)
    by_epoch = {
        arm: {split: values[..., i] for split, values in accuracy.items()}
        for i, arm in enumerate(ARMS)
    }
    test = sizes.best_test(by_epoch)
    sizes.draw_epochs(run, counts, len(counts) // 2, by_epoch)
    lines = {arm: sizes.mean_line(counts, values) for arm, values in test.items()}
    gain = test[ARMS[1]] - test[ARMS[0]]
    gained = {"": sizes.mean_line(counts, gain, SHARE_DIFFERENCE)}
    panels = [
        sizes.size_panel("test, paired by seed", "accuracy gained", gained),
        sizes.size_panel("test", "accuracy", lines),
    ]
    plots.save_lines(run, "sizes", panels)
    name = "accuracy gained by augmentation"
    result: dict[str, Estimate | float] = {
        **sizes.size_metrics(counts, test, name, ARMS[1], over=ARMS[0])
    }
    steps = -(-max(counts) // config.batch_size)
    for i, arm in enumerate(ARMS):
        result[f"{arm}: seconds an epoch"] = float(steps * np.median(seconds[:, i]))
    middle = counts[len(counts) // 2]
    result[f"middle size: {name}"] = result[f"{middle} images: {name}"]
    ratio = mean_over_runs(seconds[:, 1] / seconds[:, 0], NONNEGATIVE, "pairs of steps")
    result["time of a step, augmented / as they are"] = ratio
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
