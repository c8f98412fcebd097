"""The n-gram model that language models are measured by: interpolated Kneser-Ney."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """What the k-grams of a training text come to; contexts are their first k - 1.

    keys [G]: context * vocabulary + last symbol, sorted; share [G]: (count - discount)
    over the counts of all that share the context; rest [C]: what a context leaves to
    the level below, 1 where nothing ever followed it.
    """

    keys: np.ndarray
    share: np.ndarray
    rest: np.ndarray


class NGram(NamedTuple):
    """Levels of the orders 1, 2, ...; symbols are numbers below `vocabulary`."""

    vocabulary: int
    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        """n: a symbol depends on the n - 1 before it."""
        return len(self.levels)


def _joined(
    sequences: Sequence[np.ndarray], vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """All symbols [n] one after the other, and where [n] a sequence begins."""
    parts = [np.asarray(s) for s in sequences if len(s)]
    if not parts:
        raise ValueError("an n-gram model needs a symbol at least")
    symbols = np.concatenate(parts).astype(np.int64)
    if symbols.min() < 0 or symbols.max() >= vocabulary:
        raise ValueError(f"symbols are numbers from 0 to {vocabulary - 1}")
    first = np.zeros(len(symbols), bool)
    first[np.cumsum([0, *map(len, parts[:-1])])] = True
    return symbols, first


def _contexts(grams: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The context [n] of every symbol: the gram that ends before it, counted from 1.

    0 is that of a start, as if start symbols came before it; -1 an unseen one.
    """
    before = np.roll(grams, 1)
    return np.where(first, 0, np.where(before < 0, -1, before + 1))


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off counts [G], each 1 or more: D1, D2 or D3+.

    With n_j the number of counts that are j, and Y = n1 / (n1 + 2 n2):
    D_j = j - (j + 1) Y n_{j + 1} / n_j, for j = 1, 2 and 3 (Chen and Goodman 1999,
    eq. 26). Where counts are too few for that, Y is taken off all; 1/2 where even that
    would be 0 or all.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    y = n[0] / (n[0] + 2 * n[1]) if n[0] * n[1] else 0.5
    j = np.arange(1, 4)
    if n.all():
        each = j - (j + 1) * y * n[1:] / n[:-1]
        if np.all(each > 0):
            return each[np.minimum(counts, 3) - 1]
    return np.full(len(counts), y)


def fit_ngram(sequences: Sequence[np.ndarray], vocabulary: int, order: int) -> NGram:
    """Interpolated Kneser-Ney with modified discounts, over sequences of numbers [n].

    p_k(w | c) = (a(c w) - D) / a(c .) + rest(c) p_{k-1}(w | c'), where c' is c without
    its first symbol and rest(c) what was taken off; a counts occurrences at the highest
    order, and below it the different symbols before c w; p_0 = 1 / vocabulary.
    Before the first symbol of a sequence stand start symbols, which are never to be
    predicted. Raises ValueError for no symbols, one that is not below `vocabulary`, or
    an order under 1. Source: Kneser and Ney 1995; Chen and Goodman 1999, section 4.
    """
    if order < 1:
        raise ValueError(f"the order is 1 or more, not {order}")
    symbols, first = _joined(sequences, vocabulary)
    grams_of_order = []  # keys, and the number of contexts
    counts: list[np.ndarray] = []
    context, contexts = np.zeros_like(symbols), 1
    grams = context
    for k in range(order):
        below = grams
        keys, where, grams, count = np.unique(
            context * vocabulary + symbols,
            return_index=True, return_inverse=True, return_counts=True,
        )  # fmt: skip
        if k:  # a gram is another symbol before the one that it ends with
            counts[-1] = np.bincount(below[where], minlength=len(grams_of_order[-1][0]))
        grams_of_order.append((keys, contexts))
        counts.append(count)
        context, contexts = _contexts(grams, first), len(keys) + 1
    levels = []
    for (keys, contexts), count in zip(grams_of_order, counts, strict=True):
        owner, taken = keys // vocabulary, discounts(count)
        total = np.bincount(owner, count, contexts)
        rest = np.bincount(owner, taken, contexts)
        rest = np.divide(rest, total, out=np.ones(contexts), where=total > 0)
        levels.append(Level(keys, (count - taken) / total[owner], rest))
    return NGram(vocabulary, tuple(levels))


def bits(ngram: NGram, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """-log2 p of every symbol of some sequences, one after the other [n].

    Raises ValueError for no symbols, or one that is not below the vocabulary.
    """
    symbols, first = _joined(sequences, ngram.vocabulary)
    p = np.full(len(symbols), 1 / ngram.vocabulary)
    context = np.zeros_like(symbols)
    for keys, share, rest in ngram.levels:
        key = context * ngram.vocabulary + symbols  # below 0 in an unseen context
        place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        seen = keys[place] == key
        p *= np.where(context < 0, 1, rest[context])
        p += np.where(seen, share[place], 0)
        context = _contexts(np.where(seen, place, -1), first)
    return -np.log2(p)


def sequence_bits(ngram: NGram, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """-log2 p of every sequence [n] as a whole, n at least 1: [N]."""
    starts = np.cumsum([0, *map(len, sequences[:-1])])
    return np.add.reduceat(bits(ngram, sequences), starts)


def perplexity(
    ngram: NGram, sequences: Sequence[np.ndarray], without: int | None = None
) -> float:
    """2 to the mean bits of every symbol, or of every one that is not `without`."""
    each = bits(ngram, sequences)
    return float(2 ** each[np.concatenate(sequences) != without].mean())


def best_ngram(
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    vocabulary: int,
    orders: Iterable[int],
) -> NGram:
    """The n-gram model of the training set with the fewest bits on validation."""
    fitted = [fit_ngram(train, vocabulary, order) for order in orders]
    return min(fitted, key=lambda ngram: bits(ngram, validation).sum())
