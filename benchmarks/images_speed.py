"""How fast work on images is beside Keras and PyTorch: same work, same cores, one go.

    cnn            training a small convolutional network on Fashion-MNIST
    inception      features of InceptionV3, 150 by 150 pixels, no gradients
    augmentation   flip, rotation, zoom and translation of 64 images

Every contestant gets the same arrays, weights too, prepares untimed, and repeats a
step. In each round all run in processes of their own, in rotated order, among them a
product of two large float32 matrices, whose rate is the peak of that round. Figures are
medians over the rounds, ratios and shares of the peak are within a round. Nothing is
written unless the results agree.

    make bench                                          all; writes benchmarks/results/
    images_speed.py --workload cnn --contestant torch   what each of the processes runs
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import speed
from speed import OURS, Arrays
from study_speed import OURS_PACKAGES, verdicts

SCHEMA = 1
PEAK, LAYERED = "peak", "jaxstudy-layers"
WARM_UP = 2  # steps that are not timed


class Measured(NamedTuple):
    """Milliseconds of a step, and what is compared."""

    step_ms: float
    results: dict[str, np.ndarray]


class Contestant(NamedTuple):
    """Its results must be those of the one that it is `like`."""

    label: str
    run: Callable[[Arrays, int], Measured]  # (data, steps)
    packages: tuple[str, ...]
    like: str = OURS
    counted: bool = True


@dataclass(frozen=True)
class Workload:
    """What is done, and how far from each other results may be; see `apart`.

    operations: of the matrix products that a step cannot do without.
    """

    title: str
    about: str
    data: Callable[[], dict[str, np.ndarray]]
    operations: Callable[[], float] | None
    contestants: dict[str, Contestant]
    steps: int
    tolerances: dict[str, float]
    targets: dict[str, float]  # as in speed.py


def timed(step: Callable[[int], Any], finish: Callable[[Any], Any], n: int) -> float:
    """Milliseconds of step(i), each finished before the next; some go before."""
    for i in range(-WARM_UP, n):
        if i == 0:
            began = time.perf_counter()
        finish(step(i + WARM_UP))
    return 1e3 * (time.perf_counter() - began) / n


# Training: 3x3 convolutions of 32 and 64, each with ReLU and 2x2 maximum, Dense 64, 10

BATCH, RATE = 128, 1e-3
EPS = 1e-10  # so small that it does not matter where in Adam it is added
EPOCHS = 2  # of `steps` steps each, after an untimed one
CNN_WEIGHTS = [
    f"params/{layer}/{array}"
    for layer in ("conv_1", "conv_2", "hidden_1", "output")
    for array in ("kernel", "bias")
]


def random_weights(model: Any) -> dict[str, np.ndarray]:
    """A model's arrays by path, as "params/conv_1/kernel"; `tree` puts them back.

    Kernels keep a signal through ReLU, and the rest is drawn so that no array can be
    mistaken for another.
    """
    import jax
    from flax.traverse_util import flatten_dict

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("kernel"):
            array = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        else:
            low, high = (0.5, 1.5) if name.endswith("var") else (-0.2, 0.2)
            array = rng.uniform(low, high, shape)
        return array.astype(np.float32)

    paths: Any = flatten_dict(
        dict(zip(("params", "extra"), shapes, strict=True)), sep="/"
    )
    return {name: drawn(name, leaf.shape) for name, leaf in paths.items()}


def tree(arrays: Arrays, name: str) -> Any:
    """The arrays below a name, "params" or "extra", as the model has them."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    found = {k: jnp.asarray(a) for k, a in arrays.items() if k.startswith(f"{name}/")}
    return unflatten_dict(found, sep="/")[name]


def cnn_data() -> dict[str, np.ndarray]:
    """x uint8 [N, 28, 28, 1] and y: training images in their order; the weights."""
    from jaxstudy.data.images import read_images
    from jaxstudy.models.cnn import cnn

    images: Any = read_images("fashion_mnist").splits["train"]
    rows = slice(WORKLOADS["cnn"].steps * BATCH)
    weights = random_weights(cnn((28, 28, 1), 10))
    return {"x": images.x[rows], "y": images.y[rows], **weights}


def cnn_operations() -> float:
    """Two for each product of numbers, forward and for both gradients."""
    first = 28 * 28 * 32 * 9  # whose inputs, the pixels, need no gradient
    others = 14 * 14 * 64 * 9 * 32 + 7 * 7 * 64 * 64 + 64 * 10
    return 2.0 * BATCH * (2 * first + 3 * others)


def cnn_jaxstudy(data: Arrays, steps: int) -> Measured:
    """`fit`, a chunk for each epoch."""
    import jax
    import optax

    from jaxstudy.data.dataset import Order, dataset
    from jaxstudy.models.cnn import cnn
    from jaxstudy.objectives import supervised
    from jaxstudy.training import fit, init_state, make_train_step

    model, optimizer = cnn((28, 28, 1), 10), optax.adam(RATE, eps=EPS)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    objective = supervised(model, lambda logits, y: {"loss": entropy(logits, y)})
    given = model._replace(init=lambda key: (tree(data, "params"), {}))
    rates: list[float] = []
    fitted = fit(
        init_state(given, optimizer, jax.random.key(0)),
        make_train_step(objective, optimizer),
        dataset({name: data[name][: steps * BATCH] for name in ("x", "y")}),
        batch_size=BATCH, epochs=1 + EPOCHS, key=jax.random.key(1),
        order=Order(reshuffle=False), chunk_steps=steps,
        progress=lambda step, rate, rows: rates.append(rate),
    )  # fmt: skip
    loss = np.array([row["loss"] for row in fitted.rows])
    return Measured(float(np.mean(1e3 / np.array(rates[1:]))), {"loss": loss})


def trained(epochs: Callable[[int], list[float]], steps: int) -> Measured:
    """Time epochs(n), which returns n losses."""
    first = epochs(1)
    began = time.perf_counter()
    losses = epochs(EPOCHS)
    took = time.perf_counter() - began
    return Measured(1e3 * took / (EPOCHS * steps), {"loss": np.array(first + losses)})


def cnn_keras(data: Arrays, steps: int) -> Measured:
    """`Model.fit`, on pixels that are floats between 0 and 1 already."""
    import keras

    layers = keras.layers
    model = keras.Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10),
    ])  # fmt: skip
    model.set_weights([data[name] for name in CNN_WEIGHTS])
    model.compile(
        optimizer=keras.optimizers.Adam(RATE, epsilon=EPS),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = data["x"][: steps * BATCH].astype(np.float32) / 255

    def epochs(n: int) -> list[float]:
        history = model.fit(
            x, data["y"][: len(x)], batch_size=BATCH, epochs=n, shuffle=False,
            verbose=0,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return history.history["loss"]

    return trained(epochs, steps)


def cnn_torch(data: Arrays, steps: int, compiled: bool = False) -> Measured:
    """A plain loop over slices of tensors, channels last, the fused Adam."""
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
    for parameter, array in zip(model.parameters(), weights, strict=True):
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        parameter.data.copy_(torch.tensor(array.transpose(axes)))
    model = model.to(memory_format=torch.channels_last)
    x = torch.tensor(data["x"][: steps * BATCH]).permute(0, 3, 1, 2) / 255
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.tensor(data["y"][: len(x)]).long()
    optimizer = torch.optim.Adam(model.parameters(), RATE, eps=EPS, fused=True)
    criterion = nn.CrossEntropyLoss()
    function = torch.compile(model) if compiled else model

    def epoch() -> float:
        total = torch.zeros(())
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss = criterion(function(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item() / steps

    return trained(lambda n: [epoch() for _ in range(n)], steps)


# Features: InceptionV3 without top


def inception_data() -> dict[str, np.ndarray]:
    """x [32, 150, 150, 3] between -1 and 1, and the weights."""
    from jaxstudy.models.inception import inception_v3

    x = np.random.default_rng(1).uniform(-1, 1, (32, 150, 150, 3)).astype(np.float32)
    return {"x": x, **random_weights(inception_v3(include_top=False))}


def inception_operations() -> float:
    """Two for each product of numbers in the convolutions."""
    import jax

    from jaxstudy.models.inception import inception_v3
    from jaxstudy.summary import summary

    x = jax.ShapeDtypeStruct((32, 150, 150, 3), np.float32)
    rows = summary(inception_v3((150, 150), include_top=False), x, depth=9).rows
    convolutions = [row for row in rows if row.kind == "Conv"]
    return sum(2.0 * r.trainable * math.prod(r.shapes[0][:3]) for r in convolutions)


def inception_jaxstudy(data: Arrays, steps: int) -> Measured:
    import jax

    from jaxstudy.models.inception import inception_v3

    images = jax.device_put(data["x"])
    model = inception_v3(images.shape[1:3], include_top=False)
    weights = tree(data, "params"), tree(data, "extra")
    apply = jax.jit(lambda w, x: model.apply(*w, x, train=False, key=None)[0])
    step_ms = timed(lambda _: apply(weights, images), jax.block_until_ready, steps)
    return Measured(step_ms, {"features": np.asarray(apply(weights, images))})


def inception_keras(data: Arrays, steps: int) -> Measured:
    """The model of keras.applications, compiled."""
    import keras

    from jaxstudy.keras_weights import keras_order
    from jaxstudy.models.inception import inception_stages

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
    features, images = keras_function(model, False), keras.ops.array(data["x"])
    step_ms = timed(lambda _: features(images), lambda y: y, steps)
    return Measured(step_ms, {"features": np.asarray(features(images))})


def keras_function(model: Any, training: bool) -> Callable[[Any], Any]:
    """A model as a compiled function, finished when it returns."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

        return tf.function(lambda x: model(x, training=training))
    import jax

    apply = jax.jit(lambda v, x: model.stateless_call(*v, x, training=training))
    trained = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]  # seeds are among them

    def function(x: Any) -> Any:
        nonlocal state
        y, state = jax.block_until_ready(apply((trained, state), x))
        return y

    return function


def torch_inception(torch: Any, weights: Arrays) -> Any:
    """The stages of jaxstudy.models.inception as one module of PyTorch."""
    from jaxstudy.models.inception import Conv, Fork, MaxPool, inception_stages

    nn = torch.nn

    class Mixed(nn.ModuleList):
        def forward(self, x: Any) -> Any:
            return torch.cat([branch(x) for branch in self], 1)

    def module(make: Any, at: str) -> Any:
        if isinstance(make, Fork):
            branches = [
                [module(m, f"{at}/{name}_{i}") for i, m in enumerate(steps, 1)]
                for name, steps in make.branches
            ]
            return Mixed([nn.Sequential(*steps) for steps in branches])
        if not isinstance(make, Conv):
            if isinstance(make("pool"), MaxPool):
                return nn.MaxPool2d(3, 2)
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        kernel = torch.tensor(weights[f"params/{at}/conv/kernel"]).permute(3, 2, 0, 1)
        outputs, inputs, h, w = kernel.shape
        pads = (h // 2, w // 2) if make.padding == "SAME" else (0, 0)
        convolution = nn.Conv2d(inputs, outputs, (h, w), make.stride, pads, bias=False)
        convolution.weight.data.copy_(kernel)
        norm = nn.BatchNorm2d(outputs, eps=1e-3)
        norm.bias.data.copy_(torch.tensor(weights[f"params/{at}/bn/bias"]))
        for name in ("mean", "var"):
            array = torch.tensor(weights[f"extra/batch_stats/{at}/bn/{name}"])
            getattr(norm, f"running_{name}").copy_(array)
        return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))

    stages = inception_stages(include_top=False)
    return nn.Sequential(*(module(make, name) for name, make in stages)).eval()


def inception_torch(data: Arrays, steps: int, compiled: bool = False) -> Measured:
    import torch  # pyright: ignore[reportMissingImports]

    model = torch_inception(torch, data).to(memory_format=torch.channels_last)
    images = torch.tensor(data["x"]).permute(0, 3, 1, 2)  # which is channels last
    features = torch.compile(model) if compiled else model
    with torch.inference_mode():
        step_ms = timed(lambda _: features(images), lambda y: y, steps)
        found = features(images).permute(0, 2, 3, 1).numpy()
    return Measured(step_ms, {"features": found})


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
    step_ms = timed(random, finish, steps)
    change = [np.abs(np.asarray(random(i)) - data["x"]).mean() for i in range(SAMPLE)]
    results = {"picture": np.asarray(fixed), "mean change": np.array(np.mean(change))}
    return Measured(step_ms, results)


def augmentation_jaxstudy(data: Arrays, steps: int, layered: bool = False) -> Measured:
    """All layers in one resampling, or one resampling for each."""
    import jax

    from jaxstudy.data import augment

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


def augmentation_keras(data: Arrays, steps: int) -> Measured:
    """The layers, compiled; on TensorFlow in the `map` of a tf.data set."""
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
        return keras_function(model, True)

    x = keras.ops.array(data["x"])
    fixed, random = versions(FIXED)(x), versions(RANDOM)
    if keras.backend.backend() == "jax":
        return augmented(data, steps, lambda _: random(x), fixed, lambda y: y)
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

    endless = tf.data.Dataset.from_tensors(x).repeat()
    mapped = endless.map(random, num_parallel_calls=tf.data.AUTOTUNE)
    batches = iter(mapped.prefetch(tf.data.AUTOTUNE))
    return augmented(data, steps, lambda _: next(batches), fixed, lambda y: y)


def augmentation_torch(data: Arrays, steps: int, compiled: bool = False) -> Measured:
    """`affine_grid` and `grid_sample`: all layers in one resampling."""
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


# Who takes part


def on_keras(run: Any, tensorflow: str, jax: str, like: str = OURS) -> Any:
    """On both backends; `be` sets the one in the name."""
    return {
        "keras-tensorflow": Contestant(
            f"Keras on TensorFlow, {tensorflow}", run, ("keras", "tensorflow_cpu"), like
        ),
        "keras-jax": Contestant(f"Keras on JAX, {jax}", run, ("keras", "jax"), like),
    }


def on_torch(run: Any, how: str) -> dict[str, Contestant]:
    """Eager and compiled."""
    found = {"torch": Contestant(f"PyTorch, {how}", run, ("torch",))}
    how = f"PyTorch, {how}, `torch.compile`"
    compiled = Contestant(how, partial(run, compiled=True), ("torch",))
    return {**found, "torch-compile": compiled}


WORKLOADS: dict[str, Workload] = {
    "cnn": Workload(
        "training a network of 3x3 convolutions 32 and 64, each with ReLU and 2x2 "
        "max-pooling, and dense layers 64 and 10 on Fashion-MNIST, batch 128, Adam",
        "All begin with the same weights and see the same batches in the same order, "
        "the peers as floats made before, in epochs of {steps} steps, of which `fit` "
        "of this project makes one compiled chunk each",
        cnn_data, cnn_operations,
        {
            OURS: Contestant(
                "this project, `fit`", cnn_jaxstudy, OURS_PACKAGES
            ),
            **on_keras(cnn_keras, "`fit`", "`fit`"),
            **on_torch(cnn_torch, "a plain loop, channels last"),
        },
        steps=25, tolerances={"loss": 2e-3}, targets={"best peer": 1},
    ),
    "inception": Workload(
        "features of 32 images of 150 by 150 pixels by InceptionV3 without top",
        "All have the same random weights; there are no gradients, and every step is "
        "finished before the next begins",
        inception_data, inception_operations,
        {
            OURS: Contestant("this project, jitted", inception_jaxstudy, OURS_PACKAGES),
            **on_keras(inception_keras, "`tf.function`", "jitted"),
            **on_torch(inception_torch, "channels last"),
        },
        steps=4, tolerances={"features": 1e-3}, targets={"best peer": 1},
    ),
    "augmentation": Workload(
        "random flip, rotation 0.1, zoom 0.2 and translation 0.1 of 64 images of 64 by "
        "64 pixels in colour",
        "This project and PyTorch multiply the maps and interpolate once, where each "
        "layer of Keras, and this project's layer after layer, interpolates for "
        "itself; what is compared are pictures for fixed parameters among those that "
        "do alike, and by how much random ones differ from their originals",
        augmentation_data, None,
        {
            OURS: Contestant(
                "this project, jitted", augmentation_jaxstudy, OURS_PACKAGES
            ),
            LAYERED: Contestant(
                "this project, layer after layer",
                partial(augmentation_jaxstudy, layered=True),
                OURS_PACKAGES, LAYERED, counted=False,
            ),
            **on_keras(augmentation_keras, "`Dataset.map`", "jitted", LAYERED),
            **on_torch(augmentation_torch, "`grid_sample`"),
        },
        steps=24, tolerances={"picture": 1e-3, "mean change": 0.03},
        targets={"best peer": 1},
    ),
}  # fmt: skip


# One contestant's process, and the one that starts them


@dataclass(frozen=True)
class Command:
    """Measure every contestant of one workload or of all, or be one."""

    workload: Literal["cnn", "inception", "augmentation", "all"] = "all"
    """What is done."""
    rounds: int = 5
    """Processes of every contestant; medians are over these."""
    steps: int | None = None
    """Steps, of the CNN in an epoch; the workload's own number if not given."""
    out: Path = Path(__file__).resolve().parent / "results"
    """Folder for WORKLOAD.json."""
    contestant: str | None = None
    """Be this one, or "peak", once, and print the figures as JSON."""
    data: Path | None = None
    """With --contestant: the .npz with the arrays; made afresh if not given."""
    results: Path | None = None
    """With --contestant: the .npz for what is compared."""


def matrix_product(size: int = 4096, times: int = 4) -> float:
    """The highest rate of numpy's product of two float32 matrices, in GFLOP/s."""
    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    ends = [time.perf_counter()]
    for _ in range(times):
        np.matmul(a, b)
        ends.append(time.perf_counter())
    return 2e-9 * size**3 / float(np.diff(ends).min())


def be(name: str, command: Command) -> None:
    """Work as one contestant; print the figures."""
    work, who = WORKLOADS[name], str(command.contestant)
    if who == PEAK:
        print(json.dumps({"gflops": matrix_product()}), flush=True)
        return
    if who.startswith("keras-"):
        os.environ["KERAS_BACKEND"] = who.removeprefix("keras-")
    data = work.data() if command.data is None else dict(np.load(command.data))
    step_ms, results = work.contestants[who].run(data, command.steps or work.steps)
    if command.results is not None:
        np.savez(command.results, **results)  # pyright: ignore[reportArgumentType]
    print(json.dumps({"step_ms": step_ms}), flush=True)


def run_contestant(name: str, command: Command, scratch: Path) -> dict[str, float]:
    """The figures of one process; what is compiled is kept in the scratch folder."""
    line = [sys.executable, __file__, "--workload", name]
    for option in ("contestant", "data", "results", "steps"):
        value = getattr(command, option)
        line += [] if value is None else [f"--{option}", str(value)]
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "torch"),
    }
    done = subprocess.run(line, env=environment, text=True, capture_output=True)
    if done.returncode:
        failed = f"{command.contestant} failed ({done.returncode})"
        sys.exit(f"{failed}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, command: Command) -> dict[str, Any]:
    """Run all rounds and return what goes into the result file."""
    from rich.progress import track

    from jaxstudy.run import environment

    work = WORKLOADS[name]
    operations = work.operations() if work.operations else None
    names = [*work.contestants, *([PEAK] if operations is not None else [])]
    rounds: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **work.data())  # pyright: ignore[reportArgumentType]
        for r in track(range(command.rounds), f"{name}, {command.rounds} rounds"):
            files = {n: Path(folder) / f"{n}-{r}.npz" for n in names}
            for i in range(len(names)):
                n = names[(r + i) % len(names)]
                one = replace(command, contestant=n, data=data, results=files[n])
                rounds[n].append(run_contestant(name, one, Path(folder)))
            for n, c in work.contestants.items():
                figures, own, like = (
                    rounds[n][r],
                    *map(np.load, (files[n], files[c.like])),
                )
                figures["steps_per_s"] = rate = 1e3 / figures["step_ms"]
                if operations is not None:
                    peak = 1e9 * rounds[PEAK][r]["gflops"]
                    figures["peak_share"] = operations * rate / peak
                figures |= {
                    f"{k} apart": apart(own[k], like[k]) for k in work.tolerances
                }
    packages = {p for c in work.contestants.values() for p in c.packages}
    result = {
        "schema": SCHEMA,
        "kind": "images",
        "workload": name,
        "title": work.title,
        "about": work.about,
        "steps": command.steps or work.steps,
        "rounds": command.rounds,
        "operations": operations,
        "peaks": [figures["gflops"] for figures in rounds.get(PEAK, [])],
        "tolerances": work.tolerances,
        "environment": environment(),
        "versions": {p: importlib.metadata.version(p) for p in sorted(packages)},
        "contestants": {
            n: {
                "label": c.label,
                "counted": c.counted and n != OURS,
                "rounds": rounds[n],
            }
            for n, c in work.contestants.items()
        },
    }
    return speed.summarised(result, work.targets)


def apart(own: np.ndarray, like: np.ndarray) -> float:
    """The largest difference, as a part of the largest number."""
    if own.shape != like.shape:
        return math.inf
    return float(np.abs(own - like).max() / np.abs(like).max())


def disagreement(result: dict[str, Any]) -> str | None:
    """What is wrong with the results, if they are not those of the same work."""
    for name, contestant in result["contestants"].items():
        for what, tolerance in result["tolerances"].items():
            for figures in contestant["rounds"]:
                found = figures[f"{what} apart"]
                if not found <= tolerance:  # or NaN
                    return f"{name}: {what} is {found:.2g} apart, over {tolerance:g}"
    return None


# What is shown


def table(result: dict[str, Any]) -> str:
    """The Markdown of a result file, and of nothing else."""
    products = result["operations"] is not None
    share = ["share of the peak, %"] if products else []
    lines = [["", "ms per step", *share, "this project is faster by"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, c in result["contestants"].items():
        ours, figures = name == OURS, c["figures"]
        note = "" if c["counted"] or ours else " (for comparison)"
        cells = [c["label"] + note, speed._range(figures["step_ms"])]
        if products:
            percent = {k: 100 * v for k, v in figures["peak_share"].items()}
            cells.append(speed._range(percent))
        cells = [f"**{cell}**" if ours else cell for cell in cells]
        ratio = "" if ours else f"{speed._range(c['times_as_fast'])} x"
        lines.append([*cells, ratio])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{_about(result)}"


def _about(result: dict[str, Any]) -> str:
    """The sentences below the table: what was measured, and on what."""
    environment = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    within = ", ".join(f"{k} {v:g}" for k, v in result["tolerances"].items())
    title = result["title"][0].upper() + result["title"][1:]
    parts = [
        f"{title}. {result['about'].format_map(result)}. Medians (and ranges) of "
        f"{result['rounds']} rounds, every figure from a process of its own, ratios "
        "within a round; compiling is not timed. Results agree within, relative to "
        f"the largest number: {within}."
    ]
    if result["operations"] is not None:
        peak = speed._range(speed.spread(result["peaks"]))
        parts.append(
            f"The matrix products of a step take {result['operations'] / 1e9:.3g} "
            f"GFLOP; the peak, {peak} GFLOP/s, is that of numpy's product of two "
            "4096x4096 float32 matrices, in a process of its own in each round."
        )
    parts.append(
        f"{environment['cores']} cores, {environment['processor']}; Python "
        f"{environment['python']}, {versions}."
    )
    return " ".join(parts)


def main(command: Command) -> int:
    """Be a contestant, or measure all, and write and print the results."""
    names = list(WORKLOADS) if command.workload == "all" else [command.workload]
    if command.rounds < 1 or (command.steps is not None and command.steps < 1):
        sys.exit("at least 1 round and 1 step are needed")
    if command.contestant is not None:
        known = [*WORKLOADS[names[0]].contestants, PEAK]
        if len(names) > 1 or command.contestant not in known:
            sys.exit(f"--contestant takes one of --workload: {', '.join(known)}")
        be(names[0], command)
        return 0
    peers = ("keras", "tensorflow", "torch")
    missing = [p for p in peers if not importlib.util.find_spec(p)]
    if missing:
        sys.exit(f"no {', '.join(missing)} here; `make bench` sets up what it needs")
    from jaxstudy.run import write_atomically
    from jaxstudy.types import UserError

    for name in names:
        try:
            result = measure(name, command)
        except UserError as error:  # no data
            sys.exit(str(error))
        print("\n".join([table(result), "", *verdicts(result)]))
        wrong = disagreement(result)
        if wrong:
            sys.exit(f"nothing is written: {wrong}")
        command.out.mkdir(parents=True, exist_ok=True)
        path = command.out / f"{name}.json"
        write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {path}\n")
    return 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Command, description=__doc__)))
