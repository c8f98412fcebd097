"""Augmentation: the maps of the Keras layers, read once, and shifts by whole pixels."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxstudy.images.augment import (
    Factor,
    Flip,
    Layer,
    Rotation,
    Translation,
    Zoom,
    augment_batch,
    augmented,
    background,
    draw,
    shift,
    warp_batch,
)
from jaxstudy.types import Array, Batch, Key, Mean, PyTree, UserError

KEY = jax.random.key(0)
PIPELINE = (Flip("both"), Rotation(0.1), Zoom(0.2), Translation(0.1, 0.1))
SHORT = (Flip(), Rotation(0.1))  # for what takes long to compile


def warp(image: Array, matrix: Array, fill: float | None = None) -> Array:
    """One image alone."""
    return warp_batch(image[None], matrix[None], fill)[0]


def augment(key: Key, image: Array, layers: Any) -> Array:
    """One image alone."""
    return warp(image, draw(key, image.shape[:2], layers))  # type: ignore[arg-type]


warp_compiled = jax.jit(warp, static_argnums=2)
warp_batch_compiled = jax.jit(warp_batch)
augment_compiled = jax.jit(augment, static_argnums=2)
augment_batch_compiled = jax.jit(augment_batch, static_argnums=(2, 3))
shift_compiled = jax.jit(shift)


def noise(*shape: int) -> Array:
    """Images of 0..255 whose neighbouring pixels have nothing in common."""
    values = np.random.default_rng(1).uniform(0, 255, shape)
    return jnp.asarray(values, jnp.float32)


IMAGES = noise(4, 9, 8, 2)


def fixed(layer: Layer, image: Array) -> np.ndarray:
    """An image by a layer that has nothing to choose."""
    height, width, _ = image.shape
    return np.asarray(warp_compiled(image, layer.draw(KEY, (height, width))))


# Against Keras


class Twin(NamedTuple):
    """A layer of ours and the layer of Keras it should equal."""

    ours: Callable[[Factor, Factor], Layer]
    keras: Callable[[Any, Any], Any]


TWINS = {
    "rotation": Twin(
        lambda f, g: Rotation(f), lambda f, g: keras.layers.RandomRotation(f)
    ),
    "zoom": Twin(lambda f, g: Zoom(f), lambda f, g: keras.layers.RandomZoom(f)),
    "zoom by two": Twin(Zoom, keras.layers.RandomZoom),
    "translation": Twin(Translation, keras.layers.RandomTranslation),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_layer_equals_that_of_keras(name: str) -> None:
    # factors up to the largest: most of such an image is filled in, from every side
    images = noise(2, *((7, 4, 3) if name.startswith("zoom") else (6, 9, 2)))
    for f in (-0.9, 0.03, 1.0):
        pairs = (f, f), (-f / 2, -f / 2)
        theirs = np.asarray(TWINS[name].keras(*pairs)(images, training=True))
        ours = [fixed(TWINS[name].ours(*pairs), image) for image in images]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-4)


def test_the_background_is_what_most_corners_show() -> None:
    drawings = np.full((4, 5, 5, 3), 255, np.uint8)
    drawings[:, 1:-1] = np.arange(12).reshape(4, 1, 1, 3)
    drawings[0, 0, 0] = 9
    assert background(drawings) == 255
    assert background(np.arange(300).reshape(4, 5, 5, 3)) is None


@pytest.mark.parametrize("mode", ["vertical", "both"])
def test_a_flip_is_exactly_that_of_keras(mode: Any) -> None:
    image = noise(5, 6, 2)
    theirs = keras.layers.RandomFlip(
        "horizontal_and_vertical" if mode == "both" else mode
    )
    copies = jnp.stack([image] * 64)
    seen: list[Any] = [
        {np.asarray(version).tobytes() for version in versions}
        for versions in (
            theirs(copies, training=True),
            augment_batch_compiled(KEY, copies, (Flip(mode),)),
        )
    ]
    mirrored = np.flip(image, (0, 1) if mode == "both" else 0)
    assert seen[0] == seen[1] == {image.tobytes(), mirrored.tobytes()}


@pytest.mark.parametrize("fill", [None, 3.0])
@pytest.mark.parametrize("size", [(7, 10), (4, 1)], ids=str)
def test_any_map_equals_scipy(
    size: tuple[int, int], fill: float | None, float64: None
) -> None:
    # also those that no layer draws: sheared, and far beyond the border
    rng = np.random.default_rng(2)
    image = rng.normal(size=(*size, 1))
    centre = (np.array(size)[:, None] - 1) / 2
    pixels = np.indices(size).reshape(2, -1) - centre
    for _ in range(30):
        matrix = np.eye(3)
        matrix[:2] = rng.normal(size=(2, 3)) * [1, 1, 10]
        sources = matrix[:2, :2] @ pixels + matrix[:2, 2:] + centre
        expected = scipy.ndimage.map_coordinates(
            image[..., 0], sources, order=1, cval=fill or 0,
            mode="reflect" if fill is None else "grid-constant",
        )  # fmt: skip
        got = np.asarray(warp_compiled(image, matrix, fill))
        np.testing.assert_allclose(got.ravel(), expected, rtol=0, atol=1e-12)
    low = warp_compiled(jnp.ones((2, 2, 1), "bfloat16"), np.eye(3), fill)
    assert (got.dtype, low.dtype) == (np.float64, np.float32)


# What is drawn


def drawn(*layers: Layer) -> np.ndarray:
    """The maps of 4000 keys, for images of 10 x 20."""
    keys = jax.random.split(KEY, 4000)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key, (10, 20), layers)))(keys))


def covers(values: np.ndarray, lower: float, upper: float) -> None:
    """Assert that 4000 values are spread evenly over an interval."""
    places = (values - lower) / (upper - lower)
    assert places.min() >= -1e-6
    assert places.max() <= 1 + 1e-6
    np.testing.assert_allclose(
        np.quantile(places, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04
    )


def independent(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether 4000 pairs are uncorrelated."""
    return abs(np.corrcoef(np.stack([a, b]))[0, 1]) < 0.05


def test_factors_are_drawn_from_their_intervals() -> None:
    turns = drawn(Rotation(-0.1))
    covers(np.arctan2(turns[:, 0, 1], turns[:, 0, 0]) / (2 * np.pi), -0.1, 0.1)
    moves = drawn(Translation((0.1, 0.3), 0.4))
    covers(-moves[:, 0, 2], 1, 3)  # of 10 rows, downwards
    covers(-moves[:, 1, 2], -8, 8)  # of 20 columns
    assert independent(moves[:, 0, 2], moves[:, 1, 2])


def test_a_zoom_keeps_the_proportions_unless_it_has_a_width() -> None:
    alike, free = drawn(Zoom((0.2, -0.1))), drawn(Zoom(0.2, (0.0, 0.5)))
    covers(alike[:, 0, 0], 0.9, 1.2)
    np.testing.assert_array_equal(alike[:, 0, 0], alike[:, 1, 1])
    covers(free[:, 0, 0], 0.8, 1.2)
    covers(free[:, 1, 1], 1.0, 1.5)
    assert independent(free[:, 0, 0], free[:, 1, 1])


def test_one_of_two_images_is_flipped() -> None:
    flips = drawn(Flip())
    assert abs(np.mean(flips[:, 1, 1] == -1) - 0.5) < 0.03
    both = drawn(Flip("horizontal"), Flip("vertical"))
    assert independent(both[:, 0, 0], both[:, 1, 1])


def test_every_layer_has_a_key_of_its_own() -> None:
    once, twice = drawn(Rotation(0.1)), drawn(Rotation(0.1), Rotation(0.1))
    second = once.transpose(0, 2, 1) @ twice  # the first turned back
    angles = [np.arctan2(m[:, 0, 1], m[:, 0, 0]) for m in (once, second)]
    covers(angles[1] / (2 * np.pi), -0.1, 0.1)
    assert independent(*angles)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Flip("sideways"), "mode of Flip is horizontal, vertical or both"),  # type: ignore
        (lambda: Rotation(1.5), "factor of Rotation .* from -1 to 1, not 1.5"),
        (lambda: Rotation(float("nan")), "factor of Rotation .* not nan"),
        (lambda: Rotation((0.1, 0.2, 0.3)), "factor of Rotation .* a pair"),  # type: ignore
        (lambda: Zoom(-1), "height of Zoom .* above -1 and up to 1, not -1"),
        (lambda: Zoom(0.1, (0.0, 1.1)), "width of Zoom"),
        (lambda: Translation((-2, 0), 0), r"height of Translation .* not \(-2, 0\)"),
        (lambda: Translation(0, None), "width of Translation .* not None"),  # type: ignore
    ],
)
def test_a_factor_that_makes_no_sense_is_refused(
    make: Callable[[], Layer], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        make()


# What must be exact


def test_what_changes_nothing_changes_no_bit() -> None:
    image = IMAGES[0]
    for layer in (Rotation(0), Zoom(0), Zoom(0, 0), Translation(0, 0)):
        np.testing.assert_array_equal(fixed(layer, image), image)
    nothing = draw(KEY, (9, 8), (Rotation(0), Zoom(0), Translation(0, 0)))
    same = warp_batch_compiled(IMAGES, jnp.stack([nothing] * 4))
    np.testing.assert_array_equal(same, IMAGES)
    np.testing.assert_array_equal(augment_batch_compiled(KEY, IMAGES, ()), IMAGES)


@pytest.mark.parametrize("share", [-1.0, 0.125, 0.75])
def test_whole_pixels_move_exactly(share: float) -> None:
    image = noise(8, 16, 1)
    down, right = int(8 * share), -int(16 * share)
    mirrored = jnp.pad(image, ((8, 8), (16, 16), (0, 0)), mode="symmetric")
    expected = mirrored[8 - down : 16 - down, 16 - right : 32 - right]
    moved = fixed(Translation((share, share), (-share, -share)), image)
    np.testing.assert_array_equal(moved, expected)


# One resampling


def test_half_a_pixel_twice_is_one_pixel_unblurred() -> None:
    image = noise(8, 8, 1)
    half = Translation((1 / 16, 1 / 16), 0)
    twice = augment_compiled(KEY, image, (half, half))
    np.testing.assert_array_equal(twice, fixed(Translation((1 / 8, 1 / 8), 0), image))
    blurred = fixed(half, jnp.asarray(fixed(half, image)))
    assert np.abs(twice - blurred).max() > 10


def test_composed_is_one_after_the_other_away_from_the_border() -> None:
    # interpolation is exact on a plane, so that only the order of the maps matters
    y, x = np.indices((24, 32), np.float32)
    plane = jnp.stack([3 * y + 2 * x + 7, y - 4 * x], -1)
    layers = (
        Flip("both"),
        Translation((0.1, 0.1), (-0.05, -0.05)),
        Rotation((0.06, 0.06)),
        Zoom((-0.2, -0.2), (-0.1, -0.1)),
    )
    inside = slice(8, -8), slice(8, -8)
    for seed in range(4):  # some flip, some do not
        key = jax.random.key(seed)
        stepwise = plane
        for number, layer in enumerate(layers):
            matrix = layer.draw(jax.random.fold_in(key, number), (24, 32))
            stepwise = warp_compiled(stepwise, matrix)
        apart = np.abs(augment_compiled(key, plane, layers) - stepwise)
        assert apart[inside].max() < 1e-3
        assert apart.max() > 1  # at the border they may differ, and do


# Keys, batches, compilation


def test_a_key_fixes_everything_and_every_image_has_its_own() -> None:
    copies = jnp.stack([IMAGES[0]] * 4)
    versions, again = (augment_batch_compiled(KEY, copies, PIPELINE) for _ in range(2))
    np.testing.assert_array_equal(versions, again)
    other = augment_batch_compiled(jax.random.key(1), copies, PIPELINE)
    everything = np.concatenate([versions, other]).reshape(8, -1)
    assert len(np.unique(everything, axis=0)) == 8


def test_a_batch_is_its_images_one_by_one() -> None:
    expected = augment_batch_compiled(KEY, IMAGES, SHORT)
    keys = jax.random.split(KEY, 4)
    for key, image, version in zip(keys, IMAGES, expected, strict=True):
        alone = augment_compiled(key, image, SHORT)
        np.testing.assert_allclose(alone, version, rtol=0, atol=5e-4)


def test_on_a_cpu_the_branch_that_makes_it_fast_survives_compilation() -> None:
    program = warp_batch_compiled.lower(IMAGES, jnp.zeros((4, 3, 3))).compile()
    on_cpu = jax.default_backend() == "cpu"
    assert str(program.as_text()).count(" conditional(") == on_cpu


def test_images_of_any_type_and_range() -> None:
    bytes_ = IMAGES.astype(jnp.uint8)
    floats = bytes_.astype(jnp.float32)
    expected = augment_batch_compiled(KEY, floats, SHORT)
    got = augment_batch_compiled(KEY, bytes_, SHORT)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4)
    # nothing is clipped or rounded: the map is linear in the image
    scaled = augment_batch_compiled(KEY, -4 * floats, SHORT)
    np.testing.assert_array_equal(scaled, -4 * expected)


# Gradients


def test_the_gradient_by_the_image_is_the_transposed_map() -> None:
    cotangent = IMAGES[::-1] - 100

    def inner(images: Array) -> Array:
        return jnp.sum(augment_batch(KEY, images, SHORT) * cotangent)

    value, gradient = jax.jit(jax.value_and_grad(inner))(IMAGES)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(gradient * IMAGES), value, rtol=1e-4)


def test_the_gradient_by_the_map_is_the_slope_of_the_image() -> None:
    y, x = np.indices((8, 8), np.float32)
    plane = jnp.asarray(3 * y - 2 * x)[..., None]
    # a source that lies inside, and between pixels
    matrix = jnp.array([[1, 0, 0.3], [0, 1, 0.4], [0, 0, 1]])
    gradient = jax.jit(jax.jacobian(lambda m: warp(plane, m)[..., 0]))
    at = np.array([-0.5, -0.5, 1])  # pixel (3, 3) from the centre
    expected = np.stack([3 * at, -2 * at, 0 * at])
    np.testing.assert_allclose(gradient(matrix)[3, 3], expected, atol=1e-5)
    assert np.isfinite(gradient(3 * matrix)).all()  # beyond the border


# An objective


def spy(params: PyTree, extra: PyTree, batch: Batch, key: Key | None) -> Any:
    """An objective that hands out what it was given, in `extra`."""
    noticed = {"batch": batch, "key": key}
    return jnp.float32(0), (noticed, {"loss": Mean(jnp.float32(0), jnp.float32(1))})


spied = jax.jit(augmented(spy, SHORT))
BATCH = {"x": IMAGES, "y": np.arange(4), "mask": np.ones(4, np.float32)}


def test_evaluation_is_left_alone() -> None:
    loss, (extra, metrics) = augmented(spy, PIPELINE)({}, {}, BATCH, None)
    assert extra["batch"] is BATCH
    assert extra["key"] is None
    assert (loss, metrics["loss"].count) == (0, 1)


def test_training_sees_other_images_and_the_same_rows() -> None:
    steps = [spied({}, {}, BATCH, jax.random.key(i))[1][0] for i in range(2)]
    for step in steps:
        assert step["batch"].keys() == BATCH.keys()
        np.testing.assert_array_equal(step["batch"]["y"], BATCH["y"])
        np.testing.assert_array_equal(step["batch"]["mask"], BATCH["mask"])
    seen = [BATCH["x"], *(step["batch"]["x"] for step in steps)]
    for i in range(3):
        assert np.abs(seen[i] - seen[i - 1]).max((1, 2, 3)).min() > 1


def test_dropout_and_augmentation_have_different_keys() -> None:
    _, (extra, _) = spied({}, {}, BATCH, KEY)
    inner, x = extra["key"], extra["batch"]["x"]
    # neither the step's own key nor the one inside made these images
    for key in (KEY, inner):
        same = augment_batch_compiled(key, BATCH["x"], SHORT)
        assert np.abs(same - x).max() > 1
    mine = jax.random.key_data(inner)
    assert not np.array_equal(mine, jax.random.key_data(KEY))
    # and dropout stays the same whatever the layers are
    _, (other, _) = augmented(spy, ())({}, {}, BATCH, KEY)
    np.testing.assert_array_equal(mine, jax.random.key_data(other["key"]))


# Shifts


def shifted(images: np.ndarray, dy: int, dx: int, fill: float) -> np.ndarray:
    """As `shift`, pixel by pixel."""
    out = np.full_like(images, fill)
    *_, height, width, _ = images.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - dy < height and 0 <= x - dx < width:
                out[..., y, x, :] = images[..., y - dy, x - dx, :]
    return out


SHAPES = st.sampled_from([(2, 5, 4, 2), (3, 6, 1)])
STEPS = st.integers(-8, 8) | st.sampled_from([-(2**31), 2**31 - 1])


@settings(max_examples=40, deadline=None)
@given(SHAPES, STEPS, STEPS, st.integers(0, 255), st.sampled_from(["uint8", "float32"]))
@example((3, 6, 1), 1, 2, 0, "float32")
def test_a_shift_is_exact(
    shape: tuple[int, ...], dy: int, dx: int, fill: int, dtype: str
) -> None:
    images = np.asarray(noise(*shape)).astype(dtype)
    expected = shifted(images, dy, dx, fill)
    got = shift_compiled(images, dy, dx, fill)
    assert got.dtype == images.dtype
    np.testing.assert_array_equal(got, expected)


def test_shifts_known_beforehand_and_side_by_side() -> None:
    images = noise(2, 5, 4, 1)
    expected = [shifted(np.asarray(images), s, -s, 0) for s in range(-3, 4)]
    np.testing.assert_array_equal(shift(images, -3, 3), expected[0])
    curve = jax.jit(jax.vmap(lambda s: shift(images, s, -s)))(jnp.arange(-3, 4))
    np.testing.assert_array_equal(curve, expected)
    with pytest.raises(ValueError, match="whole pixels"):
        shift(images, 0.5, 0)  # type: ignore
