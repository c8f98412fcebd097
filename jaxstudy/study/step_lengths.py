"""How long an optimizer's step is, weight by weight: |change| / |gradient|."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy.runs.run import SubRun
from jaxstudy.study.problems import Problem, make_init
from jaxstudy.training import TrainStep, fit, make_train_step
from jaxstudy.types import Batch, Mean, Metrics, TrainState

# Optimizers whose every weight has a step length of its own, and how they are made
# here. AdaGrad's sum begins at 0, as in the paper: the usual 0.1 hides what the small
# gradients of the digits add to it.
DIAGONAL: dict[str, dict[str, float]] = {
    "sgd": {}, "adagrad": {"start": 0.0}, "rmsprop": {}, "adadelta": {}
}  # fmt: skip


def with_step_lengths(
    problem: Problem, tx: optax.GradientTransformation, groups: Mapping[str, np.ndarray]
) -> TrainStep:
    """A training step that also measures how long a step is, by group of inputs.

    log10(|change| / |gradient|) of the first layer's weights, averaged over those whose
    gradient is not 0.
    """
    plain = make_train_step(problem.objective, tx)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        after, measured = plain(state, batch)
        key = jax.random.fold_in(state.key, state.step)
        slope, _ = jax.grad(problem.objective, has_aux=True)(
            state.params, state.extra, batch, key
        )
        old, new, g = (
            p["hidden_1"]["kernel"] for p in (state.params, after.params, slope)
        )
        moved = (jnp.abs(g) > 1e-12) & (new != old)
        length = jnp.log10(jnp.abs(jnp.where(moved, (new - old) / g, 1.0)))
        steps = {
            f"log step, {name}": Mean(
                jnp.sum(length[rows]), jnp.sum(moved[rows], dtype=jnp.float32)
            )
            for name, rows in groups.items()
        }
        return after, {**measured, **steps}

    return train_step


def pixel_groups(x: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels of images [N, pixels] that are seldom inked, and those that mostly are."""
    inked = (x > 0).mean(0)
    seldom = np.flatnonzero((inked > 0) & (inked < 0.05))
    return {"rare": seldom, "frequent": np.flatnonzero(inked > 0.8)}


class StepLengths(NamedTuple):
    """Mean lengths of steps by time: epochs [E], and of each group lengths [E, S]."""

    epochs: np.ndarray
    lengths: dict[str, np.ndarray]

    def growth(self, group: str) -> np.ndarray:
        """The length at the end / that at the start [S]."""
        return self.lengths[group][-1] / self.lengths[group][0]


def step_lengths(
    problem: Problem,
    tx: optax.GradientTransformation,
    groups: Mapping[str, np.ndarray],
    *,
    seed: int,
    seeds: int,
    log: SubRun,
) -> StepLengths:
    """Train from so many seeds, and measure every four steps."""
    keys = jax.random.split(jax.random.key(seed), (seeds, 3))
    params, extra = make_init(problem.model)(keys[:, 0])
    opt_state = jax.vmap(tx.init)(params)
    state = TrainState(
        jnp.zeros(seeds, jnp.int32), params, extra, opt_state, keys[:, 2]
    )
    rows = fit(
        state,
        with_step_lengths(problem, tx, groups),
        problem.train,
        key=keys[:, 1],
        epochs=problem.epochs,
        batch_size=problem.batch_size,
        chunk_steps=4,
        log=log,
    ).records
    lengths = {g: 10 ** np.array([r[f"log step, {g}"] for r in rows]) for g in groups}
    return StepLengths(np.array([row["epoch"] for row in rows]), lengths)
