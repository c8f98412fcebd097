"""Bits of held-out tunes: beside the probabilities themselves, and a compressor."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.models.recurrent import first_states, language_model
from jaxstudy.text.compression import (
    bits_per_character,
    network_bits,
    ppmd_bits,
    xz_bits,
)
from jaxstudy.text.decoding import language_model_step


def test_bits_of_a_sequence_are_those_of_its_symbols_one_by_one() -> None:
    model = language_model(7, "lstm", (6,), dropout=0.5)
    init = jax.jit(jax.vmap(model.init))
    params = init(jax.random.split(jax.random.key(1), 2))[0]
    params = jax.tree.map(lambda a: 4 * a, params)  # far from uniform
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 7, n) for n in (9, 2, 40)]
    bits = network_bits(model, params, sequences)
    assert bits.shape == (2, 3)
    weights = jax.tree.map(lambda a: a[1], params)
    step = jax.jit(language_model_step(model, weights))
    for sequence, total in zip(sequences, bits[1], strict=True):
        states, expected = first_states("lstm", (6,), 1), 0.0
        for symbol, following in itertools.pairwise(sequence):
            states, logits = step(states, jnp.array([symbol]))
            expected -= float(jax.nn.log_softmax(logits[0])[following]) / np.log(2)
        assert total == pytest.approx(expected, rel=1e-5)


def test_bits_per_character_are_a_ratio_of_sums() -> None:
    bits, characters = np.array([10.0, 30.0, 5.0] * 2), np.array([13, 21, 11] * 2)
    estimate = bits_per_character(bits, characters)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.mean < estimate.high
    assert estimate.mean == pytest.approx(90 / characters.sum())
    exact = bits_per_character(2.0 * characters, characters)
    assert exact[:3] == pytest.approx((2, 2, 2))


def test_xz_takes_fewer_bits_for_what_it_has_seen() -> None:
    text, other = (
        "".join(np.random.default_rng(i).choice(list("abcd"), 400)) for i in (0, 1)
    )
    alone, after_another, after_itself = (
        xz_bits(text, before) / len(text) for before in ("", other, text)
    )
    assert 2 < after_another < alone  # two bits a letter is what there is to say
    assert after_itself < 0.2


def test_ppmd_predicts_from_contexts_as_long_as_it_may() -> None:
    """Each letter is the fourth before it, one in twenty drawn anew: 0.31 bits."""
    letters = [0, 1, 2, 3]
    for drawn in np.random.default_rng(0).integers(0, 80, 8000):
        letters.append(drawn if drawn < 4 else letters[-4])
    text = "".join("abcd"[i] for i in letters)
    before, new = text[:6000], text[6000:]
    short, long = (ppmd_bits(new, before, order) / len(new) for order in (3, 4))
    assert 0.31 < long < 0.6
    assert 1.5 < short < 2
    assert ppmd_bits(before[-2000:], before, 16) / 2000 < 0.3  # seen before
