"""Lesson 2.3: transfer learning: features of a network that somebody else trained.

EfficientNet-Lite0 was trained on the thousand classes of ImageNet. Without its last
layer it makes features of any image, and a regression on those tells nine kinds of
emoji apart that it never saw. Its layers are frozen: their features are computed once.
Then its last layers are trained too. Beside it: a CNN trained from scratch, the same
backbone with random weights, and the backbone on images that show no more than the CNN
sees.

A seed fixes the images, the first weights and the order; small sets are repeated to the
length of the largest. All arms learn from random versions of their images, and all are
reported at the end of their training. Drawings of the same thing are never in two of
the sets. Then: ch2_transfer.py --predict FILE [FILE ...]
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.images import augment
from jaxstudy.images.augment import Flip, Rotation, Translation, Zoom
from jaxstudy.images.figures import draw_predictions
from jaxstudy.images.subsets import ImageSubsets, read_image_subsets
from jaxstudy.model import compose
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.pretrained import backbones, tuning
from jaxstudy.pretrained.cutting import CutBackbone, Versions, cut_backbone
from jaxstudy.pretrained.prediction import predict_files, save_classes
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.study import sizes
from jaxstudy.types import TrainState

ARMS = ("scratch", "random weights", "equal resolution", "frozen", "fine-tuned")
GAINS = {  # of one arm over another, from the same images and seeds
    "weights": ("frozen", "random weights"),
    "resolution": ("frozen", "equal resolution"),
    "fine-tuning": ("fine-tuned", "frozen"),
}
LEAST = "size with the least gain: gained by fine-tuning"
LESSON = Lesson(
    number="2.3",
    title="Transfer learning",
    question="What is pretraining worth?",
    metrics=(
        "fewest images, frozen: test accuracy",
        "fewest images, scratch: test accuracy",
        *(f"2286 images: gained by {what}" for what in GAINS),
        LEAST,
        *(f"2286 images, {arm}: test accuracy" for arm in ARMS),
        "majority class: test accuracy",
    ),
    claims=(
        Claim(
            "With the fewest images, a regression on frozen pretrained features has a "
            "higher test accuracy than a network trained from scratch.",
            tuple(
                f"fewest images, {arm}: test accuracy" for arm in ("frozen", ARMS[0])
            ),
            ">",
        ),
        *(
            Claim(sentence, (f"2286 images: gained by {what}", 0.0), ">")
            for what, sentence in {
                "weights": "With all 2,286 images, pretrained weights make better "
                "features than random weights of the same network.",
                "resolution": "More pixels than the network from scratch has raise the "
                "test accuracy of frozen features.",
                "fine-tuning": "Fine-tuning raises it above that of frozen features "
                "trained on as long.",
            }.items()
        ),
        Claim(
            "At no number of images does fine-tuning lower it by 0.01 or more.",
            (-0.01, LEAST),
            "<",
        ),
    ),
    figures={
        "sizes": "Test accuracy by the number of images to learn from, with 95 % "
        "intervals over seeds. From line to line upwards: what pretrained weights, "
        "more pixels and fine-tuning are worth. Where bands overlap, look at the "
        "paired claims.",
        "predictions": "Test images with the most probable class and its probability "
        "by the regression on frozen features; where it is wrong, the true one.",
        "curves": "Accuracy by pass over the largest set, with all images, on what is "
        "trained on (left) and on the validation set (right). Fine-tuning begins where "
        "a regression ended. A line that still rises at its end has not finished.",
    },
    try_it={
        "--fine-tune-from block14": "Fewer layers are trained: less adapts, and less "
        "time is taken.",
        "--decay 0.1": "Less decay in regressions: expect a lower test accuracy.",
        "--versions 1": "Frozen and fine-tuned layers see no random versions: expect "
        "more from frozen features than from fine-tuning.",
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
    """Height and width of images for the CNN, and of what equal resolution shows."""
    sizes: tuple[Count, ...] = (100, 300, 1000, 2286)
    """Numbers of images to learn from, at most as many as there are."""
    versions: Count = 4
    """Versions of each image for the backbone: itself, and random ones."""
    filters: tuple[Count, ...] = (16, 32)
    """Filters of each convolution of the CNN."""
    epochs: Count = 24
    """Passes of the CNN over as many images as the largest set has."""
    regression_epochs: Count = 8
    """Passes of the regressions over all versions, before fine-tuning."""
    tuning_epochs: Count = 1
    """Passes over all versions when fine-tuning; the regressions make as many more."""
    rate: Positive = 0.001
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    tuning_rate: Positive = 0.0003
    """Learning rate when fine-tuning: what is good already should change little."""
    decay: Positive = 1.0
    """Weight decay of the regressions (AdamW): few images, many features."""
    tuning_decay: Annotated[float, pydantic.Field(ge=0)] = 0.1
    """Weight decay when fine-tuning, of the backbone's layers and the regression."""
    batch_size: Count = 32
    """Images in a gradient step."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each kind and size; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        image_size=32, small_size=8, sizes=(20, 40), versions=2, filters=(4,),
        epochs=2, regression_epochs=1, seeds=2, batch_size=20,
    ),
    "quick": Config(
        image_size=64, small_size=16, sizes=(150, 2286), versions=2, epochs=8,
        regression_epochs=5,
    ),
    "full": Config(),
}  # fmt: skip


def read(config: Config, size: int) -> ImageSubsets:
    """The images with so many pixels a side, as subsets of every count."""
    return read_image_subsets(
        config.data, config.folder, size, counts=config.sizes, seeds=config.seeds,
        seed=config.seed,
    )  # fmt: skip


def schedule(
    images: ImageSubsets, config: Config, epochs: int, rate: float
) -> optax.Schedule:
    """A learning rate that falls to 0 at the end of the last epoch."""
    steps = epochs * -(-images.rows.shape[1] // config.batch_size)
    return optax.cosine_decay_schedule(rate, steps)


def from_scratch(
    images: ImageSubsets, config: Config, fill: float | None
) -> sizes.Plan:
    """A CNN, on random versions of the images, others in each epoch."""
    shape = (config.small_size, config.small_size, 3)
    model = cnn(shape, len(images.classes), filters=config.filters)
    objective = augment.augmented(cross_entropy(model), LAYERS, fill)
    tx = optax.adam(schedule(images, config, config.epochs, config.rate))
    return sizes.Plan(model, objective, tx, images, config.epochs)


def regression(images: ImageSubsets, config: Config, epochs: int) -> sizes.Plan:
    """The regression on x [N, D], standardised by what each run learns from."""
    x = jnp.asarray(images.sets["train"]["x"])
    model = tuning.regression(x.shape[1], len(images.classes))
    rate = schedule(images, config, epochs, config.rate)
    tx = optax.adamw(rate, weight_decay=config.decay)
    begin = functools.partial(tuning.with_statistics, x=x, rows=images.rows)
    return sizes.Plan(model, cross_entropy(model), tx, images, epochs, begin)


def fine_tuning(
    parts: CutBackbone, head: TrainState, inputs: ImageSubsets, config: Config
) -> sizes.Plan:
    """The backbone's last layers and the regression, from where the latter ended."""
    epochs = config.tuning_epochs
    rate = schedule(inputs, config, epochs, config.tuning_rate)
    tx = optax.adamw(rate, weight_decay=config.tuning_decay)
    _, features, classes = head.params["output"]["kernel"].shape
    rest = backbones.pretrained(parts.rest, parts.network.weights)
    model = compose(rest, tuning.regression(features, classes))
    begin = functools.partial(tuning.with_regression, trained=head)
    return sizes.Plan(model, cross_entropy(model), tx, inputs, epochs, begin)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train from scratch, on features and on, with sets of several sizes."""
    network = backbones.backbone(config.backbone, config.weights)
    parts = cut_backbone(network, config.fine_tune_from, config.image_size)
    images, small = (read(config, s) for s in (config.image_size, config.small_size))
    config = dataclasses.replace(config, sizes=images.sizes)
    parts.show_summary(run, len(images.classes))
    save_classes(run, images)

    x = images.sets["train"]["x"]
    fill = augment.background(x)
    versions = Versions(config.versions, LAYERS, fill, config.seed)
    some = x[np.linspace(0, len(x) - 1, 64).astype(int)]
    inputs = parts.for_rest(images, versions)
    features = {
        "random weights": parts.features(
            images, versions, backbones.untrained(network, some, config.seed)
        ),
        "equal resolution": parts.features(
            images, versions, backbones.at_resolution(network, config.small_size)
        ),
        "frozen": parts.by_rest(inputs),
    }
    epochs = config.regression_epochs + config.tuning_epochs
    train = functools.partial(
        sizes.train_arm, run, seed=config.seed, batch_size=config.batch_size
    )
    trained = {"scratch": train("scratch", from_scratch(small, config, fill))}
    for arm, of_arm in features.items():
        trained[arm] = train(arm, regression(of_arm, config, epochs))
    test_x, weights = features["frozen"].sets["test"]["x"], trained["frozen"].state[1:3]
    p = tuning.class_probabilities(*weights, images.largest, test_x)
    draw_predictions(run, images.sets["test"], images.classes, p)
    head = regression(features["frozen"], config, config.regression_epochs)
    plan = fine_tuning(parts, train("head", head).state, inputs, config)
    trained["fine-tuned"] = train("fine-tuned", plan)

    by_epoch = {arm: of_arm.accuracy for arm, of_arm in trained.items()}
    test, counts = sizes.end_test(by_epoch), config.sizes
    sizes.draw_epochs(run, counts, counts.index(max(counts)), by_epoch)
    sizes.draw_sizes(run, counts, test)
    result = sizes.size_metrics(
        counts, test, {f"gained by {w}": g for w, g in GAINS.items()}
    )
    for arm in ("frozen", "scratch"):
        least = result[f"{min(counts)} images, {arm}: test accuracy"]
        result[f"fewest images, {arm}: test accuracy"] = least
    tuned = [result[f"{n} images: gained by fine-tuning"] for n in counts]
    result[LEAST] = min(tuned, key=lambda estimate: estimate.mean)
    return {"majority class: test accuracy": images.majority_accuracy, **result}


def predict(saved: Saved[Config], files: tuple[Path, ...]) -> None:
    """The class of images FILE..., by the regression on frozen features."""
    config = saved.config
    network = backbones.backbone(config.backbone, config.weights)
    size, seeds = config.image_size, config.seeds
    predict_files(saved, network, files, part="frozen", size=size, seeds=seeds)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
