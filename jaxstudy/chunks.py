"""Chunks: how much one dispatch trains, and the program that does it."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstudy.dataset import BatchIndices, BatchRows, Dataset, gather, ordered_batches
from jaxstudy.parallel import Mode, jit_on, replicated, split_rows
from jaxstudy.types import (
    Array,
    Batch,
    EvalStep,
    Metrics,
    PyTree,
    TrainState,
    TrainStep,
)


class Chunk(NamedTuple):
    """How much one dispatch does: `epochs` times `steps` steps.

    `steps` divides an epoch, and is a whole one where `epochs` is over 1.
    """

    steps: int
    epochs: int


def plan_chunk(
    per_epoch: int, epochs: int, start: int, chunk_steps: int, every_epoch: bool
) -> Chunk:
    """One chunk size that reaches every epoch's end, from `start` to the last step."""

    def divisor(n: int, bound: int) -> int:
        return max(d for d in range(1, max(1, min(n, bound)) + 1) if n % d == 0)

    if start % per_epoch or per_epoch > chunk_steps:
        return Chunk(divisor(math.gcd(per_epoch, start), chunk_steps), 1)
    if every_epoch:
        return Chunk(per_epoch, 1)
    left = math.gcd(epochs, start // per_epoch)
    return Chunk(per_epoch, divisor(left, chunk_steps // per_epoch))


def run_steps(
    train_step: TrainStep,
    state: TrainState,
    arrays: Batch,
    batches: BatchIndices | BatchRows,
    args: tuple[PyTree, ...] = (),
    min_rows: int = 0,
) -> tuple[TrainState, Metrics, Array]:
    """One step for each of the batches [S, B] of rows of some arrays, as one scan.

    Returns the state, the summed metrics, and the number of the first batch whose loss
    was not finite (S where all were). A batch of fewer than `min_rows` rows, padding
    apart, changes nothing and counts for nothing: a shorter replica's epoch has some.
    """

    def body(state: TrainState, rows: Any) -> tuple[TrainState, Any]:
        batch = split_rows(gather(arrays, rows))
        after, metrics = replicated(train_step(state, batch, *args))
        if min_rows:
            zeros = jax.tree.map(jnp.zeros_like, metrics)
            taken = jnp.sum(rows.mask) >= min_rows
            after, metrics = jax.tree.map(
                functools.partial(jnp.where, taken), (after, metrics), (state, zeros)
            )
        return after, (metrics, jnp.isfinite(metrics["loss"].total))

    state, (metrics, finite) = jax.lax.scan(body, state, batches)
    failed = jnp.argmin(jnp.append(finite, False))
    return state, jax.tree.map(lambda a: jnp.sum(a, 0), metrics), failed


def evaluate(
    eval_step: EvalStep,
    state: TrainState,
    data: Dataset,
    args: tuple[PyTree, ...] = (),
    *,
    batch_size: int,
) -> Metrics:
    """The summed metrics of every row of a set, in batches."""

    def sums(rows: BatchIndices) -> Metrics:
        return eval_step(state, split_rows(gather(data.arrays, rows)), *args)

    batches = ordered_batches(data, batch_size)
    if len(batches.indices) == 1:  # no loop
        return sums(jax.tree.map(lambda a: a[0], batches))
    return jax.tree.map(lambda a: jnp.sum(a, 0), jax.lax.map(sums, batches))


@functools.lru_cache(maxsize=4)
def chunk_program(
    train_step: TrainStep,
    eval_steps: tuple[tuple[str, EvalStep, int], ...],
    min_rows: int,
    own: Any,
    mode: Mode,
    mesh: Any,
) -> Any:
    """The jitted chunk: (state, visit, args, sets) -> (state, outputs).

    outputs: (train, examples, failed, evaluations), each with an axis E.
    """

    def program(state: TrainState, visit: Any, args: Any, sets: Any) -> Any:
        arrays, visited = visit

        def epoch(state: TrainState, batches: Any) -> Any:
            state, trained, failed = run_steps(
                train_step, state, arrays, batches, args, min_rows
            )
            evaluations = {}
            for (name, step, size), given in zip(eval_steps, sets, strict=True):
                step_args, fields, rows = given
                data = Dataset(rows.indices, rows.mask, fields)
                evaluations[name] = evaluate(
                    step, state, data, step_args, batch_size=size
                )
            return state, (trained, jnp.sum(batches.mask), failed, evaluations)

        return jax.lax.scan(epoch, state, visited)

    return jit_on(mesh, program, own, mode, donate_argnums=0)
