"""An image set as three sets: to learn from, to choose by, and to test on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxstudy.data.splits import random_split
from jaxstudy.dataset import Dataset, dataset, subset
from jaxstudy.images.sets import Images, ImageSet
from jaxstudy.messages import warn
from jaxstudy.streaming import StreamedDataset, streamed
from jaxstudy.types import UserError

Rows = Dataset | StreamedDataset


class ImageSplits(NamedTuple):
    """Fields "x" [H, W, C] uint8 and "y", in memory or streamed; the classes' names."""

    train: Rows
    validation: Rows
    test: Rows
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


def at_most(setting: str, wanted: int, there: int, what: str) -> int:
    """A count that a setting wants, or what there is: then it is said."""
    if wanted > there:
        warn(f"{setting} {wanted}: there are only {there} {what}, so it is {there}")
    return min(wanted, there)


def image_splits(
    images: ImageSet, *, limit: int | None = None, validation: float = 0.1
) -> ImageSplits:
    """The train, validation and test sets of an image set, the same at every call.

    Where it has no "validation", that share of "train" is drawn for it, two images at
    least; where it has no "test", as much again. With a `limit`, at most so many images
    drawn from what is left are the training set: those of a smaller limit are among
    those of a larger one. Raises UserError where there is no "train", or too few images
    in it.
    """
    splits = images.splits
    if "train" not in splits:
        raise UserError(f"it has no split 'train', only {', '.join(splits)}")
    whole = splits["train"]
    missing = [name for name in ("validation", "test") if name not in splits]
    count = len(whole.x) if isinstance(whole, Images) else len(whole)
    if count < 2 + 2 * len(missing):
        raise UserError(f"{count} images to train on cannot be split")
    share = max(validation, 2 / count)
    shares = (1 - share * len(missing), *[share] * len(missing))
    rows, *cut = random_split(count, shares, seed=0)
    if limit is not None:
        limit = at_most("--images", limit, len(rows), "images to train on")
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:limit])
    training = _rows(whole)
    sets = {"train": subset(training, rows)}
    for name, part in zip(missing, cut, strict=True):
        sets[name] = subset(training, part)
    for name in {"validation", "test"} - set(missing):
        sets[name] = _rows(splits[name])
    shape = whole.x.shape[1:] if isinstance(whole, Images) else whole[0]["x"].shape
    height, width, channels = (*shape, 1)[:3]
    return ImageSplits(**sets, classes=images.classes, shape=(height, width, channels))


def sizes_at_most(sizes: Sequence[int], there: int) -> tuple[int, ...]:
    """Sizes of training sets, each once: where there are not so many, all there are."""
    at_most("--sizes", max(sizes), there, "images to train on")
    return tuple(dict.fromkeys(min(size, there) for size in sizes))


def nested_subsets(
    train: Rows, sizes: Sequence[int], seeds: int, seed: int
) -> np.ndarray:
    """Rows of training sets of several sizes, [sizes, seeds, longest].

    A seed's smaller sets are among its larger ones, and are repeated to the length of
    the longest, so that an epoch of each has as many steps.
    """
    longest, there = max(sizes), np.asarray(train.indices)
    generators = [np.random.default_rng((seed, n)) for n in range(seeds)]
    orders = [generator.permutation(there) for generator in generators]
    return np.array(
        [[np.resize(order[:n], longest) for order in orders] for n in sizes]
    )


def _rows(images: object) -> Rows:
    if isinstance(images, Images):
        x = images.x if images.x.ndim == 4 else images.x[..., None]
        return dataset({"x": x, "y": images.y})
    return streamed(images)  # type: ignore[arg-type]
