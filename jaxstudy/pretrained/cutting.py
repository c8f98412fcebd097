"""A backbone in two parts: layers that stay as they are, and those to train on."""

import contextlib
import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.images.augment import Layer, random_versions
from jaxstudy.images.subsets import ImageSubsets
from jaxstudy.model import Model, compose, split_stages
from jaxstudy.models.summary import print_summary
from jaxstudy.pretrained import backbones
from jaxstudy.pretrained.backbones import Backbone, on_pixels
from jaxstudy.pretrained.features import frozen_features
from jaxstudy.pretrained.tuning import regression
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.run import Run
from jaxstudy.types import UserError
from jaxstudy.wrappers import with_frozen_backbone


class Versions(NamedTuple):
    """How often each training image is there: as it is, and in random versions."""

    count: int
    layers: tuple[Layer, ...]
    fill: float | None
    seed: int


class CutBackbone(NamedTuple):
    """The layers before a stage, and the rest up to features; see `cut_backbone`.

    `image` and `between` are what the two parts are given, as shapes.
    """

    network: Backbone
    stage: str
    image: jax.ShapeDtypeStruct
    between: jax.ShapeDtypeStruct
    before: Model
    rest: Model

    def show_summary(self, run: Run, classes: int) -> None:
        """Print, and write as summary.txt, its layers with a regression on top."""
        inputs = backbones.output_shapes(self.rest, self.between)
        trained = compose(self.rest, regression(inputs.shape[1], classes))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            print_summary(with_frozen_backbone(self.before, trained), self.image)
        text = printed.getvalue()
        write_atomically(run.folder / "summary.txt", text)
        print(text)

    def features(
        self, images: ImageSubsets, versions: Versions, network: Backbone | None = None
    ) -> ImageSubsets:
        """The same with features of all layers, of another network with such layers."""
        network = network or self.network
        whole = backbones.with_stored_statistics(network.stages, self.image)
        return _of_versions(images, network, whole, "features", versions)

    def for_rest(self, images: ImageSubsets, versions: Versions) -> ImageSubsets:
        """The same with what the rest is given in the place of images."""
        title = f"before {self.stage}"
        return _of_versions(images, self.network, self.before, title, versions)

    def by_rest(self, inputs: ImageSubsets) -> ImageSubsets:
        """What `for_rest` gives, with features of all layers in its place."""
        weights = self.network.weights
        sets = {
            name: {**fields, "x": frozen_features(self.rest, weights, fields["x"])}
            for name, fields in inputs.sets.items()
        }
        return inputs._replace(sets=sets)


def cut_backbone(network: Backbone, stage: str, size: int) -> CutBackbone:
    """Cut a backbone before a stage, for images of so many pixels a side.

    Raises UserError where these are too small for it, or it has no such stage, or that
    is its first.
    """
    backbones.check_image_size(network.name, size)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    before, rest = split_stages(network.stages, stage)
    if not before:
        raise UserError(f"{stage!r} is the first layer: none before it stays frozen")
    first = backbones.with_stored_statistics(before, image)
    between = backbones.output_shapes(first, image)
    second = backbones.with_stored_statistics(rest, between)
    return CutBackbone(network, stage, image, between, first, second)


def _of_versions(
    images: ImageSubsets,
    network: Backbone,
    model: Model,
    title: str,
    versions: Versions,
) -> ImageSubsets:
    """The same with what some of the network's layers make of every version."""
    frozen = on_pixels(network, model)
    names, ends = [*images.sets], np.cumsum([len(s["x"]) for s in images.sets.values()])
    every = np.concatenate([fields["x"] for fields in images.sets.values()])
    features = frozen_features(frozen, network.weights, every, title=title)
    parts = dict(zip(names, np.split(features, ends[:-1]), strict=True))
    sets = {name: {**images.sets[name], "x": part} for name, part in parts.items()}
    x, key = images.sets["train"]["x"], jax.random.key(versions.seed)
    copies = [parts["train"]]
    for n in range(1, versions.count):
        moved = random_versions(
            jax.random.fold_in(key, n), x, versions.layers, versions.fill
        )
        name = f"{title}, version {n + 1} of {versions.count}"
        copies.append(frozen_features(frozen, network.weights, moved, title=name))
    train = {"x": np.concatenate(copies), "y": np.tile(sets["train"]["y"], len(copies))}
    return images._replace(sets={**sets, "train": train}).repeated(len(x), len(copies))
