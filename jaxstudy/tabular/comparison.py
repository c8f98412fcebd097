"""Networks and logistic regressions on the same folds of a table, row by row."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.model import Model
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    Range,
    mean_over_cases,
)
from jaxstudy.tabular.columns import Column, Embedding, Indicator, Table
from jaxstudy.tabular.cross_validation import (
    Folds,
    PredictLogProbs,
    held_out_scores,
    importance,
    logistic_regression_baseline,
    make_folds,
)
from jaxstudy.tabular.encoding import Features
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.types import Array, PyTree, TrainState

Build = Callable[[Sequence[Table], int], Model]  # (embeddings, width of x) -> network
# (model, training set, sets to evaluate on, replicas, name) -> the replicas trained
Train = Callable[[Model, Dataset, Mapping[str, Dataset], int, str], TrainState]

RANGES = {"accuracy": SHARE, "log-loss": NONNEGATIVE}
DIFFERENCES = {"accuracy": SHARE_DIFFERENCE, "log-loss": REAL}


def fold_log_probs(
    folds: Folds, model: Model, params: PyTree, extra: PyTree
) -> PredictLogProbs:
    """Log-probabilities of the rows that each fold holds out, from encoded rows.

    params, extra: of one network for each fold, [folds, ...].
    """
    held_out = folds.subsets(held_out=True)

    @jax.jit
    def all_folds(x: Array, ids: Array) -> Array:
        def one_fold(replica: tuple[Any, Array]) -> Array:
            weights, rows = replica
            logits, _ = model.apply(*weights, x[rows], ids[rows], train=False, key=None)
            return jax.nn.log_softmax(logits)

        return jax.lax.map(one_fold, ((params, extra), held_out.indices))

    def log_probs(arrays: Mapping[str, Any]) -> list[np.ndarray]:
        padded = np.asarray(all_folds(arrays["x"], arrays["ids"]))
        mask = np.asarray(held_out.mask)
        return [rows[real] for rows, real in zip(padded, mask, strict=True)]

    return log_probs


def score_estimates(
    name: str,
    scores: Mapping[str, np.ndarray],
    groups: np.ndarray | None = None,
    within: Mapping[str, Range] = RANGES,
) -> dict[str, Estimate]:
    """Scores [N] of the rows as metrics."""
    return {
        f"{name}: {score}": mean_over_cases(values, "rows", within[score], groups)
        for score, values in scores.items()
    }


def train_ensemble(
    table: pd.DataFrame,
    y: np.ndarray,
    columns: Sequence[Column],
    members: int,
    build: Build,
    train: Train,
) -> tuple[Features, TrainState]:
    """Networks of all rows, which predict together: the sub-run "all_rows"."""
    fitted = fit_columns(columns, table)
    encoded = fitted.encode(fitted.numbers(table))
    model = build(fitted.tables, encoded.x.shape[1])
    data = dataset({**encoded._asdict(), "y": y})
    return fitted, train(model, data, {}, members, "all_rows")


def as_indicator(column: Column) -> Column:
    """What logistic regression gets in the place of an embedding."""
    return Indicator(column.of) if isinstance(column, Embedding) else column


def compare_on_folds(
    table: pd.DataFrame,
    y: np.ndarray,
    networks: Mapping[str, Sequence[Column]],
    regressions: Mapping[str, Sequence[Column]],
    splits: list[tuple[np.ndarray, np.ndarray]],
    build: Build,
    train: Train,
    run: Run,
    *,
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, Estimate | float]:
    """Cross-validate networks and logistic regressions on the same folds.

    Args:
        table, y: the rows, and their classes [N].
        networks: the columns of each network; the first is compared with all others,
            and the importance of its columns is measured.
        regressions: the columns of each logistic regression.
        splits: (training rows, held-out rows) of every fold.
        build: makes the network for the inputs of the folds.
        train: trains it on every fold, a replica each; its name is the sub-run's.
        run: where the figures are saved.
        seed: of the shuffling of columns.
        groups: [N], the unit that intervals are over: rows of one are dependent.
    """
    first = next(iter(networks))
    result: dict[str, Estimate | float] = {
        "majority class: accuracy": float(np.bincount(y).max() / len(y))
    }
    scores, changes = {}, {}
    for name, columns in networks.items():
        folds = make_folds(table, y, columns, splits)
        model = build(folds.tables, folds.width)
        state = train(
            model, folds.subsets(held_out=False),
            {"validation": folds.subsets(held_out=True)},
            len(splits), re.sub(r"\W+", "_", name),
        )  # fmt: skip
        predict = fold_log_probs(folds, model, state.params, state.extra)
        scores[name] = held_out_scores(folds, predict(folds.data.arrays), y)
        if name == first:
            changes = {
                column: mean_over_cases(change, "rows", REAL, groups)
                for column, change in importance(folds, predict, y, seed).items()
            }
    for name, columns in regressions.items():
        folds = make_folds(table, y, [*map(as_indicator, columns)], splits)
        scores[name] = held_out_scores(folds, logistic_regression_baseline(folds), y)
    for name, score in scores.items():
        result |= score_estimates(name, score, groups)
        if name != first:
            gaps = {metric: scores[first][metric] - score[metric] for metric in score}
            result |= score_estimates(f"{first} - {name}", gaps, groups, DIFFERENCES)
    for column, change in changes.items():
        result[f"log-loss when {column} is shuffled: increase"] = change
    plots.save_intervals(run, result, [*scores], ("accuracy", "log-loss"))
    gaps = {
        name: mean_over_cases(
            score["log-loss"] - scores[first]["log-loss"], "rows, paired", REAL, groups
        )
        for name, score in scores.items()
        if name != first
    }
    plots.save_differences(run, "differences", gaps, f"log-loss less that of {first}")
    largest = sorted(changes.items(), key=lambda item: -item[1].mean)
    xlabel = "increase of the held-out log-loss when shuffled"
    plots.save_differences(run, "importance", dict(largest), xlabel)
    return result
