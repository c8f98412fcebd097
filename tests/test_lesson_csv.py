"""Lesson 4: the passengers' columns, what gives them away, and tables of anybody."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pytest
from jaxstudy.tabular.features import (
    Category,
    Features,
    Indicator,
    Numeric,
    fit,
)

from jaxstudy.runs import cli, plots
from jaxstudy.runs.run import open_run, read_sealed
from jaxstudy.runs.statistics import Estimate
from jaxstudy.tabular.sets import read_titanic
from jaxstudy.types import MAX_CHARACTERS, UserError
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
    fitted = read_sealed(saved, lesson.FEATURES, Features)
    assert fitted.sources == ("x", "colour", "town")
    classes = read_sealed(saved, lesson.LABELS, tuple[str, ...])
    assert classes == ("no", "yes")
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
    fitted = read_sealed(folder, lesson.FEATURES, Features)
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
    column: Any = read_sealed(folder, lesson.FEATURES, Features).columns[0]
    assert column.divisor < 10


def test_an_embedding_becomes_an_indicator_for_the_regression() -> None:
    for column in (c for own in lesson.KINDS.values() for c in own):
        shown = lesson.as_indicator(column)
        assert not isinstance(shown, lesson.Embedding)
        if isinstance(column, lesson.Embedding):
            assert shown == Indicator(column.of)


# ------------------------------------------------------------------ as people export


class Looked(NamedTuple):
    """What the lesson would have trained on."""

    code: int
    out: str
    error: str
    table: pd.DataFrame | None = None
    y: Any = None
    columns: tuple[Any, ...] = ()
    folds: int = 0
    classes: tuple[str, ...] = ()


Look = Callable[..., Looked]


@pytest.fixture
def look(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Look:
    """Run the lesson on a file of this text, up to the training."""
    given: dict[str, Any] = {}

    def compare(
        table: Any, y: Any, variants: Any, _: Any, config: Any, *__: Any
    ) -> Any:
        given.update(table=table, y=y, columns=variants["network"], folds=config.folds)
        return {}

    def train_members(*arguments: Any) -> None:
        given["classes"] = arguments[3]

    monkeypatch.setattr(lesson, "compare", compare)
    monkeypatch.setattr(lesson, "train_members", train_members)

    def look(text: str, *more: object) -> Looked:
        given.clear()
        path = tmp_path / "t.csv"
        path.write_text(text, newline="")
        folder = tmp_path / f"run {len([*tmp_path.iterdir()])}"
        answer = ask(
            "--preset", "smoke", "--csv", path, "--label", "left", *more,
            "--run-dir", folder,
        )  # fmt: skip
        return Looked(*answer, **given)

    return look


def exported(n: int = 12, **columns: list[str]) -> str:
    """A table of an age, a town, some more and a label."""
    table = pd.DataFrame(
        {
            **{name: (own * n)[:n] for name, own in columns.items()},
            "age": [f"{20 + 7 * i % 31}.5" for i in range(n)],
            "town": [("x", "y")[i % 2] for i in range(n)],
            "left": [("no", "yes")[i % 3 % 2] for i in range(n)],
            **{name: (own * n)[:n] for name, own in columns.items() if name == "left"},
        }
    )
    return table.to_csv(index=False)


def test_files_of_other_dialects_are_the_same_table(look: Look) -> None:
    plain = look(exported())
    assert "t.csv: separator ',', decimal point\n" in plain.out
    semicolons = exported().replace(",", ";")
    for text, says in (
        (semicolons.replace(".", ","), "separator ';', decimal comma"),
        (exported().replace(",", "\t"), "separator TAB, decimal point"),
        ("sep=;\n" + semicolons, "separator ';', decimal point, lines before the"),
        ("# of today\n" + exported(), "separator ',', decimal point, lines before the"),
    ):
        found = look(text)
        assert says in found.out
        assert found.columns == plain.columns
        assert plain.table is not None
        np.testing.assert_array_equal(found.table, plain.table)
    asked = look(semicolons, "--separator", ",")
    assert (asked.code, asked.table) == (2, None)
    assert "column 'left' is missing" in asked.error
    assert (
        "t.csv: separator ':'"
        in look(exported().replace(",", ":"), "--separator", ":").out
    )


def test_labels_that_are_the_same_number_are_one_class(look: Look) -> None:
    found = look(exported(left=["1", "0", "1.0", "0.0"]))
    assert found.classes == ("0", "1")
    assert found.y.tolist() == [1, 0] * 6
    assert "left: 2 classes, 0 (6 rows), 1 (6 rows)\n" in found.out
    many = look(exported(left=["10", "2", "2.0", "1"]))
    assert many.classes == ("1", "2", "10")
    words = look(exported(left=["NA", "EU", "1", "1.0"]))
    assert words.classes == ("1", "1.0", "EU", "NA")


def test_what_is_left_out_or_missing_is_said(look: Look) -> None:
    numbers = [*map(str, range(12))]
    some = ["NA", "2.5", "31", "?", "5", "7.25"]
    found = look(exported(row=numbers, some=some))
    assert "row: left out, for it counts the rows from 0" in found.out
    assert "some: 'NA' in 2 rows counts as missing" in found.out
    assert "some: '?' in 2 rows counts as missing" in found.out
    assert [*Features(found.columns).sources] == ["some", "age", "town"]


def test_folds_are_as_many_as_the_rows_allow(look: Look) -> None:
    for n, folds in ((6, 2), (9, 3), (40, 10)):
        found = look(exported(n), "--folds", 10)
        assert (found.code, found.folds) == (0, folds)
        said = f"warning: {folds} folds, not 10: a class has no more rows than that"
        assert found.error.strip() == ("" if folds == 10 else said)


def test_too_few_rows_for_a_test_are_refused(look: Look) -> None:
    found = look(exported(4), "--part", 1)
    assert found.code == 2
    assert "has 4 rows: 5 are needed to learn and to test" in found.error


def test_a_tenth_of_few_rows_is_two(ask: Ask, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", rows(6))
    folder = tmp_path / "run"
    code, _, _ = ask(
        *QUICKLY, "--csv", path, "--label", "bought", "--part", 5, "--run-dir", folder
    )
    assert code == 0
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["network: accuracy"]["n"] == 2


def test_faults_are_told_before_a_label_that_tells_nothing(look: Look) -> None:
    text = exported(left=["yes"]).replace("\n", "\n1,2\n", 1)
    found = look(text)
    assert found.code == 2
    first, second = found.error.splitlines()
    assert first.endswith("row 1 (line 2): 2 fields where the header has 3")
    assert second == "the label 'left' is 'yes' in every row: there is nothing to tell"


def test_a_column_may_have_any_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mathematics for the figures, markup for the terminal, and very long."""
    names = [r"$\frac$", "[/b]", "x" * 100_000]
    estimates = {name: Estimate(0.0, -1.0, 1.0, 5, "rows") for name in names}
    drawn: list[str] = []

    def save(figure: Any, *_: Any) -> None:
        figure.draw_without_rendering()
        drawn.extend(t.get_text() for t in figure.axes[0].get_yticklabels())

    monkeypatch.setattr(plots, "save", save)
    plots.save_differences(cast(Any, None), "d", estimates, "x")
    assert drawn[:2] == [r"\$\frac\$", "[/b]"]
    assert len(drawn[2]) == MAX_CHARACTERS
    times = dict.fromkeys(("wall_s", "compile_s", "train_s", "steps"), 0)
    metrics = {"[/b]": 1.0}
    cli.print_result("t", {"metrics": metrics, **times})
    assert "[/b]" in capsys.readouterr().out


class OfPassengers(NamedTuple):
    """A saved run of the passengers, as far as a table is asked for."""

    folder: Path
    config: Any


def learned(folder: Path, features: Features, classes: tuple[str, ...]) -> None:
    """What a run of the lesson leaves for predicting, but for weights."""
    with open_run(folder, "ch4_csv", "smoke", lesson.Config()) as run:
        run.write_sealed(lesson.FEATURES, features)
        run.write_sealed(lesson.LABELS, classes)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("name,name,age", "error: column 'name' occurs more than once"),
        ("nam,cabin,age", "error: column 'name' is missing; did you mean 'nam'?"),
        (
            "title,age,nothing",
            "error: column 'cabin' is missing from title, age, nothing",
        ),
        ("title,deck,age", None),
    ],
)
def test_passengers_need_the_columns_that_were_read(
    tmp_path: Path, header: str, says: str | None
) -> None:
    titles = Indicator(Category("title")), Indicator(Category("deck", separator=" "))
    train = lesson.with_titles_and_decks(read_titanic())
    features = fit([*titles, Numeric("age")], train)
    learned(tmp_path, features, ("0", "1"))
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n1,2,3\n")
    saved = OfPassengers(tmp_path, lesson.Config())
    if says is None:
        with pytest.raises(AttributeError, match="replica_weights"):  # that far
            lesson.predict(saved, path)
        return
    with pytest.raises(UserError) as error:
        lesson.predict(saved, path)
    assert f"error: {error.value}" == says


def test_no_spreadsheet_runs_a_prediction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fitted = fit([Numeric("x")], pd.DataFrame({"x": ["1", "2"]}))
    learned(tmp_path, fitted, ("-1.5", "=1+1", "@a"))
    (tmp_path / "t.csv").write_text("x,x2,x2\n0,-,1\n1,,\n2,,\n")  # doubled, unread

    class Saved(OfPassengers):
        def replica_weights(self, *_: Any) -> dict[str, None]:
            return {"params": None, "extra": None}

    def members_of(*_: Any) -> Callable[..., np.ndarray]:
        return lambda x, _: np.log(np.eye(3) * 0.9 + 0.02)

    monkeypatch.setattr(lesson, "members_of", members_of)
    lesson.predict(Saved(tmp_path, lesson.Config(csv=Path("x"))), tmp_path / "t.csv")
    text = (tmp_path / "predictions" / "t.csv").read_text()
    told = [line.rsplit(",", 1)[1] for line in text.splitlines()]
    assert told == ["predicted", "-1.5", "'=1+1", "'@a"]


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
    assert read_sealed(folder, lesson.FEATURES, Features).sources[0] == "x"
