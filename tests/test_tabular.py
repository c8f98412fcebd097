"""Tables: every finite number comes through, every error is named where it is."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxstudy.data.sources import ADMISSIONS
from jaxstudy.dataset import steps_per_epoch
from jaxstudy.messages import ValidationErrors, shortened
from jaxstudy.tabular import sets
from jaxstudy.tabular.reading import (
    ClassField,
    Dialect,
    NumberField,
    csv_rows,
    read_table,
    sniff,
    without_formulas,
)
from jaxstudy.tabular.sets import (
    DIGIT_FORMS,
    Applicant,
    admission_arrays,
    applicant_row,
    digit_sets,
    read_admissions,
    read_digits,
)
from jaxstudy.types import UserError
from tests.conftest import Patch

COLUMNS = (ClassField("class", (0, 1)), NumberField("a"), NumberField("b"))
HEADER = ["class", "a", "b"]
GOOD = [["0", "1.5", "-2"], ["1", "0", "1e3"], ["1", "7", "8"]]

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def as_csv(rows: list[list[str]], header: list[str] = HEADER) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def error(content: bytes) -> str:
    with pytest.raises(UserError) as error:
        read_table(content, "t.csv", COLUMNS)
    message = str(error.value)
    assert message.startswith("t.csv")
    assert "\n" not in message
    return message


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), finite, finite), min_size=1, max_size=20),
    st.permutations(range(4)),
    st.sampled_from(",;\t|"),
    st.booleans(),
    st.sampled_from(["", "\ufeff", "\ufeff# a; comment, of|one\n"]),
)
def test_every_table_of_finite_numbers_round_trips(
    rows: list[tuple[int, float, float]],
    order: list[int],
    separator: str,
    comma: bool,
    before: str,
) -> None:
    comma &= separator != ","
    lines = [[*HEADER, "ignored"], *([*map(repr, row), "any text"] for row in rows)]
    text = "\n".join(separator.join(line[i] for i in order) for line in lines)
    content = (before + (text.replace(".", ",") if comma else text)).encode()
    dialect = sniff(io.BytesIO(content), decimal="," if comma else None)
    table = read_table(content, "t.csv", COLUMNS, dialect)
    assert list(table.columns) == HEADER
    expected = np.array(rows, np.float32)
    np.testing.assert_array_equal(table.to_numpy(np.float32), expected)


BAD = {
    **dict.fromkeys(("", "  "), "is blank"),
    **dict.fromkeys(("x", "1,5", "1_000", "--1", "0x10", "1 2"), "is not a number"),
    **dict.fromkeys(("nan", "NaN"), "is not a number one can compute with"),
    **dict.fromkeys(("inf", "-Infinity", "1e400", "-1e39", "9" * 400),
                    "is too large for a 32-bit number"),
}  # fmt: skip


@given(
    st.lists(st.tuples(finite, finite), min_size=1, max_size=12),
    st.sampled_from(sorted(BAD)),
    st.data(),
)
def test_a_bad_cell_is_named_with_its_row_and_column(
    rows: list[tuple[float, float]], bad: str, data: st.DataObject
) -> None:
    cells = [["1", *map(repr, row)] for row in rows]
    row = data.draw(st.integers(0, len(cells) - 1))
    column = data.draw(st.integers(0, 2))
    cells[row][column] = bad
    message = error(as_csv(cells))
    where = f"t.csv, row {row + 1} (line {row + 2}), column {HEADER[column]!r}: "
    assert message == f"{where}{shortened(repr(bad.strip()))} {BAD[bad]}"


@given(
    st.text("01234567890.eE+-_ naifINFx\t;'", max_size=8),
    st.sampled_from(["a", "b", "class"]),
)
def test_a_cell_is_a_finite_number_or_an_error(cell: str, name: str) -> None:
    row = ["1", "2", "3"]
    row[HEADER.index(name)] = cell
    try:
        table = read_table(as_csv([row]), "t.csv", COLUMNS)
    except UserError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert f"row 1 (line 2), column {name!r}: {cell.strip()!r}" in message
        return
    value = table[name].iloc[0]
    assert np.isfinite(np.float32(value))
    assert value == float(cell)
    assert "_" not in cell


@given(st.integers(0, 2), st.integers(0, 6), st.integers(0, 2))
def test_a_ragged_row_is_named(row: int, width: int, extra_blank_lines: int) -> None:
    assume(width not in (0, 3))
    cells = [list(cells) for cells in GOOD]
    cells[row] = ["1"] * width
    lines = as_csv(cells).splitlines(keepends=True)
    content = b"".join([lines[0], *[b"\r\n"] * extra_blank_lines, *lines[1:]])
    message = error(content)
    line = row + 2 + extra_blank_lines
    assert message == (
        f"t.csv, row {row + 1} (line {line}): {width} fields where the header has 3"
    )


def test_all_errors_are_told_at_once() -> None:
    cells = [["2", "x", ""], ["1", "2"], ["1", "2", "3"]]
    with pytest.raises(UserError) as error:
        read_table(as_csv(cells), "t.csv", COLUMNS)
    assert str(error.value).split("\n  ") == [
        "t.csv has 4 errors:",
        "row 1 (line 2), column 'class': '2' is none of 0, 1",
        "row 1 (line 2), column 'a': 'x' is not a number",
        "row 1 (line 2), column 'b': '' is blank",
        "row 2 (line 3): 2 fields where the header has 3",
    ]


@pytest.mark.parametrize("name", HEADER)
def test_a_missing_and_a_doubled_column(name: str) -> None:
    header = [h.upper() if h == name else h for h in HEADER]
    told = f"t.csv: column {name!r} is missing; the header is {', '.join(header)}"
    assert error(as_csv(GOOD, header)) == told
    header = [*HEADER, f" {name} "]
    message = error(as_csv([[*row, "1"] for row in GOOD], header))
    assert f"column {name!r} occurs more than once" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "t.csv is empty"),
        (b"\xef\xbb\xbf\n\n", "t.csv is empty"),
        (b"class,a,b\n\n\n", "t.csv has a header and no row"),
        (b"class,a,b\n1,2,\xff\n", "t.csv: byte 14 is not UTF-8 text"),
        ("class,a,b\n1,2,3\n".encode("utf-16"), "t.csv: byte 0 is not UTF-8 text"),
    ],
)
def test_what_is_no_table(content: bytes, expected: str) -> None:
    assert error(content) == expected


def test_quotes_and_lines_within_a_field() -> None:
    content = b'class,a,b,note\n1,2,3,"two\nlines"\n1,"4",x,\n'
    message = error(content)
    assert message == "t.csv, row 2 (line 4), column 'b': 'x' is not a number"


# ------------------------------------------------------------------ dialects

AGES = "name,age\na,1.5\nb,2\n"
DIALECTS = {
    AGES: Dialect(),
    AGES.replace(",", ";"): Dialect(";"),
    AGES.replace(",", "\t"): Dialect("\t"),
    AGES.replace(",", "|"): Dialect("|"),
    AGES.replace(",", ";").replace(".", ","): Dialect(";", ","),
    "sep=;\n" + AGES.replace(",", ";"): Dialect(";", ".", 1),
    '\ufeff"sep=\t"\r\n' + AGES.replace(",", "\t"): Dialect("\t", ".", 1),
    "# exported, by me\n\n# today\n" + AGES + "c,3,4\n": Dialect(",", ".", 3),
    "#,age\n1,2\n2,3\n": Dialect(),  # a column of that name, and no comment
    # commas in text, even in the header
    "town, state\tage\nBoston, MA\t1\nX, Y\t2\n": Dialect("\t"),
    'a,b\n"1;2","x;y"\n3,4\n': Dialect(),
    "name\na\nb\n": Dialect(),
    "a;b\n1.234,5;7\n2,5;8\n": Dialect(";", ","),
    "a;b\n1,234;7\n": Dialect(";", ","),
    "a\tb\n1,234\t7\n": Dialect("\t"),  # may be a thousand
    "a;b\n0.5;1,234\n": Dialect(";"),
    'a,b\n"1,5",2\n': Dialect(),
    "": Dialect(),
}


@pytest.mark.parametrize("text", DIALECTS)
def test_a_dialect_is_found_out(text: str) -> None:
    assert sniff(io.BytesIO(text.encode())) == DIALECTS[text]


def test_what_is_given_is_not_found_out() -> None:
    content = AGES.replace(",", ";").encode()
    assert sniff(io.BytesIO(content), ",", ",") == Dialect(",", ",")
    assert sniff(io.BytesIO(content), "tab").separator == "\t"
    for separator in ("", "ab", "a", "1", '"', "\n"):
        with pytest.raises(UserError, match="is no single sign"):
            sniff(io.BytesIO(content), separator)


def test_a_point_between_thousands_is_no_decimal_one() -> None:
    dialect = Dialect(";", ",")
    cells = {
        "1.234,5": "1234.5", "1.234": "1234", "-1,5": "-1.5", ",5": ".5", "7": "7",
        "1.234.567": "1234567", "1.5": "1.5", "a,b": "a,b", "1,2,3": "1,2,3",
    }  # fmt: skip
    assert {cell: dialect.plain(cell) for cell in cells} == cells
    assert Dialect().plain("1,5") == "1,5"


def test_a_line_is_counted_from_the_first_of_the_file() -> None:
    content = b"sep=;\nclass;a;b\n1;2;3\n1;x;3\n"
    with pytest.raises(UserError, match=r"row 2 \(line 4\), column 'a': 'x'"):
        read_table(content, "t.csv", COLUMNS, sniff(io.BytesIO(content)))


def test_errors_are_told_before_another_error(tmp_path: Path) -> None:
    content = b'class,a,b\n1,2\n1,x,3\n1,"2,3\n'
    with pytest.raises(UserError) as error:
        read_table(content, "t.csv", COLUMNS)
    head, *lines, last = str(error.value).splitlines()
    assert head == "t.csv has 2 errors:"
    assert lines == [
        "  row 1 (line 2): 2 fields where the header has 3",
        "  row 2 (line 3), column 'a': 'x' is not a number",
    ]
    assert last.startswith("t.csv, line 4: ")


def test_a_message_of_very_many_names_is_short() -> None:
    names = [f"column {i}" for i in range(100_000)]
    for header in (names, ["x" * 100_000, "a"]):
        message = error(as_csv([["1"] * len(header)], header))
        assert "column 'class' is missing" in message
        assert len(message) < 3000
    assert error(as_csv([["1"] * len(names)], names)).endswith("and 99,980 more")
    assert len(error(as_csv([["1", "x" * 100_000, "3"]]))) < 300


def test_blank_cells_of_a_header_are_named() -> None:
    _, rows = csv_rows(
        io.BytesIO(b",a,,\n1,2,3,4\n"), "t.csv", ValidationErrors("t.csv")
    )
    assert [row for _, row in rows] == [["1", "2", "3", "4"]]
    header, _ = csv_rows(io.BytesIO(b",a,,\n"), "t.csv", ValidationErrors("t.csv"))
    assert header == ["Unnamed: 0", "a", "Unnamed: 2", "Unnamed: 3"]


def test_numbers_that_32_bits_do_not_tell_apart() -> None:
    cells = [["1", "2", str(1_600_000_000 + i)] for i in range(100)]
    assert "column 'b' has 100 different values, of which 32-bit numbers keep" in (
        error(as_csv(cells))
    )
    read_table(as_csv([["1", "2", "0.1"], ["1", "2", "0.3"]]), "t.csv", COLUMNS)


def test_no_spreadsheet_runs_a_cell() -> None:
    for text in ("=1+1", "+a", "-a", "@a", "\ta", "\r=1", "-", "+1+1", "-1-cmd"):
        assert without_formulas(text) == f"'{text}"
    for text in ("", "a=1", "-1.5", "+7", "-1e-3", "3", "a@b"):
        assert without_formulas(text) == text


# ------------------------------------------------------------------ the admissions


def test_a_flipped_label_of_the_admissions_is_found(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    content = ADMISSIONS.path.read_bytes()
    lines = content.split(b"\n")
    lines[7] = (b"0" if lines[7][:1] == b"1" else b"1") + lines[7][1:]
    # past the hash, so that it is the sums that notice
    monkeypatch.setattr(sets, "read_bytes", lambda _: b"\n".join(lines))
    with pytest.raises(UserError, match="has other sums"):
        read_admissions()


def test_two_swapped_ranks_of_the_admissions_are_found_by_the_hash(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    path, content = tmp_path / "ucla.csv", ADMISSIONS.path.read_bytes()
    monkeypatch.setattr(sets, "ADMISSIONS", dataclasses.replace(ADMISSIONS, path=path))
    path.write_bytes(content)
    assert len(read_admissions()) == 400
    lines = content.split(b"\n")
    assert lines[2][-1:] != lines[3][-1:]
    lines[2], lines[3] = (a[:-1] + b[-1:] for a, b in (lines[2:4], lines[3:1:-1]))
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match="has SHA-256"):
        read_admissions()
    # which the sums do not see
    monkeypatch.setattr(sets, "read_bytes", lambda _: b"\n".join(lines))
    assert len(read_admissions()) == 400


def test_another_file_of_that_form(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("rank,gpa,gre,admit\n2,3.5,600,1\n1,3,500.5,0\n")
    table = read_admissions(path)
    assert table.to_dict("list") == {
        "admit": [1, 0], "gre": [600.0, 500.5], "gpa": [3.5, 3.0], "rank": [2, 1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read: No such file"),
        ("", "is empty"),
        ("admit,gre,gpa\n1,2,3\n", "column 'rank' is missing"),
        ("admit,gre,gpa,rank\n1,2,3,5\n", "column 'rank': '5' is none of 1, 2, 3, 4"),
        ("admit,gre,gpa,rank\n1,2,3,4\n1,2,3,4\n", "'admit' is 1 in every row"),
        ("admit,gre,gpa,rank\n0,2,3,4\n", "'admit' is 0 in every row"),
    ],
)
def test_errors_of_another_file(
    tmp_path: Path, text: str | None, expected: str
) -> None:
    path = tmp_path / "other.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        read_admissions(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_admissions(tmp_path)


def test_admission_arrays() -> None:
    rows = [(1, 1.0, 5.0, 1), (0, 2.0, 6.0, 2), (0, 3.0, 7.0, 3), (1, 4.0, 8.0, 4)]
    table = pd.DataFrame(rows, columns=["admit", "gre", "gpa", "rank"])
    arrays = admission_arrays(table)
    expected = [[1, 5, 0, 0, 0], [2, 6, 1, 0, 0], [3, 7, 0, 1, 0], [4, 8, 0, 0, 1]]
    np.testing.assert_array_equal(arrays["x"], np.array(expected, np.float32))
    np.testing.assert_array_equal(arrays["y"], np.array([1, 0, 0, 1], np.float32))
    assert arrays["x"].dtype == arrays["y"].dtype == np.float32


def test_an_applicant_of_the_table_has_the_row_of_the_table() -> None:
    table = read_admissions()
    said: list[str] = []
    for row in (0, 1, 57, 399):
        fields = table.iloc[row]
        applicant = Applicant(fields.gre, fields.gpa, int(fields["rank"]))
        x = applicant_row(applicant, table, said.append)
        np.testing.assert_array_equal(x[0], admission_arrays(table)["x"][row])
    assert said == []
    # extrapolation is said
    applicant_row(Applicant(200, 4.5, 1), table, said.append)
    assert len(said) == 2
    assert "gre 200 lies outside the training data (220 to 800)" in said[0]
    assert "gpa 4.5 lies outside the training data (2.26 to 4)" in said[1]

    for applicant, expected in (
        (Applicant(float("nan"), 3, 1), "gre: nan is not a number one can compute"),
        (Applicant(500, float("inf"), 1), "gpa: inf is too large"),
        (Applicant(500, 3, 5), "rank: 5 is none of 1, 2, 3, 4"),
    ):
        with pytest.raises(UserError, match=f"the applicant's {expected}"):
            applicant_row(applicant, table, print)


def test_digits() -> None:
    digits = read_digits()
    assert digits["x"].shape == (1797, 64)
    assert digits["x"].dtype == np.float32
    assert (digits["x"].min(), digits["x"].max()) == (0, 1)
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(digits["y"]).tolist() == counts
    # sixteenths, exactly: no value was blurred on the way
    sixteenths = digits["x"] * 16
    np.testing.assert_array_equal(sixteenths, np.round(sixteenths))
    assert digits["x"].sum() * 16 == 561718


@pytest.mark.torture
def test_the_digits_are_forms_one_after_the_other() -> None:
    """All of one text, and a digit is most like one of its own form: one writer's."""
    digits = read_digits()
    labels = "".join(map(str, digits["y"]))
    assert labels.count("09556509898") == 14
    begins = [0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667]
    assert set(DIGIT_FORMS) < {b for b in begins if labels[b:].startswith(labels[:40])}
    squares = (digits["x"] ** 2).sum(1)
    apart = squares[:, None] + squares - 2 * digits["x"] @ digits["x"].T
    np.fill_diagonal(apart, np.inf)
    form = np.searchsorted(begins, np.arange(1797), side="right")
    same = form[apart.argmin(1)] == form
    share = [same[form == f].mean() for f in range(1, 15)]
    assert min(share) > 0.35  # by chance 1 in 14


def test_digit_sets_are_of_whole_forms() -> None:
    sets = digit_sets(standardise=True)
    rows = [np.asarray(data.indices) for data in sets]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(1797))
    assert (rows[1][0], rows[2][0]) == DIGIT_FORMS
    x = np.asarray(sets.train.arrays["x"])
    assert x[rows[0]].mean() == pytest.approx(0, abs=1e-5)
    assert x[rows[0]].std() == pytest.approx(1, rel=1e-5)
    assert np.asarray(digit_sets().train.arrays["x"]).max() == 1
    assert steps_per_epoch(len(rows[0]), 64, sets.train.order) == 12
