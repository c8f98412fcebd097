"""Every optimizer against its Keras twin or its rule, in float64; what to tune."""

import inspect
import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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

STEPS = 60

# What our defaults are called in Keras. Keras adds Adam's epsilon before the bias
# correction and optax after it: they are the same rule only at epsilon 0.
TWINS: dict[str, tuple[dict[str, float], Callable[[float], keras.Optimizer]]] = {
    "sgd": ({}, lambda rate: keras.optimizers.SGD(rate)),
    "momentum": ({}, lambda rate: keras.optimizers.SGD(rate, momentum=0.9)),
    "nesterov": ({}, lambda rate: keras.optimizers.SGD(rate, 0.9, nesterov=True)),
    "adagrad": ({}, lambda rate: keras.optimizers.Adagrad(rate)),
    "rmsprop": ({}, lambda rate: keras.optimizers.RMSprop(rate)),
    "adadelta": ({}, lambda rate: keras.optimizers.Adadelta(rate)),
    "adam": ({"eps": 0.0}, lambda rate: keras.optimizers.Adam(rate, epsilon=0.0)),
    "adamw": ({"eps": 0.0}, lambda rate: keras.optimizers.AdamW(rate, epsilon=0.0)),
    "lion": ({}, lambda rate: keras.optimizers.Lion(rate)),
}

# The rules without a twin, as their papers or optax have them: a step number t from 1
# on, from the gradient g, the parameters p and a rate a. `s` is what a rule keeps, all
# 0.0 before the first step. It returns the parameters, and those to evaluate if these
# are others. Keras's Nadam has a schedule of b1.
A = np.ndarray
LOSSES = np.random.default_rng(1).uniform(0.5, 2.0, STEPS)  # of the batches


class Kept(SimpleNamespace):
    """What a rule keeps, with the `first` parameters and the `loss` of the batch."""

    def __getattr__(self, name: str) -> Any:
        return 0.0


def norm(x: A) -> float:
    return float(np.sqrt(np.sum(x * x)))


def moments(s: Kept, t: int, g: A, b1: float, b2: float) -> tuple[A, A]:
    """Adam's two averages, bias-corrected."""
    s.m = b1 * s.m + (1 - b1) * g
    s.s = b2 * s.s + (1 - b2) * g**2
    return s.m / (1 - b1**t), s.s / (1 - b2**t)


def nadam(s, t, g, p, a, b1, b2, eps, weight_decay=0.0):
    square = moments(s, t, g, b1, b2)[1]
    ahead = b1 * s.m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return p - a * (ahead / (np.sqrt(square) + eps) + weight_decay * p)


def adabelief(s, t, g, p, a, b1, b2, eps):
    s.m = b1 * s.m + (1 - b1) * g
    s.s = b2 * s.s + (1 - b2) * (g - s.m) ** 2 + eps
    return p - a * s.m / (1 - b1**t) / (np.sqrt(s.s / (1 - b2**t)) + eps)


def adan(s, t, g, p, a, b1, b2, b3, eps):
    d, s.before = g - s.before if t > 1 else 0 * g, g
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * d
    s.s = b3 * s.s + (1 - b3) * (g + (1 - b2) * d) ** 2
    ahead = s.m / (1 - b1**t) + (1 - b2) * s.v / (1 - b2**t)
    return p - a * ahead / (np.sqrt(s.s / (1 - b3**t)) + eps)


def adamax(s, t, g, p, a, b1, b2, eps):
    s.m = b1 * s.m + (1 - b1) * g
    s.s = np.maximum(b2 * s.s, np.abs(g) + eps)
    return p - a / (1 - b1**t) * s.m / s.s


def amsgrad(s, t, g, p, a, b1, b2, eps):
    m, square = moments(s, t, g, b1, b2)
    s.largest = np.maximum(s.largest, square)
    return p - a * m / (np.sqrt(s.largest) + eps)


def radam(s, t, g, p, a, b1, b2, eps):
    m, square = moments(s, t, g, b1, b2)
    most = 2 / (1 - b2) - 1
    n = most - 2 * t * b2**t / (1 - b2**t)
    if n < 5:
        return p - a * m
    over = (n - 4) * (n - 2) * most / ((most - 4) * (most - 2) * n)
    return p - a * np.sqrt(over) * m / (np.sqrt(square) + eps)


def yogi(s, t, g, p, a, b1, b2, eps):
    if t == 1:
        s.m = s.s = 1e-6
    s.m = b1 * s.m + (1 - b1) * g
    s.s = s.s - (1 - b2) * np.sign(s.s - g**2) * g**2
    return p - a * s.m / (1 - b1**t) / (np.sqrt(s.s / (1 - b2**t)) + eps)


def acprop(s, t, g, p, a, b1, b2, eps):
    before, s.s = s.s, b2 * s.s + (1 - b2) * (g - s.m) ** 2 + eps
    s.m = b1 * s.m + (1 - b1) * g  # which s alone needs
    root = np.sqrt(before / (1 - b2 ** (t - 1))) if t > 1 else 1
    return p - a * g / (root + eps)


def ademamix(s, t, g, p, a, b1, b2, b3, alpha, eps):
    m, square = moments(s, t, g, b1, b2)
    s.slow = b3 * s.slow + (1 - b3) * g
    return p - a * (m + alpha * s.slow) / (np.sqrt(square) + eps)


def adopt(s, t, g, p, a, b1, b2, eps):
    if t == 1:
        s.s = g**2
        return p
    most = (t - 1) ** 0.25
    u = np.clip(g / np.maximum(np.sqrt(s.s), eps), -most, most)
    s.m = b1 * s.m + (1 - b1) * u
    s.s = b2 * s.s + (1 - b2) * g**2
    return p - a * s.m


def madgrad(s, t, g, p, a, momentum, eps):
    weight = (a + eps) * np.sqrt(t)
    s.s, s.total = s.s + weight * g**2, s.total + weight * g
    z = s.first - s.total / (np.cbrt(s.s) + eps)
    return momentum * p + (1 - momentum) * z


def signum(s, t, g, p, a, momentum=0.0):
    s.m = momentum * s.m + (1 - momentum) * g
    return p - a * np.sign(s.m)


def rprop(s, t, g, p, a, eta_minus, eta_plus):
    """As `torch.optim.Rprop`, its step sizes within 1e-6 and 50."""
    turn = np.sign(g * s.before)
    factor = np.where(turn > 0, eta_plus, np.where(turn < 0, eta_minus, 1.0))
    s.size = np.clip((s.size if t > 1 else a) * factor, 1e-6, 50)
    s.before = np.where(turn < 0, 0, g)
    return p - s.size * np.sign(s.before)


def lars(s, t, g, p, a, momentum, trust):
    s.m = momentum * s.m + a * trust * norm(p) / norm(g) * g
    return p - s.m


def lamb(s, t, g, p, a, b1, b2, eps):
    m, square = moments(s, t, g, b1, b2)
    u = m / (np.sqrt(square) + eps)
    return p - a * norm(p) / norm(u) * u


def fromage(s, t, g, p, a):
    return (p - a * g * max(norm(p), 1e-6) / max(norm(g), 1e-6)) / np.hypot(1, a)


def novograd(s, t, g, p, a, b1, b2, eps):
    s.s = b2 * s.s + (1 - b2) * norm(g) ** 2 if t > 1 else norm(g) ** 2
    s.m = b1 * s.m + g / (np.sqrt(s.s) + eps)
    return p - a * s.m


def adafactor(s, t, g, p, a, decay, clip):
    old, square = 1 - t**-decay, g**2 + 1e-30
    if p.ndim == 2:
        s.rows = old * s.rows + (1 - old) * square.mean(1)
        s.columns = old * s.columns + (1 - old) * square.mean(0)
        s.s = np.outer(s.rows, s.columns) / np.mean(s.rows)
    else:
        s.s = old * s.s + (1 - old) * square
    u = g / np.sqrt(s.s)
    u = u / max(1, np.sqrt(np.mean(u**2)) / clip)
    return p - a * max(1e-3, np.sqrt(np.mean(p**2))) * u


def sm3(s, t, g, p, a, momentum):
    bounds = s.bounds if t > 1 else [np.zeros(n) for n in p.shape]
    square = g**2 + np.min(np.broadcast_arrays(*np.ix_(*bounds)), axis=0)
    axes = range(p.ndim)
    s.bounds = [square.max(axis=tuple(j for j in axes if j != i)) for i in axes]
    s.m = momentum * s.m + (1 - momentum) * g / np.sqrt(square + 1e-8)
    return p - a * s.m


def muon(s, t, g, p, a, beta, eps):
    """The iteration is of singular values alone, s -> 3.4445 s - 4.775 s^3 + ..."""
    one, three, five = (float(np.float32(c)) for c in (3.4445, -4.775, 2.0315))
    if p.ndim == 1:
        return nadam(s, t, g, p, a, 0.9, 0.999, eps)
    s.m = beta * s.m + (1 - beta) * g
    ahead = beta * s.m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
    u, size, v = np.linalg.svd(ahead / (norm(ahead) + eps), full_matrices=False)
    for _ in range(5):
        size = one * size + three * size**3 + five * size**5
    return p - a * np.sqrt(max(1, p.shape[1] / p.shape[0])) * (u * size) @ v


def schedule_free_sgd(s, t, g, p, a, b1):
    """z steps, x is its mean from the second z on, p is between; x is evaluated."""
    s.z = (s.z if t > 1 else p) - a * g
    s.total = s.total + s.z
    x = s.total / t
    return b1 * x + (1 - b1) * s.z, x


def schedule_free(s, t, g, p, a, b1, b2, eps):
    square = moments(s, t, g, 0.0, b2)[1]
    return schedule_free_sgd(s, t, g / (np.sqrt(square) + eps), p, a, b1)


def dadapt_adamw(s, t, g, p, a, b1, b2, eps, start):
    s.d, q = s.d or start, np.sqrt(b2)
    step = a * s.d * np.sqrt(1 - b2**t) / (1 - b1**t)
    s.r = q * s.r + (1 - q) * step * np.sum(g * s.k / (np.sqrt(s.s) + eps))
    s.m = b1 * s.m + (1 - b1) * step * g
    s.s = b2 * s.s + (1 - b2) * g**2
    s.k = q * s.k + (1 - q) * step * g
    s.d = max(s.d, s.r / ((1 - q) * np.sum(np.abs(s.k))))
    return p - s.m / (np.sqrt(s.s) + eps)


def prodigy(s, t, g, p, a, b1, b2, eps, start):
    d, q = s.d or start, np.sqrt(b2)
    step = a * d * np.sqrt(1 - b2**t) / (1 - b1**t)
    moments(s, t, d * g, b1, b2)
    s.r = q * s.r + d / start * step * np.sum(g * (s.first - p))
    s.k = q * s.k + step * d * g / start
    s.d = max(d, s.r / np.sum(np.abs(s.k)))
    return p - step * s.m / (np.sqrt(s.s) + s.d * eps)


def dog(s, t, g, p, a, start, eps):
    s.far = max(s.far or start * (1 + norm(p)), norm(p - s.first))
    s.squares += norm(g) ** 2
    return p - a * s.far / np.sqrt(s.squares + eps) * g


def dowg(s, t, g, p, a, eps):
    s.far = max(s.far or eps, norm(p - s.first) ** 2)
    s.squares += s.far * norm(g) ** 2
    return p - a * s.far / (np.sqrt(s.squares) + eps) * g


def cocob(s, t, g, p, a, alpha, eps):
    g = a * g
    s.largest = np.maximum(s.largest if t > 1 else eps, np.abs(g))
    s.sums, s.against = s.sums + np.abs(g), s.against - g
    s.reward = np.maximum(s.reward - g * (p - s.first), 0)
    most = s.largest * np.maximum(s.sums + s.largest, alpha * s.largest)
    return s.first + s.against / most * (s.largest + s.reward)


def polyak_sgd(s, t, g, p, a):
    return p - min(s.loss / norm(g) ** 2, a) * g


def momo(s, t, g, p, a, momentum):
    if t == 1:
        s.m, s.mean, s.products = g, s.loss, np.sum(g * p)
    s.m = momentum * s.m + (1 - momentum) * g
    s.mean = momentum * s.mean + (1 - momentum) * s.loss
    s.products = momentum * s.products + (1 - momentum) * np.sum(g * p)
    gap = max(s.mean - s.products + np.sum(s.m * p), 0)
    return p - min(gap / norm(s.m) ** 2, a) * s.m


def momo_adam(s, t, g, p, a, b1, b2, eps):
    square = moments(s, t, g, b1, b2)[1]
    s.mean = b1 * s.mean + (1 - b1) * s.loss
    s.products = b1 * s.products + (1 - b1) * np.sum(g * p)
    u = s.m / (np.sqrt(square) + eps)
    gap = max(s.mean - s.products + np.sum(s.m * p), 0)
    return p - min(gap / np.sum(s.m * u), a / (1 - b1**t)) * u


RULES: dict[str, Callable[..., Any]] = {
    rule.__name__: rule
    for rule in (
        nadam, adamax, amsgrad, radam, yogi, adabelief, acprop, adan, ademamix, adopt,
        madgrad, signum, rprop, lars, lamb, fromage, novograd, adafactor, sm3, muon,
        schedule_free, schedule_free_sgd, dadapt_adamw, prodigy, dog, dowg, cocob,
        polyak_sgd, momo, momo_adam,
    )
} | {"nadamw": nadam, "sign_sgd": signum}  # fmt: skip
SHAPES = {"b": (8,), "w": (3, 4)}
# optax takes a power of the number of the step in 32 bits
IN_32_BITS = {"madgrad", "adafactor"}
NO_EFFECT = {("cocob", "rate")}  # but for rounding: a gradient of any scale is as good
# other values than 9/10 of the defaults: these rates are bounds, which are to bind
CHANGED = {("polyak_sgd", "rate"): 0.01, ("momo", "rate"): 0.01}


def arrays_of(flat: Any, axes: int = 0) -> dict[str, Any]:
    """The arrays of SHAPES in numbers [..., 20]."""
    shape = flat.shape[:axes]
    return {
        "b": flat[..., :8].reshape(*shape, *SHAPES["b"]),
        "w": flat[..., 8:].reshape(*shape, *SHAPES["w"]),
    }


def by_rule(name: str, grads: A, p: A, a: float, values: dict[str, float]) -> A:
    """What is trained and what is evaluated after every step, [2, steps, 20]."""

    def run(grads: A, p: A) -> A:
        kept, steps = Kept(first=p), []
        for t, (g, kept.loss) in enumerate(zip(grads, LOSSES, strict=True), 1):
            stepped = RULES[name](kept, t, g, p, a, **values)
            p, x = stepped if isinstance(stepped, tuple) else (stepped, stepped)
            steps.append((p.ravel(), x.ravel()))
        assert not kept.d or kept.d > values["start"], "the distance was to grow"
        return np.swapaxes(steps, 0, 1)

    # others treat all numbers alike, or all together: then this would differ
    if not OPTIMIZERS[name].by_array:
        return run(grads, p)
    parts = arrays_of(grads, 1), arrays_of(p)
    return np.concatenate([run(g, parts[1][k]) for k, g in parts[0].items()], axis=2)


def gradients() -> tuple[np.ndarray, np.ndarray]:
    """Random gradients [steps, 20] over several magnitudes, and a start [20]."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-3, 1, 20)
    return rng.normal(0.5, size=(STEPS, 20)) * scale, rng.normal(size=20)


def path(
    tx: optax.GradientTransformation,
    grads: np.ndarray,
    p: np.ndarray,
    weights: Callable[[optax.OptState, PyTree], PyTree],
) -> Array:
    """What is trained and what is evaluated after every step, [2, steps, 20]."""
    tx = optax.with_extra_args_support(tx)

    def flat(params: PyTree) -> Array:
        return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(params)])

    def step(carry: tuple[PyTree, optax.OptState], of: Any) -> tuple:
        (p, opt_state), (g, loss) = carry, of
        updates, opt_state = tx.update(arrays_of(g), opt_state, p, value=loss)
        p = optax.apply_updates(p, updates)
        return (p, opt_state), (flat(p), flat(weights(opt_state, p)))

    start = arrays_of(jnp.asarray(p))
    given = jnp.asarray(grads), jnp.asarray(LOSSES)
    return jnp.stack(jax.lax.scan(step, (start, tx.init(start)), given)[1])


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


def check_equal(
    got: Any, want: Array | np.ndarray, start: np.ndarray, bits: int = 64
) -> None:
    """Up to rounding, which must be far less than each parameter has moved."""
    assert got.dtype == want.dtype == np.float64
    # 60 updates, each rounded a few times: some hundred units in the last
    # place of parameters that are as large as the path is long
    tolerance = 2000 * np.finfo(np.float64).eps * np.abs(want).max()
    if bits == 32:  # of the steps' lengths alone, and these are short
        tolerance = 1e-6
    assert np.abs(got - want).max() <= tolerance
    # so a path of no steps would not pass; steps of one length may end at the start
    moved = np.abs(want - start).max(axis=-2)
    assert moved.min() > (1e2 if bits == 32 else 1e4) * tolerance


def test_every_optimizer_has_a_twin_or_a_rule() -> None:
    assert sorted([*TWINS, *RULES]) == sorted(OPTIMIZERS)
    assert len(OPTIMIZERS) >= 30
    for name, optimizer in OPTIMIZERS.items():
        assert optimizer.rule.startswith(("p ", "m", "s", "v ", "l", "d ", "as ", "u ",
            "z ", "at first", "where", "if")), name  # fmt: skip
        assert any(letter.isdigit() for letter in optimizer.source), name  # the year


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_its_twin_or_its_rule_in_one_program(name: str) -> None:
    """What is trained and what is evaluated; nothing is compiled again for values.

    With our defaults, which are the papers' or Keras's, and a rule with others too, no
    two of them alike. Every value has an effect.
    """
    optimizer = OPTIMIZERS[name]
    parameters = inspect.signature(optimizer.make).parameters.values()
    usual = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    grads, start = gradients()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(values: dict[str, Array]) -> Array:
        return path(optimizer.make(**values), grads, start, optimizer.weights)

    defaults = {"rate": optimizer.rate, **usual}
    before = traced(jax.tree.map(jnp.asarray, defaults))
    changed: dict[str, float] = {}
    for k, value in defaults.items():
        other = 1e-3 if k == "eps" and value != 1e-3 else 0.9 * value
        changed[k] = CHANGED.get((name, k), other)
        got = traced(jax.tree.map(jnp.asarray, {**defaults, **changed}))
        same = np.allclose(got, before, rtol=1e-12, atol=1e-13)
        assert same == ((name, k) in NO_EFFECT), k
        before = got
    if name in TWINS:
        given, twin = TWINS[name]
        got = traced(jax.tree.map(jnp.asarray, {**defaults, **given}))
        want = keras_path(lambda: twin(optimizer.rate), grads, start)
        check_equal(got[0], want, start)
        return
    for values in (defaults, changed):
        got = traced(jax.tree.map(jnp.asarray, values))
        others = {k: v for k, v in values.items() if k != "rate"}
        want = by_rule(name, grads, start, values["rate"], others)
        check_equal(got, want, start, bits=32 if name in IN_32_BITS else 64)


# What to tune


def ends(log: LogUniform) -> tuple[float, float]:
    low, high = sorted(log.value(np.array([0.0, 1.0])).tolist())
    return low, high


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_space_is_of_arguments_around_their_defaults(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    parameters = inspect.signature(optimizer.make).parameters
    defaults = {n: p.default for n, p in parameters.items()}
    assert "rate" in optimizer.space or (name, "rate") in NO_EFFECT
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
    def steps(values: Array) -> tuple[PyTree, PyTree]:
        point = dict(zip(optimizer.space, values, strict=True))
        tx = optimizer.make(**{"rate": optimizer.rate} | point)
        tx = optax.with_extra_args_support(tx)
        gradient = jnp.ones((2, 3))

        def step(state: tuple[PyTree, PyTree], _: None) -> tuple[Any, None]:
            updates, after = tx.update(gradient, state[1], state[0], value=1.0)
            return (optax.apply_updates(state[0], updates), after), None

        p = jnp.zeros((2, 3))
        # adopt waits for the second
        (p, opt_state), _ = jax.lax.scan(step, (p, tx.init(p)), length=2)
        return p, optimizer.weights(opt_state, p)

    for p in steps(jnp.asarray(corners, jnp.float32)):
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
