"""The adding problem: what the sequences are, and where gradients go."""

import jax
import numpy as np
import optax
import pytest

from jaxstudy.models.recurrent import sequence_to_vector
from jaxstudy.training import init_replicas
from tests.conftest import load


@pytest.mark.parametrize("length", [2, 5, 40])
def test_two_numbers_are_marked_and_their_sum_is_asked(length: int) -> None:
    data = load("experiments", "ch3_memory").sequences(4000, length, seed=0)
    x, y = (np.asarray(data.arrays[name]) for name in ("x", "y"))
    assert x.shape == (4000, length, 2)
    numbers, marks = x[..., 0], x[..., 1]
    half = length // 2
    assert np.all(marks[:, :half].sum(1) == 1)
    assert np.all(marks[:, half:].sum(1) == 1)
    np.testing.assert_allclose((numbers * marks).sum(1), y, rtol=1e-6)
    # saying 1 has an error of 1/6, within four standard errors
    assert np.mean((y - 1) ** 2) == pytest.approx(1 / 6, abs=4 * 0.2 / np.sqrt(4000))


def test_sets_differ_and_stay_the_same() -> None:
    sequences = load("experiments", "ch3_memory").sequences
    first, same, other = (sequences(50, 6, seed).arrays["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.any(np.all(np.isin(other[..., 0], first[..., 0]), axis=1))


def test_gradients_are_those_of_the_loss_at_every_step() -> None:
    """Beside finite differences, for the sum over a step's two inputs."""
    lesson = load("experiments", "ch3_memory")
    model = sequence_to_vector(2, "lstm", (4,), 1)
    data = lesson.sequences(1, 5, seed=0)
    state = init_replicas(model, optax.sgd(0.1), jax.random.split(jax.random.key(0), 2))
    norms = lesson.gradient_norms(model, state, data)
    assert norms.shape == (2, 5)
    for seed in range(2):
        params = jax.tree.map(lambda a, seed=seed: a[seed], state.params)

        def loss(x: np.ndarray, params=params) -> float:
            output, _ = model.apply(params, {}, x, train=False, key=None)
            return float(((output - data.arrays["y"]) ** 2)[0])

        x = np.asarray(data.arrays["x"])
        for step in range(5):
            slopes = []
            for feature in range(2):
                change = np.zeros_like(x)
                change[0, step, feature] = 0.01
                slopes.append((loss(x + change) - loss(x - change)) / 0.02)
            assert norms[seed, step] == pytest.approx(np.hypot(*slopes), rel=0.02)


def test_a_gradient_fades_by_the_size_of_the_recurrent_matrix() -> None:
    """An orthogonal one times 1/2, and slopes of tanh under 1: half is lost a step."""
    lesson = load("experiments", "ch3_memory")
    model = sequence_to_vector(2, "simple", (16,), 1)
    keys = jax.random.split(jax.random.key(0), 2)
    state = init_replicas(model, optax.sgd(0.1), keys)
    layer = state.params["layers"]["layer_1"]
    data = lesson.sequences(50, 60, seed=0)

    def slopes(size: float) -> np.ndarray:
        changed = {**layer, "recurrent_kernel": size * layer["recurrent_kernel"]}
        params = {**state.params, "layers": {"layer_1": changed}}
        norms = lesson.gradient_norms(model, state._replace(params=params), data)
        return np.log2(norms[:, 50] / norms[:, 10]) / 40

    assert np.all(slopes(0.5) >= 1)
    assert np.all(slopes(1.0) < 0.5)
