"""A backbone in two parts: layers that stay as they are, and those to train on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxstudy.images.subsets import ImageSubsets
from jaxstudy.model import Model
from jaxstudy.pretrained import backbones
from jaxstudy.pretrained.backbones import Backbone
from jaxstudy.pretrained.features import features_of_sets
from jaxstudy.pretrained.tuning import summary_text
from jaxstudy.runs.run import Run, write_atomically


class CutBackbone(NamedTuple):
    """The layers before a stage, and the rest up to features; see `cut_backbone`."""

    network: Backbone
    stage: str
    image: jax.ShapeDtypeStruct
    before: Model
    rest: Model

    def show_summary(self, run: Run, classes: int) -> None:
        """Print, and write as summary.txt, its layers with a regression on top."""
        text = summary_text(self.before, self.rest, classes, self.image)
        write_atomically(run.folder / "summary.txt", text)
        print(text)

    def features(self, images: ImageSubsets) -> ImageSubsets:
        """The same with features of all layers in the place of images."""
        whole = backbones.pooled_features(self.network.stages, self.image)
        sets = features_of_sets(images.sets, self.network, whole, "features")
        return images._replace(sets=sets)

    def for_rest(self, images: ImageSubsets) -> tuple[ImageSubsets, Model]:
        """The same with what the rest is given, flat, and the rest as pretrained."""
        before, rest = backbones.flatten_interface(self.before, self.rest, self.image)
        title = f"before {self.stage}"
        sets = features_of_sets(images.sets, self.network, before, title)
        weights = self.network.weights
        return images._replace(sets=sets), backbones.pretrained(rest, weights)


def cut_backbone(network: Backbone, stage: str, size: int) -> CutBackbone:
    """Cut a backbone before a stage, for images of so many pixels a side.

    Raises UserError where these are too small for it, or it has no such stage.
    """
    backbones.check_image_size(network.name, size)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    before, rest = backbones.split_pooled_features(network.stages, stage, image)
    return CutBackbone(network, stage, image, before, rest)
