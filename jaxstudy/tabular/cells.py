"""The cells of a table as numbers and words, with every error named where it is.

Words for "missing" (NA, null, ?) are that in columns of numbers; in others they are
words.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from decimal import Context, Decimal
from typing import Any, cast

import numpy as np
import pandas as pd

from jaxstudy.messages import ValidationErrors, shortened
from jaxstudy.tabular.columns import (
    FLOAT32_MAX,
    MISSING,
    NONE,
    UNKNOWN,
    Bucketized,
    Category,
    Hashed,
    Leaf,
    Numeric,
)

# in lower case; what statistics programs, databases and spreadsheets write
MISSING_WORDS = ("na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?", "-")


def column_of(table: pd.DataFrame, leaf: Numeric | Leaf) -> pd.Series:
    """The column of the table that a declaration reads."""
    return cast(pd.Series, table[leaf.column])


def _are_missing_words(texts: pd.Series) -> pd.Series:
    return texts.str.lower().isin(MISSING_WORDS)


def parse_numbers(series: pd.Series, errors: ValidationErrors) -> np.ndarray:
    """A column as float64 [N], NaN where a number is missing; adds its other errors."""
    missing, values = series.isna().to_numpy(), series
    if series.dtype == object or isinstance(series.dtype, pd.StringDtype):
        text = series.astype(str).str.strip()
        missing = missing | (text == "").to_numpy()
        missing = missing | _are_missing_words(text).to_numpy()
        # 1_000 is Python, not data
        plain = text.where(~text.str.contains("_", regex=False), "no number")
        values = cast(pd.Series, pd.to_numeric(plain, errors="coerce"))
    numbers = values.astype(float).to_numpy(np.float64, na_value=np.nan, copy=True)
    numbers[missing] = np.nan
    unreadable = np.isnan(numbers) & ~missing
    too_large = np.abs(numbers) > FLOAT32_MAX
    for bad, what in (
        (unreadable, "is not a number"),
        (too_large, "is too large for a 32-bit number"),
    ):
        add_errors(series, bad, what, errors)
    # already reported, so not missing too
    return np.where(unreadable | too_large, 0.0, numbers)


def as_text(series: pd.Series) -> pd.Series:
    """A column as text, None where it is missing; 3 and 3.0 are the same category."""

    def plain(value: Any) -> str | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).strip() or None

    distinct = series.drop_duplicates()
    texts = {v: plain(v) for v in distinct[distinct.notna()]}
    return series.map(lambda value: texts.get(value), na_action="ignore").astype(object)


def missing_words(series: pd.Series) -> Counter[str]:
    """The words of a column that mean "missing" among numbers, and how often."""
    texts = as_text(series).dropna()
    return Counter(texts[_are_missing_words(texts.astype(str))])


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


def split_words(text: Any, leaf: Category) -> list[str]:
    """The words of a cell, each once: a list where the column has a separator."""
    if not isinstance(text, str):
        return []
    if leaf.separator is None:
        return [text]
    parts = [part.strip() for part in text.split(leaf.separator)]
    return list(dict.fromkeys(filter(None, parts)))[: leaf.max_tokens]


def add_errors(
    series: pd.Series, bad: np.ndarray, what: str, errors: ValidationErrors
) -> None:
    """Add an error for each row of a column where `bad` [N] is true."""
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
    texts, words = as_text(series), pd.Index(leaf.words, dtype=object)
    meant = spelling(leaf.words)
    if leaf.separator is None:
        texts = texts.map({t: meant(t) for t in texts.dropna().unique()}).astype(object)
        place = words.get_indexer(texts).astype(np.int32)
        numbers = np.where(place < 0, UNKNOWN, place + UNKNOWN + 1)
        numbers = np.where(texts.isna(), MISSING, numbers)[:, None]
    else:
        codes, distinct = pd.factorize(texts, use_na_sentinel=False)
        lists = np.full((len(distinct), leaf.max_tokens), NONE, np.int32)
        for row, text in zip(lists, distinct, strict=True):
            listed = [*filter(None, map(meant, split_words(text, leaf)))]
            place = words.get_indexer(listed) + UNKNOWN + 1
            row[: len(listed) or 1] = np.maximum(place, UNKNOWN) if listed else MISSING
        numbers = lists[codes]
    if leaf.missing == "refuse":
        add_errors(series, (numbers == MISSING).any(1), "is missing", errors)
    if leaf.unknown == "refuse":
        add_errors(
            series, (numbers == UNKNOWN).any(1), "is none of those known", errors
        )
    return numbers if leaf.separator is not None else numbers[:, 0].astype(np.int32)


def raw_numbers(
    leaf: Numeric | Leaf, series: pd.Series, errors: ValidationErrors
) -> np.ndarray:
    """The numbers of one leaf before scaling; adds the errors of its cells.

    Of float64 [N]: 32 bits would round 1,000 moments of an hour to 30.
    """
    if isinstance(leaf, Category):
        return _category_numbers(leaf, series, errors)
    if isinstance(leaf, Hashed):
        texts = as_text(series)
        buckets = {t: _hash(t, leaf.buckets) for t in texts.dropna().unique()}
        numbers = texts.map(buckets).fillna(MISSING).to_numpy(np.int32)
        missing = numbers == MISSING
    else:
        numbers = parse_numbers(series, errors)
        missing = np.isnan(numbers)
        if isinstance(leaf, Numeric) and leaf.scale == "log":
            add_errors(series, numbers <= -1, "has no log(1 + x)", errors)
            numbers[numbers <= -1] = 0
            numbers = np.log1p(numbers)
    if leaf.missing == "refuse":
        add_errors(series, missing, "is missing", errors)
    return numbers


def scaled_numbers(leaf: Numeric | Leaf, numbers: np.ndarray) -> np.ndarray:
    """What `raw_numbers` returns, scaled or in buckets: float32 or int32."""
    if isinstance(leaf, Numeric):
        scaled = scale(leaf, numbers)
        return np.clip(scaled, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    return bucket_numbers(leaf, numbers) if isinstance(leaf, Bucketized) else numbers


def scale(leaf: Numeric, value: Any) -> Any:
    """(value - shift) / divisor, and 0 where the divisor is."""
    assert leaf.divisor is not None, "not fitted"
    gap = value - (leaf.shift or 0.0)
    return gap / leaf.divisor if leaf.divisor else gap * 0.0


def bucket_numbers(leaf: Bucketized, values: np.ndarray) -> np.ndarray:
    """The bucket [N] that each of some values [N] is in."""
    place = np.searchsorted(np.array(leaf.boundaries), values, side="right")
    return np.where(np.isnan(values), MISSING, place + 1).astype(np.int32)
