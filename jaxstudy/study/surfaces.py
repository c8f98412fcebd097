"""Paths of optimizers on surfaces of two parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from jaxstudy.optimizers import OPTIMIZERS, Optimizer
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.types import Array


@dataclass(frozen=True)
class Surface:
    """A function of the plane [2] -> value, where to start, and where it is least."""

    value: Callable[[Array], Array]
    start: tuple[float, float]
    minimum: tuple[float, float]
    box: tuple[float, float, float, float]  # to draw: x from, to, y from, to


SURFACES: dict[str, Surface] = {
    "Rosenbrock": Surface(
        lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2,
        start=(-1.2, 1.0),
        minimum=(1.0, 1.0),
        box=(-2.0, 2.0, -1.0, 3.0),
    ),
    "Beale": Surface(
        lambda p: (
            (1.5 - p[0] + p[0] * p[1]) ** 2
            + (2.25 - p[0] + p[0] * p[1] ** 2) ** 2
            + (2.625 - p[0] + p[0] * p[1] ** 3) ** 2
        ),
        start=(1.0, 1.0),
        minimum=(3.0, 0.5),
        box=(-1.0, 4.5, -1.5, 2.0),
    ),
    # turned, and away from 0: neither steps by coordinate nor weight decay fit it
    "ravine": Surface(
        lambda p: (
            0.5 * (0.8 * (p[0] - 1) + 0.6 * (p[1] - 1)) ** 2
            + 25 * (0.8 * (p[1] - 1) - 0.6 * (p[0] - 1)) ** 2
        ),
        start=(-3.0, -1.0),
        minimum=(1.0, 1.0),
        box=(-4.0, 2.5, -2.5, 2.0),
    ),
}


def path(
    surface: Surface, optimizer: Optimizer, rates: np.ndarray, steps: int
) -> np.ndarray:
    """The way down [steps + 1, 2] at the rate with the lowest mean value.

    Not the lowest last value: a rate that leaps about may end well by chance.
    """

    def descend(rate: Array) -> tuple[Array, Array]:
        tx = optimizer.make(rate)

        def step(carry: tuple[Array, Any], _: None) -> tuple[Any, Any]:
            p, opt_state = carry
            value, g = jax.value_and_grad(surface.value)(p)
            updates, opt_state = tx.update(g, opt_state, p)
            p = optax.apply_updates(p, updates)
            return (p, opt_state), (p, value)

        start = jnp.array(surface.start)
        _, (visited, values) = jax.lax.scan(step, (start, tx.init(start)), length=steps)
        return jnp.concatenate([start[None], visited]), jnp.mean(values)

    paths, means = jax.jit(jax.vmap(descend))(jnp.asarray(rates, jnp.float32))
    best = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
    return np.asarray(paths[best])


def draw_path(axis: Axes, surface: Surface, points: np.ndarray) -> None:
    """A path [steps + 1, 2] over the surface's height, from its start."""
    x0, x1, y0, y1 = surface.box
    grid = np.stack(np.meshgrid(np.linspace(x0, x1, 160), np.linspace(y0, y1, 160)))
    height = np.log10(np.asarray(surface.value(jnp.asarray(grid))) + 1e-3)
    axis.contourf(*grid, height, 24, cmap="Greys", alpha=0.7)
    axis.plot(*points.T, marker=".", markersize=3, linewidth=1)
    axis.plot(*surface.start, "ko", markersize=6)
    axis.plot(*surface.minimum, "k*", markersize=12)
    axis.set(xlim=(x0, x1), ylim=(y0, y1))


def save_paths(
    run: Run, surface: str, names: Sequence[str], rates: np.ndarray, steps: int
) -> dict[str, float]:
    """The paths of optimizers on one of SURFACES, as paths.png.

    Returns how far from the minimum each optimizer ends.
    """
    rows, result = -(-len(names) // 4), {}
    figure, axes = plots.subplots(
        rows, 4, figsize=(13, 3.2 * rows), squeeze=False, layout="constrained"
    )
    on = SURFACES[surface]
    for name, axis in zip(names, axes.flat, strict=False):
        points = path(on, OPTIMIZERS[name], rates, steps)
        distance = float(np.linalg.norm(points[-1] - np.array(on.minimum)))
        result[f"{name}: distance to the minimum of {surface}"] = distance
        draw_path(axis, on, points)
        axis.set(title=f"{name}: ends {distance:.2g} away", xlabel="weight 1")
    for axis in axes[:, 0]:
        axis.set(ylabel="weight 2")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    plots.save(figure, run, "paths")
    return result
