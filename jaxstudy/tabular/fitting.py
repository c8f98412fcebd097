"""What columns learn from training rows: means, vocabularies, boundaries.

One pass over one table or many, so a file of any length can be learned from.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxstudy.messages import ValidationErrors
from jaxstudy.tabular.cells import (
    MISSING_WORDS,
    add_errors,
    as_text,
    bucket_numbers,
    column_of,
    one_spelling,
    raw_numbers,
    spelling,
    split_words,
)
from jaxstudy.tabular.columns import (
    MISSING,
    Bucketized,
    Category,
    Column,
    Crossed,
    Embedding,
    Hashed,
    Indicator,
    Numeric,
    check_columns,
    check_declarations,
    key_of,
    leaves_of,
)
from jaxstudy.tabular.encoding import Features, crossed_numbers, numbers_of
from jaxstudy.types import UserError

SAMPLE = 100_000  # values that quantiles are of: all, or as many drawn from all
MOST_WORDS = 1_000_000  # in one vocabulary: more belong into hash buckets


def fit_columns(
    columns: Sequence[Column],
    tables: pd.DataFrame | Iterable[pd.DataFrame],
    errors: ValidationErrors | None = None,
) -> Features:
    """Fill the columns in from the training rows, in one pass over one or more tables.

    Crossed columns take a second one: then tables must be what can be iterated again.

    Means, deviations, ranges and vocabularies are exact; quantiles are of at most
    SAMPLE values, drawn at random where there are more.

    Raises UserError naming every row, column and wrong value (with `errors` they are
    added to those instead), where a column is missing, or no row is there; ValueError
    where the columns make no sense. Of a column without any number all are missing.
    """
    check_declarations(columns)
    collected = ValidationErrors("the training rows") if errors is None else errors
    leaves = dict.fromkeys(leaf for column in columns for leaf in leaves_of(column))
    learners = {leaf: _Learner(leaf) for leaf in leaves}
    rows, tables = 0, [tables] if isinstance(tables, pd.DataFrame) else tables
    if isinstance(tables, Iterator) and any(map(_crossed, columns)):
        raise ValueError("crossed columns need tables that can be iterated twice")
    for table in tables:
        check_columns(table, [leaf.column for leaf in leaves])
        rows += len(table)
        for leaf, learner in learners.items():
            learner.add(column_of(table, leaf), collected)
    collected.check()
    if not rows:
        raise UserError("there is no training row")
    learned = {leaf: learner.learned() for leaf, learner in learners.items()}
    fitted = Features(tuple(_filled(column, learned) for column in columns))
    crossed = [of for column in fitted.columns if (of := _crossed(column))]
    occupied = {of: np.zeros(of.buckets, bool) for of in crossed}
    for table in tables if crossed else ():
        leaves = itertools.chain.from_iterable(map(leaves_of, crossed))
        numbers = numbers_of(leaves, table, collected)
        for of, buckets in occupied.items():
            # on the host: JAX would compile anew for each number of rows
            buckets[crossed_numbers(of, [numbers[key_of(leaf)] for leaf in of.of])] = (
                True
            )
    for of, buckets in occupied.items():
        absent = tuple(np.flatnonzero(~buckets).tolist())
        learned[of] = dataclasses.replace(of, absent=absent)
    return Features(tuple(_filled(column, learned) for column in columns))


def _crossed(column: Column) -> Crossed | None:
    of = None if isinstance(column, Numeric) else column.of
    return of if isinstance(of, Crossed) else None


def _filled(column: Any, learned: Mapping[Any, Any]) -> Any:
    """A column, its leaves replaced."""
    if isinstance(column, Crossed):
        filled = dataclasses.replace(column, of=tuple(learned[x] for x in column.of))
        return learned.get(filled, filled)
    if isinstance(column, Indicator | Embedding):
        return dataclasses.replace(column, of=_filled(column.of, learned))
    return learned[column]


class Moments:
    """Mean, deviation and range in one pass, merged by Chan, Golub and LeVeque 1983."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high, self.missing = math.inf, -math.inf, False

    def add(self, values: np.ndarray) -> None:
        """Some more values [N], NaN where they are missing."""
        self.missing |= bool(np.isnan(values).any())
        values = values[~np.isnan(values)].astype(np.float64)
        if not len(values):
            return
        n, mean = len(values), float(values.mean())
        gap, total = mean - self.mean, self.n + n
        self.squares += float(np.square(values - mean).sum())
        self.squares += gap**2 * self.n * n / total
        self.mean += gap * n / total
        self.n = total
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))


class _Sample:
    """Values drawn from all that came, each as likely (Vitter 1985, algorithm R)."""

    def __init__(self) -> None:
        self.seen, self.kept = 0, np.empty(0)
        self.rng = np.random.default_rng(0)

    def add(self, values: np.ndarray) -> None:
        values = values[~np.isnan(values)]
        room = SAMPLE - len(self.kept)
        self.kept = np.concatenate([self.kept, values[:room]])
        self.seen += min(room, len(values))
        for value in values[room:]:
            self.seen += 1
            place = int(self.rng.integers(self.seen))
            if place < SAMPLE:
                self.kept[place] = value


class _Learner:
    """What one leaf learns from tables that come one after the other."""

    def __init__(self, leaf: Any) -> None:
        self.leaf, self.counts = leaf, Counter[Any]()
        self.moments, self.sample = Moments(), _Sample()

    def add(self, series: pd.Series, errors: ValidationErrors) -> None:
        leaf = self.leaf
        if isinstance(leaf, Category):
            return self._count_words(leaf, series, errors)
        numbers = raw_numbers(leaf, series, errors)
        if isinstance(leaf, Hashed):
            self.counts.update(numbers.tolist())
            return None
        self.moments.add(numbers)
        if isinstance(leaf, Bucketized):
            if isinstance(leaf.boundaries, int):
                self.sample.add(numbers)
            else:
                self.counts.update(bucket_numbers(leaf, numbers).tolist())
        return None

    def _count_words(
        self, leaf: Category, series: pd.Series, errors: ValidationErrors
    ) -> None:
        texts = as_text(series)
        if leaf.missing == "refuse":
            add_errors(series, texts.isna().to_numpy(), "is missing", errors)
        for text, count in texts.value_counts(dropna=False).items():
            for word in split_words(text, leaf) or [None]:
                self.counts[word] += int(count)
        if len(self.counts) > MOST_WORDS:
            raise UserError(
                f"column {leaf.column!r} has more than {MOST_WORDS:,} different "
                "values: hash them into buckets instead"
            )

    def learned(self) -> Any:
        """The leaf, with nothing left open."""
        leaf = self.leaf
        if isinstance(leaf, Category):
            return self._category(leaf)
        if isinstance(leaf, Hashed):
            return dataclasses.replace(leaf, absent=self._absent(leaf.buckets + 1))
        if isinstance(leaf, Numeric):
            return self._numeric(leaf)
        return self._buckets(leaf)

    def _absent(self, size: int) -> tuple[int, ...]:
        return tuple(number for number in range(size) if not self.counts[number])

    def _numeric(self, leaf: Numeric) -> Numeric:
        m = self.moments
        shift, divisor = m.mean, 0.0
        if m.low < m.high:  # rounding may leave a constant column a deviation
            divisor = math.sqrt(m.squares / m.n)
            if leaf.scale == "min-max":
                shift, divisor = m.low, m.high - m.low
        statistics = {
            "shift": shift,
            "divisor": divisor,
            "fill": m.mean,
            "has_missing": m.missing,
        }
        left_open = {n: v for n, v in statistics.items() if getattr(leaf, n) is None}
        return dataclasses.replace(leaf, **left_open)

    def _buckets(self, leaf: Bucketized) -> Bucketized:
        if isinstance(leaf.boundaries, tuple):
            absent = self._absent(len(leaf.boundaries) + 2)
            return dataclasses.replace(leaf, absent=absent)
        values, shares = self.sample.kept, np.arange(1, leaf.boundaries)
        if not len(values):  # a fold may have none: then all are missing
            return dataclasses.replace(leaf, boundaries=(), absent=(MISSING + 1,))
        cuts = np.unique(np.quantile(values, shares / leaf.boundaries))
        # one at the least value would leave nothing below it
        boundaries = tuple(map(float, cuts[cuts > values.min()]))
        absent = () if self.moments.missing else (MISSING,)
        return dataclasses.replace(leaf, boundaries=boundaries, absent=absent)

    def _category(self, leaf: Category) -> Category:
        words, counts = leaf.words, Counter[Any]()
        present = [word for word in self.counts if word is not None]
        if words is None:
            meant = one_spelling(present, MISSING_WORDS)
        else:
            meant = dict(zip(present, map(spelling(words), present), strict=True))
        for word, count in self.counts.items():
            counts[meant.get(word)] += count
        missing = counts.pop(None, 0)
        if words is None:
            often = [word for word in counts if counts[word] >= leaf.min_count]
            words = tuple(sorted(often, key=lambda word: (-counts[word], word)))
        rows = [missing, len(counts.keys() - {*words}), *(counts[w] for w in words)]
        absent = tuple(number for number, n in enumerate(rows) if not n)
        return dataclasses.replace(leaf, words=words, absent=absent)
