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


def test_a_vocabulary_that_cannot_be() -> None:
    with pytest.raises(UserError, match="'h' and 2 more"):
        Vocabulary(("z",)).encode("abcdefghij")
    with pytest.raises(UserError, match="there is none"):
        fit_vocabulary("")
    with pytest.raises(ValueError, match="comes twice"):
        Vocabulary(("a", "a"))


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("Call me. Don't ask\nin 1851—séa!", "call me . don't ask in 1851 — séa !"),
        ("हिन्दी में", "हिन्दी में"),  # a combining mark is part of its word
        ("นี้ குறள், வாழ்க", "นี้ குறள் , வாழ்க"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("J\u030c i\u0301", "\u01f0 \u00ed"),
        ("L’été, où êtes-vous\u00a0?", "l’été , où êtes - vous ?"),
    ],
)
def test_words_numbers_and_marks(text: str, spaced: str) -> None:
    assert words(text) == spaced.split(" ")


@given(st.text())
def test_what_looks_the_same_is_the_same(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert normalise(decomposed) == normalise(text) == normalise(normalise(text))
    assert words(decomposed) == words(text)
    lines = "\n".join(text.split())
    for end in ("\r\n", "\r"):
        assert normalise(lines.replace("\n", end)) == normalise(lines)
