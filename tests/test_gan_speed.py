"""benchmarks/gan_speed.py: that all do the same work, not how fast anything is.

TensorFlow and PyTorch are not in the tests' environment: this project and Keras on JAX
are run here, a step an epoch. The machinery is tested in test_images_speed.py.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import contest  # noqa: E402  # pyright: ignore[reportMissingImports]
import gan_speed as bench  # noqa: E402  # pyright: ignore[reportMissingImports]

from jaxstudy.images.sets import Images  # noqa: E402
from jaxstudy.models.dcgan import discriminator, generator  # noqa: E402

WORK = bench.WORKLOADS["dcgan"]


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    """The benchmark's arrays, of images of noise; and batches of 4."""
    x = np.random.default_rng(0).integers(0, 256, (8, 28, 28)).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "BATCH", 4)
        patch.setattr(
            "jaxstudy.images.sets.read_fashion_mnist",
            lambda: {"train": Images(x, np.zeros(8, np.int32))},
        )
        return bench.gan_data()


def test_this_project_and_keras_train_the_same_networks(
    data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "BATCH", 4)
    ours, peer = bench.gan_jaxstudy(data, 2), bench.gan_keras(data, 2)
    assert ours.step_ms > 0
    assert peer.step_ms > 0
    assert ours.results["loss"].shape == (1 + contest.EPOCHS, 3)
    assert ours.results["images"].shape == (4, 64, 64, 1)
    for what in ("logits", "images"):
        assert contest.apart(peer.results[what], ours.results[what]) < 1e-5
    # of few images: what each draws for itself shows in the losses
    assert contest.apart(peer.results["loss"], ours.results["loss"]) < 0.5


def test_operations_are_those_of_every_product() -> None:
    """Counted by the weights: each is used once at every place of the smaller image."""

    def products(model: Any, places: dict[str, int]) -> dict[str, int]:
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        sizes = {n: int(np.prod(params[n]["kernel"].shape)) for n in places}
        return {n: sizes[n] * places[n] for n in places}

    d = products(discriminator(), {"conv_1": 32**2, "conv_2": 16**2, "output": 1})
    g = products(
        generator(),
        {"dense": 1, **{f"enlarging_{i}": (2 ** (i + 1)) ** 2 for i in (1, 2, 3, 4)}},
    )
    forward = 3 * sum(d.values()) + 2 * sum(g.values())
    of_weights = 2 * sum(d.values()) + sum(g.values())
    of_inputs = 3 * sum(d.values()) - 2 * d["conv_1"] + sum(g.values()) - g["dense"]
    assert bench.gan_operations() == 2 * 64 * (forward + of_weights + of_inputs)


def test_a_committed_result_is_of_these_contestants() -> None:
    path = ROOT / "benchmarks" / "results" / "dcgan.json"
    result = json.loads(path.read_text())
    assert (result["schema"], result["kind"]) == (contest.SCHEMA, "gan")
    assert result["rounds"] >= 5
    assert list(result["contestants"]) == list(WORK.contestants)
    assert result["tolerances"] == WORK.tolerances
    assert contest.disagreement(result) is None
    assert contest.speed.summarised(copy.deepcopy(result), WORK.targets) == result
