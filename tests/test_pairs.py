"""Pairs of texts: dates with one right answer, messages, what is wrong with them."""

import datetime
import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.text.pairs import (
    DATE_FORMATS,
    END,
    FIRST,
    LAST,
    LONGEST_DATE,
    Pair,
    check_date,
    date_pairs,
    date_text,
    encode_pairs,
    noise,
    read_messages,
    split_messages,
)
from jaxstudy.text.vocabulary import fit_vocabulary
from jaxstudy.types import UserError

dates = st.dates(FIRST, LAST)


def test_dates_are_written_as_cldr_has_them() -> None:
    date = datetime.date(2024, 3, 5)
    assert {form: (date_text(date, form, "ko"), date_text(date, form, "en"))
            for form in DATE_FORMATS} == {
        "full": ("2024년 3월 5일 화요일", "Tuesday, March 5, 2024"),
        "long": ("2024년 3월 5일", "March 5, 2024"),
        "medium": ("2024. 3. 5.", "Mar 5, 2024"),
        "short": ("24. 3. 5.", "3/5/24"),
        "yMEd": ("2024. 3. 5. (화)", "Tue, 3/5/2024"),
        "yMMMEd": ("2024년 3월 5일 (화)", "Tue, Mar 5, 2024"),
    }  # fmt: skip


@given(dates, dates, st.sampled_from(DATE_FORMATS), st.sampled_from(DATE_FORMATS))
def test_the_same_korean_is_the_same_english(
    a: datetime.date, b: datetime.date, one: str, other: str
) -> None:
    """Even of 1924 and 2024, whose short forms are alike in both languages."""
    korean, english = (
        [date_text(d, form, language) for d, form in ((a, one), (b, other))]
        for language in ("ko", "en")
    )
    assert (korean[0] != korean[1]) or (english[0] == english[1])
    longest = zip((korean, english), LONGEST_DATE, strict=True)
    assert all(len(text) <= most for texts, most in longest for text in texts)
    check_date(korean[0])


def test_a_date_is_in_one_set_only() -> None:
    """Nor is its text in another: 24. 3. 5. stands for two days."""
    pairs = date_pairs(6000)
    assert pairs == date_pairs(6000)
    assert sum(map(len, pairs)) == 6000
    assert all(595 < len(part) <= 605 for part in pairs[1:])
    assert len({pair.source for part in pairs for pair in part}) < 6000  # it happens
    for count, sentence in ((2, "too few to split"), (80_000, "there are 73049 dates")):
        with pytest.raises(UserError, match=sentence):
            date_pairs(count)
    for side in (0, 1):
        assert_disjoint([[pair[side] for pair in part] for part in pairs])
    days = [[re.sub(r"\D+", " ", p.source).strip() for p in part] for part in pairs]
    assert_disjoint(days)


def assert_disjoint(sets: list[list[str]]) -> None:
    for a, b in itertools.combinations(map(set, sets), 2):
        assert not a & b


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2024년 2월 30일", "there is no such day"),
        ("2023. 2. 29.", "there is no such day"),
        ("0. 1. 1.", "is not written as one of"),
        ("24. 13. 1.", "there is no such day"),
        ("2024년 3월 5일 월요일", "that day is a 화요일, not 월요일"),
        ("2024. 3. 5. (수)", "that day is a 화요일, not 수요일"),
        ("5 March 2024", "is not written as one of: 2024년 3월 5일 화요일,"),
        ("", "is not written as one of"),
    ],
)
def test_what_is_no_date_is_named(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_date(text)


def catalogue(path: Path, messages: dict[str, str]) -> None:
    """A gettext catalogue, as babel writes it."""
    made = Catalog(charset="utf-8")
    for english, korean in messages.items():
        context, _, text = english.rpartition("\x04")
        made.add(text, korean, context=context or None)
    with path.open("wb") as file:
        write_mo(file, made)


def test_messages_without_marks_of_shortcuts(tmp_path: Path) -> None:
    catalogue(
        tmp_path / "a.mo",
        {
            "menu\x04_Open file...": "파일 열기(_O)...",
            "button\x04~Language": "언어(~L)",
            "W_idth:": "너비(_I):",
            "snake_case": "가_나",
            "OK": "OK",  # no Korean
            "two\nlines": "두\n줄",
            "x" * 41: "길다",
        },
    )
    catalogue(tmp_path / "b.mo", {"again\x04Open file...": "파일 열기..."})
    messages = read_messages(tmp_path, (24, 40))
    assert sorted(messages) == [
        Pair("가나", "snakecase"),
        Pair("너비:", "Width:"),
        Pair("언어", "Language"),
        Pair("파일 열기...", "Open file..."),
    ]
    assert Pair("파일 열기...", "Open file...") not in read_messages(tmp_path, (6, 40))
    decomposed = {"\r\n한": "줄", "Caf\u00e9": "카페", "Cafe\u0301": "카페"}
    content = {a: unicodedata.normalize("NFD", b) for a, b in decomposed.items()}
    catalogue(tmp_path / "b.mo", content)
    assert {*read_messages(tmp_path, (24, 40))} - {*messages} == {
        Pair("카페", "Caf\u00e9")
    }


def test_what_is_no_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no gettext catalogue"):
        read_messages(tmp_path, (24, 40))
    catalogue(tmp_path / "good.mo", {"Width": "너비"})
    whole = (tmp_path / "good.mo").read_bytes()
    bad = tmp_path / "bad.mo"
    undecodable = whole.replace("너".encode(), b"\xff\xfe\xfd")
    for content in (b"", b"PK\x03\x04", whole[:-6], whole[:20], undecodable):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.mo is no gettext catalogue"):
            read_messages(tmp_path, (24, 40))


def test_a_text_is_in_one_set_only_in_either_language() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        Pair(f"{chr(0xAC00 + a)}줄 {n}", f"{chr(97 + b // 26)}{chr(97 + b % 26)} {n}!")
        for n, (a, b) in enumerate(rng.integers(0, 300, (150, 2)))
    ]
    sets = split_messages(pairs)
    assert sorted(pair for part in sets for pair in part) == sorted(pairs)
    for side in (0, 1):
        assert_disjoint([[pair[side].split()[0] for pair in part] for part in sets])
    with pytest.raises(UserError, match="too few"):
        split_messages(pairs[:5])


def test_noise_is_counted() -> None:
    pairs = [
        Pair("%1의 이름", "Name of %1"),
        Pair("조건 4", "Condition 3"),
        Pair("링크", "Link"),
        Pair("링크", "Hyperlink"),
    ]
    assert noise(pairs) == {
        "another number or placeholder": 0.25,
        "several English": 0.5,
    }


def test_pairs_become_numbers_and_padding() -> None:
    pairs = [Pair("가나", "ab"), Pair("나", "c?")]
    source, target = fit_vocabulary("가나"), fit_vocabulary(END + "abc")
    arrays = encode_pairs(pairs, source, target, (3, 4))
    assert {name: a.tolist() for name, a in arrays.items()} == {
        "x": [[1, 2, 0], [2, 0, 0]],
        "x_length": [2, 1],
        "y": [[2, 3, 1, 1, 1], [4, 0, 1, 1, 1]],
        "y_length": [3, 3],
    }
    with pytest.raises(ValueError, match="a text of 2 symbols is over 1"):
        encode_pairs(pairs, source, target, (1, 4))
