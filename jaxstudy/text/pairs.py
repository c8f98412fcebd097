"""Texts in two languages: Korean and English dates, and messages of a program."""

import datetime
import gettext
import re
import struct
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from babel.dates import format_date, format_skeleton

from jaxstudy.data.sources import LIBREOFFICE_KO, check_folder
from jaxstudy.data.splits import grouped_split
from jaxstudy.text.vocabulary import Vocabulary, normalise
from jaxstudy.types import UserError

END = "\n"  # no text has one: what a translation ends with, and begins after


class Pair(NamedTuple):
    """A Korean text, and the English one that means the same."""

    source: str
    target: str


class Pairs(NamedTuple):
    """Training, validation and test set."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
# Of CLDR's patterns those whose Korean says which English one is meant: 2024. 3. 5. is
# both of two, so that one of them is left out.
DATE_FORMATS = ("full", "long", "medium", "short", "yMEd", "yMMMEd")
LONGEST_DATE = len("2026년 12월 30일 수요일"), len("Wednesday, September 30, 2026")
# What follows the year, the month and the day of each.
_KOREAN = {
    "full": r"(\d{4})년 (\d+)월 (\d+)일 (\w)요일",
    "long": r"(\d{4})년 (\d+)월 (\d+)일",
    "medium": r"(\d{4})\. (\d+)\. (\d+)\.",
    "short": r"(\d{2})\. (\d+)\. (\d+)\.",
    "yMEd": r"(\d{4})\. (\d+)\. (\d+)\. \((\w)\)",
    "yMMMEd": r"(\d{4})년 (\d+)월 (\d+)일 \((\w)\)",
}
_WEEKDAYS = "월화수목금토일"


def date_text(date: datetime.date, form: str, language: str) -> str:
    """A date as CLDR writes it: one of the formats, in "ko" or "en"."""
    if form.startswith("y"):
        return format_skeleton(form, date, locale=language)
    return format_date(date, form, locale=language)  # type: ignore[arg-type]


def date_pairs(count: int) -> Pairs:
    """So many dates between FIRST and LAST, each in one of the formats by chance.

    The same at every call; a Korean text is in one of the sets only. Raises UserError
    where there are not so many days, or too few to split.
    """
    days = (LAST - FIRST).days + 1
    if count > days:
        raise UserError(f"there are {days} dates to choose from, not {count}")
    rng = np.random.default_rng(0)
    chosen = rng.choice(days, count, replace=False)
    pairs = []
    for day, form in zip(chosen, rng.choice(DATE_FORMATS, count), strict=True):
        date = FIRST + datetime.timedelta(int(day))
        pairs.append(
            Pair(*(date_text(date, str(form), language) for language in ("ko", "en")))
        )
    # by the text: without a century, 24. 3. 5. stands for two days
    return _split(pairs, [(pair.source,) for pair in pairs])


def _split(pairs: Sequence[Pair], keys: Sequence[Sequence[Hashable]]) -> Pairs:
    """The three sets, the last two a tenth each: no key is in two of them."""
    try:
        sets = grouped_split(keys, 0.1)
    except ValueError as error:
        raise UserError(f"{len(pairs)} pairs are too few to split") from error
    return Pairs(*(tuple(pairs[i] for i in rows) for rows in sets))


def check_date(text: str) -> None:
    """Raise UserError where this is no date in one of the Korean formats.

    The day must exist, and fall on the weekday that the text says.
    """
    matches = (re.fullmatch(pattern, text) for pattern in _KOREAN.values())
    match = next(filter(None, matches), None)
    if match is None:
        example = ", ".join(date_text(datetime.date(2024, 3, 5), form, "ko")
                            for form in DATE_FORMATS)  # fmt: skip
        raise UserError(f"{text!r} is not written as one of: {example}")
    year, month, day, *weekday = match.groups()
    centuries = (19, 20) if len(year) == 2 else ("",)  # the short form has no century
    for century in centuries:
        try:
            date = datetime.date(int(f"{century}{year}"), int(month), int(day))
        except ValueError:
            continue
        on = _WEEKDAYS[date.weekday()]
        if weekday and weekday[0] != on:
            raise UserError(f"{text!r}: that day is a {on}요일, not {weekday[0]}요일")
        return
    raise UserError(f"{text!r}: there is no such day")


def read_messages(folder: Path, longest: tuple[int, int]) -> list[Pair]:
    """The messages of gettext catalogues (.mo) with Korean in them, each pair once.

    Marks of keyboard shortcuts are taken off. Texts of several lines are left out, and
    so are those with more characters than `longest`, of Korean and of English. Raises
    UserError, naming the file, where one is no catalogue, and where there is none.
    """
    pairs: dict[Pair, None] = {}
    files = sorted(folder.glob("*.mo"))
    if not files:
        raise UserError(f"there is no gettext catalogue (.mo) in {folder}")
    for path in files:
        try:
            with path.open("rb") as file:
                catalogue = vars(gettext.GNUTranslations(file))["_catalog"]
        except (OSError, ValueError, struct.error) as error:
            raise UserError(f"{path} is no gettext catalogue: {error}") from error
        for english, korean in catalogue.items():
            if not isinstance(english, str):
                continue  # a plural
            english, korean = normalise(english), normalise(korean)
            if not re.search("[가-힣]", korean):
                continue  # left in English
            # before \x04 comes a note on where the message stands
            pair = Pair(_plain(korean), _plain(english.rpartition("\x04")[2]))
            fits = all(0 < len(t) <= n for t, n in zip(pair, longest, strict=True))
            if fits and END not in korean + english:
                pairs[pair] = None
    return list(pairs)


def _plain(text: str) -> str:
    """A message without the mark of its keyboard shortcut, _F or ~F or (_F)."""
    text = re.sub(r"\s?\([_~]\w\)", "", text)
    return " ".join(re.sub(r"(?<!\w)[_~](?=\w)|(?<=\w)[_~](?=\w)", "", text).split())


def split_messages(pairs: Sequence[Pair]) -> Pairs:
    """The three sets, the same at every call.

    Pairs with the same Korean or the same English, but for case, numbers and marks, are
    never in two of them. Raises UserError where there are too few.
    """
    keys = [
        tuple((which, re.sub(r"[\W\d_]+", "", text.lower())) for which, text in
              enumerate(pair))
        for pair in pairs
    ]  # fmt: skip
    return _split(pairs, keys)


def message_pairs(longest: tuple[int, int], count: int | None = None) -> Pairs:
    """The messages of LibreOffice, split, of at most `longest` characters.

    With a `count`, so many of the training set, drawn from all, the same at every call.
    Raises MissingData where they have not been fetched.
    """
    pairs = split_messages(read_messages(check_folder(LIBREOFFICE_KO), longest))
    if count is None:
        return pairs
    order = np.random.default_rng(0).permutation(len(pairs.train)).tolist()
    return pairs._replace(train=tuple(pairs.train[i] for i in order[:count]))


_CODES = re.compile(r"\$\w+|\$\([^)]*\)|%\w+|\d+", re.ASCII)


def noise(pairs: Sequence[Pair]) -> dict[str, float]:
    """Shares of pairs that cannot be right, or not the only right ones.

    "another number or placeholder": one language has a number or a placeholder that
    the other has not; "several English": the same Korean stands for other English too,
    so that an exact match is a matter of luck.
    """
    english: dict[str, set[str]] = {}
    for pair in pairs:
        english.setdefault(pair.source, set()).add(pair.target)
    codes = [[Counter(_CODES.findall(text)) for text in pair] for pair in pairs]
    return {
        "another number or placeholder": float(np.mean([a != b for a, b in codes])),
        "several English": float(np.mean([len(english[p.source]) > 1 for p in pairs])),
    }


def encode_pairs(
    pairs: Sequence[Pair],
    source: Vocabulary,
    target: Vocabulary,
    longest: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Pairs as x [N, S], x_length [N], y [N, T] and y_length [N], padded.

    S and T - 1 are `longest`: y ends with END, which counts. Characters outside a
    vocabulary become 0. Raises ValueError where a text is too long.
    """
    x = [source.encode(pair.source, allow_unknown=True) for pair in pairs]
    y = [target.encode(pair.target + END, allow_unknown=True) for pair in pairs]
    end = int(target.encode(END)[0])
    names = ("x", "x_length", "y", "y_length")
    arrays = (*padded(x, longest[0], 0), *padded(y, longest[1] + 1, end))
    return dict(zip(names, arrays, strict=True))


def padded(
    sequences: Sequence[np.ndarray], width: int, filling: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of numbers as one array [N, width], filled up, and their lengths [N].

    Raises ValueError where one is longer than `width`.
    """
    lengths = np.array([len(numbers) for numbers in sequences], np.int32)
    if lengths.max() > width:
        raise ValueError(f"a text of {lengths.max()} symbols is over {width}")
    rows = np.full((len(sequences), width), filling, np.int32)
    for row, numbers in zip(rows, sequences, strict=True):
        row[: len(numbers)] = numbers
    return rows, lengths


def text_before_end(numbers: np.ndarray, vocabulary: Vocabulary) -> str:
    """The symbols [n] before the first END, or all of them."""
    return "".join(vocabulary.decode(numbers.tolist())).partition(END)[0]
