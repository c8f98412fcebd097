"""EfficientNet-Lite0 equals Keras's layers, and its ImageNet weights know pictures."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxstudy.data.sources import EFFICIENTNET_LITE0, read_bytes
from jaxstudy.model import Model, Stage, sequential
from jaxstudy.models.efficientnet import (
    ConvNorm,
    MBConv,
    efficientnet_lite0,
    efficientnet_stages,
    efficientnet_weights,
    normalise_pixels,
)
from jaxstudy.pretrained.torch_weights import read_torch_weights
from jaxstudy.types import Array, Key, PyTree, UserError

# A stem, a block without expansion, one with it that adds its input, a top.
STAGES = (
    Stage("stem", partial(ConvNorm, 8, 3, 2)),
    Stage("first", partial(MBConv, 3, 2, 1, 16)),
    Stage("second", partial(MBConv, 3, 1, 6, 16)),
    *efficientnet_stages()[-2:],
)
SIZE = 12


def keras_network() -> tuple[keras.Model, dict[str, keras.Layer]]:
    """The same of Keras's layers, and these by the path of ours."""
    layers = keras.layers
    named: dict[str, keras.Layer] = {}
    bare: dict[str, Any] = {"padding": "same", "use_bias": False}
    # what will be replaced: quicker than to draw it
    zeros: dict[str, Any] = {"kernel_initializer": "zeros"}

    def normalised(path: str, conv: keras.Layer, x: Any) -> Any:
        norm = layers.BatchNormalization(epsilon=1e-3, momentum=0.99)
        named.update({f"{path}/conv": conv, f"{path}/norm": norm})
        return norm(conv(x))

    def relu6(x: Any) -> Any:
        return layers.ReLU(max_value=6)(x)

    def conv(path: str, x: Any, filters: int, kernel: int, stride: int = 1) -> Any:
        layer = layers.Conv2D(filters, kernel, stride, **bare, **zeros)
        return normalised(path, layer, x)

    def depthwise(path: str, x: Any, kernel: int, stride: int = 1) -> Any:
        make = layers.DepthwiseConv2D
        layer = make(kernel, stride, depthwise_initializer="zeros", **bare)
        return normalised(path, layer, x)

    inputs = keras.Input((SIZE, SIZE, 3))
    x = relu6(conv("stem", inputs, 8, 3, 2))
    x = relu6(depthwise("first/depthwise", x, 3, 2))
    x = conv("first/project", x, 16, 1)
    h = relu6(conv("second/expand", x, 96, 1))
    h = relu6(depthwise("second/depthwise", h, 3))
    x = layers.Add()([x, conv("second/project", h, 16, 1)])
    named["classifier/dense"] = dense = layers.Dense(1000, kernel_initializer="zeros")
    return keras.Model(inputs, dense(layers.GlobalAveragePooling2D()(x))), named


def at(tree: PyTree, path: str) -> dict[str, Any]:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def to_keras(params: PyTree, stats: PyTree, path: str) -> list[np.ndarray]:
    """The weights of one of our layers, in the order and shapes of Keras."""
    layer = at(params, path)
    if path.endswith("norm"):
        moving = at(stats, path)
        return [layer["scale"], layer["bias"], moving["mean"], moving["var"]]
    kernel = layer["kernel"]
    if path.endswith("depthwise/conv"):
        kernel = kernel.transpose(0, 1, 3, 2)  # [h, w, 1, C] to [h, w, C, 1]
    return [kernel, *([layer["bias"]] if "bias" in layer else [])]


def randomised(model: Model) -> tuple[PyTree, PyTree]:
    """Weights and statistics, none of them the zeros and ones that would hide."""
    rng = np.random.default_rng(5)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":  # the last axis of a depthwise kernel counts no inputs
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        if kind == "scale":  # enough for some to pass 6
            return rng.uniform(2, 6, leaf.shape)
        if kind == "var":
            return rng.uniform(0.5, 1.5, leaf.shape)
        return rng.normal(0, 0.3, leaf.shape)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map_with_path(draw, shapes)
    return jax.tree.map(lambda a: a.astype(np.float32), drawn)


def close(got: Any, expected: Any, scale: float) -> None:
    """Equal up to rounding: Keras's BatchNorm computes in float32 whatever it gets."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)


def test_the_blocks_equal_keras() -> None:
    model = sequential(STAGES, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    params, extra = randomised(model)
    reference, layers = keras_network()
    for path, layer in layers.items():
        layer.set_weights(to_keras(params, extra["batch_stats"], path))
    trained = [v.value for v in reference.trainable_variables]
    moving = [v.value for v in reference.non_trainable_variables]
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (4, SIZE, SIZE, 3)).astype(np.float32)
    weight = rng.normal(size=(4, 1000)).astype(np.float32)

    def evaluate(params: PyTree, x: Array) -> Array:
        return model.apply(params, extra, x, train=False, key=None)[0]

    def keras_evaluate(trained: PyTree, x: Array) -> Array:
        return reference.stateless_call(trained, moving, x, training=False)[0]

    outputs = jax.jit(evaluate)(params, x)
    close(outputs, jax.jit(keras_evaluate)(trained, x), np.abs(outputs).max())

    def loss(params: PyTree, x: Array) -> tuple[Array, PyTree]:
        y, after = model.apply(params, extra, x, train=True, key=None)
        return jnp.sum(weight * y), (y, after["batch_stats"])

    def keras_loss(trained: PyTree, x: Array) -> tuple[Array, PyTree]:
        y, after, *_ = reference.stateless_call(trained, moving, x, training=True)
        return jnp.sum(weight * y), (y, after)

    def gradients(loss: Any, weights: PyTree) -> PyTree:
        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(weights, x)

    (to_params, to_x), (y, stats) = gradients(loss, params)
    (wanted, wanted_x), (expected, after) = gradients(keras_loss, trained)
    close(y, expected, np.abs(y).max())
    close(to_x, wanted_x, np.abs(to_x).max())
    variables = [*reference.trainable_variables, *reference.non_trainable_variables]
    values = {v.path: g for v, g in zip(variables, [*wanted, *after], strict=True)}
    # one scale: a shift that the next normalisation takes away has no gradient at all
    scale = max(np.abs(g).max() for g in wanted)
    for path, layer in layers.items():
        got = to_keras(to_params, stats, path)
        for value, variable in zip(got, layer.weights, strict=True):
            expected = values[variable.path]
            close(value, expected, scale if variable.trainable else 1.0)
    moved = np.abs(
        at(stats, "stem/norm")["mean"] - extra["batch_stats"]["stem"]["norm"]["mean"]
    )
    assert moved.max() > 1e-3


# Of an image of 224x161, after each stage: a side of n becomes ceil(n / stride).
SHAPES = {
    "stem": (112, 81, 32),
    "block0": (112, 81, 16),
    **dict.fromkeys(("block1", "block2"), (56, 41, 24)),
    **dict.fromkeys(("block3", "block4"), (28, 21, 40)),
    **dict.fromkeys(("block5", "block6", "block7"), (14, 11, 80)),
    **dict.fromkeys(("block8", "block9", "block10"), (14, 11, 112)),
    **dict.fromkeys(("block11", "block12", "block13", "block14"), (7, 6, 192)),
    "block15": (7, 6, 320),
    "head": (7, 6, 1280),
    "pool": (1280,),
    "classifier": (1000,),
}


def test_the_shape_after_each_stage() -> None:
    stages = efficientnet_stages()
    without_top = [stage.name for stage in efficientnet_stages(include_top=False)]
    assert [stage.name for stage in stages[:-1]] == without_top
    x, found = jax.ShapeDtypeStruct((2, 224, 161, 3), jnp.float32), {}
    for stage in stages:
        model = sequential((stage,), x)

        def run(key: Key, x: Array, model: Model = model) -> Array:
            return model.apply(*model.init(key), x, train=False, key=None)[0]

        x = jax.eval_shape(run, jax.random.key(0), x)
        found[stage.name] = x.shape[1:]
    assert found == SHAPES


def test_parameters_small_images_and_pixels() -> None:
    for include_top, count in ((True, 4_652_008), (False, 3_371_008)):
        model = efficientnet_lite0((32, 32), include_top=include_top)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        found = tuple(sum(a.size for a in jax.tree.leaves(part)) for part in shapes)
        assert found == (count, 42_016)
    for size in ((31, 224), (224, 31)):
        with pytest.raises(UserError, match=f"of {size[0]}x{size[1]} are too small"):
            efficientnet_lite0(size)
    x = normalise_pixels(np.array([0, 51, 255], np.uint8))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, [-1, -0.6, 1], atol=1e-6)


# Kernel, expansion, and channels in and out of the blocks whose weights come.
TORCH_BLOCKS = (
    (3, 1, 32, 16),
    *((3, 6, 16, 24), (3, 6, 24, 24)),
    *((5, 6, 24, 40), (5, 6, 40, 40)),
    *((3, 6, 40, 80), (3, 6, 80, 80), (3, 6, 80, 80)),
    *((5, 6, 80, 112), (5, 6, 112, 112), (5, 6, 112, 112)),
    *((5, 6, 112, 192), (5, 6, 192, 192), (5, 6, 192, 192), (5, 6, 192, 192)),
    (3, 6, 192, 320),
)


@cache
def torch_tensors() -> dict[str, np.ndarray]:
    """Tensors with the names and shapes of PyTorch's, of small numbers in a row."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_norm(conv: str, norm: str, *shape: int) -> None:
        shapes[f"{conv}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_norm("_conv_stem", "_bn0", 32, 3, 3, 3)
    for i, (kernel, expansion, inputs, outputs) in enumerate(TORCH_BLOCKS):
        block, width = f"_blocks.{i}.", inputs * expansion
        if expansion > 1:
            conv_norm(f"{block}_expand_conv", f"{block}_bn0", width, inputs, 1, 1)
        depthwise = (width, 1, kernel, kernel)
        conv_norm(f"{block}_depthwise_conv", f"{block}_bn1", *depthwise)
        conv_norm(f"{block}_project_conv", f"{block}_bn2", outputs, width, 1, 1)
    conv_norm("_conv_head", "_bn1", 1280, 320, 1, 1)
    shapes |= {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}
    tensors = {}
    for i, (name, shape) in enumerate(shapes.items()):
        dtype = np.int64 if name.endswith("tracked") else np.float32
        tensors[name] = (np.arange(np.prod(shape)) + i).reshape(shape).astype(dtype)
    return tensors


NORM, RUNNING = "block15/project/norm", ("running_mean", "running_var")


def test_every_tensor_has_its_place() -> None:
    tensors = torch_tensors()
    assert len(tensors) == 296
    assert sum(t.size for t in tensors.values()) == 4_694_073
    weights = efficientnet_weights(tensors)
    model = efficientnet_lite0((32, 32))
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    expected = {"params": params, "extra": extra}
    jax.tree.map(lambda a, b: chex.assert_equal_shape((a, b)), weights, expected)
    # none is used twice: they begin with different numbers, but for the counters
    firsts = [a.reshape(-1)[0] for a in jax.tree.leaves(weights)]
    assert sorted(firsts) == sorted(
        t.reshape(-1)[0] for n, t in tensors.items() if "tracked" not in n
    )
    params, stats = weights["params"], weights["extra"]["batch_stats"]
    kernel = tensors["_blocks.3._depthwise_conv.weight"]
    np.testing.assert_array_equal(
        params["block3"]["depthwise"]["conv"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        params["classifier"]["dense"]["kernel"], tensors["_fc.weight"].T
    )
    norm = {n: v for tree in (params, stats) for n, v in at(tree, NORM).items()}
    ours, theirs = ("scale", "bias", "mean", "var"), ("weight", "bias", *RUNNING)
    for name, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(norm[name], tensors[f"_blocks.15._bn2.{tensor}"])


OTHERS: tuple[tuple[str, np.ndarray | None, str], ...] = (
    ("_fc.bias", None, "there is no tensor _fc.bias"),
    ("_bn0.num_batches_tracked", None, "there is no tensor _bn0.num_batches_tracked"),
    ("_se.weight", np.zeros(1), "1 tensors have no place in it, such as _se.weight"),
    ("_fc.weight", np.zeros((10, 1280), np.float32),
     r"_fc.weight has float32 \(10, 1280\), which does not become float32 \(1280, 1"),
    ("_fc.bias", np.zeros(1000, np.float16),
     r"_fc.bias has float16 \(1000,\), which does not become float32 \(1000,\)"),
)  # fmt: skip


def test_weights_of_another_network_are_refused() -> None:
    for name, tensor, reason in OTHERS:
        tensors = dict(torch_tensors())
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
        with pytest.raises(UserError, match=f"not the weights of Efficient.*{reason}"):
            efficientnet_weights(tensors)


# Logits of every 125th class that PyTorch 2.13 gives in float64, with the package
# efficientnet-lite-pytorch 0.1.0, for the image of sines below.
TORCH_LOGITS = (
    *(2.02885, 0.04285, -1.01504, -1.13643),
    *(-0.23838, -1.21114, -0.24584, -2.26331),
)
# Classes of ImageNet, by their numbers. It has no dahlia, no pagoda: its only flowers
# are the daisy and two more.
DAISY = 985
BUILDINGS = {"bell tower": 442, "castle": 483, "monastery": 663, "palace": 698}


def photograph(name: str) -> np.ndarray:
    """The middle square of one of scikit-learn's pictures at 224x224, as pixels."""
    image = Image.fromarray(load_sample_image(name))
    left = (image.width - image.height) // 2
    square = image.crop((left, 0, left + image.height, image.height))
    return np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC))


@pytest.mark.skipif(
    not EFFICIENTNET_LITE0.path.exists(),
    reason=f"{EFFICIENTNET_LITE0.path} is missing: {EFFICIENTNET_LITE0.command}",
)
def test_the_imagenet_weights() -> None:
    """They give the logits PyTorch gives, and know a flower and a pagoda's kind."""
    content = read_bytes(EFFICIENTNET_LITE0)
    tensors = read_torch_weights(content, EFFICIENTNET_LITE0.path)
    weights = efficientnet_weights(tensors)
    h, w, c = np.meshgrid(*map(np.arange, (224, 224, 3)), indexing="ij")
    sines = np.sin((h * (c + 1) + 2 * w) / 17)
    pictures = [
        normalise_pixels(photograph(name)) for name in ("flower.jpg", "china.jpg")
    ]
    x = np.stack([sines, *pictures]).astype(np.float32)
    model = efficientnet_lite0()

    @jax.jit
    def logits(weights: PyTree, x: Array) -> Array:
        params, extra = weights["params"], weights["extra"]
        return model.apply(params, extra, x, train=False, key=None)[0]

    got, flower, pagoda = np.asarray(logits(weights, x))
    np.testing.assert_allclose(got[::125], TORCH_LOGITS, rtol=0, atol=5e-5)
    assert flower.argmax() == DAISY
    assert pagoda.argmax() in BUILDINGS.values()
    probabilities = np.exp(pagoda) / np.exp(pagoda).sum()
    assert probabilities[list(BUILDINGS.values())].sum() > 0.5
