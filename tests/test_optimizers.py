"""Every optimizer against its Keras twin, in float64."""

import inspect
import os
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "jax")

import chex
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.types import Array

STEPS = 200

# What our defaults are called in Keras. Keras adds Adam's epsilon before the bias
# correction and optax after it: they are the same rule only at epsilon 0.
TWINS: dict[str, tuple[dict[str, float], Callable[[float], keras.Optimizer]]] = {
    "sgd": ({}, lambda rate: keras.optimizers.SGD(rate)),
    "momentum": ({}, lambda rate: keras.optimizers.SGD(rate, momentum=0.9)),
    "nesterov": (
        {},
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    ),
    "adagrad": ({}, lambda rate: keras.optimizers.Adagrad(rate)),
    "rmsprop": ({}, lambda rate: keras.optimizers.RMSprop(rate)),
    "adadelta": ({}, lambda rate: keras.optimizers.Adadelta(rate)),
    "adam": ({"eps": 0.0}, lambda rate: keras.optimizers.Adam(rate, epsilon=0.0)),
    "adamw": ({"eps": 0.0}, lambda rate: keras.optimizers.AdamW(rate, epsilon=0.0)),
}


def gradients(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Random gradients [steps, 20] over several magnitudes, and a start [20]."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-3, 1, 20)
    return rng.normal(size=(steps, 20)) * scale, rng.normal(size=20)


def path(tx: optax.GradientTransformation, grads: np.ndarray, p: np.ndarray) -> Array:
    """The parameters after every one of these gradients, [steps, D]."""

    def step(carry: tuple[Array, optax.OptState], g: Array) -> tuple:
        p, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, p)
        p = optax.apply_updates(p, updates)
        return (p, opt_state), p

    start = jnp.asarray(p)
    return jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(grads))[1]


def keras_path(
    make: Callable[[], keras.Optimizer], grads: np.ndarray, p: np.ndarray
) -> Array:
    """The same from a Keras optimizer, whose hyperparameters must be float64 too."""
    variable = keras.Variable(p)
    optimizer = make()
    optimizer.build([variable])

    def step(carry: tuple, g: Array) -> tuple:
        p, own = carry
        (p,), own = optimizer.stateless_apply(own, [g], [p])
        return (p, own), p

    start = (variable.value, [v.value for v in optimizer.variables])
    return jax.lax.scan(step, start, jnp.asarray(grads))[1]


def test_every_optimizer_has_a_twin() -> None:
    assert set(TWINS) == set(OPTIMIZERS)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_keras(name: str) -> None:
    hyperparameters, twin = TWINS[name]
    rate = OPTIMIZERS[name].rate
    grads, p = gradients()
    got = path(OPTIMIZERS[name].make(rate, **hyperparameters), grads, p)
    want = keras_path(lambda: twin(rate), grads, p)
    assert got.dtype == want.dtype == jnp.float64
    # 200 updates, each rounded a few times: some hundred units in the last
    # place of parameters that are as large as the path is long
    tolerance = 10 * STEPS * np.finfo(np.float64).eps * np.abs(want).max()
    assert np.abs(got - want).max() <= tolerance
    moved = np.abs(want[-1] - p)
    assert moved.min() > 1e6 * tolerance  # so a path of no steps would not pass


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reduces_a_quadratic(name: str) -> None:
    """Loss p^T H p / 2, eigenvalues 0.01 to 1, at the optimizer's own rate."""
    eigenvalues = np.geomspace(0.01, 1.0, 20)
    tx = OPTIMIZERS[name].make(OPTIMIZERS[name].rate)

    def loss(p: Array) -> Array:
        return 0.5 * jnp.sum(eigenvalues * p**2)

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple:
        p, opt_state = carry
        value, g = jax.value_and_grad(loss)(p)
        updates, opt_state = tx.update(g, opt_state, p)
        return (optax.apply_updates(p, updates), opt_state), value

    start = jnp.ones(20)
    _, losses = jax.lax.scan(step, (start, tx.init(start)), None, length=1000)
    assert losses[-1] < 0.1 * losses[0]
    assert np.all(np.diff(losses[::100]) < 0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_compiled_program_takes_every_value(name: str) -> None:
    """The rate and each hyperparameter may be traced: nothing is compiled again."""
    optimizer = OPTIMIZERS[name]
    parameters = inspect.signature(optimizer.make).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    grads, start = gradients(20)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(rate: Array, hyperparameters: dict[str, Array]) -> Array:
        return path(optimizer.make(rate, **hyperparameters), grads, start)

    for factor in (1.0, 0.9):
        values = {k: v * factor for k, v in defaults.items()}
        rate = optimizer.rate * factor
        got = traced(jnp.asarray(rate), jax.tree.map(jnp.asarray, values))
        want = path(optimizer.make(rate, **values), grads, start)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("float64")
def test_momentum_0_is_sgd() -> None:
    grads, p = gradients()
    sgd = path(OPTIMIZERS["sgd"].make(0.1), grads, p)
    for name in ("momentum", "nesterov"):
        got = path(OPTIMIZERS[name].make(0.1, momentum=0.0), grads, p)
        np.testing.assert_array_equal(got, sgd)


@pytest.mark.usefixtures("float64")
def test_adam_without_first_moment_is_rmsprop_with_bias_correction() -> None:
    grads, p = gradients()
    rmsprop = optax.rmsprop(0.01, 0.999, 1e-3, eps_in_sqrt=False, bias_correction=True)
    got = path(OPTIMIZERS["adam"].make(0.01, b1=0.0, eps=1e-3), grads, p)
    want = path(rmsprop, grads, p)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("float64")
def test_adam_with_a_huge_epsilon_is_momentum() -> None:
    """With a / eps = c: p -= c m / (1 - b^t), and m / (1 - b) is Momentum's."""
    grads, p = gradients()
    huge, c, b = 1e12, 0.01, 0.9
    steps = np.arange(1, STEPS + 1)
    got = path(OPTIMIZERS["adam"].make(c * huge, b1=b, eps=huge), grads, p)
    rate = c * (1 - b)
    momentum = path(OPTIMIZERS["momentum"].make(rate, momentum=b), grads, p)
    update = np.diff(np.concatenate([p[None], momentum]), axis=0)
    want = p + np.cumsum(update / (1 - b**steps)[:, None], axis=0)
    # sqrt(v) / eps is at most some 1e-11
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
    assert np.abs(want[-1] - p).max() > 0.1


@pytest.mark.usefixtures("float64")
def test_adamw_decays_apart_from_the_gradient() -> None:
    grads, p = gradients()
    plain = path(OPTIMIZERS["adam"].make(0.01), grads, p)
    no_decay = path(OPTIMIZERS["adamw"].make(0.01, weight_decay=0.0), grads, p)
    np.testing.assert_array_equal(no_decay, plain)
    still = path(
        OPTIMIZERS["adamw"].make(0.01, weight_decay=0.5), np.zeros_like(grads), p
    )
    shrunk = p * (1 - 0.01 * 0.5) ** STEPS
    np.testing.assert_allclose(still[-1], shrunk, rtol=1e-12)
