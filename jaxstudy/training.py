"""Training: a pure step, and the one loop that runs it.

The step is an ordinary function of the state and a batch. `fit` compiles it into chunks
with `lax.scan`, donates the state, and waits for the device only where a chunk ends.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxstudy import processes
from jaxstudy.chunks import Visits, load_batches, plan_chunk, with_whole_batches
from jaxstudy.dataset import (
    AnyDataset,
    BatchIndices,
    BatchRows,
    Dataset,
    contents,
    gather,
    ordered_batches,
)
from jaxstudy.model import Model
from jaxstudy.parallel import (
    Mode,
    data_size,
    device_mesh,
    layout_of,
    localized,
    map_replicas,
    over_replicas,
    put,
    replicated,
    sharing_batches,
    split_rows,
    to_host,
)
from jaxstudy.records import (
    HEAD,
    Advance,
    Log,
    Record,
    chunk_records,
    stop_if_evaluation_not_finite,
    stop_if_not_finite,
    values_by_epoch,
)
from jaxstudy.types import (
    Array,
    Batch,
    Key,
    Metrics,
    Objective,
    PyTree,
    TrainState,
    UserError,
)

TrainStep = Callable[..., tuple[TrainState, Metrics]]  # (state, batch, *args)
EvalStep = Callable[..., Metrics]  # (state, batch, *args)


def init_state(model: Model, tx: optax.GradientTransformation, key: Key) -> TrainState:
    """A fresh state at step 0; one key fixes both the weights and the later steps."""
    init_key, run_key = jax.random.split(key)
    params, extra = jax.jit(model.init)(init_key)  # not operation by operation
    return TrainState(jnp.int32(0), params, extra, tx.init(params), run_key)


def init_replicas(
    model: Model, tx: optax.GradientTransformation, keys: Key
) -> TrainState:
    """A fresh state for every key [L], each what `init_state` makes of it."""
    return _initialization(model, tx)(keys)


@functools.lru_cache(maxsize=4)
def _initialization(
    model: Model, tx: optax.GradientTransformation
) -> Callable[[Key], TrainState]:
    """The jitted initialisation of replicas, the same one for the same model."""
    return jax.jit(functools.partial(map_replicas, lambda k: init_state(model, tx, k)))


def make_train_step(
    objective: Objective, tx: optax.GradientTransformation
) -> TrainStep:
    """One gradient step as a pure function (state, batch) -> (state, metrics).

    An optimizer that takes the loss of the batch, as `value`, is given it.
    """
    tx = optax.with_extra_args_support(tx)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, (extra, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.extra, batch, key
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, extra, opt_state, state.key), metrics

    return train_step


@functools.lru_cache(maxsize=4)  # the same one for the same objective
def make_eval_step(
    objective: Objective, weights: Callable[[Any, PyTree], PyTree] | None = None
) -> EvalStep:
    """The objective's metrics in evaluation mode, (state, batch) -> metrics.

    weights(opt_state, params): the parameters to evaluate, if not those as they are.
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        params = weights(state.opt_state, state.params) if weights else state.params
        _, (_, metrics) = objective(params, state.extra, batch, None)
        return metrics

    return eval_step


# ------------------------------------------------------------------ pure programs


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
    batches = ordered_batches(data, batch_size)
    if len(batches.indices) == 1:
        only = jax.tree.map(lambda a: a[0], batches)
        return eval_step(state, split_rows(gather(data.arrays, only)), *args)
    metrics = jax.lax.map(
        lambda rows: eval_step(state, split_rows(gather(data.arrays, rows)), *args),
        batches,
    )
    return jax.tree.map(lambda a: jnp.sum(a, 0), metrics)


# ------------------------------------------------------------------ evaluation


class Evaluator(NamedTuple):
    """Evaluation on a set: a function of the state, the same in `fit` and after it.

    eval_step: (state, batch, *args) -> metrics; data: every row counts once; args: of
    the step, with a leading axis L where the state has it.
    """

    eval_step: EvalStep
    data: AnyDataset
    batch_size: int = 4096
    args: tuple[PyTree, ...] = ()
    mode: Mode = "map"

    def __call__(self, state: TrainState) -> Record:
        """Every metric, compiled: a number, or a list [L] where there are replicas."""
        own_rows = self.data.indices.ndim == 2
        own = (True, True, (False, own_rows)) if state.step.ndim else None
        mesh = device_mesh(layout_of(state.step), state.step.size if own else None)
        measure = _evaluation(self.eval_step, self.batch_size, own, self.mode, mesh)
        placed = put((state, self.args), own[:2] if own else (False, False), mesh)

        def sums(batches: BatchIndices) -> Metrics:
            rows, arrays = load_batches(self.data, batches, own_rows, mesh)
            with sharing_batches(mesh):
                return measure(*placed, (arrays, rows))

        if isinstance(self.data, Dataset):
            metrics = sums(BatchIndices(self.data.indices, self.data.mask))
        else:
            if own_rows:
                raise ValueError("replicas with rows of their own need them resident")
            batches = ordered_batches(self.data, self.batch_size)
            parts = [sums(batch) for batch in map(BatchIndices, *batches)]
            parts = [localized(part) for part in parts]
            metrics = jax.tree.map(lambda *a: jnp.sum(jnp.stack(a), 0), *parts)
        metrics = jax.tree.map(lambda a: a[..., None], to_host(metrics))
        return {name: values[0] for name, values in values_by_epoch(metrics).items()}


@functools.lru_cache(maxsize=4)
def _evaluation(
    eval_step: EvalStep, batch_size: int, own: Any, mode: Mode, mesh: Any
) -> Callable[..., Metrics]:
    """The jitted evaluation, the same one for the same function."""

    def program(state: TrainState, args: Any, data: Any) -> Metrics:
        arrays, rows = data
        if isinstance(rows, BatchRows):  # one batch
            return eval_step(state, split_rows(gather(arrays, rows)), *args)
        rows = Dataset(arrays, *rows)
        return evaluate(eval_step, state, rows, args, batch_size=batch_size)

    return jax.jit(over_replicas(program, own, mode, mesh) if own else program)


# ------------------------------------------------------------------ the loop


class Replicas(NamedTuple):
    """How independent trainings run whose states have a common leading axis L.

    args: further arguments of the step, each array with the axis L. mode: "map" runs
    them sequentially (`lax.map`), the faster on a CPU: a replica has the same bits
    beside any others, and is the run alone but for rounding, which is another program;
    "vmap" vectorises them, for accelerators and tiny models. A replica whose loss is
    not finite stops the run unless it `may_diverge`.
    """

    args: tuple[PyTree, ...] = ()
    mode: Mode = "map"
    may_diverge: bool = False


ALONE = Replicas()


class FitResult(NamedTuple):
    """The trained state, and the records logged on the way."""

    state: TrainState
    records: list[Record]


def fit(
    state: TrainState,
    train_step: TrainStep,
    data: AnyDataset,
    *,
    key: Key,
    epochs: int,
    batch_size: int,
    evaluators: Mapping[str, Evaluator] | None = None,
    evaluate_first: bool = True,
    replicas: Replicas = ALONE,
    log: Log | None = None,
    chunk_steps: int = 512,
) -> FitResult:
    """Train for some epochs: the only training loop.

    A chunk of steps is one compiled program that donates the state: a part of an epoch,
    or whole epochs with their evaluations. Its metrics come back when it ends. The same
    call on the same kind of machine gives the same bits.

    Args:
      state: where to begin; of replicas, with a leading axis L, as many as there are.
        It must not be used afterwards: its memory is reused.
      train_step: pure, (state, batch, *replicas.args) -> (state, metrics).
      data: visited in the order that (key, epoch) and `data.order` fix; its rows are
        each replica's own where `indices` is [L, n].
      key: of that order: one, or one for each replica [L].
      epochs: passes over the data, those of an earlier run that is resumed included.
      batch_size: rows of a step, the last one of an epoch padded.
      evaluators: by the name of the split; run after every epoch.
      evaluate_first: run them before the first step, too.
      replicas: how replicas run, and what else their steps are given.
      log: stores records and checkpoints, stops at signals, draws progress.
      chunk_steps: the most steps of one chunk.

    Raises UserError when a loss is not finite, naming the step, and when there is no
    whole batch; ValueError where the arguments do not fit together.
    """
    if batch_size < 1 or epochs < 1:
        raise ValueError(f"need batch_size and epochs >= 1: {batch_size}, {epochs}")
    log, evaluators = log or Log(), dict(evaluators or {})
    data, per_epoch, min_rows = with_whole_batches(data, batch_size)
    total = epochs * per_epoch
    state, records = log.begin(state)
    step = int(np.max(jax.device_get(state.step)))
    own, count = None, state.step.size if state.step.ndim else None
    mesh = device_mesh(log.layout, count)
    if step >= total:  # placed all the same: evaluations are the programs they were
        state = put(state, count is not None, mesh) if mesh else state
        return FitResult(localized(state), records)

    inside = {n: e for n, e in evaluators.items() if isinstance(e.data, Dataset)}
    every_epoch = log.every_epoch or len(inside) < len(evaluators)
    most = data.max_steps(batch_size * key.size) or chunk_steps
    chunk = plan_chunk(per_epoch, epochs, step, min(chunk_steps, most), every_epoch)
    if chunk.steps < per_epoch or len(inside) < len(evaluators):
        inside = {}  # all are evaluated at an epoch's end, by programs of their own
    sets = tuple((e.args, (e.data.indices, e.data.mask)) for e in inside.values())
    arrays = tuple(e.data.arrays for e in inside.values())  # type: ignore[union-attr]
    if batch_size < data_size(mesh):
        raise UserError(
            f"--devices data: {data_size(mesh)} devices cannot share a batch of "
            f"{batch_size}; --devices replicas does without, or use fewer devices"
        )
    if processes.are_several():
        held_out = {n: contents(e.data) for n, e in evaluators.items()}
        same = {"training data": contents(data), "held-out data": held_out}
        processes.check_same({**same, "start": (state, key)})
    visits = Visits(data, key, batch_size, per_epoch, chunk, mesh)
    if state.step.ndim:
        named = {"data": data, **{n: e.data for n, e in evaluators.items()}}
        _check_replicas(state.step.size, key, named, replicas.args)
        rows = tuple((True, e.data.indices.ndim == 2) for e in inside.values())
        own = (True, (visits.own, False), (True, rows, False))

    began = time.perf_counter()
    owned = own or (False, None, False)
    state = put(state, owned[0], mesh) if mesh else state
    visit = visits.load(step)
    fixed = put((replicas.args, sets, arrays), owned[2], mesh)
    steps = tuple((n, e.eval_step, e.batch_size) for n, e in inside.items())
    work = (train_step, steps, min_rows, own, replicas.mode, mesh)
    leaves, structure = jax.tree.flatten((state, visit, fixed))
    advance, outputs = _compiled(work, structure, tuple(map(_abstract, leaves)))
    took = time.perf_counter() - began

    def evaluated(step: int) -> list[Record]:
        head = {"step": step, "epoch": round(step / per_epoch, 6)}
        return [{**head, "split": n} | e(state) for n, e in evaluators.items()]

    outside = len(inside) < len(evaluators)
    before = step == 0 and evaluate_first
    first = evaluated(step) if before or outside else []
    names = {"train": list(outputs[0]), **{n: list(m) for n, m in outputs[-1].items()}}
    names |= {r["split"]: [n for n in r if n not in HEAD] for r in first}
    log.compiled(took, names)
    first = first if before else []
    records += first
    log.evaluated(first)
    steps_before = _total_steps(state)
    try:
        while step < total:
            began = time.perf_counter()
            state, outputs = advance(state, visit, fixed)
            end = step + chunk.steps * chunk.epochs
            if end < total:  # while the device works
                visit = visits.load(end)
            trained, examples, failed, evaluations = to_host(outputs)
            new = chunk_records(step, chunk, per_epoch, trained, evaluations)
            if outside and end % per_epoch == 0:
                new += evaluated(end)
            if not replicas.may_diverge:
                stop_if_not_finite(failed, step, chunk)
                stop_if_evaluation_not_finite(new)
            steps_after, step = _total_steps(state), end
            records += new
            seconds = time.perf_counter() - began
            sizes = steps_after - steps_before, int(examples.sum()), seconds
            steps_before = steps_after
            log.advanced(state, Advance(step, total, per_epoch, *sizes), new)
    finally:
        log.ended()
    return FitResult(localized(state), records)


def train_seeds(
    model: Model,
    objective: Objective,
    tx: optax.GradientTransformation,
    data: AnyDataset,
    *,
    seed: int,
    seeds: int,
    **options: Any,
) -> FitResult:
    """`fit` from so many seeds, each a replica: weights and order are independent.

    seed: fixes them all; options: of `fit`, `key` apart.
    """
    keys = jax.random.split(jax.random.key(seed), (seeds, 2))
    state, step = init_replicas(model, tx, keys[:, 0]), make_train_step(objective, tx)
    return fit(state, step, data, key=keys[:, 1], **options)


def _chunk_program(
    train_step: TrainStep,
    eval_steps: tuple[tuple[str, EvalStep, int], ...],
    min_rows: int,
) -> Callable[..., Any]:
    """A pure function of (state, what a chunk visits, what is fixed).

    It returns (state, (train, examples, failed, evaluations)), each with an axis E.
    """

    def program(state: TrainState, visit: Any, fixed: Any) -> Any:
        (batches, fields), (args, sets, arrays) = visit, fixed

        def epoch(state: TrainState, batches: BatchIndices) -> Any:
            state, trained, failed = run_steps(
                train_step, state, fields, batches, args, min_rows
            )
            evaluations = {
                name: evaluate(
                    eval_step, state, Dataset(columns, *rows), own, batch_size=size
                )
                for (name, eval_step, size), (own, rows), columns in zip(
                    eval_steps, sets, arrays, strict=True
                )
            }
            return state, (trained, jnp.sum(batches.mask), failed, evaluations)

        return jax.lax.scan(epoch, state, batches)

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
    train_step, eval_steps, min_rows, own, mode, mesh = work
    program = _chunk_program(train_step, eval_steps, min_rows)
    if own:
        program = over_replicas(program, own, mode, mesh)
    arguments = jax.tree.unflatten(structure, leaves)
    kept = None
    if data_size(mesh) > 1:
        outputs = NamedSharding(mesh, PartitionSpec("replicas" if own else None))
        kept = jax.tree.map(lambda a: a.sharding, arguments[0]), outputs
    with sharing_batches(mesh):
        jitted = jax.jit(program, donate_argnums=0, out_shardings=kept)
        lowered = jitted.lower(*arguments)
    return lowered.compile(), lowered.out_info[1]


def _check_replicas(
    count: int, key: Key, sets: Mapping[str, AnyDataset], args: PyTree
) -> None:
    """Raise ValueError where something is of another number of replicas."""
    sizes = {"state": count, "key": key.size if key.ndim else count}
    sizes |= {f"args[{i}]": len(a) for i, a in enumerate(jax.tree.leaves(args))}
    own = {name: each for name, each in sets.items() if each.indices.ndim == 2}
    sizes |= {name: len(each.indices) for name, each in own.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"replicas differ in number: {sizes}")


def _total_steps(state: TrainState) -> int:
    """The steps of all replicas together."""
    return int(np.sum(to_host(state.step), dtype=np.int64))
