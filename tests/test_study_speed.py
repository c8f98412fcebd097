"""benchmarks/study_speed.py: what it computes and writes; how fast anything is, is not.

Keras on TensorFlow and PyTorch are not in the tests' environment: of the contestants,
this project and numpy are run here, and what times a peer is, with one made up.
"""

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402  # pyright: ignore[reportMissingImports]
import study_speed as bench  # noqa: E402  # pyright: ignore[reportMissingImports]

TARGETS = {"slow": (("slow",), 100.0), "both": (("slow", "quick"), 10.0)}


def made_up(kind: str = "study") -> dict[str, Any]:
    """Ours takes 2, 4 and 5 s; slow 400 s; quick 10, 80 and 25 s: 5, 20, 5 times."""

    def rounds(seconds: list[float], shift: float, **more: float) -> list[Any]:
        return [
            {"total_s": s, "losses": {"a": [0.5 + i / 100 + shift], "b": [300.0]}}
            | more
            for i, s in enumerate(seconds)
        ]

    contestants = {
        bench.OURS: ("ours", rounds([2, 4, 5], 0.0, preparing_s=1.5)),
        "slow": ("Slow", rounds([400, 400, 400], 0.005)),
        "quick": ("Quick", rounds([10, 80, 25], -0.005)),
    }
    result = {
        "schema": bench.SCHEMA,
        "kind": kind,
        "title": "some work",
        "epochs": 7,
        "rounds": 3,
        "replicas": 360,
        "sample": 6,
        "compared_at": {"a": 0.1, "b": 0.5},
        "floor": 0.01,
        "environment": {"cores": 2, "processor": "a processor", "python": "3.11"},
        "versions": {"jax": "1.2.3"},
        "contestants": {
            name: {"label": label, "rounds": each}
            for name, (label, each) in contestants.items()
        },
    }
    return bench.summarised(result, TARGETS)


def test_ratios_are_of_the_same_round_and_a_target_is_of_the_fastest() -> None:
    result = made_up()
    ratio = result["contestants"]["quick"]["times_as_fast"]
    assert ratio == {"median": 5, "low": 5, "high": 20}
    assert result["targets"] == {
        "slow": {"at_least": 100, "measured": 100},
        "both": {"at_least": 10, "measured": 5},
    }
    reached, missed = bench.verdicts(result)
    assert reached.endswith("reached")
    assert missed.endswith("MISSED")
    means = result["contestants"]["slow"]["mean_losses"]
    assert means == {"a": pytest.approx(0.515), "b": 300}


@pytest.mark.parametrize("kind", ["study", "quadratic"])
def test_table_depends_on_the_result_alone_and_says_how_it_was_measured(
    kind: str,
) -> None:
    result = made_up(kind)
    before = copy.deepcopy(result)
    table = bench.table(result)
    assert result == before
    assert table == bench.table(json.loads(json.dumps(result)))
    lines = table.splitlines()
    assert {line.count("|") for line in lines[:5]} == {5}
    assert lines[2].startswith("| **ours** | **4.00 (2.00 to 5.00)** | 1.50 (1.50 to")
    assert "| 5.00 (5.00 to 20.0) x |" in lines[4]
    assert "jax 1.2.3" in lines[-1]
    assert "2 cores, a processor" in lines[-1]
    assert ("scaled by 360/6" in lines[-1]) == (kind == "study")


def test_losses_within_the_noise_agree() -> None:
    assert bench.disagreement(made_up()) is None


@pytest.mark.parametrize(
    ("name", "group", "shift"),
    [("slow", "a", 0.1), ("quick", "a", -0.1), ("slow", "b", 3.5), ("slow", "a", None),
     (bench.OURS, "a", None)],
)  # fmt: skip
def test_other_losses_and_nan_are_a_disagreement(
    name: str, group: str, shift: float | None
) -> None:
    result = made_up()
    for figures in result["contestants"][name]["rounds"]:
        losses = figures["losses"][group]
        losses[0] = math.nan if shift is None else losses[0] + shift
    message = bench.disagreement(result)
    assert message is not None
    assert group in message


def test_disagreement_allows_four_standard_errors_and_the_floor() -> None:
    result = made_up()
    error = 0.01 * math.sqrt(1 / 3 + 1 / 3)  # ours: 0.50, 0.51, 0.52

    def with_mean(apart: float) -> str | None:
        for i, figures in enumerate(result["contestants"]["slow"]["rounds"]):
            figures["losses"]["a"] = [0.5 + i / 100 + apart]
        return bench.disagreement(result)

    assert with_mean(4 * error + 0.0099) is None
    assert with_mean(4 * error + 0.0101) is not None


def test_sampled_replicas_begin_at_the_compared_rate_with_seeds_of_the_round() -> None:
    replicas = bench.sampled(1, 3)
    assert [replica.optimizer for replica in replicas] == list(bench.COMPARED)
    assert all(
        replica.rate == bench.COMPARED[replica.optimizer] for replica in replicas
    )
    assert {replica.seed for replica in replicas} == {15}
    everything = bench.sampled(60, 0)
    assert len(set(everything)) == len(everything) == bench.REPLICAS == 360


def test_a_peer_is_timed_on_its_sample_and_scaled_to_all_replicas() -> None:
    trained: list[bench.Replica] = []

    def train(data: Any, replica: bench.Replica, epochs: int) -> float:
        trained.append(replica)
        time.sleep(0.2 if len(trained) == 1 else 0.002)  # the first is not timed
        return float(replica.rate)

    figures = bench.peer(train, bench.Command(sample=6, epochs=1), {})
    assert len(trained) == 1 + 36
    assert figures["total_s"] == figures["replica_s"] * 360
    assert 0.002 <= figures["replica_s"] < 0.2
    assert figures["losses"] == {n: [i] * 5 for n, i in bench.COMPARED.items()}


def test_every_replica_of_this_projects_study_trains() -> None:
    command = bench.Command(epochs=1)
    data = bench.PARTS["study"].data()
    figures = bench.study_jaxstudy(command, data)
    assert set(figures["losses"]) == set(bench.COMPARED)
    for losses in figures["losses"].values():
        assert len(set(losses)) == bench.SEEDS
        assert all(0.5 < loss < 0.8 for loss in losses)
    assert 0 < figures["preparing_s"] < figures["total_s"]


def test_numpy_and_this_project_agree_on_the_quadratic() -> None:
    """Each epoch's loss, replica by replica, given the same batches."""
    from jaxstudy.dataset import epoch_batches
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.study.problems import quadratic
    from jaxstudy.study.runner import (
        Candidate,
        Protocol,
        as_replicas,
        make_common,
        make_step_functions,
        start_replicas,
    )
    from jaxstudy.training import fit

    problem, epochs, rates = quadratic(), 3, np.array([1e-4, 1e-2], np.float32)
    keys = jax.random.split(jax.random.key(1), 2)
    functions = make_step_functions(problem, Candidate(OPTIMIZERS["sgd"], {}))
    replicas = as_replicas({"rate": rates}, 2, Protocol(mode="vmap"))
    fitted = fit(
        start_replicas(make_common(problem), functions, keys, replicas),
        functions.train_step,
        problem.train,
        key=keys,
        epochs=epochs,
        batch_size=128,
        replicas=replicas,
        chunk_steps=10**9,
    )
    ours = np.array([row["loss"] for row in fitted.records]).reshape(epochs, 2, 2)

    def rows(epoch: int, key: Any) -> np.ndarray:
        batches = epoch_batches(problem.train, 128, key, jnp.int32(epoch))
        return np.asarray(batches.indices).ravel()

    orders = np.array([[rows(e, k) for k in keys] for e in range(epochs)])
    data = bench.quadratic_data()
    got = bench.sgd_on_quadratic(data, rates, orders, 128)
    assert got.shape == ours.shape
    assert len(np.unique(ours)) == ours.size
    assert np.allclose(got, ours, rtol=1e-5)


def test_numpy_on_whole_batches_is_the_closed_form() -> None:
    """With every row in the batch, each step takes p - m to (I - a H) (p - m)."""
    data, rates = bench.quadratic_data(), np.array([1e-3, 1e-2], np.float32)
    orders = np.tile(np.arange(1000), (5, 1, 1))
    got = bench.sgd_on_quadratic(data, rates, orders, 1000)[:, :, 0]
    x, h = data["x"].astype(float), data["h"].astype(float)
    for i, rate in enumerate(rates.astype(float)):
        for step in range(5):
            power = np.linalg.matrix_power(np.eye(100) - rate * h, step)
            p = x.mean(0) + power @ (1 - x.mean(0))
            want = 0.5 * np.einsum("nd,de,ne->", p - x, h, p - x, optimize=True) / 1000
            assert got[step, i] == pytest.approx(want, rel=1e-5)


def test_the_quadratic_is_measured_written_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end, each contestant in its process, but tiny."""
    monkeypatch.setattr(bench, "use_all_cores", lambda: None)  # JAX runs already
    command = bench.Command(part="quadratic", rounds=1, epochs=2, out=tmp_path)
    assert bench.main(command) == 0
    result = json.loads((tmp_path / "quadratic.json").read_text())
    assert list(result["contestants"]) == list(bench.PARTS["quadratic"].contestants)
    figures = result["contestants"][bench.OURS]["figures"]
    assert figures["preparing_s"]["median"] > figures["total_s"]["median"] > 0
    assert bench.table(result) in capsys.readouterr().out


def test_nothing_is_written_when_losses_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made_up("quadratic")
    result["contestants"]["slow"]["rounds"][0]["losses"]["a"] = [9.0]
    monkeypatch.setattr(bench, "use_all_cores", lambda: None)
    monkeypatch.setattr(bench, "measure", lambda *_: result)
    with pytest.raises(SystemExit, match="nothing is written"):
        bench.main(bench.Command(part="quadratic", out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_readme_shows_each_result_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    stored = ROOT / "benchmarks" / "results" / "admission.json"
    (folder / "admission.json").write_text(stored.read_text())
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    alone = readme.speed_table()
    assert "this project, `fit`" in alone
    (folder / "study.json").write_text(json.dumps(made_up()))
    assert readme.speed_table() == f"{alone}\n\n{bench.table(made_up())}"


@pytest.mark.parametrize(
    "wrong",
    [{"contestant": "torch"}, {"part": "study", "contestant": "nobody"}, {"sample": 0},
     {"sample": 61}, {"rounds": 0}, {"epochs": 0}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(bench.Command(**wrong))
    assert isinstance(stopped.value.code, str)


@pytest.mark.parametrize("name", bench.PARTS)
def test_a_committed_result_is_of_these_contestants(name: str) -> None:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    result = json.loads(path.read_text())
    part = bench.PARTS[name]
    assert (result["schema"], result["kind"]) == (bench.SCHEMA, name)
    assert result["rounds"] >= 5
    assert list(result["contestants"]) == list(part.contestants)
    assert bench.disagreement(result) is None
    assert bench.summarised(copy.deepcopy(result), part.targets) == result
