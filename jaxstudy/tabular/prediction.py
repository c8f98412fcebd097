"""Predictions for the rows of a file, by networks that are saved with their columns."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxstudy.messages import ValidationErrors, warn
from jaxstudy.model import Model
from jaxstudy.runs.export import Predictor, mean_probabilities
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved, read_sealed
from jaxstudy.tabular.cells import scale
from jaxstudy.tabular.columns import Category, Numeric, Table, key_of, leaves_of
from jaxstudy.tabular.cross_validation import EncodedRows
from jaxstudy.tabular.encoding import Features, Numbers
from jaxstudy.tabular.inference import print_missing_words
from jaxstudy.tabular.nested import logits_of
from jaxstudy.tabular.reading import read_text, without_formulas
from jaxstudy.types import Array, PyTree

FEATURES, LABELS = "features.json", "labels.json"  # in the run folder


def save_columns(run: Run, fitted: Features, classes: Sequence[str]) -> None:
    """Write what predicting needs beside the weights."""
    run.write_sealed(FEATURES, fitted)
    run.write_sealed(LABELS, tuple(classes))


def read_columns(folder: Path) -> tuple[Features, tuple[str, ...]]:
    """The fitted columns and the classes of a saved run."""
    return (
        read_sealed(folder, FEATURES, Features),
        read_sealed(folder, LABELS, tuple[str, ...]),
    )


def predict_file(
    saved: Saved[Any],
    path: Path,
    build: Callable[[int, Sequence[Table], int], Model],
    prepare: Callable[[pd.DataFrame, Sequence[str]], pd.DataFrame] | None = None,
) -> None:
    """Write the probabilities of a CSV file's rows to the predictions of a saved run.

    Args:
        saved: the run, with the weights of its ensemble "all_rows"; of its settings
            separator, decimal, part and members are read.
        path: the file.
        build: the network for (classes, embeddings, width of x).
        prepare: adds derived columns to a table, given the names of those needed.
    """
    config = saved.config
    fitted, classes = read_columns(saved.folder)
    with ValidationErrors(path) as errors:
        tables = read_text(
            path, errors, config.separator, config.decimal, say=print, rows=config.part
        )
        if prepare is not None:
            tables = (prepare(table, fitted.sources) for table in tables)
        numbers = numbers_of_tables(fitted, tables, errors)
    model = build(len(classes), fitted.tables, len(fitted.names))
    weights = saved.replica_weights(model, config.members, "all_rows")
    log_probs = ensemble_log_probs(model, weights["params"], weights["extra"])
    p = np.exp(np.concatenate([log_probs(*fitted.encode(part)) for part in numbers]))
    write_predictions(saved.folder / "predictions" / f"{path.stem}.csv", classes, p)


def logits_of_chosen(
    saved: Saved[Any], part: str, models: Mapping[str, Model], choice: str
) -> Callable[[Array], Array]:
    """A function of x [N, D]: the logits [L, N] of the model that each fold chose.

    Args:
        saved: the run, with the weights [L, ...] of each model as "PART, MODEL".
        part: the learner.
        models: its candidates.
        choice: the sealed file with the number [L] of each fold's candidate.
    """
    chosen = np.array(read_sealed(saved.folder, choice, list[int]))
    parts = []
    for number, (name, model) in enumerate(models.items()):
        if number in chosen:
            tree = saved.replica_weights(model, len(chosen), f"{part}, {name}")
            of = functools.partial(logits_of, model, tree["params"], tree["extra"])
            parts.append((chosen == number, of))

    def logits(x: Array) -> Array:
        return jnp.sum(
            jnp.stack([jnp.where(own[:, None], of(x), 0) for own, of in parts]), 0
        )

    return logits


def table_predictor(
    saved: Saved[Any], build: Callable[[int, Sequence[Table], int], Model]
) -> Predictor:
    """Probabilities [B, classes] of a saved run, from the numbers of each column.

    Those that are scaled are given as they are in the table, NaN where missing, the
    others as `Features.numbers` has them: the number of a word or of a bucket. `build`
    as in `predict_file`.
    """
    fitted, classes = read_columns(saved.folder)
    model = build(len(classes), fitted.tables, len(fitted.names))
    weights = saved.replica_weights(model, saved.config.members, "all_rows")
    probabilities = mean_probabilities(model, weights)
    leaves = {key_of(leaf): leaf for c in fitted.columns for leaf in leaves_of(c)}

    def example(leaf: Any) -> jax.ShapeDtypeStruct:
        if isinstance(leaf, Category) and leaf.separator is not None:
            return jax.ShapeDtypeStruct((leaf.max_tokens,), jnp.int32)
        kind = jnp.float32 if isinstance(leaf, Numeric) else jnp.int32
        return jax.ShapeDtypeStruct((), kind)

    def number(leaf: Any, values: Array) -> Array:
        if not isinstance(leaf, Numeric):
            return values
        return scale(leaf, jnp.log1p(values) if leaf.scale == "log" else values)

    def predict(columns: Mapping[str, Array]) -> Array:
        numbers = {key: number(leaf, columns[key]) for key, leaf in leaves.items()}
        return probabilities(*fitted.encode(numbers))

    return Predictor(predict, ({key: example(leaf) for key, leaf in leaves.items()},))


def ensemble_log_probs(
    model: Model, params: PyTree, extra: PyTree
) -> Callable[..., np.ndarray]:
    """A function of x and ids: log of the members' mean probabilities [N, classes].

    params, extra: of all members, [members, ...].
    """

    @jax.jit
    def log_probs(x: Array, ids: Array) -> Array:
        def one_member(weights: tuple[PyTree, PyTree]) -> Array:
            logits, _ = model.apply(*weights, x, ids, train=False, key=None)
            return jax.nn.log_softmax(logits)

        log_p = jax.lax.map(one_member, (params, extra))
        return jax.scipy.special.logsumexp(log_p, axis=0) - math.log(len(log_p))

    return lambda x, ids: np.asarray(log_probs(x, ids))


def ensemble_scores(
    log_probs: Callable[..., np.ndarray], rows: EncodedRows, test: np.ndarray, part: int
) -> dict[str, np.ndarray]:
    """Accuracy and log-loss of some rows [n], so many read at a time."""
    x, ids, y = rows.arrays["x"], rows.arrays["ids"], rows.arrays["y"][test]
    parts = np.array_split(test, -(-len(test) // part))
    log_p = np.concatenate([log_probs(x[some], ids[some]) for some in parts])
    return {
        "accuracy": (log_p.argmax(1) == y).astype(float),
        "log-loss": -log_p[np.arange(len(y)), y],
    }


def numbers_of_tables(
    fitted: Features, tables: Iterable[pd.DataFrame], errors: ValidationErrors
) -> list[Numbers]:
    """The numbers of every table; says which words are missing numbers, or unknown.

    Raises UserError where a cell is wrong.
    """
    numbers, missing = list[Numbers](), dict[str, Counter[str]]()
    for table in tables:
        numbers.append(fitted.numbers(table, errors))
        for name, words in fitted.missing_words(table).items():
            missing[name] = missing.get(name, Counter()) + words
    errors.check()
    print_missing_words(missing)
    for name, count in fitted.unknown(numbers).items():
        warn(f"in {count} rows column {name!r} has a word outside the vocabulary")
    return numbers


def write_predictions(target: Path, classes: Sequence[str], p: np.ndarray) -> None:
    """Write probabilities [N, classes] of rows as CSV, and print their range."""
    columns = {f"probability of {c}": p[:, i] for i, c in enumerate(classes)}
    shown = np.array([*map(without_formulas, classes)])
    table = pd.DataFrame({**columns, "predicted": shown[p.argmax(1)]})
    table.index += 1
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, table.to_csv(index_label="row", float_format="%.6f"))
    print(table.describe().loc[["mean", "min", "max"]].to_string())
    print(f"written to {target}")
