"""Lessons 3.2 and 3.2.1: composing, with a network that predicts characters.

Recurrent layers read the tunes of three old collections as numbers, a dense layer with
softmax predicts the next character, and new tunes are sampled from the predictions.
Backpropagation is truncated: a step sees one window of each of some parallel streams,
and the states at its end begin the next window.

Then: ch3_compose.py --compose "X:1\\nM:6/8\\nK:G\\n"
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import optax
import pydantic

from jaxstudy.dataset import dataset
from jaxstudy.model import Model
from jaxstudy.models.recurrent import Kind, carry_states, first_states, language_model
from jaxstudy.objectives import supervised
from jaxstudy.runs.checkpoint import Checkpoints, Keep
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Options, Saved, load_weights, read_sealed
from jaxstudy.runs.statistics import Estimate
from jaxstudy.text import abc
from jaxstudy.text.compression import compare_bits
from jaxstudy.text.decoding import language_model_step, sample_texts
from jaxstudy.text.plots import save_bits, save_piano_roll
from jaxstudy.text.tune_evaluation import joined_melodies, judge_tunes, write_samples
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary, normalise
from jaxstudy.text.windows import parallel_streams, windows
from jaxstudy.training import Evaluator, make_eval_step, train_seeds
from jaxstudy.types import Array, Objective, PyTree, UserError

COMPRESSORS = "network", "PPMd", "n-gram", "xz -9", "network - n-gram"
BITS, ADDS_UP = "test bits per character", "accepted, and all bars add up"
COPIES = "copies of a training tune"
SCORES = "accepted by music21", ADDS_UP, COPIES, "longest copied piece of the melody"

LESSON = Lesson(
    number="3.2.1",
    title="Composing music",
    question="Can a network compose?",
    metrics=(
        *(f"{name}: {BITS}" for name in COMPRESSORS),
        *(f"{tunes}: {score}" for score in SCORES for tunes in ("composed", "real")),
    ),
    claims=(
        Claim("The network needs fewer bits for new tunes than PPMd does.",
              (f"network: {BITS}", f"PPMd: {BITS}"), "<"),
        Claim("The network needs fewer bits than the best n-gram model does.",
              (f"network - n-gram: {BITS}", 0), "<"),
        Claim("An ABC parser accepts more than 0.8 of the composed tunes.",
              ("composed: accepted by music21", 0.8), ">"),
        Claim("All bars add up in as many composed tunes as in real ones, within 0.1.",
              (f"composed: {ADDS_UP}", f"real: {ADDS_UP}"), "within", 0.1),
        Claim("No training tune contains over half of a composed melody in one piece.",
              (f"composed: {COPIES}", 0), "="),
    ),
    figures={
        "piano_roll":
            "Composed tunes, pitch by time, a line at every C; the last tune is real. "
            "Look for phrases that come back, and a last note at home in its key.",
        "bits":
            "Bits per character by epoch, median of the seeds. Where the validation "
            "curve is below a baseline's line, the network predicts the same tunes "
            "better. A training curve far below it shows overfitting.",
    },
    try_it={
        "--temperature 0.4":
            "The probable becomes more so: expect more tunes that parse, and copies.",
        "--temperature 1.2":
            "The improbable becomes likelier: expect fewer tunes that parse.",
        "--units 32":
            "Expect more bits per character, and more bars that do not add up.",
    },
)  # fmt: skip

VOCABULARY = "vocabulary.json"  # in the run folder


@dataclass(frozen=True)
class Config(Settings):
    """The tunes, the network that reads them, and how it composes."""

    tunes: Annotated[int, pydantic.Field(ge=50)] | None = None
    """Tunes to learn from, with as many held-out ones as belong to them; None: all."""
    cell: Kind = "lstm"
    """What the recurrent layers are made of."""
    units: tuple[Count, ...] = (128,)
    """Units of each recurrent layer."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the last layer's outputs that is left out in a training step."""
    forget: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    """Share of the streams that go on from zero states, in a training step."""
    epochs: Count = 2
    """Passes over the tunes."""
    streams: Count = 16
    """Parts of the training text that are read in parallel."""
    window: Count = 32
    """Characters of each stream in a gradient step."""
    rate: Positive = 0.006
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    seeds: Count = 2
    """Trainings; an even number shares two cores evenly. The first one composes."""
    orders: tuple[Count, ...] = (6, 8, 10)
    """Lengths n of the n-grams to compare with: the best on the validation tunes."""
    composed: Annotated[int, pydantic.Field(ge=2)] = 60
    """Tunes to compose and judge."""
    length: Count = 1000
    """Characters of a composed tune, at most."""
    temperature: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.8
    """Under 1 the probable becomes more probable; 0: always the most probable one."""
    top_k: Count | None = None
    """Draw from the so many most probable characters; None: from all."""
    continued: Count = 1
    """Tunes that --compose makes."""
    unknown: bool = False
    """Let --compose read characters that no training tune has, as the unknown one."""


PRESETS = {
    "smoke": Config(
        tunes=50, units=(8,), epochs=2, orders=(2, 3), composed=4, length=60
    ),
    "quick": Config(cell="gru", units=(160,)),
    "full": Config(
        units=(256, 256), dropout=0.4, epochs=10, window=50, rate=0.004,
        orders=(*range(2, 17), 20, 24, 32), composed=200,
    ),
}  # fmt: skip


def build(config: Config, symbols: int) -> Model:
    """Recurrent layers and a dense one: logits [B, T, V] of the next character."""
    return language_model(symbols, config.cell, config.units, dropout=config.dropout)


def build_carrying(config: Config, symbols: int) -> Model:
    """The same in training: each stream carries its states from window to window."""
    states = first_states(config.cell, config.units, config.streams)
    return carry_states(build(config, symbols), states, config.forget)


def next_character(model: Model) -> Objective:
    """-log softmax(logits)[y] a character, x and y [B, T]: loss in nats, and bits."""

    def row_metrics(logits: Array, y: Array) -> dict[str, Array]:
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(-1)
        return {"loss": nats, "bits": nats / math.log(2)}

    return supervised(model, row_metrics)


def train(config: Config, tunes: abc.Tunes, vocabulary: Vocabulary, run: Run) -> PyTree:
    """Train every seed, each a replica; the weights [seeds, ...] of the best epoch."""
    train, validation = (
        vocabulary.encode(abc.joined(part), allow_unknown=True)
        for part in (tunes.train, tunes.validation)
    )
    data = parallel_streams(train, config.streams, config.window)
    held_out = dataset(windows(validation, 512))
    model = build_carrying(config, len(vocabulary))
    objective = next_character(model)
    steps = config.epochs * (len(data.indices) // config.streams)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(config.rate, steps)),
    )
    evaluator = Evaluator(make_eval_step(objective), held_out, 64)
    train_seeds(
        model, objective, optimizer, data,
        seed=config.seed, seeds=config.seeds, epochs=config.epochs,
        batch_size=config.streams, evaluators={"validation": evaluator},
        evaluate_first=False, log=run.sub_run(),
    )  # fmt: skip
    return best_weights(run.folder, run.options, config, len(vocabulary))


def best_weights(folder: Path, options: Options, config: Config, size: int) -> PyTree:
    """The weights [seeds, ...] of the epoch with the lowest mean validation loss."""
    keys = jax.random.split(jax.random.key(0), config.seeds)
    params, extra = jax.eval_shape(jax.vmap(build_carrying(config, size).init), keys)
    keep = Keep("best", monitor=options.monitor, mode=options.mode)
    step = Checkpoints(folder / "checkpoints", keep).best()
    return load_weights(folder, {"params": params, "extra": extra}, step=step)["params"]


def continue_tune(
    config: Config, params: PyTree, vocabulary: Vocabulary, prefix: str, count: int
) -> list[str]:
    """Tunes that the first seed samples from a prefix, each to its end or `length`."""
    weights = jax.tree.map(lambda a: a[0], jax.device_get(params))
    texts = sample_texts(
        language_model_step(build(config, len(vocabulary)), weights),
        first_states(config.cell, config.units, count), vocabulary,
        abc.TUNE_END + prefix, jax.random.key(config.seed), length=config.length,
        k=config.top_k, temperature=config.temperature, allow_unknown=config.unknown,
    )  # fmt: skip
    return [abc.cut_at_end(text, len(prefix)).removeprefix("\n") for text in texts]


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train, measure in bits, compose and judge."""
    # composing needs the best epoch, so that is kept whatever the options say
    run.options = dataclasses.replace(run.options, keep="best", keep_n=1)
    tunes = abc.read_collections(config.tunes)
    vocabulary = fit_vocabulary("".join(tunes.train) + abc.TUNE_END)
    run.write_sealed(VOCABULARY, vocabulary)
    params = train(config, tunes, vocabulary, run)
    model = build(config, len(vocabulary))
    bits = compare_bits(model, params, vocabulary, tunes, config.orders)
    save_bits(run, bits)
    composed = continue_tune(config, params, vocabulary, "X:1\n", config.composed)
    melodies = joined_melodies(tunes.train)
    of_composed, readable = judge_tunes("composed", composed, melodies)
    real = abc.evenly_spaced_tunes(tunes.test, config.composed)
    of_real, readable_real = judge_tunes("real", real, melodies)
    write_samples(run.folder, "tune", readable[:4])
    (run.folder / "samples" / "all.abc").write_text("\n".join(composed), "utf-8")
    shown = {"composed": readable[:3], "real": readable_real[:1]}
    if any(shown.values()):
        save_piano_roll(run, "piano_roll", shown)
    return bits | of_composed | of_real


def compose(saved: Saved[Config], prefix: str) -> None:
    """Go on from PREFIX, the beginning of a tune, with the saved run."""
    config, prefix = saved.config, normalise(prefix.replace("\\n", "\n"))
    if not prefix:
        raise UserError('--compose needs a beginning, such as "X:1\\nM:6/8\\nK:G\\n"')
    vocabulary = read_sealed(saved.folder, VOCABULARY, Vocabulary)
    params = best_weights(saved.folder, saved.options, config, len(vocabulary))
    tunes = continue_tune(config, params, vocabulary, prefix, config.continued)
    print("\n".join(tunes), end="")
    paths = write_samples(saved.folder, f"composed_by_seed_{config.seed}", tunes)
    print(f"written to {paths[0].parent}", file=sys.stderr)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, compose=compose)
