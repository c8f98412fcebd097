"""The adding problem: what the sequences are, and what networks keep of them."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.models.recurrent import sequence_to_vector
from jaxstudy.runs import plots
from jaxstudy.study import memory
from jaxstudy.training import init_replicas
from tests.conftest import Smoke, load

lesson: Any = load("experiments", "ch3_memory")


@pytest.mark.parametrize("length", [2, 5, 40])
def test_two_numbers_are_marked_and_their_sum_is_asked(length: int) -> None:
    data = memory.adding_problem(4000, length, seed=0)
    x, y = (np.asarray(data.arrays[name]) for name in ("x", "y"))
    assert x.shape == (4000, length, 2)
    numbers, marks = x[..., 0], x[..., 1]
    for half in (marks[:, : length // 2], marks[:, length // 2 :]):
        assert np.all(half.sum(1) == 1)
    np.testing.assert_allclose((numbers * marks).sum(1), y, rtol=1e-6)
    # predicting 1 has an error of 1/6, within four standard errors
    assert np.mean((y - 1) ** 2) == pytest.approx(1 / 6, abs=4 * 0.2 / np.sqrt(4000))
    same, other = (
        memory.adding_problem(50, length, seed).arrays["x"] for seed in (0, 1)
    )
    np.testing.assert_array_equal(
        same, memory.adding_problem(50, length, 0).arrays["x"]
    )
    assert not np.any(np.isin(other[..., 0], same[..., 0]).all(1))


def test_jacobians_are_those_of_the_output_at_every_step() -> None:
    """Beside finite differences, for the norm over a step's two inputs."""
    model = sequence_to_vector(2, "lstm", (4,), 1)
    data = memory.adding_problem(1, 5, seed=0)
    state = init_replicas(model, optax.sgd(0.1), jax.random.split(jax.random.key(0), 2))
    x = np.asarray(data.arrays["x"])
    norms = memory.input_jacobian_norms(model, state, x)
    assert norms.shape == (2, 5)
    changes = 0.01 * np.eye(10).reshape(10, 5, 2)  # of one input at one step
    apply = jax.jit(lambda p, x: model.apply(p, {}, x, train=False, key=None)[0])
    for seed in range(2):
        params = jax.tree.map(lambda a, seed=seed: a[seed], state.params)
        ends = (apply(params, np.float32(x + sign * changes)) for sign in (1, -1))
        upper, lower = map(np.asarray, ends)
        slopes = ((upper - lower) / 0.02).reshape(5, 2)
        np.testing.assert_allclose(norms[seed], np.hypot(*slopes.T), rtol=0.02)


def test_a_jacobian_shrinks_by_the_size_of_the_recurrent_matrix() -> None:
    """An orthogonal one times 1/2, and slopes of tanh under 1: half is lost a step."""
    model = sequence_to_vector(2, "simple", (16,), 1)
    keys = jax.random.split(jax.random.key(0), 2)
    state = init_replicas(model, optax.sgd(0.1), keys)
    layer = state.params["layers"]["layer_1"]
    x = memory.adding_problem(50, 60, seed=0).arrays["x"]

    def bits_lost(size: float) -> np.ndarray:
        changed = {**layer, "recurrent_kernel": size * layer["recurrent_kernel"]}
        params = {**state.params, "layers": {"layer_1": changed}}
        norms = memory.input_jacobian_norms(model, state._replace(params=params), x)
        return np.log2(norms[:, 50] / norms[:, 10]) / 40

    norms = 10.0 ** -np.outer([0.5, 2.0], np.arange(40)[::-1])
    np.testing.assert_allclose(memory.decay_per_step(norms), [0.5, 2.0])
    assert np.isnan(memory.log_jacobians(norms)[1, :24]).all()  # below 1e-30
    diverged = memory.decay_per_step(np.full((1, 40), np.nan))
    assert np.isnan(diverged).all()  # and no error after hours of training
    assert np.all(bits_lost(0.5) >= 1)
    assert np.all(bits_lost(1.0) < 0.5)


def test_open_gates_keep_more_and_the_error_is_split_by_position() -> None:
    """Of a cell, sigmoid(b) stays at a step; the parts' errors add up to the whole."""
    model = sequence_to_vector(2, "lstm", (4,), 1)
    state = init_replicas(model, optax.sgd(0.1), jax.random.split(jax.random.key(0), 2))
    opened = memory.with_forget_bias(state, 3.0)
    data = memory.adding_problem(40, 40, seed=0)
    (old,), (new,) = (
        [layer["bias"] for layer in s.params["layers"].values()]
        for s in (state, opened)
    )
    np.testing.assert_array_equal(new[:, 4:8], np.full((2, 4), 3.0))
    np.testing.assert_array_equal(np.delete(new, range(4, 8), 1),
                                  np.delete(old, range(4, 8), 1))  # fmt: skip
    x = data.arrays["x"]
    (_, lost), (_, kept) = (
        np.log(memory.input_jacobian_norms(model, s, x)[:, [39, 5]]).T
        for s in (state, opened)
    )
    assert np.all(kept > lost + 3)
    of_seed = jax.tree.map(lambda a: a[0], state)
    batch = {**data.arrays, "mask": jnp.arange(40) < 30}
    metrics = dict(memory.error_by_first_mark(model, 5)(of_seed, batch))
    whole, parts = metrics.pop("loss"), list(metrics.values())
    first = np.asarray(x)[:30, :, 1].argmax(1) // 4
    assert [int(part.count) for part in parts] == np.bincount(first).tolist()
    assert sum(p.total for p in parts) == pytest.approx(float(whole.total), rel=1e-5)


def test_errors_are_drawn_beside_those_of_the_same_test_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not beside 1/6, from which 100 sequences may be far; steps count from 1."""
    panels: dict[str, plots.Panel] = {}
    monkeypatch.setattr(
        plots, "save_lines", lambda run, name, some: panels.update({name: some[0]})
    )
    run: Any = None
    trained = memory.AddingResult(np.ones(2), 0.15, np.ones((2, 2)), {})
    lesson.draw_errors(run, (4, 8), {"GRU": [0.1, 0.2]}, [0.15, 0.17])
    memory.draw_error_by_position(run, {"GRU": trained}, 8)
    assert panels["errors"].lines["always predicting 1"] == ((4, 8), [0.15, 0.17])
    lesson.draw_errors(run, (4,), {"GRU": [0.1]}, [0.15])  # a line would be a point
    assert panels["errors"].lines == {"GRU": (["GRU"], [0.1])}
    assert panels["errors"].levels["always predicting 1"] == 0.15
    assert panels["positions"].levels["always predicting 1"] == 0.15
    steps, _ = panels["positions"].lines["GRU"]
    assert steps == [1.5, 3.5]  # the means of steps 1 and 2, of 3 and 4


def test_the_longest_sequences_have_a_name_of_their_own(smoke: Smoke) -> None:
    """So that a claim can name them at every preset."""
    text = (smoke("ch3_memory") / "result.json").read_text()
    metrics = json.loads(text)["metrics"]
    constant = metrics["constant prediction: squared error"]  # of 100 sequences
    assert constant == pytest.approx(1 / 6, abs=4 * 0.2 / 10)
    for name in lesson.KINDS:
        error = metrics[lesson.ERROR.format(name)]
        assert error == metrics[f"{name}, T = 4: squared error"]
        assert len(error["values"]) == 2
    assert set(lesson.LESSON.metrics) <= set(metrics)
