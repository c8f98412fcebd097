"""Numbers and metrics of a run as text, for pages and tables."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxstudy.runs.statistics import Estimate, estimate_texts


class Value(NamedTuple):
    """A metric as text, and as an estimate where it can be drawn."""

    text: str
    interval: str = ""
    over: str = ""
    estimate: Estimate | None = None


def value_of(value: Any) -> Value:
    """A metric of a result; a number that has no interval is an estimate of n = 1."""
    if not isinstance(value, dict):
        mean, text = _finite(value), "not finite" if value is None else plain(value)
        drawn = None if mean is None else Estimate(mean, None, None, 1, "")
        return Value(text, estimate=drawn)
    mean, low, high = (_finite(value[name]) for name in ("mean", "low", "high"))
    values = [v for v in map(_finite, value.get("values", ())) if v is not None]
    texts = estimate_texts({**value, "mean": mean, "low": low, "high": high})
    over, drawn = f"{value['n']} {value['of']}", None
    if mean is not None:
        drawn = Estimate(mean, low, high, value["n"], value["of"], tuple(values))
    return Value(*texts, over, drawn)


def _finite(value: Any) -> float | None:
    number = number_of(value)
    return None if math.isnan(number) else number


def number_of(value: Any) -> float:
    """A float; NaN for what is no number, not finite, or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    size = abs(value)
    return math.nan if not size < 1e100 else float(value) if size > 1e-100 else 0.0


def plain(value: Any) -> str:
    """A JSON value for people: numbers to four digits, but whole ones in full."""
    number = number_of(value)
    if math.isnan(number):
        return value if isinstance(value, str) else json.dumps(value)
    whole = number == round(number) or abs(number) >= 1000
    return f"{number:,.0f}" if whole and abs(number) < 1e12 else f"{number:.4g}"


def duration(seconds: Any) -> str:
    """Seconds as "22.7 s", "3 min 05 s" or "2 h 10 min"; empty where not known."""
    value = number_of(seconds)
    if not value >= 60:
        return "" if math.isnan(value) else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours = f"{minutes // 60} h {minutes % 60:02d} min"
    return hours if minutes >= 60 else f"{minutes} min {rest:02d} s"


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested fields as "outer.inner": text; numbers in full, as the JSON has them."""
    out = {}
    for name, value in record.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            out[prefix + name] = text
    return out
