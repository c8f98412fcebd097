"""Lesson 5, orders: in which order should D see real and generated images?

"Training on real images first biases D: mix them", says the course. Small networks are
trained so, in the course's order (a batch of real images, then one of generated ones)
and on mixed batches, each with every seed; also without BatchNorm, and with images for
D by running BatchNorm statistics, as `predict` makes them in the course's Keras code.
Each order is judged by D's accuracy on held-out and generated images, and by the
Frechet distance of G's images to the test set in the features of a CNN.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import jax
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import Dataset, dataset, evenly_spaced, steps_per_epoch, take
from jaxstudy.gan.evaluation import distance_to, resized
from jaxstudy.gan.settings import (
    AVAILABLE,
    GanImages,
    GanSettings,
    evaluation_cnn,
    fit_batch,
    gan_pixels,
    key_for,
    load,
)
from jaxstudy.gan.step import (
    BatchOrder,
    G,
    alternating,
    init_gan_replicas,
    make_gan_eval_step,
    make_gan_step,
    mixed,
    real_first,
)
from jaxstudy.images.splits import at_most
from jaxstudy.model import Model
from jaxstudy.models.dcgan import discriminator, generate, generator, sample_latent
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, REAL, SHARE, Estimate, mean_over_runs
from jaxstudy.training import Evaluator, FitResult, fit
from jaxstudy.types import PyTree

LESSON = Lesson(
    number="5.3",
    title="The order of real and generated images",
    question="In which order should the discriminator see real and generated images?",
    metrics=(
        "real first - alternating: Frechet distance",
        "mixed - alternating: Frechet distance",
        "alternating, no BatchNorm - alternating: Frechet distance",
        "alternating: Frechet distance",
        "real first: Frechet distance",
        "mixed: Frechet distance",
        "alternating, no BatchNorm: Frechet distance",
        "alternating, predicted: Frechet distance",
        "real first: accuracy on real",
        "alternating: accuracy on real",
        "real first: accuracy on fake",
        "alternating: accuracy on fake",
    ),
    claims=(
        Claim("With real images first, the generator's images end farther from the "
              "test images than with alternating batches.",
              ("real first - alternating: Frechet distance", 0), ">"),
        Claim("With real images first, right after its half epoch of generated images, "
              "D takes fewer held-out real images for real than with alternating "
              "batches.",
              ("real first: accuracy on real", "alternating: accuracy on real"), "<"),
        Claim("With mixed batches the generator's images end nearer to the test images "
              "than with alternating batches.",
              ("mixed - alternating: Frechet distance", 0), "<"),
        Claim("Without BatchNorm the generator's images end farther from the test "
              "images.",
              ("alternating, no BatchNorm - alternating: Frechet distance", 0), ">"),
    ),
    figures={
        "variants": "What the first seed's generator makes of the same ten draws of "
        "noise at the end, a row for each order. Compare rows, not single images: "
        "every order has as many updates, of as many images.",
        "differences": "The Frechet distance of each order less that of alternating "
        "batches, paired by seed: right of the line the order is worse. With fewer "
        "than four seeds there is no interval, and each seed is a tick.",
        "intervals": "D's accuracy on held-out real and on generated images, and the "
        "Frechet distance to the test images, by order: means over seeds with 95 % "
        "intervals, or each seed as a tick where there are fewer than four. Real near "
        "0 and fake near 1 is a D that calls everything generated.",
    },
    try_it={
        "--variants alternating mixed --seeds 4": "The course's advice, with enough "
        "seeds for an interval; it takes twice as long as the quick preset.",
        "--rate-d 0.0005": "A slower D: real images first should bias it less, for it "
        "forgets less within half an epoch.",
        "--variant-epochs 8": "Twice the training. If the orders differ by their speed "
        "alone, the differences shrink.",
    },
)  # fmt: skip

Name = Literal[
    "alternating", "real first", "mixed", "alternating, no BatchNorm",
    "alternating, predicted",
]  # fmt: skip
COLUMNS = 10  # of the picture


@dataclass(frozen=True)
class Config(GanSettings):
    """The images, the orders, and how long the networks compete in each.

    The CNN learns from images of --image-size; the networks from smaller ones.
    """

    variants: tuple[Name, ...] = ("alternating", "real first")
    """The orders to compare."""
    variant_size: Count = 16
    """Height and width of the images that the networks learn from, a multiple of 16."""
    variant_images: Count = 640
    """How many of them."""
    variant_epochs: Count = 4
    """Passes over them."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each order; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        image_size=16, images=64, batch_size=16, held_out=32, classifier_epochs=1,
        variant_images=32, variant_epochs=1,
    ),
    "quick": Config(),
    "full": Config(
        image_size=64, images=None, held_out=2_000, variants=get_args(Name),
        variant_size=32, variant_images=6_400, variant_epochs=5, seeds=6,
    ),
}  # fmt: skip


def train_variant(
    name: Name, config: Config, train: Dataset, held_out: Dataset, run: Run
) -> tuple[Model, FitResult]:
    """G, and small networks trained in one of the orders: every seed a replica."""
    shape = (config.variant_size, config.variant_size, config.channels)
    d, g = discriminator(shape), generator(shape, "no BatchNorm" not in name)
    tx_d, tx_g = optax.adam(config.rate_d, b1=0.5), optax.adam(config.rate, b1=0.5)
    steps = steps_per_epoch(len(train.indices), config.batch_size)
    orders: dict[str, BatchOrder] = {"real first": real_first(steps), "mixed": mixed}
    gan_step = make_gan_step(
        d, g, tx_d, tx_g, orders.get(name, alternating),
        use_running_stats="predicted" in name,
    )  # fmt: skip
    keys = jax.random.split(key_for(config.seed, "variants"), (config.seeds, 2))
    eval_step = make_gan_eval_step(d, g, key_for(config.seed, "evaluation"))
    fitted = fit(
        init_gan_replicas(d, g, tx_d, tx_g, keys[:, 0]),
        gan_step,
        train,
        key=keys[:, 1],
        epochs=config.variant_epochs,
        batch_size=config.batch_size,
        evaluators={"validation": Evaluator(eval_step, held_out, 250)},
        evaluate_first=False,
        log=run.sub_run(name.replace(" ", "_"), temporary=True),
    )
    return g, fitted


def compare_variants(
    config: Config, data: GanImages, cnn: PyTree, run: Run
) -> dict[str, Estimate | float]:
    """D's accuracy after training, and the distance of G's images, over the seeds."""
    parts = evenly_spaced(data.train, config.variant_images), data.held_out, data.test
    train, held_out, test = (
        dataset({"x": resized(x, config.variant_size), "row": np.arange(len(x))})
        for x in (take(part, np.asarray(part.indices))["x"] for part in parts)
    )
    z = sample_latent(key_for(config.seed, "judged"), len(test.indices))
    distance = cnn and distance_to(cnn, gan_pixels(test))
    result: dict[str, Estimate | float] = {}
    shown, distances, metrics = [], {}, ["accuracy on real", "accuracy on fake"]
    for name in run.each(config.variants):
        g, fitted = train_variant(name, config, train, held_out, run)
        for metric in metrics:
            values = np.array(fitted.records[-1][metric])
            result[f"{name}: {metric}"] = mean_over_runs(values, SHARE)
        weights = jax.device_get((fitted.state.params[G], fitted.state.extra[G]))
        generated = [
            np.asarray(generate(g, *jax.tree.map(lambda a, i=i: a[i], weights), z))
            for i in range(config.seeds)
        ]
        shown.append(generated[0][:COLUMNS])
        if distance:
            distances[name] = np.array([distance(x) for x in generated])
            mean = mean_over_runs(distances[name], NONNEGATIVE)
            result[f"{name}: Frechet distance"] = mean
    gaps: dict[str, Estimate] = {}
    for name in distances:
        if name != "alternating" and "alternating" in distances:
            difference = distances[name] - distances["alternating"]
            gaps[f"{name} - alternating"] = mean_over_runs(
                difference, REAL, "seeds, paired"
            )
    result |= {f"{name}: Frechet distance": gap for name, gap in gaps.items()}
    if gaps:
        xlabel = "difference in Frechet distance"
        plots.save_differences(run, "differences", gaps, xlabel)
    plots.save_images(run, "variants", shown, rows=config.variants)
    metrics += ["Frechet distance"] if cnn else []
    plots.save_intervals(run, result, config.variants, metrics)
    return result


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the CNN that judges, then the networks in every order."""
    discriminator((config.variant_size, config.variant_size, config.channels))  # valid?
    data = load(config)
    config = fit_batch(config, data)
    size = at_most(
        "--variant-images", config.variant_images, len(data.train.indices), AVAILABLE
    )
    config = dataclasses.replace(config, variant_images=size)
    cnn, accuracy = evaluation_cnn(config, data, run)
    return accuracy | compare_variants(config, data, cnn, run)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
