"""Lesson 5: two networks that compete, one that generates images and one that judges.

The generator G makes an image of 100 random numbers: a dense layer, then transposed
convolutions that double it four times. The discriminator D says whether an image is a
real one. A step trains D on real images and on generated ones, then G against a
frozen discriminator; an epoch is once through the images. What G makes of the same
noise after every epoch is in samples/, and as an animation.

Is it any good? a CNN trained on the classes of the real images says how many of them
it finds in the generated ones and how sure it is, and the Frechet distance between
its features of both has other real images and noise as the ends of its scale. Does G
copy? Its images, and new real ones, are beside the nearest of those it was trained on.
When to stop? When D can no longer tell, says the course: at the first epoch after which
1/2 is in the 95 % interval of its accuracy on held-out and as many generated images;
nan is for none.

ch5_orders.py compares the orders in which D sees real and generated images, and
ch5_sizes.py explains the sizes that the generator's layers make.

Expected (quick, 32 by 32 pixels, 564 steps, about three minutes): shapes of garments,
9 of 10 classes; Frechet distance 29, of an untrained generator 257, of real images 2.
Expected (full, 64 by 64 pixels, 3,376 steps in 27 minutes): 10 of 10 classes; Frechet
distance 41, of an untrained generator 301, of real images 0.5. D is ahead to the end.
Then: ch5_gan.py --sample 100
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.gan.evaluation import (
    classifier_metrics,
    nearest_metrics,
    train_classifier,
)
from jaxstudy.gan.images import GanImages, gan_pixels, key_for, read_gan_images
from jaxstudy.gan.step import (
    G,
    init_gan_state,
    make_gan_eval_step,
    make_gan_step,
    stopping_epoch,
)
from jaxstudy.images.splits import at_most
from jaxstudy.messages import warn
from jaxstudy.model import Model
from jaxstudy.models.dcgan import discriminator, generate, generator, sample_latent
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.training import Evaluator, FitResult, fit
from jaxstudy.types import PyTree, TrainState, UserError

LESSON = Lesson(
    number="5",
    title="Generative adversarial networks",
    question="How do two networks teach each other?",
    metrics=(
        "generated images: Frechet distance of this CNN's features",
        "new images: Frechet distance of this CNN's features",
        "untrained generator: Frechet distance of this CNN's features",
        "noise: Frechet distance of this CNN's features",
        "generated images: classes with over 2 %",
        "generated images: top probability",
        "test images: top probability",
    ),
    claims=(),
    figures={},
)

Result = dict[str, Estimate | float]
COLUMNS, MOST = 10, 10_000  # of pictures; images of one picture


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


PRESETS = {
    "smoke": Config(
        image_size=16, images=64, epochs=2, batch_size=16, held_out=32,
        classifier_epochs=1,
    ),
    "quick": Config(),
    "full": Config(image_size=64, images=None, epochs=4, held_out=2_000),
}  # fmt: skip


def load(config: Config) -> GanImages:
    """The images to learn from, to judge D by, and for the comparisons at the end."""
    return read_gan_images(
        config.data, config.folder, size=config.image_size, channels=config.channels,
        limit=config.images, held_out=config.held_out,
    )  # fmt: skip


Networks = tuple[
    Model, Model, optax.GradientTransformation, optax.GradientTransformation
]


def networks(config: Config) -> Networks:
    """D and G, and the optimizer of each."""
    shape = (config.image_size, config.image_size, config.channels)
    return (
        discriminator(shape),
        generator(shape, config.batch_norm),
        optax.adam(config.rate_d, b1=0.5),
        optax.adam(config.rate, b1=0.5),
    )


def train(config: Config, data: GanImages, run: Run) -> FitResult:
    """Let the two networks compete, and write samples after every epoch."""
    d, g, *_ = pair = networks(config)
    init_key, order_key = jax.random.split(key_for(config.seed, "gan"))
    state = init_gan_state(*pair, init_key)
    z = sample_latent(key_for(config.seed, "shown"), 5 * COLUMNS)

    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)

    def write_samples(epoch: int, state: TrainState) -> None:
        made = np.asarray(generate(g, state.params[G], state.extra[G], z))
        grid = plots.image_grid(made, COLUMNS, f"epoch {epoch}")
        grid.save(folder / f"epoch_{epoch:03d}.png")

    write_samples(0, state)
    eval_step = make_gan_eval_step(d, g, key_for(config.seed, "evaluation"))
    fitted = fit(
        state,
        make_gan_step(*pair),
        data.train,
        key=order_key,
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={"validation": Evaluator(eval_step, data.held_out, 250)},
        evaluate_first=False,
        log=run.sub_run("gan", on_epoch=write_samples),
    )
    frames = sorted(folder.glob("epoch_*.png"))
    plots.save_animation(folder / "training.gif", frames)
    return fitted


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
    begin, end = sample_latent(key_for(config.seed, "between"), 8).reshape(2, 4, 1, -1)
    share = jnp.linspace(0, 1, COLUMNS)[:, None]
    z = (1 - share) * begin + share * end
    made = np.asarray(generate(g, params, extra, z.reshape(4 * COLUMNS, -1)))
    plots.save_images(run, "interpolation", [list(row) for row in np.split(made, 4)])


def main(config: Config, run: Run) -> Result:
    """Train the two networks, and judge what G makes."""
    _, g, *_ = networks(config)  # a bad size stops here
    data = load(config)
    count = len(data.train.indices)
    size = at_most("--batch-size", config.batch_size, count, "images to learn from")
    config = dataclasses.replace(config, batch_size=size)
    result: Result = {}
    cnn = None
    if len(data.classes) > 1:
        cnn, result["CNN: test accuracy"] = train_classifier(
            data[:3], len(data.classes), epochs=config.classifier_epochs, run=run,
            batch_size=config.batch_size, key=key_for(config.seed, "classifier"),
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
    test = gan_pixels(data.test)
    z = sample_latent(key_for(config.seed, "judged"), len(test))
    images = {
        "generated images": np.asarray(generate(g, *weights, z)),
        "new images": gan_pixels(data.held_out),
    }
    copies = nearest_metrics(images, gan_pixels(data.train), run)
    if cnn is not None:
        untrained = g.init(key_for(config.seed, "untrained"))
        images["untrained generator"] = np.asarray(generate(g, *untrained, z))
        static = np.random.default_rng(0).integers(0, 256, test.shape, np.uint8)
        images["noise"] = static
        result |= classifier_metrics(cnn, images, test, data.classes, run)
    return result | copies


def sample(saved: Saved[Config], count: int) -> None:
    """Make N images with the saved run, as one picture in samples/."""
    if not 1 <= count <= MOST:
        raise UserError(f"--sample makes 1 to {MOST:,} images, not {count:,}")
    config = saved.config
    _, g, *_ = pair = networks(config)
    like = jax.eval_shape(lambda key: init_gan_state(*pair, key), jax.random.key(0))
    weights = saved.weights({"params": like.params, "extra": like.extra}, "gan")
    z = sample_latent(key_for(config.seed, "sample"), count)
    made = np.asarray(generate(g, weights["params"][G], weights["extra"][G], z))
    path = saved.folder / "samples" / f"sample_of_{count}_by_seed_{config.seed}.png"
    plots.image_grid(made, math.ceil(math.sqrt(count))).save(path)
    print(f"written to {path}")


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, sample=sample)
