"""Lesson 2.0 and 2.1: why images are convolved and pooled.

A dense network and four convolutional ones of as many parameters learn Fashion-MNIST,
and are tested on images shifted by 0 to 6 pixels. The weights of a dense network belong
to one position each; a convolution uses the same few everywhere, and pooling (by
maximum, by average, over the whole map, or none) forgets where exactly it found
something. Figures show pixels as numbers first. The full preset also trains a network
as practice does. `--data tfds:NAME` takes any image-classification set of TFDS.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, get_args

import jax
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.dataset import evenly_spaced, take
from jaxstudy.images import figures
from jaxstudy.images.augment import Flip, Translation, augmented, shift_curve
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import ImageSplits, at_most, image_splits
from jaxstudy.model import Model, parameter_count
from jaxstudy.models.cnn import cnn, matched_cnn, practised_cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.export import Predictor, seeds_predictor
from jaxstudy.runs.lesson import Claim, Lesson, paired_differences
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import SHARE, SHARE_DIFFERENCE, Estimate, mean_over_runs
from jaxstudy.study.sizes import mean_line
from jaxstudy.training import EvalStep, Evaluator
from jaxstudy.types import TrainState

Name = Literal[
    "dense", "no pooling", "max pooling", "average pooling",
    "global average pooling", "practised network",
]  # fmt: skip
POOLED: tuple[Name, ...] = ("max pooling", "average pooling", "global average pooling")
COMPARED: tuple[Name, ...] = ("dense", "no pooling", *POOLED)
PRACTISED: Name = "practised network"
SHIFTED = "accuracy, shifted by 3 pixels"
LOWEST = "lowest of the poolings"
LEAST = f"{LOWEST} - no pooling: {SHIFTED}"
PAIRS = (("max pooling", "dense"), *((n, "no pooling") for n in (*POOLED, LOWEST)))
ALL_IMAGES = "all images, max pooling: test accuracy"
MINUTES = f"{PRACTISED}: minutes of training"
LESSON = Lesson(
    number="2.0, 2.1",
    title="Convolution and pooling",
    question="What do convolution and pooling buy?",
    metrics=(
        "max pooling: test accuracy",
        "dense: test accuracy",
        f"max pooling: {SHIFTED}",
        f"dense: {SHIFTED}",
        LEAST,
        *(f"{name}: {SHIFTED}" for name in ("no pooling", *POOLED[1:])),
        *(f"{name}: test accuracy" for name in (PRACTISED, "no pooling", *POOLED[1:])),
        f"{PRACTISED}: {SHIFTED}",
        *(MINUTES, ALL_IMAGES),
        *(f"{name}: parameters" for name in get_args(Name)),
    ),
    claims=(
        Claim("On test images as they are, convolution with max pooling has a higher "
              "accuracy than a dense network with as many parameters.",
              ("max pooling: test accuracy", "dense: test accuracy"), ">"),
        Claim("Shifted by 3 pixels, max pooling is more accurate than dense, too.",
              (f"max pooling: {SHIFTED}", f"dense: {SHIFTED}"), ">"),
        Claim("On images shifted by 3 pixels, even the lowest of the three poolings, "
              "chosen anew for each seed, has a higher accuracy than no pooling.",
              (LEAST, 0.0), ">"),
        Claim("Trained on all images, the small network with max pooling has a test "
              "accuracy above 0.915.", (ALL_IMAGES, 0.915), ">"),
        Claim("A network of under half a million parameters, trained as in practice, "
              "has a test accuracy above 0.930.",
              (f"{PRACTISED}: test accuracy", 0.930), ">"),
    ),
    figures={
        "pixels": "A test image, and a part of it with its numbers: 0 is black, 255 is "
        "white. This is all that a network gets.",
        "shifts": "Accuracy on the same test images shifted by 0 to 6 pixels, the mean "
        "of four directions, with 95 % intervals. The slower a line falls, the less "
        "its network depends on the position of the garment.",
        "compared": "Left: accuracy on the test set with 95 % intervals; dashed: what "
        "claims ask, 0.915 of max pooling and 0.93 of the practised network. Right: "
        "differences, paired by seed: right of 0 the first network is better.",
        "planes": "A colour image is three planes of numbers, for red, green and blue. "
        "In the enlarged part, the three numbers of a place make its colour. "
        "(Photograph: `flower.jpg` of scikit-learn, CC BY 2.0.)",
        "convolution": "A part of the image, a filter, and what it makes of each place "
        "and its neighbours: red where it is brighter to the right, blue where to the "
        "left. Padding `same` puts zeros around, which look like an edge, and keeps "
        "the size; `valid` loses the border. ReLU makes 0 of what is below, and "
        "pooling takes the largest of each 2 x 2.",
        "maps_1": "First layer of the trained network with max pooling. A column is "
        "one filter: the image, its weights (red above 0, blue below), the map it "
        "makes, that map pooled; maps from 0 (black) to their largest value (white). "
        "The filters are chosen: of the half with the most contrast, those whose maps "
        "differ most.",
        "maps_2": "The second layer alike. A filter looks at all pooled maps of the "
        "first at once; the upper rows show the one it gives the largest weights.",
    },
    try_it={
        "--images 500": "Few images: all networks should lose, and intervals overlap.",
        "--seeds 8": "Twice the seeds and the time: intervals 0.6 times as wide.",
        "--epochs 4": "Trained longer, accuracy should grow most without a shift.",
    },
)  # fmt: skip

LAYERS, DECAY = (Flip(), Translation(0.07, 0.07)), 0.05  # of the practised network
VALIDATED = 1_000  # images of the validation set, after every epoch


@dataclass(frozen=True)
class Config(Settings):
    """The images, how long to train on them, and how far to move them."""

    data: str = "fashion_mnist"
    """fashion_mnist, emoji, or tfds:NAME."""
    images: Count | None = 8_000
    """Images to learn from; None: all of them."""
    epochs: Count = 1
    """Passes over them."""
    networks: tuple[Name, ...] = COMPARED
    """Which networks to train."""
    batch_size: Count = 16
    """Images in a gradient step."""
    rate: Positive = 0.001
    """Learning rate of Adam at the start; it falls to 0 as a cosine."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each network; an even number shares two cores evenly."""
    practised_epochs: Count = 9
    """Passes of the practised network, which trains in batches of 128."""
    practised_rate: Positive = 0.005
    """Its learning rate after the warm-up, a quarter of all steps."""
    practised_seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Its trainings."""
    shifts: Annotated[int, pydantic.Field(ge=0)] = 6
    """Pixels the test images are shifted by, at most."""
    shifted_images: Count = 200
    """Test images that are shifted: each up, down, left and right."""
    test_images: Count = 2_000
    """Test images in all, at most."""


PRESETS = {
    "smoke": Config(
        images=256, shifts=1, shifted_images=100, test_images=200,
        networks=("dense", "max pooling"), seeds=2,
    ),
    "quick": Config(),
    "full": Config(
        images=None, epochs=4, batch_size=64, networks=get_args(Name),
        shifted_images=1000, test_images=10_000,
    ),
}  # fmt: skip


def train(
    name: Name, model: Model, config: Config, data: ImageSplits, run: Run
) -> tuple[TrainState, EvalStep]:
    """Train one network with every seed, each a replica."""
    epochs, batch_size, seeds = config.epochs, config.batch_size, config.seeds
    if name == PRACTISED:
        epochs, batch_size, seeds = config.practised_epochs, 128, config.practised_seeds
    steps = epochs * -(-len(data.train.indices) // batch_size)
    tx = optax.adam(optax.cosine_decay_schedule(config.rate, steps))
    plain = objective = cross_entropy(model)
    if name == PRACTISED:
        peak, warmup = config.practised_rate, steps // 4
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
        tx = optax.adamw(rate, weight_decay=DECAY)
        objective = augmented(plain, LAYERS)
    eval_step = training.make_eval_step(plain)
    validation = Evaluator(eval_step, evenly_spaced(data.validation, VALIDATED), 500)
    fitted = training.train_seeds(
        model, objective, tx, data.train, seed=config.seed, seeds=seeds, epochs=epochs,
        batch_size=batch_size, evaluators={"validation": validation},
        evaluate_first=False, log=run.sub_run(name.replace(" ", "_")),
    )  # fmt: skip
    return fitted.state, eval_step


def lowest_gain(accuracy: dict[Name, np.ndarray]) -> Estimate:
    """The lowest accuracy of the poolings less that of no pooling, [seed] each."""
    lowest = np.min([accuracy[name] for name in POOLED], axis=0)
    gains = lowest - accuracy["no pooling"]
    return mean_over_runs(gains, SHARE_DIFFERENCE, "seeds, paired")


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Draw what pixels are; train every network, test it on shifted images, draw."""
    data = image_splits(read_images(config.data), limit=config.images)
    image = take(data.test, np.asarray(data.test.indices[:1]))["x"]
    figures.draw_what_pixels_are(run, image[0])
    test = evenly_spaced(data.test, config.test_images)
    count, there = config.shifted_images, len(data.test.indices)
    count = at_most("--shifted-images", count, there, "test images")
    few, pixels = evenly_spaced(data.test, count), range(config.shifts + 1)
    result: dict[str, Estimate | float] = {}
    curves: dict[Name, list[np.ndarray]] = {}
    for name in run.each(config.networks):
        make = practised_cnn if name == PRACTISED else partial(matched_cnn, name)
        model = make(data.shape, len(data.classes))
        state, eval_step = train(name, model, config, data, run)
        whole = np.array(Evaluator(eval_step, test, 500)(state)["accuracy"])
        result[f"{name}: test accuracy"] = mean_over_runs(whole, SHARE)
        curves[name] = shift_curve(eval_step, state, few, pixels)
        if config.shifts >= 3:
            result[f"{name}: {SHIFTED}"] = mean_over_runs(curves[name][3], SHARE)
        result[f"{name}: parameters"] = float(parameter_count(model))
        if name == "max pooling":
            shown = cnn(data.shape, len(data.classes), capture=True)
            _, params, extra, *_ = jax.tree.map(lambda a: a[0], state)
            figures.draw_maps(run, shown, params, extra, image)
    if config.shifts >= 3 and {"no pooling", *POOLED} <= set(curves):
        result[LEAST] = lowest_gain({name: curve[3] for name, curve in curves.items()})
    if config.images is None and "max pooling" in curves:
        result[ALL_IMAGES] = result["max pooling: test accuracy"]
    if PRACTISED in curves:
        result[MINUTES] = run.sub_run("practised_network").timing.train_s / 60
    lines = {name: mean_line(pixels, curve) for name, curve in curves.items()}
    title = f"{count:,} test images, shifted"
    panel = plots.Panel(title, "shift [pixels]", "test accuracy", lines)
    plots.save_lines(run, "shifts", [panel])
    claimed = [float(c.metrics[1]) for c in LESSON.claims[3:] if c.metrics[0] in result]
    whole = {name: result[f"{name}: test accuracy"] for name in curves}
    gaps = paired_differences(result, PAIRS, SHIFTED)
    plots.save_estimates(run, "compared", [
        plots.EstimatePanel("not shifted", "test accuracy", whole, False, 0, claimed),
        plots.EstimatePanel("shifted by 3 pixels", "difference in accuracy", gaps),
    ])  # fmt: skip
    return result


def predictor(saved: Saved[Config]) -> Predictor:
    """Probabilities [B, K] with max pooling, from pixels 0 to 255, [B, H, W, C]."""
    data = image_splits(read_images(saved.config.data))
    model = matched_cnn("max pooling", data.shape, len(data.classes))
    return seeds_predictor(saved, "max_pooling", model, data.shape)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
