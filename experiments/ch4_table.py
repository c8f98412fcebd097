"""Lesson 4, on any table: columns inferred from a CSV file, printed and learned from.

What separates the cells and whether decimals have a comma is found out and printed, and
so is what each column is taken for: a number, a category, a list of buckets, or
nothing. All errors of a file are named at once, before any training. A network and a
logistic regression are cross-validated on the same folds; a file of more than --part
rows has a tenth held out instead, is read in parts and never held in memory as a whole.

By default the table is that of chapter 1, the admissions.
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

import numpy as np
import pandas as pd

from jaxstudy.data.sources import ADMISSIONS
from jaxstudy.dataset import subset
from jaxstudy.messages import ValidationErrors
from jaxstudy.runs.cli import experiment
from jaxstudy.runs.export import Predictor
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.streaming import streamed
from jaxstudy.tabular.columns import Column, check_columns
from jaxstudy.tabular.comparison import (
    build_network,
    class_prior,
    compare_on_folds,
    compare_scores,
    train_ensemble,
    train_network,
)
from jaxstudy.tabular.cross_validation import (
    encode_in_parts,
    folds_at_most,
    held_out_split,
    stratified_splits,
)
from jaxstudy.tabular.figures import draw_differences, draw_scores
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.tabular.inference import class_numbers, infer_table
from jaxstudy.tabular.prediction import (
    ensemble_log_probs,
    ensemble_scores,
    predict_file,
    save_columns,
    table_predictor,
)
from jaxstudy.tabular.reading import read_text
from jaxstudy.tabular.settings import TableSettings
from jaxstudy.types import UserError

NAMES = "network", "logistic regression", "class prior"
LESSON = Lesson(
    number="4, any table",
    title="Any table",
    question="Can a network predict a table's label from columns that nobody declared?",
    metrics=(
        "network - class prior: log-loss",
        "network - class prior: accuracy",
        "network - logistic regression: log-loss",
        "network - logistic regression: accuracy",
        "network: log-loss",
        "logistic regression: log-loss",
        "class prior: log-loss",
        "network: accuracy",
        "logistic regression: accuracy",
        "class prior: accuracy",
    ),
    claims=(
        Claim("The network has a lower log-loss than the class prior, which reads no "
              "column.", ("network - class prior: log-loss", 0), "<"),
        Claim("The network is right more often than the most frequent class.",
              ("network - class prior: accuracy", 0), ">"),
        Claim("The network has a lower log-loss than a logistic regression on the same "
              "columns.", ("network - logistic regression: log-loss", 0), "<"),
    ),
    figures={
        "differences": "The log-loss of the network less that of the other two, row by "
        "row, with 95 % intervals. Left of the line the network is better; an interval "
        "that crosses the line means that these rows cannot tell.",
        "scores": "Accuracy and log-loss of held-out rows with 95 % intervals. What "
        "lies between a model and the class prior is what it learned from the columns. "
        "All models see the same rows, so overlapping intervals do not mean that two "
        "are equal: the differences above are what compares them.",
        "importance": "By how much the network's log-loss grows when one column is "
        "shuffled among the held-out rows. Of a column at 0 the network makes nothing, "
        "or other columns carry the same.",
    },
    try_it={
        "--columns gpa rank": "Without the test's points. If the log-loss stays, the "
        "other two columns carry the same, or the points say nothing.",
        "--hidden 128 64 --epochs 60": "A larger network, trained longer: on 400 rows "
        "it should lose to the regression.",
        "--part 200": "The table counts as too long for the memory: a tenth is held "
        "out, and 40 rows give wide intervals.",
    },
)  # fmt: skip


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


def cross_validate(
    table: pd.DataFrame,
    columns: Sequence[Column],
    classes: Sequence[str],
    config: Config,
    run: Run,
) -> dict[str, Estimate]:
    """A table in memory: the network and the regression on the same folds."""
    y = class_numbers(table, config.label, classes)
    folds = folds_at_most(config.folds, y, config.label)
    result = compare_on_folds(
        table, y, {"network": columns}, {"logistic regression": columns},
        stratified_splits(y, folds, config.repeats, config.seed), config, run,
    )  # fmt: skip
    fitted, _ = train_ensemble(table, y, columns, config, run)
    save_columns(run, fitted, classes)
    draw(run, result)
    return result


def hold_out(
    columns: Sequence[Column],
    classes: Sequence[str],
    n: int,
    errors: ValidationErrors,
    config: Config,
    run: Run,
) -> dict[str, Estimate]:
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
    data, scores = streamed(rows), {}
    for name, hidden, sub_run in (
        (NAMES[0], config.hidden, "all_rows"),
        (NAMES[1], (), "regression"),
    ):  # fmt: skip
        config = dataclasses.replace(config, hidden=hidden)
        model = build_network(config, len(classes), fitted.tables, len(fitted.names))
        state = train_network(
            config, run, model, subset(data, np.sort(training)),
            {"validation": subset(data, np.sort(validation))}, config.members, sub_run,
        )  # fmt: skip
        log_probs = ensemble_log_probs(model, state.params, state.extra)
        scores[name] = ensemble_scores(log_probs, rows, test, config.part)
    prior = class_prior(np.array(rows.arrays["y"]), training)
    log_probs = lambda x, _: np.tile(prior, (len(x), 1))  # noqa: E731
    scores[NAMES[2]] = ensemble_scores(log_probs, rows, test, config.part)
    shutil.rmtree(folder)
    result = compare_scores(scores)
    draw(run, result)
    return result


def draw(run: Run, result: Mapping[str, Estimate]) -> None:
    """The three models, and what the network differs by from the other two."""
    draw_differences(run, result, [(NAMES[0], other) for other in NAMES[1:]])
    draw_scores(run, "scores", result, NAMES)


def main(config: Config, run: Run) -> dict[str, Estimate]:
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
    predict_file(saved, path, functools.partial(build_network, saved.config))


def predictor(saved: Saved[Config]) -> Predictor:
    """Probabilities [B, classes] from a dict of columns, as features.json has them."""
    return table_predictor(saved, functools.partial(build_network, saved.config))


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
