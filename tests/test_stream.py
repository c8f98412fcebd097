"""StreamedDataset sets: the same numbers as resident ones, wherever training stops."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.chunks import Chunk
from jaxstudy.dataset import (
    BatchRows,
    Dataset,
    Order,
    dataset,
    epoch_batches,
    steps_per_epoch,
    subset,
)
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import squared_error
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import open_run
from jaxstudy.runs.saved import Options
from jaxstudy.streaming import StreamedDataset, streamed
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
from jaxstudy.types import UserError
from jaxstudy.visits import Visits
from tests.conftest import Patch, assert_rounding, assert_rows


class Rows:
    """Arrays read row by row, counting how many are read."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays, self.read = arrays, 0

    def __len__(self) -> int:
        return len(self.arrays["y"])

    def __getitem__(self, row: int) -> Mapping[str, np.ndarray]:
        self.read += 1
        return {name: a[row] for name, a in self.arrays.items()}


class ManyRows(Rows):
    """The same, several at once."""

    def __getitems__(self, rows: Sequence[int]) -> list[Mapping[str, np.ndarray]]:
        return [self[row] for row in rows]


def arrays(n: int = 32) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1, -2], np.float32)}


MODEL = mlp(2, (4,), 1)
OBJECTIVE = squared_error(MODEL)
TX = optax.adam(0.05)
TRAIN_STEP, EVAL_STEP = make_train_step(OBJECTIVE, TX), make_eval_step(OBJECTIVE)


def train(
    data: Dataset | StreamedDataset,
    validation: Dataset | StreamedDataset,
    **options: Any,
) -> FitResult:
    """Four epochs of 4 steps on 26 of the 32 rows, the last batch partly filled."""
    return fit(
        init_state(MODEL, TX, jax.random.key(0)),
        TRAIN_STEP,
        subset(data, range(26)),
        **{
            "batch_size": 8,
            "epochs": 4,
            "key": jax.random.key(1),
            "evaluators": {
                "validation": Evaluator(EVAL_STEP, subset(validation, range(26, 32)), 4)
            },
            **options,
        },
    )


def same(a: FitResult, b: FitResult) -> None:
    """But for rounding: rows of a chunk are other shapes than those of the set."""
    # 16 steps of Adam at the rate 0.05, on weights and gradients of 1 to 10
    assert_rounding(a.state, b.state, 16 * 16)
    assert_rows(a.records, b.records, 1e-4)


def test_either_set_may_be_streamed_and_trains_the_same() -> None:
    resident, source = dataset(arrays()), streamed(ManyRows(arrays()))
    expected = train(resident, resident, chunk_steps=4)
    same(train(resident, source, chunk_steps=4), expected)
    same(train(source, resident, chunk_steps=4), expected)


def test_a_small_bound_makes_more_chunks_and_the_same_bits(monkeypatch: Patch) -> None:
    source = streamed(Rows(arrays()))
    expected = train(source, source, chunk_steps=1)
    monkeypatch.setattr("jaxstudy.streaming.CHUNK_BYTES", 100)  # 8 rows of 12 bytes: 1
    small = train(source, source)
    assert small.records == expected.records
    chex.assert_trees_all_equal(small.state.params, expected.state.params)


def test_replicas_share_a_stream() -> None:
    keys, fitted = jax.random.split(jax.random.key(3), 4), []
    for data in (dataset(arrays()), streamed(Rows(arrays()))):
        state = init_replicas(MODEL, TX, jax.random.split(jax.random.key(0), 4))
        fitted.append(
            fit(
                state, TRAIN_STEP, data, key=keys, epochs=2, batch_size=8,
                evaluators={"validation": Evaluator(EVAL_STEP, data)},
                replicas=Replicas(), chunk_steps=4,
            )
        )  # fmt: skip
    same(*fitted)
    assert len(fitted[0].records[-1]["loss"]) == 4


def test_a_stopped_stream_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = Settings()

    def run(name: str, epochs: list[int]) -> FitResult:
        fitted = None
        for i, n in enumerate(epochs):
            with open_run(
                tmp_path / name, "stream", "quick", config,
                Options(save_every=0), resume=i > 0,
            ) as held:  # fmt: skip
                source = streamed(Rows(arrays()))
                fitted = train(
                    source, source, log=held.sub_run(), epochs=n, chunk_steps=2
                )
        assert fitted is not None
        return fitted

    whole, resumed = run("whole", [4]), run("stopped", [3, 4])
    chex.assert_trees_all_equal(whole.state.params, resumed.state.params)
    texts = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "stopped")]
    assert texts[0] == texts[1]


def test_the_best_of_a_stream_is_kept_and_a_wrong_monitor_named(tmp_path: Path) -> None:
    def run(monitor: str) -> None:
        options, source = (
            Options(keep="best", monitor=monitor),
            streamed(Rows(arrays())),
        )
        folder = tmp_path / monitor
        with open_run(folder, "stream", "quick", Settings(), options) as held:
            rows = train(source, source, log=held.sub_run(), epochs=2).records
            best = held.sub_run().checkpoints.best()
        losses = {r["step"]: r["loss"] for r in rows if r["split"] == "validation"}
        del losses[0]
        assert best == min(losses, key=losses.__getitem__)

    run("validation.loss")
    with pytest.raises(UserError, match=r"test\.loss: not logged.*validation\.loss"):
        run("test.loss")


def test_evaluation_reads_every_row_once() -> None:
    source = ManyRows(arrays(30))
    state = init_state(MODEL, TX, jax.random.key(0))
    values = Evaluator(EVAL_STEP, streamed(source), 8)(state)
    whole = Evaluator(EVAL_STEP, dataset(arrays(30)), 8)(state)
    assert values == pytest.approx(whole, rel=1e-6)
    assert source.read == 32  # the last batch is filled up


@pytest.mark.parametrize(
    ("n", "batch_size", "groups"), [(1, 9, 1), (7, 3, 0), (22, 7, 2)]
)
def test_chunks_hold_the_batches_of_resident_sets(
    n: int, batch_size: int, groups: int
) -> None:
    """For every chunk size that divides an epoch, begun at every chunk's begin."""
    per_epoch = steps_per_epoch(n, batch_size, Order())
    key = jax.random.key(5)
    keys = jax.random.split(key, groups) if groups else key
    source = streamed(Rows({"y": np.arange(n)}))
    order = jax.jit(lambda k, epoch: epoch_batches(source, batch_size, k, epoch))
    for steps in range(1, per_epoch + 1):
        if per_epoch % steps:
            continue
        visits = Visits(source, keys, batch_size, per_epoch, Chunk(steps, 1))
        for begin in range(0, 2 * per_epoch, steps):
            epoch, first = divmod(begin, per_epoch)
            arrays, visited = visits.load(begin)
            assert isinstance(visited, BatchRows)
            assert arrays == {}
            shape = (-1, steps, batch_size)
            for k, rows, valid in zip(
                jnp.atleast_1d(keys),
                np.reshape(visited.fields["y"], shape),
                np.reshape(visited.mask, shape),
                strict=True,
            ):
                want = jax.device_get(order(k, jnp.int32(epoch)))
                now = slice(first, first + steps)
                np.testing.assert_array_equal(rows, want.indices[now])
                np.testing.assert_array_equal(valid, want.mask[now])


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(ValueError, match="a row at least"):
        streamed(Rows(arrays(0)))
    folds = streamed(Rows(arrays()))
    folds = replace(folds, indices=jnp.zeros((2, 4), int), mask=jnp.ones((2, 4), bool))
    state = init_replicas(MODEL, TX, jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="resident"):
        Evaluator(EVAL_STEP, folds)(state)
