import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    algoperf_score,
    at_best_epoch,
    estimate_texts,
    frechet_distance,
    holm,
    interquartile_mean,
    interquartile_mean_over_seeds,
    mean_over_cases,
    mean_over_runs,
    paired_test,
    performance_profile,
)

inf, nan = math.inf, math.nan
some = settings(max_examples=60, deadline=None)
# few values, so that there are ties, and runs that diverged
losses = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, inf])


def test_mean_over_runs_by_hand() -> None:
    # mean 3, s^2 = 10/4, t(0.975, 4) = 2.7764451052 from a printed table
    half = 2.7764451052 * np.sqrt(2.5 / 5)
    got = mean_over_runs(np.array([1, 2, 3, 4, 5]), REAL)
    assert got[:3] == pytest.approx((3, 3 - half, 3 + half), rel=1e-10)
    assert got[3:] == (5, "seeds", (1, 2, 3, 4, 5))
    # cut to the metric's range
    assert mean_over_runs(np.array([0.9, 0.9, 1, 1]), SHARE).high == 1
    assert mean_over_runs(np.array([0.0, 0, 0, 9]), NONNEGATIVE).low == 0


def test_a_share_of_cases_is_wilsons() -> None:
    for n, right in ((400, 273), (200, 198), (30, 30), (12, 0)):
        got = mean_over_cases(np.arange(n) < right, "rows", SHARE)
        want = scipy.stats.binomtest(right, n).proportion_ci(0.95, "wilson")
        ends = right / n, want.low, want.high
        assert got[:3] == pytest.approx(ends, rel=1e-9, abs=1e-12)
        assert (got.n, got.of) == (n, "rows")


def test_copies_of_a_case_are_worth_one() -> None:
    """Groups of equal rows: as wide as of one row each; taken for independent, not."""
    rng = np.random.default_rng(0)
    losses, groups = rng.exponential(size=60), np.repeat(np.arange(60), 3)
    alone = mean_over_cases(losses, "rows", NONNEGATIVE)
    copied = mean_over_cases(losses[groups], "rows", NONNEGATIVE, groups)
    assert copied[:3] == pytest.approx(alone[:3], rel=1e-12)
    right = losses < 1
    alone = mean_over_cases(right, "rows", SHARE)
    copied = mean_over_cases(right[groups], "rows", SHARE, groups)
    assert copied[:3] == pytest.approx(alone[:3], rel=1e-12)
    independent = mean_over_cases(right[groups], "rows", SHARE)
    assert alone.low is not None
    assert independent.low is not None
    assert independent.low > alone.low + 0.03


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_under_four_units_have_no_interval_but_their_values(n: int) -> None:
    values = np.linspace(0.2, 0.6, n)
    groups = np.repeat(np.arange(n), 2)
    for got in (
        mean_over_runs(values, REAL),
        mean_over_cases(values, "rows", SHARE),
        interquartile_mean_over_seeds(values[None], SHARE),
        mean_over_cases(np.repeat(values, 2), "rows", SHARE, groups),
        mean_over_cases(np.repeat(values, 2), "rows", NONNEGATIVE, groups),
    ):
        assert (got.low is None) == (got.high is None) == (n < 4)
        assert got.values is not None
        assert sorted({*got.values}) == values.tolist()


def test_equal_and_diverged_values() -> None:
    want = (0.25, 0.25, 0.25, 7, "seeds", (0.25,) * 7)
    assert mean_over_runs(np.full(7, 0.25), REAL) == want
    assert interquartile_mean_over_seeds(np.full((1, 7), 0.25), REAL) == want
    for bad in (nan, inf):
        got = mean_over_runs(np.array([1.0, 2, 3, 4, bad]), NONNEGATIVE)
        assert (got.low, got.high, got.n) == (None, None, 5)
        assert not math.isfinite(got.mean)


def test_an_estimate_in_json() -> None:
    estimate = Estimate(0.5, 0.25, 0.75, 400, "rows")
    fields = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 400, "of": "rows"}
    assert json.loads(json.dumps(estimate.json())) == fields
    few = mean_over_runs(np.array([1, 2], np.float32), REAL)  # no numpy scalars
    assert json.loads(json.dumps(few.json())) == {
        "mean": 1.5, "low": None, "high": None, "n": 2, "of": "seeds",
        "values": [1.0, 2.0],
    }  # fmt: skip
    assert mean_over_cases(np.arange(1000), "rows", REAL).values is None


@pytest.mark.parametrize(
    ("ends", "texts"),
    [
        ((0.24913, 0.2391, 0.2568), ("0.2491", "[0.2391, 0.2568]")),
        ((236.0, 136.0, 1336.0), ("236", "[136, 1,336]")),
        ((0.5, 0.5, 0.5), ("0.5", "[0.5, 0.5]")),
        ((1e-9, 0.5e-9, 2e-9), ("1e-09", "[5e-10, 2e-09]")),
        ((2.0, None, None), ("2", "(each: 1.5, -)")),
        ((None, None, None), ("not finite", "(each: 1.5, -)")),
        ((inf, None, None), ("not finite", "(each: 1.5, -)")),
    ],
)
def test_an_estimate_as_text(ends: Any, texts: tuple[str, str]) -> None:
    fields = dict(zip(("mean", "low", "high"), ends, strict=True))
    assert estimate_texts({**fields, "values": [1.5, None]}) == texts


def assert_covers(intervals: Iterable[Estimate], truth: float) -> None:
    """As often as 95 % intervals do in all but one of 10,000 such simulations."""
    ends = np.array([(e.low, e.high) for e in intervals], float)
    hits = (ends[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[:, 1])
    low, high = scipy.stats.binom.interval(0.9999, len(hits), 0.95)
    assert low <= hits.sum() <= high


def of_accuracies(rng: np.random.Generator, n: int) -> Estimate:
    return mean_over_runs(rng.beta(90, 10, n), SHARE)


def of_pairs(rng: np.random.Generator, n: int) -> Estimate:
    seeds, own = rng.normal(size=n), rng.normal(0, 0.3, (2, n))
    return mean_over_runs((seeds + own[0] + 0.9) - (seeds + own[1]), REAL)


def of_rare_errors(rng: np.random.Generator) -> Estimate:
    return mean_over_cases(rng.uniform(size=200) < 0.985, "rows", SHARE)


def of_log_losses(rng: np.random.Generator) -> Estimate:
    return mean_over_cases(-np.log(rng.beta(3, 1, 400)), "rows", NONNEGATIVE)


def of_paired_shares(rng: np.random.Generator) -> Estimate:
    gap = rng.choice([-1, 0, 1], 400, p=[0.02, 0.93, 0.05])
    return mean_over_cases(gap, "rows", SHARE_DIFFERENCE)


def parties(rng: np.random.Generator) -> np.ndarray:
    """Groups of 1 to 8 rows, half of the rows in groups of more than one."""
    return np.repeat(np.arange(300), rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 8], 300))


def of_grouped_shares(rng: np.random.Generator) -> Estimate:
    groups = parties(rng)
    right = rng.uniform(size=len(groups)) < rng.beta(1.6, 0.4, 300)[groups]
    return mean_over_cases(right, "rows", SHARE, groups)


def of_grouped_losses(rng: np.random.Generator) -> Estimate:
    groups = parties(rng)
    losses = rng.gamma(2, size=300)[groups] + rng.gamma(2, size=len(groups))
    return mean_over_cases(losses, "rows", NONNEGATIVE, groups)


@pytest.mark.parametrize(("make", "truth"), [(of_accuracies, 0.9), (of_pairs, 0.9)])
def test_intervals_over_runs_cover(make: Any, truth: float) -> None:
    """Student's is exact for normal values; BCa covers 0.90 at n = 10."""
    rng = np.random.default_rng(10)
    assert_covers([make(rng, 10) for _ in range(1000)], truth)


@pytest.mark.parametrize(
    ("make", "truth"),
    [(of_rare_errors, 0.985), (of_log_losses, 1 / 3),
     (of_paired_shares, 0.03), (of_grouped_shares, 0.8), (of_grouped_losses, 4.0)],
)  # fmt: skip
def test_intervals_over_cases_cover(make: Any, truth: float) -> None:
    """BCa covers 0.85 of shares near 1; whoever ignores the groups, 0.8."""
    rng = np.random.default_rng(0)
    assert_covers([make(rng) for _ in range(600)], truth)


def of_a_study(rng: np.random.Generator, size: Any) -> np.ndarray:
    """Scores: at most 1, about half of them, and 0 for a run that diverged."""
    scores = np.minimum(1, 1 - 0.01 * rng.normal(size=size))
    return np.where(rng.uniform(size=size) < 0.1, 0, scores)


@pytest.mark.parametrize(
    ("draw", "problems"),
    [
        (lambda rng, size: rng.exponential(size=size), 1),
        (lambda rng, size: rng.standard_t(3, size=size), 1),
        (of_a_study, 3),
    ],
    ids=["skewed", "heavy tails", "scores"],
)
def test_intervals_of_interquartile_means_cover(draw: Any, problems: int) -> None:
    """At least 0.94; the percentile bootstrap covers 0.88 to 0.92."""
    rng = np.random.default_rng(10)
    truth = interquartile_mean(draw(rng, 1_000_000))
    ends = []
    for i in range(400):
        scores = draw(rng, (problems, 10))
        got = interquartile_mean_over_seeds(scores, REAL, seed=i, resamples=900)
        ends.append(got[1:3])
    low, high = np.array(ends).T
    assert np.mean((low <= truth) & (truth <= high)) >= 0.94


def estimates_in(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(metric, estimate) of every estimate anywhere in a value of JSON."""
    if isinstance(value, dict):
        if {"mean", "low", "high"} <= value.keys():
            yield name, value
        for key, inner in value.items():
            yield from estimates_in(inner, key if ": " in key else f"{name}/{key}")


def range_of(metric: str) -> tuple[float, float]:
    """Of a metric, by its name."""
    share = re.search(
        r"accuracy|exact match|probability|accepted|score|copied piece", metric
    )
    if re.search(r" - .*: |gained|gap|is shuffled", metric):
        return SHARE_DIFFERENCE if share else REAL
    return (0.0, 100.0) if "chrF" in metric else SHARE if share else NONNEGATIVE


def test_no_interval_in_the_results_leaves_the_range_of_its_metric() -> None:
    files = (Path(__file__).parents[1] / "results").glob("*.json")
    found = [e for path in files for e in estimates_in(json.loads(path.read_text()))]
    assert len(found) > 300
    for name, estimate in found:
        least, most = range_of(name)
        low, mean, high = (estimate[k] for k in ("low", "mean", "high"))
        if None in (estimate.get("values") or ()):  # an epoch that never was
            assert low is mean is high is None, name
        elif estimate["n"] >= 4:
            assert least <= low <= mean <= high <= most, name
        else:
            assert low is high is None, name


@some
@given(st.lists(st.floats(-1e6, 1e6) | st.just(inf), min_size=1, max_size=13))
def test_interquartile_mean_weighs_the_sorted_values(values: list[float]) -> None:
    cut = Fraction(len(values), 4) // 1
    weights = [cut <= i < len(values) - cut for i in range(len(values))]
    kept = [v for v, w in zip(sorted(values), weights, strict=True) if w]
    want = sum(kept) / sum(weights)
    assert interquartile_mean(np.array(values)) == pytest.approx(want, abs=1e-7)


def test_the_bootstrap_of_an_interquartile_mean_is_expanded() -> None:
    """Seeds drawn for all problems alike, ends at Phi(+-sqrt(n / (n - 1)) t)."""
    rng = np.random.default_rng(5)
    scores = np.array([[0], [1], [4]]) + rng.exponential(size=(3, 6))
    # t(0.975, 3) from a printed table: two of six seeds are trimmed
    z = math.sqrt(6 / 5) * 3.1824463053

    def by_hand(seed: int) -> np.ndarray:
        draw, means = np.random.default_rng(seed).integers, []
        for _ in range(5000):
            pooled = np.sort(scores[:, draw(0, 6, 6)], axis=None)
            means.append(pooled[4:-4].mean())
        return np.quantile(means, scipy.stats.norm.cdf([-z, z]))

    got = interquartile_mean_over_seeds(scores, NONNEGATIVE)
    want = [by_hand(seed) for seed in range(4)]
    spread = np.std(want, axis=0, ddof=1)
    assert np.all(np.abs(np.array(got[1:3]) - np.mean(want, 0)) < 5 * spread)
    assert got.mean == pytest.approx(np.sort(scores, None)[4:-4].mean(), rel=1e-12)
    assert got[3:] == (6, "seeds", tuple(scores.ravel()))
    assert interquartile_mean_over_seeds(scores, NONNEGATIVE) == got
    assert interquartile_mean_over_seeds(scores, NONNEGATIVE, seed=1) != got
    # the means of the problems would be resampled too, were all 18 pooled before
    level = np.repeat([[0.1], [2.3], [4.5], [5.1]], 6, axis=1)
    got = interquartile_mean_over_seeds(level, REAL)
    assert got.low == got.mean == got.high == pytest.approx((2.3 + 4.5) / 2)


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
    n = len(pairs)
    want = sum(abs(t) >= abs(sum(terms)) for t in sums) / 2**n
    effect = Fraction(sum(terms), n * (n + 1))
    a, b = np.array(pairs).T
    assert paired_test(a, b) == (want, float(effect), 2 / 2**n, n, True)


def test_more_than_16_pairs_are_flipped_at_random() -> None:
    rng = np.random.default_rng(0)
    tails = []
    for n in (17, 20, 24):
        d = rng.normal(0.3, 1, n)
        got = paired_test(d, np.zeros(n))
        assert got[2:] == (2e-5, n, False)
        assert paired_test(d, np.zeros(n)) == got
        q = wilcoxon(d) / 2
        tails.append((got.p / 2 - q) / math.sqrt(q * (1 - q) / 99_999))
    assert np.all(np.abs(tails) < 5)


@pytest.mark.parametrize("n", [2, 16, 40])
def test_the_smallest_p_is_attained(n: int) -> None:
    """By pairs of one sign: none of the random flips of 40 would be as extreme."""
    worse, better = 1.0 + np.arange(n), np.zeros(n)
    for got, effect in (
        (paired_test(worse, better), 1), (paired_test(better, worse), -1)
    ):  # fmt: skip
        assert got.effect == effect
        assert got.p == got.smallest_p == (2 / 2**n if n <= 16 else 2 / 100_000)
        assert (got.n, got.exact) == (n, n <= 16)


def test_holm_by_hand() -> None:
    got = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert got == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]


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


ones, two = np.ones, np.array([1.0, 2.0])


def test_the_epoch_is_chosen_by_validation_alone() -> None:
    validation, test = np.random.default_rng(0).uniform(size=(2, 5, 2, 3))
    got = at_best_epoch(validation, test)
    for place in np.ndindex(2, 3):
        assert got[place] == test[np.argmax(validation[:, *place]), *place]
    tied = at_best_epoch(np.array([0.1, 0.3, 0.3]), np.array([1.0, 2.0, 3.0]))
    assert tied == 2


def test_what_has_no_answer_is_refused() -> None:
    for why, refused in (
        ("number or", lambda: interquartile_mean(np.array([]))),
        ("number or", lambda: interquartile_mean(np.array([1, nan]))),
        ("number or", lambda: interquartile_mean(np.array([1, -inf]))),
        ("of values", lambda: mean_over_runs(np.array([]), REAL)),
        ("of values", lambda: mean_over_runs(ones((2, 3)), REAL)),
        ("outside", lambda: mean_over_runs(np.array([0.5, 1.1]), SHARE)),
        ("outside", lambda: mean_over_cases(np.array([-0.1, 1]), "rows", NONNEGATIVE)),
        ("are finite", lambda: interquartile_mean_over_seeds(ones(5), REAL)),
        ("of values", lambda: interquartile_mean_over_seeds(ones((5, 0)), REAL)),
        ("are finite", lambda: interquartile_mean_over_seeds(two[None] * inf, REAL)),
        ("outside", lambda: interquartile_mean_over_seeds(two[None], SHARE)),
        ("two pairs", lambda: paired_test(two, ones(3))),
        ("two pairs", lambda: paired_test(ones((2, 3)), ones((2, 3)))),
        ("two pairs", lambda: paired_test(ones(1), ones(1))),
        ("is NaN", lambda: paired_test(two, np.array([1, nan]))),
        ("of one training", lambda: at_best_epoch(ones((2, 3)), two)),
        ("from 0 to 1", lambda: holm(np.array(0.1))),
        ("from 0 to 1", lambda: holm(np.array([0.1, nan]))),
        ("from 0 to 1", lambda: holm(np.array([0.1, 1.1]))),
        ("positive or inf", lambda: performance_profile(two, two)),
        ("positive or inf", lambda: performance_profile(ones((2, 0)), two)),
        ("taus are", lambda: performance_profile(ones((2, 2)), two[None])),
        ("positive or inf", lambda: performance_profile(np.array([[1, nan]]), two)),
        ("positive or inf", lambda: algoperf_score(np.array([[1.0, 0.0]]))),
        ("above 1", lambda: algoperf_score(ones((2, 2)), 1.0)),
        ("above 1", lambda: algoperf_score(ones((2, 2)), inf)),
        ("2 or more", lambda: frechet_distance(ones((5, 3)), ones((5, 4)))),
        ("2 or more", lambda: frechet_distance(two, two)),
        ("2 or more", lambda: frechet_distance(ones((1, 3)), ones((5, 3)))),
        ("finite feat", lambda: frechet_distance(ones((2, 2)), nan * ones((2, 2)))),
    ):
        with pytest.raises(ValueError, match=why):
            refused()


def of_moments(mean: np.ndarray, root: np.ndarray, n: int) -> np.ndarray:
    """Features [n, D] with just this mean, and the covariance root root^T."""
    d = len(mean)
    x = np.random.default_rng(n).normal(size=(n, d))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False).reshape(d, d)), x.T)
    return mean + x.T @ root.T


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
