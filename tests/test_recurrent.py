"""Recurrent layers: equal to Keras's, causal, and the same however they are run."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxstudy.models.recurrent import (
    CELLS,
    Kind,
    Recurrent,
    RecurrentLayer,
    States,
    first_states,
    from_keras,
    language_model,
    one_hot_product,
    recur,
    to_keras,
)
from jaxstudy.types import Array
from tests.conftest import assert_rounding

KINDS: tuple[Kind, ...] = get_args(Kind)
BATCH, STEPS, FEATURES, UNITS = 3, 6, 5, 4
LENGTHS = np.array([6, 1, 4])
THEIRS: dict[Kind, Any] = {
    "simple": keras.layers.SimpleRNN,
    "gru": keras.layers.GRU,
    "lstm": keras.layers.LSTM,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def random_params(kind: Kind) -> Any:
    """Every array is random: a bias that stayed zero would prove nothing."""
    x = jnp.zeros((1, 1, FEATURES))
    like = jax.eval_shape(RecurrentLayer(kind, UNITS).init, jax.random.key(0), x)[
        "params"
    ]
    return {
        name: 0.5 * normal(*leaf.shape, seed=seed)
        for seed, (name, leaf) in enumerate(sorted(like.items()), 1)
    }


@functools.partial(jax.jit, static_argnums=0)
def outputs(kind: Kind, params: Any, x: Array, lengths: Any = None) -> Array:
    return RecurrentLayer(kind, UNITS).apply({"params": params}, x, lengths)[0]  # type: ignore[index]


def total(y: Array) -> Array:
    """A number that depends on every value of y in its own way."""
    return jnp.sum(jnp.sin(y * jnp.linspace(1, 2, y.size).reshape(y.shape)))


def close(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    """Equal within a tolerance, relative to the largest value if that is above 1."""
    a, b = np.asarray(a), np.asarray(b)
    scale = max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [*((kind, LENGTHS) for kind in KINDS), ("gru", None)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outputs_and_gradients_are_those_of_keras(kind: Kind, lengths: Any) -> None:
    # in float32: Keras on JAX casts to it in tanh
    params, x = random_params(kind), normal(BATCH, STEPS, FEATURES)
    theirs = THEIRS[kind](UNITS, return_sequences=True)
    theirs.build(x.shape)
    theirs.set_weights(to_keras(params))
    mask = None if lengths is None else jnp.arange(STEPS) < lengths[:, None]

    def ours(params: Any, x: Array) -> Array:
        return outputs(kind, params, x, lengths)

    def keras_layer(weights: Any, x: Array) -> Array:
        y, _ = theirs.stateless_call(
            weights, [v.value for v in theirs.non_trainable_variables], x, mask=mask
        )
        return y

    weights = [v.value for v in theirs.trainable_variables]

    def with_gradients(run: Any, weights: Any) -> Any:
        def value(weights: Any, x: Array) -> tuple[Array, Array]:
            y = run(weights, x)
            return total(y), y

        return jax.jit(jax.grad(value, (0, 1), has_aux=True))(weights, x)

    mine, y = with_gradients(ours, params)
    want, their_y = with_gradients(keras_layer, weights)
    close(y, their_y)
    close(mine[1], want[1])
    for a, b in zip(to_keras(mine[0]), want[0], strict=True):
        close(a, b)


@every_kind
def test_weights_go_to_keras_and_back(kind: Kind) -> None:
    theirs = THEIRS[kind](UNITS)
    theirs.build((None, STEPS, FEATURES))
    weights = [np.asarray(v.value) for v in theirs.weights]
    params = from_keras(weights)
    for a, b in zip(to_keras(params), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    x = normal(BATCH, STEPS, FEATURES)
    close(outputs(kind, params, x)[:, -1], theirs(x))
    for wrong in (
        weights[:2],
        [*weights[:2], weights[2][..., 1:]],
        [weights[0][:, 1:], *weights[1:]],
    ):
        with pytest.raises(ValueError, match="not those of a recurrent layer"):
            from_keras(wrong)


def plain(kind: Kind, x: Array, kernel: Array, bias: Array, begin: States) -> States:
    """The recurrence as a plain scan, for its derived gradient."""

    def step(states: States, x: Array) -> tuple[States, States]:
        after = CELLS[kind].step(x, states[0] @ kernel + bias, states)
        return after, after

    return jax.lax.scan(step, begin, x)[1]


@every_kind
@pytest.mark.usefixtures("float64")
def test_the_gradient_is_that_of_a_plain_scan(kind: Kind) -> None:
    width = CELLS[kind].gates * UNITS
    args = (
        normal(STEPS, BATCH, width, dtype=np.float64),
        normal(UNITS, width, seed=1, dtype=np.float64),
        normal(width, seed=2, dtype=np.float64),
        tuple(
            normal(BATCH, UNITS, seed=n, dtype=np.float64)
            for n in range(CELLS[kind].states)
        ),
    )

    def gradient(run: Callable[..., States]) -> Any:
        def value(*args: Any) -> Array:
            return sum((total(a) for a in run(*args)), jnp.zeros(()))

        return jax.jit(jax.grad(value, (0, 1, 2, 3)))(*args)

    found = gradient(lambda *args: recur(kind, *args, None))
    want = gradient(lambda *args: plain(kind, *args))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        close(a, b, 1e-14)


@every_kind
def test_padding_changes_nothing(kind: Kind) -> None:
    """What it holds, no bit; how much of it there is, the program."""
    x = normal(BATCH, STEPS, FEATURES)
    run = jax.jit(RecurrentLayer(kind, UNITS).apply)
    variables = {"params": random_params(kind)}
    y, last = run(variables, x, LENGTHS)
    real = (np.arange(STEPS) < LENGTHS[:, None])[..., None]
    other = run(variables, jnp.where(real, x, 3), LENGTHS)
    chex.assert_trees_all_equal(other, (y, last))
    more = jnp.concatenate([x, normal(BATCH, 7, FEATURES, seed=7)], axis=1)
    padded, padded_last = run(variables, more, LENGTHS)
    # sums of 5 and 4 products, up to 6 steps that carry the roundings on
    assert_rounding((padded[:, :STEPS], padded_last), (y, last), 16)
    for row, length in enumerate(LENGTHS):  # padding repeats the last real output
        repeated = y[row, [length - 1]].repeat(STEPS - length, 0)
        np.testing.assert_array_equal(y[row, length:], repeated)
    assert not np.array_equal(y, run(variables, x, None)[0])


@every_kind
def test_parts_that_carry_their_states_are_one_long_pass(kind: Kind) -> None:
    x = normal(BATCH, STEPS, FEATURES)
    network = Recurrent(kind, (UNITS, 3))
    variables = jax.jit(network.init)(jax.random.key(0), x)
    apply = jax.jit(network.apply)
    whole, last = apply(variables, x)
    first, states = apply(variables, x[:, :2])
    second, end = apply(variables, x[:, 2:], None, states)
    close(jnp.concatenate([first, second], axis=1), whole)
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        close(a, b)


def test_first_weights_are_those_of_keras() -> None:
    layer = RecurrentLayer("lstm", 8)
    first: Any = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 5)))["params"]
    singular = np.linalg.svd(np.asarray(first["recurrent_kernel"]), compute_uv=False)
    np.testing.assert_allclose(singular, 1, atol=1e-5)  # orthogonal over all gates
    np.testing.assert_array_equal(np.flatnonzero(first["bias"]), np.arange(8, 16))
    np.testing.assert_array_equal(first["bias"][8:16], 1)
    bound = np.sqrt(6 / (5 + 32))  # Glorot's
    assert 0.8 * bound < np.abs(first["kernel"]).max() <= bound


def test_rows_of_the_kernel_are_a_product_with_one_hot_vectors() -> None:
    kernel, tokens = normal(7, 5), jnp.array([[3, 0, 6, 3], [3, 1, 1, 0]])
    vectors = np.eye(7, dtype=np.float32)[tokens]

    def values(product: Callable[[Array], Array]) -> Any:
        return jax.jit(jax.value_and_grad(lambda k: total(product(k))))(kernel)

    rows = jax.jit(one_hot_product)(tokens, kernel)
    np.testing.assert_array_equal(rows, vectors @ kernel)
    value, gradient = values(lambda k: one_hot_product(tokens, k))
    expected, expected_gradient = values(lambda k: vectors @ k)
    close(value, expected)
    close(gradient, expected_gradient)


@pytest.mark.parametrize("kind", ["simple", "lstm"])
def test_a_language_model_goes_on_from_its_states(kind: Kind) -> None:
    model = language_model(7, kind, (UNITS, 5))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply, static_argnames="train")
    assert extra == {}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 7, (BATCH, STEPS)))
    whole, none = apply(params, {}, tokens, train=False, key=None)
    assert whole.shape == (BATCH, STEPS, 7)
    assert none == {}
    extra = {"states": first_states(kind, (UNITS, 5), BATCH)}
    parts = []
    for part in jnp.split(tokens, 2, axis=1):
        logits, extra = apply(params, extra, part, train=False, key=None)
        parts.append(logits)
    close(jnp.concatenate(parts, axis=1), whole)
    # what is not the past changes nothing
    changed, _ = apply(params, {}, tokens.at[:, 3:].set(0), train=False, key=None)
    close(changed[:, :3], whole[:, :3])
    assert np.abs(np.asarray(changed[:, 3:] - whole[:, 3:])).max() > 1e-5


def test_dropout_is_for_training_alone() -> None:
    """Of the last layer's outputs, here the logits: each is 0 or twice what it was."""
    model = language_model(UNITS, "gru", (UNITS,), dropout=0.5)
    plain = language_model(UNITS, "gru", (UNITS,))
    params, _ = jax.jit(plain.init)(jax.random.key(0))
    params["output"] = {"kernel": jnp.eye(UNITS), "bias": jnp.zeros(UNITS)}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, UNITS, (50, STEPS)))

    def logits(model: Any, train: bool, seed: int | None) -> np.ndarray:
        key = None if seed is None else jax.random.key(seed)
        apply = jax.jit(model.apply, static_argnames="train")
        return np.asarray(apply(params, {}, tokens, train=train, key=key)[0])

    whole = logits(plain, False, None)
    assert (logits(model, False, None) == whole).all()
    first, second = (logits(model, True, seed) for seed in (0, 1))
    for dropped in (first, second):
        kept = dropped != 0
        np.testing.assert_allclose(dropped, 2 * whole * kept, rtol=1e-6)
        # of 1,200: four standard errors
        assert kept.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(kept.size))
    assert (logits(model, True, 0) == first).all()
    assert (first != second).any()
