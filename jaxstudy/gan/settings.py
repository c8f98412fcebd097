"""What lessons on a GAN share: its settings, its images as three sets, the CNN."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import jax
import numpy as np
import pydantic

from jaxstudy.dataset import Dataset, dataset, evenly_spaced, take
from jaxstudy.gan.evaluation import (
    CNN_SIZE,
    Judge,
    classifier_features,
    train_classifier,
)
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import at_most, image_splits
from jaxstudy.messages import warn
from jaxstudy.runs.cli import Count, Positive, Settings
from jaxstudy.runs.run import Run
from jaxstudy.types import Key

CNN_BATCH = 64
USES = (  # of randomness
    "gan", "shown", "evaluation", "between", "judged", "untrained", "classifier",
    "variants", "sample", "tuning",
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
    held_out: Annotated[int, pydantic.Field(ge=2)] = 2_000
    """Images in a comparison: held-out ones, those of the test set, generated ones."""
    classifier_images: Count = 10_000
    """Images that the CNN learns from, at most: the same CNN judges at every preset."""
    classifier_epochs: Count = 5
    """Passes of the CNN over them."""


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


def fit_to(config: _C, data: GanImages) -> _C:
    """The settings, with a batch and comparisons no larger than there are images."""
    count = len(data.train.indices)
    size = at_most("--batch-size", config.batch_size, count, "images to learn from")
    return replace(config, batch_size=size, held_out=len(data.test.indices))


def train_judge(
    config: GanSettings, data: GanImages, run: Run
) -> tuple[Judge | None, dict[str, float]]:
    """A CNN trained on the classes, and its test accuracy as a metric.

    It is the same whatever the settings of the networks, their seed and their images:
    trained on its own, of its own size. Images of one class train none, which is said.
    """
    if len(data.classes) == 1:
        warn("the images are of one class: no CNN can judge them")
        return None, {}
    own = replace(config, image_size=CNN_SIZE, images=None)
    *sets, classes = load(own)
    count = min(config.classifier_images, len(sets[0].indices))
    sets[0] = evenly_spaced(sets[0], count)
    params, accuracy = train_classifier(
        sets, len(classes), epochs=config.classifier_epochs, run=run,
        batch_size=min(CNN_BATCH, count), key=key_for(0, "classifier"),
    )  # fmt: skip
    real = classifier_features(params, gan_pixels(data.test))
    return Judge(params, real, classes), {"CNN: test accuracy": accuracy}
