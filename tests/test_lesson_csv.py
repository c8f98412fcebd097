"""Lesson 4: the passengers' columns, what gives them away, and tables of anybody."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxstudy import cli
from jaxstudy.data.tabular import read_titanic
from jaxstudy.features import Features, Indicator, fit, read_features
from jaxstudy.types import UserError
from tests.conftest import load

lesson: Any = load("experiments", "ch4_csv")
QUICKLY = ("--preset", "smoke", "--epochs", 1, "--hidden", 4, "--folds", 2)
N = 120

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run the lesson in this process: its exit code, output and errors."""

    def ask(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ch4_csv.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.experiment(lesson.main, lesson.PRESETS, predict=lesson.predict)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return ask


def rows(n: int = N) -> list[list[str]]:
    """x, colour and town, and a label that is whether x > 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, n)
    return [
        [f"{v:.3f}", "rgb"[i % 3], f"town {i % 12}", "yes" if v > 0 else "no"]
        for i, v in enumerate(x)
    ]


HEADER = ["x", "colour", "town", "bought"]


def written(path: Path, lines: list[list[str]], header: list[str] = HEADER) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *lines])
    path.write_text(text.getvalue())
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table of one's own."""
    root = tmp_path_factory.mktemp("csv")
    path = written(root / "mine.csv", rows())
    argv = [*QUICKLY, "--csv", path, "--label", "bought", "--run-dir", root / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ch4_csv.py", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            cli.experiment(lesson.main, lesson.PRESETS)
        assert ended.value.code == 0
    return root / "run"


# ------------------------------------------------------------------ the passengers


def test_the_passengers_are_those_of_the_table() -> None:
    table = read_titanic()
    assert table.shape == (1309, 14)
    assert table["survived"].value_counts().to_dict() == {"0": 809, "1": 500}
    missing = table.isna().sum().to_dict()
    found = {name: missing[name] for name in ("age", "cabin", "fare", "embarked")}
    assert found == {"age": 263, "cabin": 1014, "fare": 1, "embarked": 2}
    prepared = lesson.with_titles_and_decks(table)
    assert prepared["title"].notna().all()
    assert set(prepared["title"]) > {"Mr", "Mrs", "Rev", "Countess", "Jonkheer"}
    assert prepared.loc[prepared["cabin"] == "C23 C25 C27", "deck"].iloc[0] == "C C C"


def test_every_kind_of_column_is_there_and_none_of_a_leak() -> None:
    columns = [column for own in lesson.KINDS.values() for column in own]
    fitted = fit(columns, lesson.with_titles_and_decks(read_titanic()))
    assert not {*fitted.sources} & {*lesson.LEAKS}
    assert {*lesson.KINDS} == {
        "numeric", "bucketized", "indicator", "embedding", "hashed", "crossed",
    }  # fmt: skip
    for leak in lesson.LEAKING:
        with pytest.raises(UserError, match="gives away who survived"):
            lesson.without_leaks([*columns, leak])


@pytest.mark.parametrize("name", ["boat", "body"])
def test_asking_for_a_leak_is_refused(ask: Ask, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    code, _, error = ask(*QUICKLY, "--columns", "age", name, "--run-dir", folder)
    assert code == 2
    assert error.startswith(f"error: column {name!r} is")
    assert not (folder / "result.json").exists()


def test_a_column_nobody_has_is_refused(ask: Ask, tmp_path: Path) -> None:
    code, _, error = ask(*QUICKLY, "--columns", "agee", "--run-dir", tmp_path / "r")
    assert (code, error) == (
        2, "error: column 'agee' is missing; did you mean 'age'?\n"
    )  # fmt: skip


def test_some_columns_of_the_passengers(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def compare(*arguments: Any) -> dict[str, Any]:
        given["variants"], given["regressions"] = arguments[2:4]
        given["groups"] = arguments[6]
        return {}

    def train_members(table: Any, y: Any, columns: Any, *_: Any) -> Any:
        given["fitted"] = fit(columns, table)
        return given["fitted"], None

    monkeypatch.setattr(lesson, "compare", compare)
    monkeypatch.setattr(lesson, "train_members", train_members)
    lesson.passengers(lesson.Config(columns=("age", "sex")), None)
    assert given["fitted"].sources == ("age", "sex")
    # who travels on one ticket is never on both sides of a fold
    tickets = read_titanic()["ticket"]
    both = {*zip(given["groups"], tickets, strict=True)}
    assert len(both) == len({*given["groups"]}) == tickets.nunique() == 929
    assert {*given["variants"]} == {
        "network", "without numeric", "without bucketized", "without indicator",
        "without crossed", "with boat and body (a leak)",
    }  # fmt: skip
    for columns in (*given["variants"].values(), *given["regressions"].values()):
        sources = {*Features(tuple(columns)).sources}
        assert sources - {*lesson.LEAKS} <= {"age", "sex"}


# ------------------------------------------------------------------ any table


def test_the_columns_of_a_table_are_inferred_and_saved(saved: Path) -> None:
    fitted = read_features(saved / lesson.FEATURES)
    assert fitted.sources == ("x", "colour", "town")
    assert json.loads((saved / lesson.LABELS).read_text()) == ["no", "yes"]
    metrics = json.loads((saved / "result.json").read_text())["metrics"]
    assert metrics["logistic regression: accuracy"]["mean"] > 0.9


def test_predictions_are_written_row_by_row(saved: Path, ask: Ask) -> None:
    asked = written(saved.parent / "asked.csv", [r[:3] for r in rows(5)], HEADER[:3])
    code, out, error = ask("--run-dir", saved, "--predict", asked)
    assert (code, error) == (0, "")
    target = saved / "predictions" / "asked.csv"
    assert f"written to {target}" in out
    told = pd.read_csv(target)
    assert list(told["row"]) == [1, 2, 3, 4, 5]
    p = told[["probability of no", "probability of yes"]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=2e-6)
    assert list(told["predicted"]) == [["no", "yes"][i] for i in p.argmax(1)]
    before = target.read_bytes()
    assert ask("--run-dir", saved, "--predict", asked)[0] == 0
    assert target.read_bytes() == before


def test_predictions_do_not_depend_on_the_rows_beside(saved: Path, ask: Ask) -> None:
    lines = [r[:3] for r in rows(5)]
    for name, some in (("all", lines), ("last", lines[-1:])):
        path = written(saved.parent / f"{name}.csv", some, HEADER[:3])
        assert ask("--run-dir", saved, "--predict", path)[0] == 0
    both, alone = (
        pd.read_csv(saved / "predictions" / f"{n}.csv") for n in ("all", "last")
    )
    np.testing.assert_allclose(
        both.iloc[-1, 1:3].astype(float), alone.iloc[0, 1:3].astype(float), atol=2e-6
    )


def test_words_never_seen_are_said(saved: Path, ask: Ask) -> None:
    asked = written(saved.parent / "new.csv", [["0", "pink", "town 1"]], HEADER[:3])
    code, _, error = ask("--run-dir", saved, "--predict", asked)
    assert code == 0
    assert "in 1 rows column 'colour' has a word outside the vocabulary" in error


def test_all_that_is_wrong_with_a_file_to_predict_is_told(
    saved: Path, ask: Ask
) -> None:
    asked = written(
        saved.parent / "bad.csv",
        [["x", "r", "t"], ["1", "r"], ["1e400", "g", "t"]],
        HEADER[:3],
    )
    code, _, error = ask("--run-dir", saved, "--predict", asked)
    assert code == 2
    assert error.splitlines() == [
        f"error: {asked} has 3 faults:",
        "  row 2 (line 3): 2 fields where the header has 3",
        "  row 1 (line 2), column 'x': 'x' is not a number",
        "  row 3 (line 4), column 'x': '1e400' is too large for a 32-bit number",
    ]
    assert not (saved / "predictions" / "bad.csv").exists()


def test_a_table_in_parts_has_a_share_held_out(ask: Ask, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv", rows(400))
    folder = tmp_path / "run"
    code, _, _ = ask(
        *QUICKLY, "--csv", path, "--label", "bought", "--part", 70, "--epochs", 40,
        "--rate", 0.03, "--run-dir", folder,
    )  # fmt: skip
    assert code == 0
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["network: accuracy"]["n"] == 40
    assert metrics["network: accuracy"]["mean"] > 0.8
    assert not (folder / "rows").exists()
    fitted = read_features(folder / lesson.FEATURES)
    assert fitted.sources == ("x", "colour", "town")
    asked = written(tmp_path / "asked.csv", [["2", "r", "town 1"]], HEADER[:3])
    assert ask("--run-dir", folder, "--predict", asked)[0] == 0


def test_parts_are_learned_from_without_the_rows_held_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ask: Ask
) -> None:
    """Wild numbers in the tenths that are held out do not move the mean."""
    lines = rows(100)
    order = np.random.default_rng(0).permutation(100)  # the lesson's, for seed 0
    for i in order[:20]:
        lines[i][0] = "1e30"
    path = written(tmp_path / "mine.csv", lines)
    folder = tmp_path / "run"
    code, _, _ = ask(
        *QUICKLY, "--csv", path, "--label", "bought", "--part", 30,
        "--columns", "x", "--run-dir", folder,
    )  # fmt: skip
    assert code == 0
    column: Any = read_features(folder / lesson.FEATURES).columns[0]
    assert column.divisor < 10


def test_an_embedding_becomes_an_indicator_for_the_regression() -> None:
    for column in (c for own in lesson.KINDS.values() for c in own):
        shown = lesson.as_indicator(column)
        assert not isinstance(shown, lesson.Embedding)
        if isinstance(column, lesson.Embedding):
            assert shown == Indicator(column.of)


# ------------------------------------------------------------------ bad input


def fault_of(ask: Ask, path: Path, *more: object) -> str:
    folder = path.parent / "run"
    code, _, error = ask(
        *QUICKLY, "--csv", path, "--label", "bought", *more, "--run-dir", folder
    )
    assert code == 2
    assert not (folder / "result.json").exists()
    return error.removeprefix("error: ").rstrip()


def test_a_label_that_tells_nothing(ask: Ask, tmp_path: Path) -> None:
    one = [[*row[:3], "yes"] for row in rows()]
    path = written(tmp_path / "t.csv", one)
    assert fault_of(ask, path) == (
        "the label 'bought' is 'yes' in every row: there is nothing to tell"
    )
    many = [[*row[:3], str(i)] for i, row in enumerate(rows())]
    assert "has 120 different values" in fault_of(ask, written(path, many))
    few = [[*row[:3], "maybe" if i == 3 else row[3]] for i, row in enumerate(rows())]
    assert "a class of 1 rows, fewer than the 2 folds" in fault_of(
        ask, written(path, few)
    )


def test_columns_missing_or_doubled(ask: Ask, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", rows(), ["x", "colour", "town", "bougt"])
    assert fault_of(ask, path) == "column 'bought' is missing; did you mean 'bougt'?"
    written(path, rows(), ["x", "x", "town", "bought"])
    assert fault_of(ask, path) == "column 'x' occurs more than once"


def test_all_faults_of_a_table_at_once(ask: Ask, tmp_path: Path) -> None:
    lines = rows()
    lines[1], lines[4] = lines[1][:3], ["many", *lines[4][1:]]
    lines[7][3] = ""
    path = written(tmp_path / "t.csv", lines)
    assert fault_of(ask, path).split("\n  ") == [
        f"{path} has 3 faults:",
        "row 2 (line 3): 3 fields where the header has 4",
        "row 8 (line 9), column 'bought': is missing",
        "row 5 (line 6), column 'x': 'many' is not a number",
    ]
    in_parts = fault_of(ask, path, "--part", 30)
    assert in_parts.split("\n  ")[1:] == fault_of(ask, path).split("\n  ")[1:]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"x,colour,town,bought\n", "has a header and no row"),
        (b"x,bought\n1,\xff\n", "byte 11 is not UTF-8 text"),
        (b'x,bought\n1,"yes\n', "line 2: "),
    ],
)
def test_files_that_are_no_table(
    ask: Ask, tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert says in fault_of(ask, path)
    assert "cannot be read" in fault_of(ask, tmp_path / "none.csv")


def test_a_byte_order_mark_is_no_part_of_a_name(ask: Ask, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", rows())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    folder = tmp_path / "run"
    assert ask(
        *QUICKLY, "--csv", path, "--label", "bought", "--run-dir", folder
    )[0] == 0  # fmt: skip
    assert read_features(folder / lesson.FEATURES).sources[0] == "x"
