"""A folder of images, or the emoji, as training, validation and test set."""

import json
from pathlib import Path

import numpy as np

from jaxstudy.data.sources import EMOJI_FOLDERS, check_folder
from jaxstudy.images import folders
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.images.sets import Images, ImageSet, read_images
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.run import Run
from jaxstudy.types import UserError

SHOWN = 64  # pixels a side of the image to show, where it is read from a file
TEST_SPLIT = 0.2  # of a folder that has no test set


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
    folders.check_usable(audited, strict)
    folders.warn_of_problems(audited)
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
    paths, labels = (
        tuple(x[row] for row in rest) for x in (audited.paths, audited.labels)
    )
    train, validation = folders.stratified_split(
        audited._replace(paths=paths, labels=labels),
        validation_split, seed, emoji_group if emoji else None,
    )  # fmt: skip
    loaded = folders.load_folder(audited, image_size=size)
    parts = {"train": rest[train], "validation": rest[validation], "test": test}
    splits = {n: Images(loaded.x[rows], loaded.y[rows]) for n, rows in parts.items()}
    return ImageSet(splits, audited.classes), audited


def read_set_or_folder(
    run: Run,
    data: str,
    folder: Path | None,
    *,
    size: int,
    strict: bool,
    validation_split: float,
    seed: int,
) -> tuple[ImageSet, np.ndarray]:
    """An image set, and one image [H, W, C] of it to show.

    Problems of a folder go to problems.json of the run.

    Args:
        run: whose folder it is.
        data: the name of an image set; emoji are read from their folder.
        folder: a folder of images, FOLDER/CLASS/FILE, in its place.
        size: height and width that images are brought to.
        strict: refuse a folder with problems, instead of leaving out what is faulty.
        validation_split: share of a folder's images, test set aside.
        seed: draws a folder's validation set.
    """
    if folder is None and data != "emoji":
        images = read_images(data, image_size=(size, size))
        first = images.splits["train"]
        shown = first.x[0] if isinstance(first, Images) else first[0]["x"]
        return images, np.asarray(shown)
    images, audited = read_folder_sets(
        folder, size=(size, size), strict=strict, seed=seed,
        validation_split=validation_split,
    )  # fmt: skip
    problems = json.dumps([problem._asdict() for problem in audited.problems], indent=1)
    write_atomically(run.folder / "problems.json", problems + "\n")
    return images, folders.read_image(audited.folder / audited.paths[0], (SHOWN, SHOWN))
