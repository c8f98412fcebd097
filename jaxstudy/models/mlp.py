"""Dense networks, on numbers, and on categories that are embedded."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy.model import Model, from_linen, small_uniform
from jaxstudy.types import Array

if TYPE_CHECKING:  # it brings pandas, which takes half a second to import
    from jaxstudy.tabular.columns import Table

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),  # the slope of the course
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


class MLP(nn.Module):
    """Dense layers with an activation between them and none after the last."""

    hidden: tuple[int, ...]
    outputs: int
    activation: Callable[[Array], Array]
    use_bias: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, D] to [B, outputs], or to [B] where there is one output."""
        # Glorot uniform, as Keras has it: the course's Dense layers start like this
        init = nn.initializers.glorot_uniform()
        for i, width in enumerate(self.hidden):
            dense = nn.Dense(
                width, self.use_bias, kernel_init=init, name=f"hidden_{i + 1}"
            )
            z = dense(x)
            self.sow("intermediates", f"z{i + 1}", z)
            x = self.activation(z)
        x = nn.Dense(self.outputs, self.use_bias, kernel_init=init, name="output")(x)
        return x[:, 0] if self.outputs == 1 else x


def mlp(
    features: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: Callable[[Array], Array] = nn.relu,
    *,
    use_bias: bool = True,
    capture: bool = False,
) -> Model:
    """A dense network, h = f(h W + b) for each hidden layer and logits h W + b.

    No hidden layer makes it linear (or logistic) regression. Outputs are logits:
    [B] if `outputs` is 1, else [B, outputs]. With `capture`, `apply` also returns
    every hidden layer's z = h W + b, as {"z1": ([B, width],), ...}.
    """
    module = MLP(tuple(hidden), outputs, activation, use_bias)
    example = jax.ShapeDtypeStruct((1, features), jnp.float32)
    return from_linen(module, example, capture=capture)


class EmbeddingMLP(nn.Module):
    """Dense layers on numbers and on the vectors that stand for categories."""

    tables: "tuple[Table, ...]"
    hidden: tuple[int, ...]
    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, ids: Array, train: bool) -> Array:
        """Map x [B, D] and ids [B, K] to [B, outputs]."""
        parts = [x]
        for table in self.tables:
            own = ids[:, table.where]
            embed = nn.Embed(
                table.size, table.dimension, embedding_init=small_uniform,
                name=f"embedding of {table.name}",
            )  # fmt: skip
            there = (own >= 0).astype(x.dtype)[..., None]
            total = jnp.sum(embed(jnp.maximum(own, 0)) * there, 1)
            parts.append(total / jnp.maximum(jnp.sum(there, 1), 1))
        x = jnp.concatenate(parts, 1)
        init = nn.initializers.glorot_uniform()
        for i, width in enumerate(self.hidden, 1):
            x = nn.relu(nn.Dense(width, kernel_init=init, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=init, name="output")(x)


def embedding_mlp(
    features: int,
    tables: "tuple[Table, ...]",
    hidden: tuple[int, ...],
    outputs: int,
    *,
    dropout: float = 0.0,
) -> Model:
    """A dense network, with ReLU, from numbers x [B, D] and ids [B, K] to logits.

    Of each table the vectors of its ids are read, their mean where there are several,
    and zeros where all are negative; they are trained with the rest.
    """
    width = max((table.where.stop for table in tables), default=0)
    return from_linen(
        EmbeddingMLP(tuple(tables), tuple(hidden), outputs, dropout),
        jax.ShapeDtypeStruct((1, features), jnp.float32),
        jax.ShapeDtypeStruct((1, width), jnp.int32),
    )
