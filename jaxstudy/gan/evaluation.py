"""Generated images judged from outside: what a CNN sees in them, and whether they copy.

Images are uint8 [N, H, W, C]. Real ones that nobody trained on are evaluated
like the generated ones: theirs are the values to reach.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    SHARE,
    Estimate,
    frechet_distance,
    mean_over_cases,
)
from jaxstudy.training import (
    Evaluator,
    fit,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Key, PyTree

CNN_SIZE = 28  # pixels a side of what the CNN sees, as in chapter 2
BATCH = 50  # images at a time
ROWS = 2000  # training images at a time
CLASS_SHARE = 0.02  # of the images, above which a class counts as found
COMPARED = 200  # images whose nearest training image is looked for
FRECHET = "Frechet distance of this CNN's features"
_COLUMNS = 10  # of the picture of them

GanMetrics = dict[str, Estimate | float]


def resized(x: np.ndarray | Array, size: int) -> np.ndarray:
    """Images as [N, size, size, C]: averaged where they shrink, else interpolated."""
    return np.asarray(_resized(jnp.asarray(x), size))


@functools.partial(jax.jit, static_argnums=1)
def _resized(x: Array, size: int) -> Array:
    def resize(x: Array) -> Array:
        shape = (size, size, x.shape[-1])
        x = jax.image.resize(x.astype(jnp.float32), shape, "linear")
        return jnp.round(x).astype(jnp.uint8)

    return jax.lax.map(resize, x, batch_size=BATCH)


# ------------------------------------------------------------------ by a CNN


def train_classifier(
    sets: Sequence[Dataset],
    classes: int,
    *,
    epochs: int,
    batch_size: int,
    key: Key,
    run: Run,
) -> tuple[PyTree, float]:
    """Train chapter 2's CNN on the classes: its weights, and its test accuracy.

    The sets are those to learn from, to validate and to test by, with fields x and y.
    """
    train, validation, test = (
        dataset({"x": resized(s.arrays["x"], CNN_SIZE), "y": s.arrays["y"]})
        for s in sets
    )
    channels = train.arrays["x"].shape[-1]
    model = cnn((CNN_SIZE, CNN_SIZE, channels), classes)
    objective, tx = cross_entropy(model), optax.adam(0.001)
    eval_step = make_eval_step(objective)
    init_key, order_key = jax.random.split(key)
    fitted = fit(
        jax.jit(lambda key: init_state(model, tx, key))(init_key),
        make_train_step(objective, tx),
        train,
        key=order_key,
        epochs=epochs,
        batch_size=batch_size,
        evaluators={"validation": Evaluator(eval_step, validation, 250)},
        evaluate_first=False,
        log=run.sub_run("classifier"),
    )
    metrics = Evaluator(eval_step, test, 250)(fitted.state)
    return fitted.state.params, metrics["accuracy"]


class ClassifierOutputs(NamedTuple):
    """What the CNN makes of images: its hidden layer [N, D], probabilities [N, K]."""

    features: np.ndarray
    probabilities: np.ndarray


def classifier_features(params: PyTree, x: np.ndarray | Array) -> ClassifierOutputs:
    """Images, brought to 28x28, through the CNN with these weights."""
    outputs = _classifier_outputs(params, _resized(jnp.asarray(x), CNN_SIZE))
    return ClassifierOutputs(*map(np.asarray, outputs))


@jax.jit
def _classifier_outputs(params: PyTree, x: Array) -> tuple[Array, Array]:
    hidden, classes = params["hidden_1"], len(params["output"]["bias"])
    model = cnn((CNN_SIZE, CNN_SIZE, x.shape[-1]), classes, capture=True)

    def one_image(x: Array) -> tuple[Array, Array]:
        (logits, layers), _ = model.apply(params, {}, x[None], train=False, key=None)
        pooled = layers["pooling 2"][0].reshape(-1)
        features = jax.nn.relu(pooled @ hidden["kernel"] + hidden["bias"])
        return features, jax.nn.softmax(logits[0])

    return jax.lax.map(one_image, x, batch_size=BATCH)


def classifier_metrics(
    params: PyTree,
    images: Mapping[str, np.ndarray],
    real: np.ndarray,
    classes: Sequence[str],
    run: Run,
) -> GanMetrics:
    """What the CNN sees in several sets of images, as many of each as of real ones.

    For each the Frechet distance of the CNN's features to those of the real images, in
    how many classes it puts more than 2 % of the images, and its mean top probability;
    a figure of the classes' shares in the first set, and in the real images.
    """
    of_real = classifier_features(params, real)
    outputs = {
        name: classifier_features(params, x[: len(real)]) for name, x in images.items()
    }
    result: GanMetrics = {}
    for name, of_these in outputs.items():
        distance = frechet_distance(of_these.features, of_real.features)
        result[f"{name}: {FRECHET}"] = distance
    outputs["test images"] = of_real
    shares = {}
    for name, of_these in outputs.items():
        predicted = of_these.probabilities.argmax(1)
        counts = np.bincount(predicted, minlength=len(classes))
        shares[name] = counts / len(predicted)
        result[f"{name}: classes with over 2 %"] = float(
            np.sum(shares[name] > CLASS_SHARE)
        )
        surest = mean_over_cases(of_these.probabilities.max(1), "images", SHARE)
        result[f"{name}: top probability"] = surest
    drawn = (next(iter(images)), "test images")
    _draw_classes(run, classes, {name: shares[name] for name in drawn})
    return result


def _draw_classes(
    run: Run, classes: Sequence[str], shares: Mapping[str, np.ndarray]
) -> None:
    """Shares [K] of the classes by set, as classes.png."""
    figure, axis = plots.subplots(figsize=(8, 3.4))
    for i, (name, values) in enumerate(shares.items()):
        axis.bar(np.arange(len(classes)) + 0.4 * i, values, 0.4, label=name)
    axis.axhline(CLASS_SHARE, color="0.4", linewidth=1, linestyle="--", label="2 %")
    axis.set_xticks(np.arange(len(classes)) + 0.2, classes, rotation=35, ha="right")
    axis.set(ylabel="share of the images", title="classes, as the CNN sees them")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(figure, run, "classes")


def distance_to(params: PyTree, real: np.ndarray) -> Callable[[np.ndarray], float]:
    """The Frechet distance of images to real ones, in this CNN's features."""
    features = classifier_features(params, real).features

    def distance(x: np.ndarray) -> float:
        return frechet_distance(classifier_features(params, x).features, features)

    return distance


# ------------------------------------------------------------------ by training images


def nearest(x: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of other images [M, H, W, C] is nearest to each [N], and how far it is [N].

    The distance is the root mean square of the difference, pixels taken as 0 to 1.
    """
    flat = _flat(x)
    rows, least = np.zeros(len(x), int), np.full(len(x), np.inf, np.float32)
    for begin in range(0, len(among), ROWS):
        part = _flat(among[begin : begin + ROWS])
        squares = np.sum(part**2, 1) - 2 * flat @ part.T  # |a - b|^2 less |a|^2
        closest = squares.argmin(1)
        distance = squares[np.arange(len(x)), closest]
        rows = np.where(distance < least, begin + closest, rows)
        least = np.minimum(least, distance)
    differences = _flat(among[rows]) - flat
    return rows, np.sqrt(np.mean(np.square(differences), 1))


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32) / 255


def nearest_metrics(
    images: Mapping[str, np.ndarray], training_images: np.ndarray, run: Run
) -> GanMetrics:
    """How far several sets of images are from the nearest training images.

    What was memorised would be much nearer than new images. As a figure, some of
    each set, and the nearest one of each.
    """
    result: GanMetrics = {}
    drawn, titles = [], []
    for name, x in images.items():
        rows, distances = nearest(x[:COMPARED], training_images)
        away = mean_over_cases(distances, "images", NONNEGATIVE)
        result[f"{name}: distance to the nearest training image"] = away
        drawn += [x[:_COLUMNS], training_images[rows[:_COLUMNS]]]
        titles += [name.replace(" ", "\n"), "nearest\ntraining\nimages"]
    plots.save_images(run, "nearest", drawn, rows=titles)
    return result


# ------------------------------------------------------------------ by epoch


def draw_training(run: Run) -> None:
    """The three losses, and D's accuracy on images that it does not learn from."""
    losses = {"loss1": "D, real", "loss2": "D, generated", "loss3": "G"}
    _draw(run, "losses", "train", "loss [nats]", losses)
    accuracies = {"accuracy on real": "real", "accuracy on fake": "generated"}
    _draw(run, "accuracy", "validation", "accuracy of D, held-out images", accuracies)


def draw_distances(run: Run, constants: Mapping[str, Any]) -> None:
    """The Frechet distance after each epoch, and what does not depend on the epoch."""
    names = {FRECHET: "generated images"}
    _draw(run, "distance", "generated", "Frechet distance to test images", names,
          constants)  # fmt: skip


def _draw(
    run: Run,
    figure: str,
    split: str,
    label: str,
    names: Mapping[str, str],
    constants: Mapping[str, Any] | None = None,
) -> None:
    lines: dict[str, plots.Line] = {}
    for name, what in names.items():
        table = plots.curve(run.sub_runs["gan"].records, split, name)
        lines[what] = table[:, 0].tolist(), table[:, 1].tolist()
    epochs, _ = next(iter(lines.values()))
    for name, value in (constants or {}).items():
        lines[name] = epochs, [value] * len(epochs)
    plots.save_lines(run, figure, [plots.Panel("", "epoch", label, lines)])
