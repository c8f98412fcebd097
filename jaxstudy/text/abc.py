"""Tunes in ABC notation: texts of one tune each, and sets split by melody."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported where they are first used

from jaxstudy.data.sources import TUNES, check_folder
from jaxstudy.data.splits import grouped_split
from jaxstudy.text.vocabulary import normalise
from jaxstudy.types import UserError

HEADER = ("M", "L", "K")  # metre, length of a plain note, key: what playing needs
TUNE_END = "\n"  # an empty line ends a tune; another tune's end stands before the first
_FIELD = re.compile(r"([A-Za-z]):\s*(.*)")


class Tunes(NamedTuple):
    """Training, validation and test set: texts of tunes."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def tunes_of(text: str) -> list[str]:
    """Every tune of an ABC file as "X:1", its metre, length and key, and its body.

    Titles, sources, comments, verses and other fields are left out, within the body
    too, and so are tunes without a key or without notes. An empty line ends a tune.
    """
    tunes = []
    for block in re.split(r"^(?=X:)", normalise(text), flags=re.MULTILINE):
        if not block.startswith("X:"):
            continue
        tune, _, _ = block.partition("\n\n")
        tunes += _tune(tune.split("\n"))
    return tunes


def _tune(lines: Sequence[str]) -> list[str]:
    header: dict[str, str] = {}
    body: list[str] = []
    for line in lines:
        plain = line.partition("%")[0].rstrip()
        field = _FIELD.fullmatch(plain)
        if field and "K" not in header:
            header.setdefault(field[1], field[2].strip())
        elif field and field[1] in HEADER:
            body.append(f"{field[1]}:{field[2].strip()}")  # it changes in the middle
        elif plain and not field and "K" in header:
            body.append(plain)
    if "K" not in header or not re.search("[A-Ga-g]", "".join(body)):
        return []
    head = [f"{name}:{header[name]}" for name in HEADER if header.get(name)]
    return ["\n".join(["X:1", *head, *body]) + "\n"]


def read_tunes(folder: Path) -> list[str]:
    """The tunes of every .abc file below a folder, sorted by file; each of them once.

    Files are UTF-8, or else Latin-1, as old collections are. Raises UserError where
    there is none.
    """
    tunes: list[str] = []
    for path in sorted(folder.rglob("*.abc")):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        tunes += tunes_of(text)
    if not tunes:
        raise UserError(f"there is no tune in ABC notation in {folder}")
    return list(dict.fromkeys(tunes))


def melody(tune: str) -> str:
    """What two editions of one tune have in common: its notes, without their lengths.

    No ornaments, marks, bars, octaves nor accidentals, and in the key as it is written.
    """
    _, _, body = tune.partition("\nK:")
    _, _, body = body.partition("\n")
    body = re.sub(r'"[^"]*"|\{[^}]*\}|![^!]*!|\[[A-Za-z]:[^\]]*\]|^[A-Z]:.*$', "", body,
                  flags=re.MULTILINE)  # fmt: skip
    return "".join(re.findall("[A-Ga-g]", body)).lower()


def similarity(a: str, b: str) -> float:
    """The share of the notes of two melodies that both have in one order, in any key.

    2 LCS(a, b) / (|a| + |b|), with the longest common subsequence of the best of the
    seven transpositions. Source: Hyyro 2004, the bit-parallel LCS.
    """
    if not a or not b:
        return 0.0
    places = [sum(1 << i for i, note in enumerate(a) if note == n) for n in "abcdefg"]
    every = (1 << len(a)) - 1
    longest = 0
    for shift in range(7):
        rest = every
        for note in b:
            common = rest & places[(ord(note) - ord("a") + shift) % 7]
            rest = ((rest + common) | (rest - common)) & every
        longest = max(longest, len(a) - rest.bit_count())
    return 2 * longest / (len(a) + len(b))


WINDOW = 7  # steps, of eight notes
ALIKE = 0.9


def similar_pairs(melodies: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs i < j of melodies whose `similarity` is ALIKE or more.

    Compared are those that share a fifth of the shorter one's windows of eight notes,
    transposed or not: one note in ten that differs leaves more than that.
    """
    windows = []
    for notes in melodies:
        steps = np.diff(np.frombuffer(notes.encode(), np.uint8).astype(int)) % 7
        count = max(0, len(steps) - WINDOW + 1)
        cut = [steps[i : i + count] for i in range(WINDOW)]
        windows.append(np.unique(7 ** np.arange(WINDOW) @ cut))
    counts = np.array([len(numbers) for numbers in windows])
    rows = np.repeat(np.arange(len(melodies)), counts)
    present = scipy.sparse.csr_array(
        (np.ones(len(rows), np.int32), (rows, np.concatenate(windows))),
        shape=(len(melodies), 7**WINDOW),
    )
    shared = scipy.sparse.triu(present @ present.T, 1).tocoo()
    near = shared.data >= 0.2 * np.minimum(counts[shared.row], counts[shared.col])
    pairs = np.column_stack([shared.row, shared.col])[near]
    return [
        (int(i), int(j))
        for i, j in pairs
        if similarity(melodies[int(i)], melodies[int(j)]) >= ALIKE
    ]


def split_tunes(tunes: Sequence[str]) -> Tunes:
    """The three sets, the same at every call; of the last two each has a tenth.

    Tunes that begin with the same 24 notes, or end with the same, or whose melodies are
    similar in any key, are editions of one: they are never in two of the sets. Raises
    UserError where there are too few.
    """
    melodies = [melody(tune) for tune in tunes]
    keys = [[("begins", notes[:24]), ("ends", notes[-24:])] for notes in melodies]
    for pair in similar_pairs(melodies):
        for row in pair:
            keys[row].append(("similar", str(pair)))
    try:
        sets = grouped_split(keys, 0.1)
    except ValueError as error:
        raise UserError(
            f"{len(tunes)} tunes are too few to hold some of them out"
        ) from error
    return Tunes(*(tuple(str(tunes[i]) for i in rows) for rows in sets))


def evenly_spaced_tunes(tunes: Sequence[str], count: int) -> tuple[str, ...]:
    """At most so many tunes, evenly spaced: of all the collections."""
    count = min(count, len(tunes))
    return tuple(tunes[i * len(tunes) // count] for i in range(count))


def read_collections(limit: int | None = None) -> Tunes:
    """The tunes of the three collections, split; at most `limit` in the training set.

    The other sets then shrink with it. Raises MissingData where a collection has not
    been fetched.
    """
    every = [tune for source in TUNES for tune in read_tunes(check_folder(source))]
    tunes = split_tunes(list(dict.fromkeys(every)))
    share = 1 if limit is None else limit / len(tunes.train)
    return Tunes(
        *(evenly_spaced_tunes(part, max(2, int(len(part) * share))) for part in tunes)
    )


def cut_at_end(text: str, start: int) -> str:
    """A tune up to the empty line that ends it, if one does, from `start` on."""
    end = text.find("\n" + TUNE_END, start)
    return text if end < 0 else text[: end + 1]


def joined(tunes: Sequence[str]) -> str:
    """Tunes as one text, an empty line after each."""
    return "".join(tune + TUNE_END for tune in tunes)
