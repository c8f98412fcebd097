"""Lesson 4: the passengers' columns, what gives them away, and any other table."""

import csv
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from jaxstudy.messages import MAX_CHARACTERS
from jaxstudy.runs import plots
from jaxstudy.runs.run import open_run
from jaxstudy.runs.statistics import Estimate
from jaxstudy.tabular import prediction
from jaxstudy.tabular.columns import (
    UNKNOWN,
    Category,
    Embedding,
    Indicator,
    Numeric,
)
from jaxstudy.tabular.comparison import as_indicator, class_prior, compare_on_folds
from jaxstudy.tabular.cross_validation import held_out_split, stratified_splits
from jaxstudy.tabular.encoding import Features, cumulative
from jaxstudy.tabular.figures import draw_embedding
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.tabular.prediction import read_columns, save_columns
from jaxstudy.tabular.sets import read_titanic, with_titles_and_decks
from jaxstudy.tabular.settings import TableSettings
from jaxstudy.types import UserError
from tests.conftest import Answer, Ask, Patch, load, run_script

titanic: Any = load("experiments", "ch4_csv")
lesson: Any = load("experiments", "ch4_table")
QUICKLY = ("--preset", "smoke", "--epochs", 1, "--hidden", 4, "--folds", 2)
HEADER = ["x", "colour", "town", "bought"]


@pytest.fixture
def ask(ask: Ask) -> Ask:
    """Ask ch4_table, unless said."""

    def of_table(*arguments: object, module: Any = lesson) -> Answer:
        return ask(module, *arguments, predict=module.predict)

    return of_table


def rows(n: int = 120) -> list[list[str]]:
    """x, colour and town, and a label that is whether x > 0."""
    x = np.random.default_rng(0).normal(0, 1, n)
    return [
        [f"{v:.3f}", "rgb"[i % 3], f"town {i % 12}", "yes" if v > 0 else "no"]
        for i, v in enumerate(x)
    ]


def written(path: Path, lines: list[list[str]], header: list[str] = HEADER) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *lines])
    path.write_text(text.getvalue())
    return path


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table with a byte order mark."""
    root = tmp_path_factory.mktemp("csv")
    path = written(root / "mine.csv", rows())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    where = ("--csv", path, "--label", "bought", "--run-dir", root / "run")
    assert run_script(lesson, *QUICKLY, *where) == 0
    return root / "run"


# ------------------------------------------------------------------ the passengers


def test_the_passengers_are_those_of_the_table() -> None:
    table = read_titanic()
    assert table.shape == (1309, 14)
    assert table["survived"].value_counts().to_dict() == {"0": 809, "1": 500}
    missing = table[["age", "cabin", "fare", "embarked"]].isna().sum()
    assert missing.tolist() == [263, 1014, 1, 2]
    prepared: Any = with_titles_and_decks(table)
    assert prepared["title"].notna().all()
    assert set(prepared["title"]) > {"Mr", "Mrs", "Rev", "Countess", "Jonkheer"}
    many = prepared["cabin"] == "C23 C25 C27"
    decks = prepared.loc[many, "deck"]
    assert decks.iloc[0] == "C C C"


def test_every_kind_of_column_is_there_and_none_of_a_leak() -> None:
    columns = [column for of_kind in titanic.KINDS.values() for column in of_kind]
    fitted = fit_columns(columns, with_titles_and_decks(read_titanic()))
    assert not {*fitted.sources} & {*titanic.LEAKS}
    sets = cumulative(titanic.KINDS, columns, "all columns")
    assert [*sets] == [*[*titanic.KINDS][:-1], "all columns"]
    for smaller, larger in itertools.pairwise(sets.values()):
        assert larger[: len(smaller)] == smaller
    assert [*sets["all columns"]] == columns
    few = cumulative(titanic.KINDS, titanic.KINDS["+ crossed"], "all")
    assert few == {"all": titanic.KINDS["+ crossed"]}
    for leak in titanic.LEAKING:
        with pytest.raises(UserError, match="gives away who survived"):
            titanic.without_leaks([*columns, leak])
    for column in columns:  # the regression has no embeddings
        is_embedding = isinstance(column, Embedding)
        assert as_indicator(column) == (
            Indicator(column.of) if is_embedding else column
        )


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("age", "boat"), "column 'boat' is the lifeboat that"),
        (("body",), "column 'body' is the number of"),
        (("agee",), "column 'agee' is missing; did you mean 'age'?\n"),
    ],
)
def test_columns_that_are_refused(
    ask: Ask, tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    where = ("--columns", *names, "--run-dir", tmp_path / "run")
    code, _, error = ask(*QUICKLY, *where, module=titanic)
    assert code == 2
    assert error.startswith(f"error: {says}")
    assert not (tmp_path / "run" / "result.json").exists()


def test_some_columns_of_the_passengers(monkeypatch: Patch) -> None:
    given: dict[str, Any] = {}

    def compare(*arguments: Any, **options: Any) -> Any:
        given.update(columns=arguments[2] | arguments[3], splits=arguments[4])
        given.update(options)
        return {}

    def train(table: Any, y: Any, columns: Any, *_: Any) -> Any:
        return fit_columns(columns, table), None

    monkeypatch.setattr(titanic, "compare_on_folds", compare)
    monkeypatch.setattr(titanic, "train_ensemble", train)
    monkeypatch.setattr(titanic, "draw_comparison", lambda *_: None)
    monkeypatch.setattr(
        titanic, "save_columns", lambda _, fitted, __: given.update(fitted=fitted)
    )
    titanic.main(titanic.Config(columns=("age", "sex")), None)
    assert given["fitted"].sources == ("age", "sex")
    # who travels on one ticket is never on both sides of a fold
    groups, tickets = given["groups"], read_titanic()["ticket"]
    both = {*zip(groups, tickets, strict=True)}
    assert len(both) == len({*groups}) == tickets.nunique() == 929
    for train_rows, held_out in given["splits"]:
        assert not {*groups[train_rows]} & {*groups[held_out]}
    assert given["mistaken"] is None
    for columns in given["columns"].values():
        sources = {*Features(tuple(columns)).sources}
        assert sources - {*titanic.LEAKS} <= {"age", "sex"}
    # the mistake: as many folds, with passengers of a ticket on both sides
    titanic.main(titanic.Config(columns=("age",), mistake="ungrouped"), None)
    mistaken: Any = given["mistaken"]
    assert len(mistaken) == len(given["splits"])
    for train_rows, held_out in mistaken:
        assert {*groups[train_rows]} & {*groups[held_out]}


def test_rows_of_a_group_give_an_ungrouped_fold_away(tmp_path: Path) -> None:
    """Classes that depend on the group alone: what the mistake fakes, measured."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    y = rng.integers(0, 2, 40)[groups]
    table = pd.DataFrame({"group": [f"g{i}" for i in groups]})
    config = TableSettings(epochs=20, folds=4, repeats=1, rate=0.03)
    columns = (Indicator(Category("group")),)
    with open_run(tmp_path / "run", "test", "quick", config) as run:
        found: Any = compare_on_folds(
            table, y, {"network": columns}, {"regression": columns},
            stratified_splits(y, 4, 1, 0, groups), config, run, groups=groups,
            pairs=(("regression", "class prior"),),
            mistaken=stratified_splits(y, 4, 1, 0),
        )  # fmt: skip
    assert found["mistake: accuracy"].mean > 0.95
    assert found["right: accuracy"] == found["network: accuracy"]
    assert found["network: accuracy"].mean < 0.7
    assert found["mistake - right: accuracy"].low > 0.2
    assert found["mistake - right: log-loss"].high < 0
    gap = found["regression - class prior: log-loss"]
    means = [found[f"{n}: log-loss"].mean for n in ("regression", "class prior")]
    assert gap.mean == pytest.approx(means[0] - means[1])


def test_the_class_prior_is_that_of_the_training_rows() -> None:
    y = np.array([0, 0, 0, 1, 1, 1, 2])
    prior = np.exp(class_prior(y, np.array([0, 1, 2, 3])))
    np.testing.assert_allclose(prior, [4 / 7, 2 / 7, 1 / 7])


# ------------------------------------------------------------------ any table


def test_the_columns_of_a_table_are_inferred_and_saved(saved: Path) -> None:
    fitted, classes = read_columns(saved)
    assert fitted.sources == ("x", "colour", "town")
    assert classes == ("no", "yes")
    assert metrics_of(saved)["logistic regression: accuracy"]["mean"] > 0.9


def test_predictions_are_written_row_by_row(saved: Path, ask: Ask) -> None:
    """Whatever the rows beside; words never seen are said."""
    lines = [r[:3] for r in rows(5)]
    asked = written(saved.parent / "asked.csv", lines, HEADER[:3])
    code, out, error = ask("--run-dir", saved, "--predict", asked)
    assert (code, error) == (0, "")
    target = saved / "predictions" / "asked.csv"
    assert f"written to {target}" in out
    table = pd.read_csv(target)
    assert list(table["row"]) == [1, 2, 3, 4, 5]
    p = table[["probability of no", "probability of yes"]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=2e-6)
    assert list(table["predicted"]) == [["no", "yes"][i] for i in p.argmax(1)]
    new = [lines[-1], ["0", "pink", "town 1"]]
    other = written(saved.parent / "new.csv", new, HEADER[:3])
    code, _, error = ask("--run-dir", saved, "--predict", other)
    assert code == 0
    assert "in 1 rows column 'colour' has a word outside the vocabulary" in error
    alone = pd.read_csv(saved / "predictions" / "new.csv").iloc[0, 1:3].astype(float)
    np.testing.assert_allclose(p[-1], alone, atol=2e-6)


def test_all_that_is_wrong_with_a_file_to_predict_is_told(
    saved: Path, ask: Ask
) -> None:
    lines = [["x", "r", "t"], ["1", "r"], ["1e400", "g", "t"]]
    asked = written(saved.parent / "bad.csv", lines, HEADER[:3])
    code, _, error = ask("--run-dir", saved, "--predict", asked)
    assert code == 2
    assert error.splitlines() == [
        f"error: {asked} has 3 errors:",
        "  row 2 (line 3): 2 fields where the header has 3",
        "  row 1 (line 2), column 'x': 'x' is not a number",
        "  row 3 (line 4), column 'x': '1e400' is too large for a 32-bit number",
    ]
    assert not (saved / "predictions" / "bad.csv").exists()


@pytest.mark.torture
def test_a_table_in_parts_has_a_share_held_out(ask: Ask, tmp_path: Path) -> None:
    """Wild numbers in the tenths that are held out do not move the mean."""
    lines = rows(400)
    for i in np.random.default_rng(0).permutation(400)[:80]:  # the lesson's, for seed 0
        lines[i][0] = "1e30" if lines[i][3] == "yes" else "-1e30"
    path, folder = written(tmp_path / "mine.csv", lines), tmp_path / "run"
    where = ("--csv", path, "--label", "bought", "--run-dir", folder)
    more = ("--part", 70, "--epochs", 40, "--rate", 0.03)
    assert ask(*QUICKLY, *where, *more)[0] == 0
    metrics = metrics_of(folder)
    assert metrics["network: accuracy"]["n"] == 40
    assert metrics["network: accuracy"]["mean"] > 0.8
    assert metrics["network - class prior: log-loss"]["high"] < 0
    assert metrics["network - logistic regression: log-loss"]["n"] == 40
    assert not (folder / "rows").exists()
    fitted, _ = read_columns(folder)
    assert fitted.sources == ("x", "colour", "town")
    assert cast(Any, fitted.columns[0]).divisor < 10
    asked = written(tmp_path / "asked.csv", [["2", "r", "town 1"]], HEADER[:3])
    assert ask("--run-dir", folder, "--predict", asked)[0] == 0


# ------------------------------------------------------------------ as people export


class Inferred(NamedTuple):
    """What the script would have trained on."""

    code: int
    out: str
    error: str
    table: pd.DataFrame | None = None
    y: Any = None
    columns: tuple[Any, ...] = ()
    folds: int = 0
    classes: tuple[str, ...] = ()


@pytest.fixture
def inferred(ask: Ask, monkeypatch: Patch, tmp_path: Path) -> Any:
    """Run the script on a file of this text, up to the training."""
    given: dict[str, Any] = {}

    def compare(
        table: Any, y: Any, networks: Any, _: Any, splits: Any, *__: Any
    ) -> Any:
        folds = len(splits) // lesson.PRESETS["smoke"].repeats
        given.update(table=table, y=y, columns=networks["network"], folds=folds)
        return {}

    monkeypatch.setattr(lesson, "compare_on_folds", compare)
    monkeypatch.setattr(lesson, "train_ensemble", lambda *_: (None, None))
    monkeypatch.setattr(lesson, "draw", lambda *_: None)
    monkeypatch.setattr(
        lesson, "save_columns", lambda *a: given.update(classes=tuple(a[2]))
    )

    def inferred(text: str, *more: object) -> Inferred:
        given.clear()
        path = tmp_path / "t.csv"
        path.write_text(text, newline="")
        folder = tmp_path / f"run {len([*tmp_path.iterdir()])}"
        where = ("--csv", path, "--label", "left", *more, "--run-dir", folder)
        return Inferred(*ask("--preset", "smoke", *where), **given)

    return inferred


def exported(n: int = 12, **columns: list[str]) -> str:
    """A table of an age, a town, some more columns and a label."""
    repeated = {name: (values * n)[:n] for name, values in columns.items()}
    left = [("no", "yes")[i % 3 % 2] for i in range(n)]
    table = {
        **{name: values for name, values in repeated.items() if name != "left"},
        "age": [f"{20 + 7 * i % 31}.5" for i in range(n)],
        "town": [("x", "y")[i % 2] for i in range(n)],
        "left": repeated.get("left", left),
    }
    return pd.DataFrame(table).to_csv(index=False)


def test_files_of_other_dialects_are_the_same_table(inferred: Any) -> None:
    plain = inferred(exported())
    assert "t.csv: separator ',', decimal point\n" in plain.out
    semicolons = exported().replace(",", ";")
    for text, says in (
        (semicolons.replace(".", ","), "separator ';', decimal comma"),
        (exported().replace(",", "\t"), "separator TAB, decimal point"),
        ("sep=;\n" + semicolons, "separator ';', decimal point, lines before the"),
        ("# of today\n" + exported(), "separator ',', decimal point, lines before the"),
    ):
        other = inferred(text)
        assert says in other.out
        assert other.columns == plain.columns
        np.testing.assert_array_equal(other.table, plain.table)
    asked = inferred(semicolons, "--separator", ",")
    assert (asked.code, asked.table) == (2, None)
    assert "column 'left' is missing" in asked.error
    colons = inferred(exported().replace(",", ":"), "--separator", ":")
    assert "t.csv: separator ':'" in colons.out


def test_labels_that_are_the_same_number_are_one_class(inferred: Any) -> None:
    numbers = inferred(exported(left=["1", "0", "1.0", "0.0"]))
    assert numbers.classes == ("0", "1")
    assert numbers.y.tolist() == [1, 0] * 6
    assert "left: 2 classes, 0 (6 rows), 1 (6 rows)\n" in numbers.out
    assert inferred(exported(left=["10", "2", "2.0", "1"])).classes == ("1", "2", "10")
    words = inferred(exported(left=["NA", "EU", "1", "1.0"]))
    assert words.classes == ("1", "1.0", "EU", "NA")


def test_what_is_left_out_or_missing_is_said(inferred: Any) -> None:
    numbers, some = [*map(str, range(12))], ["NA", "2.5", "31", "?", "5", "7.25"]
    run = inferred(exported(row=numbers, some=some))
    for line in (
        "row: left out, for it counts the rows from 0",
        "some: 'NA' in 2 rows counts as missing",
        "some: '?' in 2 rows counts as missing",
    ):
        assert line in run.out
    assert [*Features(run.columns).sources] == ["some", "age", "town"]


def test_folds_are_as_many_as_the_rows_allow(inferred: Any) -> None:
    for n, folds in ((6, 2), (9, 3), (40, 10)):
        run = inferred(exported(n), "--folds", 10)
        assert (run.code, run.folds) == (0, folds)
        warning = f"warning: {folds} folds, not 10: a class has no more rows than that"
        assert run.error.strip() == ("" if folds == 10 else warning)
    few = inferred(exported(4), "--part", 1)
    assert few.code == 2
    assert "has 4 rows: 5 are needed to learn and to test" in few.error


def test_errors_are_told_before_a_label_that_tells_nothing(inferred: Any) -> None:
    run = inferred(exported(left=["yes"]).replace("\n", "\n1,2\n", 1))
    assert run.code == 2
    first, second = run.error.splitlines()
    assert first.endswith("row 1 (line 2): 2 fields where the header has 3")
    assert second == "the label 'left' is 'yes' in every row: there is nothing to tell"


def test_a_column_may_have_any_name(monkeypatch: Patch) -> None:
    """Mathematics for the figures, and very long; of markup, test_cli.py."""
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


def test_words_of_an_embedding_can_be_read_where_their_dots_lie_together(
    monkeypatch: Patch,
) -> None:
    """No word covers another, and each has a line to its dot."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    words = ["Miss", "Dr", "Mrs", "Col", "Master", "Mr", "Rev"]
    places = np.array([[0.0, 0.0]] * 4 + [[0.1, 0.0], [-2, 1.5], [-1, 1.5]])
    vectors = np.concatenate([np.zeros((UNKNOWN + 1, 2)), places])
    draw_embedding(cast(Any, None), vectors, words, [0.5] * 7, title="", label="share")
    figures[0].draw_without_rendering()
    notes = [t for t in figures[0].axes[0].texts if isinstance(t, Annotation)]
    assert {note.get_text(): tuple(note.xy) for note in notes} == dict(
        zip(words, map(tuple, places.tolist()), strict=True)
    )
    boxes = [Text.get_window_extent(note) for note in notes]  # without the arrows
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def stored(folder: Path, fitted: Features, classes: tuple[str, ...]) -> Any:
    """A saved run, as far as predicting needs it, but for weights."""
    with open_run(folder, "ch4_csv", "smoke", titanic.Config()) as run:
        save_columns(run, fitted, classes)
    nothing = {"params": None, "extra": None}
    return SimpleNamespace(
        folder=folder, config=titanic.Config(), replica_weights=lambda *_: nothing
    )


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("name,name,age", "column 'name' occurs more than once"),
        ("nam,cabin,age", "column 'name' is missing; did you mean 'nam'?"),
        ("title,age,nothing", "column 'cabin' is missing from title, age, nothing"),
        ("title,deck,age", None),
    ],
)
def test_passengers_need_the_columns_that_were_read(
    tmp_path: Path, header: str, says: str | None, monkeypatch: Patch
) -> None:
    titles = Indicator(Category("title")), Indicator(Category("deck", separator=" "))
    train = with_titles_and_decks(read_titanic())
    run = stored(tmp_path, fit_columns([*titles, Numeric("age")], train), ("0", "1"))
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n1,2,3\n")
    probabilities = lambda *_: lambda x, _: np.log(np.full((1, 2), 0.5))  # noqa: E731
    monkeypatch.setattr(prediction, "ensemble_log_probs", probabilities)
    if says is None:
        return titanic.predict(run, path)
    with pytest.raises(UserError) as error:
        titanic.predict(run, path)
    assert str(error.value) == says
    return None


def test_no_spreadsheet_runs_a_prediction(monkeypatch: Patch, tmp_path: Path) -> None:
    fitted = fit_columns([Numeric("x")], pd.DataFrame({"x": ["1", "2"]}))
    run = stored(tmp_path, fitted, ("-1.5", "=1+1", "@a"))
    (tmp_path / "t.csv").write_text("x,x2,x2\n0,-,1\n1,,\n2,,\n")  # doubled, unread
    probabilities = lambda *_: lambda x, _: np.log(np.eye(3) * 0.9 + 0.02)  # noqa: E731
    monkeypatch.setattr(prediction, "ensemble_log_probs", probabilities)
    lesson.predict(run, tmp_path / "t.csv")
    text = (tmp_path / "predictions" / "t.csv").read_text()
    predicted = [line.rsplit(",", 1)[1] for line in text.splitlines()]
    assert predicted == ["predicted", "-1.5", "'=1+1", "'@a"]


# ------------------------------------------------------------------ bad input


def error_of(ask: Ask, path: Path, *more: object) -> str:
    folder = path.parent / "run"
    where = ("--csv", path, "--label", "bought", *more, "--run-dir", folder)
    code, _, error = ask(*QUICKLY, *where)
    assert code == 2
    assert not (folder / "result.json").exists()
    return error.removeprefix("error: ").rstrip()


def test_labels_and_columns_that_do_not_serve(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    one = [[*row[:3], "yes"] for row in rows()]
    many = [[*row[:3], str(i)] for i, row in enumerate(rows())]
    few = [[*row[:3], "maybe" if i == 3 else row[3]] for i, row in enumerate(rows())]
    for lines, header, says in (
        (one, HEADER, "the label 'bought' is 'yes' in every row: there is nothing to"),
        (many, HEADER, "the label 'bought' has 120 different values, more than the 50"),
        (few, HEADER, "the label 'bought' has a class of 1 rows, fewer than the 2 fo"),
        (rows(), [*HEADER[:3], "bougt"], "column 'bought' is missing; did you mean"),
        (rows(), ["x", "x", *HEADER[2:]], "column 'x' occurs more than once"),
    ):
        assert error_of(ask, written(path, lines, header)).startswith(says)


def test_a_tenth_of_few_rows_is_two() -> None:
    for n, tenth in ((6, 2), (19, 2), (400, 40)):
        parts = held_out_split(n, seed=0)
        assert [len(part) for part in parts] == [tenth, tenth, n - 2 * tenth]
        assert sorted(np.concatenate(parts)) == list(range(n))


def test_all_errors_of_a_table_at_once(ask: Ask, tmp_path: Path) -> None:
    lines = rows()
    lines[1], lines[4] = lines[1][:3], ["many", *lines[4][1:]]
    lines[7][3] = ""
    path = written(tmp_path / "t.csv", lines)
    for part in ((), ("--part", 30)):
        assert error_of(ask, path, *part).split("\n  ") == [
            f"{path} has 3 errors:",
            "row 2 (line 3): 3 fields where the header has 4",
            "row 8 (line 9), column 'bought': is missing",
            "row 5 (line 6), column 'x': 'many' is not a number",
        ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"x,colour,town,bought\n", "has a header and no row"),
        (b'x,bought\n1,"yes\n', "line 2: "),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_table(
    ask: Ask, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    assert says in error_of(ask, path)
