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
) -> dict[str, Estimate | float]:
    """What each remedy ends with, and its loss less the base's, paired by seed.

    Of `most` also its loss less the lowest of all others, of each seed its own lowest.
    """
    result: dict[str, Estimate | float] = {}
    for name, end in ended.items():
        result[f"{name}: test loss"] = mean_over_runs(end["loss"], NONNEGATIVE)
        result[f"{name}: test accuracy"] = mean_over_runs(end["accuracy"], SHARE)
    for name, gap in differences_from(ended, base).items():
        result[f"{name} - {base}: test loss"] = gap
    lowest = lowest_of_others(ended, most)
    best = f"{most} - best of the others: test loss"
    result[best] = paired(ended[most]["loss"], lowest)
    return result


def differences_from(
    ended: Mapping[str, Mapping[str, np.ndarray]], base: str
) -> dict[str, Estimate]:
    """The test loss of every remedy less the base's, paired by seed."""
    reference = ended[base]["loss"]
    others = {name: end["loss"] for name, end in ended.items() if name != base}
    return {name: paired(loss, reference) for name, loss in others.items()}


def lowest_of_others(
    ended: Mapping[str, Mapping[str, np.ndarray]], name: str
) -> np.ndarray:
    """The lowest test loss [seeds] of all remedies but one."""
    return np.min([e["loss"] for other, e in ended.items() if other != name], axis=0)


def save_remedy_differences(
    run: Run,
    name: str,
    ended: Mapping[str, Mapping[str, np.ndarray]],
    base: str,
    most: str,
) -> None:
    """Test losses less the base's, and of `most` less each other's, as NAME.png."""
    loss = ended[most]["loss"]
    others = {other: e["loss"] for other, e in ended.items() if other != most}
    others["lowest of these, by seed"] = lowest_of_others(ended, most)
    plots.save_estimates(run, name, [
        plots.EstimatePanel(
            f"each remedy against the {base} network",
            f"test loss - the {base} network's [nats]", differences_from(ended, base),
        ),
        plots.EstimatePanel(
            f"{most} against each of the others",
            f"test loss with {most} - the other's [nats]",
            {other: paired(loss, values) for other, values in others.items()},
        ),
    ], sharex=True)  # fmt: skip


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


def save_memorising(
    run: Run, name: str, remedy: TrainedRemedy, *, accuracy: float, rise: float
) -> None:
    """Accuracy and loss by gradient step on both sets as NAME.png, with two levels.

    One is an accuracy; the other lies above the lowest validation loss, the mean of
    each seed's, by `rise` as a share of it.
    """
    lowest = float(remedy.by_epoch[HELD_OUT, "loss"].min(0).mean())
    levels = {
        "accuracy": {f"accuracy of {accuracy:g}": accuracy},
        "loss": {f"{1 + rise:g} x lowest validation loss": (1 + rise) * lowest},
    }
    steps, panels = remedy.steps.tolist(), []
    for metric, within, unit in (
        ("accuracy", SHARE, ""), ("loss", NONNEGATIVE, " [nats]")
    ):  # fmt: skip
        lines: dict[str, plots.Line] = {}
        for split in (LEARNED, HELD_OUT):
            values = remedy.by_epoch[split, metric]
            lines[split] = steps, [mean_over_runs(each, within) for each in values]
        panels.append(plots.Panel(metric, "gradient step", f"{metric}{unit}", lines,
                                  levels=levels[metric]))  # fmt: skip
    plots.save_lines(run, name, panels)


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

    A combination that is missing stays empty. Pale is good; the best of each column is
    bold.
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
        best = np.nanargmin if metric == "loss" else np.nanargmax
        plots.draw_table(
            axis, means, "Blues" if metric == "loss" else "Blues_r", digits=3,
            bold=[(int(best(column)), j) for j, column in enumerate(means.T)],
        )  # fmt: skip
        unit = " [nats]" if metric == "loss" else ""
        axis.set(title=f"test {metric}{unit}", xlabel="images to learn from")
        axis.set_xticks(np.arange(len(sizes)) + 0.5, [f"{n:,}" for n in sizes])
        axis.set_yticks(np.arange(len(remedies)) + 0.5, remedies)
    axes[0].invert_yaxis()
    figure.tight_layout()
    plots.save(figure, run, name)
