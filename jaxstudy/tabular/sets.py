"""The tables that the lessons learn from: admissions, the Titanic, digits."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from jaxstudy.data.sources import ADMISSIONS, TITANIC, installed, read_bytes
from jaxstudy.dataset import Dataset, Order, dataset, subset
from jaxstudy.messages import ValidationErrors
from jaxstudy.tabular.columns import check_columns
from jaxstudy.tabular.reading import (
    ClassField,
    Field,
    NumberField,
    read_table,
    sniff,
    text_tables,
)
from jaxstudy.types import UserError


class Applicant(NamedTuple):
    """What admission is predicted from."""

    gre: float
    gpa: float
    rank: int


RANKS = (1, 2, 3, 4)
ADMISSION_COLUMNS: tuple[Field, ...] = (
    ClassField("admit", (0, 1)),
    NumberField("gre"),
    NumberField("gpa"),
    ClassField("rank", RANKS),
)


def read_admissions(
    path: Path | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """The 400 UCLA admissions (admit, gre, gpa, rank), or another file of that form.

    `say` hears of the dialect of another file, found out where it is not given.

    The committed table is checked by its hash and by its sums: copies with a flipped
    label go about. Raises UserError as `read_table` does, or when one class is absent.
    """
    if path is not None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        dialect = sniff(io.BytesIO(content), separator, decimal)
        say(f"{path}: {dialect}")
        table = read_table(content, path, ADMISSION_COLUMNS, dialect)
        if table.admit.nunique() < 2:
            only = int(table.admit.iloc[0])
            raise UserError(f"{path}: column 'admit' is {only} in every row")
        return table
    table = read_table(read_bytes(ADMISSIONS), ADMISSIONS.path, ADMISSION_COLUMNS)
    sums = (len(table), table.admit.sum(), table.gre.sum(), round(table.gpa.sum(), 2))
    ranks = tuple(table["rank"].value_counts().sort_index())
    if (sums, ranks) != ((400, 127, 235080, 1355.96), (61, 151, 121, 67)):
        raise UserError(f"{ADMISSIONS.path} has other sums: {sums}, ranks {ranks}")
    return table


def admission_arrays(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """x [N, 5]: gre, gpa and indicators of rank 2, 3, 4 (rank 1 is none); y [N]."""
    ranks = table["rank"].to_numpy()[:, None] == np.array(RANKS[1:])
    x = np.concatenate([table[["gre", "gpa"]].to_numpy(), ranks], axis=1)
    return {
        "x": x.astype(np.float32),
        "y": table["admit"].to_numpy(np.float32),
    }


def applicant_row(
    applicant: Applicant, table: pd.DataFrame, say: Callable
) -> np.ndarray:
    """The features [1, 5] of one applicant; `say` hears where this extrapolates.

    Raises UserError when a number is not finite or the rank does not exist.
    """
    fields: dict[str, float] = {"admit": 0}
    for column in ADMISSION_COLUMNS[1:]:
        value = getattr(applicant, column.name)
        try:
            fields[column.name] = column.parse(str(value))
        except ValueError as error:
            raise UserError(
                f"the applicant's {column.name}: {value} {error}"
            ) from error
        low, high = table[column.name].min(), table[column.name].max()
        if not low <= value <= high:
            say(
                f"{column.name} {value:g} lies outside the training data "
                f"({low:g} to {high:g}): the answer is an extrapolation"
            )
    return admission_arrays(pd.DataFrame([fields]))["x"]


def read_titanic() -> pd.DataFrame:
    """The 1309 passengers of the Titanic as text, None where something is not known.

    `boat` and `body` were written down afterwards, and tell who survived. Raises
    MissingData where the committed table has other content.
    """
    errors = ValidationErrors(TITANIC.path)
    content = io.BytesIO(read_bytes(TITANIC))
    return pd.concat(text_tables(content, TITANIC.path, errors, 10_000))


# passengers' columns made of others: "Rev", and "C D", the decks of some cabins
DERIVED: dict[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
    "title": ("name", lambda s: s.str.extract(r",\s*(?:the )?([^\s.]+)")[0]),
    "deck": ("cabin", lambda s: s.str.findall("[A-Z]").str.join(" ")),
}


def with_titles_and_decks(
    table: pd.DataFrame, needed: Sequence[str] = ()
) -> pd.DataFrame:
    """The table with the derived columns whose sources it has.

    Raises UserError where one is needed and the table has neither it nor its source.
    """
    derived = {}
    for name, (source, read) in DERIVED.items():
        if source in table or (name in needed and name not in table):
            check_columns(table, [source])
            derived[name] = read(cast(pd.Series, table[source]))
    return table.assign(**derived)


# where the 7th and the 11th of the 14 forms begin, of the digits
DIGIT_FORMS = (776, 1287)


def read_digits() -> dict[str, np.ndarray]:
    """The 1797 handwritten digits of scikit-learn: x [N, 64] in 0..1, y [N] in 0..9.

    They are 14 forms, one after the other: each person copied out the same 130 digits,
    of which a few are missing. Nothing else says who wrote what. Source: Alpaydin and
    Kaynak 1998, the UCI optical digits' test set, by 13 people.
    """
    # read from its file, for scikit-learn takes seconds to import
    path = installed("sklearn") / "datasets/data/digits.csv.gz"
    rows = np.loadtxt(path, delimiter=",")  # 64 pixels of 0 to 16, and the digit
    return {
        "x": (rows[:, :-1] / 16).astype(np.float32),
        "y": rows[:, -1].astype(np.int32),
    }


class DigitSets(NamedTuple):
    """Three sets, each of other writers' digits."""

    train: Dataset
    validation: Dataset
    test: Dataset


def digit_sets(standardise: bool = False) -> DigitSets:
    """6 forms of the digits to train on, the next 4 to choose by, the last 4 to test.

    So a validation loss, too, is one on the digits of people never seen in training.
    Pixels are 0..1, or less the training set's mean and over its standard deviation.
    An epoch is of whole batches: of 64, it leaves out another 8 of the 776 each time.
    """
    digits = read_digits()
    rows = np.split(np.arange(len(digits["y"])), DIGIT_FORMS)
    if standardise:
        known = digits["x"][rows[0]]
        digits["x"] = (digits["x"] - known.mean()) / known.std()
    data = dataset(digits)
    train, validation, test = (subset(data, each) for each in rows)
    order = Order("each epoch", drop_remainder=True)
    return DigitSets(dataclasses.replace(train, order=order), validation, test)
