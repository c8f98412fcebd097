"""Studies: what is chosen by what, replicas and their runs alone, kills, bad input."""

import json
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxstudy.dataset import dataset, subset
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.optimizers import OPTIMIZERS, LogUniform
from jaxstudy.runs.run import open_run
from jaxstudy.runs.saved import Options
from jaxstudy.study import runner
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.comparison import compare
from jaxstudy.study.problems import Problem
from jaxstudy.study.runner import (
    Protocol,
    at_edge,
    choose,
    losses_at,
    points,
    run_study,
    seed_keys,
)
from jaxstudy.training import (
    Evaluator,
    fit,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Batch, Key, Metrics, TrainState, UserError
from tests.conftest import ROOT, Ask, Patch, load

# Tuning and reporting have 15 replicas each, and so share a program.
PROTOCOL = Protocol(trials=5, seeds=5, budgets=(1, 2), epochs=2)
NAMES = ("momentum", "schedule_free")


def three_blobs(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    centres = np.array([[2, 0], [-1, 2], [-1, -2]])
    x = (centres[y] + rng.normal(size=(rows, 2))).astype(np.float32)
    return {"x": x, "y": y.astype(np.int32)}


def tiny_problem() -> Problem:
    """A network 2-4-3 on 40 points, 5 steps an epoch."""
    data = dataset(three_blobs(80, 0))
    model = mlp(2, (4,), 3)
    return Problem(
        title="three blobs",
        model=model,
        objective=cross_entropy(model),
        train=subset(data, range(40)),
        validation=subset(data, range(40, 60)),
        test=subset(data, range(60, 80)),
        batch_size=8,
        epochs=2,
        target=0.5,
    )


def candidates(*names: str) -> dict[str, Candidate]:
    return {n: Candidate(OPTIMIZERS[n], OPTIMIZERS[n].space) for n in names}


@dataclass(frozen=True)
class Config:
    seed: int = 0


def run_tiny(
    folder: Path,
    problem: Problem | None = None,
    candidates: Any = candidates("momentum"),  # noqa: B008
    protocol: Protocol = PROTOCOL,
    resume: bool = False,
) -> dict[str, Any]:
    problems = {"blobs": problem or tiny_problem()}
    each = Options(save_every=0)
    with open_run(folder, "tiny", "", Config(), each, resume=resume) as run:
        return run_study(problems, candidates, protocol, run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Which traces an optimizer's step and evaluation once, its start and end once."""
    folder = tmp_path_factory.mktemp("study") / "run"
    assert len(PROTOCOL.all_budgets()) * PROTOCOL.seeds == 5 * 3
    chex.clear_trace_counter()
    problem = tiny_problem()
    # and of the problem, once each: the test set and the loss before training
    most = 2 * len(NAMES) + 2
    objective = chex.assert_max_traces(n=most)(problem.objective)
    problem = replace(problem, objective=objective)
    return folder, run_tiny(folder, problem, candidates(*NAMES))


# What is chosen, and by what.


def test_choice_is_the_lowest_median_of_the_first_k() -> None:
    losses = np.array([[3, 3, 3], [1, 9, 1], [2, 2, 2], [0, 0, np.nan]])
    assert choose(losses, [1, 2, 3, 4]) == [0, 1, 1, 3]
    # two of three seeds diverged: the median is infinite, though the mean of the
    # others would be the lowest
    assert choose(np.array([[5, 5, 5], [0, np.nan, np.inf]]), [2]) == [0]
    assert choose(np.full((2, 3), np.nan), [2]) == [0]


def test_choice_of_a_study_is_by_the_tuning_seeds_on_validation(finished: Any) -> None:
    for cell in finished[1]["cells"]:
        medians = np.median(np.array(cell["tuning"]["validation"], float), axis=1)
        for k, reported in cell["reported"].items():
            assert reported["point"] == np.argmin(medians[: int(k)])
            assert not set(reported["seeds"]) & set(cell["tuning"]["seeds"])
            assert len(set(reported["seeds"])) == PROTOCOL.seeds


def test_choice_sees_neither_the_test_set_nor_the_reported_seeds(
    finished: Any, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Other test labels, and reported seeds that only ever diverge, choose the same."""
    problem = tiny_problem()
    arrays = {k: np.array(v) for k, v in problem.test.arrays.items()}
    arrays["y"][60:] = (arrays["y"][60:] + 1) % 3
    test = replace(problem.test, arrays=dataset(arrays).arrays)
    real = runner.seed_keys

    def seed_keys(protocol: Protocol, numbers: Any) -> tuple[Key, Key]:
        start, order = real(protocol, numbers)
        if min(numbers) >= protocol.tuning_seeds:  # others than the usual ones
            start = jax.vmap(lambda key: jax.random.fold_in(key, 99))(start)
        return start, order

    monkeypatch.setattr(runner, "seed_keys", seed_keys)
    (cell,) = run_tiny(tmp_path / "run", replace(problem, test=test))["cells"]
    usual = finished[1]["cells"][0]
    assert cell["tuning"] == usual["tuning"]
    assert cell["points"] == usual["points"]
    assert cell["reported"].keys() == usual["reported"].keys()
    for budget, mine in cell["reported"].items():
        assert mine["point"] == usual["reported"][budget]["point"]
        assert mine["test"] != usual["reported"][budget]["test"]


def test_tuning_never_evaluates_the_test_set(finished: Any) -> None:
    lines = (finished[0] / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    tested = [row["part"] for row in rows if row["split"] == "test"]
    assert sorted(tested) == [f"report blobs {name}" for name in NAMES]


def test_budgets_are_equal_and_points_come_from_one_sequence() -> None:
    protocol = Protocol(trials=16)
    unit = {}
    for candidate in candidates(*OPTIMIZERS).values():
        at = points(candidate, protocol, "digits")
        assert {len(v) for v in at.values()} == {16}
        assert set(at) == set(candidate.space)
        for i, (parameter, log) in enumerate(candidate.space.items()):
            inside = np.array(at[parameter], np.float64)
            inside = 1 - inside if log.one_minus else inside
            place = np.log(inside / log.low) / np.log(log.high / log.low)
            assert np.all((place > -1e-3) & (place < 1 + 1e-3))
            # float32 leaves 1 - 0.9999 two or three digits
            unit.setdefault(i, place)
            np.testing.assert_allclose(place, unit[i], atol=2e-3)
    other = points(candidates("sgd")["sgd"], protocol, "quadratic")["rate"]
    assert not np.allclose(
        other, points(candidates("sgd")["sgd"], protocol, "digits")["rate"]
    )


def test_fewer_trials_are_the_beginning_of_more() -> None:
    adam = candidates("adam")["adam"]
    few, many = (points(adam, Protocol(trials=n), "digits") for n in (5, 40))
    for name in few:
        np.testing.assert_array_equal(few[name], many[name][:5])


def test_a_grid_is_even_in_the_logarithm() -> None:
    candidate = Candidate(OPTIMIZERS["adam"], {"rate": LogUniform(1e-4, 1e-1)})
    at = points(candidate, Protocol(trials=4, search="grid"), "digits")
    np.testing.assert_allclose(at["rate"], [1e-4, 1e-3, 1e-2, 1e-1], rtol=1e-6)
    with pytest.raises(UserError, match="a grid has one axis, not 3"):
        points(candidates("adam")["adam"], Protocol(search="grid"), "digits")


def test_edges() -> None:
    tried = np.array([3.0, 1.0, 2.0])
    assert [at_edge(tried, i) for i in range(3)] == [True, True, False]
    assert not at_edge(np.array([1.0]), 0)  # one value has no edges


# Replicas.


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_of_a_study_is_its_run_alone(finished: Any, name: str) -> None:
    """The chosen trial, reported seed number 4, as anybody would train it."""
    (cell,) = (cell for cell in finished[1]["cells"] if cell["optimizer"] == name)
    reported = cell["reported"]["5"]
    problem, number = tiny_problem(), reported["seeds"][1]
    values = {k: np.float32(v[reported["point"]]) for k, v in cell["points"].items()}
    tx, weights = OPTIMIZERS[name].make(**values), OPTIMIZERS[name].weights
    start, order = (keys[0] for keys in seed_keys(PROTOCOL, [number]))

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        state = state._replace(params=weights(state.opt_state, state.params))
        return make_eval_step(problem.objective)(state, batch)

    sets = {"validation": problem.validation, "test": problem.test}
    alone = fit(
        init_state(problem.model, tx, start),
        make_train_step(problem.objective, tx),
        problem.train,
        key=order,
        epochs=2,
        batch_size=problem.batch_size,
        evaluators={name: Evaluator(evaluate, data) for name, data in sets.items()},
    ).records
    for split in ("train", "validation", "test"):
        want = [r["loss"] for r in alone if r["split"] == split and r["epoch"] > 0]
        got = reported[split]
        got = [got[1]] if split == "test" else [epoch[1] for epoch in got]
        assert got == pytest.approx(want[-len(got) :], rel=1e-5)


def test_one_rate_for_all_is_tried_with_the_reported_seeds(
    finished: Any, tmp_path: Path
) -> None:
    """At what a study chose, an optimizer has the losses of the study."""
    cell = finished[1]["cells"][0]
    chosen = cell["reported"]["5"]
    rate, momentum = (cell["points"][n][chosen["point"]] for n in ("rate", "momentum"))
    only = {"it": Candidate(OPTIMIZERS["momentum"], {}, {"momentum": momentum})}
    with open_run(tmp_path, "tiny", "", Config(), Options(save_every=0)) as run:
        again = losses_at(rate, "blobs at a rate", tiny_problem(), only, PROTOCOL, run)
    np.testing.assert_allclose(again["it"], chosen["test"], rtol=1e-5)


def test_a_common_rate_is_shown_beside_each_ones_own() -> None:
    module = load("experiments", "ch1_optimizers")
    right = {"sgd": np.array([1.0, 1.2]), "adam": np.array([2.0, 2.2])}
    wrong = {"sgd": np.array([3.0, 3.3]), "adam": right["adam"]}
    found = module.one_common_rate(right, wrong, 0.1)
    assert found["order on digits, best first"] == "sgd, adam"
    assert found["mistake: order on digits, best first"] == "adam, sgd"
    gap = found["mistake - right: sgd: test loss on digits"]
    assert gap.values == pytest.approx((2.0, 2.1))
    wrong["sgd"] = np.array([3.0, np.inf])
    found = module.one_common_rate(right, wrong, 0.1)
    assert found["mistake: sgd: test loss on digits"] == "diverged in 1 seeds"


# Divergence.


def test_a_run_that_diverges_is_the_worst_and_stays_in(tmp_path: Path) -> None:
    """Rates of 1e38 overflow: of two trials the other one is chosen. Vmapped."""
    sgd = OPTIMIZERS["sgd"]
    wild = Candidate(sgd, {"rate": LogUniform(1e-2, 1e38)})
    hopeless = Candidate(sgd, {"rate": LogUniform(1e37, 1e38)})
    protocol = replace(
        PROTOCOL, trials=2, search="grid", tuning_seeds=5, budgets=(1,), mode="vmap"
    )
    record = run_tiny(
        tmp_path / "run", candidates={"wild": wild, "bad": hopeless}, protocol=protocol
    )
    cell = record["cells"][0]
    assert cell["tuning"]["validation"][1] == [None] * 5
    assert cell["reported"]["2"]["point"] == 0
    row = record["comparison"]["problems"]["blobs"]["optimizers"]["bad"]
    assert (row["diverged"], row["test"], row["effect"]) == (5, None, 1)
    assert row["p"] == pytest.approx(2 / 2**5)
    sentences = record["comparison"]["sentences"]
    assert any("5 of 5 runs of bad diverged" in s for s in sentences)


# study.json: complete, and the same after a kill.


def test_every_number_can_be_computed_again_from_the_file(finished: Any) -> None:
    folder, record = finished
    stored = json.loads((folder / "study.json").read_text())
    assert stored == json.loads(json.dumps(record))
    again = {k: v for k, v in stored.items() if k != "comparison"}
    assert json.loads(json.dumps(compare(again))) == stored["comparison"]


def test_a_finished_study_resumes_without_training(
    finished: Any, monkeypatch: Patch
) -> None:
    folder, record = finished
    monkeypatch.setattr(runner, "fit", None)
    again = run_tiny(folder, candidates=candidates(*NAMES), resume=True)
    assert again == record
    assert not list((folder / "checkpoints").glob("*"))


SCRIPT = ROOT / "benchmarks" / "optimizers.py"
SLOW = [
    "--preset", "smoke", "--problems", "digits", "--optimizers", "sgd", "adam",
    "--epochs", "20", "--trials", "4", "--save-every", "0",
]  # fmt: skip


@pytest.mark.torture
def test_a_study_killed_twice_ends_as_one_never_killed(
    tmp_path: Path, start: Any
) -> None:
    """By SIGTERM while its last optimizer is tuned, by SIGKILL while it is reported."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(SCRIPT, [*SLOW, "--run-dir", whole]).wait(timeout=200) == 0
    log, arguments, before = killed / "metrics.jsonl", SLOW, []
    for signum, code, part in (
        (signal.SIGTERM, 143, b"tune digits adam"),
        (signal.SIGKILL, -signal.SIGKILL, b"report digits adam"),
    ):
        process = start(SCRIPT, [*arguments, "--run-dir", killed])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and part in log.read_bytes():
                process.send_signal(signum)
                break
            time.sleep(0.01)
        assert process.wait(timeout=60) == code
        assert not (killed / "study.json").exists()
        assert part in log.read_bytes()
        before = timed(log)
        arguments = ["--resume"]
    assert start(SCRIPT, ["--resume", "--run-dir", killed]).wait(timeout=200) == 0
    assert untimed(killed) == untimed(whole)
    results = [json.loads((f / "result.json").read_text()) for f in (killed, whole)]
    assert results[0]["steps"] == results[1]["steps"]
    assert results[0]["attempts"] == 3
    # a block that was finished before is not trained again, but counted
    assert results[0]["train_s"] > sum(
        json.loads(x)["seconds per step"] for x in before
    )
    assert len(timed(log)) > len(before) > 0
    assert timed(log)[: len(before)] == before  # as measured: nothing was repeated


def timed(log: Path) -> list[bytes]:
    """The rows that say how long a step took, which no two trainings have alike."""
    lines = log.read_bytes().splitlines()
    return [line for line in lines if b"seconds per step" in line]


def untimed(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The study and the rows of a run; the rows without how long a step took."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = [{k: row[k] for k in row if k != "seconds per step"} for row in rows]
    return (folder / "study.json").read_bytes(), kept


# Bad input.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trials": 0}, "the grid is empty"),
        ({"tuning_seeds": 2}, "a median to choose by needs 3 tuning seeds or more"),
        ({"seeds": 4}, "the smallest p that 4 pairs can give is 0.125"),
    ],
)
def test_a_protocol_that_cannot_tell_is_refused(changes: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Protocol(**changes)


def test_bad_input_is_refused_and_leaves_nothing(tmp_path: Path, ask: Ask) -> None:
    module, folder = load("benchmarks", "optimizers"), tmp_path / "run"
    for arguments, reason in (
        ("--optimizers adm", "did you mean 'adam'?"),
        ("--optimizers", "a study needs a problem and an optimizer"),
        ("--spaces adam.momentun=0.1:1", "no tuned hyperparameter of adam"),
        ("--spaces adm.rate=0.1:1", "did you mean 'adam'?"),
        ("--spaces adam.rate=1:0.1", "the range 1 to 0.1 is empty"),
        ("--spaces adam.rate=1:2:3", "neither LOW:HIGH nor a number"),
        ("--seeds 1", "1 seeds are too few to compare by"),
    ):
        where = ("--preset", "smoke", "--problems", "digits", "--run-dir", folder)
        answer = ask(module, *where, *arguments.split())
        assert answer.code == 2, arguments
        assert reason in answer.error
        assert answer.error.count("\n") == 1
        assert not folder.exists()


def test_a_value_that_is_set_is_not_tuned() -> None:
    module = load("benchmarks", "optimizers")
    config = module.Config(
        optimizers=("adam",), spaces=("adam.b1=0.5", "adam.rate=1e-3:1e-2")
    )
    at = points(module.candidates(config)["adam"], Protocol(trials=4), "digits")
    assert set(at) == {"rate", "b1", "b2"}
    np.testing.assert_array_equal(at["b1"], np.full(4, 0.5, np.float32))
    assert at["rate"].min() >= 1e-3
    assert at["rate"].max() <= 1e-2
