"""The images that a run's settings name, and what is wrong with them, in its folder."""

import json
from pathlib import Path

import numpy as np

from jaxstudy.images.folder_sets import read_folder_sets
from jaxstudy.images.folders import read_image
from jaxstudy.images.sets import Images, ImageSet, read_images
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.run import Run

SHOWN = 64  # pixels a side of the image to show, where it is read from a file


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
    return images, read_image(audited.folder / audited.paths[0], (SHOWN, SHOWN))
