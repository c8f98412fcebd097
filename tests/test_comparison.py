"""What a study says, from records made by hand."""

import json
from typing import Any

import numpy as np
import pytest

from jaxstudy.comparison import (
    algoperf_intervals,
    algoperf_target,
    compare,
    interval_text,
    listing,
    outcome,
    problem_table,
    scores,
    summary_table,
    times_to_target,
)

SEEDS = 6


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
    return {
        "problem": problem,
        "optimizer": optimizer,
        "points": {"rate": [1.0 + i for i in range(len(tuning))]},
        "tuning": {
            "seeds": [0, 1, 2],
            "validation": tuning,
            "validation at 3/4": [
                [None if v is None else v + 0.25 for v in trial] for trial in tuning
            ],
        },
        "reported": {
            str(len(tuning)): {
                "point": int(np.argmin(medians)),
                "at_edge": list(at_edge),
                "seeds": list(range(3, 3 + len(test))),
                "test": test,
                "train": validation,
                "validation": validation,
            }
        },
    }


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


FAST = cell("fast", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], steady(0.9), [[2, 2, 2], [1, 1, 1]])
SLOW = cell("slow", [1.5, 1.7, 1.9, 2.1, 2.3, 2.5], steady(1.1), [[3, 3, 3], [2, 9, 2]])
WILD = cell(
    "wild", [0.1, 0.1, 0.1, 0.1, None, None], [[3.0] * 6, [1.0] * 3 + [None] * 3,
    [0.1] * 4 + [None] * 2], [[None] * 3, [4.0, None, 4.0]], at_edge=("rate",),
)  # fmt: skip


def test_steps_to_the_target_and_censoring() -> None:
    study = record(FAST, SLOW, WILD)
    assert outcome(study, "hills", "fast").steps_to_target.tolist() == [30.0] * 6
    assert outcome(study, "hills", "slow").steps_to_target.tolist() == [np.inf] * 6
    # 1.0 is the target itself: reached; None is worse than anything
    wild = outcome(study, "hills", "wild").steps_to_target
    assert wild.tolist() == [20.0, 20.0, 20.0, 30.0, np.inf, np.inf]
    # six seeds: the upper of the two middle ones, 20 and 30
    assert times_to_target(study).ravel().tolist() == [30.0, np.inf, 30.0]


def test_a_target_is_the_references_median_at_three_quarters() -> None:
    study = record(FAST, SLOW, WILD)
    assert algoperf_target(study, "hills", ["slow", "fast"]) == 1.25
    assert algoperf_target(study, "hills", ["slow"]) == 2.25
    assert algoperf_target(study, "hills", ["slow", "wild"]) == 2.25


def test_scores_are_between_the_start_and_the_best() -> None:
    study = record(FAST, SLOW, WILD)
    # wild has the lowest median, 0.1; where it diverged it gets 0
    assert scores(study, "wild").tolist() == [[1, 1, 1, 1, 0, 0]]
    want = (4.0 - np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])) / (4.0 - 0.1)
    np.testing.assert_allclose(scores(study, "fast"), [want])


def test_the_best_tuned_is_the_reference_though_others_test_better() -> None:
    """By tuning fast is the best; wild has lower test losses in four of six seeds."""
    found = compare(record(FAST, SLOW, WILD))["problems"]["hills"]
    assert found["best_tuned"] == "fast"
    assert "p" not in found["optimizers"]["fast"]
    slow, wild = found["optimizers"]["slow"], found["optimizers"]["wild"]
    assert slow["p"] == pytest.approx(2 / 2**SEEDS)
    assert slow["p_holm"] == pytest.approx(2 * 2 / 2**SEEDS)
    assert slow["probability_better"]["mean"] == 0
    assert wild["probability_better"]["mean"] == pytest.approx(4 / 6)
    assert found["smallest_p"] == pytest.approx(2 * 2 / 2**SEEDS)
    assert wild["diverged"] == 2
    assert wild["test"] is None
    assert wild["interquartile_mean"] is None  # two of six are more than a quarter
    assert slow["reached"] == 0
    assert slow["steps_to_target"] is None


def test_sentences_say_what_the_numbers_say() -> None:
    sentences = compare(record(FAST, SLOW, WILD))["sentences"]
    text = "\n".join(sentences)
    assert "On hills, tuning found fast the best." in text
    assert "6 fresh seeds, in pairs (permutation test, exact; Holm's" in text
    assert "the smallest p possible is 0.062" in text
    # p = 0.062 is not below 0.05: six seeds cannot tell with two comparisons
    assert (
        "On hills, fast cannot be told apart from slow and wild (p >= 0.062)." in text
    )
    assert "2 of 6 runs of wild diverged" in text
    assert "smallest or largest value tried of: wild (rate)" in text
    assert "1 was not reached by every run of slow (0 of 6), wild (4 of 6)" in text
    # with one comparison six seeds can
    alone = "\n".join(compare(record(FAST, SLOW))["sentences"])
    assert "On hills, slow is worse than fast in test loss (p <= 0.031)." in alone


def test_better_than_the_best_tuned_is_said_too() -> None:
    lucky = {**SLOW, "tuning": {**SLOW["tuning"], "validation": [[0] * 3, [0] * 3]}}
    sentences = compare(record(FAST, lucky))["sentences"]
    assert "On hills, fast is better than slow in test loss (p <= 0.031)." in sentences


def test_seeds_that_change_nothing_are_one_run() -> None:
    """No test, and no p: six copies of one number are not six results."""
    same = [cell(n, [v] * 6, steady(v), [[v] * 3]) for n, v in (("a", 0.5), ("b", 0.7))]
    found = compare(record(*same))
    facts = found["problems"]["hills"]
    assert (facts["n"], facts["comparisons"]) == (1, 0)
    assert "p" not in facts["optimizers"]["b"]
    assert any("The seeds change nothing" in s for s in found["sentences"])
    assert not any("p <=" in s or "p >=" in s for s in found["sentences"])


def test_one_optimizer_alone_is_compared_with_nobody() -> None:
    found = compare(record(FAST))
    assert found["problems"]["hills"]["comparisons"] == 0
    assert found["sentences"] == []


def test_algoperf_scores_need_no_more_than_the_times() -> None:
    """fast is first on both; wild as soon on one, never there on the other."""
    other = {**FAST, "problem": "valleys"}
    never = {**SLOW, "optimizer": "wild", "problem": "valleys"}
    found = compare(record(FAST, WILD, other, never))
    assert found["overall"]["fast"]["algoperf"]["mean"] == 1.0
    assert found["overall"]["wild"]["algoperf"]["mean"] == 0.5
    assert any("fast 1.00, wild 0.50" in s for s in found["sentences"])


def test_algoperf_intervals_resample_the_seeds_of_all_together() -> None:
    """Whoever is the first with every seed has no interval; a mixed one has."""
    cells = [FAST, WILD, {**FAST, "optimizer": "same"}]
    found = algoperf_intervals(record(*cells))
    assert found["fast"] == found["same"]
    # wild is soonest with 3 of 6 seeds, 3 of 3 epochs late with one, lost with two
    wild = found["wild"]
    assert (wild.mean, wild.low, wild.high, wild.n) == (1.0, 0.0, 1.0, SEEDS)
    alone = algoperf_intervals(record(FAST))["fast"]
    assert (alone.low, alone.mean, alone.high) == (1.0, 1.0, 1.0)


def test_a_comparison_is_strict_json() -> None:
    text = json.dumps(compare(record(FAST, SLOW, WILD)), allow_nan=False)
    assert json.loads(text)["problems"]["hills"]["n"] == SEEDS


def test_tables() -> None:
    study = record(FAST, SLOW, WILD)
    study["comparison"] = compare(study)
    rows = problem_table(study, "hills", {"fast": 1e-4})
    assert all(len(row) == len(rows[0]) for row in rows)
    assert rows[0][0:4] == ["", "chosen", "test loss", "P(better than fast)"]
    fast, slow, wild = rows[1:]
    assert fast[0] == "fast (best tuned)"
    assert fast[1] == "rate 2"
    assert fast[5:] == ["30", "3", "6 of 6"]
    assert slow[4:] == ["0.062", "not reached", "", "0 of 6"]
    assert wild[1:3] == ["rate 2; at the edge: rate", "diverged in 2 of 6"]
    summary = summary_table(study)
    assert summary[0] == ["", "hills", "AlgoPerf score", "normalised score (IQM)"]
    assert [row[0] for row in summary[1:]] == ["fast", "slow", "wild"]


def test_texts() -> None:
    estimate = {"mean": 0.24913, "low": 0.2391, "high": 0.2568}
    assert interval_text(estimate) == "0.2491 [0.2391, 0.2568]"
    assert (
        interval_text({"mean": 2.0, "low": 2.0, "high": 2.0}) == "2.000 [2.000, 2.000]"
    )
    assert (
        interval_text({"mean": 236.0, "low": 136.0, "high": 336.0}) == "236 [136, 336]"
    )
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
