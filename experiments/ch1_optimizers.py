"""Lesson 1.3: optimizers, each at its own best learning rate, and what they do.

Momentum keeps a velocity; AdaGrad gives rarely changed weights long steps and often
changed ones short, ever shorter steps; RMSProp forgets old gradients, so its steps do
not vanish; AdaDelta needs no scale of its own; Adam is RMSProp with momentum. All
choose from one grid of learning rates by the validation loss of some seeds, and train
again from other seeds with what they chose. Then their paths on surfaces one can look
at, and how long a step really is: |change of a weight| / |its gradient|, over time.
The whole benchmark, every hyperparameter tuned: benchmarks/optimizers.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy.optimizers import OPTIMIZERS, LogUniform
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.study.comparison import cell_of
from jaxstudy.study.plots import save_sensitivity
from jaxstudy.study.problems import PROBLEMS, SURFACES, Problem
from jaxstudy.study.runner import Candidate, Protocol, look_up, metrics, run_study
from jaxstudy.study.surfaces import draw_path, path
from jaxstudy.tabular.sets import read_digits
from jaxstudy.training import TrainStep, fit, init_state, make_train_step
from jaxstudy.types import Batch, Mean, Metrics, TrainState

NAMES = (
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam", "adamw"
)  # fmt: skip
DIGITS = "{}: test loss on digits"
RAVINE = "{}: distance to the minimum of ravine"
STEP = "{}: step at the end / at the start, rare pixels"

LESSON = Lesson(
    number="1.3",
    title="Optimizers",
    question="How do optimizers differ?",
    metrics=(
        *(DIGITS.format(name) for name in NAMES),
        *(STEP.format(name) for name in ("adagrad", "rmsprop", "adadelta")),
        *(RAVINE.format(name) for name in ("sgd", "momentum")),
        "sgd: test loss on admissions_network", "adam: test loss on admissions_network",
    ),
    claims=(
        Claim("In one training, AdaGrad's steps shrink and RMSProp's grow.",
              (STEP.format("adagrad"), 1.0, STEP.format("rmsprop")), "<"),
        Claim("In one training, AdaDelta's steps grow.",
              (STEP.format("adadelta"), 1.0), ">"),
        Claim("After as many steps, momentum is nearer to the ravine's minimum than "
              "SGD.", (RAVINE.format("momentum"), RAVINE.format("sgd")), "<"),
        Claim("On the digits, Adam has a lower test loss than momentum.",
              (DIGITS.format("adam"), DIGITS.format("momentum")), "<"),
        Claim("On the admissions, SGD and Adam differ by less than 0.01 nats.",
              ("sgd: test loss on admissions_network",
               "adam: test loss on admissions_network"), "within", 0.01),
    ),
    figures={
        "paths": "Each optimizer's way down a ravine at its own best rate, from the "
        "dot to the star. Look at the zigzag across the walls, and at how far each "
        "gets along the floor in the same number of steps: the title says how far from "
        "the minimum it ends.",
        "sensitivity": "Validation loss after training by learning rate, the median of "
        "the tuning seeds. A wide valley means that the rate matters little; crosses "
        "at the top diverged, or ended worse than they began.",
        "steps": "Length of a step for a gradient of 1, by epoch, for pixels that are "
        "seldom and mostly inked. A line that falls is a step that shrinks, whatever "
        "the gradient does.",
    },
    try_it={
        "--rates 8": "A coarser grid: an optimizer with a narrow valley in the figure "
        "of sensitivity loses more than one with a wide valley.",
        "--epochs 60": "AdaGrad's steps shrink on and on: look at the end of its line.",
        "--path-steps 600": "With four times the steps more of the paths arrive.",
    },
)  # fmt: skip

# Those whose every weight has a step length of its own. AdaGrad's sum begins at 0 here,
# as in the paper: the usual 0.1 hides what the small gradients of the digits add to it.
DIAGONAL: dict[str, dict[str, float]] = {
    "sgd": {}, "adagrad": {"start": 0.0}, "rmsprop": {}, "adadelta": {}
}  # fmt: skip


@dataclass(frozen=True)
class Config(Settings):
    """Who competes on what, and at which learning rates."""

    optimizers: tuple[str, ...] = NAMES
    """Names of jaxstudy/optimizers.py."""
    problems: tuple[str, ...] = ("quadratic", "admissions_network", "digits")
    """Names of jaxstudy/study/problems.py."""
    lowest_rate: Positive = 1e-5
    """Where the grid of learning rates begins."""
    highest_rate: Positive = 1e2
    """Where it ends."""
    rates: Count = 15
    """How many there are, evenly in the logarithm."""
    tuning_seeds: int = 3
    """Seeds that choose the rate."""
    seeds: int = 10
    """Other seeds, that are reported."""
    epochs: Count | None = None
    """Epochs on every problem, instead of its own number."""
    path_steps: Count = 150
    """Steps on each surface."""


PRESETS = {
    "smoke": Config(
        optimizers=("sgd", "adagrad"), problems=("digits",), rates=4,
        lowest_rate=1e-3, highest_rate=1.0, seeds=5, epochs=2, path_steps=20,
    ),
    "quick": Config(),
    "full": Config(rates=36, tuning_seeds=10, seeds=15),
}  # fmt: skip


def draw_paths(run: Run, config: Config, rates: np.ndarray) -> dict[str, float]:
    """How near to the minimum of every surface each ends; the paths in the ravine."""
    rows, result = -(-len(config.optimizers) // 4), {}
    figure, axes = plots.subplots(rows, 4, figsize=(14, 3.2 * rows), squeeze=False)
    for title, surface in SURFACES.items():
        for name, axis in zip(config.optimizers, axes.flat, strict=False):
            points = path(surface, OPTIMIZERS[name], rates, config.path_steps)
            distance = np.linalg.norm(points[-1] - np.array(surface.minimum))
            result[f"{name}: distance to the minimum of {title}"] = float(distance)
            if title == "ravine":
                draw_path(axis, surface, points)
                axis.set(title=f"{name}: ends {distance:.2g} away")
    for axis in axes.flat[len(config.optimizers) :]:
        axis.axis("off")
    plots.save(figure, run, "paths")
    return result


def watched(
    problem: Problem, tx: optax.GradientTransformation, groups: dict[str, np.ndarray]
) -> TrainStep:
    """A training step that also measures how long a step is, by group of pixels.

    log10(|change| / |gradient|) of the first layer's weights, averaged over those whose
    gradient is not 0.
    """
    plain = make_train_step(problem.objective, tx)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        after, measured = plain(state, batch)
        key = jax.random.fold_in(state.key, state.step)
        slope, _ = jax.grad(problem.objective, has_aux=True)(
            state.params, state.extra, batch, key
        )
        old, new, g = (
            p["hidden_1"]["kernel"] for p in (state.params, after.params, slope)
        )
        moved = (jnp.abs(g) > 1e-12) & (new != old)
        length = jnp.log10(jnp.abs(jnp.where(moved, (new - old) / g, 1.0)))
        steps = {
            f"log step, {name}": Mean(
                jnp.sum(length[rows]), jnp.sum(moved[rows], dtype=jnp.float32)
            )
            for name, rows in groups.items()
        }
        return after, {**measured, **steps}

    return train_step


def pixel_groups() -> dict[str, np.ndarray]:
    """Pixels of the digits that are seldom inked, and those that mostly are."""
    inked = (read_digits()["x"] > 0).mean(0)
    seldom = np.flatnonzero((inked > 0) & (inked < 0.05))
    return {"rare": seldom, "frequent": np.flatnonzero(inked > 0.8)}


def draw_steps(run: Run, config: Config, best_rate: Callable[[str], float]) -> dict:
    """Step lengths over time of the optimizers that have one for each weight."""
    problem, groups = PROBLEMS["digits"](), pixel_groups()
    epochs = config.epochs or problem.epochs
    panels, result = [], {}
    lines: dict[str, dict] = {group: {} for group in groups}
    for name in (n for n in DIAGONAL if n in config.optimizers):
        tx = OPTIMIZERS[name].make(best_rate(name), **DIAGONAL[name])
        start, order = jax.random.split(jax.random.key(config.seed))
        fitted = fit(
            init_state(problem.model, tx, start),
            watched(problem, tx, groups),
            problem.train,
            key=order,
            epochs=epochs,
            batch_size=problem.batch_size,
            chunk_steps=4,
            log=run.sub_run(f"steps {name}"),
        )
        for group in groups:
            x = [row["epoch"] for row in fitted.records]
            y = [10 ** row[f"log step, {group}"] for row in fitted.records]
            lines[group][name] = (x, y)
            result[f"{name}: step at the end / at the start, {group} pixels"] = (
                y[-1] / y[0]
            )
    for group in groups:
        title, label = f"pixels with {group} ink", "step length: |change| / |gradient|"
        scales = ("linear", "log")
        panels.append(plots.Panel(title, "epoch", label, lines[group], scales))
    plots.save_lines(run, "steps", panels)
    return result


def main(config: Config, run: Run) -> dict[str, Any]:
    """The comparison, the paths, the lengths of the steps."""
    grid = LogUniform(config.lowest_rate, config.highest_rate)
    protocol = Protocol(
        trials=config.rates, search="grid", tuning_seeds=config.tuning_seeds,
        seeds=config.seeds, budgets=(), epochs=config.epochs, seed=config.seed,
    )  # fmt: skip
    candidates = {
        name: Candidate(look_up("optimizer", name, OPTIMIZERS), {"rate": grid})
        for name in config.optimizers
    }
    builders = {name: look_up("problem", name, PROBLEMS) for name in config.problems}
    problems = {name: build() for name, build in builders.items()}
    record = run_study(problems, candidates, protocol, run)
    save_sensitivity(record, run)
    print("\n".join(record["comparison"]["sentences"]))

    rates = grid.value(np.linspace(0, 1, config.rates))
    result = metrics(record) | draw_paths(run, config, rates)
    if "digits" in config.problems:

        def best_rate(name: str) -> float:
            cell = cell_of(record, "digits", name)
            return cell["points"]["rate"][cell["reported"][str(config.rates)]["point"]]

        result |= draw_steps(run, config, best_rate)
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
