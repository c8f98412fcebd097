"""Training subsets of several sizes, the same images for every arm of a comparison."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxstudy.dataset import Dataset, dataset, evenly_spaced
from jaxstudy.images.sets import ImageSet
from jaxstudy.images.splits import image_splits, nested_subsets, sizes_at_most
from jaxstudy.stream import take
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

    def flat(self) -> "ImageSubsets":
        """The same with x [N, H W C] of 0 to 1."""
        sets = {
            name: {
                **fields,
                "x": fields["x"].reshape(len(fields["x"]), -1) / np.float32(255),
            }
            for name, fields in self.sets.items()
        }
        return self._replace(sets=sets)

    def datasets(self) -> tuple[Dataset, dict[str, Dataset]]:
        """The training set of every replica, and the sets to evaluate on."""
        sets = {name: dataset(fields) for name, fields in self.sets.items()}
        rows = jnp.asarray(self.rows)
        train = sets.pop("train")
        return train._replace(indices=rows, mask=jnp.ones(rows.shape, bool)), sets


def image_subsets(
    images: ImageSet, sizes: Sequence[int], seeds: int, seed: int
) -> ImageSubsets:
    """Subsets of an image set for each size and seed; reads no more than is used.

    Raises UserError where all images are of one class.
    """
    if len(images.classes) < 2:
        raise UserError("the images are of one class: there is nothing to tell apart")
    data = image_splits(images)
    sizes = sizes_at_most(sizes, len(data.train.indices))
    rows = nested_subsets(data.train, sizes, seeds, seed)
    used, indices = np.unique(rows, return_inverse=True)
    sets = {"train": take(data.train, used)}
    for name, part in (("validation", data.validation), ("test", data.test)):
        sets[name] = take(part, np.asarray(evenly_spaced(part, EVALUATED).indices))
    shape = len(sizes), seeds, -1
    return ImageSubsets(sets, indices.reshape(shape), sizes, data.classes)
