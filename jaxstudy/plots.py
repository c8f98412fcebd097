"""Figures, as PNG files in the run folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from jaxstudy.run import Run
from jaxstudy.statistics import Estimate

COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]


def save(figure: Figure, run: Run, name: str) -> None:
    """Write figures/NAME.png and close the figure."""
    figure.savefig(run.figures / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def curve(rows: Sequence[Mapping[str, Any]], split: str, name: str) -> np.ndarray:
    """The logged values of one split: columns epoch, median, 10 % and 90 % of lanes."""
    table = []
    for row in rows:
        if row["split"] == split and row.get(name) is not None:
            values = np.atleast_1d(np.array(row[name], float))
            table.append([row["epoch"], *np.nanquantile(values, [0.5, 0.1, 0.9])])
    return np.array(table).reshape(-1, 4)


def save_curves(run: Run, names: Sequence[str], metric: str, label: str) -> None:
    """Training and validation curves of several parts, side by side, as curves.png.

    Where a part has lanes: their median, and the band that holds 80 % of them.
    """
    figure, axes = plt.subplots(
        1, len(names), figsize=(4 * len(names), 3.2), squeeze=False, sharey=True
    )
    for axis, name in zip(axes[0], names, strict=True):
        rows = run.part(name.replace(" ", "_")).rows
        for split, colour in zip(("train", "validation"), COLOURS, strict=False):
            epoch, middle, low, high = curve(rows, split, metric).T
            axis.plot(epoch, middle, color=colour, label=split)
            axis.fill_between(epoch, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(label)
    axes[0][0].legend(frameon=False)
    save(figure, run, "curves")


def save_intervals(
    run: Run,
    result: Mapping[str, Any],
    names: Sequence[str],
    metrics: Sequence[str],
) -> None:
    """Estimates "NAME: METRIC" with their intervals, a panel a metric."""
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(5 * len(metrics), 0.6 + 0.5 * len(names)), sharey=True
    )
    for axis, metric in zip(np.atleast_1d(axes), metrics, strict=True):
        for y, name in enumerate(names):
            estimate: Estimate = result[f"{name}: {metric}"]
            axis.plot([estimate.low, estimate.high], [y, y], color=COLOURS[0])
            axis.plot(estimate.mean, y, "o", color=COLOURS[0])
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel=metric)
        axis.margins(y=0.3)
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].invert_yaxis()
    save(figure, run, "intervals")
