"""English prose as words, in passages that are never cut, and sets split by passage."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxstudy.data.sources import MOBY_DICK, check_folder
from jaxstudy.text.vocabulary import words
from jaxstudy.types import UserError

EVERY = 10  # of so many passages one is for validation and one for the test
LONG, SHORTEST = 1000, 100  # words of a passage where the text has no chapters

Passages = tuple[list[str], ...]


class Prose(NamedTuple):
    """Training, validation and test set: passages, which are lists of words."""

    train: Passages
    validation: Passages
    test: Passages


def read_prose(text: Path | None = None) -> Prose:
    """Moby Dick split by chapter, or the text in a file of one's own, by block.

    Raises MissingData where the novel is not there as it should be; UserError as
    `read_chapters`, `read_blocks` and `split_passages` do.
    """
    if text is None:
        return split_passages(read_chapters(check_folder(MOBY_DICK)))
    return split_passages(read_blocks(text))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8: byte {error.start} is "
            f"0x{error.object[error.start]:02x}"
        ) from error


def read_chapters(folder: Path) -> list[list[str]]:
    """The words of every chapter_N.json, {"text": ...}, by the number N.

    Raises UserError, naming the file, where one is not such JSON in UTF-8, and where
    there is none.
    """
    numbered = {}
    for path in folder.glob("chapter_*.json"):
        if number := re.fullmatch(r"chapter_(\d+)", path.stem, re.ASCII):
            numbered[int(number[1])] = path
    if not numbered:
        raise UserError(f"there is no chapter_1.json or another in {folder}")
    chapters = []
    for _, path in sorted(numbered.items()):
        try:
            text = json.loads(_read(path))["text"]
            chapters.append(words(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{path} is not JSON with a "text": {type(error).__name__}: {error}'
            ) from error
    return chapters


def read_blocks(path: Path) -> list[list[str]]:
    """The words of a text file in blocks of about LONG, or EVERY shorter ones.

    Raises UserError where it cannot be read, is not UTF-8, or has too few words.
    """
    text = words(_read(path))
    if len(text) < EVERY * SHORTEST:
        raise UserError(
            f"{path} has {len(text)} words: {EVERY} passages of {SHORTEST} at least "
            "are needed, for training, validation and test"
        )
    count = max(EVERY, len(text) // LONG)
    cuts = [len(text) * i // count for i in range(count + 1)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def split_passages(passages: Sequence[list[str]]) -> Prose:
    """The three sets, the same at every call, from the whole length of the text.

    Of every EVERY passages the fifth is for validation and the last for the test.
    Raises UserError where there are too few.
    """
    if len(passages) < EVERY:
        raise UserError(
            f"{len(passages)} passages are too few: of every {EVERY} one is for "
            "validation and one for the test"
        )
    place = {EVERY // 2 - 1: 1, EVERY - 1: 2}
    sets: tuple[list[list[str]], ...] = ([], [], [])
    for i, passage in enumerate(passages):
        sets[place.get(i % EVERY, 0)].append(passage)
    return Prose(*map(tuple, sets))


def first_passages(passages: Passages, count: float) -> Passages:
    """The passages that the first `count` words reach into, whole."""
    starts = itertools.accumulate(map(len, passages[:-1]), initial=0)
    return tuple(p for p, start in zip(passages, starts, strict=True) if start < count)


def first_words(prose: Prose, count: int) -> Prose:
    """The first `count` words of the training set, a tenth of that of the others.

    Or a few more: passages stay whole.
    """
    counts = (count, count / 10, count / 10)
    return Prose(*map(first_passages, prose, counts))
