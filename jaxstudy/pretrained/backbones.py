"""Networks that others trained, to build on: their layers, weights and pixels."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.data.sources import EFFICIENTNET_LITE0, read_bytes
from jaxstudy.model import Model, Stages, sequential, split_stages
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


def pooled_features(stages: Stages, example: Array | jax.ShapeDtypeStruct) -> Model:
    """What each of these stages puts out, its mean over all places, as one [B, D].

    Early layers know colours and edges, late ones things: a few images teach more from
    all of them than from the last alone. Outputs without places are left out. All
    normalise by their stored statistics, also where they are trained: those come from
    more images than a small set has.
    """
    run = _outputs(stages, example)

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        _, means = run(params, extra, x)
        return jnp.concatenate(means, -1), extra

    return Model(sequential(stages, example).init, apply)


def split_pooled_features(
    stages: Stages, name: str, example: Array | jax.ShapeDtypeStruct
) -> tuple[Model, Model]:
    """`pooled_features` as two models: the stages before the one named, and the rest.

    The first puts out all that the second takes: (its last output, the means so far).
    Raises UserError where no stage has the name, or the first.
    """
    before, rest = split_stages(stages, name)
    if not before:
        raise UserError(f"{name!r} is the first layer: none before it stays frozen")
    run_before, init = _outputs(before, example), sequential(before, example).init

    def apply_before(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[tuple[Array, Array], PyTree]:
        x, means = run_before(params, extra, x)
        return (x, jnp.concatenate(means, -1)), extra

    first = Model(init, apply_before)
    between = output_shapes(first, example)[0]
    run_rest = _outputs(rest, between)

    def apply_rest(
        params: PyTree, extra: PyTree, x: tuple[Array, Array], *, train: bool,
        key: Key | None,
    ) -> tuple[Array, PyTree]:  # fmt: skip
        places, means_so_far = x
        _, means = run_rest(params, extra, places)
        return jnp.concatenate([means_so_far, *means], -1), extra

    return first, Model(sequential(rest, between).init, apply_rest)


def flatten_interface(
    first: Model, second: Model, example: Array | jax.ShapeDtypeStruct
) -> tuple[Model, Model]:
    """Models of which one takes the several arrays [B, ...] that the other puts out.

    The same two with one array [B, D] between them, which can be kept.
    """
    shapes = output_shapes(first, example)
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])

    def apply_first(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        outputs, extra = first.apply(params, extra, x, train=train, key=key)
        flat = [a.reshape(len(a), -1) for a in jax.tree.leaves(outputs)]
        return jnp.concatenate(flat, -1), extra

    def apply_second(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        parts = [
            part.reshape(len(x), *leaf.shape[1:])
            for part, leaf in zip(jnp.split(x, ends[:-1], -1), leaves, strict=True)
        ]
        whole = jax.tree.unflatten(structure, parts)
        return second.apply(params, extra, whole, train=train, key=key)

    return first._replace(apply=apply_first), second._replace(apply=apply_second)


def output_shapes(model: Model, example: Array | jax.ShapeDtypeStruct) -> Any:
    """What a model puts out for such inputs, as shapes."""

    def outputs(x: Array) -> Any:
        params, extra = model.init(jax.random.key(0))
        return model.apply(params, extra, x, train=False, key=None)[0]

    return jax.eval_shape(outputs, example)


def _outputs(
    stages: Stages, example: Array | jax.ShapeDtypeStruct
) -> Callable[[PyTree, PyTree, Array], tuple[Array, list[Array]]]:
    """The last output of some stages, and of those with places the mean over them."""
    alone = [sequential((stage,), example) for stage in stages]

    def run(params: PyTree, extra: PyTree, x: Array) -> tuple[Array, list[Array]]:
        means = []
        for stage, model in zip(stages, alone, strict=True):
            part = select_weights((stage,), {"params": params, "extra": extra})
            x, _ = model.apply(*part.values(), x, train=False, key=None)
            if x.ndim == 4:
                means.append(jnp.mean(x, (1, 2)))
        return x, means

    return run
