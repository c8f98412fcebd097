"""Lesson 1.3: optimizers, each at its own best learning rate, and what they do.

Momentum keeps a velocity; AdaGrad gives rarely changed weights long steps and often
changed ones short, ever shorter steps; RMSProp forgets old gradients, so its steps do
not vanish; AdaDelta needs no scale of its own; Adam is RMSProp with momentum. All
choose from one grid of learning rates by the validation loss of some seeds, and train
again from other seeds with what they chose. Then their paths on a surface one can look
at, and how long a step really is: |change of a weight| / |its gradient|, over time.
The whole benchmark, every hyperparameter tuned: benchmarks/optimizers.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxstudy.optimizers import OPTIMIZERS, LogUniform
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, REAL, Estimate, mean_over_runs
from jaxstudy.study.candidates import Candidate, look_up
from jaxstudy.study.comparison import SPREAD, TOLD, WORST, outcome, telling, verdicts
from jaxstudy.study.plots import save_sensitivity, save_test_differences
from jaxstudy.study.problems import PROBLEMS, Problem
from jaxstudy.study.runner import (
    Protocol,
    losses_at,
    reported_losses,
    run_share,
    run_study,
    with_epochs,
)
from jaxstudy.study.shares import parse_share
from jaxstudy.study.step_lengths import DIAGONAL, pixel_groups, step_lengths
from jaxstudy.study.surfaces import save_paths

NAMES = (
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam", "adamw"
)  # fmt: skip
LOSS = "{}: test loss on digits"
RAVINE = "{}: distance to the minimum of ravine"
STEP = "{}: step at the end / at the start, rare pixels"
FORGETS = "rmsprop or adadelta, the less: step at the end / at the start, rare pixels"

LESSON = Lesson(
    number="1.3",
    title="Optimizers",
    question="How do optimizers differ?",
    metrics=(
        *(STEP.format(name) for name in ("adagrad", "rmsprop", "adadelta")),
        *(RAVINE.format(name) for name in ("sgd", "momentum")),
        WORST, TOLD.format("digits"), SPREAD.format("admissions_network"),
        *(LOSS.format(name) for name in ("sgd", "momentum", "adagrad", "adam")),
        FORGETS,
        *(LOSS.format(name) for name in ("nesterov", "rmsprop", "adadelta", "adamw")),
    ),
    claims=(
        Claim("For rarely inked pixels AdaGrad's step per unit of gradient shrinks in "
              "training; RMSProp's and AdaDelta's grow.",
              (STEP.format("adagrad"), 1.0, FORGETS), "<"),
        Claim("After as many steps, momentum is nearer to the ravine's minimum than "
              "SGD.", (RAVINE.format("momentum"), RAVINE.format("sgd")), "<"),
        Claim("On no problem has the optimizer that tuning found the best the highest "
              "test loss while another is significantly better.", (WORST, 0), "="),
        Claim("On the digits, at least one optimizer's test loss differs significantly "
              "from that of the one tuned best.",
              (TOLD.format("digits"), 0), ">"),
        Claim("On the admissions, all tuned optimizers end within 0.01 nats.",
              (SPREAD.format("admissions_network"), 0.01), "<"),
    ),
    figures={
        "paths": "Each optimizer's way down a ravine at its own best rate, from the "
        "large dot to the star, the minimum, in the same number of steps. Where the "
        "small dots are dense, it creeps. Titles say how far from the star it ends.",
        "steps": "Length of a step for a gradient of 1, by epoch, with 95 % intervals: "
        "pixels that are seldom inked, and mostly. A line that falls is a step that "
        "shrinks, whatever the gradient does.",
        "differences": "Test loss less that of the optimizer tuned best, paired by "
        "seed, with 95 % intervals: left of 0 is better. Hollow: not significantly "
        "different (Holm). Last row: a seed's largest less its smallest. Grey: within "
        "0.01 nats. Each problem has a scale of its own.",
        "sensitivity": "Validation loss by learning rate, the median of the tuning "
        "seeds: a column for each optimizer, the others in grey. Wide valley: the rate "
        "matters little. Shifted valley: the same rate means another step. Crosses at "
        "the top diverged, or ended worse than they began.",
    },
    try_it={
        "--rates 8": "A coarser grid: an optimizer with a narrow valley in the figure "
        "of sensitivity loses more than one with a wide valley.",
        "--epochs 60": "AdaGrad's steps shrink on and on: look at the end of its line.",
        "--surface Rosenbrock": "A curved valley: momentum and Adam get further along "
        "it than SGD if they keep a direction.",
    },
    mistakes={
        "one_common_rate": "All optimizers get the one learning rate that suits Adam, "
        "as when a script changes the optimizer's name alone. The comparison then "
        "measures whom that rate suits.",
    },
)  # fmt: skip


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
    seeds: int = 45
    """Other seeds, that are reported."""
    epochs: Count | None = None
    """Epochs on every problem, instead of its own number."""
    surface: Literal["ravine", "Rosenbrock", "Beale"] = "ravine"
    """Where paths are drawn."""
    path_steps: Count = 150
    """Steps of a path."""
    step_seeds: Count = 10
    """Seeds of the lengths of steps."""
    share: str | None = None
    """I/N: only every N-th comparison, as job I of N; see `jaxstudy join`."""
    mistake: Literal["one_common_rate"] | None = None
    """Also make this mistake on the digits, with the same seeds: what does it fake?"""


# Where seeds = rates x tuning seeds, tuning and reporting share a compiled program.
PRESETS = {
    "smoke": Config(
        optimizers=("sgd", "adagrad"), problems=("digits",), rates=4,
        lowest_rate=1e-3, highest_rate=1.0, seeds=12, epochs=2, path_steps=20,
        step_seeds=2,
    ),
    # without the quadratic: most of the time is compiling, for each problem anew
    "quick": Config(problems=("admissions_network", "digits")),
    "full": Config(rates=36, tuning_seeds=10, seeds=15),
}  # fmt: skip


def draw_steps(
    run: Run, config: Config, problem: Problem, rates: Mapping[str, float]
) -> dict[str, Estimate]:
    """Lengths of steps over time of the optimizers that have one for each weight."""
    groups = pixel_groups(np.asarray(problem.train.arrays["x"]))
    lines: dict[str, dict[str, plots.Line]] = {group: {} for group in groups}
    growth: dict[str, dict[str, np.ndarray]] = {group: {} for group in groups}
    for name in (n for n in DIAGONAL if n in config.optimizers):
        tx = OPTIMIZERS[name].make(rates[name], **DIAGONAL[name])
        found = step_lengths(
            problem, tx, groups, seed=config.seed, seeds=config.step_seeds,
            log=run.sub_run(f"steps {name}"),
        )  # fmt: skip
        for group, lengths in found.lengths.items():
            each = [mean_over_runs(values, NONNEGATIVE) for values in lengths]
            lines[group][name] = found.epochs.tolist(), each
            growth[group][name] = found.growth(group)
    plots.save_lines(run, "steps", [
        plots.Panel(f"pixels with {group} ink", "epoch",
                    "step length: |change| / |gradient|", lines[group],
                    ("linear", "log"))
        for group in groups
    ])  # fmt: skip
    result = {
        f"{name}: step at the end / at the start, {group} pixels": ratio
        for group in groups
        for name, ratio in growth[group].items()
    }
    if {"rmsprop", "adadelta"} <= set(growth["rare"]):
        rare = growth["rare"]
        result[FORGETS] = np.minimum(rare["rmsprop"], rare["adadelta"])
    return {name: mean_over_runs(r, NONNEGATIVE) for name, r in result.items()}


def one_common_rate(
    right: Mapping[str, np.ndarray], wrong: Mapping[str, np.ndarray], rate: float
) -> dict[str, Any]:
    """What one rate for all says of the digits, beside what each one's own says.

    Test losses [S] by optimizer, of the same seeds.
    """
    out: dict[str, Any] = {"mistake: learning rate of all": rate}
    for title, losses in (("", right), ("mistake: ", wrong)):
        order = sorted(losses, key=lambda name: float(np.mean(losses[name])))
        out[f"{title}order on digits, best first"] = ", ".join(order)
    for name, losses in wrong.items():
        if np.isfinite([losses, right[name]]).all():
            gap = mean_over_runs(losses - right[name], REAL, "seeds, paired")
            out[f"mistake: {LOSS.format(name)}"] = mean_over_runs(losses, NONNEGATIVE)
            out[f"mistake - right: {LOSS.format(name)}"] = gap
        else:
            lost = int(np.sum(~np.isfinite(losses)))
            out[f"mistake: {LOSS.format(name)}"] = f"diverged in {lost} seeds"
    return out


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
    built = {name: build() for name, build in builders.items()}
    problems = with_epochs(built, protocol)
    if config.share is not None:
        share = parse_share(config.share)
        return run_share(problems, candidates, protocol, run, share)
    record = run_study(problems, candidates, protocol, run)
    save_sensitivity(record, run)
    save_test_differences(record, run, {"admissions_network": 0.01})
    for name, found in record["comparison"]["problems"].items():
        print("\n".join(verdicts(name, found)))

    result = reported_losses(record) | telling(record)
    rates = grid.value(np.linspace(0, 1, config.rates))
    result |= save_paths(
        run, config.surface, config.optimizers, rates, config.path_steps
    )
    if "digits" in problems:
        table = record["comparison"]["problems"]["digits"]["optimizers"]
        best = {name: row["point"]["rate"] for name, row in table.items()}
        digits = problems["digits"]
        result |= draw_steps(run, config, digits, best)
        if config.mistake:
            rate = best.get("adam", OPTIMIZERS["adam"].rate)
            wrong = losses_at(
                rate, "digits at one rate", digits, candidates, protocol, run
            )
            right = {n: outcome(record, "digits", n).test for n in config.optimizers}
            result |= one_common_rate(right, wrong, rate)
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
