"""Lesson 3.1.1: from a vector to a sequence, the name of a handwritten digit.

A dense layer makes the first state of an LSTM out of the 64 pixels of a digit, and the
LSTM spells its name, letter by letter: image captioning at its smallest. A name is
right or wrong as a whole. The test digits were written by other people.

Expected (quick, half a minute, and full, six seeds): 0.92 of the names exactly right.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.data.splits import random_split
from jaxstudy.dataset import Dataset, dataset, steps_per_epoch, subset
from jaxstudy.model import Model
from jaxstudy.models.mlp import mlp
from jaxstudy.models.recurrent import CELLS, Kind, States, language_model
from jaxstudy.objectives import sequence_cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import SHARE, Estimate, mean_over_runs
from jaxstudy.tabular.sets import read_digits
from jaxstudy.text.decoding import DecodeStep, language_model_step, sample
from jaxstudy.text.pairs import END, padded, text_before_end
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.training import Evaluator, make_eval_step, train_seeds
from jaxstudy.types import Array, Key, PyTree

LESSON = Lesson(
    number="3.1.1",
    title="From a vector to a sequence",
    question="How does a network turn a vector into a sequence?",
    metrics=(
        "spelling: exact match",
        "spelling, always one name: exact match",
    ),
    claims=(),
    figures={},
)

NAMES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
BATCH = 32  # digits in a gradient step
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
) -> list[str]:
    """The names of x [B, D]: always the most probable letter after those before."""
    end = int(letters.encode(END)[0])

    @jax.jit
    def write(params: PyTree, x: Array) -> Array:
        return sample(
            network.step(params), network.first(params, x), jnp.full((len(x), 1), end),
            jax.random.key(0), length=length, temperature=0, end=end,
        )  # fmt: skip

    return [text_before_end(row, letters) for row in np.asarray(write(params, x))]


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
        ["test images", "wrong, and\nthe right name"],
    )


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the network with every seed, each a replica, and spell the test digits."""
    (train, validation, test), letters = named_digits()
    x, y = (np.asarray(test.arrays[name])[np.asarray(test.indices)] for name in "xy")
    network = speller(x.shape[1], len(letters), config.units)
    objective = sequence_cross_entropy(network.model, int(letters.encode(END)[0]))
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
        log=run.sub_run("spelling"),
    ).state
    exact = Evaluator(eval_step, test)(state)["exact match"]

    first_seed = jax.tree.map(lambda a: a[0], state.params)
    spelled = spell(network, first_seed, jnp.asarray(x), letters, y.shape[1])
    names = [text_before_end(row, letters) for row in y]
    draw(run, x, spelled, names)
    plots.save_curves(run, ["spelling"], "exact match", "exact match")
    (_, most_frequent), *_ = Counter(names).most_common(1)
    return {
        "spelling: exact match": mean_over_runs(np.array(exact), SHARE),
        "spelling, always one name: exact match": most_frequent / len(names),
    }


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
