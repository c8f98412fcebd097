"""Lesson 3.1: which word comes next, by networks that see the order of words or not.

Every network predicts the same words of Moby Dick, split by chapter. Held fixed: the
vocabulary, the size of the vectors, the units of the hidden layer, its dropout, the
softmax, words in a gradient step and epochs. Varied: the hidden layer, the LSTM's rate,
and that recurrent networks see more than n words where a window has them. As controls,
two LSTMs see the last n words alone: in order, and shuffled anew in every step.
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

from jaxstudy.dataset import Dataset, steps_per_epoch
from jaxstudy.model import Model, parameter_count
from jaxstudy.models import next_word
from jaxstudy.objectives import token_cross_entropy
from jaxstudy.runs import statistics
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.export import Predictor, seeds_predictor
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved, read_sealed
from jaxstudy.runs.statistics import NONNEGATIVE, Estimate, mean_over_runs
from jaxstudy.text import word_sets
from jaxstudy.text.plots import save_learning, save_perplexities
from jaxstudy.text.prose import first_words, read_prose
from jaxstudy.text.vocabulary import UNKNOWN, Vocabulary, fit_vocabulary, words
from jaxstudy.text.windows import with_shuffled_contexts
from jaxstudy.text.word_sets import KNOWN, ORDERS, TEST, TRAIN, VALIDATION
from jaxstudy.training import Evaluator, make_eval_step, train_seeds
from jaxstudy.types import UserError

Name = Literal["bag of words", "concatenated words", "SimpleRNN", "LSTM",
               "LSTM on n words", "LSTM on n shuffled words"]  # fmt: skip
NETWORKS: dict[Name, tuple[next_word.HiddenLayer, str]] = {
    "bag of words": ("bag", "windows"), "concatenated words": ("ordered", "windows"),
    "SimpleRNN": ("simple", "windows"), "LSTM": ("lstm", "windows"),
    "LSTM on n words": ("lstm", "in order"),
    "LSTM on n shuffled words": ("lstm", "shuffled"),
}  # fmt: skip
BAG, CONCATENATED, SIMPLE, LSTM, IN_ORDER, SHUFFLED = NETWORKS
LSTM_FIRST = tuple(f"{name}: {TEST}" for name in (LSTM, SIMPLE, CONCATENATED, BAG))
LSTM_KNOWN, *NGRAM = f"{LSTM}: {KNOWN}", f"n-gram: {TEST}", f"n-gram: {KNOWN}"
CONTROLS = f"{IN_ORDER}: {ORDERS[0]}", f"{SHUFFLED}: {ORDERS[1]}"
BAGS = tuple(f"{BAG}: {order}" for order in ORDERS)
RATIO = f"{SHUFFLED} / {BAG}: perplexity"

LESSON = Lesson(
    number="3.1",
    title="The next word",
    question="What is word order worth?",
    metrics=(*LSTM_FIRST, *NGRAM, LSTM_KNOWN, *CONTROLS, *BAGS, RATIO),
    claims=(
        Claim("Test perplexity falls from bag of words to concatenated words to "
              "SimpleRNN to LSTM.", LSTM_FIRST, "<"),
        Claim("The LSTM's test perplexity is below that of the best n-gram model.",
              (LSTM_FIRST[0], NGRAM[0]), "<"),
        Claim("Of the same n words, an LSTM that learns from them in order has a lower "
              "perplexity than one that learns from them shuffled.", CONTROLS, "<"),
        Claim("The perplexity of an LSTM that learns from the last n words shuffled is "
              "within 5 % of that of the bag of words.", (RATIO, 1.0), "within", 0.05),
        Claim("Shuffling the context does not change the perplexity of the bag of "
              "words at all.", BAGS, "="),
    ),
    figures={
        "perplexity": "Perplexity, lower is better, on one logarithmic axis: mean over "
        "the seeds, with its 95 % interval. Left, on the test set, of all words and of "
        "known ones: a network left of the dashed (dotted) line beats the n-gram model "
        "on all (known) words. Right, from n words alone: order is worth the distance "
        "between the two controls, the lowest rows. Within a network trained in order, "
        "the distance of the colours also contains unfamiliar input.",
        "learning": "Loss by epoch, median of the seeds; exp(loss) is the perplexity. "
        "Below the dashed line a network beats the n-gram model on validation words. A "
        "curve there that turns up shows overfitting; one that still falls would gain "
        "from more epochs. Training losses include dropout.",
    },
    try_it={
        "--context 2": "Dense networks see two words, as a 3-gram model does: expect "
        "concatenated words to lose, and the recurrent networks, which see more, to "
        "stay.",
        "--vocabulary 300": "More words are unknown, which is easy to guess: every "
        "perplexity falls, and none can be compared with those of the larger "
        "vocabulary.",
        "--words 20000": "Less text: expect all networks to lose more than the n-gram "
        "model.",
    },
)  # fmt: skip

MAX_SHOWN = 8  # words that may follow
VOCABULARY = "vocabulary.json"  # in the run's folder


@dataclass(frozen=True)
class Config(Settings):
    """The text, the networks, and how they are trained."""

    text: Path | None = None
    """A text file of your own, in UTF-8, in place of Moby Dick."""
    vocabulary: Annotated[int, pydantic.Field(ge=2)] = 1_000
    """Words of the training text, the most frequent, with the one for all others."""
    words: Count | None = 80_000
    """Words to learn from, or little more: whole chapters. And a tenth of that to
    choose by, and to test on. None: all of them."""
    context: Count = 4
    """The last n words, which is all that dense networks see."""
    window: Count = 64
    """Words that a row of a batch predicts, one after the other."""
    embedding: Count = 32
    """Numbers that stand for a word."""
    units: Count = 64
    """Units of the one hidden layer."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.3
    """Share of these that is dropped in training."""
    epochs: Count = 3
    """Passes over the training text."""
    batch_size: Count = 4
    """Windows in a gradient step."""
    rate: Positive = 0.01
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    lstm_rate: Positive = 0.03
    """That of LSTMs. At each preset, both were the best of 0.003, 0.01 and 0.03 on
    validation, with other seeds: 0.003 was the lowest tried, 0.03 the highest."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    networks: tuple[Name, ...] = get_args(Name)
    """Which networks to train."""
    asked: Count = 2_000
    """Test words that the order test asks for, spread over the test set."""
    orders: Count = 5
    """Largest order of the n-gram model; the best is chosen on validation."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        vocabulary=200, words=3_000, embedding=8, units=16, epochs=2, asked=200, seeds=2
    ),
    "quick": Config(),
    "full": Config(
        words=None, vocabulary=4_000, context=8, embedding=64, units=128, epochs=5,
        batch_size=8, rate=0.003, lstm_rate=0.01, asked=100_000, seeds=6,
    ),
}  # fmt: skip


def build(name: Name, config: Config, vocabulary: int) -> Model:
    """One of the networks: logits [B, T, V] of the word after every n of x."""
    return next_word.next_word_model(
        NETWORKS[name][0], vocabulary, context=config.context,
        embedding=config.embedding, units=config.units, dropout=config.dropout,
    )  # fmt: skip


def train(
    name: Name, model: Model, sets: dict[str, Dataset], config: Config, run: Run
) -> dict[str, np.ndarray]:
    """Perplexities [seeds] of one network, by set, at its best epoch of validation."""
    objective, data = token_cross_entropy(model), sets[TRAIN]
    eval_step, held_out = make_eval_step(objective), [s for s in sets if s != TRAIN]
    size = config.batch_size * config.window // data.arrays["y"].shape[1]
    steps = config.epochs * steps_per_epoch(len(data.indices), size)
    rate = config.lstm_rate if NETWORKS[name][0] == "lstm" else config.rate
    clip = optax.clip_by_global_norm(config.clip)
    optimizer = optax.chain(clip, optax.adam(optax.cosine_decay_schedule(rate, steps)))
    fitted = train_seeds(
        model, with_shuffled_contexts(objective) if name == SHUFFLED else objective,
        optimizer, data, seed=config.seed, seeds=config.seeds, epochs=config.epochs,
        batch_size=size,
        evaluators={s: Evaluator(eval_step, sets[s], 512) for s in held_out},
        evaluate_first=False, log=run.sub_run(name.replace(" ", "_")),
    )  # fmt: skip
    nats = {
        s: np.array([r["loss"] for r in fitted.records if r["split"] == s])
        for s in held_out
    }
    at_best = statistics.at_best_epoch
    return {s: np.exp(at_best(-nats[VALIDATION], v)) for s, v in nats.items()}


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network and count n-grams, draw."""
    prose = read_prose(config.text)
    if config.words is not None:
        prose = first_words(prose, config.words)
    vocabulary = fit_vocabulary(itertools.chain(*prose.train), size=config.vocabulary)
    run.write_sealed(VOCABULARY, vocabulary)
    numbers = {
        split: [vocabulary.encode(p, allow_unknown=True) for p in passages]
        for split, passages in prose._asdict().items()
    }
    n, size = config.context, len(vocabulary)
    baseline = word_sets.ngram_baseline(numbers, size, range(1, config.orders + 1))
    sets = word_sets.word_sets(
        numbers, context=n, window=config.window, start=size, asked=config.asked
    )
    result: dict[str, Estimate | float] = {**baseline}
    perplexities = {}
    for name in run.each(config.networks):
        model = build(name, config, size)
        perplexities[name] = train(name, model, sets[NETWORKS[name][1]], config, run)
        for metric, values in perplexities[name].items():
            result[f"{name}: {metric}"] = mean_over_runs(values, NONNEGATIVE)
        result[f"{name}: parameters"] = float(parameter_count(model))
    if {BAG, SHUFFLED} <= perplexities.keys():
        ratio = perplexities[SHUFFLED][ORDERS[1]] / perplexities[BAG][ORDERS[0]]
        result[RATIO] = mean_over_runs(ratio, NONNEGATIVE)
    save_perplexities(run, result, config.networks, context=n, bag=BAG)
    ngram = {"n-gram model": float(np.log(baseline[f"n-gram: {VALIDATION}"]))}
    save_learning(run, config.networks, "loss", "loss [nats per word]", ngram)
    return result


def predict(saved: Saved[Config], text: str) -> None:
    """The most probable words after a TEXT, by the mean of each network's seeds."""
    config, prefix = saved.config, words(text)
    vocabulary = read_sealed(saved.folder, VOCABULARY, Vocabulary)
    if not prefix:
        raise UserError("--predict takes a word at least, or a mark")
    start = [len(vocabulary)] * config.context
    x = jnp.array([[*start, *vocabulary.encode(prefix)]])
    asked: list[Name] = [n for n in config.networks if NETWORKS[n][1] == "windows"]
    for name in asked:
        model = build(name, config, len(vocabulary))
        weights = saved.replica_weights(model, config.seeds, name.replace(" ", "_"))
        p = next_word.next_word_probabilities(model, weights["params"], x)
        best = np.argsort(-p)[:MAX_SHOWN].tolist()
        symbols = zip(best, vocabulary.decode(best), strict=True)
        shown = ", ".join(f"{symbol} {p[i]:.3f}" for i, symbol in symbols)
        print(f"{name}: {shown.replace(UNKNOWN, '(unknown)')}")


def predictor(saved: Saved[Config]) -> Predictor:
    """Probabilities [B, T, V] of the word after every n of x [B, n - 1 + T]: LSTM."""
    vocabulary = read_sealed(saved.folder, VOCABULARY, Vocabulary)
    model = build(LSTM, config := saved.config, len(vocabulary))
    length = (config.context - 1 + config.window,)
    return seeds_predictor(saved, LSTM, model, length, jnp.int32)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
