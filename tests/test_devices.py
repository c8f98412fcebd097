"""What is split over several devices: one process with four of them, all checks."""

import contextlib
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_gan
import test_training
import tiny
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxstudy import ops
from jaxstudy.dataset import dataset
from jaxstudy.gan.step import (
    init_gan_replicas,
    init_gan_state,
    make_gan_step,
    real_first,
)
from jaxstudy.model import from_linen
from jaxstudy.objectives import binary_cross_entropy
from jaxstudy.parallel import Mode, device_mesh, replica_mesh
from jaxstudy.records import Log
from jaxstudy.streaming import streamed
from jaxstudy.training import (
    Evaluator,
    FitResult,
    Replicas,
    fit,
    init_replicas,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, TrainState, UserError
from tests.conftest import PYTHONPATH, ROOT, assert_rounding, assert_rows, run_script


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


def replicas_shared_by_devices() -> None:
    """One on each: sequentially to the bit, vectorised but for rounding."""
    assert (mesh := replica_mesh(20)) is not None
    assert mesh.size == 4
    data, tx = dataset(net_arrays()), optax.sgd(0.1)
    step = make_train_step(NET_OBJECTIVE, tx)
    for mode in MODES:
        want, found = (
            train_net(count, step, tx, data, 4, 3, mode=mode, log=Log())
            for count in (1, 4)
        )
        assert len(found[0].state.step.sharding.device_set) == 4
        assert_close(found, want)
        same = test_training.bits(found[0].state) == test_training.bits(want[0].state)
        assert same or mode == "vmap"


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


class Net(nn.Module):
    """Every kind of layer that sees a whole batch, or draws for each row of it."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(1)(x)[..., 0]


class ByData(Log):
    layout = "data"


class Rows:
    """A source of the rows of some arrays, which counts those that are read."""

    read = 0

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["x"])

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.read += 1
        return {name: a[row] for name, a in self.arrays.items()}


NET = from_linen(Net(), jnp.zeros((1, 5)))
NET_OBJECTIVE = binary_cross_entropy(NET)
NET_EVALUATE = make_eval_step(NET_OBJECTIVE)
MODES: tuple[Mode, ...] = ("map", "vmap")  # "auto" is the first on a CPU
BATCH_ROWS, EPOCHS = 61, 12  # four steps each, the last of 47 rows


@functools.cache
def net_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(230, 5)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] + rng.normal(size=230) > 0).astype(np.float32)}


def train_net(
    count: int,
    step: Any,
    tx: Any,
    data: Any,
    seeds: int = 0,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_ROWS,
    mode: Mode = "map",
    log: Log | None = None,
) -> tuple[FitResult, dict[str, Any]]:
    """The network by some devices that share each batch, or as usual for a count of 0,
    unless a log says how they are laid out; and an evaluation after it."""
    evaluator, key = Evaluator(NET_EVALUATE, data, 100, mode=mode), jax.random.key(3)
    init, order = init_state, jax.random.key(4)
    if seeds:
        init, (key, order) = init_replicas, jax.random.split(key, (2, seeds))
    chosen = jax.devices()[: count or 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: chosen)
        patch.setattr(jax, "local_devices", lambda: chosen)
        fitted = fit(
            init(NET, tx, key), step, data, key=order, epochs=epochs,
            batch_size=batch_size, evaluators={"validation": evaluator},
            replicas=Replicas(mode=mode), log=log or (ByData() if count else None),
        )  # fmt: skip
        return fitted, evaluator(fitted.state)


def assert_close(found: Any, want: Any, atol: float = 1e-6) -> None:
    """Weights, statistics, records and evaluations of two trainings."""
    for a, b in zip(
        jax.tree.leaves((found[0].state.params, found[0].state.extra)),
        jax.tree.leaves((want[0].state.params, want[0].state.extra)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert_rows([*found[0].records, found[1]], [*want[0].records, want[1]])


@contextlib.contextmanager
def compiled() -> Iterator[list[str]]:
    """The text of each chunk that is compiled meanwhile."""
    texts: list[str] = []
    compile_ = jax.stages.Lowered.compile

    def noting(self: Any, *args: Any, **options: Any) -> Any:
        program = compile_(self, *args, **options)
        texts.append(program.as_text() or "")
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", noting)
        yield texts


def communication(text: str) -> dict[str, int]:
    """How often a compiled program's text communicates, by the kind."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return dict(Counter(re.findall(rf"({kinds})(?:-start)?\(", text)))


def batches_shared_by_devices() -> None:
    """48 steps of gradient descent agree, and only few sums are communicated.

    61 rows divide by no number of devices; BatchNorm's statistics are of all of them,
    and dropout draws for all. Gradients are summed once a step, with BatchNorm twice
    more, an evaluation's metrics and an epoch's examples once.
    """
    data, tx = dataset(net_arrays()), optax.sgd(0.1)
    step = make_train_step(NET_OBJECTIVE, tx)
    with compiled() as usual:
        want = train_net(0, step, tx, data)
    start = init_state(NET, tx, jax.random.key(3)).params["Dense_0"]["kernel"]
    assert np.abs(want[0].state.params["Dense_0"]["kernel"] - start).max() > 0.1
    with compiled() as texts:
        one = train_net(1, step, tx, data)
    assert texts == usual
    assert test_training.bits(one[0].state) == test_training.bits(want[0].state)
    with compiled() as texts:
        found = train_net(4, step, tx, data)
    assert_close(found, want)
    assert found[0].state.step.sharding.is_fully_replicated
    assert len(found[0].state.step.sharding.device_set) == 4
    assert communication(texts[0]) == {"all-reduce": 5}
    with pytest.raises(UserError, match=r"^--devices data: 4 devices .* batch of 3;"):
        train_net(4, step, tx, data, batch_size=3)
    # found finished when it is resumed, it is evaluated by the devices as before
    one_device = jax.device_put(found[0].state, jax.devices()[0])
    resumed = fit(
        one_device, step, data, key=jax.random.key(4), epochs=EPOCHS,
        batch_size=BATCH_ROWS, log=ByData(),
    )  # fmt: skip
    assert len(resumed.state.step.sharding.device_set) == 4
    assert Evaluator(NET_EVALUATE, data, 100)(resumed.state) == found[1]


def streams_shared_by_devices() -> None:
    """Of replicas, too; nobody reads a row that another device's has."""
    tx, read = optax.sgd(0.1), []
    step = make_train_step(NET_OBJECTIVE, tx)
    for seeds in (0, 2):
        one, four = (Rows(net_arrays()) for _ in range(2))
        want = train_net(0, step, tx, streamed(one), seeds, epochs=2)
        found = train_net(4, step, tx, streamed(four), seeds, epochs=2)
        assert_close(found, want)
        read.append([one.read, four.read])
    # two epochs of four batches, filled up to divide; four evaluations of 300 rows
    one, two = 8 * 61, 2 * 8 * 61
    more = 4 * 300 + 1
    assert read == [[one + more, 8 * 64 + more], [two + more, 2 * 8 * 62 + more]]


def replicas_that_share_devices_and_batches() -> None:
    """Two by two groups of two devices, sequentially and vectorised."""
    data, tx = dataset(net_arrays()), optax.sgd(0.1)
    step = make_train_step(NET_OBJECTIVE, tx)
    for mode in MODES:
        want = train_net(0, step, tx, data, 2, 10, mode=mode)
        with compiled() as texts:
            found = train_net(4, step, tx, data, 2, 10, mode=mode)
        assert_close(found, want)
        assert communication(texts[0]) == {"all-reduce": 5}
    mesh = device_mesh("data", 6)
    assert mesh is not None
    assert dict(mesh.shape) == {"replicas": 2, "data": 2}
    assert device_mesh("data", 8) == device_mesh("replicas", 8)


def a_gan_by_data() -> None:
    """Its images are generated where they are judged: only sums are communicated."""
    pair = small_gan.D, small_gan.G, optax.sgd(0.1), optax.sgd(0.1)
    step, results = make_gan_step(*pair), []
    for log in (None, ByData()):
        state = init_gan_state(*pair, jax.random.key(8))
        with compiled() as texts:
            results.append(small_gan.train(state, jax.random.key(9), step, log=log))
    assert_rounding(results[1].state, results[0].state, 18 * 16)
    assert communication(texts[0]).keys() == {"all-reduce"}


def an_experiment_by_data() -> None:
    """The option reaches the training, and its run says so."""
    losses = []
    for layout in ("replicas", "data"):
        with tempfile.TemporaryDirectory() as folder, compiled() as texts:
            assert run_script(tiny, "--run-dir", folder, "--devices", layout) == 0
            result, config = (
                json.loads((Path(folder) / f"{name}.json").read_text())
                for name in ("result", "config")
            )
        assert config["options"]["devices"] == layout
        assert bool(communication(texts[0])) == (layout == "data")
        losses.append(result["metrics"]["loss 0"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


CHECKS = (
    batches_shared_by_devices,
    streams_shared_by_devices,
    replicas_that_share_devices_and_batches,
    a_gan_by_data,
    an_experiment_by_data,
    operations_on_sharded_batches,
    replicas_shared_by_devices,
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
