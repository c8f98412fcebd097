"""Dense networks against Keras, and the seam between Flax and two pure functions."""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from jaxstudy.model import Model, from_linen
from jaxstudy.models.mlp import ACTIVATIONS, mlp
from jaxstudy.types import Array, PyTree
from jaxstudy.wrappers import column_statistics, standardized

# The same functions in Keras; the course's leaky ReLU has slope 0.2, Keras's 0.3.
TWINS: dict[str, Any] = {
    "none": None,
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "leaky_relu": lambda x: keras.activations.leaky_relu(x, 0.2),
    "gelu": keras.activations.gelu,
}
# A few dozen roundings of numbers near 1.
F64: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}


def initial(model: Model, seed: int = 0) -> tuple[PyTree, PyTree]:
    """`model.init`, compiled once and not operation by operation."""
    return jax.jit(model.init)(jax.random.key(seed))


def as_float64(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


def flat(tree: PyTree) -> list[Any]:
    """The kernels and biases of hidden_1, hidden_2, ..., output in order."""
    parts = [(layer, part) for layer in sorted(tree) for part in ("kernel", "bias")]
    return [tree[layer][part] for layer, part in parts if part in tree[layer]]


def keras_twin(params: PyTree, activation: Any, features: int) -> keras.Model:
    """The same Dense layers in Keras, with these weights copied into them."""
    layers = [keras.layers.Input((features,))]
    for name, layer in sorted(params.items()):
        of_layer = None if name == "output" else activation
        units, bias = layer["kernel"].shape[1], "bias" in layer
        layers.append(keras.layers.Dense(units, of_layer, use_bias=bias))
    model = keras.Sequential(layers)
    model.set_weights([np.asarray(a) for a in flat(params)])
    return model


def examples(n: int = 32, features: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, features))


def test_activations_are_keras_s() -> None:
    x = jnp.linspace(-3, 3, 61)
    for name, activation in ACTIVATIONS.items():  # each has a twin
        want: Any = keras.activations.get(TWINS[name])(x)
        np.testing.assert_allclose(activation(x), want, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("use_bias", [True, False])
def test_outputs_and_gradients_equal_keras(use_bias: bool) -> None:
    """Two hidden layers, copied weights: logits, cross-entropy and its gradient."""
    model = mlp(5, (8, 7), 3, ACTIVATIONS["gelu"], use_bias=use_bias)
    y = np.arange(32) % 3
    x = jnp.asarray(examples())
    params, extra = as_float64(initial(model))
    params = jax.tree.map(lambda a: a + 0.1, params)  # biases that are not 0
    twin = keras_twin(params, TWINS["gelu"], 5)

    def ours(params: PyTree) -> tuple[Array, Array]:
        logits, _ = model.apply(params, extra, x, train=True, key=None)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(losses), logits

    def theirs(weights: list[Array]) -> tuple[Any, Any]:
        logits, *_ = twin.stateless_call(weights, [], x, training=True)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss(y, logits), logits

    gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))
    (loss, logits), grads = gradient(params)
    gradient = jax.jit(jax.value_and_grad(theirs, has_aux=True))
    values = [v.value for v in twin.trainable_variables]
    (want_loss, want_logits), want_grads = gradient(values)
    assert logits.dtype == want_logits.dtype == jnp.float64
    np.testing.assert_allclose(logits, want_logits, **F64)
    np.testing.assert_allclose(loss, want_loss, **F64)
    assert len(flat(grads)) == len(want_grads) == (6 if use_bias else 3)
    for got, want in zip(flat(grads), want_grads, strict=True):
        np.testing.assert_allclose(got, want, **F64)


def test_no_hidden_layer_is_a_linear_model_of_one_output() -> None:
    model = mlp(5, (), 1)
    params, extra = initial(model, 1)
    assert jax.tree.map(jnp.shape, params) == {
        "output": {"kernel": (5, 1), "bias": (1,)}
    }
    x = jnp.asarray(examples(), jnp.float32)
    outputs, _ = model.apply(params, extra, x, train=False, key=None)
    assert outputs.shape == (32,)
    want = np.asarray(x) @ np.asarray(params["output"]["kernel"])[:, 0]
    np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-6)


def test_weights_begin_as_in_keras() -> None:
    """Kernels U(-l, l), l = sqrt(6 / (in + out)); biases 0 (Glorot and Bengio 2010)."""
    params, extra = initial(mlp(300, (200,), 100), 2)
    assert extra == {}
    assert sorted(params) == ["hidden_1", "output"]
    for layer, fans in (("hidden_1", (300, 200)), ("output", (200, 100))):
        kernel = np.asarray(params[layer]["kernel"])
        limit = np.sqrt(6 / sum(fans))
        assert kernel.shape == fans
        assert np.abs(kernel).max() <= limit
        # 5 standard errors of the share below each quartile of U(-limit, limit)
        for share in (0.25, 0.5, 0.75):
            below = np.mean(kernel < limit * (2 * share - 1))
            error = np.sqrt(share * (1 - share) / kernel.size)
            assert abs(below - share) < 5 * error
        assert not params[layer]["bias"].any()


def test_captured_values_are_those_of_the_layers() -> None:
    model = mlp(5, (8, 7), 1, jnp.tanh)
    capturing = mlp(5, (8, 7), 1, jnp.tanh, capture=True)
    params, extra = initial(capturing)
    assert extra == {}
    x = jnp.asarray(examples(), jnp.float32)
    for train in (False, True):
        (outputs, values), after = capturing.apply(
            params, extra, x, train=train, key=None
        )
        plain, _ = model.apply(params, extra, x, train=train, key=None)
        np.testing.assert_array_equal(outputs, plain)
        assert after == {}
        assert sorted(values) == ["z1", "z2"]
        h = np.asarray(x)
        for i in (1, 2):
            layer = jax.tree.map(np.asarray, params[f"hidden_{i}"])
            z = h @ layer["kernel"] + layer["bias"]
            np.testing.assert_allclose(values[f"z{i}"][0], z, rtol=1e-5, atol=1e-6)
            h = np.tanh(z)


class Noisy(nn.Module):
    """Dropout and batch statistics: all that the seam must carry."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dense(16)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.fixture(scope="module")
def noisy() -> Model:
    return from_linen(Noisy(), jax.ShapeDtypeStruct((1, 5), jnp.float32))


def test_training_draws_from_its_key(noisy: Model) -> None:
    params, extra = initial(noisy)
    x = jnp.asarray(examples(), jnp.float32)

    def zeros(key: Any) -> np.ndarray:
        return np.asarray(noisy.apply(params, extra, x, train=True, key=key)[0] == 0)

    first, again, other = (zeros(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        noisy.apply(params, extra, x, train=True, key=None)


def test_evaluation_needs_no_key_and_changes_nothing(noisy: Model) -> None:
    params, extra = initial(noisy)
    x = jnp.asarray(examples(), jnp.float32)
    outputs, after = noisy.apply(params, extra, x, train=False, key=None)
    with_key, _ = noisy.apply(params, extra, x, train=False, key=jax.random.key(0))
    np.testing.assert_array_equal(outputs, with_key)
    assert jax.tree.all(jax.tree.map(np.array_equal, extra, after))


def test_training_moves_the_batch_statistics(noisy: Model) -> None:
    """They go where Keras's would: m = 0.9 m + 0.1 batch, variance biased."""
    params, extra = initial(noisy)
    assert sorted(params) == ["BatchNorm_0", "Dense_0"]
    assert sorted(extra) == ["batch_stats"]
    x = examples().astype(np.float32) * 3 + 2
    _, after = noisy.apply(params, extra, x, train=True, key=jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(extra)
    statistics = after["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var(0), rtol=1e-5)
    twin = keras.layers.BatchNormalization(momentum=0.9)
    twin(x, training=True)
    np.testing.assert_allclose(statistics["mean"], twin.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], twin.moving_variance, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_column_statistics_count_valid_rows_only() -> None:
    x = np.concatenate([examples(20) * [1, 10, 0.1, 5, 0] + 3, np.full((4, 5), 1e6)])
    valid = np.arange(24) < 20
    mean, scale = column_statistics(jnp.asarray(x), jnp.asarray(valid))
    np.testing.assert_allclose(mean, x[:20].mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale[:4], x[:20, :4].std(0), rtol=1e-12)
    assert scale[4] == 1  # a constant column becomes 0, not NaN


@pytest.mark.parametrize("value", [0.1, 1e6 / 3, 1.6e9])
def test_a_constant_column_of_32_bits_gets_scale_1(value: float) -> None:
    x = jnp.full((400, 1), value)  # its mean is another, and the variance not 0
    mean, scale = column_statistics(x, jnp.ones(400, bool))
    assert scale == 1
    assert mean == x[0]


def test_a_standardized_model_is_the_model_of_standardized_columns() -> None:
    model = mlp(5, (8,), 1)
    wrapped = standardized(model, 5)
    params, extra = initial(wrapped)
    inner, _ = initial(model)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, inner))
    x = jnp.asarray(examples() * [1, 10, 0.1, 5, 100] + 3, jnp.float32)

    def outputs(model: Model, extra: PyTree, x: Array) -> Array:
        return model.apply(params, extra, x, train=False, key=None)[0]

    np.testing.assert_array_equal(outputs(wrapped, extra, x), outputs(model, {}, x))
    statistics = column_statistics(x, jnp.ones(len(x), bool))
    extra["standardization"] = statistics
    columns = (x - statistics.mean) / statistics.scale
    got = outputs(wrapped, extra, x)
    np.testing.assert_array_equal(got, outputs(model, {}, columns))
    assert np.abs(got - outputs(model, {}, x)).min() > 1e-3


def test_standardization_and_the_inner_state_pass_through(noisy: Model) -> None:
    wrapped = standardized(noisy, 5)
    params, extra = initial(wrapped)
    x = jnp.asarray(examples(), jnp.float32)
    extra["standardization"] = column_statistics(x, jnp.ones(len(x), bool))
    _, after = wrapped.apply(params, extra, x, train=True, key=jax.random.key(1))
    assert jax.tree.structure(after) == jax.tree.structure(extra)
    same = jax.tree.map(np.array_equal, extra, after)
    assert all(same["standardization"])
    assert not jax.tree.all(same["model"])
