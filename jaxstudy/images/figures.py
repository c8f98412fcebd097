"""Figures of images: pixels, predictions, and what is made of one image."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from jaxstudy import ops
from jaxstudy.data.sources import installed
from jaxstudy.images import augment
from jaxstudy.images.augment import Flip, Layer, Rotation, Translation, Zoom
from jaxstudy.images.decoding import decode
from jaxstudy.model import Model
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.types import Array, PyTree


def draw_predictions(
    run: Run, test: Mapping[str, np.ndarray], classes: Sequence[str], p: np.ndarray
) -> None:
    """Some images of a test set, and the most probable class of each, of p [N, K]."""
    rows, columns = 4, 8
    shown = np.random.default_rng(0).permutation(len(test["y"]))[: rows * columns]

    def title(i: int) -> str:
        predicted = int(p[i].argmax())
        text = f"{classes[predicted]}\n{p[i, predicted]:.2f}"
        wrong = predicted != test["y"][i]
        return f"{text}, true:\n{classes[test['y'][i]]}" if wrong else f"{text}\n"

    grid = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    plots.save_images(
        run,
        "predictions",
        [[test["x"][i] for i in row] for row in grid],
        [[title(i) for i in row] for row in grid],
    )


def draw_versions(
    run: Run, image: np.ndarray, layers: Sequence[Layer], fill: float | None
) -> None:
    """An image [H, H, 3] in 15 random versions, and what each kind of layer makes."""
    keys, size = jax.random.split(jax.random.key(0), 15), (len(image), len(image))

    def maps(*layers: Layer) -> Array:
        return jax.vmap(lambda key: augment.draw(key, size, layers))(keys)

    def alone(layer: Layer) -> Array:
        """The map that changes most: a flip leaves every other image as it is."""
        drawn = maps(layer)
        return drawn[jnp.abs(drawn - jnp.eye(3)).sum((1, 2)).argmax()]

    examples: dict[str, dict[str, Layer]] = {
        "flip": {mode: Flip(mode) for mode in ("horizontal", "vertical", "both")},
        "rotation": {
            f"{360 * f:+.0f} degrees": Rotation((f, f))
            for f in (-0.1, -0.05, 0.05, 0.1)
        },
        "zoom": {f"{f:+.0%}": Zoom((f, f)) for f in (-0.4, -0.2, 0.2, 0.4)},
        "translation": {
            f"{f:+.0%}": Translation((f, f), (f, f)) for f in (-0.2, -0.1, 0.1, 0.2)
        },
    }

    @jax.jit  # not operation by operation
    def warped(copies: Array) -> Array:
        singles = [alone(layer) for row in examples.values() for layer in row.values()]
        every = jnp.concatenate([maps(*layers), jnp.stack(singles)])
        return augment.warp_batch(copies, every, fill)

    count = len(keys) + sum(map(len, examples.values()))
    copies = np.broadcast_to(image, (count, *image.shape))
    versions = iter(np.asarray(warped(copies)) / 255)
    grid = [image / 255, *(next(versions) for _ in keys)]
    plots.save_images(
        run,
        "versions",
        [grid[i : i + 4] for i in range(0, 16, 4)],
        [["original", "", "", ""], *[[""] * 4] * 3],
    )
    plots.save_images(
        run,
        "layers",
        [[image / 255, *(next(versions) for _ in row)] for row in examples.values()],
        [["original", *row] for row in examples.values()],
        list(examples),
    )


def _write_numbers(
    axis: Axes, values: np.ndarray, title: str, cmap: Any = "gray", top: float = 0.0
) -> None:
    """Values [H, W] in colours from 0 to 255, or from -top to top, with the numbers."""
    low, high = (-top, top) if top else (0, 255)
    drawn = axis.imshow(values, cmap=cmap, vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        brightness = np.dot(drawn.to_rgba(value)[:3], (0.3, 0.6, 0.1))
        axis.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=6,
            color="white" if brightness < 0.5 else "black",
        )  # fmt: skip
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])


def _show(axis: Axes, image: np.ndarray, title: str, box: tuple[slice, slice]) -> None:
    """An image, and a frame around the part of it that is enlarged elsewhere."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    rows, columns = box
    corner = columns.start - 0.5, rows.start - 0.5
    sides = columns.stop - columns.start, rows.stop - rows.start
    axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="cyan", linewidth=2))
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])


def _with_edges(image: np.ndarray, side: int) -> tuple[slice, slice]:
    """The square of an image [H, W] in which neighbours differ most."""
    side = min(side, *image.shape)
    steps = np.zeros(image.shape)
    steps[1:] += np.abs(np.diff(image, axis=0))
    steps[:, 1:] += np.abs(np.diff(image, axis=1))
    windows = np.lib.stride_tricks.sliding_window_view(steps, (side, side))
    sums = windows.sum((-2, -1))
    row, column = map(int, np.unravel_index(sums.argmax(), sums.shape))
    return slice(row, row + side), slice(column, column + side)


def _grey(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] as [H, W]: the mean of its planes."""
    return image.mean(-1).round()


def draw_what_pixels_are(run: Run, image: np.ndarray) -> None:
    """Pixels, the planes of a colour image, and what a filter makes of pixels."""
    draw_pixels(run, image)
    draw_planes(run)
    draw_convolution(run, image)


def draw_pixels(run: Run, image: np.ndarray) -> None:
    """An image uint8 [H, W, C], and a part of it with its numbers, as pixels.png."""
    grey = _grey(image)
    part = _with_edges(grey, 12)
    figure, axes = plots.subplots(1, 2, figsize=(8.6, 4.4))
    _show(axes[0], grey, f"image, {_size(grey)} pixels", part)
    _write_numbers(axes[1], grey[part], f"framed part, {_size(grey[part])} numbers")
    figure.tight_layout()
    plots.save(figure, run, "pixels")


def draw_planes(run: Run) -> None:
    """A colour photograph of scikit-learn's and its three planes, as planes.png."""
    # read from its file, for scikit-learn takes seconds to import
    photograph = installed("sklearn") / "datasets/images/flower.jpg"
    image = np.asarray(decode(photograph.read_bytes()))[60:380:2, 120:440:2]
    part = slice(74, 80), slice(44, 50)
    figure, axes = plots.subplots(2, 4, figsize=(11, 5.8))
    _show(axes[0, 0], image, f"colour, {_size(image)} x 3", part)
    _show(axes[1, 0], image[part], "framed part", (slice(0, 6), slice(0, 6)))
    for i, name in enumerate(("red", "green", "blue")):
        tinted = np.zeros_like(image)
        tinted[..., i] = image[..., i]
        _show(axes[0, i + 1], tinted, f"{name}, {_size(image)}", part)
        cmap = LinearSegmentedColormap.from_list(name, ["black", name])
        _write_numbers(axes[1, i + 1], image[part][..., i], f"{name}, numbers", cmap)
    figure.tight_layout()
    plots.save(figure, run, "planes")


def draw_convolution(run: Run, image: np.ndarray) -> None:
    """What a 3x3 filter and pooling make of a part of an image, as convolution.png.

    All with numbers, and with both paddings.
    """
    grey = _grey(image)
    x = grey[_with_edges(grey, 8)]
    kernel = np.array([[-1.0, 0.0, 1.0]] * 3)

    def convolved(padding: ops.Padding) -> np.ndarray:
        y = ops.conv2d(
            jnp.asarray(x[None, ..., None], jnp.float32),
            jnp.asarray(kernel[..., None, None], jnp.float32),
            padding=padding,
        )
        return np.asarray(y)[0, ..., 0]

    same = convolved("SAME")
    positive = jnp.maximum(jnp.asarray(same), 0)[None, ..., None]
    pooled = np.asarray(ops.max_pool(positive))[0, ..., 0]
    panels = {
        "part of the image": x,
        "filter": kernel,
        'convolution, padding "same"': same,
        'convolution, padding "valid"': convolved("VALID"),
        '"same", ReLU, max pooling': pooled,
    }
    figure, axes = plots.subplots(
        1, len(panels), figsize=(15, 3.4), width_ratios=[8, 4, 8, 8, 8]
    )
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        top = 0.0 if values is x else max(1.0, float(np.abs(values).max()))
        cmap = "RdBu_r" if top else "gray"
        _write_numbers(axis, values, f"{title}\n{_size(values)}", cmap, top)
    figure.tight_layout()
    plots.save(figure, run, "convolution")


def distinct_channels(maps: np.ndarray, count: int) -> list[int]:
    """Channels of feature maps [H, W, F] that differ: at most `count`.

    Of the half with the most contrast (or `count`): first the one with the most, then
    always the one whose largest correlation with those chosen before, in absolute
    value, is the smallest. Of constant maps there is one at most.
    """
    flat = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    spread = flat.std(0)
    some = np.argsort(-spread)[: max(count, maps.shape[-1] // 2)]
    some = some[spread[some] > 0] if spread.max() > 0 else some[:1]
    z = (flat - flat.mean(0))[:, some] / np.maximum(spread[some], 1e-30)
    nearest = np.abs(z.T @ z) / len(z)
    chosen = [0]
    while len(chosen) < min(count, len(some)):
        largest = nearest[:, chosen].max(1)
        largest[chosen] = np.inf
        chosen.append(int(largest.argmin()))
    return [int(channel) for channel in some[chosen]]


def draw_maps(
    run: Run, model: Model, params: PyTree, extra: PyTree, image: np.ndarray
) -> None:
    """What each convolution of a network makes of an image, as maps_1.png, ...

    A column is one of eight filters (`distinct_channels`): what it looks at, its
    weights there, its feature map, and that map pooled. Of several input channels the
    one is shown whose weights have the largest norm.

    Args:
        run: gets the figures.
        model: of `cnn` with `capture`, its blocks of one convolution and a pooling.
        params: of the model.
        extra: of the model.
        image: uint8 [1, H, W, C].
    """
    apply = jax.jit(functools.partial(model.apply, train=False, key=None))
    (_, values), _ = apply(params, extra, image)
    inputs, above = np.asarray(image[0]) / 255, "image"
    for layer in range(1, 1 + sum(name.startswith("conv") for name in values)):
        kernel = np.asarray(params[f"conv_{layer}"]["kernel"])
        maps = np.asarray(values[f"convolution {layer}"][0][0])
        pooled = np.asarray(values[f"pooling {layer}"][0][0])
        columns = distinct_channels(maps, 8)
        norms = np.square(kernel).sum((0, 1))  # [inputs, filters]
        sources = [int(norms[:, channel].argmax()) for channel in columns]
        pairs = list(zip(sources, columns, strict=True))
        rows = {
            f"{above}\n{_size(inputs)}": [_bright(inputs[..., s]) for s in sources],
            "weights\n3 x 3": [_signed(kernel[:, :, s, c]) for s, c in pairs],
            f"convolution {layer}\n{_size(maps)}": [
                _bright(maps[..., c]) for c in columns
            ],
            f"pooled\n{_size(pooled)}": [_bright(pooled[..., c]) for c in columns],
        }
        several = inputs.shape[-1] > 1
        titles = [
            [f"channel {s + 1}" if several else "" for s in sources],
            [f"filter {c + 1}" for c in columns],
            *[[""] * len(columns)] * 2,
        ]
        plots.save_images(run, f"maps_{layer}", [*rows.values()], titles, list(rows))
        inputs, above = pooled, f"pooled {layer}"


def _size(maps: np.ndarray) -> str:
    return f"{maps.shape[0]} x {maps.shape[1]}"


def _bright(values: np.ndarray) -> np.ndarray:
    """Values [H, W] from 0 up as greys [H, W, 3], 0 black and the largest white."""
    return np.repeat((values / max(values.max(), 1e-30))[..., None], 3, -1)


def _signed(weights: np.ndarray) -> np.ndarray:
    """Weights [h, w] as colours [h, w, 3]: red above 0, blue below, white 0."""
    top = max(float(np.abs(weights).max()), 1e-30)
    return matplotlib.colormaps["RdBu_r"](0.5 + weights / top / 2)[..., :3]
