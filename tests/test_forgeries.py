"""What judges generated images: the nearest by brute force, the CNN by its parts."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxstudy.dataset import dataset
from jaxstudy.gan import evaluation
from jaxstudy.gan.evaluation import (
    CNN_SIZE,
    FRECHET,
    Judge,
    classifier_features,
    judge_images,
    nearest,
    nearest_metrics,
    precision_recall,
    resized,
    train_classifier,
)
from jaxstudy.models.cnn import cnn
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import open_run
from jaxstudy.runs.statistics import Estimate
from tests.conftest import Patch


def images(n: int, size: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_nearest_is_that_of_brute_force(channels: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr(evaluation, "ROWS", 7)  # so that there are several parts
    x, among = images(9, 4, channels), images(23, 4, channels, seed=1)
    x[3], x[4] = among[20], among[6]
    rows, distances = nearest(x, among)
    differences = x[:, None] / 255.0 - among[None] / 255.0
    want = np.sqrt(np.mean(differences**2, axis=(2, 3, 4)))
    assert np.array_equal(rows, want.argmin(1))
    np.testing.assert_allclose(distances, want.min(1), rtol=1e-5, atol=1e-7)
    assert distances[3] == distances[4] == 0


def test_resizing_averages_and_interpolates() -> None:
    x = images(53, 8)
    assert np.array_equal(resized(x, 8), x)
    flat = np.full((2, 8, 8, 3), 77, np.uint8)
    for size in (4, 28):
        assert np.array_equal(resized(flat, size), np.full((2, size, size, 3), 77))
    # a checkerboard becomes its mean, where skipping pixels would keep one colour
    board = np.indices((8, 8)).sum(0) % 2 * np.uint8(200)
    small = resized(board[None, ..., None].astype(np.uint8), 4)
    assert np.abs(small[0, 1:-1, 1:-1].astype(int) - 100).max() <= 1
    assert small.dtype == np.uint8


def test_the_cnn_s_features_are_what_its_last_layer_reads() -> None:
    model = cnn((CNN_SIZE, CNN_SIZE, 1), 4)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = images(51, 16)  # of another size than the CNN takes
    seen = classifier_features(params, x)
    last = jax.tree.map(np.asarray, params["output"])
    logits, _ = model.apply(params, extra, resized(x, CNN_SIZE), train=False, key=None)
    np.testing.assert_allclose(
        seen.features @ last["kernel"] + last["bias"], logits, atol=1e-4
    )
    np.testing.assert_allclose(seen.probabilities, jax.nn.softmax(logits), atol=1e-5)
    assert seen.features.min() == 0  # after ReLU


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with open_run(tmp_path / "run", "test", "quick", Settings()) as held:
        yield held


def test_what_the_cnn_says_of_several_sets(run: Any) -> None:
    """Dark, grey and bright images, which it learns to tell apart."""
    y = np.arange(60) % 3
    x = (images(60, CNN_SIZE) // 4 + 90 * y[:, None, None, None]).astype(np.uint8)
    parts = slice(30), slice(30, 45), slice(45, 60)
    sets = [dataset({"x": x[rows], "y": y[rows]}) for rows in parts]
    params, accuracy = train_classifier(
        sets, 3, epochs=10, batch_size=10, key=jax.random.key(0), run=run
    )
    assert accuracy > 0.9
    real = classifier_features(params, x[45:])
    judge = Judge(params, real, ("dark", "grey", "bright"))
    only, every = x[y == 1][:15], x[:15]
    sets = {"all": [every, only, every, only], "one": [only]}
    found: dict[str, Any] = judge_images(judge, sets, run)
    assert (run.figures / "classes.png").exists()
    assert found["one: classes with over 2 %"] == 1
    several: dict[str, Any] = {
        name: found[f"all: {name}"] for name in (FRECHET, "precision", "recall")
    }
    for name, metric in several.items():  # of trainings, in turns
        assert isinstance(metric, Estimate)
        values: Any = metric.values
        assert values[1] == values[3] == found[f"one: {name}"]
    distances = several[FRECHET].values
    assert distances[0] == judge.distance(every)
    assert distances[1] > 2 * distances[0] > 0
    assert judge.of(only).distance(only) == pytest.approx(0, abs=1e-3)
    assert found["one: recall"] < 0.5 < several["recall"].values[0]


def test_precision_and_recall_are_by_the_balls_around_neighbours() -> None:
    real = np.array([[0.0], [1], [2], [3], [10]])  # the third neighbours: 3, 2, 2, 3, 9
    made = np.array([[0.5], [-4], [6], [18.9], [20]])
    balls = {0: 3, 1: 2, 2: 2, 3: 3, 10: 9}
    inside = [any(abs(x - c) <= r for c, r in balls.items()) for x in made[:, 0]]
    assert inside == [True, False, True, True, False]
    precision, recall = precision_recall(made, real)
    assert precision == 0.6
    radii = np.sort(np.abs(made - made.T), axis=1)[:, 3]
    covered = np.abs(real - made.T) <= radii
    assert recall == np.mean(covered.any(1))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)


def test_copies_are_nearer_than_new_images(run: Any) -> None:
    learnt, new = images(40, 6), images(20, 6, seed=1)
    noise = np.random.default_rng(2).integers(-5, 6, (20, 6, 6, 1))
    copies = np.clip(learnt[:20] + noise, 0, 255).astype(np.uint8)
    found = nearest_metrics({"made images": copies, "new images": new}, learnt, run)
    what = "distance to the nearest training image"
    of_copies, of_new = (found[f"{n} images: {what}"] for n in ("made", "new"))
    assert isinstance(of_copies, Estimate)
    assert isinstance(of_new, Estimate)
    assert of_copies.high is not None
    assert of_new.low is not None
    assert of_copies.high < 0.2 * of_new.low
    assert (run.figures / "nearest.png").exists()
