"""A table as the inputs of a network, by columns that are fitted.

A table goes two steps. `Features.numbers` makes numbers of its text, once, and names
whatever is wrong in it; `Features.encode` makes a network's inputs of these numbers,
and is pure: jit, vmap and grad go through it. Of arrays of numpy it makes arrays of
numpy, which needs no compiling.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxstudy.messages import ValidationErrors
from jaxstudy.tabular.cells import (
    column_of,
    missing_words,
    raw_numbers,
    scale,
    scaled_numbers,
    spelling,
)
from jaxstudy.tabular.columns import (
    NONE,
    UNKNOWN,
    Bucketized,
    Categorical,
    Category,
    Column,
    Crossed,
    Embedding,
    Indicator,
    Leaf,
    Numeric,
    Table,
    check_columns,
    input_names,
    key_of,
    leaves_of,
    name_of,
    size_of,
)
from jaxstudy.types import Array

Numbers = Mapping[str, Array | np.ndarray]  # [B] or [B, L] for each leaf


class Encoded(NamedTuple):
    """Inputs of a network: x [B, D], and ids [B, K] of what it embeds, -1 for none."""

    x: Array
    ids: Array


@dataclass(frozen=True)
class Features:
    """Columns that `fit_columns` has filled in."""

    columns: tuple[Column, ...]

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The declarations that each read one column of the table."""
        return tuple(dict.fromkeys(x for c in self.columns for x in leaves_of(c)))

    @property
    def sources(self) -> tuple[str, ...]:
        """The table's columns that are read."""
        return tuple(dict.fromkeys(leaf.column for leaf in self.leaves))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The embeddings, and where their numbers are among the ids."""
        tables, first = [], 0
        for column in self.columns:
            if isinstance(column, Embedding):
                of = column.of
                width = 1
                if isinstance(of, Category) and of.separator is not None:
                    width = of.max_tokens
                where = slice(first, first + width)
                tables.append(Table(name_of(of), size_of(of), column.dimension, where))
                first += width
        return tuple(tables)

    @property
    def names(self) -> tuple[str, ...]:
        """What each of the D columns of x is."""
        return tuple(name for column in self.columns for name in input_names(column))

    def numbers(
        self, table: pd.DataFrame, errors: ValidationErrors | None = None
    ) -> dict[str, np.ndarray]:
        """The numbers [N] or [N, L] that `encode` takes, float32 or int32.

        Raises UserError naming every row, column and wrong value, all at once;
        with `errors` they are added to those instead.
        """
        collected = ValidationErrors("the table") if errors is None else errors
        check_columns(table, self.sources)
        numbers = numbers_of(self.leaves, table, collected)
        if errors is None:
            collected.check()
        return numbers

    def missing_words(self, table: pd.DataFrame) -> dict[str, Counter[str]]:
        """For columns of numbers, the words that count as missing, and how often."""
        return {
            x.column: missing_words(column_of(table, x))
            for x in self.leaves
            if isinstance(x, Numeric | Bucketized)
            or (isinstance(x, Category) and spelling(x.words or ())("NA") is None)
        }

    def keys_of(self, column: str) -> set[str]:
        """Which of the numbers are made of one of the table's columns."""
        return {key_of(leaf) for leaf in self.leaves if leaf.column == column}

    def unknown(self, numbers: Iterable[Numbers]) -> dict[str, int]:
        """How many rows have a word that the vocabulary of a column has not."""
        counts: Counter[str] = Counter()
        for part in numbers:
            for leaf in self.leaves:
                if isinstance(leaf, Category):
                    ids = np.asarray(part[key_of(leaf)])
                    ids = ids.reshape(len(ids), -1)
                    counts[leaf.column] += int((ids == UNKNOWN).any(1).sum())
        return {column: count for column, count in counts.items() if count}

    def encode(self, numbers: Numbers) -> Encoded:
        """Inputs of a network, x [B, D] and ids [B, K]: pure, and a function of rows.

        Each row's are its own alone.
        """
        xp = _module_of(numbers)
        rows = next(iter(numbers.values())).shape[0]
        dense = [d for c in self.columns if (d := _dense(c, numbers)) is not None]
        ids = [_ids(c.of, numbers) for c in self.columns if isinstance(c, Embedding)]
        nothing = xp.zeros((rows, 0), np.float32)
        return Encoded(
            xp.concatenate([nothing, *dense], 1),
            xp.concatenate([nothing.astype(np.int32), *ids], 1),
        )


def _module_of(numbers: Numbers) -> Any:
    """numpy, or where one of the arrays is JAX's, jax.numpy."""
    return jnp if any(isinstance(a, jax.Array) for a in numbers.values()) else np


def numbers_of(
    leaves: Iterable[Any], table: pd.DataFrame, errors: ValidationErrors
) -> dict[str, np.ndarray]:
    """The numbers of each leaf, by its key; adds the errors of its cells."""
    return {
        key_of(x): scaled_numbers(x, raw_numbers(x, column_of(table, x), errors))
        for x in leaves
    }


def select_columns(
    columns: Sequence[Column], names: Sequence[str]
) -> tuple[Column, ...]:
    """The columns that read nothing but these columns of the table.

    Raises UserError where a name is none of theirs.
    """
    kept = tuple(c for c in columns if {*Features((c,)).sources} <= {*names})
    sources = Features(tuple(columns)).sources
    check_columns(pd.DataFrame(columns=list(sources)), names)
    return kept


def cumulative(
    kinds: Mapping[str, Sequence[Column]], columns: Sequence[Column], whole: str
) -> dict[str, tuple[Column, ...]]:
    """For each kind, those of the columns that are of it or of a kind before it.

    The last, which has all, is called `whole`; a kind that adds none is left out.
    """
    sets: dict[str, tuple[Column, ...]] = {}
    taken: tuple[Column, ...] = ()
    for kind, of_kind in kinds.items():
        if more := tuple(column for column in of_kind if column in columns):
            sets[kind] = taken = (*taken, *more)
    return {whole if value == taken else kind: value for kind, value in sets.items()}


def _ids(of: Categorical, numbers: Numbers) -> Array:
    """The numbers [B, L] of a category, NONE for none and for what is absent."""
    xp = _module_of(numbers)
    if isinstance(of, Crossed):
        crossed = crossed_numbers(
            of, [_leaf_ids(leaf, numbers)[:, 0] for leaf in of.of]
        )
        ids = crossed.astype(np.int32)[:, None]
    else:
        ids = _leaf_ids(of, numbers)
    absent = np.array(of.absent or (), np.int32)
    return xp.where(xp.isin(ids, absent), np.int32(NONE), ids)


def _leaf_ids(leaf: Leaf, numbers: Numbers) -> Array:
    given = _module_of(numbers).asarray(numbers[key_of(leaf)])
    return given if given.ndim == 2 else given[:, None]


def crossed_numbers(of: Crossed, ids: Sequence[Any]) -> Any:
    """The buckets [B] of several categories' numbers [B], of numpy or of JAX."""
    h = np.uint32(0)
    for numbers in ids:
        h = _mixed(h + numbers.astype(np.uint32) + np.uint32(1))
    return h % np.uint32(of.buckets)


def _mixed(h: Any) -> Any:
    """The finalizer of MurmurHash3 for 32 bits (Appleby, public domain)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def _dense(column: Column, numbers: Numbers) -> Array | None:
    """What a column adds to x, [B, w]."""
    if isinstance(column, Embedding):
        return None
    xp = _module_of(numbers)
    if isinstance(column, Indicator):
        one_hot = _ids(column.of, numbers)[..., None] == np.arange(size_of(column.of))
        return one_hot.any(1).astype(np.float32)
    given = xp.asarray(numbers[key_of(column)])
    missing = xp.isnan(given)
    z = xp.where(missing, np.float32(scale(column, column.fill or 0.0)), given)
    return xp.stack([z, missing], 1) if column.has_missing else z[:, None]
