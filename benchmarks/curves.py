"""How time grows: with examples, replicas, the length of a text, the side of an image.

    python benchmarks/curves.py            on the device that JAX finds; minutes
    python benchmarks/curves.py --quick    seconds, to see that all of it runs

Every size is compiled and run once. Then, in each round, all sizes of a curve are timed
in an order drawn anew, so that a machine that slows down makes no slope. What is timed
is a whole call of `fit` that compiles nothing: the order of the rows, reading them, the
steps. What the numbers say is in laws.py.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import communication
import harness
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import sequences_speed as sequences
import study_speed
import tyro

from jaxstudy import objectives
from jaxstudy.dataset import AnyDataset, dataset, take
from jaxstudy.model import Model
from jaxstudy.models.cnn import practised_cnn
from jaxstudy.models.efficientnet import efficientnet_lite0
from jaxstudy.models.mlp import mlp
from jaxstudy.parallel import Mode
from jaxstudy.runs.environment import environment
from jaxstudy.streaming import streamed
from jaxstudy.training import Replicas, fit, init_state, make_train_step

ROOT = Path(__file__).resolve().parents[1]
SIDE = 299  # of the largest image
TEXTS, IMAGES = 32, 4  # of a batch


@dataclass(frozen=True)
class Command:
    """Measure all curves; write benchmarks/results/curves.json and the figure."""

    quick: bool = False
    """Three small sizes of each curve; into runs/curves unless --root is given."""
    rounds: int = 5
    """How often each size is timed."""
    root: Path | None = None
    """Folder in which benchmarks/results and results/figures lie."""


class Point(NamedTuple):
    """One size: `seconds()` times it once, which does `units` of what is counted.

    operations, bytes: of a unit, see `costs`.
    """

    seconds: Callable[[], float]
    units: int
    operations: float
    bytes: float


class Curve(NamedTuple):
    """Lines over sizes.

    text: what laws.py says of it. sizes: those of --quick, and all. lines: what makes
    the point of a size, by label.
    """

    text: dict[str, Any]
    sizes: tuple[Sequence[int], Sequence[int]]
    lines: Mapping[str, Callable[[int, bool], Point]]


@dataclass(frozen=True)
class Source:
    """Rows that are read one by one, of arrays in the memory of the host."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["y"])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: a[row] for name, a in self.arrays.items()}


# What is timed


def costs(function: Any, *inputs: Any) -> tuple[float, float]:
    """Operations of the products of a program, and the bytes that these move.

    Every operand and result of a product passes through memory once. A loop moves what
    it is given and what it gives; what stays within an iteration is in a cache.
    """
    moving = ("dot_general", "conv_general_dilated", "scan")

    def moved(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            arrays = [v.aval for v in (*eqn.invars, *eqn.outvars)]
            each = [moved(inner) for inner in communication.programs_within(eqn)]
            if eqn.primitive.name in moving:
                total += sum(a.size * a.dtype.itemsize for a in arrays)
            else:
                total += min(each) if eqn.primitive.name == "cond" else sum(each)
        return total

    jaxpr = jax.make_jaxpr(function)(*inputs).jaxpr
    return communication.operations(jaxpr), moved(jaxpr)


@functools.cache  # all sizes of a curve share a step: `fit` keeps the programs of few
def trained(name: str) -> tuple[Model, Any, Any]:
    """A network, an optimizer and a training step."""
    if name == "admission":
        model = mlp(6, (64, 128), 1)
        objective = objectives.binary_cross_entropy(model)
    elif name == "lstm":
        model = sequences.model_jaxstudy()
        objective = objectives.token_cross_entropy(model)
    else:
        model = practised_cnn((SIDE, SIDE, 3), 10)
        objective = objectives.cross_entropy(model)
    tx = optax.adam(1e-3)
    return model, tx, make_train_step(objective, tx)


def training(
    name: str, data: AnyDataset, batch_size: int, epochs: int = 1, count: int = 0,
    mode: Mode = "auto",
) -> Point:  # fmt: skip
    """A call of `fit`, of one state or of so many replicas; a unit is a step of one."""
    model, tx, step = trained(name)
    one = init_state(model, tx, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), max(1, count))
    state = jax.jit(jax.vmap(lambda _: one))(keys) if count else one
    batch = take(data, np.arange(batch_size)) | {"mask": np.ones(batch_size, bool)}

    def seconds() -> float:
        begin = jax.block_until_ready(jax.tree.map(jnp.copy, state))  # it is donated
        began = time.perf_counter()
        fit(
            begin, step, data, key=keys if count else keys[0], epochs=epochs,
            batch_size=batch_size, replicas=Replicas(mode=mode),
        )  # fmt: skip
        return time.perf_counter() - began

    steps = max(1, count) * epochs * len(data.indices) // batch_size
    return Point(seconds, steps, *costs(step, one, batch))


def rows(n: int) -> dict[str, np.ndarray]:
    """Applications [n, 6], and whether each is admitted."""
    x = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.float32)}


def examples(n: int, quick: bool, stream: bool = False) -> Point:
    """Epochs of n rows: as many as make 2^16 rows, but a whole one."""
    data = streamed(Source(rows(n))) if stream else dataset(rows(n))
    point = training("admission", data, 32, max(1, 2 ** (10 if quick else 16) // n))
    each = point.operations / 32, point.bytes / 32
    return Point(point.seconds, 32 * point.units, *each)


def replicas(count: int, quick: bool, mode: Mode) -> Point:
    """So many trainings on 256 rows: together 8,192 steps, but 32 each at least."""
    epochs = 1 if quick else max(4, 1024 // count)
    return training("admission", dataset(rows(256)), 32, epochs, count, mode)


def texts(length: int, quick: bool) -> Point:
    """Steps on batches of texts of a length: as many as make 1,024 characters each."""
    shape = TEXTS * (1 if quick else max(1, 1024 // length)), length
    x = np.random.default_rng(0).integers(0, sequences.VOCABULARY, shape, np.int32)
    data = dataset({"x": x, "y": x, "real": np.ones(shape, np.float32)})
    return training("lstm", data, TEXTS)


def repeated(side: int, quick: bool) -> int:
    """How often an image has the pixels of the largest."""
    return 1 if quick else max(1, SIDE**2 // side**2)


def images(side: int, quick: bool) -> Point:
    """Steps on batches of images of a side, of as many pixels as one of the largest."""
    n, rng = IMAGES * repeated(side, quick), np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n, side, side, 3), np.uint8), rng.integers(0, 10, n)
    return training("cnn", dataset({"x": x, "y": y.astype(np.int32)}), IMAGES)


@functools.cache  # they fit any side, and drawn by JAX they take long to compile
def backbone_weights() -> tuple[Any, Any]:
    """Random parameters and statistics of EfficientNet-Lite0."""
    arrays = harness.random_weights(efficientnet_lite0(include_top=False))
    return harness.tree(arrays, "params"), harness.tree(arrays, "extra")


def features(side: int, quick: bool) -> Point:
    """Features of batches of images; the same in all else."""
    times = repeated(side, quick)
    model = efficientnet_lite0((side, side), include_top=False)
    weights = backbone_weights()
    x = jax.random.normal(jax.random.key(1), (IMAGES, side, side, 3))
    apply = jax.jit(lambda w, x: model.apply(*w, x, train=False, key=None)[0])

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(times):
            jax.block_until_ready(apply(weights, x))
        return time.perf_counter() - began

    return Point(seconds, times, *costs(apply, weights, x))


CURVES = {
    "examples": Curve(
        {"title": "Examples", "size": "examples in the set", "unit": "an example",
         "per": "example", "power": 0, "memory": False},
        ((256, 512, 1024), [4**k for k in range(5, 11)]),
        {"resident": examples, "streamed": functools.partial(examples, stream=True)},
    ),
    "replicas": Curve(
        {"title": "Replicas", "size": "replicas", "unit": "a step of a replica",
         "per": "step of a replica", "power": 0, "memory": False},
        ((1, 2, 4), [4**k for k in range(6)]),
        {mode: functools.partial(replicas, mode=mode) for mode in ("map", "vmap")},
    ),
    "texts": Curve(
        {"title": "Length of a text", "size": "T [characters]", "unit": "a step",
         "per": "character", "power": 1, "memory": False},
        ((4, 8, 16), [2**k for k in range(5, 11)]), {"LSTM, training": texts},
    ),
    "images": Curve(
        {"title": "Side of an image", "size": "side [pixels]", "unit": "a step",
         "per": "pixel", "power": 2, "memory": True},
        ((32, 40, 48), (32, 64, 96, 150, 224, SIDE)),
        {"CNN, training": images, "EfficientNet-Lite0, features": features},
    ),
}  # fmt: skip


# How it is timed


def fastest(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of three calls, after one that is not timed."""
    jax.block_until_ready(function())
    ends = [time.perf_counter()]
    for _ in range(3):
        jax.block_until_ready(function())
        ends.append(time.perf_counter())
    return float(np.diff(ends).min())


def device_rates(quick: bool) -> dict[str, float]:
    """Operations per second of products of matrices, bytes per second of copies."""
    size, length = (256, 2**18) if quick else (2048, 2**26)
    b, add = jnp.ones(length), jax.jit(lambda b: b + 1, donate_argnums=0)
    source, target = np.ones((2, length), np.float32)

    def copy() -> Any:
        nonlocal b
        b = add(b)  # in its own place: new memory would have to be made
        return b

    return {
        "product by jax": 1e9 * harness.matrix_product(size, 3, "jax"),
        "product by numpy": 1e9 * harness.matrix_product(size, 3),
        "copy by jax": 8 * length / fastest(copy),
        "copy by numpy": 8 * length / fastest(lambda: np.copyto(target, source)),
    }


def measure(curve: Curve, quick: bool, rounds: int) -> dict[str, Any]:
    """Seconds of a unit by line, size and round, and the device's rates by round."""
    sizes = list(curve.sizes[0 if quick else 1])
    points = [
        (line, i, make(n, quick))
        for line, make in curve.lines.items() for i, n in enumerate(sizes)
    ]  # fmt: skip
    lines: dict[str, Any] = {}
    for line in curve.lines:
        of = [point[2:] for label, _, point in points if label == line]
        operations, moved = zip(*of, strict=True)
        lines[line] = {"seconds": [[] for _ in sizes], "operations": operations,
                       "bytes": moved}  # fmt: skip
    for _, _, point in points:
        point.seconds()  # compiles
    rates, rng = [], np.random.default_rng(0)
    for _ in range(rounds):
        rates.append(device_rates(quick))
        for at in rng.permutation(len(points)):
            line, i, point = points[at]
            lines[line]["seconds"][i].append(point.seconds() / point.units)
    return {**curve.text, "sizes": sizes, "lines": lines, "rates": rates}


def main(command: Command) -> int:
    """Measure, write, print."""
    limiting = [name for name in os.environ if name.startswith(harness.LIMITING)]
    if limiting and not command.quick:
        print(f"unset {', '.join(limiting)}: numpy's product is to be a limit")
        return 2
    study_speed.use_all_cores()
    root = command.root or (ROOT / "runs" / "curves" if command.quick else ROOT)
    result: dict[str, Any] = {"schema": 1, "rounds": command.rounds, "curves": {}}
    for name, curve in CURVES.items():
        began = time.perf_counter()
        result["curves"][name] = measure(curve, command.quick, command.rounds)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    laws.write(result | {"environment": environment()}, root)
    print(laws.table(json.loads((root / laws.RESULT).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))
