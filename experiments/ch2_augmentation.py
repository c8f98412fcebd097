"""Lesson 2.2.3: augmentation: learning from random versions of images.

A CNN learns from sets of several sizes, as they are and flipped, rotated, zoomed and
shifted at random, another way each time. What lies beyond a border is filled with the
background of the images where they have one: white, for emoji. A seed fixes the images,
the first weights and the order, so the two are compared in pairs; all are replicas of
one program. Small sets are repeated to the length of the largest, an epoch here, so all
make as many steps. The learning rate falls to 0, and a run is reported at its end:
no set chooses anything.

The emoji lie in a folder for each class, as lesson 2.2.1 makes it; drawings of the same
thing are never in two of the sets. `--folder DIR` takes any such tree instead. All of
it is looked at first, and every problem named: such files are left out and listed in
problems.json of the run; with `--strict` nothing is run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.images import augment
from jaxstudy.images.augment import Flip, Rotation, Translation, Zoom
from jaxstudy.images.figures import draw_versions
from jaxstudy.images.reading import read_set_or_folder
from jaxstudy.images.splits import image_splits
from jaxstudy.images.subsets import image_subsets
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    SHARE_DIFFERENCE,
    Estimate,
    mean_over_runs,
)
from jaxstudy.study import sizes
from jaxstudy.types import Array, Batch, Metrics

GAIN = "accuracy gained by augmentation"
MORE = f"middle sizes - larger of the ends: {GAIN}"
RISE = "augmented: rise of the training accuracy at the end"
WIDEST = "half-width of the widest interval of a gain"
TIME = "time of a step, augmented / as they are"
LESSON = Lesson(
    number="2.2.3",
    title="Augmentation",
    question="When does augmentation help?",
    metrics=(
        f"middle sizes: {GAIN}",
        MORE,
        f"150 images: {GAIN}",
        f"2286 images: {GAIN}",
        WIDEST,
        RISE,
        TIME,
        "150 images, as they are: test accuracy",
        "150 images, augmented: test accuracy",
        "2286 images, as they are: test accuracy",
        "2286 images, augmented: test accuracy",
    ),
    claims=(
        Claim(
            "At the middle sizes, augmentation raises the test accuracy.",
            (f"middle sizes: {GAIN}", 0.0),
            ">",
        ),
        Claim(
            "With 150 images it changes the test accuracy by less than 0.02.",
            (f"150 images: {GAIN}", 0.0),
            "within",
            0.02,
        ),
        Claim(
            "With all 2,286 images it changes the test accuracy by less than 0.02.",
            (f"2286 images: {GAIN}", 0.0),
            "within",
            0.02,
        ),
        Claim(
            "The gain at the middle sizes is larger than the larger one of the ends.",
            (MORE, 0.0),
            ">",
        ),
        Claim(
            "Every gain is known to less than 0.01 on either side.", (WIDEST, 0.01), "<"
        ),
    ),
    figures={
        "sizes": "Left: test accuracy by the number of images to learn from, with 95 % "
        "intervals. Right: the accuracy gained, paired by seed. Where the band is "
        "above 0, augmentation helps; where it lies between the lines at 0.02 and "
        "-0.02, it changes little.",
        "versions": "One image and 15 random versions of it, larger than in training: "
        "all layers multiplied into one map, so that pixels are interpolated once. "
        "Ask of each whether it still belongs to its class.",
        "layers": "What each kind of layer does alone, one row each, at stated "
        "strengths: a zoom of -40 % shows 60 % of height and width, larger. What lies "
        "beyond the border is the images' background or, if they have none, their "
        "reflection.",
        "curves": "Accuracy by epoch with all images, on what is trained on (left) and "
        "on the validation set (right). A flat end says that the learning rate has "
        "reached 0, not that more epochs would not help.",
    },
    try_it={
        "--epochs 10": "Too short: random versions take longer to learn, so the gain "
        "should shrink, or turn into a loss.",
        "--seeds 8": "Twice the pairs of the quick preset: intervals about 0.6 times "
        "as wide, so smaller gains are told from 0.",
        "--data fashion_mnist": "Garments face one way and fill their images: flips "
        "and shifts are less like what the test set holds.",
    },
)

ARMS = ("as they are", "augmented")
LAYERS = (Flip(), Rotation(0.02), Zoom(0.1), Translation(0.05, 0.05))


@dataclass(frozen=True)
class Config(Settings):
    """The images, how many of them to learn from, and how long."""

    data: str = "emoji"
    """emoji (from their folders), fashion_mnist or tfds:NAME."""
    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the data."""
    strict: bool = False
    """Refuse a folder with problems, instead of leaving out what is faulty."""
    image_size: Annotated[int, pydantic.Field(ge=8)] = 24
    """Height and width that images are brought to."""
    validation_split: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.25
    """Share of a folder's images, test set aside, whose accuracy is drawn by epoch."""
    sizes: tuple[Count, ...] = (150, 500, 1500, 2286)
    """Numbers of images to learn from, at most as many as there are."""
    filters: tuple[Count, ...] = (16, 32)
    """Filters of each convolution."""
    rate: Positive = 0.001
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    epochs: Annotated[int, pydantic.Field(ge=2)] = 60
    """Passes over as many images as the largest set has."""
    batch_size: Count = 32
    """Images in a gradient step."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 10
    """Trainings of each size, as they are and augmented."""


PRESETS = {
    "smoke": Config(
        image_size=8, sizes=(20, 60), filters=(4,), epochs=2, seeds=2, batch_size=20
    ),
    "quick": Config(image_size=16, sizes=(150, 600, 2286), epochs=10, seeds=4),
    "full": Config(),
}


def train_step_of_arms(
    model: Model, tx: optax.GradientTransformation, fill: float | None
) -> training.TrainStep:
    """The step (state, batch, arm): on the images as they are, or on new versions."""
    plain = cross_entropy(model)
    objectives = plain, augment.augmented(plain, LAYERS, fill)
    steps = [training.make_train_step(objective, tx) for objective in objectives]

    def train_step(
        state: training.TrainState, batch: Batch, arm: Array
    ) -> tuple[training.TrainState, Metrics]:
        return jax.lax.switch(arm, steps, state, batch)

    return train_step


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Look at the images, learn from them as they are and augmented, compare."""
    images, shown = read_set_or_folder(
        run, config.data, config.folder, size=config.image_size, strict=config.strict,
        validation_split=config.validation_split, seed=config.seed,
    )  # fmt: skip
    data = image_splits(images)
    subsets = image_subsets(
        data, counts=config.sizes, seeds=config.seeds, seed=config.seed
    )
    counts = subsets.sizes
    fill = augment.background(subsets.sets["train"]["x"])
    draw_versions(run, shown, LAYERS, fill)

    rate = sizes.cosine(subsets, config.batch_size, config.epochs, config.rate)
    tx = optax.adam(rate)
    model = cnn(data.shape, len(data.classes), filters=config.filters)
    train_step = train_step_of_arms(model, tx, fill)
    seconds = sizes.seconds_of_steps(
        train_step,
        training.init_state(model, tx, jax.random.key(config.seed)),
        subsets.datasets()[0],
        batch_size=config.batch_size,
        arms=len(ARMS),
    )
    trained = sizes.train_sizes(
        sizes.Plan(model, cross_entropy(model), tx, subsets, config.epochs),
        seed=config.seed,
        train_step=train_step,
        arms=len(ARMS),
        batch_size=config.batch_size,
        log=run.sub_run(),
    )
    by_epoch = {
        arm: {split: values[..., i] for split, values in trained.accuracy.items()}
        for i, arm in enumerate(ARMS)
    }
    test, largest = sizes.end_test(by_epoch), counts.index(max(counts))
    gain = test[ARMS[1]] - test[ARMS[0]]
    sizes.draw_epochs(run, counts, largest, by_epoch)
    limits = {"0.02": 0.02, "0": 0.0, "-0.02": -0.02}
    sizes.draw_sizes(run, counts, test, {GAIN: gain}, {}, limits)
    result: dict[str, Estimate | float] = {
        **sizes.size_metrics(counts, test, {GAIN: (ARMS[1], ARMS[0])})
    }
    gains = [result[f"{count} images: {GAIN}"] for count in counts]
    widths = [
        (g.high - g.low) / 2
        for g in gains
        if isinstance(g, Estimate) and g.low is not None and g.high is not None
    ]
    if len(widths) == len(counts):
        result[WIDEST] = max(widths)
    order = np.argsort(counts)
    inner = order[1:-1] if len(counts) > 2 else order[-1:]
    middle, pairs = gain[inner].mean(0), "seeds, paired"
    result[f"middle sizes: {GAIN}"] = mean_over_runs(middle, SHARE_DIFFERENCE, pairs)
    more = middle - np.maximum(gain[order[0]], gain[order[-1]])
    result[MORE] = mean_over_runs(more, (-2.0, 2.0), pairs)
    rise = sizes.last_rise(by_epoch[ARMS[1]]["train"])[largest]
    result[RISE] = mean_over_runs(rise, SHARE_DIFFERENCE)
    for i, arm in enumerate(ARMS):
        steps = -(-max(counts) // config.batch_size)
        result[f"{arm}: seconds an epoch"] = float(steps * np.median(seconds[:, i]))
    ratio = mean_over_runs(seconds[:, 1] / seconds[:, 0], NONNEGATIVE, "pairs of steps")
    result[TIME] = ratio
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
