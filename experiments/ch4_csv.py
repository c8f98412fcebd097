"""Lesson 4: a table as a network's inputs, declared column by column.

A network takes numbers, and a table has more: ages with gaps, names of ports, lists of
decks. Feature columns say how each becomes numbers: scaled, in buckets, as ones and
zeros, as trained vectors, hashed, crossed with others. What that needs to know (means,
vocabularies, boundaries) is learned from training rows alone, anew in every fold of
the cross-validation, and saved with the model.

Who survived the Titanic is told by a network from all kinds of columns, then without
each kind in turn, beside logistic regression on the same folds. Passengers of one
ticket are in one fold, and intervals are over tickets: families died or lived together,
so that the rest of one would tell what became of those held out. Two columns of the
table, `boat` and `body`, were filled in when it was known who had survived: they are
refused as features, and one run shows the effect of target leakage. ch4_table.py takes
any other table.

Expected (quick, about a minute): about 0.8 accuracy for the network, and as much for a
logistic regression that gets all columns: the columns matter more than the layers. No
kind of column is missed by much, since others carry the same; sex is the one source
that is. With the leak: 0.97. Full (results/ch4_csv.json): the same, with intervals;
with tickets in one fold no difference between network and regressions can be told.
Then: ch4_csv.py --predict passengers.csv
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import pandas as pd

from jaxstudy.dataset import Dataset
from jaxstudy.model import Model
from jaxstudy.models.mlp import embedding_mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs.cli import experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.tabular.columns import (
    Bucketized,
    Category,
    Column,
    Crossed,
    Embedding,
    Hashed,
    Indicator,
    Numeric,
    Table,
)
from jaxstudy.tabular.comparison import compare_on_folds, train_ensemble
from jaxstudy.tabular.cross_validation import stratified_splits
from jaxstudy.tabular.encoding import Features, select_columns
from jaxstudy.tabular.figures import draw_embedding
from jaxstudy.tabular.inference import class_numbers
from jaxstudy.tabular.prediction import predict_file, save_columns
from jaxstudy.tabular.sets import read_titanic, with_titles_and_decks
from jaxstudy.tabular.settings import TableSettings
from jaxstudy.training import (
    Evaluator,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import TrainState, UserError

LESSON = Lesson(
    number="4",
    title="Feature columns",
    question="What do feature columns buy?",
    metrics=(
        "network: accuracy",
        "logistic regression: accuracy",
        "network - logistic regression: accuracy",
        "network - logistic regression, all columns: accuracy",
        "network - logistic regression, all columns: log-loss",
        "with boat and body (a leak): accuracy",
        "log-loss when sex is shuffled: increase",
    ),
    claims=(),
    figures={},
)

CLASS = Category("pclass")
SEX, TITLE = Category("sex"), Category("title", min_count=3)
AGES = Bucketized("age", (6.0, 13.0, 18.0, 30.0, 45.0, 60.0))
KINDS: dict[str, tuple[Column, ...]] = {
    "numeric": (
        Numeric("age"), Numeric("fare", "log"), Numeric("sibsp"), Numeric("parch")
    ),
    "bucketized": (Indicator(AGES), Indicator(Bucketized("fare", 8))),
    "indicator": (
        Indicator(SEX), Indicator(CLASS), Indicator(Category("embarked")),
        Indicator(Category("deck", separator=" ", min_count=3)),
    ),
    "embedding": (Embedding(TITLE, 2),),
    "hashed": (Indicator(Hashed("ticket", 32)),),
    "crossed": (
        Indicator(Crossed((SEX, CLASS), 12)), Indicator(Crossed((SEX, AGES), 24)),
    ),
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


def build(config: Config, classes: int, tables: Sequence[Table], width: int) -> Model:
    """The network, from x [B, width] and the ids of embeddings to logits."""
    return embedding_mlp(
        width, tuple(tables), config.hidden, classes, dropout=config.dropout
    )


def train(
    config: Config,
    run: Run,
    model: Model,
    data: Dataset,
    held_out: Mapping[str, Dataset],
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
        log=run.sub_run(sub_run),
    )
    return fitted.state


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """An ablation by kind of column, and the effect of target leakage."""
    table = with_titles_and_decks(read_titanic())
    columns = tuple(itertools.chain(*KINDS.values()))
    if config.columns is not None:
        without_leaks(Numeric(name) for name in config.columns)
        columns = select_columns(columns, config.columns)
    y = class_numbers(table, "survived", CLASSES)
    networks = {"network": without_leaks(columns)}
    for kind, of_kind in KINDS.items():
        if 0 < len({*columns} & {*of_kind}) < len(columns):
            rest = tuple(c for c in columns if c not in of_kind)
            networks[f"without {kind}"] = rest
    networks["with boat and body (a leak)"] = (*columns, *LEAKING)
    usual = {*KINDS["numeric"], *KINDS["indicator"]} & {*columns}
    regressions = {
        "logistic regression": tuple(c for c in columns if c in usual) or columns,
        "logistic regression, all columns": columns,
    }
    build_network = functools.partial(build, config, len(CLASSES))
    train_network = functools.partial(train, config, run)
    # who travels on one ticket is of one family or party, and lives or dies together
    groups = pd.factorize(table["ticket"])[0]
    result = compare_on_folds(
        table, y, networks, regressions,
        stratified_splits(y, config.folds, config.repeats, config.seed, groups),
        build_network, train_network, run, seed=config.seed, groups=groups,
    )  # fmt: skip
    fitted, state = train_ensemble(
        table, y, columns, config.members, build_network, train_network
    )
    save_columns(run, fitted, CLASSES)
    for column in fitted.columns:
        if isinstance(column, Embedding) and isinstance(column.of, Category):
            vectors = state.params["embedding of title"]["embedding"][0]
            words = column.of.words or ()
            rates = [float(y[table["title"] == word].mean()) for word in words]
            draw_embedding(
                run, np.asarray(vectors), words, rates, title="embedding of the title",
                label="share that survived",
            )  # fmt: skip
    return result


def predict(saved: Saved[Config], path: Path) -> None:
    """Probabilities for the rows of a CSV file, written to the run's predictions."""
    predict_file(
        saved, path, functools.partial(build, saved.config), with_titles_and_decks
    )


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
