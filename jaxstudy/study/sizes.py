"""Arms of a comparison by the number of training examples, and by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    Range,
    at_best_epoch,
    mean_over_runs,
)
from jaxstudy.types import TrainState


def accuracies(
    records: Sequence[Mapping[str, Any]], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The accuracy on each set after each epoch, [epochs, *shape], of `fit`'s records.

    shape: of the replicas, such as (sizes, seeds).
    """
    values: dict[str, list[Any]] = {}
    for record in records:
        values.setdefault(record["split"], []).append(record["accuracy"])
    return {split: np.reshape(v, (-1, *shape)) for split, v in values.items()}


class TrainedSizes(NamedTuple):
    """The weights of every size and seed, and the accuracy after each epoch.

    accuracy [epochs, sizes, seeds], by set.
    """

    state: TrainState
    accuracy: dict[str, np.ndarray]


def best_test(
    by_epoch: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Each arm's test accuracy [sizes, seeds] at its epoch of best validation."""
    return {
        arm: at_best_epoch(accuracy["validation"], accuracy["test"])
        for arm, accuracy in by_epoch.items()
    }


def size_metrics(
    sizes: Sequence[int],
    test: Mapping[str, np.ndarray],
    gain: str,
    gained: str,
    over: str,
) -> dict[str, Estimate]:
    """The test accuracy [sizes, seeds] of every arm, and what one gains over another.

    gain: the name of that difference, which is paired by seed.
    """
    result = {}
    for i, size in enumerate(sizes):
        for arm, values in test.items():
            estimate = mean_over_runs(values[i], SHARE)
            result[f"{size} images, {arm}: test accuracy"] = estimate
        difference = test[gained][i] - test[over][i]
        result[f"{size} images: {gain}"] = mean_over_runs(
            difference, SHARE_DIFFERENCE, "seeds, paired"
        )
    return result


def mean_line(
    x: Sequence[float], values: np.ndarray, within: Range = SHARE
) -> plots.Line:
    """A line through the means of values [x, seeds], with their intervals."""
    return x, [mean_over_runs(value, within) for value in values]


def size_panel(title: str, ylabel: str, lines: Mapping[str, plots.Line]) -> plots.Panel:
    """Lines over the number of images to learn from."""
    scales = ("log", "linear")
    return plots.Panel(title, "images to learn from", ylabel, dict(lines), scales)


def draw_epochs(
    run: Run,
    sizes: Sequence[int],
    shown: int,
    arms: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Accuracy by epoch with sizes[shown] images, as curves.png.

    arms: of each the accuracy by set, [epochs, sizes, seeds].
    """
    panels = []
    for split in ("train", "validation"):
        values = {arm: of_arm[split][:, shown] for arm, of_arm in arms.items()}
        lines = {arm: mean_line(range(1, len(v) + 1), v) for arm, v in values.items()}
        title = f"{sizes[shown]} images, {split}"
        panels.append(plots.Panel(title, "epoch", "accuracy", lines))
    plots.save_lines(run, "curves", panels)
