"""Every optimizer against its Keras twin or its rule, in float64; what to tune."""

import inspect
import itertools
import os
from collections.abc import Callable, Iterator

os.environ.setdefault("KERAS_BACKEND", "jax")

import chex
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.optimizers import OPTIMIZERS, LogUniform
from jaxstudy.types import Array, PyTree, UserError
from tests.conftest import assert_rounding

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
    "lion": ({}, lambda rate: keras.optimizers.Lion(rate)),
}

# The rules without a twin, as their papers or optax have them: from gradients g,
# parameters p and a rate a, after every step the parameters and those to evaluate.
# Keras's Nadam has a schedule of b1.
A = np.ndarray
Steps = Iterator[tuple[A, A]]


def nadam(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        p = p - a * ahead / (np.sqrt(s / (1 - b2**t)) + eps)
        yield p, p


def adabelief(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        p = p - a * m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + eps)
        yield p, p


def adan(
    grads: A, p: A, a: float, b1: float, b2: float, b3: float, eps: float
) -> Steps:
    m = v = s = np.zeros_like(p)
    before = grads[0]  # so the first difference is 0
    for t, g in enumerate(grads, 1):
        d, before = g - before, g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        s = b3 * s + (1 - b3) * (g + (1 - b2) * d) ** 2
        ahead = m / (1 - b1**t) + (1 - b2) * v / (1 - b2**t)
        p = p - a * ahead / (np.sqrt(s / (1 - b3**t)) + eps)
        yield p, p


def schedule_free(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    z, s, total = p, np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        s = b2 * s + (1 - b2) * g**2
        z = z - a * g / (np.sqrt(s / (1 - b2**t)) + eps)
        total = total + z
        x = total / t  # the mean of every z but the start
        yield b1 * x + (1 - b1) * z, x


# with our defaults, as the papers or optax have them
RULES: dict[str, tuple[Callable[..., Steps], dict[str, float]]] = {
    "nadam": (nadam, {"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
    "adabelief": (adabelief, {"b1": 0.9, "b2": 0.999, "eps": 1e-16}),
    "adan": (adan, {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8}),
    "schedule_free": (schedule_free, {"b1": 0.9, "b2": 0.999, "eps": 1e-8}),
}


def gradients(steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Random gradients [steps, 20] over several magnitudes, and a start [20]."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-3, 1, 20)
    return rng.normal(size=(steps, 20)) * scale, rng.normal(size=20)


def as_they_are(opt_state: optax.OptState, params: PyTree) -> PyTree:
    return params


def path(
    tx: optax.GradientTransformation,
    grads: np.ndarray,
    p: np.ndarray,
    weights: Callable[[optax.OptState, PyTree], PyTree] = as_they_are,
) -> Array:
    """The parameters after every one of these gradients, [steps, D]."""

    def step(carry: tuple[Array, optax.OptState], g: Array) -> tuple:
        p, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, p)
        p = optax.apply_updates(p, updates)
        return (p, opt_state), weights(opt_state, p)

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


def check_equal(got: Array, want: Array | np.ndarray, start: np.ndarray) -> None:
    """Up to rounding, which must be far less than each parameter has moved."""
    assert got.dtype == want.dtype == np.float64
    # 200 updates, each rounded a few times: some hundred units in the last
    # place of parameters that are as large as the path is long
    tolerance = 10 * STEPS * np.finfo(np.float64).eps * np.abs(want).max()
    assert np.abs(got - want).max() <= tolerance
    # so a path of no steps would not pass; steps of one length may end at the start
    moved = np.abs(want - start).max(axis=0)
    assert moved.min() > 1e6 * tolerance


def test_every_optimizer_has_a_twin_or_a_rule() -> None:
    assert sorted([*TWINS, *RULES]) == sorted(OPTIMIZERS)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TWINS)
def test_equals_keras(name: str) -> None:
    hyperparameters, twin = TWINS[name]
    rate = OPTIMIZERS[name].rate
    grads, p = gradients()
    got = path(OPTIMIZERS[name].make(rate, **hyperparameters), grads, p)
    want = keras_path(lambda: twin(rate), grads, p)
    check_equal(got, want, p)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("passes", [False, True], ids=["defaults", "passed"])
@pytest.mark.parametrize("name", RULES)
def test_equals_its_rule(name: str, passes: bool) -> None:
    """What is trained and what is evaluated, also where epsilon counts."""
    optimizer, (rule, values) = OPTIMIZERS[name], RULES[name]
    passed = {}
    if passes:  # all others than the defaults, and no two of a rule alike
        values = passed = {k: 0.9 * v for k, v in values.items()} | {"eps": 1e-3}
    grads, p = gradients()
    tx = optimizer.make(optimizer.rate, **passed)
    steps = rule(grads, p, optimizer.rate, **values)
    trained, evaluated = map(np.stack, zip(*steps, strict=True))
    check_equal(path(tx, grads, p), trained, p)
    check_equal(path(tx, grads, p, optimizer.weights), evaluated, p)


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

    rate, changed = jnp.asarray(0.9 * optimizer.rate), {}
    usual = traced(rate, jax.tree.map(jnp.asarray, defaults))
    for name, value in defaults.items():
        changed[name] = 0.9 * value
        got = traced(rate, jax.tree.map(jnp.asarray, {**defaults, **changed}))
        assert not np.array_equal(got, usual), name  # each has its effect
        usual = got
    want = path(optimizer.make(float(rate), **changed), grads, start)
    np.testing.assert_allclose(usual, want, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("float64")
def test_adam_without_first_moment_is_rmsprop_with_bias_correction() -> None:
    grads, p = gradients()
    rmsprop = optax.rmsprop(0.01, 0.999, 1e-3, eps_in_sqrt=False, bias_correction=True)
    got = path(OPTIMIZERS["adam"].make(0.01, b1=0.0, eps=1e-3), grads, p)
    want = path(rmsprop, grads, p)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("float64")
def test_adamw_decays_apart_from_the_gradient() -> None:
    grads, p = gradients()
    plain = path(OPTIMIZERS["adam"].make(0.01), grads, p)
    no_decay = path(OPTIMIZERS["adamw"].make(0.01, weight_decay=0.0), grads, p)
    assert_rounding(no_decay, plain, STEPS)
    still = path(
        OPTIMIZERS["adamw"].make(0.01, weight_decay=0.5), np.zeros_like(grads), p
    )
    shrunk = p * (1 - 0.01 * 0.5) ** STEPS
    np.testing.assert_allclose(still[-1], shrunk, rtol=1e-12)


# What to tune


def ends(log: LogUniform) -> tuple[float, float]:
    low, high = sorted(log.value(np.array([0.0, 1.0])).tolist())
    return low, high


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_space_is_of_arguments_around_their_defaults(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    parameters = inspect.signature(optimizer.make).parameters
    defaults = {n: p.default for n, p in parameters.items()}
    assert "rate" in optimizer.space
    assert set(optimizer.space) <= set(defaults)
    for argument, log in optimizer.space.items():
        default = optimizer.rate if argument == "rate" else defaults[argument]
        low, high = ends(log)
        assert low < default < high or np.isclose(default, (low, high)).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_corner_of_a_space_can_be_stepped_from(name: str) -> None:
    """In 32 bits, and all by one program, as a study does."""
    optimizer = OPTIMIZERS[name]
    corners = np.array(
        list(itertools.product(*(ends(log) for log in optimizer.space.values())))
    )
    assert len(np.unique(corners, axis=0)) == 2 ** len(optimizer.space)

    @jax.jit
    @jax.vmap
    def step(values: Array) -> tuple[PyTree, PyTree]:
        tx = optimizer.make(**dict(zip(optimizer.space, values, strict=True)))
        p = jnp.zeros(3)
        updates, opt_state = tx.update(jnp.ones(3), tx.init(p), p)
        p = optax.apply_updates(p, updates)
        return p, optimizer.weights(opt_state, p)

    for p in step(jnp.asarray(corners, jnp.float32)):
        assert p.dtype == jnp.float32
        assert np.isfinite(p).all()
        assert (p < 0).all()  # every one moves, and against the gradient


positive = st.floats(1e-30, 1e30)
unit = st.floats(0, 1)


@given(bounds=st.tuples(positive, positive).map(sorted), at=unit)
def test_a_log_range_is_even_in_the_logarithm(bounds: list[float], at: float) -> None:
    low, high = bounds
    ends_and_inside = LogUniform(low, high).value(np.array([0, at, 1]))
    want = np.exp((1 - at) * np.log(low) + at * np.log(high))
    np.testing.assert_allclose(ends_and_inside, [low, want, high], rtol=1e-12)


def test_a_range_of_1_minus_value_is_even_in_its_logarithm() -> None:
    got = LogUniform(1e-3, 1e-1, one_minus=True).value(np.array([0, 0.25, 0.5, 1]))
    # 1 - value in all its digits, where the value is near 1
    np.testing.assert_allclose(1 - got, [1e-3, 10**-2.5, 1e-2, 1e-1], rtol=1e-12)


@pytest.mark.parametrize("one_minus", [False, True])
def test_a_range_without_a_logarithm_is_refused(one_minus: bool) -> None:
    inf, nan = np.inf, np.nan
    bad = [(0.0, 1.0), (-2.0, -1.0), (0.1, 0.0), (0.1, inf), (nan, 1.0), (0.1, nan)]
    for low, high in bad:
        why = f"positive, finite bounds, not {low:g} to {high:g}"
        with pytest.raises(UserError, match=why):
            LogUniform(low, high, one_minus)
    with pytest.raises(UserError, match=r"the range 1 to 0\.5 is empty"):
        LogUniform(1.0, 0.5, one_minus)
    with pytest.raises(UserError, match=r"must not exceed 1, so not 1\.5"):
        LogUniform(0.5, 1.5, one_minus=True)
    assert ends(LogUniform(0.5, 1.5)) == (0.5, 1.5)
    assert ends(LogUniform(1.0, 1.0, one_minus=True)) == (0.0, 0.0)
