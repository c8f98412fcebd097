"""Training subsets of several sizes, the same images for every arm of a comparison."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxstudy.dataset import Dataset, dataset, evenly_spaced, take
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import (
    ImageSplits,
    image_splits,
    nested_subsets,
    sizes_at_most,
)
from jaxstudy.types import UserError

EVALUATED = 2000  # images of a validation or test set, at most


class ImageSubsets(NamedTuple):
    """Images, and the indices in "train" that each run learns from.

    sets: "train", "validation", "test" with fields x and y; indices [sizes, seeds,
    longest]: those of smaller sizes are repeated.
    """

    sets: dict[str, dict[str, np.ndarray]]
    indices: np.ndarray
    sizes: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def rows(self) -> np.ndarray:
        """The indices of every replica, [sizes x seeds, longest]."""
        return self.indices.reshape(-1, self.indices.shape[-1])

    @property
    def largest(self) -> int:
        """The replica with the most images, of the first seed."""
        return self.sizes.index(max(self.sizes)) * self.indices.shape[1]

    @property
    def majority_accuracy(self) -> float:
        """The share of the test set in the class most frequent in the training set."""
        most = np.bincount(self.sets["train"]["y"]).argmax()
        return float(np.mean(self.sets["test"]["y"] == most))

    def repeated(self, count: int, copies: int) -> "ImageSubsets":
        """The same where each of `count` training images is there several times.

        Image i of the copy n is the row i + n count of "train".
        """
        indices = [self.indices + n * count for n in range(copies)]
        return self._replace(indices=np.concatenate(indices, -1))

    def datasets(self, arms: int = 1) -> tuple[Dataset, dict[str, Dataset]]:
        """The training set of every replica, and the sets to evaluate on.

        With several arms, each replica's set is there once for every arm in turn.
        """
        sets = {name: dataset(fields) for name, fields in self.sets.items()}
        rows = jnp.asarray(self.rows.repeat(arms, axis=0))
        train = sets.pop("train")
        mask = jnp.ones(rows.shape, bool)
        return dataclasses.replace(train, indices=rows, mask=mask), sets


def read_image_subsets(
    data: str,
    folder: Path | None,
    size: int,
    *,
    counts: Sequence[int],
    seeds: int,
    seed: int,
) -> ImageSubsets:
    """Subsets of coloured images for each count and seed; no more than used is read.

    Args:
        data: the name of an image set.
        folder: a folder of images, FOLDER/CLASS/FILE, in its place.
        size: height and width that images are brought to.
        counts: how many images to learn from, at most as many as there are.
        seeds: how many subsets of each count.
        seed: draws them.

    Raises UserError where all images are of one class.
    """
    images = read_images(data, folder, image_size=(size, size), channels=3)
    if len(images.classes) < 2:
        raise UserError("the images are of one class: there is nothing to tell apart")
    return image_subsets(image_splits(images), counts=counts, seeds=seeds, seed=seed)


def image_subsets(
    splits: ImageSplits, *, counts: Sequence[int], seeds: int, seed: int
) -> ImageSubsets:
    """Subsets of a training set for each count and seed; see `read_image_subsets`."""
    counts = sizes_at_most(counts, len(splits.train.indices))
    rows = nested_subsets(splits.train, counts, seeds, seed)
    used, indices = np.unique(rows, return_inverse=True)
    sets = {"train": take(splits.train, used)}
    for name, part in (("validation", splits.validation), ("test", splits.test)):
        sets[name] = take(part, np.asarray(evenly_spaced(part, EVALUATED).indices))
    shape = len(counts), seeds, -1
    return ImageSubsets(sets, indices.reshape(shape), counts, splits.classes)
