"""Figures, as PNG files in the run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageDraw

from jaxstudy.messages import shortened
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import Estimate

Line = tuple[  # x, y
    Sequence[float] | Sequence[str], Sequence[float] | Sequence[Estimate]
]


class Panel(NamedTuple):
    """One set of axes: lines by label, each y a number or an estimate.

    `levels` are horizontal lines by label, such as baselines. With `seeds` each value
    of an estimate is drawn beside its mean, which hides that some seeds failed.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Mapping[str, Line]
    scales: tuple[str, str] = ("linear", "linear")
    note: str = ""
    levels: Mapping[str, float] = {}
    seeds: bool = False


COLOURS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
LEVEL_DASHES = ("--", ":", "-.")


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    figsize: tuple[float, float],
    layout: Any = None,
    **how: Any,
) -> tuple[Figure, Any]:
    """A figure and its axes, as of pyplot, which would choose a window for them."""
    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **how)


def save(figure: Figure, run: Run, name: str) -> None:
    """Write figures/NAME.png, marked as a chart if it shows no image.

    An image might be one of a data set, which must not be published with the results.
    """
    images = any(axes.images for axes in figure.axes)
    figure.savefig(
        run.figures / f"{name}.png", dpi=110, bbox_inches="tight",
        metadata=None if images else {"Title": "chart"},
    )  # fmt: skip


def curve(
    rows: Sequence[Mapping[str, Any]], split: str, name: str, x: str = "epoch"
) -> np.ndarray:
    """The logged values of one split: columns x, median, 10 %, 90 % of replicas.

    Of the finite ones; where there is none, NaN, which is drawn as a gap.
    """
    table = []
    for row in rows:
        if row["split"] == split and name in row:
            values = np.atleast_1d(np.array(row[name], float))
            finite = values[np.isfinite(values)]
            if not len(finite):
                finite = np.array([np.nan])
            table.append([row[x], *np.quantile(finite, [0.5, 0.1, 0.9])])
    return np.array(table, float).reshape(-1, 4)


def save_curves(
    run: Run,
    names: Sequence[str],
    metric: str,
    label: str,
    splits: Sequence[str] = ("train", "validation"),
) -> None:
    """Curves of these splits of several parts, side by side, as curves.png.

    Where a part has replicas: their median, and the band that holds 80 % of them. The
    part of a name has underscores for spaces. Raises KeyError where there is none.
    """
    figure, axes = subplots(1, len(names), figsize=(4 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = run.sub_runs[name.replace(" ", "_")].records
        for split, colour in zip(splits, COLOURS, strict=False):
            epoch, middle, low, high = curve(rows, split, metric).T
            axis.plot(epoch, middle, color=colour, label=split)
            axis.fill_between(epoch, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(label)
    axes[0][0].legend(frameon=False)
    save(figure, run, "curves")


class EstimatePanel(NamedTuple):
    """One set of axes: estimates, numbers or words, one below the other.

    A line stands at 0 if they are differences; within the margin, a grey band, these do
    not matter. levels: values that estimates are compared with, dashed. hollow: of
    which estimates the marker is hollow.
    """

    title: str
    xlabel: str
    estimates: Mapping[str, Estimate | float | str]
    differences: bool = True
    margin: float = 0.0
    levels: Sequence[float] = ()
    hollow: Sequence[str] = ()


def draw_estimate(
    axis: Axes,
    estimate: Estimate,
    y: float,
    colour: str = COLOURS[0],
    label: str | None = None,
    hollow: bool = False,
) -> None:
    """A mean at height y, with its interval; where there is none, with its values."""
    face = "white" if hollow else colour
    axis.plot(estimate.mean, y, "o", color=colour, mfc=face, label=label, zorder=3)
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [y, y], color=colour)
    elif estimate.values:
        axis.plot(estimate.values, np.full(len(estimate.values), y), "|", color=colour)


def draw_estimates(
    axis: Axes,
    estimates: Mapping[str, Estimate | float | str],
    colour: str = COLOURS[0],
    hollow: Sequence[str] = (),
) -> None:
    """Estimates, numbers or words, one below the other and named at the left."""
    for y, (name, estimate) in enumerate(estimates.items()):
        if isinstance(estimate, str):
            axis.text(
                0.98, y, estimate, ha="right", va="center", fontsize=8, color="0.4",
                transform=axis.get_yaxis_transform(),
            )  # fmt: skip
            continue
        if not isinstance(estimate, Estimate):
            estimate = Estimate(estimate, None, None, 1, "")
        draw_estimate(axis, estimate, y, colour, hollow=name in hollow)
    # names of a user's columns: of any length, and their $ is no mathematics
    names = [shortened(name).replace("$", r"\$") for name in estimates]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(estimates) - 0.4, -0.6)


class Comparison(NamedTuple):
    """A panel of estimates: metrics as colours, baselines as vertical lines."""

    xlabel: str
    metrics: Sequence[str]
    baselines: Mapping[str, float] = {}
    bands: Mapping[str, tuple[float, float]] = {}  # from, to: drawn in grey


def save_comparison(
    run: Run,
    name: str,
    result: Mapping[str, Any],
    names: Sequence[str],
    panels: Sequence[Comparison],
    *,
    shared_log: bool = False,
) -> None:
    """Estimates "NAME: METRIC" of several networks, a row each, as NAME.png.

    A network may lack some of the metrics; the first one has all. With `shared_log` all
    panels are of one quantity, on one logarithmic axis.
    """
    figure, axes = subplots(
        1,
        len(panels),
        figsize=(5.5 * len(panels), 0.9 + 0.55 * len(names)),
        sharex=shared_log,
        sharey=True,
        squeeze=False,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        offsets = 0.16 * (np.arange(len(panel.metrics)) - (len(panel.metrics) - 1) / 2)
        for metric, colour, offset in zip(
            panel.metrics, COLOURS, offsets, strict=False
        ):
            for y, network in enumerate(names):
                if (estimate := result.get(f"{network}: {metric}")) is not None:
                    label = None if y else metric
                    draw_estimate(axis, estimate, y + offset, colour, label)
        for label, (low, high) in panel.bands.items():
            axis.axvspan(low, high, color="0.9", zorder=-1, label=label)
        for (label, x), style in zip(
            panel.baselines.items(), ("--", ":"), strict=False
        ):
            axis.axvline(x, color="0.3", linestyle=style, label=label)
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel=panel.xlabel)
        axis.margins(y=0.2)
        axis.grid(alpha=0.3)
        if len(axis.get_legend_handles_labels()[1]) > 1:  # else the x label says it
            axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
        if shared_log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].invert_yaxis()
    save(figure, run, name)


def save_differences(
    run: Run,
    name: str,
    estimates: Mapping[str, Estimate],
    xlabel: str,
    margin: float = 0.0,
) -> None:
    """Estimates of differences with their intervals as NAME.png, beside a line at 0.

    Within the margin, a grey band, differences do not matter.
    """
    save_estimates(run, name, [EstimatePanel("", xlabel, estimates, margin=margin)])


def save_estimates(
    run: Run, name: str, panels: Sequence[EstimatePanel], *, sharex: bool = False
) -> None:
    """Panels of estimates with their intervals as NAME.png, side by side.

    Those with the same names from top to bottom are named once; one without estimates
    is left out.
    """
    panels = [panel for panel in panels if panel.estimates]
    rows = max(len(panel.estimates) for panel in panels)
    once = len({tuple(panel.estimates) for panel in panels}) == 1
    size = (1.5 + 4.5 * len(panels), 0.9 + 0.33 * rows)
    figure, axes = subplots(
        1, len(panels), figsize=size, squeeze=False, sharex=sharex, sharey=once,
        layout="constrained" if len(panels) > 1 else None,
    )  # fmt: skip
    for axis, panel in zip(axes[0], panels, strict=True):
        draw_estimates(axis, panel.estimates, hollow=panel.hollow)
        if panel.differences:
            axis.axvline(0, color="0.5", linewidth=1, zorder=0)
        if panel.margin:
            axis.axvspan(-panel.margin, panel.margin, color="0.9", zorder=-1)
        for level in panel.levels:
            axis.axvline(level, color="0.3", linestyle="--", linewidth=1, zorder=0)
            side = "right" if level == min(panel.levels) else "left"
            axis.text(
                level, 1.01, f"{level:g}", ha=side, va="bottom", fontsize=8,
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
        axis.set(xlabel=panel.xlabel)
        axis.xaxis.get_major_locator().set_params(nbins=6)
        axis.set_title(panel.title, fontsize=10, pad=16 if panel.levels else None)
        axis.grid(alpha=0.3)
    save(figure, run, name)


def save_network(
    run: Run,
    name: str,
    layers: Sequence[Sequence[str]],
    edges: Mapping[tuple[tuple[int, int], tuple[int, int]], str],
    title: str,
) -> None:
    """A small network as NAME.png: units by layer, an arrow with a label per edge.

    An edge ((layer, unit), (layer, unit)) names its two ends; the arrow points at the
    second, and its label stands near the unit of the lower layer.
    """
    radius = 36  # points

    def place(unit: tuple[int, int]) -> tuple[float, float]:
        layer, i = unit
        return 3.4 * layer, 1.7 * ((len(layers[layer]) - 1) / 2 - i)

    figure, axis = subplots(figsize=(14, 6.5))
    for ends, label in edges.items():
        tail, head = map(place, ends)
        axis.annotate(
            "", head, tail, zorder=1,
            arrowprops={"arrowstyle": "-|>", "mutation_scale": 16, "color": "0.5",
                        "shrinkA": radius, "shrinkB": radius},
        )  # fmt: skip
        (x0, y0), (x1, y1) = map(place, sorted(ends))
        share = 0.38  # where arrows that cross are still apart
        axis.text(
            x0 + share * (x1 - x0), y0 + share * (y1 - y0), label,
            ha="center", va="center", fontsize=9, zorder=2,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    for depth, units in enumerate(layers):
        for i, text in enumerate(units):
            x, y = place((depth, i))
            axis.plot(x, y, "o", markersize=2 * radius, color="#dbe9f6", mec=COLOURS[0])
            axis.text(x, y, text, ha="center", va="center", fontsize=9, zorder=4)
    axis.set(title=title)
    axis.margins(0.12, 0.16)
    axis.axis("off")
    save(figure, run, name)


def save_lines(
    run: Run, name: str, panels: Sequence[Panel], *, columns: int | None = None
) -> None:
    """Panels of lines as NAME.png, in rows of so many columns, or side by side.

    Estimates get a band of their intervals; where there is none, their values. Panels
    with the same y label share its axis, labelled once in a row. A label has the same
    colour, or dashes, in all panels, and stands in their legend once.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure, axes = subplots(
        rows, columns, figsize=(4.6 * columns + 1.6, 3.8 * rows), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    first: dict[tuple[str, str], Axes] = {}
    colours: dict[str, str] = {}
    dashes: dict[str, str] = {}
    for i, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        leader = first.setdefault((panel.ylabel, panel.scales[1]), axis)
        if leader is not axis:
            axis.sharey(leader)
        repeated = i % columns and panels[i - 1].ylabel == panel.ylabel
        for label, (x, y) in panel.lines.items():
            estimates = [v for v in y if isinstance(v, Estimate)]
            middle = [v.mean for v in estimates] or y
            colour = colours.setdefault(label, COLOURS[len(colours) % len(COLOURS)])
            (line,) = axis.plot(
                x, middle, "o-", markersize=3, color=colour, label=label
            )
            if estimates:
                ends = np.array([(v.low, v.high) for v in estimates], float)
                axis.fill_between(x, *ends.T, color=line.get_color(), alpha=0.15)
                if len(x) == 1:  # where a band has no width
                    axis.vlines(x, *ends.T, color=line.get_color())
            for at, estimate in zip(x, estimates, strict=False):
                if (panel.seeds or estimate.low is None) and estimate.values:
                    places = np.full(len(estimate.values), at)
                    axis.plot(places, estimate.values, "_", color=line.get_color())
        for label, level in panel.levels.items():
            style = dashes.setdefault(label, LEVEL_DASHES[len(dashes) % 3])
            axis.axhline(level, color="0.3", linestyle=style, linewidth=1, label=label)
        xscale, yscale = panel.scales
        ylabel = "" if repeated else panel.ylabel
        axis.set(title=panel.title, xlabel=panel.xlabel, ylabel=ylabel)
        axis.text(0.97, 0.03, panel.note, ha="right", va="bottom", fontsize=9,
                  transform=axis.transAxes)  # fmt: skip
        axis.set_xscale(xscale, **({"base": 2} if xscale == "log" else {}))
        axis.set_yscale(yscale)
        axis.grid(alpha=0.3)
        along = dict.fromkeys(v for x, _ in panel.lines.values() for v in x)
        names = [v for v in along if isinstance(v, str)]
        if names:  # which the scale has taken from the axis
            turn = {"rotation": 30, "ha": "right"} if len(names) > 1 else {}
            axis.set_xticks(range(len(names)), names, **turn)
            continue
        ticks = sorted(v for v in along if not isinstance(v, str))
        if xscale == "linear" and all(v == round(v) for v in ticks):
            axis.xaxis.get_major_locator().set_params(integer=True)
        if xscale == "log":
            axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    drawn = [axis.get_legend_handles_labels() for axis in axes.flat[: len(panels)]]
    handles = {k: h for each in drawn for h, k in zip(*each, strict=True)}
    axes[0, -1].legend(
        handles.values(), handles, frameon=False, loc="center left",
        bbox_to_anchor=(1, 0.5),
    )  # fmt: skip
    figure.tight_layout()
    save(figure, run, name)


def draw_table(
    axis: Axes,
    table: np.ndarray,
    cmap: str,
    *,
    limits: tuple[float | None, float | None] = (None, None),
    digits: int = 2,
    missing: str = "",
    bold: Sequence[tuple[int, int]] = (),
) -> QuadMesh:
    """Numbers [rows, columns] in coloured cells, of which some are bold.

    What is not finite is grey, and says so with the word `missing`.
    """
    # no image, which might be one of a data set: see `save`
    low, high = limits
    cells = np.ma.masked_invalid(table)
    mesh = axis.pcolormesh(cells, cmap=cmap, alpha=0.6, vmin=low, vmax=high)
    axis.set_facecolor("0.9")
    axis.tick_params(length=0)
    for (row, column), value in np.ndenumerate(table):
        finite = np.isfinite(value)
        axis.text(
            column + 0.5, row + 0.5, f"{value:.{digits}f}" if finite else missing,
            ha="center", va="center", fontsize=9 if finite else 7,
            fontweight="bold" if (row, column) in bold else "normal",
        )  # fmt: skip
    return mesh


def save_heat_maps(
    run: Run,
    name: str,
    maps: Mapping[str, Sequence[Sequence[float]] | np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str,
    label: str,
) -> None:
    """Tables [rows][columns] of numbers as NAME.png, side by side on one colour scale.

    The number stands in each cell; what is not finite is grey: "diverged".
    """
    tables = {title: np.array(table, float) for title, table in maps.items()}
    every = np.concatenate([t[np.isfinite(t)] for t in tables.values()])
    figure, axes = subplots(
        1, len(maps), figsize=(1.6 + 0.75 * len(columns) * len(maps) + 1.2,
                               1.2 + 0.42 * len(rows)),
        squeeze=False, sharey=True, layout="constrained",
    )  # fmt: skip
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        limits = every.min(initial=0), every.max(initial=1e-9)
        mesh = draw_table(axis, table, "Blues", limits=limits, missing="diverged")
        axis.set(title=title, xlabel=xlabel)
        axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes[0, 0].invert_yaxis()
    figure.colorbar(mesh, ax=axes[0].tolist(), label=label)
    save(figure, run, name)


def save_images(
    run: Run,
    name: str,
    images: Sequence[Sequence[np.ndarray]],
    titles: Sequence[Sequence[str]] | None = None,
    rows: Sequence[str] = (),
) -> None:
    """Images in rows as NAME.png, each with a title; `rows` name the rows.

    An image is [H, W], [H, W, 1] or [H, W, 3], of uint8 or of numbers 0 to 1; those of
    a single channel and not uint8 are drawn from their least to their largest value.
    """
    columns = max(len(row) for row in images)
    lines = max(title.count("\n") for row in titles or [[""]] for title in row)
    height = (1.4 + 0.15 * lines) * len(images)
    figure, axes = subplots(
        len(images), columns, figsize=(1.25 * columns, height), squeeze=False
    )
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            single = image.ndim == 2 or image.shape[-1] == 1
            pixels = image.reshape(image.shape[:2]) if single else image
            if not single and pixels.dtype != np.uint8:
                pixels = np.clip(pixels, 0, 1)
            top = 255 if pixels.dtype == np.uint8 else None
            axes[r][c].imshow(
                pixels, cmap="gray", interpolation="nearest", vmin=top and 0, vmax=top
            )
            if titles is not None:
                axes[r][c].set_title(titles[r][c], fontsize=7)
        if r < len(rows):
            axes[r][0].set_ylabel(
                rows[r], rotation=0, ha="right", va="center", fontsize=8
            )
    figure.tight_layout(pad=0.4)
    save(figure, run, name)


def image_grid(images: np.ndarray, columns: int, caption: str = "") -> Image.Image:
    """Images uint8 [N, H, W, C] in rows, with a caption above.

    Pixel by pixel; small images enlarged by a whole number, to about 64 pixels a side.
    """
    factor = max(1, round(64 / images.shape[2]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, channels = images.shape
    gap, top = 2, 16 if caption else 0
    rows = -(-n // columns)
    size = rows * (height + gap) - gap + top, columns * (width + gap) - gap
    canvas = np.full((*size, channels), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap) + top, (i % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = image
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    ImageDraw.Draw(picture).text((2, 2), caption, fill=0)
    return picture


def save_animation(path: Path, frames: Sequence[Path]) -> None:
    """Pictures one after the other as a GIF, over and over; the last stays longest."""
    first, *others = (Image.open(frame) for frame in frames)
    seconds = [0.5] * len(others) + [2.0]
    first.save(
        path, save_all=True, append_images=others, loop=0,
        duration=[round(1000 * s) for s in seconds],
    )  # fmt: skip
