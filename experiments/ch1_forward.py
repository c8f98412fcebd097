"""Lesson 1.1: three exam scores, two hidden units, one prediction, all by hand.

    h1 = x1 w1 + x2 w2 + x3 w3      h2 = x1 w4 + x2 w5 + x3 w6
    prediction = h1 w7 + h2 w8

Every product and sum is printed beside what `Model.apply` returns, and the gradient of
the squared error with respect to each weight three times: by the chain rule on paper,
by `jax.grad`, and by finite differences. Then one step of gradient descent.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import rich.console
import rich.table

from jaxstudy.models.mlp import ACTIVATIONS, mlp
from jaxstudy.objectives import squared_error
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.types import PyTree

LESSON = Lesson(
    number="1.1",
    title="A 3-2-1 network by hand",
    question="What does a network compute?",
    metrics=(
        "jax.grad - chain rule: largest difference",
        "finite differences - chain rule: largest difference",
        "forward: largest difference",
        "prediction", "loss", "loss after one step",
    ),
    claims=(
        Claim("jax.grad and the chain rule by hand agree to 1e-9.",
              ("jax.grad - chain rule: largest difference", 1e-9), "<"),
        Claim("Finite differences and the chain rule by hand agree to 1e-9.",
              ("finite differences - chain rule: largest difference", 1e-9), "<"),
        Claim("The sums by hand are what Model.apply returns, to 1e-12.",
              ("forward: largest difference", 1e-12), "<"),
        Claim("One step of gradient descent lowers the loss.",
              ("loss after one step", "loss"), "<"),
    ),
    figures={
        "network": "The forward pass, from left to right: on each arrow a weight times "
        "the value that it multiplies; a unit adds up the products that reach it.",
        "gradient": "The chain rule, from right to left: a unit holds its value p or h "
        "and the derivative of the loss with respect to it; on each arrow that "
        "derivative times the value of the unit at its head: the weight's derivative.",
    },
    try_it={
        "--rate 5": "A step that is too long jumps over the minimum: the loss rises, "
        "and the claim about the step fails.",
        "--target 0": "The loss and every gradient change, the forward pass does not.",
        "--scores 0.7 0 0.9": "An input of 0 gives its weights a derivative of 0: they "
        "learn nothing.",
    },
)  # fmt: skip

MONTHS = ("June", "September", "October")
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Config(Settings):
    """The worked example: the student's scores and what the network should say."""

    scores: tuple[Finite, Finite, Finite] = (0.7, 0.8, 0.9)
    """Scores of June, September and October, as shares of full marks."""
    target: Finite = 1.0
    """What the prediction should be: 1 is admitted."""
    rate: Positive = 0.1
    """Learning rate of the one step of gradient descent."""


PRESETS = {"smoke": Config(), "quick": Config(), "full": Config()}


def unpack(params: PyTree) -> np.ndarray:
    """The weights as w1..w8 [8]: those into h1, into h2, and out of both."""
    into, out = params["hidden_1"]["kernel"], params["output"]["kernel"]
    return np.concatenate([np.ravel(np.asarray(into).T), np.ravel(out)])


def by_hand(x: tuple[float, ...], w: np.ndarray) -> tuple[float, float, float]:
    """(h1, h2, prediction), one product at a time."""
    h1 = x[0] * w[0] + x[1] * w[1] + x[2] * w[2]
    h2 = x[0] * w[3] + x[1] * w[4] + x[2] * w[5]
    return h1, h2, h1 * w[6] + h2 * w[7]


def gradient_by_hand(x: tuple[float, ...], w: np.ndarray, y: float) -> np.ndarray:
    """The chain rule for L = (prediction - y)^2: dL/dw1 = 2 (prediction - y) w7 x1."""
    h1, h2, prediction = by_hand(x, w)
    error = 2 * (prediction - y)
    into_h1 = [error * w[6] * xi for xi in x]
    into_h2 = [error * w[7] * xi for xi in x]
    return np.array([*into_h1, *into_h2, error * h1, error * h2])


def gradient_by_differences(
    x: tuple[float, ...], w: np.ndarray, y: float, eps: float = 1e-3
) -> np.ndarray:
    """[L(w + eps) - L(w - eps)] / (2 eps) for one weight after the other.

    L is quadratic in each weight alone, so that this is exact at any eps, rounding
    apart: and of the difference of two losses the larger eps loses fewer digits.
    """
    loss = lambda weights: (by_hand(x, weights)[2] - y) ** 2  # noqa: E731
    nudges = eps * np.eye(len(w))
    return np.array([(loss(w + d) - loss(w - d)) / (2 * eps) for d in nudges])


def show_forward(x: tuple[float, ...], w: np.ndarray, applied: np.ndarray) -> None:
    """Print every product and sum beside what the model returned [3]."""
    h = by_hand(x, w)
    table = rich.table.Table(title="forward", title_justify="left")
    for heading in ("", "by hand", "value", "Model.apply"):
        table.add_column(heading, justify="right")
    units = (("h1", "x", x), ("h2", "x", x), ("prediction", "h", h[:2]))
    for i, (unit, letter, inputs) in enumerate(units):
        for j, value in enumerate(inputs):
            k = 3 * i + j
            product = f"{value:+.4f} x {w[k]:+.4f}"
            name = f"{letter}{j + 1} w{k + 1}"
            table.add_row(name, product, f"{value * w[k]:+.9f}", "")
        table.add_row(
            unit, "sum", f"{h[i]:+.9f}", f"{applied[i]:+.9f}", end_section=True
        )
    console().print(table)


def show_gradients(w: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    """Print the derivative with respect to each weight, one column a way to get it."""
    table = rich.table.Table(title="gradient of the loss", title_justify="left")
    for heading in ("weight", "value", *columns):
        table.add_column(heading, justify="right")
    for i, weight in enumerate(w):
        each = [f"{values[i]:+.9f}" for values in columns.values()]
        table.add_row(f"w{i + 1}", f"{weight:+.4f}", *each)
    console().print(table)


def console() -> rich.console.Console:
    """As wide as the tables, also into a pipe."""
    return rich.console.Console(width=100)


def main(config: Config, run: Run) -> dict[str, float]:
    """Work the example three ways in float64, and take one step."""
    with jax.enable_x64(True):
        return work(config, run)


def work(config: Config, run: Run) -> dict[str, float]:
    """The lesson itself."""
    model = mlp(3, (2,), 1, ACTIVATIONS["none"], use_bias=False)
    watched = mlp(3, (2,), 1, ACTIVATIONS["none"], use_bias=False, capture=True)
    params, extra = model.init(jax.random.key(config.seed))
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    x, y, w = config.scores, config.target, unpack(params)

    inputs = jnp.array([x], jnp.float64)
    (prediction, hidden), _ = watched.apply(
        params, extra, inputs, train=False, key=None
    )
    applied = np.array([*np.ravel(hidden["z1"][0]), prediction[0]])
    scores = ", ".join(f"{m} {s:g}" for m, s in zip(MONTHS, x, strict=True))
    print(f"scores: {scores}; the prediction should be {y:g}")
    show_forward(x, w, applied)

    batch = {"x": inputs, "y": jnp.array([y]), "mask": jnp.ones(1)}
    objective = squared_error(model)
    value_and_grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, _), grads = value_and_grad(params, extra, batch, None)
    gradients = {
        "chain rule": gradient_by_hand(x, w, y),
        "jax.grad": unpack(grads),
        "finite differences": gradient_by_differences(x, w, y),
    }
    show_gradients(w, gradients)

    stepped = jax.tree.map(lambda p, g: p - config.rate * g, params, grads)
    (after, _), _ = value_and_grad(stepped, extra, batch, None)
    step = f"w -= {config.rate:g} dL/dw"
    print(f"loss (prediction - {y:g})^2: {loss:.6f}; after {step}: {after:.6f}")
    h = by_hand(x, w)
    draw_forward(run, config, w, h)
    draw_gradient(run, config, w, h)
    exact, *others = gradients.values()
    by_jax, by_differences = (abs(other - exact).max() for other in others)
    result = {
        "jax.grad - chain rule: largest difference": by_jax,
        "finite differences - chain rule: largest difference": by_differences,
        "forward: largest difference": abs(applied - h).max(),
        "loss": loss,
        "loss after one step": after,
        **dict(zip(("h1", "h2", "prediction"), h, strict=True)),
    }
    for i, weight in enumerate(w):
        result[f"w{i + 1}"] = weight
        for way, values in gradients.items():
            result[f"dL/dw{i + 1} by {way}"] = values[i]
    return {name: float(value) for name, value in result.items()}


def draw_forward(run: Run, config: Config, w: np.ndarray, h: tuple[float, ...]) -> None:
    """The values in the units, the products on the arrows."""
    x = config.scores
    edges = {}
    for j in range(2):
        for i in range(3):
            k = 3 * j + i
            product = f"{x[i]:g} x {w[k]:.2f} = {x[i] * w[k]:.3f}"
            edges[(0, i), (1, j)] = f"x{i + 1} w{k + 1}\n{product}"
        product = f"{h[j]:.2f} x {w[6 + j]:.2f} = {h[j] * w[6 + j]:.3f}"
        edges[(1, j), (2, 0)] = f"h{j + 1} w{7 + j}\n{product}"
    inputs = [f"{m}\nx{i + 1} = {x[i]:g}" for i, m in enumerate(MONTHS)]
    hidden = [f"h{j + 1} = {h[j]:.3f}" for j in range(2)]
    layers = [inputs, hidden, [f"prediction\n{h[2]:.3f}"]]
    plots.save_network(run, "network", layers, edges, "forward: values and products")


def draw_gradient(
    run: Run, config: Config, w: np.ndarray, h: tuple[float, ...]
) -> None:
    """The derivatives of the loss: beside the units' values, and of the weights."""
    x, error = config.scores, 2 * (h[2] - config.target)
    edges = {}
    for j in range(2):
        into = error * w[6 + j]  # dL/dh
        for i in range(3):
            product = f"{into:.2f} x {x[i]:g} = {into * x[i]:.3f}"
            edges[(1, j), (0, i)] = f"dL/dw{3 * j + i + 1}\n{product}"
        product = f"{error:.2f} x {h[j]:.2f} = {error * h[j]:.3f}"
        edges[(2, 0), (1, j)] = f"dL/dw{7 + j}\n{product}"
    sides = [f"h{j + 1} = {h[j]:.3f}\ndL/dh{j + 1} =\n" for j in range(2)]
    hidden = [f"{sides[j]}{error * w[6 + j]:.3f}" for j in range(2)]
    inputs = [f"{m}\nx{i + 1} = {x[i]:g}" for i, m in enumerate(MONTHS)]
    layers = [inputs, hidden, [f"p = {h[2]:.3f}\ndL/dp =\n{error:.3f}"]]
    plots.save_network(run, "gradient", layers, edges, "backward: derivatives")


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
