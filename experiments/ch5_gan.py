"""Lesson 5: two networks that compete, one that forges images and one that judges them.

The generator G makes an image of 100 random numbers: a dense layer, then transposed
convolutions that double it four times. The discriminator D says whether an image is a
real one. A step trains D on real images and on generated ones, then G against a
frozen discriminator; an epoch is once through the images. What G makes of the same
noise after every epoch is in samples/, and as an animation.

Is it any good? A CNN that learnt the classes of the real images says how many of them
it finds in the generated ones and how sure it is, and the Frechet distance between
its features of both has other real images and noise as the ends of its scale. Does G
copy? Its images, and new real ones, are beside the nearest of those it learnt from.
When to stop? When D can no longer tell, says the course: at the first epoch after which
1/2 is in the 95 % interval of its accuracy on held-out and as many generated images;
nan is for none.

"Training on real images first biases D: mix them": small networks are trained so, in
the course's order and on mixed batches, each with every seed; also without BatchNorm,
and with images for D as `predict` makes them, by running BatchNorm statistics, which is
what the course's Keras code does.

Expected (quick, 32 by 32 pixels, 564 steps, about three minutes): shapes of garments,
9 of 10 classes; Frechet distance 29, of an untrained generator 257, of real images 2.
The experiment at the end is too short there to tell the orders apart.
Expected (full, 64 by 64 pixels, 3,376 steps in 27 minutes, then the experiment): 10 of
10 classes; Frechet distance 41, of an untrained generator 301, of real images 0.5. D is
ahead to the end. Real images first: 224 for 48; mixed: 71; the others as alternating.
Then: ch5_gan.py --sample 100
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
from jax import lax

from jaxstudy import ops
from jaxstudy.dataset import Dataset, dataset, evenly_spaced, steps_per_epoch, take
from jaxstudy.gan.evaluation import (
    classifier_features,
    classifier_metrics,
    judge_by_nearest,
    resized,
    train_classifier,
)
from jaxstudy.gan.step import (
    G,
    Order,
    alternating,
    init_gan_replicas,
    init_gan_state,
    make_gan_eval_step,
    make_gan_step,
    mixed,
    real_first,
    stopping_epoch,
)
from jaxstudy.images.sets import read_image_folder, read_images
from jaxstudy.images.splits import at_most, image_splits
from jaxstudy.messages import warn
from jaxstudy.model import Model
from jaxstudy.models.dcgan import discriminator, generate, generator, sample_latent
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    Estimate,
    frechet_distance,
    mean_over_runs,
)
from jaxstudy.training import Evaluator, FitResult, TrainState, fit
from jaxstudy.types import Array, Key, PyTree, UserError

LESSON = Lesson(
    number="5",
    title="A GAN of the course's two networks: samples after every epoch, what a "
    "CNN sees in them, whether they copy; real images first, alternating and "
    "mixed",
    headline={
        "generated images: Frechet distance of this CNN's features": (
            "Frechet distance of a CNN's features to test images': generated"
        ),
        "new images: Frechet distance of this CNN's features": "new real ones",
        "untrained generator: Frechet distance of this CNN's features": (
            "untrained generator"
        ),
        "noise: Frechet distance of this CNN's features": "noise",
        "generated images: classes with over 2 %": "classes with over 2 % of them",
        "generated images: top probability": "top probability, generated",
        "test images: top probability": "test images",
        "alternating: Frechet distance": "distance in small: alternating",
        "real first: Frechet distance": "real first",
        "mixed: Frechet distance": "mixed",
        "alternating, no BatchNorm: Frechet distance": "no BatchNorm",
        "alternating, predicted: Frechet distance": "running BatchNorm statistics",
    },
)

Name = Literal[
    "alternating", "real first", "mixed", "alternating, no BatchNorm",
    "alternating, predicted",
]  # fmt: skip
Result = dict[str, Estimate | float]
USES = (  # of randomness
    "gan", "shown", "evaluation", "between", "judged", "untrained", "classifier",
    "variants", "sample",
)  # fmt: skip
COLUMNS = 10  # of pictures
MOST = 10_000  # images of one picture


@dataclass(frozen=True)
class Config(Settings):
    """The images, the two networks, and how long they compete."""

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
    epochs: Count = 6
    """Passes over them."""
    batch_size: Count = 64
    """Real images in a step, and generated ones for each network."""
    rate: Positive = 0.0005
    """Learning rate of G's Adam; b1 is 0.5 in both (Radford et al. 2016)."""
    rate_d: Positive = 0.002
    """That of D's: D should be the one ahead (Heusel et al. 2017)."""
    batch_norm: bool = True
    """Normalise what the generator's layers make."""
    held_out: Annotated[int, pydantic.Field(ge=2)] = 500
    """Images in a comparison: held-out ones, those of the test set, generated ones."""
    classifier_epochs: Count = 5
    """Passes of the CNN over the images."""
    variants: tuple[Name, ...] = ("alternating", "real first")
    """What the experiment at the end compares."""
    variant_size: Count = 16
    """Height and width of its images."""
    variant_images: Count = 640
    """Images to learn from in it."""
    variant_epochs: Count = 4
    """Passes over them."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 2
    """Trainings of each variant; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        image_size=16, images=64, epochs=2, batch_size=16, held_out=32,
        classifier_epochs=1, variant_images=32, variant_epochs=1,
    ),
    "quick": Config(),
    "full": Config(
        image_size=64, images=None, epochs=4, held_out=2_000, variants=get_args(Name),
        variant_size=32, variant_images=6_400, variant_epochs=5, seeds=6,
    ),
}  # fmt: skip


def key_for(config: Config, use: str) -> Key:
    """The key of one of the things that are random."""
    return jax.random.fold_in(jax.random.key(config.seed), USES.index(use))


class Data(NamedTuple):
    """Three parts with fields x [N, H, W, C], y and row [N]; the classes' names."""

    train: Dataset
    held_out: Dataset
    test: Dataset
    classes: tuple[str, ...]


def load(config: Config) -> Data:
    """The images to learn from, to judge D by, and for the comparisons at the end."""
    size = config.image_size, config.image_size
    if config.folder is None:
        images = read_images(config.data, image_size=size, channels=config.channels)
    else:
        images = read_image_folder(
            config.folder, image_size=size, channels=config.channels
        )
    splits = image_splits(images, limit=config.images)
    held_out, test = (
        evenly_spaced(part, config.held_out)
        for part in (splits.validation, splits.test)
    )
    train, held_out, test = (
        dataset(take(part, np.asarray(part.indices)) | {"row": np.arange(n)})
        for part in (splits.train, held_out, test)
        for n in [len(part.indices)]
    )
    return Data(train, held_out, test, splits.classes)


def fitted_to(config: Config, data: Data) -> Config:
    """The config with no larger counts than there are images."""
    learnt, what = len(data.train.indices), "images to learn from"
    fewest = min(len(data.held_out.indices), len(data.test.indices))
    return dataclasses.replace(
        config,
        batch_size=at_most("--batch-size", config.batch_size, learnt, what),
        variant_images=at_most("--variant-images", config.variant_images, learnt, what),
        held_out=at_most("--held-out", config.held_out, fewest, "held-out images"),
    )


def pixels(data: Dataset) -> np.ndarray:
    """The images of a set, uint8 [N, H, W, C]."""
    return np.asarray(data.arrays["x"])


# ------------------------------------------------------------------ the GAN


Both = tuple[Model, Model, optax.GradientTransformation, optax.GradientTransformation]


def networks(config: Config, size: int, batch_norm: bool) -> Both:
    """D and G for images of so many pixels a side, and the optimizer of each."""
    shape = (size, size, config.channels)
    return (
        discriminator(shape),
        generator(shape, batch_norm),
        optax.adam(config.rate_d, b1=0.5),
        optax.adam(config.rate, b1=0.5),
    )


def train(config: Config, data: Data, run: Run) -> FitResult:
    """Let the two networks compete, and write samples after every epoch."""
    d, g, *_ = both = networks(config, config.image_size, config.batch_norm)
    init_key, order_key = jax.random.split(key_for(config, "gan"))
    state = init_gan_state(*both, init_key)
    z = sample_latent(key_for(config, "shown"), 5 * COLUMNS)

    def write_samples(epoch: int, state: TrainState) -> None:
        made = np.asarray(generate(g, state.params[G], state.extra[G], z))
        grid = plots.image_grid(made, COLUMNS, f"epoch {epoch}")
        grid.save(samples(run.folder) / f"epoch_{epoch:03d}.png")

    write_samples(0, state)
    fitted = fit(
        state,
        make_gan_step(*both),
        data.train,
        key=order_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={
            "validation": Evaluator(
                make_gan_eval_step(d, g, key_for(config, "evaluation")),
                data.held_out,
                250,
            )
        },
        evaluate_first=False,
        log=run.sub_run("gan", on_epoch=write_samples),
    )
    frames = sorted(samples(run.folder).glob("epoch_*.png"))
    plots.save_animation(samples(run.folder) / "training.gif", frames)
    return fitted


def samples(folder: Path) -> Path:
    """samples/ in a run folder."""
    path = folder / "samples"
    path.mkdir(exist_ok=True)
    return path


def draw_training(run: Run) -> None:
    """The three losses, and D's accuracy on images that it does not learn from."""

    def draw(figure: str, split: str, label: str, names: dict[str, str]) -> None:
        lines: dict[str, plots.Line] = {}
        for name, what in names.items():
            table = plots.curve(run.sub_runs["gan"].records, split, name)
            lines[what] = table[:, 0].tolist(), table[:, 1].tolist()
        panel = plots.Panel(f"{split} images", "epoch", label, lines)
        plots.save_lines(run, figure, [panel])

    losses = {"loss1": "D, real", "loss2": "D, generated", "loss3": "G"}
    draw("losses", "train", "loss, nats", losses)
    accuracies = {"accuracy on real": "real", "accuracy on fake": "generated"}
    draw("accuracy", "validation", "accuracy of D", accuracies)


def draw_interpolation(
    config: Config, g: Model, params: PyTree, extra: PyTree, run: Run
) -> None:
    """Images of the noise on the way from one draw to another, four times."""
    begin, end = sample_latent(key_for(config, "between"), 8).reshape(2, 4, 1, -1)
    share = jnp.linspace(0, 1, COLUMNS)[:, None]
    z = (1 - share) * begin + share * end
    made = np.asarray(generate(g, params, extra, z.reshape(4 * COLUMNS, -1)))
    plots.save_images(run, "interpolation", [list(row) for row in np.split(made, 4)])


# ------------------------------------------------------------------ the caution


def train_variant(
    name: Name, config: Config, learnt: Dataset, held_out: Dataset, run: Run
) -> tuple[Model, FitResult]:
    """G, and small networks trained in one of the orders: every seed a replica."""
    batch_norm = "no BatchNorm" not in name
    d, g, *_ = both = networks(config, config.variant_size, batch_norm)
    steps = steps_per_epoch(len(learnt.indices), config.batch_size)
    orders: dict[str, Order] = {"real first": real_first(steps), "mixed": mixed}
    keys = jax.random.split(key_for(config, "variants"), (config.seeds, 2))
    fitted = fit(
        init_gan_replicas(*both, keys[:, 0]),
        make_gan_step(
            *both, orders.get(name, alternating), use_running_stats="predicted" in name
        ),
        learnt,
        key=keys[:, 1],
        epochs=config.variant_epochs,
        batch_size=config.batch_size,
        evaluators={
            "validation": Evaluator(
                make_gan_eval_step(d, g, key_for(config, "evaluation")), held_out, 250
            )
        },
        evaluate_first=False,
        log=run.sub_run(name.replace(" ", "_"), temporary=True),
    )
    return g, fitted


def compare_variants(config: Config, data: Data, cnn: PyTree, run: Run) -> Result:
    """D's accuracy after training, and the distance of G's images, over the seeds."""
    parts = evenly_spaced(data.train, config.variant_images), data.held_out, data.test
    learnt, held_out, test = (
        dataset({"x": resized(x, config.variant_size), "row": np.arange(len(x))})
        for x in (take(part, np.asarray(part.indices))["x"] for part in parts)
    )
    z = sample_latent(key_for(config, "judged"), len(test.indices))
    real = cnn and classifier_features(cnn, pixels(test)).features
    result: Result = {}
    shown, distances, measures = [], {}, ["accuracy on real", "accuracy on fake"]
    for name in config.variants:
        g, fitted = train_variant(name, config, learnt, held_out, run)
        for measured in measures:
            values = np.array(fitted.records[-1][measured])
            result[f"{name}: {measured}"] = mean_over_runs(values, SHARE)
        weights = fitted.state.params[G], fitted.state.extra[G]
        made = [
            np.asarray(generate(g, *jax.tree.map(lambda a, i=i: a[i], weights), z))
            for i in range(config.seeds)
        ]
        shown.append(made[0][:COLUMNS])
        if cnn:
            distances[name] = np.array(
                [
                    frechet_distance(classifier_features(cnn, x).features, real)
                    for x in made
                ]
            )
            away = mean_over_runs(distances[name], NONNEGATIVE)
            result[f"{name}: Frechet distance"] = away
    for name in distances:
        if name != "alternating" and "alternating" in distances:
            more = distances[name] - distances["alternating"]
            result[f"{name} - alternating: Frechet distance"] = mean_over_runs(
                more, REAL, "seeds, paired"
            )
    plots.save_images(run, "variants", shown, rows=config.variants)
    measures += ["Frechet distance"] if cnn else []
    plots.save_intervals(run, result, config.variants, measures)
    return result


# ------------------------------------------------------------------ the size formula


def enlarged(size: int, kernel: int, stride: int, padding: int) -> int:
    """How many rows a transposed convolution makes of `size`: the course's formula."""
    return (size - 1) * stride - 2 * padding + (kernel - 1) + 1


def rows_made(
    size: int, kernel: int, stride: int, padding: int | Literal["SAME"]
) -> int:
    """How many rows are made of `size`, by JAX, which pads what it has spread out."""

    def made(x: Array, k: Array) -> Array:
        if padding == "SAME":  # as in the networks
            return ops.conv2d_transpose(x, k, stride)
        around = kernel - 1 - padding
        pads = [(around, around), (around, around)]
        return lax.conv_transpose(x, k, (stride, stride), pads)

    x, k = jnp.ones((1, size, size, 1)), jnp.ones((kernel, kernel, 1, 1))
    return jax.eval_shape(made, x, k).shape[1]


def draw_sizes(run: Run, size: int = 4) -> float:
    """The formula beside what JAX makes of a few rows: the largest difference.

    Crosses are "SAME": kernel - stride rows are cut off in all, so that there are
    stride times as many as before.
    """
    figure, axes = plots.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    largest = 0
    for axis, stride in zip(axes, (1, 2, 3), strict=True):
        for padding, colour in zip((0, 1, 2), plots.COLOURS, strict=False):
            kernels = range(padding + 1, 8)
            formula = [enlarged(size, k, stride, padding) for k in kernels]
            made = [rows_made(size, k, stride, padding) for k in kernels]
            largest = max(largest, int(np.abs(np.subtract(formula, made)).max()))
            label = f"formula, padding {padding}"
            axis.plot(kernels, formula, color=colour, label=label)
            axis.plot(kernels, made, "o", color=colour, label="made by JAX")
        kernels = range(stride, 8)
        same = [rows_made(size, k, stride, "SAME") for k in kernels]
        axis.plot(kernels, same, "kx", label='made with "SAME"')
        axis.set(title=f"stride {stride}", xlabel="kernel")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"rows made of {size}")
    axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(figure, run, "sizes")
    return float(largest)


def main(config: Config, run: Run) -> Result:
    """Train, judge the results, and repeat it in small with other orders."""
    _, g, *_ = networks(config, config.image_size, config.batch_norm)
    networks(config, config.variant_size, config.batch_norm)  # a bad size stops here
    data = load(config)
    config = fitted_to(config, data)
    result: Result = {"size formula: largest difference": draw_sizes(run)}
    cnn = None
    if len(data.classes) > 1:
        cnn, result["CNN: test accuracy"] = train_classifier(
            data[:3], len(data.classes), epochs=config.classifier_epochs,
            batch_size=config.batch_size, key=key_for(config, "classifier"), run=run,
        )  # fmt: skip
    else:
        warn("the images are of one class: no CNN can judge them")

    fitted = train(config, data, run)
    weights = fitted.state.params[G], fitted.state.extra[G]
    draw_training(run)
    draw_interpolation(config, g, *weights, run)
    result["D cannot tell from epoch"] = stopping_epoch(
        fitted.records, len(data.held_out.indices)
    )
    test = pixels(data.test)
    z = sample_latent(key_for(config, "judged"), len(test))
    images = {
        "generated images": np.asarray(generate(g, *weights, z)),
        "new images": pixels(data.held_out),
    }
    copies = judge_by_nearest(images, pixels(data.train), run)
    if cnn is not None:
        untrained = g.init(key_for(config, "untrained"))
        images["untrained generator"] = np.asarray(generate(g, *untrained, z))
        static = np.random.default_rng(0).integers(0, 256, test.shape, np.uint8)
        images["noise"] = static
        result |= classifier_metrics(cnn, images, test, data.classes, run)
    return result | copies | compare_variants(config, data, cnn, run)


def sample(saved: Saved[Config], count: int) -> None:
    """Make N images with the saved run, as one picture in samples/."""
    if not 1 <= count <= MOST:
        raise UserError(f"--sample makes 1 to {MOST:,} images, not {count:,}")
    config = saved.config
    _, g, *_ = both = networks(config, config.image_size, config.batch_norm)
    like = jax.eval_shape(lambda key: init_gan_state(*both, key), jax.random.key(0))
    weights = saved.weights({"params": like.params, "extra": like.extra}, "gan")
    z = sample_latent(key_for(config, "sample"), count)
    made = np.asarray(generate(g, weights["params"][G], weights["extra"][G], z))
    path = samples(saved.folder) / f"sample_of_{count}_by_seed_{config.seed}.png"
    plots.image_grid(made, math.ceil(math.sqrt(count))).save(path)
    print(f"written to {path}")


if __name__ == "__main__":
    experiment(main, PRESETS, sample=sample)
