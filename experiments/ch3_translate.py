"""Lesson 3.1.1: an encoder reads a Korean text, a decoder writes it in English.

Dates, as CLDR writes them in six forms, have one right answer each; messages of a
program have many. Without attention all of the source must go through the encoder's
last states. With it every step of the decoder attends to all of it.
Then: ch3_translate.py --translate "2024년 3월 5일 화요일"
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import jax
import numpy as np
import pydantic

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.model import parameter_count
from jaxstudy.models.seq2seq import Seq2Seq, seq2seq
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved, read_sealed
from jaxstudy.runs.statistics import Estimate
from jaxstudy.text import pairs, translation
from jaxstudy.text.pair_training import train_on_pairs
from jaxstudy.text.plots import save_attention, save_exact_match, save_scores
from jaxstudy.text.translation import NEAREST, Alphabets
from jaxstudy.text.vocabulary import Vocabulary, normalise
from jaxstudy.types import PyTree, UserError

ATTENTION, ATTENTION_BEAM, NONE, NONE_BEAM = (
    f"dates, {network}: exact match, {decoding}"
    for network in ("attention", "no attention")
    for decoding in ("greedy", "beam of 4")
)
TIMES = "dates: times as many pairs without attention, at least"
LEVEL = "dates, no attention: rise of the validation exact match at the end"
ENOUGH = 0.99  # of the validation dates, for the number of pairs that it takes

LESSON = Lesson(
    number="3.1.1",
    title="Attention",
    question="What does attention buy?",
    metrics=(
        ATTENTION, NONE, ATTENTION_BEAM, NONE_BEAM, TIMES, LEVEL,
        "messages, attention: exact match, beam of 4",
        "messages, no attention: exact match, beam of 4",
        "messages, attention: chrF, beam of 4", f"messages, {NEAREST}: chrF",
        "messages, noise: several English",
    ),
    claims=(
        Claim("With attention more test dates are exactly right than without it.",
              (ATTENTION, NONE), ">"),
        Claim("With attention more than 0.99 of the test dates are exactly right.",
              (ATTENTION, 0.99), ">"),
        Claim("Without attention a network needs more pairs to get 0.99 of the "
              "validation dates right, if it ever does.", (TIMES, 1.0), ">"),
        Claim("With attention a beam of 4 changes the share of test dates that are "
              "exactly right by less than 0.01.",
              (ATTENTION_BEAM, ATTENTION), "within", 0.01),
    ),
    figures={
        "learning":
            "Share of validation pairs exactly right by the training pairs seen, with "
            "repeats (median of the seeds). The horizontal distance of two curves at "
            "the dashed line is how many times as many pairs a network needs, where "
            "neither still rises.",
        "scores_*":
            "Exact match and chrF of the test pairs: mean over the seeds, with its "
            "interval or values. The dashed line looks up the training text that is "
            "most similar to the source: right of it, a network has learned more.",
        "attention_*":
            "Weights of the first seed's network while it translates four test texts: "
            "a row is a character written, a column one read (a Korean syllable by its "
            "sound, a space as _); each row adds up to 1. Year, month and day change "
            "places, so look for dark cells far from the diagonal.",
    },
    try_it={
        "--date-epochs 4 48":
            "More training without attention. If that network needs more pairs, rather "
            "than being unable, its exact match rises.",
        "--units 32": "Small states: expect more to be lost without attention.",
        "--tasks messages":
            "Messages: expect a low exact match, since many texts would do; see chrF.",
    },
)  # fmt: skip

Task = Literal["dates", "messages"]
NETWORKS: tuple[str, ...] = ("attention", "no attention")


@dataclass(frozen=True)
class Config(Settings):
    """The pairs, the network, and how it is trained."""

    tasks: tuple[Task, ...] = ("dates",)
    """What to translate."""
    dates: Annotated[int, pydantic.Field(ge=30)] = 5_000
    """Dates, of which a tenth is for choosing and a tenth for testing."""
    messages: Annotated[int, pydantic.Field(ge=30)] | None = None
    """Messages to learn from, drawn from all; every one by default."""
    longest: tuple[Count, Count] = (24, 40)
    """Messages with more characters, of Korean and of English, are left out."""
    units: Count = 128
    """Units of each recurrent layer."""
    embedding: Count = 64
    """Numbers that stand for a character."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.2
    """Share of the decoder's outputs that is dropped in training."""
    date_epochs: tuple[Count, Count] = (4, 12)
    """Passes over the dates, with attention and without."""
    message_epochs: tuple[Count, Count] = (4, 4)
    """Passes over the messages."""
    batch_size: Count = 50
    """Pairs in a gradient step."""
    date_rates: tuple[Positive, Positive] = (0.01, 0.003)
    """Learning rates of Adam at the start, for dates; they fall to 0 along a cosine."""
    message_rates: tuple[Positive, Positive] = (0.01, 0.003)
    """Those for messages."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    beam: Count = 4
    """Sequences that beam search follows."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        tasks=("messages",), messages=200, longest=(8, 12), units=16, embedding=8,
        message_epochs=(2, 2),
    ),
    "quick": Config(),
    "full": Config(
        tasks=get_args(Task), dates=20_000, date_epochs=(8, 40),
        message_epochs=(10, 20), date_rates=(0.003, 0.003), seeds=4,
    ),
}  # fmt: skip


def sub_run(task: Task, network: str) -> str:
    """The name of a training."""
    return f"{task} {network}".replace(" ", "_")


def longest(task: Task, config: Config) -> tuple[int, int]:
    """The most characters of a Korean and of an English text."""
    return pairs.LONGEST_DATE if task == "dates" else config.longest


def load(task: Task, config: Config) -> tuple[pairs.Pairs, Alphabets]:
    """The pairs of a task, and the characters of its training set."""
    if task == "dates":
        parts = pairs.date_pairs(config.dates)
    else:
        parts = pairs.message_pairs(config.longest, config.messages)
    return parts, translation.fit_alphabets(parts.train, longest(task, config))


def build(alphabets: Alphabets, network: str, config: Config) -> Seq2Seq:
    """One of NETWORKS for these characters."""
    return seq2seq(
        len(alphabets.source), len(alphabets.target), config.units,
        attention=network == "attention", embedding=config.embedding,
        dropout=config.dropout,
    )  # fmt: skip


def train(
    task: Task, name: str, network: Seq2Seq, sets: list[Dataset], end: int,
    config: Config, run: Run,
) -> PyTree:  # fmt: skip
    """Train one network with every seed, each a replica; params [seeds, ...]."""
    epochs, rates = config.message_epochs, config.message_rates
    if task == "dates":
        epochs, rates = config.date_epochs, config.date_rates
    i = NETWORKS.index(name)
    state, _ = train_on_pairs(
        network.model, end, *sets, rate=rates[i], epochs=epochs[i], seed=config.seed,
        seeds=config.seeds, batch_size=config.batch_size, clip=config.clip,
        log=run.sub_run(sub_run(task, name)),
    )  # fmt: skip
    return jax.device_get(state.params)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network on every task, translate the test pairs, draw."""
    result: dict[str, Any] = {}
    for task in config.tasks:
        parts, alphabets = load(task, config)
        run.write_sealed(f"{task}-ko.json", alphabets.source)
        run.write_sealed(f"{task}-en.json", alphabets.target)
        counts = {"training": len(parts.train), "test": len(parts.test)}
        result |= {f"{task}: {name} pairs": float(n) for name, n in counts.items()}
        if task == "messages":
            shares = pairs.noise(parts.test).items()
            result |= {f"{task}, noise: {name}": share for name, share in shares}
        nearest = translation.score_nearest(parts.train, parts.test)
        result |= {f"{task}, {NEAREST}: {score}": v for score, v in nearest.items()}
        sets = [dataset(alphabets.arrays(part)) for part in parts[:2]]
        for name in NETWORKS:
            network = build(alphabets, name, config)
            params = train(task, name, network, sets, alphabets.end, config, run)
            scores = translation.score_translations(
                network, params, alphabets, parts.test, config.beam
            )
            result |= {f"{task}, {name}: {score}": v for score, v in scores.items()}
            result[f"{task}, {name}: parameters"] = parameter_count(network.model)
            if name == "attention":
                figure, seed = f"attention_{task}", jax.tree.map(lambda a: a[0], params)
                save_attention(run, figure, network, seed, alphabets, parts.test)
        if task == "dates":
            logs = (run.sub_runs[sub_run(task, name)].records for name in NETWORKS)
            compared = translation.compare_epochs(*logs, enough=ENOUGH)
            result[TIMES], result[LEVEL] = compared
        save_scores(run, task, result, NETWORKS, config.beam)
    seen = {task: result[f"{task}: training pairs"] for task in config.tasks}
    save_exact_match(run, seen, NETWORKS, ENOUGH)
    return result


def translate(saved: Saved[Config], text: str) -> None:
    """English for a Korean TEXT, a date or a message, from the saved run."""
    config, text = saved.config, normalise(text)
    task: Task = config.tasks[0]
    if len(config.tasks) > 1:
        task = "dates" if re.match(r"\d+ ?[년.]", text) else "messages"
    if task == "dates":
        pairs.check_date(text)
    names = (f"{task}-{language}.json" for language in ("ko", "en"))
    source, target = (read_sealed(saved.folder, name, Vocabulary) for name in names)
    alphabets = Alphabets(source, target, longest(task, config))
    most = alphabets.longest[0]
    if not 0 < len(text) <= most:
        raise UserError(f"--translate takes 1 to {most} characters, not {len(text)}")
    numbers = source.encode(text)  # which names what is not in it
    for name in NETWORKS:
        network = build(alphabets, name, config)
        part = sub_run(task, name)
        weights = saved.replica_weights(network.model, config.seeds, part)
        params = jax.tree.map(lambda a: a[0], weights["params"])
        decode = translation.decoder(network, alphabets, config.beam)
        beams = decode(params, numbers[None], np.array([len(numbers)]))
        for tokens, score in zip(beams.tokens[0], beams.scores[0], strict=True):
            print(f"{name}, probability {np.exp(score):.3f}: {alphabets.text(tokens)}")


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, translate=translate)
