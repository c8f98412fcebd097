"""Lesson 4: a table as a network's inputs, declared column by column.

A network takes numbers, and a table has more: ages with gaps, names of ports, lists of
decks. Feature columns say how each becomes numbers: scaled, in buckets, as ones and
zeros, as trained vectors, hashed, crossed with others. What that needs to know (means,
vocabularies, boundaries) is learned from training rows alone, anew in every fold of
the cross-validation, and saved with the model.

Logistic regression says who survived the Titanic, built up column kind by kind, and so
does a network on the same columns and folds. Passengers of one ticket are
in one fold, and intervals are over tickets: families died or lived together, so that
the rest of one would tell what became of those held out. Two columns of the table,
`boat` and `body`, were filled in when it was known who had survived: they are refused
as features, and one network shows the effect of target leakage; `--mistake ungrouped`,
that of folds that ignore tickets. ch4_table.py takes any other table.

Then: ch4_csv.py --predict passengers.csv
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxstudy.runs.cli import experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.tabular import figures
from jaxstudy.tabular.columns import (
    Bucketized,
    Category,
    Column,
    Crossed,
    Embedding,
    Hashed,
    Indicator,
    Numeric,
)
from jaxstudy.tabular.comparison import (
    build_network,
    compare_on_folds,
    train_ensemble,
)
from jaxstudy.tabular.cross_validation import stratified_splits
from jaxstudy.tabular.encoding import Features, cumulative, select_columns
from jaxstudy.tabular.inference import class_numbers
from jaxstudy.tabular.prediction import predict_file, save_columns
from jaxstudy.tabular.sets import read_titanic, with_titles_and_decks
from jaxstudy.tabular.settings import TableSettings
from jaxstudy.types import UserError

LEAK, ALL = "with boat and body (a leak)", "all columns"
REGRESSION, NETWORK = MODELS = "logistic regression", "network"
FULL, MARGIN = f"{NETWORK}, {ALL}", 0.02  # nats


def step(model: str, kind: str, before: str) -> str:
    """What one more kind of columns does to the log-loss."""
    return f"{model}, {kind} - {model}, {before}: log-loss"


CROSSED = "+ crossed", "+ bucketized"
LESSON = Lesson(
    number="4",
    title="Feature columns",
    question="What do feature columns buy, a regression and a network?",
    metrics=(
        step(REGRESSION, *CROSSED),
        step(NETWORK, *CROSSED),
        step(REGRESSION, "+ bucketized", "+ indicator"),
        step(NETWORK, "+ bucketized", "+ indicator"),
        f"{FULL} - {REGRESSION}, {ALL}: log-loss",
        step(NETWORK, ALL, "+ embedding"),
        f"{FULL} - {LEAK}: accuracy",
        *(f"{model}, {ALL}: {score}" for score in ("log-loss", "accuracy")
          for model in MODELS),
        "class prior: accuracy", f"{LEAK}: accuracy",
    ),
    claims=(
        Claim("Crossed columns lower the log-loss of logistic regression.",
              (step(REGRESSION, *CROSSED), 0), "<"),
        Claim("Crossed columns change the network's log-loss by less than 0.02 nats.",
              (step(NETWORK, *CROSSED), 0), "within", MARGIN),
        Claim("On all columns a network and a logistic regression have the same "
              "log-loss to within 0.02 nats.",
              (f"{FULL} - {REGRESSION}, {ALL}: log-loss", 0), "within", MARGIN),
        Claim("With all passengers of a ticket in one fold, hashed tickets, the last "
              "kind added, raise the network's log-loss.",
              (step(NETWORK, ALL, "+ embedding"), 0), ">"),
        Claim("The columns boat and body, filled in afterwards, add more than 0.1 to "
              "the network's accuracy.", (f"{FULL} - {LEAK}: accuracy", 0), "<", 0.1),
    ),
    figures={
        "columns": "Held-out log-loss of both models as kinds of columns are added "
        "from left to right, with 95 % intervals over tickets. Where a line falls, the "
        "kind helps the model. Where the regression's falls and the network's stays "
        "level, the network did without the kind. The last step, 'all columns', adds "
        "hashed tickets.",
        "differences": "What each added kind changes in the log-loss, row by row, with "
        "its 95 % interval over tickets. Left of the line it helps. An interval that "
        "crosses the line means: these folds cannot tell; one within the grey band of "
        "0.02 nats counts as no change.",
        "leakage": "The network with and without the two columns that were filled in "
        "afterwards, and the class prior, which reads no column. The distance between "
        "the first two is what target leakage fakes: no model has these columns when "
        "it is used. With --mistake, the network with that mistake stands below.",
        "importance": "By how much the network's log-loss grows when one column of the "
        "table is shuffled among the held-out rows, with all that is made of it. "
        "Columns at 0 are not used, or others carry the same.",
        "embedding": "The two numbers that one of the networks learned for each title, "
        "coloured by the share that survived, with a line to its name. If titles of "
        "one colour lie together, the network has ordered words by what they say of "
        "the label.",
    },
    try_it={
        "--columns age sex": "Two columns and what is made of them. Expect a higher "
        "log-loss than with all: pclass comes second in the figure of importance.",
        "--hidden 128 64": "A larger network. With 1,309 rows the log-loss should "
        "not fall, and may rise: it learns the training rows.",
        "--epochs 60": "Four times the training. If the log-loss rises while the "
        "accuracy stays, the network has become too sure of itself.",
    },
    mistakes={
        "ungrouped": "Folds ignore tickets. Members of a family are on both sides of a "
        "fold, and the network uses what became of the others: its log-loss looks "
        "lower than it is for new passengers.",
    },
)  # fmt: skip

CLASS = Category("pclass")
SEX, TITLE = Category("sex"), Category("title", min_count=3)
AGES = Bucketized("age", (6.0, 13.0, 18.0, 30.0, 45.0, 60.0))
KINDS: dict[str, tuple[Column, ...]] = {
    "numeric": (
        Numeric("age"), Numeric("fare", "log"), Numeric("sibsp"), Numeric("parch")
    ),
    "+ indicator": (
        Indicator(SEX), Indicator(CLASS), Indicator(Category("embarked")),
        Indicator(Category("deck", separator=" ", min_count=3)),
    ),
    "+ bucketized": (Indicator(AGES), Indicator(Bucketized("fare", 8))),
    "+ crossed": (
        Indicator(Crossed((SEX, CLASS), 12)), Indicator(Crossed((SEX, AGES), 24)),
    ),
    "+ embedding": (Embedding(TITLE, 2),),
    "+ hashed": (Indicator(Hashed("ticket", 32)),),
}  # fmt: skip
LEAKS = {
    "boat": "the lifeboat that somebody came into",
    "body": "the number of somebody found dead",
}
CLASSES = ("0", "1")  # died, survived
LEAKING = (Indicator(Hashed("boat", 40)), Numeric("body"))


@dataclass(frozen=True)
class Config(TableSettings):
    """The columns, the network, and how it is trained and cross-validated."""

    mistake: Literal["ungrouped"] | None = None
    """Also make this mistake, on as many folds: what does it fake?"""


PRESETS = {
    "smoke": Config(epochs=2, folds=2, repeats=1, members=2),
    "quick": Config(),
    "full": Config(repeats=10),
}


def without_leaks(columns: Iterable[Column]) -> tuple[Column, ...]:
    """The columns. Raises UserError where one of them gives the answer away."""
    columns = tuple(columns)
    for name in Features(columns).sources:
        if name in LEAKS:
            raise UserError(
                f"column {name!r} is {LEAKS[name]}, which nobody knew beforehand: it "
                "gives away who survived, and is no feature"
            )
    return columns


def main(config: Config, run: Run) -> dict[str, Estimate]:
    """Both models by kinds of columns, and the effect of target leakage."""
    table = with_titles_and_decks(read_titanic())
    columns = tuple(itertools.chain(*KINDS.values()))
    if config.columns is not None:
        without_leaks(Numeric(name) for name in config.columns)
        columns = select_columns(columns, config.columns)
    y = class_numbers(table, "survived", CLASSES)
    sets = cumulative(KINDS, without_leaks(columns), ALL)
    models = {
        model: {f"{model}, {kind}": chosen for kind, chosen in sets.items()}
        for model in MODELS
    }
    networks = {FULL: sets[ALL], **models[NETWORK], LEAK: (*columns, *LEAKING)}
    steps = [pair for names in models.values() for pair in itertools.pairwise(names)]
    pairs = [(later, earlier) for earlier, later in steps]
    # who travels on one ticket is of one family or party, and lives or dies together
    groups = pd.factorize(table["ticket"])[0]
    how = config.folds, config.repeats, config.seed
    ungrouped = stratified_splits(y, *how)
    result = compare_on_folds(
        table, y, networks, models[REGRESSION],
        stratified_splits(y, *how, groups), config, run, groups=groups, pairs=pairs,
        mistaken=ungrouped if config.mistake == "ungrouped" else None,
    )  # fmt: skip
    draw_comparison(run, result, [*sets], pairs)
    fitted, state = train_ensemble(table, y, columns, config, run)
    save_columns(run, fitted, CLASSES)
    for column in fitted.columns:
        if isinstance(column, Embedding) and isinstance(column.of, Category):
            vectors = state.params["embedding of title"]["embedding"][0]
            words = column.of.words or ()
            rates = [float(y[table["title"] == word].mean()) for word in words]
            figures.draw_embedding(
                run, np.asarray(vectors), words, rates, title="embedding of the title",
                label="share that survived",
            )  # fmt: skip
    return result


def draw_comparison(
    run: Run, result: Mapping[str, Any], kinds: Sequence[str], pairs: Sequence
) -> None:
    """Both models by kinds of columns, the steps between these, and the leak."""
    figures.draw_build_up(run, result, MODELS, kinds)
    shown = (*pairs, (FULL, f"{REGRESSION}, {ALL}"))
    figures.draw_differences(run, result, shown, MARGIN)
    mistakes = ["mistake"] if "mistake: accuracy" in result else []
    figures.draw_scores(run, "leakage", result, [FULL, LEAK, *mistakes, "class prior"])


def predict(saved: Saved[Config], path: Path) -> None:
    """Probabilities for the rows of a CSV file, written to the run's predictions."""
    build = functools.partial(build_network, saved.config)
    predict_file(saved, path, build, with_titles_and_decks)


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
