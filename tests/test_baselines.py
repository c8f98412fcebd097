"""Baselines: stored, read again, and compared with in pairs; what was published."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxstudy.dataset import Order
from jaxstudy.models.mlp import mlp
from jaxstudy.study import baselines
from jaxstudy.study.baselines import (
    P1,
    against,
    difference_of,
    read_baselines,
    reproduce_deepobs,
    seed_hashes,
    write_baselines,
    z_score,
)
from jaxstudy.study.problems import PROBLEMS, TIERS, Problem
from jaxstudy.study.runner import Protocol
from jaxstudy.types import UserError
from tests.conftest import Patch, Said, load
from tests.test_study import tiny_problem

SEEDS = 10
PROTOCOL = Protocol(trials=2, seeds=SEEDS)
RNG = np.random.default_rng(0)
ADAM = RNG.normal(1.0, 0.05, SEEDS)


def record(**tests: Any) -> dict[str, Any]:
    """A study of one problem, with these test losses [S] by optimizer."""
    cells = [
        {
            "problem": "blobs", "optimizer": name, "points": {"rate": [0.1, 0.2]},
            "reported": {"2": {"point": 1, "test": list(test), "train": [list(test)],
                               "validation": [list(test)]}},
        }
        for name, test in tests.items()
    ]  # fmt: skip
    return {
        "problems": {"blobs": {"target": 0.9, "steps_per_epoch": 5}},
        "optimizers": {name: {"schedule": "constant"} for name in tests},
        "cells": cells,
    }


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    return {"blobs": tiny_problem()}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, problems: Any) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    worse = [None, *(ADAM[1:] + 0.5)]  # of which one run diverged
    times = {"blobs": {"adam": 1e-5}}
    write_baselines(record(adam=ADAM, bad=worse), problems, PROTOCOL, times, folder)
    return folder


def test_what_is_stored_is_read_again(stored: Path, problems: Any) -> None:
    found = read_baselines(stored, problems)["blobs"]
    assert found["protocol"] == {
        "trials": 2, "tuning_seeds": 3, "seeds": 10, "seed": 0, "epochs": None
    }  # fmt: skip
    adam = found["optimizers"]["adam"]
    assert (adam["point"], adam["step_s"]) == ({"rate": 0.2}, 1e-5)
    np.testing.assert_array_equal(adam["test"], ADAM)
    assert adam["steps_to_target"] == [5.0 if v <= 0.9 else None for v in ADAM]
    hashes = found["hashes"]
    assert hashes == seed_hashes(problems["blobs"], PROTOCOL)
    assert len(set(hashes["start"])) == len(set(hashes["order"])) == SEEDS


def test_seeds_are_paired_and_a_worse_optimizer_is_found_worse(
    stored: Path, problems: Any
) -> None:
    noise = RNG.normal(0, 1e-3, SEEDS)
    tests = {"mine": ADAM + 0.02 + noise, "twin": ADAM + noise}
    read = read_baselines(stored, problems)
    found = against(record(**tests), problems, PROTOCOL, read)
    mine, twin = found["problems"]["blobs"].values()
    # smaller than the spread of the seeds: only pairs can tell it
    assert mine["adam"]["paired"]
    assert mine["adam"]["effect"] == 1
    assert mine["adam"]["p"] == 2 / 2**SEEDS
    assert mine["adam"]["p_holm"] < 0.05 < twin["adam"]["p_holm"]
    assert twin["bad"]["effect"] == -1
    assert found["sentences"][0].endswith(
        "compared with the baselines' in 10 pairs by seed (Holm's correction for 4)."
    )
    said = "\n".join(found["sentences"][1:])
    assert "mine is better than bad" in said
    assert "mine is worse than adam" in said
    assert "twin cannot be told from adam" in said


def test_other_starts_or_orders_are_compared_unpaired(
    stored: Path, problems: Any
) -> None:
    read = read_baselines(stored, problems)
    for kind in ("start", "order"):
        other: Any = json.loads(json.dumps(read))
        hashes = other["blobs"]["hashes"][kind]
        hashes[:7] = ["another"] * 7
        mine = record(mine=ADAM + 0.02, far=ADAM + 1)
        found = against(mine, problems, PROTOCOL, other)
        near, far = (row["adam"] for row in found["problems"]["blobs"].values())
        assert not near["paired"]
        assert near["effect"] == pytest.approx(0.02)
        assert far["p_holm"] < 0.05 < near["p_holm"]
        assert "unpaired, by their means: this platform" in found["sentences"][0]
        assert found["problems"]["blobs"]["mine"]["bad"]["effect"] < 0  # it diverged
        hashes[1:] = read["blobs"]["hashes"][kind][1:]  # all but one agree: all count
        assert not against(mine, problems, PROTOCOL, other)["problems"]["blobs"][
            "mine"
        ]["adam"]["paired"]


def test_so_few_seeds_that_nothing_can_be_told_are_said_to_be() -> None:
    row = {f"base {i}": {"effect": 1, "p": 1 / 16, "paired": True, "p_holm": 1.0}
           for i in range(9)}  # fmt: skip
    said = baselines._sentences("blobs", {"mine": row}, 5)
    assert said[1] == "So few seeds cannot tell any apart: no p is under 0.56."


def test_unpaired_equals_are_told_apart_once_in_twenty() -> None:
    """Of 200 simulated studies no more than 5 %, and the noise of the simulation."""
    rng, same = np.random.default_rng(1), np.zeros(SEEDS, bool)
    told = 0
    for _ in range(200):
        seeds = rng.normal(1, 0.1, SEEDS)
        a, b = (seeds + rng.normal(0, 0.02, SEEDS) for _ in range(2))
        told += difference_of(a, b, same).p < 0.05
    assert told <= 10 + 2 * np.sqrt(200 * 0.05 * 0.95)


def twice_the_loss(problem: Problem) -> Problem:
    """Of the same shapes, data and first weights."""

    def objective(*inputs: Any) -> Any:
        loss, rest = problem.objective(*inputs)
        return 2 * loss, rest

    return replace(problem, objective=objective)


CHANGES: dict[str, tuple[str, Callable[[Problem], Problem]]] = {
    "epochs": ("sizes", lambda p: replace(p, epochs=3)),
    "batch": ("sizes", lambda p: replace(p, batch_size=9)),
    "order": (
        "sizes", lambda p: replace(p, train=replace(p.train, order=Order("never")))
    ),
    "rows": ("data", lambda p: replace(p, test=p.validation)),
    "model": ("data", lambda p: replace(p, model=mlp(2, (5,), 3))),
    "objective": ("model or objective", twice_the_loss),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_version_of_a_problem_is_refused(change: str, stored: Path) -> None:
    """The same, made again, is not."""
    what, changed = CHANGES[change]
    with pytest.raises(UserError, match=rf"blobs\.json is of another ver.*{what}"):
        read_baselines(stored, {"blobs": changed(tiny_problem())})


def test_the_epochs_of_baselines_are_theirs(problems: Any, tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, epochs=1)
    short = {"blobs": replace(problems["blobs"], epochs=1)}
    write_baselines(record(adam=ADAM), short, protocol, {}, tmp_path)
    assert read_baselines(tmp_path, problems)["blobs"]["protocol"]["epochs"] == 1


def test_baselines_that_are_not_there_are_named(stored: Path, problems: Any) -> None:
    with pytest.raises(UserError, match=r"no baselines of 'blob' in .*'blobs'\?"):
        read_baselines(stored, {"blob": problems["blobs"]})
    with pytest.raises(UserError, match=r"no baselines of 'blobs' in .*nowhere$"):
        read_baselines(stored / "nowhere", problems)


# Published


def test_z_scores_are_differences_in_their_standard_error() -> None:
    ours = P1["adam"].mean + 0.01 + np.array([-0.02, 0.02] * 5)
    error = np.sqrt(np.var(ours, ddof=1) / 10 + P1["adam"].deviation ** 2 / 10)
    assert z_score(ours, P1["adam"]) == pytest.approx(0.01 / error)


def test_the_published_table_is_printed_beside_ours(
    monkeypatch: Patch, capsys: Said
) -> None:
    asked = []

    def losses_at(rate: float, name: str, problem: Any, chosen: Any, *_: Any) -> Any:
        [(optimizer, candidate)] = chosen.items()
        asked.append((optimizer, round(np.log10(rate), 1), dict(candidate.fixed)))
        assert problem.train.order.shuffle == "once"
        return {optimizer: P1[optimizer].mean + np.array([-0.02, 0.02] * 5)}

    monkeypatch.setattr(baselines, "losses_at", losses_at)
    found = reproduce_deepobs(None, 0)  # type: ignore[arg-type]
    assert asked == [
        ("sgd", -1.8, {}), ("momentum", -2.6, {"momentum": 0.99}), ("adam", -1.4, {})
    ]  # fmt: skip
    assert [found[f"{name}: z"] for name in P1] == pytest.approx([0, 0, 0], abs=1e-6)
    said = capsys.readouterr().out
    assert re.search(r"adam +0\.03981 +87\.1119 \+- 0\.0076 +87\.1119 \+- 0\.00", said)


def test_committed_baselines_are_of_the_problems_as_they_are() -> None:
    """Which is checked where there are any: small ones, whose data is committed."""
    there = [
        p.stem for p in baselines.STORED.glob("*.json") if p.stem in TIERS["small"]
    ]
    if not there:
        pytest.skip("no full study of the optimizers is stored")
    read_baselines(baselines.STORED, {name: PROBLEMS[name]() for name in there})


def test_the_time_of_a_run_is_read_from_what_was_measured(
    stored: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    readme = load("benchmarks", "readme")
    folder = tmp_path / "results" / "baselines"
    folder.mkdir(parents=True)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.problems_table().strip().startswith("Not measured yet: quadratic,")
    (folder / "digits.json").write_text((stored / "blobs.json").read_text())
    said = readme.problems_table()
    # 2 epochs of 5 steps, of 1e-5 s each
    assert re.search(r"\| three blobs \| small \| 10 \| [^|]+ \|", said)
    assert "digits," not in said.partition("Not measured yet")[2]
