"""Generated images judged from outside: what a CNN sees in them, and whether they copy.

Images are uint8 [N, H, W, C]. Real ones that nobody trained on are evaluated
like the generated ones: theirs are the values to reach.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # its parts are imported where they are first used

from jaxstudy.dataset import Dataset
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    Estimate,
    frechet_distance,
    mean_over_cases,
    mean_over_runs,
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


@functools.partial(jax.jit, static_argnums=1)
def resized(x: np.ndarray | Array, size: int) -> Array:
    """Images as [N, size, size, C]: averaged where they shrink, else interpolated."""

    def resize(x: Array) -> Array:
        shape = (size, size, x.shape[-1])
        x = jax.image.resize(x.astype(jnp.float32), shape, "linear")
        return jnp.round(x).astype(jnp.uint8)

    return jax.lax.map(resize, jnp.asarray(x), batch_size=BATCH)


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

    The sets are those to learn from, to validate and to test by, with fields x, of
    28x28 pixels, and y.
    """
    train, validation, test = sets
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
    outputs = _classifier_outputs(params, resized(x, CNN_SIZE))
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


class Judge(NamedTuple):
    """A CNN's weights, what it makes of the real images, and their classes' names."""

    params: PyTree
    real: ClassifierOutputs
    classes: tuple[str, ...]

    def of(self, real: np.ndarray) -> "Judge":
        """The same, with other real images."""
        return self._replace(real=classifier_features(self.params, real))

    def distance(self, x: np.ndarray) -> float:
        """The Frechet distance of images to the real ones, in this CNN's features."""
        features = classifier_features(self.params, x).features
        return frechet_distance(features, self.real.features)


def judge_images(
    judge: Judge, images: Mapping[str, Sequence[np.ndarray]], run: Run
) -> GanMetrics:
    """What a CNN says of sets of images, each set from one or several trainings.

    Of each the Frechet distance to the real images, precision, recall, and in how many
    classes the CNN puts more than 2 % of the images. As a figure, the classes' shares
    in the first set and in the real images.
    """
    result: GanMetrics = {}
    shares = {}
    for name, of_trainings in images.items():
        outputs = [classifier_features(judge.params, x) for x in of_trainings]
        scores = [_scores(of_one, judge.real) for of_one in outputs]
        for metric in scores[0]:
            result[f"{name}: {metric}"] = over_seeds([s[metric] for s in scores])
        shares[name] = _class_shares(outputs[0])
    drawn = {next(iter(images)): shares[next(iter(images))]}
    drawn["test images"] = _class_shares(judge.real)
    _draw_classes(run, judge.classes, drawn)
    return result


def over_seeds(values: Sequence[float] | np.ndarray) -> Estimate | float:
    """The mean over trainings with its interval; of one alone, what it was."""
    many = np.array(values, float)
    return mean_over_runs(many, NONNEGATIVE) if len(many) > 1 else float(many[0])


def _scores(outputs: ClassifierOutputs, real: ClassifierOutputs) -> dict[str, float]:
    precision, recall = precision_recall(outputs.features, real.features)
    return {
        FRECHET: frechet_distance(outputs.features, real.features),
        "precision": precision,
        "recall": recall,
        "classes with over 2 %": float(np.sum(_class_shares(outputs) > CLASS_SHARE)),
    }


def _class_shares(outputs: ClassifierOutputs) -> np.ndarray:
    """The share of images [K] that the CNN puts in each class."""
    n, classes = outputs.probabilities.shape
    return np.bincount(outputs.probabilities.argmax(1), minlength=classes) / n


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = 3
) -> tuple[float, float]:
    """Precision and recall of generated images by nearest neighbours of features.

    A set's manifold is the union of balls around its features [N, D], each reaching to
    its k-th nearest neighbour in the set. Precision: the share of generated features in
    the manifold of the real ones (are they real enough?). Recall: that of real ones in
    the generated ones' (is all there?). Source: Kynkaanniemi et al. 2019.
    """
    between = scipy.spatial.distance.cdist(generated, real)  # [N, M]
    of_generated, of_real = (_neighbour_distance(x, k) for x in (generated, real))
    precision = np.mean(np.any(between <= of_real, axis=1))
    recall = np.mean(np.any(between <= of_generated[:, None], axis=0))
    return float(precision), float(recall)


def _neighbour_distance(x: np.ndarray, k: int) -> np.ndarray:
    """How far the k-th nearest of the others is from each of x [N, D]."""
    k = min(k, len(x) - 1)
    return np.partition(scipy.spatial.distance.cdist(x, x), k, axis=1)[:, k]


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
    unsure = {"a D that always says 1/2": math.log(2)}
    _draw(run, "losses", "train", "loss [nats]", losses, unsure)
    accuracies = {"accuracy on real": "real", "accuracy on fake": "generated"}
    chance = {"chance": 0.5}
    _draw(run, "accuracy", "validation", "accuracy of D [share]", accuracies, chance)


def draw_distances(run: Run, levels: Mapping[str, Any]) -> None:
    """The Frechet distance after each epoch, and what does not depend on the epoch."""
    names, label = {FRECHET: "generated images"}, "Frechet distance to test images"
    _draw(run, "distance", "generated", label, names, levels, "log")


def _draw(
    run: Run,
    figure: str,
    split: str,
    label: str,
    names: Mapping[str, str],
    levels: Mapping[str, float],
    scale: str = "linear",
) -> None:
    lines: dict[str, plots.Line] = {}
    for name, what in names.items():
        table = plots.curve(run.sub_runs["gan"].records, split, name)
        lines[what] = table[:, 0].tolist(), table[:, 1].tolist()
    panel = plots.Panel("", "epoch", label, lines, ("linear", scale), levels=levels)
    plots.save_lines(run, figure, [panel])
