"""Lessons 3.1.2 and 3.2: the vanishing gradient, and the cells that avoid it.

Of T random numbers two are marked, one in each half; the answer is their sum. A network
without memory predicts 1 and has a squared error of 1/6, the variance of the sum. In a
simple recurrent network the gradient is multiplied by the same matrix and a slope under
1 at every step on the way back to the first mark. GRU and LSTM keep their state as it
is until a gate replaces it.

All kinds have the same number of units and see the same sequences; a figure shows the
norm of the gradient of the loss at every step of the sequence, before and after
training. Before training, half of a GRU's state is replaced at every step, and its
gradient halves with it, while Keras starts a simple network with an orthogonal matrix,
whose gradient vanishes most slowly. But gates can learn: once GRU and LSTM solve the
problem, their gradients at the first step are nearly those at the last. (Norms under
1e-30 are drawn as that: 32-bit numbers have no room for many less.)

Expected (quick, one to two minutes, two seeds): GRU and LSTM solve both lengths, with
squared errors under 0.001; the simple network comes to 0.014 at T = 25, and to 0.08 at
50, where one of its two runs learns next to nothing.
Expected (full, six seeds, 37 minutes beside other work): at T = 200 GRU and LSTM solve
the problem with every seed, the simple network with none, nor at T = 100. At T = 400
the LSTM has learned it with one of six seeds, the GRU still with all.
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
from jaxstudy.models.recurrent import Kind, sequence_to_vector
from jaxstudy.objectives import squared_error
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
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

LESSON = Lesson(
    number="3.1.2, 3.2",
    title="The vanishing gradient",
    question="Who remembers the first word?",
    metrics=(
        "simple, T = 200: squared error",
        "gru, T = 200: squared error",
        "lstm, T = 200: squared error",
        "simple, T = 400: squared error",
        "gru, T = 400: squared error",
        "lstm, T = 400: squared error",
        "always the mean: squared error",
        "simple, T = 200: gradient at the first step / the last",
        "lstm, T = 200: gradient at the first step / the last",
    ),
    claims=(),
    figures={},
)

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
    gradients["after it"] = gradient_norms(model, fitted.state, test)
    scores = Evaluator(eval_step, test, 500)(fitted.state)
    return np.array(scores["loss"]), gradients


def draw(
    run: Run,
    config: Config,
    errors: dict[Kind, list[Estimate]],
    gradients: dict[Kind, dict[str, np.ndarray]],
    baseline: float,
) -> None:
    """Errors by length, and for the longest sequences the gradient at every step."""
    lines: dict[str, plots.Line] = {
        kind: (config.lengths, estimates) for kind, estimates in errors.items()
    }
    lines["always the mean"] = config.lengths, [baseline] * len(config.lengths)
    plots.save_lines(
        run,
        "errors",
        [plots.Panel("test", "steps T", "squared error", lines, ("log", "log"))],
    )
    longest = max(config.lengths)
    shown = np.unique(np.linspace(1, longest, 50).astype(int))
    plots.save_lines(
        run,
        "gradients",
        [
            plots.Panel(
                f"T = {longest}, {when}",
                "step",
                "norm of the gradient",
                {
                    kind: (
                        shown.tolist(),
                        np.exp(np.log(of_kind[when] + 1e-30).mean(0))[shown - 1],
                    )
                    for kind, of_kind in gradients.items()
                },
                ("linear", "log"),
            )
            for when in next(iter(gradients.values()))
        ],
    )


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network on every length; errors, and gradients by step."""
    result: dict[str, Estimate | float] = {}
    errors: dict[Kind, list[Estimate]] = {kind: [] for kind in config.kinds}
    gradients: dict[Kind, dict[str, np.ndarray]] = {}
    for length in config.lengths:
        for kind in config.kinds:
            of_seeds, gradients[kind] = train(kind, length, config, run)
            errors[kind].append(mean_over_runs(of_seeds, NONNEGATIVE))
            result[f"{kind}, T = {length}: squared error"] = errors[kind][-1]
            result[f"{kind}, T = {length}: seeds that solve it"] = float(
                np.sum(of_seeds < SOLVED)
            )
            first, last = gradients[kind]["before training"][:, [0, -1]].T
            result[f"{kind}, T = {length}: gradient at the first step / the last"] = (
                float(np.exp(np.log((first + 1e-30) / last).mean()))
            )
    result["always the mean: squared error"] = baseline = 1 / 6
    draw(run, config, errors, gradients, baseline)
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
