"""Training: a pure step, and the one loop that runs it.

The step is an ordinary function. `fit` compiles it into chunks with `lax.scan`, donates
the state, and touches the device only at chunk ends.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress as rp

from jaxstudy.data.dataset import (
    BatchRows,
    Dataset,
    epoch_batches,
    gather,
    ordered_batches,
    steps_per_epoch,
)
from jaxstudy.model import Model
from jaxstudy.run import Part, Stopped, Timing
from jaxstudy.types import (
    Array,
    Batch,
    Key,
    Metrics,
    Objective,
    PyTree,
    UserError,
)

NEVER = jnp.iinfo(jnp.int32).max


class TrainState(NamedTuple):
    """Everything a step changes, and the key it derives its randomness from."""

    step: Array
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    key: Key


TrainStep = Callable[..., tuple[TrainState, Metrics]]  # (state, batch, *lane)
EvalStep = Callable[..., Metrics]  # (state, batch, *lane)


def init_state(model: Model, tx: optax.GradientTransformation, key: Key) -> TrainState:
    """A fresh state at step 0; one key fixes both the weights and the later steps."""
    init_key, run_key = jax.random.split(key)
    params, extra = model.init(init_key)
    return TrainState(jnp.int32(0), params, extra, tx.init(params), run_key)


def make_train_step(
    objective: Objective, tx: optax.GradientTransformation
) -> TrainStep:
    """One gradient step as a pure function (state, batch) -> (state, metrics)."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, (extra, metrics) = jax.grad(objective, has_aux=True)(
            state.params, state.extra, batch, key
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, extra, opt_state, state.key), metrics

    return train_step


def make_eval_step(objective: Objective) -> EvalStep:
    """The objective's metrics in evaluation mode, (state, batch) -> metrics."""

    def eval_step(state: TrainState, batch: Batch, *lane: Array) -> Metrics:
        del lane  # what only the training step depends on, a learning rate say
        _, (_, metrics) = objective(state.params, state.extra, batch, None)
        return metrics

    return eval_step


class Lanes(NamedTuple):
    """Independent trainings with a common leading axis L, as one compiled program.

    The state, the data order key and the rows of the data sets have the axis; so has
    each array in `args`, which the steps receive after their batch. "exact" runs lane
    after lane (`lax.map`), every one bit-identical to itself alone, and is the faster
    on a CPU; "fast" runs them abreast (`vmap`), for accelerators. A lane whose loss is
    not finite stops the run, unless it `may_diverge`: then it goes on as it is.
    """

    args: tuple[Array, ...] = ()
    mode: Literal["exact", "fast"] = "exact"
    may_diverge: bool = False


def map_lanes(fn: Callable[..., Any], lane: PyTree, mode: str = "exact") -> Any:
    """`fn` of every lane of a pytree [L, ...]: `lax.map` if exact, `vmap` if fast."""
    return jax.vmap(fn)(lane) if mode == "fast" else jax.lax.map(fn, lane)


def init_lanes(model: Model, tx: optax.GradientTransformation, keys: Key) -> TrainState:
    """A fresh state for every key [L], each the bits of `init_state` alone."""
    return jax.jit(lambda ks: map_lanes(lambda key: init_state(model, tx, key), ks))(
        keys
    )


def run_steps(
    train_step: TrainStep,
    state: TrainState,
    data: Dataset,
    batches: BatchRows,
    args: tuple[Array, ...],
) -> tuple[TrainState, Metrics, Array]:
    """One step for each of the batches [S, B], as one scan: pure.

    Returns the state, the summed metrics, and the first step whose loss was not
    finite (NEVER where all were).
    """

    def body(
        carry: tuple[TrainState, Array], rows: BatchRows
    ) -> tuple[tuple[TrainState, Array], Metrics]:
        state, failed = carry
        after, metrics = train_step(state, gather(data, rows), *args)
        finite = jnp.isfinite(metrics["loss"].total)
        failed = jnp.where(finite, failed, jnp.minimum(failed, state.step))
        return (after, failed), metrics

    (state, failed), metrics = jax.lax.scan(body, (state, jnp.int32(NEVER)), batches)
    return state, jax.tree.map(lambda a: jnp.sum(a, 0), metrics), failed


def evaluate(
    eval_step: EvalStep,
    state: TrainState,
    data: Dataset,
    args: tuple[Array, ...] = (),
    *,
    batch_size: int,
) -> Metrics:
    """The summed metrics of every row of a set, in batches: pure."""
    batches = ordered_batches(data, min(batch_size, len(data.rows)))
    if len(batches.rows) == 1:
        only = jax.tree.map(lambda a: a[0], batches)
        return eval_step(state, gather(data, only), *args)
    metrics = jax.lax.map(
        lambda rows: eval_step(state, gather(data, rows), *args), batches
    )
    return jax.tree.map(lambda a: jnp.sum(a, 0), metrics)


class _Inputs(NamedTuple):
    """What a chunk reads and never changes."""

    key: Key
    args: tuple[Array, ...]
    train: Dataset
    evaluate: dict[str, Dataset]


class _Chunk(NamedTuple):
    """How much one dispatch does: `repeats` times `steps` steps and an evaluation.

    `steps` divides an epoch, and the evaluation happens at the end of one; `repeats`
    is 1 unless `steps` is a whole epoch.
    """

    steps: int
    repeats: int


def _largest_divisor(n: int, bound: int) -> int:
    return max(d for d in range(1, max(1, min(n, bound)) + 1) if n % d == 0)


def plan_chunk(
    per_epoch: int, epochs: int, start: int, chunk_steps: int, every_epoch: bool
) -> _Chunk:
    """One chunk size that reaches every epoch's end, from `start` to the last step."""
    if start % per_epoch or per_epoch > chunk_steps:
        return _Chunk(_largest_divisor(math.gcd(per_epoch, start), chunk_steps), 1)
    if every_epoch:
        return _Chunk(per_epoch, 1)
    left = math.gcd(epochs, start // per_epoch)
    return _Chunk(per_epoch, _largest_divisor(left, chunk_steps // per_epoch))


def _chunk_program(
    chunk: _Chunk,
    train_step: TrainStep,
    eval_step: EvalStep | None,
    batch_size: int,
    eval_batch_size: int,
) -> Callable[[TrainState, _Inputs], Any]:
    """A pure function (state, inputs) -> (state, (train, failed, evaluations))."""

    def measure(state: TrainState, inputs: _Inputs) -> dict[str, Metrics]:
        if eval_step is None:
            return {}
        return {
            name: evaluate(
                eval_step, state, data, inputs.args, batch_size=eval_batch_size
            )
            for name, data in inputs.evaluate.items()
        }

    def program(state: TrainState, inputs: _Inputs) -> Any:
        per_epoch = steps_per_epoch(len(inputs.train.rows), batch_size)

        def order(epoch: Array) -> BatchRows:
            batches = epoch_batches(inputs.train, batch_size, inputs.key, epoch)
            first = state.step % per_epoch
            return jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, first, chunk.steps), batches
            )

        def body(state: TrainState, batches: BatchRows) -> Any:
            state, train, failed = run_steps(
                train_step, state, inputs.train, batches, inputs.args
            )
            if chunk.steps == per_epoch:
                sets = measure(state, inputs)
            else:  # zeros are never read where the epoch goes on
                shapes = jax.eval_shape(measure, state, inputs)
                sets = jax.lax.cond(
                    state.step % per_epoch == 0,
                    lambda: measure(state, inputs),
                    lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes),
                )
            return state, (train, failed, sets)

        # all orders at once: in the loop, shuffling takes a fifth of a small step
        epochs = state.step // per_epoch + jnp.arange(chunk.repeats)
        return jax.lax.scan(body, state, jax.vmap(order)(epochs))

    return program


def _over_lanes(
    program: Callable[[TrainState, _Inputs], Any], mode: str
) -> Callable[[TrainState, _Inputs], Any]:
    """The program of every lane; the data sets' arrays are common to all."""

    def mapped(state: TrainState, inputs: _Inputs) -> Any:
        everything = {"": inputs.train, **inputs.evaluate}
        arrays = {name: data.arrays for name, data in everything.items()}

        def one(lane: tuple[TrainState, Key, tuple[Array, ...], dict[str, Any]]) -> Any:
            state, key, args, rows = lane
            sets = {name: Dataset(arrays[name], *rows[name]) for name in rows}
            return program(state, _Inputs(key, args, sets.pop(""), sets))

        count = state.step.size

        def per_lane(a: Array) -> Array:
            return a if a.ndim == 2 else jnp.broadcast_to(a, (count, *a.shape))

        rows = {n: (per_lane(d.rows), per_lane(d.valid)) for n, d in everything.items()}
        return map_lanes(one, (state, inputs.key, inputs.args, rows), mode)

    return mapped


def measure(
    eval_step: EvalStep,
    state: TrainState,
    data: Dataset,
    *,
    batch_size: int = 4096,
    lanes: Lanes | None = None,
) -> dict[str, Any]:
    """Every metric of a set, compiled: numbers, or lists [L] where there are lanes."""

    def program(state: TrainState, inputs: _Inputs) -> Metrics:
        return evaluate(
            eval_step, state, inputs.train, inputs.args, batch_size=batch_size
        )

    args = lanes.args if lanes else ()
    mapped = _over_lanes(program, lanes.mode) if lanes else program
    metrics = jax.jit(mapped)(state, _Inputs(state.key, args, data, {}))
    one = jax.tree.map(lambda a: a[..., None], jax.device_get(metrics))
    return {name: values[0] for name, values in _values(one).items()}


class Fitted(NamedTuple):
    """What training came to: the state, and the rows logged on the way."""

    state: TrainState
    rows: list[dict[str, Any]]


def fit(
    state: TrainState,
    train_step: TrainStep,
    train: Dataset,
    *,
    batch_size: int,
    epochs: int,
    key: Key,
    eval_step: EvalStep | None = None,
    evaluate_on: Mapping[str, Dataset] | None = None,
    eval_batch_size: int = 4096,
    lanes: Lanes | None = None,
    part: Part | None = None,
    chunk_steps: int = 512,
) -> Fitted:
    """Train for some epochs: the only training loop.

    Each epoch visits every row of `train` once, in an order fixed by (key, epoch).
    Every row of every set in `evaluate_on` is evaluated before the first step and after
    each epoch. A chunk of at most `chunk_steps` steps (a part of an epoch, or several
    whole ones with their evaluations) is one compiled program that donates the state;
    the metrics of the chunk come back when it ends, and become one row for each set.
    With a `part`, rows and checkpoints are written there, and a resumed run goes on
    from its newest good checkpoint. `state` must not be used afterwards: its memory is
    reused.

    Raises UserError when a loss is not finite, naming the step, and when lanes have
    different numbers of batches; Stopped after a signal, with the state saved;
    ValueError where the arguments do not fit together.
    """
    if batch_size < 1 or epochs < 1:
        raise ValueError(f"need batch_size and epochs >= 1: {batch_size}, {epochs}")
    inputs = _Inputs(key, lanes.args if lanes else (), train, dict(evaluate_on or {}))
    if inputs.evaluate and eval_step is None:
        raise ValueError("evaluate_on needs an eval_step")
    per_epoch = _common_steps(train, batch_size)
    total = epochs * per_epoch
    timing = part.timing if part else Timing()
    rows: list[dict[str, Any]] = []
    if part is not None:
        state, rows = _begin(state, part)
        timing = part.timing
    step = int(np.max(jax.device_get(state.step)))
    if step >= total:
        return Fitted(state, rows)

    keep = part.checkpoints.keep if part else None
    every_epoch = keep is not None and keep.which != "last"
    chunk = plan_chunk(per_epoch, epochs, step, chunk_steps, every_epoch)
    program = _chunk_program(chunk, train_step, eval_step, batch_size, eval_batch_size)
    if lanes:
        program = _over_lanes(program, lanes.mode)
    inputs = jax.device_put(inputs)
    began = time.perf_counter()
    lowered = jax.jit(program, donate_argnums=0).lower(state, inputs)
    if keep is not None and keep.which == "best":
        _check_monitored(keep.monitor, lowered.out_info[1])
    advance = lowered.compile()
    timing.compile_s += time.perf_counter() - began

    if step == 0:
        head = {"step": 0, "epoch": 0.0}
        for split, data in inputs.evaluate.items():
            assert eval_step is not None
            values = measure(
                eval_step, state, data, batch_size=eval_batch_size, lanes=lanes
            )
            rows.append({**head, "split": split, **values})
        if part is not None:
            part.log(rows)
    lane_count = state.step.size
    per_lane_rows = 1 if train.rows.ndim == 2 else lane_count
    examples_per_step = (
        int(np.sum(jax.device_get(train.valid))) * per_lane_rows / per_epoch
    )
    saved_at = time.monotonic()
    deferring = part.run.deferring() if part else contextlib.nullcontext()
    with deferring, _Progress(part.name if part else "", step, total, per_epoch) as bar:
        while step < total:
            began = time.perf_counter()
            state, outputs = advance(state, inputs)
            trained, failed, sets = jax.device_get(outputs)
            new = _rows(step, chunk, per_epoch, trained, sets)
            if not (lanes and lanes.may_diverge):
                _stop_if_not_finite(failed)
                _stop_if_evaluation_not_finite(new)
            step += chunk.steps * chunk.repeats
            rows += new
            took = time.perf_counter() - began
            timing.train_s += took
            timing.steps += chunk.steps * chunk.repeats * lane_count
            timing.examples += round(examples_per_step * chunk.steps * chunk.repeats)
            bar.update(step, chunk.steps * chunk.repeats * lane_count / took, new)
            if part is None:
                continue
            part.log(new)
            stopping = part.run.signum
            due = time.monotonic() - saved_at >= part.run.options.save_every
            at_epoch_end = step % per_epoch == 0
            if step == total or stopping or (at_epoch_end if every_epoch else due):
                _save(state, step, part)
                saved_at = time.monotonic()
            if stopping and step < total:
                raise Stopped(stopping)
    return Fitted(state, rows)


def _common_steps(train: Dataset, batch_size: int) -> int:
    """Steps per epoch; a lane with fewer would train on batches without a row."""
    valid = np.atleast_1d(np.sum(jax.device_get(train.valid), axis=-1))
    counts = [int(n) for n in (*valid, train.rows.shape[-1])]  # the last with padding
    steps = {steps_per_epoch(n, batch_size) for n in counts}
    if len(steps) != 1:
        raise UserError(
            f"training sets of {min(counts)} to {max(counts)} rows do not make the "
            f"same number of batches of {batch_size}: choose another batch size"
        )
    return steps.pop()


def _weights(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "extra": state.extra}


def _rest(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}


def _begin(state: TrainState, part: Part) -> tuple[TrainState, list[dict[str, Any]]]:
    """Go on from the part's newest checkpoint, or with loaded weights, or afresh."""
    restored = part.restore(_weights(state), _rest(state))
    if restored is not None:
        fields = restored.tree["weights"] | restored.tree["training"]
        return TrainState(**fields), part.rows
    loaded = part.initial_weights(_weights(state))
    return (state._replace(**loaded) if loaded else state), []


def _save(state: TrainState, step: int, part: Part) -> None:
    part.save(step, _weights(state), _rest(state))


def _check_monitored(monitor: str, outputs: Any) -> None:
    """Say before training, not after, that there is no such metric."""
    trained, _, sets = outputs
    names = {"train": trained, **sets}
    known = [f"{split}.{name}" for split, metrics in names.items() for name in metrics]
    if monitor not in known:
        raise UserError(
            f"--monitor {monitor}: not logged here, only {', '.join(known)}"
        )


def _stop_if_not_finite(failed: np.ndarray) -> None:
    """`failed` [repeats] or [L, repeats]: the first step without a finite loss."""
    step = int(failed.min())
    if step == NEVER:
        return
    where = ""
    if failed.ndim == 2:
        lanes = np.flatnonzero(failed.min(1) < NEVER)
        where = f" in {len(lanes)} of {len(failed)} lanes (the first is {lanes[0]})"
    raise UserError(
        f"the loss at step {step} was not finite{where}; the run stops there: "
        "try a smaller learning rate"
    )


def _stop_if_evaluation_not_finite(rows: list[dict[str, Any]]) -> None:
    """The last step can ruin the weights with no later training loss to show it."""
    for row in rows:
        if None in np.atleast_1d(np.array(row["loss"], object)):
            raise UserError(
                f"the {row['split']} loss after step {row['step']} was not finite; "
                "the run stops there: try a smaller learning rate"
            )


def _values(metrics: Metrics) -> dict[str, list[Any]]:
    """Each metric [..., repeats] by repeat: a number, or a list [L]; None for NaN."""

    def number(value: np.float32) -> float | None:
        # the shortest text that reads back as this float32, so a resumed run agrees
        return float(str(value)) if np.isfinite(value) else None

    def divide(mean: Any) -> list[Any]:
        values = np.asarray(mean.total / np.maximum(mean.count, 1), np.float32)
        return [
            [number(v) for v in value] if value.ndim else number(value)
            for value in np.moveaxis(values, -1, 0)
        ]

    return {name: divide(mean) for name, mean in metrics.items()}


def _rows(
    step: int, chunk: _Chunk, per_epoch: int, trained: Metrics, sets: dict[str, Metrics]
) -> list[dict[str, Any]]:
    """The rows of one chunk: {"step", "epoch", "split", names...: values}."""
    rows = []
    splits = {name: _values(m) for name, m in {"train": trained, **sets}.items()}
    for repeat in range(chunk.repeats):
        step += chunk.steps
        for split, values in splits.items():
            if split != "train" and step % per_epoch:
                continue  # only the end of an epoch is evaluated
            head = {"step": step, "epoch": round(step / per_epoch, 6), "split": split}
            rows.append(head | {name: v[repeat] for name, v in values.items()})
    return rows


class _Progress:
    """Epoch, loss, steps/s and the time left, on a terminal only."""

    def __init__(self, name: str, step: int, total: int, per_epoch: int) -> None:
        self.per_epoch = per_epoch
        self.bar = rp.Progress(
            rp.TextColumn("{task.description}"),
            rp.BarColumn(),
            rp.TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}"),
            rp.TextColumn("{task.fields[speed]} steps/s"),
            rp.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(
            name, completed=step, total=total, epoch="", loss="", speed=""
        )

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def update(self, step: int, speed: float, rows: list[dict[str, Any]]) -> None:
        last = [row["loss"] for row in rows if row["split"] == "train"][-1]
        values = np.atleast_1d(np.array(last, float))
        finite = values[np.isfinite(values)]
        loss = np.median(finite) if finite.size else np.nan
        self.bar.update(
            self.task,
            completed=step,
            epoch=f"{step / self.per_epoch:.4g}",
            loss=f"{loss:.4f}",
            speed=f"{speed:,.0f}",
        )
