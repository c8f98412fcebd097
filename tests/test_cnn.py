"""Lesson 2.0, 2.1 and its CNN: Keras's with copied weights, what it compares, draws."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxstudy.dataset import dataset
from jaxstudy.images import figures
from jaxstudy.images.augment import shift_curve
from jaxstudy.images.splits import ImageSplits
from jaxstudy.model import parameter_count
from jaxstudy.models.cnn import MATCHED, cnn, matched_cnn, practised_cnn
from jaxstudy.objectives import cross_entropy, masked_mean
from jaxstudy.records import Log
from jaxstudy.types import Array, TrainState
from tests.conftest import load

lesson: Any = load("experiments", "ch2_cnn")

SHAPE, CLASSES, FILTERS, HIDDEN = (11, 12, 2), 3, (4, 5), (6,)


def twin(pool: str, padding: str) -> Any:
    """The same network in Keras."""
    layers: list[Any] = [keras.Input(SHAPE), keras.layers.Rescaling(1 / 255)]
    for filters in FILTERS:
        layers.append(
            keras.layers.Conv2D(filters, 3, padding=padding.lower(), activation="relu")
        )
        kind = {"max": "MaxPooling2D", "average": "AveragePooling2D"}[pool]
        layers.append(getattr(keras.layers, kind)(2))
    layers.append(keras.layers.Flatten())
    layers += [keras.layers.Dense(n, activation="relu") for n in HIDDEN]
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES)])


def weights(params: Any) -> list[np.ndarray]:
    """Those of the network, in Keras's order."""
    names = ("conv_1", "conv_2", "hidden_1", "output")
    return [np.asarray(params[n][k]) for n in names for k in ("kernel", "bias")]


@pytest.mark.parametrize(("pool", "padding"), [("max", "VALID"), ("average", "SAME")])
def test_outputs_and_gradients_are_keras_s(pool: Any, padding: Any) -> None:
    """And, with `capture`, what every layer gives."""
    shown, model = (
        cnn(
            SHAPE, CLASSES, filters=FILTERS, hidden=HIDDEN, pool=pool, padding=padding,
            capture=capture,
        )
        for capture in (True, False)
    )  # fmt: skip
    params, extra = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), params
    )
    other = twin(pool, padding)
    other.set_weights(weights(params))
    layers = [layer.output for layer in [*other.layers[1:5], other.layers[-1]]]
    network = keras.Model(other.inputs[0], layers)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, *SHAPE)).astype(np.float32)
    y = np.array([0, 2, 1, 2])
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.ones(4)}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def keras_gradient(variables: list[Array]) -> Any:
        outputs, *_ = network.stateless_call(variables, [], x)
        losses = keras.losses.sparse_categorical_crossentropy(y, outputs[-1], True)
        return jnp.mean(jnp.asarray(losses)), outputs

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params: Any) -> Any:
        loss, _ = cross_entropy(model)(params, extra, batch, None)
        return loss, shown.apply(params, extra, x, train=False, key=None)[0]

    want, outputs = keras_gradient([jnp.asarray(w) for w in weights(params)])
    got, (logits, values) = gradient(params)
    # float32, products of up to 90 numbers: some 1e-6 of the values
    names = ("convolution 1", "pooling 1", "convolution 2", "pooling 2")
    assert values.keys() == set(names)
    for a, b in zip([*(values[n][0] for n in names), logits], outputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(weights(got), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert parameter_count(model) == other.count_params()


def test_dropout_is_for_training_and_needs_a_key() -> None:
    model = cnn(SHAPE, CLASSES, filters=(2,), dropout=0.5)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = jnp.full((2, *SHAPE), 99.0)
    apply = jax.jit(functools.partial(model.apply, train=True))
    one, same, other = (
        apply(params, extra, x, key=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    model.apply(params, extra, x, train=False, key=None)
    with pytest.raises(Exception, match="dropout"):
        model.apply(params, extra, x, train=True, key=None)


def test_blocks_norm_and_the_global_average_are_keras_s() -> None:
    """Two convolutions before a pooling, statistics of a batch, and running ones."""
    model = cnn(
        SHAPE, CLASSES, filters=((2, 3), 4), hidden=(), norm=True,
        head="global average",
    )  # fmt: skip
    params, extra = jax.jit(model.init)(jax.random.key(0))
    layers: list[Any] = [keras.Input(SHAPE), keras.layers.Rescaling(1 / 255)]
    for i, filters in enumerate((2, 3, 4)):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
            keras.layers.ReLU(),
            *([keras.layers.MaxPooling2D(2)] if i == 1 else []),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)]
    other = keras.Sequential(layers)
    arrays: list[Any] = []
    for i in (1, 2, 3):
        norm, statistics = params[f"norm_{i}"], extra["batch_stats"][f"norm_{i}"]
        arrays += [params[f"conv_{i}"]["kernel"], norm["scale"], norm["bias"]]
        arrays += [statistics["mean"], statistics["var"]]
    other.set_weights([*arrays, *(params["output"][k] for k in ("kernel", "bias"))])
    x = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    apply = jax.jit(model.apply, static_argnames="train")
    key = jax.random.key(1)
    for train in (True, False):  # and so with what the training changed
        got, extra = apply(params, extra, x, train=train, key=key if train else None)
        state = (
            [v.value for v in variables]
            for variables in (other.trainable_variables, other.non_trainable_variables)
        )
        call = jax.jit(functools.partial(other.stateless_call, training=train))
        want, after = call(*state, x)
        for variable, value in zip(other.non_trainable_variables, after, strict=True):
            variable.assign(value)
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert parameter_count(model) == sum(
        np.size(w) for w in other.trainable_variables
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_compared_networks_have_as_many_parameters(shape: Any) -> None:
    counts = {n: parameter_count(matched_cnn(n, shape, 10)) for n in MATCHED}
    assert counts["max pooling"] == parameter_count(cnn(shape, 10))
    for count in counts.values():
        assert count == pytest.approx(counts["max pooling"], rel=0.02)
    assert set(counts) == set(lesson.COMPARED)
    assert 200_000 < parameter_count(practised_cnn(shape, 10)) < 500_000
    dense = cnn(shape, 10, filters=(), hidden=(7,))
    assert parameter_count(dense) == (np.prod(shape) + 1) * 7 + (7 + 1) * 10


def test_the_lowest_pooling_is_that_of_each_seed() -> None:
    accuracy = {"no pooling": [0.5, 0.6], "max pooling": [0.7, 0.9]}
    accuracy |= {"average pooling": [0.6, 0.8], "global average pooling": [0.8, 0.5]}
    gain = lesson.lowest_gain({n: np.array(v) for n, v in accuracy.items()})
    np.testing.assert_allclose(gain.values, [0.1, -0.1])


def test_a_shift_curve_is_the_mean_of_four_directions() -> None:
    x = np.zeros((1, 5, 5, 1), np.uint8)
    x[0, 1, 2] = 1  # two pixels up it is gone; to the other sides it is still there
    state = TrainState(*[jnp.zeros(2)] * 5)

    def eval_step(state: TrainState, batch: Any) -> Any:
        rows = batch["x"].sum((1, 2, 3)).astype(jnp.float32) + state.params
        return {"accuracy": masked_mean(rows, batch["mask"])}

    curve = shift_curve(eval_step, state, dataset({"x": x}), range(3))
    np.testing.assert_allclose(curve, [[1, 1], [1, 1], [0.75, 0.75]])


def test_the_practised_network_alone_has_its_own_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Augmentation, epochs and seeds; the rate of every network ends at 0."""
    data = dataset({"x": np.zeros((6, 8, 8, 1), np.uint8), "y": np.arange(6) % 2})
    sets = ImageSplits(data, data, data, ("a", "b"), (8, 8, 1))
    run: Any = SimpleNamespace(sub_run=lambda name: Log())
    layers: list[Any] = []
    calls: list[Any] = []

    def spy(model: Any, objective: Any, tx: Any, data: Any, **how: Any) -> Any:
        calls.append(((how["epochs"], how["batch_size"], how["seeds"]), tx))
        return SimpleNamespace(state=None)

    monkeypatch.setattr(lesson, "augmented", lambda plain, given: layers.append(given))
    monkeypatch.setattr(lesson.training, "train_seeds", spy)
    config = lesson.Config(practised_epochs=3, epochs=2, batch_size=3, seeds=4)
    model = cnn((8, 8, 1), 2, filters=(2,), hidden=())
    lesson.train("max pooling", model, config, sets, run)
    assert layers == []
    lesson.train(lesson.PRACTISED, model, config, sets, run)
    assert layers == [lesson.LAYERS]
    assert [how for how, _ in calls] == [(2, 3, 4), (3, 128, 4)]
    for steps, tx in ((4, calls[0][1]), (3, calls[1][1])):
        weights = {"w": jnp.ones(1)}
        opt_state, lengths = tx.init(weights), []
        for _ in range(steps + 1):
            updates, opt_state = tx.update({"w": jnp.ones(1)}, opt_state, weights)
            lengths.append(abs(float(updates["w"][0])))
        assert lengths[-1] < 1e-3 * max(lengths)


def test_shown_channels_differ() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 9, 9))
    maps = np.stack([2 * a, b, -3 * a, 0 * a, 1.9 * a, 0.1 * b + 0.05 * c], -1)
    # of the three with the most contrast, two are one, up to a factor
    assert figures.distinct_channels(maps, 2)[0] == 2
    assert figures.distinct_channels(maps[..., :4], 3) == [2, 1, 0]
    chosen = figures.distinct_channels(maps, 6)
    assert sorted(chosen) == [0, 1, 2, 4, 5]  # the constant one is left out
    assert figures.distinct_channels(np.zeros((4, 4, 3)), 2) == [0]
