"""Tables as several folds see them, and tables of more rows than memory holds.

What a column has to learn, each fold of a cross-validation learns from its own training
rows: so the same row is encoded anew for every fold.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxstudy.dataset import Dataset, dataset, stacked_subsets
from jaxstudy.messages import ValidationErrors, warn
from jaxstudy.tabular.columns import Column, Table
from jaxstudy.tabular.encoding import Encoded, Features
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.tabular.inference import class_numbers
from jaxstudy.types import UserError

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

    def subsets(self, held_out: bool) -> Dataset:
        """The same as sets [folds, n], one for each replica."""
        return stacked_subsets(self.data, self.rows(held_out))

    @property
    def width(self) -> int:
        """The number of inputs, D of x."""
        return self.data.arrays["x"].shape[1]

    @property
    def tables(self) -> list[Table]:
        """The embeddings, each as large as the largest of any fold."""
        by_column = zip(*(fitted.tables for fitted in self.fitted), strict=True)
        return [max(tables, key=lambda table: table.size) for tables in by_column]


def encode_folds(
    fitted: Sequence[Features], numbers: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The inputs x and ids of all rows as every fold encodes them."""
    encoded = [f.encode(of_fold) for f, of_fold in zip(fitted, numbers, strict=True)]
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
    fitted = tuple(fit_columns(columns, table.iloc[train]) for train, _ in splits)
    numbers = tuple(f.numbers(table) for f in fitted)
    data = dataset({**encode_folds(fitted, numbers), "y": np.tile(y, len(splits))})
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
    """Held-out log-probabilities by scikit-learn's LogisticRegression (L2, C = 1)."""
    from sklearn.linear_model import LogisticRegression  # a second, for --help too

    x, y = (np.asarray(folds.data.arrays[k]) for k in ("x", "y"))
    log_probs = []
    for train, held_out in zip(folds.rows(False), folds.rows(True), strict=True):
        regression = LogisticRegression(max_iter=2000).fit(x[train], y[train])
        log_probs.append(regression.predict_log_proba(x[held_out]))
    return log_probs


def importance(
    folds: Folds, predict: PredictLogProbs, y: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """By how much the log-loss [N] of held-out rows grows when a column is shuffled.

    Shuffled among the rows that a fold holds out (Breiman 2001; of any model: Fisher,
    Rudin and Dominici 2019), with all that is made of it.
    """
    before = held_out_scores(folds, predict(folds.data.arrays), y)["log-loss"]
    rng, increase = np.random.default_rng(seed), {}
    for column in folds.fitted[0].sources:
        shuffled = []
        for fitted, numbers, (_, rows) in zip(
            folds.fitted, folds.numbers, folds.splits, strict=True
        ):
            order = np.arange(len(y))
            order[rows] = rng.permutation(rows)
            keys = fitted.keys_of(column)
            shuffled.append(
                {k: a[order] if k in keys else a for k, a in numbers.items()}
            )
        after = held_out_scores(folds, predict(encode_folds(folds.fitted, shuffled)), y)
        increase[column] = after["log-loss"] - before
    return increase


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
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    return [
        split
        for repeat in range(repeats)
        for split in kind(folds, shuffle=True, random_state=seed * 1000 + repeat).split(
            y, y, groups
        )
    ]


def folds_at_most(folds: int, y: np.ndarray, label: str) -> int:
    """As many folds as there are rows of the smallest class: then it warns.

    Raises UserError where that is one row.
    """
    smallest = int(np.bincount(y).min())
    if smallest < 2:
        raise UserError(
            f"the label {label!r} has a class of {smallest} rows, fewer than the 2 "
            "folds that a cross-validation needs"
        )
    if smallest < folds:
        warn(f"{smallest} folds, not {folds}: a class has no more rows than that")
    return min(folds, smallest)


def held_out_split(n: int, seed: int) -> list[np.ndarray]:
    """Rows of a test, a validation (a tenth each, two at least) and a training set."""
    order = np.random.default_rng(seed).permutation(n)
    tenth = max(n // 10, 2)
    return np.split(order, [tenth, 2 * tenth])


class EncodedRows:
    """Encoded rows in files of a folder, to be read where they are needed."""

    def __init__(
        self, folder: Path, n: int, parts: Iterable[tuple[Encoded, np.ndarray]]
    ) -> None:
        """Write n rows, encoded inputs and classes y, that come in parts."""
        folder.mkdir()
        self.arrays: dict[str, np.memmap] = {}
        begin = 0
        for encoded, y in parts:
            fields = {**encoded._asdict(), "y": y}
            for name, field in fields.items():
                values = np.asarray(field)
                if name not in self.arrays:
                    self.arrays[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", "w+", values.dtype,
                        (n, *values.shape[1:]),
                    )  # fmt: skip
                self.arrays[name][begin : begin + len(y)] = values
            begin += len(y)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.arrays["y"])

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """One row."""
        return {name: np.array(a[row]) for name, a in self.arrays.items()}


def encode_in_parts(
    folder: Path,
    n: int,
    tables: Callable[[], Iterable[pd.DataFrame]],
    columns: Sequence[Column],
    training: np.ndarray,
    label: str,
    classes: Sequence[str],
    errors: ValidationErrors,
) -> tuple[Features, EncodedRows]:
    """Columns fitted on some rows of a long table, and all its rows encoded, in files.

    Args:
        folder: where the encoded rows lie; it must not exist.
        n: how many rows the table has.
        tables: reads the table anew, a part at a time.
        columns: what to learn from.
        training: the rows that the columns are fitted on.
        label, classes: the column to predict, and its classes.
        errors: where the errors of cells are added.
    """
    in_training = np.isin(np.arange(n), training)

    def training_rows() -> Iterator[pd.DataFrame]:
        begin = 0
        for table in tables():
            yield table.iloc[in_training[begin : begin + len(table)]]
            begin += len(table)

    fitted = fit_columns(columns, training_rows(), errors)
    encoded = (
        (fitted.encode(fitted.numbers(table)), class_numbers(table, label, classes))
        for table in tables()
    )
    return fitted, EncodedRows(folder, n, encoded)
