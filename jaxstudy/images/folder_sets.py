"""A folder of images, or the emoji, as training, validation and test set."""

import functools
from pathlib import Path

import numpy as np

from jaxstudy.data.sources import EMOJI_FOLDERS, check_folder
from jaxstudy.images import folders
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.images.sets import Images, ImageSet
from jaxstudy.messages import warn
from jaxstudy.types import UserError

TEST_SPLIT = 0.2  # of a folder that has no test set


def _take(audited: folders.Audit, rows: np.ndarray) -> folders.Audit:
    """An audited folder with only these of its images."""
    paths, labels = (tuple(x[r] for r in rows) for x in (audited.paths, audited.labels))
    return audited._replace(paths=paths, labels=labels)


def read_folder_sets(
    folder: Path | None,
    *,
    size: tuple[int, int],
    strict: bool,
    validation_split: float,
    seed: int,
) -> tuple[ImageSet, folders.Audit]:
    """The images of a folder as three sets, and what its audit found.

    The test set is the same for every seed; of the emoji it is that of `emoji_splits`.

    Args:
        folder: FOLDER/CLASS/FILE; None: the emoji, whose groups are in one set each.
        size: height and width that images are brought to.
        strict: refuse a folder with problems, instead of leaving out what is faulty.
        validation_split: share of the images, test set aside.
        seed: draws the validation set.
    """
    emoji = folder is None
    folder = folder or check_folder(EMOJI_FOLDERS)
    audited = folders.audit(folder)
    # reads nothing yet, but refuses problems (if strict) and folders without an image
    folders.folder_source(audited, image_size=size, strict=strict)
    if audited.problems:
        warn(f"not all in {folder} can be used:\n{folders.report(audited)}")
    if len(audited.classes) < 2:
        raise UserError(f"{folder} has one class only: there is nothing to tell apart")
    if emoji:
        held_out = np.isin(audited.paths, emoji_splits(audited.paths)["test"])
        rest, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    else:
        try:
            rest, test = folders.stratified_split(audited, TEST_SPLIT, seed=0)
        except UserError as error:
            raise UserError(f"{folder} is too small for a test set: {error}") from error
    load = functools.partial(
        folders.load_folder,
        _take(audited, rest),
        image_size=size,
        validation_split=validation_split,
        seed=seed,
        group_of=emoji_group if emoji else None,
    )
    loaded = {
        "train": load(subset="training"),
        "validation": load(subset="validation"),
        "test": folders.load_folder(_take(audited, test), image_size=size),
    }
    splits = {name: Images(images.x, images.y) for name, images in loaded.items()}
    return ImageSet(splits, audited.classes), audited
