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
    panel = plots.Panel("", "columns", "held-out log-loss [nats]", lines)
    plots.save_lines(run, "columns", [panel])


def draw_differences(
    run: Run, result: Mapping[str, Any], first: str, others: Sequence[str]
) -> None:
    """The log-loss of one model less that of others, paired by row: differences.png."""
    names = [f"{first} - {name}" for name in others]
    gaps = {name: result[f"{name}: log-loss"] for name in names}
    plots.save_differences(run, "differences", gaps, "difference in log-loss [nats]")


def draw_embedding(
    run: Run,
    vectors: np.ndarray,
    words: Sequence[str],
    rates: Sequence[float],
    *,
    title: str,
    label: str,
) -> None:
    """Vectors [words + 2, 2] of a vocabulary, each word coloured by its rate."""
    figure, axis = plots.subplots(figsize=(6, 4.6))
    of_words = vectors[UNKNOWN + 1 :]
    dots = axis.scatter(*of_words.T, c=rates, cmap="coolwarm_r", s=80, vmin=0, vmax=1)
    ranks = of_words[:, 1].argsort().argsort()  # neighbours are named on both sides
    for word, place, rank in zip(words, of_words, ranks, strict=True):
        axis.annotate(
            word, place, textcoords="offset points", va="center",
            xytext=(8, 0) if rank % 2 else (-8, 0), ha="left" if rank % 2 else "right",
        )  # fmt: skip
    figure.colorbar(dots, label=label)
    axis.set(title=title, xlabel="first component", ylabel="second component")
    axis.margins(0.15)
    axis.grid(alpha=0.3)
    plots.save(figure, run, "embedding")
