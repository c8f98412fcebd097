"""Every optimizer against its Keras twin or its rule, in float64; what to tune."""

import inspect
import itertools
import os
from collections.abc import Callable, Iterator
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
Rule = Callable[..., Steps]
LOSSES = np.random.default_rng(1).uniform(0.5, 2.0, STEPS)  # of the batches


def norm(x: A) -> float:
    return float(np.sqrt(np.sum(x * x)))


def adam_like(
    numerator: Callable[..., A], denominator: Callable[..., A], grads: A, p: A,
    a: float, b1: float, b2: float, decay: float = 0.0,
) -> Steps:  # fmt: skip
    """p -= a (numerator / denominator + decay p), of t, g and the moments m and s."""
    m = s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * g**2
        ahead = numerator(t, g, m) / denominator(t, s)
        p = p - a * (ahead + decay * p)
        yield p, p


def adam_root(b2: float, eps: float) -> Callable[[int, A], A]:
    return lambda t, s: np.sqrt(s / (1 - b2**t)) + eps


def nadam(
    grads: A, p: A, a: float, b1: float, b2: float, eps: float, weight_decay=0.0
) -> Steps:
    def ahead(t: int, g: A, m: A) -> A:
        return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)

    root = adam_root(b2, eps)
    return adam_like(ahead, root, grads, p, a, b1, b2, weight_decay)


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


def adamax(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = np.maximum(b2 * s, np.abs(g) + eps)
        p = p - a / (1 - b1**t) * m / s
        yield p, p


def amsgrad(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    largest = np.zeros_like(p)

    def root(t: int, s: A) -> A:
        nonlocal largest
        largest = np.maximum(largest, s / (1 - b2**t))
        return np.sqrt(largest) + eps

    return adam_like(
        lambda t, g, m: m / (1 - b1**t), root, grads, p, a, b1, b2
    )  # fmt: skip


def radam(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    most = 2 / (1 - b2) - 1

    def length(t: int) -> float:
        return most - 2 * t * b2**t / (1 - b2**t)

    def ahead(t: int, g: A, m: A) -> A:
        n = length(t)
        if n < 5:
            return m / (1 - b1**t)
        over = (n - 4) * (n - 2) * most / ((most - 4) * (most - 2) * n)
        return np.sqrt(over) * m / (1 - b1**t)

    def root(t: int, s: A) -> A:
        plain = np.ones_like(s)
        return plain if length(t) < 5 else np.sqrt(s / (1 - b2**t)) + eps

    return adam_like(ahead, root, grads, p, a, b1, b2)


def yogi(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.full_like(p, 1e-6)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = s - (1 - b2) * np.sign(s - g**2) * g**2
        p = p - a * m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + eps)
        yield p, p


def acprop(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        before, s = s, b2 * s + (1 - b2) * (g - m) ** 2 + eps
        m = b1 * m + (1 - b1) * g  # which s alone needs
        root = np.sqrt(before / (1 - b2 ** (t - 1))) + eps if t > 1 else 1 + eps
        p = p - a * g / root
        yield p, p


def ademamix(
    grads: A, p: A, a: float, b1: float, b2: float, b3: float, alpha: float, eps: float
) -> Steps:
    slow = np.zeros_like(p)

    def ahead(t: int, g: A, m: A) -> A:
        nonlocal slow
        slow = b3 * slow + (1 - b3) * g
        return m / (1 - b1**t) + alpha * slow

    return adam_like(ahead, adam_root(b2, eps), grads, p, a, b1, b2)


def adopt(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m, s = np.zeros_like(p), grads[0] ** 2
    yield p, p
    for t, g in enumerate(grads[1:], 1):
        u = np.clip(g / np.maximum(np.sqrt(s), eps), -(t**0.25), t**0.25)
        m = b1 * m + (1 - b1) * u
        p = p - a * m
        s = b2 * s + (1 - b2) * g**2
        yield p, p


def madgrad(grads: A, p: A, a: float, momentum: float, eps: float) -> Steps:
    first, total, squares = p, np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        weight = (a + eps) * np.sqrt(t)
        squares, total = squares + weight * g**2, total + weight * g
        z = first - total / (np.cbrt(squares) + eps)
        p = momentum * p + (1 - momentum) * z
        yield p, p


def sign_sgd(grads: A, p: A, a: float) -> Steps:
    return signum(grads, p, a, 0.0)


def signum(grads: A, p: A, a: float, momentum: float) -> Steps:
    m = np.zeros_like(p)
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        p = p - a * np.sign(m)
        yield p, p


def rprop(grads: A, p: A, a: float, eta_minus: float, eta_plus: float) -> Steps:
    """As `torch.optim.Rprop`, its step sizes within 1e-6 and 50."""
    size, before = np.full_like(p, a), np.zeros_like(p)
    for g in grads:
        turn = np.sign(g * before)
        factor = np.where(turn > 0, eta_plus, np.where(turn < 0, eta_minus, 1.0))
        size = np.clip(size * factor, 1e-6, 50)
        before = np.where(turn < 0, 0, g)
        p = p - size * np.sign(before)
        yield p, p


def trust(p: A, u: A) -> float:
    return norm(p) / norm(u) if norm(p) > 0 and norm(u) > 0 else 1.0


def lars(grads: A, p: A, a: float, momentum: float, trust_of: float) -> Steps:
    m = np.zeros_like(p)
    for g in grads:
        scaled = trust_of * trust(p, g) if norm(p) * norm(g) > 0 else 1.0
        m = momentum * m + a * scaled * g
        p = p - m
        yield p, p


def lamb(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * g**2
        u = m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + eps)
        p = p - a * trust(p, u) * u
        yield p, p


def fromage(grads: A, p: A, a: float) -> Steps:
    for g in grads:
        p = (p - a * g * max(norm(p), 1e-6) / max(norm(g), 1e-6)) / np.hypot(1, a)
        yield p, p


def novograd(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m, s = np.zeros_like(p), norm(grads[0]) ** 2
    for g in grads:
        s = b2 * s + (1 - b2) * norm(g) ** 2  # at first, the same
        m = b1 * m + g / (np.sqrt(s) + eps)
        p = p - a * m
        yield p, p


def adafactor(grads: A, p: A, a: float, decay: float, clip: float) -> Steps:
    s, rows, columns = np.zeros_like(p), 0.0, 0.0
    for t, g in enumerate(grads, 1):
        old, square = 1 - t**-decay, g**2 + 1e-30
        if p.ndim == 2:
            rows = old * rows + (1 - old) * square.mean(1)
            columns = old * columns + (1 - old) * square.mean(0)
            s = np.outer(rows, columns) / np.mean(rows)
        else:
            s = old * s + (1 - old) * square
        u = g / np.sqrt(s)
        u = u / max(1, np.sqrt(np.mean(u**2)) / clip)
        p = p - a * max(1e-3, np.sqrt(np.mean(p**2))) * u
        yield p, p


def sm3(grads: A, p: A, a: float, momentum: float) -> Steps:
    m, bounds = np.zeros_like(p), [np.zeros(n) for n in p.shape]
    for g in grads:
        s = g**2 + np.min(np.broadcast_arrays(*np.ix_(*bounds)), axis=0)
        bounds = [
            s.max(axis=tuple(j for j in range(p.ndim) if j != i)) for i in range(p.ndim)
        ]
        m = momentum * m + (1 - momentum) * g / np.sqrt(s + 1e-8)
        p = p - a * m
        yield p, p


def muon(grads: A, p: A, a: float, beta: float, eps: float) -> Steps:
    """The iteration is of singular values alone, s -> 3.4445 s - 4.775 s^3 + ..."""
    one, three, five = (float(np.float32(c)) for c in (3.4445, -4.775, 2.0315))
    if p.ndim == 1:
        yield from nadam(grads, p, a, 0.9, 0.999, eps)
        return
    m = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = beta * m + (1 - beta) * g
        ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        u, s, v = np.linalg.svd(ahead / (norm(ahead) + eps), full_matrices=False)
        for _ in range(5):
            s = one * s + three * s**3 + five * s**5
        p = p - a * np.sqrt(max(1, p.shape[1] / p.shape[0])) * (u * s) @ v
        yield p, p


def averaged(grads: A, p: A, b1: float, step: Callable[[int, A], A]) -> Steps:
    """Schedule-free: z steps, x is its mean from the second z on, p is between."""
    z, total = p, np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        z = z - step(t, g)
        total = total + z
        x = total / t
        yield b1 * x + (1 - b1) * z, x


def schedule_free(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    s = np.zeros_like(p)

    def step(t: int, g: A) -> A:
        nonlocal s
        s = b2 * s + (1 - b2) * g**2
        return a * g / (np.sqrt(s / (1 - b2**t)) + eps)

    return averaged(grads, p, b1, step)


def schedule_free_sgd(grads: A, p: A, a: float, b1: float) -> Steps:
    return averaged(grads, p, b1, lambda t, g: a * g)


def dadapt_adamw(
    grads: A, p: A, a: float, b1: float, b2: float, eps: float, start: float
) -> Steps:
    m = s = k = np.zeros_like(p)
    d, r, q = start, 0.0, np.sqrt(b2)
    for t, g in enumerate(grads, 1):
        step = a * d * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = q * r + (1 - q) * step * np.sum(g * k / (np.sqrt(s) + eps))
        m = b1 * m + (1 - b1) * step * g
        s = b2 * s + (1 - b2) * g**2
        k = q * k + (1 - q) * step * g
        p = p - m / (np.sqrt(s) + eps)
        d = max(d, r / ((1 - q) * np.sum(np.abs(k))))
        yield p, p
    assert d > start, "the estimate of the distance was to grow"


def prodigy(
    grads: A, p: A, a: float, b1: float, b2: float, eps: float, start: float
) -> Steps:
    m = s = k = np.zeros_like(p)
    first, d, r, q = p, start, 0.0, np.sqrt(b2)
    for t, g in enumerate(grads, 1):
        step = a * d * np.sqrt(1 - b2**t) / (1 - b1**t)
        m = b1 * m + (1 - b1) * d * g
        s = b2 * s + (1 - b2) * (d * g) ** 2
        r = q * r + d / start * step * np.sum(g * (first - p))
        k = q * k + step * d * g / start
        d = max(d, r / np.sum(np.abs(k)))
        p = p - step * m / (np.sqrt(s) + d * eps)
        yield p, p
    assert d > start, "the estimate of the distance was to grow"


def dog(grads: A, p: A, a: float, start: float, eps: float) -> Steps:
    first, far, squares = p, start * (1 + norm(p)), 0.0
    for g in grads:
        far, squares = max(far, norm(p - first)), squares + norm(g) ** 2
        p = p - a * far / np.sqrt(squares + eps) * g
        yield p, p


def dowg(grads: A, p: A, a: float, eps: float) -> Steps:
    first, far, squares = p, eps, 0.0
    for g in grads:
        far = max(far, norm(p - first) ** 2)
        squares += far * norm(g) ** 2
        p = p - a * far / (np.sqrt(squares) + eps) * g
        yield p, p


def cocob(grads: A, p: A, a: float, alpha: float, eps: float) -> Steps:
    first, largest = p, np.full_like(p, eps)
    sums = against = reward = np.zeros_like(p)
    for g in a * grads:
        largest = np.maximum(largest, np.abs(g))
        sums, against = sums + np.abs(g), against - g
        reward = np.maximum(reward - g * (p - first), 0)
        share = against / (largest * np.maximum(sums + largest, alpha * largest))
        p = first + share * (largest + reward)
        yield p, p


def polyak_sgd(grads: A, p: A, a: float) -> Steps:
    for g, loss in zip(grads, LOSSES, strict=False):
        p = p - min(loss / norm(g) ** 2, a) * g
        yield p, p


def momo(grads: A, p: A, a: float, momentum: float) -> Steps:
    m, mean, products = grads[0], LOSSES[0], np.sum(grads[0] * p)
    for g, loss in zip(grads, LOSSES, strict=False):  # at first, all stay the same
        m = momentum * m + (1 - momentum) * g
        mean = momentum * mean + (1 - momentum) * loss
        products = momentum * products + (1 - momentum) * np.sum(g * p)
        gap = max(mean - products + np.sum(m * p), 0)
        p = p - min(gap / norm(m) ** 2, a) * m
        yield p, p


def momo_adam(grads: A, p: A, a: float, b1: float, b2: float, eps: float) -> Steps:
    m = s = np.zeros_like(p)
    mean = products = 0.0
    for t, (g, loss) in enumerate(zip(grads, LOSSES, strict=False), 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * g**2
        mean = b1 * mean + (1 - b1) * loss
        products = b1 * products + (1 - b1) * np.sum(g * p)
        u = m / (np.sqrt(s / (1 - b2**t)) + eps)
        gap = max(mean - products + np.sum(m * p), 0)
        p = p - min(gap / np.sum(m * u), a / (1 - b1**t)) * u
        yield p, p


RULES: dict[str, Rule] = {
    "nadam": nadam, "nadamw": nadam, "adamax": adamax, "amsgrad": amsgrad,
    "radam": radam, "yogi": yogi, "adabelief": adabelief, "acprop": acprop,
    "adan": adan, "ademamix": ademamix, "adopt": adopt, "madgrad": madgrad,
    "sign_sgd": sign_sgd, "signum": signum, "rprop": rprop,
    "lars": lambda g, p, a, momentum, trust: lars(g, p, a, momentum, trust),
    "lamb": lamb, "fromage": fromage, "novograd": novograd, "adafactor": adafactor,
    "sm3": sm3, "muon": muon, "schedule_free": schedule_free,
    "schedule_free_sgd": schedule_free_sgd, "dadapt_adamw": dadapt_adamw,
    "prodigy": prodigy, "dog": dog, "dowg": dowg, "cocob": cocob,
    "polyak_sgd": polyak_sgd, "momo": momo, "momo_adam": momo_adam,
}  # fmt: skip
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
        steps = np.array(list(RULES[name](grads, p, a, **values)))
        return np.moveaxis(steps, 1, 0).reshape(2, len(grads), -1)

    # others treat all numbers alike, or all together: then this would differ
    if not OPTIMIZERS[name].by_array:
        return run(grads, p)
    parts = arrays_of(grads, 1), arrays_of(p)
    return np.concatenate([run(g, parts[1][k]) for k, g in parts[0].items()], axis=2)


def gradients(steps: int = STEPS, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Random gradients [steps, 20] over several magnitudes, and a start [20]."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-3, 1, 20)
    return rng.normal(drift, size=(steps, 20)) * scale, rng.normal(size=20)


def as_they_are(opt_state: optax.OptState, params: PyTree) -> PyTree:
    return params


def path(
    tx: optax.GradientTransformation,
    grads: np.ndarray,
    p: np.ndarray,
    weights: Callable[[optax.OptState, PyTree], PyTree] = as_they_are,
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
    given = jnp.asarray(grads), jnp.asarray(LOSSES[: len(grads)])
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
    # 200 updates, each rounded a few times: some hundred units in the last
    # place of parameters that are as large as the path is long
    tolerance = 10 * STEPS * np.finfo(np.float64).eps * np.abs(want).max()
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
def test_equals_its_rule_in_one_program(name: str) -> None:
    """What is trained and what is evaluated; nothing is compiled again for values.

    With our defaults, which are the papers' or Keras's, and with others, no two of a
    rule alike.
    """
    optimizer = OPTIMIZERS[name]
    parameters = inspect.signature(optimizer.make).parameters.values()
    usual = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    grads, start = gradients(60, drift=0.5)
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
    if name in RULES:
        bits = 32 if name in IN_32_BITS else 64
        for values in (defaults, changed):
            got = traced(jax.tree.map(jnp.asarray, values))
            others = {k: v for k, v in values.items() if k != "rate"}
            want = by_rule(name, grads, start, values["rate"], others)
            check_equal(got, want, start, bits)
    else:
        want = path(optimizer.make(**changed), grads, start)
        np.testing.assert_allclose(before, want, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TWINS)
def test_equals_keras(name: str) -> None:
    hyperparameters, twin = TWINS[name]
    rate = OPTIMIZERS[name].rate
    grads, p = gradients()
    got = path(OPTIMIZERS[name].make(rate, **hyperparameters), grads, p)[0]
    want = keras_path(lambda: twin(rate), grads, p)
    check_equal(got, want, p)


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
    np.testing.assert_allclose(still[0, -1], shrunk, rtol=1e-12)


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
        tx = optax.with_extra_args_support(
            optimizer.make(
                **{"rate": optimizer.rate}
                | dict(zip(optimizer.space, values, strict=True))
            )
        )
        p = {"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}
        opt_state = tx.init(p)
        for _ in range(2):  # adopt waits for the second
            gradient = jax.tree.map(jnp.ones_like, p)
            updates, opt_state = tx.update(gradient, opt_state, p, value=1.0)
            p = optax.apply_updates(p, updates)
        return p, optimizer.weights(opt_state, p)

    for p in jax.tree.leaves(steps(jnp.asarray(corners, jnp.float32))):
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
