"""The settings that lessons on tables share."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from jaxstudy.runs.cli import Count, Positive, Settings


@dataclass(frozen=True)
class TableSettings(Settings):
    """A file's columns, the network on them, and how both are cross-validated."""

    columns: tuple[str, ...] | None = None
    """Columns of the table to learn from; None: all that may be used."""
    separator: str | None = None
    """What separates the cells of a file, or tab; None: found out."""
    decimal: Literal[".", ","] | None = None
    """The decimal sign of its numbers; None: found out."""
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
    """Rows of a file that are read at a time. One with more to learn from has a part
    held out instead of a cross-validation, and is never in memory as a whole."""
