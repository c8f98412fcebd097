"""Lesson 1.2: what an activation does to a network, and to its gradient.

Dense networks of 1 to 16 layers on 8x8 handwritten digits with six activations, each at
its own learning rate: chosen on the validation set by the tuning seeds, reported on the
test set by others. All of one depth train as replicas of one compiled program.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.model import Model
from jaxstudy.models import probes
from jaxstudy.models.mlp import ACTIVATIONS, mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, Estimate, mean_over_runs
from jaxstudy.tabular.sets import DigitSets, digit_sets
from jaxstudy.types import Array, Batch, Metrics, TrainState

LESSON = Lesson(
    number="1.2",
    title="Activations and depth",
    question="Which activations let a deep network learn, and why?",
    metrics=(
        *(f"{n}: gradient factor per layer" for n in ("sigmoid", "tanh", "relu")),
        *(f"{name}, {depth} hidden: test log-loss"
          for depth in (4, 16) for name in ("sigmoid", "tanh", "relu")),
        "none = one affine map: largest difference",
    ),
    claims=(
        Claim("On average over the layers, sigmoid's weight gradient shrinks by more "
              "than half per layer on its way down.",
              ("sigmoid: gradient factor per layer", 0.5), "<"),
        Claim("Within one deep ReLU network the weights of all layers have gradients "
              "of about one size: factor 1 +- 0.1.",
              ("relu: gradient factor per layer", 1.0), "within", 0.1),
        Claim("With 4 sigmoid layers the network only guesses: ln 10 to 0.05.",
              ("sigmoid, 4 hidden: test log-loss", np.log(10).item()), "within", 0.05),
        Claim("Without an activation the network is one affine map, to 1e-10.",
              ("none = one affine map: largest difference", 1e-10), "<"),
    ),
    figures={
        "gradients": "Norm of the gradient of each layer's weights in the deepest "
        "network, the first layer on the left. Where a line falls to the left, the "
        "gradient vanishes. The legend gives the factors at the start.",
        "depth": "Left: test log-loss by depth, each point at its own learning rate, "
        "with the 95 % interval of its seeds; 2.303 is guessing, and a missing point "
        "diverged. Right: share of units that no digit can teach any more.",
    },
    try_it={
        "--depths 1 4 --rates 0.1 1 3": "A larger rate may help 4 layers of sigmoid.",
        "--width 128": "Slopes do not depend on the width: the factors change little.",
        "--epochs 60": "Where the gradient has vanished, more epochs change nothing.",
    },
)  # fmt: skip

NAMES = tuple(ACTIVATIONS)


@dataclass(frozen=True)
class Config(Settings):
    """The networks, and the learning rates they choose from."""

    depths: tuple[Count, ...] = (1, 2, 4, 8, 16)
    """Numbers of hidden layers."""
    width: Count = 32
    """Units in each hidden layer."""
    rates: tuple[Positive, ...] = (0.01, 0.03, 0.1, 0.3)
    """Learning rates of SGD to choose from."""
    tuning_seeds: Count = 3
    """Seeds that choose the rate."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 5
    """Other seeds, that are reported."""
    epochs: Count = 20
    """Passes over the training set."""
    batch_size: Count = 64
    """Digits in a gradient step."""


PRESETS = {
    "smoke": Config(
        depths=(1, 3), rates=(0.03, 0.1), tuning_seeds=1, seeds=2, epochs=2
    ),
    "quick": Config(),
    "full": Config(tuning_seeds=5, seeds=10, epochs=30),
}


def build(depth: int, width: int) -> tuple[training.TrainStep, training.EvalStep]:
    """Steps for any activation and rate: training, and evaluation with probes."""

    def activate(which: Array, z: Array) -> Array:
        return jax.lax.switch(which, list(ACTIVATIONS.values()), z)

    def model(which: Array, capture: bool = False) -> Model:
        hidden = (width,) * depth
        return mlp(64, hidden, 10, lambda z: activate(which, z), capture=capture)

    def train_step(state: TrainState, batch: Batch, which: Array, rate: Array) -> Any:
        objective = cross_entropy(model(which))
        return training.make_train_step(objective, optax.sgd(rate))(state, batch)

    def probe(state: TrainState, batch: Batch, which: Array, rate: Array) -> Metrics:
        """Also the gradient's norm at each layer, and the share of dead units."""
        metrics = probes.gradient_norms(cross_entropy(model(which)), state, batch)
        (_, values), _ = model(which, capture=True).apply(
            state.params, state.extra, batch["x"], train=False, key=None
        )
        z = jnp.stack([values[f"z{i + 1}"][0] for i in range(depth)])
        dead = probes.dead_share(z, lambda z: activate(which, z))
        return {**metrics, "dead share": dead}

    return train_step, probe


class Outcome(NamedTuple):
    """What one depth came to; arrays [activation, seed], of the reported seeds."""

    rate: np.ndarray
    loss: np.ndarray
    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    affine: float


def choose(losses: np.ndarray, tuning_seeds: int) -> np.ndarray:
    """The number of each activation's best rate, of losses [activation, rate, seed].

    By the mean of the tuning seeds, infinite where one of them diverged.
    """
    return np.argmin(np.mean(losses[..., :tuning_seeds], axis=-1), axis=1)


def train_depth(config: Config, depth: int, data: DigitSets, run: Run) -> Outcome:
    """Train every activation at every rate with every seed, choose rates, and test."""
    shape = (len(NAMES), len(config.rates), config.tuning_seeds + config.seeds)
    which, rate, seed = (jnp.asarray(i.ravel()) for i in np.indices(shape))
    args = which, jnp.asarray(config.rates)[rate]
    # replicas of one seed share weights and batches, whatever else they differ in
    seeds = jax.random.split(jax.random.key(config.seed), (shape[2], 2))[seed]
    train_step, probe = build(depth, config.width)
    none = mlp(64, (config.width,) * depth, 10, ACTIVATIONS["none"])
    probed = training.Evaluator(probe, data.validation, args=args)
    fitted = training.fit(
        training.init_replicas(none, optax.sgd(0.1), seeds[:, 0]), train_step,
        data.train, key=seeds[:, 1], epochs=config.epochs,
        batch_size=config.batch_size, evaluators={"validation": probed},
        replicas=training.Replicas(args, may_diverge=True),
        log=run.sub_run(f"depth {depth}"),
    )  # fmt: skip

    def worst_if_none(values: list) -> np.ndarray:
        return np.reshape([np.inf if v is None else v for v in values], shape)

    evaluations = [row for row in fitted.records if row["split"] == "validation"]
    best = choose(worst_if_none(evaluations[-1]["loss"]), config.tuning_seeds)

    def reported(values: list) -> np.ndarray:
        chosen = worst_if_none(values)[np.arange(len(NAMES)), best]
        return chosen[:, config.tuning_seeds :]

    names = [n for n in evaluations[0] if n.startswith(("gradient", "dead"))]
    replica = np.ravel_multi_index((NAMES.index("none"), best[0], 0), shape)
    params = jax.tree.map(lambda a: np.float64(a[replica]), fitted.state.params)
    rows = np.asarray(data.test.arrays["x"], np.float64)[data.test.indices]
    return Outcome(
        np.array(config.rates)[best],
        reported(training.Evaluator(probe, data.test, args=args)(fitted.state)["loss"]),
        {name: reported(evaluations[0][name]) for name in names},
        {name: reported(evaluations[-1][name]) for name in names},
        probes.affine_difference(none, params, rows),
    )


def factors(outcome: Outcome, depth: int) -> dict[str, Estimate]:
    """By what the weight gradient changes per layer on its way down, at the start."""
    layers = [outcome.start[f"gradient norm hidden_{i + 1}"] for i in range(depth)]
    each = probes.gradient_factors(np.stack(layers)) if depth > 1 else []
    return {
        f"{name}: gradient factor per layer": mean_over_runs(values, NONNEGATIVE)
        for name, values in zip(NAMES, each, strict=False)
    }


def main(config: Config, run: Run) -> dict[str, Estimate | float | str]:
    """Every depth in turn; the table and the figures."""
    data, depths = digit_sets(), run.each(config.depths)
    outcomes = {d: train_depth(config, d, data, run) for d in depths}
    result: dict = {**factors(outcomes[max(outcomes)], max(outcomes))}
    for i, name in enumerate(NAMES):
        for depth, outcome in outcomes.items():
            label = f"{name}, {depth} hidden: "
            losses, lost = outcome.loss[i], int(np.sum(np.isinf(outcome.loss[i])))
            diverged = f"diverged in {lost} of {len(losses)} seeds"
            mean = diverged if lost else mean_over_runs(losses, NONNEGATIVE)
            result[label + "test log-loss"] = mean
            result[label + "learning rate"] = float(outcome.rate[i])
    affine = max(outcome.affine for outcome in outcomes.values())
    result["none = one affine map: largest difference"] = affine
    draw(run, outcomes, result)
    return result


def draw(run: Run, outcomes: dict[int, Outcome], result: dict) -> None:
    """Log-loss and dead units by depth; the gradient's way down the deepest network."""
    depths, deepest = list(outcomes), max(outcomes)

    def loss(name: str) -> plots.Line:
        each = {d: result[f"{name}, {d} hidden: test log-loss"] for d in depths}
        kept = {d: v for d, v in each.items() if isinstance(v, Estimate)}
        return list(kept), list(kept.values())

    def dead(name: str) -> plots.Line:
        shares = [outcomes[d].end["dead share"][NAMES.index(name)] for d in depths]
        return depths, [float(np.mean(share)) for share in shares]

    def gradient(name: str, when: dict[str, np.ndarray]) -> plots.Line:
        layers, which = range(1, deepest + 1), NAMES.index(name)
        norms = [when[f"gradient norm hidden_{i}"][which] for i in layers]
        return layers, [float(np.median(norm)) for norm in norms]

    def label(name: str) -> str:
        factor = result.get(f"{name}: gradient factor per layer")
        return f"{name}: x {factor.mean:.2f} per layer" if factor else name

    plots.save_lines(run, "depth", [
        plots.Panel("", "hidden layers", ylabel, {n: of(n) for n in NAMES},
                    ("log", "linear"))
        for ylabel, of in (("test log-loss [nats]", loss), ("dead units", dead))
    ])  # fmt: skip
    when = {"at the start": outcomes[deepest].start, "trained": outcomes[deepest].end}
    plots.save_lines(run, "gradients", [
        plots.Panel(title, f"layer of {deepest}", "norm of the gradient",
                    {label(n): gradient(n, norms) for n in NAMES}, ("linear", "log"))
        for title, norms in when.items()
    ])  # fmt: skip


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
