"""Lesson 3.1: which word comes next, by networks that see the order of words or not.

Every network predicts the same words of Moby Dick, split by chapter. Held fixed: the
vocabulary, the size of the vectors, the units of the hidden layer, its dropout, the
softmax, batches and epochs. Varied: the hidden layer, the LSTM's rate, and that
recurrent networks see more than n words where a window has them.

Then: ch3_next_word.py --predict "call me"
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import Dataset, evenly_spaced, steps_per_epoch
from jaxstudy.model import Model, parameter_count
from jaxstudy.models import next_word
from jaxstudy.objectives import token_cross_entropy
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run, Saved, read_sealed
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    Estimate,
    at_best_epoch,
    mean_over_runs,
)
from jaxstudy.text.ngram import best_ngram, perplexity
from jaxstudy.text.plots import Comparison, save_comparison, save_learning
from jaxstudy.text.prose import first_words, read_prose
from jaxstudy.text.vocabulary import UNKNOWN, Vocabulary, fit_vocabulary, words
from jaxstudy.text.windows import passage_windows, shuffled_contexts
from jaxstudy.training import Evaluator, make_eval_step, train_seeds
from jaxstudy.types import UserError

Name = Literal["bag of words", "concatenated words", "SimpleRNN", "LSTM"]
HIDDEN_LAYERS: dict[Name, next_word.HiddenLayer] = {
    "bag of words": "bag", "concatenated words": "ordered", "SimpleRNN": "simple",
    "LSTM": "lstm",
}  # fmt: skip
ORDERS = ("perplexity, context in order", "perplexity, context shuffled")
LSTM_FIRST = tuple(f"{name}: test perplexity" for name in [*HIDDEN_LAYERS][::-1])
BAG, CONCATENATED, _, LSTM = (
    tuple(f"{name}: {order}" for order in ORDERS) for name in HIDDEN_LAYERS
)
NGRAM = "n-gram: test perplexity"

LESSON = Lesson(
    number="3.1",
    title="The next word",
    question="What is word order worth?",
    metrics=(*LSTM_FIRST, NGRAM, *LSTM, *CONCATENATED, *BAG),
    claims=(
        Claim("Test perplexity falls from bag of words to concatenated words to "
              "SimpleRNN to LSTM.", LSTM_FIRST, "<"),
        Claim("The LSTM's test perplexity is below that of the best n-gram model.",
              (LSTM_FIRST[0], NGRAM), "<"),
        Claim("Shuffling the context raises the LSTM's perplexity.", LSTM, "<"),
        Claim("Shuffling raises that of the concatenated words.", CONCATENATED, "<"),
        Claim("Shuffling does not change the perplexity of the bag at all.", BAG, "="),
    ),
    figures={
        "perplexity":
            "Perplexity, lower is better: mean over the seeds. Left, on the test set: "
            "a network left of the dashed line beats the n-gram model. Right, "
            "from contexts in order and shuffled: the distance of the two colours is "
            "the loss of order and the unfamiliar input together. Compare with the "
            "bag, which never had the order.",
        "learning":
            "Loss by epoch, median of the seeds; exp(loss) is the perplexity. A "
            "validation curve that turns up shows overfitting; one that still falls "
            "would gain from more epochs. Training losses include dropout.",
    },
    try_it={
        "--context 2":
            "Dense networks see two words, as a 3-gram model does: expect concatenated "
            "words to lose, and the recurrent networks, which see more, to stay.",
        "--vocabulary 500":
            "More words are unknown, which is easy to guess: every perplexity falls, "
            "and none can be compared with those of the larger vocabulary.",
        "--words 20000":
            "Less text: expect all networks to lose more than the n-gram model.",
    },
)  # fmt: skip

HELD_OUT = ("validation", "test")
MAX_SHOWN = 8  # words that may follow
VOCABULARY = "vocabulary.json"  # in the run's folder


@dataclass(frozen=True)
class Config(Settings):
    """The text, the networks, and how they are trained."""

    text: Path | None = None
    """A text file of your own, in UTF-8, in place of Moby Dick."""
    vocabulary: Annotated[int, pydantic.Field(ge=2)] = 4_000
    """Words of the training text, the most frequent, with the one for all others."""
    words: Count | None = None
    """Words to learn from, or little more: whole chapters. And a tenth of that to
    choose by, and to test on. None: all of them."""
    context: Count = 8
    """The last n words, which is all that dense networks see."""
    window: Count = 64
    """Words that a row of a batch predicts, one after the other."""
    embedding: Count = 64
    """Numbers that stand for a word."""
    units: Count = 128
    """Units of the one hidden layer."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.3
    """Share of these that is dropped in training."""
    epochs: Count = 3
    """Passes over the training text."""
    batch_size: Count = 8
    """Windows in a gradient step."""
    rate: Positive = 0.003
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    lstm_rate: Positive = 0.01
    """That of the LSTM. Both were the best of 0.003, 0.01 and 0.03 on validation, with
    other seeds; 0.003 was the lowest tried."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    networks: tuple[Name, ...] = get_args(Name)
    """Which networks to train."""
    asked: Count = 2_000
    """Test words that the order test asks for, spread over the test set."""
    orders: Count = 5
    """Largest order of the n-gram model; the best is chosen on validation."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        vocabulary=200, words=3_000, embedding=8, units=16, epochs=2, asked=200
    ),
    "quick": Config(words=50_000),
    "full": Config(epochs=5, seeds=6, asked=100_000),
}


def build(name: Name, config: Config, vocabulary: int) -> Model:
    """One of the networks: logits [B, T, V] of the word after every n of x."""
    return next_word.next_word_model(
        HIDDEN_LAYERS[name], vocabulary, context=config.context,
        embedding=config.embedding, units=config.units, dropout=config.dropout,
    )  # fmt: skip


def train(
    name: Name, model: Model, sets: dict[str, Dataset], config: Config, run: Run
) -> dict[str, np.ndarray]:
    """Train one network with every seed; its perplexities [seeds].

    Those of the validation and the test set are of the epoch that validation chooses,
    those of the order test of the end.
    """
    objective, data = token_cross_entropy(model), sets["train"]
    eval_step, size = make_eval_step(objective), config.batch_size
    steps = config.epochs * steps_per_epoch(len(data.indices), size)
    rate = config.lstm_rate if name == "LSTM" else config.rate
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    fitted = train_seeds(
        model, objective, optimizer, data,
        seed=config.seed, seeds=config.seeds, epochs=config.epochs, batch_size=size,
        evaluators={s: Evaluator(eval_step, sets[s], size) for s in HELD_OUT},
        evaluate_first=False, log=run.sub_run(name.replace(" ", "_")),
    )  # fmt: skip
    losses = {
        split: np.array([r["loss"] for r in fitted.records if r["split"] == split])
        for split in HELD_OUT
    }
    chosen = {s: at_best_epoch(-losses["validation"], losses[s]) for s in HELD_OUT}
    nats = {f"{split} perplexity": values for split, values in chosen.items()}
    for order in ORDERS:  # rows of one word each
        evaluate = Evaluator(eval_step, sets[order], size * config.window)
        nats[order] = np.array(evaluate(fitted.state)["loss"])
    return {metric: np.exp(values) for metric, values in nats.items()}


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network and count n-grams, shuffle the words, draw."""
    prose = read_prose(config.text)
    if config.words is not None:
        prose = first_words(prose, config.words)
    vocabulary = fit_vocabulary(itertools.chain(*prose.train), size=config.vocabulary)
    run.write_sealed(VOCABULARY, vocabulary)
    numbers = {
        split: [vocabulary.encode(p, allow_unknown=True) for p in passages]
        for split, passages in prose._asdict().items()
    }
    size, n = len(vocabulary), config.context
    result: dict[str, Estimate | float] = {}
    for split, passages in numbers.items():
        joined = np.concatenate(passages)
        result[f"{split}: words"] = float(len(joined))
        result[f"{split}: share of unknown words"] = float(np.mean(joined == 0))
    orders = range(1, config.orders + 1)
    ngram = best_ngram(numbers["train"], numbers["validation"], size, orders)
    result["n-gram: order"] = float(ngram.order)
    for split in HELD_OUT:
        result[f"n-gram: {split} perplexity"] = perplexity(ngram, numbers[split])
    sets = {
        split: passage_windows(passages, n, config.window, size)
        for split, passages in numbers.items()
    }
    for order, data in zip(ORDERS, shuffled_contexts(numbers["test"], n), strict=True):
        sets[order] = evenly_spaced(data, config.asked)
    for name in config.networks:
        model = build(name, config, size)
        for metric, values in train(name, model, sets, config, run).items():
            result[f"{name}: {metric}"] = mean_over_runs(values, NONNEGATIVE)
        result[f"{name}: parameters"] = float(parameter_count(model))
    baseline = {f"{ngram.order}-gram model": perplexity(ngram, numbers["test"])}
    test = Comparison("perplexity", ["test perplexity"], baseline)
    order = Comparison(f"perplexity from {n} words alone", ORDERS)
    save_comparison(run, "perplexity", result, config.networks, [test, order])
    save_learning(run, config.networks, "loss", "loss [nats per word]")
    return result


def predict(saved: Saved[Config], text: str) -> None:
    """The most probable words after a TEXT, by the mean of each network's seeds."""
    config, prefix = saved.config, words(text)
    vocabulary = read_sealed(saved.folder, VOCABULARY, Vocabulary)
    if not prefix:
        raise UserError("--predict takes a word at least, or a mark")
    start = [len(vocabulary)] * config.context
    x = jnp.array([[*start, *vocabulary.encode(prefix)]])
    for name in config.networks:
        model = build(name, config, len(vocabulary))
        weights = saved.replica_weights(model, config.seeds, name.replace(" ", "_"))
        p = next_word.next_word_probabilities(model, weights["params"], x)
        best = np.argsort(-p)[:MAX_SHOWN].tolist()
        symbols = zip(best, vocabulary.decode(best), strict=True)
        shown = ", ".join(f"{symbol} {p[i]:.3f}" for i, symbol in symbols)
        print(f"{name}: {shown.replace(UNKNOWN, '(unknown)')}")


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
