"""Text as numbers: the course's "bag" of all characters, or words, that occur."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex  # whose \w has the combining marks that words are written with

from jaxstudy.types import UserError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a number of no known symbol reads as


def normalise(text: str) -> str:
    """Text in Unicode's normalization form C, with LF at the ends of its lines.

    What looks the same is the same after it: where text comes in, from a file or from
    a command line, it goes through here. Source: Unicode Standard Annex 15.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


@dataclass(frozen=True)
class Vocabulary:
    """The symbols that texts are made of, numbered from 1; 0 stands for any other.

    Symbols are characters or words. Raises ValueError where one comes twice.
    """

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that every symbol has one number."""
        if len(set(self.symbols)) != len(self.symbols) or UNKNOWN in self.symbols:
            raise ValueError("a symbol of the vocabulary comes twice, or is reserved")

    def __len__(self) -> int:
        """How many numbers there are, with that of the unknown."""
        return len(self.symbols) + 1

    def encode(self, text: Sequence[str], *, allow_unknown: bool = False) -> np.ndarray:
        """The numbers [n] of a text, a string of characters or a list of words.

        Raises UserError, naming them, where symbols are not in the vocabulary, unless
        they may become 0.
        """
        numbers = {symbol: number for number, symbol in enumerate(self.symbols, 1)}
        encoded = np.array([numbers.get(symbol, 0) for symbol in text], np.int32)
        if not allow_unknown and not encoded.all():
            others = dict.fromkeys(s for s in text if s not in numbers)
            shown = ", ".join(map(repr, list(others)[:8]))
            more = f" and {len(others) - 8} more" if len(others) > 8 else ""
            raise UserError(
                f"{shown}{more}: not in the vocabulary of the training text"
            )
        return encoded

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The symbols of some numbers, UNKNOWN for 0."""
        symbols = (UNKNOWN, *self.symbols)
        return [symbols[number] for number in numbers]


def fit_vocabulary(tokens: Iterable[str], *, size: int | None = None) -> Vocabulary:
    """The symbols of a training text: all of them in order, or the most frequent.

    With a `size`, so many of them at most, the unknown counted; of equally frequent
    ones the first in order. Raises UserError where there is none.
    """
    counts = Counter(tokens)
    if not counts:
        raise UserError("a vocabulary needs some text, and there is none")
    symbols = sorted(counts)
    if size is not None and size <= len(symbols):
        symbols = sorted(symbols, key=lambda symbol: -counts[symbol])[: size - 1]
    return Vocabulary(tuple(sorted(symbols)))


_WORD = regex.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words, numbers and marks of a text, in lower case; a combining mark is part
    of its word.
    """
    # lower case may be decomposed where upper case has no composed form
    return _WORD.findall(normalise(normalise(text).lower()))
