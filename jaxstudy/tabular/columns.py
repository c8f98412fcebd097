"""Feature columns: what a network is to read in a table, declared column by column.

A column that leaves something open (a mean, boundaries, a vocabulary) learns it from
the training rows: `fitting.fit_columns` returns it filled in, so what is learned is
part of the column and is saved with it as JSON.

For each column it is stated what a row without a value gets: `missing` and `unknown`
are a bucket of their own, the mean beside an indicator, or an error. A bucket that no
training row is in counts as nothing, and so does a number that is the same in all of
them, for no weight of it was ever trained.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pydantic

from jaxstudy.messages import did_you_mean, enumerated, shortened
from jaxstudy.types import UserError

FLOAT32_MAX = float(np.finfo(np.float32).max)
UNNAMED = "Unnamed: "  # and its place from 0: how pandas names a blank header cell

MISSING, UNKNOWN = 0, 1  # numbers of a category that is not there, or not known
NONE = -1  # fills lists up to a common length


@dataclass(frozen=True)
class Numeric:
    """A number, scaled, and whether it is missing: [B, 1], or [B, 2].

    standard: (x - mean) / standard deviation; log: the same of log(1 + x); min-max:
    from 0 to 1 over the training rows. A missing number counts as the mean, and has a 1
    in the second column, which is there if a training row misses the number.
    """

    column: str
    scale: Literal["standard", "log", "min-max"] = "standard"
    missing: Literal["mean", "refuse"] = "mean"
    shift: float | None = None
    """What is subtracted; learned, as the next three are, unless given."""
    divisor: float | None = None
    """0 where the training rows have one value: then the number counts as nothing."""
    fill: float | None = None
    """What a missing number counts as, of log(1 + x) on that scale."""
    has_missing: bool | None = None
    kind: Literal["numeric"] = "numeric"


@dataclass(frozen=True)
class Bucketized:
    """Which interval a number is in: bucket i + 1 holds b_i <= x < b_{i + 1}.

    `boundaries` are given, or so many buckets of equally many training rows are made.
    The first bucket, 0, is of missing numbers.
    """

    column: str
    boundaries: tuple[float, ...] | int
    missing: Literal["bucket", "refuse"] = "bucket"
    absent: tuple[int, ...] | None = None
    """Buckets that no training row is in; learned."""
    kind: Literal["bucketized"] = "bucketized"


@dataclass(frozen=True)
class Category:
    """A word of a vocabulary: 0 is missing, 1 unknown, then come the words.

    Words that fewer than `min_count` training rows have are unknown too, so that what
    is unknown later has been trained. With a `separator` the text is a list of words,
    of which the first `max_tokens` count.
    """

    column: str
    separator: str | None = None
    max_tokens: int = 8
    min_count: int = 1
    missing: Literal["bucket", "refuse"] = "bucket"
    unknown: Literal["bucket", "refuse"] = "bucket"
    words: tuple[str, ...] | None = None
    """The vocabulary, the most frequent word first; learned unless given."""
    absent: tuple[int, ...] | None = None
    kind: Literal["category"] = "category"


@dataclass(frozen=True)
class Hashed:
    """One of so many buckets, by the text's hash: 0 is missing, then 1 to `buckets`.

    No vocabulary is kept, and different words may share a bucket. The hash is the first
    8 bytes of BLAKE2b (RFC 7693), little-endian, modulo the number of buckets.
    """

    column: str
    buckets: int
    missing: Literal["bucket", "refuse"] = "bucket"
    absent: tuple[int, ...] | None = None
    kind: Literal["hashed"] = "hashed"


Leaf = Annotated[Bucketized | Category | Hashed, pydantic.Field(discriminator="kind")]


@dataclass(frozen=True)
class Crossed:
    """All of several categories at once, in so many buckets by a hash of their numbers.

    h_0 = 0; h_{i + 1} = f(h_i + number_i + 1) with f the finalizer of MurmurHash3.
    """

    of: tuple[Leaf, ...]
    buckets: int
    absent: tuple[int, ...] | None = None
    kind: Literal["crossed"] = "crossed"


Categorical = Annotated[
    Bucketized | Category | Hashed | Crossed, pydantic.Field(discriminator="kind")
]


@dataclass(frozen=True)
class Indicator:
    """A category as zeros and a one for each of its numbers; a list as several ones."""

    of: Categorical
    kind: Literal["indicator"] = "indicator"


@dataclass(frozen=True)
class Embedding:
    """A category as a vector that is trained with the network; a list as their mean."""

    of: Categorical
    dimension: int
    kind: Literal["embedding"] = "embedding"


Column = Annotated[
    Numeric | Indicator | Embedding, pydantic.Field(discriminator="kind")
]


class Table(NamedTuple):
    """The vectors [size, dimension] of an embedding, its numbers in ids[:, where]."""

    name: str
    size: int
    dimension: int
    where: slice


def leaves_of(column: Column | Categorical) -> tuple[Any, ...]:
    """The declarations that each read one column of the table."""
    if isinstance(column, Crossed):
        return column.of
    if isinstance(column, Indicator | Embedding):
        return leaves_of(column.of)
    return (column,)


def name_of(column: Column | Categorical) -> str:
    """What a column is called in tables and files."""
    if isinstance(column, Crossed):
        return " x ".join(name_of(leaf) for leaf in column.of)
    if isinstance(column, Indicator | Embedding):
        return name_of(column.of)
    if isinstance(column, Bucketized):
        return f"{column.column} (buckets)"
    if isinstance(column, Hashed):
        return f"{column.column} ({column.buckets} hash buckets)"
    return column.column


def key_of(leaf: Numeric | Leaf) -> str:
    """The name of a leaf's numbers."""
    return f"{leaf.kind} {name_of(leaf)}"


def size_of(of: Categorical) -> int:
    """How many numbers a category may have."""
    if isinstance(of, Crossed):
        return of.buckets
    if isinstance(of, Bucketized):
        assert isinstance(of.boundaries, tuple), "not fitted"
        return len(of.boundaries) + 2
    if isinstance(of, Hashed):
        return of.buckets + 1
    assert of.words is not None, "not fitted"
    return len(of.words) + 2


def describe_column(column: Column) -> str:
    """How a column is read, in words."""
    if isinstance(column, Numeric):
        scales = {"standard": "scaled", "log": "log(1 + x), scaled"}
        return f"a number, {scales.get(column.scale, 'from 0 to 1')}"
    how = "ones and zeros"
    if isinstance(column, Embedding):
        how = f"vectors of {column.dimension} numbers"
    return f"{type(column.of).__name__.lower()}, as {how}"


def input_names(column: Column) -> list[str]:
    """The names of the inputs that a column adds to x."""
    name = name_of(column)
    if isinstance(column, Numeric):
        return [name, f"{name} is missing"] if column.has_missing else [name]
    if isinstance(column, Embedding):
        return []
    of = column.of
    if isinstance(of, Category):
        words = ("(missing)", "(unknown)", *(of.words or ()))
        return [f"{name} = {word}" for word in words]
    if isinstance(of, Bucketized):
        assert isinstance(of.boundaries, tuple)
        ends = [-math.inf, *of.boundaries, math.inf]
        between = [f"{a:g} to {b:g}" for a, b in itertools.pairwise(ends)]
        return [f"{of.column} {what}" for what in ("(missing)", *between)]
    return [f"{name} {number}" for number in range(size_of(of))]


def check_declarations(columns: Sequence[Column]) -> None:
    """Raise ValueError where columns would mean something else than they say."""
    leaves = dict.fromkeys(leaf for column in columns for leaf in leaves_of(column))
    for key, count in Counter(map(key_of, leaves)).items():
        if count > 1:
            raise ValueError(f"{key} is declared in several ways")
    if len(columns) != len(set(columns)) or not columns:
        raise ValueError("columns are needed, and each once")
    for leaf in leaves:
        boundaries = getattr(leaf, "boundaries", (0.0,))
        if isinstance(boundaries, tuple) and (
            not boundaries or (np.diff(boundaries) <= 0).any()
        ):
            raise ValueError(f"{name_of(leaf)}: boundaries must rise")
    for column in columns:
        of = None if isinstance(column, Numeric) else column.of
        if isinstance(of, Crossed) and any(
            getattr(leaf, "separator", None) is not None for leaf in of.of
        ):
            raise ValueError(f"{name_of(of)}: a list cannot be crossed")


def check_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise UserError, with a suggestion, where a table lacks one of some columns."""
    counts = Counter(table.columns)
    for name in names:
        if counts[name] == 1:
            continue
        if counts[name]:
            raise UserError(f"column {shortened(repr(name))} occurs more than once")
        header = [str(column) for column in table.columns]
        hint = did_you_mean(name, header) or f" from {enumerated(header)}"
        raise UserError(f"column {name!r} is missing{hint}")
