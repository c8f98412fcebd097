"""Lesson 2.3: transfer learning: features of a network that somebody else trained.

EfficientNet-Lite0 was trained on the thousand classes of ImageNet. Without its last
layer it makes features of any image, and a regression on those tells nine kinds of
emoji apart. Its layers are frozen: their features are computed once. Then its last
layers are trained too. Beside it: a CNN trained from scratch, the same backbone with
random weights, and the backbone on images that show no more than the CNN is given.
A seed fixes the images, the first weights and the order; small sets are repeated to the
length of the largest. Drawings of the same thing are never in two of the sets.
Then: ch2_transfer.py --predict FILE [FILE ...]
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import optax
import pydantic

from jaxstudy.images import augment
from jaxstudy.images.augment import Flip, Rotation, Translation, Zoom
from jaxstudy.images.figures import draw_predictions
from jaxstudy.images.subsets import ImageSubsets, read_image_subsets
from jaxstudy.model import Model, compose
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.pretrained import backbones, tuning
from jaxstudy.pretrained.cutting import Versions, cut_backbone
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.study import sizes
from jaxstudy.study.sizes import Begin, Plan

ARMS = ("scratch", "random weights", "equal resolution", "frozen", "fine-tuned")
ALONE = "regression alone, tuned alike"
BY_WEIGHTS = "gained by weights"  # far more than by the others: not drawn with them
GAINS = {  # of one arm over another, from the same images and seeds
    BY_WEIGHTS: ("frozen", "random weights"),
    "gained by resolution": ("frozen", "equal resolution"),
    "gained by fine-tuning": ("fine-tuned", ALONE),
}
LEAST = "size with the lowest bound: gained by fine-tuning"
LESSON = Lesson(
    number="2.3",
    title="Transfer learning",
    question="What is pretraining worth?",
    metrics=(
        *(f"100 images, {arm}: test accuracy" for arm in ("frozen", "scratch")),
        *(f"2286 images: {gain}" for gain in GAINS),
        LEAST,
        *(f"2286 images, {arm}: test accuracy" for arm in ARMS),
        "majority class: test accuracy",
    ),
    claims=(
        Claim(
            "With 100 images, a regression on frozen pretrained features has a higher "
            "test accuracy than a network trained from scratch.",
            ("100 images, frozen: test accuracy", "100 images, scratch: test accuracy"),
            ">",
        ),
        Claim(
            "Weights: with all 2,286 images, pretrained ones make better features than "
            "random ones of the same network.",
            ("2286 images: gained by weights", 0.0),
            ">",
        ),
        Claim(
            "Resolution: frozen features gain by more pixels than the CNN is given.",
            ("2286 images: gained by resolution", 0.0),
            ">",
        ),
        Claim(
            "Fine-tuning: training the last layers, too, gains over training on the "
            "regression alone, as long, at the same rate and weight decay.",
            ("2286 images: gained by fine-tuning", 0.0),
            ">",
        ),
        Claim(
            "At no number of images does fine-tuning cost 0.01 or more.",
            (-0.01, LEAST),
            "<",
        ),
    ),
    figures={
        "sizes": "Left: test accuracy by the number of images to learn from, with 95 % "
        "intervals; weights are worth the gap from random weights to frozen. Right: "
        "what more pixels and fine-tuning gain, paired by seed: a band across 0 leaves "
        "it open, one above -0.01 says that fine-tuning costs less than that.",
        "predictions": "Test images with the most probable class and its probability "
        "by the regression on frozen features; where it is wrong, the true one.",
        "curves": "Accuracy by epoch with all images, on what is trained on (left) and "
        "on the validation set (right). Fine-tuning goes on from a regression; its own "
        "epochs are drawn from 1.",
    },
    try_it={
        "--fine-tune-from block14": "Fewer layers are trained: less time, less gain.",
        "--decay 0.1": "Less decay in regressions: expect a lower test accuracy.",
        "--versions 2": "A random version of each image, too: expect more of tuning.",
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
    fine_tune_from: str = "block12"
    """Name of the first layer to train when fine-tuning; the summary lists them."""
    data: str = "emoji"
    """emoji or tfds:NAME."""
    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the data."""
    image_size: Count = 160
    """Height and width of images for the backbone."""
    small_size: Annotated[int, pydantic.Field(ge=8)] = 32
    """Height and width of images for the CNN, and of what equal resolution shows."""
    sizes: tuple[Count, ...] = (100, 300, 1000, 2286)
    """Numbers of images to learn from, at most as many as there are."""
    versions: Count = 3
    """Versions of each image for the backbone: itself, and random ones."""
    epochs: Count = 24
    """Passes of the CNN over as many images as the largest set has."""
    regression_epochs: Count = 8
    """Passes of the regressions over all versions, before fine-tuning."""
    tuning_epochs: Count = 2
    """Passes over all versions when fine-tuning; the regressions make as many more."""
    rate: Positive = 0.001
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    tuning_rate: Positive = 0.0003
    """Learning rate when fine-tuning: what is good already should change little."""
    decay: Positive = 3.0
    """Weight decay of the regressions (AdamW): few images, many features."""
    tuning_decay: Annotated[float, pydantic.Field(ge=0)] = 0.1
    """Weight decay when fine-tuning, of the backbone's layers and the regression."""
    batch_size: Count = 32
    """Images in a gradient step."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each kind and size; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        image_size=32, small_size=8, sizes=(20, 40), versions=1, epochs=2, seeds=2,
        regression_epochs=1, tuning_epochs=1, batch_size=20, fine_tune_from="block15",
    ),
    "quick": Config(
        image_size=64, small_size=16, sizes=(100, 2286), versions=1, epochs=6,
        regression_epochs=8, tuning_epochs=1,
    ),
    "full": Config(),
}  # fmt: skip


def from_scratch(images: ImageSubsets, config: Config, fill: float | None) -> Plan:
    """A CNN, on random versions of the images, others in each epoch."""
    shape = (config.small_size, config.small_size, 3)
    model = cnn(shape, len(images.classes), filters=(16, 32))
    objective = augment.augmented(cross_entropy(model), LAYERS, fill)
    tx = optax.adam(sizes.cosine(images, config.batch_size, config.epochs, config.rate))
    return Plan(model, objective, tx, images, config.epochs)


def regressions(
    features: dict[str, ImageSubsets], config: Config, epochs: int
) -> dict[str, Plan]:
    """One on the x [N, D] of each arm, standardised: all are one compiled program."""
    images = features["frozen"]
    model = tuning.regression(images.sets["train"]["x"].shape[1], len(images.classes))
    rate = sizes.cosine(images, config.batch_size, epochs, config.rate)
    tx = optax.adamw(rate, weight_decay=config.decay)
    plan = Plan(model, cross_entropy(model), tx, images, epochs)
    begin = {arm: tuning.with_statistics(each) for arm, each in features.items()}
    return {a: plan._replace(images=features[a], begin=begin[a]) for a in features}


def going_on(model: Model, begin: Begin, images: ImageSubsets, config: Config) -> Plan:
    """From where the regression ended, at the rate and weight decay of fine-tuning."""
    epochs = config.tuning_epochs
    rate = sizes.cosine(images, config.batch_size, epochs, config.tuning_rate)
    tx = optax.adamw(rate, weight_decay=config.tuning_decay)
    return Plan(model, cross_entropy(model), tx, images, epochs, begin)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train from scratch, on features and on, with sets of several sizes."""
    network = backbones.backbone(config.backbone, config.weights)
    parts = cut_backbone(network, config.fine_tune_from, config.image_size)
    given = {"counts": config.sizes, "seeds": config.seeds, "seed": config.seed}
    read = functools.partial(read_image_subsets, config.data, config.folder, **given)
    images, small = read(config.image_size), read(config.small_size)
    parts.show_summary(run, len(images.classes))
    tuning.save_classes(run, images)
    fill = augment.background(x := images.sets["train"]["x"])
    versions = Versions(config.versions, LAYERS, fill, config.seed)
    inputs = parts.for_rest(images, versions)
    controls = {
        "random weights": backbones.untrained(network, x, config.seed),
        "equal resolution": backbones.at_resolution(network, config.small_size),
    }
    features = {k: parts.features(images, versions, n) for k, n in controls.items()}
    features["frozen"] = parts.by_rest(inputs)
    train = functools.partial(sizes.train_arm, run, config.seed, config.batch_size)
    trained = {"scratch": train("scratch", from_scratch(small, config, fill))}
    epochs = config.regression_epochs + config.tuning_epochs
    for arm, plan in regressions(features, config, epochs).items():
        trained[arm] = train(arm, plan)
    test_x, weights = features["frozen"].sets["test"]["x"], trained["frozen"].state[1:3]
    p = tuning.class_probabilities(*weights, images.largest, test_x)
    draw_predictions(run, images.sets["test"], images.classes, p)
    plan = regressions(features, config, config.regression_epochs)["frozen"]
    head = train("head", plan).state
    begin = functools.partial(tuning.gone_on, trained=head)
    plan = going_on(plan.model, begin, features["frozen"], config)
    trained[ALONE] = train(ALONE, plan)
    model = compose(backbones.pretrained(parts.rest, network.weights), plan.model)
    begin = functools.partial(tuning.with_regression, trained=head)
    trained["fine-tuned"] = train("fine-tuned", going_on(model, begin, inputs, config))

    by_epoch = {arm: of_arm.accuracy for arm, of_arm in trained.items()}
    test, counts = sizes.end_test(by_epoch), images.sizes
    sizes.draw_epochs(run, counts, counts.index(max(counts)), by_epoch)
    near = {n: test[a] - test[b] for n, (a, b) in GAINS.items() if n != BY_WEIGHTS}
    levels = {"majority class": images.majority_accuracy}, {"0": 0.0, "-0.01": -0.01}
    sizes.draw_sizes(run, counts, test, near, *levels)
    result = sizes.size_metrics(counts, test, GAINS)
    tuned = [result[f"{n} images: gained by fine-tuning"] for n in counts]
    result[LEAST] = min(tuned, key=lambda gain: -1 if gain.low is None else gain.low)
    return {"majority class: test accuracy": images.majority_accuracy, **result}


def predict(saved: Saved[Config], files: tuple[Path, ...]) -> None:
    """The class of images FILE..., by the regression on frozen features."""
    config = saved.config
    network = backbones.backbone(config.backbone, config.weights)
    size, seeds = config.image_size, config.seeds
    tuning.predict_files(saved, network, files, "frozen", size=size, seeds=seeds)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
