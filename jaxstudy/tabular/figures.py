"""Figures of what a network learned from a table."""

from collections.abc import Sequence

import numpy as np

from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.tabular.columns import UNKNOWN


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
    axis.set(title=title, xlabel="1", ylabel="2")
    axis.margins(0.15)
    axis.grid(alpha=0.3)
    plots.save(figure, run, "embedding")
