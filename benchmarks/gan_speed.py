"""How fast training the GAN of lesson 5 is beside Keras and PyTorch: same work, one go.

    dcgan    D on 64 real images, D on 64 generated ones, G through D

How it is measured is in contest.py.

    make bench                                          writes benchmarks/results/
    gan_speed.py --workload dcgan --contestant torch    what each of the processes runs
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from contest import (
    EPOCHS,
    EPS,
    OURS,
    Arrays,
    Command,
    Contestant,
    Measured,
    Workload,
    main,
    on_keras,
    on_torch,
    trained,
    tree,
)
from study_speed import OURS_PACKAGES

BATCH, NOISE = 64, 100
RATE, B1 = 2e-4, 0.5
ENLARGED = ((8, 256), (16, 128), (32, 64), (64, 1))  # pixels a side, channels
D_WEIGHTS = [
    f"{a}/{b}" for a in ("conv_1", "conv_2", "output") for b in ("kernel", "bias")
]


def gan_data() -> dict[str, np.ndarray]:
    """x uint8 [N, 64, 64, 1]: training images in their order; weights of both."""
    import jax
    from flax.traverse_util import flatten_dict

    from jaxstudy.gan.evaluation import resized
    from jaxstudy.images.sets import read_fashion_mnist
    from jaxstudy.models.dcgan import discriminator, generator

    rows = slice(WORKLOADS["dcgan"].steps * BATCH)
    x = resized(read_fashion_mnist()["train"].x[rows, ..., None], 64)
    arrays = {"x": x}
    for number, (name, model) in enumerate(
        {"d": discriminator(), "g": generator()}.items()
    ):
        params, extra = model.init(jax.random.key(number))
        paths: Any = flatten_dict({"params": params, "extra": extra}, sep="/")
        arrays |= {f"{name}/{k}": np.asarray(a) for k, a in paths.items()}
    rng = np.random.default_rng(0)
    return {**arrays, "z": rng.uniform(-1, 1, (BATCH, NOISE)).astype(np.float32)}


def gan_operations() -> float:
    """Two for each product of numbers: D thrice forward, G twice, and the gradients."""
    first, second = 32 * 32 * 64 * 9, 16 * 16 * 64 * 9 * 64
    d = first + second + 16 * 16 * 64
    side, channels, sizes = 4, 256, [NOISE * 4 * 4 * 256]
    for larger, filters in ENLARGED:
        sizes.append(side * side * 9 * channels * filters)
        side, channels = larger, filters
    g = sum(sizes)
    # D's own two updates need no gradient of the pixels; G's needs none of D's weights
    of_d = 2 * (3 * d - first) + 2 * d
    of_g = g + 3 * g - sizes[0]  # nor any gradient of the noise
    return 2.0 * BATCH * (of_d + of_g)


def part(data: Arrays, name: str) -> Arrays:
    """The arrays of one network."""
    start = f"{name}/"
    return {k.removeprefix(start): a for k, a in data.items() if k.startswith(start)}


def gan_jaxstudy(data: Arrays, steps: int) -> Measured:
    """`fit`, a chunk for each epoch."""
    import jax
    import optax

    from jaxstudy.dataset import Order, dataset
    from jaxstudy.gan.step import init_gan_state, make_gan_step
    from jaxstudy.models.dcgan import discriminator, generator
    from jaxstudy.training import fit

    d, g = discriminator(), generator()
    tx = optax.adam(RATE, B1, eps=EPS)
    state = init_gan_state(d, g, tx, tx, jax.random.key(0))
    d_arrays, g_arrays = part(data, "d"), part(data, "g")
    state = state._replace(
        params={
            "discriminator": tree(d_arrays, "params"),
            "generator": tree(g_arrays, "params"),
        },
        extra={"discriminator": {}, "generator": tree(g_arrays, "extra")},
    )

    def apply(model: Any, name: str, x: Any) -> np.ndarray:
        weights = state.params[name], state.extra[name]
        return np.asarray(model.apply(*weights, x, train=False, key=None)[0])

    first = before(
        apply(d, "discriminator", batches(data, 1)[0]), apply(g, "generator", data["z"])
    )
    rates: list[float] = []
    fitted = fit(
        state,
        make_gan_step(d, g, tx, tx, use_running_stats=True),
        replace(
            dataset({"x": data["x"][: steps * BATCH]}), order=Order(shuffle="never")
        ),
        key=jax.random.key(1),
        epochs=1 + EPOCHS,
        batch_size=BATCH,
        chunk_steps=steps,
        progress=lambda step, rate, rows: rates.append(rate),
    )
    losses = [[row[f"loss{i}"] for i in (1, 2, 3)] for row in fitted.records]
    step_ms = float(np.mean(1e3 / np.array(rates[1:])))
    return Measured(step_ms, {"loss": np.array(losses), **first})


def before(logits: Any, images: Any) -> Arrays:
    """What untrained networks say of the first batch, and make of the same noise."""
    return {"logits": np.ravel(logits), "images": np.asarray(images)}


def batches(data: Arrays, steps: int) -> list[np.ndarray]:
    """The real images, 0 to 1, batch after batch."""
    x = data["x"][: steps * BATCH].astype(np.float32) / 255
    return np.split(x, steps)


def gan_keras(data: Arrays, steps: int) -> Measured:
    """`predict_on_batch` and `train_on_batch`, as the course has it."""
    import keras

    layers = keras.layers

    def made(model: Any) -> Any:
        adam = keras.optimizers.Adam(RATE, beta_1=B1, epsilon=EPS)
        model.compile(adam, keras.losses.BinaryCrossentropy(from_logits=True))
        return model

    d = made(keras.Sequential([
        layers.Input((64, 64, 1)),
        layers.Conv2D(64, 3, strides=2, padding="same"), layers.LeakyReLU(0.2),
        layers.Dropout(0.4),
        layers.Conv2D(64, 3, strides=2, padding="same"), layers.LeakyReLU(0.2),
        layers.Dropout(0.4),
        layers.Flatten(), layers.Dense(1),
    ]))  # fmt: skip
    g = keras.Sequential([layers.Input((NOISE,)), layers.Dense(4 * 4 * 256)])
    g.add(layers.Reshape((4, 4, 256)))
    for _, filters in ENLARGED[:-1]:
        g.add(layers.Conv2DTranspose(filters, 3, strides=2, padding="same"))
        g.add(layers.LeakyReLU(0.2))
        g.add(layers.BatchNormalization())
    g.add(layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid"))
    of_d, of_g = part(data, "d"), part(data, "g")
    d.set_weights([of_d[f"params/{name}"] for name in D_WEIGHTS])
    g.set_weights([of_g[name] for name in g_order()])
    both = made(keras.Sequential([g, d]))
    real, one, zero = batches(data, steps), np.ones((BATCH, 1)), np.zeros((BATCH, 1))
    first = before(d.predict_on_batch(real[0]), g.predict_on_batch(data["z"]))
    rng = np.random.default_rng(0)

    def noise() -> np.ndarray:
        return rng.uniform(-1, 1, (BATCH, NOISE)).astype(np.float32)

    def epoch() -> list[float]:
        total = np.zeros(3)
        for x in real:
            d.trainable = True
            fake = g.predict_on_batch(noise())
            losses = [d.train_on_batch(x, one), d.train_on_batch(fake, zero)]
            d.trainable = False  # in `both` only
            total += [*losses, both.train_on_batch(noise(), one)]
            for model in (d, both):
                model.reset_metrics()
        return (total / steps).tolist()

    step_ms, results = trained(lambda n: [epoch() for _ in range(n)], steps)
    return Measured(step_ms, {**results, **first})


def g_order() -> list[str]:
    """The generator's arrays in the order in which Keras has them."""
    names = ["params/dense/kernel", "params/dense/bias"]
    for i in range(1, len(ENLARGED) + 1):
        names += [f"params/enlarging_{i}/{a}" for a in ("kernel", "bias")]
        if i < len(ENLARGED):
            names += [f"params/norm_{i}/{a}" for a in ("scale", "bias")]
            names += [f"extra/batch_stats/norm_{i}/{a}" for a in ("mean", "var")]
    return names


def gan_torch(data: Arrays, steps: int, compiled: bool = False) -> Measured:
    """A plain loop, channels last, the fused Adam."""
    import torch  # pyright: ignore[reportMissingImports]

    nn = torch.nn
    torch.manual_seed(0)

    class Cropped(nn.Module):
        """What "same" leaves of a transposed convolution: not the last row, column."""

        def forward(self, x: Any) -> Any:
            return x[..., :-1, :-1]

    pad = nn.ZeroPad2d((0, 1, 0, 1))
    d = nn.Sequential(
        pad, nn.Conv2d(1, 64, 3, 2), nn.LeakyReLU(0.2), nn.Dropout(0.4),
        pad, nn.Conv2d(64, 64, 3, 2), nn.LeakyReLU(0.2), nn.Dropout(0.4),
        nn.Flatten(), nn.Linear(16 * 16 * 64, 1),
    )  # fmt: skip
    parts, channels = [nn.Linear(NOISE, 4 * 4 * 256), nn.Unflatten(1, (256, 4, 4))], 256
    for _, filters in ENLARGED:
        parts += [nn.ConvTranspose2d(channels, filters, 3, 2), Cropped()]
        if filters > 1:
            parts += [nn.LeakyReLU(0.2), nn.BatchNorm2d(filters, 1e-3, 0.01)]
        channels = filters
    g = nn.Sequential(*parts, nn.Sigmoid())
    of_d, of_g = part(data, "d"), part(data, "g")
    d_arrays = [of_d[f"params/{name}"] for name in D_WEIGHTS]
    d_arrays[4] = (
        d_arrays[4].reshape(16, 16, 64, 1).transpose(2, 0, 1, 3).reshape(-1, 1)
    )
    g_arrays = [of_g[name] for name in g_order() if not name.startswith("extra")]
    g_arrays[0] = g_arrays[0].reshape(-1, 4, 4, 256).transpose(0, 3, 1, 2)
    g_arrays[0] = g_arrays[0].reshape(NOISE, -1)
    g_arrays[1] = g_arrays[1].reshape(4, 4, 256).transpose(2, 0, 1).reshape(-1)
    for model, arrays in ((d, d_arrays), (g, g_arrays)):
        for parameter, array in zip(model.parameters(), arrays, strict=True):
            axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
            parameter.data.copy_(torch.tensor(array.transpose(axes).copy()))
        model.to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.Adam(m.parameters(), RATE, (B1, 0.999), EPS, fused=True)
        for m in (d, g)
    ]
    judge, make = (torch.compile(m) if compiled else m for m in (d, g))
    criterion = nn.BCEWithLogitsLoss()
    one, zero = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    real = [
        torch.tensor(x)
        .permute(0, 3, 1, 2)
        .contiguous(memory_format=torch.channels_last)
        for x in batches(data, steps)
    ]

    with torch.no_grad():
        logits, images = d.eval()(real[0]), g.eval()(torch.tensor(data["z"]))
    d.train()
    first = before(logits, images.permute(0, 2, 3, 1))

    def update(loss: Any, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def epoch() -> list[float]:
        total = torch.zeros(3)
        for x in real:
            with torch.no_grad():
                g.eval()
                fake = make(2 * torch.rand(BATCH, NOISE) - 1)
                g.train()
            losses = [update(criterion(judge(x), one), optimizers[0])]
            losses.append(update(criterion(judge(fake), zero), optimizers[0]))
            d.requires_grad_(False)
            made = make(2 * torch.rand(BATCH, NOISE) - 1)
            losses.append(update(criterion(judge(made), one), optimizers[1]))
            d.requires_grad_(True)
            total += torch.stack(losses)
        return (total / steps).tolist()

    step_ms, results = trained(lambda n: [epoch() for _ in range(n)], steps)
    return Measured(step_ms, {**results, **first})


WORKLOADS: dict[str, Workload] = {
    "dcgan": Workload(
        "a step of the GAN of lesson 5 at 64 by 64 pixels, batch 64, Adam: the "
        "discriminator on real and on generated images, then the generator",
        "All begin with the same weights and see the same images in the same order, in "
        "epochs of {steps} steps, of which `fit` of this project makes one compiled "
        "chunk each; untrained, they make the same images of the same noise and say "
        "the same of real ones; but each draws its own noise and dropout, so that "
        "losses are alike and not equal",
        gan_data, gan_operations,
        {
            OURS: Contestant("this project, `fit`", gan_jaxstudy, OURS_PACKAGES),
            **on_keras(gan_keras, "`train_on_batch`", "`train_on_batch`"),
            **on_torch(gan_torch, "a plain loop, channels last"),
        },
        steps=8, tolerances={"logits": 1e-3, "images": 1e-3, "loss": 0.15},
        targets={"best peer": 1},
    ),
}  # fmt: skip

if __name__ == "__main__":
    import tyro

    command = tyro.cli(Command, description=__doc__)
    sys.exit(main(command, WORKLOADS, Path(__file__)))
