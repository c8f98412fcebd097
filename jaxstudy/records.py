"""What a training reports: records of its metrics, and the log that receives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxstudy.chunks import Chunk
from jaxstudy.parallel import Layout
from jaxstudy.types import Metrics, TrainState, UserError

HEAD = ("step", "epoch", "split")
Record = dict[str, Any]  # {"step", "epoch", "split", a metric: its value or [L], ...}


@dataclass
class Timing:
    """What a training took so far, over every process that worked on it."""

    steps: int = 0
    examples: int = 0
    compile_s: float = 0.0
    train_s: float = 0.0


class Advance(NamedTuple):
    """One chunk: the step it reached of all, and what it took."""

    step: int
    total: int
    per_epoch: int
    steps: int  # of all replicas together
    examples: int
    seconds: float


class Log:
    """What a training reports to; a run folder's (`SubRun`) stores and stops as well.

    every_epoch: whether each epoch's end has to be seen. layout: of the devices.
    """

    every_epoch = False
    layout: Layout = "replicas"

    def __init__(self) -> None:
        self.timing = Timing()

    def begin(self, state: TrainState) -> tuple[TrainState, list[Record]]:
        """The state to go on from, and the records up to there."""
        return state, []

    def compiled(self, seconds: float, metrics: Mapping[str, list[str]]) -> None:
        """All is compiled; the names of the metrics by split are known."""
        del metrics
        self.timing.compile_s += seconds

    def evaluated(self, records: list[Record]) -> None:
        """Training begins; the records are of the evaluation before its first step."""

    def advanced(
        self, state: TrainState, chunk: Advance, records: list[Record]
    ) -> None:
        """A chunk is done; the state is of use until this returns."""
        del state, records
        self.timing.steps += chunk.steps
        self.timing.examples += chunk.examples
        self.timing.train_s += chunk.seconds

    def ended(self) -> None:
        """No more chunks follow, whatever the reason."""


def values_by_epoch(metrics: Metrics) -> dict[str, list[Any]]:
    """Each metric [..., E] by epoch: a number, or a list [L].

    None where it is not finite, or where there was no row to measure it on.
    """

    def number(value: np.float32) -> float | None:
        # the shortest text that reads back as this float32, so a resumed run agrees
        return float(str(value)) if np.isfinite(value) else None

    def divide(mean: Any) -> list[Any]:
        values = np.asarray(mean.total / np.maximum(mean.count, 1), np.float32)
        values = np.where(mean.count > 0, values, np.float32(np.nan))
        return [
            [number(v) for v in value] if value.ndim else number(value)
            for value in np.moveaxis(values, -1, 0)
        ]

    return {name: divide(mean) for name, mean in metrics.items()}


def chunk_records(
    step: int,
    chunk: Chunk,
    per_epoch: int,
    trained: Metrics,
    evaluations: Mapping[str, Metrics],
) -> list[Record]:
    """The records of one chunk: {"step", "epoch", "split", names...: values}."""
    splits = {
        name: values_by_epoch(m)
        for name, m in {"train": trained, **evaluations}.items()
    }
    return [
        {"step": end, "epoch": round(end / per_epoch, 6), "split": split}
        | {name: each[epoch] for name, each in values.items()}
        for epoch in range(chunk.epochs)
        for end in [step + chunk.steps * (epoch + 1)]
        for split, values in splits.items()
    ]


def stop_if_not_finite(failed: np.ndarray, step: int, chunk: Chunk) -> None:
    """`failed` [E] or [L, E]: the first step of an epoch without a finite loss."""
    if failed.min() == chunk.steps:
        return
    each = np.where(failed < chunk.steps, failed, chunk.steps * chunk.epochs)
    first = int((each + chunk.steps * np.arange(chunk.epochs)).min())
    where = ""
    if failed.ndim == 2:
        diverged = np.flatnonzero(failed.min(1) < chunk.steps)
        where = (
            f" in {len(diverged)} of {len(failed)} replicas"
            f" (the first is {diverged[0]})"
        )
    raise UserError(
        f"the loss at step {step + first} was not finite{where}; the run stops there: "
        "try a smaller learning rate"
    )


def stop_if_evaluation_not_finite(records: list[Record]) -> None:
    """The last step can ruin the weights with no later training loss to show it."""
    for record in records:
        losses = (
            record["loss"] if isinstance(record["loss"], list) else [record["loss"]]
        )
        if record["split"] != "train" and None in losses:
            raise UserError(
                f"the {record['split']} loss after step {record['step']} was not "
                "finite; the run stops there: try a smaller learning rate"
            )
