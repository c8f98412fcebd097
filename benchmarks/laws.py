"""What curves.py measured: the law that fits and the limit, as a table and a figure."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import harness
import numpy as np
from scipy import stats

from jaxstudy.runs import plots
from jaxstudy.runs.files import write_atomically

RESULT, FIGURE = "benchmarks/results/curves.json", "results/figures/curves.png"
FLAT = 1.1  # the most that the largest time may be of the smallest
Curve = Mapping[str, Any]


class Law(NamedTuple):
    """seconds = scale * size**exponent, by least squares of the logarithms.

    low, high: of the exponent, 95 % by Student's t, were the departures from the law
    independent and normal. departure: the largest, as a part of the law.
    """

    exponent: float
    low: float
    high: float
    scale: float
    departure: float


def power_law(sizes: Sequence[float], seconds: Sequence[float] | np.ndarray) -> Law:
    """The law of three sizes at least."""
    x, y = np.log(sizes), np.log(seconds)
    line: Any = stats.linregress(x, y)
    wide = line.stderr * stats.t.ppf(0.975, len(x) - 2)
    apart = np.abs(y - line.intercept - line.slope * x).max()
    ends = line.slope - wide, line.slope + wide
    return Law(line.slope, *ends, math.exp(line.intercept), math.expm1(apart))


def best_rates(result: Mapping[str, Any]) -> dict[str, float]:
    """The highest rate of a product and of a copy, of all rounds, by numpy or JAX."""
    rates = [r for curve in result["curves"].values() for r in curve["rates"]]
    return {
        what: max(v for r in rates for k, v in r.items() if k.startswith(what))
        for what in ("product", "copy")
    }


def limits(curve: Curve, line: str, best: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The least seconds of a unit, by what binds: products, and where it is, memory."""
    found = curve["lines"][line]
    least = {"product": np.array(found["operations"]) / best["product"]}
    if curve["memory"]:
        least["copy"] = np.array(found["bytes"]) / best["copy"]
    return least


def in_words(curve: Curve, seconds: np.ndarray) -> str:
    """Whether the time per example, or whatever it is, is flat; how good the law is."""
    law = power_law(curve["sizes"], seconds)
    each = seconds / np.array(curve["sizes"], float) ** curve["power"]
    ratio = each.max() / each.min()
    flat = f"is flat within {percent(ratio - 1)}"
    if ratio > FLAT:
        flat = f"is not flat, the largest is {ratio:.2f} times the smallest"
    return (
        f"time per {curve['per']} {flat}; the law is off by "
        f"{percent(law.departure)} at most"
    )


def interval(law: Law) -> str:
    """The exponent with its interval."""
    return f"{law.exponent:.2f} [{law.low:.2f}, {law.high:.2f}]"


def percent(share: float) -> str:
    """A share in percent, with two digits where it is small."""
    return f"{100 * share:.2g} %" if share < 0.01 else f"{100 * share:.0f} %"


def time_text(seconds: Sequence[float]) -> str:
    """Median and range, in the unit that fits."""
    power = min(2, max(0, -math.floor(math.log10(np.median(seconds)) / 3)))
    values = harness.spread([s * 1000**power for s in seconds])
    return f"{harness.median_range(values)} {('s', 'ms', 'us')[power]}"


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row and a sentence for each line, and what was measured."""
    best, environment = best_rates(result), result["environment"]
    lines = [["", "time of", "at the smallest", "at the largest", "exponent",
              "of the product's rate", "of the copy's"]]  # fmt: skip
    lines.append(["---"] * len(lines[0]))
    sentences = []
    for curve in result["curves"].values():
        for label, found in curve["lines"].items():
            seconds = np.median(found["seconds"], 1)
            ends = [
                f"{time_text(found['seconds'][i])} at {curve['sizes'][i]:,}"
                for i in (0, -1)
            ]
            shares = [least / seconds for least in limits(curve, label, best).values()]
            texts = [f"{percent(s[0])} to {percent(s[-1])}" for s in shares]
            exponent = interval(power_law(curve["sizes"], seconds))
            name = f"{curve['title']}: {label}"
            cells = [name, curve["unit"], *ends, exponent, *texts, ""]
            lines.append(cells[: len(lines[0])])
            sentences.append(f"- {name}: {in_words(curve, seconds)}.")
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = "\n".join(sentences)
    return (
        f"{rows}\n\n{said}\n\nMedians (and ranges) of {result['rounds']} rounds; "
        "compiling is not timed. The interval of an exponent is of 95 %, by how far "
        "the medians are off the law. The highest rate of a product of matrices was "
        f"{best['product'] / 1e9:.0f} GFLOP/s, of a copy of memory "
        f"{best['copy'] / 1e9:.0f} GB/s: the best that numpy or JAX reached in any "
        f"round. {environment['cores']} cores, {environment['processor']} "
        f"({environment['device']}); Python {environment['python']}, jax "
        f"{environment['packages']['jax']}."
    )


def section(root: Path) -> str:
    """What the page on speed says: the figure and the table, where it was measured."""
    if not (root / RESULT).exists():
        return "Not measured yet: `python benchmarks/curves.py`."
    picture = f"![Time by size](../{Path(FIGURE).relative_to('results')})\n\n"
    shown = picture if (root / FIGURE).exists() else ""
    return shown + table(json.loads((root / RESULT).read_text()))


def figure(result: Mapping[str, Any]) -> Any:
    """A panel for each curve: medians with ranges, the law, and what limits."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    best = best_rates(result)
    drawn, axes = plots.subplots(2, 2, figsize=(11, 9), layout="constrained")
    for axis in axes.flat[len(result["curves"]) :]:
        axis.remove()
    for axis, curve in zip(axes.flat, result["curves"].values(), strict=False):
        sizes = np.array(curve["sizes"], float)
        for i, (label, found) in enumerate(curve["lines"].items()):
            colour, seconds = plots.COLOURS[i], np.array(found["seconds"])
            middle = np.median(seconds, 1)
            law = power_law(curve["sizes"], middle)
            ends = middle - seconds.min(1), seconds.max(1) - middle
            axis.errorbar(sizes, middle, ends, fmt="o", ms=4, capsize=3, color=colour,
                          label=f"{label}: exponent {interval(law)}")  # fmt: skip
            axis.plot(sizes, law.scale * sizes**law.exponent, color=colour, lw=1)
            for style, (what, least) in zip(
                ("--", ":"), limits(curve, label, best).items(), strict=False
            ):
                axis.plot(sizes, least, style, color=colour, lw=1,
                          label=f"limit by the rate of a {what}")  # fmt: skip
        axis.set(title=curve["title"], xlabel=curve["size"], xscale="log", yscale="log",
                 ylabel=f"time of {curve['unit']}")  # fmt: skip
        axis.set_xticks(sizes, [f"{n:,.0f}" for n in sizes], fontsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(EngFormatter("s"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center",
                    bbox_to_anchor=(0.5, -0.15))  # fmt: skip
    return drawn


def write(result: Mapping[str, Any], root: Path) -> None:
    """The JSON and the figure."""
    for path in (root / RESULT, root / FIGURE):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(root / RESULT, json.dumps(result, indent=1) + "\n")
    folder: Any = SimpleNamespace(figures=(root / FIGURE).parent)
    plots.save(figure(result), folder, Path(FIGURE).stem)
