"""What a study says, from records made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxstudy.runs import plots
from jaxstudy.runs.run import open_run
from jaxstudy.runs.statistics import Estimate
from jaxstudy.study import comparison
from jaxstudy.study.comparison import (
    BETTER,
    SPREAD,
    TOLD,
    WORST,
    algoperf_target,
    compare,
    critical_difference,
    mean_ranks,
    near_best,
    outcome,
    problem_table,
    scores,
    seeds_needed,
    summary_table,
    telling,
    times_to_target,
)
from jaxstudy.study.plots import (
    save_sensitivity_of_many,
    save_study,
    save_test_differences,
)
from tests.tiny import Config

SEEDS = 6
HILLS = "On hills, "


def cell(
    optimizer: str,
    test: list[float | None],
    validation: list[list[float | None]],
    tuning: list[list[float | None]],
    problem: str = "hills",
    at_edge: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trials at rates 1, 2, ..; of the reported seeds, test [S], validation [E, S]."""
    medians = [
        np.median([np.inf if v is None else v for v in trial]) for trial in tuning
    ]
    later = [[None if v is None else v + 0.25 for v in trial] for trial in tuning]
    reported = {
        "point": int(np.argmin(medians)), "at_edge": list(at_edge),
        "seeds": list(range(3, 3 + len(test))), "test": test, "train": validation,
        "validation": validation,
    }  # fmt: skip
    return {
        "problem": problem,
        "optimizer": optimizer,
        "points": {"rate": [1.0 + i for i in range(len(tuning))]},
        "tuning": {
            "seeds": [0, 1, 2], "validation": tuning, "validation at 3/4": later
        },
        "reported": {str(len(tuning)): reported},
    }  # fmt: skip


def record(*cells: dict[str, Any]) -> dict[str, Any]:
    facts = {"target": 1.0, "steps_per_epoch": 10, "epochs": 3, "start": 4.0}
    names = dict.fromkeys(c["optimizer"] for c in cells)
    return {
        "schema": 1,
        "protocol": {"search": "grid"},
        "problems": {
            n: {**facts, "title": n, "floors": {}}
            for n in dict.fromkeys(c["problem"] for c in cells)
        },
        "optimizers": {n: {} for n in names},
        "cells": list(cells),
    }


def steady(value: float) -> list[list[float | None]]:
    """Validation losses 3, 2, then the value, with every seed."""
    return [[v] * SEEDS for v in (3.0, 2.0, value)]


FAST_TEST = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
FAST = cell("fast", [*FAST_TEST], steady(0.9), [[2, 2, 2], [1, 1, 1]])
SLOW = cell("slow", [1.5, 1.7, 1.9, 2.1, 2.3, 2.5], steady(1.1), [[3, 3, 3], [2, 9, 2]])
WILD = cell(
    "wild", [0.1, 0.1, 0.1, 0.1, None, None], [[3.0] * 6, [1.0] * 3 + [None] * 3,
    [0.1] * 4 + [None] * 2], [[None] * 3, [4.0, None, 4.0]], at_edge=("rate",),
)  # fmt: skip


THREE = record(FAST, SLOW, WILD)


@pytest.fixture(scope="module")
def three() -> dict[str, Any]:
    return {**THREE, "comparison": compare(THREE)}


def test_steps_to_the_target_are_censored() -> None:
    steps = {n: outcome(THREE, "hills", n).steps_to_target.tolist()
             for n in ("fast", "slow", "wild")}  # fmt: skip
    assert steps["fast"] == [30.0] * 6
    assert steps["slow"] == [np.inf] * 6
    # 1.0 is the target itself: reached; None is worse than anything
    assert steps["wild"] == [20.0, 20.0, 20.0, 30.0, np.inf, np.inf]
    # six seeds: the upper of the two middle ones, 20 and 30
    assert times_to_target(THREE).ravel().tolist() == [30.0, np.inf, 30.0]


def test_a_target_is_the_references_median_at_three_quarters() -> None:
    for names, target in (("slow fast", 1.25), ("slow", 2.25), ("slow wild", 2.25)):
        assert algoperf_target(THREE, "hills", names.split()) == target


def test_scores_are_between_the_start_and_the_best() -> None:
    fast, _, wild = scores(THREE)
    # wild has the lowest median, 0.1; where it diverged it gets 0
    assert wild.tolist() == [[1, 1, 1, 1, 0, 0]]
    np.testing.assert_allclose(fast, [(4.0 - np.array(FAST_TEST)) / (4.0 - 0.1)])


def test_the_best_tuned_is_the_reference_though_others_test_better(three: Any) -> None:
    """By tuning fast is the best; wild has lower test losses in four of six seeds."""
    found = three["comparison"]["problems"]["hills"]
    assert found["best_tuned"] == ["fast"]
    fast, slow, wild = found["optimizers"].values()
    assert "p" not in fast
    assert slow["p"] == pytest.approx(2 / 2**SEEDS)
    assert slow["p_holm"] == found["smallest_p"] == pytest.approx(2 * 2 / 2**SEEDS)
    assert slow["effect"] == 1
    # 0.4 to 0.7 less with four seeds, infinitely more with two
    assert wild["effect"] == pytest.approx((5.5 + 5.5 - 1 - 2 - 3 - 4) / 21)
    assert (wild["diverged"], wild["test"]) == (2, None)
    assert wild["interquartile_mean"] is None  # two of six are more than a quarter
    assert (slow["reached"], slow["steps_to_target"]) == (0, None)


def test_sentences_say_what_the_numbers_say(three: Any) -> None:
    text = "\n".join(three["comparison"]["sentences"])
    for part in (
        "On hills, tuning found fast the best.",
        "6 fresh seeds, in pairs (permutation test of signed ranks, exact;",
        "the smallest p possible is 0.062",
        # p = 0.062 is not below 0.05: six seeds cannot tell with two comparisons
        "On hills, fast cannot be told apart from slow and wild (p >= 0.062).",
        "2 of 6 runs of wild diverged",
        "smallest or largest value tried of: wild (rate)",
        "1 was reached by only so many runs: 4 of 6 of wild; 0 of 6 of slow.",
    ):
        assert part in text
    # with one comparison six seeds can
    alone = compare(record(FAST, SLOW))["sentences"]
    assert "On hills, slow is worse than fast in test loss (p <= 0.031)." in alone


def test_what_a_study_can_tell() -> None:
    """`better` was tuned less well than `fast`, and has lower test losses."""
    better = cell("better", [v / 2 for v in FAST_TEST], steady(1.1), [[2, 2, 2]] * 2)
    study = record(FAST, SLOW)
    found = telling(study | {"comparison": compare(study)})
    assert found[TOLD.format("hills")] == 1
    assert found[BETTER.format("hills")] == found[WORST] == 0
    study = record(FAST, better)
    comparison = compare(study)
    said = "On hills, better is better than fast in test loss (p <= 0.031)."
    assert said in comparison["sentences"]
    found = telling(study | {"comparison": comparison})
    assert found[BETTER.format("hills")] == found[WORST] == 1
    spread = found[SPREAD.format("hills")]
    assert isinstance(spread, Estimate)
    assert spread.values == pytest.approx([v / 2 for v in FAST_TEST])
    lost = record(FAST, WILD)  # nobody is significantly better, and no spread is known
    found = telling(lost | {"comparison": compare(lost)})
    assert found == {TOLD.format("hills"): 0, BETTER.format("hills"): 0, WORST: 0}


def test_differences_are_drawn_from_the_one_tuned_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside fast, slow is 1 and more above in each seed, and wild diverged."""
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_estimates", lambda *a: drawn.append(a[-1]))
    run: Any = None
    for study in (THREE, record(FAST, SLOW)):
        compared = study | {"comparison": compare(study)}
        save_test_differences(compared, run, {"hills": 0.5})
    lost = record(*(never(name, [[None] * 3] * 2) for name in ("sgd", "adam")))
    save_test_differences(lost | {"comparison": compare(lost)}, run, {})
    (three,), (two,) = drawn  # and nothing of one where all diverged in tuning
    assert three.margin == 0.5
    assert three.estimates["fast"] == "tuned best"
    assert three.estimates["slow"].values == pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert "diverged" in three.estimates["wild"]
    assert "diverged" in three.estimates["largest - smallest"]
    assert list(three.hollow) == ["slow", "wild"]  # six seeds: as the sentences say
    assert list(two.hollow) == []
    assert two.estimates["largest - smallest"] == two.estimates["slow"]


def test_seeds_that_change_nothing_are_one_run() -> None:
    """No test, and no p: six copies of one number are not six results."""
    same = [cell(n, [v] * 6, steady(v), [[v] * 3]) for n, v in (("a", 0.5), ("b", 0.7))]
    found = compare(record(*same))
    facts = found["problems"]["hills"]
    assert (facts["n"], facts["comparisons"]) == (1, 0)
    assert "p" not in facts["optimizers"]["b"]
    assert any("is the same with every seed" in s for s in found["sentences"])
    assert not any("p <=" in s or "p >=" in s for s in found["sentences"])
    alone = compare(record(FAST))  # is compared with nobody
    assert alone["problems"]["hills"]["comparisons"] == 0
    assert alone["sentences"] == []


def two(a: list[float | None], b: list[float | None]) -> dict[str, Any]:
    """A study in which tuning found b the best, and these are the test losses."""
    return record(
        cell("a", a, steady(2.0), [[2] * 3]), cell("b", b, steady(2.0), [[1] * 3])
    )


MOSTLY_WORSE: list[tuple[float | None, float | None]] = [
    *((1 + 0.1 * i + 0.01 + 0.0005 * i, 1 + 0.1 * i) for i in range(14)),
    (0.5, 2.4),
]


def test_direction_and_p_are_of_one_statistic() -> None:
    """14 of 15 seeds are a little worse, one much better: signed ranks say worse.

    Of all pairs of runs, seeds apart, A has the lower loss in more than half.
    """
    found = compare(two(*map(list, zip(*MOSTLY_WORSE, strict=True))))["sentences"]
    assert "On hills, a is worse than b in test loss (p <= 0.0084)." in found
    assert "On hills, b is better than a in test loss" not in str(found)


LOSSES = st.lists(
    st.tuples(*[st.sampled_from([0.1, 0.2, 0.5, 1.0, 2.0, 3.5, None])] * 2),
    min_size=6, max_size=9,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(LOSSES)
@example(MOSTLY_WORSE)
@example([(None, None)] * 6)
@example([(None, 1.0)] * 6)
@example([(1.0, 1.0)] * 6)
def test_a_direction_never_contradicts_its_test(
    pairs: list[tuple[float | None, float | None]],
) -> None:
    """By ranks counted here; and turned about where a and b change places."""
    a, b = ([np.inf if v is None else v for v in x] for x in zip(*pairs, strict=True))
    d = [0 if x == y else x - y for x, y in zip(a, b, strict=True)]
    size = np.abs(d)
    signed = sum(np.sign(v) * (np.sum(size < s) + np.sum(size <= s) + 1)
                 for v, s in zip(d, size, strict=True))  # fmt: skip
    runs = [list(x) for x in zip(*pairs, strict=True)]
    text = " ".join(compare(two(runs[0], runs[1]))["sentences"])
    turned = " ".join(compare(two(runs[1], runs[0]))["sentences"])
    assert ("a is worse than b" in text) == ("a is better than b" in turned)
    assert ("a is better than b" in text) == ("a is worse than b" in turned)
    assert not (signed <= 0 and "worse" in text)
    assert not (signed >= 0 and "better" in text)


LOST: list[float | None] = [None] * SEEDS


def never(name: str, tuning: list[list[float | None]], problem: str = "hills") -> Any:
    """Every reported run diverged."""
    return cell(name, LOST, [LOST] * 3, tuning, problem, at_edge=("rate",))


def test_where_all_diverged_nothing_is_said_to_be_best() -> None:
    cells = [never("sgd", [[None] * 3] * 2), never("adam", [[1.0, None, None]] * 2)]
    found = compare(record(*cells))
    assert found["problems"]["hills"]["best_tuned"] == []
    assert found["sentences"] == [
        HILLS + "tuning found no optimizer the best: with every trial of every "
        "optimizer half of the tuning runs or more diverged.",
        *(
            HILLS + f"6 of 6 runs of {name} diverged with its first trial, none being "
            "better in tuning: counted as the worst."
            for name in ("sgd", "adam")
        ),
        HILLS + "the validation loss 1 was reached by no run.",
    ]


def test_what_diverged_is_said_to_be_worse_or_not_compared() -> None:
    cells = [never("sgd", [[1.0] * 3]), never("adam", [[2.0] * 3])]
    sentences = compare(record(*cells))["sentences"]  # tuning alone has finished
    assert sentences[0] == (
        HILLS + "tuning found sgd the best. No reported run of any optimizer finished: "
        "all diverged."
    )
    assert not any("cannot be told apart" in s for s in sentences)
    sentences = compare(record(FAST, never("sgd", [[None] * 3] * 2)))["sentences"]
    assert HILLS + "sgd is worse than fast in test loss (p <= 0.031)." in sentences
    assert any("6 of 6 runs of sgd diverged with its first" in s for s in sentences)
    # an optimizer without a best trial has none at an edge
    assert not any("smallest or largest" in s for s in sentences)


def test_optimizers_that_tuned_equally_well_are_all_named() -> None:
    equal = [{**FAST, "optimizer": name} for name in ("a", "b", "c")]
    sentences = compare(record(*equal))["sentences"]
    assert sentences[0].startswith(
        HILLS + "tuning found a, b and c equally good. The others"
    )
    assert sentences[1:] == [HILLS + "a cannot be told apart from b and c (p >= 1)."]


def test_targets_that_nobody_reached_rank_nobody() -> None:
    cells = [{**SLOW, "problem": p, "optimizer": n} for p in "pq" for n in "ab"]
    found = compare(record(*cells))
    assert [found["overall"][n]["algoperf"] for n in "ab"] == [0, 0]
    text = "\n".join(found["sentences"])
    assert "On p, the validation loss 1 was reached by no run." in text
    assert "AlgoPerf" not in text


def test_a_study_that_diverged_is_drawn_and_listed(tmp_path: Path) -> None:
    """On hills every run of both, on valleys those of one; of two budgets."""
    cells = [never(n, [[None] * 3] * 2, p) for n, p in
             (("sgd", "hills"), ("adam", "hills"), ("adam", "valleys"))]  # fmt: skip
    cells.append({**FAST, "optimizer": "sgd", "problem": "valleys"})
    two = [{**c, "reported": {"1": c["reported"]["2"], **c["reported"]}} for c in cells]
    study = record(*two)
    study["comparison"] = compare(study)
    with open_run(tmp_path / "run", "tiny", "", Config()) as run:
        save_study(study, run)
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == {
        "ranks", "sensitivity", "bands", "reached", "budgets",
    }  # fmt: skip
    assert len(problem_table(study, "hills", {})) == 3
    assert summary_table(study)[-1][1:3] == ["diverged in 6 of 6"] * 2
    json.dumps(study["comparison"], allow_nan=False)


def test_algoperf_scores_need_no_more_than_the_times() -> None:
    """fast is first on both; wild as soon on one, never there on the other."""
    other = {**FAST, "problem": "valleys"}
    never = {**SLOW, "optimizer": "wild", "problem": "valleys"}
    found = compare(record(FAST, WILD, other, never))
    assert found["overall"]["fast"]["algoperf"] == 1.0
    assert found["overall"]["wild"]["algoperf"] == 0.5
    assert any("fast 1.00, wild 0.50" in s for s in found["sentences"])


def test_tables(three: Any) -> None:
    text = json.dumps(three["comparison"], allow_nan=False)
    assert json.loads(text)["problems"]["hills"]["n"] == SEEDS
    rows = problem_table(three, "hills", {"fast": 1e-4})
    assert all(len(row) == len(rows[0]) for row in rows)
    assert rows[0][1:5] == ["chosen", "near the best", "test loss", "rank-biserial"]
    fast, slow, wild = rows[1:]
    assert fast[:3] == ["fast (best tuned)", "rate 2", "50%"]
    assert fast[6:] == ["30", "3", "6 of 6"]
    assert slow[4:] == ["+1.00", "0.062", "not reached", "", "0 of 6"]
    # its best trial is no better than no training: none is near it
    assert wild[1:4] == ["rate 2; at the edge: rate", "", "diverged in 2 of 6"]
    summary = summary_table(three)
    assert summary[0] == ["", "hills", "AlgoPerf score", "normalised score (IQM)"]
    assert [row[0] for row in summary[1:]] == ["fast", "slow", "wild"]


def test_a_problem_without_a_target_times_nobody() -> None:
    study = record(FAST, SLOW, {**FAST, "problem": "sea"}, {**SLOW, "problem": "sea"})
    study["problems"]["sea"]["target"] = None
    study["comparison"] = compare(study)
    assert times_to_target(study).shape == (2, 1)  # of the other problem alone
    text = "\n".join(study["comparison"]["sentences"])
    assert "On sea, no target is set" in text
    assert problem_table(study, "sea", {})[0][6] == "steps to the target (not set)"


def test_the_seeds_that_would_tell_two_apart_do() -> None:
    """As many as the planner says tell 0.8 of simulated pairs apart, about."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 400), np.zeros(400)
    a = (a - a.mean()) / a.std(ddof=1) + 0.8  # a difference of 0.8 deviations
    n = seeds_needed(a, b, comparisons=1)
    assert n == 13  # a normal distribution needs 12.3, of which ranks lose a little
    told = [
        comparison.paired_test(rng.normal(0.8, 1, n), np.zeros(n)).p < 0.05
        for _ in range(60)
    ]
    assert np.mean(told) == pytest.approx(0.8, abs=0.15)
    corrected = seeds_needed(a, b, comparisons=40)
    assert corrected is not None
    assert corrected > n
    # a large difference still needs pairs enough for the exact test
    assert seeds_needed(a + 100, b, comparisons=1) == 6
    assert 2 / 2**6 < 0.05 < 2 / 2**5
    assert seeds_needed(b, b, comparisons=1) is None
    assert seeds_needed(np.append(a, np.inf), np.append(b, 0), 1) is None


def test_trials_near_the_best_are_counted() -> None:
    """Start 4, best 1: within 5 % of the way are medians up to 1.15."""
    trials: list[list[float | None]] = [[v] * 3 for v in (1.0, 1.1, 1.16, 5.0)]
    study = record(cell("fast", [*FAST_TEST], steady(0.9), trials))
    assert near_best(study, "hills", "fast") == 0.5


def test_many_optimizers_are_drawn_in_rows(tmp_path: Path) -> None:
    cells = [{**FAST, "optimizer": f"o{i}"} for i in range(15)]
    study = record(*cells, never("bad", [[None] * 3] * 2))
    study["comparison"] = compare(study)
    with open_run(tmp_path / "run", "tiny", "", Config()) as run:
        save_sensitivity_of_many(study, run)
    assert (tmp_path / "run" / "figures" / "sensitivity.png").exists()


def test_mean_ranks_and_their_critical_difference() -> None:
    # the table of Demsar 2006: q of 2, 5 and 10 methods
    for methods, q in ((2, 1.960), (5, 2.728), (10, 3.164)):
        scale = np.sqrt(methods * (methods + 1) / (6 * 12))
        assert critical_difference(methods, 12) == pytest.approx(q * scale, abs=2e-3)
    other = [{**FAST, "problem": "sea"}, {**WILD, "problem": "sea"}]
    study = record(FAST, WILD, *other)
    assert mean_ranks(study).tolist() == [2.0, 1.0]  # the median of WILD is 0.1
    found = compare(study)
    assert found["overall"]["wild"]["rank"] == 1
    said = "on the 2 problems are lowest of wild (1.0) and fast (2.0); of 2 optimizers,"
    assert any(said in s for s in found["sentences"])
    assert not any("mean ranks" in s for s in compare(record(FAST, WILD))["sentences"])
