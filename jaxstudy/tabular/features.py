"""Feature columns: what a network is to read in a table, declared column by column.

A column that leaves something open (a mean, boundaries, a vocabulary) learns it from
the training rows, and `fit` returns it filled in: what is learned is part of the
column, and saved with it as JSON. Then a table goes two steps. `Features.numbers` makes
numbers of its text, once, and names whatever is wrong in it; `Features.encode` makes a
network's inputs of these numbers, and is pure: jit, vmap and grad go through it.

What a row has nothing in is stated for each column: `missing` and `unknown` are a
bucket of their own, the mean beside an indicator, or a fault. A bucket that no training
row is in counts as nothing, and so does a number that is the same in all of them, for
no weight of it was ever trained. Words for "missing" (NA, null, ?) are that in columns
of numbers; in others they are words.
"""

import dataclasses
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Annotated, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pydantic

from jaxstudy.messages import ValidationErrors, did_you_mean, enumerated, shortened
from jaxstudy.types import Array, UserError

FLOAT32_MAX = float(np.finfo(np.float32).max)
UNNAMED = "Unnamed: "  # and its place from 0: how pandas names a blank header cell
SAMPLE = 100_000  # values that quantiles are of: all, or as many drawn from all
MOST_WORDS = 1_000_000  # in one vocabulary: more belong into hash buckets
MISSING, UNKNOWN = 0, 1  # numbers of a category that is not there, or not known
NONE = -1  # fills lists up to a common length
# in lower case; what statistics programs, databases and spreadsheets write
MISSING_WORDS = ("na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?", "-")

Numbers = Mapping[str, Array | np.ndarray]  # [B] or [B, L] for each leaf


# ------------------------------------------------------------------ columns


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


class Encoded(NamedTuple):
    """Inputs of a network: x [B, D], and ids [B, K] of what it embeds, -1 for none."""

    x: Array
    ids: Array


# ------------------------------------------------------------------ a table as numbers


def _leaves(column: Column | Categorical) -> tuple[Any, ...]:
    if isinstance(column, Crossed):
        return column.of
    if isinstance(column, Indicator | Embedding):
        return _leaves(column.of)
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


def _key(leaf: Numeric | Leaf) -> str:
    """Where its numbers are."""
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


def _series(table: pd.DataFrame, leaf: Numeric | Leaf) -> pd.Series:
    return cast(pd.Series, table[leaf.column])


def _are_missing_words(texts: pd.Series) -> pd.Series:
    return texts.str.lower().isin(MISSING_WORDS)


def _as_number(series: pd.Series, errors: ValidationErrors) -> np.ndarray:
    """Numbers [N] of float64, NaN where they are missing, every other fault noted."""
    missing, values = series.isna().to_numpy(), series
    if series.dtype == object or isinstance(series.dtype, pd.StringDtype):
        text = series.astype(str).str.strip()
        missing = missing | (text == "").to_numpy()
        missing = missing | _are_missing_words(text).to_numpy()
        # 1_000 is Python, not data
        plain = text.where(~text.str.contains("_", regex=False), "no number")
        values = cast(pd.Series, pd.to_numeric(plain, errors="coerce"))
    found = values.astype(float).to_numpy(np.float64, na_value=np.nan, copy=True)
    found[missing] = np.nan
    unreadable = np.isnan(found) & ~missing
    too_large = np.abs(found) > FLOAT32_MAX
    for bad, what in (
        (unreadable, "is not a number"),
        (too_large, "is too large for a 32-bit number"),
    ):
        _refuse(series, bad, what, errors)
    found[unreadable | too_large] = np.nan
    return np.where(unreadable | too_large, 0.0, found)  # so not missing, too


def _as_text(series: pd.Series) -> pd.Series:
    """Text, None where it is missing; 3 and 3.0 are the same category."""

    def plain(value: Any) -> str | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).strip() or None

    distinct = series.drop_duplicates()
    texts = {v: plain(v) for v in distinct[distinct.notna()]}
    return series.map(lambda value: texts.get(value), na_action="ignore").astype(object)


def plain_number(text: str) -> str | None:
    """The shortest text of a number, "3" of "3.0" and of "3e0"; None of other text.

    007 is no number but a code: another than 7, and than 07.
    """
    try:
        value = float(text)
    except ValueError:
        return None
    digits = text.lstrip("+-")
    code = digits[:1] == "0" and digits[1:2].isdigit()
    if code or "_" in text or not math.isfinite(value):
        return None
    exact = Decimal(repr(value) if "e" in text.lower() else text)
    shortest = exact.normalize(Context(prec=max(len(text), 20)))
    return format(shortest, "f") if shortest else "0"


def one_spelling(
    words: Iterable[str], missing: Collection[str] = ()
) -> dict[str, str | None]:
    """What each of all the words of a column means.

    Where all of them are numbers, but for some that say "missing" and mean None, "3"
    and "3.0" are the same; else every word is another.
    """
    plain = {word: plain_number(word) for word in words}
    numbers = [n for word, n in plain.items() if word.lower() not in missing]
    if not numbers or None in numbers:
        return {word: word for word in plain}
    return plain


def spelling(words: Collection[str]) -> Callable[[str], str | None]:
    """What a word means beside a vocabulary: the same as it did where that is from."""
    if not words or not all(plain_number(word) == word for word in words):
        return lambda word: word
    return lambda word: (
        None if word.lower() in MISSING_WORDS else plain_number(word) or word
    )


def _hash(text: str, buckets: int) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets + 1


def _words(text: Any, leaf: Category) -> list[str]:
    if not isinstance(text, str):
        return []
    if leaf.separator is None:
        return [text]
    parts = [part.strip() for part in text.split(leaf.separator)]
    return list(dict.fromkeys(filter(None, parts)))[: leaf.max_tokens]


def _refuse(
    series: pd.Series, bad: np.ndarray, what: str, errors: ValidationErrors
) -> None:
    """Note the rows [N] of a column that are at fault."""
    for i in np.flatnonzero(bad).tolist():
        value = series.iloc[i]
        blank = pd.isna(value) or not str(value).strip()
        shown = "" if blank else f"{shortened(repr(value))} "
        name = shortened(repr(series.name))
        errors.add(f"row {series.index[i]}, column {name}: {shown}{what}")


def _category_numbers(
    leaf: Category, series: pd.Series, errors: ValidationErrors
) -> np.ndarray:
    """Numbers [N], or [N, max_tokens] of lists."""
    assert leaf.words is not None, "not fitted"
    texts, words = _as_text(series), pd.Index(leaf.words, dtype=object)
    meant = spelling(leaf.words)
    if leaf.separator is None:
        texts = texts.map({t: meant(t) for t in texts.dropna().unique()}).astype(object)
        place = words.get_indexer(texts).astype(np.int32)
        found = np.where(place < 0, UNKNOWN, place + UNKNOWN + 1)
        found = np.where(texts.isna(), MISSING, found)[:, None]
    else:
        codes, distinct = pd.factorize(texts, use_na_sentinel=False)
        lists = np.full((len(distinct), leaf.max_tokens), NONE, np.int32)
        for own, text in zip(lists, distinct, strict=True):
            listed = [*filter(None, map(meant, _words(text, leaf)))]
            place = words.get_indexer(listed) + UNKNOWN + 1
            own[: len(listed) or 1] = np.maximum(place, UNKNOWN) if listed else MISSING
        found = lists[codes]
    if leaf.missing == "refuse":
        _refuse(series, (found == MISSING).any(1), "is missing", errors)
    if leaf.unknown == "refuse":
        _refuse(series, (found == UNKNOWN).any(1), "is none of those known", errors)
    return found if leaf.separator is not None else found[:, 0].astype(np.int32)


def _numbers(
    leaf: Numeric | Leaf, series: pd.Series, errors: ValidationErrors
) -> np.ndarray:
    """The numbers of one leaf before it is fitted, its faults noted.

    Of float64 [N]: 32 bits would take 1,000 moments of an hour for 30.
    """
    if isinstance(leaf, Category):
        return _category_numbers(leaf, series, errors)
    if isinstance(leaf, Hashed):
        texts = _as_text(series)
        number = {t: _hash(t, leaf.buckets) for t in texts.dropna().unique()}
        found = texts.map(number).fillna(MISSING).to_numpy(np.int32)
        missing = found == MISSING
    else:
        found = _as_number(series, errors)
        missing = np.isnan(found)
        if isinstance(leaf, Numeric) and leaf.scale == "log":
            _refuse(series, found <= -1, "has no log(1 + x)", errors)
            found[found <= -1] = 0
            found = np.log1p(found)
    if leaf.missing == "refuse":
        _refuse(series, missing, "is missing", errors)
    return found


def _finished(leaf: Numeric | Leaf, found: np.ndarray) -> np.ndarray:
    """The same, float32 or int32 and by what the leaf has learned."""
    if isinstance(leaf, Numeric):
        scaled = _scaled(leaf, found)
        return np.clip(scaled, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    return _bucket(leaf, found) if isinstance(leaf, Bucketized) else found


def _scaled(leaf: Numeric, value: Any) -> Any:
    assert leaf.divisor is not None, "not fitted"
    gap = value - (leaf.shift or 0.0)
    return gap / leaf.divisor if leaf.divisor else gap * 0.0


def _bucket(leaf: Bucketized, found: np.ndarray) -> np.ndarray:
    """The numbers [N] of buckets, of numbers [N]."""
    place = np.searchsorted(np.array(leaf.boundaries), found, side="right")
    return np.where(np.isnan(found), MISSING, place + 1).astype(np.int32)


# ------------------------------------------------------------------ encoding


def _ids(of: Categorical, numbers: Numbers) -> Array:
    """The numbers [B, L] of a category, NONE for none and for what is absent."""
    if isinstance(of, Crossed):
        crossed = _crossing(of, [_leaf_ids(leaf, numbers)[:, 0] for leaf in of.of])
        ids = crossed.astype(jnp.int32)[:, None]
    else:
        ids = _leaf_ids(of, numbers)
    absent = np.array(of.absent or (), np.int32)
    return jnp.where(jnp.isin(ids, absent), NONE, ids)


def _leaf_ids(leaf: Leaf, numbers: Numbers) -> Array:
    given = jnp.asarray(numbers[_key(leaf)])
    return given if given.ndim == 2 else given[:, None]


def _crossing(of: Crossed, ids: Sequence[Any]) -> Any:
    """The buckets [B] of several categories' numbers [B], of numpy or of JAX."""
    h = np.uint32(0)
    for own in ids:
        h = _mixed(h + own.astype(np.uint32) + np.uint32(1))
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
    if isinstance(column, Indicator):
        ids = _ids(column.of, numbers)
        return jax.nn.one_hot(ids, size_of(column.of)).max(1)
    given = jnp.asarray(numbers[_key(column)])
    missing = jnp.isnan(given)
    z = jnp.where(missing, _scaled(column, column.fill or 0.0), given)
    return jnp.stack([z, missing], 1) if column.has_missing else z[:, None]


@dataclass(frozen=True)
class Features:
    """Columns that `fit` has filled in."""

    columns: tuple[Column, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The table's columns that are read."""
        return tuple(dict.fromkeys(x.column for c in self.columns for x in _leaves(c)))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The embeddings, and where their numbers are among the ids."""
        found, first = [], 0
        for column in self.columns:
            if isinstance(column, Embedding):
                of = column.of
                width = 1
                if isinstance(of, Category) and of.separator is not None:
                    width = of.max_tokens
                where = slice(first, first + width)
                found.append(Table(name_of(of), size_of(of), column.dimension, where))
                first += width
        return tuple(found)

    @property
    def names(self) -> tuple[str, ...]:
        """What each of the D columns of x is."""
        return tuple(name for column in self.columns for name in _names(column))

    def numbers(
        self, table: pd.DataFrame, errors: ValidationErrors | None = None
    ) -> dict[str, np.ndarray]:
        """The numbers [N] or [N, L] that `encode` takes, float32 or int32.

        Raises UserError naming every row, column and value at fault, all at once;
        with `errors` they are noted there instead.
        """
        noted = ValidationErrors("the table") if errors is None else errors
        check_columns(table, self.sources)
        leaves = dict.fromkeys(leaf for c in self.columns for leaf in _leaves(c))
        found = {x: _finished(x, _numbers(x, _series(table, x), noted)) for x in leaves}
        if errors is None:
            noted.check()
        return {_key(leaf): numbers for leaf, numbers in found.items()}

    def missing_words(self, table: pd.DataFrame) -> dict[str, Counter[str]]:
        """For columns of numbers, the words that count as missing, and how often."""
        leaves = dict.fromkeys(leaf for c in self.columns for leaf in _leaves(c))
        return {
            x.column: missing_words(_series(table, x))
            for x in leaves
            if isinstance(x, Numeric | Bucketized)
            or (isinstance(x, Category) and spelling(x.words or ())("NA") is None)
        }

    def keys_of(self, column: str) -> set[str]:
        """Which of the numbers are made of one of the table's columns."""
        leaves = (leaf for c in self.columns for leaf in _leaves(c))
        return {_key(leaf) for leaf in leaves if leaf.column == column}

    def unknown(self, numbers: Iterable[Numbers]) -> dict[str, int]:
        """How many rows have a word that the vocabulary of a column has not."""
        leaves = dict.fromkeys(leaf for c in self.columns for leaf in _leaves(c))
        counts: Counter[str] = Counter()
        for own in numbers:
            for leaf in leaves:
                if isinstance(leaf, Category):
                    ids = np.asarray(own[_key(leaf)]).reshape(len(own[_key(leaf)]), -1)
                    counts[leaf.column] += int((ids == UNKNOWN).any(1).sum())
        return {column: count for column, count in counts.items() if count}

    def encode(self, numbers: Numbers) -> Encoded:
        """Inputs of a network, x [B, D] and ids [B, K]: pure, and a function of rows.

        Each row's are its own alone.
        """
        rows = len(next(iter(numbers.values())))
        dense = [d for c in self.columns if (d := _dense(c, numbers)) is not None]
        ids = [_ids(c.of, numbers) for c in self.columns if isinstance(c, Embedding)]
        nothing = jnp.zeros((rows, 0))
        return Encoded(
            jnp.concatenate([nothing, *dense], 1),
            jnp.concatenate([nothing.astype(jnp.int32), *ids], 1),
        )


def describe(column: Column) -> str:
    """How a column is read, in words."""
    if isinstance(column, Numeric):
        scales = {"standard": "scaled", "log": "log(1 + x), scaled"}
        return f"a number, {scales.get(column.scale, 'from 0 to 1')}"
    how = "ones and zeros"
    if isinstance(column, Embedding):
        how = f"vectors of {column.dimension} numbers"
    return f"{type(column.of).__name__.lower()}, as {how}"


def _names(column: Column) -> list[str]:
    """What a column adds to x, by name."""
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


# ------------------------------------------------------------------ what is learned


class _Moments:
    """Mean, deviation and range in one pass, merged by Chan, Golub and LeVeque 1983."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high, self.missing = math.inf, -math.inf, False

    def add(self, values: np.ndarray) -> None:
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
        self.moments, self.sample = _Moments(), _Sample()

    def add(self, series: pd.Series, errors: ValidationErrors) -> None:
        leaf = self.leaf
        if isinstance(leaf, Category):
            return self._count_words(leaf, series, errors)
        numbers = _numbers(leaf, series, errors)
        if isinstance(leaf, Hashed):
            self.counts.update(numbers.tolist())
            return None
        self.moments.add(numbers)
        if isinstance(leaf, Bucketized):
            if isinstance(leaf.boundaries, int):
                self.sample.add(numbers)
            else:
                self.counts.update(_bucket(leaf, numbers).tolist())
        return None

    def _count_words(
        self, leaf: Category, series: pd.Series, errors: ValidationErrors
    ) -> None:
        texts = _as_text(series)
        if leaf.missing == "refuse":
            _refuse(series, texts.isna().to_numpy(), "is missing", errors)
        for text, count in texts.value_counts(dropna=False).items():
            for word in _words(text, leaf) or [None]:
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
        found = {
            "shift": shift,
            "divisor": divisor,
            "fill": m.mean,
            "has_missing": m.missing,
        }
        left_open = {n: v for n, v in found.items() if getattr(leaf, n) is None}
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
        there = [word for word in self.counts if word is not None]
        if words is None:
            meant = one_spelling(there, MISSING_WORDS)
        else:
            meant = dict(zip(there, map(spelling(words), there), strict=True))
        for word, count in self.counts.items():
            counts[meant.get(word)] += count
        missing = counts.pop(None, 0)
        if words is None:
            often = [word for word in counts if counts[word] >= leaf.min_count]
            words = tuple(sorted(often, key=lambda word: (-counts[word], word)))
        rows = [missing, len(counts.keys() - {*words}), *(counts[w] for w in words)]
        absent = tuple(number for number, n in enumerate(rows) if not n)
        return dataclasses.replace(leaf, words=words, absent=absent)


def fit(
    columns: Sequence[Column],
    tables: pd.DataFrame | Iterable[pd.DataFrame],
    errors: ValidationErrors | None = None,
) -> Features:
    """Fill the columns in from the training rows, in one pass over one or more tables.

    Crossed columns take a second one: then tables must be what can be iterated again.

    Means, deviations, ranges and vocabularies are exact; quantiles are of at most
    SAMPLE values, drawn at random where there are more.

    Raises UserError naming every row, column and value at fault (with `errors` they are
    noted there instead), where a column is not there, or no row; ValueError where the
    columns make no sense. A column without any number is one where all are missing.
    """
    _check(columns)
    noted = ValidationErrors("the training rows") if errors is None else errors
    leaves = dict.fromkeys(leaf for column in columns for leaf in _leaves(column))
    learners = {leaf: _Learner(leaf) for leaf in leaves}
    rows, tables = 0, [tables] if isinstance(tables, pd.DataFrame) else tables
    if isinstance(tables, Iterator) and any(map(_crossed, columns)):
        raise ValueError("crossed columns need tables that can be iterated twice")
    for table in tables:
        check_columns(table, [leaf.column for leaf in leaves])
        rows += len(table)
        for leaf, learner in learners.items():
            learner.add(_series(table, leaf), noted)
    noted.check()
    if not rows:
        raise UserError("there is no training row")
    learned = {leaf: learner.learned() for leaf, learner in learners.items()}
    fitted = Features(tuple(_filled(column, learned) for column in columns))
    crossed = [of for column in fitted.columns if (of := _crossed(column))]
    seen = {of: np.zeros(of.buckets, bool) for of in crossed}
    for table in tables if crossed else ():
        numbers = {
            _key(x): _finished(x, _numbers(x, _series(table, x), noted))
            for x in itertools.chain.from_iterable(map(_leaves, crossed))
        }
        for of, there in seen.items():
            # on the host: JAX would compile anew for each number of rows
            there[_crossing(of, [numbers[_key(leaf)] for leaf in of.of])] = True
    for of, there in seen.items():
        absent = tuple(np.flatnonzero(~there).tolist())
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


def _check(columns: Sequence[Column]) -> None:
    """Raise ValueError where columns make no sense."""
    leaves = dict.fromkeys(leaf for column in columns for leaf in _leaves(column))
    for key, count in Counter(map(_key, leaves)).items():
        if count > 1:
            raise ValueError(f"{key} is declared in several ways")
    if len(columns) != len(set(columns)) or not columns:
        raise ValueError("columns are needed, and each once")
    for column in columns:
        of = column if isinstance(column, Numeric) else column.of
        sizes = [column.dimension] if isinstance(column, Embedding) else []
        sizes += [of.buckets] if isinstance(of, Hashed | Crossed) else []
        for leaf in _leaves(column):
            if isinstance(of, Crossed) and getattr(leaf, "separator", None) is not None:
                raise ValueError(f"{name_of(of)}: a list cannot be crossed")
            sizes += [leaf.buckets] if isinstance(leaf, Hashed) else []
            sizes += (
                [leaf.min_count, leaf.max_tokens] if isinstance(leaf, Category) else []
            )
            boundaries = getattr(leaf, "boundaries", (0.0,))
            sizes += [boundaries] if isinstance(boundaries, int) else []
            if isinstance(boundaries, tuple) and (
                not boundaries or (np.diff(boundaries) <= 0).any()
            ):
                raise ValueError(f"{name_of(leaf)}: boundaries must rise")
        if any(size < 1 for size in sizes):
            raise ValueError(f"{name_of(column)}: sizes must be 1 or more")


def check_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise UserError, with a suggestion, where a table lacks one of some columns."""
    counts = Counter(table.columns)
    for name in names:
        if counts[name] == 1:
            continue
        if counts[name]:
            raise UserError(f"column {shortened(repr(name))} occurs more than once")
        known = [str(column) for column in table.columns]
        hint = did_you_mean(name, known) or f" from {enumerated(known)}"
        raise UserError(f"column {name!r} is missing{hint}")


# ------------------------------------------------------------------ columns unasked

FEW, MANY = 20, 1000  # different values: each a column of its own, or a vector


class Inferred(NamedTuple):
    """Columns for a table nobody described, and why others of it are left out."""

    columns: tuple[Column, ...]
    left_out: dict[str, str]
    missing_words: dict[str, Counter[str]]
    """For columns of numbers, the words that count as missing, and how often."""


def missing_words(series: pd.Series) -> Counter[str]:
    """The words of a column that mean "missing" among numbers, and how often."""
    texts = _as_text(series).dropna()
    return Counter(texts[_are_missing_words(texts.astype(str))])


class _Look:
    """What one column looks like, over tables that come one after the other."""

    def __init__(self) -> None:
        self.rows = self.there = self.numeric = 0
        self.values, self.missing = Counter[str](), Counter[str]()
        self.moments, self.whole = _Moments(), True
        self.counts_from: float | None = None

    def add(self, series: pd.Series) -> None:
        texts = _as_text(series)
        there = texts.dropna()
        self.there += len(there)
        self.missing += missing_words(series)
        if len(self.values) <= MANY:
            self.values.update(there.unique())
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
        """Whether what is no number in it is missing, or a fault."""
        there = self.there - self.missing.total()
        return there > 0 and self.numeric >= 0.9 * there

    @property
    def means_numbers(self) -> bool:
        """Whether nothing but numbers and words for missing ones are in it."""
        meant = one_spelling(self.values, MISSING_WORDS)
        return self.is_numeric and any(meant.get(w) != w for w in self.missing)

    def column(self, name: str) -> Column | str:
        """The column, or why there is none."""
        if not self.there:
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
        if many > 0.5 * self.there:
            return "has another text in nearly every row"
        if many <= min(MANY, self.there / 10):  # ten rows and more for each
            return Embedding(Category(name, min_count=5), 4)
        return Indicator(Hashed(name, 100))


def infer(tables: Iterable[pd.DataFrame], label: str) -> Inferred:
    """Columns for all of a table but its label, in one pass.

    Numbers are scaled (their logarithms, with a long tail), few different values become
    indicators, more of them vectors, very many hash buckets. What counts the rows tells
    nothing of others, and is left out. Raises UserError where nothing is left.
    """
    looks: dict[str, _Look] = {}
    for table in tables:
        check_columns(table, [label, *table.columns])
        for name in table.columns:
            if name != label:
                looks.setdefault(name, _Look()).add(cast(pd.Series, table[name]))
    found = {name: look.column(name) for name, look in looks.items()}
    columns = tuple(c for c in found.values() if not isinstance(c, str))
    left_out = {name: why for name, why in found.items() if isinstance(why, str)}
    if not columns:
        reasons = [f"{name!r} {why}" for name, why in left_out.items()]
        because = f": {enumerated(reasons)}" if reasons else ""
        raise UserError(f"there is no column to learn {label!r} from{because}")
    missing = {
        name: looks[name].missing
        for name, column in found.items()
        if isinstance(column, Numeric) or looks[name].means_numbers
    }
    return Inferred(columns, left_out, missing)
