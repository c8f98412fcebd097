"""Decoding: against brute force, greedy decoding and the chances themselves."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.text.decoding import beam_search, draw_tokens, sample, top_k_logits
from jaxstudy.types import Array

VOCABULARY, END, HIDDEN = 4, 3, 5
RNG = np.random.default_rng(0)
EMBED = RNG.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
RECURRENT = RNG.normal(size=(HIDDEN, HIDDEN)).astype(np.float32)
OUTPUT = 2 * RNG.normal(size=(HIDDEN, VOCABULARY)).astype(np.float32)
END_BIAS = np.array([0, 0, 0, 1.5], np.float32)  # so that some end early


def step(states: Array, token: Array) -> tuple[Array, Array]:
    """A small random network: what comes next depends on all that came before."""
    h = jnp.tanh(states @ RECURRENT + jnp.asarray(EMBED)[token])
    return h, h @ OUTPUT + END_BIAS


def begin(rows: int) -> Array:
    return jnp.zeros((rows, HIDDEN))


def log_probabilities(first: int, tokens: Any) -> np.ndarray:
    """Of tokens [N, T] after the first, up to and with the first end: [N]."""
    states, token = begin(len(tokens)), np.full(len(tokens), first)
    total, ended = np.zeros(len(tokens)), np.zeros(len(tokens), bool)
    for following in np.asarray(tokens).T:
        states, logits = step(states, jnp.asarray(token))
        chances = np.asarray(jax.nn.log_softmax(logits))
        total += np.where(ended, 0, chances[np.arange(len(tokens)), following])
        token, ended = following, ended | (following == END)
    return total


def search(first: list[int], width: int, length: int) -> Any:
    return jax.device_get(
        jax.jit(
            lambda first: beam_search(
                step, begin(len(first)), first, width=width, length=length, end=END
            )
        )(jnp.array(first))
    )


def test_a_beam_of_every_width_finds_what_brute_force_finds() -> None:
    length, first = 4, [0, 1, 2]
    wide = search(first, VOCABULARY**3, length)
    tokens = np.array([*itertools.product(range(VOCABULARY), repeat=length)])
    ended = np.cumsum(tokens == END, axis=1) > 0
    tokens = np.unique(np.where(ended, END, tokens), axis=0)
    for row, token in enumerate(first):
        scores = log_probabilities(token, tokens)
        best = np.argsort(-scores)[:8]
        np.testing.assert_array_equal(wide.tokens[row, :8], tokens[best])
        np.testing.assert_allclose(wide.scores[row, :8], scores[best], atol=1e-5)


@pytest.mark.parametrize("width", [1, 3])
def test_scores_are_the_logarithms_of_the_probabilities(width: int) -> None:
    beams = search([0, 2], width, 5)
    for first, tokens, scores in zip([0, 2], beams.tokens, beams.scores, strict=True):
        assert (np.diff(scores) <= 0).all()
        assert len(np.unique(tokens, axis=0)) == width
        np.testing.assert_allclose(scores, log_probabilities(first, tokens), atol=1e-5)
        ended = np.cumsum(tokens == END, axis=1) > 0
        assert (tokens[ended] == END).all()


def greedy(first: list[int], length: int) -> np.ndarray:
    """One token after the other in plain Python."""
    states, token, columns = begin(len(first)), np.array(first), []
    ended = np.zeros(len(first), bool)
    for _ in range(length):
        states, logits = step(states, jnp.asarray(token))
        token = np.where(ended, END, np.argmax(logits, axis=-1))
        ended = ended | (token == END)
        columns.append(token)
    return np.stack(columns, axis=1)


def test_a_beam_of_one_is_greedy() -> None:
    want = greedy([0, 1, 2, 3], 6)
    np.testing.assert_array_equal(search([0, 1, 2, 3], 1, 6).tokens[:, 0], want)
    lengths = [(row == END).argmax() if END in row else 6 for row in want]
    assert len(set(lengths)) > 1  # they end at different places


def run(prefix: Any, seed: int = 0, **options: Any) -> np.ndarray:
    prefix, options = jnp.array(prefix), {"length": 6, **options}
    key, states = jax.random.key(seed), begin(len(prefix))
    return np.asarray(sample(step, states, prefix, key, **options))


def test_at_temperature_zero_sampling_is_greedy() -> None:
    want = greedy([0, 1, 2, 3], 6)
    for temperature, k in ((0.0, None), (1e-6, None), (1.0, 1)):
        got = run([[0], [1], [2], [3]], end=END, temperature=temperature, k=k)
        np.testing.assert_array_equal(got, want)


def test_of_equally_probable_tokens_the_first_is_taken() -> None:
    logits = jnp.array([[0, 2, 1, 2], [-jnp.inf] * 3 + [0], [1, 1, 1, 1]])
    drawn = draw_tokens(jnp.zeros(3), logits, 0.0)
    np.testing.assert_array_equal(drawn, [1, 3, 0])


def test_a_prefix_is_read_and_not_repeated() -> None:
    want = greedy([2], 6)[0]
    given = [2, *want[:2]]
    got = run([given], temperature=0.0, length=4, end=END)
    np.testing.assert_array_equal(got[0], want[2:])
    # an end inside the prefix ends nothing
    after_end = run([[0, END, 1]], temperature=0.0, length=3, end=END)[0]
    states = begin(1)
    for token in (0, END, 1):
        states, logits = step(states, jnp.array([token]))
    assert after_end[0] == int(jnp.argmax(logits)) != END


def test_the_seed_fixes_what_is_drawn_row_by_row() -> None:
    first = [[0], [1], [0], [0]]
    got = run(first, 1, length=20)
    np.testing.assert_array_equal(got, run(first, 1, length=20))
    np.testing.assert_array_equal(got[:2], run(first[:2], 1, length=20))
    assert (got != run(first, 2, length=20)).any()
    assert (got[0] != got[2]).any()  # the same prefix, another row
    np.testing.assert_array_equal(got[:, :7], run(first, 1, length=7))


@pytest.mark.parametrize(
    ("temperature", "k"), [(1.0, None), (0.5, None), (2.0, 2), (1.0, 3)]
)
def test_tokens_come_as_often_as_they_should(temperature: float, k: int | None) -> None:
    n = 20_000
    _, logits = step(begin(1), jnp.array([1]))
    scaled = np.asarray(logits[0], np.float64) / temperature
    if k is not None:
        scaled[np.argsort(scaled)[: VOCABULARY - k]] = -np.inf
    chances = np.exp(scaled) / np.exp(scaled).sum()
    got = run(np.full((n, 1), 1), length=1, temperature=temperature, k=k)
    share = np.bincount(got[:, 0], minlength=VOCABULARY) / n
    # five standard errors, and exactly 0 where the chance is
    assert (abs(share - chances) <= 5 * np.sqrt(chances * (1 - chances) / n)).all()


def test_one_program_serves_every_temperature_and_k() -> None:
    traces = []

    @jax.jit
    def go(temperature: Array, k: Array) -> Array:
        traces.append(1)
        _, logits = step(begin(2), jnp.array([0, 1]))
        return draw_tokens(jnp.array([0.1, 0.7]), logits, temperature, k)

    for temperature, k in ((0.0, 4), (1.0, 1), (0.7, 2), (1.0, 99)):
        go(jnp.float32(temperature), jnp.int32(k))
    assert len(traces) == 1


SIZE = 20
jitted_draw = jax.jit(draw_tokens)


@settings(deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=SIZE, max_size=SIZE),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).filter(any),
)
def test_nothing_impossible_is_drawn(logits: list[float], possible: list[bool]) -> None:
    """Not even by the least and the greatest numbers below 1."""
    row = np.where(possible, np.array(logits, np.float32), -np.inf)
    u = jnp.array([0, 2**-24, 0.5, 1 - 2**-24], jnp.float32)
    tokens = np.asarray(jitted_draw(u, jnp.tile(row, (4, 1)), 1.0))
    assert all(possible[token] for token in tokens)
    assert np.all(np.diff(tokens) >= 0)


def test_the_k_largest_stay() -> None:
    logits = jnp.array([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 1.0, 5.0]])
    inf = np.inf
    assert top_k_logits(logits, 2).tolist() == [
        [-inf, 3.0, 2.0, -inf],
        [5.0, 5.0, -inf, 5.0],  # equal ones all stay
    ]
    np.testing.assert_array_equal(top_k_logits(logits, 4), logits)
    np.testing.assert_array_equal(top_k_logits(logits, 9), logits)


def test_an_empty_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="one token at least"):
        run(np.zeros((1, 0), np.int32))
