"""Prose by passage: the chapters in order, none in two sets, files with errors."""

import itertools
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.data.sources import MOBY_DICK, MissingData, folder_sha256
from jaxstudy.text import prose
from jaxstudy.text.prose import (
    Prose,
    first_words,
    read_blocks,
    read_chapters,
    read_prose,
    split_passages,
)
from jaxstudy.types import UserError
from tests.conftest import Patch


def book(folder: Path, chapters: int = 12) -> Path:
    folder.mkdir()
    for n in range(1, chapters + 1):
        text = json.dumps({"chapter": str(n), "title": "A", "text": f"Chapter {n}."})
        (folder / f"chapter_{n}.json").write_text(text)
    (folder / "LICENSE").write_text("to do as one likes")
    return folder


def test_a_book_is_split_by_chapter_and_checked(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    folder = book(tmp_path / "book")
    assert read_chapters(folder) == [["chapter", str(n), "."] for n in range(1, 13)]
    source = replace(MOBY_DICK, path=folder, sha256=folder_sha256(folder))
    monkeypatch.setattr(prose, "MOBY_DICK", source)
    sets = read_prose()
    numbers = [[int(words[1]) for words in passages] for passages in sets]
    assert numbers == [[1, 2, 3, 4, 6, 7, 8, 9, 11, 12], [5], [10]]
    (folder / "chapter_5.json").write_text('{"text": "Another."}')
    with pytest.raises(MissingData, match="make data"):
        read_prose()


@given(st.integers(10, 200))
def test_every_passage_is_in_one_set(count: int) -> None:
    passages = [[str(i)] for i in range(count)]
    sets = split_passages(passages)
    assert sorted(sum(sets, ())) == sorted(passages)
    assert all(len(part) >= count // 10 for part in sets)
    assert split_passages(passages) == sets


def test_a_text_of_ones_own_is_cut_into_blocks(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    for count, sets in ((1000, (8, 1, 1)), (2999, (8, 1, 1)), (25_500, (20, 3, 2))):
        words = [f"A{'b' * (i % 7)}" for i in range(count)]
        path.write_text(" ".join(words))
        blocks = read_blocks(path)
        assert [*itertools.chain(*blocks)] == [word.lower() for word in words]
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
        assert tuple(map(len, read_prose(path))) == sets
    french = "L’été français\n" * 500
    path.write_text(french, encoding="utf-8")
    blocks = read_blocks(path)
    lines = [french.replace("\n", end) for end in ("\r\n", "\r")]
    for text in (*lines, unicodedata.normalize("NFD", french)):
        path.write_text(text, encoding="utf-8", newline="")
        assert read_blocks(path) == blocks
    path.write_bytes(b"\xef\xbb\xbf" + b"word " * 1000)
    assert set(itertools.chain(*read_blocks(path))) == {"word"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": "caf\xe9"}', "no text in UTF-8: byte 13 is 0xe9"),
        (b'{"text": "call me', "not JSON"),
        (b'{"title": "Loomings"}', "not JSON with a"),
        (b'["text"]', "not JSON with a"),
        (b'{"text": 7}', "not JSON with a"),
    ],
)
def test_a_damaged_chapter_is_named(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    folder = book(tmp_path / "book")
    (folder / "chapter_3.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_chapters(folder)
    assert str(folder / "chapter_3.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"mine\.txt cannot be read: No such file"),
        (b"call me", "has 2 words: 10 passages of 100"),
        (b"caf\xe9", r"mine\.txt is no text in UTF-8"),
    ],
)
def test_a_text_that_will_not_do_is_named(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_prose(tmp_path / "mine.txt")


def test_too_few_passages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no chapter_1\.json"):
        read_chapters(tmp_path)
    with pytest.raises(UserError, match="2 passages are too few"):
        split_passages([["a"], ["b"]])


def test_whole_passages_until_there_are_enough() -> None:
    passages = tuple([["a"] * n for n in (3, 4, 5)])
    for words, count in ((1, 1), (3, 1), (4, 2), (7, 2), (8, 3), (99, 3)):
        sets = first_words(Prose(passages, passages, passages), words)
        assert sets.train == passages[:count]
        assert sets.validation == sets.test == passages[: 1 if words < 99 else 3]


def test_moby_dick_is_whole() -> None:
    try:
        sets = read_prose()
    except MissingData as missing:
        pytest.skip(f"{missing} (then it runs)")
    assert [len(passages) for passages in sets] == [108, 14, 13]
    assert sets.train[0][:4] == ["call", "me", "ishmael", "."]
    assert sum(len(p) for part in sets for p in part) == 252_564
