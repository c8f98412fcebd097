"""How fast work on images is beside Keras and PyTorch: same work, same cores, one go.

    cnn            training a small convolutional network on Fashion-MNIST
    inception      features of InceptionV3, 150 by 150 pixels, no gradients
    augmentation   flip, rotation, zoom and translation of 64 images

How it is measured, and the command line, are in harness.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import harness
import numpy as np
from harness import Arrays, Candidate, Job, Measured, Workload, on_keras, on_torch, ours

LAYERED = "jaxstudy-layers"

# Training: 3x3 convolutions of 32 and 64, each with ReLU and 2x2 maximum, Dense 64, 10

BATCH = 128
CNN_WEIGHTS = [
    f"params/{layer}/{array}"
    for layer in ("conv_1", "conv_2", "hidden_1", "output")
    for array in ("kernel", "bias")
]


def cnn_data() -> dict[str, np.ndarray]:
    """x uint8 [N, 28, 28, 1] and y: training images in their order; the weights."""
    from jaxstudy.images.sets import read_images
    from jaxstudy.models.cnn import cnn

    images: Any = read_images("fashion_mnist").splits["train"]
    rows = slice(WORKLOADS["cnn"].length * BATCH)
    weights = harness.random_weights(cnn((28, 28, 1), 10))
    return {"x": images.x[rows], "y": images.y[rows], **weights}


def cnn_operations() -> float:
    """Forward, and for both gradients; but the inputs, the pixels, need none."""
    from jaxstudy.models.cnn import cnn

    places = {"conv_1": 28 * 28, "conv_2": 14 * 14, "hidden_1": 1, "output": 1}
    forward = harness.products(cnn((28, 28, 1), 10), places)
    return 2.0 * BATCH * (3 * sum(forward.values()) - forward["conv_1"])


def cnn_jaxstudy(job: Job) -> Measured:
    """`fit`, a chunk for each epoch."""
    from jaxstudy.models.cnn import cnn

    return harness.training_jaxstudy(cnn((28, 28, 1), 10), job, BATCH)


def cnn_keras(job: Job) -> Measured:
    """`Model.fit`, on pixels that are floats between 0 and 1 already."""
    data, steps, *_ = job
    import keras

    layers = keras.layers
    model = keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10),
    ])  # fmt: skip
    model.set_weights([data[name] for name in CNN_WEIGHTS])
    x = data["x"][: steps * BATCH].astype(np.float32) / 255

    return harness.training_keras(model, x, data["y"][: len(x)], steps, BATCH)


def cnn_torch(job: Job, compiled: bool = False) -> Measured:
    """A plain loop over slices of tensors, channels last, the fused Adam."""
    data, steps, *_ = job
    import torch  # pyright: ignore[reportMissingImports]

    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(7 * 7 * 64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    weights = [data[name] for name in CNN_WEIGHTS]
    hidden = weights[4].reshape(7, 7, 64, 64)  # flattened, channels come first here
    weights[4] = hidden.transpose(2, 0, 1, 3).reshape(-1, 64)
    harness.set_torch_weights(model, weights)
    model = model.to(memory_format=torch.channels_last)
    x = torch.tensor(data["x"][: steps * BATCH]).permute(0, 3, 1, 2) / 255
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.tensor(data["y"][: len(x)]).long()
    return harness.training_torch(model, x, y, steps, BATCH, compiled)


# Features: InceptionV3 without top


def inception_data() -> dict[str, np.ndarray]:
    """x [32, 150, 150, 3] between -1 and 1, and the weights."""
    from jaxstudy.models.inception import inception_v3

    x = np.random.default_rng(1).uniform(-1, 1, (32, 150, 150, 3)).astype(np.float32)
    return {"x": x, **harness.random_weights(inception_v3(include_top=False))}


def inception_operations() -> float:
    """Two for each product of numbers in the convolutions."""
    import jax

    from jaxstudy.models.inception import inception_v3
    from jaxstudy.models.summary import summary

    x = jax.ShapeDtypeStruct((32, 150, 150, 3), np.float32)
    rows = summary(inception_v3((150, 150), include_top=False), x, depth=9).rows
    convolutions = [row for row in rows if row.kind == "Conv"]
    return sum(2.0 * r.trainable * math.prod(r.shapes[0][:3]) for r in convolutions)


def inception_jaxstudy(job: Job) -> Measured:
    data, steps, *_ = job
    import jax

    from jaxstudy.models.inception import inception_v3

    images = jax.device_put(data["x"])
    model = job.rounded(inception_v3(images.shape[1:3], include_top=False))
    weights = harness.tree(data, "params"), harness.tree(data, "extra")
    apply = jax.jit(lambda w, x: model.apply(*w, x, train=False, key=None)[0])
    finish = jax.block_until_ready
    figures = harness.timed(lambda _: apply(weights, images), steps, finish)
    return Measured(figures, {"features": np.asarray(apply(weights, images))})


def inception_keras(job: Job) -> Measured:
    """The model of keras.applications, compiled."""
    data, steps, *_ = job
    import keras

    from jaxstudy.models.inception import inception_stages
    from jaxstudy.pretrained.keras_weights import keras_order

    model = keras.applications.InceptionV3(
        include_top=False, input_shape=data["x"].shape[1:],
        weights=None,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    kinds = (keras.layers.Conv2D, keras.layers.BatchNormalization)
    layers = [[a for a in model.layers if isinstance(a, kind)] for kind in kinds]
    order = map("/".join, keras_order(inception_stages(include_top=False)))
    for at, convolution, norm in zip(order, *layers, strict=True):
        convolution.set_weights([data[f"params/{at}/conv/kernel"]])
        statistics = [data[f"extra/batch_stats/{at}/bn/{a}"] for a in ("mean", "var")]
        norm.set_weights([data[f"params/{at}/bn/bias"], *statistics])
    features, images = harness.keras_function(model, False), keras.ops.array(data["x"])
    figures = harness.timed(lambda _: features(images), steps)
    return Measured(figures, {"features": np.asarray(features(images))})


def torch_inception(torch: Any, weights: Arrays) -> Any:
    """The stages of jaxstudy.models.inception as one module of PyTorch."""
    from jaxstudy.models.inception import ConvBN, MaxPool, Mixed, inception_stages

    nn = torch.nn

    class Branches(nn.ModuleList):
        def forward(self, x: Any) -> Any:
            return torch.cat([branch(x) for branch in self], 1)

    def module(make: Any, at: str) -> Any:
        layer = make(name="layer")
        if isinstance(layer, Mixed):
            branches = [
                [module(m, f"{at}/{name}_{i}") for i, m in enumerate(steps, 1)]
                for name, steps in layer.branches
            ]
            return Branches([nn.Sequential(*steps) for steps in branches])
        if isinstance(layer, MaxPool):
            return nn.MaxPool2d(3, 2)
        if not isinstance(layer, ConvBN):
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        kernel = torch.tensor(weights[f"params/{at}/conv/kernel"]).permute(3, 2, 0, 1)
        outputs, inputs, h, w = kernel.shape
        pads = (h // 2, w // 2) if layer.padding == "SAME" else (0, 0)
        convolution = nn.Conv2d(inputs, outputs, (h, w), layer.stride, pads, bias=False)
        convolution.weight.data.copy_(kernel)
        norm = nn.BatchNorm2d(outputs, eps=1e-3)
        norm.bias.data.copy_(torch.tensor(weights[f"params/{at}/bn/bias"]))
        for name in ("mean", "var"):
            array = torch.tensor(weights[f"extra/batch_stats/{at}/bn/{name}"])
            getattr(norm, f"running_{name}").copy_(array)
        return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))

    stages = inception_stages(include_top=False)
    return nn.Sequential(*(module(make, name) for name, make in stages)).eval()


def inception_torch(job: Job, compiled: bool = False) -> Measured:
    data, steps, *_ = job
    import torch  # pyright: ignore[reportMissingImports]

    model = torch_inception(torch, data).to(memory_format=torch.channels_last)
    images = torch.tensor(data["x"]).permute(0, 3, 1, 2)  # which is channels last
    features = torch.compile(model) if compiled else model
    with torch.inference_mode():
        figures = harness.timed(lambda _: features(images), steps)
        found = features(images).permute(0, 2, 3, 1).numpy()
    return Measured(figures, {"features": found})


# Augmentation


class Ranges(NamedTuple):
    """Whether to flip at random, and from which intervals the layers draw."""

    flip: bool
    turn: tuple[float, float]
    zoom: tuple[float, float]
    down: tuple[float, float]
    right: tuple[float, float]


RANDOM = Ranges(True, (-0.1, 0.1), (-0.2, 0.2), (-0.1, 0.1), (-0.1, 0.1))
FIXED = Ranges(False, (0.07, 0.07), (0.13, 0.13), (0.06, 0.06), (-0.08, -0.08))
SAMPLE = 16  # batches whose mean change is compared


def augmentation_data() -> dict[str, np.ndarray]:
    """x [64, 64, 64, 3] between 0 and 1: blurred noise."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(size=(64, 64, 64, 3))
    smooth = gaussian_filter(noise, (0, 4, 4, 0))
    x = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return {"x": x.astype(np.float32)}


def augmented(
    data: Arrays, steps: int, random: Callable[[int], Any], fixed: Any, finish: Any
) -> Measured:
    """Time random(i); compare what is fixed, and by how much random batches differ."""
    figures = harness.timed(random, steps, finish)
    change = [np.abs(np.asarray(random(i)) - data["x"]).mean() for i in range(SAMPLE)]
    results = {"picture": np.asarray(fixed), "mean change": np.array(np.mean(change))}
    return Measured(figures, results)


def augmentation_jaxstudy(job: Job, layered: bool = False) -> Measured:
    """All layers in one resampling, or one resampling for each."""
    data, steps, *_ = job
    import jax

    from jaxstudy.images import augment

    def versions(number: Any, x: Any, ranges: Ranges) -> Any:
        flip, turn, zoom, down, right = ranges
        layers: list[augment.Layer] = [augment.Flip()] if flip else []
        layers += [augment.Rotation(turn), augment.Zoom(zoom)]
        layers.append(augment.Translation(down, right))
        key = jax.random.fold_in(jax.random.key(0), number)
        for i, group in enumerate([[a] for a in layers] if layered else [layers]):
            x = augment.augment_batch(jax.random.fold_in(key, i), x, group)
        return x

    jitted = jax.jit(versions, static_argnums=2)
    x = jax.device_put(data["x"])
    fixed, finish = jitted(0, x, FIXED), jax.block_until_ready
    return augmented(data, steps, lambda i: jitted(i, x, RANDOM), fixed, finish)


def augmentation_keras(job: Job) -> Measured:
    """The layers, compiled; on TensorFlow in the `map` of a tf.data set."""
    data, steps, *_ = job
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers

    def versions(ranges: Ranges) -> Any:
        flip, turn, zoom, down, right = ranges
        model = keras.Sequential([layers.RandomFlip("horizontal")] if flip else [])
        model.add(layers.RandomRotation(turn))
        model.add(layers.RandomZoom(zoom))
        model.add(layers.RandomTranslation(down, right))
        model.build(data["x"].shape)
        return harness.keras_function(model, True)

    x = keras.ops.array(data["x"])
    fixed, random = versions(FIXED)(x), versions(RANDOM)
    if keras.backend.backend() == "jax":
        return augmented(data, steps, lambda _: random(x), fixed, lambda y: y)
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

    endless = tf.data.Dataset.from_tensors(x).repeat()
    mapped = endless.map(random, num_parallel_calls=tf.data.AUTOTUNE)
    batches = iter(mapped.prefetch(tf.data.AUTOTUNE))
    return augmented(data, steps, lambda _: next(batches), fixed, lambda y: y)


def augmentation_torch(job: Job, compiled: bool = False) -> Measured:
    """`affine_grid` and `grid_sample`: all layers in one resampling."""
    data, steps, *_ = job
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    functional = torch.nn.functional

    def versions(x: Any, ranges: Ranges) -> Any:
        flip, *pairs = ranges
        pairs = [(low, high - low) for low, high in pairs]
        draws = [low + width * torch.rand(len(x)) for low, width in pairs]
        turn, zoom, down, right = draws
        sign = torch.ones(len(x))
        sign = torch.where(torch.rand(len(x)) < 0.5, -sign, sign) if flip else sign
        cos = (1 + zoom) * torch.cos(2 * math.pi * turn)
        sin = (1 + zoom) * torch.sin(2 * math.pi * turn)
        # from (x, y) of the output to that of the input; half the image is 1
        linear = torch.stack([sign * cos, -sign * sin, sin, cos], 1).reshape(-1, 2, 2)
        offset = linear @ torch.stack([-2 * right, -2 * down], 1)[..., None]
        maps = torch.cat([linear, offset], 2)
        grid = functional.affine_grid(maps, x.shape, align_corners=False)
        return functional.grid_sample(
            x, grid, padding_mode="reflection", align_corners=False
        )

    x = torch.tensor(data["x"]).permute(0, 3, 1, 2).contiguous()
    function = torch.compile(versions) if compiled else versions
    fixed, random = (
        lambda _, ranges=ranges: function(x, ranges).permute(0, 2, 3, 1)
        for ranges in (FIXED, RANDOM)
    )
    return augmented(data, steps, random, fixed(0), lambda y: y)


WORKLOADS: dict[str, Workload] = {
    "cnn": Workload(
        "training a network of 3x3 convolutions 32 and 64, each with ReLU and 2x2 "
        "max-pooling, and dense layers 64 and 10 on Fashion-MNIST, batch 128, Adam",
        "All begin with the same weights and see the same batches in the same order, "
        "the peers as floats made before, in epochs of {length} steps, of which `fit` "
        "of this project makes one compiled chunk each.",
        cnn_data,
        {
            **ours("`fit`", cnn_jaxstudy),
            **on_keras(cnn_keras, "`fit`", "`fit`"),
            **on_torch(cnn_torch, "a plain loop, channels last"),
        },
        25, tolerances={"loss": 2e-3}, operations=cnn_operations,
    ),
    "inception": Workload(
        "features of 32 images of 150 by 150 pixels by InceptionV3 without top",
        "All have the same random weights; there are no gradients, and every step is "
        "finished before the next begins.",
        inception_data,
        {
            **ours("jitted", inception_jaxstudy),
            **on_keras(inception_keras, "`tf.function`", "jitted"),
            **on_torch(inception_torch, "channels last"),
        },
        4, tolerances={"features": 1e-3}, operations=inception_operations,
    ),
    "augmentation": Workload(
        "random flip, rotation 0.1, zoom 0.2 and translation 0.1 of 64 images of 64 by "
        "64 pixels in colour",
        "This project and PyTorch multiply the maps and interpolate once, where each "
        "layer of Keras, and this project's layer after layer, interpolates for "
        "itself; what is compared are pictures for fixed parameters among those that "
        "do alike, and by how much random ones differ from their originals.",
        augmentation_data,
        {
            **ours("jitted", augmentation_jaxstudy),
            LAYERED: Candidate(
                "this project, layer after layer",
                partial(augmentation_jaxstudy, layered=True),
                ("jaxstudy", "jax"), LAYERED, counted=False,
            ),
            **on_keras(augmentation_keras, "`Dataset.map`", "jitted", LAYERED),
            **on_torch(augmentation_torch, "`grid_sample`"),
        },
        24, harness.PLAIN, tolerances={"picture": 1e-3, "mean change": 0.03},
    ),
}  # fmt: skip

if __name__ == "__main__":
    harness.main(WORKLOADS, __file__, __doc__)
