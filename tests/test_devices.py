"""What is split over several devices: one process with four of them, all checks."""

import json
import math
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_gan
import test_study
import test_training
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxstudy import ops
from jaxstudy.gan.step import (
    init_gan_replicas,
    init_gan_state,
    make_gan_step,
    real_first,
)
from jaxstudy.parallel import replica_mesh
from jaxstudy.training import FitResult, Replicas, make_train_step
from jaxstudy.types import Array, TrainState
from tests.conftest import PYTHONPATH, ROOT, assert_rounding


def train_step_on_a_sharded_batch() -> None:
    """It runs unchanged."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rng = np.random.default_rng(0)
    step = jax.jit(make_train_step(test_training.OBJECTIVE, test_training.TX))
    single, first = test_training.fresh(), test_training.fresh()
    spread = jax.device_put(first, NamedSharding(mesh, PartitionSpec()))
    for _ in range(5):
        x = rng.normal(size=(40, 3)).astype(np.float32)
        rows = {"x": x, "y": (x[:, 0] > 0).astype(np.float32)}
        rows["mask"] = (np.arange(40) < 37).astype(np.float32)  # uneven over devices
        shards = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
        assert [s.data.shape for s in shards["x"].addressable_shards] == [(10, 3)] * 4
        single, metrics = step(single, jax.device_put(rows, jax.devices()[0]))
        spread, spread_metrics = step(spread, shards)
        got, want = jax.device_get((spread_metrics["loss"], metrics["loss"]))
        assert got.count == want.count == 37
        assert math.isclose(got.total, want.total, rel_tol=1e-5)
    for a, b in zip(
        jax.tree.leaves(spread.params), jax.tree.leaves(single.params), strict=True
    ):
        assert a.sharding.is_fully_replicated
        assert len(a.addressable_shards) == 4
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    kernels = (s.params["output"]["kernel"] for s in (single, first))
    assert np.abs(np.subtract(*kernels)).max() > 0.01


def operations_on_sharded_batches() -> None:
    """Convolution and pooling keep the batch split, and their values."""
    ops.PATCH_BYTES, ops.SLICE_BYTES = 2**16, 2**15  # as nothing else here needs
    x, kernel, square = (
        jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        for shape in ((16, 8, 8, 4), (3, 3, 4, 4), (4, 4, 6, 4))
    )

    def output_and_gradient(operation: Callable[[Array], Array], x: Array) -> Any:
        def total(x: Array) -> tuple[Array, Array]:
            y = operation(x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(total, has_aux=True))(x)

    operations: dict[str, Callable[[Array], Array]] = {
        "in slices": lambda x: ops.conv2d(x, kernel),
        "strided": lambda x: ops.conv2d(x, kernel, 2),
        "transposed": lambda x: ops.conv2d_transpose(x, square, 2),
        "largest": ops.max_pool,
        "means": lambda x: ops.average_pool(x, (3, 3), (1, 1), "SAME"),
    }
    for name, operation in operations.items():
        want = output_and_gradient(operation, x)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
            split = NamedSharding(mesh, PartitionSpec("data"))
            with jax.set_mesh(mesh):
                got = output_and_gradient(operation, jax.device_put(x, split))
            assert_rounding(got, want, 8)
            if kind == AxisType.Explicit:
                assert {jax.typeof(a).sharding.spec[0] for a in got} == {"data"}, name


def replicas_of_a_study() -> None:
    """Twenty a block in each mode: the numbers are those of one device."""
    assert (mesh := replica_mesh(20)) is not None
    assert mesh.size == 4
    protocol = replace(test_study.PROTOCOL, trials=4, tuning_seeds=5, budgets=(1, 2, 3))
    adam = test_study.candidates("adam")

    def cell(mode: Any) -> dict[str, Any]:
        how = replace(protocol, mode=mode)
        with tempfile.TemporaryDirectory() as folder:
            study = test_study.run_tiny(Path(folder), candidates=adam, protocol=how)
        return study["cells"][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        one = cell("map")
    for mode in ("map", "vmap"):
        four = cell(mode)
        assert one["points"] == four["points"]
        for of in (lambda c: c["tuning"], lambda c: c["reported"]["4"]):
            losses = (np.array(of(c)["validation"], float) for c in (one, four))
            np.testing.assert_allclose(*losses, rtol=1e-4)


def replicas_of_a_gan() -> None:
    """Two in both orders, to the bit, and one of them alone.

    The order of training depends on the step. By SGD: a gradient that is 0 but for
    rounding, of a bias before BatchNorm, is as large as any other to Adam.
    """
    pair = small_gan.D, small_gan.G, optax.sgd(0.1), optax.sgd(0.1)
    keys = jnp.stack([jax.random.key(8), jax.random.key(3)])
    order_keys = jnp.stack([jax.random.key(9), jax.random.key(4)])
    step = make_gan_step(*pair, real_first(3))

    def fitted(order: Any) -> FitResult:
        state = init_gan_replicas(*pair, keys[order])
        return small_gan.train(state, order_keys[order], step, replicas=Replicas())

    def replica(i: int, fitted: FitResult) -> TrainState:
        return jax.tree.map(lambda a: a[i], fitted.state)

    bits = test_training.bits
    replicas, other = fitted(jnp.array([0, 1])), fitted(jnp.array([1, 0]))
    assert bits(replica(1, replicas)) == bits(replica(0, other))
    losses = replicas.records[-1]["loss"]
    assert losses[0] != losses[1]
    assert losses == other.records[-1]["loss"][::-1]
    alone = small_gan.train(init_gan_state(*pair, keys[1]), order_keys[1], step)
    # 18 updates by sums of 256 products
    assert_rounding(replica(1, replicas), alone.state, 18 * 16)
    assert math.isclose(losses[1], alone.records[-1]["loss"], rel_tol=1e-5)


CHECKS = (
    train_step_on_a_sharded_batch,
    operations_on_sharded_batches,
    replicas_of_a_study,
    replicas_of_a_gan,
)


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    """What each check raised, in a process where the processor is four devices."""
    flag = "--xla_force_host_platform_device_count=4"
    own = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": PYTHONPATH,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_four_devices_compute_what_one_does(errors: dict[str, str], check: str) -> None:
    assert errors[check] == ""


def main() -> None:
    assert jax.device_count() == 4
    errors = {}
    for check in CHECKS:
        try:
            check()
            errors[check.__name__] = ""
        except Exception:
            errors[check.__name__] = traceback.format_exc()
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
