"""Lesson 2.3: transfer learning: features of a network that somebody else trained.

EfficientNet-Lite0 was trained on the thousand classes of ImageNet. Without its last
layer it makes features of any image, and a regression on those tells nine kinds of
emoji apart that it never saw. Its layers are frozen, so their features are
computed once and kept. Then its last layers are trained too, from the one of a name on.
Both are beside the same regression on pixels and a CNN trained from scratch, by
the number of images to learn from. `--backbone inception_v3 --weights FILE` takes
InceptionV3 with the weights of a Keras file, be it inside a model that was built on it.
`--folder DIR` takes your own images, DIR/CLASS/FILE; a count that is larger than what
there is becomes that, and the run says so.

A seed fixes the images, the first weights and the order; small sets are repeated to the
length of the largest, an epoch here. A run is reported at the epoch with its
best validation accuracy. Drawings of the same thing are never in two of the sets.
Then: ch2_transfer.py --predict FILE [FILE ...]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
import pydantic

from jaxstudy import training
from jaxstudy.images.augment import Flip, Layer, Rotation, Translation, Zoom, augmented
from jaxstudy.images.figures import draw_predictions
from jaxstudy.images.subsets import ImageSubsets, read_image_subsets
from jaxstudy.model import Model, compose
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.pretrained import backbones, features, tuning
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run, Saved, read_sealed, write_atomically
from jaxstudy.runs.statistics import Estimate
from jaxstudy.study import sizes
from jaxstudy.training import Evaluator
from jaxstudy.types import TrainState

Classes = tuple[tuple[str, ...], tuple[int, ...]]  # and sizes, for --predict

LESSON = Lesson(
    number="2.3",
    title="Transfer learning",
    question="What is pretraining worth?",
    metrics=(
        "fewest images, scratch: test accuracy",
        "fewest images, frozen: test accuracy",
        "2286 images, pixels: test accuracy",
        "2286 images, scratch: test accuracy",
        "2286 images, scratch, augmented: test accuracy",
        "2286 images, frozen: test accuracy",
        "2286 images, fine-tuned: test accuracy",
        "2286 images: gained by fine-tuning",
        "majority class: test accuracy",
    ),
    claims=(
        Claim(
            "With the fewest images, a regression on frozen pretrained features has a "
            "higher test accuracy than a network trained from scratch.",
            (
                "fewest images, frozen: test accuracy",
                "fewest images, scratch: test accuracy",
            ),
            ">",
        ),
        Claim(
            "So it has with all 2,286 images.",
            (
                "2286 images, frozen: test accuracy",
                "2286 images, scratch: test accuracy",
            ),
            ">",
        ),
        Claim(
            "With all images, fine-tuning raises the test accuracy above that of the "
            "frozen features.",
            ("2286 images: gained by fine-tuning", 0.0),
            ">",
        ),
    ),
    figures={
        "sizes": "Test accuracy by the number of images to learn from, with 95 % "
        "intervals over seeds. The height of a line at the left shows what it knows "
        "with few images; where two bands overlap widely, look at the paired claims.",
        "predictions": "Test images with the most probable class and its probability "
        "by the regression on frozen features; below in capitals, NOT and the true "
        "class where it is wrong.",
        "curves": "Accuracy by epoch with all images, on what is trained on (left) and "
        "on the validation set (right). A line that still rises at its end has not "
        "finished: the numbers of epochs differ.",
    },
    try_it={
        "--fine-tune-from block14": "Two blocks are trained instead of one: more that "
        "can adapt, and more that can overfit.",
        "--decay 0.1": "Regressions with less weight decay: on many features and few "
        "images expect a lower test accuracy.",
        "--tuning-epochs 4": "Fine-tuning for longer: see whether its training "
        "accuracy is already at 1, where more steps cannot help.",
    },
)

ARMS = ("pixels", "scratch", "scratch, augmented", "frozen", "fine-tuned")
LAYERS = (Flip(), Rotation(0.05), Zoom(0.2), Translation(0.1, 0.1))


@dataclass(frozen=True)
class Config(Settings):
    """The network to build on, the images, and how long to learn from them."""

    backbone: backbones.BackboneName = "efficientnet_lite0"
    """The network that somebody else trained."""
    weights: Path | None = None
    """Its weights, a Keras file; those of efficientnet_lite0 come by `make data`."""
    fine_tune_from: str = "block15"
    """Name of the first layer to train when fine-tuning; the summary lists them."""
    data: str = "emoji"
    """emoji or tfds:NAME."""
    folder: Path | None = None
    """A folder of yours, FOLDER/CLASS/FILE, in the place of the data."""
    image_size: Count = 224
    """Height and width of images for the backbone."""
    small_size: Annotated[int, pydantic.Field(ge=8)] = 32
    """Height and width of images for the CNN and the regression on pixels."""
    sizes: tuple[Count, ...] = (100, 300, 1000, 2286)
    """Numbers of images to learn from, at most as many as there are."""
    filters: tuple[Count, ...] = (16, 32)
    """Filters of each convolution of the CNN."""
    epochs: Count = 24
    """Passes of the CNN over as many images as the largest set has."""
    regression_epochs: Count = 30
    """Passes of the regressions."""
    tuning_epochs: Count = 2
    """Passes when fine-tuning."""
    rate: Positive = 0.001
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    tuning_rate: Positive = 0.0001
    """Learning rate when fine-tuning: what is good already should change little."""
    decay: Positive = 3.0
    """Weight decay of the regressions (AdamW): few images, many features."""
    batch_size: Count = 32
    """Images in a gradient step."""
    seeds: Annotated[int, pydantic.Field(ge=2)] = 4
    """Trainings of each kind and size; an even number shares two cores evenly."""


PRESETS = {
    "smoke": Config(
        image_size=32, small_size=8, sizes=(20, 40), filters=(4,), epochs=2,
        regression_epochs=2, tuning_epochs=1, seeds=2, batch_size=20,
    ),
    "quick": Config(
        image_size=64, small_size=16, sizes=(150, 2286), epochs=8,
        regression_epochs=10, tuning_epochs=1, seeds=4,
    ),
    "full": Config(),
}  # fmt: skip


def read(config: Config, size: int) -> ImageSubsets:
    """The images with so many pixels a side, as subsets of every count."""
    return read_image_subsets(
        config.data, config.folder, size, counts=config.sizes, seeds=config.seeds,
        seed=config.seed,
    )  # fmt: skip


def backbone(config: Config) -> backbones.Backbone:
    """The network to build on; refuses images that are too small for it."""
    backbones.check_image_size(config.backbone, config.image_size)
    return backbones.backbone(config.backbone, config.weights)


def schedule(config: Config, epochs: int, rate: float) -> optax.Schedule:
    """A learning rate that falls to 0 at the end of the last epoch."""
    steps = epochs * -(-max(config.sizes) // config.batch_size)
    return optax.cosine_decay_schedule(rate, steps)


def train(
    arm: str,
    model: Model,
    tx: optax.GradientTransformation,
    images: ImageSubsets,
    config: Config,
    epochs: int,
    run: Run,
    *,
    layers: Sequence[Layer] = (),
    begin: Callable[[TrainState], TrainState] = lambda state: state,
) -> sizes.TrainedSizes:
    """Train with every size and seed, each a replica of one program."""
    by_seed = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    keys = jnp.tile(by_seed, (len(config.sizes), 1))
    plain = cross_entropy(model)
    eval_step = training.make_eval_step(plain)
    data, held_out = images.datasets()
    fitted = training.fit(
        begin(training.init_replicas(model, tx, keys[:, 0])),
        training.make_train_step(augmented(plain, layers) if layers else plain, tx),
        data,
        key=keys[:, 1],
        epochs=epochs,
        batch_size=config.batch_size,
        evaluators={name: Evaluator(eval_step, s, 500) for name, s in held_out.items()},
        evaluate_first=False,
        log=run.sub_run(arm),
    )
    accuracy = sizes.accuracies(fitted.records, images.indices.shape[:2])
    return sizes.TrainedSizes(fitted.state, accuracy)


def train_regression(
    arm: str, images: ImageSubsets, config: Config, run: Run
) -> sizes.TrainedSizes:
    """The regression on x [N, D], standardised by what each run learns from."""
    x, epochs = jnp.asarray(images.sets["train"]["x"]), config.regression_epochs
    model = tuning.regression(x.shape[1], len(images.classes))
    tx = optax.adamw(schedule(config, epochs, config.rate), weight_decay=config.decay)
    begin = functools.partial(tuning.with_statistics, x=x, rows=images.rows)
    return train(arm, model, tx, images, config, epochs, run, begin=begin)


def fine_tune(
    rest: Model, frozen: TrainState, images: ImageSubsets, config: Config, run: Run
) -> sizes.TrainedSizes:
    """The backbone's last layers and the regression, from where the latter ended."""
    epochs = config.tuning_epochs
    rate = schedule(config, epochs, config.tuning_rate)
    decayed = {"first": False, "second": True}  # as the regression had it
    tx = optax.adamw(rate, weight_decay=config.decay, mask=decayed)
    _, inputs, classes = frozen.params["output"]["kernel"].shape
    model = compose(rest, tuning.regression(inputs, classes))
    begin = functools.partial(tuning.with_regression, trained=frozen)
    return train("fine-tuned", model, tx, images, config, epochs, run, begin=begin)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train from scratch, on frozen features and on, with sets of several sizes."""
    network, stage = backbone(config), config.fine_tune_from
    shape = (1, config.image_size, config.image_size, 3)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    before, rest = backbones.split_pooled_features(network.stages, stage, image)
    images, small = (read(config, s) for s in (config.image_size, config.small_size))
    config = dataclasses.replace(config, sizes=images.sizes)
    text = tuning.summary_text(before, rest, len(images.classes), image)
    write_atomically(run.folder / "summary.txt", text)
    run.write_sealed("images.json", (tuple(images.classes), images.sizes))
    print(text)

    trained = {"pixels": train_regression("pixels", small.flat(), config, run)}
    shape = (config.small_size, config.small_size, 3)
    model = cnn(shape, len(images.classes), filters=config.filters)
    tx = optax.adam(schedule(config, config.epochs, config.rate))
    for arm, layers in (("scratch", ()), ("scratch, augmented", LAYERS)):
        trained[arm] = train(
            arm, model, tx, small, config, config.epochs, run, layers=layers
        )
    whole = backbones.pooled_features(network.stages, image)
    sets = features.features_of_sets(images.sets, network, whole, "features")
    frozen = train_regression("frozen", images._replace(sets=sets), config, run)
    weights, x = frozen.state[1:3], sets["test"]["x"]
    p = tuning.class_probabilities(*weights, images.largest, x)
    draw_predictions(run, images.sets["test"], images.classes, p)
    before, rest = backbones.flatten_interface(before, rest, image)
    sets = features.features_of_sets(images.sets, network, before, f"before {stage}")
    tuned = fine_tune(
        backbones.pretrained(rest, network.weights), frozen.state,
        images._replace(sets=sets), config, run,
    )  # fmt: skip
    trained |= {"frozen": frozen, "fine-tuned": tuned}

    by_epoch = {arm: of_arm.accuracy for arm, of_arm in trained.items()}
    test, majority = sizes.best_test(by_epoch), images.majority_accuracy
    counts = config.sizes
    sizes.draw_epochs(run, counts, counts.index(max(counts)), by_epoch)
    lines = {arm: sizes.mean_line(counts, values) for arm, values in test.items()}
    lines["majority class"] = counts, [majority] * len(counts)
    plots.save_lines(run, "sizes", [sizes.size_panel("test", "accuracy", lines)])
    result = sizes.size_metrics(
        counts, test, "gained by fine-tuning", "fine-tuned", over="frozen"
    )
    for arm in ("scratch", "frozen"):
        least = result[f"{min(counts)} images, {arm}: test accuracy"]
        result[f"fewest images, {arm}: test accuracy"] = least
    return {"majority class: test accuracy": majority, **result}


def predict(saved: Saved[Config], files: tuple[Path, ...]) -> None:
    """The class of images FILE..., by the regression on frozen features."""
    config, network = saved.config, backbone(saved.config)
    x = features.features_of_files(network, files, config.image_size)
    classes, counts = read_sealed(saved.folder, "images.json", Classes)
    model = tuning.regression(x.shape[1], len(classes))
    replicas = len(counts) * config.seeds
    weights = saved.replica_weights(model, replicas, "frozen")
    largest = counts.index(max(counts)) * config.seeds
    p = tuning.class_probabilities(weights["params"], weights["extra"], largest, x)
    tuning.print_top_classes(files, classes, p)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
