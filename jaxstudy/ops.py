"""Convolution and pooling with one meaning everywhere, lowered for the platform.

Library operations on GPU and TPU. On a CPU, XLA's convolution loses its threads inside
a loop, and its pooling gradients are slow: there, products of patches and a matrix, and
elementwise operations on strided slices. Layers get the convolution by
`nn.Conv(conv_general_dilated=ops.conv_general_dilated)`.

Images are [B, H, W, C], kernels [h, w, C, O].
"""

import functools
import itertools
import math
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
    channel, become matrix products or sums over taps; any other is the library's.
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
    if numbers != _NHWC or not undilated or grouped or batch_group_count != 1:
        return library(lhs, rhs)
    strides = tuple(window_strides)
    pads = _pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)

    def on_cpu(lhs: Array, rhs: Array) -> Array:
        if feature_group_count > 1:
            single = lhs.shape[-1] == rhs.shape[-1]
            depthwise = _depthwise_single if single else _depthwise
            return depthwise(lhs, rhs, strides, pads)
        return _by_patches(lhs, rhs, strides, pads, precision, preferred_element_type)

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


def _by_patches(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    pads: Pads,
    precision: Any,
    preferred: Any,
) -> Array:
    """Convolution as patches [B, H', W', h w C] times the kernel [h w C, O].

    The patches are made anew for the gradient. Where those of all images would take
    more than PATCH_BYTES, those of SLICE_BYTES (or of one image) exist at a time; of
    one, too, where an exported program takes any number of images.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def product(x: Array) -> Array:
        taps = list(_taps(x, kernel.shape[:2], strides, pads))
        patches = taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)
        # of two axes each: XLA's gradient of a product of more transposes in vain
        rows = patches.reshape(-1, matrix.shape[0])
        y = lax.dot_general(
            rows, matrix, (((1,), (0,)), ((), ())), precision, preferred
        )
        return y.reshape(*patches.shape[:3], -1)

    if math.prod(kernel.shape[:2]) == 1:
        return product(x)
    product = jax.checkpoint(product)
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
        return _by_phases(x, kernel, stride, pads)

    return _by_platform(on_cpu, library, x, kernel)


def _transposed_pads(window: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Rows cut off (or, negative, put on) before and after (H - 1) s + h rows."""
    if padding == "VALID":
        return 0, min(0, window - stride)
    both = window - stride
    low = max(both, 0) // 2
    return low, both - low


def _by_phases(
    x: Array, kernel: Array, stride: int, pads: Sequence[tuple[int, int]]
) -> Array:
    """One product x [B, H, W, C] with [C, h w O], and its parts where they belong."""
    h, w, outputs, channels = kernel.shape
    # of two axes each, as in _by_patches
    products = x.reshape(-1, channels) @ kernel.reshape(-1, channels).T
    products = products.reshape(*x.shape[:3], h, w, outputs)
    return _overlapped(products, (h, w), stride, tuple(pads))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _overlapped(
    products: Array,
    window: tuple[int, int],
    stride: int,
    pads: tuple[tuple[int, int], ...],
) -> Array:
    """y[s m + i - p, s n + j - q, o] = sum of products[m, n, i, j, o].

    Output rows s m + r come from the taps i with i = r + p modulo s alone: each such
    phase is a sum of shifted parts, and the phases are interleaved. Its gradient is
    y's taps; the derived one adds up an image of zeros for each. There is no forward
    mode.
    """
    (height, width), (h, w), outputs = products.shape[1:3], window, products.shape[-1]
    sizes = [
        (n - 1) * stride + k - low - high
        for n, k, (low, high) in zip((height, width), (h, w), pads, strict=True)
    ]
    per_phase = [-(-size // stride) for size in sizes]

    def sources(tap: int, low: int, phase: int) -> int | None:
        """Which input row minus m the tap brings to output row s m + phase."""
        shift, other = divmod(phase + low - tap, stride)
        return None if other else shift

    def phase(r: int, q: int) -> Array:
        total = jnp.zeros((products.shape[0], *per_phase, outputs), products.dtype)
        for i, j in itertools.product(range(h), range(w)):
            down, right = sources(i, pads[0][0], r), sources(j, pads[1][0], q)
            if down is None or right is None:
                continue
            widths = [
                (-shift, n + shift - size, 0)
                for shift, n, size in zip(
                    (down, right), per_phase, (height, width), strict=True
                )
            ]
            part = products[:, :, :, i, j]
            zero = jnp.zeros((), part.dtype)
            total += lax.pad(part, zero, [(0, 0, 0), *widths, (0, 0, 0)])
        return total

    rows = [
        jnp.stack([phase(r, q) for q in range(stride)], axis=3) for r in range(stride)
    ]
    whole = jnp.stack(rows, axis=2)  # [B, M, s, N, s, O]
    m, n = (stride * size for size in per_phase)
    whole = whole.reshape(products.shape[0], m, n, outputs)
    return whole[:, : sizes[0], : sizes[1]]


def _overlapped_forward(
    products: Array,
    window: tuple[int, int],
    stride: int,
    pads: tuple[tuple[int, int], ...],
) -> tuple[Array, None]:
    return _overlapped(products, window, stride, pads), None


def _overlapped_backward(
    window: tuple[int, int],
    stride: int,
    pads: tuple[tuple[int, int], ...],
    kept: None,
    dy: Array,
) -> tuple[Array]:
    del kept
    taps = jnp.stack(list(_taps(dy, window, (stride, stride), pads)), axis=3)
    return (taps.reshape(*taps.shape[:3], *window, -1),)


_overlapped.defvjp(_overlapped_forward, _overlapped_backward)


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
    n = len(x)
    bits = random_bits(key, (-(-n // 2), *x.shape[1:]))
    draws = jnp.concatenate([bits >> 16, bits & 0xFFFF])[:n]
    return jnp.where(draws >= round(rate * 2**16), x / (1 - rate), 0)


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
