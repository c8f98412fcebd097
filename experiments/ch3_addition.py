"""Lesson 3.1.1: from a sequence to a sequence, sums written digit by digit.

An encoder reads "321+654" and a decoder writes "975": numbers are written least
significant digit first (123 + 456 = 579), as one adds by hand, so that a digit depends
on the earlier ones by a carry at most. No sum of the test set is in the training set,
in this order or the other.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
import pydantic

from jaxstudy.dataset import dataset, subset
from jaxstudy.models.seq2seq import seq2seq
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import SHARE, Estimate, mean_over_runs
from jaxstudy.text.pair_training import train_on_pairs
from jaxstudy.text.pairs import END, Pair
from jaxstudy.text.plots import save_written
from jaxstudy.text.translation import Alphabets
from jaxstudy.text.vocabulary import fit_vocabulary
from jaxstudy.training import Evaluator
from jaxstudy.types import UserError

LESSON = Lesson(
    number="3.1.1",
    title="From a sequence to a sequence",
    question="How does a network turn one sequence into another?",
    metrics=(
        "network: exact match",
        "adder without carries: exact match",
        "network: exact match, sums without a carry",
        "network: exact match, sums with a carry",
        "network: accuracy of symbols",
    ),
    claims=(
        Claim(
            "The network gets more new sums exactly right than adding each pair of "
            "digits without carries.",
            ("network: exact match", "adder without carries: exact match"),
            ">",
        ),
        Claim(
            "Sums with a carry are right as often as sums without, to within 0.05 of "
            "exact match.",
            (
                "network: exact match, sums with a carry",
                "network: exact match, sums without a carry",
            ),
            "within",
            0.05,
        ),
        Claim(
            "More than 0.9 of the new sums are exactly right.",
            ("network: exact match", 0.9),
            ">",
        ),
    ),
    figures={
        "sums": (
            "Four test sums as the network of the first seed writes them, least "
            "significant digit first: each column is a step of the decoder, each row a "
            "symbol, and the shade is the probability of the symbol. A circle marks "
            "the right symbol; the network is right where the darkest cell of every "
            "column lies in its circle, and unsure where a column has several shades."
        ),
        "curves": (
            "Share of sums that are exactly right, by epoch: the median of the seeds, "
            "and the band that holds 80 % of them. A wide band means that seeds learn "
            "at different times; a validation curve far below the training curve would "
            "mean that sums are memorised."
        ),
    },
    try_it={
        "--sums 1000": (
            "A fifth of the sums to learn from. If the network learns the rule, a "
            "smaller share of new sums is right, but training sums too; if it "
            "memorises, training sums alone stay right."
        ),
        "--digits 3": (
            "Longer sums with the same training: every further digit is one more step "
            "that can go wrong, so expect a lower exact match."
        ),
        "--units 16": (
            "A smaller state has to hold both numbers at once: expect a lower exact "
            "match, and more so for sums with a carry."
        ),
    },
)


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


def needs_carry(pair: Pair) -> bool:
    """Whether two digits of the same place add up to more than 9."""
    a, b = pair.source.split("+")
    digits = zip(a, b, strict=False)  # a longer number's further digits stay alone
    return any(int(x) + int(y) > 9 for x, y in digits)


def written(pair: Pair) -> str:
    """A sum as one writes it, "123 + 456 = 579"."""
    a, b = pair.source.split("+")
    return f"{a[::-1]} + {b[::-1]} = {pair.target[::-1]}"


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the network with every seed, each a replica, and test it."""
    pairs = sums(config.sums, config.digits)
    alphabets = Alphabets(
        fit_vocabulary("0123456789+"),
        fit_vocabulary("0123456789" + END),
        (2 * config.digits + 1, config.digits + 1),
    )
    data = dataset(alphabets.arrays(pairs))
    rows, tenth = np.arange(len(pairs)), len(pairs) // 10
    parts = np.split(rows, [len(rows) - 2 * tenth, len(rows) - tenth])
    train, validation, test = (subset(data, part) for part in parts)

    network = seq2seq(
        len(alphabets.source), len(alphabets.target), config.units, attention=False,
        kind="gru", embedding=16,
    )  # fmt: skip
    state, eval_step = train_on_pairs(
        network.model, alphabets.end, train, validation, rate=config.rate,
        epochs=config.epochs, seed=config.seed, seeds=config.seeds,
        log=run.sub_run("addition"),
    )  # fmt: skip
    carries = np.array([needs_carry(pair) for pair in pairs])
    scores = Evaluator(eval_step, test, 500)(state)
    result: dict[str, Estimate | float] = {
        "network: exact match": of_seeds(scores["exact match"]),
        "network: accuracy of symbols": of_seeds(scores["accuracy"]),
        "adder without carries: exact match": float(np.mean(~carries[parts[2]])),
    }
    for kind, with_carry in (("without", False), ("with", True)):
        chosen = subset(data, parts[2][carries[parts[2]] == with_carry])
        exact = Evaluator(eval_step, chosen, 500)(state)["exact match"]
        result[f"network: exact match, sums {kind} a carry"] = of_seeds(exact)
    plots.save_curves(run, ["addition"], "exact match", "exact match [share of sums]")
    shown = [pairs[i] for i in parts[2][:4]]
    first_seed = jax.tree.map(lambda a: a[0], jax.device_get(state.params))
    titles = [written(pair) for pair in shown]
    save_written(run, "sums", network, first_seed, alphabets, shown, titles)
    return result


def of_seeds(values: list[float]) -> Estimate:
    """The mean of a share over the seeds."""
    return mean_over_runs(np.array(values), SHARE)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
