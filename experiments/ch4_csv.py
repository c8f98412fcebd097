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
refused as features, and one run shows the effect of target leakage.

With --csv FILE --label COLUMN the columns of any other table are inferred and printed;
a file of many rows is read in parts and never held in memory as a whole. What separates
the cells and whether decimals have a comma is found out, and said.

Expected (quick, about a minute): about 0.8 accuracy for the network, and as much for a
logistic regression that gets all columns: the columns matter more than the layers. No
kind of column is missed by much, since others carry the same; sex is the one source
that is. With the leak: 0.97. Full (results/ch4_csv.json): the same, with intervals;
with tickets in one fold no difference between network and regressions can be told.
Then: ch4_csv.py --predict passengers.csv
"""

import dataclasses
import itertools
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import jax
import numpy as np
import optax
import pandas as pd
import pydantic

from jaxstudy.dataset import (
    Dataset,
    StreamedDataset,
    dataset,
    stacked_subsets,
    streamed,
    subset,
)
from jaxstudy.messages import ValidationErrors, shortened, warn
from jaxstudy.model import Model
from jaxstudy.models.mlp import embedding_mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved, read_sealed, write_atomically
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    Range,
    mean_over_cases,
)
from jaxstudy.tabular import features
from jaxstudy.tabular.cross_validation import (
    Folds,
    PredictLogProbs,
    Rows,
    held_out_scores,
    importance,
    logistic_regression_baseline,
    make_folds,
    stratified_splits,
)
from jaxstudy.tabular.features import (
    Bucketized,
    Category,
    Column,
    Crossed,
    Embedding,
    Features,
    Hashed,
    Indicator,
    Numeric,
    Table,
)
from jaxstudy.tabular.reading import (
    read_text,
    read_titanic,
    without_formulas,
)
from jaxstudy.training import (
    Evaluator,
    TrainState,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, PyTree, UserError

LESSON = Lesson(
    number="4",
    title="Columns of a table scaled, bucketed, embedded, hashed, crossed: who "
    "survived the Titanic, beside logistic regression on the same folds; the "
    "effect of target leakage",
    headline={
        "network: accuracy": "cross-validated accuracy: network",
        "logistic regression: accuracy": "logistic regression",
        "network - logistic regression: accuracy": "network less that",
        "network - logistic regression, all columns: accuracy": (
            "network less one that gets all columns"
        ),
        "network - logistic regression, all columns: log-loss": (
            "log-loss, network less that"
        ),
        "with boat and body (a leak): accuracy": "with a leak",
        "log-loss when sex is shuffled: increase": (
            "log-loss when sex is shuffled: increase"
        ),
    },
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
LEAKING = (Indicator(Hashed("boat", 40)), Numeric("body"))
MOST_CLASSES = 50
RANGES = {"accuracy": SHARE, "log-loss": NONNEGATIVE}
DIFFERENCES = {"accuracy": SHARE_DIFFERENCE, "log-loss": REAL}
FEATURES, LABELS = "features.json", "labels.json"  # in the run folder


@dataclass(frozen=True)
class Config(Settings):
    """The table, the network, and how it is trained and cross-validated."""

    csv: Path | None = None
    """Another table, with a header; by default the passengers of the Titanic."""
    label: str = "survived"
    """The column of that table to predict: two classes or more."""
    columns: tuple[str, ...] | None = None
    """Columns of the table to learn from; None: all that may be used."""
    separator: str | None = None
    """What separates the cells of --csv and --predict, or tab; None: found out."""
    decimal: Literal[".", ","] | None = None
    """The decimal sign of their numbers; None: found out."""
    hidden: tuple[Count, ...] = (32,)
    """Widths of the hidden layers."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.3
    """Share of their outputs that is left out in a training step."""
    epochs: Count = 15
    """Passes over the rows."""
    batch_size: Count = 32
    """Rows in a gradient step."""
    rate: Positive = 0.003
    """Learning rate of AdamW at the start; it falls to 0 along a cosine."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.01
    """What AdamW takes of each weight, times the rate, at every step."""
    folds: Annotated[int, pydantic.Field(ge=2)] = 10
    """Parts of the cross-validation."""
    repeats: Count = 2
    """Cross-validations, each with folds and weights of its own."""
    members: Annotated[int, pydantic.Field(ge=2)] = 4
    """Networks of all rows that predict together; an even number shares two cores."""
    part: Count = 100_000
    """Rows of a file that are read at a time; one with more has a part held out in the
    place of a cross-validation, and is never in memory as a whole."""


PRESETS = {
    "smoke": Config(epochs=2, folds=2, repeats=1, members=2),
    "quick": Config(),
    "full": Config(repeats=10),
}


# ------------------------------------------------------------------ the passengers


# of what columns two more are made, and how: "Rev", and "C D", the decks of some cabins
DERIVED: dict[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
    "title": ("name", lambda s: s.str.extract(r",\s*(?:the )?([^\s.]+)")[0]),
    "deck": ("cabin", lambda s: s.str.findall("[A-Z]").str.join(" ")),
}


def with_titles_and_decks(
    table: pd.DataFrame, needed: Sequence[str] = ()
) -> pd.DataFrame:
    """The two columns more, of those that are there.

    Raises UserError where one is needed and neither it nor what it is made of is there.
    """
    more = {}
    for name, (source, read) in DERIVED.items():
        if source in table or (name in needed and name not in table):
            features.check_columns(table, [source])
            more[name] = read(cast(pd.Series, table[source]))
    return table.assign(**more)


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


def of_sources(columns: Sequence[Column], names: Sequence[str]) -> tuple[Column, ...]:
    """The columns that read nothing but some columns of the table.

    Raises UserError where there is none for one of these names.
    """
    kept = tuple(c for c in columns if {*Features((c,)).sources} <= {*names})
    known = Features(tuple(columns)).sources
    for name in names:
        if name not in known:
            features.check_columns(pd.DataFrame(columns=list(known)), [name])
    return kept


# ------------------------------------------------------------------ one network


def build(tables: Sequence[Table], width: int, classes: int, config: Config) -> Model:
    """The network, from x [B, width] and the ids of embeddings to logits."""
    return embedding_mlp(
        width, tuple(tables), config.hidden, classes, dropout=config.dropout
    )


class Trained(NamedTuple):
    """A network and its replicas' weights."""

    model: Model
    state: TrainState


def train(
    model: Model,
    data: Dataset | StreamedDataset,
    validation: Dataset | StreamedDataset | None,
    replicas: int,
    config: Config,
    run: Run,
    name: str,
) -> Trained:
    """Train so many replicas, each with rows or with weights of its own."""
    objective = cross_entropy(model, ("x", "ids"))
    steps = config.epochs * -(-data.indices.shape[-1] // config.batch_size)
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(config.rate, steps),
        weight_decay=config.weight_decay,
    )
    keys = jax.random.split(jax.random.key(config.seed), (replicas, 2))
    fitted = fit(
        init_replicas(model, optimizer, keys[:, 0]),
        make_train_step(objective, optimizer),
        data,
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluators={}
        if validation is None
        else {"validation": Evaluator(make_eval_step(objective), validation)},
        log=run.sub_run(name),
    )
    return Trained(model, fitted.state)


# ------------------------------------------------------------------ cross-validation


def cross_validate(
    folds: Folds, classes: int, config: Config, run: Run, name: str
) -> Trained:
    """Train the network on every fold: a replica each."""
    of_folds = zip(*(f.tables for f in folds.fitted), strict=True)
    tables = [max(same, key=lambda table: table.size) for same in of_folds]
    model = build(tables, folds.data.arrays["x"].shape[1], classes, config)
    return train(
        model, stacked_subsets(folds.data, folds.rows(held_out=False)),
        stacked_subsets(folds.data, folds.rows(held_out=True)), len(folds.splits),
        config, run, name,
    )  # fmt: skip


def of_network(folds: Folds, trained: Trained) -> PredictLogProbs:
    """Log-probabilities of the rows that each fold holds out, from encoded rows."""
    held_out = stacked_subsets(folds.data, folds.rows(held_out=True))
    weights = trained.state.params, trained.state.extra

    @jax.jit
    def all_replicas(x: Array, ids: Array) -> Array:
        def one(replica: tuple[Any, Array]) -> Array:
            (params, extra), rows = replica
            logits, _ = trained.model.apply(
                params, extra, x[rows], ids[rows], train=False, key=None
            )
            return jax.nn.log_softmax(logits)

        return jax.lax.map(one, (weights, held_out.indices))

    def said(arrays: Mapping[str, Any]) -> list[np.ndarray]:
        log_p = np.asarray(all_replicas(arrays["x"], arrays["ids"]))
        valid = np.asarray(held_out.mask)
        return [own[real] for own, real in zip(log_p, valid, strict=True)]

    return said


def estimates(
    name: str,
    scores: Mapping[str, np.ndarray],
    groups: np.ndarray | None,
    within: Mapping[str, Range] = RANGES,
) -> dict[str, Estimate]:
    """Scores [N] of the rows as metrics."""
    return {
        f"{name}: {score}": mean_over_cases(values, "rows", within[score], groups)
        for score, values in scores.items()
    }


def as_indicator(column: Column) -> Column:
    """What logistic regression gets in the place of an embedding."""
    return Indicator(column.of) if isinstance(column, Embedding) else column


def compare(
    table: pd.DataFrame,
    y: np.ndarray,
    variants: Mapping[str, Sequence[Column]],
    regressions: Mapping[str, Sequence[Column]],
    config: Config,
    run: Run,
    groups: np.ndarray | None = None,
) -> dict[str, Estimate | float]:
    """Cross-validate networks and regressions on the same folds; the first is compared.

    And which columns the first one needs. Rows of one of `groups` [N] are in one fold.
    """
    splits = stratified_splits(y, config.folds, config.repeats, config.seed, groups)
    first = next(iter(variants))
    result: dict[str, Estimate | float] = {
        "majority class: accuracy": float(np.bincount(y).max() / len(y))
    }
    scores, changes = {}, {}
    for name, columns in variants.items():
        folds = make_folds(table, y, columns, splits)
        part = re.sub(r"\W+", "_", name)
        trained = cross_validate(folds, y.max() + 1, config, run, part)
        said = of_network(folds, trained)
        scores[name] = held_out_scores(folds, said(folds.data.arrays), y)
        if name == first:
            changes = {
                column: mean_over_cases(change, "rows", REAL, groups)
                for column, change in importance(folds, said, y, config.seed).items()
            }
    for name, columns in regressions.items():
        folds = make_folds(table, y, [*map(as_indicator, columns)], splits)
        scores[name] = held_out_scores(folds, logistic_regression_baseline(folds), y)
    for name, own in scores.items():
        result |= estimates(name, own, groups)
        if name != first:
            gaps = {score: scores[first][score] - own[score] for score in own}
            result |= estimates(f"{first} - {name}", gaps, groups, DIFFERENCES)
    for column, change in changes.items():
        result[f"log-loss when {column} is shuffled: increase"] = change
    names = [*variants, *regressions]
    plots.save_intervals(run, result, names, ("accuracy", "log-loss"))
    gaps = {
        name: mean_over_cases(
            own["log-loss"] - scores[first]["log-loss"], "rows, paired", REAL, groups
        )
        for name, own in scores.items()
        if name != first
    }
    plots.save_differences(run, "differences", gaps, f"log-loss less that of {first}")
    largest = sorted(changes.items(), key=lambda item: -item[1].mean)
    xlabel = "increase of the held-out log-loss when shuffled"
    plots.save_differences(run, "importance", dict(largest), xlabel)
    return result


# ------------------------------------------------------------------ figures


def draw_embedding(
    run: Run, vectors: np.ndarray, words: Sequence[str], rates: Sequence[float]
) -> None:
    """Vectors [words + 2, 2] of a vocabulary, coloured by the share that survived."""
    figure, axis = plots.subplots(figsize=(6, 4.6))
    known = vectors[features.UNKNOWN + 1 :]
    dots = axis.scatter(*known.T, c=rates, cmap="coolwarm_r", s=80, vmin=0, vmax=1)
    ranks = known[:, 1].argsort().argsort()  # neighbours are named on both sides
    for word, place, rank in zip(words, known, ranks, strict=True):
        axis.annotate(
            word, place, textcoords="offset points", va="center",
            xytext=(8, 0) if rank % 2 else (-8, 0), ha="left" if rank % 2 else "right",
        )  # fmt: skip
    figure.colorbar(dots, label="share that survived")
    axis.set(title="embedding of the title", xlabel="1", ylabel="2")
    axis.margins(0.15)
    axis.grid(alpha=0.3)
    plots.save(figure, run, "embedding")


# ------------------------------------------------------------------ all of a table


def label_values(
    table: pd.DataFrame, name: str, errors: ValidationErrors
) -> Counter[str]:
    """The labels of some rows; a missing one is a fault."""
    labels = cast(pd.Series, table[name])
    for row in table.index[labels.isna().to_numpy()]:
        errors.add(f"row {row}, column {name!r}: is missing")
    return Counter(labels.dropna())


def classes_of(labels: Counter[str], name: str) -> tuple[str, ...]:
    """The classes in order; prints them. Of numbers, 1 and 1.0 are the same.

    Raises UserError where there is one alone, or so many that it is no class.
    """
    meant, counts = features.one_spelling(labels), Counter[str]()
    for label, count in labels.items():
        counts[meant[label] or label] += count
    if len(counts) < 2:
        shown = (
            f"{shortened(repr(next(iter(counts))))} in every row" if counts else "empty"
        )
        raise UserError(f"the label {name!r} is {shown}: there is nothing to tell")
    if len(counts) > MOST_CLASSES:
        raise UserError(
            f"the label {name!r} has {len(counts)} different values, more than the "
            f"{MOST_CLASSES} classes that this lesson tells apart"
        )
    numbers = all(map(features.plain_number, counts))
    order = sorted(counts, key=float if numbers else None)
    shown = ", ".join(f"{shortened(c)} ({counts[c]} rows)" for c in order)
    print(f"{name}: {len(order)} classes, {shown}")
    return tuple(order)


def numbered(table: pd.DataFrame, name: str, classes: Sequence[str]) -> np.ndarray:
    """Labels as numbers of their class."""
    meant = [*map(features.spelling(classes), table[name])]
    return pd.Index(classes).get_indexer(meant).astype(np.int32)


def train_members(
    table: pd.DataFrame,
    y: np.ndarray,
    columns: Sequence[Column],
    classes: Sequence[str],
    config: Config,
    run: Run,
) -> tuple[Features, Trained]:
    """Networks of all rows, which --predict takes; saved with their columns."""
    fitted = features.fit(columns, table)
    encoded = fitted.encode(fitted.numbers(table))
    run.write_sealed(FEATURES, fitted)
    run.write_sealed(LABELS, tuple(classes))
    model = build(fitted.tables, encoded.x.shape[1], len(classes), config)
    data = dataset({**encoded._asdict(), "y": y})
    return fitted, train(model, data, None, config.members, config, run, "all_rows")


def passengers(config: Config, run: Run) -> dict[str, Estimate | float]:
    """The Titanic: an ablation by kind of column, and the effect of target leakage."""
    table = with_titles_and_decks(read_titanic())
    columns = tuple(itertools.chain(*KINDS.values()))
    if config.columns is not None:
        without_leaks(Numeric(name) for name in config.columns)
        columns = of_sources(columns, config.columns)
    y = numbered(table, "survived", ("0", "1"))
    variants = {"network": without_leaks(columns)}
    for kind, own in KINDS.items():
        if 0 < len({*columns} & {*own}) < len(columns):
            variants[f"without {kind}"] = tuple(c for c in columns if c not in own)
    variants["with boat and body (a leak)"] = (*columns, *LEAKING)
    usual = {*KINDS["numeric"], *KINDS["indicator"]} & {*columns}
    regressions = {
        "logistic regression": tuple(c for c in columns if c in usual) or columns,
        "logistic regression, all columns": columns,
    }
    # who travels on one ticket is of one family or party, and lives or dies together
    groups = pd.factorize(table["ticket"])[0]
    result = compare(table, y, variants, regressions, config, run, groups)
    fitted, trained = train_members(table, y, columns, ("0", "1"), config, run)
    for column in fitted.columns:
        if isinstance(column, Embedding) and isinstance(column.of, Category):
            vectors = trained.state.params["embedding of title"]["embedding"][0]
            words = column.of.words or ()
            rates = [float(y[table["title"] == word].mean()) for word in words]
            draw_embedding(run, np.asarray(vectors), words, rates)
    return result


# ------------------------------------------------------------------ any other table


def parts(
    config: Config, errors: ValidationErrors, say: Callable[[str], None] | None = None
) -> Iterator[pd.DataFrame]:
    """The file, so many rows at a time, with the columns that are asked for."""
    assert config.csv is not None
    tables = read_text(
        config.csv, errors, config.separator, config.decimal, say=say, rows=config.part
    )
    for table in tables:
        features.check_columns(table, [config.label, *(config.columns or ())])
        if config.columns is None:
            yield table
        else:
            yield cast(
                pd.DataFrame, table[[*dict.fromkeys((*config.columns, config.label))]]
            )


def tell_missing_words(words: Mapping[str, Mapping[str, int]]) -> None:
    """Say what was taken for a missing number."""
    for name, counts in words.items():
        for word, count in counts.items():
            print(f"{name}: {word!r} in {count} rows counts as missing")


def any_table(config: Config, run: Run) -> dict[str, Estimate | float]:
    """A file of CSV: infer its columns, print them, train, evaluate."""
    assert config.csv is not None
    labels, rows = Counter[str](), 0
    only: pd.DataFrame | None = None  # the whole table, if it is one part

    def seen() -> Iterator[pd.DataFrame]:
        nonlocal only, rows
        for table in parts(config, errors, print):
            labels.update(label_values(table, config.label, errors))
            only, rows = table if rows == 0 else None, rows + len(table)
            yield table

    with ValidationErrors(config.csv) as errors:
        inferred = features.infer(seen(), config.label)
        classes = classes_of(labels, config.label)
        for column in inferred.columns:
            print(f"{features.name_of(column)}: {features.describe(column)}")
        for name, why in inferred.left_out.items():
            print(f"{name}: left out, for it {why}")
        tell_missing_words(inferred.missing_words)
        # a look at every row, before any training: it tells all faults at once
        features.fit(inferred.columns, parts(config, errors), errors)
        if only is None:
            return held_out(inferred.columns, classes, rows, errors, config, run)
    y = numbered(only, config.label, classes)
    few = np.bincount(y).min()
    if few < 2:
        raise UserError(
            f"the label {config.label!r} has a class of {few} rows, fewer than the "
            "2 folds that a cross-validation needs"
        )
    if few < config.folds:
        warn(f"{few} folds, not {config.folds}: a class has no more rows than that")
        config = dataclasses.replace(config, folds=int(few))
    result = compare(
        only, y, {"network": inferred.columns},
        {"logistic regression": inferred.columns}, config, run,
    )  # fmt: skip
    train_members(only, y, inferred.columns, classes, config, run)
    return result


def held_out(
    columns: Sequence[Column],
    classes: Sequence[str],
    n: int,
    errors: ValidationErrors,
    config: Config,
    run: Run,
) -> dict[str, Estimate | float]:
    """A file of many rows: a tenth tests, a tenth is watched, the rest is learned from.

    Every pass reads it anew, a part at a time; encoded rows lie in the run folder while
    it trains.
    """
    if n < 5:  # an interval takes two
        raise UserError(f"{config.csv} has {n} rows: 5 are needed to learn and to test")
    order = np.random.default_rng(config.seed).permutation(n)
    tenth = max(n // 10, 2)
    test, validation, training = np.split(order, [tenth, 2 * tenth])
    learns = np.zeros(n, bool)
    learns[training] = True

    def training_rows() -> Iterator[pd.DataFrame]:
        begin = 0
        for table in parts(config, errors):
            yield table.iloc[learns[begin : begin + len(table)]]
            begin += len(table)

    fitted = features.fit(columns, training_rows(), errors)
    run.write_sealed(FEATURES, fitted)
    run.write_sealed(LABELS, tuple(classes))
    folder, begin, rows = run.folder / "rows", 0, None
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    for table in parts(config, errors):
        encoded = fitted.encode(fitted.numbers(table))
        rows = rows or Rows(folder, n, encoded)
        end = begin + len(table)
        rows.arrays["x"][begin:end], rows.arrays["ids"][begin:end] = encoded
        rows.arrays["y"][begin:end] = numbered(table, config.label, classes)
        begin = end
    assert rows is not None
    data, y = streamed(rows), np.array(rows.arrays["y"][test])
    result: dict[str, Estimate | float] = {
        "majority class: accuracy": float(np.bincount(y).max() / len(y))
    }
    for name, hidden in (("network", config.hidden), ("logistic regression", ())):
        own = dataclasses.replace(config, hidden=hidden)
        model = build(fitted.tables, rows.arrays["x"].shape[1], len(classes), own)
        part = "all_rows" if name == "network" else "regression"
        trained = train(
            model, subset(data, np.sort(training)), subset(data, np.sort(validation)),
            config.members, own, run, part,
        )  # fmt: skip
        said = members_of(model, trained.state.params, trained.state.extra)
        log_p = np.concatenate(
            [
                said(rows.arrays["x"][some], rows.arrays["ids"][some])
                for some in np.array_split(test, -(-n // config.part))
            ]
        )
        right = (log_p.argmax(1) == y).astype(float)
        loss = -log_p[np.arange(len(y)), y]
        result |= estimates(name, {"accuracy": right, "log-loss": loss}, None)
    plots.save_intervals(
        run, result, ("network", "logistic regression"), ("accuracy", "log-loss")
    )
    shutil.rmtree(folder)
    return result


def members_of(
    model: Model, params: PyTree, extra: PyTree
) -> Callable[..., np.ndarray]:
    """Log-probabilities [N, classes], the means of all members', from x and ids."""

    @jax.jit
    def said(x: Array, ids: Array) -> Array:
        def one(member: tuple[PyTree, PyTree]) -> Array:
            logits, _ = model.apply(*member, x, ids, train=False, key=None)
            return jax.nn.log_softmax(logits)

        log_p = jax.lax.map(one, (params, extra))
        return jax.scipy.special.logsumexp(log_p, axis=0) - math.log(len(log_p))

    return lambda x, ids: np.asarray(said(x, ids))


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Cross-validate and compare; save networks of all rows, and their columns."""
    return (passengers if config.csv is None else any_table)(config, run)


def predict(saved: Saved[Config], path: Path) -> None:
    """Probabilities for the rows of a CSV file, written to the run's predictions."""
    config = saved.config
    fitted = read_sealed(saved.folder, FEATURES, Features)
    classes = read_sealed(saved.folder, LABELS, tuple[str, ...])
    numbers, missing = list[features.Numbers](), dict[str, Counter[str]]()
    with ValidationErrors(path) as errors:
        tables = read_text(
            path, errors, config.separator, config.decimal, say=print, rows=config.part
        )
        for table in tables:
            if config.csv is None:
                table = with_titles_and_decks(table, fitted.sources)
            numbers.append(fitted.numbers(table, errors))
            for name, words in fitted.missing_words(table).items():
                missing[name] = missing.get(name, Counter()) + words
    tell_missing_words(missing)
    model = build(fitted.tables, len(fitted.names), len(classes), config)
    weights = saved.replica_weights(model, config.members, "all_rows")
    said = members_of(model, weights["params"], weights["extra"])
    p = np.exp(np.concatenate([said(*fitted.encode(own)) for own in numbers]))
    for name, count in fitted.unknown(numbers).items():
        warn(f"in {count} rows column {name!r} has a word outside the vocabulary")
    columns = {f"probability of {c}": p[:, i] for i, c in enumerate(classes)}
    shown = np.array([*map(without_formulas, classes)])
    told = pd.DataFrame({**columns, "predicted": shown[p.argmax(1)]})
    (saved.folder / "predictions").mkdir(exist_ok=True)
    told.index += 1
    target = saved.folder / "predictions" / f"{path.stem}.csv"
    write_atomically(target, told.to_csv(index_label="row", float_format="%.6f"))
    print(told.describe().loc[["mean", "min", "max"]].to_string())
    print(f"written to {target}")


if __name__ == "__main__":
    experiment(main, PRESETS, predict=predict)
