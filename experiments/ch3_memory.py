"""Lessons 3.1.2 and 3.2: the vanishing gradient, cells that can learn to avoid it.

Of T random numbers two are marked, one in each half; the answer is their sum. A network
that knows nothing of them predicts 1: its squared error is 1/6, the variance of the
sum. In a simple recurrent network the gradient is multiplied by the same matrix and a
slope under 1 at every step on the way back to the first mark. GRU and LSTM can learn to
keep their state until a gate replaces it.

All kinds have as many units and see the same sequences, but GRU has three times and
LSTM four times the weights. Norms of gradients under 1e-30 count as that.
"""

from dataclasses import dataclass
from typing import Annotated, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import Dataset, dataset, steps_per_epoch
from jaxstudy.model import Model
from jaxstudy.models.recurrent import KERAS_NAMES, Kind, sequence_to_vector
from jaxstudy.objectives import squared_error
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, Estimate, mean_over_runs
from jaxstudy.training import (
    Evaluator,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import TrainState

SIMPLE, GRU, LSTM = (f"{name}, T = 50" for name in KERAS_NAMES.values())
LONGEST = "the longest T"  # 50 at quick, 400 at full
CONSTANT = "constant prediction: squared error"
RATIO = "gradient at the first step / the last"

LESSON = Lesson(
    number="3.1.2, 3.2",
    title="The vanishing gradient",
    question="Who remembers the first word?",
    metrics=(
        *(f"{name}, {LONGEST}: squared error" for name in KERAS_NAMES.values()),
        CONSTANT,
        *(f"{name}: squared error" for name in (SIMPLE, GRU, LSTM)),
        *(f"{name}: {RATIO}" for name in (SIMPLE, GRU, LSTM)),
    ),
    claims=(
        *(
            Claim(f"At T = 50 the {name}'s squared error is below the SimpleRNN's.",
                  (f"{network}: squared error", f"{SIMPLE}: squared error"), "<")
            for name, network in (("LSTM", LSTM), ("GRU", GRU))
        ),
        Claim("The LSTM solves the longest T: its squared error is below 0.01.",
              (f"LSTM, {LONGEST}: squared error", 0.01), "<"),
        Claim("The SimpleRNN does not solve it: its squared error is within 0.01 of "
              "that of always predicting 1.",
              (f"SimpleRNN, {LONGEST}: squared error", CONSTANT), "within", 0.01),
        Claim("Before training all three gradients vanish at T = 50: GRU's most, "
              "SimpleRNN's least, and to less than a tenth.",
              (f"{GRU}: {RATIO}", f"{LSTM}: {RATIO}", f"{SIMPLE}: {RATIO}", 0.1), "<"),
    ),
    figures={
        "errors":
            "Squared error on new sequences by their length T, both axes logarithmic: "
            "mean over the seeds, with interval or values. The line at 1/6 is the "
            "error of always predicting 1: a network on it has learned nothing about "
            "the marked numbers, one below 0.01 knows their sum to about 0.1.",
        "gradients":
            "Norm of the gradient of the loss with respect to the input at each step "
            "of the longest sequences: left before training, right after it. A "
            "straight line that falls to the left is exponential decay with the "
            "distance to the end. Norms scale with the loss: compare slopes, not "
            "heights, since a network that has solved the problem has small norms.",
    },
    try_it={
        "--lengths 10 20":
            "Shorter sequences: expect the SimpleRNN to come closer to the others.",
        "--units 4":
            "Fewer units: gates need few to keep a state, so expect GRU and LSTM to "
            "lose less than the SimpleRNN.",
        "--clip 1000":
            "No clipping: a gradient that explodes is followed as it is, so expect "
            "larger differences between the seeds of the SimpleRNN.",
    },
)  # fmt: skip

SOLVED = 0.01  # a squared error below it: the sum is known to 0.1
SHOWN = 200  # sequences whose gradients are averaged


@dataclass(frozen=True)
class Config(Settings):
    """The sequences, and the networks that learn to add."""

    lengths: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = (25, 50)
    """Numbers of steps T."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    """Recurrent networks to compare."""
    units: Count = 32
    """Units of the one recurrent layer."""
    examples: Count = 10_000
    """Sequences to learn from."""
    epochs: Count = 10
    """Passes over them."""
    batch_size: Count = 50
    """Sequences in a gradient step."""
    rate: Positive = 0.01
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    simple_rate: Positive = 0.003
    """That of the simple network. Both were chosen, from 0.001 to 0.01, on validation
    sequences and with other seeds."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(lengths=(4,), units=8, examples=200, epochs=2),
    "quick": Config(),
    "full": Config(lengths=(50, 100, 200, 400), examples=20_000, seeds=6),
}


def sequences(count: int, length: int, seed: int) -> Dataset:
    """x [N, T, 2]: numbers between 0 and 1, and marks; y [N]: the sum of the marked.

    One mark is in the first half of the steps, one in the second (Hochreiter and
    Schmidhuber 1997, as Le, Jaitly and Hinton have it, arXiv:1504.00941).
    """
    rng = np.random.default_rng((seed, length))
    numbers = rng.uniform(0, 1, (count, length))
    marks = np.zeros((count, length))
    half = length // 2
    for place in (rng.integers(0, half, count), rng.integers(half, length, count)):
        marks[np.arange(count), place] = 1
    x = np.stack([numbers, marks], axis=-1).astype(np.float32)
    return dataset({"x": x, "y": (numbers * marks).sum(1).astype(np.float32)})


def gradient_norms(model: Model, state: TrainState, data: Dataset) -> np.ndarray:
    """Mean norm of d loss / d x_t over sequences, for each seed and step [seeds, T]."""
    x, y = data.arrays["x"][:SHOWN], data.arrays["y"][:SHOWN]

    def loss(x: jax.Array, params: Any) -> jax.Array:
        outputs, _ = model.apply(params, {}, x, train=False, key=None)
        return jnp.sum(jnp.square(outputs - y))

    def norms(params: Any) -> jax.Array:
        return jnp.linalg.norm(jax.grad(loss)(x, params), axis=-1).mean(0)

    return np.asarray(jax.jit(lambda params: jax.lax.map(norms, params))(state.params))


def train(
    kind: Kind, length: int, config: Config, run: Run
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Test errors [seeds] of one network, and its gradients before and after."""
    model = sequence_to_vector(2, kind, (config.units,), 1)
    objective = squared_error(model)
    rate = config.simple_rate if kind == "simple" else config.rate
    steps = config.epochs * steps_per_epoch(config.examples, config.batch_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    held_out = max(100, config.examples // 10)
    validation, test = (sequences(held_out, length, seed) for seed in (1, 2))
    eval_step = make_eval_step(objective)
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    state = init_replicas(model, optimizer, keys[:, 0])
    gradients = {"before training": gradient_norms(model, state, test)}
    fitted = fit(
        state,
        make_train_step(objective, optimizer),
        sequences(config.examples, length, seed=0),
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={"validation": Evaluator(eval_step, validation, 500)},
        log=run.sub_run(f"{kind}_{length}"),
    )
    gradients["after training"] = gradient_norms(model, fitted.state, test)
    scores = Evaluator(eval_step, test, 500)(fitted.state)
    return np.array(scores["loss"]), gradients


def draw(
    run: Run,
    lengths: tuple[int, ...],
    errors: dict[Kind, list[Estimate]],
    gradients: dict[Kind, dict[str, np.ndarray]],
) -> None:
    """Errors by length, and for the longest sequences the gradient at every step."""
    lines: dict[str, plots.Line] = {
        KERAS_NAMES[kind]: (lengths, estimates) for kind, estimates in errors.items()
    }
    lines["constant prediction"] = lengths, [1 / 6] * len(lengths)
    scales = "log", "log"
    panel = plots.Panel("test", "length T [steps]", "squared error", lines, scales)
    plots.save_lines(run, "errors", [panel])
    shown = np.unique(np.linspace(1, max(lengths), 50).astype(int))
    panels = []
    for when in ("before training", "after training"):
        lines = {}
        for kind, norms in gradients.items():  # geometric mean over the seeds
            norm = np.exp(np.log(norms[when] + 1e-30).mean(0))[shown - 1]
            lines[KERAS_NAMES[kind]] = shown.tolist(), norm.tolist()
        title, label = f"T = {max(lengths)}, {when}", "norm of d loss / d x_t"
        panels.append(plots.Panel(title, "step t", label, lines, ("linear", "log")))
    plots.save_lines(run, "gradients", panels)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network on every length; errors, and gradients by step."""
    result: dict[str, Estimate | float] = {}
    errors: dict[Kind, list[Estimate]] = {kind: [] for kind in config.kinds}
    gradients: dict[Kind, dict[str, np.ndarray]] = {}
    for length in config.lengths:
        for kind in config.kinds:
            of_seeds, gradients[kind] = train(kind, length, config, run)
            errors[kind].append(mean_over_runs(of_seeds, NONNEGATIVE))
            name = f"{KERAS_NAMES[kind]}, T = {length}"
            result[f"{name}: squared error"] = errors[kind][-1]
            result[f"{name}: seeds that solve it"] = float(np.sum(of_seeds < SOLVED))
            for when, ratio in (("before", RATIO), ("after", f"{RATIO}, trained")):
                first, last = gradients[kind][f"{when} training"][:, [0, -1]].T + 1e-30
                result[f"{name}: {ratio}"] = float(np.exp(np.log(first / last).mean()))
    longest = config.lengths.index(max(config.lengths))
    for kind, estimates in errors.items():
        name = f"{KERAS_NAMES[kind]}, {LONGEST}: squared error"
        result[name] = estimates[longest]
    result[CONSTANT] = 1 / 6
    draw(run, config.lengths, errors, gradients)
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
