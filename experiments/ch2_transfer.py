"""Lesson 2.3: transfer learning: features of a network that somebody else trained.

EfficientNet-Lite0 was trained on the thousand classes of ImageNet. Without its last
layer it makes features of any image, and a regression on those tells nine kinds of
emoji apart that it never saw. Its layers are frozen: their features are computed once.
Then its last layers are trained too. Both are beside the same regression on pixels and
a CNN trained from scratch, by the number of images to learn from.

A seed fixes the images, the first weights and the order; small sets are repeated to the
length of the largest, an epoch here. A run is reported at the epoch with its best
validation accuracy. Drawings of the same thing are never in two of the sets.
Then: ch2_transfer.py --predict FILE [FILE ...]
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import optax
import pydantic

from jaxstudy.images.augment import Flip, Layer, Rotation, Translation, Zoom, augmented
from jaxstudy.images.figures import draw_predictions
from jaxstudy.images.subsets import ImageSubsets, read_image_subsets
from jaxstudy.model import Model, compose
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.pretrained import backbones, tuning
from jaxstudy.pretrained.cutting import cut_backbone
from jaxstudy.pretrained.prediction import predict_files, save_classes
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.study import sizes
from jaxstudy.types import TrainState

ARMS = ("pixels", "scratch", "scratch, augmented", "frozen", "fine-tuned")
COMPARED = ("frozen", "scratch")
LESSON = Lesson(
    number="2.3",
    title="Transfer learning",
    question="What is pretraining worth?",
    metrics=(
        *(f"fewest images, {arm}: test accuracy" for arm in COMPARED),
        *(f"2286 images, {arm}: test accuracy" for arm in ARMS),
        "2286 images: gained by fine-tuning",
        "majority class: test accuracy",
    ),
    claims=(
        Claim(
            "With the fewest images, a regression on frozen pretrained features has a "
            "higher test accuracy than a network trained from scratch.",
            tuple(f"fewest images, {arm}: test accuracy" for arm in COMPARED),
            ">",
        ),
        Claim(
            "So it has with all 2,286 images.",
            tuple(f"2286 images, {arm}: test accuracy" for arm in COMPARED),
            ">",
        ),
        Claim(
            "With all images, fine-tuning raises the test accuracy above that of the "
            "frozen features.",
            ("2286 images: gained by fine-tuning", 0.0),
            ">",
        ),
    ),
    figures={
        "sizes": "Test accuracy by the number of images to learn from, with 95 % "
        "intervals over seeds. The height of a line at the left shows what it knows "
        "with few images; where bands overlap, look at the paired claims.",
        "predictions": "Test images with the most probable class and its probability "
        "by the regression on frozen features; where it is wrong, the true one.",
        "curves": "Accuracy by epoch with all images, on what is trained on (left) and "
        "on the validation set (right). A line that still rises at its end has not "
        "finished: the numbers of epochs differ.",
    },
    try_it={
        "--fine-tune-from block14": "Two blocks are trained: more adapts or overfits.",
        "--decay 0.1": "Less decay in regressions: expect a lower test accuracy.",
        "--tuning-epochs 4": "At a training accuracy of 1, expect little.",
    },
)

LAYERS = (Flip(), Rotation(0.05), Zoom(0.2), Translation(0.1, 0.1))


@dataclass(frozen=True)
class Config(Settings):
    """The network to build on, the images, and how long to learn from them."""

    backbone: backbones.BackboneName = "efficientnet_lite0"
    """The network that somebody else trained."""
    weights: Path | None = None
    """Its weights, a Keras file; those of efficientnet_lite0 come by `make data`."""
    fine_tune_from: str = "block15"
    """Name of the first layer to train when fine-tuning; the summary lists them."""
    data: str = "emoji"
    """emoji or tfds:NAME."""
    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the data."""
    image_size: Count = 224
    """Height and width of images for the backbone."""
    small_size: Annotated[int, pydantic.Field(ge=8)] = 32
    """Height and width of images for the CNN and the regression on pixels."""
    sizes: tuple[Count, ...] = (100, 300, 1000, 2286)
    """Numbers of images to learn from, at most as many as there are."""
    filters: tuple[Count, ...] = (16, 32)
    """Filters of each convolution of the CNN."""
    epochs: Count = 24
    """Passes of the CNN over as many images as the largest set has."""
    regression_epochs: Count = 30
    """Passes of the regressions."""
    tuning_epochs: Count = 2
    """Passes when fine-tuning."""
    rate: Positive = 0.001
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    tuning_rate: Positive = 0.0001
    """Learning rate when fine-tuning: what is good already should change little."""
    decay: Positive = 3.0
    """Weight decay of the regressions (AdamW): few images, many features."""
    batch_size: Count = 32
    """Images in a gradient step."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each kind and size; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        image_size=32, small_size=8, sizes=(20, 40), filters=(4,), epochs=2,
        regression_epochs=2, tuning_epochs=1, seeds=2, batch_size=20,
    ),
    "quick": Config(
        image_size=64, small_size=16, sizes=(150, 2286), epochs=8,
        regression_epochs=10, tuning_epochs=1, seeds=4,
    ),
    "full": Config(),
}  # fmt: skip


def read(config: Config, size: int) -> ImageSubsets:
    """The images with so many pixels a side, as subsets of every count."""
    return read_image_subsets(
        config.data, config.folder, size, counts=config.sizes, seeds=config.seeds,
        seed=config.seed,
    )  # fmt: skip


def schedule(config: Config, epochs: int, rate: float) -> optax.Schedule:
    """A learning rate that falls to 0 at the end of the last epoch."""
    steps = epochs * -(-max(config.sizes) // config.batch_size)
    return optax.cosine_decay_schedule(rate, steps)


def regression(images: ImageSubsets, config: Config) -> sizes.Plan:
    """The regression on x [N, D], standardised by what each run learns from."""
    x, epochs = jnp.asarray(images.sets["train"]["x"]), config.regression_epochs
    model = tuning.regression(x.shape[1], len(images.classes))
    tx = optax.adamw(schedule(config, epochs, config.rate), weight_decay=config.decay)
    begin = functools.partial(tuning.with_statistics, x=x, rows=images.rows)
    return sizes.Plan(model, cross_entropy(model), tx, images, epochs, begin)


def from_scratch(
    images: ImageSubsets, config: Config, layers: Sequence[Layer] = ()
) -> sizes.Plan:
    """A CNN, on the images as they are or on random versions of them."""
    shape = (config.small_size, config.small_size, 3)
    model = cnn(shape, len(images.classes), filters=config.filters)
    objective = cross_entropy(model)
    if layers:
        objective = augmented(objective, layers)
    tx = optax.adam(schedule(config, config.epochs, config.rate))
    return sizes.Plan(model, objective, tx, images, config.epochs)


def fine_tuning(
    rest: Model, frozen: TrainState, images: ImageSubsets, config: Config
) -> sizes.Plan:
    """The backbone's last layers and the regression, from where the latter ended."""
    epochs = config.tuning_epochs
    rate = schedule(config, epochs, config.tuning_rate)
    decayed = {"first": False, "second": True}  # as the regression had it
    tx = optax.adamw(rate, weight_decay=config.decay, mask=decayed)
    _, inputs, classes = frozen.params["output"]["kernel"].shape
    model = compose(rest, tuning.regression(inputs, classes))
    begin = functools.partial(tuning.with_regression, trained=frozen)
    return sizes.Plan(model, cross_entropy(model), tx, images, epochs, begin)


def train(arm: str, plan: sizes.Plan, config: Config, run: Run) -> sizes.TrainedSizes:
    """Train with every size and seed, each a replica of one program."""
    log, batch_size = run.sub_run(arm), config.batch_size
    return sizes.train_sizes(plan, seed=config.seed, batch_size=batch_size, log=log)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train from scratch, on frozen features and on, with sets of several sizes."""
    network = backbones.backbone(config.backbone, config.weights)
    parts = cut_backbone(network, config.fine_tune_from, config.image_size)
    images, small = (read(config, s) for s in (config.image_size, config.small_size))
    config = dataclasses.replace(config, sizes=images.sizes)
    parts.show_summary(run, len(images.classes))
    save_classes(run, images)

    plans = {
        "pixels": regression(small.flat(), config),
        "scratch": from_scratch(small, config),
        "scratch, augmented": from_scratch(small, config, LAYERS),
    }
    trained = {arm: train(arm, plan, config, run) for arm, plan in plans.items()}
    featured = parts.features(images)
    frozen = train("frozen", regression(featured, config), config, run)
    weights, x = frozen.state[1:3], featured.sets["test"]["x"]
    p = tuning.class_probabilities(*weights, images.largest, x)
    draw_predictions(run, images.sets["test"], images.classes, p)
    inputs, rest = parts.for_rest(images)
    plan = fine_tuning(rest, frozen.state, inputs, config)
    tuned = train("fine-tuned", plan, config, run)
    trained |= {"frozen": frozen, "fine-tuned": tuned}

    by_epoch = {arm: of_arm.accuracy for arm, of_arm in trained.items()}
    test, counts = sizes.best_test(by_epoch), config.sizes
    constants = {"majority class": images.majority_accuracy}
    sizes.draw_epochs(run, counts, counts.index(max(counts)), by_epoch)
    sizes.draw_sizes(run, counts, test, constants=constants)
    result = sizes.size_metrics(
        counts, test, "gained by fine-tuning", "fine-tuned", over="frozen"
    )
    for arm in COMPARED:
        least = result[f"{min(counts)} images, {arm}: test accuracy"]
        result[f"fewest images, {arm}: test accuracy"] = least
    return {"majority class: test accuracy": images.majority_accuracy, **result}


def predict(saved: Saved[Config], files: tuple[Path, ...]) -> None:
    """The class of images FILE..., by the regression on frozen features."""
    config = saved.config
    network = backbones.backbone(config.backbone, config.weights)
    size, seeds = config.image_size, config.seeds
    predict_files(saved, network, files, part="frozen", size=size, seeds=seeds)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
