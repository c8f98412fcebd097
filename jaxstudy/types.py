"""The types every module speaks."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np

Array = jax.Array
Key = jax.Array  # typed, from jax.random.key
PyTree = Any
Batch = Mapping[str, Array]  # fields [B, ...]; "mask" [B] is 0 where a row is padding


class Mean(NamedTuple):
    """A mean kept as its sum and count, so that parts of any size add up exactly."""

    total: Array
    count: Array


Metrics = Mapping[str, Mean]  # every objective reports at least "loss"

# (params, extra, batch, key) -> (loss, (extra, metrics)); key None means evaluation
Objective = Callable[
    [PyTree, PyTree, Batch, Key | None], tuple[Array, tuple[PyTree, Metrics]]
]


class UserError(Exception):
    """Something the user can put right, said in one sentence; exit code 2."""

    exit_code = 2


class Refused(UserError):
    """What the system does not grant, such as a lock that is held; exit code 1."""

    exit_code = 1


FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_SHOWN = 100  # faults that are told one by one
UNNAMED = "Unnamed: "  # and its place from 0: how pandas names a blank header cell
MAX_NAMES, MAX_CHARACTERS = 20, 100  # of a table, in one message


def shortened(text: str) -> str:
    """Text as a message shows it: of a long one, the beginning."""
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


def enumerated(names: Sequence[str]) -> str:
    """Names as a message lists them: of very many, the first and how many more."""
    shown = ", ".join(map(shortened, names[:MAX_NAMES]))
    more = len(names) - MAX_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


class ValidationErrors:
    """What is wrong in a table: all of it, to be told at once.

    As a context it tells what was noted at its end, and before any other UserError.
    """

    def __init__(self, name: str | Path) -> None:
        self.name, self.count = name, 0
        self._lines: dict[str, None] = {}

    def add(self, line: str) -> None:
        """Note one; the same one twice is one."""
        if line not in self._lines:
            self.count += 1
            if len(self._lines) < MAX_SHOWN:
                self._lines[line] = None

    def check(self) -> None:
        """Raise UserError with every one there is, a line for each of several."""
        if self.count:
            raise UserError(str(self))

    def __str__(self) -> str:
        lines = list(self._lines)
        if self.count == 1:
            return f"{self.name}, {lines[0]}"
        more = [f"and {self.count - MAX_SHOWN} more"] if self.count > MAX_SHOWN else []
        return "\n  ".join([f"{self.name} has {self.count} faults:", *lines, *more])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.check()
        elif self.count and isinstance(error, UserError) and str(error) != str(self):
            raise UserError(f"{self}\n{error}") from error


def usable_cores() -> int:
    """How many processor cores this process may use; all, where no system says it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def warn(message: str) -> None:
    """Say something on standard error that does not stop the run."""
    print(f"warning: {message}", file=sys.stderr)
