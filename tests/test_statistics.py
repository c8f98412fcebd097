import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxstudy.statistics import (
    Estimate,
    algoperf_score,
    at_best_epoch,
    bootstrap_interval,
    frechet_distance,
    holm,
    interquartile_mean,
    iqm_interval,
    mean_interval,
    paired_test,
    performance_profile,
    probability_better,
    probability_better_interval,
)

inf, nan = math.inf, math.nan
some = settings(max_examples=60, deadline=None)
# few values, so that there are ties, and runs that diverged
losses = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, inf])


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


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([7, 1, 2, 100, 4, 5, 6, -50])) == 4.25
    assert interquartile_mean(np.array([[inf, 1], [2, 4]])) == 3  # one of 4 is cut
    assert interquartile_mean(np.array([inf, 1, inf, 4])) == inf
    assert interquartile_mean(np.array([1, 5, 9])) == 5  # nothing is cut from 3


@some
@given(st.lists(st.floats(-1e6, 1e6) | st.just(inf), min_size=1, max_size=13))
def test_interquartile_mean_weighs_the_sorted_values(values: list[float]) -> None:
    cut = Fraction(len(values), 4) // 1
    weights = [cut <= i < len(values) - cut for i in range(len(values))]
    kept = [v for v, w in zip(sorted(values), weights, strict=True) if w]
    want = sum(kept) / sum(weights)
    assert interquartile_mean(np.array(values)) == pytest.approx(want, abs=1e-7)


def quantiles(resampled: list[float] | np.ndarray) -> np.ndarray:
    return np.quantile(resampled, [0.025, 0.975])


def test_iqm_interval_resamples_within_strata() -> None:
    rng = np.random.default_rng(5)
    scores = np.array([[0], [1], [4]]) + rng.exponential(size=(3, 6))

    def by_hand(seed: int) -> np.ndarray:
        draw, means = np.random.default_rng(seed).integers, []
        for _ in range(2000):
            pooled = np.sort([row[draw(0, 6, 6)] for row in scores], axis=None)
            means.append(pooled[4:-4].mean())
        return quantiles(means)

    got = iqm_interval(scores, "seeds")
    want = [by_hand(seed) for seed in range(6)]
    spread = np.std(want, axis=0, ddof=1)
    assert np.all(np.abs([got.low, got.high] - np.mean(want, 0)) < 5 * spread)
    assert got.mean == pytest.approx(np.sort(scores, None)[4:-4].mean(), rel=1e-12)
    assert (got.n, got.of) == (6, "seeds")
    # the means of the strata would be resampled too, were all 18 pooled before
    level = np.repeat([[0.1], [2.3], [4.5], [5.1]], 6, axis=1)
    got = iqm_interval(level, "seeds", resamples=200)
    assert got.low == got.mean == got.high == pytest.approx((2.3 + 4.5) / 2)


def test_probability_better_interval_resamples_pairs_within_strata() -> None:
    rng = np.random.default_rng(6)
    seeds = np.array([[0], [3]]) + rng.normal(size=(2, 7))
    a, b = seeds + rng.normal(size=(2, 2, 7)) / 3 + [[[0]], [[0.4]]]
    a[0, 2] = b[1, 3] = inf

    def by_hand(seed: int) -> np.ndarray:
        draw, means = np.random.default_rng(seed).integers, []
        for _ in range(2000):
            shares = []
            for x, y in zip(a, b, strict=True):
                i = draw(0, 7, 7)
                x, y = x[i][:, None], y[i]
                shares.append(np.mean(x < y) + np.mean(x == y) / 2)
            means.append(np.mean(shares))
        return quantiles(means)

    got = probability_better_interval(a, b, "seeds")
    want = [by_hand(seed) for seed in range(6)]
    spread = np.std(want, axis=0, ddof=1)
    assert np.all(np.abs([got.low, got.high] - np.mean(want, 0)) < 5 * spread + 1e-9)
    assert got.mean == probability_better(a, b)
    assert (got.n, got.of) == (7, "seeds")
    # A run against itself is a tie in every resample, if the same runs are drawn.
    same = probability_better_interval(a[0], a[0], "seeds", resamples=200)
    assert same == (0.5, 0.5, 0.5, 7, "seeds")


def test_stratified_intervals_are_functions_of_their_seed() -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 3, 8))
    for interval in (
        lambda seed: iqm_interval(a, "runs", seed=seed, resamples=500),
        lambda seed: probability_better_interval(a, b, "runs", seed, resamples=500),
    ):
        first = interval(3)
        assert interval(3) == first != interval(4)
        assert first.low < first.mean < first.high


def assert_covered(intervals: list[Estimate], truth: float) -> None:
    """Percentile intervals of 12 runs cover less than 0.95, but not by much."""
    n, hits = len(intervals), sum(i.low <= truth <= i.high for i in intervals)
    low, high = scipy.stats.binom.ppf([1e-4, 1 - 1e-4], n, [0.88, 0.96])
    assert low <= hits <= high


def test_iqm_interval_covers() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([[-2], [0], [2]]) + rng.normal(size=(300, 3, 12))
    assert_covered([iqm_interval(s, "runs", resamples=500) for s in scores], 0)


def test_probability_better_interval_covers() -> None:
    rng = np.random.default_rng(0)
    seeds, own = rng.normal(size=(300, 1, 2, 12)), rng.normal(size=(300, 2, 2, 12))
    pairs = seeds + own + [[[0]], [[0.8]]]
    # runs of different seeds: a variance of 2 each
    truth = float(scipy.stats.norm.cdf(0.8 / 2))
    intervals = [
        probability_better_interval(a, b, "runs", resamples=500) for a, b in pairs
    ]
    assert_covered(intervals, truth)


def test_iqm_interval_of_equal_scores_has_no_width() -> None:
    for value in (0.1, 0.25, -3e7):
        got = iqm_interval(np.full((3, 7), value), "seeds", resamples=100)
        assert got.low == got.mean == got.high == pytest.approx(value, rel=1e-14)


@st.composite
def runs(draw: st.DrawFn) -> list[list[list[float]]]:
    """Losses of two methods, [strata, n] and [strata, m]."""
    strata, n, m = (draw(st.integers(1, high)) for high in (3, 5, 5))
    rows = [st.lists(losses, min_size=k, max_size=k) for k in (n, m)]
    return [draw(st.lists(row, min_size=strata, max_size=strata)) for row in rows]


@some
@given(runs())
def test_probability_better_counts_pairs(methods: list[list[list[float]]]) -> None:
    shares = []
    for row_a, row_b in zip(*methods, strict=True):
        wins = [(x < y) + (x == y) / 2 for x in row_a for y in row_b]
        shares.append(sum(wins) / len(wins))
    want = sum(shares) / len(shares)
    a, b = map(np.array, methods)
    assert probability_better(a, b) == pytest.approx(want, abs=1e-12)
    assert probability_better(b, a) == pytest.approx(1 - want, abs=1e-12)
    assert probability_better(a[0], b[0]) == pytest.approx(shares[0], abs=1e-12)


def test_lower_is_better_and_inf_is_worst() -> None:
    assert probability_better(np.array([1, 2]), np.array([3, inf])) == 1
    assert probability_better(np.array([inf]), np.array([3.0])) == 0
    assert probability_better(np.array([inf]), np.array([inf])) == 0.5


def wilcoxon(d: np.ndarray) -> float:
    """The exact two-sided p value by scipy's recursion; no ties, no zeros."""
    test: Any = scipy.stats.wilcoxon(d, method="exact")
    return test.pvalue


def signed_ranks_twice(d: list[float]) -> list[int]:
    """2 sign(d_i) rank(|d_i|), which is whole, from the definition of a rank."""
    size = [abs(x) for x in d]
    twice = [2 * sum(y < x for y in size) + size.count(x) + 1 for x in size]
    return [t * ((x > 0) - (x < 0)) for t, x in zip(twice, d, strict=True)]


@some
@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=8))
@example([(inf, inf), (inf, inf)])
@example([(1.0, 2.0), (0.0, inf), (inf, inf), (1.0, 1.0), (2.0, 3.5), (3.5, 0.0)])
def test_paired_test_enumerates_all_flips(pairs: list[tuple[float, float]]) -> None:
    terms = signed_ranks_twice([0 if x == y else x - y for x, y in pairs])
    sums = [
        sum(s * t for s, t in zip(signs, terms, strict=True))
        for signs in itertools.product([1, -1], repeat=len(pairs))
    ]
    want = sum(abs(t) >= abs(sum(terms)) for t in sums) / 2 ** len(pairs)
    a, b = np.array(pairs).T
    assert paired_test(a, b) == (want, 2 / 2 ** len(pairs), len(pairs), True)


@some
@given(
    st.lists(
        st.floats(-1e9, 1e9).filter(bool), min_size=2, max_size=11, unique_by=abs
    )
)  # fmt: skip
def test_paired_test_without_ties_is_wilcoxons(d: list[float]) -> None:
    got = paired_test(np.array(d), np.zeros(len(d)))
    assert got.p == pytest.approx(wilcoxon(np.array(d)), rel=1e-9)


@pytest.mark.parametrize(
    "size",
    [[1, 2, 3, 4, 5, 6], [0.1, 0.1, 0.2, 0.2, 0.2, 0.7], [0, 0, 1, 2, inf, inf]],
    ids=["distinct", "ties", "zeros and infs"],
)
def test_paired_test_is_valid_under_its_null(size: list[float]) -> None:
    """P(p <= alpha) <= alpha for any alpha, and equal at the p that occur."""
    flips = np.array(list(itertools.product([1, -1], repeat=len(size))))
    zero = np.zeros(len(size))
    p = np.array([paired_test(d, zero).p for d in flips * size])
    assert np.array_equal(p, [np.mean(p <= alpha) for alpha in p])
    assert len(set(p)) >= 5  # and not all are 1


def test_more_than_16_pairs_are_flipped_at_random() -> None:
    rng = np.random.default_rng(0)
    tails = []
    for n in (17, 20, 24):
        d = rng.normal(0.3, 1, n)
        got = paired_test(d, np.zeros(n))
        assert got[1:] == (2e-5, n, False)
        assert paired_test(d, np.zeros(n)) == got
        q = wilcoxon(d) / 2
        tails.append((got.p / 2 - q) / math.sqrt(q * (1 - q) / 99_999))
    assert np.all(np.abs(tails) < 5)


@pytest.mark.parametrize("n", [2, 3, 7, 16, 40])
def test_the_smallest_p_is_attained(n: int) -> None:
    """By pairs of one sign: none of the random flips of 40 would be as extreme."""
    worse, better = 1.0 + np.arange(n), np.zeros(n)
    for got in (paired_test(worse, better), paired_test(better, worse)):
        assert got.p == got.smallest_p == (2 / 2**n if n <= 16 else 2 / 100_000)
        assert (got.n, got.exact) == (n, n <= 16)


def test_holm_by_hand() -> None:
    got = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert got == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]


@some
@given(
    st.lists(
        st.sampled_from([0.0, 0.01, 0.02, 0.2, 0.3, 0.9]) | st.floats(0, 1),
        min_size=1,
        max_size=6,
    )
)
def test_holm_is_closed_bonferroni(p: list[float]) -> None:
    """p_i is adjusted to the largest Bonferroni p of any set of hypotheses with i."""
    n, got = len(p), holm(np.array(p))
    subsets = [s for k in range(n) for s in itertools.combinations(range(n), k + 1)]
    bonferroni = {s: min(1.0, len(s) * min(p[j] for j in s)) for s in subsets}
    assert got.tolist() == [
        max(value for s, value in bonferroni.items() if i in s) for i in range(n)
    ]
    assert np.all(np.diff(got[np.argsort(p)]) >= 0)
    assert np.all((got >= p) & (got <= np.minimum(1, n * np.array(p))))


@st.composite
def hits(draw: st.DrawFn) -> np.ndarray:
    """Steps to a target [methods, problems]: few values, some never reached."""
    methods, problems = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    steps = st.sampled_from([100, 110, 115, 140, 200, 300, 1000, inf])
    rows = st.lists(steps, min_size=problems, max_size=problems)
    return np.array(draw(st.lists(rows, min_size=methods, max_size=methods)), float)


@some
@given(hits(), st.lists(st.integers(100, 500), max_size=4))
@example(np.array([[100.0], [115.0]]), [115])  # 1.15 * 100 < 115, in floats
def test_performance_profile_counts_problems(
    times: np.ndarray, hundredths: list[int]
) -> None:
    got = performance_profile(times, np.array(hundredths) / 100)
    assert got.shape == (len(times), len(hundredths))
    for row, method in zip(got, times, strict=True):
        for share, tau in zip(row, hundredths, strict=True):
            solved = 0
            for t, best in zip(method.tolist(), times.min(0).tolist(), strict=True):
                solved += t < inf and 100 * t <= tau * best
            assert share == pytest.approx(solved / times.shape[1], abs=1e-12)


@some
@given(hits(), st.sampled_from([1.5, 4.0, 20.0]))
def test_algoperf_score_integrates_the_profile(
    times: np.ndarray, tau_max: float
) -> None:
    cells = 4000
    taus = 1 + (tau_max - 1) * (np.arange(cells) + 0.5) / cells
    want = performance_profile(times, taus).mean(1)
    # a step is misplaced by half a cell at most
    assert np.abs(algoperf_score(times, tau_max) - want).max() <= 0.5001 / cells


def test_profile_and_score_by_hand() -> None:
    times = np.array([[1, 2, inf, inf], [2, 1, inf, 5]])
    # ratios 1 2 - - and 2 1 - 1: a problem that nobody solves stays in the 4
    want = [[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.75, 0.75]]
    assert performance_profile(times, np.array([1, 1.9, 2, inf])).tolist() == want
    assert algoperf_score(times) == pytest.approx([5 / 12, 8 / 12], rel=1e-12)
    assert algoperf_score(times, 1.5).tolist() == [0.25, 0.5]


ones, two = np.ones, np.array([1.0, 2.0])


def test_the_epoch_is_chosen_by_validation_alone() -> None:
    validation, test = np.random.default_rng(0).uniform(size=(2, 5, 2, 3))
    got = at_best_epoch(validation, test)
    for place in np.ndindex(2, 3):
        assert got[place] == test[np.argmax(validation[:, *place]), *place]
    tied = at_best_epoch(np.array([0.1, 0.3, 0.3]), np.array([1.0, 2.0, 3.0]))
    assert tied == 2


@pytest.mark.parametrize(
    ("why", "refused"),
    [
        ("number or", lambda: interquartile_mean(np.array([]))),
        ("number or", lambda: interquartile_mean(np.array([1, nan]))),
        ("number or", lambda: interquartile_mean(np.array([1, -inf]))),
        ("two or more", lambda: iqm_interval(ones(5), "runs")),
        ("two or more", lambda: iqm_interval(ones((0, 5)), "runs")),
        ("two or more", lambda: iqm_interval(ones((5, 1)), "runs")),
        ("finite", lambda: iqm_interval(np.array([[1, inf]]), "runs")),
        ("finite", lambda: iqm_interval(np.array([[1, nan]]), "runs")),
        (r"are \[strata, n", lambda: probability_better(ones((2, 3)), ones((1, 3)))),
        (r"are \[strata, n", lambda: probability_better(ones((2, 3)), ones(3))),
        (
            r"are \[strata, n",
            lambda: probability_better(ones((1, 2, 3)), ones((1, 2, 3))),
        ),
        (r"are \[strata, n", lambda: probability_better(np.array(1.0), two)),
        (r"are \[strata, n", lambda: probability_better(two, np.array([]))),
        ("is NaN", lambda: probability_better(two, two * nan)),
        ("two paired", lambda: probability_better_interval(two, ones(3), "runs")),
        (
            "two paired",
            lambda: probability_better_interval(ones((2, 1)), ones((2, 1)), "runs"),
        ),
        ("is NaN", lambda: probability_better_interval(two * nan, two, "runs")),
        ("two pairs", lambda: paired_test(two, ones(3))),
        ("two pairs", lambda: paired_test(two, ones(1))),
        ("two pairs", lambda: paired_test(ones((2, 3)), ones((2, 3)))),
        ("two pairs", lambda: paired_test(ones(1), ones(1))),
        ("is NaN", lambda: paired_test(two, np.array([1, nan]))),
        ("of one training", lambda: at_best_epoch(ones((2, 3)), two)),
        ("from 0 to 1", lambda: holm(np.array(0.1))),
        ("from 0 to 1", lambda: holm(ones((2, 2)))),
        ("from 0 to 1", lambda: holm(np.array([0.1, nan]))),
        ("from 0 to 1", lambda: holm(np.array([0.1, -0.1]))),
        ("from 0 to 1", lambda: holm(np.array([0.1, 1.1]))),
        ("positive or inf", lambda: performance_profile(two, two)),
        ("positive or inf", lambda: performance_profile(ones((2, 0)), two)),
        ("taus are", lambda: performance_profile(ones((2, 2)), two[None])),
        ("positive or inf", lambda: performance_profile(np.array([[1, nan]]), two)),
        ("positive or inf", lambda: algoperf_score(two)),
        ("positive or inf", lambda: algoperf_score(np.array([[1.0, 0.0]]))),
        ("positive or inf", lambda: algoperf_score(np.array([[1.0, -1.0]]))),
        ("above 1", lambda: algoperf_score(ones((2, 2)), 1.0)),
        ("above 1", lambda: algoperf_score(ones((2, 2)), inf)),
    ],
)
def test_what_has_no_answer_is_refused(why: str, refused: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=why):
        refused()


def of_moments(mean: np.ndarray, root: np.ndarray, n: int) -> np.ndarray:
    """Features [n, D] with just this mean, and the covariance root root^T."""
    d = len(mean)
    x = np.random.default_rng(n).normal(size=(n, d))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False).reshape(d, d)), x.T)
    return mean + x.T @ root.T


@some
@given(
    means=st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    deviations=st.tuples(st.floats(0, 9), st.floats(0, 9)),
)
def test_frechet_distance_of_two_normal_distributions(
    means: tuple[float, float], deviations: tuple[float, float]
) -> None:
    """(m_a - m_b)^2 + (s_a - s_b)^2, of samples of different sizes."""
    a, b = (
        of_moments(np.array([m]), np.array([[s]]), n)
        for m, s, n in zip(means, deviations, (5, 8), strict=True)
    )
    want = (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    """By the matrix square root itself, and by what it is for diagonal ones."""
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(2, 4, 4))
    mean, (s_a, s_b) = rng.normal(size=4), (r @ r.T for r in roots)
    a, b = (
        of_moments(m, r, n)
        for m, r, n in zip((np.zeros(4), mean), roots, (30, 20), strict=True)
    )
    root = np.real(scipy.linalg.sqrtm(s_a @ s_b))
    want = mean @ mean + np.trace(s_a + s_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-9)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * want, rel=1e-9)
    scales = np.array([1.0, 2.0, 0.0, 5.0]), np.array([3.0, 2.0, 1.0, 0.5])
    a, b = (of_moments(np.zeros(4), np.diag(s), 9) for s in scales)
    want = np.sum((scales[0] - scales[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9)


def test_frechet_distance_of_fewer_rows_than_features() -> None:
    """Singular covariances, of which rounding makes negative eigenvalues."""
    x = np.random.default_rng(4).normal(size=(6, 40)).astype(np.float32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + np.float32(1)) == pytest.approx(40, rel=1e-6)
    constant = np.zeros((3, 40))
    spread = np.var(x.astype(float), axis=0, ddof=1).sum()
    want = np.sum(x.astype(float).mean(0) ** 2) + spread
    assert frechet_distance(constant, x) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"), [((5, 3), (5, 4)), ((5,), (5,)), ((1, 3), (5, 3)), ((5, 3), (0, 3))]
)
def test_frechet_distance_refuses_other_shapes(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match=r"features are \[2 or more, D\]"):
        frechet_distance(np.zeros(a), np.zeros(b))


@pytest.mark.parametrize("bad", [nan, inf])
def test_frechet_distance_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite features"):
        frechet_distance(np.zeros((2, 2)), np.array([[0, 1], [bad, 0]]))
