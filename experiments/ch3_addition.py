"""Lesson 3.1.1: from a sequence to a sequence, sums written digit by digit.

An encoder reads "321+654" and a decoder writes "975": numbers are written least
significant digit first (123 + 456 = 579), as one adds by hand, so that a digit depends
on the earlier ones by a carry at most. No sum of the test set is in the training set,
in this order or the other.

Expected (quick, half a minute): 0.998 of the sums of two digits right.
Expected (full, three minutes, six seeds): 0.95 of the sums of three digits. Most seeds
learn them to 0.99 in a few epochs, others begin to later.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import optax
import pydantic

from jaxstudy.dataset import dataset, steps_per_epoch, subset
from jaxstudy.models.seq2seq import seq2seq
from jaxstudy.objectives import sequence_cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import SHARE, Estimate, mean_over_runs
from jaxstudy.text.pairs import END, Pair, encode_pairs
from jaxstudy.text.vocabulary import fit_vocabulary
from jaxstudy.training import Evaluator, make_eval_step, train_seeds
from jaxstudy.types import UserError

LESSON = Lesson(
    number="3.1.1",
    title="From a sequence to a sequence",
    question="How does a network turn one sequence into another?",
    metrics=("addition: exact match",),
    claims=(),
    figures={},
)

BATCH = 32  # sums in a gradient step


@dataclass(frozen=True)
class Config(Settings):
    """The sums, the network, and how long it is trained."""

    digits: Annotated[int, pydantic.Field(ge=1, le=3)] = 2
    """Digits of the numbers that are added, at most."""
    sums: Annotated[int, pydantic.Field(ge=20)] = 5_000
    """Different sums, a tenth of them for validation and a tenth for the test."""
    units: Count = 64
    """Units of the encoder, in each direction, and of the decoder."""
    epochs: Count = 15
    """Passes over the sums."""
    rate: Positive = 0.01
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of the network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(sums=100, units=8, epochs=2),
    "quick": Config(),
    "full": Config(digits=3, sums=30_000, units=128, epochs=8, seeds=6),
}


def sums(count: int, digits: int) -> list[Pair]:
    """So many sums of two numbers of at most so many digits, as "321+654" and "975".

    Each pair of numbers occurs once, in one of its two orders. Raises UserError where
    there are fewer.
    """
    numbers = 10**digits
    available = numbers * (numbers + 1) // 2
    if count > available:
        raise UserError(f"--sums {count}: there are {available} of {digits} digits")
    rng = np.random.default_rng(0)
    low, high = np.triu_indices(numbers)
    chosen = rng.permutation(available)[:count]
    pairs = rng.permuted(np.column_stack([low, high])[chosen], axis=1)
    return [
        Pair(f"{a}"[::-1] + "+" + f"{b}"[::-1], f"{a + b}"[::-1])
        for a, b in pairs.tolist()
    ]


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the network with every seed, each a replica, and test it."""
    pairs = sums(config.sums, config.digits)
    source, target = fit_vocabulary("0123456789+"), fit_vocabulary("0123456789" + END)
    lengths = 2 * config.digits + 1, config.digits + 1
    data = dataset(encode_pairs(pairs, source, target, lengths))
    rows, tenth = np.arange(len(pairs)), len(pairs) // 10
    parts = np.split(rows, [len(rows) - 2 * tenth, len(rows) - tenth])
    train, validation, test = (subset(data, part) for part in parts)

    network = seq2seq(
        len(source), len(target), config.units, attention=False, kind="gru",
        embedding=16,
    )  # fmt: skip
    objective = sequence_cross_entropy(network.model, int(target.encode(END)[0]))
    steps = config.epochs * steps_per_epoch(len(train.indices), BATCH)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(config.rate, steps)),
    )
    eval_step = make_eval_step(objective)
    state = train_seeds(
        network.model,
        objective,
        optimizer,
        train,
        seed=config.seed,
        seeds=config.seeds,
        epochs=config.epochs,
        batch_size=BATCH,
        evaluators={"validation": Evaluator(eval_step, validation, 500)},
        evaluate_first=False,
        log=run.sub_run("addition"),
    ).state
    scores = Evaluator(eval_step, test, 500)(state)
    plots.save_curves(run, ["addition"], "exact match", "exact match")
    return {
        f"addition: {metric}": mean_over_runs(np.array(scores[metric]), SHARE)
        for metric in ("exact match", "accuracy")
    }


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
