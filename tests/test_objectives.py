import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxstudy.model import Model
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import (
    binary_cross_entropy,
    cross_entropy,
    masked_mean,
    mean_value,
    sequence_cross_entropy,
    squared_error,
)
from jaxstudy.types import Array, Batch, Mean, Objective, PyTree

# Twelve digits, except where Keras averages float64 in float32.
F64: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}
F32: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}


class Case(NamedTuple):
    """An objective, how many outputs its model has, and the same loss in Keras."""

    make: Callable[[Model], Objective]
    outputs: int
    twin: Callable[[Array, Array], Any]
    tolerance: dict[str, Any] = F64


def keras_binary(y: Array, logits: Array) -> Any:
    losses: Any = keras.ops.binary_crossentropy(y, logits, from_logits=True)
    total: Any = keras.ops.sum(losses)
    return total / len(y)


CASES = {
    "binary": Case(binary_cross_entropy, 1, keras_binary),
    "classes": Case(
        cross_entropy,
        4,
        lambda y, p: keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, p),
    ),
    "squared": Case(
        squared_error,
        1,
        lambda y, p: keras.losses.MeanSquaredError()(y[:, None], p[:, None]),
        F32,
    ),
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 5))
Y = {
    "binary": (RNG.random(32) < 0.4).astype(np.float64),
    "classes": RNG.integers(0, 4, 32),
    "squared": RNG.normal(size=32),
}


def batch(name: str, mask: np.ndarray | None = None) -> Batch:
    mask = np.ones(32) if mask is None else mask
    fields = {"x": X, "y": Y[name], "mask": mask}
    return {k: jnp.asarray(v) for k, v in fields.items()}


@functools.cache
def network(name: str) -> tuple[Model, PyTree]:
    """A model and its float64 weights."""
    model = mlp(5, (8,), CASES[name].outputs, jnp.tanh)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    return model, jax.tree.map(lambda a: 3 * jnp.asarray(a, jnp.float64), params)


@functools.cache
def program(name: str) -> Callable[..., Any]:
    """Loss and gradient, compiled once for each number of rows."""
    objective = CASES[name].make(network(name)[0])
    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def loss_and_gradient(name: str, batch: Batch) -> tuple[Array, PyTree, Any]:
    params, key = network(name)[1], jax.random.key(0)
    (loss, (_, metrics)), grads = program(name)(params, {}, batch, key)
    return loss, grads, metrics


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_keras(name: str) -> None:
    *_, twin, tolerance = CASES[name]
    model, params = network(name)
    rows = batch(name)
    loss, grads, metrics = loss_and_gradient(name, rows)

    def theirs(params: PyTree) -> Array:
        outputs, _ = model.apply(params, {}, rows["x"], train=True, key=None)
        return twin(rows["y"], outputs)

    want, want_grads = jax.jit(jax.value_and_grad(theirs))(params)
    assert loss.dtype == want.dtype == jnp.float64
    np.testing.assert_allclose(loss, want, **tolerance)
    assert metrics["loss"].count == 32
    np.testing.assert_allclose(mean_value(metrics["loss"]), loss, **F64)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), grads, want_grads
    )
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_padding_weighs_nothing_and_may_hold_anything(name: str) -> None:
    """A padded batch has the loss, gradient and metrics of its real rows alone."""
    real = np.arange(32) % 3 != 1
    alone = {k: v[real] for k, v in batch(name).items()}
    want = loss_and_gradient(name, alone)
    whole = loss_and_gradient(name, batch(name))
    assert abs(whole[0] - want[0]) > 1e-3  # so ignoring the mask would be seen
    rows = {**batch(name, real.astype(float))}
    for bad in (None, np.nan, np.inf, 1e308):  # 8 e308 is infinite
        if bad is not None:
            rows["x"] = jnp.where(real[:, None], rows["x"], bad)
            rows["y"] = jnp.where(real, rows["y"], 99 if name == "classes" else bad)
        found = loss_and_gradient(name, rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **F64), found, want)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_padding_only_is_no_step(name: str) -> None:
    loss, grads, metrics = loss_and_gradient(name, batch(name, np.zeros(32)))
    assert loss == 0
    assert metrics["loss"] == (0, 0)
    assert not any(bool(g.any()) for g in jax.tree.leaves(grads))


def outputs_as(values: np.ndarray) -> Model:
    """A model that says these, whatever it is asked."""
    return Model(lambda key: ({}, {}), lambda *_, **__: (jnp.asarray(values), {}))


def accuracy(objective: Objective, y: list[int], mask: list[int]) -> Mean:
    rows = {"x": jnp.zeros(len(y)), "y": jnp.asarray(y), "mask": jnp.asarray(mask)}
    return objective({}, {}, rows, None)[1][1]["accuracy"]


def test_accuracy_is_counted_over_real_rows() -> None:
    logits = np.array([2.0, -1.0, 0.5, -3.0, 0.0, 9.0], np.float32)
    objective = binary_cross_entropy(outputs_as(logits))
    # p = 1/2 is "no"; right, right, wrong, right, right, and one that is padding
    assert accuracy(objective, [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]) == (4, 5)
    logits = np.array([[0, 1, 2], [5, 1, 2], [0, 9, 2], [7, 0, 0]], np.float32)
    objective = cross_entropy(outputs_as(logits))
    assert accuracy(objective, [2, 0, 0, 1], [1, 1, 1, 0]) == (2, 3)


def test_losses_are_finite_where_probabilities_are_not() -> None:
    """exp(-1000) is 0 in every float: the losses must work on logits."""
    logits = np.array([1000.0, -1000.0], np.float32)
    for y, want in (([1, 0], 0.0), ([0, 1], 1000.0)):
        rows = {"x": jnp.zeros(2), "y": jnp.asarray(y, jnp.float32)}
        rows["mask"] = jnp.ones(2)
        loss, _ = binary_cross_entropy(outputs_as(logits))({}, {}, rows, None)
        assert loss == want
        both = np.stack([np.zeros(2, np.float32), logits], 1)
        rows["y"] = jnp.asarray(y)
        loss, _ = cross_entropy(outputs_as(both))({}, {}, rows, None)
        assert loss == want


@pytest.mark.parametrize("key", [None, 0])
def test_the_key_says_which_mode(key: int | None) -> None:
    """With a key the model trains and gets that key; with None it is evaluated."""
    seen = {}
    the_key = None if key is None else jax.random.key(key)

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Any
    ) -> tuple[Array, PyTree]:
        seen.update(train=train, key=key)
        return x[:, 0], {"after": extra["before"] + 1}

    objective = squared_error(Model(lambda key: ({}, {}), apply))
    _, (extra, _) = objective({}, {"before": 1}, batch("squared"), the_key)
    assert seen == {"train": key is not None, "key": the_key}
    assert extra == {"after": 2}


def test_symbols_after_the_end_may_be_anything() -> None:
    """Of a sequence of two symbols the third is none, with any logits."""
    logits = np.array([[[0.0, 1.0], [2.0, 0.0], [np.nan, np.inf]]], np.float32)

    def apply(params: PyTree, *_: Any, **__: Any) -> tuple[Array, PyTree]:
        return params * jnp.asarray(logits), {}

    objective = sequence_cross_entropy(Model(lambda key: ({}, {}), apply), 0)
    rows = {
        "x": jnp.zeros((1, 3), int), "x_length": jnp.array([3]),
        "y": jnp.array([[1, 1, 99]]), "y_length": jnp.array([2]), "mask": jnp.ones(1),
    }  # fmt: skip
    loss, _ = objective(jnp.float32(1), {}, rows, None)
    assert loss == pytest.approx(np.log([1 + np.exp(-1), 1 + np.exp(2)]).mean())


def test_means_of_parts_add_up_to_the_mean() -> None:
    values, mask = jnp.arange(10.0), jnp.asarray([1, 1, 0, 1, 0, 0, 1, 1, 1, 0])
    parts = [masked_mean(values[s], mask[s]) for s in (slice(0, 3), slice(3, 10))]
    total = jax.tree.map(jnp.add, *parts)
    assert total == masked_mean(values, mask) == (25, 6)
    # a GPU's division may be wrong in the last bit
    np.testing.assert_array_max_ulp(mean_value(total), np.float32(25 / 6), 1)
    assert mean_value(Mean(jnp.float32(0), jnp.float32(0))) == 0
