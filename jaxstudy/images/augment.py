"""Image augmentation: pure, keyed, and one resampling however many layers there are.

Every layer draws an affine map, and the maps of a pipeline are multiplied before any
pixel is read. So four layers cost one interpolation and blur the image once, where one
resampling after the other, as in Keras, costs and blurs four times. Otherwise the two
differ only where a border is crossed twice: here the image is continued, by reflection
or in one colour (`fill`), at its own border, there at that of every picture in between.

Images are [H, W, C] in any range: nothing is clipped or rounded, and integers become
float32. Coordinates are (row, column), in pixels, from the centre of the image: there,
flips, rotations and zooms are linear, and exact where they should be.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.dataset import AnyDataset
from jaxstudy.training import EvalStep, Evaluator
from jaxstudy.types import (
    Array,
    Batch,
    Key,
    Metrics,
    Objective,
    PyTree,
    TrainState,
    UserError,
)

Size = tuple[int, int]  # H, W
Factor = float | tuple[float, float]  # f means (-f, f)


class Layer(Protocol):
    """A random affine map."""

    def draw(self, key: Key, size: Size) -> Array:
        """The map [3, 3] from a pixel of the output to its source in the input.

        Both are (row, column, 1), counted in pixels from the centre of an image of this
        size (H, W).
        """
        ...


Layers = Sequence[Layer]


def _bounds(factor: Factor) -> tuple[float, float]:
    """The interval that a factor stands for."""
    if isinstance(factor, Sequence):
        return min(factor), max(factor)
    return -abs(factor), abs(factor)


def _check(name: str, factor: Factor, zoom: bool = False) -> None:
    """Raise UserError unless a factor is what the Keras layers take as one."""
    values = factor if isinstance(factor, Sequence) else (factor, factor)
    numbers = [v for v in values if isinstance(v, int | float) and -1 <= v <= 1]
    if len(values) != 2 or len(numbers) != 2 or (zoom and -1 in numbers):
        least = "above -1 and up to 1" if zoom else "from -1 to 1"
        raise UserError(f"{name} takes a number or a pair {least}, not {factor!r}")


def _uniform(key: Key, *factors: Factor) -> Array:
    """One number out of the interval of each factor."""
    lower, upper = zip(*map(_bounds, factors), strict=True)
    shape = (len(factors),)
    return jax.random.uniform(
        key, shape, jnp.float32, minval=jnp.array(lower), maxval=jnp.array(upper)
    )


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror one image in two, as Keras's RandomFlip.

    mode: "horizontal" swaps left and right, "vertical" top and bottom, "both" the two
    at once, as Keras 3.15 does; independent flips are two layers.
    Raises UserError for any other mode.
    """

    mode: Literal["horizontal", "vertical", "both"] = "horizontal"

    def __post_init__(self) -> None:
        if self.mode not in ("horizontal", "vertical", "both"):
            modes = "horizontal, vertical or both"
            raise UserError(f"the mode of Flip is {modes}, not {self.mode!r}")

    def draw(self, key: Key, size: Size) -> Array:
        """See `Layer`."""
        sign = jnp.where(jax.random.bernoulli(key, jnp.float32(0.5)), -1.0, 1.0)
        rows = 1.0 if self.mode == "horizontal" else sign
        columns = 1.0 if self.mode == "vertical" else sign
        return jnp.array([[rows, 0, 0], [0, columns, 0], [0, 0, 1]], jnp.float32)


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Turn about the centre, as Keras's RandomRotation.

    factor: share of a full turn, positive counter-clockwise, -1 to 1.
    Raises UserError for any other factor.
    """

    factor: Factor

    def __post_init__(self) -> None:
        _check("the factor of Rotation", self.factor)

    def draw(self, key: Key, size: Size) -> Array:
        """See `Layer`."""
        (share,) = _uniform(key, self.factor)
        cos, sin = jnp.cos(2 * math.pi * share), jnp.sin(2 * math.pi * share)
        return jnp.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class Zoom:
    """Magnify or reduce about the centre, as Keras's RandomZoom.

    height, width: f scales by 1 / (1 + f), so positive zooms out; above -1, up to 1.
    Without a width the image keeps its proportions.
    Raises UserError for any other factor.
    """

    height: Factor
    width: Factor | None = None

    def __post_init__(self) -> None:
        _check("the height of Zoom", self.height, zoom=True)
        if self.width is not None:
            _check("the width of Zoom", self.width, zoom=True)

    def draw(self, key: Key, size: Size) -> Array:
        """See `Layer`."""
        width = () if self.width is None else (self.width,)
        scales = 1 + _uniform(key, self.height, *width)
        return jnp.array([[scales[0], 0, 0], [0, scales[-1], 0], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class Translation:
    """Move, as Keras's RandomTranslation.

    height, width: shares of the image's, positive down and right, -1 to 1.
    Raises UserError for any other factor.
    """

    height: Factor
    width: Factor

    def __post_init__(self) -> None:
        _check("the height of Translation", self.height)
        _check("the width of Translation", self.width)

    def draw(self, key: Key, size: Size) -> Array:
        """See `Layer`."""
        down, right = _uniform(key, self.height, self.width) * jnp.array(size)
        return jnp.array([[1, 0, -down], [0, 1, -right], [0, 0, 1]])


def draw(key: Key, size: Size, layers: Layers) -> Array:
    """The map [3, 3] of some layers applied in this order; see `Layer`."""
    matrix = jnp.eye(3, dtype=jnp.float32)
    for number, layer in enumerate(layers):
        step = layer.draw(jax.random.fold_in(key, number), size)
        # as a sum: GPUs and TPUs round the factors of a matrix product
        matrix = jnp.sum(matrix[:, :, None] * step, 1)
    return matrix


def _reflected(coordinates: Array, n: int) -> Array:
    """Coordinates in a line of n pixels, d c b a | a b c d | d c b a, in [0, n - 1]."""
    from_edge = coordinates + 0.5
    phase = from_edge - 2 * n * jnp.floor(from_edge / (2 * n))
    # half a pixel beyond the centre of the last one there is nothing but the last one
    return jnp.clip(jnp.minimum(phase, 2 * n - phase) - 0.5, 0, n - 1)


def _sources(
    images: Array, matrices: Array, fill: float | None
) -> tuple[Array, Array, Array]:
    """Where the pixels of the outputs come from, [B, H, W], given maps [B, 3, 3].

    The upper left of four neighbours, as its number among all pixels of the batch, and
    how far below it and to the right of it the source is: from 0 to 1, but beyond a
    border that is filled.
    """
    count, height, width, _ = images.shape
    matrices = matrices.astype(images.dtype)
    rows = jnp.arange(height, dtype=images.dtype)[:, None] - (height - 1) / 2
    columns = jnp.arange(width, dtype=images.dtype) - (width - 1) / 2
    first, beyond = [], []
    for axis, n in enumerate((height, width)):
        by_row, by_column, offset = (matrices[:, axis, i, None, None] for i in range(3))
        from_centre = by_row * rows + by_column * columns + offset
        coordinates = from_centre + (n - 1) / 2
        if fill is None:
            coordinates = _reflected(coordinates, n)
        whole = jnp.clip(jnp.floor(coordinates), 0, max(n - 2, 0))
        first.append(whole.astype(jnp.int32))
        beyond.append(coordinates - whole)
    image = jnp.arange(count, dtype=jnp.int32)[:, None, None]
    return (image * height + first[0]) * width + first[1], beyond[0], beyond[1]


def _weights(beyond: Array, n: int, filled: bool) -> tuple[Array, Array]:
    """Of a pixel and the next one of n, given how far beyond the first the source is.

    Beyond a border that is filled they sum to less than 1. A single row or column has
    no next one.
    """
    beyond = beyond[..., None]
    if not filled:
        return 1 - beyond, beyond
    near, next_ = 1 - jnp.abs(beyond), (1 - jnp.abs(1 - beyond)) * (n > 1)
    return jnp.maximum(near, 0), jnp.maximum(next_, 0)


def _interpolated(
    images: Array, first: Array, down: Array, right: Array, fill: float | None
) -> Array:
    """Bilinear interpolation between four neighbours; see `_sources`."""
    _, height, width, channels = images.shape
    above, below = _weights(down, height, fill is not None)
    left, right = _weights(right, width, fill is not None)
    pixels = images.reshape(-1, channels) - (fill or 0)
    row, column = width * (height > 1), int(width > 1)

    def neighbour(step: int) -> Array:
        return pixels.at[first + step].get(mode="promise_in_bounds")

    upper = left * neighbour(0) + right * neighbour(column)
    lower = left * neighbour(row) + right * neighbour(row + column)
    return above * upper + below * lower + (fill or 0)


def warp_batch(images: Array, matrices: Array, fill: float | None = None) -> Array:
    """Resample images [B, H, W, C] by maps [B, 3, 3]; see `Layer.draw`.

    Bilinear. Beyond its border an image is continued by its reflection, border pixels
    repeated: the "reflect" of Keras; with a `fill` by pixels of that value, Keras's
    "constant". In float32, or float64 if the images are.
    """
    images = jnp.asarray(images)
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    sources = _sources(images, matrices, fill)
    interpolated = functools.partial(_interpolated, fill=fill)

    # On a CPU, XLA would put all of this inside of whatever reads the result, where the
    # sources are computed anew for every channel: 14 ms instead of 3.3 for 64 images of
    # 64 x 64 x 3 in front of a dense layer. It ignores an optimization barrier, but not
    # a branch, so one is made of the case that leaves nothing to do.
    def on_cpu(images: Array, *sources: Array) -> Array:
        nothing = jnp.all(matrices == jnp.eye(3))
        return jax.lax.cond(
            nothing, lambda images, *_: images, interpolated, images, *sources
        )

    return jax.lax.platform_dependent(
        images, *sources, cpu=on_cpu, default=interpolated
    )


def augment_batch(
    key: Key, images: Array, layers: Layers, fill: float | None = None
) -> Array:
    """Random versions of images [B, H, W, C]: these layers in order, read once.

    The keys of the images are `jax.random.split(key, B)`.
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, count)
    matrices = jax.vmap(lambda key: draw(key, (height, width), layers))(keys)
    return warp_batch(images, matrices, fill)


def random_versions(
    key: Key, images: np.ndarray, layers: Layers, fill: float | None = None
) -> np.ndarray:
    """One random version of each of many images uint8 [N, H, W, C], rounded."""
    version = jax.jit(
        lambda key, x: jnp.round(augment_batch(key, x, layers, fill)).astype(jnp.uint8)
    )
    parts = [
        np.asarray(version(jax.random.fold_in(key, begin), images[begin : begin + 64]))
        for begin in range(0, len(images), 64)
    ]
    return np.concatenate(parts)


def augmented(
    objective: Objective, layers: Layers, fill: float | None = None
) -> Objective:
    """Train an objective on random versions of the images x [B, H, W, C] of a batch.

    Evaluation, which has no key, is left as it is. Each of the two gets a key of its
    own, so that dropout does not depend on the augmentation.
    """

    def random_versions(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        if key is not None:
            augment_key, key = jax.random.split(key)
            batch = {**batch, "x": augment_batch(augment_key, batch["x"], layers, fill)}
        return objective(params, extra, batch, key)

    return random_versions


def background(images: np.ndarray) -> float | None:
    """The value of more than half of the corner pixels of images [N, H, W, C].

    What `fill` should be, as 255 where drawings stand on white; None where there is no
    such value, as in photographs.
    """
    corners = images[:, :: images.shape[1] - 1, :: images.shape[2] - 1]
    values, counts = np.unique(corners, return_counts=True)
    found = 2 * counts.max() > corners.size
    return float(values[counts.argmax()]) if found else None


def shift_curve(
    eval_step: EvalStep, state: TrainState, data: AnyDataset, pixels: Sequence[int]
) -> list[np.ndarray]:
    """Accuracies [L] of replicas on images shifted by so many pixels.

    Each is the mean over shifts up, down, left and right; black comes in.
    """

    def shifted(state: TrainState, batch: Batch, dy: Array, dx: Array) -> Metrics:
        return eval_step(state, {**batch, "x": shift(batch["x"], dy, dx)})

    curve = []
    for distance in pixels:
        accuracies = []
        for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1))[: 4 if distance else 1]:
            steps = [jnp.full(state.step.shape, distance * d) for d in (dy, dx)]
            values = Evaluator(shifted, data, 500, args=tuple(steps))(state)
            accuracies.append(values["accuracy"])
        curve.append(np.mean(accuracies, axis=0))
    return curve


def shift(
    images: Array, dy: int | Array, dx: int | Array, fill: float | Array = 0
) -> Array:
    """Move images [..., H, W, C] by whole pixels, dy down and dx to the right.

    What leaves the image is lost, and `fill` comes in. dy and dx may be traced.
    Raises ValueError when they are not integers.
    """
    for axis, steps in ((-3, dy), (-2, dx)):
        if not jnp.issubdtype(jnp.result_type(steps), jnp.integer):
            raise ValueError(f"images are shifted by whole pixels, not by {steps}")
        n = images.shape[axis]
        source = jnp.arange(n).reshape(n, *[1] * (-1 - axis)) - steps
        inside = (source >= 0) & (source < n)
        moved = jnp.roll(images, steps, axis)
        images = jnp.where(inside, moved, jnp.asarray(fill, images.dtype))
    return images
