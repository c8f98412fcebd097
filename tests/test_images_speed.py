"""benchmarks/images_speed.py and contest.py: what they compute and write, not how fast.

TensorFlow and PyTorch are not in the tests' environment: this project and Keras on JAX
are run here, with few steps on made-up data.
"""

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import contest  # noqa: E402  # pyright: ignore[reportMissingImports]
import images_speed as bench  # noqa: E402  # pyright: ignore[reportMissingImports]
import readme  # noqa: E402  # pyright: ignore[reportMissingImports]

from jaxstudy.data.sources import MissingData  # noqa: E402
from jaxstudy.model import sequential, split_stages  # noqa: E402
from jaxstudy.models.cnn import cnn  # noqa: E402
from jaxstudy.models.inception import inception_stages  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "images_speed.py"
TOLERANCES = {"loss": 0.01, "picture": 0.1}


def made_up(operations: float | None = 3e9) -> dict[str, Any]:
    """Ours takes 10, 20 and 40 ms; a peer 20, 80 and 40 ms: 2, 4 and 1 times."""

    def rounds(times: list[float], apart: float) -> list[dict[str, float]]:
        share = {} if operations is None else {"peak_share": 0.25}
        return [
            {"step_ms": ms, "steps_per_s": 1e3 / ms, "loss apart": apart,
             "picture apart": 0.05, **share}
            for ms in times
        ]  # fmt: skip

    contestants = {
        contest.OURS: ("ours", False, rounds([10, 20, 40], 0.0)),
        "peer": ("Peer", True, rounds([20, 80, 40], 0.005)),
        "slow": ("Slow", True, rounds([1000, 1000, 1000], 0.01)),
        "extra": ("Extra", False, rounds([1, 1, 1], 0.0)),
    }
    result = {
        "schema": contest.SCHEMA,
        "kind": "images",
        "workload": "cnn",
        "title": "some work",
        "about": "Epochs of {steps} steps",
        "steps": 7,
        "rounds": 3,
        "operations": operations,
        "peaks": [150.0, 200.0, 180.0],
        "tolerances": TOLERANCES,
        "environment": {"cores": 2, "processor": "a processor", "python": "3.11"},
        "versions": {"jax": "1.2.3"},
        "contestants": {
            name: {"label": label, "counted": counted, "rounds": each}
            for name, (label, counted, each) in contestants.items()
        },
    }
    return contest.speed.summarised(result, {"best peer": 3})


def test_ratios_are_of_the_same_round_to_the_best_that_counts() -> None:
    result = made_up()
    ratio = result["contestants"]["peer"]["times_as_fast"]
    assert ratio == {"median": 2, "low": 1, "high": 4}
    assert result["best_peer"] == "peer"
    assert contest.verdicts(result) == ["2 times as fast as best peer; aim: 3, MISSED"]


@pytest.mark.parametrize("operations", [3e9, None])
def test_table_depends_on_the_result_alone(operations: float | None) -> None:
    result = made_up(operations)
    before = copy.deepcopy(result)
    table = contest.table(result)
    assert result == before
    assert table == contest.table(json.loads(json.dumps(result)))
    lines = table.splitlines()
    assert {line.count("|") for line in lines[:6]} == {5 if operations else 4}
    assert lines[2].startswith("| **ours** | **20.0 (10.0 to 40.0)** |")
    assert lines[3].endswith("| 2.00 (1.00 to 4.00) x |")
    assert "Extra (for comparison)" in lines[5]
    assert "Epochs of 7 steps" in lines[-1]
    assert "loss 0.01, picture 0.1" in lines[-1]
    assert ("25.0 (25.0 to 25.0)" in lines[2]) == (operations is not None)
    assert ("take 3 GFLOP" in lines[-1]) == (operations is not None)


def test_what_a_step_makes_is_shown_per_second() -> None:
    result = made_up()
    result["makes"] = ["tokens", 50]
    for c in result["contestants"].values():
        c["figures"]["made_per_s"] = contest.speed.spread([12_340.0])
    lines = contest.table(result).splitlines()
    assert lines[0].startswith("|  | tokens per second |")
    assert lines[2].startswith("| **ours** | **12,300 (12,300 to 12,300)** |")
    assert lines[3].endswith("| 2.00 (1.00 to 4.00) x |")


@pytest.mark.parametrize("what", TOLERANCES)
@pytest.mark.parametrize("found", [0.11, math.inf, math.nan])
def test_results_that_are_apart_in_one_round_are_a_disagreement(
    what: str, found: float
) -> None:
    result = made_up()
    assert contest.disagreement(result) is None
    result["contestants"]["slow"]["rounds"][1][f"{what} apart"] = found
    message = contest.disagreement(result)
    assert message is not None
    assert message.startswith(f"slow: {what}")


def test_apart_is_relative_to_the_largest_number() -> None:
    like = np.array([1.0, -4.0])
    assert contest.apart(np.array([1.0, -3.0]), like) == 0.25
    assert contest.apart(like[:1], like) == math.inf
    assert math.isnan(contest.apart(np.array([1.0, np.nan]), like))
    symbols = np.array([7, 7, 7, 9])
    assert contest.apart(np.array([7, 7, 8, 9]), symbols) == 0.25


def test_steps_are_timed_after_some_that_are_not() -> None:
    seen: list[int] = []
    assert contest.timed(seen.append, lambda _: None, 4) >= 0
    assert seen == list(range(contest.WARM_UP + 4))


def test_the_share_of_the_peak_is_of_the_peak_in_the_same_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of all rounds, with processes made up."""
    contestants = {
        contest.OURS: contest.Contestant("ours", bench.cnn_jaxstudy, ("numpy",)),
        "peer": contest.Contestant("Peer", bench.cnn_torch, ("numpy",)),
    }
    work = contest.Workload(
        "a", "b", lambda: {"x": np.zeros(1)}, lambda: 4e9, contestants, 5,
        {"loss": 0.1}, {"best peer": 1}, ("tokens", 40),
    )  # fmt: skip
    order: list[str] = []

    def run(script: Path, command: contest.Command, scratch: Path) -> dict[str, float]:
        assert (script, command.workload) == (SCRIPT, "cnn")
        del scratch
        who, r = str(command.contestant), len(order) // 3
        order.append(who)
        if who == contest.PEAK:
            return {"gflops": [100.0, 50.0][r]}
        assert command.results is not None
        np.savez(
            command.results, loss=np.array(2.0 if who == contest.OURS else 2.5 - r)
        )
        return {"step_ms": 80.0 if who == contest.OURS else 160.0}

    monkeypatch.setattr(contest, "run_contestant", run)
    command = contest.Command(workload="all", rounds=2, out=tmp_path)
    result = contest.measure("cnn", work, command, SCRIPT)
    assert (result["kind"], result["workload"]) == ("images", "cnn")
    names = [contest.OURS, "peer", contest.PEAK]
    assert order == [*names, *names[1:], names[0]]
    assert result["peaks"] == [100, 50]
    ours, peer = (result["contestants"][n]["rounds"] for n in contestants)
    assert [r["made_per_s"] for r in peer] == [250, 250]
    assert result["makes"] == ["tokens", 40]
    assert [r["peak_share"] for r in ours] == pytest.approx([0.5, 1.0])
    assert [r["loss apart"] for r in ours] == [0, 0]
    assert [r["loss apart"] for r in peer] == [0.25, 0.25]
    assert "0.25 apart" in str(contest.disagreement(result))


def test_operations_are_those_of_every_convolution() -> None:
    """Of the CNN against the shapes; of InceptionV3 against its published size."""
    shapes = jax.eval_shape(cnn((28, 28, 1), 10).init, jax.random.key(0))[0]
    places = {"conv_1": 28 * 28, "conv_2": 14 * 14, "hidden_1": 1, "output": 1}
    forward = {n: k * math.prod(shapes[n]["kernel"].shape) for n, k in places.items()}
    images = 2 * bench.BATCH
    assert bench.cnn_operations() == images * (
        3 * sum(forward.values()) - forward["conv_1"]
    )
    per_image = bench.inception_operations() / 32
    assert 2.0e9 < per_image < 2.3e9  # 11.4e9 for 299x299, where borders cost less


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Made-up digits for the CNN, learnable, in smaller batches; its weights."""
    monkeypatch.setattr(bench, "BATCH", 16)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 10 * 16).astype(np.int32)
    x = rng.integers(0, 100, (len(y), 28, 28, 1)).astype(np.uint8)
    x[np.arange(len(y)), 2 * y] = 255
    return {"x": x, "y": y, **contest.random_weights(cnn((28, 28, 1), 10))}


def test_this_project_and_keras_train_the_same_cnn(
    images: dict[str, np.ndarray],
) -> None:
    ours = bench.cnn_jaxstudy(images, 10)
    peer = bench.cnn_keras(images, 10)
    assert ours.step_ms > 0
    assert peer.step_ms > 0
    loss = ours.results["loss"]
    assert loss.shape == (1 + contest.EPOCHS,)
    assert loss[-1] < loss[0] - 0.1
    assert contest.apart(peer.results["loss"], loss) < 1e-4


def test_random_weights_are_a_models_own_and_all_different() -> None:
    first, _ = split_stages(inception_stages(include_top=False), "conv4")
    model = sequential(first, jax.ShapeDtypeStruct((1, 75, 75, 3), np.float32))
    arrays = contest.random_weights(model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    for name, tree in zip(("params", "extra"), shapes, strict=True):
        found = contest.tree(arrays, name)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, tree, found))
    assert len({array.ravel()[:8].tobytes() for array in arrays.values()}) == 3 * 4
    assert all(a.min() >= 0.5 for name, a in arrays.items() if name.endswith("var"))


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """A part of each, for speed; as many, for the mean change."""
    return {"x": bench.augmentation_data()["x"][:, :24, :24]}


@pytest.fixture(scope="module")
def layered(pictures: dict[str, np.ndarray]) -> contest.Measured:
    return bench.augmentation_jaxstudy(pictures, 2, layered=True)


def test_at_once_and_layer_after_layer_differ_only_at_borders(
    pictures: dict[str, np.ndarray], layered: contest.Measured
) -> None:
    ours = bench.augmentation_jaxstudy(pictures, 2)
    assert ours.step_ms > 0
    inner = (slice(None), slice(8, 16), slice(8, 16))
    one, other = (m.results["picture"][inner] for m in (ours, layered))
    assert contest.apart(one, other) < 0.02  # each interpolation blurs a little
    assert contest.apart(one, pictures["x"][inner]) > 0.2
    means = [m.results["mean change"] for m in (ours, layered)]
    assert (
        contest.apart(*means)
        < bench.WORKLOADS["augmentation"].tolerances["mean change"]
    )


@pytest.mark.parametrize(
    "kept",
    [{"turn": (0.0, 0.0)}, {"flip": False}],
)
def test_the_mean_change_shows_a_layer_that_is_missing(
    pictures: dict[str, np.ndarray],
    layered: contest.Measured,
    kept: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "RANDOM", bench.RANDOM._replace(**kept))
    other = bench.augmentation_jaxstudy(pictures, 1).results["mean change"]
    tolerance = bench.WORKLOADS["augmentation"].tolerances["mean change"]
    assert contest.apart(other, layered.results["mean change"]) > tolerance


def test_a_process_prints_figures_and_keeps_what_is_compared(
    tmp_path: Path, pictures: dict[str, np.ndarray]
) -> None:
    data, results = tmp_path / "data.npz", tmp_path / "results.npz"
    np.savez(data, **pictures)  # pyright: ignore[reportArgumentType]
    command = contest.Command(
        "augmentation", 1, 1, tmp_path, contest.OURS, data, results
    )
    figures = contest.run_contestant(SCRIPT, command, tmp_path)
    assert set(figures) == {"step_ms"}
    assert figures["step_ms"] > 0
    assert set(np.load(results)) == {"picture", "mean change"}


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    command = contest.Command(workload="cnn", contestant="nobody")
    with pytest.raises(SystemExit, match="nobody failed") as stopped:
        contest.run_contestant(SCRIPT, command, tmp_path)
    assert "keras-tensorflow" in str(stopped.value.code)


def test_nothing_is_written_when_results_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made_up()
    monkeypatch.setattr(contest.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(contest, "measure", lambda *_: result)
    command = contest.Command(workload="cnn", out=tmp_path)
    assert contest.main(command, bench.WORKLOADS, SCRIPT) == 0
    assert json.loads((tmp_path / "cnn.json").read_text()) == result
    (tmp_path / "cnn.json").unlink()
    result["contestants"]["slow"]["rounds"][0]["loss apart"] = 0.5
    with pytest.raises(SystemExit, match="nothing is written"):
        contest.main(command, bench.WORKLOADS, SCRIPT)
    assert not list(tmp_path.iterdir())


def test_missing_data_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> dict[str, Any]:
        raise MissingData("no images: `make data` brings them")

    monkeypatch.setattr(contest.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(contest, "measure", missing)
    with pytest.raises(SystemExit, match="make data"):
        contest.main(contest.Command(workload="cnn"), bench.WORKLOADS, SCRIPT)


def test_the_readme_shows_a_result_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name in ("admission", "study"):
        stored = ROOT / "benchmarks" / "results" / f"{name}.json"
        (folder / f"{name}.json").write_text(stored.read_text())
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    before = readme.speed_table()
    (folder / "z.json").write_text(json.dumps(made_up()))
    assert readme.speed_table() == f"{before}\n\n{contest.table(made_up())}"


@pytest.mark.parametrize(
    "wrong",
    [{"contestant": "torch"}, {"workload": "cnn", "contestant": "nobody"},
     {"workload": "nothing"}, {"rounds": 0}, {"steps": 0}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SystemExit) as stopped:
        contest.main(contest.Command(**wrong), bench.WORKLOADS, SCRIPT)
    assert isinstance(stopped.value.code, str)


@pytest.mark.parametrize("name", bench.WORKLOADS)
def test_a_committed_result_is_of_these_contestants(name: str) -> None:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    result = json.loads(path.read_text())
    work = bench.WORKLOADS[name]
    assert (result["schema"], result["kind"]) == (contest.SCHEMA, "images")
    assert result["rounds"] >= 5
    assert list(result["contestants"]) == list(work.contestants)
    assert result["tolerances"] == work.tolerances
    assert contest.disagreement(result) is None
    assert contest.speed.summarised(copy.deepcopy(result), work.targets) == result
