"""The class of image files, by a regression on features that a run has trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxstudy.images.subsets import ImageSubsets
from jaxstudy.pretrained import tuning
from jaxstudy.pretrained.backbones import Backbone
from jaxstudy.pretrained.features import features_of_files
from jaxstudy.runs.run import Run, Saved, read_sealed

_FILE = "images.json"
_Content = tuple[tuple[str, ...], tuple[int, ...]]  # names of classes, and sizes


def save_classes(run: Run, images: ImageSubsets) -> None:
    """Keep in the run folder what `predict_files` has to know of the images."""
    run.write_sealed(_FILE, (tuple(images.classes), images.sizes))


def predict_files(
    saved: Saved[Any],
    network: Backbone,
    files: Sequence[Path],
    part: str,
    *,
    size: int,
    seeds: int,
) -> None:
    """Print the most probable classes of every file, by the largest set's regression.

    Args:
        saved: a run that called `save_classes`.
        network: makes the features.
        files: images.
        part: the name of the training of the regressions, one for each size and seed.
        size: height and width that images are brought to.
        seeds: regressions of each size; the first is taken.
    """
    x = features_of_files(network, files, size)
    classes, counts = read_sealed(saved.folder, _FILE, _Content)
    model = tuning.regression(x.shape[1], len(classes))
    weights = saved.replica_weights(model, len(counts) * seeds, part)
    largest = counts.index(max(counts)) * seeds
    p = tuning.class_probabilities(weights["params"], weights["extra"], largest, x)
    tuning.print_top_classes(files, classes, p)
