"""Lessons 3.1.2 and 3.2: the vanishing gradient, cells that can learn to avoid it.

Of T random numbers two are marked, one in each half; the answer is their sum. A network
that knows nothing of them predicts 1: its squared error is 1/6, the variance of the
sum. In a simple recurrent network the Jacobian of the output is multiplied by the same
matrix and a slope under 1 at every step on the way back to the first mark. GRU and LSTM
can learn to keep their state until a gate replaces it; with a large bias, an LSTM's
forget gates are open to begin with.

All kinds have as many units and see the same sequences, but GRU has three times and
LSTM four times the weights.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import jax
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import steps_per_epoch, take
from jaxstudy.models.recurrent import Kind, sequence_to_vector
from jaxstudy.objectives import squared_error
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import NONNEGATIVE, REAL, Estimate, mean_over_runs
from jaxstudy.study import memory
from jaxstudy.training import (
    Evaluator,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)

Name = Literal["SimpleRNN", "GRU", "LSTM", "LSTM, open gates"]
KINDS: dict[Name, Kind] = {
    "SimpleRNN": "simple", "GRU": "gru", "LSTM": "lstm", "LSTM, open gates": "lstm"
}  # fmt: skip
SIMPLE, GRU, LSTM, OPEN = KINDS
LONGEST = "the longest T"  # 30 at quick, 400 at full
CONSTANT = "constant prediction: squared error"
ERROR = "{}, " + LONGEST + ": squared error"
BEFORE = "{}, " + LONGEST + ": decay of the Jacobian per step, before training"
AFTER = "{}, " + LONGEST + ": decay of the Jacobian per step, trained"

LESSON = Lesson(
    number="3.1.2, 3.2",
    title="The vanishing gradient",
    question="Who remembers the first word?",
    metrics=(
        *(ERROR.format(name) for name in KINDS), CONSTANT,
        *(BEFORE.format(name) for name in KINDS),
        *(AFTER.format(name) for name in KINDS),
    ),
    claims=(
        Claim("At the longest T, the GRU's squared error is below 0.01.",
              (ERROR.format(GRU), 0.01), "<"),
        Claim("At the longest T, the squared error of the LSTM with open gates is "
              "below 0.01.", (ERROR.format(OPEN), 0.01), "<"),
        Claim("At the longest T, the SimpleRNN's squared error is within 0.01 of that "
              "of always predicting 1.",
              (ERROR.format(SIMPLE), CONSTANT), "within", 0.01),
        Claim("Before training, at the longest T, the input Jacobian of the GRU decays "
              "fastest per step back, then that of the LSTM, then that of the "
              "SimpleRNN, and that of the LSTM with open gates slowest.",
              tuple(BEFORE.format(name) for name in (GRU, LSTM, SIMPLE, OPEN)), ">"),
        Claim("At the longest T, the input Jacobian of the trained GRU decays more "
              "slowly per step back than before training.",
              (AFTER.format(GRU), BEFORE.format(GRU)), "<"),
    ),
    figures={
        "errors":
            "Squared error on test sequences by their length T, or by network if there "
            "is one T: mean over the seeds with its 95 % interval, and a dash for each "
            "seed, on a logarithmic axis. A network on the line 'always predicting 1', "
            "measured on the same sequences, has learned nothing about the marked "
            "numbers. One below the dashed line at 0.01 knows their sum to about 0.1.",
        "jacobian":
            "Norm of the derivative of the output y with respect to the input x_t at "
            "each step of the longest sequences, divided by that at the last step: "
            "left before training, right after it; geometric mean over the seeds. A "
            "straight line that falls to the left is exponential decay with the "
            "distance to the end. A line stops where the norm of a seed is below "
            "1e-30, where float32 ends.",
        "positions":
            "Squared error of the trained networks by the step of the first marked "
            "number, at the longest T: mean over seeds and sequences, on a logarithmic "
            "axis, with the same two baselines as in the figure of errors. A line that "
            "is higher on the left belongs to a network that forgets early numbers.",
    },
    try_it={
        "--lengths 10 20":
            "Shorter sequences: expect the SimpleRNN to come closer to the others.",
        "--forget-bias 0":
            "Forget gates that start half open: expect the longest T to stay unsolved.",
        "--clip 1000":
            "No clipping: a gradient that explodes is followed as it is, so expect "
            "larger differences between the seeds of the SimpleRNN.",
    },
)  # fmt: skip

SHOWN = 200  # sequences whose Jacobians are averaged
BINS = 20  # of the step of the first marked number


@dataclass(frozen=True)
class Config(Settings):
    """The sequences, and the networks that learn to add."""

    lengths: tuple[Annotated[int, pydantic.Field(ge=2)], ...] = (30,)
    """Numbers of steps T."""
    networks: tuple[Name, ...] = get_args(Name)
    """Recurrent networks to compare."""
    forget_bias: float = 5.0
    """Bias of the open forget gates at the start: 0.993 of the cell stays at a step."""
    units: Count = 32
    """Units of the one recurrent layer."""
    examples: Count = 10_000
    """Sequences to learn from."""
    epochs: Count = 6
    """Passes over them."""
    batch_size: Count = 100
    """Sequences in a gradient step."""
    rate: Positive = 0.01
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    simple_rate: Positive = 0.003
    """That of the simple network. Both were chosen, from 0.001 to 0.01, on validation
    sequences and with other seeds."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(lengths=(4,), units=8, examples=200, epochs=2, seeds=2),
    "quick": Config(),
    "full": Config(
        lengths=(50, 100, 200, 400), examples=20_000, epochs=10, batch_size=50, seeds=6
    ),
}


def train(name: Name, length: int, config: Config, run: Run) -> memory.AddingResult:
    """Train one network with every seed; what it learned, and what it keeps."""
    kind = KINDS[name]
    model = sequence_to_vector(2, kind, (config.units,), 1)
    objective = squared_error(model)
    rate = config.simple_rate if kind == "simple" else config.rate
    steps = config.epochs * steps_per_epoch(config.examples, config.batch_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    held_out = max(100, config.examples // 10)
    validation, test = (
        memory.adding_problem(held_out, length, seed) for seed in (1, 2)
    )
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    state = init_replicas(model, optimizer, keys[:, 0])
    if name == OPEN:
        state = memory.with_forget_bias(state, config.forget_bias)
    few = take(test, np.arange(min(SHOWN, held_out)))["x"]
    jacobians = {"before training": memory.input_jacobian_norms(model, state, few)}
    state, _ = fit(
        state,
        make_train_step(objective, optimizer),
        memory.adding_problem(config.examples, length, seed=0),
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={
            "validation": Evaluator(make_eval_step(objective), validation, 500)
        },
        log=run.sub_run(f"{name.replace(', ', '_').replace(' ', '_')}_{length}"),
    )
    jacobians["trained"] = memory.input_jacobian_norms(model, state, few)
    bins = min(BINS, length // 2)
    found = Evaluator(memory.error_by_first_mark(model, bins), test, 500)(state)
    by_position = np.array([found[f"bin {i}"] for i in range(bins)])
    constant = float(np.mean(np.square(1 - np.asarray(test.arrays["y"]))))
    errors = np.array(found["loss"])
    return memory.AddingResult(errors, constant, by_position, jacobians)


def draw_errors(
    run: Run, lengths: tuple[int, ...], errors: dict, constants: list[float]
) -> None:
    """Squared error by length, or by network of one length, beside two baselines."""
    baseline = "always predicting 1"
    lines: dict[str, plots.Line] = {name: (lengths, e) for name, e in errors.items()}
    lines[baseline] = lengths, constants
    title, xlabel, scale, levels = "test set", "length T [steps]", "log", memory.LEVELS
    if len(lengths) == 1:
        lines = {name: ([name], e) for name, e in errors.items()}
        title, xlabel, scale = f"test set, T = {lengths[0]}", "network", "linear"
        levels = {**levels, baseline: constants[0]}
    panel = plots.Panel(title, xlabel, "squared error", lines, (scale, "log"),
                        levels=levels, seeds=True)  # fmt: skip
    plots.save_lines(run, "errors", [panel])


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network on every length; errors, and Jacobians by step."""
    result: dict[str, Estimate | float] = {}
    errors: dict[Name, list[Estimate]] = {name: [] for name in config.networks}
    longest: dict[str, memory.AddingResult] = {}
    constants: dict[int, float] = {}
    for length, name in run.each(itertools.product(config.lengths, config.networks)):
        trained = train(name, length, config, run)
        constants[length] = trained.constant
        errors[name].append(mean_over_runs(trained.errors, NONNEGATIVE))
        result[f"{name}, T = {length}: squared error"] = errors[name][-1]
        solved = float(np.sum(trained.errors < memory.SOLVED))
        result[f"{name}, T = {length}: seeds that solve it"] = solved
        if length == max(config.lengths):
            longest[name] = trained
    for name, trained in longest.items():
        result[ERROR.format(name)] = mean_over_runs(trained.errors, NONNEGATIVE)
        result[CONSTANT] = trained.constant
        for when, metric in (("before training", BEFORE), ("trained", AFTER)):
            found = memory.decay_per_step(trained.jacobians[when])
            result[metric.format(name)] = mean_over_runs(found, REAL)
    draw_errors(run, config.lengths, errors, [constants[t] for t in config.lengths])
    memory.draw_jacobians(run, longest, max(config.lengths))
    memory.draw_error_by_position(run, longest, max(config.lengths))
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
