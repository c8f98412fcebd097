"""Figures with intervals, and of so few runs that there are none."""

import base64
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxstudy.runs import charts, plots
from jaxstudy.runs.statistics import NONNEGATIVE, mean_over_runs

MANY = mean_over_runs(np.array([1.0, 2, 3, 4]), NONNEGATIVE)
FEW = mean_over_runs(np.array([1.0, 3]), NONNEGATIVE)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    return figures


def lines(figure: Figure, axis: int = 0) -> list[tuple[list[float], list[float]]]:
    """x and y of all that was plotted."""
    plotted = (line.get_data() for line in figure.axes[axis].lines)
    return [(np.ravel(x).tolist(), np.ravel(y).tolist()) for x, y in plotted]


def test_an_interval_is_a_line_and_few_values_are_points(drawn: list[Figure]) -> None:
    run: Any = None
    result = {"a: loss": MANY, "b: loss": FEW}
    panel = plots.Comparison("loss", ["loss"])
    plots.save_comparison(run, "losses", result, ["a", "b"], [panel])
    plots.save_differences(run, "gaps", {"a": MANY, "b": FEW}, "loss")
    for figure in drawn:
        found = lines(figure)
        assert ([MANY.low, MANY.high], [0, 0]) in found
        assert ([1.0, 3.0], [1, 1]) in found
        assert ([FEW.mean], [1]) in found
    (points,) = (x for x in drawn[0].axes[0].lines if x.get_marker() == "|")
    assert points.get_linestyle() == "None"


def test_a_line_of_few_runs_has_no_band(drawn: list[Figure]) -> None:
    run: Any = None
    for estimates in ([MANY, MANY], [FEW, FEW]):
        panel = plots.Panel("", "x", "y", {"a": ([1.0, 2.0], estimates)})
        plots.save_lines(run, "lines", [panel])
    many, few = drawn
    (band,) = many.axes[0].collections
    (path,) = band.get_paths()
    assert {MANY.low, MANY.high} <= {*path.vertices[:, 1].tolist()}  # type: ignore[index]
    assert not few.axes[0].collections or not few.axes[0].collections[0].get_paths()
    assert ([1.0, 1.0], [1.0, 3.0]) in lines(few)
    assert ([2.0, 2.0], [1.0, 3.0]) in lines(few)


def test_an_interval_at_a_single_place_is_a_line_beside_a_level(
    drawn: list[Figure],
) -> None:
    """A band would have no width there; `seeds` adds each value to its mean."""
    run: Any = None
    line: dict[str, plots.Line] = {"a": ([1.0], [MANY])}
    levels = {"chance": 0.5, "noise": 5.0, "new": 0.1}
    panel = plots.Panel("", "x", "y", line, levels=levels, seeds=True)
    plots.save_lines(run, "lines", [panel])
    axis = drawn[0].axes[0]
    segments = axis.collections[-1].get_segments()  # type: ignore[attr-defined]
    assert [s.tolist() for s in segments] == [[[1.0, MANY.low], [1.0, MANY.high]]]
    heights = [y for _, y in lines(drawn[0])]
    assert all([level, level] in heights for level in levels.values())
    assert [*(MANY.values or ())] in heights
    legend = axis.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", *levels]


def test_panels_in_rows_share_an_axis_and_leave_no_empty_one(
    drawn: list[Figure],
) -> None:
    run: Any = None
    panels = [
        plots.Panel(f"{i}", "x", "loss", {"a": ([1, 2], [i, i + 1])}, note=f"note {i}")
        for i in (1, 5, 9)
    ]
    plots.save_lines(run, "lines", panels, columns=2)
    (shared,) = drawn
    assert len(shared.axes) == 3
    assert len({axis.get_ylim() for axis in shared.axes}) == 1
    assert [axis.get_ylabel() for axis in shared.axes] == ["loss", "", "loss"]
    notes = [axis.texts[0].get_text() for axis in shared.axes]
    assert notes == ["note 1", "note 5", "note 9"]


def test_a_heat_map_says_each_number_on_one_scale(drawn: list[Figure]) -> None:
    run: Any = None
    maps = {"left": [[1.0, 2.0]], "right": [[np.inf, 4.0]]}
    plots.save_heat_maps(run, "map", maps, ["a"], ["1", "2"], xlabel="x", label="loss")
    left, right, _ = drawn[0].axes
    assert [text.get_text() for text in left.texts] == ["1.00", "2.00"]
    assert [text.get_text() for text in right.texts] == ["diverged", "4.00"]
    assert left.collections[0].get_clim() == right.collections[0].get_clim() == (0, 4)
    assert not any(axis.images for axis in drawn[0].axes)  # to be published


def test_a_logarithmic_chart_is_shared_and_labelled_in_plain_numbers() -> None:
    table = np.array([[0, 1e-4, 1e-5, 1e-3], [1, 10, 1, 100]])
    panel = charts.ChartPanel("loss", "epoch", [charts.Curve("sgd", 0, table)])
    source = charts.curves([panel, panel])["source"]
    svg = base64.b64decode(source.split(",")[1]).decode()
    assert ">0.01<" in svg
    assert "10^{" not in svg


def test_panels_of_one_quantity_share_its_axis(drawn: list[Figure]) -> None:
    run: Any = None
    panels = [
        plots.Panel("", "epoch", label, {"a": ([0, 1], [low, low + 1])})
        for label, low in (("accuracy", 0.0), ("loss", 9.0), ("accuracy", 5.0))
    ]
    plots.save_lines(run, "curves", panels)
    one, other, same = (axis.get_ylim() for axis in drawn[0].axes)
    assert one == same != other
    assert one[0] <= 0
    assert one[1] >= 6


def test_lines_over_names_have_the_names_on_the_axis(drawn: list[Figure]) -> None:
    run: Any = None
    panel = plots.Panel("", "columns", "loss", {"a": (["b", "a"], [1.0, 2.0])})
    plots.save_lines(run, "columns", [panel])
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert labels == ["b", "a"]


def test_panels_of_estimates_say_words_levels_and_what_is_hollow(
    drawn: list[Figure],
) -> None:
    run: Any = None
    plots.save_estimates(run, "compared", [
        plots.EstimatePanel("left", "loss", {"a": MANY, "b": "diverged", "c": 7.0},
                            levels=[2.0]),
        plots.EstimatePanel("none", "loss", {}),
        plots.EstimatePanel("right", "accuracy", {"a": FEW, "b": MANY}, False,
                            hollow=["b"]),
    ])  # fmt: skip
    left, right = drawn[0].axes
    assert [text.get_text() for text in left.texts] == ["diverged", "2"]
    assert ([2.0, 2.0], [0, 1]) in lines(drawn[0])
    assert ([7.0], [2]) in lines(drawn[0])
    assert ([0.0, 0.0], [0, 1]) in lines(drawn[0])
    assert ([0.0, 0.0], [0, 1]) not in lines(drawn[0], 1)  # no difference
    markers = [line for line in right.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [False, True]


def test_lines_have_levels_one_colour_a_label_and_one_legend(
    drawn: list[Figure],
) -> None:
    run: Any = None
    panels = [
        plots.Panel("", "x", "loss", {"a": ([1], [MANY]), "b": ([1], [2.0])},
                    seeds=True),
        plots.Panel("", "x", "gain", {"b": ([1, 2], [3.0, 4.0])}, levels={"0.5": 0.5}),
    ]  # fmt: skip
    plots.save_lines(run, "lines", panels)
    left, right = drawn[0].axes
    bars = [c for c in left.collections if isinstance(c, LineCollection)]
    assert [bar.get_segments()[0].tolist() for bar in bars] == [
        [[1, MANY.low], [1, MANY.high]]
    ]
    assert ([1.0] * 4, [1.0, 2.0, 3.0, 4.0]) in lines(drawn[0])
    assert ([0.0, 1.0], [0.5, 0.5]) in lines(drawn[0], 1)
    colours = {
        (line.get_label(), line.get_color())
        for axis in (left, right)
        for line in axis.lines
        if line.get_label() == "b"
    }
    assert len(colours) == 1
    legend = right.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["a", "b", "0.5"]
