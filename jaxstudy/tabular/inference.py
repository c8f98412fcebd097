"""Columns and classes for a table that nobody described."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from jaxstudy.messages import ValidationErrors, enumerated, shortened
from jaxstudy.tabular.cells import (
    MISSING_WORDS,
    add_errors,
    as_text,
    missing_words,
    one_spelling,
    plain_number,
    spelling,
)
from jaxstudy.tabular.columns import (
    UNNAMED,
    Category,
    Column,
    Embedding,
    Hashed,
    Indicator,
    Numeric,
    check_columns,
    describe_column,
    name_of,
)
from jaxstudy.tabular.fitting import Moments
from jaxstudy.types import UserError

FEW, MANY = 20, 1000  # different values: each a column of its own, or a vector
MAX_CLASSES = 50


class Inferred(NamedTuple):
    """Columns for a table nobody described, and why others of it are left out."""

    columns: tuple[Column, ...]
    left_out: dict[str, str]
    missing_words: dict[str, Counter[str]]
    """For columns of numbers, the words that count as missing, and how often."""


class _Profile:
    """What one column profiles like, over tables that come one after the other."""

    def __init__(self) -> None:
        self.rows = self.present = self.numeric = 0
        self.values, self.missing = Counter[str](), Counter[str]()
        self.moments, self.whole = Moments(), True
        self.counts_from: float | None = None

    def add(self, series: pd.Series) -> None:
        texts = as_text(series)
        present = texts.dropna()
        self.present += len(present)
        self.missing += missing_words(series)
        if len(self.values) <= MANY:
            self.values.update(present.unique())
        numbers = np.asarray(pd.to_numeric(texts, errors="coerce"), np.float64)
        if not self.rows:
            self.counts_from = next((n for n in numbers[:1] if n in (0, 1)), None)
        if self.counts_from is not None:
            count = self.counts_from + self.rows + np.arange(len(numbers))
            if not np.array_equal(numbers, count):
                self.counts_from = None
        self.rows += len(texts)
        numbers = numbers[np.isfinite(numbers)]
        self.numeric += len(numbers)
        self.moments.add(numbers)
        self.whole &= bool((numbers == np.round(numbers)).all())

    @property
    def _are_whole(self) -> bool:
        return self.whole and self.numeric == self.rows

    @property
    def is_numeric(self) -> bool:
        """Whether what is no number in it is missing, or an error."""
        values = self.present - self.missing.total()
        return values > 0 and self.numeric >= 0.9 * values

    @property
    def means_numbers(self) -> bool:
        """Whether nothing but numbers and words for missing ones are in it."""
        meant = one_spelling(self.values, MISSING_WORDS)
        return self.is_numeric and any(meant.get(w) != w for w in self.missing)

    def column(self, name: str) -> Column | str:
        """The column, or why it is left out."""
        if not self.present:
            return "is empty"
        meant = one_spelling(self.values, MISSING_WORDS if self.is_numeric else ())
        many = len({*meant.values()} - {None})
        if many == 1:
            return "is the same in every row"
        if self.counts_from is not None:
            return f"counts the rows from {self.counts_from:g}"
        each = len(self.values) > MANY or many == self.rows
        if name.startswith(UNNAMED) and each and self._are_whole:
            return "is the index of an exported table"
        moments = self.moments
        if self.is_numeric:
            if self.whole and many <= FEW // 2:
                return Indicator(Category(name))
            long_tail = moments.low >= 0 and moments.high > 10 * moments.mean
            return Numeric(name, "log" if long_tail else "standard")
        if many <= FEW:
            return Indicator(Category(name))
        if many > 0.5 * self.present:
            return "has another text in nearly every row"
        if many <= min(MANY, self.present / 10):  # ten rows and more for each
            return Embedding(Category(name, min_count=5), 4)
        return Indicator(Hashed(name, 100))


def infer(tables: Iterable[pd.DataFrame], label: str) -> Inferred:
    """Columns for all of a table but its label, in one pass.

    Numbers are scaled (their logarithms, with a long tail), few different values become
    indicators, more of them vectors, very many hash buckets. What counts the rows tells
    nothing of others, and is left out. Raises UserError where nothing is left.
    """
    profiles: dict[str, _Profile] = {}
    for table in tables:
        check_columns(table, [label, *table.columns])
        for name in table.columns:
            if name != label:
                profiles.setdefault(name, _Profile()).add(cast(pd.Series, table[name]))
    inferred = {name: profile.column(name) for name, profile in profiles.items()}
    columns = tuple(c for c in inferred.values() if not isinstance(c, str))
    left_out = {name: why for name, why in inferred.items() if isinstance(why, str)}
    if not columns:
        reasons = [f"{name!r} {why}" for name, why in left_out.items()]
        because = f": {enumerated(reasons)}" if reasons else ""
        raise UserError(f"there is no column to learn {label!r} from{because}")
    missing = {
        name: profiles[name].missing
        for name, column in inferred.items()
        if isinstance(column, Numeric) or profiles[name].means_numbers
    }
    return Inferred(columns, left_out, missing)


class InferredTable(NamedTuple):
    """What a table nobody described consists of."""

    inferred: Inferred
    classes: dict[str, int]
    """The classes in order, and how many rows have each."""
    rows: int
    whole: pd.DataFrame | None
    """The table itself, if it came as one part."""

    def print(self, label: str) -> None:
        """Print the classes, and how each column is read or why it is not."""
        counts = [f"{shortened(c)} ({n} rows)" for c, n in self.classes.items()]
        print(f"{label}: {len(counts)} classes, {', '.join(counts)}")
        for column in self.inferred.columns:
            print(f"{name_of(column)}: {describe_column(column)}")
        for name, why in self.inferred.left_out.items():
            print(f"{name}: left out, for it {why}")
        print_missing_words(self.inferred.missing_words)


def print_missing_words(words: Mapping[str, Mapping[str, int]]) -> None:
    """Print what was taken for a missing number."""
    for name, counts in words.items():
        for word, count in counts.items():
            print(f"{name}: {word!r} in {count} rows counts as missing")


def infer_table(
    tables: Iterable[pd.DataFrame], label: str, errors: ValidationErrors
) -> InferredTable:
    """Columns and classes of a table that comes in parts, in one pass.

    Raises UserError as `infer` and `infer_classes` do; a missing label is added to the
    errors.
    """
    labels, rows = Counter[str](), 0
    whole: pd.DataFrame | None = None

    def counted() -> Iterator[pd.DataFrame]:
        nonlocal whole, rows
        for table in tables:
            check_columns(table, [label])
            given = cast(pd.Series, table[label])
            add_errors(given, given.isna().to_numpy(), "is missing", errors)
            labels.update(given.dropna())
            whole, rows = table if rows == 0 else None, rows + len(table)
            yield table

    inferred = infer(counted(), label)
    return InferredTable(inferred, infer_classes(labels, label), rows, whole)


def infer_classes(labels: Counter[str], name: str) -> dict[str, int]:
    """The classes in order, and how many rows have each. Of numbers, 1 and 1.0 are one.

    Raises UserError where there is one alone, or so many that it is no class.
    """
    meant, counts = one_spelling(labels), Counter[str]()
    for label, count in labels.items():
        counts[meant[label] or label] += count
    if len(counts) < 2:
        shown = (
            f"{shortened(repr(next(iter(counts))))} in every row" if counts else "empty"
        )
        raise UserError(f"the label {name!r} is {shown}: there is nothing to tell")
    if len(counts) > MAX_CLASSES:
        raise UserError(
            f"the label {name!r} has {len(counts)} different values, more than the "
            f"{MAX_CLASSES} classes that this lesson tells apart"
        )
    numbers = all(map(plain_number, counts))
    return {c: counts[c] for c in sorted(counts, key=float if numbers else None)}


def class_numbers(table: pd.DataFrame, name: str, classes: Sequence[str]) -> np.ndarray:
    """The labels of some rows as numbers of their class, int32 [N]."""
    meant = [*map(spelling(classes), table[name])]
    return pd.Index(classes).get_indexer(meant).astype(np.int32)
