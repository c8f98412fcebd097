"""Training: a pure step, and the one loop that runs it.

The step is an ordinary function. `fit` compiles it into chunks with `lax.scan`, donates
the state, and touches the device only at chunk ends.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress as rp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxstudy.dataset import (
    SHUFFLED,
    BatchIndices,
    Dataset,
    Order,
    Streamed,
    epoch_batches,
    gather,
    ordered_batches,
    stacked_subsets,
    steps_per_epoch,
    subset,
)
from jaxstudy.model import Model
from jaxstudy.runs.run import SubRun, Timing
from jaxstudy.stream import (
    CHUNK_BYTES,
    evaluation_chunks,
    row_bytes,
    training_chunks,
)
from jaxstudy.types import (
    Array,
    Batch,
    Key,
    Metrics,
    Objective,
    PyTree,
    UserError,
)

IN_ORDER = Order(shuffle="never")
NEVER = jnp.iinfo(jnp.int32).max


class TrainState(NamedTuple):
    """Everything a step changes, and the key it derives its randomness from."""

    step: Array
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    key: Key


TrainStep = Callable[..., tuple[TrainState, Metrics]]  # (state, batch, *replica)
EvalStep = Callable[..., Metrics]  # (state, batch, *replica)
# (step reached, steps of all replicas a second, new records)
Progress = Callable[[int, float, list[dict[str, Any]]], None]


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

    def eval_step(state: TrainState, batch: Batch, *replica: PyTree) -> Metrics:
        del replica  # what only the training step depends on, a learning rate say
        _, (_, metrics) = objective(state.params, state.extra, batch, None)
        return metrics

    return eval_step


Mode = Literal["map", "vmap"]


class Replicas(NamedTuple):
    """Independent trainings with a common leading axis L, as one compiled program.

    The state has the axis, and so has each array in `args` (a pytree), which the
    steps receive after their batch. The data order keys [S], and with them sets with
    rows [S, n], may be fewer, S dividing L: replica i has those of i modulo S, so that
    replicas are trained in pairs or groups on the same batches. A replica of fewer
    batches than another skips the steps at an epoch's end that it has none for: its
    state stays as it is, `step` and with it the next step's key included, as in its run
    alone.

    "map" runs them sequentially (`lax.map`), and is the faster on a CPU: a replica has
    the same bits beside any other replicas, at any place, and is the run alone but for
    rounding, which is another program. "vmap" runs them vectorised (`vmap`), for
    accelerators and for tiny models. A replica whose loss is not finite stops the run,
    unless it `may_diverge`: then it goes on as it is. The devices of this process share
    the replicas among them, as many as divide their number, unless `devices` names
    others.
    """

    args: tuple[PyTree, ...] = ()
    mode: Mode = "map"
    may_diverge: bool = False
    devices: tuple[Any, ...] | None = None  # of jax.Device


def map_replicas(fn: Callable[..., Any], replica: PyTree, mode: Mode = "map") -> Any:
    """`fn` of every replica of a pytree [L, ...], by `lax.map` or by `vmap`."""
    return jax.vmap(fn)(replica) if mode == "vmap" else jax.lax.map(fn, replica)


def init_replicas(
    model: Model, tx: optax.GradientTransformation, keys: Key
) -> TrainState:
    """A fresh state for every key [L], each what `init_state` makes of it."""
    return jax.jit(lambda ks: map_replicas(lambda key: init_state(model, tx, key), ks))(
        keys
    )


def run_steps(
    train_step: TrainStep,
    state: TrainState,
    data: Dataset,
    batches: BatchIndices,
    args: tuple[PyTree, ...],
    least: int = 0,
) -> tuple[TrainState, Metrics, Array]:
    """One step for each of the batches [S, B], as one scan: pure.

    Returns the state, the summed metrics, and the first step whose loss was not
    finite (NEVER where all were). A batch of fewer rows than `least`, padding apart, is
    skipped: the state stays as it is.
    """

    def body(
        carry: tuple[TrainState, Array], rows: BatchIndices
    ) -> tuple[tuple[TrainState, Array], Metrics]:
        state, failed = carry
        after, metrics = train_step(state, gather(data, rows), *args)
        finite = jnp.isfinite(metrics["loss"].total)
        failed = jnp.where(finite, failed, jnp.minimum(failed, state.step))
        return (after, failed), metrics

    def body_or_nothing(
        carry: tuple[TrainState, Array], rows: BatchIndices
    ) -> tuple[tuple[TrainState, Array], Metrics]:
        return jax.lax.cond(
            jnp.sum(rows.mask) >= least,
            lambda: body(carry, rows),
            lambda: (carry, _zeros(jax.eval_shape(body, carry, rows)[1])),
        )

    step = body_or_nothing if least else body
    (state, failed), metrics = jax.lax.scan(step, (state, jnp.int32(NEVER)), batches)
    return state, jax.tree.map(lambda a: jnp.sum(a, 0), metrics), failed


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def evaluate(
    eval_step: EvalStep,
    state: TrainState,
    data: Dataset,
    args: tuple[PyTree, ...] = (),
    *,
    batch_size: int,
) -> Metrics:
    """The summed metrics of every row of a set, in batches: pure."""
    batches = ordered_batches(data, min(batch_size, len(data.indices)))
    if len(batches.indices) == 1:
        only = jax.tree.map(lambda a: a[0], batches)
        return eval_step(state, gather(data, only), *args)
    metrics = jax.lax.map(
        lambda rows: eval_step(state, gather(data, rows), *args), batches
    )
    return jax.tree.map(lambda a: jnp.sum(a, 0), metrics)


class _Inputs(NamedTuple):
    """What a chunk reads and never changes, and the step it begins with.

    Replicas share the step: if it were each replica's own, so would be its batches.
    """

    step: Any  # of numpy until it is put on the device
    key: Key
    args: tuple[PyTree, ...]
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


def _streamed_chunk(
    train: Streamed,
    batch_size: int,
    per_epoch: int,
    start: int,
    chunk_steps: int,
    key: Key,
) -> _Chunk:
    """As `plan_chunk`, within an epoch, and with no more rows than CHUNK_BYTES."""
    step_bytes = max(1, row_bytes(train) * batch_size * key.size)
    bound = min(chunk_steps, max(1, CHUNK_BYTES // step_bytes))
    return _Chunk(_largest_divisor(math.gcd(per_epoch, start), bound), 1)


def _chunk_program(
    chunk: _Chunk,
    train_step: TrainStep,
    eval_step: EvalStep | None,
    batch_size: int,
    eval_batch_size: int,
    order: Order,
    least: int,
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
        per_epoch = steps_per_epoch(len(inputs.train.indices), batch_size, order)

        def visit(epoch: Array) -> BatchIndices:
            batches = epoch_batches(inputs.train, batch_size, inputs.key, epoch, order)
            first = inputs.step % per_epoch
            return jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, first, chunk.steps), batches
            )

        def body(state: TrainState, batches: BatchIndices) -> Any:
            state, train, failed = run_steps(
                train_step, state, inputs.train, batches, inputs.args, least
            )
            if chunk.steps == per_epoch:
                sets = measure(state, inputs)
            else:  # zeros are never read where the epoch goes on
                shapes = jax.eval_shape(measure, state, inputs)
                sets = jax.lax.cond(
                    (inputs.step + chunk.steps) % per_epoch == 0,
                    lambda: measure(state, inputs),
                    lambda: _zeros(shapes),
                )
            return state, (train, failed, sets)

        # all orders at once: in the loop, shuffling takes a fifth of a small step
        epochs = inputs.step // per_epoch + jnp.arange(chunk.repeats)
        return jax.lax.scan(body, state, jax.vmap(visit)(epochs))

    return program


def _abstract(a: Array) -> jax.ShapeDtypeStruct:
    # typed keys have no weak type, arrays of numpy no sharding
    weak, sharding = getattr(a, "weak_type", False), getattr(a, "sharding", None)
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding, weak_type=weak)


@functools.lru_cache(maxsize=4)
def _compiled(work: tuple[Any, ...], structure: Any, leaves: tuple[Any, ...]) -> Any:
    """The compiled chunk for arguments of these shapes, and what it puts out.

    Fitting again with the same functions and shapes compiles nothing again.
    """
    *chunk, replicas = work
    program = _chunk_program(*chunk)
    if replicas:
        program = _over_replicas(program, replicas)
    arguments = jax.tree.unflatten(structure, leaves)
    lowered = jax.jit(program, donate_argnums=0).lower(*arguments)
    return lowered.compile(), lowered.out_info[1]


def _over_replicas(
    program: Callable[[TrainState, _Inputs], Any], replicas: Replicas
) -> Callable[[TrainState, _Inputs], Any]:
    """The program of every replica; the data sets' arrays are common to all."""

    def one(
        replica: tuple[TrainState, Any], group: tuple[Key, Any], inputs: Any
    ) -> Any:
        (state, args), (key, own) = replica, group
        sets = {
            name: data._replace(**own.get(name, {}))
            for name, data in {"": inputs.train, **inputs.evaluate}.items()
        }
        train = sets.pop("")
        return program(state, _Inputs(inputs.step, key, args, train, sets))

    def sequential(replica: Any, group: Any, inputs: _Inputs) -> Any:
        """Replicas [L] as a loop; replicas number their group, to find it in [S]."""

        def nth(replica: tuple[TrainState, Any, Array]) -> Any:
            state, args, which = replica
            mine = jax.tree.map(lambda a: a[which], group)
            return one((state, args), mine, inputs)

        return jax.lax.map(nth, replica)

    def vmapped(replica: Any, group: Any, inputs: _Inputs) -> Any:
        """Replicas [L / S, S]; the inner vmap leaves a group's batches unmapped."""
        inner = jax.vmap(one, in_axes=(0, None, None))
        return jax.vmap(inner, in_axes=(1, 0, None), out_axes=1)(replica, group, inputs)

    def mapped(state: TrainState, inputs: _Inputs) -> Any:
        sets = {"": inputs.train, **inputs.evaluate}
        own = {
            name: {"indices": data.indices, "mask": data.mask}
            for name, data in sets.items()
            if data.indices.ndim == 2
        }
        count, groups = state.step.size, inputs.key.size
        replica, group = (state, inputs.args), (inputs.key, own)
        common = inputs._replace(args=())
        if replicas.mode == "map":
            run, shape = sequential, (count,)
            replica = (*replica, jnp.arange(count) % groups)
            split, mine = P("replicas"), P()
        else:
            run, shape = vmapped, (count // groups, groups)
            replica = jax.tree.map(lambda a: a.reshape(shape + a.shape[1:]), replica)
            alone = count == groups
            split = P(None, "replicas") if alone else P("replicas")
            mine = P("replicas") if alone else P()
        mesh = _mesh(replicas, count, groups)
        if mesh is not None:
            run = jax.shard_map(
                run, mesh=mesh, in_specs=(split, mine, P()), out_specs=split,
                check_vma=False,  # the loops begin with constants, alike everywhere
            )  # fmt: skip
        out = run(replica, group, common)
        return jax.tree.map(lambda a: a.reshape((count, *a.shape[len(shape) :])), out)

    return mapped


def _mesh(replicas: Replicas, count: int, groups: int) -> jax.sharding.Mesh | None:
    """As many of the devices as divide the replicas evenly; None for a single one.

    Vmapped, the replicas of one group step stay together, to share their batches.
    """
    whole = replicas.mode == "map" or count == groups
    devices = jax.local_devices() if replicas.devices is None else replicas.devices
    n = _largest_divisor(count if whole else count // groups, len(devices))
    return jax.sharding.Mesh(devices[:n], ("replicas",)) if n > 1 else None


def _place(
    state: TrainState, inputs: _Inputs, replicas: Replicas | None
) -> tuple[TrainState, _Inputs]:
    """Put replicas on their devices, and what they share on each."""
    mesh = _mesh(replicas, state.step.size, inputs.key.size) if replicas else None
    if mesh is None:
        return state, jax.device_put(inputs)
    split, everywhere = (NamedSharding(mesh, spec) for spec in (P("replicas"), P()))
    args = jax.device_put(inputs.args, split)
    inputs = jax.device_put(inputs._replace(args=()), everywhere)
    return jax.device_put(state, split), inputs._replace(args=args)


def measure(
    eval_step: EvalStep,
    state: TrainState,
    data: Dataset | Streamed,
    *,
    batch_size: int = 4096,
    replicas: Replicas | None = None,
) -> dict[str, Any]:
    """Every metric of a set, compiled: numbers, or lists [L] where there are replicas.

    Raises ValueError for a streamed set that differs from replica to replica.
    """
    shared = replicas._replace(args=()) if replicas else None
    args = replicas.args if replicas else ()
    measured = _measured(eval_step, batch_size, shared)

    def sums(data: Dataset, key: Key) -> Metrics:
        inputs = _Inputs(np.int32(0), key, args, data, {})
        return measured(*_place(state, inputs, replicas))

    if isinstance(data, Streamed):
        if data.indices.ndim == 2:
            raise ValueError("replicas with sets of their own need them resident")
        key = state.key[:1] if replicas else state.key
        parts = [sums(chunk, key) for chunk in evaluation_chunks(data, batch_size)]
        metrics = jax.tree.map(lambda *a: jnp.sum(jnp.stack(a), 0), *parts)
    else:
        groups = len(data.indices) if data.indices.ndim == 2 else None
        metrics = sums(data, state.key[:groups] if replicas else state.key)
    one = jax.tree.map(lambda a: a[..., None], jax.device_get(metrics))
    return {name: values[0] for name, values in _values(one).items()}


@functools.lru_cache(maxsize=4)
def _measured(eval_step: EvalStep, batch_size: int, replicas: Replicas | None) -> Any:
    """The jitted evaluation, the same one for the same function."""

    def program(state: TrainState, inputs: _Inputs) -> Metrics:
        return evaluate(
            eval_step, state, inputs.train, inputs.args, batch_size=batch_size
        )

    return jax.jit(_over_replicas(program, replicas) if replicas else program)


class FitResult(NamedTuple):
    """The trained state, and the records logged on the way."""

    state: TrainState
    records: list[dict[str, Any]]


def fit(
    state: TrainState,
    train_step: TrainStep,
    train: Dataset | Streamed,
    *,
    batch_size: int,
    epochs: int,
    key: Key,
    eval_step: EvalStep | None = None,
    evaluate_on: Mapping[str, Dataset | Streamed] | None = None,
    eval_batch_size: int = 4096,
    replicas: Replicas | None = None,
    sub_run: SubRun | None = None,
    progress: Progress | None = None,
    on_epoch: Callable[[int, TrainState], None] | None = None,
    order: Order = SHUFFLED,
    evaluate_first: bool = True,
    chunk_steps: int = 512,
) -> FitResult:
    """Train for some epochs: the only training loop.

    Each epoch visits every row of `train` once, in an order fixed by (key, epoch), or
    as `order` says. Every row of every set in `evaluate_on` is evaluated after each
    epoch, and before the first step unless `evaluate_first` is false. A chunk of at
    most `chunk_steps` steps (a part of an epoch, or several whole ones with their
    evaluations) is one compiled program that donates the state; the metrics of the
    chunk come back when it ends, and become one record for each set. Where a set is
    streamed, the rows of each chunk are read ahead while the one before it trains, and
    the sets are evaluated by programs of their own: the numbers are the same but for
    rounding, as they are with another `chunk_steps`. The same call on the same kind of
    machine gives the same bits.
    With a `sub_run`, records and checkpoints are written there, and a resumed run goes
    on from its newest good checkpoint, by the same program and so to the same bits.
    `progress` hears of each chunk in the place of the progress bar. `on_epoch` gets the
    number and the state of each epoch at its end, before the checkpoint of that is
    saved, so a resumed run goes on with no epoch left out; the state is of use until it
    returns. `state` must not be used afterwards: its memory is reused.

    Raises UserError when a loss is not finite, naming the step, and when a replica has
    no batch; Stopped after a signal, with the state saved; ValueError where the
    arguments do not fit together.
    """
    if batch_size < 1 or epochs < 1:
        raise ValueError(f"need batch_size and epochs >= 1: {batch_size}, {epochs}")
    sets = dict(evaluate_on or {})
    if sets and eval_step is None:
        raise ValueError("evaluate_on needs an eval_step")
    train, own_steps = _with_steps(train, batch_size, order)
    per_epoch = int(own_steps.max())
    least = 0  # where replicas are of one length no step asks whether it has a batch
    if own_steps.min() < per_epoch:
        least = batch_size if order.drop_remainder else 1
    total = epochs * per_epoch
    timing = sub_run.timing if sub_run else Timing()
    records: list[dict[str, Any]] = []
    if sub_run is not None:
        state, records = _begin(state, sub_run)
        timing = sub_run.timing
    step = int(np.max(jax.device_get(state.step)))
    if step >= total:
        return FitResult(state, records)

    keep = sub_run.checkpoints.keep if sub_run else None
    each_epoch = keep is not None and keep.which != "last"  # a checkpoint
    feed: Iterator[Dataset] | None = None
    inside = {n: data for n, data in sets.items() if isinstance(data, Dataset)}
    if isinstance(train, Streamed):
        chunk = _streamed_chunk(train, batch_size, per_epoch, step, chunk_steps, key)
        feed = training_chunks(train, batch_size, key, order, chunk.steps, step)
        resident, visiting, inside = next(feed), IN_ORDER, {}
    else:
        resident, visiting = train, order
        if len(inside) < len(sets):  # one is streamed: all after the chunk
            inside = {}
        single = each_epoch or on_epoch is not None or len(inside) < len(sets)
        chunk = plan_chunk(per_epoch, epochs, step, chunk_steps, single)
    args = replicas.args if replicas else ()
    inputs = _Inputs(np.int32(0), key, args, resident, inside)
    state, inputs = _place(state, inputs, replicas)
    began = time.perf_counter()
    shared = replicas._replace(args=()) if replicas else None
    evaluating = eval_step if inside else None
    work = (
        chunk, train_step, evaluating, batch_size, eval_batch_size, visiting, least,
        shared,
    )  # fmt: skip
    leaves, structure = jax.tree.flatten((state, inputs))
    advance, outputs = _compiled(work, structure, tuple(map(_abstract, leaves)))
    timing.compile_s += time.perf_counter() - began

    def measured(state: TrainState, step: int) -> list[dict[str, Any]]:
        """The record of every set, by a program of its own."""
        head = {"step": step, "epoch": round(step / per_epoch, 6)}
        return [
            {**head, "split": split}
            | measure(
                eval_step, state, data, batch_size=eval_batch_size, replicas=replicas
            )
            for split, data in sets.items()
            if eval_step is not None
        ]

    separately = len(inside) < len(sets)  # evaluated outside the chunks
    before = step == 0 and evaluate_first
    first = measured(state, step) if before or separately else []
    if keep is not None and keep.which == "best":
        _check_monitored(keep.monitor, outputs, first)
    if before:
        records += first
        if sub_run is not None:
            sub_run.log(first)
    replica_count = state.step.size
    own_steps = np.resize(own_steps, replica_count)  # replica i's order is i modulo S
    visits = replica_count // (len(train.indices) if train.indices.ndim == 2 else 1)
    visited = int(np.sum(jax.device_get(train.mask))) * visits / per_epoch
    examples_per_step = min(visited, batch_size * replica_count)
    saved_at = time.monotonic()
    bar = _Bar(sub_run.name if sub_run else "", total, per_epoch, progress is None)
    progress = progress or bar.advance
    if sub_run is not None:
        sub_run.run.stop_if_asked()
    with bar:
        while step < total:
            began = time.perf_counter()
            now = jax.device_put(np.int32(step), inputs.step.sharding)
            state, outputs = advance(state, inputs._replace(step=now))
            end_of_chunk = step + chunk.steps * chunk.repeats
            if feed is not None and end_of_chunk < total:  # while the device works
                ahead = jax.device_put(next(feed), inputs.step.sharding)
                inputs = inputs._replace(train=ahead)
            trained, failed, evaluated = jax.device_get(outputs)
            new = _records(step, chunk, per_epoch, trained, evaluated)
            if separately and end_of_chunk % per_epoch == 0:
                new += measured(state, end_of_chunk)
            if not (replicas and replicas.may_diverge):
                if least:  # replicas count their own steps, logged are the longest's
                    own = own_steps[:, None]
                    reached = failed // own * per_epoch + failed % own
                    failed = np.where(failed < NEVER, reached, NEVER)
                _stop_if_not_finite(failed)
                _stop_if_evaluation_not_finite(new)
            taken = _steps_of_all(end_of_chunk, own_steps)
            taken -= _steps_of_all(step, own_steps)
            step = end_of_chunk
            records += new
            took = time.perf_counter() - began
            timing.train_s += took
            timing.steps += taken
            timing.examples += round(examples_per_step * chunk.steps * chunk.repeats)
            progress(step, taken / took, new)
            if on_epoch is not None and step % per_epoch == 0:
                on_epoch(step // per_epoch, state)
            if sub_run is None:
                continue
            if step == total:  # first: its records say that the training is finished
                sub_run.run.save_attempts()
            sub_run.log(new)
            stopping = sub_run.run.signum is not None
            due = time.monotonic() - saved_at >= sub_run.run.options.save_every
            at_epoch_end = step % per_epoch == 0
            end = step == total and sub_run.checkpoint_at_end
            if end or stopping or (at_epoch_end if each_epoch else due):
                _save(state, step, sub_run)
                saved_at = time.monotonic()
            sub_run.run.stop_if_asked()
    return FitResult(state, records)


def _with_steps(
    train: Dataset | Streamed, batch_size: int, order: Order
) -> tuple[Dataset | Streamed, np.ndarray]:
    """The set, and how many steps an epoch of each of its S replicas has [S].

    Where padding would make a batch the rows come before it and are padded anew, to the
    longest replica: one replica then has a batch for every step, and counts them for
    all.
    """
    indices, mask = (
        np.atleast_2d(a) for a in jax.device_get((train.indices, train.mask))
    )
    counts = [int(n) for n in mask.sum(axis=-1)]
    steps = np.array([steps_per_epoch(n, batch_size, order) for n in counts])
    if steps.min() == 0:
        raise UserError(f"{min(counts)} rows do not make one batch of {batch_size}")
    if steps.min() < steps_per_epoch(indices.shape[-1], batch_size, order):
        own = [replica[real] for replica, real in zip(indices, mask, strict=True)]
        alone = train.indices.ndim == 1
        train = subset(train, own[0]) if alone else stacked_subsets(train, own)
    return train, steps


def _steps_of_all(step: int, own_steps: np.ndarray) -> int:
    """What all replicas together have done when the longest has reached a step.

    own_steps: of an epoch [L].
    """
    epochs, within = divmod(step, int(own_steps.max()))
    return int(np.sum(epochs * own_steps + np.minimum(within, own_steps)))


def _weights(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "extra": state.extra}


def _rest(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}


def _begin(
    state: TrainState, sub_run: SubRun
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Go on from the sub-run's newest checkpoint, or with loaded weights, or afresh."""
    restored = sub_run.restore(_weights(state), _rest(state))
    if restored is not None:
        fields = restored.tree["weights"] | restored.tree["training"]
        return TrainState(**fields), sub_run.records
    loaded = sub_run.initial_weights(_weights(state))
    return (state._replace(**loaded) if loaded else state), []


def _save(state: TrainState, step: int, sub_run: SubRun) -> None:
    sub_run.save(step, _weights(state), _rest(state))


def _check_monitored(monitor: str, outputs: Any, first: list[dict[str, Any]]) -> None:
    """Say before training, not after, that there is no such metric."""
    trained, _, sets = outputs
    names = {"train": trained, **sets}
    for record in first:
        names[record["split"]] = [
            n for n in record if n not in ("step", "epoch", "split")
        ]
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
        replicas = np.flatnonzero(failed.min(1) < NEVER)
        where = (
            f" in {len(replicas)} of {len(failed)} replicas"
            f" (the first is {replicas[0]})"
        )
    raise UserError(
        f"the loss at step {step} was not finite{where}; the run stops there: "
        "try a smaller learning rate"
    )


def _stop_if_evaluation_not_finite(records: list[dict[str, Any]]) -> None:
    """The last step can ruin the weights with no later training loss to show it."""
    for record in records:
        losses = (
            record["loss"] if isinstance(record["loss"], list) else [record["loss"]]
        )
        if record["split"] != "train" and None in losses:
            raise UserError(
                f"the {record['split']} loss after step {record['step']} was not "
                "finite; the run stops there: try a smaller learning rate"
            )


def _values(metrics: Metrics) -> dict[str, list[Any]]:
    """Each metric [..., repeats] by repeat: a number, or a list [L].

    None where it is not finite, or where there was no row to measure it on.
    """

    def number(value: np.float32) -> float | None:
        # the shortest text that reads back as this float32, so a resumed run agrees
        return float(str(value)) if np.isfinite(value) else None

    def divide(mean: Any) -> list[Any]:
        values = np.asarray(mean.total / np.maximum(mean.count, 1), np.float32)
        values = np.where(mean.count > 0, values, np.float32(np.nan))
        return [
            [number(v) for v in value] if value.ndim else number(value)
            for value in np.moveaxis(values, -1, 0)
        ]

    return {name: divide(mean) for name, mean in metrics.items()}


def _records(
    step: int, chunk: _Chunk, per_epoch: int, trained: Metrics, sets: dict[str, Metrics]
) -> list[dict[str, Any]]:
    """The records of one chunk: {"step", "epoch", "split", names...: values}."""
    records = []
    splits = {name: _values(m) for name, m in {"train": trained, **sets}.items()}
    for repeat in range(chunk.repeats):
        step += chunk.steps
        for split, values in splits.items():
            if split != "train" and step % per_epoch:
                continue  # only the end of an epoch is evaluated
            head = {"step": step, "epoch": round(step / per_epoch, 6), "split": split}
            records.append(head | {name: v[repeat] for name, v in values.items()})
    return records


class _Bar:
    """Epoch, loss, steps/s and the time left, if shown, and on a terminal only."""

    def __init__(self, name: str, total: int, per_epoch: int, shown: bool) -> None:
        self.per_epoch = per_epoch
        self.bar = rp.Progress(
            rp.TextColumn("{task.description}"),
            rp.BarColumn(),
            rp.TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}"),
            rp.TextColumn("{task.fields[speed]} steps/s"),
            rp.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
        )
        self.task = self.bar.add_task(name, total=total, epoch="", loss="", speed="")

    def __enter__(self) -> "_Bar":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def advance(self, step: int, speed: float, records: list[dict[str, Any]]) -> None:
        last = [record["loss"] for record in records if record["split"] == "train"][-1]
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
