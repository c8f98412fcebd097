"""Figures of what a network learned from a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.tabular.columns import UNKNOWN


def draw_scores(
    run: Run, figure_name: str, result: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Held-out accuracy and log-loss of several models, "NAME: SCORE" of the result."""
    figure, axes = plots.subplots(1, 2, figsize=(9, 1 + 0.34 * len(names)), sharey=True)
    labels = {"accuracy": "accuracy", "log-loss": "log-loss [nats]"}
    for axis, (score, label) in zip(axes, labels.items(), strict=True):
        for y, name in enumerate(names):
            plots.draw_estimate(axis, result[f"{name}: {score}"], y)
        axis.set(
            yticks=range(len(names)), yticklabels=names, xlabel=f"held-out {label}"
        )
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(alpha=0.3)
    plots.save(figure, run, figure_name)


def draw_build_up(
    run: Run, result: Mapping[str, Any], models: Sequence[str], kinds: Sequence[str]
) -> None:
    """The log-loss, "MODEL, KIND: log-loss", by kinds of columns, as columns.png."""
    lines: dict[str, plots.Line] = {
        model: (kinds, [result[f"{model}, {kind}: log-loss"] for kind in kinds])
        for model in models
    }
    panel = plots.Panel(
        "", "columns, one kind more at each step", "held-out log-loss [nats]", lines
    )
    plots.save_lines(run, "columns", [panel])


def draw_differences(
    run: Run,
    result: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    margin: float = 0.0,
) -> None:
    """The log-loss of one model less that of another, paired by row: differences.png.

    Within the margin, a grey band, differences do not matter.
    """
    gaps = {f"{a} - {b}": result[f"{a} - {b}: log-loss"] for a, b in pairs}
    label = "difference in held-out log-loss, first - second [nats]"
    plots.save_differences(run, "differences", gaps, label, margin)


def draw_embedding(
    run: Run,
    vectors: np.ndarray,
    words: Sequence[str],
    rates: Sequence[float],
    *,
    title: str,
    label: str,
) -> None:
    """Vectors [words + 2, 2] of a vocabulary, each word coloured by its rate.

    Words stand at both sides, with a line to their dots, which may lie together.
    """
    figure, axis = plots.subplots(figsize=(7, 4.6))
    of_words = vectors[UNKNOWN + 1 :]
    dots = axis.scatter(
        *of_words.T, c=rates, cmap="coolwarm_r", s=80, vmin=0, vmax=1, edgecolors="0.3"
    )
    axis.margins(0.35, 0.15)  # on both sides, for the words
    bottom, top = axis.get_ylim()
    right = of_words[:, 0] > np.median(of_words[:, 0])
    for side, x, alignment in ((~right, 0.02, "left"), (right, 0.98, "right")):
        heights = _apart(of_words[side, 1], 0.07 * (top - bottom))
        for i, height in zip(np.flatnonzero(side).tolist(), heights, strict=True):
            axis.annotate(
                words[i], of_words[i], (x, height), va="center", ha=alignment,
                textcoords=axis.get_yaxis_transform(),
                arrowprops={"arrowstyle": "-", "color": "0.6", "shrinkB": 5},
            )  # fmt: skip
    figure.colorbar(dots, label=label)
    axis.set(title=title, xlabel="first component", ylabel="second component")
    axis.grid(alpha=0.3)
    plots.save(figure, run, "embedding")


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights [N] moved until they are a gap apart; order and mean stay the same."""
    order = heights.argsort(kind="stable")
    steps = gap * np.arange(len(heights))
    moved = np.maximum.accumulate(heights[order] - steps) + steps
    apart = np.empty(len(heights))
    apart[order] = moved - moved.mean() + heights.mean() if len(heights) else moved
    return apart
