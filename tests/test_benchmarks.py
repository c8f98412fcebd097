"""benchmarks/speed.py: what it computes and writes; how fast anything is, is not."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import speed  # noqa: E402  # pyright: ignore[reportMissingImports]

from jaxstudy.study.problems import TARGETS  # noqa: E402


def made_up() -> dict[str, Any]:
    """A result with round figures: 100, 300, 200 steps/s beside 10, 10, 40 and 1."""

    def rounds(rates: list[float], **more: float) -> list[dict[str, float]]:
        return [
            {
                "steps_per_s": rate, "preparing_s": 0.5, "total_s": 1.5,
                "loss": 0.5, "first_step_s": 2.0 + i, **more,
            }
            for i, rate in enumerate(rates)
        ]  # fmt: skip

    contestants = {
        speed.OURS: ("ours", False, rounds([100, 300, 200], first_step_cached_s=0.25)),
        "peer": ("A | peer", True, rounds([10, 10, 40])),
        "slow": ("Slow", True, rounds([1, 1, 1])),
        "extra": ("Extra", False, rounds([1000, 1000, 1000])),
    }
    result = {
        "schema": speed.SCHEMA,
        "workload": "admission",
        "title": "some work",
        "epochs": 7,
        "rounds": 3,
        "tolerance": 0.02,
        "environment": {"cores": 2, "processor": "a processor", "python": "3.11"},
        "versions": {"jax": "1.2.3"},
        "contestants": {
            name: {"label": label, "counted": counted, "rounds": each}
            for name, (label, counted, each) in contestants.items()
        },
    }
    return speed.summarised(result, {"best peer": 8, "slow": 1000})


def test_ratios_are_of_the_same_round_and_the_best_peer_is_one_that_counts() -> None:
    result = made_up()
    ratio = result["contestants"]["peer"]["times_as_fast"]
    assert ratio == {"median": 10, "low": 5, "high": 30}  # of 10, 30 and 5
    assert result["best_peer"] == "peer"
    assert result["targets"] == {
        "best peer": {"at_least": 8, "measured": 10},
        "slow": {"at_least": 1000, "measured": 200},
    }


def test_table_shows_medians_and_ratios_and_depends_on_the_result_alone() -> None:
    result = made_up()
    before = copy.deepcopy(result)
    table = speed.table(result)
    assert result == before
    assert table == speed.table(json.loads(json.dumps(result)))
    lines = table.splitlines()
    columns = {line.count("|") - line.count("\\|") for line in lines[:6]}
    assert columns == {8}  # 7 cells in every row: the label's bar is escaped
    assert "**ours**" in lines[2]
    assert "200 (100 to 300)" in lines[2]
    assert "0.25 (0.25 to 0.25)" in lines[2]
    assert "A \\| peer" in lines[3]
    assert "| 10.0 (10.0 to 40.0) | 10.0 (5.00 to 30.0) x |" in lines[3]
    assert "3.00 (2.00 to 4.00)" in lines[3]
    assert "(for comparison)" in lines[5]
    assert "7 epochs, s" in lines[0]
    assert "jax 1.2.3" in lines[-1]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(28437.0, "28,400"), (160.26, "160"), (99.96, "100.0"), (12.34, "12.3"),
     (1.234, "1.23"), (0.5, "0.50")],
)  # fmt: skip
def test_figures_have_about_three_digits(value: float, shown: str) -> None:
    figure = speed.spread([value])
    assert speed._range(figure) == f"{shown} ({shown} to {shown})"


@pytest.mark.parametrize("loss", [0.53, 0.47, math.nan])
def test_other_losses_are_a_disagreement(loss: float) -> None:
    result = made_up()
    assert speed.disagreement(result) is None
    result["contestants"]["slow"]["figures"]["loss"]["median"] = loss
    message = speed.disagreement(result)
    assert message is not None
    assert str(loss) in message


def test_admission_rows_are_standardised_and_a_file_without_objects(
    tmp_path: Path,
) -> None:
    data = speed.admission_data()
    assert data["x"].shape == (400, 3)
    assert data["x"].dtype == data["y"].dtype == np.float32
    assert np.allclose(data["x"].mean(0), 0, atol=1e-6)
    assert np.allclose(data["x"].std(0), 1, atol=1e-6)
    assert data["y"].sum() == 127
    np.savez(tmp_path / "data.npz", **data)
    again = np.load(tmp_path / "data.npz", allow_pickle=False)
    assert all(np.array_equal(again[name], data[name]) for name in data)


def test_this_project_trains_as_asked() -> None:
    work = speed.WORKLOADS["admission"]
    data = work.data()
    train = work.contestants[speed.OURS].train
    trained = train(work, data, 2, 0, None)
    assert trained.steps == trained.timed_steps == 26  # 12 full batches and a half
    assert 0.3 < trained.loss < 0.8
    assert trained.preparing_s > 0
    assert trained.train_s > 0
    told: list[str] = []
    again = train(work, data, 2, 0, lambda: told.append("told"))
    assert told == ["told"]
    assert again.loss == trained.loss
    assert train(work, data, 2, 1, None).loss != trained.loss


def test_a_process_says_when_its_first_step_is_finished() -> None:
    line = [sys.executable, str(ROOT / "benchmarks" / "speed.py")]
    line += ["--contestant", speed.OURS, "--first-step-only"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == f"{speed.FIRST_STEP}\n"


@pytest.mark.parametrize("option", ["--workload", "--contestant"])
def test_an_unknown_name_gets_the_known_ones(option: str) -> None:
    command = speed.Command(**{option.removeprefix("--"): "nothing"})
    with pytest.raises(SystemExit) as stopped:
        speed.main(command)
    assert "admission" in str(stopped.value) or "keras-jax" in str(stopped.value)


def test_every_workload_has_a_committed_result_of_its_contestants() -> None:
    for name, work in speed.WORKLOADS.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        result = json.loads(path.read_text())
        assert result["schema"] == speed.SCHEMA
        assert result["workload"] == name
        assert result["rounds"] >= 5
        assert list(result["contestants"]) == list(work.contestants)
        assert speed.disagreement(result) is None
        summary = speed.summarised(copy.deepcopy(result), work.targets)
        assert summary == result  # medians and ratios are those of the rounds
        assert "this project" in speed.table(result)


def test_targets_are_those_that_the_full_benchmark_measured() -> None:
    """By its tuning seeds; so a change that moves them is seen when it is run again."""
    stored = json.loads((ROOT / "results" / "optimizers.json").read_text())
    for name, target in stored["targets of AlgoPerf"].items():
        assert pytest.approx(target, rel=5e-4) == TARGETS[name]
        assert stored["study"]["problems"][name]["target"] == TARGETS[name]
