"""Remedies against overfitting: what each ends with, and its losses by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    Estimate,
    at_best_epoch,
    mean_over_runs,
)

METRICS = ("loss", "accuracy")
LEARNED, HELD_OUT = "training set", "validation"  # names of sets, as in the log


class TrainedRemedy(NamedTuple):
    """One remedy on one number of images.

    end: test "loss" and "accuracy" [seeds]; by_epoch: the same [epochs, seeds] of each
    set that was evaluated after every epoch, as ("validation", "loss"); steps [epochs].
    """

    end: dict[str, np.ndarray]
    by_epoch: dict[tuple[str, str], np.ndarray]
    steps: np.ndarray

    def stopped(self, by: str = HELD_OUT, on: str = "test") -> dict[str, np.ndarray]:
        """Loss and accuracy on a set, at each seed's epoch of lowest loss by a set."""
        chosen = -self.by_epoch[by, "loss"]
        return {m: at_best_epoch(chosen, self.by_epoch[on, m]) for m in METRICS}

    def rise(self) -> np.ndarray:
        """Validation loss at the end / its minimum - 1, [seeds]."""
        loss = self.by_epoch[HELD_OUT, "loss"]
        return loss[-1] / loss.min(0) - 1


def trained(
    end: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> TrainedRemedy:
    """What a training came to, of its test metrics and its log."""
    sets = dict.fromkeys(r["split"] for r in records if r["split"] != "train")
    by_epoch = {
        (name, metric): np.array([r[metric] for r in records if r["split"] == name])
        for name in sets
        for metric in METRICS
    }
    steps = [r["step"] for r in records if r["split"] == HELD_OUT]
    return TrainedRemedy(
        {m: np.array(end[m]) for m in METRICS}, by_epoch, np.array(steps)
    )


def with_stopped(
    trained: Mapping[tuple[str, int], TrainedRemedy], base: str, name: str
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """What every remedy ends with, and the base stopped early as `name`."""
    ended = {}
    for (remedy, size), result in trained.items():
        ended[remedy, size] = result.end
        if remedy == base:
            ended[name, size] = result.stopped()
    return ended


def remedy_metrics(
    ended: Mapping[str, Mapping[str, np.ndarray]], base: str, most: str
) -> tuple[dict[str, Estimate | float], dict[str, Estimate]]:
    """What each remedy ends with, and its loss less the base's, paired by seed.

    Of `most` also its loss less the lowest of all others, of each seed its own lowest.
    """
    result: dict[str, Estimate | float] = {}
    for name, end in ended.items():
        result[f"{name}: test loss"] = mean_over_runs(end["loss"], NONNEGATIVE)
        result[f"{name}: test accuracy"] = mean_over_runs(end["accuracy"], SHARE)
    differences = {
        name: paired(end["loss"], ended[base]["loss"])
        for name, end in ended.items()
        if name != base
    }
    for name, difference in differences.items():
        result[f"{name} - {base}: test loss"] = difference
    others = [end["loss"] for name, end in ended.items() if name != most]
    best = f"{most} - best of the others: test loss"
    result[best] = paired(ended[most]["loss"], np.min(others, axis=0))
    return result, differences


def tuned_on_test(base: TrainedRemedy) -> dict[str, Estimate]:
    """What the epoch of lowest test loss reports, and what fresh images say of it.

    Differences from the epoch that validation chooses, of the same images and seeds.
    """
    reported = base.stopped(by="test")["loss"]
    fresh = base.stopped("test", "fresh")["loss"], base.stopped(on="fresh")["loss"]
    return {
        "mistake: test loss": mean_over_runs(reported, NONNEGATIVE),
        "mistake - right: test loss": paired(reported, base.stopped()["loss"]),
        "mistake - right: loss on fresh images": paired(*fresh),
    }


def paired(a: np.ndarray, b: np.ndarray) -> Estimate:
    """The mean of a - b, [seeds]."""
    return mean_over_runs(a - b, REAL, "seeds, paired")


def save_losses(run: Run, name: str, trained: Mapping[str, TrainedRemedy]) -> None:
    """Loss on the training and the validation set by step as NAME.png, on one scale.

    The mean over the seeds, a panel each, the lowest validation loss marked.
    """
    columns = 4
    rows = -(-len(trained) // columns)
    figure, axes = plots.subplots(
        rows, columns, figsize=(3.3 * columns, 2.8 * rows + 0.3), squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for axis in axes.flat[len(trained) :]:
        axis.remove()
    for axis, (title, remedy) in zip(axes.flat, trained.items(), strict=False):
        for split, colour in zip((LEARNED, HELD_OUT), plots.COLOURS, strict=False):
            loss = remedy.by_epoch[split, "loss"].mean(1)
            axis.plot(remedy.steps, loss, ".-", ms=3, color=colour, label=split)
        lowest = remedy.steps[loss.argmin()], loss.min()
        mark = {"mfc": "white", "color": plots.COLOURS[1], "zorder": 3}
        axis.plot(*lowest, "o", ms=8, label="lowest validation loss", **mark)
        axis.set(xlabel="gradient step")
        axis.set_title(title, fontsize=9)
        axis.xaxis.set_tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set(ylabel="loss [nats]")
    axes[0, 0].set_ylim(bottom=0)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, ncols=3, frameon=False, loc="upper center")
    plots.save(figure, run, name)


def save_map(
    run: Run,
    name: str,
    ended: Mapping[tuple[str, int], Mapping[str, np.ndarray]],
) -> None:
    """Mean test loss and accuracy by remedy (rows) and images (columns) as NAME.png.

    A combination that is missing stays empty. The best of each column is bold.
    """
    remedies = list(dict.fromkeys(remedy for remedy, _ in ended))
    sizes = sorted({size for _, size in ended})
    figure, axes = plots.subplots(
        1, 2, figsize=(3 + 2.2 * len(sizes), 1 + 0.4 * len(remedies)), sharey=True
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        means = np.full((len(remedies), len(sizes)), np.nan)
        for (remedy, size), end in ended.items():
            means[remedies.index(remedy), sizes.index(size)] = end[metric].mean()
        worse = means if metric == "loss" else -means
        axis.imshow(worse, cmap="Blues_r", aspect="auto", alpha=0.5)
        axis.set_facecolor("0.93")  # of what was not trained
        for row, column in np.argwhere(np.isfinite(means)):
            best = worse[row, column] == np.nanmin(worse[:, column])
            axis.text(
                column, row, f"{means[row, column]:.3f}", ha="center", va="center",
                fontsize=9, fontweight="bold" if best else "normal",
            )  # fmt: skip
        unit = " [nats]" if metric == "loss" else ""
        axis.set(title=f"test {metric}{unit}", xlabel="images to learn from")
        axis.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        axis.set_yticks(range(len(remedies)), remedies)
    figure.tight_layout()
    plots.save(figure, run, name)
