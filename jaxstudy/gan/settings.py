"""What lessons on a GAN share: its settings, its images as three sets, the CNN."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import jax
import numpy as np
import pydantic

from jaxstudy.dataset import Dataset, dataset, evenly_spaced, take
from jaxstudy.gan.evaluation import train_classifier
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import at_most, image_splits
from jaxstudy.messages import warn
from jaxstudy.runs.cli import Count, Positive, Settings
from jaxstudy.runs.run import Run
from jaxstudy.types import Key, PyTree

AVAILABLE = "images to learn from"
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


@dataclass(frozen=True)
class GanSettings(Settings):
    """The images, the rates of the two networks, and the CNN that evaluates them."""

    data: str = "fashion_mnist"
    """fashion_mnist, emoji, or tfds:NAME."""
    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the data."""
    channels: Count = 1
    """1: grey images; 3: coloured ones."""
    image_size: Count = 32
    """Height and width of images, a multiple of 16; the course's are 64."""
    images: Count | None = 6_000
    """Images to learn from; None: all of them."""
    batch_size: Count = 64
    """Real images in a step, and generated ones for each network."""
    rate: Positive = 0.0005
    """Learning rate of G's Adam; b1 is 0.5 in both (Radford et al. 2016)."""
    rate_d: Positive = 0.002
    """That of D's: D should be the one ahead (Heusel et al. 2017)."""
    held_out: Annotated[int, pydantic.Field(ge=2)] = 500
    """Images in a comparison: held-out ones, those of the test set, generated ones."""
    classifier_epochs: Count = 5
    """Passes of the CNN over the images."""


_C = TypeVar("_C", bound=GanSettings)


def load(config: GanSettings) -> GanImages:
    """The images to learn from, to judge D by, and to compare generated ones with."""
    size = config.image_size, config.image_size
    images = read_images(
        config.data, config.folder, image_size=size, channels=config.channels
    )
    splits = image_splits(images, limit=config.images)
    available = min(len(splits.validation.indices), len(splits.test.indices))
    count = at_most("--held-out", config.held_out, available, "held-out images")
    parts = (
        splits.train,
        evenly_spaced(splits.validation, count),
        evenly_spaced(splits.test, count),
    )
    fields = (take(part, np.asarray(part.indices)) for part in parts)
    sets = (dataset({**f, "row": np.arange(len(f["x"]))}) for f in fields)
    return GanImages(*sets, classes=splits.classes)


def gan_pixels(data: Dataset) -> np.ndarray:
    """The images of a set, uint8 [N, H, W, C]."""
    return np.asarray(data.arrays["x"])


def fit_batch(config: _C, data: GanImages) -> _C:
    """The settings, with a batch that is no larger than the number of images."""
    count = len(data.train.indices)
    size = at_most("--batch-size", config.batch_size, count, AVAILABLE)
    return replace(config, batch_size=size)


def evaluation_cnn(
    config: GanSettings, data: GanImages, run: Run
) -> tuple[PyTree | None, dict[str, float]]:
    """The weights of a CNN trained on the classes, and its test accuracy as a metric.

    Images of a single class train none, which is said.
    """
    if len(data.classes) == 1:
        warn("the images are of one class: no CNN can judge them")
        return None, {}
    params, accuracy = train_classifier(
        data[:3], len(data.classes), epochs=config.classifier_epochs, run=run,
        batch_size=config.batch_size, key=key_for(config.seed, "classifier"),
    )  # fmt: skip
    return params, {"CNN: test accuracy": accuracy}
