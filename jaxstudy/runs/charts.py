"""Charts of the report: SVG images for light and dark pages, always of the same bytes.

A chart is {"source": a data URI, "alt": what it shows, in words}; of curves, "shared"
is whether all panels have one vertical scale.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxstudy.runs import plots
from jaxstudy.runs.statistics import Estimate

Chart = dict[str, Any]
# Each colour on a light page, and on a dark one.
INK = "#5b6570"
DARK = {
    "#2563c0": "#6ea8fe", "#d2600b": "#f7a15c", "#1a8a50": "#5cc98d",
    "#8650c8": "#bd9df5", "#c92a45": "#fa7f8f", "#0b7f8c": "#4fc8d3",
    "#8c6a14": "#d6b05e", "#bd3a8c": "#f08fc6", INK: "#9aa5b1",
}  # fmt: skip
LINE_COLOURS = [colour for colour in DARK if colour != INK]
STYLE: Any = {
    "svg.hashsalt": "jaxstudy", "svg.fonttype": "none", "text.parse_math": False,
    "font.size": 8, "axes.titlesize": 8, "legend.frameon": False, "legend.fontsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.25,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}  # fmt: skip


class Curve(NamedTuple):
    """A line: table [points, 4] of x, median, 10 % and 90 % of the replicas."""

    name: str
    colour: int
    table: np.ndarray


class ChartPanel(NamedTuple):
    """Axes with the curves of one metric."""

    title: str
    xlabel: str
    curves: Sequence[Curve]


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # the browser has the glyphs that matplotlib's font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def label(name: str) -> str:
    """A name from a run as a chart shows it: of a long one the beginning."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return text if len(text) <= 40 else text[:37] + "..."


def number(value: float) -> str:
    """The last value of a curve."""
    return f"{value:#.4g}" if math.isfinite(value) else "not finite"


def _grid(
    count: int, size: tuple[float, float], **how: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many axes, each of this size in inches, in rows."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plots.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False, **how
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def curves(panels: Sequence[ChartPanel]) -> Chart:
    """Panels side by side, with one vertical scale unless that flattens some."""
    with _style():
        shared = have_one_scale(panels)
        every = [curve for panel in panels for curve in panel.curves]
        figure, axes = _grid(len(panels), (3.6, 2.4), sharey=shared)
        for axis, panel in zip(axes, panels, strict=True):
            for curve in panel.curves:
                colour = LINE_COLOURS[curve.colour % len(LINE_COLOURS)]
                style = "--" if curve.colour >= len(LINE_COLOURS) else "-"
                x, middle, low, high = curve.table.T
                marker = "o" if len(x) <= 12 else ""
                axis.plot(x, middle, style, color=colour, lw=1.3, marker=marker, ms=2.5)
                if len(panel.curves) <= 3:  # more bands than that hide each other
                    axis.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
            ends = [f"{label(c.name)}  {number(c.table[-1, 1])}" for c in panel.curves]
            axis.legend(axis.lines, ends)
            axis.set_title(label(panel.title), loc="left")
            axis.set_xlabel(panel.xlabel)
            axis.locator_params("x", nbins=5)
            if is_log(values_of(every if shared else panel.curves)):
                axis.set_yscale("log")
                _plain_numbers(axis.yaxis)
            else:
                axis.locator_params("y", nbins=5)
        width, height = figure.get_size_inches()
        figure.subplots_adjust(  # tight_layout would draw everything once more
            left=0.5 / width, right=1 - 0.1 / width, wspace=0.2,
            bottom=0.45 / height, top=1 - 0.25 / height, hspace=0.4,
        )  # fmt: skip
        alt = "; ".join(
            f"{panel.title}: {curve.name} ends at {number(curve.table[-1, 1])}"
            for panel in panels
            for curve in panel.curves
        )
        return {"source": _svg(figure), "alt": alt, "shared": shared}


def values_of(curves: Sequence[Curve]) -> np.ndarray:
    """The finite medians of curves."""
    values = np.concatenate([curve.table[:, 1] for curve in curves])
    return values[np.isfinite(values)]


def is_log(values: np.ndarray) -> bool:
    """Whether values span over two decades."""
    return bool(len(values)) and 0 < 100 * values.min() < values.max()


def have_one_scale(panels: Sequence[ChartPanel]) -> bool:
    """Whether a common scale leaves three panels of four an eighth of its height."""
    each = [v for v in (values_of(panel.curves) for panel in panels) if len(v)]
    if not each:
        return True
    together = np.concatenate(each)
    scale = np.log if is_log(together) else np.asarray
    spans = np.array([np.ptp(scale(v)) for v in each])
    return bool(np.quantile(spans, 0.25) >= np.ptp(scale(together)) / 8)


def intervals(tables: Mapping[str, Mapping[str, Estimate]]) -> Chart:
    """The estimates of each table one below the other, with their intervals.

    Differences are beside a line at zero.
    """
    with _style():
        height = 0.6 + 0.2 * max(map(len, tables.values()))
        figure, axes = _grid(len(tables), (3.6, height))
        for axis, (title, estimates) in zip(axes, tables.items(), strict=True):
            plots.draw_estimates(axis, estimates, LINE_COLOURS[0])
            axis.set(yticklabels=[*map(label, estimates)])
            axis.grid(False, axis="y")
            axis.set_title(label(title), loc="left")
            ends = [v for e in estimates.values() for v in e[:3] if v is not None]
            if title.startswith("difference in "):
                axis.axvline(0, color=INK, lw=1, linestyle=":", zorder=0)
            elif is_log(np.array(ends)):
                axis.set_xscale("log")
                _plain_numbers(axis.xaxis)
        figure.tight_layout()
        return {"source": _svg(figure), "alt": f"Intervals of {', '.join(tables)}"}


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis as "0.01": names of runs are no mathematics here."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())  # each tick takes time to draw


def _svg(figure: Figure) -> str:
    """The figure as a data URI, its colours chosen by the reader's scheme."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = re.sub("font-family: [^;]*;", "font-family: sans-serif;", file.getvalue())
    light = dark = ""
    for i, (colour, on_dark) in enumerate(DARK.items()):
        text = text.replace(colour, f"var(--c{i})")
        light, dark = f"{light}--c{i}:{colour};", f"{dark}--c{i}:{on_dark};"
    style = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    text = text.replace('<style type="text/css">', f'<style type="text/css">{style}', 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
