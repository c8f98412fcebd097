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


def values(variables: Any, weights: dict[int, Any]) -> list[Any]:
    return [jnp.asarray(weights[id(v)]) for v in variables]


def compared(first: str, end: str | None, size: int, train: bool) -> tuple[Any, Any]:
    """What our stages, from one to before another, give and keep of statistics; and
    what Keras's layers between them do."""
    twin = keras_inception("float64")
    stages = split_stages(inception_stages(), first)[1]
    stages = split_stages(stages, end)[0] if end else stages
    names = [stage.name for stage in inception_stages()]
    before = names[names.index(first) - 1] if first != "conv1" else twin.layers[0].name
    begin = twin.get_layer(before).output
    network = keras.Model(begin, twin.get_layer(stages[-1].name).output)
    weights = random_weights(twin)
    shape = 2, size, size + 2, begin.shape[-1]
    x = np.random.default_rng(2).uniform(-1, 1, shape)

    def theirs(trainable: Any, others: Any, x: Any) -> Any:
        return network.stateless_call(trainable, others, x, training=train)[:2]

    outputs, statistics = run(
        theirs,
        values(network.trainable_variables, weights),
        values(network.non_trainable_variables, weights),
        x,
    )
    pairs = zip(network.non_trainable_variables, statistics, strict=True)
    after = weights | {id(v): value for v, value in pairs}
    model = sequential(stages, jax.ShapeDtypeStruct(x.shape, jnp.float64))

    def ours(weights: PyTree, x: Any) -> Any:
        params, extra = weights["params"], weights["extra"]
        return model.apply(params, extra, x, train=train, key=None)

    found = run(ours, copied(twin, weights), x)
    assert found[0].dtype == jnp.float64
    return found, (outputs, copied(twin, after)["extra"])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("first", "end", "size"),
    [
        ("conv1", "mixed1", 75),
        ("mixed3", "mixed5", 9),
        ("mixed8", "mixed10", 5),
        ("avg_pool", None, 2),
    ],
)
def test_outputs_equal_keras(first: str, end: str | None, size: int) -> None:
    """Every kind of stage: the others have the same layers of other widths, which the
    shapes of Keras's weights tell."""
    assert off(*compared(first, end, size, False)) < F64


@pytest.mark.usefixtures("exact")
def test_training_equals_keras() -> None:
    """Outputs and new statistics: all layers that training changes are of one kind."""
    found, want = compared("conv1", "mixed1", 75, True)
    assert off(found, want) < F64_TRAINING
    twin = keras_inception("float64")
    before = copied(twin, random_weights(twin))["extra"]["batch_stats"]["conv1"]
    assert off(found[1]["batch_stats"]["conv1"], before) > 1e-3


def test_it_starts_as_keras_does_with_as_many_parameters() -> None:
    """Glorot's uniform kernels; no offsets; statistics of mean 0 and variance 1."""
    shapes = jax.eval_shape(inception_v3().init, jax.random.key(0))
    counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in shapes]
    assert counts == [23_817_352, 34_432]
    assert sum(counts) == keras_inception("float64").count_params()
    stages = split_stages(inception_stages(), "conv4")[0][1:3]
    model = sequential(stages, jax.ShapeDtypeStruct((1, 37, 37, 32), jnp.float32))
    params, extra = run(model.init, jax.random.key(0))
    for name in ("conv2", "conv3"):
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
    twins = [layer.name for layer in keras_inception("float64").layers]
    mixed = [f"mixed{i}" for i in range(11)]
    assert [n for n in names if n in twins] == [*mixed, "avg_pool", "predictions"]
    assert [s.name for s in inception_stages(include_top=False)] == names[:-2]
    for size in ((74, 75), (75, 74)):
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
