"""Estimates with intervals, and comparisons of methods over seeds, from scipy.

Lower is better for losses and times; +inf is a run that diverged or never got there:
the worst value there is, ranked and counted like any other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are imported where they are first used


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


def at_best_epoch(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Test values [...] of the epoch with the best validation value, of [epochs, ...].

    The first of equal ones. Raises ValueError where the shapes differ.
    """
    if validation.shape != test.shape:
        raise ValueError(f"{validation.shape} and {test.shape} are not of one training")
    best = validation.argmax(0)
    return np.take_along_axis(test, best[None], 0)[0]


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


def _stratified_interval(
    statistic: Callable[..., np.ndarray],
    data: tuple[np.ndarray, ...],
    of: str,
    seed: int,
    resamples: int,
) -> Estimate:
    """Percentile interval of statistic(*data); the n of [strata, n] stay together."""
    strata, n = data[0].shape
    rows = np.arange(strata)[:, None]

    def resampled(*runs: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = np.stack(runs, axis=-2)  # [resamples, strata, n]
        return statistic(*(x[rows, chosen] for x in data))

    # A sample of scipy's is the runs of one stratum, by number: samples are resampled
    # each by itself, and one number picks the same run in every array of data.
    interval = scipy.stats.bootstrap(
        (np.arange(n),) * strata, resampled, n_resamples=resamples, batch=1000,
        vectorized=True, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(
        float(statistic(*data)), float(interval.low), float(interval.high), n, of
    )


def iqm_interval(
    scores: np.ndarray, of: str, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """Interquartile mean of all scores [strata, n] and its bootstrap interval.

    The n of each stratum are resampled within it; the interval is the percentile one.
    Raises ValueError for other shapes, n < 2, or scores that are not finite. Source:
    Agarwal et al. 2021, section 4.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or len(scores) < 1 or scores.shape[1] < 2:
        raise ValueError(f"scores are [strata, two or more], not {scores.shape}")
    if not np.all(np.isfinite(scores)):
        raise ValueError("an interquartile mean's interval needs finite scores")

    def iqm(x: np.ndarray) -> np.ndarray:
        pooled = x.reshape(*x.shape[:-2], -1)
        return scipy.stats.trim_mean(pooled, 0.25, axis=-1)

    return _stratified_interval(iqm, (scores,), of, seed, resamples)


def _losses(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a loss is NaN; a run that diverged counts as inf")
    return a, b


def _strata(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (x[None] if x.ndim == 1 else x for x in _losses(a, b))
    if not a.ndim == b.ndim == 2 or len(a) != len(b) or not a.size or not b.size:
        raise ValueError(f"losses are [strata, n], not {a.shape} and {b.shape}")
    return a, b


def _probability_better(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # U of b against a counts the pairs with b > a, ties half. Its own p value goes
    # unused, and the asymptotic one costs least.
    test = scipy.stats.mannwhitneyu(b, a, axis=-1, method="asymptotic")
    return (test.statistic / (a.shape[-1] * b.shape[-1])).mean(-1)


def probability_better(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that a run of A has a lower loss than a run of B.

    The mean over strata of P(A < B) + P(A = B) / 2, each over all pairs of runs of
    a [strata, n] and b [strata, m]: Mann and Whitney's U / (n m). 1-D is one stratum;
    inf ties with inf. Raises ValueError for other shapes, no runs, or NaN. Source:
    Agarwal et al. 2021, section 4.
    """
    return float(_probability_better(*_strata(a, b)))


def probability_better_interval(
    a: np.ndarray, b: np.ndarray, of: str, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """probability_better of a and b [strata, n] with its bootstrap interval.

    a and b are paired by seed: the n of each stratum are resampled jointly for both,
    within the stratum; the interval is the percentile one. 1-D is one stratum. Raises
    ValueError for other or unequal shapes, n < 2, or NaN.
    """
    a, b = _strata(a, b)
    if a.shape != b.shape or a.shape[1] < 2:
        raise ValueError(f"two paired runs or more, not {a.shape} and {b.shape}")
    return _stratified_interval(_probability_better, (a, b), of, seed, resamples)


class PairedTest(NamedTuple):
    """A two-sided p value, and the smallest that its n pairs could have given."""

    p: float
    smallest_p: float
    n: int
    exact: bool


def paired_test(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Sign-flip test of the signed ranks of a - b, for a and b [n] paired by seed.

    The statistic is sum_i sign(d_i) rank(|d_i|), d = a - b, and both its tails count.
    Ties have their average rank; a difference of 0 (inf - inf too) is ranked with the
    others and then counts 0. Exact over all 2^n flips for n <= 16, where smallest_p is
    2 / 2^n; beyond, 99,999 random flips, the same at every call, and a tail's p is
    (1 + count) / (1 + 99,999). Raises ValueError for other shapes, n < 2, or NaN.
    Source: Wilcoxon 1945; zeros as in Pratt 1959.
    """
    a, b = _losses(a, b)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise ValueError(f"two pairs or more, [n] and [n], not {a.shape} and {b.shape}")
    n, flips = len(a), 99_999
    exact = 2**n <= flips  # then scipy takes each of the 2^n once
    d = np.subtract(a, b, out=np.zeros(n), where=a != b)
    # Ranks are multiples of 1/2 and their sums exact, so sums that tie are equal.
    signed_ranks = np.sign(d) * scipy.stats.rankdata(np.abs(d))
    p = scipy.stats.permutation_test(
        (signed_ranks,), np.sum, permutation_type="samples", vectorized=True,
        n_resamples=flips, batch=4096, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    return PairedTest(float(p), 2 / 2**n if exact else 2 / (flips + 1), n, exact)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p values, [n] in the order of p [n].

    With p_(1) <= ... <= p_(n): max_{j <= i} min(1, (n - j + 1) p_(j)) for p_(i). Raises
    ValueError for other shapes or values outside [0, 1]. Source: Holm 1979.
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError("p values are [n], each from 0 to 1")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order])
    return np.minimum(adjusted, 1)


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
