"""Lesson 3.1.1: three shapes of recurrent networks, each on an example one can check.

Vector -> sequence: a dense layer makes the first state of an LSTM out of the 64 pixels
of a handwritten digit, and the LSTM spells its name, letter by letter: what describes
pictures in words, at its smallest. A name is right or wrong as a whole.

Sequence -> vector: from the yearly sunspots of eleven years, a cycle, those of the
next. Time has one direction: the networks learn from the years to 1900, the years to
1950 choose the epoch, and those after are forecast, beside saying that next year will
be as this one was (persistence), and beside a linear regression on the same years.

Sequence -> sequence: an encoder reads "321+654" and a decoder writes "975". Both are
written least significant digit first (123 + 456 = 579), as one adds by hand, so that a
digit depends on what has been written already by a carry at most. No sum of the test
set was learned, in this order or the other.

Expected (quick, a minute): 0.92 of the names exactly right; forecasts with an
RMSE of 19 to 23 sunspots, of 33 by persistence, and of 19 by the regression, hard to
beat with 190 years to learn from; 0.998 of the sums of two digits right.
Expected (full, four minutes, six seeds): 0.92 of the names again; 19 by the GRU, 21 by
the LSTM, 22 by the simple network; 0.95 of the sums of three digits, which most seeds
learn to 0.99 in a few epochs, and others begin to later.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.data.sources import SUNSPOTS, read_bytes
from jaxstudy.data.splits import random_split
from jaxstudy.dataset import Dataset, dataset, steps_per_epoch, subset
from jaxstudy.model import Model
from jaxstudy.models.mlp import mlp
from jaxstudy.models.recurrent import (
    CELLS,
    Kind,
    States,
    language_model,
    sequence_to_vector,
)
from jaxstudy.models.seq2seq import seq2seq
from jaxstudy.objectives import sequence_cross_entropy, squared_error
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.run import Run, SubRun
from jaxstudy.runs.statistics import NONNEGATIVE, SHARE, Estimate, mean_over_runs
from jaxstudy.tabular.sets import read_digits
from jaxstudy.text.decoding import Step, sample
from jaxstudy.text.pairs import END, Pair, encode_pairs
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.training import (
    EvalStep,
    Evaluator,
    FitResult,
    TrainState,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Key, Objective, PyTree, UserError

NAMES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
SPELLING, FORECAST, ADDITION = "spelling", "sunspots", "addition"
KNOWN, CHOSEN = 1900, 1950  # the last years to learn from and to choose by
BATCH = 32  # digits, years or sums in a gradient step


@dataclass(frozen=True)
class Config(Settings):
    """The three networks, and how long each is trained."""

    kinds: tuple[Kind, ...] = get_args(Kind)
    """Recurrent networks that forecast sunspots."""
    years: Count = 11
    """Years that a forecast is made from."""
    forecast_units: Count = 32
    """Units of these networks."""
    forecast_epochs: Count = 100
    """Passes over the years to 1900, at most: the later ones choose how many."""
    spelling_units: Count = 64
    """Units of the LSTM that spells."""
    spelling_epochs: Count = 30
    """Passes over the digits."""
    digits: Annotated[int, pydantic.Field(ge=1, le=3)] = 2
    """Digits of the numbers that are added, at most."""
    sums: Annotated[int, pydantic.Field(ge=20)] = 5_000
    """Different sums, a tenth of them to choose by and a tenth to test on."""
    adding_units: Count = 64
    """Units of the encoder, in each direction, and of the decoder."""
    adding_epochs: Count = 15
    """Passes over the sums."""
    adding_rate: Positive = 0.01
    """Learning rate of Adam where sums are learned; it falls to 0 along a cosine."""
    rate: Positive = 0.003
    """That of the others; it stays where sunspots are, and falls for names."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each network; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        forecast_units=4,
        forecast_epochs=3,
        spelling_units=8,
        spelling_epochs=2,
        sums=100,
        adding_units=8,
        adding_epochs=2,
    ),
    "quick": Config(),
    "full": Config(digits=3, sums=30_000, adding_units=128, adding_epochs=8, seeds=6),
}


class Sets(NamedTuple):
    """To learn from, to choose by, to test on."""

    train: Dataset
    validation: Dataset
    test: Dataset


def train(
    name: str,
    model: Model,
    objective: Objective,
    sets: Sets,
    epochs: int,
    rate: float,
    config: Config,
    run: Run,
) -> tuple[TrainState, EvalStep]:
    """Train a network with every seed, each a replica, the rate falling to 0."""
    steps = epochs * steps_per_epoch(len(sets.train.indices), BATCH)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    eval_step = make_eval_step(objective)
    fitted = fit(
        init_replicas(model, optimizer, keys[:, 0]),
        make_train_step(objective, optimizer),
        sets.train,
        key=keys[:, 1],
        epochs=epochs,
        batch_size=BATCH,
        evaluators={"validation": Evaluator(eval_step, sets.validation, 500)},
        evaluate_first=False,
        log=run.sub_run(name),
    )
    return fitted.state, eval_step


def named_digits() -> tuple[Sets, Vocabulary]:
    """Digits x [N, 64], and the letters y [N, T] of their names, each ended by END.

    The test set is the second half, of other hands.
    """
    digits, letters = read_digits(), fit_vocabulary(END + "".join(NAMES))
    names = [letters.encode(name + END) for name in NAMES]
    lengths = np.array([len(name) for name in names], np.int32)
    padded = np.full((10, lengths.max()), names[0][-1], np.int32)
    for row, name in zip(padded, names, strict=True):
        row[: len(name)] = name
    y = digits["y"]
    data = dataset({
        "x": digits["x"],
        "x_length": np.full(len(y), digits["x"].shape[1], np.int32),
        "y": padded[y],
        "y_length": lengths[y],
    })  # fmt: skip
    half = len(y) // 2
    learned, chosen = random_split(half, (0.8, 0.2), seed=0)
    parts = learned, chosen, np.arange(half, len(y))
    return Sets(*(subset(data, rows) for rows in parts)), letters


class Speller(NamedTuple):
    """A network from x [B, D] to letters.

    `model.apply` takes x, its length, which is not used, and the letters [B, T] before
    each of those it gives the logits [B, T, V] of; `first` makes the first states.
    """

    model: Model
    first: Callable[[PyTree, Array], tuple[States, ...]]
    step: Callable[[PyTree], Step]


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

    def write(params: PyTree, states: Any, tokens: Array) -> tuple[Array, Any]:
        logits, after = writer.apply(
            params["writer"], {"states": states}, tokens, train=False, key=None
        )
        return logits, after["states"]

    def apply(
        params: PyTree, extra: PyTree, x: Array, length: Array, before: Array,
        *, train: bool, key: Key | None,
    ) -> tuple[Array, PyTree]:  # fmt: skip
        del length, train, key
        return write(params, first(params, x), before)[0], extra

    def step(params: PyTree) -> Step:
        def one(states: PyTree, token: Array) -> tuple[PyTree, Array]:
            logits, after = write(params, states, token[:, None])
            return after, logits[:, 0]

        return one

    return Speller(Model(init, apply), first, step)


def spelled(
    network: Speller, params: PyTree, x: Array, letters: Vocabulary, length: int
) -> list[str]:
    """The most probable letter after each of those before, of every row of x [B, D]."""
    (end,) = letters.encode(END)

    def write(params: PyTree, x: Array) -> Array:
        begin = jnp.full((len(x), 1), int(end))
        return sample(
            network.step(params), network.first(params, x), begin, jax.random.key(0),
            length=length, temperature=0, end=int(end),
        )  # fmt: skip

    tokens = np.asarray(jax.jit(write)(params, x))
    return ["".join(letters.decode(row)).partition(END)[0] for row in tokens.tolist()]


def spell(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Vector -> sequence: names of digits, exactly right or not."""
    sets, letters = named_digits()
    arrays = {name: np.asarray(a) for name, a in sets.test.arrays.items()}
    network = speller(arrays["x"].shape[1], len(letters), config.spelling_units)
    (end,) = letters.encode(END)
    objective = sequence_cross_entropy(network.model, int(end))
    epochs, rate = config.spelling_epochs, config.rate
    state, eval_step = train(
        SPELLING, network.model, objective, sets, epochs, rate, config, run
    )
    found = Evaluator(eval_step, sets.test)(state)["exact match"]

    params = jax.tree.map(lambda a: a[0], state.params)
    rows, length = np.asarray(sets.test.indices), arrays["y"].shape[1]
    x = arrays["x"][rows]
    names = spelled(network, params, jnp.asarray(x), letters, length)
    right = ["".join(letters.decode(y)).partition(END)[0] for y in arrays["y"][rows]]
    wrong = [i for i in range(len(rows)) if names[i] != right[i]]
    shown = [list(range(8)), wrong[:8]]
    plots.save_images(
        run,
        "spelling",
        [[x[i].reshape(8, 8) for i in row] for row in shown if row],
        [[f"{names[i]}\n{'' if names[i] == right[i] else right[i]}" for i in row]
         for row in shown if row],
        ["test images", "wrong, and\nthe right name"],
    )  # fmt: skip
    return {
        f"{SPELLING}: exact match": mean_over_runs(np.array(found), SHARE),
        f"{SPELLING}, always one name: exact match": max(Counter(right).values())
        / len(right),
    }


class Forecasts(NamedTuple):
    """Years to forecast, and what lies `years` and one year before.

    x [N, years, 1] and y [N] standardised by the years to learn from, as `scale` says;
    year [N].
    """

    x: np.ndarray
    y: np.ndarray
    year: np.ndarray
    mean: float
    scale: float

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Years to learn from, to choose by, to test on: in the order of time."""
        parts = np.searchsorted(self.year, (KNOWN, CHOSEN), side="right")
        learned, chosen, tested = np.split(np.arange(len(self.year)), parts)
        return learned, chosen, tested

    def spots(self, z: np.ndarray) -> np.ndarray:
        """Sunspots, from standardised ones."""
        return self.mean + self.scale * z

    def error(self, forecast: np.ndarray, rows: np.ndarray) -> float:
        """Root of the mean squared error of some years' forecasts, in sunspots."""
        return float(self.scale * np.sqrt(np.mean((forecast - self.y[rows]) ** 2)))


def read_sunspots(years: int) -> Forecasts:
    """Every year that has so many before it.

    Raises MissingData where the file is not there as it should be, UserError where
    there are too few years to learn from.
    """
    lines = read_bytes(SUNSPOTS).decode().splitlines()[1:]
    year, spots = np.array([line.split(",") for line in lines], float).T
    known = spots[year <= KNOWN]
    if len(known) < 2 * years:
        raise UserError(f"--years {years}: there are only {len(known)} to learn from")
    mean, scale = known.mean(), known.std()
    z = ((spots - mean) / scale).astype(np.float32)
    seen = np.lib.stride_tricks.sliding_window_view(z, years + 1)
    return Forecasts(seen[:, :-1, None], seen[:, -1], year[years:], mean, scale)


def regression(data: Forecasts, rows: np.ndarray) -> np.ndarray:
    """Forecasts of the linear regression on the years before, by least squares."""
    columns = np.column_stack([data.x[..., 0], np.ones(len(data.y))]).astype(float)
    learned, _, _ = data.rows()
    weights, *_ = np.linalg.lstsq(columns[learned], data.y[learned], rcond=None)
    return columns[rows] @ weights


def forecast(kind: Kind, data: Forecasts, config: Config, run: Run) -> np.ndarray:
    """Forecasts [seeds, N] of every year by one kind of network.

    It is trained twice, from the same weights and on the same batches: once to the end,
    then for as many epochs as had the lowest mean error on the years to choose by.
    """
    model = sequence_to_vector(1, kind, (config.forecast_units,), 1)
    objective, optimizer = squared_error(model), optax.adam(config.rate)
    whole = dataset({"x": data.x, "y": data.y})
    learned, chosen, _ = (subset(whole, rows) for rows in data.rows())
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    train_step = make_train_step(objective, optimizer)
    eval_step = make_eval_step(objective)

    def trained(epochs: int, sub_run: SubRun | None) -> FitResult:
        return fit(
            init_replicas(model, optimizer, keys[:, 0]),
            train_step,
            learned,
            key=keys[:, 1],
            epochs=epochs,
            batch_size=BATCH,
            evaluators={"validation": Evaluator(eval_step, chosen)},
            evaluate_first=False,
            chunk_steps=steps_per_epoch(len(learned.indices), BATCH),
            log=sub_run,
        )

    rows = trained(config.forecast_epochs, run.sub_run(f"{FORECAST}_{kind}")).records
    errors = [np.mean(r["loss"]) for r in rows if r["split"] == "validation"]
    params = trained(1 + int(np.argmin(errors)), None).state.params

    def outputs(params: PyTree) -> Array:
        return model.apply(params, {}, whole.arrays["x"], train=False, key=None)[0]

    return np.asarray(jax.jit(lambda params: jax.lax.map(outputs, params))(params))


def forecast_all(
    data: Forecasts, config: Config, run: Run
) -> dict[str, Estimate | float]:
    """Sequence -> vector: errors in the last years, in sunspots."""
    _, _, tested = data.rows()
    plain = {
        "persistence": data.x[tested, -1, 0],
        "linear regression": regression(data, tested),
    }
    result: dict[str, Estimate | float] = {
        f"{FORECAST}, {name}: error": data.error(found, tested)
        for name, found in plain.items()
    }
    panels = []
    for kind in config.kinds:
        found = forecast(kind, data, config, run)[:, tested]
        errors = np.array([data.error(one, tested) for one in found])
        result[f"{FORECAST}, {kind}: error"] = mean_over_runs(errors, NONNEGATIVE)
        curves = {
            "truth": data.y[tested],
            "persistence": plain["persistence"],
            f"network, mean of {len(found)}": found.mean(0),
        }
        panels.append(
            plots.Panel(
                f"{kind}, from {config.years} years before",
                "year",
                "sunspots",
                {
                    label: (data.year[tested].tolist(), data.spots(z).tolist())
                    for label, z in curves.items()
                },
            )
        )
    plots.save_lines(run, "sunspots", panels)
    return result


def sums(count: int, digits: int) -> list[Pair]:
    """So many sums of two numbers of at most so many digits, as "321+654" and "975".

    Each pair of numbers occurs once, in one of its two orders. Raises UserError where
    there are fewer.
    """
    numbers = 10**digits
    most = numbers * (numbers + 1) // 2
    if count > most:
        raise UserError(f"--sums {count}: there are {most} of {digits} digits")
    rng = np.random.default_rng(0)
    low, high = np.triu_indices(numbers)
    chosen = rng.permutation(most)[:count]
    pairs = rng.permuted(np.column_stack([low, high])[chosen], axis=1)
    return [
        Pair(f"{a}"[::-1] + "+" + f"{b}"[::-1], f"{a + b}"[::-1])
        for a, b in pairs.tolist()
    ]


def add(pairs: Sequence[Pair], config: Config, run: Run) -> dict[str, Estimate | float]:
    """Sequence -> sequence: sums, exactly right or not."""
    symbols = fit_vocabulary("0123456789+"), fit_vocabulary("0123456789" + END)
    longest = 2 * config.digits + 1, config.digits + 1
    data = dataset(encode_pairs(pairs, *symbols, longest))
    rows, tenth = np.arange(len(pairs)), len(pairs) // 10
    parts = np.split(rows, [len(rows) - 2 * tenth, len(rows) - tenth])
    sets = Sets(*(subset(data, part) for part in parts))
    network = seq2seq(
        len(symbols[0]), len(symbols[1]), config.adding_units,
        attention=False, kind="gru", embedding=16,
    )  # fmt: skip
    (end,) = symbols[1].encode(END)
    objective = sequence_cross_entropy(network.model, int(end))
    epochs, rate = config.adding_epochs, config.adding_rate
    state, eval_step = train(
        ADDITION, network.model, objective, sets, epochs, rate, config, run
    )
    found = Evaluator(eval_step, sets.test, 500)(state)
    return {
        f"{ADDITION}: {metric}": mean_over_runs(np.array(found[metric]), SHARE)
        for metric in ("exact match", "accuracy")
    }


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the three, test them, draw."""
    data, pairs = read_sunspots(config.years), sums(config.sums, config.digits)
    result = spell(config, run)
    result |= forecast_all(data, config, run) | add(pairs, config, run)
    plots.save_curves(run, (SPELLING, ADDITION), "exact match", "exact match")
    return result


if __name__ == "__main__":
    experiment(main, PRESETS)
