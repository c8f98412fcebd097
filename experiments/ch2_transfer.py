"""Lesson 2.3: transfer learning: what a network knows that somebody else trained.

EfficientNet-Lite0 learnt to tell a thousand things apart on ImageNet. Without its last
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

Expected (quick, 64 pixels): with all images 0.54 on pixels, 0.53 from scratch, 0.73 on
frozen features; with 150 of them 0.45, 0.48 and 0.58.
Expected (full, 224 pixels): with all of them 0.55, 0.61 and 0.78. Fine-tuning gains
nothing here, and with most images loses 0.02: it fits all it learns from at once.
Then: ch2_transfer.py --predict FILE [FILE ...]
"""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.dataset import dataset, evenly_spaced, take
from jaxstudy.images.augment import Flip, Rotation, Translation, Zoom, augmented
from jaxstudy.images.folders import read_image
from jaxstudy.images.sets import read_image_folder, read_images
from jaxstudy.images.splits import image_splits, nested_subsets, sizes_at_most
from jaxstudy.model import (
    Model,
    column_statistics,
    compose,
    standardized,
    with_frozen_backbone,
)
from jaxstudy.models.cnn import cnn
from jaxstudy.models.mlp import mlp
from jaxstudy.models.summary import print_summary
from jaxstudy.objectives import cross_entropy
from jaxstudy.pretrained import backbones
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved, read_sealed, write_atomically
from jaxstudy.runs.statistics import (
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    at_best_epoch,
    mean_over_runs,
)
from jaxstudy.training import (
    Evaluator,
    TrainState,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Objective, PyTree, UserError

LESSON = Lesson(
    number="2.3",
    title="Transfer: a regression on the frozen features of EfficientNet, fine-"
    "tuning, and starting from scratch, by the number of images",
    headline={
        "100 images, pixels: test accuracy": "test accuracy with 100 images: pixels",
        "100 images, scratch: test accuracy": "scratch",
        "100 images, frozen: test accuracy": "frozen",
        "100 images, fine-tuned: test accuracy": "fine-tuned",
        "2286 images, pixels: test accuracy": "with all 2286: pixels",
        "2286 images, scratch: test accuracy": "scratch",
        "2286 images, scratch, augmented: test accuracy": "scratch, augmented",
        "2286 images, frozen: test accuracy": "frozen",
        "2286 images, fine-tuned: test accuracy": "fine-tuned",
        "majority class: test accuracy": "majority class",
    },
)

ARMS = ("pixels", "scratch", "scratch, augmented", "frozen", "fine-tuned")
LAYERS = (Flip(), Rotation(0.05), Zoom(0.2), Translation(0.1, 0.1))
Sets = dict[str, dict[str, np.ndarray]]  # "train", "validation", "test": x and y
EVALUATED = 2000  # images of a validation or test set, at most


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


class Images(NamedTuple):
    """The images of one size, and the indices in "train" that each run learns from.

    indices [sizes, seeds, longest].
    """

    sets: Sets
    indices: np.ndarray
    sizes: tuple[int, ...]
    classes: tuple[str, ...]


def read(config: Config, size: int) -> Images:
    """The images with so many pixels a side; no more of them than are used."""
    form: Any = {"image_size": (size, size), "channels": 3}
    if config.folder is None:
        found = read_images(config.data, **form)
    else:
        found = read_image_folder(config.folder, **form)
    if len(found.classes) < 2:
        raise UserError("the images are of one class: there is nothing to tell apart")
    data = image_splits(found)
    sizes = sizes_at_most(config.sizes, len(data.train.indices))
    rows = nested_subsets(data.train, sizes, config.seeds, config.seed)
    used, rows = np.unique(rows, return_inverse=True)
    sets = {"train": take(data.train, used)}
    for name, held_out in (("validation", data.validation), ("test", data.test)):
        sets[name] = take(
            held_out, np.asarray(evenly_spaced(held_out, EVALUATED).indices)
        )
    shape = len(sizes), config.seeds, -1
    return Images(sets, rows.reshape(shape), sizes, data.classes)


def backbone(config: Config) -> backbones.Backbone:
    """The network to build on; refuses images that are too small for it."""
    backbones.check_image_size(config.backbone, config.image_size)
    return backbones.backbone(config.backbone, config.weights)


def features(sets: Sets, network: backbones.Backbone, model: Model, name: str) -> Sets:
    """What some of the backbone's layers, as they are, make of the images of all sets.

    x [N, D] in the place of x [N, H, W, 3].
    """
    x = np.concatenate([fields["x"] for fields in sets.values()])
    model = backbones.on_pixels(network, model)
    found = backbones.frozen_features(model, network.weights, x, title=name)
    ends = np.cumsum([len(fields["x"]) for fields in sets.values()])
    parts = zip(sets.items(), np.split(found, ends[:-1]), strict=True)
    return {key: {**fields, "x": part} for (key, fields), part in parts}


def regression(inputs: int, classes: int) -> Model:
    """A logit for each class, of inputs [B, D] that are standardised first."""
    return standardized(mlp(inputs, (), classes), inputs)


def schedule(config: Config, epochs: int, rate: float) -> optax.Schedule:
    """A learning rate that falls to 0 at the end of the last epoch."""
    steps = epochs * -(-max(config.sizes) // config.batch_size)
    return optax.cosine_decay_schedule(rate, steps)


def keys(config: Config) -> Array:
    """Of the weights and of the data order, [sizes x seeds, 2]: the seed's alone."""
    own = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    return jnp.tile(own, (len(config.sizes), 1))


class Trained(NamedTuple):
    """The weights at the end, and the accuracy on each set after each epoch.

    state: one replica for each size and seed; accuracy [epochs, sizes, seeds] by set.
    """

    state: TrainState
    accuracy: dict[str, np.ndarray]


def train(
    arm: str,
    objective: Objective,
    tx: optax.GradientTransformation,
    state: TrainState,
    images: Images,
    config: Config,
    epochs: int,
    run: Run,
) -> Trained:
    """Train with every size and seed, each a replica of one program."""
    data = {name: dataset(fields) for name, fields in images.sets.items()}
    rows = jnp.asarray(images.indices.reshape(-1, images.indices.shape[-1]))
    own = dataclasses.replace(
        data["train"], indices=rows, mask=jnp.ones(rows.shape, bool)
    )
    fitted = fit(
        state,
        make_train_step(objective, tx),
        own,
        key=keys(config)[:, 1],
        epochs=epochs,
        batch_size=config.batch_size,
        evaluators={
            name: Evaluator(make_eval_step(objective), data[name], 500)
            for name in ("validation", "test")
        },
        evaluate_first=False,
        log=run.sub_run(arm),
    )
    shape = (-1, *images.indices.shape[:2])
    accuracy = {
        name: np.reshape(
            [row["accuracy"] for row in fitted.records if row["split"] == name], shape
        )
        for name in images.sets
    }
    return Trained(fitted.state, accuracy)


def train_regression(arm: str, images: Images, config: Config, run: Run) -> Trained:
    """The regression on x [N, D], standardised by what each run learns from."""
    x, epochs = jnp.asarray(images.sets["train"]["x"]), config.regression_epochs
    model = regression(x.shape[1], len(images.classes))
    rate = schedule(config, epochs, config.rate)
    tx = optax.adamw(rate, weight_decay=config.decay)
    state = init_replicas(model, tx, keys(config)[:, 0])
    rows = jnp.asarray(images.indices.reshape(-1, images.indices.shape[-1]))
    statistics = jax.lax.map(
        lambda mine: column_statistics(x[mine], jnp.ones(len(mine))), rows
    )
    state = state._replace(extra={**state.extra, "standardization": statistics})
    return train(arm, cross_entropy(model), tx, state, images, config, epochs, run)


def train_scratch(images: Images, config: Config, run: Run) -> dict[str, Trained]:
    """A CNN trained from scratch, on the images and on random versions of them."""
    shape, epochs = images.sets["train"]["x"].shape[1:], config.epochs
    model = cnn(shape, len(images.classes), filters=config.filters)
    tx, plain = optax.adam(schedule(config, epochs, config.rate)), cross_entropy(model)
    found = {}
    for arm, objective in (
        ("scratch", plain),
        ("scratch, augmented", augmented(plain, LAYERS)),
    ):
        state = init_replicas(model, tx, keys(config)[:, 0])
        found[arm] = train(arm, objective, tx, state, images, config, epochs, run)
    return found


def fine_tune(
    rest: Model, begin: TrainState, images: Images, config: Config, run: Run
) -> Trained:
    """The backbone's last layers and the regression, from where the latter has got to.

    One that knows nothing would begin by sending wrong gradients through layers that
    are good (Kumar et al. 2022).
    """
    epochs = config.tuning_epochs
    tx = optax.adamw(
        schedule(config, epochs, config.tuning_rate),
        weight_decay=config.decay,
        mask={"first": False, "second": True},  # as the regression had it
    )
    _, inputs, classes = begin.params["output"]["kernel"].shape
    model = compose(rest, regression(inputs, classes))
    state = init_replicas(model, tx, keys(config)[:, 0])
    state = state._replace(
        params={**state.params, "second": begin.params},
        extra={**state.extra, "second": begin.extra},
    )
    objective = cross_entropy(model)
    return train("fine-tuned", objective, tx, state, images, config, epochs, run)


def summary_text(before: Model, rest: Model, classes: int, size: int) -> str:
    """What the fine-tuned network consists of, and what of it is trained."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    inputs = backbones.output_shapes(with_frozen_backbone(before, rest), image)
    trained = compose(rest, regression(inputs.shape[1], classes))
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_summary(with_frozen_backbone(before, trained), image)
    return text.getvalue()


def probabilities(
    params: PyTree, extra: PyTree, x: np.ndarray, config: Config
) -> np.ndarray:
    """Of each class [N, K], by the regression on features x [N, D].

    Of all trainings [sizes x seeds] it is that with the most images, first seed.
    """
    replica = config.sizes.index(max(config.sizes)) * config.seeds
    params, extra = jax.tree.map(lambda a: a[replica], (params, extra))
    model = regression(x.shape[1], len(params["output"]["bias"]))
    logits, _ = model.apply(params, extra, jnp.asarray(x), train=False, key=None)
    return np.asarray(jax.nn.softmax(logits))


def draw_accuracies(
    run: Run,
    config: Config,
    trained: Mapping[str, Trained],
    test: Mapping[str, np.ndarray],
    majority: float,
) -> None:
    """Test accuracy by the number of images, and for the most of them by epoch."""

    def line(x: Sequence[float], values: np.ndarray) -> plots.Line:
        return x, [mean_over_runs(value, SHARE) for value in values]

    label, scales = "images to learn from", ("log", "linear")
    most = config.sizes.index(max(config.sizes))
    found = {arm: line(config.sizes, values) for arm, values in test.items()}
    always = config.sizes, [majority] * len(config.sizes)
    panels = [
        plots.Panel(
            f"{config.sizes[most]} images, {split}", "epoch", "accuracy",
            {
                arm: line(range(1, len(of_arm.accuracy[split]) + 1),
                          of_arm.accuracy[split][:, most])
                for arm, of_arm in trained.items()
            },
        )
        for split in ("train", "validation")
    ]  # fmt: skip
    plots.save_lines(run, "curves", panels)
    lines = {**found, "majority class": always}
    plots.save_lines(
        run, "sizes", [plots.Panel("test", label, "accuracy", lines, scales)]
    )


def draw_predictions(run: Run, images: Images, chances: np.ndarray) -> None:
    """Images of the test set and what the regression on frozen features says."""
    test, (rows, columns) = images.sets["test"], (4, 8)
    shown = np.random.default_rng(0).permutation(len(test["y"]))[: rows * columns]

    def title(i: int) -> str:
        named = int(chances[i].argmax())
        text = f"{images.classes[named]} {chances[i, named]:.2f}"
        wrong = named != test["y"][i]
        return f"{text}\nNOT {images.classes[test['y'][i]]}" if wrong else f"{text}\n"

    grid = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    plots.save_images(
        run,
        "predictions",
        [[test["x"][i] for i in row] for row in grid],
        [[title(i) for i in row] for row in grid],
    )


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train from scratch, on frozen features and on, with sets of several sizes."""
    network = backbone(config)
    shape = (1, config.image_size, config.image_size, 3)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    before, rest = backbones.split_means(network.stages, config.fine_tune_from, image)
    images = read(config, config.image_size)
    config = dataclasses.replace(config, sizes=images.sizes)
    small = read(config, config.small_size)
    text = summary_text(before, rest, len(images.classes), config.image_size)
    write_atomically(run.folder / "summary.txt", text)
    run.write_sealed("images.json", Seen(tuple(images.classes), images.sizes))
    print(text)

    flat = {
        name: fields
        | {"x": fields["x"].reshape(len(fields["x"]), -1) / np.float32(255)}
        for name, fields in small.sets.items()
    }
    trained = {
        "pixels": train_regression("pixels", small._replace(sets=flat), config, run),
        **train_scratch(small, config, run),
    }
    whole = backbones.pooled_features(network.stages, image)
    found = features(images.sets, network, whole, "features")
    frozen = train_regression("frozen", images._replace(sets=found), config, run)
    state = frozen.state
    chances = probabilities(state.params, state.extra, found["test"]["x"], config)
    draw_predictions(run, images, chances)
    before, rest = backbones.flatten_interface(before, rest, image)
    kept = features(images.sets, network, before, f"before {config.fine_tune_from}")
    tuned = fine_tune(
        backbones.pretrained(rest, network.weights), frozen.state,
        images._replace(sets=kept), config, run,
    )  # fmt: skip
    trained |= {"frozen": frozen, "fine-tuned": tuned}

    counts = np.bincount(images.sets["test"]["y"], minlength=len(images.classes))
    majority = float(
        counts[np.bincount(images.sets["train"]["y"]).argmax()] / sum(counts)
    )
    test = {
        arm: at_best_epoch(of_arm.accuracy["validation"], of_arm.accuracy["test"])
        for arm, of_arm in trained.items()
    }
    draw_accuracies(run, config, trained, test, majority)
    result: dict[str, Estimate | float] = {"majority class: test accuracy": majority}
    for i, size in enumerate(config.sizes):
        for arm, values in test.items():
            of_arm = mean_over_runs(values[i], SHARE)
            result[f"{size} images, {arm}: test accuracy"] = of_arm
        gain = test["fine-tuned"][i] - test["frozen"][i]
        result[f"{size} images: gained by fine-tuning"] = mean_over_runs(
            gain, SHARE_DIFFERENCE, "seeds, paired"
        )
    return result


class Seen(NamedTuple):
    """What a saved run has seen, which --predict needs beside the weights."""

    classes: tuple[str, ...]
    sizes: tuple[int, ...]


def predict(saved: Saved[Config], files: tuple[Path, ...]) -> None:
    """The class of images FILE..., by the regression on frozen features."""
    config = saved.config
    network = backbone(config)
    size = config.image_size, config.image_size
    x = np.stack([read_image(path, size) for path in files])
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    model = backbones.on_pixels(
        network, backbones.pooled_features(network.stages, image)
    )
    found = backbones.frozen_features(
        model, network.weights, x, batch_size=min(len(x), 64)
    )
    classes, sizes = read_sealed(saved.folder, "images.json", Seen)
    config = dataclasses.replace(config, sizes=sizes)
    model = regression(found.shape[1], len(classes))
    weights = saved.replica_weights(model, len(keys(config)), "frozen")
    chances = probabilities(weights["params"], weights["extra"], found, config)
    for path, chance in zip(files, chances, strict=True):
        best = chance.argsort()[::-1][:3]
        print(f"{path}: " + ", ".join(f"{classes[i]} {chance[i]:.3f}" for i in best))


if __name__ == "__main__":
    experiment(main, PRESETS, predict=predict)
