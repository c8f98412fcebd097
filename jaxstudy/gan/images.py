"""The images that a GAN learns from and is judged by, as three sets."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxstudy.dataset import Dataset, dataset, evenly_spaced, take
from jaxstudy.images.sets import read_image_folder, read_images
from jaxstudy.images.splits import at_most, image_splits
from jaxstudy.types import Key

USES = (  # of randomness
    "gan", "shown", "evaluation", "between", "judged", "untrained", "classifier",
    "variants", "sample",
)  # fmt: skip


def key_for(seed: int, use: str) -> Key:
    """The key of one of the things that are random."""
    return jax.random.fold_in(jax.random.key(seed), USES.index(use))


class GanImages(NamedTuple):
    """Three sets with fields x [N, H, W, C], y and row [N]; the classes' names."""

    train: Dataset
    held_out: Dataset
    test: Dataset
    classes: tuple[str, ...]


def read_gan_images(
    data: str,
    folder: Path | None,
    *,
    size: int,
    channels: int,
    limit: int | None,
    held_out: int,
) -> GanImages:
    """The images to learn from, to judge D by, and to compare generated ones with.

    Args:
        data: the name of an image set.
        folder: a folder of images, FOLDER/CLASS/FILE, in its place.
        size: height and width that images are brought to.
        channels: 1 for grey images, 3 for coloured ones.
        limit: how many images to learn from at most.
        held_out: how many held-out and test images; warns if there are fewer.
    """
    form = {"image_size": (size, size), "channels": channels}
    if folder is None:
        images = read_images(data, **form)
    else:
        images = read_image_folder(folder, **form)
    splits = image_splits(images, limit=limit)
    available = min(len(splits.validation.indices), len(splits.test.indices))
    held_out = at_most("--held-out", held_out, available, "held-out images")
    parts = (
        splits.train,
        evenly_spaced(splits.validation, held_out),
        evenly_spaced(splits.test, held_out),
    )
    fields = (take(part, np.asarray(part.indices)) for part in parts)
    sets = (dataset({**f, "row": np.arange(len(f["x"]))}) for f in fields)
    return GanImages(*sets, classes=splits.classes)


def gan_pixels(data: Dataset) -> np.ndarray:
    """The images of a set, uint8 [N, H, W, C]."""
    return np.asarray(data.arrays["x"])
