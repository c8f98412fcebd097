"""What checks of saved runs need: trainings by name, refusals, damaged files."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic

import jax
import numpy as np

from jaxstudy import processes
from jaxstudy.records import Record
from jaxstudy.runs import plots
from jaxstudy.runs.checkpoint import Checkpoints
from jaxstudy.runs.lesson import Claim
from jaxstudy.runs.run import Run, SubRun, open_run
from jaxstudy.runs.saved import C, Options, Saved, read_saved
from jaxstudy.training import FitResult
from jaxstudy.types import PyTree, UserError


def promised(sentence: str, *promises: str) -> Claim:
    """The claim that metrics are True: promises that are kept."""
    return Claim(sentence, (*promises, True), "=")


def by_step(records: list[Record], split: str, metric: str) -> dict[int, float]:
    """The values of a metric after each epoch, by the number of the step."""
    rows = [row for row in records if row["split"] == split and row["step"]]
    return {row["step"]: row[metric] for row in rows}


class Trainings(Generic[C]):
    """Trainings of one experiment with other options each, in run folders of their own.

    fit: trains as a config says, writing to a log.
    """

    def __init__(
        self, folder: Path, experiment: str, fit: Callable[[C, SubRun], FitResult]
    ) -> None:
        if processes.are_several():
            raise UserError("this lesson damages run folders: it is for one process")
        self.folder, self.experiment, self.fit = folder, experiment, fit
        self.sub_runs: dict[str, SubRun] = {}

    def train(
        self, name: str, config: C, options: Options, *, resume: bool = False
    ) -> FitResult:
        """One training, in the folder of this name; resumed, its config may differ."""
        with open_run(
            self.folder / name, self.experiment, "lesson", config, options,
            resume=resume, allow_change=resume,
        ) as run:  # fmt: skip
            self.sub_runs[name] = run.sub_run()
            return self.fit(config, self.sub_runs[name])

    def saved(self, name: str, config_type: type[C]) -> Saved[C]:
        """What was saved, knowing no more than the folder."""
        return read_saved(self.folder / name, config_type, self.experiment)

    def checkpoint(self, name: str, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / name / "checkpoints" / str(step)

    def kept(self, name: str) -> list[int]:
        """The steps whose checkpoints a folder has."""
        return Checkpoints(self.folder / name / "checkpoints").steps()

    def size(self, name: str) -> int:
        """Bytes of the checkpoints in a folder."""
        files = (self.folder / name / "checkpoints").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


def draw_kept(
    run: Run, trainings: Trainings[Any], fitted: dict[str, FitResult], metric: str
) -> None:
    """A metric of validation by epoch, and which epochs' checkpoints each name kept."""
    figure, axes = plots.subplots(1, len(fitted), figsize=(11, 3.2), sharey=True)
    for axis, (name, result) in zip(axes, fitted.items(), strict=True):
        rows = [r for r in result.records if r["split"] == "validation"]
        kept = [r for r in rows if r["step"] in trainings.kept(name)]
        for of, style, label in ((rows, "-", "each epoch"), (kept, "o", "on the disk")):
            x, y = [r["epoch"] for r in of], [r[metric] for r in of]
            axis.plot(x, y, style, label=label)
        size = trainings.size(name) / 2**20
        axis.set(title=f"--keep {name}: {size:.1f} MiB", xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"validation {metric}")
    axes[0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    plots.save(figure, run, "kept")


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Whether two trees are equal to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def is_refused(work: Callable[[], Any]) -> bool:
    """Whether something raises UserError."""
    try:
        work()
    except UserError:
        return True
    return False


@contextlib.contextmanager
def flipped_bit(folder: Path) -> Iterator[None]:
    """A bit of the largest file in a folder is flipped, for as long as this lasts."""
    path = max(folder.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(content)
