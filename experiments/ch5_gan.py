"""Lesson 5: two networks that compete, one that generates images and one that judges.

The generator G makes an image of 100 random numbers: a dense layer, then transposed
convolutions that double it four times. The discriminator D says whether an image is a
real one. A step trains D on real images and on generated ones, then G against a
frozen discriminator; an epoch is once through the images. What G makes of the same
noise after every epoch is in samples/, and as an animation.

Is it any good? A CNN trained on the classes of the real images says how many of them
it finds in the generated ones; the Frechet distance between its features of both has
other real images, an untrained generator and noise as its scale; precision and recall
say whether single images are real enough, and whether all kinds are there. Does G copy?
When to stop? At the epoch from which D's accuracy is not told from 1/2, says the
course (fewer held-out images make it come earlier); nan: at none.

Then: ch5_gan.py --sample 100
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy.gan import evaluation, settings
from jaxstudy.gan.evaluation import FRECHET, Judge, over_seeds
from jaxstudy.gan.settings import GanImages, GanSettings, gan_pixels, key_for
from jaxstudy.gan.step import (
    changes_of_the_other,
    init_gan_replicas,
    made,
    made_by_each,
    make_gan_eval_step,
    make_gan_step,
    stopping_epochs,
)
from jaxstudy.model import Model
from jaxstudy.models.dcgan import discriminator, generator, sample_latent
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.training import Evaluator, FitResult, fit
from jaxstudy.types import TrainState, UserError

MADE, NEAREST = "generated images", "distance to the nearest training image"
CHANGE_D, CHANGE_G = (
    "G's update: change of D's weights", "D's updates: change of G's weights"
)  # fmt: skip
CLASSES, FIRST = f"{MADE}: classes with over 2 %", f"after epoch 1: {FRECHET}"
LESSON = Lesson(
    number="5",
    title="Generative adversarial networks",
    question="How do two networks teach each other to make images?",
    metrics=(
        f"{MADE}: {FRECHET}", FIRST, f"untrained generator: {FRECHET}",
        f"new images: {FRECHET}", f"{MADE}: precision", f"{MADE}: recall", CLASSES,
        CHANGE_D, CHANGE_G, f"{MADE}: {NEAREST}", f"new images: {NEAREST}",
        "D cannot tell from epoch",
    ),
    claims=(
        Claim("Generated images end nearer to the test images than those of an "
              "untrained generator.",
              (f"{MADE}: {FRECHET}", f"untrained generator: {FRECHET}"), "<"),
        Claim("The distance falls from the first epoch to the last.",
              (f"{MADE}: {FRECHET}", FIRST), "<"),
        Claim("The CNN finds more than nine classes among the generated images.",
              (CLASSES, 9), ">"),
        Claim("Each network's updates leave the weights of the other as they are.",
              (CHANGE_D, CHANGE_G, 0), "="),
        Claim("Generated images are farther from their nearest training image than new "
              "real images are.",
              (f"{MADE}: {NEAREST}", f"new images: {NEAREST}"), ">"),
    ),
    figures={
        "samples/epoch*": "What G makes of the same 50 draws of noise after each epoch "
        "(0: untrained). Follow one place: does it become a thing one can name, and "
        "does it stay that thing?",
        "distance": "Frechet distance of the generated to the test images after each "
        "epoch (median of seeds; logarithmic axis). The ends of its scale are an "
        "untrained generator and noise, and new real images. It may rise in between.",
        "accuracy": "Share of held-out real and of generated images that D gets right. "
        "Both near 1: D is ahead. Both near 1/2: D cannot tell. One high, one low: D "
        "gives nearly all images the same label.",
        "losses": "The three losses. They need not fall: a network's loss rises when "
        "the other improves. A D that always says 1/2 has log 2 = 0.69 in all three.",
        "nearest": "Generated and new real images, each above its nearest training "
        "image. A generated image equal to the one below it was memorised; the new "
        "ones show how near an image comes by chance.",
        "interpolation": "Images on a straight line between two draws of noise, four "
        "times. If they change gradually, G makes images that look alike of noise that "
        "is nearly the same.",
        "classes": "Shares of the classes that a CNN sees in the generated and in the "
        "test images. Bars missing from the first are a sign of mode collapse.",
        "samples/training": "The samples of all epochs as an animation.",
    },
    try_it={
        "--rate-d 0.0001": "A D that learns slowly gives G weak gradients: the "
        "distance should fall less.",
        "--no-batch-norm": "G without BatchNorm: see whether the first epochs are "
        "slower and whether all images look alike.",
        "--data emoji --channels 3": "Coloured pictures, few of each kind: harder.",
    },
)  # fmt: skip

Result = dict[str, Estimate | float]
Optimizer = optax.GradientTransformation
COLUMNS, MOST = 10, 10_000  # of pictures; images of one picture


@dataclass(frozen=True)
class Config(GanSettings):
    """The images, the two networks, and how long they compete."""

    epochs: Count = 6
    """Passes over the images."""
    batch_norm: bool = True
    """Normalise what the generator's layers make."""
    seeds: Count = 1
    """Trainings; what is drawn is the first's. Intervals take 4."""


PRESETS = {
    "smoke": Config(
        image_size=16, images=64, epochs=2, batch_size=16, held_out=32,
        classifier_images=100, classifier_epochs=1,
    ),
    "quick": Config(),
    "full": Config(images=None, epochs=15, seeds=4),
}  # fmt: skip


def networks(config: Config) -> tuple[Model, Model, Optimizer, Optimizer]:
    """D and G, and the optimizer of each."""
    shape = (config.image_size, config.image_size, config.channels)
    return (
        discriminator(shape),
        generator(shape, config.batch_norm),
        optax.adam(config.rate_d, b1=0.5),
        optax.adam(config.rate, b1=0.5),
    )


def train(config: Config, data: GanImages, judge: Judge | None, run: Run) -> FitResult:
    """Let two networks compete with every seed; after each epoch, draw and judge.

    Where there is a judge, the Frechet distance is logged as split "generated".
    """
    d, g, *_ = pair = networks(config)
    keys = jax.random.split(key_for(config.seed, "gan"), (config.seeds, 2))
    state = init_gan_replicas(*pair, keys[:, 0])
    z = sample_latent(key_for(config.seed, "shown"), 5 * COLUMNS)
    judged = sample_latent(key_for(config.seed, "judged"), config.held_out)
    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)

    def write_samples(epoch: int, state: TrainState) -> None:
        grid = plots.image_grid(made(g, state, z, 0), COLUMNS, f"epoch {epoch}")
        grid.save(folder / f"epoch_{epoch:03d}.png")
        if judge and epoch:
            values = [judge.distance(x) for x in made_by_each(g, state, judged)]
            record = {"step": int(state.step[0]), "epoch": epoch, "split": "generated"}
            run.sub_runs["gan"].log([record | {FRECHET: values}])

    write_samples(0, state)
    eval_step = make_gan_eval_step(d, g, key_for(config.seed, "evaluation"))
    fitted = fit(
        state,
        make_gan_step(*pair),
        data.train,
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={"validation": Evaluator(eval_step, data.held_out, 250)},
        evaluate_first=False,
        log=run.sub_run("gan", on_epoch=write_samples),
    )
    frames = sorted(folder.glob("epoch_*.png"))
    plots.save_animation(folder / "training.gif", frames)
    return fitted


def draw_interpolation(config: Config, g: Model, state: TrainState, run: Run) -> None:
    """Images of the noise on the way from one draw to another, four times."""
    begin, end = sample_latent(key_for(config.seed, "between"), 8).reshape(2, 4, 1, -1)
    share = jnp.linspace(0, 1, COLUMNS)[:, None]
    z = ((1 - share) * begin + share * end).reshape(4 * COLUMNS, -1)
    rows = np.split(made(g, state, z, 0), 4)
    plots.save_images(run, "interpolation", [list(row) for row in rows])


def main(config: Config, run: Run) -> Result:
    """Train the two networks, and judge what G makes."""
    d, g, *_ = networks(config)  # a bad size stops here
    data = settings.load(config)
    config = settings.fit_to(config, data)
    judge, accuracy = settings.train_judge(config, data, run)
    result: Result = {**accuracy}
    state, records = train(config, data, judge, run)
    few = {"x": jnp.asarray(gan_pixels(data.train)[:2]), "mask": jnp.ones(2)}
    first = jax.tree.map(lambda a: a[0], state)
    result[CHANGE_D], result[CHANGE_G] = changes_of_the_other(d, g, first, few)
    stops = stopping_epochs(records, config.held_out)
    result["D cannot tell from epoch"] = over_seeds(stops)
    evaluation.draw_training(run)
    draw_interpolation(config, g, state, run)
    z = sample_latent(key_for(config.seed, "judged"), config.held_out)
    new, of_seeds = gan_pixels(data.held_out), made_by_each(g, state, z)
    shown = {MADE: of_seeds[0], "new images": new}
    result |= evaluation.nearest_metrics(shown, gan_pixels(data.train), run)
    if judge is None:
        return result
    keys = key_for(config.seed, "untrained")[None]
    untrained = init_gan_replicas(*networks(config), keys)
    images = {
        MADE: of_seeds,
        "new images": [new],
        "untrained generator": made_by_each(g, untrained, z),
        "noise": [np.random.default_rng(0).integers(0, 256, new.shape, np.uint8)],
    }
    result |= evaluation.judge_images(judge, images, run)
    logged = [r[FRECHET] for r in run.sub_runs["gan"].records if FRECHET in r]
    result[FIRST] = over_seeds(logged[0])
    scale = {name: result[f"{name}: {FRECHET}"] for name in [*images][1:]}
    evaluation.draw_distances(run, scale)
    return result


def sample(saved: Saved[Config], count: int) -> None:
    """Make N images with the saved run, as one picture in samples/."""
    if not 1 <= count <= MOST:
        raise UserError(f"--sample makes 1 to {MOST:,} images, not {count:,}")
    config = saved.config
    _, g, *_ = pair = networks(config)
    keys = jax.random.split(jax.random.key(0), config.seeds)
    like = jax.eval_shape(lambda keys: init_gan_replicas(*pair, keys), keys)
    weights = saved.weights({"params": like.params, "extra": like.extra}, "gan")
    z = sample_latent(key_for(config.seed, "sample"), count)
    x = made(g, like._replace(**weights), z, 0)
    path = saved.folder / "samples" / f"sample_of_{count}_by_seed_{config.seed}.png"
    plots.image_grid(x, math.ceil(math.sqrt(count))).save(path)
    print(f"written to {path}")


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, sample=sample)
