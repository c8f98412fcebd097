"""How fast training the GAN of lesson 5 is beside Keras and PyTorch: same work, one go.

    dcgan    D on 64 real images, D on 64 generated ones, G through D

How it is measured, and the command line, are in harness.py.
"""

import math
from typing import Any

import harness
import numpy as np
from harness import Arrays, Job, Measured, Workload, on_keras, on_torch, ours

BATCH, NOISE = 64, 100
SIDE = 64  # of an image, in pixels
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

    rows = slice(WORKLOADS["dcgan"].length * BATCH)
    x = resized(read_fashion_mnist()["train"].x[rows, ..., None], SIDE)
    arrays, shape = {"x": x}, (SIDE, SIDE, 1)
    for number, (name, model) in enumerate(
        {"d": discriminator(shape), "g": generator(shape)}.items()
    ):
        params, extra = jax.jit(model.init)(jax.random.key(number))
        paths: Any = flatten_dict({"params": params, "extra": extra}, sep="/")
        arrays |= {f"{name}/{k}": np.asarray(a) for k, a in paths.items()}
    rng = np.random.default_rng(0)
    return {**arrays, "z": rng.uniform(-1, 1, (BATCH, NOISE)).astype(np.float32)}


def gan_operations() -> float:
    """D thrice forward, G twice, and the gradients."""
    from jaxstudy.models.dcgan import discriminator, generator

    products = harness.products
    of_d = products(discriminator(), {"conv_1": 32**2, "conv_2": 16**2, "output": 1})
    sides = {f"enlarging_{i}": (2 ** (i + 1)) ** 2 for i in (1, 2, 3, 4)}
    of_g = products(generator(), {"dense": 1, **sides})
    d, g = sum(of_d.values()), sum(of_g.values())
    # D's own two updates need no gradient of the pixels, G's none of D's weights, nor
    # of the noise
    return 2.0 * BATCH * (8 * d - 2 * of_d["conv_1"] + 4 * g - of_g["dense"])


def part(data: Arrays, name: str) -> Arrays:
    """The arrays of one network."""
    start = f"{name}/"
    return {k.removeprefix(start): a for k, a in data.items() if k.startswith(start)}


def gan_jaxstudy(job: Job) -> Measured:
    """`fit`, a chunk for each epoch."""
    data, steps, *_ = job
    import jax
    import optax

    from jaxstudy.gan.step import init_gan_state, make_gan_step
    from jaxstudy.models.dcgan import discriminator, generator

    d, g = (job.rounded(make((SIDE, SIDE, 1))) for make in (discriminator, generator))
    tx = optax.adam(RATE, B1, eps=harness.EPS)
    state = init_gan_state(d, g, tx, tx, jax.random.key(0))
    d_arrays, g_arrays = part(data, "d"), part(data, "g")
    state = state._replace(
        params={
            "discriminator": harness.tree(d_arrays, "params"),
            "generator": harness.tree(g_arrays, "params"),
        },
        extra={"discriminator": {}, "generator": harness.tree(g_arrays, "extra")},
    )

    def apply(model: Any, name: str, x: Any) -> np.ndarray:
        forward = jax.jit(lambda *args: model.apply(*args, train=False, key=None)[0])
        return np.asarray(forward(state.params[name], state.extra[name], x))

    first = before(
        apply(d, "discriminator", batches(data, 1)[0]), apply(g, "generator", data["z"])
    )
    figures, records = harness.fit_epochs(
        state, make_gan_step(d, g, tx, tx, use_running_stats=True), {"x": data["x"]},
        BATCH, steps,
    )  # fmt: skip
    losses = [[record[f"loss{i}"] for i in (1, 2, 3)] for record in records]
    return Measured(figures, {"loss": np.array(losses), **first})


def before(logits: Any, images: Any) -> Arrays:
    """What untrained networks say of the first batch, and make of the same noise."""
    return {"logits": np.ravel(logits), "images": np.asarray(images)}


def batches(data: Arrays, steps: int) -> list[np.ndarray]:
    """The real images, 0 to 1, batch after batch."""
    x = data["x"][: steps * BATCH].astype(np.float32) / 255
    return np.split(x, steps)


def gan_keras(job: Job) -> Measured:
    """`predict_on_batch` and `train_on_batch`, as the course has it."""
    data, steps, *_ = job
    import keras

    layers = keras.layers

    def made(model: Any) -> Any:
        adam = keras.optimizers.Adam(RATE, beta_1=B1, epsilon=harness.EPS)
        model.compile(adam, keras.losses.BinaryCrossentropy(from_logits=True))
        return model

    d = made(keras.Sequential([
        layers.Input((SIDE, SIDE, 1)),
        layers.Conv2D(64, 3, strides=2, padding="same"), layers.LeakyReLU(0.2),
        layers.Dropout(0.4),
        layers.Conv2D(64, 3, strides=2, padding="same"), layers.LeakyReLU(0.2),
        layers.Dropout(0.4),
        layers.Flatten(), layers.Dense(1),
    ]))  # fmt: skip
    small = SIDE // 16, SIDE // 16, 256
    g = keras.Sequential([layers.Input((NOISE,)), layers.Dense(math.prod(small))])
    g.add(layers.Reshape(small))
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

    figures, results = harness.trained(lambda n: [epoch() for _ in range(n)], steps)
    return Measured(figures, {**results, **first})


def g_order() -> list[str]:
    """The generator's arrays in the order in which Keras has them."""
    names = ["params/dense/kernel", "params/dense/bias"]
    for i in range(1, len(ENLARGED) + 1):
        names += [f"params/enlarging_{i}/{a}" for a in ("kernel", "bias")]
        if i < len(ENLARGED):
            names += [f"params/norm_{i}/{a}" for a in ("scale", "bias")]
            names += [f"extra/batch_stats/norm_{i}/{a}" for a in ("mean", "var")]
    return names


def gan_torch(job: Job, compiled: bool = False) -> Measured:
    """A plain loop, channels last, the fused Adam."""
    data, steps, *_ = job
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
        harness.set_torch_weights(model, arrays)
        model.to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.Adam(m.parameters(), RATE, (B1, 0.999), harness.EPS, fused=True)
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

    figures, results = harness.trained(lambda n: [epoch() for _ in range(n)], steps)
    return Measured(figures, {**results, **first})


WORKLOADS: dict[str, Workload] = {
    "dcgan": Workload(
        "a step of the GAN of lesson 5 at 64 by 64 pixels, batch 64, Adam: the "
        "discriminator on real and on generated images, then the generator",
        "All begin with the same weights and see the same images in the same order, in "
        "epochs of {length} steps, of which `fit` of this project makes one compiled "
        "chunk each; untrained, they make the same images of the same noise and say "
        "the same of real ones; but each draws its own noise and dropout, so that "
        "losses are alike and not equal.",
        gan_data,
        {
            **ours("`fit`", gan_jaxstudy),
            **on_keras(gan_keras, "`train_on_batch`", "`train_on_batch`"),
            **on_torch(gan_torch, "a plain loop, channels last"),
        },
        8, operations=gan_operations,
        tolerances={"logits": 1e-3, "images": 1e-3, "loss": 0.15},
    ),
}  # fmt: skip

if __name__ == "__main__":
    harness.main(WORKLOADS, __file__, __doc__)
