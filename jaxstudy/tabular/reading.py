"""Tables of CSV: a reader that refuses what it does not understand."""

import codecs
import contextlib
import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from jaxstudy.messages import ValidationErrors, enumerated, shortened
from jaxstudy.tabular.columns import FLOAT32_MAX, UNNAMED
from jaxstudy.text.vocabulary import normalise
from jaxstudy.types import UserError


@dataclass(frozen=True)
class NumberField:
    """A column of finite numbers."""

    name: str

    def parse(self, text: str) -> float:
        """Raises ValueError saying what is wrong with the text."""
        try:
            value = float("_" if "_" in text else text)  # 1_000 is Python, not data
        except ValueError:
            raise ValueError("is not a number") from None
        if math.isnan(value):
            raise ValueError("is not a number one can compute with")
        if abs(value) > FLOAT32_MAX:
            raise ValueError("is too large for a 32-bit number")
        return value


@dataclass(frozen=True)
class ClassField:
    """A column of whole numbers, each one of the classes."""

    name: str
    classes: tuple[int, ...]

    def parse(self, text: str) -> int:
        """Raises ValueError saying what is wrong with the text."""
        value = NumberField(self.name).parse(text)
        if value not in self.classes:
            raise ValueError(f"is none of {', '.join(map(str, self.classes))}")
        return int(value)


Field = NumberField | ClassField


def _lines(file: Iterable[bytes], name: str | Path) -> Iterator[str]:
    """The lines of UTF-8 text, normalised, with or without a byte order mark."""
    offset = 0
    for raw in file:
        content = raw.removeprefix(codecs.BOM_UTF8) if not offset else raw
        try:
            content.decode()
        except UnicodeDecodeError as error:
            broken = offset + len(raw) - len(content) + error.start
            raise UserError(f"{name}: byte {broken} is not UTF-8 text") from None
        for line in content.splitlines(keepends=True):
            yield normalise(line.decode())
        offset += len(raw)


# ------------------------------------------------------------------ dialects

SEPARATORS = "\t;|,"  # of those that fit, the first: text holds commas, too
SAMPLE_LINES = 200  # by which a dialect is known
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+")
WITH_COMMA = re.compile(r"[+-]?(\d+|[1-9]\d{0,2}(\.\d{3})+)?(,\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a CSV file separates cells and writes decimals."""

    separator: str = ","
    decimal: str = "."
    skipped: int = 0
    """Lines before the header: comments, or one that names the separator."""

    def __str__(self) -> str:
        separator = "TAB" if self.separator == "\t" else repr(self.separator)
        decimal = "comma" if self.decimal == "," else "point"
        skipped = f", lines before the header: {self.skipped}" if self.skipped else ""
        return f"separator {separator}, decimal {decimal}{skipped}"

    def plain(self, cell: str) -> str:
        """A cell, its number (1.234,5 with a decimal comma) written as 1234.5."""
        if self.decimal == "," and WITH_COMMA.fullmatch(cell.strip()):
            return cell.replace(".", "").replace(",", ".")
        return cell


def sniff(
    file: Iterable[bytes], separator: str | None = None, decimal: str | None = None
) -> Dialect:
    """The dialect of a CSV file by its first lines, as far as it is not given.

    The separator is the one that divides most lines into as many cells as the header.
    Lines before it that begin with # are comments, unless the last has as many cells
    as what follows; a line `sep=;` is obeyed. Raises UserError where the separator
    given is none.
    """
    content = b"".join(itertools.islice(file, SAMPLE_LINES))
    raw = content.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
    lines = [line.decode(errors="replace") for line in raw[:SAMPLE_LINES]]
    separator = {"tab": "\t", "\\t": "\t"}.get(separator or "", separator)
    if separator is not None and not _can_separate(separator):
        raise UserError(f"--separator {separator!r} is no single sign, and not tab")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    named = re.fullmatch(r'"?sep=(.)"?\s*', lines[filled[0]]) if filled else None
    if named and _can_separate(named[1]):
        separator, filled = separator or named[1], filled[1:]
    comments = list(itertools.takewhile(lambda n: lines[n][0] == "#", filled))
    filled = filled[len(comments) :] or filled
    first = filled[0] if filled else 0
    separator = separator or _separator(lines[first:])
    if comments and first > comments[-1]:
        last, header = (_records([lines[n]], separator) for n in (comments[-1], first))
        if len(last[0]) == len(header[0]) > 1:
            first = comments[-1]
    decimal = decimal or _decimal(_records(lines[first:], separator), separator)
    return Dialect(separator, decimal, first)


def _can_separate(text: str) -> bool:
    return len(text) == 1 and not text.isalnum() and text not in '"\r\n'


def _records(lines: Iterable[str], separator: str) -> list[list[str]]:
    """The rows of some lines, up to a broken one: the last may be cut."""
    records = []
    with contextlib.suppress(csv.Error):
        records.extend(filter(None, csv.reader(lines, delimiter=separator)))
    return records


def _separator(lines: Sequence[str]) -> str:
    def fitting(separator: str) -> float:
        """The share of rows that are as wide as the header."""
        widths = [len(record) for record in _records(lines, separator)]
        if not widths or widths[0] < 2:
            return 0.0
        return widths.count(widths[0]) / len(widths)

    best = max(SEPARATORS, key=fitting)
    return best if fitting(best) else ","


def _decimal(records: Sequence[Sequence[str]], separator: str) -> str:
    """A comma, if it is in most of the numbers; 1,234 is one where `;` separates."""
    if separator == ",":
        return "."
    cells = [cell.strip() for record in records[1:] for cell in record]
    numbers = {
        sign: [c for c in cells if re.fullmatch(rf"[+-]?\d*[{sign}]\d+", c)]
        for sign in ",."
    }
    commas, points = (
        sum(not THOUSANDS.fullmatch(c) for c in numbers[sign]) for sign in ",."
    )
    if not commas and not points and separator == ";":
        commas, points = len(numbers[","]), len(numbers["."])
    return "," if commas > points else "."


# ------------------------------------------------------------------ rows


def csv_rows(
    file: Iterable[bytes],
    name: str | Path,
    errors: ValidationErrors,
    dialect: Dialect = Dialect(),
) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The header of a CSV file, and its rows, each after "NUMBER (line NUMBER)".

    Rows count from 1, after the header; blank cells of the header get a name. Rows of
    another number of fields are noted as errors and left out; raises UserError where it
    is no table at all: empty, a header alone, a quote left open, bytes that are not
    UTF-8.
    """
    text = itertools.islice(_lines(file, name), dialect.skipped, None)
    reader = csv.reader(text, delimiter=dialect.separator, strict=True)

    def filled() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if row:
                    yield reader.line_num + dialect.skipped, row
        except csv.Error as error:
            line = reader.line_num + dialect.skipped
            raise UserError(f"{name}, line {line}: {error}") from error

    lines = filled()
    header = [
        field.strip() or f"{UNNAMED}{place}"
        for place, field in enumerate(next(lines, (0, []))[1])
    ]
    if not header:
        raise UserError(f"{name} is empty")

    def rows() -> Iterator[tuple[str, list[str]]]:
        number = 0
        for number, (line, row) in enumerate(lines, 1):
            where = f"{number} (line {line})"
            if len(row) == len(header):
                yield where, [dialect.plain(field) for field in row]
            else:
                width = f"{len(row)} fields where the header has {len(header)}"
                errors.add(f"row {where}: {width}")
        if not number:
            raise UserError(f"{name} has a header and no row")

    return header, rows()


def text_tables(
    file: Iterable[bytes],
    name: str | Path,
    errors: ValidationErrors,
    rows: int,
    dialect: Dialect = Dialect(),
) -> Iterator[pd.DataFrame]:
    """The rows of a CSV file as tables of text, of so many rows at most."""
    header, lines = csv_rows(file, name, errors, dialect)
    while part := list(itertools.islice(lines, rows)):
        where, values = zip(*part, strict=True)
        cells = [[field.strip() or None for field in row] for row in values]
        yield pd.DataFrame(cells, index=list(where), columns=header, dtype=object)


def read_text(
    path: Path,
    errors: ValidationErrors,
    separator: str | None = None,
    decimal: str | None = None,
    *,
    say: Callable[[str], None] | None = None,
    rows: int = 100_000,
) -> Iterator[pd.DataFrame]:
    """A CSV file as tables of text, of so many rows at most, all columns.

    What is blank is None; the index says where a row stands, as `csv_rows` does; `say`
    hears of the dialect, found out as far as it is not given. Raises UserError as
    `sniff` and `csv_rows` do, and where the file cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        head = list(itertools.islice(file, SAMPLE_LINES))  # a pipe has no way back
        dialect = sniff(head, separator, decimal)
        if say is not None:
            say(f"{path}: {dialect}")
        yield from text_tables(itertools.chain(head, file), path, errors, rows, dialect)


def read_table(
    content: bytes,
    name: str | Path,
    columns: Sequence[Field],
    dialect: Dialect = Dialect(),
) -> pd.DataFrame:
    """Read these columns of a CSV file with a header; other columns are ignored.

    Raises UserError naming file, row (1 is the first after the header), line, column
    and value of every error: a missing or doubled column, a ragged row, blank or
    unreadable or infinite numbers, an unknown class, no rows.
    """
    with ValidationErrors(name) as errors:
        header, rows = csv_rows(io.BytesIO(content), name, errors, dialect)
        for column in columns:
            if header.count(column.name) != 1:
                missing = column.name not in header
                what = "is missing" if missing else "occurs more than once"
                raise UserError(
                    f"{name}: column {column.name!r} {what}; the header is "
                    f"{enumerated(header)}"
                )
        places = [header.index(column.name) for column in columns]
        values: dict[str, list[float]] = {column.name: [] for column in columns}
        for where, row in rows:
            for column, place in zip(columns, places, strict=True):
                field = row[place].strip()
                try:
                    if not field:
                        raise ValueError("is blank")
                    values[column.name].append(column.parse(field))
                except ValueError as error:
                    errors.add(
                        f"row {where}, column {column.name!r}: "
                        f"{shortened(repr(field))} {error}"
                    )
    table = pd.DataFrame(values)
    for column in columns:
        numbers = table[column.name].to_numpy()
        different = len(np.unique(numbers))
        kept = len(np.unique(numbers.astype(np.float32)))
        if 2 * kept < different:
            raise UserError(
                f"{name}: column {column.name!r} has {different} different values, of "
                f"which 32-bit numbers keep {kept}: subtract a constant first"
            )
    return table


# a cell that a spreadsheet takes for a formula begins so
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def without_formulas(text: str) -> str:
    """Text for a cell of CSV that no spreadsheet runs: quoted, unless a number."""
    if not text.startswith(FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
