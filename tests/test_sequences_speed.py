"""benchmarks/sequences_speed.py: that all do the same work, not how fast anything is.

TensorFlow and PyTorch are not in the tests' environment: this project and Keras on JAX
are run here, on few and short rows. The machinery is tested in test_images_speed.py.
"""

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import contest  # noqa: E402  # pyright: ignore[reportMissingImports]
import readme  # noqa: E402  # pyright: ignore[reportMissingImports]
import sequences_speed as bench  # noqa: E402  # pyright: ignore[reportMissingImports]

TOLERANCES = bench.WORKLOADS["sampling"].tolerances
KERAS = [bench.sampling_keras, partial(bench.sampling_keras, loop=True)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"VOCABULARY": 12, "UNITS": 16, "BATCH": 8, "LENGTH": 10}.items():
        monkeypatch.setattr(bench, name, size)


def products(array: str) -> int:
    return int(np.prod(bench.weights()[array].shape))


def test_operations_are_those_of_every_product() -> None:
    """Of training: the first h, zero, has no products, one-hot vectors no gradient."""
    whole = sum(map(products, (bench.KERNEL, bench.RECURRENT, bench.OUTPUT)))
    rows, length = bench.BATCH, bench.LENGTH
    missing = length * products(bench.KERNEL) + 3 * products(bench.RECURRENT)
    assert bench.lstm_operations() == 2 * rows * (3 * length * whole - missing)
    steps = bench.PREFIX + bench.DRAWN - 1
    missing = products(bench.RECURRENT) + (bench.PREFIX - 1) * products(bench.OUTPUT)
    assert bench.sampling_operations() == 2 * rows * (steps * whole - missing)


@pytest.mark.usefixtures("small")
def test_the_text_can_be_learned_and_y_is_x_one_character_later() -> None:
    data = bench.lstm_data()
    x, y = data["x"], data["y"]
    assert x.shape == (bench.WORKLOADS["lstm"].steps * 8, 10)
    assert np.array_equal(x[:, 1:], y[:, :-1])
    pairs = {(int(a), int(b)) for a, b in zip(x.ravel(), y.ravel(), strict=True)}
    assert {a for a, _ in pairs} == set(range(12))
    assert len(pairs) <= 12 * bench.FOLLOWERS


@pytest.mark.usefixtures("small")
def test_this_project_and_keras_train_the_same_lstm() -> None:
    data = bench.lstm_data()
    ours, peer = bench.lstm_jaxstudy(data, 10), bench.lstm_keras(data, 10)
    assert ours.step_ms > 0
    assert peer.step_ms > 0
    loss = ours.results["loss"]
    assert loss.shape == (1 + contest.EPOCHS,)
    assert loss[-1] < loss[0] - 0.1
    assert contest.apart(peer.results["loss"], loss) < 1e-5
    other = {**data, bench.RECURRENT: 1.1 * data[bench.RECURRENT]}
    tolerance = bench.WORKLOADS["lstm"].tolerances["loss"]
    assert contest.apart(bench.lstm_keras(other, 10).results["loss"], loss) > tolerance


@pytest.fixture
def ours(small: None) -> contest.Measured:
    del small
    return bench.sampling_jaxstudy(bench.sampling_data(), 1)


@pytest.mark.parametrize("keras", KERAS, ids=["step", "loop"])
def test_this_project_and_keras_draw_from_the_same_chances(
    ours: contest.Measured, keras: Any
) -> None:
    peer = keras(bench.sampling_data(), 1)
    assert ours.step_ms > 0
    assert peer.step_ms > 0
    greedy = ours.results["greedy characters"]
    assert greedy.shape == (8, bench.DRAWN)
    assert len(np.unique(greedy)) > 6  # so that it takes more than luck
    assert np.array_equal(peer.results["greedy characters"], greedy)
    assert contest.apart(peer.results["logits"], ours.results["logits"]) < 1e-5
    nats = [m.results["nats of drawn ones"] for m in (peer, ours)]
    assert contest.apart(*nats) < 2 * TOLERANCES["nats of drawn ones"]  # of few rows


@pytest.mark.parametrize("temperature", [0.7, 0.9])
def test_nats_show_another_temperature(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored as if by the right one; of as many rows, so that chance is small."""
    monkeypatch.setattr(bench, "UNITS", 32)
    data = bench.sampling_data()
    before = bench.sampling_jaxstudy(data, 1).results["nats of drawn ones"]
    sampled = bench.sampled

    def wrong(data: Any, steps: int, drawing: Any, logits: Any) -> contest.Measured:
        at = {0.0: 0.0, bench.TEMPERATURE: temperature}
        return sampled(data, steps, lambda t: drawing(at[t]), logits)

    monkeypatch.setattr(bench, "sampled", wrong)
    after = bench.sampling_jaxstudy(data, 1).results["nats of drawn ones"]
    assert contest.apart(after, before) > TOLERANCES["nats of drawn ones"]


@pytest.mark.usefixtures("small")
def test_another_model_has_other_logits_and_other_characters() -> None:
    data = bench.sampling_data()
    other = {**data, bench.RECURRENT: 1.1 * data[bench.RECURRENT]}
    results = [bench.sampling_jaxstudy(d, 1).results for d in (other, data)]
    for what in ("logits", "greedy characters"):
        assert contest.apart(*(r[what] for r in results)) > TOLERANCES[what]


def test_weights_are_those_of_the_model() -> None:
    arrays = bench.weights()
    assert set(arrays) == set(bench.WEIGHTS)
    shapes = jax.eval_shape(bench.model_jaxstudy().init, jax.random.key(0))[0]
    assert shapes["layers"]["layer_1"]["kernel"].shape == (64, 1024)


def test_the_readme_shows_such_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(contest, "table", lambda result: shown.append(result) or "it")
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "lstm.json").write_text('{"kind": "sequences"}')
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.speed_table() == "it"
    assert shown == [{"kind": "sequences"}]


@pytest.mark.parametrize("name", bench.WORKLOADS)
def test_a_committed_result_is_of_these_contestants(name: str) -> None:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    result = json.loads(path.read_text())
    work = bench.WORKLOADS[name]
    assert (result["schema"], result["kind"]) == (contest.SCHEMA, "sequences")
    assert result["rounds"] >= 5
    assert list(result["contestants"]) == list(work.contestants)
    assert result["tolerances"] == work.tolerances
    assert contest.disagreement(result) is None
    assert contest.speed.summarised(copy.deepcopy(result), work.targets) == result
