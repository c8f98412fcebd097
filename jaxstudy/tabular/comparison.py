"""Networks and logistic regressions on the same folds of a table, row by row."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd

from jaxstudy.dataset import AnyDataset, dataset
from jaxstudy.model import Model
from jaxstudy.models.mlp import embedding_mlp
from jaxstudy.objectives import cross_entropy
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
from jaxstudy.tabular.settings import TableSettings
from jaxstudy.training import (
    Evaluator,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, PyTree, TrainState

Splits = list[tuple[np.ndarray, np.ndarray]]  # (training, held-out rows) of each fold

RANGES = {"accuracy": SHARE, "log-loss": NONNEGATIVE}
DIFFERENCES = {"accuracy": SHARE_DIFFERENCE, "log-loss": REAL}


def build_network(
    config: TableSettings, classes: int, tables: Sequence[Table], width: int
) -> Model:
    """The network, from x [B, width] and the ids of embeddings to logits."""
    return embedding_mlp(
        width, tuple(tables), config.hidden, classes, dropout=config.dropout
    )


def train_network(
    config: TableSettings,
    run: Run,
    model: Model,
    data: AnyDataset,
    held_out: Mapping[str, AnyDataset],
    replicas: int,
    sub_run: str,
) -> TrainState:
    """Train so many replicas, each with rows or with weights of its own."""
    objective = cross_entropy(model, ("x", "ids"))
    steps = config.epochs * -(-data.indices.shape[-1] // config.batch_size)
    rate = optax.cosine_decay_schedule(config.rate, steps)
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)
    eval_step = make_eval_step(objective)
    keys = jax.random.split(jax.random.key(config.seed), (replicas, 2))
    fitted = fit(
        init_replicas(model, optimizer, keys[:, 0]),
        make_train_step(objective, optimizer),
        data,
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={name: Evaluator(eval_step, s) for name, s in held_out.items()},
        evaluate_first=False,  # which would be a program of its own
        log=run.sub_run(sub_run),
    )
    return fitted.state


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
    config: TableSettings,
    run: Run,
) -> tuple[Features, TrainState]:
    """Networks of all rows, which predict together: the sub-run "all_rows"."""
    fitted = fit_columns(columns, table)
    encoded = fitted.encode(fitted.numbers(table))
    classes, width = int(y.max()) + 1, encoded.x.shape[1]
    model = build_network(config, classes, fitted.tables, width)
    data = dataset({**encoded._asdict(), "y": y})
    return fitted, train_network(
        config, run, model, data, {}, config.members, "all_rows"
    )


def class_prior(y: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Log-probabilities [K] of the classes of y, by their shares in the training rows.

    What a model that reads no column can say: the most frequent class, for every row.
    Each class counts once more (Laplace), for one may be in no training row.
    """
    counts = np.bincount(y[training], minlength=int(y.max()) + 1) + 1
    return np.log(counts / counts.sum())


def compare_scores(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    groups: np.ndarray | None = None,
    pairs: Sequence[tuple[str, str]] = (),
) -> dict[str, Estimate]:
    """Scores [N] of several models on the same rows, and what they differ by.

    a - b is paired by row: for the first model and each other, and for more `pairs`.
    """
    first, *others = scores
    result: dict[str, Estimate] = {}
    for name, of_rows in scores.items():
        result |= score_estimates(name, of_rows, groups)
    for a, b in (*((first, name) for name in others), *pairs):
        gaps = {metric: scores[a][metric] - scores[b][metric] for metric in scores[a]}
        result |= score_estimates(f"{a} - {b}", gaps, groups, DIFFERENCES)
    return result


def as_indicator(column: Column) -> Column:
    """What logistic regression gets in the place of an embedding."""
    return Indicator(column.of) if isinstance(column, Embedding) else column


def compare_on_folds(
    table: pd.DataFrame,
    y: np.ndarray,
    networks: Mapping[str, Sequence[Column]],
    regressions: Mapping[str, Sequence[Column]],
    splits: Splits,
    config: TableSettings,
    run: Run,
    *,
    groups: np.ndarray | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    mistaken: Splits | None = None,
) -> dict[str, Estimate]:
    """Cross-validate networks and logistic regressions on the same folds.

    Beside them stands the class prior, which reads no column.

    Args:
        table, y: the rows, and their classes [N].
        networks: the columns of each network; the first is compared with all others,
            and the importance of its columns is measured.
        regressions: the columns of each logistic regression.
        splits: (training rows, held-out rows) of every fold.
        config: the network, how it is trained, and the seed of the shuffling.
        run: where all is logged, a sub-run for each network, a replica for each fold.
        groups: [N], the unit that intervals are over: rows of one are dependent.
        pairs: (a, b), others to compare: a - b is a metric, too.
        mistaken: the folds of a mistake: the first network is cross-validated on these,
            too, and compared with itself.
    """
    first = next(iter(networks))
    scores, changes = {}, {}

    def network(folds: Folds, name: str) -> PredictLogProbs:
        model = build_network(config, int(y.max()) + 1, folds.tables, folds.width)
        state = train_network(
            config, run, model, folds.subsets(held_out=False),
            {"validation": folds.subsets(held_out=True)},
            len(folds.splits), re.sub(r"\W+", "_", name),
        )  # fmt: skip
        predict = fold_log_probs(folds, model, state.params, state.extra)
        scores[name] = held_out_scores(folds, predict(folds.data.arrays), y)
        return predict

    for name in run.each([*networks]):
        folds = make_folds(table, y, networks[name], splits)
        predict = network(folds, name)
        if name == first:
            prior = [np.tile(class_prior(y, t), (len(h), 1)) for t, h in splits]
            scores["class prior"] = held_out_scores(folds, prior, y)
            changes = {
                column: mean_over_cases(change, "rows", REAL, groups)
                for column, change in importance(folds, predict, y, config.seed).items()
            }
    for name, columns in regressions.items():
        folds = make_folds(table, y, [*map(as_indicator, columns)], splits)
        scores[name] = held_out_scores(folds, logistic_regression_baseline(folds), y)
    result = compare_scores(scores, groups, pairs)
    if mistaken is not None:
        network(make_folds(table, y, networks[first], mistaken), "mistake")
        both = {"mistake": scores["mistake"], "right": scores[first]}
        result |= compare_scores(both, groups)
    for column, change in changes.items():
        result[f"log-loss when {column} is shuffled: increase"] = change
    largest = sorted(changes.items(), key=lambda item: -item[1].mean)
    xlabel = "increase of the held-out log-loss when shuffled [nats]"
    plots.save_differences(run, "importance", dict(largest), xlabel)
    return result
