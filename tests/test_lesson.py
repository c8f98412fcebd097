"""Claims: what the metrics of a run say of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxstudy.runs import terminal
from jaxstudy.runs.lesson import (
    Claim,
    Lesson,
    difference,
    judge_claim,
    paired_differences,
    shows,
)
from jaxstudy.runs.statistics import (
    REAL,
    SHARE,
    Estimate,
    mean_over_cases,
    mean_over_runs,
)

SEEDS = np.array([0.0, 0.3, 0.6, 0.9, 1.2])


def runs(values: Any) -> Estimate:
    return mean_over_runs(np.asarray(values, float), REAL)


def verdict(metrics: tuple, relation: Any, found: dict, margin: float = 0.0) -> str:
    return judge_claim(Claim("It is so.", metrics, relation, margin), found).verdict


def test_pairs_decide_where_the_means_cannot() -> None:
    """b is 0.1 above a in every seed; their own intervals overlap widely."""
    noise = np.array([0.01, -0.01, 0.0, 0.01, -0.01])
    found = {"a": runs(SEEDS), "b": runs(SEEDS + 0.1 + noise)}
    assert verdict(("a", "b"), "<", found) == "holds"
    assert verdict(("b", "a"), ">", found) == "holds"
    assert verdict(("b", "a"), "<", found) == "fails"
    assert verdict(("a", "b"), "<", found, 0.1) == "undetermined"
    assert verdict(("a", "b"), "<", found, 0.2) == "fails"
    shuffled = {**found, "b": runs((SEEDS + 0.1 + noise)[::-1])}
    assert verdict(("a", "b"), "<", shuffled) == "undetermined"
    unpaired = {**found, "b": found["b"]._replace(values=None)}
    assert verdict(("a", "b"), "<", unpaired) == "undetermined"


def test_equivalence_takes_a_narrow_interval() -> None:
    found = {"d": Estimate(0.01, -0.02, 0.04, 400, "rows")}
    assert verdict(("d", 0.0), "within", found, 0.05) == "holds"
    assert verdict(("d", 0.0), "within", found, 0.03) == "undetermined"
    assert verdict(("d", 0.1), "within", found, 0.05) == "fails"
    assert verdict(("d", -0.1), "within", found, 0.05) == "fails"
    assert verdict(("d", 0.0), "<", found) == "undetermined"  # not the same as equal


def test_all_comparisons_of_a_chain_have_to_hold() -> None:
    found = {"a": 1.0, "b": 2.0, "c": 3.0, "d": runs(SEEDS[:3] + 9)}
    assert verdict(("a", "b", "c"), "<", found) == "holds"
    assert verdict(("a", "c", "b"), "<", found) == "fails"
    assert verdict(("c", "d"), "<", found) == "undetermined"  # three seeds
    assert verdict(("b", "c", "a", "d"), "<", found) == "fails"


@pytest.mark.parametrize(
    "value",
    ["diverged in 2 of 6 seeds", math.inf, None, runs([1.0, math.inf, 1, 1])],
)
def test_what_is_no_number_decides_nothing(value: Any) -> None:
    assert verdict(("a", 1.0), "<", {"a": value}) == "undetermined"
    assert verdict(("a", "b"), "<", {"a": value, "b": 1.0}) == "undetermined"
    assert verdict(("b", 1.0), "<", {"a": value}) == "undetermined"  # not measured


def test_promises_and_counts_are_compared_as_they_are() -> None:
    assert verdict(("kept", "yes"), "=", {"kept": "yes", "yes": "yes"}) == "holds"
    assert verdict(("kept", True), "=", {"kept": True}) == "holds"
    assert verdict(("copies", 0), "=", {"copies": 1.0}) == "fails"


def test_a_result_read_back_gives_the_same_judgement() -> None:
    few, many = runs(SEEDS), mean_over_cases(np.tile([0.0, 1], 200), "rows", SHARE)
    for a, b in ((few, few), (few, many), (many, 0.4)):
        claim = Claim("It is so.", ("a", "b" if b is not many else "c"), "<", 0.01)
        found = {"a": a, "b": b, "c": many}
        stored = {k: getattr(v, "json", lambda v=v: v)() for k, v in found.items()}
        assert judge_claim(claim, stored) == judge_claim(claim, found)


def test_the_interval_of_independent_means_covers() -> None:
    """Of 2,000 pairs of samples, in 95 % the true difference of the means, 1."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        a = mean_over_runs(rng.normal(3, 1, 12), REAL)
        b = mean_over_runs(rng.normal(2, 3, 8), REAL)
        d = difference(a, b)
        assert d.low is not None
        assert d.high is not None
        hits += d.low < 1 < d.high
    assert 0.94 < hits / 2000 < 0.975


def test_against_a_constant_the_interval_itself_decides() -> None:
    found = {"a": Estimate(0.5, 0.4, 0.6, 10, "seeds")}
    assert verdict(("a", 0.39), ">", found) == "holds"
    assert verdict(("a", 0.61), ">", found) == "fails"
    assert verdict(("a", 0.41), ">", found) == "undetermined"
    images = Estimate(0.1, 0.0, 0.2, 4, "images", (0.0, 0.1, 0.1, 0.2))
    assert difference(images, images).low != 0  # images of two sets are no pairs
    text = judge_claim(Claim("It is so.", ("a", 0.39), ">"), found).evidence
    assert text == "a: 0.50 [0.40, 0.60], 10 seeds"


def toy(**fields: Any) -> Lesson:
    given = {"number": "9", "title": "A toy", "question": "Is it?",
             "metrics": ("loss",), "claims": (), "figures": {}}  # fmt: skip
    return Lesson(**(given | fields))


def test_paired_differences_are_those_of_the_claims() -> None:
    found = {"a: x": runs(SEEDS), "b: x": runs(SEEDS[::-1]), "c - b: x": runs(SEEDS)}
    gaps = paired_differences(found, [("a", "b"), ("c", "b"), ("a", "d")], "x")
    assert gaps == {
        "a - b": difference(found["a: x"], found["b: x"]), "c - b": found["c - b: x"],
    }  # fmt: skip


def test_a_claim_names_metrics_of_its_lesson() -> None:
    claim = Claim("It is so.", ("los", 1.0), "<")
    with pytest.raises(ValueError, match=r"'los', which is none of .* mean 'loss'"):
        toy(claims=(claim,))


@pytest.mark.parametrize(
    ("metrics", "relation", "margin"),
    [(("a",), "<", 0), ((1.0, 2.0), "<", 0), (("a", "b"), "~", 0),
     (("a", "b"), "within", 0), (("a", "b"), "<", -1)],
)  # fmt: skip
def test_a_claim_that_says_nothing_is_refused(
    metrics: Any, relation: Any, margin: float
) -> None:
    with pytest.raises(ValueError, match="the claim 'It is so"):
        Claim("It is so.", metrics, relation, margin)


def test_figures_are_found_by_name_and_by_sequence() -> None:
    assert shows("curves", "figures/curves.png")
    assert shows("samples/epoch*", "samples/epoch_07.png")
    assert not shows("curves", "samples/curves.png")


def test_the_terminal_tells_the_lesson(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curves.png").touch()
    lesson = toy(
        metrics=("loss", *(f"m{i}" for i in range(20))),
        claims=(Claim("[b]It is low.[/b]", ("loss", 1.0), "<"),),
        figures={"other": "not drawn", "curves": "See it fall."},
        try_it={"--epochs 9": "It falls further."},
    )
    metrics = {"loss": 0.5, "mistake - right: loss": 2.0} | {
        f"m{i}": float(i) for i in range(20)
    }
    times = dict.fromkeys(("wall_s", "compile_s", "train_s", "steps"), 0)
    result = {"metrics": metrics, **times, **lesson.json(metrics)}
    terminal.print_question(lesson)
    terminal.print_result("toy", result, tmp_path)
    text = capsys.readouterr().out
    order = ("Is it?", " loss ", "m10", "mistake", "9 more metrics", "holds",
             "[b]It is low.[/b]",
             "loss: 0.5", str(tmp_path / "figures" / "curves.png"), "See it fall.",
             "toy.py --epochs 9", "It falls further.")  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "m11" not in text
    terminal.print_result("toy", result, tmp_path, everything=True)
    assert "m11" in capsys.readouterr().out
