"""What a speed comparison needs: contestants, rounds, checks and the table.

A script has workloads and calls `main`. Every contestant gets the same arrays, weights
too, prepares untimed, and repeats a step. In each round all run in processes of their
own, in rotated order, among them a product of two large float32 matrices, whose rate is
the peak of that round. Figures are medians over the rounds, ratios and shares of the
peak are within a round. Nothing is written unless the results agree.

    SCRIPT                                        all; writes benchmarks/results/
    SCRIPT --workload NAME --contestant torch     what each of the processes runs
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import speed
from speed import OURS, Arrays
from study_speed import verdicts

SCHEMA = 1
PEAK = "peak"
WARM_UP = 2  # steps that are not timed


class Measured(NamedTuple):
    """Milliseconds of a step, and what is compared."""

    step_ms: float
    results: dict[str, np.ndarray]


class Contestant(NamedTuple):
    """Its results must be those of the one that it is `like`."""

    label: str
    run: Callable[[Arrays, int], Measured]  # (data, steps)
    packages: tuple[str, ...]
    like: str = OURS
    counted: bool = True


@dataclass(frozen=True)
class Workload:
    """What is done, and how far from each other results may be; see `apart`.

    operations: of the matrix products that a step cannot do without. makes: what a step
    brings forth, and how many; the table has so many per second, not the milliseconds.
    """

    title: str
    about: str
    data: Callable[[], dict[str, np.ndarray]]
    operations: Callable[[], float] | None
    contestants: dict[str, Contestant]
    steps: int
    tolerances: dict[str, float]
    targets: dict[str, float]  # as in speed.py
    makes: tuple[str, int] | None = None


def timed(step: Callable[[int], Any], finish: Callable[[Any], Any], n: int) -> float:
    """Milliseconds of step(i), each finished before the next; some go before."""
    for i in range(-WARM_UP, n):
        if i == 0:
            began = time.perf_counter()
        finish(step(i + WARM_UP))
    return 1e3 * (time.perf_counter() - began) / n


# Weights, and training by cross-entropy and Adam

RATE = 1e-3
EPS = 1e-10  # so small that it does not matter where in Adam it is added
EPOCHS = 2  # of `steps` steps each, after an untimed one


def random_weights(model: Any) -> dict[str, np.ndarray]:
    """A model's arrays by path, as "params/conv_1/kernel"; `tree` puts them back.

    Kernels keep a signal through ReLU, and the rest is drawn so that no array can be
    mistaken for another.
    """
    import jax
    from flax.traverse_util import flatten_dict

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("kernel"):
            array = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        else:
            low, high = (0.5, 1.5) if name.endswith("var") else (-0.2, 0.2)
            array = rng.uniform(low, high, shape)
        return array.astype(np.float32)

    paths: Any = flatten_dict(
        dict(zip(("params", "extra"), shapes, strict=True)), sep="/"
    )
    return {name: drawn(name, leaf.shape) for name, leaf in paths.items()}


def tree(arrays: Arrays, name: str) -> Any:
    """The arrays below a name, "params" or "extra", as the model has them."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    found = {k: jnp.asarray(a) for k, a in arrays.items() if k.startswith(f"{name}/")}
    return unflatten_dict(found, sep="/")[name]


def training_jaxstudy(
    model: Any, data: Arrays, steps: int, batch_size: int
) -> Measured:
    """`fit`, a chunk for each epoch."""
    import jax
    import optax

    from jaxstudy.dataset import Order, dataset
    from jaxstudy.objectives import supervised
    from jaxstudy.training import fit, init_state, make_train_step

    def loss_of_rows(logits: Any, y: Any) -> dict[str, Any]:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return {"loss": losses.reshape(len(y), -1).mean(-1)}

    optimizer = optax.adam(RATE, eps=EPS)
    given = model._replace(init=lambda key: (tree(data, "params"), {}))
    rates: list[float] = []
    fitted = fit(
        init_state(given, optimizer, jax.random.key(0)),
        make_train_step(supervised(model, loss_of_rows), optimizer),
        replace(
            dataset({name: data[name][: steps * batch_size] for name in ("x", "y")}),
            order=Order(shuffle="never"),
        ),
        key=jax.random.key(1),
        epochs=1 + EPOCHS,
        batch_size=batch_size,
        chunk_steps=steps,
        progress=lambda step, rate, rows: rates.append(rate),
    )
    loss = np.array([row["loss"] for row in fitted.records])
    return Measured(float(np.mean(1e3 / np.array(rates[1:]))), {"loss": loss})


def trained(epochs: Callable[[int], list[Any]], steps: int) -> Measured:
    """Time epochs(n), which returns n losses, or several for each epoch."""
    first = epochs(1)
    began = time.perf_counter()
    losses = epochs(EPOCHS)
    took = time.perf_counter() - began
    return Measured(1e3 * took / (EPOCHS * steps), {"loss": np.array(first + losses)})


def training_keras(
    model: Any, x: np.ndarray, y: np.ndarray, steps: int, batch_size: int
) -> Measured:
    """`Model.fit`, in the order of the rows."""
    import keras

    model.compile(
        optimizer=keras.optimizers.Adam(RATE, epsilon=EPS),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def epochs(n: int) -> list[float]:
        history = model.fit(
            x, y, batch_size=batch_size, epochs=n, shuffle=False, verbose=0
        )
        return history.history["loss"]

    return trained(epochs, steps)


def training_torch(
    model: Any, x: Any, y: Any, steps: int, batch_size: int, compiled: bool
) -> Measured:
    """A plain loop over slices of tensors, and the fused Adam."""
    import torch  # pyright: ignore[reportMissingImports]

    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(free, RATE, eps=EPS, fused=True)
    criterion = torch.nn.CrossEntropyLoss()
    function = torch.compile(model) if compiled else model

    def epoch() -> float:
        total = torch.zeros(())
        batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = criterion(function(inputs).flatten(0, -2), labels.flatten())
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item() / steps

    return trained(lambda n: [epoch() for _ in range(n)], steps)


def keras_function(
    model: Any, training: bool, wait: bool = True
) -> Callable[[Any], Any]:
    """A model as a compiled function, finished when it returns if it shall `wait`."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

        return tf.function(lambda x: model(x, training=training))
    import jax

    apply = jax.jit(lambda v, x: model.stateless_call(*v, x, training=training))
    trained = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]  # seeds are among them

    def function(x: Any) -> Any:
        nonlocal state
        y, state = apply((trained, state), x)
        return jax.block_until_ready(y) if wait else y

    return function


# Who takes part


def on_keras(run: Any, tensorflow: str, jax: str, like: str = OURS) -> Any:
    """On both backends; `be` sets the one in the name."""
    return {
        "keras-tensorflow": Contestant(
            f"Keras on TensorFlow, {tensorflow}", run, ("keras", "tensorflow_cpu"), like
        ),
        "keras-jax": Contestant(f"Keras on JAX, {jax}", run, ("keras", "jax"), like),
    }


def on_torch(run: Any, how: str) -> dict[str, Contestant]:
    """Eager and compiled."""
    found = {"torch": Contestant(f"PyTorch, {how}", run, ("torch",))}
    how = f"PyTorch, {how}, `torch.compile`"
    compiled = Contestant(how, partial(run, compiled=True), ("torch",))
    return {**found, "torch-compile": compiled}


# One contestant's process, and the one that starts them


@dataclass(frozen=True)
class Command:
    """Measure every contestant of one workload or of all, or be one."""

    workload: str = "all"
    """What is done: the name of one workload, or all."""
    rounds: int = 5
    """Processes of every contestant; medians are over these."""
    steps: int | None = None
    """Steps, in training those of an epoch; the workload's own if not given."""
    out: Path = Path(__file__).resolve().parent / "results"
    """Folder for WORKLOAD.json."""
    contestant: str | None = None
    """Be this one, or "peak", once, and print the figures as JSON."""
    data: Path | None = None
    """With --contestant: the .npz with the arrays; made afresh if not given."""
    results: Path | None = None
    """With --contestant: the .npz for what is compared."""


def matrix_product(size: int = 4096, times: int = 4) -> float:
    """The highest rate of numpy's product of two float32 matrices, in GFLOP/s."""
    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    ends = [time.perf_counter()]
    for _ in range(times):
        np.matmul(a, b)
        ends.append(time.perf_counter())
    return 2e-9 * size**3 / float(np.diff(ends).min())


def be(work: Workload, command: Command) -> None:
    """Work as one contestant; print the figures."""
    who = str(command.contestant)
    if who == PEAK:
        print(json.dumps({"gflops": matrix_product()}), flush=True)
        return
    if who.startswith("keras-"):
        os.environ["KERAS_BACKEND"] = who.split("-")[1]
    data = work.data() if command.data is None else dict(np.load(command.data))
    step_ms, results = work.contestants[who].run(data, command.steps or work.steps)
    if command.results is not None:
        np.savez(command.results, **results)  # pyright: ignore[reportArgumentType]
    print(json.dumps({"step_ms": step_ms}), flush=True)


def run_contestant(script: Path, command: Command, scratch: Path) -> dict[str, float]:
    """The figures of one process; what is compiled is kept in the scratch folder."""
    line = [sys.executable, str(script)]
    for option in ("workload", "contestant", "data", "results", "steps"):
        value = getattr(command, option)
        line += [] if value is None else [f"--{option}", str(value)]
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "torch"),
    }
    done = subprocess.run(line, env=environment, text=True, capture_output=True)
    if done.returncode:
        failed = f"{command.contestant} failed ({done.returncode})"
        sys.exit(f"{failed}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    name: str, work: Workload, command: Command, script: Path
) -> dict[str, Any]:
    """Run all rounds and return what goes into the result file."""
    from rich.progress import track

    from jaxstudy.runs.run import environment

    command = replace(command, workload=name)
    operations = work.operations() if work.operations else None
    names = [*work.contestants, *([PEAK] if operations is not None else [])]
    rounds: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **work.data())  # pyright: ignore[reportArgumentType]
        for r in track(range(command.rounds), f"{name}, {command.rounds} rounds"):
            files = {n: Path(folder) / f"{n}-{r}.npz" for n in names}
            for i in range(len(names)):
                n = names[(r + i) % len(names)]
                one = replace(command, contestant=n, data=data, results=files[n])
                rounds[n].append(run_contestant(script, one, Path(folder)))
            for n, c in work.contestants.items():
                figures, own, like = (
                    rounds[n][r],
                    *map(np.load, (files[n], files[c.like])),
                )
                figures["steps_per_s"] = rate = 1e3 / figures["step_ms"]
                if work.makes is not None:
                    figures["made_per_s"] = rate * work.makes[1]
                if operations is not None:
                    peak = 1e9 * rounds[PEAK][r]["gflops"]
                    figures["peak_share"] = operations * rate / peak
                figures |= {
                    f"{k} apart": apart(own[k], like[k]) for k in work.tolerances
                }
    packages = {p for c in work.contestants.values() for p in c.packages}
    result = {
        "schema": SCHEMA,
        "kind": script.stem.removesuffix("_speed"),
        "workload": name,
        "title": work.title,
        "about": work.about,
        "steps": command.steps or work.steps,
        "rounds": command.rounds,
        "operations": operations,
        "peaks": [figures["gflops"] for figures in rounds.get(PEAK, [])],
        "tolerances": work.tolerances,
        **({} if work.makes is None else {"makes": list(work.makes)}),
        "environment": environment(),
        "versions": {p: importlib.metadata.version(p) for p in sorted(packages)},
        "contestants": {
            n: {
                "label": c.label,
                "counted": c.counted and n != OURS,
                "rounds": rounds[n],
            }
            for n, c in work.contestants.items()
        },
    }
    return speed.summarised(result, work.targets)


def apart(own: np.ndarray, like: np.ndarray) -> float:
    """The largest difference, as a part of the largest number.

    Of whole numbers, which are symbols, the share that is not the same.
    """
    if own.shape != like.shape:
        return math.inf
    if np.issubdtype(like.dtype, np.integer):
        return float(np.mean(own != like))
    return float(np.abs(own - like).max() / np.abs(like).max())


def disagreement(result: dict[str, Any]) -> str | None:
    """What is wrong with the results, if they are not those of the same work."""
    for name, contestant in result["contestants"].items():
        for what, tolerance in result["tolerances"].items():
            for figures in contestant["rounds"]:
                found = figures[f"{what} apart"]
                if not found <= tolerance:  # or NaN
                    return f"{name}: {what} is {found:.2g} apart, over {tolerance:g}"
    return None


# What is shown


def table(result: dict[str, Any]) -> str:
    """The Markdown of a result file, and of nothing else."""
    products = result["operations"] is not None
    share = ["share of the peak, %"] if products else []
    measured, figure = "ms per step", "step_ms"
    if "makes" in result:
        measured, figure = f"{result['makes'][0]} per second", "made_per_s"
    lines = [["", measured, *share, "this project is faster by"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, c in result["contestants"].items():
        ours, figures = name == OURS, c["figures"]
        note = "" if c["counted"] or ours else " (for comparison)"
        cells = [c["label"] + note, speed._range(figures[figure])]
        if products:
            percent = {k: 100 * v for k, v in figures["peak_share"].items()}
            cells.append(speed._range(percent))
        cells = [f"**{cell}**" if ours else cell for cell in cells]
        ratio = "" if ours else f"{speed._range(c['times_as_fast'])} x"
        lines.append([*cells, ratio])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{_about(result)}"


def _about(result: dict[str, Any]) -> str:
    """The sentences below the table: what was measured, and on what."""
    environment = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    within = ", ".join(f"{k} {v:g}" for k, v in result["tolerances"].items())
    title = result["title"][0].upper() + result["title"][1:]
    parts = [
        f"{title}. {result['about'].format_map(result)}. Medians (and ranges) of "
        f"{result['rounds']} rounds, every figure from a process of its own, ratios "
        "within a round; compiling is not timed. Results agree within, relative to "
        f"the largest number: {within}."
    ]
    if result["operations"] is not None:
        peak = speed._range(speed.spread(result["peaks"]))
        parts.append(
            f"The matrix products of a step take {result['operations'] / 1e9:.3g} "
            f"GFLOP; the peak, {peak} GFLOP/s, is that of numpy's product of two "
            "4096x4096 float32 matrices, in a process of its own in each round."
        )
    parts.append(
        f"{environment['cores']} cores, {environment['processor']}; Python "
        f"{environment['python']}, {versions}."
    )
    return " ".join(parts)


def main(command: Command, workloads: dict[str, Workload], script: Path) -> int:
    """Be a contestant, or measure all, and write and print the results.

    Each contestant is a process of the script, which calls this again.
    """
    if command.workload not in (*workloads, "all"):
        sys.exit(f"--workload takes {', '.join(workloads)} or all")
    names = list(workloads) if command.workload == "all" else [command.workload]
    if command.rounds < 1 or (command.steps is not None and command.steps < 1):
        sys.exit("at least 1 round and 1 step are needed")
    if command.contestant is not None:
        known = [*workloads[names[0]].contestants, PEAK]
        if len(names) > 1 or command.contestant not in known:
            sys.exit(f"--contestant takes one of --workload: {', '.join(known)}")
        be(workloads[names[0]], command)
        return 0
    peers = ("keras", "tensorflow", "torch")
    missing = [p for p in peers if not importlib.util.find_spec(p)]
    if missing:
        sys.exit(f"no {', '.join(missing)} here; `make bench` sets up what it needs")
    from jaxstudy.runs.run import write_atomically
    from jaxstudy.types import UserError

    for name in names:
        try:
            result = measure(name, workloads[name], command, script)
        except UserError as error:  # no data
            sys.exit(str(error))
        print("\n".join([table(result), "", *verdicts(result)]))
        wrong = disagreement(result)
        if wrong:
            sys.exit(f"nothing is written: {wrong}")
        command.out.mkdir(parents=True, exist_ok=True)
        path = command.out / f"{name}.json"
        write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {path}\n")
    return 0
