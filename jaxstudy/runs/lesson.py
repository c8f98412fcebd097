"""What a script of experiments/ says of its lesson: one literal, LESSON, near its top.

A lesson asks a question; its claims are judged from the metrics of a run. Terminal,
report, docs and README are made from it, so that a new lesson is one script and its
page in docs/lessons/: nothing else lists lessons.
"""

import dataclasses
import fnmatch
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from jaxstudy.messages import did_you_mean
from jaxstudy.runs.statistics import (
    MIN_UNITS,
    REAL,
    Estimate,
    estimate_texts,
    mean_over_runs,
)

Relation = Literal["<", ">", "=", "within"]
RUNS = ("seeds", "repeats")  # of which the same number are the same
ClaimVerdict = Literal["holds", "fails", "undetermined"]


@dataclass(frozen=True)
class Claim:
    """A sentence that the metrics of a run decide.

    Args:
        sentence: what is claimed, in the present tense.
        metrics: names of metrics, or constants, compared each with the next; of several
            comparisons all have to hold.
        relation: "<" and ">": each is below (above) the next, by more than the margin.
            "within": they differ by less than the margin, in either direction, which
            says more than that no difference was found. "=": they are equal, as counts
            and promises are.
        margin: in the units of the metrics.
    """

    sentence: str
    metrics: tuple[str | float | bool, ...]
    relation: Relation
    margin: float = 0.0

    def __post_init__(self) -> None:
        if len(self.metrics) < 2 or not any(isinstance(m, str) for m in self.metrics):
            raise ValueError(f"the claim {self.sentence!r} compares no metric")
        if self.relation not in get_args(Relation):
            raise ValueError(f"the claim {self.sentence!r} has no relation")
        if self.margin < 0 or (self.relation == "within") > (self.margin > 0):
            raise ValueError(f"the claim {self.sentence!r} needs a margin above 0")


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A lesson of the course.

    Args:
        number: its number in the course, as "2.1.2"; of several, "2.0, 2.1".
        title: its subject, in a few words.
        question: what it answers.
        metrics: the metrics of result.json that matter, most important first. The
            terminal shows the first dozen.
        claims: what it claims, the main claim first; they name `metrics` alone.
        figures: what to see in each figure, those to look at first in front. A key is
            the name of a file in figures/, or a path as "samples/epoch*": the frames of
            a sequence.
        try_it: options of the script worth a try, and what to expect of each.
        mistakes: values of the option --mistake, and what each one fakes.

    Raises ValueError for a claim that names another metric.
    """

    number: str
    title: str
    question: str
    metrics: Sequence[str]
    claims: Sequence[Claim]
    figures: Mapping[str, str]
    try_it: Mapping[str, str] = field(default_factory=dict)
    mistakes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for claim in self.claims:
            for name in claim.metrics:
                if isinstance(name, str) and name not in self.metrics:
                    raise ValueError(
                        f"lesson {self.number} claims {claim.sentence!r} of "
                        f"{name!r}, which is none of its metrics"
                        + did_you_mean(name, self.metrics)
                    )

    def judge(self, metrics: Mapping[str, Any]) -> list["Judgement"]:
        """What a run's metrics, or those of a result.json, say of each claim."""
        return [judge_claim(claim, metrics) for claim in self.claims]

    def json(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What result.json says of the lesson and of its claims."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["claims"]
        fields["metrics"] = list(self.metrics)
        claims = [judgement._asdict() for judgement in self.judge(metrics)]
        return {"lesson": fields, "claims": claims}


class Judgement(NamedTuple):
    """What a run says of a claim; `evidence` holds the numbers that decide it."""

    sentence: str
    verdict: ClaimVerdict
    evidence: str


def shows(key: str, path: str) -> bool:
    """Whether a key of a lesson's `figures` is that of a file, "figures/curves.png"."""
    return fnmatch.fnmatchcase(path.removeprefix("figures/"), f"{key}.*")


def judge_claim(claim: Claim, metrics: Mapping[str, Any]) -> Judgement:
    """Whether a claim holds: by the 95 % interval of each difference a - b.

    Two metrics with a value for each of the same seeds are compared in pairs. Of others
    the interval is that for independent means (Zou and Donner 2008), which is too wide
    for metrics of the same cases: a run gives those their difference as a metric. A
    claim on less than four seeds is undetermined, whatever their values. Two numbers
    without an interval are compared as they are, and the evidence says so.
    """
    verdicts: list[ClaimVerdict] = []
    evidence = []
    for a, b in zip(claim.metrics, claim.metrics[1:], strict=False):
        verdict, text = _compare(claim, a, b, metrics)
        verdicts.append(verdict)
        evidence.append(text)
    overall: ClaimVerdict = "holds"
    if "fails" in verdicts:
        overall = "fails"
    elif "undetermined" in verdicts:
        overall = "undetermined"
    return Judgement(claim.sentence, overall, "; ".join(evidence))


def _compare(
    claim: Claim, a: Any, b: Any, metrics: Mapping[str, Any]
) -> tuple[ClaimVerdict, str]:
    """One comparison of a claim, and its numbers in words."""
    for name in (a, b):
        if isinstance(name, str) and name not in metrics:
            return "undetermined", f"{name} was not measured with these settings"
    names = [name if isinstance(name, str) else f"{name:g}" for name in (a, b)]
    values = [_value(metrics[n]) if isinstance(n, str) else n for n in (a, b)]
    if claim.relation == "=":
        shown = f"{names[0]}: {_text(values[0])}"
        return ("holds" if values[0] == values[1] else "fails"), shown
    for name, value in zip(names, values, strict=True):
        mean = value.mean if isinstance(value, Estimate) else value
        if not isinstance(mean, int | float) or not math.isfinite(mean):
            return "undetermined", f"{name}: {_text(value)}"
    d = difference(*values)
    which = 0 if isinstance(a, str) else 1  # of the two that is a metric
    shown = f"{names[which]}: {_text(values[which])}"
    if isinstance(a, str) and isinstance(b, str):
        shown = f"{a} minus {b}: {_text(d)}"
    if isinstance(values[0], Estimate) or isinstance(values[1], Estimate):
        shown += f", {d.n} {d.of}"
        if d.low is None or d.high is None:
            return "undetermined", f"{shown}: too few to tell, it takes {MIN_UNITS}"
    else:
        shown += ", single values" if isinstance(b, str) else ", a single value"
    low, high = (d.mean if end is None else end for end in (d.low, d.high))
    return _verdict(claim.relation, low, high, claim.margin), shown


def _verdict(
    relation: Relation, low: float, high: float, margin: float
) -> ClaimVerdict:
    """What the interval of a - b says of "a `relation` b by the margin"."""
    if relation == ">":
        return _verdict("<", -high, -low, margin)
    if relation == "within":
        if max(abs(low), abs(high)) < margin:
            return "holds"
        return "fails" if low >= margin or high <= -margin else "undetermined"
    if high < -margin:
        return "holds"
    return "fails" if low >= -margin else "undetermined"


def difference(a: Estimate | float, b: Estimate | float) -> Estimate:
    """a - b with its 95 % interval, in pairs where both have values for the same runs.

    Else by the intervals [l, u] of both, of independent means:
    a - b - sqrt((a - l_a)^2 + (u_b - b)^2), a - b + sqrt((u_a - a)^2 + (b - l_b)^2).
    Source: Zou and Donner 2008. Without an interval low and high are None.
    """
    if not isinstance(a, Estimate) and not isinstance(b, Estimate):
        return Estimate(a - b, None, None, 1, "")
    a, b = (v if isinstance(v, Estimate) else Estimate(v, v, v, 0, "") for v in (a, b))
    runs = a.of in RUNS and (a.n, a.of) == (b.n, b.of)  # cases may be of other sets
    if runs and a.values and b.values:
        gaps = np.subtract(a.values, b.values)
        return mean_over_runs(gaps, REAL, f"{a.of}, paired")
    n, of = (a.n, a.of) if b.n == 0 else (b.n, b.of)
    if a.n and b.n:
        n, of = min(a.n, b.n), a.of if a.of == b.of else f"{a.of} and {b.of}"
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(a.mean - b.mean, None, None, n, of)
    middle = a.mean - b.mean
    low = middle - math.hypot(a.mean - a.low, b.high - b.mean)
    high = middle + math.hypot(a.high - a.mean, b.mean - b.low)
    return Estimate(middle, low, high, n, of)


def paired_differences(
    metrics: Mapping[str, Any], pairs: Sequence[tuple[str, str]], of: str
) -> dict[str, Estimate]:
    """The metric "A - B: of" by "A - B", or else the difference of "A: of" and "B: of".

    Pairs that were not measured are left out.
    """
    result = {}
    for a, b in pairs:
        name, ends = f"{a} - {b}", (f"{a}: {of}", f"{b}: {of}")
        if f"{name}: {of}" in metrics:
            result[name] = metrics[f"{name}: {of}"]
        elif set(ends) <= set(metrics):
            result[name] = difference(*(metrics[end] for end in ends))
    return result


def _value(stored: Any) -> Any:
    """A metric of a run, or of result.json: an estimate, a number, or words."""
    if not isinstance(stored, Mapping):
        return stored
    mean = math.nan if stored["mean"] is None else stored["mean"]
    values = tuple(math.inf if v is None else v for v in stored.get("values") or ())
    ends = stored["low"], stored["high"]
    return Estimate(mean, *ends, stored["n"], stored["of"], values or None)


def _text(value: Any) -> str:
    if isinstance(value, Estimate):
        return " ".join(filter(None, estimate_texts(value.json())))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}"


def load_script(path: Path) -> ModuleType:
    """A script as a module; it is imported, not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and tyro look types up there
    spec.loader.exec_module(module)
    return module


def find_lessons(folder: Path) -> dict[str, Lesson]:
    """The LESSON of every script ch*.py of a folder, by script and in their order.

    Scripts are imported for it; one without a LESSON is no lesson.
    """
    scripts = {path.stem: load_script(path) for path in folder.glob("ch*.py")}
    lessons = {k: m.LESSON for k, m in scripts.items() if hasattr(m, "LESSON")}
    return dict(sorted(lessons.items(), key=lambda item: (item[1].number, item[0])))
