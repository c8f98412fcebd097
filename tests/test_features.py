"""Feature columns: each against a table by hand, pure, and blind to held-out rows."""

import hashlib
import math
from typing import Any

import jax
import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.messages import ValidationErrors
from jaxstudy.tabular import fitting
from jaxstudy.tabular.cells import plain_number
from jaxstudy.tabular.columns import (
    MISSING,
    NONE,
    Bucketized,
    Category,
    Column,
    Crossed,
    Embedding,
    Hashed,
    Indicator,
    Numeric,
)
from jaxstudy.tabular.encoding import Features
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.tabular.inference import infer
from jaxstudy.types import UserError
from tests.conftest import Patch, assert_rounding

TABLE = pd.DataFrame(
    {
        "age": ["1", "3", None, "5", "11"],
        "sex": ["m", "f", "f", "m", None],
        "deck": ["C C", "A B", "", "B", "C"],
        "ticket": ["PC 1", "17", "17", None, "A"],
    }
)
COLUMNS: tuple[Column, ...] = (
    Numeric("age"),
    Indicator(Bucketized("age", 3)),
    Indicator(Category("sex")),
    Indicator(Category("deck", separator=" ", max_tokens=2)),
    Embedding(Category("sex"), 2),
    Embedding(Category("deck", separator=" ", max_tokens=2), 3),
    Indicator(Hashed("ticket", 4)),
    Indicator(Crossed((Category("sex"), Bucketized("age", 3)), 7)),
)


def encoded(columns: Any, train: pd.DataFrame, table: pd.DataFrame) -> Any:
    fitted = fit_columns(columns, train)
    return jax.tree.map(np.asarray, fitted.encode(fitted.numbers(table)))


def x_of(column: Column, table: pd.DataFrame = TABLE) -> np.ndarray:
    return encoded([column], TABLE, table).x


# ------------------------------------------------------------------ by hand


def test_a_scaled_number() -> None:
    # mean 5, deviations -4 -2 0 6: variance 14
    expected = np.array([-4, -2, 0, 0, 6]) / math.sqrt(14)
    x = x_of(Numeric("age"))
    np.testing.assert_allclose(x[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(x[:, 1], [0, 0, 1, 0, 0])
    logs = np.log1p([1.0, 3, 5, 11])
    x = x_of(Numeric("age", "log"))
    expected = (logs - logs.mean()) / logs.std()
    np.testing.assert_allclose(x[[0, 1, 3, 4], 0], expected, rtol=1e-6)
    np.testing.assert_allclose(x[2], [0, 1], atol=1e-7)
    x = x_of(Numeric("age", "min-max"))
    np.testing.assert_allclose(x[:, 0], [0, 0.2, 0.4, 0.4, 1], rtol=1e-6)


def test_boundaries_by_quantiles() -> None:
    values = pd.DataFrame({"age": np.arange(12.0)})
    fitted = fit_columns([Indicator(Bucketized("age", 4))], values)
    column: Any = fitted.columns[0]
    np.testing.assert_allclose(column.of.boundaries, [2.75, 5.5, 8.25])
    x = np.asarray(fitted.encode(fitted.numbers(values)).x)
    np.testing.assert_array_equal(x.sum(0), [0, 3, 3, 3, 3])
    # equal quantiles are one boundary
    values = pd.DataFrame({"age": [0.0] * 9 + [1.0]})
    column = fit_columns([Indicator(Bucketized("age", 4))], values).columns[0]
    assert column.of.boundaries == ()
    assert column.of.absent == (MISSING,)
    # a fold may have no value at all: then whatever comes later counts as nothing
    none, later = (pd.DataFrame({"age": [*v, None]}) for v in ([None], ["7"]))
    x = encoded([Indicator(Bucketized("age", 4))], none, later).x
    np.testing.assert_array_equal(x, [[0, 0], [1, 0]])


@pytest.mark.parametrize(
    ("category", "words", "columns"),
    [
        (Category("ticket", min_count=2), ("17",), [1, 2, 2, 0, 1]),
        (Category("sex", words=("f", "x")), ("f", "x"), [1, 2, 2, 1, 0]),
        # by frequency, equal ones in order
        (Category("sex"), ("f", "m"), [3, 2, 2, 3, 0]),
    ],
)
def test_words_that_are_rare_or_not_given_are_unknown(
    category: Category, words: tuple[str, ...], columns: list[int]
) -> None:
    fitted = fit_columns([Indicator(category)], TABLE)
    assert fitted.names[2:] == tuple(f"{category.column} = {word}" for word in words)
    x = np.asarray(fitted.encode(fitted.numbers(TABLE)).x)
    # missing is the first, unknown the second
    np.testing.assert_array_equal(x, np.eye(2 + len(words))[columns])


def test_ids_of_embeddings() -> None:
    ids = encoded(COLUMNS, TABLE, TABLE).ids
    np.testing.assert_array_equal(ids[:, 0], [3, 2, 2, 3, 0])
    np.testing.assert_array_equal(
        ids[:, 1:], [[3, -1], [4, 2], [0, -1], [2, -1], [3, -1]]
    )
    sex, deck = fit_columns(COLUMNS, TABLE).tables
    assert (sex.size, sex.dimension, sex.where) == (4, 2, slice(0, 1))
    assert (deck.size, deck.dimension, deck.where) == (5, 3, slice(1, 3))


def test_hash_buckets() -> None:
    def bucket(text: str) -> int:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return 1 + int.from_bytes(digest, "little") % 4

    x = x_of(Indicator(Hashed("ticket", 4)))
    expected = [bucket("PC 1"), bucket("17"), bucket("17"), 0, bucket("A")]
    np.testing.assert_array_equal(x.argmax(1), expected)


def test_crossed_buckets() -> None:
    def mixed(h: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> shift)) * factor % 2**32
        return h ^ (h >> 16)

    sexes, ages = [3, 2, 2, 3, 0], [1, 2, 0, 3, 3]
    boundaries = Bucketized("age", (3.0, 5.0))
    x = x_of(Indicator(Crossed((Category("sex"), boundaries), 7)))
    expected = [
        mixed(mixed(s + 1) + a + 1) % 7 for s, a in zip(sexes, ages, strict=True)
    ]
    np.testing.assert_array_equal(x.argmax(1), expected)
    np.testing.assert_array_equal(x.sum(1), 1)


def test_the_same_number_is_the_same_category_however_it_is_written() -> None:
    train = pd.DataFrame({"n": ["1", "2.0", "1.0", "NA", None, "2e0"]})
    for column in (Category("n"), Category("n", words=("1", "2"))):
        fitted = fit_columns([Indicator(column)], train)
        assert fitted.names[2:] == ("n = 1", "n = 2")
        later = pd.DataFrame({"n": ["2", "1.00", "N/A", "+2", "7"]})
        (ids,) = fitted.numbers(later).values()
        np.testing.assert_array_equal(ids, [3, 2, 0, 3, 1])
        assert fitted.missing_words(later) == {"n": {"N/A": 1}}
        for values in ([1, 2, None], [1.0, 2.0, np.nan]):  # in any form
            (ids,) = fitted.numbers(pd.DataFrame({"n": values})).values()
            np.testing.assert_array_equal(ids, [2, 3, 0])
    text = fit_columns(
        [Indicator(Category("n"))], pd.DataFrame({"n": ["1", "1.0", "x", "NA"]})
    )
    assert text.names[2:] == ("n = 1", "n = 1.0", "n = NA", "n = x")


def test_the_shortest_text_of_a_number() -> None:
    long = "12345678901234567890123"
    for text, plain in (
        ("3", "3"), ("3.0", "3"), ("3.", "3"), (".50", "0.5"), ("-0.0", "0"),
        ("1e3", "1000"), ("+2", "2"), ("100", "100"), ("1e-3", "0.001"),
        (long, long), ("9" * 40, "9" * 40),
    ):  # fmt: skip
        assert plain_number(text) == plain
    for text in ("007", "1_0", "nan", "1e999", "x", "", "-00"):
        assert plain_number(text) is None


def test_words_for_missing_numbers() -> None:
    words = ["NA", "n/a", "?", "NULL", "null", "nan", "NaN", "None", "-", "#N/A", ""]
    table = pd.DataFrame({"age": ["1", *words, "3"]})
    x = encoded([Numeric("age"), Indicator(Bucketized("age", (2.0,)))], table, table).x
    np.testing.assert_array_equal(x[:, 0], [-1, *[0] * len(words), 1])
    np.testing.assert_array_equal(x[:, 1], [0, *[1] * len(words), 0])
    np.testing.assert_array_equal(x[1:-1, 2], 1)
    with pytest.raises(UserError, match="row 0, column 'age': 'NA' is missing"):
        fit_columns(
            [Numeric("age", missing="refuse")], pd.DataFrame({"age": ["NA", "1"]})
        )


def test_large_numbers_are_scaled_before_they_become_32_bits() -> None:
    """Times of a quarter of an hour, of which 32 bits alone keep 9."""
    table = pd.DataFrame({"t": np.arange(1000) + 1_600_000_000})
    columns = (Numeric("t"), Numeric("u", "min-max"), Indicator(Bucketized("t", 10)))
    table["u"] = table["t"]
    x = encoded(columns, table, table).x
    expected = (np.arange(1000) - 499.5) / np.arange(1000).std()
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(x[:, 1], np.arange(1000) / 999, atol=1e-6)
    np.testing.assert_array_equal(x[:, 2:].sum(0), [0, *[100] * 10])


@pytest.mark.parametrize("scale", ["standard", "log", "min-max"])
def test_what_did_not_vary_counts_as_nothing(scale: Any) -> None:
    train = pd.DataFrame({"a": [0.1] * 30, "b": [None] * 30})
    later = pd.DataFrame({"a": [2e7, None], "b": [5.0, None]})
    columns = [Numeric("a", scale), Numeric("b", scale)]
    np.testing.assert_array_equal(encoded(columns, train, train).x, [[0, 0, 1]] * 30)
    np.testing.assert_array_equal(
        encoded(columns, train, later).x, [[0, 0, 0], [0, 0, 1]]
    )


def test_a_crossed_bucket_that_no_training_row_is_in_counts_as_nothing() -> None:
    of = Crossed((Category("a"), Category("b")), 50)
    train = pd.DataFrame({"a": ["u", "v"] * 3, "b": ["x", "y"] * 3})
    fitted = fit_columns(
        [Indicator(of), Embedding(of, 2)], [train.iloc[:3], train.iloc[3:]]
    )
    later = pd.DataFrame({"a": ["u", "v", "u"], "b": ["x", "y", "y"]})
    x, ids = fitted.encode(fitted.numbers(later))
    np.testing.assert_array_equal(x.sum(1), [1, 1, 0])
    assert ids[2, 0] == NONE
    assert min(ids[:2, 0]) >= 0
    with pytest.raises(ValueError, match="iterated twice"):
        fit_columns([Indicator(of)], iter([train]))


# ------------------------------------------------------------------ what is absent


def test_what_no_training_row_has_counts_as_nothing() -> None:
    train = pd.DataFrame({"a": ["u", "v"], "n": ["1", "2"]})
    later = pd.DataFrame({"a": [None, "w"], "n": [None, "9"]})
    columns = (
        Indicator(Category("a")), Embedding(Category("a"), 2), Numeric("n"),
        Indicator(Bucketized("n", (1.5, 5.0))),
    )  # fmt: skip
    e = encoded(columns, train, later)
    np.testing.assert_array_equal(e.ids, -1)
    np.testing.assert_array_equal(e.x[:, :4], 0)
    np.testing.assert_array_equal(e.x[:, 5:], 0)  # the bucket from 5 on, and missing
    assert e.x.shape[1] == 4 + 1 + 4  # no column says that n is missing
    np.testing.assert_allclose(e.x[:, 4], [0, 15], rtol=1e-6)


def test_refusing_names_every_row_column_and_value() -> None:
    columns = (
        Numeric("age", missing="refuse"),
        Indicator(Category("sex", missing="refuse", unknown="refuse")),
    )
    train = pd.DataFrame({"age": ["1", "2"], "sex": ["m", "f"]})
    fitted = fit_columns(columns, train)
    bad = pd.DataFrame({"age": ["x", "", "1e400"], "sex": ["m", None, "q"]})
    with pytest.raises(UserError) as error:
        fitted.numbers(bad)
    assert str(error.value).split("\n  ") == [
        "the table has 5 errors:",
        "row 0, column 'age': 'x' is not a number",
        "row 2, column 'age': '1e400' is too large for a 32-bit number",
        "row 1, column 'age': is missing",
        "row 1, column 'sex': is missing",
        "row 2, column 'sex': 'q' is none of those known",
    ]
    with pytest.raises(UserError, match="row 1, column 'age': is missing"):
        fit_columns(columns, pd.DataFrame({"age": ["1", None], "sex": ["m", "f"]}))


def test_what_is_no_number() -> None:
    for text in ("x", "1_000", "0x10", "1 2", "1,5", "--1"):
        with pytest.raises(UserError, match=r"row 1, column 'age': .* is not a number"):
            fit_columns([Numeric("age")], pd.DataFrame({"age": ["1", text]}))
    with pytest.raises(UserError, match=r"row 0, column 'age': '-1' has no log\(1"):
        fit_columns([Numeric("age", "log")], pd.DataFrame({"age": ["-1", "2"]}))


def test_columns_that_are_not_there() -> None:
    fitted = fit_columns(COLUMNS, TABLE)
    with pytest.raises(UserError, match="'sex' is missing; did you mean 'sexe'"):
        fitted.numbers(TABLE.rename(columns={"sex": "sexe"}))
    doubled = pd.concat([TABLE, TABLE[["age"]]], axis=1)
    with pytest.raises(UserError, match="'age' occurs more than once"):
        fitted.numbers(doubled)
    with pytest.raises(UserError, match="no training row"):
        fit_columns([Numeric("age")], TABLE.iloc[:0])


@pytest.mark.parametrize(
    "columns",
    [
        (),
        (Numeric("a"), Numeric("a")),
        (Indicator(Category("a")), Embedding(Category("a", min_count=2), 2)),
        (Indicator(Bucketized("a", (2.0, 1.0))),),
        (Indicator(Bucketized("a", 0)),),
        (Indicator(Hashed("a", 0)),),
        (Embedding(Category("a"), 0),),
        (Indicator(Category("a", min_count=0)),),
        (Indicator(Crossed((Category("a", separator=" "), Category("b")), 5)),),
    ],
)
def test_columns_that_make_no_sense(columns: tuple[Column, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each says its own
        fit_columns(columns, pd.DataFrame({"a": ["1", "2"], "b": ["1", "2"]}))


def test_a_vocabulary_without_end(monkeypatch: Patch) -> None:
    monkeypatch.setattr(fitting, "MOST_WORDS", 3)
    with pytest.raises(UserError, match="more than 3 different values: hash them"):
        fit_columns([Indicator(Category("deck"))], TABLE)


# ------------------------------------------------------------------ properties

cells = st.one_of(st.none(), st.sampled_from(["", "1", "2.5", "-3", "1e3", "7"]))
words = st.one_of(st.none(), st.text("ab ", max_size=4))
tables = st.lists(st.tuples(cells, words, words), min_size=3, max_size=3).map(
    lambda rows: pd.DataFrame(rows, columns=["age", "sex", "deck"], dtype=object)
)
SOME: tuple[Column, ...] = (
    Numeric("age"),
    Indicator(Bucketized("age", (0.0, 2.5))),
    Indicator(Category("sex", min_count=2)),
    Embedding(Category("deck", separator=" "), 2),
    Indicator(Crossed((Category("sex", min_count=2), Hashed("deck", 5)), 9)),
)
FEATURES = fit_columns(
    SOME,
    pd.DataFrame(
        {"age": ["1", "4", None], "sex": ["a", "a", "b"], "deck": ["a b", None, "b"]}
    ),
)


ENCODE = jax.jit(FEATURES.encode)  # compiled once for tables of the same length


@settings(deadline=None, max_examples=12)
@given(tables, st.integers(0, 2))
def test_encoding_is_pure_and_of_each_row_alone(table: pd.DataFrame, row: int) -> None:
    before = table.copy(deep=True)
    numbers = FEATURES.numbers(table)
    copies = {name: a.copy() for name, a in numbers.items()}
    whole = FEATURES.encode(numbers)
    pd.testing.assert_frame_equal(table, before)
    jax.tree.map(np.testing.assert_array_equal, numbers, copies)
    assert_rounding(ENCODE(numbers), whole, 4)
    alone = ENCODE(FEATURES.numbers(table.iloc[[row]]))
    mine = jax.tree.map(lambda a: a[row : row + 1], whole)
    assert_rounding(mine, alone, 4)


@settings(deadline=None, max_examples=12)
@given(tables.filter(lambda table: table["age"].isin(["1", "7"]).any()), st.data())
def test_what_is_learned_comes_back_from_json(
    table: pd.DataFrame, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(SOME), min_size=1, unique=True))
    fitted = fit_columns(chosen, table)
    types = pydantic.TypeAdapter(Features)
    assert types.validate_json(types.dump_json(fitted)) == fitted


def test_one_pass_over_parts_learns_what_the_whole_does() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": np.where(rng.random(500) < 0.1, np.nan, rng.normal(1e4, 1, 500)),
            "sex": rng.choice(["a", "b", "c"], 500),
            "deck": rng.choice(["a b", "b", "c a"], 500),
            "ticket": rng.integers(0, 99, 500),
        }
    )
    whole = fit_columns(COLUMNS, table)
    parts = fit_columns(COLUMNS, [table.iloc[i : i + 37] for i in range(0, 500, 37)])
    assert parts.columns[1:] == whole.columns[1:]
    a: Any = whole.columns[0]
    b: Any = parts.columns[0]
    assert (a.has_missing, b.has_missing) == (True, True)
    np.testing.assert_allclose(b.shift, a.shift, rtol=1e-12)
    np.testing.assert_allclose(b.divisor, a.divisor, rtol=1e-9)
    values = table["age"].dropna().to_numpy(float)
    np.testing.assert_allclose([a.shift, a.divisor], [values.mean(), values.std()])


def test_quantiles_of_very_many_values_are_of_a_sample(monkeypatch: Patch) -> None:
    monkeypatch.setattr(fitting, "SAMPLE", 500)
    table = pd.DataFrame({"age": np.arange(5000.0)})
    parts = (table.iloc[i : i + 300] for i in range(0, 5000, 300))
    column: Any = fit_columns([Indicator(Bucketized("age", 2))], parts).columns[0]
    (middle,) = column.of.boundaries
    assert abs(middle - 2500) < 500  # 6 times the deviation of such a median


# ------------------------------------------------------------------ beside Keras


def test_buckets_are_those_of_keras() -> None:
    import keras  # on JAX; its StringLookup and Hashing need TensorFlow

    boundaries = (-2.0, 0.0, 0.5, 3.0)
    beside = [np.nextafter(np.float32(b), np.float32(9)) for b in boundaries if b]
    drawn = np.random.default_rng(0).uniform(-9, 9, 40).astype(np.float32)
    values = np.array([*boundaries, *beside, *-np.array(beside), *drawn])
    table = pd.DataFrame({"age": values})
    x = encoded([Indicator(Bucketized("age", boundaries))], table, table).x
    theirs = keras.layers.Discretization(bin_boundaries=boundaries)(values)
    np.testing.assert_array_equal(x.argmax(1) - 1, theirs)


def test_multi_hot_is_that_of_keras() -> None:
    import keras

    column = Indicator(Category("deck", separator=" ", max_tokens=2))
    fitted = fit_columns([column], TABLE)
    numbers = fitted.numbers(TABLE)
    (ids,) = numbers.values()
    # Keras has no "none": it counts the first word again
    ids = np.where(ids < 0, ids[:, :1], ids)
    theirs = keras.layers.CategoryEncoding(5, output_mode="multi_hot")(ids)
    np.testing.assert_array_equal(fitted.encode(numbers).x, theirs)


# ------------------------------------------------------------------ columns unasked


def test_inferred_columns() -> None:
    n = 400
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": [f"row {i}" for i in range(n)],
            "height": rng.normal(0, 1, n),
            "income": np.exp(rng.normal(0, 2, n)),
            "children": rng.integers(0, 4, n),
            "colour": rng.choice(["r", "g"], n),
            "town": [f"t{i % 40}" for i in range(n)],
            "street": [f"s{i % 120}" for i in range(n)],
            "empty": None,
            "same": "x",
            "y": rng.choice(["a", "b"], n),
        }
    )
    found = infer([table.iloc[:190], table.iloc[190:]], "y")
    assert found.columns == (
        Numeric("height"),
        Numeric("income", "log"),
        Indicator(Category("children")),
        Indicator(Category("colour")),
        Embedding(Category("town", min_count=5), 4),
        Indicator(Hashed("street", 100)),
    )
    assert found.left_out == {
        "id": "has another text in nearly every row",
        "empty": "is empty",
        "same": "is the same in every row",
    }
    assert isinstance(fit_columns(found.columns, table), Features)


def test_what_counts_the_rows_is_left_out() -> None:
    n = 30
    table = pd.DataFrame(
        {
            "Unnamed: 0": [f"{(7 * i) % n + 40}" for i in range(n)],
            "zero": [*map(str, range(n))],
            "one": [f"{i + 1}.0" for i in range(n)],
            "two": [*map(str, range(2, n + 2))],
            "gap": [*map(str, range(n - 1)), str(n)],
            "Unnamed: 5": ["1.5", *map(str, range(n - 1))],
            "y": ["a", "b"] * (n // 2),
        }
    )
    for tables in ([table], [table.iloc[i : i + 11] for i in range(0, n, 11)]):
        found = infer(tables, "y")
        assert found.left_out == {
            "Unnamed: 0": "is the index of an exported table",
            "zero": "counts the rows from 0",
            "one": "counts the rows from 1",
        }
        assert [*Features(found.columns).sources] == ["two", "gap", "Unnamed: 5"]
    with pytest.raises(UserError, match="learn 'y' from: 'zero' counts the rows"):
        infer([table.filter(["zero", "y"])], "y")


def test_words_for_missing_numbers_are_found_and_told() -> None:
    n = 40
    age = [("NA", "?", f"{i}.5", f"{3 * i}")[i % 4] for i in range(n)]
    table = pd.DataFrame(
        {
            "age": age,
            "few": [("1", "2", "1.0", "-", "2.0")[i % 5] for i in range(n)],
            "region": [("NA", "EU")[i % 2] for i in range(n)],
            "none": ["NA", None] * (n // 2),
            "y": "a",
        }
    )
    found = infer([table.iloc[:9], table.iloc[9:]], "y")
    assert found.columns == (
        Numeric("age"), Indicator(Category("few")), Indicator(Category("region"))
    )  # fmt: skip
    assert found.missing_words == {"age": {"NA": 10, "?": 10}, "few": {"-": 8}}
    assert [*found.left_out] == ["none"]
    fitted = fit_columns(found.columns, table)
    assert fitted.names[4:] == (
        "few = 1", "few = 2", "region = (missing)", "region = (unknown)",
        "region = EU", "region = NA",
    )  # fmt: skip
    assert fitted.missing_words(table) == found.missing_words


def test_nothing_to_infer() -> None:
    with pytest.raises(UserError, match="no column to learn 'y' from"):
        infer([pd.DataFrame({"y": ["a", "b"]})], "y")
    with pytest.raises(UserError, match="'z' is missing"):
        infer([TABLE], "z")


def test_text_among_numbers_is_an_error_and_no_category() -> None:
    values = [*map(str, range(30)), "many"]
    table = pd.DataFrame({"n": values, "y": "a"})
    found = infer([table], "y")
    errors = ValidationErrors("t.csv")
    with pytest.raises(UserError, match=r"t.csv, row 30, column 'n': 'many' is not"):
        fit_columns(found.columns, table, errors)
