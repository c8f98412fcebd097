"""The progress bar, on standard error and on a terminal only."""

import sys
from typing import Self

import rich.console
import rich.progress as rp


class Bar:
    """How much of `total` is done, and the time left.

        with Bar(total=100, name="training") as bar:
            bar.update(7, "loss 0.5")

    Where `shown` is false nothing is, as without a terminal.
    """

    def __init__(self, total: float, name: str = "", shown: bool = True) -> None:
        self._bar = rp.Progress(
            rp.TextColumn("{task.description}"),
            rp.BarColumn(),
            rp.TextColumn("{task.percentage:.0f} %  {task.fields[text]}"),
            rp.TimeRemainingColumn(elapsed_when_finished=True),
            console=rich.console.Console(stderr=True),
            disable=not (shown and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(name, total=total, text="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, done: float, text: str = "", name: str | None = None) -> None:
        """So much is done in all; `text` is how it goes, `name` what is done now."""
        self._bar.update(self._task, completed=done, text=text, description=name)
