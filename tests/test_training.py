"""The step, the loop, and what jit, scan, map, donation and sharding make of them."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.chunks import plan_chunk
from jaxstudy.data.splits import kfold
from jaxstudy.dataset import (
    Dataset,
    Order,
    dataset,
    stacked_subsets,
    subset,
)
from jaxstudy.model import Model, from_linen
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import binary_cross_entropy, squared_error
from jaxstudy.optimizers import OPTIMIZERS, with_averaged_weights
from jaxstudy.parallel import Mode, over_replicas
from jaxstudy.records import Advance, Log
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import open_run
from jaxstudy.runs.saved import Options
from jaxstudy.tabular.sets import admission_arrays, read_admissions
from jaxstudy.training import (
    EvalStep,
    Evaluator,
    FitResult,
    Replicas,
    TrainStep,
    fit,
    init_replicas,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Batch, Mean, Metrics, PyTree, TrainState, UserError
from jaxstudy.wrappers import column_statistics, standardized
from tests.conftest import assert_rounding, assert_rows

# 52 rows in batches of 10: six steps an epoch, the last with two rows and padding.
N, BATCH, PER_EPOCH, EPOCHS = 52, 10, 6, 4
TOTAL = EPOCHS * PER_EPOCH
MODEL = mlp(3, (8,), 1)
OBJECTIVE = binary_cross_entropy(MODEL)
TX = optax.adam(0.01)
STEP, EVALUATE = make_train_step(OBJECTIVE, TX), make_eval_step(OBJECTIVE)


@functools.cache
def rows_of_two_classes() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3))
    y = x[:, 0] + rng.normal(size=N) > 0
    return dataset({"x": x.astype(np.float32), "y": y.astype(np.float32)})


def run(
    state: TrainState,
    train_step: TrainStep = STEP,
    eval_step: EvalStep = EVALUATE,
    **options: Any,
) -> FitResult:
    """`fit` on the 52 rows, evaluated on the same."""
    data = rows_of_two_classes()
    train = options.pop("train", data)
    sets = options.pop("evaluate_on", {"validation": data})
    replicas = options.get("replicas", Replicas())
    evaluators = {
        name: Evaluator(eval_step, rows, 16, replicas.args, replicas.mode)
        for name, rows in sets.items()
    }
    defaults = {"batch_size": BATCH, "epochs": EPOCHS, "evaluators": evaluators}
    if "key" not in options:  # which would be transferred
        options["key"] = jax.random.key(1)
    return fit(state, train_step, train, **(defaults | options))


class Watch(Log):
    """Calls back at every chunk, and at every epoch if it is to be seen."""

    def __init__(self, advanced: Any, every_epoch: bool = False) -> None:
        super().__init__()
        self.every_epoch, self.heard = every_epoch, advanced

    def advanced(self, state: TrainState, chunk: Advance, records: Any) -> None:
        self.heard(state, chunk, records)


def fresh() -> TrainState:
    return init_state(MODEL, TX, jax.random.key(0))


def bits(tree: PyTree) -> list[bytes]:
    """Every leaf as bytes, keys included: what "the same bits" means."""

    def raw(leaf: Array) -> bytes:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


def traced_at_most(n: int, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Raises AssertionError at one trace more; `chex.clear_trace_counter` first."""
    return chex.assert_max_traces(fn, n)  # type: ignore[return-value]


class Trained(NamedTuple):
    """A finished run, and the state it began with."""

    first: TrainState
    fitted: FitResult


@functools.cache
def trained(chunk_steps: int) -> Trained:
    """One run for each kind of chunk. Its steps may be traced once, and it says so."""
    chex.clear_trace_counter()
    partial = chunk_steps < PER_EPOCH
    first = fresh()
    # evaluation is also compiled for step 0; within an epoch, its shapes are asked for
    return Trained(
        first,
        run(
            first,
            traced_at_most(1, make_train_step(OBJECTIVE, TX)),
            traced_at_most(3 if partial else 2, make_eval_step(OBJECTIVE)),
            chunk_steps=chunk_steps,
        ),
    )


# Of so many steps of Adam at rates up to 0.01, on weights and gradients around 1, each
# adding a few roundings: what programs of other shapes may differ by.
ULPS = 8 * TOTAL


@pytest.mark.parametrize("chunk_steps", [3, 12])  # half an epoch; two of them
def test_chunks_of_any_size_train_the_same(chunk_steps: int) -> None:
    """And trace the step once, however many chunks there are: `trained` asserts it."""
    fitted, reference = trained(chunk_steps).fitted, trained(6).fitted
    assert_rounding(fitted.state, reference.state, ULPS)

    def evaluations(fitted: FitResult) -> list[dict[str, Any]]:
        return [row for row in fitted.records if row["split"] == "validation"]

    assert_rows(evaluations(fitted), evaluations(reference))
    assert [r["step"] for r in evaluations(fitted)] == [0, 6, 12, 18, 24]
    assert [r["epoch"] for r in evaluations(fitted)] == [0, 1, 2, 3, 4]
    train = [row for row in fitted.records if row["split"] == "train"]
    length = min(chunk_steps, PER_EPOCH)
    assert [r["step"] for r in train] == list(range(length, TOTAL + 1, length))
    assert fitted.state.step == TOTAL
    losses = [row["loss"] for row in evaluations(fitted)]
    assert losses == sorted(losses, reverse=True)


def test_the_first_state_is_donated_and_nothing_else() -> None:
    first, fitted = trained(3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fitted.state))
    data = rows_of_two_classes()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(data))
    Evaluator(EVALUATE, data)(fitted.state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fitted.state))


def test_nothing_is_transferred_but_by_name() -> None:
    """A CPU's own memory is not guarded against reading; on a GPU reading is, too."""
    state, again, key = fresh(), fresh(), jax.random.key(1)
    on_the_host = again._replace(step=np.int32(0))
    data = rows_of_two_classes()
    with jax.transfer_guard("disallow"):
        run(state, key=key, epochs=2)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            run(on_the_host, key=key, epochs=2)
        Evaluator(EVALUATE, data)(again)


# What fit visits: the state is the log of the rows that every step was given.


def log_rows(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rows = jnp.where(batch["mask"] > 0, batch["row"], -1)
    seen = state.extra.at[state.step].set(rows)
    metrics = {"loss": Mean(jnp.float32(0), jnp.float32(1))}
    return state._replace(step=state.step + 1, extra=seen), metrics


def empty_log(step: int, total: int = TOTAL) -> TrainState:
    """-2 where no step was taken; -1 where a row was padding."""
    log = jnp.full((total, BATCH), -2, jnp.int32)
    return TrainState(jnp.int32(step), {}, log, {}, jax.random.key(0))


def fit_log(
    state: TrainState, data: Any, step: TrainStep = log_rows, **options: Any
) -> FitResult:
    """`fit` of a log, by default for four epochs."""
    defaults = {"key": jax.random.key(1), "epochs": EPOCHS, "batch_size": BATCH}
    return fit(state, step, data, **(defaults | options))


def numbered(n: int = N) -> Dataset:
    return dataset({"row": np.arange(n, dtype=np.int32)})


def three_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda a: jnp.stack([a] * 3), state)


@functools.cache
def visited(start: int) -> np.ndarray:
    """The log [steps, B] of a run that goes on from a step."""
    return np.asarray(fit_log(empty_log(start), numbered()).state.extra)


def test_each_epoch_visits_every_row_once_in_a_new_order() -> None:
    log = visited(0).reshape(EPOCHS, -1)
    for epoch in log:
        assert sorted(epoch[epoch >= 0]) == list(range(N))
        assert np.sum(epoch == -1) == PER_EPOCH * BATCH - N
    assert len({tuple(epoch) for epoch in log}) == EPOCHS


@pytest.mark.parametrize("start", [4, 15])
def test_a_run_goes_on_with_the_same_rows_from_any_step(start: int) -> None:
    log, whole = visited(start), visited(0)
    assert np.all(log[:start] == -2)
    np.testing.assert_array_equal(log[start:], whole[start:])


@settings(max_examples=200, deadline=None)
@given(
    per_epoch=st.integers(1, 2000),
    epochs=st.integers(1, 200),
    share=st.floats(0, 1, exclude_max=True),
    aligned=st.booleans(),
    chunk_steps=st.integers(1, 3000),
    every_epoch=st.booleans(),
)
def test_chunks_reach_every_epochs_end_and_the_last_step(
    per_epoch: int,
    epochs: int,
    share: float,
    aligned: bool,
    chunk_steps: int,
    every_epoch: bool,
) -> None:
    total = per_epoch * epochs
    start = int(share * total)
    if aligned:
        start -= start % per_epoch
    steps, repeats = plan_chunk(per_epoch, epochs, start, chunk_steps, every_epoch)
    assert steps >= 1
    assert repeats >= 1
    assert steps * repeats <= chunk_steps
    assert per_epoch % steps == 0  # so a scan never crosses an epoch's end
    assert start % steps == 0
    assert (total - start) % (steps * repeats) == 0
    if repeats > 1:
        assert steps == per_epoch
        assert not every_epoch
    if start % per_epoch == 0 and per_epoch <= chunk_steps:
        assert steps == per_epoch
        longer = range(repeats + 1, epochs + 1)
        left = (total - start) // per_epoch
        if start == 0 and not every_epoch:  # and none longer would do
            assert not any(left % r == 0 and r * steps <= chunk_steps for r in longer)


def test_a_finished_run_is_left_alone_and_wrong_arguments_are_refused() -> None:
    state, data = empty_log(TOTAL), numbered()
    assert fit_log(state, data) == (state, [])
    assert not state.extra.is_deleted()
    wrong: dict[str, Any]
    for wrong in ({"batch_size": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="need batch_size and epochs >= 1"):
            fit_log(state, data, **wrong)
    for cut in (
        lambda: subset(data, []),
        lambda: stacked_subsets(data, [np.array([N])]),
    ):
        with pytest.raises(ValueError, match="rows must be some of 0 to 51"):
            cut()


# Replicas: several trainings in one program.


def step_with_rate(
    state: TrainState, batch: Batch, rate: Array
) -> tuple[TrainState, Metrics]:
    return make_train_step(OBJECTIVE, optax.adam(rate))(state, batch)


def evaluate_with_rate(state: TrainState, batch: Batch, rate: Array) -> Metrics:
    return make_eval_step(OBJECTIVE)(state, batch)


RATES = (0.001, 0.003, 0.01)


@functools.cache
def folds() -> tuple[Dataset, Dataset]:
    """Three unequal folds, stacked: training rows 34, 35, 35 and those held out."""
    data = rows_of_two_classes()
    splits = kfold(N, 3, seed=0)
    train = stacked_subsets(data, [rows for rows, _ in splits])
    assert train.mask.sum(1).tolist() == [34, 35, 35]
    return train, stacked_subsets(data, [rows for _, rows in splits])


def replica_keys() -> tuple[Array, Array]:
    return tuple(jax.random.split(jax.random.key(k), 3) for k in (0, 1))  # type: ignore[return-value]


@functools.cache
def trained_replicas(mode: str) -> FitResult:
    chex.clear_trace_counter()
    weight_keys, order_keys = replica_keys()
    train, held_out = folds()
    assert mode in ("map", "vmap")
    return run(
        init_replicas(MODEL, TX, weight_keys),
        traced_at_most(1, step_with_rate),
        traced_at_most(2, evaluate_with_rate),
        train=train,
        evaluate_on={"validation": held_out},
        key=order_keys,
        replicas=Replicas((jnp.asarray(RATES),), mode),
    )


def test_a_mapped_replica_has_the_same_bits_beside_any_others() -> None:
    """In another order, so each at another place and beside others: one program."""
    order = np.array([2, 0, 1])
    weight_keys, order_keys = replica_keys()
    sets = [replace(d, indices=d.indices[order], mask=d.mask[order]) for d in folds()]
    moved = run(
        init_replicas(MODEL, TX, weight_keys[order]),
        step_with_rate,
        evaluate_with_rate,
        train=sets[0],
        evaluate_on={"validation": sets[1]},
        key=order_keys[order],
        replicas=Replicas((jnp.asarray(RATES)[order],)),
    )
    replicas = trained_replicas("map")
    want = jax.tree.map(lambda a: a[order], replicas.state)
    assert bits(moved.state) == bits(want)
    for row, other in zip(moved.records, replicas.records, strict=True):
        assert row["loss"] == [other["loss"][replica] for replica in order]


def test_vmapped_replicas_are_close_to_mapped_ones() -> None:
    mapped, vmapped = trained_replicas("map"), trained_replicas("vmap")
    assert_rounding(vmapped.state.params, mapped.state.params, ULPS)
    first = init_replicas(MODEL, TX, replica_keys()[0]).params
    for a, start in zip(
        *map(jax.tree.leaves, (mapped.state.params, first)), strict=True
    ):
        assert np.abs(a - start).max() > 0.01
    assert [r["split"] for r in vmapped.records] == [r["split"] for r in mapped.records]
    for a, b in zip(vmapped.records, mapped.records, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-5)


def test_replicas_are_vectorised_on_accelerators_unless_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop over replicas is a scan; vectorised there is none."""
    for backend, looped in (("cpu", True), ("gpu", False), ("tpu", False)):
        monkeypatch.setattr(jax, "default_backend", lambda b=backend: b)
        expected: dict[Mode, bool] = {"auto": looped, "map": True, "vmap": False}
        for mode, loops in expected.items():
            program = over_replicas(jnp.sin, (True,), mode)
            assert ("scan" in str(jax.make_jaxpr(program)(jnp.ones(3)))) == loops
    assert Replicas().mode == Evaluator(lambda *_: {}, dataset({"x": np.ones(1)})).mode
    assert Replicas().mode == "auto"


def test_replicas_begin_as_init_state_does() -> None:
    keys = replica_keys()[0]
    replicas = init_replicas(MODEL, TX, keys)
    for replica, key in enumerate(keys):
        alone = init_state(MODEL, TX, key)
        # a scale and a shift of what was drawn
        assert_rounding(jax.tree.map(lambda a, i=replica: a[i], replicas), alone, 2)


def test_replicas_share_an_order_or_have_their_own() -> None:
    state = empty_log(0, total=6)
    keys = jax.random.split(jax.random.key(1), 3)

    def log(state: TrainState, key: Array) -> np.ndarray:
        fitted = fit_log(jax.tree.map(jnp.copy, state), numbered(20), key=key, epochs=2)
        return np.asarray(fitted.state.extra)

    alone = [log(state, key) for key in keys]
    np.testing.assert_array_equal(log(three_of(state), keys), alone)
    np.testing.assert_array_equal(log(three_of(state), keys[1]), [alone[1]] * 3)
    assert not np.array_equal(alone[0], alone[1])


def test_replicas_that_differ_in_number_are_refused() -> None:
    """Of a state of three, what else has two is named."""
    data, state = numbered(20), three_of(empty_log(0, total=6))
    two, three = stacked_subsets(data, [np.arange(9)] * 2), jnp.arange(3)
    keys = {n: jax.random.split(jax.random.key(1), n) for n in (2, 3)}
    wrong: list[dict[str, Any]] = [
        {"key": keys[2]},
        {"data": two},
        {"replicas": Replicas((three[:2],))},
        {"evaluators": {"test": Evaluator(evaluate_with_rate, two)}},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=r"replicas differ in number: .*2"):
            fit_log(state, **{"data": data, "key": keys[3], **options})


def test_an_order_may_drop_the_remainder_and_not_reshuffle() -> None:
    def log(order: Order) -> np.ndarray:
        data = replace(numbered(25), order=order)
        return np.asarray(fit_log(empty_log(0, total=6), data, epochs=3).state.extra)

    whole = 25 // BATCH
    # whole batches: 20 of 25 rows
    still = log(Order(shuffle="never", drop_remainder=True))[: 3 * whole]
    np.testing.assert_array_equal(still.ravel(), np.tile(np.arange(whole * BATCH), 3))
    moving = log(Order(drop_remainder=True))[: 3 * whole].reshape(3, -1)
    assert moving.min() >= 0  # no padding
    assert len({tuple(np.sort(epoch)) for epoch in moving}) > 1  # other rows left out
    few = replace(numbered(BATCH - 1), order=Order(drop_remainder=True))
    with pytest.raises(UserError, match=f"{BATCH - 1} rows do not make one batch"):
        fit_log(empty_log(0), few)


def test_fitting_again_compiles_nothing_again() -> None:
    """The same functions and shapes, other values: no trace, and its own result."""
    chex.clear_trace_counter()
    step = traced_at_most(1, make_train_step(OBJECTIVE, TX))
    evaluate = traced_at_most(2, make_eval_step(OBJECTIVE))  # one before the first step
    first = run(fresh(), step, evaluate)
    other, events = init_state(MODEL, TX, jax.random.key(5)), list[str]()

    def hear(event: str, *_: object, **__: object) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(hear)
    again = run(other, step, evaluate, key=jax.random.key(6))
    jax.monitoring.unregister_event_duration_listener(hear)
    assert not [event for event in events if "backend_compile" in event]
    assert first.records[-1]["loss"] != again.records[-1]["loss"]
    alone = run(init_state(MODEL, TX, jax.random.key(5)), key=jax.random.key(6))
    assert bits(again.state) == bits(alone.state)


def test_progress_hears_of_every_chunk_and_nothing_is_evaluated_first() -> None:
    heard: list[tuple[int, int]] = []
    log = Watch(lambda state, chunk, rows: heard.append((chunk.step, len(rows))))
    fitted = run(fresh(), chunk_steps=PER_EPOCH, evaluate_first=False, log=log)
    assert heard == [(PER_EPOCH * (i + 1), 2) for i in range(EPOCHS)]
    assert min(row["step"] for row in fitted.records) == PER_EPOCH


def test_each_epochs_end_is_heard_of_and_changes_no_bit() -> None:
    """Where a chunk would have been of two epochs."""
    heard: list[tuple[int, int, list[bytes]]] = []

    def at_chunk(state: TrainState, chunk: Advance, records: Any) -> None:
        epoch, within = divmod(chunk.step, PER_EPOCH)
        if not within:
            heard.append((epoch, int(state.step), bits(state)))

    fitted = run(fresh(), chunk_steps=12, log=Watch(at_chunk, True))
    ends = [(i, i * PER_EPOCH) for i in range(1, EPOCHS + 1)]
    assert [(epoch, step) for epoch, step, _ in heard] == ends
    plain = trained(PER_EPOCH).fitted
    assert heard[-1][2] == bits(fitted.state) == bits(plain.state)
    assert len({tuple(state) for *_, state in heard}) == EPOCHS


def test_a_resumed_run_hears_of_the_epochs_that_were_not_saved(tmp_path: Path) -> None:
    heard: list[int] = []

    def go_on(resume: bool, stop_after: int | None) -> FitResult:
        def on_epoch(epoch: int, state: TrainState) -> None:
            heard.append(epoch)
            if epoch == stop_after:
                raise KeyboardInterrupt  # as a kill: that epoch is not saved

        how = "test", "quick", Settings(), Options(save_every=0)
        with open_run(tmp_path / "run", *how, resume=resume) as held:
            return run(fresh(), log=held.sub_run(on_epoch=on_epoch))

    with pytest.raises(KeyboardInterrupt):
        go_on(False, 3)
    fitted = go_on(True, None)
    assert heard == [1, 2, 3, 3, 4]
    assert bits(fitted.state) == bits(trained(6).fitted.state)


# Evaluation.


def numpy_loss(params: PyTree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-log p(y) of every row, in float64."""
    layers = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = np.maximum(x @ layers["hidden_1"]["kernel"] + layers["hidden_1"]["bias"], 0)
    logits = (h @ layers["output"]["kernel"] + layers["output"]["bias"])[:, 0]
    return np.logaddexp(0, np.where(y > 0.5, -logits, logits))


@pytest.mark.parametrize("size", [13, 4096])
def test_evaluation_covers_every_row(size: int) -> None:
    """46 rows: with a remainder that is padded, and in one batch."""
    data = rows_of_two_classes()
    rows = np.delete(np.arange(N), [0, 3, 11, 20, 30, 51])
    state = trained(6).fitted.state
    got = Evaluator(EVALUATE, subset(data, rows), size)(state)
    x, y = (np.asarray(data.arrays[k])[rows] for k in "xy")
    losses = numpy_loss(state.params, x, y)
    assert got["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert got["accuracy"] == pytest.approx(np.mean(losses < np.log(2)), rel=1e-6)


def test_logged_numbers_are_the_means_over_the_chunk() -> None:
    """One epoch at rate 0, of the weights that the step leaves beside those trained."""
    tx = with_averaged_weights(optax.sgd(0.0), 0.8)
    state = init_state(MODEL, tx, jax.random.key(0))
    arrays = rows_of_two_classes().arrays
    x, y = (np.asarray(arrays[k]) for k in "xy")
    want = numpy_loss(state.params, x, y).mean()
    double = lambda opt_state, _: jax.tree.map(lambda w: 2 * w, opt_state.average)  # noqa: E731
    doubled = numpy_loss(jax.tree.map(lambda w: 2 * w, state.params), x, y).mean()
    step, evaluate = make_train_step(OBJECTIVE, tx), make_eval_step(OBJECTIVE, double)
    rows = run(state, step, evaluate, epochs=1).records
    where = [(r["split"], r["step"]) for r in rows]
    assert where == [("validation", 0), ("train", 6), ("validation", 6)]
    losses = [doubled, want, doubled]
    assert [r["loss"] for r in rows] == pytest.approx(losses, rel=1e-6)


# A known answer: logistic regression on the UCLA admissions.


def logistic_regression(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Deviance, and the intercept and slopes in the units of x."""
    model = standardized(mlp(x.shape[1], (), 1), x.shape[1])
    data = dataset({"x": x, "y": y})
    tx = OPTIMIZERS["nesterov"].make(1.0)
    state = init_state(model, tx, jax.random.key(0))
    statistics = column_statistics(data.arrays["x"], data.mask)
    mean, scale = map(np.float64, statistics)  # before they are donated
    state = state._replace(extra=state.extra | {"standardization": statistics})
    objective = binary_cross_entropy(model)
    fitted = fit(
        state, make_train_step(objective, tx), data, key=jax.random.key(1), epochs=500,
        batch_size=len(x),
        evaluators={"all": Evaluator(make_eval_step(objective), data)},
    )  # fmt: skip
    layer = jax.tree.map(np.float64, fitted.state.params["output"])
    slopes = layer["kernel"][:, 0] / scale
    intercept = layer["bias"][0] - slopes @ mean
    deviance = 2 * len(x) * fitted.records[-1]["loss"]
    return deviance, np.array([intercept, *slopes])


def test_logistic_regression_has_the_published_answer() -> None:
    arrays = admission_arrays(read_admissions())
    deviance, coefficients = logistic_regression(arrays["x"], arrays["y"])
    assert deviance == pytest.approx(458.5175, abs=1e-3)
    published = [-3.989979, 0.002264, 0.804038, -0.675443, -1.340204, -1.551464]
    np.testing.assert_allclose(coefficients, published, rtol=0, atol=1e-3)
    assert coefficients[1] == pytest.approx(0.002264, abs=1e-6)  # a small unit


# What goes wrong is said.


def failing(replica: Array, bad: tuple[int, int]) -> TrainStep:
    """A step whose loss is NaN at step bad[0] of replica bad[1]."""

    def step(
        state: TrainState, batch: Batch, *args: Array
    ) -> tuple[TrainState, Metrics]:
        state, _ = log_rows(state, batch)
        here = (state.step - 1 == bad[0]) & ((args or (replica,))[0] == bad[1])
        loss = jnp.where(here, jnp.nan, jnp.float32(1))
        return state, {"loss": Mean(loss, jnp.float32(1))}

    return step


@pytest.mark.parametrize("chunk_steps", [2, 512])
def test_a_loss_that_is_not_finite_names_its_step(chunk_steps: int) -> None:
    step = failing(jnp.int32(0), (15, 0))
    with pytest.raises(UserError, match="the loss at step 15 was not finite; the run"):
        fit_log(empty_log(0), numbered(), step, chunk_steps=chunk_steps)


def test_weights_that_the_last_step_ruined_are_noticed() -> None:
    """No training loss comes after it; the evaluation says so."""

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        loss = jnp.where(state.step == TOTAL, jnp.inf, jnp.float32(1))
        return {"loss": Mean(loss, jnp.float32(1))}

    test = Evaluator(evaluate, numbered())
    with pytest.raises(UserError, match="the test loss after step 24 was not finite"):
        fit_log(empty_log(0), numbered(), evaluators={"test": test})


@pytest.mark.parametrize("may_diverge", [False, True])
def test_a_replica_that_is_not_finite_is_named_or_let_be(may_diverge: bool) -> None:
    replicas = Replicas((jnp.arange(3),), "map", may_diverge)

    def three() -> FitResult:
        return fit_log(
            three_of(empty_log(0)), numbered(), failing(jnp.int32(0), (15, 1)),
            key=jax.random.split(jax.random.key(1), 3), replicas=replicas,
        )  # fmt: skip

    if not may_diverge:
        message = r"step 15 was not finite in 1 of 3 replicas \(the first is 1\)"
        with pytest.raises(UserError, match=message):
            three()
        return
    losses = {row["step"]: row["loss"] for row in three().records}
    all_well = [1, 1, 1]
    assert losses == {6: all_well, 12: all_well, 18: [1, None, 1], 24: all_well}


# Randomness.


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(1)(x)[:, 0]


@functools.cache
def dropping() -> tuple[Model, TrainStep, TrainState]:
    """A model with dropout, a compiled step that keeps its weights, and its state."""
    model = from_linen(Dropping(), jax.ShapeDtypeStruct((1, 64), jnp.float32))
    tx = optax.sgd(0.0)
    step = jax.jit(make_train_step(squared_error(model), tx))
    return model, step, init_state(model, tx, jax.random.key(0))


def test_every_step_has_a_key_of_its_own_and_evaluation_draws_nothing() -> None:
    """From one key that fixes the weights, too, but is another."""
    _, step, state = dropping()
    assert bits(state.key) != bits(jax.random.key(0))
    assert state.step == 0
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    rows = {"x": jnp.asarray(x), "y": jnp.zeros(8), "mask": jnp.ones(8)}

    def losses(state: TrainState, steps: int) -> list[float]:
        out = []
        for _ in range(steps):
            state, metrics = step(state, rows)
            out.append(float(metrics["loss"].total))
        return out

    first = losses(state, 5)
    assert len(set(first)) == 5
    assert losses(state, 5) == first  # a function of the state alone
    assert losses(state._replace(step=jnp.int32(3)), 2) == first[3:]
    other = losses(state._replace(key=jax.random.key(9)), 5)
    assert not set(first) & set(other)
    model, *_ = dropping()
    metrics = make_eval_step(squared_error(model))(state, rows)
    layer = jax.tree.map(np.asarray, state.params["Dense_0"])
    want = np.square(x @ layer["kernel"][:, 0] + layer["bias"][0]).sum()
    assert metrics["loss"].total == pytest.approx(want, rel=1e-5)
