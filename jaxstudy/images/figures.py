"""Figures of images: what a classifier predicts, and what is made of one image."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.images import augment
from jaxstudy.images.augment import Flip, Layer, Rotation, Translation, Zoom
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
        text = f"{classes[predicted]} {p[i, predicted]:.2f}"
        wrong = predicted != test["y"][i]
        return f"{text}\ntrue: {classes[test['y'][i]]}" if wrong else f"{text}\n"

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
    singles = [alone(layer) for row in examples.values() for layer in row.values()]
    every = jnp.concatenate([maps(*layers), jnp.stack(singles)])
    copies = jnp.broadcast_to(jnp.asarray(image), (len(every), *image.shape))
    versions = iter(np.asarray(augment.warp_batch(copies, every, fill)) / 255)
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


def draw_maps(
    run: Run, name: str, model: Model, params: PyTree, extra: PyTree, image: np.ndarray
) -> None:
    """What each convolution and pooling makes of an image [1, H, W, C], as NAME.png.

    model: of `cnn` with `capture`. The eight channels with the most contrast are drawn.
    """
    apply = jax.jit(functools.partial(model.apply, train=False, key=None))
    (_, values), _ = apply(params, extra, image)
    layers = sorted(values, key=lambda layer: layer.split()[::-1])  # jit sorts names
    rows = {"image": (image[0], [image[0]])}
    for layer in layers:
        maps = np.asarray(values[layer][0][0])
        strongest = np.argsort(-maps.std((0, 1)))[:8]
        rows[layer] = maps, [maps[..., channel] for channel in strongest]
    names = ["x".join(map(str, maps.shape)) for maps, _ in rows.values()]
    plots.save_images(
        run,
        name,
        [drawn for _, drawn in rows.values()],
        rows=[f"{row}\n{size}" for row, size in zip(rows, names, strict=True)],
    )
