"""What is said to the user: errors collected, long lists cut, warnings."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxstudy.types import UserError

MAX_SHOWN = 100  # errors that are told one by one
MAX_NAMES, MAX_CHARACTERS = 20, 100  # of a table, in one message


def shortened(text: str) -> str:
    """Text as a message shows it: of a long one, the beginning."""
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 3] + "..."


def enumerated(names: Sequence[str]) -> str:
    """Names as a message lists them: of very many, the first and how many more."""
    shown = ", ".join(map(shortened, names[:MAX_NAMES]))
    more = len(names) - MAX_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


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
        return "\n  ".join([f"{self.name} has {self.count} errors:", *lines, *more])

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


def warn(message: str) -> None:
    """Say something on standard error that does not stop the run."""
    print(f"warning: {message}", file=sys.stderr)
