"""Tables and charts of any run, and of several beside each other, for the report."""

import math
from collections.abc import Iterable, Mapping, Sequence

from jaxstudy.runs import charts
from jaxstudy.runs.plots import curve
from jaxstudy.runs.reading import Drawn, ReportedRun, TableRow, natural
from jaxstudy.runs.statistics import Estimate
from jaxstudy.runs.values import Value, flat, number_of

# of a curve: panel, name, colour, rows
Series = tuple[str, str, int, Sequence[TableRow]]

STUDY_PARTS = ("tune ", "report ")  # of a study: trainings by the hundred
TOGETHER = len(charts.LINE_COLOURS)  # parts in one chart


def headline(run: ReportedRun) -> tuple[str, list[tuple[str, Value]]]:
    """For the front page: of "variant: measure" the first measure, and variants."""
    metrics = run.metrics
    names = [n for n, v in metrics.items() if v.interval] or list(metrics)
    _, colon, measure = (names or [""])[0].rpartition(": ")
    end = colon + measure if colon else ""
    chosen = [(n.removesuffix(end), metrics[n]) for n in names if n.endswith(end)]
    return measure if colon else "", chosen


def interval_chart(run: ReportedRun) -> Drawn | None:
    """A chart of the tables with several estimates."""
    tables = tabulate(run.metrics)
    return _intervals({t: _estimates(rows) for t, rows in tables.items() if t})


def metric_curves(run: ReportedRun) -> list[Drawn]:
    """The logged metrics: a panel for each part, and one for all where few."""
    parts = drawn_parts(run)
    series: list[Series] = []
    if 1 < len(parts) <= TOGETHER:
        series += [("all parts", p or "main", i, parts[p]) for i, p in enumerate(parts)]
    kept = [row for rows in parts.values() for row in rows]
    splits = sorted(_by(kept, "split"), key=_split_order)
    for part, rows in parts.items():
        mine = _by(rows, "split")
        for i, split in enumerate(splits):
            series.append((part, split, i, mine.get(split, [])))
    return _curves(series)


def loss_curves(run: ReportedRun) -> list[Drawn]:
    """The loss alone, or the first metric, in one panel: by part, or of one by split.

    Cheap: to draw all curves of all lessons takes a minute.
    """
    parts = drawn_parts(run)
    lines = [*parts.items()][: 2 * TOGETHER]
    if len(parts) == 1:
        splits = _by(run.records, "split")
        lines = [(split, splits[split]) for split in sorted(splits, key=_split_order)]
    series = [("", name or "main", i, rows) for i, (name, rows) in enumerate(lines)]
    return _curves(series, most=1)


def drawn_parts(run: ReportedRun) -> dict[str, list[TableRow]]:
    """The records by part; the hundreds of trials of a study have their figures."""
    rows = run.records
    if run.study:
        rows = [r for r in rows if not r["part"].startswith(STUDY_PARTS)]
    return _by(rows, "part")


def _by(rows: Iterable[TableRow], tag: str) -> dict[str, list[TableRow]]:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(row[tag], []).append(row)
    return groups


def _split_order(split: str) -> int:
    known = ("train", "validation", "test")
    return known.index(split) if split in known else len(known)


def _curves(
    series: Sequence[Series], least: int = 1, most: int | None = None
) -> list[Drawn]:
    """The charts of all metrics that have `least` lines, or of the `most` first.

    One for each metric with several panels, and one for all others together.
    """
    tags = ("part", "step", "epoch", "split")
    metrics = {m for *_, rows in series for row in rows for m in row if m not in tags}
    groups: list[Drawn] = []
    single: list[charts.ChartPanel] = []
    notes: list[str] = []
    for metric in sorted(metrics, key=lambda m: (m != "loss", natural(m)))[:most]:
        kept = [(a, b, c, _numbers(rows, metric)) for a, b, c, rows in series]
        titles = dict.fromkeys(title for title, _, _, rows in kept if rows)
        panels = [
            _panel(title, metric, [line for line in kept if line[0] == title])
            for title in titles
        ]
        panels = [panel for panel in panels if len(panel.curves) >= least]
        note = _note([row[metric] for *_, rows in kept for row in rows])
        name = metric.replace("_", " ")
        if len(panels) > 1:
            groups.append(_group(name, panels, [note]))
        elif panels:
            title = ", ".join(filter(None, (name, panels[0].title)))
            single.append(panels[0]._replace(title=title))
            notes.append(note)
    if single:
        groups.append(_group("metrics of one part" if groups else "", single, notes))
    return groups


def _numbers(rows: Sequence[TableRow], metric: str) -> list[TableRow]:
    """The records that have a metric, with the numbers of its replicas, or NaN."""
    return [
        {**row, metric: [*map(number_of, v if isinstance(v, list) else [v])]}
        for row in rows
        if (v := row.get(metric, row)) is not row
    ]


def _panel(title: str, metric: str, lines: Sequence[Series]) -> charts.ChartPanel:
    """The curves of a metric; where a line has several splits, validation's."""
    drawn, splits, x = [], {}, "epoch"
    for _, name, colour, rows in lines:
        if not rows:
            continue
        there = _by(rows, "split")
        split = "validation" if "validation" in there else min(there, key=_split_order)
        if any(math.isnan(number_of(row.get("epoch"))) for row in there[split]):
            x = "step"
        if name != split:
            splits[split] = None
        drawn.append((name.replace("_", " "), colour, there[split], split))
    title = ", ".join(filter(None, (title.replace("_", " "), *splits)))
    found = [
        charts.Curve(name, colour, curve(rows, split, metric, x))
        for name, colour, rows, split in drawn
    ]
    return charts.ChartPanel(title, x, found)


def _note(values: Sequence[Sequence[float]]) -> str:
    """What stands under a chart of replicas, or of values that are not finite."""
    replicas = max(map(len, values))
    lost = max(sum(map(math.isnan, v)) for v in values)
    text = ""
    if replicas > 1:
        text = f"Line: median of the replicas (up to {replicas}); band: 80 % of them."
    if lost:
        of = f"Up to {lost} of {replicas} replicas were"
        text += f" {of if replicas > 1 else 'Gaps: it was'} not finite."
    return text


def _group(
    name: str, panels: Sequence[charts.ChartPanel], notes: Iterable[str]
) -> Drawn:
    chart = charts.curves(panels)
    alt = ": ".join(filter(None, (name, chart["alt"])))
    return {"name": name, "chart": {**chart, "alt": alt}, "count": len(panels),
            "notes": dict.fromkeys(filter(None, notes))}  # fmt: skip


def tabulate(metrics: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Tables of "variant: measure" by measure, of "a - b: measure" apart, of others."""
    tables: dict[str, dict[str, Value]] = {"": {}}
    for name, value in metrics.items():
        variant, _, measure = name.rpartition(": ")
        title = f"difference in {measure}" if " - " in variant else measure
        alone = sum(n.endswith(f": {measure}") for n in metrics) == 1
        if variant and not (alone and " - " not in variant):
            tables.setdefault(title, {})[variant] = value
        else:
            tables[""][name] = value
    return {title: rows for title, rows in tables.items() if rows}


def _estimates(rows: Mapping[str, Value]) -> dict[str, Estimate]:
    return {name: value.estimate for name, value in rows.items() if value.estimate}


def _intervals(tables: Mapping[str, dict[str, Estimate]]) -> Drawn | None:
    """A chart of the tables with several estimates that are not all the same."""
    drawn = {
        title: rows
        for title, rows in tables.items()
        if len({v for e in rows.values() for v in e[:3]} - {None}) > 1
    }
    return charts.intervals(drawn) if drawn else None


def compare_runs(
    experiment: str, runs: Sequence[ReportedRun], with_charts: bool = True
) -> Drawn:
    """The runs of one experiment; what several of them have, side by side."""
    out: Drawn = {"experiment": experiment, "runs": runs, "differ": {}, "metrics": []}
    if len(runs) == 1:
        return out
    facts = [flat({**run.config, "environment": run.environment}) for run in runs]
    for name in dict.fromkeys(name for fact in facts for name in fact):
        texts = [fact.get(name, "") for fact in facts]
        if len(set(texts)) > 1:
            out["differ"][name] = texts
    results = {run.name: run.metrics for run in runs}
    drawn = {}
    for name in dict.fromkeys(name for metrics in results.values() for name in metrics):
        rows = {run: m.get(name, Value("")) for run, m in results.items()}
        if sum(name in metrics for metrics in results.values()) > 1:
            out["metrics"].append((name, rows.values()))
            drawn[name] = _estimates(rows)
    if not with_charts:
        return out
    out["chart"] = _intervals(drawn)
    series: list[Series] = []
    for i, run in enumerate(runs):
        parts = drawn_parts(run)
        series += [(part, run.name, i, rows) for part, rows in parts.items()]
    out["curves"] = _curves(series, least=2)
    return out
