"""A regression on the features of a backbone, and fine-tuning from where it ended."""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.images.subsets import ImageSubsets
from jaxstudy.model import (
    Model,
    Standardization,
    column_statistics,
    compose,
    standardized,
    with_frozen_backbone,
)
from jaxstudy.models.mlp import mlp
from jaxstudy.models.summary import print_summary
from jaxstudy.pretrained.backbones import output_shapes
from jaxstudy.types import Array, PyTree, TrainState


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


def print_top_classes(
    files: Sequence[Path], classes: Sequence[str], p: np.ndarray
) -> None:
    """A line for each file: its three most probable classes, of p [N, K]."""
    for path, of_file in zip(files, p, strict=True):
        best = of_file.argsort()[::-1][:3]
        print(f"{path}: " + ", ".join(f"{classes[i]} {of_file[i]:.3f}" for i in best))


def summary_text(
    frozen: Model, rest: Model, classes: int, image: jax.ShapeDtypeStruct
) -> str:
    """What the fine-tuned network consists of, and what of it is trained."""
    inputs = output_shapes(with_frozen_backbone(frozen, rest), image)
    trained = compose(rest, regression(inputs.shape[1], classes))
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_summary(with_frozen_backbone(frozen, trained), image)
    return text.getvalue()
