"""Lesson 4, on any table: columns inferred from a CSV file, printed and learned from.

What separates the cells and whether decimals have a comma is found out and printed, and
so is what each column is taken for: a number, a category, a list of buckets, or
nothing. All errors of a file are named at once, before any training. A network and a
logistic regression are cross-validated on the same folds; a file of more than --part
rows has a tenth held out instead, is read in parts and never held in memory as a whole.

By default the table is that of chapter 1, the admissions. Expected (quick, half a
minute): about 0.7 accuracy for both, hardly more than the majority class's 0.68.
Then: ch4_table.py --csv churn.csv --label left
and:  ch4_table.py --predict customers.csv
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import numpy as np
import optax
import pandas as pd

from jaxstudy import training
from jaxstudy.data.sources import ADMISSIONS
from jaxstudy.dataset import AnyDataset, streamed, subset
from jaxstudy.messages import ValidationErrors
from jaxstudy.model import Model
from jaxstudy.models.mlp import embedding_mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.tabular.columns import (
    Column,
    Table,
    check_columns,
)
from jaxstudy.tabular.comparison import (
    compare_on_folds,
    score_estimates,
    train_ensemble,
)
from jaxstudy.tabular.cross_validation import (
    encode_in_parts,
    folds_at_most,
    held_out_split,
    stratified_splits,
)
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.tabular.inference import class_numbers, infer_table
from jaxstudy.tabular.prediction import (
    ensemble_log_probs,
    ensemble_scores,
    predict_file,
    save_columns,
)
from jaxstudy.tabular.reading import read_text
from jaxstudy.tabular.settings import TableSettings
from jaxstudy.training import Evaluator
from jaxstudy.types import TrainState, UserError

LESSON = Lesson(
    number="4, any table",
    title="Any table",
    question="What does a network learn from any table?",
    metrics=(
        "network: accuracy",
        "logistic regression: accuracy",
        "majority class: accuracy",
    ),
    claims=(),
    figures={},
)


@dataclass(frozen=True)
class Config(TableSettings):
    """The table, the network, and how it is trained and cross-validated."""

    csv: Path | None = None
    """A table with a header; None: the admissions of chapter 1."""
    label: str = "admit"
    """The column to predict: two classes or more."""


PRESETS = {
    "smoke": Config(epochs=2, folds=2, repeats=1, members=2),
    "quick": Config(),
    "full": Config(repeats=10),
}


def parts(
    config: Config, errors: ValidationErrors, say: Callable[[str], None] | None = None
) -> Iterator[pd.DataFrame]:
    """The file, so many rows at a time, with the columns that are asked for."""
    tables = read_text(
        config.csv or ADMISSIONS.path, errors, config.separator, config.decimal,
        say=say, rows=config.part,
    )  # fmt: skip
    for table in tables:
        names = table.columns if config.columns is None else config.columns
        check_columns(table, [config.label, *(config.columns or ())])
        yield cast(pd.DataFrame, table[[*dict.fromkeys((*names, config.label))]])


def build(config: Config, classes: int, tables: Sequence[Table], width: int) -> Model:
    """The network, from x [B, width] and the ids of embeddings to logits."""
    return embedding_mlp(
        width, tuple(tables), config.hidden, classes, dropout=config.dropout
    )


def train(
    config: Config,
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
    eval_step = training.make_eval_step(objective)
    keys = jax.random.split(jax.random.key(config.seed), (replicas, 2))
    fitted = training.fit(
        training.init_replicas(model, optimizer, keys[:, 0]),
        training.make_train_step(objective, optimizer),
        data,
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={name: Evaluator(eval_step, s) for name, s in held_out.items()},
        log=run.sub_run(sub_run),
    )
    return fitted.state


def cross_validate(
    table: pd.DataFrame,
    columns: Sequence[Column],
    classes: Sequence[str],
    config: Config,
    run: Run,
) -> dict[str, Estimate | float]:
    """A table in memory: the network and the regression on the same folds."""
    y = class_numbers(table, config.label, classes)
    folds = folds_at_most(config.folds, y, config.label)
    build_network = functools.partial(build, config, len(classes))
    train_network = functools.partial(train, config, run)
    result = compare_on_folds(
        table, y, {"network": columns}, {"logistic regression": columns},
        stratified_splits(y, folds, config.repeats, config.seed),
        build_network, train_network, run, seed=config.seed,
    )  # fmt: skip
    fitted, _ = train_ensemble(
        table, y, columns, config.members, build_network, train_network
    )
    save_columns(run, fitted, classes)
    return result


def hold_out(
    columns: Sequence[Column],
    classes: Sequence[str],
    n: int,
    errors: ValidationErrors,
    config: Config,
    run: Run,
) -> dict[str, Estimate | float]:
    """A file of many rows: a tenth tests, a tenth is watched, the rest is learned from.

    Every pass reads it anew; encoded rows lie in the run folder while it trains.
    """
    if n < 5:  # an interval takes two
        raise UserError(f"{config.csv} has {n} rows: 5 are needed to learn and to test")
    test, validation, training = held_out_split(n, config.seed)
    folder = run.folder / "rows"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    tables = functools.partial(parts, config, errors)
    fitted, rows = encode_in_parts(
        folder, n, tables, columns, training, config.label, classes, errors
    )
    save_columns(run, fitted, classes)
    data, y = streamed(rows), np.array(rows.arrays["y"][test])
    result: dict[str, Estimate | float] = {
        "majority class: accuracy": float(np.bincount(y).max() / len(y))
    }
    for name, hidden, sub_run in (
        ("network", config.hidden, "all_rows"),
        ("logistic regression", (), "regression"),
    ):  # fmt: skip
        config = dataclasses.replace(config, hidden=hidden)
        model = build(config, len(classes), fitted.tables, len(fitted.names))
        state = train(
            config, run, model, subset(data, np.sort(training)),
            {"validation": subset(data, np.sort(validation))}, config.members, sub_run,
        )  # fmt: skip
        log_probs = ensemble_log_probs(model, state.params, state.extra)
        scores = ensemble_scores(log_probs, rows, test, config.part)
        result |= score_estimates(name, scores)
    names = ("network", "logistic regression")
    plots.save_intervals(run, result, names, ("accuracy", "log-loss"))
    shutil.rmtree(folder)
    return result


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Infer the columns of a file, print them, train and evaluate."""
    with ValidationErrors(config.csv or ADMISSIONS.path) as errors:
        table = infer_table(parts(config, errors, print), config.label, errors)
        table.print(config.label)
        columns, classes = table.inferred.columns, [*table.classes]
        # a look at every row, before any training: it tells all errors at once
        fit_columns(columns, parts(config, errors), errors)
        if table.whole is None:
            return hold_out(columns, classes, table.rows, errors, config, run)
    return cross_validate(table.whole, columns, classes, config, run)


def predict(saved: Saved[Config], path: Path) -> None:
    """Probabilities for the rows of a CSV file, written to the run's predictions."""
    predict_file(saved, path, functools.partial(build, saved.config))


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
