"""A regression on the features of a backbone: to fine-tune from, and to predict by."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.images.subsets import ImageSubsets
from jaxstudy.model import (
    Model,
    Standardization,
    column_statistics,
    standardized,
)
from jaxstudy.models.mlp import mlp
from jaxstudy.pretrained.backbones import Backbone
from jaxstudy.pretrained.features import features_of_files
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved, read_sealed
from jaxstudy.types import Array, PyTree, TrainState

_FILE = "images.json"
_Content = tuple[tuple[str, ...], tuple[int, ...]]  # names of classes, and sizes


def regression(inputs: int, classes: int) -> Model:
    """A logit for each class, of inputs [B, D] that are standardised first."""
    return standardized(mlp(inputs, (), classes), inputs)


def with_statistics(features: ImageSubsets) -> Callable[[TrainState], TrainState]:
    """Makes regressions [L] standardise by what each learns from: its rows of x."""

    def begin(state: TrainState) -> TrainState:
        statistics = _statistics_of_rows(features.sets["train"]["x"], features.rows)
        return state._replace(extra={**state.extra, "standardization": statistics})

    return begin


@jax.jit
def _statistics_of_rows(x: Array, rows: Array) -> Standardization:
    return jax.lax.map(
        lambda indices: column_statistics(x[indices], jnp.ones(len(indices))), rows
    )


def gone_on(state: TrainState, trained: TrainState) -> TrainState:
    """A state with the weights of another, whose optimizer begins anew."""
    return state._replace(params=trained.params, extra=trained.extra)


def with_regression(state: TrainState, trained: TrainState) -> TrainState:
    """A state of `compose(rest, regression)` whose regressions are those trained.

    An untrained one would begin by sending wrong gradients through layers that are good
    (Kumar et al. 2022).
    """
    return state._replace(
        params={**state.params, "second": trained.params},
        extra={**state.extra, "second": trained.extra},
    )


def class_probabilities(
    params: PyTree, extra: PyTree, replica: int, x: np.ndarray
) -> np.ndarray:
    """Of each class [N, K], by one of the regressions [L] on features x [N, D]."""
    params, extra = jax.tree.map(lambda a: a[replica], (params, extra))
    model = regression(x.shape[1], len(params["output"]["bias"]))
    logits, _ = model.apply(params, extra, jnp.asarray(x), train=False, key=None)
    return np.asarray(jax.nn.softmax(logits))


def save_classes(run: Run, images: ImageSubsets) -> None:
    """Keep in the run folder what `predict_files` has to know of the images."""
    run.write_sealed(_FILE, (tuple(images.classes), images.sizes))


def predict_files(
    saved: Saved[Any],
    network: Backbone,
    files: Sequence[Path],
    part: str,
    *,
    size: int,
    seeds: int,
) -> None:
    """Print three most probable classes of every file, by the largest set's regression.

    Args:
        saved: a run that called `save_classes`.
        network: makes the features.
        files: images.
        part: the name of the training of the regressions, one for each size and seed.
        size: height and width that images are brought to.
        seeds: regressions of each size; the first is taken.
    """
    x = features_of_files(network, files, size)
    classes, counts = read_sealed(saved.folder, _FILE, _Content)
    model = regression(x.shape[1], len(classes))
    weights = saved.replica_weights(model, len(counts) * seeds, part)
    largest = counts.index(max(counts)) * seeds
    p = class_probabilities(weights["params"], weights["extra"], largest, x)
    for path, of_file in zip(files, p, strict=True):
        best = of_file.argsort()[::-1][:3]
        print(f"{path}: " + ", ".join(f"{classes[i]} {of_file[i]:.3f}" for i in best))
