"""The adding problem, and what recurrent networks keep of its first marked number."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.model import Model
from jaxstudy.objectives import masked_mean
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.training import EvalStep
from jaxstudy.types import Array, Batch, Metrics, PyTree, TrainState

FLOOR = 1e-30  # of a norm in float32
SOLVED = 0.01  # a squared error below it: the sum is known to 0.1
LEVELS = {"solved: 0.01": SOLVED}


class AddingResult(NamedTuple):
    """What the trainings of one network came to."""

    errors: np.ndarray  # [seeds]
    constant: float  # the error of always predicting 1 on the same sequences
    by_position: np.ndarray  # of the first mark [bins, seeds]
    jacobians: dict[str, np.ndarray]  # norms [seeds, T], before training and after


def adding_problem(count: int, length: int, seed: int) -> Dataset:
    """x [N, T, 2]: numbers between 0 and 1, and marks; y [N]: the sum of the marked.

    One mark is in the first half of the steps, one in the second. Always predicting 1
    has a squared error of 1/6, the variance of the sum. Source: Hochreiter and
    Schmidhuber 1997, as Le, Jaitly and Hinton have it, arXiv:1504.00941.
    """
    rng = np.random.default_rng((seed, length))
    numbers = rng.uniform(0, 1, (count, length))
    marks = np.zeros((count, length))
    half = length // 2
    for place in (rng.integers(0, half, count), rng.integers(half, length, count)):
        marks[np.arange(count), place] = 1
    x = np.stack([numbers, marks], axis=-1).astype(np.float32)
    return dataset({"x": x, "y": (numbers * marks).sum(1).astype(np.float32)})


def error_by_first_mark(model: Model, bins: int) -> EvalStep:
    """The squared error of `adding_problem`, and that by the step of the first mark.

    Metrics: loss, and "bin 0", ... of equal parts of the first half of the steps.
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        x = batch["x"]
        outputs, _ = model.apply(state.params, {}, x, train=False, key=None)
        error, first = jnp.square(outputs - batch["y"]), jnp.argmax(x[..., 1], 1)
        bin_of = first * bins // (x.shape[1] // 2)
        metrics = {"loss": masked_mean(error, batch["mask"])}
        for i in range(bins):
            own = (bin_of == i) * batch["mask"]
            metrics[f"bin {i}"] = masked_mean(error, own)
        return metrics

    return eval_step


def input_jacobian_norms(
    model: Model, state: TrainState, x: Array | np.ndarray
) -> np.ndarray:
    """Mean norm of d output / d x_t over sequences x [N, T, D]: [L, T].

    For each of the replicas L of a model whose output is one number a sequence.
    """

    def output(x: Array, params: PyTree) -> Array:
        return jnp.sum(model.apply(params, {}, x, train=False, key=None)[0])

    def norms(params: PyTree) -> Array:
        return jnp.linalg.norm(jax.grad(output)(x, params), axis=-1).mean(0)

    return np.asarray(jax.jit(lambda params: jax.lax.map(norms, params))(state.params))


def log_jacobians(norms: np.ndarray) -> np.ndarray:
    """log10 of norms [L, T] less that of the last step; NaN where one is below FLOOR.

    There float32 ends: nothing can be said of what is smaller.
    """
    logs = np.log10(np.where(norms > FLOOR, norms, np.nan))
    return logs - logs[:, -1:]


def decay_per_step(norms: np.ndarray) -> np.ndarray:
    """By how much log10 of the Jacobian's norm falls per step back [L], least squares.

    norms [L, T]; steps below FLOOR are left out. NaN where fewer than two are above,
    or the norms are NaN, as those of a network that diverged.
    """
    slopes = []
    for logs in log_jacobians(norms):
        above = np.flatnonzero(np.isfinite(logs))
        line = np.polyfit(above, logs[above], 1) if len(above) > 1 else [np.nan]
        slopes.append(line[0])
    return np.array(slopes)


def with_forget_bias(state: TrainState, value: float) -> TrainState:
    """An LSTM of `sequence_to_vector` whose forget gates have this bias.

    At sigmoid(value) of its cell a step, (sigmoid(value))^k of it is left after k
    steps. Source: Gers et al. 2000; Jozefowicz et al. 2015, section 5.
    """

    def changed(layer: dict[str, Array]) -> dict[str, Array]:
        units = layer["bias"].shape[-1] // 4  # of the gates i, f, g, o
        bias = layer["bias"].at[..., units : 2 * units].set(value)
        return {**layer, "bias": bias}

    layers = {name: changed(layer) for name, layer in state.params["layers"].items()}
    return state._replace(params={**state.params, "layers": layers})


def draw_jacobians(run: Run, trained: Mapping[str, AddingResult], length: int) -> None:
    """Norm of the input Jacobian by step, geometric mean over seeds, as jacobian.png.

    Before training and after it, each relative to its last step.
    """
    shown = np.unique(np.linspace(1, length, 50).astype(int))
    panels = []
    for when in ("before training", "trained"):
        lines: dict[str, plots.Line] = {}
        for name, network in trained.items():
            norm = 10 ** log_jacobians(network.jacobians[when]).mean(0)
            lines[name] = shown.tolist(), norm[shown - 1].tolist()
        label = r"$\|\partial y\,/\,\partial x_t\|$ relative to that at $t = T$"
        panel = plots.Panel(
            f"T = {length}, {when}", "step t", label, lines, ("linear", "log")
        )
        panels.append(panel)
    plots.save_lines(run, "jacobian", panels)


def draw_error_by_position(
    run: Run, trained: Mapping[str, AddingResult], length: int
) -> None:
    """Squared error by the step of the first mark, mean over seeds: positions.png."""
    lines: dict[str, plots.Line] = {}
    levels = LEVELS
    for name, network in trained.items():
        bins = len(network.by_position)
        middle = (np.arange(bins) + 0.5) * (length // 2) / bins + 0.5  # steps from 1
        lines[name] = middle.tolist(), network.by_position.mean(1).tolist()
        levels = {**LEVELS, "always predicting 1": network.constant}
    panel = plots.Panel(
        f"T = {length}, trained", "step of the first marked number", "squared error",
        lines, ("linear", "log"), levels=levels,
    )  # fmt: skip
    plots.save_lines(run, "positions", [panel])
