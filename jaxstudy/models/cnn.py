"""Convolutional networks for small images: convolutions, pooling, dense layers."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy import ops
from jaxstudy.model import Model, from_linen
from jaxstudy.types import Array

Pool = Literal["max", "average", "none"]
POOLS: dict[Pool, Callable[[Array], Array]] = {
    "max": ops.max_pool,
    "average": ops.average_pool,
    "none": lambda x: x,
}


class CNN(nn.Module):
    """[convolution 3x3, ReLU, pooling 2x2] repeated, flattened, dense layers."""

    filters: tuple[int, ...]
    hidden: tuple[int, ...]
    outputs: int
    pool: Pool
    padding: ops.Padding
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pixels x [B, H, W, C], 0 to 255, to logits [B, outputs]."""
        init = nn.initializers.glorot_uniform()  # as Keras has it
        x = x.astype(jnp.float32) / 255
        for i, filters in enumerate(self.filters, 1):
            convolution = nn.Conv(
                filters, (3, 3), padding=self.padding, kernel_init=init,
                conv_general_dilated=ops.conv_general_dilated, name=f"conv_{i}",
            )  # fmt: skip
            x = nn.relu(convolution(x))
            self.sow("intermediates", f"convolution {i}", x)
            x = POOLS[self.pool](x)
            if self.pool != "none":
                self.sow("intermediates", f"pooling {i}", x)
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.hidden, 1):
            x = nn.relu(nn.Dense(width, kernel_init=init, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=init, name="output")(x)


def cnn(
    image_shape: tuple[int, int, int],
    outputs: int,
    *,
    filters: tuple[int, ...] = (32, 64),
    hidden: tuple[int, ...] = (64,),
    pool: Pool = "max",
    padding: ops.Padding = "SAME",
    dropout: float = 0.0,
    capture: bool = False,
) -> Model:
    """A small convolutional network from pixels [B, H, W, C], 0 to 255, to logits.

    Each of `filters` is a 3x3 convolution with ReLU and a 2x2 pooling; then come the
    `hidden` dense layers, each with ReLU and `dropout` (the share of its units that is
    zeroed in training). Without filters it is a dense network on the flattened image.
    With `capture`, `apply` also returns what every convolution and pooling gave, as
    {"convolution 1": ([B, H, W, filters],), "pooling 1": ...}.
    """
    module = CNN(tuple(filters), tuple(hidden), outputs, pool, padding, dropout)
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return from_linen(module, example, capture=capture)
