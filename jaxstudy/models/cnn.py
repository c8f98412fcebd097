"""Convolutional networks for small images: convolutions, pooling, dense layers."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy import ops
from jaxstudy.model import Model, from_linen, parameter_count
from jaxstudy.types import Array

Pool = Literal["max", "average", "none"]
Head = Literal["flatten", "global average"]
Block = int | tuple[int, ...]
POOLS: dict[Pool, Callable[[Array], Array]] = {
    "max": ops.max_pool,
    "average": ops.average_pool,
    "none": lambda x: x,
}


class CNN(nn.Module):
    """[[convolution 3x3, ReLU] repeated, pooling 2x2] repeated, dense layers."""

    blocks: tuple[tuple[int, ...], ...]
    hidden: tuple[int, ...]
    outputs: int
    pool: Pool
    head: Head
    padding: ops.Padding
    norm: bool
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pixels x [B, H, W, C], 0 to 255, to logits [B, outputs]."""
        init = nn.initializers.glorot_uniform()  # as Keras has it
        x = x.astype(jnp.float32) / 255
        layer = 0
        for i, block in enumerate(self.blocks, 1):
            for filters in block:
                layer += 1
                x = nn.Conv(
                    filters, (3, 3), padding=self.padding, kernel_init=init,
                    conv_general_dilated=ops.conv_general_dilated,
                    use_bias=not self.norm, name=f"conv_{layer}",
                )(x)  # fmt: skip
                if self.norm:
                    x = nn.BatchNorm(
                        use_running_average=not train, momentum=0.9,
                        name=f"norm_{layer}",
                    )(x)  # fmt: skip
                x = nn.relu(x)
                self.sow("intermediates", f"convolution {layer}", x)
            if i == len(self.blocks) and self.head == "global average":
                x = jnp.mean(x, (1, 2))
            elif self.pool != "none":
                x = POOLS[self.pool](x)
                self.sow("intermediates", f"pooling {i}", x)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, 1):
            x = nn.relu(nn.Dense(width, kernel_init=init, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=init, name="output")(x)


def cnn(
    image_shape: tuple[int, int, int],
    outputs: int,
    *,
    filters: tuple[Block, ...] = (32, 64),
    hidden: tuple[int, ...] = (64,),
    pool: Pool = "max",
    head: Head = "flatten",
    padding: ops.Padding = "SAME",
    norm: bool = False,
    dropout: float = 0.0,
    capture: bool = False,
) -> Model:
    """A small convolutional network from pixels [B, H, W, C], 0 to 255, to logits.

    Each of `filters` is a 3x3 convolution with ReLU and a 2x2 pooling; several numbers
    in its place are as many convolutions before the pooling. The `head` flattens what
    the last pooling gave or, as "global average", has the mean over the whole map in
    place of that pooling. Then come the `hidden` dense layers, each with ReLU and
    `dropout` (the share of its units that is zeroed in training). Without filters it is
    a dense network on the flattened image. With `norm`, BatchNorm stands between each
    convolution and its ReLU, and its statistics are in `extra`. With `capture`, `apply`
    also returns what every convolution and pooling gave, as
    {"convolution 1": ([B, H, W, filters],), "pooling 1": ...}.
    """
    blocks = tuple(f if isinstance(f, tuple) else (f,) for f in filters)
    module = CNN(blocks, tuple(hidden), outputs, pool, head, padding, norm, dropout)
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return from_linen(module, example, capture=capture)


MATCHED: dict[str, dict[str, Any]] = {
    "dense": {"filters": ()},
    "no pooling": {"filters": (16, 8), "pool": "none"},
    "max pooling": {},
    "average pooling": {"pool": "average"},
    "global average pooling": {"head": "global average"},
}


def matched_cnn(name: str, image_shape: tuple[int, int, int], outputs: int) -> Model:
    """A network of MATCHED with as many parameters as max pooling has.

    The width of its hidden layer sees to it. Without pooling the convolutions have few
    filters: the maps of 64 would leave that layer four units.
    """

    def of_width(width: int) -> Model:
        return cnn(image_shape, outputs, hidden=(width,), **MATCHED[name])

    count = parameter_count(cnn(image_shape, outputs))
    return of_width(matched_width(of_width, count))


def matched_width(build: Callable[[int], Model], count: int) -> int:
    """The width of one layer with which a model has nearly `count` parameters.

    Their number is affine in that width, so that two widths give it. At least 1.
    """
    one, two = (parameter_count(build(width)) for width in (1, 2))
    return max(1, 1 + round((count - one) / (two - one)))


def practised_cnn(image_shape: tuple[int, int, int], outputs: int) -> Model:
    """Four convolutions of 32 to 128 filters with BatchNorm, global average pooling."""
    filters = 32, 64, (128, 128)
    return cnn(
        image_shape, outputs, filters=filters, hidden=(), head="global average",
        norm=True,
    )  # fmt: skip


class GlobalAveragePool(nn.Module):
    """The mean over all places."""

    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, C]."""
        return x.mean((1, 2))


class Classifier(nn.Module):
    """One dense layer of logits."""

    classes: int
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, D] to logits [B, classes]."""
        return nn.Dense(self.classes, kernel_init=self.kernel_init, name="dense")(x)


class TwoConvolutions(nn.Module):
    """The network that DeepOBS calls 2c2d."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pixels x [B, 28, 28, 1], 0 to 1, to logits [B, 10]."""
        how: Any = {
            # of a normal distribution cut at two deviations, as TensorFlow has it
            "kernel_init": lambda key, shape, dtype=jnp.float32: (
                0.05 * jax.random.truncated_normal(key, -2, 2, shape, dtype)
            ),
            "bias_init": nn.initializers.constant(0.05),
        }
        for i, filters in enumerate((32, 64), 1):
            convolve = ops.conv_general_dilated
            x = nn.Conv(
                filters, (5, 5), conv_general_dilated=convolve, name=f"conv_{i}", **how
            )(x)
            x = ops.max_pool(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(1024, name="hidden", **how)(x))
        return nn.Dense(10, name="output", **how)(x)


def two_convolutions() -> Model:
    """DeepOBS's 2c2d: 5x5 convolutions of 32 and 64, pooling, 1024 units, 10 logits.

    Source: Schneider, Balles and Hennig 2019.
    """
    return from_linen(
        TwoConvolutions(), jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    )
