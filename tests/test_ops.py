"""Convolution and pooling: equal to the library's and to Keras's, in any setting."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax import lax

from jaxstudy import ops
from jaxstudy.types import Array
from tests.conftest import Patch

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(a: Any, b: Any, tolerance: float) -> None:
    """Equal within a tolerance, relative to the largest value."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    scale = max(1.0, float(np.abs(b).max())) if b.size else 1.0
    np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, rtol=0)


def with_gradients(fn: Callable[..., Array], *args: Array) -> tuple[Array, ...]:
    """The value, and the gradient of a sum of sines of it, to every argument."""

    def total(*args: Array) -> tuple[Array, Array]:
        y = fn(*args)
        return jnp.sum(jnp.sin(y)), y

    grads, y = jax.jit(jax.grad(total, tuple(range(len(args))), has_aux=True))(*args)
    return y, *grads


# (height, width, kernel, stride, padding, channels, outputs, groups)
CONVOLUTIONS = [
    (7, 8, (3, 3), (1, 1), "SAME", 3, 4, 1),
    (8, 7, (3, 3), (2, 2), "SAME", 3, 4, 1),
    (9, 9, (5, 1), (2, 1), "VALID", 2, 6, 1),
    (6, 6, (1, 1), (2, 2), "VALID", 2, 3, 1),
    (6, 6, (4, 2), (3, 3), ((1, 2), (0, 3)), 1, 2, 1),
    # of eight channels and more, the gradient to the images is made in phases
    (8, 7, (3, 3), (2, 2), "SAME", 8, 4, 1),
    (9, 8, (5, 3), (2, 1), ((2, 1), (0, 2)), 8, 3, 1),
    (6, 6, (1, 2), (2, 3), "VALID", 9, 3, 1),
    (9, 8, (5, 3), (2, 1), ((2, 1), (0, 2)), 3, 3, 3),
    (8, 8, (3, 3), (1, 1), "SAME", 2, 6, 2),
    (6, 6, (3, 3), (1, 1), "SAME", 4, 6, 2),
]


def convolution(case: Any, by: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    _, _, _, strides, padding, _, _, groups = case
    return lambda x, k: by(
        x, k, strides, padding, dimension_numbers=NHWC, feature_group_count=groups
    )


def arguments(case: Any, dtype: Any) -> tuple[Array, Array]:
    height, width, kernel, _, _, channels, outputs, groups = case
    return (
        normal(3, height, width, channels, dtype=dtype),
        normal(*kernel, channels // groups, outputs, seed=1, dtype=dtype),
    )


@pytest.fixture(params=[True, False], ids=["flag", "no flag"])
def either(request: pytest.FixtureRequest, monkeypatch: Patch) -> bool:
    """With XLA's flag for convolutions, as experiments have it, and without."""
    if not request.param:
        monkeypatch.setenv("XLA_FLAGS", "")
    return request.param


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.usefixtures("float64", "either")
def test_convolution_and_gradients_are_the_librarys_to_the_last_digits(
    case: Any,
) -> None:
    args = arguments(case, np.float64)
    got = with_gradients(convolution(case, ops.conv_general_dilated), *args)
    want = with_gradients(convolution(case, lax.conv_general_dilated), *args)
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-14)


@pytest.mark.parametrize("bound", [1, 12_100])  # an image at a time, two and a rest
@pytest.mark.parametrize("case", [CONVOLUTIONS[0], CONVOLUTIONS[2]], ids=str)
def test_in_slices_it_is_the_same(case: Any, bound: int, monkeypatch: Patch) -> None:
    args = arguments(case, np.float32)
    want = with_gradients(convolution(case, lax.conv_general_dilated), *args)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(ops, "PATCH_BYTES", 1)
    monkeypatch.setattr(ops, "SLICE_BYTES", bound)
    got = with_gradients(convolution(case, ops.conv_general_dilated), *args)
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-6)


def largest_array(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes of the largest array in a compiled program."""
    text = jax.jit(fn).lower(*args).compile().as_text() or ""
    sizes = [
        4 * math.prod(int(n) for n in shape.split("[")[1].split("]")[0].split(",") if n)
        for shape in text.split()
        if shape.startswith("f32[")
    ]
    return max(sizes)


@pytest.mark.usefixtures("cpu")
def test_patches_stay_within_their_bound(monkeypatch: Patch) -> None:
    x, kernel = normal(64, 16, 16, 8), normal(3, 3, 8, 8)
    patches = 64 * 16 * 16 * 72 * 4
    bound = patches // 8

    def largest() -> int:
        def loss(x: Array, kernel: Array) -> Array:
            return jnp.sum(jnp.sin(ops.conv2d(x, kernel)))

        return largest_array(jax.value_and_grad(loss, (0, 1)), x, kernel)

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(ops, "PATCH_BYTES", 10 * patches)
    assert largest() >= patches
    monkeypatch.setattr(ops, "PATCH_BYTES", patches - 1)
    monkeypatch.setattr(ops, "SLICE_BYTES", bound)
    whole = 64 * 18 * 18 * 8 * 4  # the images themselves, padded
    assert largest() <= max(bound, whole)


@pytest.mark.usefixtures("cpu")
def test_a_cpu_program_has_the_convolutions_that_its_flag_makes_fast(
    either: bool,
) -> None:
    x, kernel = normal(2, 8, 8, 8), normal(3, 3, 8, 4)
    traced = jax.jit(
        jax.grad(lambda x, k: jnp.sum(ops.conv2d(x, k) ** 2), (0, 1))
    ).trace(x, kernel)
    text = traced.lower().as_text()
    assert text.count("stablehlo.convolution") == (3 if either else 0)
    assert text.count("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]") == 3 * either
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 3


def test_flax_layers_take_it() -> None:
    x = normal(2, 9, 8, 3)
    settings: dict[str, Any] = {"strides": 2, "padding": "VALID"}
    settings["feature_group_count"] = 3
    theirs = nn.Conv(6, (3, 3), **settings)
    ours = nn.Conv(6, (3, 3), conv_general_dilated=ops.conv_general_dilated, **settings)
    variables = jax.jit(theirs.init)(jax.random.key(0), x)
    close(jax.jit(ours.apply)(variables, x), jax.jit(theirs.apply)(variables, x), 1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "numbers", "dilation"),
    [
        ((2, 9, 3), (3, 3, 4), ("NWC", "WIO", "NWC"), None),
        ((2, 9, 9, 3), (3, 3, 3, 4), NHWC, (2, 2)),
    ],
)
def test_what_is_not_for_images_is_left_to_the_library(
    shape: Any, kernel: Any, numbers: Any, dilation: Any
) -> None:
    x, k, strides = normal(*shape), normal(*kernel), (1,) * (len(shape) - 2)
    got, want = (
        convolve(
            x, k, strides, "SAME", rhs_dilation=dilation, dimension_numbers=numbers
        )
        for convolve in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    close(got, want, 1e-6)


def test_convolution_is_keras_s() -> None:
    x, kernel = normal(2, 8, 7, 3), normal(3, 3, 3, 5)
    layer = keras.layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)
    layer.build(x.shape)
    layer.set_weights([kernel])
    close(ops.conv2d(x, kernel, 2), layer(x), 1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (1, 3, "SAME"), (3, 1, "VALID"), (4, 2, "SAME"), (5, 2, "SAME"),
        (4, 3, "SAME"), (5, 3, "VALID"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("filters", [6, 8])  # few are made by another way
@pytest.mark.usefixtures("float64", "either")
def test_transposed_convolution_is_keras_s_and_its_gradient_the_librarys(
    kernel: int, stride: int, padding: Any, filters: int
) -> None:
    x = normal(2, 4, 5, 3, dtype=np.float64)
    k = normal(kernel, kernel, filters, 3, seed=1, dtype=np.float64)
    layer = keras.layers.Conv2DTranspose(
        filters, kernel, strides=stride, padding=padding.lower(), use_bias=False
    )
    layer.build(x.shape)
    layer.set_weights([k])
    y, *gradients = with_gradients(
        lambda x, k: ops.conv2d_transpose(x, k, stride, padding), x, k
    )
    close(y, layer(x), 1e-13)
    _, *want = with_gradients(
        lambda x, k: lax.conv_transpose(
            x, k, (stride, stride), padding, dimension_numbers=NHWC,
            transpose_kernel=True,
        ),
        x, k,
    )  # fmt: skip
    for a, b in zip(gradients, want, strict=True):
        close(a, b, 1e-13)


POOLS = [
    ((2, 2), None, "VALID"),
    ((3, 3), (2, 2), "SAME"),
    ((3, 2), (1, 1), "SAME"),
]


@pytest.mark.parametrize(("window", "strides", "padding"), POOLS, ids=str)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_is_keras_s(kind: str, window: Any, strides: Any, padding: Any) -> None:
    """Values from -2 to 2 in steps, so that many are equal; gradients too."""
    x = jnp.round(normal(3, 7, 8, 2))
    layer = {
        "max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D,
    }[kind](window, strides, padding.lower())  # fmt: skip
    ours = {"max": ops.max_pool, "average": ops.average_pool}[kind]
    got = with_gradients(lambda x: ours(x, window, strides, padding), x)
    for a, b in zip(got, with_gradients(layer, x), strict=True):
        close(a, b, 1e-6)


def test_max_pooling_keeps_nan_and_minus_infinity() -> None:
    x = np.full((1, 2, 6, 1), -np.inf, np.float32)
    x[0, 1, 0] = x[0, 0, 4] = np.nan  # the last and the first of their windows
    largest = jax.jit(ops.max_pool)(x)[0, 0, :, 0]
    np.testing.assert_array_equal(largest, [np.nan, -np.inf, np.nan])


def test_pooling_of_known_numbers() -> None:
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(ops.max_pool(x)[0, ..., 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(
        ops.average_pool(x)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]]
    )
    same = ops.average_pool(x, (3, 3), (2, 2), "SAME")[0, ..., 0]
    np.testing.assert_array_equal(same, [[5, 6.5], [11, 12.5]])  # of 9, 6, 6 and 4


def test_they_map_and_scan() -> None:
    x, kernels = normal(3, 2, 6, 6, 2), normal(3, 3, 3, 2, 4, seed=1)

    def network(x: Array, kernel: Array) -> Array:
        y = ops.average_pool(ops.max_pool(ops.conv2d(x, kernel), (2, 2), (1, 1)))
        return jnp.sum(jnp.sin(ops.conv2d_transpose(y, kernel[..., :4], 2)[..., :2]))

    gradient = jax.jit(jax.grad(network, (0, 1)))
    one_by_one = [gradient(a, k) for a, k in zip(x, kernels, strict=True)]
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    mapped = jax.jit(jax.vmap(gradient))(x, kernels)
    _, scanned = jax.jit(
        lambda x, k: lax.scan(lambda carry, one: (carry, gradient(*one)), 0, (x, k))
    )(x, kernels)
    for got in (mapped, scanned):
        jax.tree.map(lambda a, b: close(a, b, 1e-6), got, want)


@pytest.mark.parametrize("shape", [(3, 5), (2, 2, 3, 5)])
def test_a_flat_product_is_that_of_every_row(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, (5, 4)))
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    np.testing.assert_allclose(
        ops.flat_dot_general(x, kernel, dims), np.asarray(x) @ kernel, atol=1e-6
    )
    with pytest.raises(ValueError, match="not x's last"):
        ops.flat_dot_general(x, kernel, (((0,), (0,)), ((), ())))


@pytest.mark.parametrize("shape", [(), (0,), (3, 4, 5)])
def test_random_bits_are_those_of_jax(shape: tuple[int, ...]) -> None:
    """Alone, in replicas, and by a generator that is not Threefry."""
    keys = jax.random.split(jax.random.key(2**40 + 1), 3)
    expected = np.stack([jax.random.bits(key, shape) for key in keys])
    replicas = jax.jit(jax.vmap(lambda key: ops.random_bits(key, shape)))(keys)
    np.testing.assert_array_equal(replicas, expected)
    np.testing.assert_array_equal(ops.random_bits(keys[1], shape), expected[1])
    other = jax.random.key(1, impl="rbg")
    np.testing.assert_array_equal(
        ops.random_bits(other, shape), jax.random.bits(other, shape)
    )


@pytest.mark.parametrize("n", [1, 7])
def test_dropout_scales_what_it_keeps(n: int) -> None:
    x = jnp.abs(normal(n, 9, 5)) + 1
    y, dx = jax.jit(jax.value_and_grad(lambda x, key: ops.dropout(x, 0.4, key).sum()))(
        x, jax.random.key(1)
    )
    kept = np.asarray(dx) > 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(dx, kept / 0.6, rtol=1e-6)
    np.testing.assert_allclose(y, (np.asarray(x) * kept / 0.6).sum(), rtol=1e-5)


def test_dropout_draws_each_place_alone() -> None:
    """In the share of the rate, and no two examples with the same places, or opposed
    ones: half of them share the bits of another."""
    n, d = 100, 500
    keys = jax.random.split(jax.random.key(2), 3)
    masks = np.asarray(jax.vmap(lambda k: ops.dropout(jnp.ones((n, d)), 0.3, k))(keys))
    dropped = masks == 0
    deviation = math.sqrt(0.3 * 0.7 / dropped.size)
    assert abs(dropped.mean() - 0.3) < 5 * deviation
    assert abs(dropped.mean((0, 1)) - 0.3).max() < 5 * math.sqrt(0.21 / (3 * n))
    rows = dropped.reshape(-1, d).astype(float)
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert abs(correlation).max() < 6 / math.sqrt(d)
