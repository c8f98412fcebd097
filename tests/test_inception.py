"""InceptionV3 against Keras with copied random weights: outputs, gradients, counts."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras.src.backend.common import dtypes

from jaxstudy.model import sequential, split_stages
from jaxstudy.models.inception import inception_stages, inception_v3, preprocess
from jaxstudy.pretrained.keras_weights import KerasLayer, inception_weights
from jaxstudy.types import PyTree, UserError
from tests.conftest import Patch

# Relative to the largest number of an array: some hundred roundings (1.1e-16) on the
# way through 94 layers. In training, the last layers normalise a channel over four
# numbers, and roundings grow where these happen to be close to one another.
F64, F64_TRAINING = 1e-12, 1e-10

# Compiling is all that takes time here.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture
def exact(float64: None, monkeypatch: Patch) -> None:
    """All in float64: by itself Keras normalises in float32, but with TensorFlow."""
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")


def run(f: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(f).lower(*args).compile(FAST)(*args)


@functools.cache
def keras_inception(dtype: str = "float32") -> keras.Model:
    """Keras's InceptionV3 with top for images of any size; its weights are random.

    Its initialisers are replaced: compiling them takes half a minute.
    """
    numbers = np.random.default_rng(0)

    def random(self: Any, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        return numbers.normal(0, scale, shape).astype(dtype or "float32")

    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", random):
        image = keras.Input((None, None, 3), dtype=dtype)
        make: Any = keras.applications.InceptionV3
        return make(weights=None, input_tensor=image, classifier_activation=None)


def random_weights(model: keras.Model, seed: int = 1) -> dict[int, np.ndarray]:
    """Weights for every variable of a Keras model, by its id: none at its default."""
    numbers, weights = np.random.default_rng(seed), {}
    for v in model.variables:
        if v.path.endswith("moving_variance"):
            value = numbers.uniform(0.5, 2, v.shape)
        elif len(v.shape) == 1:
            value = numbers.normal(0, 0.5, v.shape)
        else:
            value = np.asarray(v.value)
        weights[id(v)] = value.astype(v.dtype)
    return weights


def copied(model: keras.Model, weights: dict[int, Any], **which: bool) -> PyTree:
    """Such weights as {"params", "extra"}."""
    layers = [
        KerasLayer(layer.name, [np.asarray(weights[id(v)]) for v in layer.weights])
        for layer in model.layers
        if layer.weights
    ]
    return jax.tree.map(jnp.asarray, inception_weights(layers, **which))


def off(found: PyTree, expected: PyTree) -> float:
    """The largest difference, relative to the largest number of each array."""

    def one(a: Any, b: Any) -> float:
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))

    return max(jax.tree.leaves(jax.tree.map(one, found, expected)))


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(-1, 1, (2, height, width, 3))


def values(variables: Any, weights: dict[int, Any]) -> list[Any]:
    return [jnp.asarray(weights[id(v)]) for v in variables]


def test_the_parameters_are_as_many_as_in_keras() -> None:
    counts = {}
    for top in (True, False):
        shapes = jax.eval_shape(inception_v3(include_top=top).init, jax.random.key(0))
        counts[top] = [sum(x.size for x in jax.tree.leaves(tree)) for tree in shapes]
    assert counts[False] == [21_768_352, 34_432]
    assert sum(counts[False]) == 21_802_784
    assert sum(counts[True]) == keras_inception().count_params() == 23_851_784


@pytest.mark.usefixtures("exact")
def test_outputs_equal_keras() -> None:
    """Of the smallest images, without top."""
    twin = keras_inception("float64")
    part = keras.Model(twin.input, twin.get_layer("mixed10").output)
    weights = random_weights(twin)
    x = images(75, 75)

    def theirs(trainable: Any, others: Any, x: Any) -> Any:
        outputs, *_ = part.stateless_call(trainable, others, x, training=False)
        return outputs

    features = run(
        theirs,
        values(part.trainable_variables, weights),
        values(part.non_trainable_variables, weights),
        x,
    )
    assert features.shape == (2, 1, 1, 2048)

    def ours(weights: PyTree, x: Any) -> Any:
        model = inception_v3((75, 75), include_top=False)
        params, extra = weights["params"], weights["extra"]
        outputs, after = model.apply(params, extra, x, train=False, key=None)
        assert jax.tree.leaves(after) == jax.tree.leaves(extra)
        return outputs

    found = run(ours, copied(twin, weights, include_top=False), x)
    assert found.dtype == jnp.float64
    assert off(found, features) < F64


@pytest.mark.usefixtures("exact")
def test_training_equals_keras() -> None:
    """Logits and new statistics of a batch of images that are not square."""
    twin = keras_inception("float64")
    weights = random_weights(twin)
    x = images(75, 107)

    def theirs(trainable: Any, others: Any, x: Any) -> Any:
        logits, others, *_ = twin.stateless_call(trainable, others, x, training=True)
        return logits, others

    logits, statistics = run(
        theirs,
        values(twin.trainable_variables, weights),
        values(twin.non_trainable_variables, weights),
        x,
    )
    after = dict(weights)
    for v, value in zip(twin.non_trainable_variables, statistics, strict=True):
        after[id(v)] = value
    expected = copied(twin, after)["extra"]

    def ours(params: PyTree, extra: PyTree, x: Any) -> Any:
        model = inception_v3((75, 107))
        return model.apply(params, extra, x, train=True, key=None)

    before = copied(twin, weights)
    found, extra = run(ours, before["params"], before["extra"], x)
    assert off(found, logits) < F64_TRAINING
    assert off(extra, expected) < F64_TRAINING
    assert off(extra, before["extra"]) > 1e-3


def test_it_starts_as_keras_does() -> None:
    """Glorot's uniform kernels; no offsets; statistics of mean 0 and variance 1."""
    stages, _ = split_stages(inception_stages(), "conv4")
    model = sequential(stages, jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32))
    params, extra = run(model.init, jax.random.key(0))
    assert list(params) == ["conv1", "conv2", "conv3"]
    for name in params:
        kernel = params[name]["conv"]["kernel"]
        fans = np.prod(kernel.shape[:2]) * np.array(kernel.shape[2:])
        limit = np.sqrt(6 / fans.sum())
        assert 0.9 * limit < jnp.abs(kernel).max() <= limit
        assert jnp.std(kernel) == pytest.approx(limit / np.sqrt(3), rel=0.1)
        assert not params[name]["bn"]["bias"].any()
        assert not extra["batch_stats"][name]["bn"]["mean"].any()
        assert (extra["batch_stats"][name]["bn"]["var"] == 1).all()


def test_the_stages_have_the_names_of_keras() -> None:
    names = [stage.name for stage in inception_stages()]
    twins = [layer.name for layer in keras_inception().layers]
    mixed = [name for name in names if name.startswith("mixed")]
    assert mixed == [f"mixed{i}" for i in range(11)]
    shared = [name for name in names if name in twins]
    assert shared == [*mixed, "avg_pool", "predictions"]
    assert [s.name for s in inception_stages(include_top=False)] == names[:-2]


@pytest.mark.parametrize("size", [(74, 75), (75, 74)])
def test_smaller_images_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"at least 75 by 75 .* not {size[0]} by "):
        inception_v3(size)


# float16 is not among them: XLA does not compile it where a CPU lacks F16C
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32"])
def test_pixels_are_scaled_as_in_keras(dtype: str) -> None:
    x = np.arange(256).reshape(1, 16, 16, 1).repeat(3, -1)
    expected = keras.applications.inception_v3.preprocess_input(x.astype("float32"))
    found = preprocess(jnp.asarray(x, dtype))
    assert found.dtype == (dtype if "float" in dtype else "float32")
    # each step rounds numbers below 2
    atol = 2 * float(jnp.finfo(found.dtype).eps)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=atol)
