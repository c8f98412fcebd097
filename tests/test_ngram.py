"""The n-gram baseline: by hand, and as a distribution over the whole vocabulary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.text.ngram import (
    NGram,
    best_ngram,
    bits,
    discounts,
    fit_ngram,
    perplexity,
    sequence_bits,
)

A, B, C, D = range(4)


def probability(ngram: NGram, *symbols: int) -> float:
    """That of the last symbol after the others, from a start."""
    return float(2 ** -bits(ngram, [np.array(symbols)])[-1])


def test_bigrams_by_hand() -> None:
    """The text "a b a c", over a vocabulary of four.

    Bigrams: start a, a b, b a, a c, once each: no count is 2, so 1/2 is taken off.
    Before a there were two different symbols (start, b), before b and c one: of four
    in all, 1/2 off each of the three leaves 3/8 to the uniform distribution.
    """
    ngram = fit_ngram([np.array([A, B, A, C])], 4, 2)
    rest = 1.5 / 4
    one = {A: 1.5 / 4 + rest / 4, B: 0.5 / 4 + rest / 4, D: rest / 4}
    assert probability(ngram, A) == pytest.approx(0.5 + 0.5 * one[A])
    assert probability(ngram, D) == pytest.approx(0.5 * one[D])
    # a was followed by two different ones: 1/2 off each leaves half of two
    assert probability(ngram, A, B) == pytest.approx(0.5 / 2 + 0.5 * one[B])
    assert probability(ngram, A, A) == pytest.approx(0.5 * one[A])
    assert probability(ngram, B, A) == pytest.approx(0.5 + 0.5 * one[A])
    assert probability(ngram, C, A) == pytest.approx(one[A])  # nothing followed c
    assert probability(ngram, D, A) == pytest.approx(one[A])  # never seen


def test_counts_at_the_highest_order_alone() -> None:
    """In "x y" four times and "z y": y is frequent, but after two symbols only."""
    x, y, z, w = range(4)
    texts = [np.array([x, y])] * 4 + [np.array([z, y]), np.array([z, w])]
    ngram = fit_ngram(texts, 4, 2)
    # contexts: x after the start alone, z too, y after x and z, w after z; n1 = 3 and
    # n2 = 1, so Y = 3 / 5 is taken off 1, 1, 2, 1
    one = np.array([0.4, 1.4, 0.4, 0.4]) / 5 + 4 * 0.6 / 5 / 4
    # bigrams: start x 4, start z 2, x y 4, z y 1, z w 1: n1 = 2, n2 = 1, Y = 1 / 2
    assert probability(ngram, x, y) == pytest.approx(3.5 / 4 + 0.5 / 4 * one[y])
    assert probability(ngram, z, y) == pytest.approx(0.5 / 2 + 1 / 2 * one[y])
    assert probability(ngram, x) == pytest.approx(3.5 / 6 + 1 / 6 * one[x])


def test_single_symbols_by_hand() -> None:
    """Order 1 knows counts only: 3 a, 2 b, 1 c, and n1 = n2 = n3 = 1, no 4."""
    ngram = fit_ngram([np.array([A, B, A]), np.array([A, B, C])], 5, 1)
    off = 1 / 3  # n1 / (n1 + 2 n2)
    rest = 3 * off / 6 / 5
    want = [(count - off) / 6 + rest for count in (3, 2, 1)] + [rest, rest]
    got = [probability(ngram, symbol) for symbol in range(5)]
    assert got == pytest.approx(want)
    assert [probability(ngram, C, symbol) for symbol in range(5)] == pytest.approx(want)
    text = np.array([A, D, B])
    np.testing.assert_allclose(bits(ngram, [text]), -np.log2(want)[[A, D, B]])


def test_three_discounts() -> None:
    """n1 to n4 are 8, 4, 2, 1: Y = 1/2, and D = 1 - 1/2, 2 - 3/4, 3 - 1."""
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 1])
    want = np.repeat([0.5, 1.25, 2.0, 2.0, 2.0], [8, 4, 2, 1, 1])
    np.testing.assert_allclose(discounts(counts), want)
    # 3 - 4 Y n4 / n3 is below 0 here: one discount for all
    np.testing.assert_allclose(discounts(np.repeat([1, 2, 3, 4], [4, 2, 1, 9])), 0.5)


texts = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4)


@given(texts.filter(any), st.integers(1, 4), st.lists(st.integers(0, 4), max_size=5))
def test_probabilities_of_the_whole_vocabulary_add_up_to_1(
    training: list[list[int]], order: int, context: list[int]
) -> None:
    ngram = fit_ngram([np.array(t, int) for t in training], 5, order)
    found = [probability(ngram, *context, symbol) for symbol in range(5)]
    assert sum(found) == pytest.approx(1)
    assert min(found) > 0  # 4 was never seen


@given(texts.filter(any), texts.filter(any))
def test_contexts_do_not_cross_sequences(
    training: list[list[int]], other: list[list[int]]
) -> None:
    ngram = fit_ngram([np.array(t, int) for t in training], 4, 3)
    sequences = [np.array(t) for t in other if t]
    separate = [bits(ngram, [sequence]) for sequence in sequences]
    together = bits(ngram, [np.array(t, int) for t in other])
    np.testing.assert_allclose(together, np.concatenate(separate), rtol=1e-14)
    sums = sequence_bits(ngram, sequences)
    np.testing.assert_allclose(sums, [b.sum() for b in separate], rtol=1e-14)
    assert perplexity(ngram, sequences) == pytest.approx(2 ** together.mean())


def test_only_the_last_symbols_count() -> None:
    text = np.random.default_rng(0).integers(0, 3, 300)
    ngram = fit_ngram([text], 3, 3)
    a, b = np.array([0, 1, 2, 0, 1]), np.array([2, 2, 2, 0, 1])
    assert bits(ngram, [a])[-1] == bits(ngram, [b])[-1]
    one, two = fit_ngram([text], 3, 1), fit_ngram([text], 3, 2)
    means = [bits(model, [text]).mean() for model in (one, two, ngram)]
    assert means == sorted(means, reverse=True)


def test_the_order_is_chosen_on_validation() -> None:
    """In a text whose symbols depend on the one before, and in one of chance."""
    text = np.random.default_rng(0).integers(0, 3, 400).cumsum() % 7
    noise = np.random.default_rng(1).integers(0, 7, 100)
    for validation in (text[200:], noise):
        chosen = best_ngram([text[:200]], [validation], 7, (1, 2, 3, 4))
        assert (chosen.order == 1) == (validation is noise)
        others = [fit_ngram([text[:200]], 7, n) for n in (1, 2, 3, 4)]
        fewest = min(bits(ngram, [validation]).sum() for ngram in others)
        assert bits(chosen, [validation]).sum() == fewest


@pytest.mark.parametrize(
    ("sequences", "order", "sentence"),
    [
        ([], 2, "a symbol at least"),
        ([[]], 2, "a symbol at least"),
        ([[0, 4]], 2, "from 0 to 3"),
        ([[-1]], 2, "from 0 to 3"),
        ([[0]], 0, "1 or more, not 0"),
    ],
)
def test_what_is_no_text_is_refused(
    sequences: list[list[int]], order: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit_ngram([np.array(s, int) for s in sequences], 4, order)
