"""Estimates with intervals, from scipy."""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats


class Estimate(NamedTuple):
    """A mean with its 95 % interval; `n` and `of` say over what ("10 seeds")."""

    mean: float
    low: float
    high: float
    n: int
    of: str

    def json(self) -> dict[str, Any]:
        """As it stands in result.json."""
        return self._asdict()

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: np.ndarray, of: str) -> Estimate:
    """Mean and Student's t interval, m +- t(0.975, n - 1) s / sqrt(n), of values [n].

    Raises ValueError for fewer than two values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs two values or more, not {values.shape}")
    mean, error = values.mean(), scipy.stats.sem(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return Estimate(
        float(mean), float(mean - half), float(mean + half), len(values), of
    )


def bootstrap_interval(
    values: np.ndarray, of: str, seed: int = 0, resamples: int = 9999
) -> Estimate:
    """Mean and bias-corrected accelerated bootstrap interval of values [n].

    Efron 1987, as in scipy.stats.bootstrap; values that are all equal get an interval
    of width 0. Raises ValueError for fewer than two values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs two values or more, not {values.shape}")
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean, len(values), of)
    interval = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(mean, float(interval.low), float(interval.high), len(values), of)
