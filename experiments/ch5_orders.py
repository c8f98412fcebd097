"""Lesson 5, orders: in which order should D see real and generated images?

"Training on real images first biases D: mix them", says the course. Small networks are
trained so, in the course's order (a batch of real images, then one of generated ones)
and on mixed batches, each with every seed; also without BatchNorm, and with images for
D by running BatchNorm statistics, as `predict` makes them in the course's Keras code.
Each order is judged by D's accuracy on held-out and generated images, and by the
Frechet distance of G's images to the test set in the features of a CNN. At full each
has learning rates of its own, chosen by the distance to validation images, with seeds
that are not reported.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import steps_per_epoch
from jaxstudy.gan import settings
from jaxstudy.gan.evaluation import Judge
from jaxstudy.gan.settings import GanImages, GanSettings, gan_pixels, key_for
from jaxstudy.gan.step import (
    BatchOrder,
    alternating,
    init_gan_replicas,
    made_by_each,
    make_gan_eval_step,
    make_gan_step,
    mixed,
    real_first,
)
from jaxstudy.models.dcgan import discriminator, generator, sample_latent
from jaxstudy.records import Record
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, REAL, SHARE, Estimate, mean_over_runs
from jaxstudy.training import Evaluator, Replicas, fit
from jaxstudy.types import Array, Batch, Key, Metrics, TrainState

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
        "every order has as many updates, of as many images. If no row shows garments, "
        "as at quick, the distances are those of generators that have just begun.",
        "differences": "The Frechet distance of each order less that of alternating "
        "batches, paired by seed: right of the line the order is worse. With fewer "
        "than four seeds there is no interval, and each seed is a tick.",
        "intervals": "Left, D's accuracy on held-out real and on generated images "
        "(fake), right, the Frechet distance to the test images, by order: means over "
        "seeds with 95 % intervals, or each seed as a tick where there are fewer than "
        "four. Real near 0 and fake near 1 is a D that calls everything generated.",
    },
    try_it={
        "--variants alternating mixed": "The course's advice.",
        "--rate-d 0.0005": "A slower D: real images first should bias it less, for it "
        "forgets less within half an epoch.",
        "--epochs 8": "Twice the training. If the orders differ by their speed alone, "
        "the differences shrink.",
    },
)  # fmt: skip

Name = Literal[
    "alternating", "real first", "mixed", "alternating, no BatchNorm",
    "alternating, predicted",
]  # fmt: skip
COLUMNS = 10  # of the picture


@dataclass(frozen=True)
class Config(GanSettings):
    """The images, the orders, and how long the networks compete in each."""

    variants: tuple[Name, ...] = ("alternating", "real first")
    """The orders to compare."""
    epochs: Count = 4
    """Passes over the images."""
    factors: tuple[Positive, ...] = (1.0,)
    """Both learning rates are multiplied by the best of these, for each order."""
    tuning_seeds: Count = 2
    """Trainings by which it is chosen, where there are several; none is reported."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each order that are reported."""


PRESETS = {
    "smoke": Config(
        image_size=16, images=32, epochs=1, batch_size=16, held_out=32, seeds=2,
        classifier_images=100, classifier_epochs=1,
    ),
    "quick": Config(image_size=16, images=1_600),
    "full": Config(
        images=6_400, epochs=5, variants=get_args(Name), seeds=6,
        factors=(0.25, 0.5, 1.0, 2.0),
    ),
}  # fmt: skip


class Trained(NamedTuple):
    """The images that each replica's G makes, and the last record of the validation."""

    images: list[np.ndarray]
    record: Record


def train_variant(
    name: Name, config: Config, data: GanImages, key: Key, factors: np.ndarray, run: Run
) -> Trained:
    """Two networks trained in one of the orders, a replica for each of `factors` [L].

    Replicas of the same factor are numbered from 0; key and number fix all else.
    """
    shape = (config.image_size, config.image_size, config.channels)
    d, g = discriminator(shape), generator(shape, "no BatchNorm" not in name)
    steps = steps_per_epoch(len(data.train.indices), config.batch_size)
    orders: dict[str, BatchOrder] = {"real first": real_first(steps), "mixed": mixed}

    def adam(rate: Any) -> optax.GradientTransformation:
        return optax.adam(rate, b1=0.5)

    def gan_step(
        state: TrainState, batch: Batch, factor: Array
    ) -> tuple[TrainState, Metrics]:
        step = make_gan_step(
            d, g, adam(factor * config.rate_d), adam(factor * config.rate),
            orders.get(name, alternating), use_running_stats="predicted" in name,
        )  # fmt: skip
        return step(state, batch)

    numbers = np.array([np.sum(factors[:i] == f) for i, f in enumerate(factors)])
    keys = jax.random.split(key, (len(factors), 2))[numbers]
    eval_step = make_gan_eval_step(d, g, key_for(config.seed, "evaluation"))
    tuned = "" if len({*factors}) == 1 else ", tuning"
    state, records = fit(
        init_gan_replicas(d, g, adam(0.0), adam(0.0), keys[:, 0]),
        gan_step,
        data.train,
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={"validation": Evaluator(eval_step, data.held_out, 250)},
        evaluate_first=False,
        log=run.sub_run(f"{name}{tuned}".replace(" ", "_"), temporary=True),
        replicas=Replicas((jnp.asarray(factors, jnp.float32),), may_diverge=True),
    )
    z = sample_latent(key_for(config.seed, "judged"), config.held_out)
    return Trained(made_by_each(g, state, z), records[-1])


def best_factor(
    name: Name, config: Config, data: GanImages, judge: Judge | None, run: Run
) -> float:
    """That of the learning rates with the least distance to the validation images."""
    if judge is None or len(config.factors) == 1:
        return config.factors[0]
    judge = judge.of(gan_pixels(data.held_out))
    every = np.repeat(config.factors, config.tuning_seeds)
    key = key_for(config.seed, "tuning")
    images, _ = train_variant(name, config, data, key, every, run)
    distances = np.reshape(
        [judge.distance(x) for x in images], (-1, config.tuning_seeds)
    )
    return config.factors[int(distances.mean(1).argmin())]


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the CNN that judges, then the networks in every order; compare."""
    discriminator((config.image_size, config.image_size, config.channels))  # valid?
    data = settings.load(config)
    config = settings.fit_to(config, data)
    judge, accuracy = settings.train_judge(config, data, run)
    result: dict[str, Estimate | float] = {**accuracy}
    shown, distances, metrics = [], {}, ["accuracy on real", "accuracy on fake"]
    for name in run.each(config.variants):
        factor = best_factor(name, config, data, judge, run)
        key, factors = key_for(config.seed, "variants"), np.full(config.seeds, factor)
        images, record = train_variant(name, config, data, key, factors, run)
        result[f"{name}: factor of the rates"] = factor
        for metric in metrics:
            values = np.array(record[metric])
            result[f"{name}: {metric}"] = mean_over_runs(values, SHARE)
        shown.append(images[0][:COLUMNS])
        if judge is not None:
            distances[name] = np.array([judge.distance(x) for x in images])
            mean = mean_over_runs(distances[name], NONNEGATIVE)
            result[f"{name}: Frechet distance"] = mean
    gaps = {
        f"{name} - alternating": mean_over_runs(
            of_order - distances["alternating"], REAL, "seeds, paired"
        )
        for name, of_order in distances.items()
        if name != "alternating" and "alternating" in distances
    }
    result |= {f"{name}: Frechet distance": gap for name, gap in gaps.items()}
    xlabel = "Frechet distance to test images"
    if gaps:
        plots.save_differences(run, "differences", gaps, f"difference in {xlabel}")
    plots.save_images(run, "variants", shown, rows=config.variants)
    panels = [plots.Comparison("accuracy of D [share]", metrics, {"chance": 0.5})]
    if judge is not None:
        panels.append(plots.Comparison(xlabel, ["Frechet distance"]))
    plots.save_comparison(run, "intervals", result, config.variants, panels)
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
