"""The small CNN: Keras's with copied weights, and what it says of its layers."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxstudy.model import parameter_count
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.types import Array

SHAPE, CLASSES, FILTERS, HIDDEN = (11, 12, 2), 3, (4, 5), (6,)


def twin(pool: str, padding: str) -> Any:
    """The same network in Keras."""
    layers: list[Any] = [keras.Input(SHAPE), keras.layers.Rescaling(1 / 255)]
    for filters in FILTERS:
        layers.append(
            keras.layers.Conv2D(filters, 3, padding=padding.lower(), activation="relu")
        )
        if pool != "none":
            kind = {"max": "MaxPooling2D", "average": "AveragePooling2D"}[pool]
            layers.append(getattr(keras.layers, kind)(2))
    layers.append(keras.layers.Flatten())
    layers += [keras.layers.Dense(n, activation="relu") for n in HIDDEN]
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES)])


def weights(params: Any) -> list[np.ndarray]:
    """Those of the network, in Keras's order."""
    names = ("conv_1", "conv_2", "hidden_1", "output")
    return [np.asarray(params[n][k]) for n in names for k in ("kernel", "bias")]


@pytest.mark.parametrize(
    ("pool", "padding"), [("max", "SAME"), ("average", "VALID"), ("none", "SAME")]
)
def test_outputs_and_gradients_are_keras_s(pool: Any, padding: Any) -> None:
    model = cnn(
        SHAPE, CLASSES, filters=FILTERS, hidden=HIDDEN, pool=pool, padding=padding
    )
    params, extra = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), params
    )
    other = twin(pool, padding)
    other.set_weights(weights(params))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, *SHAPE)).astype(np.float32)
    y = np.array([0, 2, 1, 2])
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.ones(4)}
    # float32, products of up to 90 numbers: some 1e-6 of the values
    apply = jax.jit(model.apply, static_argnames="train")
    logits, _ = apply(params, extra, batch["x"], train=False, key=None)
    np.testing.assert_allclose(logits, other(x), atol=1e-5)

    def keras_loss(variables: list[Array]) -> Array:
        outputs, _ = other.stateless_call(variables, [], x)
        losses = keras.losses.sparse_categorical_crossentropy(y, outputs, True)
        return jnp.mean(jnp.asarray(losses))

    def loss(params: Any) -> Array:
        return cross_entropy(model)(params, extra, batch, None)[0]

    got = jax.jit(jax.grad(loss))(params)
    want = jax.jit(jax.grad(keras_loss))([jnp.asarray(w) for w in weights(params)])
    for a, b in zip(weights(got), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert parameter_count(model) == other.count_params()


def test_it_shows_what_every_layer_gave() -> None:
    """As the layers of Keras's network give it, with the same weights."""
    model = cnn(
        SHAPE, CLASSES, filters=FILTERS, hidden=HIDDEN, padding="VALID", capture=True
    )
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.float32)
    (_, values), _ = model.apply(params, extra, x, train=False, key=None)
    other = twin("max", "VALID")
    other.set_weights(weights(params))
    layers = keras.Model(other.inputs[0], [layer.output for layer in other.layers[1:5]])
    names = ("convolution 1", "pooling 1", "convolution 2", "pooling 2")
    assert values.keys() == set(names)
    for name, want in zip(names, layers(x), strict=True):
        np.testing.assert_allclose(values[name][0], want, atol=1e-5)


def test_dropout_is_for_training_and_needs_a_key() -> None:
    model = cnn(SHAPE, CLASSES, filters=(2,), dropout=0.5)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = jnp.full((2, *SHAPE), 99.0)

    apply = jax.jit(model.apply, static_argnames="train")

    def outputs(key: int | None) -> np.ndarray:
        typed = None if key is None else jax.random.key(key)
        return np.asarray(apply(params, extra, x, train=key is not None, key=typed)[0])

    assert np.array_equal(outputs(None), outputs(None))
    assert np.array_equal(outputs(1), outputs(1))
    assert not np.array_equal(outputs(1), outputs(2))
    with pytest.raises(Exception, match="dropout"):
        model.apply(params, extra, x, train=True, key=None)


def test_without_filters_it_is_a_dense_network_on_all_pixels() -> None:
    model = cnn(SHAPE, CLASSES, filters=(), hidden=(7,))
    assert parameter_count(model) == (11 * 12 * 2 + 1) * 7 + (7 + 1) * CLASSES
