"""Translations by an encoder-decoder: decoded, and scored."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sacrebleu

from jaxstudy.models.seq2seq import Seq2Seq
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    mean_over_runs,
)
from jaxstudy.study.sizes import last_rise
from jaxstudy.text.decoding import Beams, beam_search
from jaxstudy.text.pairs import END, Pair, encode_pairs, text_before_end
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.types import Array, PyTree

CHRF = (0.0, 100.0)  # an F-score of n-grams of characters, n to 6 (Popovic 2015)
NEAREST = "nearest training text"  # a baseline
PAIRS_AT_ONCE = 200  # pairs that are translated at once

Records = Sequence[Mapping[str, Any]]  # of one training, as it logged them
Decode = Callable[..., Beams]  # (params, x [B, S], x_length [B])


class Alphabets(NamedTuple):
    """The characters of both languages, and the most that a text in each may have."""

    source: Vocabulary
    target: Vocabulary
    longest: tuple[int, int]

    @property
    def end(self) -> int:
        """The number of END."""
        return int(self.target.encode(END)[0])

    def arrays(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
        """Pairs as numbers, padded; see `encode_pairs`."""
        return encode_pairs(pairs, self.source, self.target, self.longest)

    def text(self, tokens: np.ndarray | Array) -> str:
        """The characters before the first END."""
        return text_before_end(np.asarray(tokens), self.target)


def fit_alphabets(pairs: Sequence[Pair], longest: tuple[int, int]) -> Alphabets:
    """The characters of training pairs."""
    source = fit_vocabulary("".join(pair.source for pair in pairs))
    target = fit_vocabulary(END + "".join(pair.target for pair in pairs))
    return Alphabets(source, target, longest)


def decoder(network: Seq2Seq, alphabets: Alphabets, width: int) -> Decode:
    """Beam search of this width, compiled; of width 1 it is greedy."""
    end, length = alphabets.end, alphabets.longest[1] + 1

    def decode(params: PyTree, x: Array, lengths: Array) -> Beams:
        memory, first = network.encode(params, x, lengths), jnp.full(len(x), end)
        step = network.step(params)
        return beam_search(step, memory, first, width=width, length=length, end=end)

    return jax.jit(decode)


def translate_pairs(
    decode: Decode, params: PyTree, alphabets: Alphabets, pairs: Sequence[Pair]
) -> list[str]:
    """The best translation of the source of every pair."""
    arrays, size = alphabets.arrays(pairs), min(len(pairs), PAIRS_AT_ONCE)
    texts: list[str] = []
    for first in range(0, len(pairs), size):
        rows = np.minimum(np.arange(first, first + size), len(pairs) - 1)
        beams = decode(params, arrays["x"][rows], arrays["x_length"][rows])
        texts += map(alphabets.text, np.asarray(beams.tokens[:, 0]))
    return texts[: len(pairs)]


def score_translations(
    network: Seq2Seq,
    params: PyTree,
    alphabets: Alphabets,
    pairs: Sequence[Pair],
    beam: int,
) -> dict[str, Estimate]:
    """Exact matches and chrF, greedy and by a beam, of replicas params [L, ...]."""
    references = [pair.target for pair in pairs]
    params = jax.device_get(params)  # whose parts take no program
    scores: dict[str, Estimate] = {}
    for name, width in (("greedy", 1), (f"beam of {beam}", beam)):
        decode = decoder(network, alphabets, width)
        exact, chrf = [], []
        for seed in range(len(jax.tree.leaves(params)[0])):
            of_seed = jax.tree.map(lambda a, seed=seed: a[seed], params)
            texts = translate_pairs(decode, of_seed, alphabets, pairs)
            exact.append(exact_match(texts, references))
            chrf.append(sacrebleu.corpus_chrf(texts, [references]).score)
        scores[f"exact match, {name}"] = mean_over_runs(np.array(exact), SHARE)
        scores[f"chrF, {name}"] = mean_over_runs(np.array(chrf), CHRF)
    return scores


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """The share of texts that are right as a whole."""
    return float(np.mean([a == b for a, b in zip(texts, references, strict=True)]))


def score_nearest(train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, float]:
    """Exact match and chrF of the targets of the most similar training sources.

    A baseline that learns nothing of the language: it looks up what it knows. Texts are
    as similar as the Dice coefficient of their sets of character bigrams.
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(train):
        for bigram in _bigrams(pair.source):
            rows.setdefault(bigram, []).append(row)
    sizes = np.array([len(_bigrams(pair.source)) for pair in train])
    texts = []
    for pair in test:
        own, shared = _bigrams(pair.source), np.zeros(len(train))
        for bigram in own:
            shared[rows.get(bigram, [])] += 1
        texts.append(train[int(np.argmax(2 * shared / (sizes + len(own))))].target)
    references = [pair.target for pair in test]
    chrf = sacrebleu.corpus_chrf(texts, [references]).score
    return {"exact match": exact_match(texts, references), "chrF": chrf}


def _bigrams(text: str) -> set[tuple[str, str]]:
    """Pairs of neighbouring characters, the ends of the text included."""
    return {*itertools.pairwise(f"{END}{text}{END}")}


def compare_epochs(
    attending: Records, without: Records, *, enough: float
) -> tuple[Estimate, Estimate]:
    """How many times as many epochs a network without attention needs, and its end.

    Until the exact match of its validation pairs is `enough`; where it never is, all
    its epochs count, so the first is a lower bound, paired by seed. The second is the
    rise of that exact match over its last two eighths: near 0, it is level.
    """
    right, other = (_validated(records) for records in (attending, without))
    needed = _epochs_until(other, enough)
    needed = np.where(np.isnan(needed), len(other), needed)
    times = mean_over_runs(
        needed / _epochs_until(right, enough), NONNEGATIVE, "seeds, paired"
    )
    rise = last_rise(other) if len(other) > 1 else np.full(other.shape[1], np.nan)
    return times, mean_over_runs(rise, SHARE_DIFFERENCE)


def _validated(records: Records) -> np.ndarray:
    """The logged exact match of the validation pairs [epochs, seeds]."""
    return np.array([r["exact match"] for r in records if r["split"] == "validation"])


def _epochs_until(share: np.ndarray, enough: float) -> np.ndarray:
    """The first epoch whose share [epochs, seeds] is enough, from 1; NaN for none."""
    reached = share >= enough
    return np.where(reached.any(0), reached.argmax(0) + 1, np.nan)
