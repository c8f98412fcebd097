"""Frozen layers: computed once, kept by content, and never changed by training."""

import functools
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.model import (
    Model,
    compose,
    sequential,
    split_stages,
    with_frozen_backbone,
)
from jaxstudy.models.efficientnet import efficientnet_stages
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.pretrained import features
from jaxstudy.pretrained.backbones import (
    Backbone,
    at_resolution,
    backbone,
    check_image_size,
    on_pixels,
    pretrained,
    select_weights,
    untrained,
    with_stored_statistics,
)
from jaxstudy.pretrained.features import frozen_features
from jaxstudy.training import init_state, make_train_step
from jaxstudy.types import UserError
from tests.conftest import Patch

ALL = efficientnet_stages(include_top=False)
STAGES = (*ALL[:2], ALL[-1])  # stem, block0 and the pool
FROZEN, TRAINED = split_stages(STAGES, "block0")
IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
FEATURES = jax.ShapeDtypeStruct((1, 4, 4, 32), jnp.float32)
FIRST = sequential(FROZEN, IMAGE)
REST = compose(sequential(TRAINED, FEATURES), mlp(16, (), 3))
IMAGES = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)


@functools.cache
def weights(seed: int = 0) -> Any:
    drawn = jax.jit(FIRST.init)(jax.random.key(seed))
    return dict(zip(("params", "extra"), drawn, strict=True))


@functools.cache
def whole_weights() -> Any:
    """Those of all stages."""
    return jax.jit(sequential(STAGES, IMAGE).init)(jax.random.key(0))


def applied(model: Model, weights: Any, x: Any) -> Any:
    apply = jax.jit(functools.partial(model.apply, train=False, key=None))
    return apply(*weights, x)[0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return features.cache_folder()


def test_features_are_computed_once_and_kept_by_content(cache: Path) -> None:
    first = frozen_features(FIRST, weights(), IMAGES, batch_size=2)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(
        frozen_features(FIRST, weights(), IMAGES, batch_size=2), first
    )
    assert file.stat().st_mtime_ns == written
    want = applied(FIRST, weights().values(), IMAGES)
    np.testing.assert_allclose(first, want, atol=1e-6)
    frozen_features(FIRST, weights(1), IMAGES, batch_size=2)
    frozen_features(FIRST, weights(), IMAGES + 1, batch_size=2)
    frozen_features(FIRST, weights(), IMAGES[:, :6], batch_size=2)
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_file_is_computed_anew(cache: Path) -> None:
    first = frozen_features(FIRST, weights(), IMAGES)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    flipped = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    for damaged in (flipped, content[:-9], b""):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(frozen_features(FIRST, weights(), IMAGES), first)
        assert file.read_bytes() == content


def test_more_than_the_limit_is_refused(cache: Path) -> None:
    with pytest.raises(UserError, match=r"take 0 MiB, more.*freeze more layers"):
        frozen_features(FIRST, weights(), IMAGES, limit=100)
    assert not cache.exists()


def test_training_leaves_frozen_leaves_and_costs_them_no_state() -> None:
    """And what is kept gives the outputs and gradients of what is computed anew."""
    fixed = weights()
    model = with_frozen_backbone(pretrained(FIRST, fixed), REST)
    tx = optax.adam(0.1)
    state = init_state(model, tx, jax.random.key(2))
    counted = [a.size for a in jax.tree.leaves(state.opt_state)]
    assert sum(counted) == 1 + 2 * sum(a.size for a in jax.tree.leaves(state.params))
    y, mask = jnp.array([0, 1, 2, 0, 1]), jnp.ones(5)
    batch = {"x": jnp.asarray(IMAGES), "y": y, "mask": mask}
    step = jax.jit(make_train_step(cross_entropy(model), tx))
    after, _ = step(state, batch)
    after, _ = step(after, batch)
    chex.assert_trees_all_equal(after.extra["frozen"], fixed)
    assert not np.array_equal(
        jax.tree.leaves(after.params)[0], jax.tree.leaves(state.params)[0]
    )
    kept = {**batch, "x": jnp.asarray(frozen_features(FIRST, fixed, IMAGES))}

    def gradient(model: Any, extra: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return cross_entropy(model)(params, extra, batch, None)[0]

        return jax.jit(jax.value_and_grad(loss))(after.params)

    chex.assert_trees_all_close(
        gradient(model, after.extra, batch),
        gradient(REST, after.extra["trained"], kept),
        atol=1e-5,
    )


def test_stored_statistics_stay_while_layers_train() -> None:
    params, extra = whole_weights()
    part = select_weights(FROZEN, {"params": params, "extra": extra})
    assert set(part["params"]) == set(part["extra"]["batch_stats"]) == {"stem"}
    first = with_stored_statistics(FROZEN, IMAGE)
    rest = with_stored_statistics(TRAINED, FEATURES)
    x = applied(first, (params, extra), jnp.asarray(IMAGES))
    begin = pretrained(rest, {"params": params, "extra": extra})
    model, tx = compose(begin, mlp(16, (), 3)), optax.adam(0.1)
    state = init_state(model, tx, jax.random.key(0))
    before = jax.device_get(state)
    chex.assert_trees_all_equal(before.params["first"]["block0"], params["block0"])
    batch = {"x": x, "y": jnp.array([0, 1, 2, 0, 1]), "mask": jnp.ones(5)}
    after, _ = jax.jit(make_train_step(cross_entropy(model), tx))(state, batch)
    chex.assert_trees_all_equal(after.extra, before.extra)
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), after.params, before.params
    )
    assert all(jax.tree.leaves(moved))


NETWORK = Backbone(
    "efficientnet_lite0", STAGES, {}, lambda x: jnp.asarray(x) / 127.5 - 1
)
PIXELS = np.random.default_rng(1).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)


def test_an_untrained_network_normalises_by_the_images_it_was_shown() -> None:
    """So what it does in evaluation is what BatchNorm does with that batch."""
    one, same, other = (untrained(NETWORK, PIXELS, seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one.weights, same.weights)
    kernels = [jax.tree.leaves(n.weights["params"])[0] for n in (one, other)]
    assert not np.array_equal(*kernels)
    model, x = sequential(STAGES, IMAGE), NETWORK.preprocess(jnp.asarray(PIXELS))
    given = one.weights["params"], one.weights["extra"]
    train = jax.jit(functools.partial(model.apply, train=True, key=None))
    want, _ = train(*given, x)
    np.testing.assert_allclose(applied(model, given, x), want, atol=1e-3)


def test_at_a_resolution_nothing_finer_is_seen() -> None:
    """Two images that are equal once they are reduced have the same features."""
    board = np.indices((8, 8)).sum(0)[None, :, :, None] % 2 * np.ones((1, 1, 1, 3))
    pair = [np.uint8(127 + 60 * sign * board - 30 * sign) for sign in (1, -1)]
    model = on_pixels(at_resolution(NETWORK, 2), FIRST)
    seen = [applied(model, weights().values(), x) for x in pair]
    np.testing.assert_allclose(*seen, atol=0.05)
    plain = on_pixels(NETWORK, FIRST)
    seen = [applied(plain, weights().values(), x) for x in pair]
    assert np.abs(seen[0] - seen[1]).max() > 0.1


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'block0'"):
        split_stages(STAGES, "block00")
    with pytest.raises(UserError, match="75 pixels a side at least, not 74"):
        check_image_size("inception_v3", 74)
    with pytest.raises(UserError, match="--weights FILE"):
        backbone("inception_v3")
    with pytest.raises(UserError, match="goes with inception_v3"):
        backbone("efficientnet_lite0", tmp_path / "any.h5")
