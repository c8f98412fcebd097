import json

import numpy as np
import pytest
import scipy.stats

from jaxstudy.statistics import Estimate, bootstrap_interval, mean_interval


def test_mean_interval_by_hand() -> None:
    # mean 3, s^2 = 10/4, t(0.975, 4) = 2.7764451052 from a printed table
    half = 2.7764451052 * np.sqrt(2.5 / 5)
    got = mean_interval(np.array([1, 2, 3, 4, 5]), "seeds")
    assert got[:3] == pytest.approx((3, 3 - half, 3 + half), rel=1e-10)
    assert (got.n, got.of) == (5, "seeds")


def test_mean_interval_covers_19_times_in_20() -> None:
    """Student's interval is exact for normal values, at any n: here n = 4."""
    values = np.random.default_rng(0).normal(2.0, 3.0, (2000, 4))
    intervals = [mean_interval(v, "runs") for v in values]
    covered = sum(i.low <= 2.0 <= i.high for i in intervals)
    low, high = scipy.stats.binom.interval(0.9999, 2000, 0.95)
    assert low <= covered <= high
    # z = 1.96 in the place of t would cover 0.855 of them
    assert scipy.stats.binom.ppf(0.9999, 2000, 0.855) < low


def efron_bca(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """The 95 % BCa interval of a mean, written out from Efron 1987, section 4."""
    rng = np.random.default_rng(seed)
    n, mean = len(values), values.mean()
    means = np.sort(values[rng.integers(0, n, (resamples, n))].mean(1))
    normal = scipy.stats.norm
    z0 = normal.ppf((np.sum(means < mean) + np.sum(means <= mean)) / 2 / resamples)
    without = (values.sum() - values) / (n - 1)
    d = without.mean() - without
    a = np.sum(d**3) / (6 * np.sum(d**2) ** 1.5)
    z = z0 + normal.ppf([0.025, 0.975])
    return tuple(np.quantile(means, normal.cdf(z0 + z / (1 - a * z))))


@pytest.mark.parametrize("kind", ["exponential", "zeros and ones"])
def test_bootstrap_interval_is_efrons(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(size=60)
    if kind == "zeros and ones":
        values = (values > 1.2).astype(float)
    got = bootstrap_interval(values, "rows")
    want = [efron_bca(values, seed, 9999) for seed in range(8)]
    # scipy draws other resamples: as far off as one set of draws is from another
    spread = np.std(want, axis=0, ddof=1)
    assert got.mean == pytest.approx(values.mean(), rel=1e-12)
    assert np.all(np.abs([got.low, got.high] - np.mean(want, 0)) < 5 * spread + 1e-12)
    # and the percentile interval, without the two corrections, is farther off
    if kind == "exponential":
        assert got.high - got.mean > 1.1 * (got.mean - got.low)


def test_bootstrap_interval_is_a_function_of_its_seed() -> None:
    values = np.random.default_rng(2).normal(size=30)
    first = bootstrap_interval(values, "rows", seed=3, resamples=999)
    assert bootstrap_interval(values, "rows", seed=3, resamples=999) == first
    assert bootstrap_interval(values, "rows", seed=4, resamples=999) != first
    assert first.low < first.mean < first.high


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval(np.full(7, 0.25), "rows") == (0.25, 0.25, 0.25, 7, "rows")
    assert mean_interval(np.full(7, 0.25), "rows") == (0.25, 0.25, 0.25, 7, "rows")


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2)])
def test_too_few_values_are_refused(interval: object, shape: tuple[int, ...]) -> None:
    assert callable(interval)
    with pytest.raises(ValueError, match="needs two values"):
        interval(np.zeros(shape), "runs")


def test_an_estimate_in_json_and_in_text() -> None:
    estimate = Estimate(0.5, 0.25, 0.75, 10, "seeds")
    fields = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 10, "of": "seeds"}
    assert json.loads(json.dumps(estimate.json())) == fields
    assert str(estimate) == "0.5 [0.25, 0.75]"
    assert str(Estimate(2 / 3, 1e-7 / 3, 1e5 / 3, 10, "seeds")) == (
        "0.6667 [3.333e-08, 3.333e+04]"
    )
    measured = mean_interval(np.array([1, 2], np.float32), "runs")
    assert json.loads(json.dumps(measured.json()))["n"] == 2  # no numpy scalars
