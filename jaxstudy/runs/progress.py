"""Progress of long work: on a terminal only."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress as rp

from jaxstudy.training import Advance


class Bar:
    """A training: epoch, loss (of replicas the median), steps/s and the time left."""

    def __init__(self, name: str) -> None:
        self.bar = rp.Progress(
            rp.TextColumn("{task.description}"),
            rp.BarColumn(),
            rp.TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}"),
            rp.TextColumn("{task.fields[speed]} steps/s"),
            rp.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(name, epoch="", loss="", speed="")

    def advance(self, chunk: Advance, records: Sequence[dict[str, Any]]) -> None:
        """Show what a chunk of a training reached."""
        self.bar.start()
        last = [record["loss"] for record in records if record["split"] == "train"][-1]
        values = np.atleast_1d(np.array(last, float))
        finite = values[np.isfinite(values)]
        self.bar.update(
            self.task,
            total=chunk.total,
            completed=chunk.step,
            epoch=f"{chunk.step / chunk.per_epoch:.4g}",
            loss=f"{np.median(finite) if finite.size else np.nan:.4f}",
            speed=f"{chunk.steps / chunk.seconds:,.0f}",
        )

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()
