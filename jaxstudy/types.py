"""The types every module speaks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
LISTED = 100  # faults that are told one by one


class Faults:
    """What is wrong in a table: all of it, to be told at once."""

    def __init__(self, name: str | Path) -> None:
        self.name, self.count = name, 0
        self._lines: dict[str, None] = {}

    def add(self, line: str) -> None:
        """Note one; the same one twice is one."""
        if line not in self._lines:
            self.count += 1
            if len(self._lines) < LISTED:
                self._lines[line] = None

    def check(self) -> None:
        """Raise UserError with every one there is, a line for each of several."""
        lines = list(self._lines)
        if self.count == 1:
            raise UserError(f"{self.name}, {lines[0]}")
        if self.count:
            more = [f"and {self.count - LISTED} more"] if self.count > LISTED else []
            head = f"{self.name} has {self.count} faults:"
            raise UserError("\n  ".join([head, *lines, *more]))
