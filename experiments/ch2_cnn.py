"""Lesson 2.0 and 2.1: why images are convolved and pooled.

A dense network on the flattened image and a convolutional one of the same number of
parameters learn Fashion-MNIST; both are then tested on images shifted by 0 to 6 pixels.
The weights of a dense network belong to one position each; a convolution uses the same
few weights everywhere, and pooling forgets where exactly it found something. Pooling by
maximum, by average and none are compared, and padding "SAME" with "VALID"; a figure
shows a real image after every layer.
`--data tfds:NAME` takes any image-classification set of TFDS.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.dataset import evenly_spaced, take
from jaxstudy.images.augment import on_shifted
from jaxstudy.images.figures import draw_maps
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import ImageSplits, at_most, image_splits
from jaxstudy.model import Model, parameter_count
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import SHARE, Estimate, mean_over_runs
from jaxstudy.training import EvalStep, Evaluator
from jaxstudy.types import TrainState

LESSON = Lesson(
    number="2.0, 2.1",
    title="Convolution and pooling",
    question="What do convolution and pooling buy?",
    metrics=(
        "flatten: test accuracy",
        "max pooling: test accuracy",
        "average pooling: test accuracy",
        "no pooling: test accuracy",
        "max pooling, valid: test accuracy",
        "flatten: accuracy, shifted by 3 pixels",
        "max pooling: accuracy, shifted by 3 pixels",
        "average pooling: accuracy, shifted by 3 pixels",
        "no pooling: accuracy, shifted by 3 pixels",
        "max pooling, valid: accuracy, shifted by 3 pixels",
    ),
    claims=(
        Claim(
            "On test images as they are, convolution with max pooling has a higher "
            "accuracy than a dense network with as many parameters.",
            ("max pooling: test accuracy", "flatten: test accuracy"),
            ">",
        ),
        Claim(
            "So it has on images shifted by 3 pixels.",
            (
                "max pooling: accuracy, shifted by 3 pixels",
                "flatten: accuracy, shifted by 3 pixels",
            ),
            ">",
        ),
        Claim(
            "On images shifted by 3 pixels, max pooling has a higher accuracy than "
            "average pooling.",
            (
                "max pooling: accuracy, shifted by 3 pixels",
                "average pooling: accuracy, shifted by 3 pixels",
            ),
            ">",
        ),
    ),
    figures={
        "shifts": "Accuracy on the same test images shifted by 0 to 6 pixels, the mean "
        "of four directions, with 95 % intervals over seeds or, under four seeds, a "
        "dash for each. The slower a line falls, the less its network depends on the "
        "position of the garment.",
        "maps_*": "One test image, and the eight channels with the most contrast after "
        "each convolution and pooling of a trained network, each drawn from its least "
        "(black) to its greatest value (white). Each filter answers to another "
        "feature, such as edges of one direction; pooling halves height and width. "
        "`valid` padding also cuts the border.",
    },
    try_it={
        "--shifts 3 --shifted-images 1000": "More images for the shift curve: its "
        "intervals shrink a little, and what seeds differ by remains.",
        "--seeds 4": "Four seeds are the fewest for which a claim is judged: the same "
        "training, twice as long.",
        "--epochs 6": "Longer training on the same images: the accuracy without a "
        "shift should grow most, and that of shifted images less.",
    },
)

Name = Literal[
    "flatten", "max pooling", "average pooling", "no pooling", "max pooling, valid"
]
NETWORKS: dict[Name, dict[str, Any]] = {
    "max pooling": {},
    "average pooling": {"pool": "average"},
    "no pooling": {"pool": "none"},
    "max pooling, valid": {"padding": "VALID"},
}
SHOWN: dict[Name, str] = {
    "max pooling": "maps_same",
    "max pooling, valid": "maps_valid",
}


@dataclass(frozen=True)
class Config(Settings):
    """The images, how long to train on them, and how far to move them."""

    data: str = "fashion_mnist"
    """fashion_mnist, emoji, or tfds:NAME."""
    images: Count | None = 2_000
    """Images to learn from; None: all of them."""
    epochs: Count = 3
    """Passes over them."""
    networks: tuple[Name, ...] = tuple(n for n in get_args(Name) if n != "no pooling")
    """Which networks to train; no pooling takes half of the time of all."""
    batch_size: Count = 64
    """Images in a gradient step."""
    rate: Positive = 0.001
    """Learning rate of Adam."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each network; an even number shares two cores evenly."""
    shifts: Annotated[int, pydantic.Field(ge=0)] = 6
    """Pixels the test images are shifted by, at most."""
    shifted_images: Count = 200
    """Test images that are shifted: each up, down, left and right."""
    test_images: Count = 10_000
    """Test images in all, at most."""


PRESETS = {
    "smoke": Config(
        images=256,
        epochs=1,
        shifts=1,
        shifted_images=100,
        test_images=200,
        networks=("flatten", "max pooling"),
    ),
    "quick": Config(),
    "full": Config(
        images=10_000,
        epochs=5,
        networks=get_args(Name),
        seeds=4,
        shifted_images=1000,
    ),
}


def build(name: Name, shape: tuple[int, int, int], classes: int) -> Model:
    """A convolutional network, or a dense one with as many parameters."""
    if name != "flatten":
        return cnn(shape, classes, **NETWORKS[name])
    count = parameter_count(cnn(shape, classes))
    width = count // (math.prod(shape) + classes + 1)
    return cnn(shape, classes, filters=(), hidden=(width,))


def train(
    name: str, model: Model, config: Config, data: ImageSplits, run: Run
) -> tuple[TrainState, EvalStep]:
    """Train one network with every seed, each a replica."""
    objective = cross_entropy(model)
    eval_step = training.make_eval_step(objective)
    validation = evenly_spaced(data.validation, len(data.train.indices))
    fitted = training.train_seeds(
        model,
        objective,
        optax.adam(config.rate),
        data.train,
        seed=config.seed,
        seeds=config.seeds,
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={"validation": Evaluator(eval_step, validation, 500)},
        evaluate_first=False,
        log=run.sub_run(name.replace(" ", "_")),
    )
    return fitted.state, eval_step


def shift_curve(
    eval_step: EvalStep, state: TrainState, data: ImageSplits, config: Config
) -> list[np.ndarray]:
    """Accuracies [seed] on images shifted by 0, 1, ... pixels, over four directions."""
    few = evenly_spaced(data.test, config.shifted_images)
    shifted, curve = on_shifted(eval_step), []
    for pixels in range(config.shifts + 1):
        found = []
        for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1))[: 4 if pixels else 1]:
            steps = [jnp.full(config.seeds, pixels * d) for d in (dy, dx)]
            values = Evaluator(shifted, few, 500, args=tuple(steps))(state)
            found.append(values["accuracy"])
        curve.append(np.mean(found, axis=0))
    return curve


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network, test it on shifted images, draw."""
    images = read_images(config.data)
    data = image_splits(images, limit=config.images)
    test = evenly_spaced(data.test, config.test_images)
    shifted = at_most(
        "--shifted-images", config.shifted_images, len(data.test.indices), "test images"
    )
    config = dataclasses.replace(config, shifted_images=shifted)
    result: dict[str, Estimate | float] = {}
    states, curves = {}, {}
    for name in config.networks:
        model = build(name, data.shape, len(data.classes))
        states[name], eval_step = train(name, model, config, data, run)
        whole = Evaluator(eval_step, test, 500)(states[name])
        result[f"{name}: test accuracy"] = mean_over_runs(
            np.array(whole["accuracy"]), SHARE
        )
        curve = shift_curve(eval_step, states[name], data, config)
        curves[name] = [mean_over_runs(found, SHARE) for found in curve]
        if config.shifts >= 3:
            result[f"{name}: accuracy, shifted by 3 pixels"] = curves[name][3]
        result[f"{name}: parameters"] = float(parameter_count(model))
    pixels = list(range(config.shifts + 1))
    title = f"{config.shifted_images} test images, shifted"
    lines = {name: (pixels, curve) for name, curve in curves.items()}
    panel = plots.Panel(title, "shift [pixels]", "accuracy", lines)
    plots.save_lines(run, "shifts", [panel])
    image = take(data.test, np.asarray(data.test.indices[:1]))["x"]
    for name, figure in SHOWN.items():
        if name not in states:
            continue
        shown = cnn(data.shape, len(data.classes), **NETWORKS[name], capture=True)
        _, params, extra, *_ = jax.tree.map(lambda a: a[0], states[name])
        draw_maps(run, figure, shown, params, extra, image)
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
