"""Convolution and pooling with one meaning everywhere, lowered for the platform.

Library operations on GPU and TPU. On a CPU, XLA's pooling gradients are slow: there,
elementwise operations on strided slices. Of its convolutions those forward are fast,
with the flag `CPU_CONVOLUTION`, and their gradients are not: there, each gradient is
written as a convolution forward; without the flag all are products of patches and a
matrix. Layers get it by `nn.Conv(conv_general_dilated=ops.conv_general_dilated)`.

Images are [B, H, W, C], kernels [h, w, C, O].
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxstudy.types import Array, Key

Padding = Literal["SAME", "VALID"]
Pads = Sequence[tuple[int, int]]  # before and after, for H and W
_Pair = tuple[int, int]  # of H and W

# In XLA_FLAGS: convolutions on a CPU by Eigen, which takes half to two thirds of the
# time of YNNPACK, XLA's choice by itself (jaxlib 0.10.2, two cores with AVX2).
CPU_CONVOLUTION = (
    "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
)

# What the patches of a batch may take; those of a larger one are made slice by slice.
# Slices that fit a cache take less time than large ones, but no slices least.
PATCH_BYTES = 64 * 2**20
SLICE_BYTES = 8 * 2**20

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Pads,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, faster on a CPU for images [B, H, W, C].

    There, the convolutions without dilation that have one group, or one for each
    channel, are computed as this module says, without a forward mode; any other is the
    library's.
    """

    def library(lhs: Array, rhs: Array) -> Array:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation,
            dimension_numbers, feature_group_count, batch_group_count, precision,
            preferred_element_type,
        )  # fmt: skip

    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    undilated = not any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    grouped = feature_group_count not in (1, lhs.shape[-1])
    plain = undilated and precision is None and preferred_element_type is None
    if numbers != _NHWC or not plain or grouped or batch_group_count != 1:
        return library(lhs, rhs)
    strides = tuple(window_strides)
    pads = _pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)

    def on_cpu(lhs: Array, rhs: Array) -> Array:
        if feature_group_count > 1:
            single = lhs.shape[-1] == rhs.shape[-1]
            depthwise = _depthwise_single if single else _depthwise
            return depthwise(lhs, rhs, strides, pads)
        return _convolution(lhs, rhs, strides, pads)

    return _by_platform(on_cpu, library, lhs, rhs)


def _by_platform(
    on_cpu: Callable[..., Any], library: Callable[..., Array], *args: Array
) -> Array:
    """What the platform is faster at; both are traced, whichever it is.

    On a mesh of explicit axes the images stay split as they are, by examples: what is
    done on a CPU reshapes, and leaves the compiler to see how that is split.
    """
    batch = next(iter(jax.typeof(args[0]).sharding.spec), None)
    if batch is not None:
        split: Any = jax.sharding.auto_axes
        on_cpu = split(on_cpu, out_sharding=PartitionSpec(batch))
    return lax.platform_dependent(*args, cpu=on_cpu, default=library)


def conv2d(
    x: Array, kernel: Array, stride: int = 1, padding: Padding | Pads = "SAME"
) -> Array:
    """Cross-correlation, y[m, n, o] = sum x[s m + i - p, s n + j - p, c] k[i, j, c, o].

    x [B, H, W, C], kernel [h, w, C, O]; p is the padding before. "SAME" makes
    ceil(H / s) rows, padded with zeros, the odd one after; "VALID" pads nothing.
    """
    return conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _pads(
    size: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: str | Pads,
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(size, window, strides, padding))
    return tuple((int(low), int(high)) for low, high in padding)


def _taps(
    x: Array,
    window: Sequence[int],
    strides: Sequence[int],
    pads: Pads,
    fill: float = 0.0,
) -> Iterator[Array]:
    """For each place (i, j) of the window, what it sees: x[:, s m + i, s n + j]."""
    widths = [(0, 0), *pads, (0, 0)]
    if any(low or high for low, high in pads):
        x = lax.pad(x, jnp.asarray(fill, x.dtype), [(lo, hi, 0) for lo, hi in widths])
    out = [
        (n - w) // s + 1 for n, w, s in zip(x.shape[1:3], window, strides, strict=True)
    ]
    for i, j in itertools.product(*map(range, window)):
        ends = [
            b + s * (n - 1) + 1 for b, s, n in zip((i, j), strides, out, strict=True)
        ]
        begin, end = (0, i, j, 0), (x.shape[0], *ends, x.shape[3])
        yield lax.slice(x, begin, end, (1, *strides, 1))


# The three maps of a convolution are the gradients of each other: images by kernels,
# the gradient of the result by turned kernels, and images by that gradient, with
# channels in the place of examples. Each is a convolution forward.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
    x: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> Array:
    """y[m, n, o] = sum x[s m + i - p, s n + j - p, c] k[i, j, c, o]."""
    if _library_is_faster(kernel.shape):
        return _by_library(x, kernel, strides, pads)
    return _by_patches(x, kernel, strides, pads)


def _convolution_forward(
    x: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]
) -> tuple[Array, tuple[Array, Array]]:
    y: Any = _convolution(x, kernel, strides, pads)
    return y, (x, kernel)


def _convolution_backward(
    strides: _Pair, pads: tuple[_Pair, _Pair], kept: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    dx: Any = _transposed(dy, kernel, strides, pads, (x.shape[1], x.shape[2]))
    return dx, _kernel_gradient(x, dy, kernel.shape, strides, pads)


_convolution.defvjp(_convolution_forward, _convolution_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _transposed(
    y: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair], size: _Pair
) -> Array:
    """x[s m + i - p, s n + j - p, c] = sum y[m, n, o] k[i, j, c, o], of H by W pixels.

    Rows s m + r take the taps i with i = r + p modulo s alone, i = t, t + s, ..., which
    see y's rows m + d, m + d - 1, ... So each such phase is a convolution by a part of
    the kernel, turned, and the phases are interleaved. Of few channels it is the sum of
    what the taps make of y, all in one product.
    """
    h, w, channels, outputs = kernel.shape
    per_phase = [-(-n // s) for n, s in zip(size, strides, strict=True)]
    shape = (y.shape[0], *per_phase, channels)
    by_product = channels < 8
    if by_product:
        matrix = kernel.reshape(-1, outputs)
        products = (y.reshape(-1, outputs) @ matrix.T).reshape(*y.shape[:3], h, w, -1)

    def summed(taps: Sequence[range], first: Sequence[int]) -> Array:
        total, zero = jnp.zeros(shape, y.dtype), jnp.zeros((), y.dtype)
        for tap in itertools.product(*map(enumerate, taps)):
            widths = [
                (k - d, n + d - k - m, 0)
                for (k, _), d, n, m in zip(
                    tap, first, per_phase, y.shape[1:3], strict=True
                )
            ]
            (_, i), (_, j) = tap
            part = products[:, :, :, i, j]
            total += lax.pad(part, zero, [(0, 0, 0), *widths, (0, 0, 0)])
        return total

    def phase(*remainders: int) -> Array:
        first, begin = zip(
            *(
                divmod(r + low, s)
                for r, (low, _), s in zip(remainders, pads, strides, strict=True)
            ),
            strict=True,
        )
        taps = [range(t, k, s) for t, k, s in zip(begin, (h, w), strides, strict=True)]
        if by_product or not all(taps):
            return summed(taps, first)
        part = kernel[begin[0] :: strides[0], begin[1] :: strides[1]]
        turned = jnp.swapaxes(lax.rev(part, (0, 1)), 2, 3)
        low = [k - 1 - d for k, d in zip(part.shape[:2], first, strict=True)]
        high = [
            n + d - m for n, d, m in zip(per_phase, first, y.shape[1:3], strict=True)
        ]
        return _convolution(y, turned, (1, 1), tuple(zip(low, high, strict=True)))

    if strides == (1, 1):
        return phase(0, 0)
    rows = [
        jnp.stack([phase(r, q) for q in range(strides[1])], axis=3)
        for r in range(strides[0])
    ]
    whole = jnp.stack(rows, axis=2)  # [B, M, s, N, s, C]
    height, width = (n * s for n, s in zip(per_phase, strides, strict=True))
    whole = whole.reshape(y.shape[0], height, width, channels)
    return whole[:, : size[0], : size[1]]


def _transposed_forward(
    y: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair], size: _Pair
) -> tuple[Array, tuple[Array, Array]]:
    return _transposed(y, kernel, strides, pads, size), (y, kernel)


def _transposed_backward(
    strides: _Pair,
    pads: tuple[_Pair, _Pair],
    size: _Pair,
    kept: tuple[Array, Array],
    dx: Array,
) -> tuple[Array, Array]:
    y, kernel = kept
    dk = _kernel_gradient(dx, y, kernel.shape, strides, pads)
    return _convolution(dx, kernel, strides, pads), dk


_transposed.defvjp(_transposed_forward, _transposed_backward)


def _kernel_gradient(
    x: Array,
    dy: Array,
    shape: Sequence[int],
    strides: _Pair,
    pads: tuple[_Pair, _Pair],
) -> Array:
    """k[i, j, c, o] = sum of x[s m + i - p, s n + j - p, c] dy[m, n, o] over images."""
    h, w, channels, outputs = shape
    if h * w == 1 or not _library_is_faster(shape):
        taps = list(_taps(x, (h, w), strides, pads))
        if channels == 1:  # one product for all, whose taps are small
            taps = [jnp.concatenate(taps, axis=-1)]
        rows = dy.reshape(-1, outputs)
        parts = [tap.reshape(len(rows), -1).T @ rows for tap in taps]
        return jnp.concatenate(parts).reshape(shape)
    ends = [
        k + s * (m - 1) - n - low
        for k, s, m, n, (low, _) in zip(
            (h, w), strides, dy.shape[1:3], x.shape[1:3], pads, strict=True
        )
    ]
    around = [(low, high) for (low, _), high in zip(pads, ends, strict=True)]
    channels = jnp.transpose(x, (3, 1, 2, 0))  # in the place of the examples
    y = _by_library(channels, jnp.transpose(dy, (1, 2, 0, 3)), (1, 1), around, strides)
    return jnp.transpose(y, (1, 2, 0, 3))


def _library_is_faster(kernel: Sequence[int]) -> bool:
    """Whether XLA's convolution on a CPU takes less time than a product of patches.

    One channel is too little to multiply. XLA reads its flags once, when it starts.
    """
    return kernel[2] > 1 and CPU_CONVOLUTION in os.environ.get("XLA_FLAGS", "")


def _by_library(
    x: Array, kernel: Array, strides: _Pair, pads: Pads, dilation: _Pair = (1, 1)
) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, rhs_dilation=dilation, dimension_numbers=_NHWC
    )


def _by_patches(x: Array, kernel: Array, strides: _Pair, pads: Pads) -> Array:
    """Convolution as patches [B, H', W', h w C] times the kernel [h w C, O].

    Where those of all images would take more than PATCH_BYTES, those of SLICE_BYTES (or
    of one image) exist at a time; of one, too, where an exported program takes any
    number of images.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def product(x: Array) -> Array:
        taps = list(_taps(x, kernel.shape[:2], strides, pads))
        patches = taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)
        # of two axes each: XLA takes longer for a product of more
        y = patches.reshape(-1, matrix.shape[0]) @ matrix
        return y.reshape(*patches.shape[:3], -1)

    if math.prod(kernel.shape[:2]) == 1:
        return product(x)
    shape = jax.eval_shape(product, x).shape
    image = math.prod(shape[1:3]) * matrix.shape[0] * x.dtype.itemsize
    if jax.export.is_symbolic_dim(x.shape[0]):
        together = 1
    elif image * x.shape[0] <= PATCH_BYTES:
        return product(x)
    else:
        together = max(1, SLICE_BYTES // image)
    return lax.map(lambda one: product(one[None])[0], x, batch_size=together)


def _depthwise(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """Each channel with kernels of its own, [h, w, 1, C m]: a sum over the taps."""
    h, w, _, outputs = kernel.shape
    channels = x.shape[-1]
    each = kernel.reshape(h * w, channels, outputs // channels)
    total = sum(
        tap[..., None] * k
        for tap, k in zip(_taps(x, (h, w), strides, pads), each, strict=True)
    )
    assert isinstance(total, jax.Array)
    return total.reshape(*total.shape[:3], outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_single(
    x: Array, kernel: Array, strides: tuple[int, ...], pads: tuple[tuple[int, int], ...]
) -> Array:
    """One kernel [h, w, 1, C] for each channel, with a gradient a tenth as costly.

    The derived one keeps, or adds up, an image for every tap. There is no forward mode.
    """
    return _depthwise(x, kernel, strides, pads)


def _depthwise_forward(
    x: Array, kernel: Array, strides: tuple[int, ...], pads: tuple[tuple[int, int], ...]
) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, strides, pads), (x, kernel)


def _depthwise_backward(
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    kept: tuple[Array, Array],
    dy: Array,
) -> tuple[Array, Array]:
    x, kernel = kept
    h, w, _, channels = kernel.shape
    # the transposed map is again a depthwise one, of dy spread out by the strides
    spreading = [
        (k - 1 - low, n + low - (m - 1) * s - 1, s - 1)
        for k, (low, _), n, m, s in zip(
            (h, w), pads, x.shape[1:3], dy.shape[1:3], strides, strict=True
        )
    ]
    zero = jnp.zeros((), dy.dtype)
    spread = lax.pad(dy, zero, [(0, 0, 0), *spreading, (0, 0, 0)])
    dx = _depthwise(spread, kernel[::-1, ::-1], (1, 1), ((0, 0), (0, 0)))
    widths = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), widths)
    seen = [s * (m - 1) + 1 for s, m in zip(strides, dy.shape[1:3], strict=True)]

    def tap(place: Array) -> Array:  # one at a time: all of them would be h w images
        start = (0, place // w, place % w, 0)
        window = lax.dynamic_slice(padded, start, (len(x), *seen, channels))
        return jnp.sum(window[:, :: strides[0], :: strides[1]] * dy, (0, 1, 2))

    return dx, lax.map(tap, jnp.arange(h * w)).reshape(kernel.shape)


_depthwise_single.defvjp(_depthwise_forward, _depthwise_backward)


def conv2d_transpose(
    x: Array, kernel: Array, stride: int = 1, padding: Padding = "SAME"
) -> Array:
    """Enlarge: y[s m + i - p, s n + j - p, o] = sum of x[m, n, c] k[i, j, o, c].

    x [B, H, W, C], kernel [h, w, O, C], as Keras's Conv2DTranspose has it: "SAME"
    makes s H rows, "VALID" s H + max(h - s, 0). In general, with p in all cut off,
    (H - 1) s + h - p rows.
    """
    pads = tuple(_transposed_pads(h, stride, padding) for h in kernel.shape[:2])

    def library(x: Array, kernel: Array) -> Array:
        return lax.conv_transpose(
            x, kernel, (stride, stride), padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True,
        )  # fmt: skip

    def on_cpu(x: Array, kernel: Array) -> Array:
        sizes = [
            (n - 1) * stride + k - low - high
            for n, k, (low, high) in zip(
                x.shape[1:3], kernel.shape[:2], pads, strict=True
            )
        ]
        return _transposed(x, kernel, (stride, stride), pads, (sizes[0], sizes[1]))

    return _by_platform(on_cpu, library, x, kernel)


def _transposed_pads(window: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Rows cut off (or, negative, put on) before and after (H - 1) s + h rows."""
    if padding == "VALID":
        return 0, min(0, window - stride)
    both = window - stride
    low = max(both, 0) // 2
    return low, both - low


def _tiles(x: Array, window: tuple[int, int], pads: Pads, fill: float) -> Array:
    """Windows that do not overlap, [B, H', h, W', w, C], what does not fill one cut."""
    h, w = window
    widths = [
        (low, high - (size + low + high) % k, 0)
        for size, k, (low, high) in zip(x.shape[1:3], window, pads, strict=True)
    ]
    if any(low or high for low, high, _ in widths):
        fill_value = jnp.asarray(fill, x.dtype)
        x = lax.pad(x, fill_value, [(0, 0, 0), *widths, (0, 0, 0)])
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // h, h, width // w, w, channels)


def _first_largest(values: Iterable[Array]) -> tuple[Array, Array]:
    """The largest of some arrays, and the number of the first that has it.

    Not jnp.maximum, whose gradient is shared among equal values.
    """
    largest, *others = values
    which = jnp.zeros(largest.shape, jnp.int8)
    for number, other in enumerate(others, 1):
        larger = (other > largest) | jnp.isnan(other)
        largest = jnp.where(larger, other, largest)
        which = jnp.where(larger, jnp.int8(number), which)
    return largest, which


def _tile_values(tiles: Array) -> list[Array]:
    places = itertools.product(range(tiles.shape[2]), range(tiles.shape[4]))
    return [tiles[:, :, i, :, j] for i, j in places]


# The gradients below are written as one choice, or one copy, for every place of a tile:
# those that JAX derives add up interleaved arrays of zeros, at several times the cost.


@jax.custom_jvp
def _max_of_tiles(tiles: Array) -> Array:
    return _first_largest(_tile_values(tiles))[0]


@_max_of_tiles.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (tiles,), (moved,) = primals, tangents
    _, _, h, _, w, _ = tiles.shape
    largest, which = _first_largest(_tile_values(tiles))
    places = jnp.arange(h * w, dtype=jnp.int8).reshape(h, 1, w, 1)
    chosen = which[:, :, None, :, None] == places
    return largest, jnp.sum(jnp.where(chosen, moved, 0), (2, 4))


@jax.custom_jvp
def _sum_of_tiles(tiles: Array) -> Array:
    first, *others = _tile_values(tiles)
    return sum(others, first)


@_sum_of_tiles.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _sum_of_tiles(*primals), jnp.sum(tangents[0], (2, 4))


def max_pool(
    x: Array,
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> Array:
    """The largest value in each window of x [B, H, W, C]; strides default to it.

    Padding never wins. The gradient goes to the first of equal values, in rows from
    the top; NaN in a window makes NaN.
    """
    strides = strides or window
    pads = _pads(x.shape[1:3], window, strides, padding)

    def library(x: Array) -> Array:
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1),
            ((0, 0), *pads, (0, 0)),
        )  # fmt: skip

    def on_cpu(x: Array) -> Array:
        if window == strides:
            return _max_of_tiles(_tiles(x, window, pads, -jnp.inf))
        return _first_largest(_taps(x, window, strides, pads, -jnp.inf))[0]

    return _by_platform(on_cpu, library, x)


def average_pool(
    x: Array,
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> Array:
    """The mean of each window of x [B, H, W, C], over what is not padding."""
    strides = strides or window
    pads = _pads(x.shape[1:3], window, strides, padding)
    counts = [
        _overlaps(n, k, s, around)
        for n, k, s, around in zip(x.shape[1:3], window, strides, pads, strict=True)
    ]
    shares = 1 / np.outer(*counts).astype(np.float64)[..., None]

    def library(x: Array) -> Array:
        return lax.reduce_window(
            x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1),
            ((0, 0), *pads, (0, 0)),
        )  # fmt: skip

    def on_cpu(x: Array) -> Array:
        if window == strides:
            return _sum_of_tiles(_tiles(x, window, pads, 0.0))
        first, *others = _taps(x, window, strides, pads)
        return sum(others, first)

    total = _by_platform(on_cpu, library, x)
    return total * jnp.asarray(shares, x.dtype)


def _overlaps(size: int, window: int, stride: int, pads: tuple[int, int]) -> np.ndarray:
    """How many of each window's places along one axis are not padding."""
    low, high = pads
    starts = np.arange(0, size + low + high - window + 1, stride) - low
    return np.minimum(starts + window, size) - np.maximum(starts, 0)


def random_bits(key: Key, shape: tuple[int, ...]) -> Array:
    """`jax.random.bits(key, shape, jnp.uint32)`, the same, but faster on a CPU.

    There JAX rolls the 20 rounds of Threefry into a loop, which takes all numbers to
    memory and back five times. Each number is by its place alone, as JAX has it unless
    jax_threefry_partitionable is off. Source: Salmon et al. 2011, Threefry-2x32.
    """
    size = math.prod(shape)
    if str(jax.random.key_impl(key)) != "threefry2x32" or size > 2**32:
        return jax.random.bits(key, shape, jnp.uint32)

    def on_cpu(key: Key) -> Array:
        first, second = jax.random.key_data(key)
        keys = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
        a = jnp.broadcast_to(keys[0], shape)  # a place's upper 32 bits are 0
        b = lax.iota(jnp.uint32, size).reshape(shape) + keys[1]
        for i in range(5):
            for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
                a = a + b
                b = (b << turn | b >> (32 - turn)) ^ a
            a = a + keys[(i + 1) % 3]
            b = b + keys[(i + 2) % 3] + jnp.uint32(i + 1)
        return a ^ b

    def library(key: Key) -> Array:
        return jax.random.bits(key, shape, jnp.uint32)

    return lax.platform_dependent(key, cpu=on_cpu, default=library)


def dropout(x: Array, rate: float, key: Key) -> Array:
    """Zeros in a share `rate` of the places of x [B, ...], the others / (1 - rate).

    The rate counts in steps of 2^-16: one random number of 32 bits decides for two
    examples, since drawing them is what takes the time.
    """
    half = -(-len(x) // 2)
    bits = random_bits(key, (half, *x.shape[1:]))
    # In a loop, because its results are kept: XLA on a CPU would put the drawing inside
    # of all that reads them, the gradient too, and draw again for each.
    kept = lax.map(
        lambda shift: (bits >> shift & 0xFFFF) >= round(rate * 2**16),
        jnp.array([16, 0], jnp.uint32),
    )
    return jnp.where(kept.reshape(-1, *x.shape[1:])[: len(x)], x / (1 - rate), 0)


def flat_dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, **settings: Any
) -> Array:
    """x [..., D] times kernel [D, U] as one product of two matrices.

    For `nn.Dense(dot_general=...)`. With more than two axes XLA takes up to twice the
    time for it and its gradients on a CPU.
    """
    flat = x.reshape(-1, x.shape[-1])
    dims = (((1,), (0,)), ((), ()))
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
        raise ValueError(f"not x's last and the kernel's first: {dimension_numbers}")
    y = jax.lax.dot_general(flat, kernel, dims, **settings)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
