"""Lesson 1.2: what an activation does to a network, and to its gradient.

Dense networks of depth 1 to 16 on 8x8 handwritten digits with six activations. "none"
leaves a linear network, however deep; sigmoid and tanh saturate, so the gradient
vanishes on its way down; ReLU passes it, but a unit that is never positive is dead.
All activations, learning rates and seeds of one depth train as one compiled program.
Each (activation, depth) has its own rate, chosen on the validation set by the mean of
the tuning seeds; the figures are of other seeds, on the test set.

Expected (quick, two minutes): sigmoid learns nothing from depth 4 on (log-loss about
ln 10 = 2.303); one or two layers of anything else reach 0.25 to 0.28; by 16 layers of
plain SGD, ReLU and its kin have stopped learning, and tanh and "none" still do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.model import Model
from jaxstudy.models.mlp import ACTIVATIONS, mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, Estimate, mean_over_runs
from jaxstudy.tabular.sets import DigitSets, digit_sets
from jaxstudy.training import EvalStep, TrainStep
from jaxstudy.types import Array, Batch, Mean, Metrics, TrainState

LESSON = Lesson(
    number="1.2",
    title="Activations and depth",
    question="Which activations let a deep network learn, and why?",
    metrics=(
        "none, 4 hidden: test log-loss",
        "sigmoid, 4 hidden: test log-loss",
        "tanh, 4 hidden: test log-loss",
        "relu, 4 hidden: test log-loss",
        "none = one affine map: largest difference",
    ),
    claims=(),
    figures={},
)

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


def build(depth: int, width: int) -> tuple[TrainStep, EvalStep, EvalStep]:
    """Steps for any activation and rate: training, probing, and plain evaluation."""

    def activate(which: Array, z: Array) -> Array:
        return jax.lax.switch(which, list(ACTIVATIONS.values()), z)

    def model(which: Array, capture: bool = False) -> Model:
        hidden = (width,) * depth
        return mlp(64, hidden, 10, lambda z: activate(which, z), capture=capture)

    def train_step(
        state: TrainState, batch: Batch, which: Array, rate: Array
    ) -> tuple[TrainState, Metrics]:
        objective = cross_entropy(model(which))
        return training.make_train_step(objective, optax.sgd(rate))(state, batch)

    def probe(state: TrainState, batch: Batch, which: Array, rate: Array) -> Metrics:
        """Also the gradient's norm at each layer, and the share of dead units.

        A unit is dead when its activation's slope is under 1e-3 on every row: nothing
        that it did wrong can reach its weights.
        """
        params, extra = state.params, state.extra
        objective = cross_entropy(model(which))
        gradient = jax.grad(objective, has_aux=True)
        grads, (_, metrics) = gradient(params, extra, batch, None)
        norms = {
            f"gradient norm {name}": Mean(jnp.linalg.norm(g["kernel"]), jnp.float32(1))
            for name, g in grads.items()
        }
        (_, values), _ = model(which, capture=True).apply(
            params, extra, batch["x"], train=False, key=None
        )
        # [layer, B, unit]
        z = jnp.stack([values[f"z{i + 1}"][0] for i in range(depth)])
        _, slope = jax.jvp(lambda z: activate(which, z), (z,), (jnp.ones_like(z),))
        dead = jnp.sum(jnp.all(jnp.abs(slope) < 1e-3, axis=1), dtype=jnp.float32)
        share = Mean(dead, jnp.float32(depth * width))
        return {**metrics, **norms, "dead share": share}

    def plain(state: TrainState, batch: Batch, which: Array, rate: Array) -> Metrics:
        return training.make_eval_step(cross_entropy(model(which)))(state, batch)

    return train_step, probe, plain


def affine_difference(params: dict, depth: int, width: int, x: np.ndarray) -> float:
    """max |network(x) - (x W + b)| of a network without activations, in float64."""
    w, b = np.eye(64), np.zeros(64)
    for layer in (*(f"hidden_{i + 1}" for i in range(depth)), "output"):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        w, b = w @ kernel, b @ kernel + bias
    with jax.enable_x64(True):
        none = mlp(64, (width,) * depth, 10, ACTIVATIONS["none"])
        logits, _ = none.apply(params, {}, x, train=False, key=None)
        return float(np.abs(np.asarray(logits) - (x @ w + b)).max())


class Outcome(NamedTuple):
    """What one depth came to; arrays [activation, seed], of the reported seeds."""

    rate: np.ndarray
    loss: np.ndarray
    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    affine: float


def choose(losses: np.ndarray, tuning_seeds: int) -> np.ndarray:
    """The best rate's number for each activation, by the mean of the tuning seeds.

    `losses` are of the validation set, [activation, rate, seed]; a rate at which any of
    those seeds diverged has a mean of infinity.
    """
    return np.argmin(np.mean(losses[..., :tuning_seeds], axis=-1), axis=1)


def train_depth(config: Config, depth: int, data: DigitSets, run: Run) -> Outcome:
    """Train every activation at every rate with every seed, choose rates, and test."""
    shape = (len(NAMES), len(config.rates), config.tuning_seeds + config.seeds)
    which, rate, seed = (jnp.asarray(i.ravel()) for i in np.indices(shape))
    args = which, jnp.asarray(config.rates)[rate]
    # replicas of one seed share weights and batches, whatever else they differ in
    seeds = jax.random.split(jax.random.key(config.seed), (shape[2], 2))[seed]
    train_step, probe, plain = build(depth, config.width)
    model = mlp(64, (config.width,) * depth, 10)
    probed = training.Evaluator(probe, data.validation, args=args)
    fitted = training.fit(
        training.init_replicas(model, optax.sgd(0.1), seeds[:, 0]),
        train_step,
        data.train,
        key=seeds[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={"validation": probed},
        replicas=training.Replicas(args, may_diverge=True),
        log=run.sub_run(f"depth {depth}"),
    )

    def worst_if_none(values: list) -> np.ndarray:
        finite = [np.inf if value is None else value for value in values]
        return np.reshape(np.array(finite, float), shape)

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
        reported(training.Evaluator(plain, data.test, args=args)(fitted.state)["loss"]),
        {name: reported(evaluations[0][name]) for name in names},
        {name: reported(evaluations[-1][name]) for name in names},
        affine_difference(params, depth, config.width, rows),
    )


def main(config: Config, run: Run) -> dict[str, Estimate | float | str]:
    """Every depth in turn; the table and the figures."""
    data = digit_sets()
    outcomes = {d: train_depth(config, d, data, run) for d in config.depths}
    result: dict[str, Estimate | float | str] = {}
    for i, name in enumerate(NAMES):
        for depth, outcome in outcomes.items():
            label = f"{name}, {depth} hidden: "
            losses, diverged = outcome.loss[i], int(np.sum(np.isinf(outcome.loss[i])))
            result[label + "test log-loss"] = (
                f"diverged in {diverged} of {len(losses)} seeds"
                if diverged
                else mean_over_runs(losses, NONNEGATIVE)
            )
            result[label + "learning rate"] = float(outcome.rate[i])
    largest = max(outcome.affine for outcome in outcomes.values())
    result["none = one affine map: largest difference"] = largest
    draw(run, outcomes, result)
    return result


def draw(run: Run, outcomes: dict[int, Outcome], result: dict) -> None:
    """Log-loss and dead units by depth; the gradient's way down the deepest network."""
    depths, deepest = list(outcomes), max(outcomes)
    layers = range(1, deepest + 1)

    def loss(name: str) -> plots.Line:
        each = {d: result[f"{name}, {d} hidden: test log-loss"] for d in depths}
        kept = {d: v for d, v in each.items() if isinstance(v, Estimate)}
        return list(kept), list(kept.values())

    def dead(name: str) -> plots.Line:
        shares = [outcomes[d].end["dead share"][NAMES.index(name)] for d in depths]
        return depths, [float(np.mean(share)) for share in shares]

    def gradient(name: str, when: dict[str, np.ndarray]) -> plots.Line:
        norms = [when[f"gradient norm hidden_{i}"][NAMES.index(name)] for i in layers]
        return layers, [float(np.median(norm)) for norm in norms]

    def panel(title: str, ylabel: str, of: Callable[[str], plots.Line]) -> plots.Panel:
        by_layer = ylabel.startswith("gradient")
        xlabel = f"layer of {deepest}" if by_layer else "hidden layers"
        scales = ("linear", "log") if by_layer else ("log", "linear")
        return plots.Panel(title, xlabel, ylabel, {n: of(n) for n in NAMES}, scales)

    start, end = outcomes[deepest].start, outcomes[deepest].end
    dead_units = panel("after training", "share of dead units", dead)
    plots.save_lines(run, "depth", [panel("test", "log-loss [nats]", loss), dead_units])
    panels = [
        panel("at the start", "gradient norm", lambda n: gradient(n, start)),
        panel("after training", "gradient norm", lambda n: gradient(n, end)),
    ]
    plots.save_lines(run, "gradients", panels)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
