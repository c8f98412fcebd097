"""Lesson 1.2: what an activation does to a network, and to its gradient.

Dense networks of 1 to 16 layers on 8x8 handwritten digits: six activations, from
Glorot's initialisation and from He's, each at its own learning rate, which is chosen
by the tuning seeds on the validation set; other seeds are reported on the test set.
All of one depth train as replicas of one compiled program.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pydantic

from jaxstudy.models import probes
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, REAL, SHARE, Estimate, mean_over_runs
from jaxstudy.study.depths import ACTIVATION_NAMES as NAMES
from jaxstudy.study.depths import INITIALISATIONS as INITS
from jaxstudy.study.depths import DepthStudy, TunedNetworks
from jaxstudy.tabular.sets import digit_sets

LOSS = "{}, {} hidden, {}: test log-loss"
FACTOR = "{}, {}: gradient factor per layer"
SHARE_OF_INIT = "relu, {} hidden: share of its loss that initialisation explains"
STRAIGHT = "{}, {}: straightness of the fall (R^2)"
EDGES = "chosen rates at an edge of the grid, of networks that learn"
NO_RATE = "networks that learn nothing at any rate"
RATE = "{}, {} hidden, {}: learning rate"
AFFINE = "none = one affine map: largest difference"
GUESSING = float(np.log(10))

LESSON = Lesson(
    number="1.2",
    title="Activations and depth",
    question="Which activations let a deep network learn, and why?",
    metrics=(
        SHARE_OF_INIT.format(16),
        *(LOSS.format("relu", 16, init) for init in INITS),
        FACTOR.format("sigmoid", "Glorot"),
        STRAIGHT.format("sigmoid", "Glorot"),
        *(FACTOR.format("relu", init) for init in INITS),
        *(LOSS.format(name, 16, "Glorot") for name in ("sigmoid", "tanh")),
        EDGES, NO_RATE, AFFINE,
    ),
    claims=(
        Claim("Before training, sigmoid's weight gradient shrinks by about the same "
              "factor at each layer: a straight line explains 99 % of its logarithm.",
              (STRAIGHT.format("sigmoid", "Glorot"), 0.99), ">"),
        Claim("Before training, the weight gradient of a deep ReLU network changes by "
              "less than 10 % per layer, from Glorot's initialisation.",
              (FACTOR.format("relu", "Glorot"), 1.0), "within", 0.1),
        Claim("With 16 ReLU layers, He's initialisation ends with a lower test loss "
              "than Glorot's.",
              tuple(LOSS.format("relu", 16, init) for init in INITS[::-1]), "<"),
        Claim("Glorot's initialisation explains more than half of what ReLU loses at "
              "16 layers.", (SHARE_OF_INIT.format(16), 0.5), ">"),
        Claim("Without an activation the network is one affine map, to 1e-10.",
              (AFFINE, 1e-10), "<"),
    ),
    figures={
        "gradients": "Norm of the gradient of each layer's weights in the deepest "
        "network, the first layer on the left, before training from "
        "Glorot's (blue) and He's (orange) initialisation, and after (green, red). A "
        "line that falls to the left is a vanishing gradient; the factor per layer is "
        "its slope at the start.",
        "relu": "Left: ReLU's test log-loss by depth from both initialisations, with "
        "95 % intervals. Right: at the largest depth, the share of what Glorot's loses "
        "by depth that He's regains, with its 95 % interval and a dash for each seed. "
        "Above the dotted line, initialisation explains more than half.",
        "depth": "Mean test log-loss by depth, each cell at its own learning rate: "
        "pale is good, and 2.30 is guessing. Compare a row of the left with the same "
        "row of the right: the scale of the first weights differs, and the rate chosen "
        "for it.",
        "dead": "Share of hidden units of the trained networks that no digit can teach "
        "any more: their slope is below 0.001 on every validation digit. Pale is good: "
        "compare a row with the next, darker cells have more dead units.",
    },
    try_it={
        "--depths 1 4 --rates 0.03 0.1 0.3": "On a short grid more of the chosen rates "
        "lie at an edge: the metric counts them.",
        "--width 128": "Slopes do not depend on the width: the factors change little.",
        "--epochs 60": "Where the gradient has vanished, more epochs change little.",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Config(Settings):
    """The networks, and the learning rates they choose from."""

    depths: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Numbers of hidden layers."""
    width: Count = 32
    """Units in each hidden layer."""
    rates: tuple[Positive, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
    """Learning rates of SGD to choose from."""
    tuning_seeds: Count = 3
    """Seeds that choose the rate; so many train at once."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 12
    """Other seeds, that are reported."""
    epochs: Count = 30
    """Passes over the training set."""
    batch_size: Count = 64
    """Digits in a gradient step."""


PRESETS = {
    "smoke": Config(
        depths=(1, 3), rates=(0.03, 0.1), tuning_seeds=1, seeds=2, epochs=2
    ),
    "quick": Config(depths=(1, 4, 16), tuning_seeds=2, seeds=6, epochs=20),
    "full": Config(),
}


def share_of_init(outcomes: dict[int, TunedNetworks], depth: int) -> Estimate | str:
    """What He's initialisation regains of what ReLU loses at a depth with Glorot's.

    (Glorot - He) / (Glorot - Glorot at the depth that tuning found the best), by seed;
    words where there is no such number.
    """
    relu = NAMES.index("relu")
    best = min(outcomes.values(), key=lambda networks: networks.tuned[relu, 0])
    glorot, he = outcomes[depth].reported.test["loss"][relu]
    reference = best.reported.test["loss"][relu, 0]
    if best is outcomes[depth] or not np.isfinite([glorot, he, reference]).all():
        return "none: nothing was lost by depth, or a run diverged"
    return mean_over_runs((glorot - he) / (glorot - reference), REAL)


def factors(start: dict[str, np.ndarray], depth: int) -> dict[str, Estimate]:
    """How the weight gradient changes per layer on its way down, at the start."""
    layers = [start[f"gradient norm hidden_{i + 1}"] for i in range(depth)]
    fall, result = probes.gradient_fall(np.stack(layers)), {}
    for i, j in np.ndindex(len(NAMES), len(INITS)):
        cell, factor = (NAMES[i], INITS[j]), fall.factor[i, j]
        result[FACTOR.format(*cell)] = mean_over_runs(factor, NONNEGATIVE)
        straight = fall.straightness[i, j]
        result[STRAIGHT.format(*cell)] = mean_over_runs(straight, SHARE)
    return result


def main(config: Config, run: Run) -> dict[str, Estimate | float | str]:
    """Every depth in turn; the table and the figures."""
    data = digit_sets(standardise=True)
    studies = {
        depth: DepthStudy(
            depth, config.width, data, config.rates, config.tuning_seeds,
            config.seeds, config.epochs, config.batch_size, config.seed, run,
        )
        for depth in config.depths
    }  # fmt: skip
    outcomes = {d: studies[d].tune_and_report() for d in run.each(studies)}
    deepest = max(outcomes)
    result: dict = {EDGES: 0, NO_RATE: 0}
    for (i, j), depth in itertools.product(
        np.ndindex(len(NAMES), len(INITS)), outcomes
    ):
        cell, outcome = (NAMES[i], depth, INITS[j]), outcomes[depth]
        losses, rate = outcome.reported.test["loss"][i, j], float(outcome.rate[i, j])
        lost = int(np.sum(np.isinf(losses)))
        diverged = f"diverged in {lost} of {len(losses)} seeds"
        mean = diverged if lost else mean_over_runs(losses, NONNEGATIVE)
        result[LOSS.format(*cell)] = mean
        learns = bool(outcome.tuned[i, j] < GUESSING - 0.05)
        result[RATE.format(*cell)] = rate if learns else "learns nothing at any rate"
        result[NO_RATE] += not learns
        result[EDGES] += learns and rate in (min(config.rates), max(config.rates))
    if deepest > 1:
        result |= factors(outcomes[deepest].reported.start, deepest)
        result[SHARE_OF_INIT.format(deepest)] = share_of_init(outcomes, deepest)
    rows = np.asarray(data.test.arrays["x"], np.float64)[data.test.indices]
    result[AFFINE] = max(
        studies[d].affine_difference(o.reported, rows) for d, o in outcomes.items()
    )
    draw(run, outcomes, result)
    draw_relu(run, list(outcomes), result)
    return result


def draw(run: Run, outcomes: dict[int, TunedNetworks], result: dict) -> None:
    """Log-loss and dead units by depth; the gradient's way down the deepest network."""
    depths, deepest = [str(d) for d in outcomes], max(outcomes)
    reported = [outcome.reported for outcome in outcomes.values()]
    for figure, label, tables in (
        ("depth", "test log-loss [nats]", [r.test["loss"] for r in reported]),
        ("dead", "share of dead units", [r.validation["dead share"] for r in reported]),
    ):
        means = np.stack(tables).mean(-1)  # [depth, activation, init]
        maps = {f"{init}'s initialisation": means[..., j].T
                for j, init in enumerate(INITS)}  # fmt: skip
        plots.save_heat_maps(
            run, figure, maps, NAMES, depths, xlabel="hidden layers", label=label
        )
    layers, panels = range(1, deepest + 1), []
    when = {"at the start": outcomes[deepest].reported.start,
            "trained": outcomes[deepest].reported.validation}  # fmt: skip
    for i, name in enumerate(NAMES):
        lines: dict[str, plots.Line] = {}
        for time, j in itertools.product(when, range(len(INITS))):
            norms = [when[time][f"gradient norm hidden_{k}"][i, j] for k in layers]
            middle = [float(np.median(norm)) for norm in norms]
            lines[f"{INITS[j]}, {time}"] = layers, middle
        fall = {init: result.get(FACTOR.format(name, init)) for init in INITS}
        note = "\n".join(f"{k}: x {v.mean:.2f} per layer" for k, v in fall.items() if v)
        label = "norm of the weight gradient"
        panels.append(plots.Panel(name, f"layer of {deepest}", label, lines,
                                  ("linear", "log"), note))  # fmt: skip
    plots.save_lines(run, "gradients", panels, columns=3)


def draw_relu(run: Run, depths: list[int], result: dict) -> None:
    """ReLU's loss by depth, and the share of it that initialisation explains."""
    lines: dict[str, plots.Line] = {}
    for init in INITS:
        losses = {depth: result[LOSS.format("relu", depth, init)] for depth in depths}
        drawn = {d: v for d, v in losses.items() if isinstance(v, Estimate)}
        lines[f"{init}'s initialisation"] = list(drawn), list(drawn.values())
    label, scales = "test log-loss [nats]", ("log", "linear")
    levels = {"guessing": GUESSING}
    panels = [plots.Panel("relu", "hidden layers", label, lines, scales, "", levels)]
    deepest = max(depths)
    share = result.get(SHARE_OF_INIT.format(deepest))
    if isinstance(share, Estimate):
        label, line = "share of the loss by depth", ([f"{deepest} layers"], [share])
        panels.append(plots.Panel(
            "relu: regained by He's initialisation", "", label, {"share": line},
            levels={"half": 0.5}, seeds=True,
        ))  # fmt: skip
    plots.save_lines(run, "relu", panels)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
