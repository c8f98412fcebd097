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

from jaxstudy import processes
from jaxstudy.chunks import chunk_program, evaluate, plan_chunk
from jaxstudy.dataset import (
    AnyDataset,
    BatchIndices,
    BatchRows,
    Dataset,
    gather,
    ordered_batches,
)
from jaxstudy.model import Model
from jaxstudy.parallel import (
    Mode,
    device_mesh,
    jit_on,
    layout_of,
    localized,
    map_replicas,
    put,
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
    Batch,
    EvalStep,
    Key,
    Metrics,
    Objective,
    PyTree,
    TrainState,
    TrainStep,
)
from jaxstudy.visits import Visits, load_batches, with_whole_batches


def init_state(model: Model, tx: optax.GradientTransformation, key: Key) -> TrainState:
    """A fresh state at step 0; one key fixes both the weights and the later steps."""
    init_key, run_key = jax.random.split(key)
    params, extra = jax.jit(model.init)(init_key)  # not operation by operation
    return TrainState(jnp.int32(0), params, extra, tx.init(params), run_key)


@functools.partial(jax.jit, static_argnames=("model", "tx"))
def init_replicas(
    model: Model, tx: optax.GradientTransformation, keys: Key
) -> TrainState:
    """A fresh state for every key [L], each what `init_state` makes of it."""
    return map_replicas(lambda key: init_state(model, tx, key), keys)


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
    mode: Mode = "auto"

    def __call__(self, state: TrainState) -> Record:
        """Every metric, compiled: a number, or a list [L] where there are replicas."""
        own, own_rows = state.step.ndim == 1, self.data.indices.ndim == 2
        mesh = device_mesh(layout_of(state.step), state.step.size if own else None)
        owned = (True, True, False, own_rows) if own else None
        measure = _evaluation(self.eval_step, self.batch_size, owned, self.mode, mesh)
        state, args = put((state, self.args), own, mesh)

        def sums(batches: BatchIndices) -> Metrics:
            visit = load_batches(self.data, batches, own_rows, mesh)
            return measure(state, args, *visit)

        if isinstance(self.data, Dataset):
            metrics = sums(BatchIndices(self.data.indices, self.data.mask))
        else:
            if own_rows:
                raise ValueError("replicas with rows of their own need them resident")
            batches = ordered_batches(self.data, self.batch_size)
            parts = [localized(sums(batch)) for batch in map(BatchIndices, *batches)]
            metrics = jax.tree.map(lambda *a: jnp.sum(jnp.stack(a), 0), *parts)
        metrics = jax.tree.map(lambda a: a[..., None], to_host(metrics))
        return {name: values[0] for name, values in values_by_epoch(metrics).items()}


@functools.lru_cache(maxsize=4)
def _evaluation(
    eval_step: EvalStep, batch_size: int, own: Any, mode: Mode, mesh: Any
) -> Callable[..., Metrics]:
    """The jitted evaluation of all rows, or of one batch that was read."""

    def program(state: TrainState, args: Any, arrays: Batch, rows: Any) -> Metrics:
        if isinstance(rows, BatchRows):
            return eval_step(state, split_rows(gather(arrays, rows)), *args)
        data = Dataset(rows.indices, rows.mask, arrays)
        return evaluate(eval_step, state, data, args, batch_size=batch_size)

    return jit_on(mesh, program, own, mode)


# ------------------------------------------------------------------ the loop


class Replicas(NamedTuple):
    """How independent trainings run whose states have a common leading axis L.

    args: further arguments of the step, each array with the axis L. mode: "map" runs
    them sequentially (`lax.map`): a replica has the same bits beside any others, and is
    the run alone but for rounding, which is another program; "vmap" vectorises them;
    "auto" is "map" on a CPU and "vmap" on an accelerator. A replica whose loss is not
    finite stops the run unless it `may_diverge`.
    """

    args: tuple[PyTree, ...] = ()
    mode: Mode = "auto"
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
    _check_replicas(state, key, data, evaluators, replicas.args)
    _check_processes(state, key, data, evaluators)
    count = state.step.size if state.step.ndim else None  # of replicas
    mesh = device_mesh(log.layout, count)
    if mesh:  # a finished state, too: its evaluations are the programs they were
        state = put(state, count is not None, mesh)
    if step >= total:
        return FitResult(localized(state), records)

    resident = all(isinstance(e.data, Dataset) for e in evaluators.values())
    every_epoch = log.every_epoch or not resident
    most = min(chunk_steps, data.max_steps(batch_size * key.size) or chunk_steps)
    chunk = plan_chunk(per_epoch, epochs, step, most, every_epoch)
    # in the chunk's program, or at an epoch's end by programs of their own
    inside = evaluators if resident and chunk.steps == per_epoch else {}
    outside = {} if inside else evaluators

    began = time.perf_counter()
    visits = Visits(data, key, batch_size, per_epoch, chunk, mesh)
    visit = visits.load(step)
    advance, names = _compiled_chunk(
        state, train_step, visit, visits.own, inside, replicas, min_rows, mesh
    )
    took = time.perf_counter() - began

    def evaluated(step: int, evaluators: Mapping[str, Evaluator]) -> list[Record]:
        head = {"step": step, "epoch": round(step / per_epoch, 6)}
        return [{**head, "split": n} | e(state) for n, e in evaluators.items()]

    asked = step == 0 and evaluate_first
    first = evaluated(step, evaluators) if asked or outside else []
    names |= {r["split"]: [n for n in r if n not in HEAD] for r in first}
    log.compiled(took, names)
    first = first if asked else []
    records += first
    log.evaluated(first)
    taken = _total_steps(state)
    try:
        while step < total:
            began = time.perf_counter()
            state, outputs = advance(state, visit)
            end = step + chunk.steps * chunk.epochs
            if end < total:  # while the device works
                visit = visits.load(end)
            trained, examples, failed, evaluations = to_host(outputs)
            new = chunk_records(step, chunk, per_epoch, trained, evaluations)
            if end % per_epoch == 0:
                new += evaluated(end, outside)
            if not replicas.may_diverge:
                stop_if_not_finite(failed, step, chunk)
                stop_if_evaluation_not_finite(new)
            records += new
            step, before, taken = end, taken, _total_steps(state)
            seconds = time.perf_counter() - began
            sizes = taken - before, int(examples.sum()), seconds
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


def _compiled_chunk(
    state: TrainState,
    train_step: TrainStep,
    visit: Any,
    own_visit: bool,
    inside: Mapping[str, Evaluator],
    replicas: Replicas,
    min_rows: int,
    mesh: Any,
) -> tuple[Callable[..., Any], dict[str, list[str]]]:
    """(state, visit) -> (state, outputs), compiled; its metrics' names by split.

    Fitting again with the same functions and shapes compiles nothing again.
    """
    sets: Any = [
        (e.args, e.data.arrays, BatchIndices(e.data.indices, e.data.mask))  # type: ignore[attr-defined]
        for e in inside.values()
    ]
    own_sets = tuple((True, False, e.data.indices.ndim == 2) for e in inside.values())
    own = (True, (False, own_visit), True, own_sets) if state.step.ndim else None
    args, sets = put((replicas.args, tuple(sets)), own[2:] if own else False, mesh)
    eval_steps = tuple((n, e.eval_step, e.batch_size) for n, e in inside.items())
    program = chunk_program(train_step, eval_steps, min_rows, own, replicas.mode, mesh)
    lowered = program.lower(state, visit, args, sets)
    compiled, (trained, *_, evaluations) = lowered.compile(), lowered.out_info[1]
    names = {n: [*metrics] for n, metrics in {"train": trained, **evaluations}.items()}
    return lambda state, visit: compiled(state, visit, args, sets), names


def _check_replicas(
    state: TrainState,
    key: Key,
    data: AnyDataset,
    evaluators: Mapping[str, Evaluator],
    args: PyTree,
) -> None:
    """Raise ValueError where something is of another number of replicas."""
    if not state.step.ndim:
        return
    sizes = {"state": state.step.size}
    sizes |= {f"args[{i}]": len(a) for i, a in enumerate(jax.tree.leaves(args))}
    sizes |= {"key": key.size} if key.ndim else {}
    sets = {"data": data, **{name: e.data for name, e in evaluators.items()}}
    sizes |= {n: len(s.indices) for n, s in sets.items() if s.indices.ndim == 2}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"replicas differ in number: {sizes}")


def _check_processes(
    state: TrainState, key: Key, data: AnyDataset, evaluators: Mapping[str, Evaluator]
) -> None:
    """Raise UserError where another process trains something else."""
    if processes.are_several():
        held_out = {name: e.data.contents() for name, e in evaluators.items()}
        processes.check_same(
            {
                "training data": data.contents(),
                "held-out data": held_out,
                "start": (state, key),
            }
        )


def _total_steps(state: TrainState) -> int:
    """The steps of all replicas together."""
    return int(np.sum(to_host(state.step), dtype=np.int64))
