"""Figures of a study, drawn from study.json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import (
    REAL,
    Estimate,
    mean_over_runs,
    performance_profile,
)
from jaxstudy.study.comparison import (
    TAU_MAX,
    StudyRecord,
    against_best,
    budgets,
    cell_of,
    critical_difference,
    mean_ranks,
    optimizers,
    outcome,
    problem_ranks,
    times_to_target,
    trial_medians,
    with_target,
)

MANY_COLUMNS = 14  # optimizers, of which each has a column or a line of its own
LINES = 10  # of the best of more than that
COLUMNS = 4  # of panels
FALL = "fall of the validation loss / that of the best trial"
STYLES = ("-", "--", ":", "-.")


def look(names: Sequence[str], name: str) -> dict[str, Any]:
    """Colour and dashes of an optimizer: the same in every figure of a study."""
    i = names.index(name)
    colours = plots.COLOURS
    style = STYLES[i // len(colours) % len(STYLES)]
    return {"color": colours[i % len(colours)], "linestyle": style}


def panels(
    count: int,
    columns: int = COLUMNS,
    size: tuple[float, float] = (4.4, 3.5),
    **how: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, of a width and height, in rows of some columns."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figsize = (size[0] * columns + 1.2, size[1] * rows + 0.3)
    figure, axes = plots.subplots(rows, columns, figsize=figsize, squeeze=False, **how)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def finish(
    figure: Figure, axes: Sequence[Axes], run: Run, name: str, record: StudyRecord
) -> None:
    """One legend for all panels, which says if it leaves any out, then NAME.png."""
    for axis in axes:
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout()
    some = len(optimizers(record)) > MANY_COLUMNS
    figure.legend(
        handles, labels, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5),
        title=f"the {LINES} of lowest\nmean rank" if some else None,
    )  # fmt: skip
    plots.save(figure, run, name)


def save_ranks(record: StudyRecord, run: Run) -> None:
    """Ranks by test loss, the mean over problems and each: ranks.png.

    Behind the grey band, which begins at the lowest mean rank, those are whose mean
    rank is larger by more than Nemenyi's critical difference.
    """
    names, ranks = optimizers(record), problem_ranks(record)
    mean = ranks.mean(axis=1)
    order = np.argsort(mean, kind="stable")
    figure, axis = plots.subplots(figsize=(7.5, 0.17 * len(names) + 1))
    for y, i in enumerate(order):
        axis.plot(ranks[i], np.full(ranks.shape[1], y), "|", color="0.6")
        axis.plot(mean[i], y, "o", markersize=5, color=plots.COLOURS[0])
    length = critical_difference(*ranks.shape)
    axis.axvspan(mean.min(), mean.min() + length, color="0.93", zorder=-1)
    axis.set_yticks(range(len(names)), [names[i] for i in order], fontsize=8)
    axis.set(
        xlabel="rank of the median test loss: mean (dot), and each problem (dash)",
        ylim=(len(names) - 0.4, -0.6), xlim=(0.5, len(names) + 0.5),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    plots.save(figure, run, "ranks")


def save_study(record: StudyRecord, run: Run) -> None:
    """All figures of a study."""
    if len(record["problems"]) > 1 and len(optimizers(record)) > 1:
        save_ranks(record, run)
    if len(optimizers(record)) > MANY_COLUMNS:
        save_sensitivity_of_many(record, run)
    else:
        save_sensitivity(record, run)
    save_bands(record, run)
    save_reached(record, run)
    if len(budgets(record)) > 1:
        save_budgets(record, run)


def _above_floor(record: StudyRecord, problem: str, split: str) -> Callable:
    """Losses as they are drawn: above the floor of the set, where that is known."""
    floor = record["problems"][problem]["floors"].get(split, 0.0)
    return lambda values: np.asarray(values) - floor


def _title(record: StudyRecord, problem: str, split: str) -> str:
    name = problem.replace("_", " ")
    known = split in record["problems"][problem]["floors"]
    return f"{name}, above the floor" if known else name


def _limits(axis: Axes, best: float, start: float) -> float:
    """A scale from a little under the best loss to just over the start.

    Returns the height at which to mark what diverged. Logarithmic if far apart.
    """
    if best > 0 and start / best > 10:
        axis.set_yscale("log")
        axis.set_ylim(best / 1.2, start * 1.5)
        return start * 1.2
    # where nothing was learned, or all diverged, there is only the start
    room = 0.08 * ((start - best) or abs(start) or 1.0)
    axis.set_ylim(best - room, start + 2 * room)
    return start + room


def save_sensitivity(record: StudyRecord, run: Run) -> None:
    """Validation loss of each trial against its learning rate: sensitivity.png.

    Of an optimizer without one, against the first hyperparameter that it has.
    A row for each problem, a column for each optimizer, the others in grey: the median
    of the tuning seeds, as a line where only the rate was varied; crosses at the top:
    diverged, or worse than before training.
    """
    problems, names = list(record["problems"]), optimizers(record)
    grid = record["protocol"]["search"] == "grid"
    figure, axes = plots.subplots(
        len(problems), len(names), squeeze=False, sharex="col", sharey="row",
        figsize=(1.2 + 1.5 * len(names), 0.6 + 1.8 * len(problems)),
    )  # fmt: skip
    for row, problem in zip(axes, problems, strict=True):
        above = _above_floor(record, problem, "validation")
        start = above(record["problems"][problem]["start"])
        curves = {}
        for name in names:
            points = cell_of(record, problem, name)["points"]
            rate = np.array(points[first_tuned(points)])
            median = above(trial_medians(record, problem, name))
            curves[name] = rate[np.argsort(rate)], median[np.argsort(rate)]
        best = min(float(y.min()) for _, y in curves.values())
        top = _limits(row[0], min(best, start), start)
        for name, axis in zip(names, row, strict=True):
            for other, (x, y) in curves.items():
                good = y <= start
                shown = np.where(good, y, np.nan)
                if other != name:
                    if grid:
                        axis.plot(x, shown, color="0.85", linewidth=0.8, zorder=1)
                    continue
                axis.plot(x, shown, "o-" if grid else "o", markersize=3, zorder=2)
                axis.plot(
                    x[~good], np.full(np.sum(~good), top), "x", markersize=4,
                    color=plots.COLOURS[0],
                )  # fmt: skip
            axis.set(xscale="log")
            axis.grid(alpha=0.3)
        title = _title(record, problem, "validation")
        row[0].set_ylabel(title.replace(", ", ",\n"), fontsize=9)
    for name, top_axis, axis in zip(names, axes[0], axes[-1], strict=True):
        top_axis.set_title(name, fontsize=10)
        tuned = first_tuned(cell_of(record, problems[0], name)["points"])
        label = {"rate": "learning rate"}.get(tuned, tuned)
        axis.set_xlabel(label, fontsize=8)
    figure.suptitle("validation loss, median of the tuning seeds", fontsize=10)
    figure.tight_layout()
    plots.save(figure, run, "sensitivity")


def save_test_differences(
    record: StudyRecord, run: Run, margins: Mapping[str, float]
) -> None:
    """Test losses less that of the optimizer tuned best, by problem: differences.png.

    Paired by seed, with intervals; hollow where the test with Holm's correction does
    not tell the two apart. The last row is the largest less the smallest test loss of a
    seed. margins: by problem, within which differences do not matter.
    """
    panels = []
    for problem, found in record["comparison"]["problems"].items():
        if not found["best_tuned"]:
            continue
        best = found["best_tuned"][0]
        tests = {n: outcome(record, problem, n).test for n in optimizers(record)}
        gaps: dict[str, Estimate | str] = {
            name: paired_gap(test, tests[best]) for name, test in tests.items()
        }
        gaps[best] = "tuned best"
        each = np.stack([*tests.values()])
        gaps["largest - smallest"] = paired_gap(each.max(0), each.min(0))
        apart = against_best(found)["apart"] if found["comparisons"] else list(tests)
        panels.append(plots.EstimatePanel(
            problem.replace("_", " "), f"test loss - that of {best}", gaps,
            margin=margins.get(problem, 0.0), hollow=apart,
        ))  # fmt: skip
    if panels:
        plots.save_estimates(run, "differences", panels)


def paired_gap(a: np.ndarray, b: np.ndarray) -> Estimate | str:
    """The mean of a - b [S], or words where a run diverged."""
    if np.isfinite([a, b]).all():
        return mean_over_runs(a - b, REAL, "seeds, paired")
    return "diverged in some seeds"


def save_sensitivity_of_many(record: StudyRecord, run: Run) -> None:
    """How good each trial is, by its learning rate: sensitivity.png.

    A panel for each problem, a row for each optimizer: the median validation loss of
    the tuning seeds on a scale from 0, as before training or worse, to 1, as the best
    of all trials; crosses: diverged.
    """
    problems, names = list(record["problems"]), optimizers(record)
    figure, axes = panels(
        len(problems), size=(2.9, 0.16 * len(names) + 0.8), sharey=True,
        layout="constrained",
    )  # fmt: skip
    shown = None
    for axis, problem in zip(axes, problems, strict=True):
        medians = {name: trial_medians(record, problem, name) for name in names}
        start = record["problems"][problem]["start"]
        best = min(float(m.min()) for m in medians.values())
        for y, name in enumerate(names):
            points = cell_of(record, problem, name)["points"]
            rate, median = np.array(points[first_tuned(points)]), medians[name]
            finite = np.isfinite(median)
            share = np.clip((start - median[finite]) / max(start - best, 1e-12), 0, 1)
            shown = axis.scatter(
                rate[finite], np.full(finite.sum(), y), c=share, s=14, vmin=0, vmax=1
            )
            axis.plot(
                rate[~finite], np.full((~finite).sum(), y), "x", color="0.6",
                markersize=3,
            )  # fmt: skip
        axis.set(xscale="log", title=problem.replace("_", " "))
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.grid(alpha=0.2)
    axes[0].invert_yaxis()
    figure.supxlabel("learning rate, or what is tuned in its place", fontsize=10)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label=FALL, shrink=0.5)
    plots.save(figure, run, "sensitivity")


def leaders(record: StudyRecord) -> list[str]:
    """The optimizers to draw as lines: of very many those of the lowest mean ranks."""
    names = optimizers(record)
    if len(names) <= MANY_COLUMNS:
        return names
    first = np.argsort(mean_ranks(record), kind="stable")[:LINES]
    return [names[i] for i in sorted(first)]


def first_tuned(points: Mapping[str, Any]) -> str:
    """The learning rate, or what else is tuned where there is none."""
    return "rate" if "rate" in points else next(iter(points))


def save_bands(record: StudyRecord, run: Run) -> None:
    """Losses by epoch with the chosen trial: the median and 80 % of the seeds."""
    problems, names = list(record["problems"]), leaders(record)
    splits = "train", "validation"
    figure, axes = panels(2 * len(problems), columns=2)
    rows = zip(axes[::2], axes[1::2], strict=True)
    for row, problem in zip(rows, problems, strict=True):
        for axis, split in zip(row, splits, strict=True):
            above = _above_floor(record, problem, split)
            lowest = start = float(above(record["problems"][problem]["start"]))
            for name in names:
                curve = above(getattr(outcome(record, problem, name), split))
                epochs = np.arange(1, len(curve) + 1)
                low, middle, high = np.quantile(
                    np.minimum(curve, 10 * start), [0.1, 0.5, 0.9], axis=1
                )
                style = look(names, name)
                axis.plot(epochs, middle, label=name, linewidth=1.3, **style)
                axis.fill_between(
                    epochs, low, high, color=style["color"], alpha=0.1, linewidth=0
                )
                lowest = min(lowest, float(np.min(low, where=low > 0, initial=lowest)))
            _limits(axis, lowest, start)
            title = _title(record, problem, split)
            axis.set(title=title, xlabel="epoch", ylabel=f"{split} loss")
    finish(figure, axes, run, "bands", record)


def save_reached(record: StudyRecord, run: Run) -> None:
    """How soon the targets are reached: by seed on each problem, and as profiles."""
    problems, names = with_target(record), leaders(record)
    if not problems:
        return
    several = len(problems) > 1
    figure, axes = panels(len(problems) + several)
    for axis, problem in zip(axes, problems, strict=False):
        facts = record["problems"][problem]
        last = facts["epochs"] * facts["steps_per_epoch"]
        for name in names:
            steps = np.sort(outcome(record, problem, name).steps_to_target)
            # a run that never got there never raises the line
            x = np.append(0, np.repeat(np.minimum(steps, last), 2))
            share = np.arange(len(steps) + 1) / len(steps)
            share[1:][np.isinf(steps)] = np.isfinite(steps).mean()
            y = np.append(np.repeat(share[:-1], 2), share[-1])
            axis.plot(np.append(x, last), np.append(y, share[-1]), label=name,
                      **look(names, name))  # fmt: skip
        axis.set(
            title=f"{problem.replace('_', ' ')}: loss {facts['target']:.3g}",
            xlabel="steps", ylabel="share of seeds at the target", ylim=(-0.03, 1.03),
        )  # fmt: skip
    if several:
        taus = np.linspace(1, TAU_MAX, 301)
        profile = performance_profile(times_to_target(record), taus)
        of = dict(zip(optimizers(record), profile, strict=True))
        for name in names:
            axes[-1].plot(taus, of[name], **look(names, name))
        axes[-1].set(
            title="performance profile", xlabel="times the best one's steps",
            ylabel="share of problems", ylim=(-0.03, 1.03),
        )  # fmt: skip
    finish(figure, axes, run, "reached", record)


def save_budgets(record: StudyRecord, run: Run) -> None:
    """Test loss by the number of trials that could be tried: budgets.png."""
    problems, names = list(record["problems"]), leaders(record)
    figure, axes = panels(len(problems))
    for axis, problem in zip(axes, problems, strict=True):
        above = _above_floor(record, problem, "test")
        lowest = start = float(above(record["problems"][problem]["start"]))
        for name in names:
            found = [
                above(outcome(record, problem, name, k).test) for k in budgets(record)
            ]
            middle = [float(np.median(np.minimum(t, 10 * start))) for t in found]
            axis.plot(budgets(record), middle, marker="o", markersize=4, label=name,
                      **look(names, name))  # fmt: skip
            lowest = min(lowest, *middle)
        _limits(axis, lowest, start)
        title = _title(record, problem, "test")
        axis.set(
            title=title, xlabel="trials", ylabel="test loss (median)", xscale="log"
        )
        axis.set_xticks(budgets(record), [str(k) for k in budgets(record)])
        axis.minorticks_off()
    finish(figure, axes, run, "budgets", record)
