"""Estimates with intervals, and comparisons of methods over seeds, from scipy.

Lower is better for losses and times; +inf is a run that diverged or never got there:
the worst value there is, ranked and counted like any other.

A 95 % interval is chosen by what is averaged, here and nowhere else; tests/ simulate
the coverage of each.

- Runs (seeds, repeats): Student's t, also of differences that are paired by seed.
- Cases (rows, images): Wilson's for shares, Student's t for other values. Cases that
  are not independent, such as passengers of one ticket, are given by groups.
- An interquartile mean over seeds: the expanded percentile bootstrap.
- Fewer than four units: no interval, the values themselves.

An interval is cut to the range of its metric, in which the true mean lies: that loses
no coverage.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are imported where they are first used

Range = tuple[float, float]  # the least and the largest value that a metric can have
SHARE: Range = (0.0, 1.0)
SHARE_DIFFERENCE: Range = (-1.0, 1.0)
NONNEGATIVE: Range = (0.0, math.inf)  # losses, errors, distances, perplexities
REAL: Range = (-math.inf, math.inf)
MIN_UNITS = 4  # of an interval
MAX_VALUES = 100  # as many are kept beside their mean, so that it can be recomputed


class Estimate(NamedTuple):
    """A mean with its 95 % interval; `n` and `of` say over what ("10 seeds").

    Without an interval low and high are None. `values` are what was averaged, where
    that is at most MAX_VALUES numbers.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    of: str
    values: tuple[float, ...] | None = None

    def json(self) -> dict[str, Any]:
        """As it stands in result.json."""
        fields = self._asdict()
        if self.values is None:
            del fields["values"]
        return fields


def estimate_texts(estimate: Mapping[str, Any]) -> tuple[str, str]:
    """An estimate in result.json as it is shown: ("0.693", "[0.650, 0.733]").

    Mean and interval, to two digits of the interval's half-width; where there is none,
    the values that were averaged.
    """
    mean, low, high = (
        v if v is not None and math.isfinite(v) else None
        for v in (estimate[name] for name in ("mean", "low", "high"))
    )
    if mean is None or low is None or high is None:
        values = estimate.get("values") or ()
        each = ", ".join("-" if v is None else f"{v:.4g}" for v in values)
        shown = "not finite" if mean is None else f"{mean:.4g}"
        return shown, f"(each: {each})" if each else ""
    half = (high - low) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else math.inf
    form = f",.{digits}f" if digits <= 6 else ".4g"
    return format(mean, form), f"[{low:{form}}, {high:{form}}]"


def mean_over_runs(values: np.ndarray, within: Range, of: str = "seeds") -> Estimate:
    """Mean of a metric over independent runs [n], with Student's t interval.

    m +- t(0.975, n - 1) s / sqrt(n), cut to the metric's range `within`. Raises
    ValueError for no values or values outside that range.
    """
    return _estimate(values, of, within, None, _student)


def mean_over_cases(
    values: np.ndarray, of: str, within: Range, groups: np.ndarray | None = None
) -> Estimate:
    """Mean of a metric over cases [n] of a data set, with its interval.

    Shares (`within` is SHARE): Wilson's score interval for the effective number of
    cases, p (1 - p) / var(p), which is n for independent zeros and ones (Wilson 1927;
    Kish 1965). Other values: Student's t. Cases of the same one of `groups` [n] may
    depend on each other: variances are those of sums over groups (Liang and Zeger
    1986). Raises ValueError for no values or values outside the range `within`.
    """
    interval = _wilson if within == SHARE else _student
    return _estimate(values, of, within, groups, interval)


def _estimate(
    values: np.ndarray,
    of: str,
    within: Range,
    groups: np.ndarray | None,
    interval: Callable[[float, float, int], tuple[float, float]],
) -> Estimate:
    """Mean of values [n] and, where there is one, the interval cut to their range.

    The interval is a function of the mean, of its variance, and of the number of
    independent units: the groups, or all values. Variances lack the correction for
    few units.
    """
    values = _checked(values, within)
    n, mean = len(values), float(values.mean())
    _, group = np.unique(
        np.arange(n) if groups is None else groups, return_inverse=True
    )
    units = int(group.max()) + 1
    low = high = None
    if units >= MIN_UNITS and math.isfinite(mean):
        variance = np.sum(np.bincount(group, values - mean) ** 2) / n**2
        ends = interval(mean, float(variance), units)
        low, high = (float(np.clip(end, *within)) for end in ends)
    return Estimate(mean, low, high, n, of, _kept(values))


def _kept(values: np.ndarray) -> tuple[float, ...] | None:
    return tuple(values.tolist()) if len(values) <= MAX_VALUES else None


def _checked(values: np.ndarray, within: Range) -> np.ndarray:
    """Values [n] as numbers of 64 bits, rounding cut off at the ends of the range."""
    values, (least, most) = np.asarray(values, np.float64), within
    if values.ndim != 1 or not values.size:
        raise ValueError(f"a mean is of values [n], not {values.shape}")
    if np.any(values < least - 1e-6) or np.any(values > most + 1e-6):
        raise ValueError(f"a value is outside the metric's range {least:g} to {most:g}")
    return values.clip(least, most)


def _student(mean: float, variance: float, units: int) -> tuple[float, float]:
    error = math.sqrt(variance * units / (units - 1))
    half = scipy.special.stdtrit(units - 1, 0.975) * error
    return mean - half, mean + half


def _wilson(mean: float, variance: float, units: int) -> tuple[float, float]:
    # imported here, since it takes long and few commands need it
    from statsmodels.stats.proportion import proportion_confint

    n = mean * (1 - mean) / variance if variance > 0 else units
    low, high = proportion_confint(mean * n, n, method="wilson")
    return float(low), float(high)  # pyright: ignore[reportArgumentType]


def at_best_epoch(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Test values [...] of the epoch with the best validation value, of [epochs, ...].

    The first of equal ones. Raises ValueError where the shapes differ.
    """
    if validation.shape != test.shape:
        raise ValueError(f"{validation.shape} and {test.shape} are not of one training")
    best = validation.argmax(0)
    return np.take_along_axis(test, best[None], 0)[0]


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of all values, of any shape.

    The floor(N / 4) lowest and the floor(N / 4) highest of N are left out. It is inf
    when more values than that are. Raises ValueError for no values, NaN or -inf.
    Source: Agarwal et al. 2021, section 4.
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.all(values > -np.inf):
        raise ValueError("a mean needs values, each a number or +inf")
    return float(scipy.stats.trim_mean(values.ravel(), 0.25))


def interquartile_mean_over_seeds(
    scores: np.ndarray, within: Range, seed: int = 0, resamples: int = 5000
) -> Estimate:
    """Interquartile mean of all scores [problems, n seeds], with its interval.

    The expanded percentile bootstrap: seeds are drawn with replacement, the same for
    all problems, and the interval ends at the quantiles a and 1 - a of the means. Where
    a normal interval takes 0.025, a = Phi(-sqrt(n / (n - 1)) t(0.975, h - 1)) is for
    the few seeds, of which h = n - 2 floor(n / 4) are not trimmed. Raises ValueError
    for other shapes, or scores that are not finite or outside the range `within`.
    Sources: Agarwal et al. 2021, section 4; Hesterberg 2015, section 5.3; Tukey and
    McLaughlin 1963.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not np.all(np.isfinite(scores)):
        raise ValueError(f"scores are finite, [problems, seeds], not {scores.shape}")
    values, n = _checked(scores.ravel(), within), scores.shape[1]
    low = high = None
    if n >= MIN_UNITS:
        drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
        pooled = scores[:, drawn].swapaxes(0, 1).reshape(resamples, -1)
        means = scipy.stats.trim_mean(pooled, 0.25, axis=-1)
        t = scipy.special.stdtrit(n - 2 * (n // 4) - 1, 0.975)
        a = scipy.special.ndtr(-math.sqrt(n / (n - 1)) * t)
        low, high = map(float, np.quantile(means, [a, 1 - a]))
    return Estimate(interquartile_mean(values), low, high, n, "seeds", _kept(values))


class PairedTest(NamedTuple):
    """A two-sided p value, and the smallest that its n pairs could have given.

    `effect` is the matched-pairs rank-biserial correlation, from -1 to 1: the statistic
    of the test, as a share of the largest that it could have been.
    """

    p: float
    effect: float
    smallest_p: float
    n: int
    exact: bool


def paired_test(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Sign-flip test of the signed ranks of a - b, for a and b [n] paired by seed.

    The statistic is sum_i sign(d_i) rank(|d_i|), d = a - b, and both its tails count;
    divided by n (n + 1) / 2 it is the effect, above 0 where a is the larger (Kerby
    2014).
    Ties have their average rank; a difference of 0 (inf - inf too) is ranked with the
    others and then counts 0. Exact over all 2^n flips for n <= 16, where smallest_p is
    2 / 2^n; beyond, 99,999 random flips, the same at every call, and a tail's p is
    (1 + count) / (1 + 99,999). Raises ValueError for other shapes, n < 2, or NaN.
    Source: Wilcoxon 1945; zeros as in Pratt 1959.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a loss is NaN; a run that diverged counts as inf")
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError(f"two pairs or more, [n] and [n], not {a.shape} and {b.shape}")
    n, flips = len(a), 99_999
    exact = 2**n <= flips
    d = np.subtract(a, b, out=np.zeros(n), where=a != b)
    # Ranks are multiples of 1/2 and their sums exact, so sums that tie are equal.
    signed_ranks = np.sign(d) * scipy.stats.rankdata(np.abs(d))
    effect = float(signed_ranks.sum() / (n * (n + 1) / 2))
    if exact:
        p = _exact_p(signed_ranks)
    else:
        p = scipy.stats.permutation_test(
            (signed_ranks,), np.sum, permutation_type="samples", vectorized=True,
            n_resamples=flips, batch=4096, rng=np.random.default_rng(0),
        ).pvalue  # fmt: skip
    smallest = 2 / 2**n if exact else 2 / (flips + 1)
    return PairedTest(float(p), effect, smallest, n, exact)


def _exact_p(signed_ranks: np.ndarray) -> float:
    """The share of all 2^n flips of signs with a sum as far from 0, both tails.

    By the distribution of the sum, rank by rank: scipy goes through all 2^n.
    """
    doubled = np.abs(2 * signed_ranks).astype(int)  # ties have halves
    total, counts = int(doubled.sum()), np.zeros(2 * int(doubled.sum()) + 1)
    counts[total] = 1.0
    for rank in doubled:
        counts = np.roll(counts, rank) + np.roll(counts, -rank)
    sums = np.abs(np.arange(-total, total + 1))
    far = counts[sums >= abs(round(2 * signed_ranks.sum()))].sum()
    return float(min(1.0, far / counts.sum()))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p values, [n] in the order of p [n].

    With p_(1) <= ... <= p_(n): max_{j <= i} min(1, (n - j + 1) p_(j)) for p_(i). Raises
    ValueError for other shapes or values outside [0, 1]. Source: Holm 1979.
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p values are [n], each from 0 to 1")
    # imported here, since it takes long and few commands need it
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p, method="holm")[1])


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two samples.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) for means m and covariances S of
    features [N, D] and [M, D]: 0 for the same moments, and larger for few rows, as
    the moments of few differ by chance. Raises ValueError for other shapes, fewer than
    two rows, or values that are not finite. Source: Dowson and Landau 1982; of images,
    Heusel et al. 2017.
    """
    a, b = (np.asarray(x, np.float64) for x in (features_a, features_b))
    if not a.ndim == b.ndim == 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features are [2 or more, D], not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a distance needs finite features")

    def root(x: np.ndarray) -> np.ndarray:
        """R with R R^T the covariance, of any rank."""
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x, rowvar=False)))
        return vectors * np.sqrt(np.maximum(values, 0))  # rounding makes some negative

    of_a, of_b = root(a), root(b)
    # the trace of (S_a S_b)^(1/2) is the sum of the singular values of R_a^T R_b
    product = np.linalg.norm(of_a.T @ of_b, "nuc")
    traces = np.sum(of_a**2) + np.sum(of_b**2)
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + traces - 2 * product
    return float(max(0.0, distance))


def _ratios(times: np.ndarray) -> np.ndarray:
    """times / best time of any method, [methods, problems]; inf where never reached."""
    times = np.asarray(times, np.float64)
    if times.ndim != 2 or not times.size or not np.all(times > 0):
        raise ValueError("times are [methods, problems], each positive or inf")
    never = np.full(times.shape, np.inf)  # also where nobody got there: inf / inf
    return np.divide(times, times.min(0), out=never, where=np.isfinite(times))


def performance_profile(times: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Share of problems on which a method's time is within tau of the best method's.

    rho_m(tau) = mean_p [t_mp / min_k t_kp <= tau], [methods, taus], of times [methods,
    problems] and taus [taus]; a problem that nobody solves counts 0 for all. Raises
    ValueError for other shapes or times that are not positive. Source: Dolan and More
    2002, section 2.
    """
    ratios, taus = _ratios(times), np.asarray(taus, np.float64)
    if taus.ndim != 1:
        raise ValueError(f"taus are [taus], not {taus.shape}")
    # t / best against tau, not t against tau * best, which can round to below t
    within = ratios[:, :, None] <= taus  # [methods, problems, taus]
    return (within & np.isfinite(ratios)[:, :, None]).mean(1)


def algoperf_score(times: np.ndarray, tau_max: float = 4.0) -> np.ndarray:
    """Mean of the performance profile over tau from 1 to tau_max, [methods].

    1 / (tau_max - 1) int_1^tau_max rho_m(tau) dtau = mean_p max(0, tau_max - r_mp) /
    (tau_max - 1), where r_mp is t_mp / min_k t_kp, of times [methods, problems]. Raises
    ValueError for other shapes, times that are not positive, or tau_max not above 1.
    Source: Dahl et al. 2023, the benchmark score.
    """
    if not 1 < tau_max < np.inf:
        raise ValueError(f"tau_max is finite and above 1, not {tau_max}")
    return np.maximum(0, tau_max - _ratios(times)).mean(1) / (tau_max - 1)
