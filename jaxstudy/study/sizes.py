"""Arms of a comparison by the number of training examples, and by epoch."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy import training
from jaxstudy.dataset import BatchIndices, Dataset, gather
from jaxstudy.images.subsets import ImageSubsets
from jaxstudy.model import Model
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    Range,
    mean_over_runs,
)
from jaxstudy.types import Objective, TrainState


def accuracies(
    records: Sequence[Mapping[str, Any]], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The accuracy on each set after each epoch, [epochs, *shape], of `fit`'s records.

    shape: of the replicas, such as (sizes, seeds).
    """
    values: dict[str, list[Any]] = {}
    for record in records:
        values.setdefault(record["split"], []).append(record["accuracy"])
    return {split: np.reshape(v, (-1, *shape)) for split, v in values.items()}


class TrainedSizes(NamedTuple):
    """The weights of every size and seed, and the accuracy after each epoch.

    accuracy [epochs, sizes, seeds], by set; where there are several arms in one
    training, [epochs, sizes, seeds, arms].
    """

    state: TrainState
    accuracy: dict[str, np.ndarray]


Begin = Callable[[TrainState], TrainState]


class Plan(NamedTuple):
    """What is trained on subsets of several sizes.

    model: its first state is changed by `begin`, of all replicas; objective: minimised,
    and evaluated on the validation and the test set after every epoch; tx: the
    optimizer; images: what every replica learns from; epochs: over the largest size.
    """

    model: Model
    objective: Objective
    tx: optax.GradientTransformation
    images: ImageSubsets
    epochs: int
    begin: Begin = lambda state: state


def train_sizes(
    plan: Plan,
    *,
    seed: int,
    train_step: training.TrainStep | None = None,
    arms: int = 1,
    **options: Any,
) -> TrainedSizes:
    """`fit` on subsets of every size and seed, each a replica of one program.

    A seed fixes the images, the first weights and the order, whatever the size: arms
    are compared in pairs.

    Args:
        plan: what is trained.
        seed: fixes all first weights and orders.
        train_step: in the place of that of the objective and the optimizer.
        arms: trainings of every size and seed; where there are several, the number of
            the arm is the third argument of `train_step`.
        options: of `fit`.
    """
    model, objective, tx, images, epochs, begin = plan
    sizes, seeds = images.indices.shape[:2]
    numbers = jnp.tile(jnp.repeat(jnp.arange(seeds), arms), sizes)
    keys = jax.random.split(jax.random.key(seed), (seeds, 2))[numbers]
    arm = jnp.arange(len(numbers)) % arms
    data, held_out = images.datasets(arms)
    eval_step = training.make_eval_step(objective)
    fitted = training.fit(
        begin(training.init_replicas(model, tx, keys[:, 0])),
        train_step or _train_step(objective, tx),
        data,
        key=keys[:, 1],
        epochs=epochs,
        evaluators={
            name: training.Evaluator(eval_step, part, 500)
            for name, part in held_out.items()
        },
        replicas=training.Replicas((arm,)) if arms > 1 else training.ALONE,
        evaluate_first=False,
        **options,
    )
    shape = (sizes, seeds, arms) if arms > 1 else (sizes, seeds)
    return TrainedSizes(fitted.state, accuracies(fitted.records, shape))


# The same one for the same plan: on other data, it is not compiled again.
_train_step = functools.lru_cache(maxsize=2)(training.make_train_step)


def cosine(
    images: ImageSubsets, batch_size: int, epochs: int, rate: float
) -> optax.Schedule:
    """A learning rate that falls to 0 at the end of the last epoch."""
    steps = -(-images.rows.shape[1] // batch_size)
    return optax.cosine_decay_schedule(rate, epochs * steps)


def train_arm(
    run: Run, seed: int, batch_size: int, arm: str, plan: Plan
) -> TrainedSizes:
    """`train_sizes` as a sub-run of the arm's name."""
    log = run.sub_run(arm)
    return train_sizes(plan, seed=seed, batch_size=batch_size, log=log)


def seconds_of_steps(
    train_step: training.TrainStep,
    state: TrainState,
    data: Dataset,
    *,
    batch_size: int,
    arms: int,
    turns: int = 20,
) -> np.ndarray:
    """What a step of each arm takes, [turns, arms].

    The arms take turns: other load slows all of them alike.

    Args:
        train_step: takes a state, a batch and the number of the arm.
        state: of one training; every step begins with it.
        data: its first rows are the batch, repeated where there are too few.
        batch_size: rows in the batch.
        arms: how many there are.
        turns: steps of each arm; one before them warms up.
    """
    rows = jnp.resize(data.indices.ravel(), (batch_size,))
    batch = gather(data.arrays, BatchIndices(rows, jnp.ones(batch_size, bool)))
    step = jax.jit(train_step).lower(state, batch, jnp.int32(0)).compile()
    times = [time.perf_counter()]
    for turn in range((1 + turns) * arms):
        jax.block_until_ready(step(state, batch, jnp.int32(turn % arms)))
        times.append(time.perf_counter())
    return np.diff(times).reshape(-1, arms)[1:]


def end_test(
    by_epoch: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Each arm's test accuracy [sizes, seeds] after its last epoch."""
    return {arm: accuracy["test"][-1] for arm, accuracy in by_epoch.items()}


def last_rise(accuracy: np.ndarray) -> np.ndarray:
    """Accuracy [epochs, ...] in the last eighth of the epochs less the eighth before.

    Near 0, training has come to its end.
    """
    n = max(1, len(accuracy) // 8)
    return accuracy[-n:].mean(0) - accuracy[-2 * n : -n].mean(0)


def size_metrics(
    sizes: Sequence[int],
    test: Mapping[str, np.ndarray],
    gains: Mapping[str, tuple[str, str]],
) -> dict[str, Estimate]:
    """The test accuracy [sizes, seeds] of every arm, and what one gains over another.

    gains: by the name of the difference, which is paired by seed, both arms.
    """
    result = {}
    for i, size in enumerate(sizes):
        for arm, values in test.items():
            estimate = mean_over_runs(values[i], SHARE)
            result[f"{size} images, {arm}: test accuracy"] = estimate
        for name, (gained, over) in gains.items():
            result[f"{size} images: {name}"] = mean_over_runs(
                test[gained][i] - test[over][i], SHARE_DIFFERENCE, "seeds, paired"
            )
    return result


def mean_line(
    x: Sequence[float], values: Iterable[np.ndarray], within: Range = SHARE
) -> plots.Line:
    """A line through the means of values [x, seeds], with their intervals."""
    return x, [mean_over_runs(value, within) for value in values]


def draw_epochs(
    run: Run,
    sizes: Sequence[int],
    shown: int,
    arms: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Accuracy by epoch with sizes[shown] images, as curves.png.

    arms: of each the accuracy by set, [epochs, sizes, seeds].
    """
    panels = []
    for split, name in (("train", "training"), ("validation", "validation")):
        values = {arm: of_arm[split][:, shown] for arm, of_arm in arms.items()}
        lines = {arm: mean_line(range(1, len(v) + 1), v) for arm, v in values.items()}
        title = f"{sizes[shown]:,} images, {name}"
        panels.append(plots.Panel(title, "epoch", "accuracy", lines))
    plots.save_lines(run, "curves", panels)


def draw_sizes(
    run: Run,
    sizes: Sequence[int],
    test: Mapping[str, np.ndarray],
    gains: Mapping[str, np.ndarray],
    levels: Mapping[str, float],
    gain_levels: Mapping[str, float],
) -> None:
    """Test accuracy [sizes, seeds] of every arm and, beside it, gains, as sizes.png.

    gains: of one arm over another, paired by seed; levels and gain_levels: what
    accuracies and gains are compared with.
    """
    label, scales = "images to learn from", ("log", "linear")
    arms = {arm: mean_line(sizes, values) for arm, values in test.items()}
    paired = {n: mean_line(sizes, v, SHARE_DIFFERENCE) for n, v in gains.items()}
    plots.save_lines(run, "sizes", [
        plots.Panel("", label, "test accuracy", arms, scales, "", levels),
        plots.Panel("paired by seed", label, "test accuracy gained", paired, scales,
                    "", gain_levels),
    ])  # fmt: skip
