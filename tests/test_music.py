"""Tunes in ABC notation: what is kept of a file, and sets that share no tune."""

import itertools
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.text.abc import (
    melody,
    read_tunes,
    similar_pairs,
    similarity,
    split_tunes,
    tunes_of,
)
from jaxstudy.types import UserError

FILE = """% a collection
X:7
T:A title
T:and another
M: 6/8
L:1/8
Z:somebody
K: Gm
% by ear
G3-A (Bcd=e) | f4 :| % twice
w: words to sing
K:D
"Am"d2 {c}B |]

a note about it
X:8
T:no key
abc
X: 9
K:C
| z4 |
X:10
M:C|
K:A
P:B
A,2 c' ||
"""


def test_a_tune_is_its_metre_length_key_and_body() -> None:
    assert tunes_of(FILE) == [
        'X:1\nM:6/8\nL:1/8\nK:Gm\nG3-A (Bcd=e) | f4 :|\nK:D\n"Am"d2 {c}B |]\n',
        "X:1\nM:C|\nK:A\nA,2 c' ||\n",
    ]
    assert tunes_of(FILE.replace("\n", "\r\n")) == tunes_of(FILE)
    assert tunes_of(FILE.replace("\n", "\r")) == tunes_of(FILE)
    chord = 'X:1\nK:C\n"r\u00e9"a\x85b\n'  # of which NEL ends no line
    assert tunes_of(chord) == [chord]
    assert tunes_of(unicodedata.normalize("NFD", chord)) == [chord]
    assert tunes_of("") == tunes_of("no tune\nK:C\nabc") == []
    for tune in tunes_of(FILE):  # reading again changes nothing
        assert tunes_of(tune) == [tune]


def test_files_are_read_in_order_and_no_tune_twice(tmp_path: Path) -> None:
    files = {
        "b.abc": b"X:1\nK:C\nabc",
        "a/z.abc": b"X:1\nK:C\ndef",
        "c.abc": b"X:5\nT:the same\nK:C\nabc\n",
        "readme.txt": b"X:1\nK:C\nggg",
        "d.abc": b'X:1\nK:C\n"\xe9"aaa',
        "e.abc": b"\xef\xbb\xbfX:1\rK:C\rbag",
    }
    (tmp_path / "a").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    bodies = [tune.split("\n")[-2] for tune in read_tunes(tmp_path)]
    assert bodies == ["def", "abc", '"é"aaa', "bag"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no tune in ABC notation in .*none"):
        read_tunes(tmp_path / "none")


def test_a_melody_is_its_notes() -> None:
    assert melody(tunes_of(FILE)[0]) == "gabcdef" + "db"
    assert melody("X:1\nK:C\n!trill!A,2 [M:3/4] ^c'/2 z\nM:4/4\n=F") == "acf"


def tune(notes: str) -> str:
    return f"X:1\nK:C\n{notes}\n"


def melodies(seed: int, count: int) -> list[str]:
    """Melodies of 40 notes by chance."""
    notes = np.random.default_rng(seed).choice(list("abcdefg"), (count, 40))
    return ["".join(row) for row in notes]


def edition(notes: str, shift: int) -> str:
    """The same melody in another key, with the first, a middle and the last changed."""
    places = [("abcdefg".index(note) + shift) % 7 for note in notes]
    for place in (0, 20, 39):
        places[place] = (places[place] + 1) % 7
    return "".join("abcdefg"[place] for place in places)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_every_tune_is_in_one_set_with_its_other_editions(
    seed: int, shift: int
) -> None:
    notes = melodies(seed, 25)
    longer = [(n, f"| {n}ggg") for n in notes[:9]]
    others = [(n, edition(n, shift)) for n in notes[9:18]]
    tunes = [tune(n) for n in [*notes, *(other for _, other in longer + others)]]
    sets = split_tunes(tunes)
    assert sorted(t for part in sets for t in part) == sorted(tunes)
    assert all(sets)
    assert split_tunes(tunes) == sets
    for part in sets:
        for n, other in longer + others:
            assert (tune(n) in part) == (tune(other) in part)


@given(st.text("abcdefg", max_size=7), st.text("abcdefg", max_size=7))
def test_similarity_is_that_of_brute_force(a: str, b: str) -> None:
    def subsequences(notes: Iterable[str]) -> set[tuple[str, ...]]:
        return {c for n in range(8) for c in itertools.combinations(notes, n)}

    keys = [[chr(97 + (ord(note) - 97 + k) % 7) for note in b] for k in range(7)]
    common = [subsequences(a) & subsequences(key) for key in keys]
    longest = max(len(notes) for each in common for notes in each)
    assert similarity(a, b) == (2 * longest / (len(a) + len(b)) if a and b else 0)


def test_similar_melodies_are_found_in_any_key() -> None:
    a, b = melodies(0, 2)
    assert similarity(a, edition(a, 4)) == 2 * 37 / 80
    assert similarity(a, b) < 0.7
    assert similar_pairs([a, b, a[1:], "", "abc", edition(b, 3)]) == [(0, 2), (1, 5)]
    with pytest.raises(UserError, match="2 tunes are too few"):
        split_tunes([tune("abc"), tune("def")])
