"""Tables as several folds see them, and tables of more rows than memory holds.

What a column has to learn, each fold of a cross-validation learns from its own training
rows: so the same row is encoded anew for every fold.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.tabular import features
from jaxstudy.tabular.features import Column, Encoded, Features

# log-probabilities of the rows that each fold holds out, from encoded rows
PredictLogProbs = Callable[[Mapping[str, Any]], list[np.ndarray]]


class Folds(NamedTuple):
    """A table [N] as each fold sees it: fold f has the rows from f N on.

    numbers: of all rows, for each fold. Folds that know fewer words have fewer inputs;
    the rest are zeros, which change nothing.
    """

    fitted: tuple[Features, ...]
    numbers: tuple[dict[str, np.ndarray], ...]
    splits: list[tuple[np.ndarray, np.ndarray]]
    data: Dataset

    def rows(self, held_out: bool) -> list[np.ndarray]:
        """The rows of the data that each fold trains on, or holds out."""
        n = len(self.data.indices) // len(self.splits)
        return [f * n + split[held_out] for f, split in enumerate(self.splits)]


def encode(
    fitted: Sequence[Features], numbers: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The inputs x and ids of all rows as every fold encodes them."""
    encoded = [f.encode(own) for f, own in zip(fitted, numbers, strict=True)]
    width = max(e.x.shape[1] for e in encoded)
    x = [np.pad(e.x, ((0, 0), (0, width - e.x.shape[1]))) for e in encoded]
    return {"x": np.concatenate(x), "ids": np.concatenate([e.ids for e in encoded])}


def make_folds(
    table: pd.DataFrame,
    y: np.ndarray,
    columns: Sequence[Column],
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> Folds:
    """Fit the columns on the training rows of each fold, and encode all rows."""
    fitted = tuple(features.fit(columns, table.iloc[train]) for train, _ in splits)
    numbers = tuple(f.numbers(table) for f in fitted)
    data = dataset({**encode(fitted, numbers), "y": np.tile(y, len(splits))})
    return Folds(fitted, numbers, splits, data)


def held_out_scores(
    folds: Folds, log_p: Sequence[np.ndarray], y: np.ndarray
) -> dict[str, np.ndarray]:
    """Accuracy and log-loss [N] of rows when held out, means over the repeats.

    log_p: for each fold, log-probabilities [rows held out, classes].
    """
    total = {"accuracy": np.zeros(len(y)), "log-loss": np.zeros(len(y))}
    count = np.zeros(len(y))
    for (_, rows), of_fold in zip(folds.splits, log_p, strict=True):
        total["accuracy"][rows] += of_fold.argmax(1) == y[rows]
        total["log-loss"][rows] -= of_fold[np.arange(len(rows)), y[rows]]
        count[rows] += 1
    return {name: values / count for name, values in total.items()}


def logistic_regression_baseline(folds: Folds) -> list[np.ndarray]:
    """The same of logistic regression, as scikit-learn has it (L2 penalty, C = 1)."""
    x, y = (np.asarray(folds.data.arrays[k]) for k in ("x", "y"))
    found = []
    for train, held_out in zip(folds.rows(False), folds.rows(True), strict=True):
        regression = LogisticRegression(max_iter=2000).fit(x[train], y[train])
        found.append(regression.predict_log_proba(x[held_out]))
    return found


def importance(
    folds: Folds, predict: PredictLogProbs, y: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """By how much the log-loss [N] of held-out rows grows when a column is shuffled.

    Shuffled among the rows that a fold holds out (Breiman 2001; of any model: Fisher,
    Rudin and Dominici 2019), with all that is made of it.
    """
    before = held_out_scores(folds, predict(folds.data.arrays), y)["log-loss"]
    rng, found = np.random.default_rng(seed), {}
    for column in folds.fitted[0].sources:
        shuffled = []
        for fitted, numbers, (_, rows) in zip(
            folds.fitted, folds.numbers, folds.splits, strict=True
        ):
            order = np.arange(len(y))
            order[rows] = rng.permutation(rows)
            own = fitted.keys_of(column)
            shuffled.append(
                {k: a[order] if k in own else a for k, a in numbers.items()}
            )
        after = held_out_scores(folds, predict(encode(folds.fitted, shuffled)), y)
        found[column] = after["log-loss"] - before
    return found


def stratified_splits(
    y: np.ndarray,
    folds: int,
    repeats: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of every fold of every repeat.

    Each class has about the same share of every part. The rows of one of `groups` [N]
    are in the same part: none is held out while others of them are learned from.
    """
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    return [
        split
        for repeat in range(repeats)
        for split in kind(folds, shuffle=True, random_state=seed * 1000 + repeat).split(
            y, y, groups
        )
    ]


class Rows:
    """Encoded rows in files of a folder, to be read where they are needed."""

    def __init__(self, folder: Path, n: int, encoded: Encoded) -> None:
        """Make room for n rows like these."""
        folder.mkdir()
        like = {**encoded._asdict(), "y": np.empty(0, np.int32)}
        self.arrays = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy", "w+", np.asarray(a).dtype, (n, *a.shape[1:])
            )
            for name, a in like.items()
        }

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.arrays["y"])

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """One row."""
        return {name: np.array(a[row]) for name, a in self.arrays.items()}
