"""Networks that others trained, to build on: their layers, weights and pixels."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.data.sources import EFFICIENTNET_LITE0, read_bytes
from jaxstudy.model import Model, Stages, sequential
from jaxstudy.models import efficientnet, inception
from jaxstudy.pretrained.keras_weights import load_inception_v3
from jaxstudy.pretrained.torch_weights import read_torch_weights
from jaxstudy.types import Array, Key, PyTree, UserError

BackboneName = Literal["efficientnet_lite0", "inception_v3"]


class Backbone(NamedTuple):
    """A trained network without its last layer: one vector for each image.

    `stages` take images [B, H, W, 3] as `preprocess` makes them of pixels 0 to 255;
    `weights` are {"params", "extra"}, by stage.
    """

    name: BackboneName
    stages: Stages
    weights: PyTree
    preprocess: Callable[[Array], Array]


def backbone(name: BackboneName, weights: Path | None = None) -> Backbone:
    """EfficientNet-Lite0 as a package brings it, or InceptionV3 from a Keras file.

    Raises UserError where InceptionV3 gets no file, another network one, or the weights
    are missing or damaged, and for other names.
    """
    if name == "efficientnet_lite0":
        if weights is not None:
            raise UserError(
                f"--weights {weights}: {name} has those that `make data` brings; a "
                "file of Keras weights goes with inception_v3"
            )
        content, path = read_bytes(EFFICIENTNET_LITE0), EFFICIENTNET_LITE0.path
        tensors = efficientnet.efficientnet_weights(read_torch_weights(content, path))
        stages = efficientnet.efficientnet_stages(include_top=False)
        return Backbone(
            name, stages, select_weights(stages, tensors), efficientnet.normalise_pixels
        )
    if name == "inception_v3":
        if weights is None:
            raise UserError(
                "no package brings the weights of inception_v3: give a Keras file of "
                "them, with or without top, by --weights FILE"
            )
        loaded = load_inception_v3(weights, include_top=False)
        *stages, _ = inception.inception_stages()  # up to the mean over all places
        return Backbone(name, tuple(stages), loaded, inception.preprocess)
    raise UserError(f"{', '.join(get_args(BackboneName))} are backbones, not {name!r}")


_SMALLEST = {
    "efficientnet_lite0": efficientnet.SMALLEST_IMAGE,
    "inception_v3": inception.SMALLEST,
}


def check_image_size(name: BackboneName, size: int) -> None:
    """Raise UserError where images of so many pixels a side leave nothing to a pool."""
    if size < _SMALLEST[name]:
        raise UserError(
            f"{name} needs images of {_SMALLEST[name]} pixels a side at least, not "
            f"{size}"
        )


def select_weights(stages: Stages, weights: PyTree) -> PyTree:
    """Those of some stages alone, of {"params", "extra"} by stage."""
    names = {stage.name for stage in stages}

    def part(tree: Mapping[str, PyTree]) -> PyTree:
        return {name: tree[name] for name in tree if name in names}

    extra = {kind: part(tree) for kind, tree in weights["extra"].items()}
    return {"params": part(weights["params"]), "extra": extra}


def pretrained(model: Model, weights: PyTree) -> Model:
    """A model of stages that begins with these weights, {"params", "extra"} by stage.

    What has none begins as it would, and weights of other stages are left out.
    """

    def loaded(tree: Mapping[str, PyTree], given: Mapping[str, PyTree]) -> PyTree:
        # copies, since training overwrites its arrays
        return {n: jax.tree.map(jnp.array, given.get(n, tree[n])) for n in tree}

    def init(key: Key) -> tuple[PyTree, PyTree]:
        params, extra = model.init(key)
        kinds = weights["extra"]
        return loaded(params, weights["params"]), {
            kind: loaded(tree, kinds.get(kind, {})) for kind, tree in extra.items()
        }

    return model._replace(init=init)


def on_pixels(network: Backbone, model: Model) -> Model:
    """A model of the backbone's first stages, on pixels [B, H, W, 3], 0 to 255."""

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        return model.apply(params, extra, network.preprocess(x), train=train, key=key)

    return model._replace(apply=apply)


def with_stored_statistics(
    stages: Stages, example: Array | jax.ShapeDtypeStruct
) -> Model:
    """The stages one after the other, normalised by their stored statistics always.

    Also where they are trained: those come from more images than a small set has.
    """
    model = sequential(stages, example)

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        return model.apply(params, extra, x, train=False, key=None)

    return model._replace(apply=apply)


def untrained(network: Backbone, images: np.ndarray, seed: int) -> Backbone:
    """The same network with random weights, as it might begin to be trained.

    Kernels are normal with variance 1 / fan-in; BatchNorm after each makes the scale
    indifferent. Its statistics are those of 64 of the images [N, H, W, 3], layer by
    layer: with the ones it begins with, its outputs would hardly depend on the image.
    """
    shown = np.linspace(0, len(images) - 1, 64).astype(int)
    x = network.preprocess(jnp.asarray(images[shown]))
    model = sequential(network.stages, x)
    rng = np.random.default_rng(seed)

    def drawn(path: tuple[Any, ...], a: jax.ShapeDtypeStruct) -> np.ndarray:
        """By numpy: compiling all of JAX's random numbers would take seconds."""
        if path[-1].key != "kernel":
            return np.full(a.shape, {"scale": 1, "bias": 0}[path[-1].key], a.dtype)
        deviation = math.prod(a.shape[:-1]) ** -0.5
        return rng.normal(0, deviation, a.shape).astype(a.dtype)

    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(drawn, params)

    @jax.jit
    def statistics(params: PyTree, x: Array) -> PyTree:
        # m old + (1 - m) new for old = 0 and 1, of which XLA computes `new` once
        def after(old: float) -> PyTree:
            before = jax.tree.map(lambda a: jnp.full(a.shape, old, a.dtype), extra)
            return model.apply(params, before, x, train=True, key=None)[1]

        return jax.tree.map(lambda a, b: a / (1 - (b - a)), after(0), after(1))

    weights = {"params": params, "extra": statistics(params, x)}
    return network._replace(weights=weights)


def at_resolution(network: Backbone, size: int) -> Backbone:
    """The same network, to which images show no more than so many pixels a side.

    They are reduced, and enlarged again to what they were.
    """

    def preprocess(pixels: Array) -> Array:
        x = jnp.asarray(pixels, jnp.float32)
        few = jax.image.resize(x, (len(x), size, size, 3), "linear")
        return network.preprocess(jax.image.resize(few, x.shape, "linear"))

    return network._replace(preprocess=preprocess)


def output_shapes(model: Model, example: Array | jax.ShapeDtypeStruct) -> Any:
    """What a model puts out for such inputs, as shapes."""

    def outputs(x: Array) -> Any:
        params, extra = model.init(jax.random.key(0))
        return model.apply(params, extra, x, train=False, key=None)[0]

    return jax.eval_shape(outputs, example)
