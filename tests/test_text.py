"""Text as numbers: there and back, and nothing that the training text has not."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.text.vocabulary import (
    UNKNOWN,
    Vocabulary,
    fit_vocabulary,
    normalise,
    windows,
    words,
)
from jaxstudy.types import UserError

texts = st.text(min_size=1, max_size=60).filter(lambda text: UNKNOWN not in text)


@given(texts)
def test_a_text_comes_back(text: str) -> None:
    vocabulary = fit_vocabulary(text)
    numbers = vocabulary.encode(text)
    assert numbers.min() >= 1
    assert numbers.max() < len(vocabulary)
    assert "".join(vocabulary.decode(numbers)) == text
    assert fit_vocabulary(sorted(text)) == vocabulary  # the order does not matter


@given(texts, texts)
def test_what_is_not_known_is_named_or_zero(training: str, text: str) -> None:
    vocabulary = fit_vocabulary(training)
    numbers = vocabulary.encode(text, allow_unknown=True)
    back = vocabulary.decode(numbers)
    others = sorted(set(text) - set(training))
    assert [a == b for a, b in zip(back, text, strict=True)] == [
        c in training for c in text
    ]
    if others:
        with pytest.raises(UserError, match="not in the vocabulary") as caught:
            vocabulary.encode(text)
        assert sum(repr(c) in str(caught.value) for c in others) >= min(8, len(others))
    else:
        np.testing.assert_array_equal(numbers, vocabulary.encode(text))


def test_the_most_frequent_stay() -> None:
    tokens = ["the", "whale", "and", "the", "sea", "and", "the", "ship"]
    small = fit_vocabulary(tokens, size=3)
    assert small.symbols == ("and", "the")
    assert len(small) == 3
    assert small.encode(tokens, allow_unknown=True).tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    assert small.decode([0, 1]) == [UNKNOWN, "and"]
    assert len(fit_vocabulary(tokens, size=99)) == 6
    assert fit_vocabulary("bca", size=3).symbols == ("a", "b")  # equally frequent


def test_many_unknown_symbols_are_counted() -> None:
    with pytest.raises(UserError, match="'h' and 2 more"):
        Vocabulary(("z",)).encode("abcdefghij")


def test_no_text_has_no_vocabulary() -> None:
    with pytest.raises(UserError, match="there is none"):
        fit_vocabulary("")


def test_words_numbers_and_marks() -> None:
    assert words("Call me Ishmael. Don't ask\nin 1851\N{EM DASH}s\xe9a!") == [
        "call", "me", "ishmael", ".", "don't", "ask", "in", "1851", "\N{EM DASH}",
        "s\xe9a", "!",
    ]  # fmt: skip


def test_a_combining_mark_is_part_of_its_word() -> None:
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("นี้ குறள், வாழ்க") == ["นี้", "குறள்", ",", "வாழ்க"]
    assert words("می\N{ZERO WIDTH NON-JOINER}خواهم") == [
        "می\N{ZERO WIDTH NON-JOINER}خواهم"
    ]
    assert words("J\N{COMBINING CARON} i\N{COMBINING ACUTE ACCENT}") == [
        "\u01f0", "\u00ed"
    ]  # fmt: skip
    french = "L\u2019\u00e9t\u00e9, o\u00f9 \u00eates-vous\u00a0?"
    assert words(french) == [
        "l\u2019\u00e9t\u00e9", ",", "o\u00f9", "\u00eates", "-", "vous", "?"
    ]  # fmt: skip


@given(st.text())
def test_what_looks_the_same_is_the_same(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert normalise(decomposed) == normalise(text) == normalise(normalise(text))
    assert words(decomposed) == words(text)
    lines = "\n".join(text.split())
    for end in ("\r\n", "\r"):
        assert normalise(lines.replace("\n", end)) == normalise(lines)


@given(st.integers(1, 9), st.integers(2, 60))
def test_windows_are_the_text_and_its_next_symbol(length: int, n: int) -> None:
    text = np.arange(n)
    if n <= length:
        with pytest.raises(UserError, match="shorter than one window"):
            windows(text, length)
        return
    found = windows(text, length)
    count = (n - 1) // length
    assert found["x"].shape == found["y"].shape == (count, length)
    np.testing.assert_array_equal(found["x"].ravel(), text[: count * length])
    np.testing.assert_array_equal(found["y"], found["x"] + 1)
