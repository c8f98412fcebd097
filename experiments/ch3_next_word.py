"""Lesson 3.1: which word comes next, for networks that see their order and that do not.

Words become numbers, and every number a vector that is learned. A dense layer on the
sum of the last n vectors cannot know their order: a bag of words. Side by side the
vectors keep it, but each place has weights of its own. A recurrent layer reads one word
after the other with the same weights, tanh(part of the word + part of what it was
before), and its memory has no last n; an LSTM's lasts longer.

Every network predicts the same words of Moby Dick, split by chapter. Held fixed: the
vocabulary, the size of the vectors, the units of the one hidden layer, the dropout on
it, the softmax, batches and epochs. Varied: the parameters of the hidden layer,
the LSTM's rate, and that recurrent networks see more than n words where a window has
them. All words but the most frequent count as one, "unknown", which is predicted like
any other, by the n-gram model too: perplexities of every word would be higher.

The order test asks the trained networks about the same n words as they are and in a
random order. To the bag this makes no difference, to the last bit.

Expected (quick, 50,000 words, one to two minutes): test perplexities of about 185 for
the LSTM, 200 for words in order, 235 for the simple network, 250 for the bag, and 158
for the n-gram model, which is best where there is little text. Shuffled, the words cost
the LSTM a factor of two, and the bag nothing.
Expected (full, the whole novel, a quarter of an hour, six seeds): 105 for the LSTM, 114
for the simple network, 121 for words in order, 203 for the bag, 120 for the n-gram
model; shuffled, the words cost all but the bag a factor of five.
Then: ch3_next_word.py --predict "call me"
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import Dataset, dataset, evenly_spaced, steps_per_epoch
from jaxstudy.model import Model, parameter_count
from jaxstudy.models.mlp import mlp
from jaxstudy.models.recurrent import Kind, Recurrent, small_uniform
from jaxstudy.objectives import masked_mean, mean_value
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.run import Run, Saved, read_sealed
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    Estimate,
    at_best_epoch,
    mean_over_runs,
)
from jaxstudy.text.ngram import bits, fit_ngram
from jaxstudy.text.prose import Passages, read_prose
from jaxstudy.text.vocabulary import UNKNOWN, Vocabulary, fit_vocabulary, words
from jaxstudy.training import (
    Evaluator,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Batch, Key, Metrics, Objective, PyTree, UserError

Name = Literal["bag of words", "words in order", "simple RNN", "LSTM"]
KINDS: dict[Name, Kind] = {"simple RNN": "simple", "LSTM": "lstm"}
ORDERS = ("perplexity, last words in order", "perplexity, last words shuffled")
HELD_OUT = ("validation", "test")
SHOWN = 8  # words that may follow
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
    other seeds."""
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


class Ngram(NamedTuple):
    """An n-gram model's order, and its perplexities."""

    order: int
    validation: float
    test: float


class Reader(NamedTuple):
    """The part that differs: from a table of vectors [V + 1, E] and words to h.

    apply(params, table, x [B, n - 1 + T]) -> h [B, T, U] after every n words of x.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, Array, Array], Array]


def dense(config: Config, *, bag: bool) -> Reader:
    """h = tanh(W e + b), with e the sum of the last n words' vectors, or all of them.

    A bag adds them up in the order of their numbers: what floats add up to depends on
    the order, if only in the last bits.
    """
    n, width = config.context, config.embedding
    layer = mlp(width if bag else n * width, (), config.units)

    def apply(params: PyTree, table: Array, x: Array) -> Array:
        contexts = x[:, jnp.arange(x.shape[1] - n + 1)[:, None] + jnp.arange(n)]
        shape = contexts.shape[:2]
        e = table[jnp.sort(contexts, -1) if bag else contexts]  # [B, T, n, E]
        e = e.sum(2).reshape(-1, width) if bag else e.reshape(-1, n * width)
        z, _ = layer.apply(params, {}, e, train=False, key=None)
        return jnp.tanh(z).reshape(*shape, -1)

    return Reader(lambda key: layer.init(key)[0], apply)


def recurrent(config: Config, kind: Kind) -> Reader:
    """h of a recurrent layer, which saw n words or more where it is asked first."""
    layer = Recurrent(kind, (config.units,))
    example = jnp.zeros((1, 1, config.embedding))

    def apply(params: PyTree, table: Array, x: Array) -> Array:
        h, _ = cast(Any, layer.apply({"params": params}, table[x]))
        return h[:, config.context - 1 :]

    return Reader(lambda key: layer.init(key, example)["params"], apply)


def build(name: Name, config: Config, vocabulary: int) -> Model:
    """One of the networks: logits [B, T, V] of the word after every n of x.

    Words x [B, n - 1 + T] are numbers below V, or V before a text begins.
    """
    if name in KINDS:
        reader = recurrent(config, KINDS[name])
    else:
        reader = dense(config, bag=name == "bag of words")
    output = mlp(config.units, (), vocabulary)

    def init(key: Key) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key, 3)
        table = small_uniform(keys[0], (vocabulary + 1, config.embedding))
        weights = reader.init(keys[1]), output.init(keys[2])[0]
        return dict(
            zip(("table", "reader", "output"), (table, *weights), strict=True)
        ), {}

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        h = reader.apply(params["reader"], params["table"], x)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - config.dropout, h.shape)
            h = jnp.where(kept, h / (1 - config.dropout), 0)
        # a product of two matrices takes a CPU two thirds of the time of [B, T, U]'s
        flat = h.reshape(-1, config.units)
        logits, _ = output.apply(params["output"], {}, flat, train=train, key=None)
        return logits.reshape(*h.shape[:2], vocabulary), extra

    return Model(init, apply)


def windows(passages: Sequence[np.ndarray], config: Config, start: int) -> Dataset:
    """Passages as x [N, n - 1 + T] and y [N, T], the words after every n of x.

    `real` [N, T] is false where a passage had ended; before each stand n starts.
    """
    n, length = config.context, config.window
    rows: dict[str, list[np.ndarray]] = {"x": [], "y": [], "real": []}
    for passage in passages:
        count = -(-len(passage) // length)
        left = count * length - len(passage)
        padded = np.pad(passage, (n, left), constant_values=start)
        at = length * np.arange(count)[:, None]
        rows["x"].append(padded[at + np.arange(n - 1 + length)])
        y = padded[n:].reshape(count, length)
        rows["real"].append(np.arange(count * length).reshape(y.shape) < len(passage))
        rows["y"].append(np.where(rows["real"][-1], y, 0))
    return dataset({name: np.concatenate(parts) for name, parts in rows.items()})


def order_test(passages: Sequence[np.ndarray], config: Config) -> dict[str, Dataset]:
    """Words that have n before them, with those in order and shuffled, as `windows`."""
    n = config.context
    whole = [np.lib.stride_tricks.sliding_window_view(p, n + 1) for p in passages
             if len(p) > n]  # fmt: skip
    if not whole:
        raise UserError(f"--context {n}: no passage of the test set has more words")
    rows = np.concatenate(whole)
    x, y = rows[:, :n], rows[:, n:]
    shuffled = np.random.default_rng(0).permuted(x, axis=1)
    real = np.ones(y.shape, bool)
    return {
        order: evenly_spaced(dataset({"x": words, "y": y, "real": real}), config.asked)
        for order, words in zip(ORDERS, (x, shuffled), strict=True)
    }


def next_word(model: Model) -> Objective:
    """-log softmax(logits)[y] of every real word. Metrics: loss in nats per word."""

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        logits, extra = model.apply(
            params, extra, batch["x"], train=key is not None, key=key
        )
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        loss = masked_mean(nats, batch["real"] * batch["mask"][:, None])
        return mean_value(loss), (extra, {"loss": loss})

    return objective


def train(
    name: Name, model: Model, sets: dict[str, Dataset], config: Config, run: Run
) -> dict[str, np.ndarray]:
    """Train one network with every seed; its perplexities [seeds].

    Those of the validation and the test set are of the epoch that validation chooses,
    those of the order test of the end.
    """
    objective, data = next_word(model), sets["train"]
    steps = config.epochs * steps_per_epoch(len(data.indices), config.batch_size)
    rate = config.lstm_rate if name == "LSTM" else config.rate
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    eval_step = make_eval_step(objective)
    fitted = fit(
        init_replicas(model, optimizer, keys[:, 0]),
        make_train_step(objective, optimizer),
        data,
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={
            name: Evaluator(eval_step, rows, config.batch_size)
            for name, rows in ({split: sets[split] for split in HELD_OUT}).items()
        },
        evaluate_first=False,
        log=run.sub_run(name.replace(" ", "_")),
    )
    nats = {
        split: np.array([r["loss"] for r in fitted.records if r["split"] == split])
        for split in HELD_OUT
    }
    found = {
        f"{split} perplexity": at_best_epoch(-nats["validation"], nats[split])
        for split in HELD_OUT
    }
    rows = config.batch_size * config.window  # one word each
    for order in ORDERS:
        loss = Evaluator(eval_step, sets[order], rows)(fitted.state)["loss"]
        found[order] = np.array(loss)
    return {metric: np.exp(values) for metric, values in found.items()}


def best_ngram(sets: dict[str, list[np.ndarray]], size: int, most: int) -> Ngram:
    """The order, to the `most`, with the lowest perplexity on validation."""
    found = []
    for order in range(1, most + 1):
        ngram = fit_ngram(sets["train"], size, order)
        of = {split: float(2 ** bits(ngram, sets[split]).mean()) for split in HELD_OUT}
        found.append(Ngram(order, **of))
    return min(found, key=lambda ngram: ngram.validation)


def draw(
    run: Run,
    result: Mapping[str, Estimate | float],
    config: Config,
    ngram: Ngram,
) -> None:
    """Test perplexities beside the n-gram model's, and those of the order test."""
    names = config.networks
    figure, axes = plots.subplots(
        1, 2, figsize=(11, 0.9 + 0.55 * len(names)), sharey=True
    )
    for axis, metrics in zip(axes, (("test perplexity",), ORDERS), strict=True):
        for metric, colour in zip(metrics, plots.COLOURS, strict=False):
            for y, name in enumerate(names):
                found = result[f"{name}: {metric}"]
                assert isinstance(found, Estimate)
                label = metric if y == 0 else None
                plots.draw_estimate(axis, found, y, colour, label)
        axis.set(yticks=range(len(names)), yticklabels=names)
        axis.margins(y=0.2)
        axis.grid(alpha=0.3)
    axes[0].axvline(
        ngram.test, color="0.3", linestyle="--", label=f"{ngram.order}-gram model"
    )
    axes[0].set_xlabel("perplexity")
    axes[0].invert_yaxis()
    axes[1].set_xlabel(f"perplexity from {config.context} words alone")
    for axis in axes:
        axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    plots.save(figure, run, "perplexity")


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train every network and count n-grams, shuffle the words, draw."""
    prose = read_prose(config.text)._asdict()
    if config.words is not None:
        prose = {
            split: first_passages(
                passages, config.words / (10 if split in HELD_OUT else 1)
            )
            for split, passages in prose.items()
        }
    vocabulary = fit_vocabulary(
        itertools.chain(*prose["train"]), size=config.vocabulary
    )
    run.write_sealed(VOCABULARY, vocabulary)
    numbers = {
        split: [vocabulary.encode(p, allow_unknown=True) for p in passages]
        for split, passages in prose.items()
    }
    size = len(vocabulary)
    result: dict[str, Estimate | float] = {}
    for split, passages in numbers.items():
        every = np.concatenate(passages)
        result[f"{split}: words"] = float(len(every))
        result[f"{split}: share of unknown words"] = float(np.mean(every == 0))
    ngram = best_ngram(numbers, size, config.orders)
    result["n-gram: order"] = float(ngram.order)
    result |= {f"n-gram: {s} perplexity": getattr(ngram, s) for s in HELD_OUT}
    sets = {split: windows(p, config, size) for split, p in numbers.items()}
    sets |= order_test(numbers["test"], config)
    for name in config.networks:
        model = build(name, config, size)
        found = train(name, model, sets, config, run)
        for metric, values in found.items():
            result[f"{name}: {metric}"] = mean_over_runs(values, NONNEGATIVE)
        result[f"{name}: parameters"] = float(parameter_count(model))
    plots.save_curves(run, config.networks, "loss", "loss [nats per word]")
    draw(run, result, config, ngram)
    return result


def first_passages(passages: Passages, most: float) -> Passages:
    """The passages that the first `most` words reach into, whole."""
    before = np.cumsum([0, *map(len, passages[:-1])])
    return passages[: int(np.sum(before < most))]


def following(name: Name, saved: Saved[Config], size: int, x: Array) -> np.ndarray:
    """Probabilities [V] of the word after x [1, n - 1 + T]: the mean of all seeds."""
    config = saved.config
    model = build(name, config, size)
    weights = saved.replica_weights(model, config.seeds, name.replace(" ", "_"))

    def one(params: PyTree, extra: PyTree) -> Array:
        logits, _ = model.apply(params, extra, x, train=False, key=None)
        return jax.nn.softmax(logits[0, -1])

    return np.asarray(jax.vmap(one)(weights["params"], weights["extra"])).mean(0)


def predict(saved: Saved[Config], text: str) -> None:
    """The most probable words after a TEXT, and their probabilities, from a saved run.

    Each network's are the means of its trainings.
    """
    vocabulary = read_sealed(saved.folder, VOCABULARY, Vocabulary)
    prefix = words(text)
    if not prefix:
        raise UserError("--predict takes a word at least, or a mark")
    start = [len(vocabulary)] * saved.config.context
    x = jnp.array([[*start, *vocabulary.encode(prefix)]])
    for name in saved.config.networks:
        p = following(name, saved, len(vocabulary), x)
        best = np.argsort(-p)[:SHOWN].tolist()
        shown = [
            f"{'(unknown)' if word == UNKNOWN else word} {p[i]:.3f}"
            for i, word in zip(best, vocabulary.decode(best), strict=True)
        ]
        print(f"{name}: {', '.join(shown)}")


if __name__ == "__main__":
    experiment(main, PRESETS, predict=predict)
