"""Tunes in ABC notation: texts of one tune each, and sets split by tune."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxstudy.data.dataset import grouped_split
from jaxstudy.types import UserError

HEADER = ("M", "L", "K")  # metre, length of a plain note, key: what playing needs
_FIELD = re.compile(r"([A-Za-z]):\s*(.*)")


class Tunes(NamedTuple):
    """Texts of tunes to learn from, to choose by and to test on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def tunes_of(text: str) -> list[str]:
    """Every tune of an ABC file as "X:1", its metre, length and key, and its body.

    Titles, sources, comments, verses and other fields are left out, within the body
    too, and so are tunes without a key or without notes. An empty line ends a tune.
    """
    found = []
    for block in re.split(r"^(?=X:)", text.replace("\r\n", "\n"), flags=re.MULTILINE):
        if not block.startswith("X:"):
            continue
        tune, _, _ = block.partition("\n\n")
        found += _tune(tune.splitlines())
    return found


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
    found: list[str] = []
    for path in sorted(folder.rglob("*.abc")):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        found += tunes_of(text)
    if not found:
        raise UserError(f"there is no tune in ABC notation in {folder}")
    return list(dict.fromkeys(found))


def melody(tune: str) -> str:
    """What two editions of one tune have in common: its notes, without their lengths.

    No ornaments, marks, bars, octaves nor accidentals, and in the key as it is written.
    """
    _, _, body = tune.partition("\nK:")
    _, _, body = body.partition("\n")
    body = re.sub(r'"[^"]*"|\{[^}]*\}|![^!]*!|\[[A-Za-z]:[^\]]*\]|^[A-Z]:.*$', "", body,
                  flags=re.MULTILINE)  # fmt: skip
    return "".join(re.findall("[A-Ga-g]", body)).lower()


def split_tunes(tunes: Sequence[str], *, held_out: float = 0.1) -> Tunes:
    """The three sets, the same at every call; `held_out` is the share of the last two.

    Tunes that begin with the same 24 notes, or end with the same, are editions of one:
    they are never in two of the sets. Raises UserError where there are too few.
    """
    keys = []
    for tune in tunes:
        notes = melody(tune)
        keys.append((("begins", notes[:24]), ("ends", notes[-24:])))
    try:
        sets = grouped_split(keys, held_out)
    except ValueError as error:
        raise UserError(
            f"{len(tunes)} tunes are too few to hold some of them out"
        ) from error
    return Tunes(*(tuple(str(tunes[i]) for i in rows) for rows in sets))
