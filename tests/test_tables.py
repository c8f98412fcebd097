"""Tables in folds: nothing of a held-out row is known before it is asked about."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxstudy.tabular.columns import (
    Bucketized,
    Category,
    Column,
    Embedding,
    Indicator,
    Numeric,
)
from jaxstudy.tabular.cross_validation import (
    EncodedRows,
    held_out_scores,
    importance,
    logistic_regression_baseline,
    make_folds,
    stratified_splits,
)
from jaxstudy.tabular.encoding import Encoded

COLUMNS: tuple[Column, ...] = (
    Numeric("age"),
    Indicator(Bucketized("age", 3)),
    Indicator(Category("sex", min_count=2)),
    Embedding(Category("town"), 2),
)


def table_of(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.normal(0, 1, n).round(3),
            "sex": rng.choice(["a", "b", "c"], n),
            "town": [f"t{i % 7}" for i in range(n)],
        }
    )


def labels(n: int) -> np.ndarray:
    return np.arange(n) % 3 % 2


def test_folds_know_nothing_of_what_they_hold_out() -> None:
    """Other values in the held-out rows change nothing that is trained on."""
    table, y = table_of(40), labels(40)
    splits = stratified_splits(y, 4, 1, seed=0)
    folds = make_folds(table, y, COLUMNS, splits)
    for f, (train, held_out) in enumerate(splits):
        other = table.copy()
        other.loc[held_out, "age"] = 1e6
        other.loc[held_out, "sex"] = "never seen"
        other.loc[held_out, "town"] = "nor this"
        again = make_folds(other, y, COLUMNS, splits)
        assert again.fitted[f] == folds.fitted[f]
        for name in ("x", "ids", "y"):
            a, b = (np.asarray(one.data.arrays[name]) for one in (folds, again))
            width = min(a.shape[-1], b.shape[-1]) if a.ndim == 2 else None
            rows = folds.rows(held_out=False)[f]
            np.testing.assert_array_equal(a[rows][..., :width], b[rows][..., :width])
        assert set(train).isdisjoint(held_out)


def test_a_fold_may_have_no_number_of_a_column() -> None:
    """What a fold misses counts as nothing there: no stop, and no wild answer."""
    table, y = table_of(8), np.arange(8) % 2
    table["age"] = [None] * 7 + [1e6]
    folds = make_folds(table, y, COLUMNS[:2], [(np.arange(7), np.array([7]))])
    x = np.asarray(folds.data.arrays["x"])
    np.testing.assert_array_equal(x[:7], [[0, 1, 1, 0]] * 7)
    np.testing.assert_array_equal(x[7], 0)


@pytest.mark.parametrize("grouped", [False, True])
def test_held_out_parts_tile_the_rows_and_keep_the_shares(grouped: bool) -> None:
    """The rows of a group are on one side; two repeats have other folds."""
    rng = np.random.default_rng(0)
    groups, y = rng.integers(0, 60, 200), rng.integers(0, 2, 200)
    splits = stratified_splits(y, 5, 2, 3, groups if grouped else None)
    for repeat in (splits[:5], splits[5:]):
        held = np.concatenate([held_out for _, held_out in repeat])
        assert sorted(held) == list(range(200))
    for train, held_out in splits:
        assert not {*train} & {*held_out}
        assert not grouped or not {*groups[train]} & {*groups[held_out]}
        assert abs(y[held_out].mean() - y.mean()) < (0.15 if grouped else 0.02)
    assert not np.array_equal(splits[0][1], splits[5][1])


def test_narrow_folds_are_filled_with_zeros() -> None:
    table = pd.DataFrame({"sex": ["a", "a", "b", "b", "c", "c", "a", "b"]})
    y = np.array([0, 1] * 4)
    splits = [
        (np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])),
        (np.array([2, 3, 4, 5, 6, 7]), np.array([0, 1])),
    ]
    folds = make_folds(table, y, [Indicator(Category("sex"))], splits)
    x = np.asarray(folds.data.arrays["x"]).reshape(2, 8, -1)
    assert x.shape == (2, 8, 5)
    np.testing.assert_array_equal(x[0, :, 4], 0)
    np.testing.assert_array_equal(x[0, 4:6], 0)  # "c" is unknown there, as none was
    np.testing.assert_array_equal(folds.rows(held_out=True)[1], [8, 9])


def test_scores_are_of_the_rows_that_were_held_out() -> None:
    table, y = table_of(6), np.array([0, 1, 0, 1, 0, 1])
    splits = [
        (np.array([3, 4, 5]), np.array([0, 1, 2])),
        (np.array([0, 1, 2]), np.array([3, 4, 5])),
        (np.array([2, 3, 4, 5]), np.array([0, 1])),
    ]
    folds = make_folds(table, y, [Numeric("age")], splits)
    said = [
        np.log([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]),
        np.log([[0.5, 0.5], [0.7, 0.3], [0.3, 0.7]]),
        np.log([[0.3, 0.7], [0.2, 0.8]]),
    ]
    scores = held_out_scores(folds, said, y)
    np.testing.assert_allclose(scores["accuracy"], [0.5, 1, 0, 0, 1, 1])
    p = [0.9, 0.6, 0.2, 0.5, 0.7, 0.7]
    expected = -np.log(p)
    expected[:2] = (expected[:2] - np.log([0.3, 0.8])) / 2
    np.testing.assert_allclose(scores["log-loss"], expected)


def test_only_a_column_that_matters_is_missed() -> None:
    n = 400
    table = table_of(n)
    y = (table["age"] > 0).to_numpy().astype(int)
    splits = stratified_splits(y, 4, 1, seed=0)
    columns = [Numeric("age"), Indicator(Category("sex"))]
    folds = make_folds(table, y, columns, splits)

    def said(arrays: Any) -> list[np.ndarray]:  # by the first input alone
        x = np.asarray(arrays["x"])[:, 0]
        log_p = np.log(np.where((x[:, None] > 0) == [False, True], 0.9, 0.1))
        return [log_p[rows] for rows in folds.rows(held_out=True)]

    found = importance(folds, said, y, seed=0)
    assert found.keys() == {"age", "sex"}
    assert found["sex"].max() == 0
    # half of the shuffled signs are wrong: ln 9 worse each
    assert found["age"].mean() == pytest.approx(0.5 * np.log(9), rel=0.2)


def test_regression_learns_on_each_fold() -> None:
    table = table_of(200)
    y = (table["age"] > 0).to_numpy().astype(int)
    splits = stratified_splits(y, 4, 1, seed=0)
    folds = make_folds(table, y, [Numeric("age")], splits)
    scores = held_out_scores(folds, logistic_regression_baseline(folds), y)
    assert scores["accuracy"].mean() > 0.95


def test_rows_in_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(5, 3)).astype(np.float32), np.arange(10).reshape(5, 2)
    ids, y = ids.astype(np.int32), np.arange(5, dtype=np.int32)
    parts = [
        (Encoded(x[part], ids[part]), y[part])  # type: ignore[arg-type]
        for part in (slice(0, 2), slice(2, 5))
    ]
    rows = EncodedRows(tmp_path / "rows", 5, parts)
    assert len(rows) == 5
    for i in range(5):
        row = rows[i]
        np.testing.assert_array_equal(row["x"], x[i])
        np.testing.assert_array_equal(row["ids"], ids[i])
        assert row["y"] == i
    assert (row["x"].dtype, row["ids"].dtype) == (np.float32, np.int32)
    for path in (tmp_path / "rows").iterdir():
        assert np.load(path, allow_pickle=False).shape[0] == 5
