"""The GAN's two networks: Keras's with copied weights, sizes, noise, bad shapes."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxstudy.model import parameter_count
from jaxstudy.models.dcgan import LATENT_SIZE, discriminator, generator, sample_latent
from jaxstudy.types import PyTree, UserError

layers: Any = keras.layers
SHAPE = (16, 32, 3)
CONVOLUTIONS = ("conv_1", "conv_2", "output")
GENERATOR = ("dense", *(f"enlarging_{i}" for i in (1, 2, 3, 4)))


def keras_discriminator(shape: tuple[int, int, int], dropout: float = 0.4) -> Any:
    """The lesson's, word for word, but for its sigmoid."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(64, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Dropout(dropout),
            layers.Conv2D(64, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Dropout(dropout),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def keras_generator(shape: tuple[int, int, int]) -> Any:
    """The lesson's, for other sizes than 64 pixels too."""
    height, width, channels = shape
    stack = [
        keras.Input((LATENT_SIZE,)),
        layers.Dense(height // 16 * width // 16 * 256),
        layers.Reshape((height // 16, width // 16, 256)),
    ]
    for filters in (256, 128, 64):
        stack += [
            layers.Conv2DTranspose(filters, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.BatchNormalization(),
        ]
    last = layers.Conv2DTranspose(
        channels, 3, strides=2, padding="same", activation="sigmoid"
    )
    return keras.Sequential([*stack, last])


def weights_of(params: PyTree, names: tuple[str, ...]) -> list[np.ndarray]:
    """Kernels and biases, layer by layer."""
    return [np.asarray(params[n][k]) for n in names for k in ("kernel", "bias")]


def generator_weights(params: PyTree, extra: PyTree) -> list[np.ndarray]:
    """In the order of Keras's `get_weights`: of a norm gamma, beta, mean, variance."""
    found = weights_of(params, GENERATOR[:1])
    for i in (1, 2, 3):
        found += weights_of(params, (f"enlarging_{i}",))
        norm, statistics = params[f"norm_{i}"], extra["batch_stats"][f"norm_{i}"]
        found += [np.asarray(norm[k]) for k in ("scale", "bias")]
        found += [np.asarray(statistics[k]) for k in ("mean", "var")]
    return found + weights_of(params, GENERATOR[-1:])


def moved(tree: PyTree, seed: int) -> PyTree:
    """Biases and statistics that are not 0 and 1, where one could stand for another."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(a + 0.05 * rng.uniform(0, 1, a.shape), a.dtype), tree
    )


def images(n: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(n, *shape)).astype(np.float32)


def test_the_discriminator_is_keras_s() -> None:
    model, x = discriminator(SHAPE), images(4, SHAPE)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    params = moved(params, 1)
    other = keras_discriminator(SHAPE)
    other.set_weights(weights_of(params, CONVOLUTIONS))
    apply = jax.jit(model.apply, static_argnames="train")
    logits, after = apply(params, extra, x, train=False, key=None)
    assert logits.shape == (4,)
    np.testing.assert_allclose(logits, other(x)[:, 0], atol=1e-5)
    assert after == extra == {}
    assert parameter_count(model) == other.count_params()


def test_the_generator_is_keras_s() -> None:
    """In both modes, with what training makes of the moving statistics."""
    model = generator(SHAPE)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    params, extra = moved(params, 1), moved(extra, 2)
    other = keras_generator(SHAPE)
    other.set_weights(generator_weights(params, extra))
    z = sample_latent(jax.random.key(1), 4)
    state = [
        [v.value for v in variables]
        for variables in (other.trainable_variables, other.non_trainable_variables)
    ]
    for train in (False, True):
        made, after = jax.jit(functools.partial(model.apply, train=train, key=None))(
            params, extra, z
        )
        call = jax.jit(functools.partial(other.stateless_call, training=train))
        theirs, others = call(*state, z)
        for variable, value in zip(other.non_trainable_variables, others, strict=True):
            variable.assign(value)
        assert made.shape == (4, *SHAPE)
        np.testing.assert_allclose(made, theirs, atol=1e-5)
        got = generator_weights(params, after)
        for a, b in zip(got, other.weights, strict=True):
            np.testing.assert_allclose(a, np.asarray(b.value), atol=1e-5)
        unchanged = jax.tree.map(np.array_equal, after, extra)
        assert all(jax.tree.leaves(unchanged)) == (not train)
    trainable = sum(int(np.prod(w.shape)) for w in other.trainable_weights)
    assert parameter_count(model) == trainable


def test_variances_do_not_cancel_where_means_are_large() -> None:
    """Of channels whose mean is 30 deviations: E x^2 - (E x)^2 would lose 4 digits."""
    model = generator((16, 16, 1))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    for i, deviation in ((1, 0.15), (2, 0.5), (3, 0.5)):
        layer = params[f"enlarging_{i}"]
        params[f"enlarging_{i}"] = {**layer, "bias": layer["bias"] + 30 * deviation}
    from_zero = jax.tree.map(jnp.zeros_like, extra)
    given: Any = (params, from_zero, sample_latent(jax.random.key(1), 8))

    def statistics(given: Any) -> Any:
        apply = jax.jit(functools.partial(model.apply, train=True, key=None))
        return apply(*given)[1]["batch_stats"]

    found = statistics(given)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: np.asarray(a, np.float64), given)
        want = jax.tree.map(lambda a: np.asarray(a), statistics(exact))
    for i in (1, 2, 3):
        mean, variance = (want[f"norm_{i}"][k] / 0.01 for k in ("mean", "var"))
        assert np.median(mean / np.sqrt(variance)) > 25
        # of the numbers that went in, rounded: 2 * 30 * 2^-24, and some roundings more
        np.testing.assert_allclose(
            found[f"norm_{i}"]["var"], 0.01 * variance, rtol=2e-5
        )


def test_they_are_the_lesson_s_at_64_pixels() -> None:
    """The counts of `summary()`: 4 * 4 * 256 from 100, and so on."""
    assert parameter_count(discriminator()) == 37_568 + 16 * 16 * 64 + 1
    widths = (256, 256, 128, 64, 1)
    enlarging = [9 * a * b + b for a, b in itertools.pairwise(widths)]
    dense, norms = 4 * 4 * 256 * (LATENT_SIZE + 1), 2 * (256 + 128 + 64)
    assert parameter_count(generator()) == dense + sum(enlarging) + norms


def test_weights_begin_as_keras_s() -> None:
    """Uniform within sqrt(6 / (inputs + outputs) of a kernel), biases 0."""
    networks = discriminator(SHAPE), generator(SHAPE, False)
    for model, names in zip(networks, (CONVOLUTIONS, GENERATOR), strict=True):
        params, _ = jax.jit(model.init)(jax.random.key(0))
        for name in names:
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            area = np.prod(kernel.shape[:-2])
            bound = np.sqrt(6 / (area * sum(kernel.shape[-2:])))
            largest = np.abs(kernel).max() / bound
            assert 0.97 < largest <= 1 or kernel.size < 100
            assert not np.any(bias)


def test_dropout_is_for_training_and_needs_a_key() -> None:
    model, x = discriminator((16, 16, 1)), images(2, (16, 16, 1))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(functools.partial(model.apply, train=True))
    one, same, other = (
        apply(params, extra, x, key=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(Exception, match="dropout"):
        model.apply(params, extra, x, train=True, key=None)


def test_noise_is_uniform_between_minus_one_and_one() -> None:
    z = np.asarray(sample_latent(jax.random.key(0), 500))
    assert z.shape == (500, LATENT_SIZE)
    assert z.min() == pytest.approx(-1, abs=1e-3)
    assert z.max() == pytest.approx(1, abs=1e-3)
    # of 50,000 numbers: five standard errors
    assert abs(z.mean()) < 5 * np.sqrt(1 / 3 / z.size)
    assert np.mean(z**2) == pytest.approx(1 / 3, abs=5 * np.sqrt(4 / 45 / z.size))


@pytest.mark.parametrize("factory", [discriminator, generator])
def test_sizes_and_channels_that_cannot_be_made_are_refused(factory: Any) -> None:
    for shape in ((8, 8, 1), (0, 16, 1), (64, 60, 1), (28, 28, 1)):
        with pytest.raises(UserError, match=r"16, 32, 48, \.\.\. pixels a side, not"):
            factory(shape)
    for channels in (0, 2, 4):
        with pytest.raises(UserError, match=f"1 or 3 channels, not {channels}"):
            factory((16, 16, channels))
