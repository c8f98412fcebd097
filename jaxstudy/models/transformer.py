"""A causal transformer: each position sees itself and those before it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy.model import Model, from_linen
from jaxstudy.types import Array

INIT = nn.initializers.normal(0.02)  # of GPT-2 (Radford et al. 2019)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): the norms come first."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, T, D] to as many features."""
        _, length, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=INIT, name="qkv")(
            nn.LayerNorm(name="norm_1")(x)
        )
        q, k, v = (
            part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(qkv, 3, -1)
        )
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        seen = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        mixed = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape)
        x = x + nn.Dense(width, kernel_init=INIT, name="out")(mixed)
        h = nn.Dense(4 * width, kernel_init=INIT, name="mlp_1")(
            nn.LayerNorm(name="norm_2")(x)
        )
        h = nn.gelu(h, approximate=False)
        return x + nn.Dense(width, kernel_init=INIT, name="mlp_2")(h)


class Transformer(nn.Module):
    """Vectors of symbols and of places, blocks, a norm, and logits."""

    inputs: int
    outputs: int
    length: int
    width: int
    heads: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map symbols x [B, T] to logits [B, T, outputs]."""
        places = self.param("places", INIT, (self.length, self.width))
        embed = nn.Embed(self.inputs, self.width, embedding_init=INIT, name="symbols")
        h = embed(x) + places[: x.shape[1]]
        for i in range(1, self.blocks + 1):
            h = TransformerBlock(self.heads, name=f"block_{i}")(h)
        h = nn.LayerNorm(name="norm")(h)
        return nn.Dense(self.outputs, kernel_init=INIT, name="logits")(h)


def transformer(
    inputs: int, outputs: int, length: int, *, width: int, heads: int, blocks: int
) -> Model:
    """Symbols x [B, T], numbers below `inputs`, to logits [B, T, outputs].

    With h_0 = symbol + place, each of the `blocks` is
    h += W_o sum_s softmax_s(q_t k_s / sqrt(d)) v_s over s <= t, in `heads` of d =
    width / heads features; h += W_2 gelu(W_1 h); both on layer-normalised h. At most
    `length` symbols in a row. Source: Vaswani et al. 2017, with the norms first (Xiong
    et al. 2020).
    """
    example = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return from_linen(
        Transformer(inputs, outputs, length, width, heads, blocks), example
    )
