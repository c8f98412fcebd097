"""InceptionV3, the network of keras.applications, for transfer learning.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision"
(arXiv:1512.00567), as Keras builds it: its shapes, its order of operations, its
paddings, and so its weights (`jaxstudy.pretrained.keras_weights`).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy import ops
from jaxstudy.model import Model, Stage, Stages, sequential
from jaxstudy.models.cnn import Classifier, GlobalAveragePool
from jaxstudy.types import Array, UserError

_CLASSES = 1000  # of ImageNet
SMALLEST = 75  # below it, nothing is left of the image before mixed8

Make = Callable[..., nn.Module]  # of a name, x [B, H, W, C] and whether to train
Branches = tuple[tuple[str, tuple[Make, ...]], ...]  # the steps of each, by name


class ConvBN(nn.Module):
    """Convolution without bias, normalisation without scale, ReLU."""

    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: ops.Padding = "SAME"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, H', W', filters]."""
        x = nn.Conv(
            self.filters,
            self.kernel,
            (self.stride, self.stride),
            self.padding,
            use_bias=False,
            kernel_init=nn.initializers.glorot_uniform(),
            conv_general_dilated=ops.conv_general_dilated,
            name="conv",
        )(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-3,
            use_scale=False,
            use_fast_variance=False,  # as Keras; the fast one cancels in float32
            name="bn",
        )(x)
        return nn.relu(x)


class MaxPool(nn.Module):
    """The largest of 3x3, every second row and column."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, (H - 1) // 2, (W - 1) // 2, C]."""
        return ops.max_pool(x, (3, 3), (2, 2), "VALID")


class AveragePool(nn.Module):
    """The mean of 3x3 at every place, over what is not padding."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to the same shape."""
        return ops.average_pool(x, (3, 3), (1, 1), "SAME")


class Concatenate(nn.Module):
    """The channels of several images one after the other."""

    @nn.compact
    def __call__(self, *images: Array) -> Array:
        """Map images [B, H, W, C_i] to [B, H, W, sum of C_i]."""
        return jnp.concatenate(images, axis=-1)


class Mixed(nn.Module):
    """Several branches of the same image, concatenated."""

    branches: Branches

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, H', W', C']; step i of branch b is named b_i."""
        outputs = []
        for branch, steps in self.branches:
            y = x
            for i, make in enumerate(steps, 1):
                y = make(name=f"{branch}_{i}")(y, train)
            outputs.append(y)
        return Concatenate(name="concat")(*outputs)


def _conv(filters: int, rows: int, columns: int) -> Make:
    return partial(ConvBN, filters, (rows, columns))


def _shrink(filters: int) -> Make:
    return partial(ConvBN, filters, (3, 3), 2, "VALID")


def _fork(**branches: tuple[Make, ...]) -> Make:
    return partial(Mixed, tuple(branches.items()))


def _block35(pooled: int) -> Make:
    return _fork(
        branch1x1=(_conv(64, 1, 1),),
        branch5x5=(_conv(48, 1, 1), _conv(64, 5, 5)),
        branch3x3dbl=(_conv(64, 1, 1), _conv(96, 3, 3), _conv(96, 3, 3)),
        branch_pool=(AveragePool, _conv(pooled, 1, 1)),
    )


def _block17(filters: int) -> Make:
    return _fork(
        branch1x1=(_conv(192, 1, 1),),
        branch7x7=(_conv(filters, 1, 1), _conv(filters, 1, 7), _conv(192, 7, 1)),
        branch7x7dbl=(
            _conv(filters, 1, 1),
            _conv(filters, 7, 1),
            _conv(filters, 1, 7),
            _conv(filters, 7, 1),
            _conv(192, 1, 7),
        ),
        branch_pool=(AveragePool, _conv(192, 1, 1)),
    )


def _block8() -> Make:
    both = _fork(branch1x3=(_conv(384, 1, 3),), branch3x1=(_conv(384, 3, 1),))
    return _fork(
        branch1x1=(_conv(320, 1, 1),),
        branch3x3=(_conv(384, 1, 1), both),
        branch3x3dbl=(_conv(448, 1, 1), _conv(384, 3, 3), both),
        branch_pool=(AveragePool, _conv(192, 1, 1)),
    )


_STAGES: dict[str, Make] = {
    "conv1": _shrink(32),
    "conv2": partial(ConvBN, 32, (3, 3), padding="VALID"),
    "conv3": _conv(64, 3, 3),
    "pool1": MaxPool,
    "conv4": partial(ConvBN, 80, (1, 1), padding="VALID"),
    "conv5": partial(ConvBN, 192, (3, 3), padding="VALID"),
    "pool2": MaxPool,
    "mixed0": _block35(32),
    "mixed1": _block35(64),
    "mixed2": _block35(64),
    "mixed3": _fork(
        branch3x3=(_shrink(384),),
        branch3x3dbl=(_conv(64, 1, 1), _conv(96, 3, 3), _shrink(96)),
        branch_pool=(MaxPool,),
    ),
    "mixed4": _block17(128),
    "mixed5": _block17(160),
    "mixed6": _block17(160),
    "mixed7": _block17(192),
    "mixed8": _fork(
        branch3x3=(_conv(192, 1, 1), _shrink(320)),
        branch7x7x3=(
            _conv(192, 1, 1),
            _conv(192, 1, 7),
            _conv(192, 7, 1),
            _shrink(192),
        ),
        branch_pool=(MaxPool,),
    ),
    "mixed9": _block8(),
    "mixed10": _block8(),
}


def inception_stages(*, include_top: bool = True) -> Stages:
    """The stages conv1 .. pool2, mixed0 .. mixed10, and at the top the classifier.

    Mixed stages have Keras's names. The top is "avg_pool", the mean over all places,
    and "predictions", a dense layer: logits, where Keras's ends in a softmax.
    """
    stages = tuple(Stage(name, make) for name, make in _STAGES.items())
    if not include_top:
        return stages
    top = Stage("predictions", partial(Classifier, _CLASSES))
    return (*stages, Stage("avg_pool", GlobalAveragePool), top)


def inception_v3(
    image_size: tuple[int, int] = (299, 299), *, include_top: bool = True
) -> Model:
    """InceptionV3 for images [B, H, W, 3] that `preprocess` has scaled.

    Outputs are logits [B, 1000], not probabilities; without top those of mixed10,
    [B, h, w, 2048], 8 by 8 places for 299 by 299 pixels. The weights are the same for
    every image size. Raises UserError where a side has fewer than 75 pixels.
    """
    if min(image_size) < SMALLEST:
        height, width = image_size
        raise UserError(
            f"InceptionV3 needs images of at least {SMALLEST} by {SMALLEST} pixels, "
            f"not {height} by {width}"
        )
    stages = inception_stages(include_top=include_top)
    return sequential(stages, jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32))


def preprocess(images: Array) -> Array:
    """Pixels 0..255, uint8 or floats, scaled to -1..1: x / 127.5 - 1."""
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(jnp.float32)
    return images / 127.5 - 1.0
