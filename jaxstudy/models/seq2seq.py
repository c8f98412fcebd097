"""From one sequence to another: an encoder, and a decoder that may look back at it.

The decoder's recurrence does not depend on what it attends to, so that in training all
its steps, and all its looks back, are a few products of matrices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxstudy.model import Model, small_uniform
from jaxstudy.models.recurrent import Kind, Recurrent, States
from jaxstudy.ops import flat_dot_general
from jaxstudy.text.decoding import DecodeStep
from jaxstudy.types import Array, Key, PyTree


class Memory(NamedTuple):
    """What the encoder made of B sequences, and how far the decoder has come.

    states: of each decoder layer [B, U]; outputs [B, S, E]: the encoder's at every step
    of the source; real [B, S]: where these are not padding.
    """

    states: tuple[States, ...]
    outputs: Array
    real: Array


class Seq2Seq(NamedTuple):
    """An encoder-decoder as pure functions.

    model: init, and apply(params, extra, source [B, S], lengths [B], tokens [B, T])
    for the logits [B, T, V] of what follows each of the tokens (teacher forcing);
    encode(params, source, lengths) -> Memory;
    decode(params, memory, tokens [B, T]) -> (memory, logits [B, T, V], attention
    [B, T, S]), the attention zeros where there is none.
    """

    model: Model
    encode: Callable[[PyTree, Array, Array], Memory]
    decode: Callable[[PyTree, Memory, Array], tuple[Memory, Array, Array]]

    def step(self, params: PyTree) -> DecodeStep:
        """One more token, as `jaxstudy.text.decoding` decodes."""

        def step(memory: Memory, token: Array) -> tuple[Memory, Array]:
            memory, logits, _ = self.decode(params, memory, token[:, None])
            return memory, logits[:, 0]

        return step


_dense = functools.partial(nn.Dense, dot_general=flat_dot_general)


class _Encoder(nn.Module):
    """Both directions: what a symbol means depends on what follows it, too."""

    vocabulary: int
    embedding: int
    kind: Kind
    units: int
    layers: int

    @nn.compact
    def __call__(self, source: Array, lengths: Array, train: bool) -> Memory:
        """Map source [B, S] to outputs [B, S, 2 U] and the decoder's first states."""
        embed = nn.Embed(
            self.vocabulary, self.embedding, embedding_init=small_uniform,
            name="embedding",
        )  # fmt: skip
        x, at = embed(source), jnp.arange(source.shape[1])
        real = at < lengths[:, None]
        backwards = jnp.where(real, lengths[:, None] - 1 - at, at)

        def reverse(a: Array) -> Array:  # the symbols of each row, not its padding
            return jnp.take_along_axis(a, backwards[..., None], axis=1)

        width = (self.units,)
        ends: list[States] = []
        for i in range(self.layers):
            forward = Recurrent(self.kind, width, name=f"forward_{i + 1}")
            backward = Recurrent(self.kind, width, name=f"backward_{i + 1}")
            h, (last,) = forward(x, lengths)
            h_reversed, (first,) = backward(reverse(x), lengths)
            x = jnp.concatenate([h, reverse(h_reversed)], -1)
            joint = _dense(self.units, name=f"bridge_{i + 1}")
            # an LSTM's c is carried over as h is, by the same weights
            ends.append(
                tuple(
                    jnp.tanh(joint(jnp.concatenate(both, -1)))
                    for both in zip(last, first, strict=True)
                )
            )
        return Memory(tuple(ends), jnp.where(real[..., None], x, 0), real)


class _Decoder(nn.Module):
    vocabulary: int
    embedding: int
    kind: Kind
    units: int
    layers: int
    attention: bool
    dropout: float

    @nn.compact
    def __call__(
        self, memory: Memory, tokens: Array, train: bool
    ) -> tuple[Memory, Array, Array]:
        embed = nn.Embed(
            self.vocabulary, self.embedding, embedding_init=small_uniform,
            name="embedding",
        )  # fmt: skip
        layers = Recurrent(self.kind, (self.units,) * self.layers, name="layers")
        h, states = layers(embed(tokens), None, memory.states)
        weights = jnp.zeros((*tokens.shape, memory.real.shape[1]), h.dtype)
        if self.attention:
            keys = _dense(self.units, use_bias=False, name="keys")(memory.outputs)
            scores = jnp.einsum("btu,bsu->bts", h, keys)
            scores = jnp.where(memory.real[:, None], scores, -jnp.inf)
            weights = nn.softmax(scores)
            context = jnp.einsum("bts,bse->bte", weights, memory.outputs)
            h_and_context = jnp.concatenate([h, context], -1)
            h = jnp.tanh(_dense(self.units, name="combined")(h_and_context))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        init = initializers.glorot_uniform()
        logits = _dense(self.vocabulary, kernel_init=init, name="output")(h)
        return memory._replace(states=states), logits, weights


class _Both(nn.Module):
    encoder: nn.Module
    decoder: nn.Module

    def encode(self, source: Array, lengths: Array, train: bool = False) -> Memory:
        return self.encoder(source, lengths, train)

    def decode(
        self, memory: Memory, tokens: Array, train: bool = False
    ) -> tuple[Memory, Array, Array]:
        return self.decoder(memory, tokens, train)

    def __call__(
        self, source: Array, lengths: Array, tokens: Array, train: bool
    ) -> Array:
        memory = self.encode(source, lengths, train)
        return self.decode(memory, tokens, train)[1]


def seq2seq(
    source_vocabulary: int,
    target_vocabulary: int,
    units: int,
    *,
    attention: bool,
    kind: Kind = "lstm",
    layers: int = 1,
    embedding: int = 64,
    dropout: float = 0.0,
) -> Seq2Seq:
    """An encoder in both directions, and a decoder, of `layers` layers each.

    The encoder's last states become, by a dense layer and tanh, the decoder's first:
    all that it hears of the source without attention (Sutskever, Vinyals and Le 2014,
    arXiv:1409.3215). With it, at every step t, weights a_t = softmax_s(h_t W e_s) over
    the encoder's outputs e_s, and tanh(W' [h_t, sum_s a_ts e_s]) in the place of h_t
    (Luong, Pham and Manning 2015, arXiv:1508.04025, "general").
    """
    module = _Both(
        _Encoder(source_vocabulary, embedding, kind, units, layers),
        _Decoder(target_vocabulary, embedding, kind, units, layers, attention, dropout),
    )

    def init(key: Key) -> tuple[PyTree, PyTree]:
        one = jnp.zeros((1, 1), jnp.int32)
        variables = module.init(key, one, jnp.ones(1, jnp.int32), one, train=False)
        return variables["params"], {}

    def apply(
        params: PyTree, extra: PyTree, *inputs: Array, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        logits = module.apply(
            {"params": params}, *inputs, train=train,
            rngs=None if key is None else {"dropout": key},
        )  # fmt: skip
        return cast(Array, logits), extra

    def part(name: str) -> Callable[..., Any]:
        return lambda params, *inputs: module.apply(
            {"params": params}, *inputs, method=name
        )

    return Seq2Seq(Model(init, apply), part("encode"), part("decode"))
