"""Lesson 3.1.1: from a vector to a sequence, the name of a handwritten digit.

A dense layer makes the first state of an LSTM out of the 64 pixels of a digit, and the
LSTM spells its name, letter by letter: image captioning at its smallest. A name is
right or wrong as a whole. The test digits were written by other people.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from jaxstudy.data.splits import random_split
from jaxstudy.dataset import Dataset, dataset, subset
from jaxstudy.model import Model
from jaxstudy.models.mlp import mlp
from jaxstudy.models.recurrent import CELLS, Kind, States, language_model
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import SHARE, Estimate, mean_over_runs
from jaxstudy.tabular.sets import read_digits
from jaxstudy.text.decoding import DecodeStep, language_model_step, sample
from jaxstudy.text.pair_training import train_on_pairs
from jaxstudy.text.pairs import END, padded, text_before_end
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.types import Array, Key, PyTree

LESSON = Lesson(
    number="3.1.1",
    title="From a vector to a sequence",
    question="How does a network turn a vector into a sequence?",
    metrics=(
        "network: exact match",
        "most frequent name: exact match",
        "logistic regression: exact match",
        "network: written words that are names",
    ),
    claims=(
        Claim(
            "More names are exactly right than if it always wrote the most frequent.",
            ("network: exact match", "most frequent name: exact match"),
            ">",
        ),
        Claim(
            "On these test digits, exact match differs by less than 0.03 from the "
            "accuracy of a logistic regression on the same pixels.",
            ("network: exact match", "logistic regression: exact match"),
            "within",
            0.03,
        ),
        Claim(
            "More than 0.99 of the words that the network writes are names of digits.",
            ("network: written words that are names", 0.99),
            ">",
        ),
    ),
    figures={
        "spelling": (
            "Test images with the word that the first seed's network writes. Upper "
            "row: the first of the test set. Lower row, if there are any: wrong words, "
            "with the right name below. A wrong word that is another digit's name is "
            "an error of reading; a word that is no name is one of spelling."
        ),
        "curves": (
            "Share of names exactly right, by epoch: the median of the seeds, and the "
            "band that holds 80 % of them. The gap between the curves is what is "
            "learned of the training images alone."
        ),
    },
    try_it={
        "--units 8": (
            "Eight units hold which digit it is and how far its name is written: "
            "expect more words that are no names."
        ),
        "--epochs 3": (
            "A tenth of the training: expect fewer exact names, and a wide band, "
            "since one wrong letter spoils a name."
        ),
        "--rate 0.1": ("A rate thirty times as high: expect a lower exact match."),
    },
)

NAMES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
MAX_SHOWN = 8  # images in a row of the figure


@dataclass(frozen=True)
class Config(Settings):
    """The network, and how long it is trained."""

    units: Count = 64
    """Units of the LSTM."""
    epochs: Count = 30
    """Passes over the digits."""
    rate: Positive = 0.003
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of the network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(units=8, epochs=2),
    "quick": Config(),
    "full": Config(seeds=6),
}


def named_digits() -> tuple[tuple[Dataset, Dataset, Dataset], Vocabulary]:
    """Training, validation and test set: digits x [N, 64] and letters y [N, T].

    Each name ends with END. The test set is the second half, written by other people.
    """
    digits, letters = read_digits(), fit_vocabulary(END + "".join(NAMES))
    names = [letters.encode(name + END) for name in NAMES]
    y, y_length = padded(names, max(map(len, names)), int(letters.encode(END)[0]))
    data = dataset({
        "x": digits["x"],
        "x_length": np.full(len(digits["x"]), digits["x"].shape[1], np.int32),
        "y": y[digits["y"]],
        "y_length": y_length[digits["y"]],
    })  # fmt: skip
    count = len(digits["x"])
    train, validation = random_split(count // 2, (0.8, 0.2), seed=0)
    test = np.arange(count // 2, count)
    return (subset(data, train), subset(data, validation), subset(data, test)), letters


class Speller(NamedTuple):
    """A network from x [B, D] to letters.

    `model.apply` takes x, its length, which is not used, and the letters [B, T] before
    each of those it gives the logits [B, T, V] of; `first` makes the first states.
    """

    model: Model
    first: Callable[[PyTree, Array], tuple[States, ...]]
    step: Callable[[PyTree], DecodeStep]


def speller(pixels: int, letters: int, units: int, kind: Kind = "lstm") -> Speller:
    """First states tanh(W x + b), and a recurrent layer that begins with them."""
    count = CELLS[kind].states
    reader = mlp(pixels, (), count * units)
    writer = language_model(letters, kind, (units,))

    def init(key: Key) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key)
        return {
            "reader": reader.init(keys[0])[0],
            "writer": writer.init(keys[1])[0],
        }, {}

    def first(params: PyTree, x: Array) -> tuple[States, ...]:
        z, _ = reader.apply(params["reader"], {}, x, train=False, key=None)
        return (tuple(jnp.split(jnp.tanh(z), count, axis=-1)),)

    def apply(
        params: PyTree, extra: PyTree, x: Array, length: Array, before: Array,
        *, train: bool, key: Key | None,
    ) -> tuple[Array, PyTree]:  # fmt: skip
        del length, train, key
        begin = {"states": first(params, x)}
        logits, _ = writer.apply(params["writer"], begin, before, train=False, key=None)
        return logits, extra

    def step(params: PyTree) -> DecodeStep:
        return language_model_step(writer, params["writer"])

    return Speller(Model(init, apply), first, step)


def spell(
    network: Speller, params: PyTree, x: Array, letters: Vocabulary, length: int
) -> np.ndarray:
    """Words [seeds, B] for x [B, D]: each letter the most probable after the earlier.

    params [seeds, ...].
    """
    end = int(letters.encode(END)[0])

    def write(params: PyTree) -> Array:
        return sample(
            network.step(params), network.first(params, x), jnp.full((len(x), 1), end),
            jax.random.key(0), length=length, temperature=0, end=end,
        )  # fmt: skip

    written = np.asarray(jax.jit(lambda params: jax.lax.map(write, params))(params))
    return np.array([[text_before_end(y, letters) for y in rows] for rows in written])


def draw(run: Run, x: np.ndarray, spelled: list[str], names: list[str]) -> None:
    """Test images with their spelled names: the first ones, and some wrong ones."""
    wrong = [i for i in range(len(x)) if spelled[i] != names[i]]
    rows = [row for row in (range(MAX_SHOWN), wrong[:MAX_SHOWN]) if row]
    plots.save_images(
        run,
        "spelling",
        [[x[i].reshape(8, 8) for i in row] for row in rows],
        [
            [f"{spelled[i]}\n{names[i] if spelled[i] != names[i] else ''}" for i in row]
            for row in rows
        ],
        ["test images", "wrong (right\nname below)"],
    )


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the network with every seed, each a replica, and spell the test digits."""
    (train, validation, test), letters = named_digits()
    x, y = (np.asarray(test.arrays[name])[np.asarray(test.indices)] for name in "xy")
    names = np.array([text_before_end(row, letters) for row in y])
    network = speller(x.shape[1], len(letters), config.units)
    state, _ = train_on_pairs(
        network.model, int(letters.encode(END)[0]), train, validation,
        rate=config.rate, epochs=config.epochs, seed=config.seed, seeds=config.seeds,
        log=run.sub_run("spelling"),
    )  # fmt: skip
    spelled = spell(network, state.params, jnp.asarray(x), letters, y.shape[1])
    draw(run, x, spelled[0].tolist(), names.tolist())
    label = "exact match [share of names]"
    plots.save_curves(run, ["spelling"], "exact match", label)
    (_, most_frequent), *_ = Counter(names.tolist()).most_common(1)
    pixels, digits = (read_digits()[name] for name in "xy")
    rows = np.asarray(train.indices)
    from sklearn.linear_model import LogisticRegression  # a second, for --help too

    regression = LogisticRegression(max_iter=1000).fit(pixels[rows], digits[rows])
    predicted = np.array(NAMES)[regression.predict(x)]
    return {
        "network: exact match": mean_over_runs((spelled == names).mean(1), SHARE),
        "network: written words that are names": mean_over_runs(
            np.isin(spelled, NAMES).mean(1), SHARE
        ),
        "most frequent name: exact match": most_frequent / len(names),
        "logistic regression: exact match": float(np.mean(predicted == names)),
    }


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
