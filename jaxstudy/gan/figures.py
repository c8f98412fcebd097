"""Figures of how the two networks of a GAN trained, from what was logged."""

from collections.abc import Mapping
from typing import Any

from jaxstudy.gan.evaluation import FRECHET
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run


def draw_training(run: Run) -> None:
    """The three losses, and D's accuracy on images that it does not learn from."""
    losses = {"loss1": "D, real", "loss2": "D, generated", "loss3": "G"}
    _draw(run, "losses", "train", "loss [nats]", losses)
    accuracies = {"accuracy on real": "real", "accuracy on fake": "generated"}
    _draw(run, "accuracy", "validation", "accuracy of D, held-out images", accuracies)


def draw_distances(run: Run, constants: Mapping[str, Any]) -> None:
    """The Frechet distance after each epoch, and what does not depend on the epoch."""
    names = {FRECHET: "generated images"}
    _draw(run, "distance", "generated", "Frechet distance to test images", names,
          constants)  # fmt: skip


def _draw(
    run: Run,
    figure: str,
    split: str,
    label: str,
    names: Mapping[str, str],
    constants: Mapping[str, Any] | None = None,
) -> None:
    lines: dict[str, plots.Line] = {}
    for name, what in names.items():
        table = plots.curve(run.sub_runs["gan"].records, split, name)
        lines[what] = table[:, 0].tolist(), table[:, 1].tolist()
    epochs, _ = next(iter(lines.values()))
    for name, value in (constants or {}).items():
        lines[name] = epochs, [value] * len(epochs)
    plots.save_lines(run, figure, [plots.Panel("", "epoch", label, lines)])
