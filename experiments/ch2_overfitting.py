"""Lesson 2.1.2: see a network overfit, and compare what is done about it.

A dense network learns 1,000 images of Fashion-MNIST at a constant rate until it has
memorised them; validation after every epoch shows when it begins to overfit. Each
remedy changes one thing. All make the same number of gradient steps, so with more
images fewer epochs: otherwise more data would also be more training. A seed fixes the
images, the first weights and the order: remedies are compared in pairs.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax
import pydantic

from jaxstudy import training
from jaxstudy.dataset import evenly_spaced, stacked_subsets, subset
from jaxstudy.images import splits
from jaxstudy.images.augment import Flip, Layer, Rotation, Translation, Zoom, augmented
from jaxstudy.images.sets import read_images
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.export import Predictor, seeds_predictor
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import NONNEGATIVE, SHARE, Estimate, mean_over_runs
from jaxstudy.study import remedies

BASE, STOPPED, MORE = "base", "early stopping", "more data"
Remedy = Literal["dropout", "weight decay", "augmentation", "smaller network",
                 "+ dense", "+ convolution and pooling"]  # fmt: skip
NAMES = (BASE, STOPPED, *get_args(Remedy), MORE)
MEMORISED = "base: highest training accuracy"
RISE = "base: rise of the validation loss"
BEST = "more data - best of the others: test loss"
LESSON = Lesson(
    number="2.1.2",
    title="Overfitting and its remedies",
    question="What is overfitting, and what helps?",
    metrics=(
        *(f"{name}: test loss" for name in NAMES),
        *(MEMORISED, RISE, BEST),
        *(f"{name}: test accuracy" for name in NAMES),
    ),
    claims=(
        Claim("The base network memorises: its training accuracy reaches 0.99.",
              (MEMORISED, 0.99), ">"),
        Claim("Its validation loss ends 30 % above its minimum.", (RISE, 0.3), ">"),
        Claim("Dropout ends with a lower test loss than the base network.",
              ("dropout: test loss", "base: test loss"), "<"),
        Claim("Early stopping ends with a lower test loss than the base network.",
              ("early stopping: test loss", "base: test loss"), "<"),
        Claim("In as many steps, ten times the images end with a lower test loss than "
              "the best of all others, chosen anew for each seed.", (BEST, 0.0), "<"),
    ),
    figures={
        "memorising": "The base network by gradient step, mean and 95 % interval over "
        "the seeds. Does blue reach the dashed accuracy of 0.99? Does orange end above "
        "the dotted loss? Meanwhile the validation accuracy hardly changes.",
        "curves": "Loss on the training set (blue, in evaluation mode) and validation "
        "set (orange), mean over the seeds, on one scale. Where orange rises after its "
        "circle while blue falls, it overfits; early stopping takes that epoch.",
        "differences": "Test losses, paired by seed, with 95 % intervals. Left: each "
        "remedy less the base; left of the line the remedy is better. Right: more data "
        "less each of the others; left of the line more data is better.",
        "map": "Mean test loss and accuracy by remedy and number of images, after the "
        "same number of gradient steps; pale is good, the best of a column is bold. "
        "Along a row: what data are worth; down a column: what remedies are.",
    },
    try_it={
        "--decay 0.01": "A common default, too weak for so few steps: weight decay "
        "should end where the base does.",
        "--dropout 0.8": "Expect a smaller gap of the curves, and slower learning.",
        "--epochs 10": "Training ends before all is memorised: expect a smaller rise "
        "of the validation loss, and less to mend.",
    },
    mistakes={
        "tuned_on_test": "Early stopping by the test set reports a loss that cannot be "
        "above the honest one. Fresh images show how much of the gain is real."
    },
)  # fmt: skip
LAYERS = (Flip(), Rotation(0.03), Zoom(0.1), Translation(0.1, 0.1))
EVALUATED = 1000  # images of the training set, and of the validation set


@dataclass(frozen=True)
class Config(Settings):
    """The images, the network, and how strong the remedies are."""

    data: str = "fashion_mnist"
    """fashion_mnist, emoji, or tfds:NAME."""
    images: Count = 1_000
    """Images to learn from."""
    more_images: Count = 10_000
    """Images to learn from with more data."""
    map_sizes: tuple[Count, ...] = ()
    """Numbers of images to learn from with every remedy, for the map."""
    remedies: tuple[Remedy, ...] = get_args(Remedy)
    """What to compare with the base network, early stopping and more data."""
    epochs: Count = 40
    """Passes over `images`; over other numbers as many gradient steps."""
    batch_size: Count = 32
    """Images in a gradient step."""
    rate: Positive = 0.001
    """Learning rate of Adam, constant."""
    width: Annotated[int, pydantic.Field(ge=16)] = 256
    """Units of each hidden layer; of the smaller network a sixteenth."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    """Share of the hidden units that dropout zeroes."""
    decay: Positive = 1.0
    """Weight decay (AdamW): each step takes rate * decay of a weight from it."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Runs of each remedy; an even number shares two cores evenly."""
    test_images: Count = 2_000
    """Test images, at most half of the test set: the others choose nothing, ever."""
    mistake: Literal["tuned_on_test"] | None = None
    """Stop early by the test set, too, and see what that fakes."""


PRESETS = {
    "smoke": Config(
        images=64, more_images=128, map_sizes=(32, 64), epochs=2, batch_size=16,
        width=32, seeds=2, test_images=100, remedies=("dropout", "augmentation"),
    ),
    "quick": Config(),
    "full": Config(map_sizes=(300, 1_000, 10_000), seeds=6, test_images=5_000),
}  # fmt: skip


class Recipe(NamedTuple):
    """A network, its weight decay, and the augmentation it learns from."""

    hidden: tuple[int, ...]
    filters: tuple[int, ...] = ()
    dropout: float = 0.0
    decay: float = 0.0
    layers: tuple[Layer, ...] = ()


def recipes(config: Config) -> dict[str, Recipe]:
    """The base network, and one change of it for each remedy.

    Four filters and pooling hand on as many numbers as a grey image has pixels: the
    dense layers stay as large as they are.
    """
    base = Recipe((config.width,) * 2)
    return {
        BASE: base,
        "dropout": base._replace(dropout=config.dropout),
        "weight decay": base._replace(decay=config.decay),
        "augmentation": base._replace(layers=LAYERS),
        "smaller network": Recipe((config.width // 16,) * 2),
        "+ dense": Recipe((config.width,) * 3),
        "+ convolution and pooling": base._replace(filters=(4,)),
    }


def test_sets(data: splits.ImageSplits, config: Config) -> dict[str, Any]:
    """Test images; with the mistake, as many fresh ones that choose nothing."""
    rows = np.asarray(data.test.indices)
    halves = {"test": rows[::2], "fresh": rows[1::2]}
    return {
        name: evenly_spaced(subset(data.test, half), config.test_images)
        for name, half in halves.items()
        if name == "test" or config.mistake
    }


def network(remedy: str, config: Config, data: splits.ImageSplits) -> Model:
    """The network of a remedy's recipe."""
    hidden, filters, dropout, *_ = recipes(config)[remedy]
    classes = len(data.classes)
    return cnn(data.shape, classes, filters=filters, hidden=hidden, dropout=dropout)


def train(
    remedy: str, count: int, config: Config, data: splits.ImageSplits, run: Run
) -> remedies.TrainedRemedy:
    """Train with a remedy on so many images from every seed, each a replica."""
    model, (*_, decay, layers) = network(remedy, config, data), recipes(config)[remedy]
    plain, tx = cross_entropy(model), optax.adamw(config.rate, weight_decay=decay)
    eval_step, test = training.make_eval_step(plain), test_sets(data, config)
    rows = splits.nested_subsets(data.train, (count,), config.seeds, config.seed)[0]
    sets = {
        remedies.LEARNED: stacked_subsets(data.train, [*rows[:, :EVALUATED]]),
        remedies.HELD_OUT: evenly_spaced(data.validation, EVALUATED),
        **(test if remedy == BASE else {}),  # for early stopping
    }
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    steps = config.epochs * -(-config.images // config.batch_size)
    fitted = training.fit(
        training.init_replicas(model, tx, keys[:, 0]),
        training.make_train_step(augmented(plain, layers) if layers else plain, tx),
        stacked_subsets(data.train, [*rows]),
        key=keys[:, 1],
        epochs=max(1, round(steps / -(-count // config.batch_size))),
        batch_size=config.batch_size,
        evaluators={n: training.Evaluator(eval_step, s, 500) for n, s in sets.items()},
        evaluate_first=False,
        log=run.sub_run(f"{remedy.strip('+ ')} {count}".replace(" ", "_")),
    )
    end = training.Evaluator(eval_step, test["test"], 500)(fitted.state)
    return remedies.trained(end, fitted.records)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train the base and every remedy, on several numbers of images; compare."""
    data = splits.image_splits(read_images(config.data))
    count, more, *others = (
        splits.at_most("images", n, len(data.train.indices), "images to train on")
        for n in (config.images, config.more_images, *config.map_sizes)
    )
    names = [BASE, *config.remedies]
    todo = [(name, n) for n in (count, *others) for name in names] + [(BASE, more)]
    trained = {
        pair: train(*pair, config, data, run) for pair in run.each(dict.fromkeys(todo))
    }
    base, ended = trained[BASE, count], remedies.with_stopped(trained, BASE, STOPPED)
    compared = {name: end for (name, n), end in ended.items() if n == count}
    compared[MORE] = ended[BASE, more]
    result = remedies.remedy_metrics(compared, BASE, MORE)
    accuracy = base.by_epoch[remedies.LEARNED, "accuracy"]
    result[MEMORISED] = mean_over_runs(accuracy.max(0), SHARE)
    result[RISE] = mean_over_runs(base.rise(), NONNEGATIVE)
    for name, n in (pair for pair in ended if pair[1] != count):
        loss = mean_over_runs(ended[name, n]["loss"], NONNEGATIVE)
        result[f"{n} images, {name}: test loss"] = loss
    shown = {name: trained[name, count] for name in names}
    label = f"{MORE}: {more:,} images"
    remedies.save_losses(run, "curves", shown | {label: trained[BASE, more]})
    remedies.save_memorising(run, "memorising", base, accuracy=0.99, rise=0.3)
    remedies.save_remedy_differences(run, "differences", compared, BASE, MORE)
    remedies.save_map(run, "map", ended)
    return result | (remedies.tuned_on_test(base) if config.mistake else {})


def predictor(saved: Saved[Config]) -> Predictor:
    """Probabilities [B, K] of the networks with more data, from pixels [B, H, W, C]."""
    config, data = saved.config, splits.image_splits(read_images(saved.config.data))
    part = f"{BASE}_{min(config.more_images, len(data.train.indices))}"
    return seeds_predictor(saved, part, network(BASE, config, data), data.shape)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
