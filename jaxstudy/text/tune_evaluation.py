"""Tunes judged from outside: does a parser read them, do the bars add up, are they new?

music21 is the parser. It is lenient, so what it passes over in silence is counted here,
and real tunes that no model has seen are judged beside the composed ones: their share
is the most that can be asked for.
"""

import contextlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxstudy.messages import warn
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.statistics import SHARE, Estimate, mean_over_cases
from jaxstudy.text.abc import melody
from jaxstudy.types import UserError

# Letters that stand before a note or in its place and are not sung: fermata, trill,
# bows, space and so on; music21 passes over most of them.
MARKS = "HILMNOPRSTUVWZhijklmnopqrstuvwxy~."
TEXT = re.compile(r'"[^"\n]*"|![^!\n]*!')  # chord symbols, fingerings, expressions


class Verdict(NamedTuple):
    """What the judge says: the first error ("" if none), bars, and the wrong ones."""

    error: str
    bars: int = 0
    wrong: int = 0

    @property
    def accepted(self) -> bool:
        """Whether the parser reads all of it."""
        return not self.error

    @property
    def adds_up(self) -> bool:
        """Whether it is accepted and every bar is as long as it should be."""
        return self.accepted and not self.wrong


def _plain(tune: str) -> str:
    """A tune as music21 reads it best: the same notes.

    It drops a note with a fermata, takes "A::" for a field of the header, the invisible
    bar line "[|]" for another with something after it, and an inline field for a chord.
    """
    head, key, body = tune.partition("\nK:")
    key_line, end, body = body.partition("\n")
    for there, here in (
        (r"\[([KLM]:[^]\n]*)\]", r"\n\1\n"),
        (r"\[[A-Za-z]:[^]\n]*\]", ""),
        ("H", ""),
        ("::", ":||:"),
        (r"\[\|\]", "|"),
    ):
        body = re.sub(there, here, body)
    return head + key + key_line + end + body


def _read(tune: str) -> tuple[Any, Any, str]:
    """music21's tokens and score of a tune, and what it warned of."""
    from music21 import abcFormat  # slow to import

    warned = io.StringIO()
    with contextlib.redirect_stderr(warned):
        handler = abcFormat.ABCFile().readstr(_plain(tune))
        _carry_accidentals(handler.tokens)
        score = abcFormat.translate.abcToStreamScore(handler)
    return handler.tokens, score, warned.getvalue().strip()


def _carry_accidentals(tokens: Sequence[Any]) -> None:
    """Let every accidental last to the end of its bar, or to a change of key.

    For the same pitch, and over the bar line for a note that is tied. Not for other
    octaves: they are ABC 2.1's default, but not the rule of printed music, which tunes
    are copied from. music21 gives an accidental to one note only; where a text says
    that it is ABC 2.1, also to others, but not in chords, over ties or after a trill.
    """
    from music21 import abcFormat

    altered: dict[str, str] = {}  # by the pitch without accidental, in this bar
    tied: dict[str, str] = {}  # into the next note or chord
    last: dict[str, str] = {}
    for token in tokens:
        if isinstance(token, abcFormat.ABCTie):
            tied = last
        elif isinstance(token, abcFormat.ABCBar) or (
            isinstance(token, abcFormat.ABCMetadata) and token.isKey()
        ):
            altered = {}
        elif isinstance(token, abcFormat.ABCNote):
            last = {}
            notes: Sequence[Any] = getattr(token, "subTokens", [token])
            for note in notes:
                if note.isRest:
                    continue
                name: str = note.pitchName
                place = re.sub("[#n-]", "", name)
                if re.search("[_^=]", TEXT.sub("", note.src)):
                    altered[place] = name
                else:
                    name = tied.get(place, altered.get(place, name))
                note.pitchName = last[place] = name
            if not token.inGrace:
                tied = {}


def judge(tune: str) -> Verdict:
    """Whether music21 accepts a tune in ABC notation, and whether its bars add up.

    Accepted: it becomes a score without an exception or a warning; the header has X,
    a metre and a key that are known; there is a bar line and a note; every quotation
    is closed; and no character but spaces, marks of performance, "`" and "\\" is passed
    over. Bars: the notes of each fill the metre; those beside the beginning, the end, a
    repeat or a double bar may be shorter, as where a tune begins with an upbeat.
    """
    try:
        tokens, score, warned = _read(tune)
    except Exception as error:  # whatever a parser makes of garbage is a no
        return Verdict(f"{type(error).__name__}: {error}")
    bars, wrong = _count_bars(tokens)
    error = _header_error(tokens) or _unread(_plain(tune), tokens) or warned
    if not error and not (bars and any(n.quarterLength for n in score.recurse().notes)):
        error = "no bar with a note"
    return Verdict(error, bars, wrong)


def _header_error(tokens: Sequence[Any]) -> str:
    """What is missing before the first note, or unknown; "" if nothing."""
    from music21 import abcFormat

    fields = {}
    for token in tokens:
        if isinstance(token, abcFormat.ABCNote):
            break
        if isinstance(token, abcFormat.ABCMetadata):
            fields[token.tag] = token
    for tag, name in (("X", "number"), ("M", "metre"), ("K", "key")):
        if tag not in fields:
            return f"no {name} ({tag}:)"
    if fields["M"].getTimeSignatureObject() is None:
        return "no metre (M:none)"
    key = fields["K"].data
    if not re.match("[A-G]", key) or fields["K"].getKeySignatureParameters()[1] is None:
        return f"unknown key {key}"  # for which music21 would take C
    return ""


def _unread(tune: str, tokens: Sequence[Any]) -> str:
    """What the parser left out that is no mark of performance, in words; or ""."""
    text = TEXT.sub("", tune)
    if '"' in text:
        return "a quotation is not closed"
    read = Counter("".join(TEXT.sub("", token.src) for token in tokens))
    left = Counter(text) - read
    lost = [c for c in left if not c.isspace() and c not in MARKS + "`\\"]
    return f"left out: {' '.join(sorted(lost))}" if lost else ""


def _count_bars(tokens: Sequence[Any]) -> tuple[int, int]:
    """How many bars have notes, and how many of them are of a wrong length."""
    from music21 import abcFormat

    bars = wrong = 0
    metre, length = None, Fraction(0)
    section: list[bool] = []  # of each of its bars: whether it is full

    def end_bar() -> None:
        nonlocal bars, wrong, length
        if length and metre:
            bars += 1
            wrong += length > metre
            section.append(length >= metre)
        length = Fraction(0)

    def end_section() -> None:
        nonlocal wrong
        wrong += section[1:-1].count(False)
        section.clear()

    for token in tokens:
        if isinstance(token, abcFormat.ABCMetadata) and token.isMeter():
            signature = token.getTimeSignatureObject()
            if signature is not None:
                metre = Fraction(signature.barDuration.quarterLength)
        elif isinstance(token, abcFormat.ABCNote) and not token.inGrace:
            in_tuplet = token.activeTuplet
            share = in_tuplet.tupletMultiplier() if in_tuplet else 1
            length += Fraction(token.quarterLength) * Fraction(share)
        elif isinstance(token, abcFormat.ABCBar):
            end_bar()
            if not (token.isRegular() or token.isRepeatBracket()):
                end_section()
    end_bar()
    end_section()
    return bars, wrong


def longest_copy(text: str, source: str) -> int:
    """The length of the longest string that is in both texts."""
    longest = 0
    for start in range(len(text)):
        # only a longer one matters, and if one is there, so are its beginnings
        while start + longest < len(text) and (
            text[start : start + longest + 1] in source
        ):
            longest += 1
    return longest


def copied_share(tune: str, melodies: str) -> float:
    """Of a tune's melody, the share that comes in one piece from others.

    `melodies` are the others' as `joined_melodies` gives them. Over 1/2 is a copy here.
    """
    notes = melody(tune)
    return longest_copy(notes, melodies) / len(notes) if notes else 0.0


def joined_melodies(tunes: Iterable[str]) -> str:
    """The melodies of tunes in one text, separated: no copy extends over two."""
    return "|".join(map(melody, tunes))


def notes_of(tune: str) -> np.ndarray:
    """Beginning and length in quarter notes and MIDI pitch of every note [n, 3].

    Tied notes are one, but for those of chords. Repeats are played once.
    Raises UserError where music21 reads no note.
    """
    try:
        _, score, _ = _read(tune)
        score.stripTies(inPlace=True)
        notes = [
            (float(note.offset), float(note.quarterLength), pitch.midi)
            for note in score.flatten().notes
            for pitch in note.pitches
            if note.quarterLength
        ]
    except Exception as error:  # as in `judge`
        raise UserError(f"no tune that music21 reads: {error}") from error
    if not notes:
        raise UserError("no tune that music21 reads: it has no note")
    return np.array(notes)


def write_midi(tune: str, path: Path) -> None:
    """Write a tune's `notes_of` as a MIDI file, by music21.

    Raises UserError where music21 reads no note.
    """
    from music21 import note, stream  # slow to import

    # of the notes alone: of its own scores music21 refuses to write some, for repeats
    # that do not match or bars that are too long
    part = stream.Part()
    for start, length, pitch in notes_of(tune):
        part.insert(start, note.Note(int(pitch), quarterLength=length))
    part.write("midi", path)


def judge_tunes(
    name: str, tunes: Sequence[str], melodies: str
) -> tuple[dict[str, Estimate | float], list[str]]:
    """What the judge says of tunes, as metrics of this name, and those it accepts.

    `melodies` are those of the training set, as `joined_melodies` gives them.
    """
    verdicts = [judge(tune) for tune in tunes]
    copied = np.array([copied_share(tune, melodies) for tune in tunes])
    accepted = [verdict.accepted for verdict in verdicts]
    bars = sum(verdict.bars for verdict in verdicts)
    wrong = sum(verdict.wrong for verdict in verdicts)

    def share(values: Sequence[float] | np.ndarray) -> Estimate:
        return mean_over_cases(np.array(values, float), "tunes", SHARE)

    return {
        f"{name}: accepted by music21": share(accepted),
        f"{name}: accepted, and all bars add up": share([v.adds_up for v in verdicts]),
        f"{name}: bars of a wrong length": wrong / max(1, bars),
        f"{name}: copies of a training tune": float(np.sum(copied > 0.5)),
        f"{name}: longest copied piece of the melody": share(copied),
    }, [*itertools.compress(tunes, accepted)]


def write_samples(run_folder: Path, name: str, tunes: Sequence[str]) -> list[Path]:
    """Tunes as samples/NAME_1.abc, ... and, where music21 reads them, NAME_1.mid."""
    folder = run_folder / "samples"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}_{number}.abc" for number in range(1, len(tunes) + 1)]
    for path, tune in zip(paths, tunes, strict=True):
        write_atomically(path, tune)
        midi = path.with_suffix(".mid")
        try:
            write_midi(tune, midi)
        except UserError as error:
            midi.unlink(missing_ok=True)  # of another tune
            warn(f"{path.name} became no MIDI file: {error}")
    return paths
