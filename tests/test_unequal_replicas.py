"""Replicas of unequal length: each trains as alone, and waits where it has no batch."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.dataset import (
    SHUFFLED,
    Dataset,
    Order,
    dataset,
    stacked_subsets,
    streamed,
    subset,
)
from jaxstudy.model import from_linen
from jaxstudy.objectives import squared_error
from jaxstudy.records import Advance
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import open_run
from jaxstudy.runs.saved import Options
from jaxstudy.training import (
    Evaluator,
    FitResult,
    Replicas,
    fit,
    init_replicas,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Batch, Mean, Metrics, PyTree, TrainState, UserError
from tests.test_training import bits


def replica(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda a: a[i], tree)


# What each step is given: the state is the log of its rows, and of its key.


# Batches of 10 rows: 2, 2, 3 and 3 with padding, 1, 2, 2 and 3 whole ones.
BATCH, EPOCHS, MOST = 10, 3, 9
GROUPS = [np.arange(7, 7 + n) for n in (14, 20, 29, 30)]


class Rows:
    """The data as a source."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: int) -> Mapping[str, np.ndarray]:
        return {"row": np.int32(row)}  # type: ignore[dict-item]


def log(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rows = jnp.where(batch["mask"] > 0, batch["row"], -1)
    drawn = jax.random.bits(jax.random.fold_in(state.key, state.step), (), jnp.uint32)
    extra = {
        "rows": state.extra["rows"].at[state.step].set(rows),
        "drawn": state.extra["drawn"].at[state.step].set(drawn),
    }
    total = jnp.sum(jnp.where(batch["mask"] > 0, batch["row"], 0)).astype(jnp.float32)
    metrics = {"loss": Mean(total, jnp.sum(batch["mask"]))}
    return state._replace(step=state.step + 1, extra=extra), metrics


def empty_log(key: Array) -> TrainState:
    """-2 where no step was taken; -1 where a row was padding."""
    extra = {
        "rows": jnp.full((MOST, BATCH), -2, jnp.int32),
        "drawn": jnp.zeros(MOST, jnp.uint32),
    }
    return TrainState(jnp.int32(0), {}, extra, {}, key)


def keys(seed: int, count: int = 4) -> Array:
    """Of the states (0) or of the orders (1): anew, for a state is donated."""
    return jax.random.split(jax.random.key(seed), count)


def fit_alone(data: Dataset, i: int) -> FitResult:
    state, key = empty_log(keys(0)[i]), keys(1)[i]
    return fit(state, log, data, key=key, epochs=EPOCHS, batch_size=BATCH)


@functools.cache
def alone(i: int, order: Order) -> FitResult:
    return fit_alone(replace(subset(whole(), GROUPS[i]), order=order), i)


def whole() -> Dataset:
    return dataset({"row": np.arange(60, dtype=np.int32)})


def together(train: Any, order: Order = SHUFFLED, **options: Any) -> FitResult:
    return fit(
        jax.vmap(empty_log)(keys(0)),
        options.pop("step", log),
        replace(train, order=order),
        key=keys(1),
        epochs=EPOCHS,
        batch_size=BATCH,
        replicas=options.pop("replicas", Replicas()),
        **options,
    )


@pytest.mark.parametrize(
    ("mode", "order"),
    [
        ("map", SHUFFLED),
        ("map", Order("once", drop_remainder=True)),
        ("vmap", Order("never")),
    ],
)
def test_each_step_has_the_rows_and_the_key_of_the_run_alone(
    mode: Any, order: Order
) -> None:
    train = stacked_subsets(whole(), GROUPS)
    state = together(train, order, replicas=Replicas(mode=mode)).state
    per_epoch = [1, 2, 2, 3] if order.drop_remainder else [2, 2, 3, 3]
    assert state.step.tolist() == [EPOCHS * n for n in per_epoch]
    for i in range(len(GROUPS)):
        assert bits(replica(state, i)) == bits(alone(i, order).state)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_chunks_of_any_size_and_streams_give_the_same(kind: str) -> None:
    data = whole() if kind == "resident" else streamed(Rows())
    state = together(stacked_subsets(data, GROUPS), chunk_steps=1).state
    for i in range(len(GROUPS)):
        assert bits(replica(state, i)) == bits(alone(i, SHUFFLED).state)


def test_padding_makes_no_step_wherever_it_stands() -> None:
    """A set of 29 rows among 60: three steps an epoch and not six."""
    order = Order("never")
    data = replace(whole(), mask=jnp.zeros(60, bool).at[GROUPS[2]].set(True))
    fitted = fit_alone(replace(data, order=order), 2)
    assert bits(fitted.state) == bits(alone(2, order).state)
    assert fitted.records == alone(2, order).records


def test_a_chunk_without_a_row_has_no_mean(tmp_path: Path) -> None:
    """And is no reason to stop; what was done is counted, not what was left out."""
    options = Options(tensorboard=True)  # which takes no None either
    with open_run(tmp_path / "run", "x", "quick", Settings(), options) as run:
        sub_run = run.sub_run()
        train = stacked_subsets(whole(), GROUPS)
        rows = together(train, chunk_steps=1, log=sub_run).records
        assert sub_run.timing.steps == EPOCHS * (2 + 2 + 3 + 3)
        assert sub_run.timing.examples == EPOCHS * (14 + 20 + 29 + 30)
    assert [row["step"] for row in rows] == list(range(1, 3 * EPOCHS + 1))
    for row in rows:
        last_of_epoch = row["step"] % 3 == 0
        missing = [loss is None for loss in row["loss"]]
        assert missing == [last_of_epoch, last_of_epoch, False, False]
    means = [row["loss"] for row in together(train).records]  # of whole epochs
    wanted = [np.mean(group) for group in GROUPS]
    np.testing.assert_allclose(means, [wanted] * EPOCHS, rtol=1e-6)


def test_a_replica_that_is_not_finite_is_named_with_the_step_of_the_rows() -> None:
    """The second step of replica 1's second epoch is its fourth, the fifth in all."""

    def failing(
        state: TrainState, batch: Batch, bad: Array
    ) -> tuple[TrainState, Metrics]:
        loss = jnp.where(bad & (state.step == 3), jnp.nan, jnp.float32(1))
        return log(state, batch)[0], {"loss": Mean(loss, jnp.float32(1))}

    train = stacked_subsets(whole(), GROUPS)
    replicas = Replicas((jnp.arange(4) == 1,))
    message = r"step 4 was not finite in 1 of 4 replicas \(the first is 1\)"
    with pytest.raises(UserError, match=message):
        together(train, step=failing, replicas=replicas)


def test_a_replica_without_a_whole_batch_is_refused() -> None:
    train = stacked_subsets(whole(), [np.arange(9), np.arange(30)])
    with pytest.raises(UserError, match="9 rows do not make one batch of 10"):
        together(train, Order(drop_remainder=True))


# A state of all that a step may change: 288 and 289 rows in batches of 32.


class Network(nn.Module):
    """Normalised by the batch, and with dropout."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        # without a bias, which BatchNorm gives a gradient of mere roundings
        x = nn.Dense(4, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(1)(x)[:, 0]


MODEL = from_linen(Network(), jax.ShapeDtypeStruct((1, 3), jnp.float32))
TX = optax.adam(optax.exponential_decay(0.01, 1, 0.99), nesterov=True)
TRAIN_STEP = make_train_step(squared_error(MODEL), TX)
EVAL_STEP = make_eval_step(squared_error(MODEL))
FOLDS = [np.arange(n) for n in (288, 289)]


def rows_of_a_line() -> Dataset:
    x = np.random.default_rng(0).normal(size=(320, 3)).astype(np.float32)
    return dataset({"x": x, "y": x @ np.array([1, -2, 3], np.float32)})


def train_folds(**options: Any) -> FitResult:
    data = rows_of_a_line()
    held_out = stacked_subsets(data, [f[200:] for f in FOLDS])
    return fit(
        init_replicas(MODEL, TX, keys(0, 2)),
        TRAIN_STEP,
        stacked_subsets(data, FOLDS),
        key=keys(1, 2),
        epochs=3,
        batch_size=32,
        evaluators={"validation": Evaluator(EVAL_STEP, held_out)},
        chunk_steps=5,
        **options,
    )


def test_the_shorter_replica_trains_as_alone() -> None:
    """Counts and keys to the bit, numbers but for the roundings of other programs."""
    data, fitted = rows_of_a_line(), train_folds()
    assert fitted.state.step.tolist() == [27, 30]
    alone = fit(
        init_state(MODEL, TX, keys(0, 2)[0]),
        TRAIN_STEP,
        subset(data, FOLDS[0]),
        key=keys(1, 2)[0],
        epochs=3,
        batch_size=32,
        evaluators={"validation": Evaluator(EVAL_STEP, subset(data, FOLDS[0][200:]))},
    )
    mine = replica(fitted.state, 0)
    assert bits((mine.step, mine.key)) == bits((alone.state.step, alone.state.key))
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(alone.state), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=0, atol=30 * 8 * 2.0**-23)
        else:
            assert bits(a) == bits(b)
    losses = [
        [row["loss"][0] for row in fitted.records if row["split"] == "validation"],
        [row["loss"] for row in alone.records if row["split"] == "validation"],
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][0] > losses[0][-1]


def test_stopped_within_an_epoch_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """At step 15, the fifteenth of the longer replica and fourteenth of the other."""

    class Killed(Exception):
        pass

    def train(name: str, resume: bool, kill_at: int = -1) -> FitResult:
        def progress(chunk: Advance, *_: object) -> None:
            if chunk.step == kill_at:
                raise Killed

        with open_run(
            tmp_path / name, "x", "quick", Settings(), Options(save_every=0),
            resume=resume,
        ) as run:  # fmt: skip
            return train_folds(log=run.sub_run(on_chunk=progress))

    expected = train("whole", resume=False)
    with pytest.raises(Killed):
        train("killed", resume=False, kill_at=20)
    fitted = train("killed", resume=True)
    assert bits(fitted.state) == bits(expected.state)
    logs = [tmp_path / name / "metrics.jsonl" for name in ("whole", "killed")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
