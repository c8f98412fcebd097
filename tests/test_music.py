"""Tunes in ABC notation: what is kept of a file, and sets that share no tune."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.data.music import melody, read_tunes, split_tunes, tunes_of
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
    assert tunes_of("") == tunes_of("no tune\nK:C\nabc") == []


def test_reading_a_tune_again_changes_nothing() -> None:
    for tune in tunes_of(FILE):
        assert tunes_of(tune) == [tune]


def test_files_are_read_in_order_and_no_tune_twice(tmp_path: Path) -> None:
    for name, text in (
        ("b.abc", "X:1\nK:C\nabc"),
        ("a/z.abc", "X:1\nK:C\ndef"),
        ("c.abc", "X:5\nT:the same\nK:C\nabc\n"),
        ("readme.txt", "X:1\nK:C\nggg"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "d.abc").write_bytes(b'X:1\nK:C\n"\xe9"aaa')
    tunes = read_tunes(tmp_path)
    assert [tune.split("\n")[-2] for tune in tunes] == ["def", "abc", '"\xe9"aaa']
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no tune in ABC notation in .*none"):
        read_tunes(tmp_path / "none")


def test_a_melody_is_its_notes() -> None:
    assert melody(tunes_of(FILE)[0]) == "gabcdef" + "db"
    assert melody("X:1\nK:C\n!trill!A,2 [M:3/4] ^c'/2 z\nM:4/4\n=F") == "acf"


def tune(notes: str) -> str:
    return f"X:1\nK:C\n{notes}\n"


@given(
    st.lists(
        st.text("abcdefg", min_size=30, max_size=40), min_size=25, unique=True
    ).filter(
        lambda all_: len({n[:24] for n in all_}) == len({n[-24:] for n in all_}) ==
        len(all_)
    )
)  # fmt: skip
def test_every_tune_is_in_one_set_with_its_other_editions(notes: list[str]) -> None:
    tunes = [tune(n) for n in notes] + [tune("| " + n + "ggg") for n in notes[:9]]
    sets = split_tunes(tunes)
    assert sorted(t for part in sets for t in part) == sorted(tunes)
    assert all(sets)
    assert split_tunes(tunes) == sets
    for part in sets:
        for n in notes[:9]:
            assert (tune(n) in part) == (tune("| " + n + "ggg") in part)


def test_too_few_tunes_are_refused() -> None:
    with pytest.raises(UserError, match="2 tunes are too few"):
        split_tunes([tune("abc"), tune("def")])
