"""Decoding: sequences out of a model that gives the chances of the next token.

A `DecodeStep` is (states, token [B]) -> (states, logits [B, V]): what one more token
makes of the states, arrays [B, ...]. Each function is pure and one scan; jit comes from
outside.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.model import Model
from jaxstudy.text.vocabulary import Vocabulary
from jaxstudy.types import Array, Key, PyTree

DecodeStep = Callable[[PyTree, Array], tuple[PyTree, Array]]


def language_model_step(model: Model, params: PyTree) -> DecodeStep:
    """One more token by a `language_model`, whose states are in its `extra`."""

    def step(states: PyTree, token: Array) -> tuple[PyTree, Array]:
        logits, extra = model.apply(
            params, {"states": states}, token[:, None], train=False, key=None
        )
        return extra["states"], logits[:, 0]

    return step


def top_k_logits(logits: Array, k: Array | int) -> Array:
    """Logits [B, V] with all but the k largest of each row at -inf; equal ones stay.

    k may be traced: one program serves every k. From V on nothing changes.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.clip(jnp.asarray(k) - 1, 0, logits.shape[-1] - 1)
    lowest = jnp.take_along_axis(ordered, jnp.full((len(logits), 1), last), axis=-1)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def draw_tokens(
    u: Array, logits: Array, temperature: Array | float, k: Array | int | None = None
) -> Array:
    """A token [B] of each row, from softmax(logits / temperature) of the k largest.

    It is the first whose probability, with those before it, exceeds u [B], numbers
    between 0 and 1: one of them for a row, not one for a token. At temperature 0 it is
    the most probable token.
    """
    if k is not None:
        logits = top_k_logits(logits, k)
    positive = jnp.where(jnp.asarray(temperature) > 0, temperature, 1.0)
    below = jnp.cumsum(jax.nn.softmax(logits / positive), axis=-1)
    # of all that there is: the sum may differ from 1 in its last bits
    drawn = jnp.sum(below <= u[:, None] * below[:, -1:], axis=-1)
    # argmax takes several times as long as a maximum and a minimum on a CPU
    places, size = jnp.arange(logits.shape[-1]), logits.shape[-1]
    largest = logits == logits.max(-1, keepdims=True)
    best = jnp.where(largest, places, size - 1).min(-1)
    return jnp.where(jnp.asarray(temperature) > 0, drawn, best)


def sample(
    step: DecodeStep,
    states: PyTree,
    prefix: Array,
    key: Key,
    *,
    length: int,
    temperature: Array | float = 1.0,
    k: Array | int | None = None,
    end: int | None = None,
) -> Array:
    """Go on from a prefix [B, P], P at least 1: the next tokens [B, length].

    `states` are those before the prefix. Temperature 0 is greedy decoding. After an
    `end` token a row is filled with it. Row b depends on the key, b and its own prefix.
    """
    rows, given = prefix.shape
    if not given:
        raise ValueError("a prefix has one token at least")
    steps = jnp.arange(given - 1 + length)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(row_keys, steps)
    uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
    chances = jax.vmap(jax.vmap(uniform))(keys)  # all at once: [steps, B]

    def body(carry: tuple[PyTree, Array, Array], now: Any) -> tuple[tuple, Array]:
        (states, token, ended), (at, u) = carry, now
        states, logits = step(states, token)
        drawn = draw_tokens(u, logits, temperature, k)
        inside = at + 1 < given
        following = prefix[:, jnp.minimum(at + 1, given - 1)]
        token = jnp.where(inside, following, drawn).astype(prefix.dtype)
        if end is not None:
            token = jnp.where(ended, end, token)
            ended = ended | ((token == end) & ~inside)
        return (states, token, ended), token

    begin = (states, prefix[:, 0], jnp.zeros(rows, bool))
    _, tokens = jax.lax.scan(body, begin, (steps, chances))
    return tokens[given - 1 :].T


def sample_texts(
    step: DecodeStep,
    states: PyTree,
    vocabulary: Vocabulary,
    prefix: str,
    key: Key,
    *,
    length: int,
    temperature: float = 1.0,
    k: int | None = None,
    allow_unknown: bool = False,
) -> list[str]:
    """The prefix with what `sample` adds to it, a text for each row of `states`.

    Raises UserError where the prefix has symbols that are not in the vocabulary, unless
    they are allowed.
    """
    rows = len(jax.tree.leaves(states)[0])
    numbers = vocabulary.encode(prefix, allow_unknown=allow_unknown)

    @jax.jit
    def tokens(key: Key) -> Array:
        prefixes = jnp.tile(jnp.asarray(numbers), (rows, 1))
        return sample(
            step, states, prefixes, key, length=length, temperature=temperature, k=k
        )

    drawn = np.asarray(tokens(key)).tolist()
    return [prefix + "".join(vocabulary.decode(row)) for row in drawn]


class Beams(NamedTuple):
    """The best sequences found for each row, the best first.

    tokens [B, W, length], filled with the end token after the first; scores [B, W], the
    logarithms of their probabilities in nats.
    """

    tokens: Array
    scores: Array


def beam_search(
    step: DecodeStep, states: PyTree, first: Array, *, width: int, length: int, end: int
) -> Beams:
    """The `width` most probable sequences after the tokens `first` [B], as it finds.

    Each step keeps the best of all continuations; one that has ended stays as it is.
    Width 1 is greedy decoding. Scores are sums, not divided by the length.
    """
    rows = len(first)

    def spread(a: Array) -> Array:
        return jnp.repeat(a, width, axis=0)

    # all beams begin alike: only the first may be continued at first
    scores = jnp.full((rows, width), -jnp.inf).at[:, 0].set(0.0)
    tokens = jnp.full((rows, width, length), end, first.dtype)
    begin = (jax.tree.map(spread, states), spread(first), tokens, scores)
    ended = jnp.zeros((rows, width), bool)

    def body(carry: tuple, at: Array) -> tuple[tuple, None]:
        states, token, tokens, scores, ended = carry
        states, logits = step(states, token)
        chances = jax.nn.log_softmax(logits).reshape(rows, width, -1)
        size = chances.shape[-1]
        only_end = jnp.where(jnp.arange(size) == end, 0.0, -jnp.inf)
        chances = jnp.where(ended[..., None], only_end, chances)
        total = (scores[..., None] + chances).reshape(rows, -1)
        scores, best = jax.lax.top_k(total, width)
        parent, new = best // size, (best % size).astype(tokens.dtype)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1)
        tokens = tokens.at[:, :, at].set(new)
        ended = jnp.take_along_axis(ended, parent, axis=1) | (new == end)
        chosen = (jnp.arange(rows)[:, None] * width + parent).reshape(-1)
        states = jax.tree.map(lambda a: a[chosen], states)
        return (states, new.reshape(-1), tokens, scores, ended), None

    (_, _, tokens, scores, _), _ = jax.lax.scan(
        body, (*begin, ended), jnp.arange(length)
    )
    return Beams(tokens, scores)
