"""What optimizers are compared on: problems as values, apart from any optimizer."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported where they are first used

from jaxstudy.data.splits import grouped_split, random_split
from jaxstudy.dataset import Dataset, Order, dataset, steps_per_epoch, subset
from jaxstudy.images.sets import read_fashion_mnist
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn, two_convolutions
from jaxstudy.models.mlp import embedding_mlp, mlp
from jaxstudy.models.next_word import next_word_model
from jaxstudy.models.transformer import transformer
from jaxstudy.objectives import (
    binary_cross_entropy,
    cross_entropy,
    finite_padding,
    reconstruction,
    token_cross_entropy,
)
from jaxstudy.parallel import map_replicas
from jaxstudy.tabular.columns import Category, Embedding, Indicator, Numeric
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.tabular.inference import class_numbers
from jaxstudy.tabular.sets import (
    admission_arrays,
    digit_sets,
    read_admissions,
    read_titanic,
    with_titles_and_decks,
)
from jaxstudy.text.abc import read_collections
from jaxstudy.text.prose import read_prose
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.text.windows import passage_windows
from jaxstudy.types import Array, Batch, Key, Mean, Metrics, Objective, PyTree

Tier = Literal["small", "medium", "large"]


@dataclass(frozen=True)
class Problem:
    """A model, an objective, data, and how long one may train.

    Hyperparameters are chosen on `validation`; `test` is only ever reported. `target`
    is the validation loss of which a study reports how soon it is reached, None where
    it is not set. `floors` are known losses that nothing gets under, for figures. Of
    the tier "small" a run takes seconds on two cores, of "medium" minutes; "large" is
    for accelerators.
    """

    title: str
    model: Model
    objective: Objective
    train: Dataset
    validation: Dataset
    test: Dataset
    batch_size: int
    epochs: int
    target: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)  # least losses, by split
    tier: Tier = "small"


SPLITS = ("train", "validation", "test")


def steps_of(problem: Problem) -> int:
    """Steps of an epoch."""
    data = problem.train
    return steps_per_epoch(len(data.indices), problem.batch_size, data.order)


@functools.lru_cache(maxsize=2)  # the same for all optimizers
def make_init(model: Model) -> Callable[[Key], tuple[PyTree, PyTree]]:
    """The jitted initialisation of a model from keys [L], one after another."""
    return jax.jit(lambda keys: map_replicas(model.init, keys))


# The stochastic quadratic of DeepOBS (Schneider, Balles and Hennig 2019)

DIMENSIONS = 100
QUADRATIC_NOISE = 0.6  # the standard deviation of the data


def quadratic_hessian() -> np.ndarray:
    """H [100, 100], float64: 90 eigenvalues U(0, 1) and 10 U(30, 60), turned.

    H = R^T diag(lambda) R, with R from the subgroup algorithm of Diaconis and
    Shahshahani 1987; all random numbers from one RandomState(42), as DeepOBS has it.
    """
    random = np.random.RandomState(42)
    few = DIMENSIONS // 10
    eigenvalues = np.concatenate(
        [random.uniform(0, 1, DIMENSIONS - few), random.uniform(30, 60, few)]
    )
    angle = 2 * np.pi * random.uniform()
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    for d in range(2, DIMENSIONS):
        v = random.normal(size=d + 1)
        v /= np.linalg.norm(v)
        x = np.eye(d + 1)[0] - v
        x /= np.linalg.norm(x)
        larger = np.eye(d + 1)
        larger[1:, 1:] = rotation
        rotation = larger - 2 * np.outer(x, x @ larger)
    rotation = -rotation
    return rotation.T @ (eigenvalues[:, None] * rotation)


def quadratic_rows(seed: int) -> np.ndarray:
    """The 1000 rows x [1000, 100] of one set, float32."""
    random = np.random.RandomState(seed)
    return random.normal(0.0, QUADRATIC_NOISE, (1000, DIMENSIONS)).astype(np.float32)


def quadratic_objective(hessian: np.ndarray) -> Objective:
    """The mean over a batch of (p - x)^T H (p - x) / 2.

    It is computed as (p - m)^T H (p - m) / 2 + mean(q) - m^T H m / 2, with the batch's
    mean m of x and q = x^T H x / 2, a field of the data: the same number, and a product
    with H for each batch instead of one for each row.
    """
    h = jnp.asarray(hessian, jnp.float32)

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        del key
        batch = finite_padding(batch)
        rows = jnp.sum(batch["mask"])
        share = batch["mask"] / jnp.maximum(rows, 1)
        mean = share @ batch["x"]
        spread = share @ batch["q"] - 0.5 * mean @ (h @ mean)
        apart = params - mean
        # H is symmetric: with H (p - m) held fixed the gradient is H (p - m) as well,
        # and costs no second product
        twice = apart @ jax.lax.stop_gradient(h @ apart)
        loss = twice - jax.lax.stop_gradient(0.5 * twice) + spread
        return loss, (extra, {"loss": Mean(loss * rows, rows)})

    return objective


def quadratic(shuffle: Literal["each epoch", "once"] = "each epoch") -> Problem:
    """100 dimensions from a start of ones, 7 batches an epoch, 100 epochs.

    A published run shuffles once: its seed draws 7 batches and visits them in every
    epoch. The third set, to choose by, is not of DeepOBS: it is drawn as its other two
    are.
    """
    hessian = quadratic_hessian()

    def rows(seed: int) -> Dataset:
        x = quadratic_rows(seed)
        q = 0.5 * np.einsum("nd,de,ne->n", x, hessian, x, optimize=True)
        return dataset({"x": x, "q": q.astype(np.float32)})

    def start(key: Key) -> tuple[Array, PyTree]:
        del key
        return jnp.ones(DIMENSIONS, jnp.float32), {}

    def apply(
        params: Array, extra: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        del train, key
        return params, extra

    sets: Any = {"train": rows(42), "validation": rows(44), "test": rows(43)}
    sets["test"] = subset(sets["test"], range(896))
    order = Order(shuffle, drop_remainder=True)
    sets["train"] = replace(sets["train"], order=order)

    def floor(data: Dataset) -> float:
        x = np.asarray(data.arrays["x"], np.float64)[np.asarray(data.indices)]
        return float(0.5 * np.einsum("de,de->", hessian, np.cov(x.T, bias=True)))

    return Problem(
        title="quadratic of DeepOBS, 100 dimensions, batch 128",
        model=Model(start, apply),
        objective=quadratic_objective(hessian),
        **sets,
        batch_size=128,
        epochs=100,
        # an epoch's training loss is over the rows it visited, and has no floor
        floors={name: floor(sets[name]) for name in ("validation", "test")},
    )


# Real data


def admissions(title: str, hidden: tuple[int, ...]) -> Problem:
    """A network (or, without a hidden layer, logistic regression) on 240 admissions."""
    arrays = admission_arrays(read_admissions())
    train, validation, test = random_split(len(arrays["y"]), (0.6, 0.2, 0.2), seed=0)
    known = arrays["x"][train].astype(np.float64)  # a sum of float32 loses digits
    x = (arrays["x"] - known.mean(0)) / known.std(0)
    data = dataset({**arrays, "x": x.astype(np.float32)})
    model = mlp(x.shape[1], hidden, 1)
    return Problem(
        title=f"{title} on the admissions, batch 32",
        model=model,
        objective=binary_cross_entropy(model),
        train=subset(data, train),
        validation=subset(data, validation),
        test=subset(data, test),
        batch_size=32,
        epochs=30,
    )


def digits() -> Problem:
    """A network on 8x8 digits; those to choose by and to test on, others wrote.

    Pixels are 0..1 as they are, so weights of a pixel that is mostly 0 rarely change.
    """
    model = mlp(64, (32,), 10)
    return Problem(
        title="network 64-32-10 on 8x8 digits, batch 64",
        model=model,
        objective=cross_entropy(model),
        **digit_sets()._asdict(),
        batch_size=64,
        epochs=20,
    )


def digits_autoencoder() -> Problem:
    """Digits through six numbers and back: a narrow, deep tanh network.

    Deep autoencoders are the classical hard case of first-order methods (Hinton and
    Salakhutdinov 2006; Martens 2010).
    """
    return _autoencoder(
        digit_sets()._asdict(), (32, 16, 6, 16, 32),
        "autoencoder 64-32-16-6-16-32-64 of 8x8 digits, batch 64",
        batch_size=64, epochs=20,
    )  # fmt: skip


def _autoencoder(
    sets: Mapping[str, Dataset], hidden: tuple[int, ...], title: str, **how: Any
) -> Problem:
    """A tanh network from pixels x to themselves; its floors are their entropy."""
    x = sets["train"].arrays["x"]
    arrays = {"x": x, "y": x}
    sets = {split: replace(each, arrays=arrays) for split, each in sets.items()}
    model = mlp(x.shape[1], hidden, x.shape[1], jnp.tanh)

    def floor(data: Dataset) -> float:
        p = np.asarray(x, np.float64)[np.asarray(data.indices)]
        return float(scipy.special.entr(np.stack([p, 1 - p])).sum((0, 2)).mean())

    return Problem(
        title=title,
        model=model,
        objective=reconstruction(model),
        **sets,
        floors={split: floor(each) for split, each in sets.items()},
        **how,
    )


def titanic() -> Problem:
    """The network of lesson 4 on who survived; passengers of a ticket are in one set.

    Columns are numbers, ones and zeros, and vectors of titles and ports; what they need
    to know is learned from the training rows.
    """
    table = with_titles_and_decks(read_titanic())
    y = class_numbers(table, "survived", ("0", "1"))
    train, validation, test = grouped_split([[t] for t in table["ticket"]], 0.2)
    columns = (
        Numeric("age"), Numeric("fare", "log"), Numeric("sibsp"), Numeric("parch"),
        Indicator(Category("sex")), Indicator(Category("pclass")),
        Embedding(Category("embarked"), 2),
        Embedding(Category("title", min_count=3), 2),
    )  # fmt: skip
    fitted = fit_columns(columns, table.iloc[train])
    encoded = fitted.encode(fitted.numbers(table))
    model = embedding_mlp(encoded.x.shape[1], fitted.tables, (32,), 2)
    data = dataset({**encoded._asdict(), "y": y})
    return Problem(
        title="network with embeddings on the passengers of the Titanic, batch 32",
        model=model,
        objective=cross_entropy(model, ("x", "ids")),
        train=subset(data, train),
        validation=subset(data, validation),
        test=subset(data, test),
        batch_size=32,
        epochs=15,
    )


# Of the medium tier


def _fashion_sets(shape: tuple[int, ...], scale: float) -> dict[str, Any]:
    """54,000 images to train on and 6,000 to choose by; the published test set."""
    data = _fashion_images(shape, scale)
    train, validation = random_split(60_000, (0.9, 0.1), seed=0)
    parts = train, validation, np.arange(60_000, 70_000)
    return dict(zip(SPLITS, (subset(data, part) for part in parts), strict=True))


def _fashion_images(shape: tuple[int, ...], scale: float) -> Dataset:
    """All images [70000, *shape] over a scale, the test set last."""
    images = read_fashion_mnist()
    x = np.concatenate([images["train"].x, images["test"].x])
    y = np.concatenate([images["train"].y, images["test"].y])
    return dataset({"x": x.reshape(-1, *shape).astype(np.float32) / scale, "y": y})


def fashion() -> Problem:
    """A network on Fashion-MNIST."""
    model = mlp(784, (64,), 10)
    return Problem(
        title="network 784-64-10 on Fashion-MNIST, batch 120",
        model=model,
        objective=cross_entropy(model),
        **_fashion_sets((784,), 255),
        batch_size=120,  # 450 steps an epoch, which chunks divide
        epochs=3,
    )


def fashion_cnn() -> Problem:
    """Two convolutions with BatchNorm on Fashion-MNIST."""
    model = cnn((28, 28, 1), 10, filters=(16, 32), hidden=(64,), norm=True)
    return Problem(
        title="CNN of 16 and 32 filters with BatchNorm on Fashion-MNIST, batch 120",
        model=model,
        objective=cross_entropy(model),
        **_fashion_sets((28, 28, 1), 1),  # which the network scales
        batch_size=120,
        epochs=3,
    )


def fashion_autoencoder() -> Problem:
    """Fashion-MNIST through 30 numbers and back."""
    return _autoencoder(
        _fashion_sets((784,), 255), (256, 64, 30, 64, 256),
        "autoencoder 784-256-64-30-64-256-784 of Fashion-MNIST, batch 120",
        batch_size=120, epochs=3,
    )  # fmt: skip


def tunes_lstm(units: int, epochs: int) -> Problem:
    """The next character of a tune, by an LSTM."""
    size, sets = _tunes()
    model = next_word_model(
        "lstm", size, context=1, embedding=32, units=units, dropout=0.0
    )
    return Problem(
        title=f"LSTM of {units} units on characters of tunes, batch 64",
        model=model,
        objective=token_cross_entropy(model),
        **sets,
        batch_size=64,
        epochs=epochs,
    )


def words_transformer(width: int, blocks: int, epochs: int) -> Problem:
    """The next word of Moby Dick, by a transformer."""
    size, sets = _words()
    model = transformer(size + 1, size, 32, width=width, heads=4, blocks=blocks)
    return Problem(
        title=f"transformer of {blocks} blocks on words of Moby Dick, batch 32",
        model=model,
        objective=token_cross_entropy(model),
        **sets,
        batch_size=32,
        epochs=epochs,
    )


@functools.cache  # of two problems
def _tunes() -> tuple[int, dict[str, Any]]:
    """How many characters there are, and rows of 64."""
    tunes = read_collections()
    return _texts(tunes, fit_vocabulary("".join(tunes.train)), 64)


@functools.cache
def _words() -> tuple[int, dict[str, Any]]:
    """How many words there are, and rows of 32."""
    prose = read_prose()
    words = itertools.chain(*prose.train)
    return _texts(prose, fit_vocabulary(words, size=2000), 32)


def _texts(
    parts: Iterable[Iterable[Any]], vocabulary: Vocabulary, length: int
) -> tuple[int, dict[str, Any]]:
    """Rows of so many symbols of each set; before a text stands one more symbol."""
    size = len(vocabulary)
    encode = functools.partial(vocabulary.encode, allow_unknown=True)
    rows = (passage_windows(list(map(encode, p)), 1, length, size) for p in parts)
    return size, dict(zip(SPLITS, rows, strict=True))


# Of the large tier


def fmnist_2c2d() -> Problem:
    """DeepOBS's network of 3,274,634 parameters on Fashion-MNIST, batch 128.

    Its training set is all of the 60,000 images; of its test set, one half is to choose
    by, the other to report on. An epoch leaves out 96 images, other ones each time.
    """
    data, model = _fashion_images((28, 28, 1), 255), two_convolutions()
    parts = np.arange(60_000), np.arange(60_000, 65_000), np.arange(65_000, 70_000)
    sets: Any = dict(zip(SPLITS, (subset(data, part) for part in parts), strict=True))
    order = Order("each epoch", drop_remainder=True)
    sets["train"] = replace(sets["train"], order=order)
    return Problem(
        title="2c2d of DeepOBS on Fashion-MNIST, batch 128",
        model=model,
        objective=cross_entropy(model),
        **sets,
        batch_size=128,
        epochs=100,
    )


# Validation losses to reach, set as AlgoPerf sets its targets (Dahl et al. 2023): what
# the best of its reference optimizers, tuned, has reached by the median of its seeds
# when 3/4 of the steps are done. As `benchmarks/optimizers.py --preset full` measures
# it with its tuning seeds, which no report is made from. That of the autoencoder is
# what 10 trials with 3 seeds reached, and easier: 36 trials reach 21.26. That of
# fashion is from 10 trials of momentum and nesterov alone. Of problems that are not
# here none has been measured yet.
REFERENCES = ("momentum", "nesterov", "adamw", "nadam")
TARGETS: dict[str, float] = {
    "quadratic": 85.68,
    "quadratic_fixed": 85.65,
    "admissions_regression": 0.5338,
    "admissions_network": 0.5298,
    "digits": 0.17,
    "digits_autoencoder": 21.95,
    "titanic": 0.3704,
    "fashion": 0.39,
}

_BUILDERS: dict[Tier, dict[str, Callable[[], Problem]]] = {
    "small": {
        "quadratic": quadratic,
        "quadratic_fixed": functools.partial(quadratic, "once"),
        "admissions_regression": functools.partial(
            admissions, "logistic regression", ()
        ),
        "admissions_network": functools.partial(
            admissions, "network 5-64-128-1", (64, 128)
        ),
        "digits": digits,
        "digits_autoencoder": digits_autoencoder,
        "titanic": titanic,
    },
    "medium": {
        "fashion": fashion,
        "fashion_cnn": fashion_cnn,
        "fashion_autoencoder": fashion_autoencoder,
        "tunes_lstm": functools.partial(tunes_lstm, 128, 2),
        "words_transformer": functools.partial(words_transformer, 64, 2, 2),
    },
    "large": {  # of the texts, at ten times the size
        "fmnist_2c2d": fmnist_2c2d,
        "tunes_lstm_large": functools.partial(tunes_lstm, 464, 20),
        "words_transformer_large": functools.partial(words_transformer, 240, 4, 20),
    },
}
# by name, so that none needs to be built for it
TIERS: dict[Tier, tuple[str, ...]] = {t: tuple(of) for t, of in _BUILDERS.items()}


def _build(name: str, tier: Tier) -> Problem:
    return replace(_BUILDERS[tier][name](), target=TARGETS.get(name), tier=tier)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    name: functools.partial(_build, name, tier)
    for tier, names in TIERS.items()
    for name in names
}
