"""What a speed comparison needs: candidates, rounds, checks, the result and its table.

A script declares its workloads and calls `main`. All candidates of a workload get the
same arrays, initial weights too. In each round every candidate runs in a process of its
own, in rotated order, with its own default threads; so does a product of two large
float32 matrices, whose rate is the peak of that round. Figures are medians over the
rounds, ratios and shares of the peak are within a round. Nothing is written unless the
results agree.

    SCRIPT                                        all; writes benchmarks/results/
    SCRIPT --workload NAME --candidate torch      what each of the processes runs
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

SCHEMA = 2
OURS, PEAK = "jaxstudy", "peak"
LIMITING = ("OPENBLAS_", "OMP_NUM", "MKL_NUM")  # variables that may slow numpy down
OURS_PACKAGES = ("jaxstudy", "jax", "optax", "flax")
WARM_UP = 2  # steps that are not timed
FASTER_BY = {"this project is faster by": "times_as_fast"}  # columns of tables
PLAIN = {"ms per step": "step_ms", **FASTER_BY}
SHARE = {"share of the peak, %": "peak_share"}
WITH_SHARE = {"ms per step": "step_ms", **SHARE, **FASTER_BY}
Arrays = Mapping[str, np.ndarray]
Library = Literal["numpy", "jax", "torch"]  # that multiplies matrices


class Job(NamedTuple):
    """What one process is to do.

    length: steps, or epochs of training. seed: of what a candidate draws for itself.
    started: the time at which the process was started, in seconds since the epoch.
    bfloat16: products have operands of that type; no other candidate is compared.
    """

    data: Arrays
    length: int
    seed: int = 0
    started: float = 0.0
    first_step_only: bool = False
    bfloat16: bool = False

    def rounded(self, model: Any) -> Any:
        """One of our models, in the arithmetic that is asked for."""
        from jaxstudy.wrappers import in_bfloat16

        return in_bfloat16(model) if self.bfloat16 else model


class Measured(NamedTuple):
    """Figures, among them the workload's `time`, and the results to be compared."""

    figures: dict[str, float]
    results: dict[str, np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """Its results must be those of the one that it is `like`.

    counted: it can be the best peer. cached: the time to its first step is measured
    with JAX's persistent compilation cache too, in another process.
    """

    label: str
    run: Callable[[Job], Measured]
    packages: tuple[str, ...]
    like: str = OURS
    counted: bool = True
    cached: bool = False


@dataclass(frozen=True)
class Workload:
    """What is done.

    Args:
        title: one phrase. about: sentences for below the table; {length} is filled in.
        data: the arrays that all candidates get.
        length: of the jobs.
        columns: of the table, each heading with its figure.
        targets: "best peer", or how a candidate's name begins, and how many times as
            fast as the fastest of these this project is to be.
        tolerances: how far results may be apart in every round; see `apart`.
        floor: without tolerances, candidates draw their own seeds and their results are
            final losses, compared by `disagreement`.
        operations: of the matrix products that a step cannot do without.
        makes: how many things a step brings forth, for the figure "made_per_s".
        time: the figure that is compared, "step_ms" or "total_s".
        compiling: it is timed, so that no compiled program is kept between processes.
    """

    title: str
    about: str
    data: Callable[[], dict[str, np.ndarray]]
    candidates: dict[str, Candidate]
    length: int
    columns: dict[str, str] = field(default_factory=lambda: WITH_SHARE)
    targets: dict[str, float] = field(default_factory=lambda: {"best peer": 1.0})
    tolerances: dict[str, float] = field(default_factory=dict)
    floor: float = 0.0
    operations: Callable[[], float] | None = None
    makes: int | None = None
    time: str = "step_ms"
    compiling: bool = False


def timed(
    step: Callable[[int], Any], n: int, finish: Callable[[Any], Any] = lambda y: y
) -> dict[str, float]:
    """Milliseconds of step(i), each finished before the next; some go before."""
    for i in range(-WARM_UP, n):
        if i == 0:
            began = time.perf_counter()
        finish(step(i + WARM_UP))
    return {"step_ms": 1e3 * (time.perf_counter() - began) / n}


# Weights, and training by cross-entropy and Adam

RATE = 1e-3
EPS = 1e-10  # so small that it does not matter where in Adam it is added
EPOCHS = 2  # of `length` steps each, after an untimed one


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

    named = dict(zip(("params", "extra"), shapes, strict=True))
    paths: Any = flatten_dict(named, sep="/")
    return {name: drawn(name, leaf.shape) for name, leaf in paths.items()}


def tree(arrays: Arrays, name: str) -> Any:
    """The arrays below a name, "params" or "extra", as the model has them."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    found = {k: jnp.asarray(a) for k, a in arrays.items() if k.startswith(f"{name}/")}
    return unflatten_dict(found, sep="/")[name]


def products(model: Any, places: Mapping[str, int]) -> dict[str, int]:
    """Products of numbers in layers of a model, each weight used once at every place.

    Each is two of a workload's operations.
    """
    import jax

    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    return {n: k * math.prod(params[n]["kernel"].shape) for n, k in places.items()}


def run_fit(fit: Any, *args: Any, **options: Any) -> tuple[Any, list[float]]:
    """The records of a `fit`, and its steps per second in each chunk."""
    from jaxstudy.records import Log

    rates: list[float] = []

    class Rates(Log):
        def advanced(self, state: Any, chunk: Any, records: Any) -> None:
            rates.append(chunk.steps / chunk.seconds)

    return fit(*args, log=Rates(), **options).records, rates


def fit_epochs(
    state: Any, train_step: Any, arrays: Arrays, batch_size: int, steps: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Milliseconds of a step of `fit`, a chunk for each epoch, and the records."""
    import jax

    from jaxstudy.dataset import Order, dataset
    from jaxstudy.training import fit

    rows = dataset({name: a[: steps * batch_size] for name, a in arrays.items()})
    records, rates = run_fit(
        fit, state, train_step, replace(rows, order=Order(shuffle="never")),
        key=jax.random.key(1), epochs=1 + EPOCHS, batch_size=batch_size,
        chunk_steps=steps,
    )  # fmt: skip
    return {"step_ms": float(np.mean(1e3 / np.array(rates[1:])))}, records


def training_jaxstudy(model: Any, job: Job, batch_size: int) -> Measured:
    """`fit`, a chunk for each epoch."""
    import jax
    import optax

    from jaxstudy.objectives import supervised
    from jaxstudy.training import init_state, make_train_step

    def loss_of_rows(logits: Any, y: Any) -> dict[str, Any]:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return {"loss": losses.reshape(len(y), -1).mean(-1)}

    optimizer = optax.adam(RATE, eps=EPS)
    model = job.rounded(model)
    given = model._replace(init=lambda key: (tree(job.data, "params"), {}))
    figures, records = fit_epochs(
        init_state(given, optimizer, jax.random.key(0)),
        make_train_step(supervised(model, loss_of_rows), optimizer),
        {name: job.data[name] for name in ("x", "y")}, batch_size, job.length,
    )  # fmt: skip
    loss = np.array([record["loss"] for record in records])
    return Measured(figures, {"loss": loss})


def trained(epochs: Callable[[int], list[Any]], steps: int) -> Measured:
    """Time epochs(n), which returns n losses, or several for each epoch."""
    first = epochs(1)
    began = time.perf_counter()
    losses = epochs(EPOCHS)
    step_ms = 1e3 * (time.perf_counter() - began) / (EPOCHS * steps)
    return Measured({"step_ms": step_ms}, {"loss": np.array(first + losses)})


def training_keras(model: Any, x: Any, y: Any, steps: int, batch_size: int) -> Measured:
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


def set_torch_weights(model: Any, arrays: list[np.ndarray]) -> None:
    """Copy arrays, with the axes that they have here, into a module's parameters."""
    import torch  # pyright: ignore[reportMissingImports]

    for parameter, array in zip(model.parameters(), arrays, strict=True):
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        parameter.data.copy_(torch.tensor(array.transpose(axes).copy()))


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
    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]  # seeds are among them

    def function(x: Any) -> Any:
        nonlocal state
        y, state = apply((trainable, state), x)
        return jax.block_until_ready(y) if wait else y

    return function


# Who takes part


def ours(how: str, run: Any, **options: Any) -> dict[str, Candidate]:
    """This project."""
    return {OURS: Candidate(f"this project, {how}", run, OURS_PACKAGES, **options)}


def on_keras(
    run: Any, tensorflow: str, jax: str, like: str = OURS
) -> dict[str, Candidate]:
    """On both backends; `be` sets the one in the name."""
    label, packages = f"Keras on TensorFlow, {tensorflow}", ("keras", "tensorflow_cpu")
    return {
        "keras-tensorflow": Candidate(label, run, packages, like),
        "keras-jax": Candidate(f"Keras on JAX, {jax}", run, ("keras", "jax"), like),
    }


def on_torch(run: Any, how: str) -> dict[str, Candidate]:
    """Eager and compiled."""
    label, compiled = f"PyTorch, {how}", partial(run, compiled=True)
    return {
        "torch": Candidate(label, run, ("torch",)),
        "torch-compile": Candidate(f"{label}, `torch.compile`", compiled, ("torch",)),
    }


# One candidate's process, and the one that starts them


@dataclass(frozen=True)
class Command:
    """Measure every candidate of one workload or of all, or be one."""

    workload: str = "all"
    """What is done: the name of one workload, or all."""
    rounds: int = 5
    """Processes of every candidate; medians are over these."""
    length: int | None = None
    """Steps, in training those of an epoch, or epochs; the workload's own if absent."""
    out: Path = Path(__file__).resolve().parent / "results"
    """Folder for WORKLOAD.json."""
    candidate: str | None = None
    """Be this one, or "peak", once, and print the figures as JSON."""
    folder: Path | None = None
    """With --candidate: has data.npz, and gets results.npz; without, data is made."""
    seed: int = 0
    """With --candidate: of what it draws for itself."""
    started: float | None = None
    """With --candidate: when its process was started, in seconds since the epoch."""
    first_step_only: bool = False
    """With --candidate: stop when the first step is finished, if it is timed."""
    bfloat16: bool = False
    """With --candidate: products of bfloat16 numbers, by this project or PyTorch."""


def matrix_product(size: int = 4096, times: int = 4, by: Library = "numpy") -> float:
    """The highest rate of a library's product of two float32 matrices, in GFLOP/s."""
    arrays: Any = np.random.default_rng(0).random((2, size, size), np.float32)
    multiply: Callable[[Any, Any], Any] = np.matmul
    if by == "jax":
        import jax

        arrays = jax.numpy.asarray(arrays)
        product = jax.jit(jax.numpy.matmul)
        multiply = lambda a, b: product(a, b).block_until_ready()  # noqa: E731
    if by == "torch":
        import torch  # pyright: ignore[reportMissingImports]

        arrays, multiply = torch.from_numpy(arrays), torch.matmul
    a, b = arrays
    multiply(a, b)  # compiles
    ends = [time.perf_counter()]
    for _ in range(times):
        multiply(a, b)
        ends.append(time.perf_counter())
    return 2e-9 * size**3 / float(np.diff(ends).min())


def highest_rate() -> float:
    """The highest rate of a matrix product, GFLOP/s, by the fastest library here."""
    libraries: tuple[Library, ...] = ("numpy", "jax", "torch")
    rates = [
        matrix_product(by=name) for name in libraries if importlib.util.find_spec(name)
    ]
    return max(rates)


def be(work: Workload, command: Command) -> None:
    """Work as one candidate; print the figures."""
    who = str(command.candidate)
    if who == PEAK:
        print(json.dumps({"gflops": highest_rate()}), flush=True)
        return
    if who.startswith(OURS):
        from jaxstudy.runs.environment import keep_freed_memory, set_xla_flags

        keep_freed_memory()  # both as every experiment does
        set_xla_flags()
    if who.startswith("keras-"):
        os.environ["KERAS_BACKEND"] = who.split("-")[1]
    folder = command.folder
    job = Job(
        dict(np.load(folder / "data.npz")) if folder else work.data(),
        command.length or work.length,
        command.seed,
        command.started or time.time(),
        command.first_step_only,
        command.bfloat16,
    )
    with on_torch_device(job) if who.startswith("torch") else nullcontext():
        measured = work.candidates[who].run(job)
    figures: dict[str, Any] = dict(measured.figures)
    if folder:
        results: Any = measured.results
        np.savez(folder / "results.npz", **results)
    if who == OURS:
        from jaxstudy.runs.environment import environment

        figures["environment"] = environment()
    print(json.dumps(figures), flush=True)


@contextmanager
def on_torch_device(job: Job) -> Iterator[None]:
    """PyTorch's tensors are made on a GPU where there is one, as JAX's arrays are."""
    import torch  # pyright: ignore[reportMissingImports]

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(kind)
    with torch.autocast(kind, torch.bfloat16, enabled=job.bfloat16):
        yield


def run_process(script: Path, command: Command, cache: Path | None) -> dict[str, Any]:
    """What one process prints; compiled programs are kept in `cache`, if there is one.

    Its clock starts here, before it does.
    """
    line = [sys.executable, str(script), "--started", repr(time.time())]
    for option in ("workload", "candidate", "folder", "length", "seed"):
        value = getattr(command, option)
        line += [] if value is None else [f"--{option}", str(value)]
    line += ["--first-step-only"] if command.first_step_only else []
    environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if command.candidate == PEAK:  # a product that is slowed down is no peak
        environment = {
            k: v for k, v in environment.items() if not k.startswith(LIMITING)
        }
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache / "jax")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "torch")
    done = subprocess.run(line, env=environment, text=True, capture_output=True)
    if done.returncode:
        failed = f"{command.candidate} failed ({done.returncode})"
        sys.exit(f"{failed}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    name: str, work: Workload, command: Command, script: Path
) -> dict[str, Any]:
    """Run all rounds and return what goes into the result file."""
    from rich.progress import track

    packages = sorted({p for c in work.candidates.values() for p in c.packages})
    versions = {p: importlib.metadata.version(p) for p in packages}
    operations = work.operations() if work.operations else None
    names = [*work.candidates, *([PEAK] if operations is not None else [])]
    rounds: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
    environment: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arrays: Any = work.data()
        np.savez(folder / "data.npz", **arrays)
        command = replace(command, workload=name, folder=folder)
        kept = None if work.compiling else folder

        def first_step(candidate: str, seed: int) -> float:
            one = replace(command, candidate=candidate, seed=seed, first_step_only=True)
            return run_process(script, one, folder / candidate)["first_step_s"]

        for n in (n for n, c in work.candidates.items() if c.cached):
            first_step(n, 0)  # fills its cache
        for r in track(range(command.rounds), f"{name}, {command.rounds} rounds"):
            results = {}
            for n in names[r % len(names) :] + names[: r % len(names)]:
                one = replace(command, candidate=n, seed=r)
                figures = run_process(script, one, kept)
                environment = figures.pop("environment", environment)
                if n != PEAK:
                    results[n] = dict(np.load(folder / "results.npz"))
                    if work.candidates[n].cached:
                        figures["first_step_cached_s"] = first_step(n, r)
                rounds[n].append(figures)
            for n, c in work.candidates.items():
                figures = rounds[n][r]
                figures |= compared(work, results[n], results[c.like])
                figures |= rates(work, figures)
                if operations is not None:
                    peak = 1e9 * rounds[PEAK][r]["gflops"]
                    figures["peak_share"] = operations * figures["steps_per_s"] / peak
    result = {
        "schema": SCHEMA,
        "workload": name,
        "title": work.title,
        "length": command.length or work.length,
        "rounds": command.rounds,
        "columns": {k.format(length=command.length or work.length): v
                    for k, v in work.columns.items()},
        "time": work.time,
        "operations": operations,
        "makes": work.makes,
        "peaks": [figures["gflops"] for figures in rounds.get(PEAK, [])],
        "tolerances": work.tolerances,
        "floor": work.floor,
        "environment": environment,
        "versions": versions,
        "candidates": {
            n: {"label": c.label, "counted": c.counted and n != OURS,
                "rounds": rounds[n]}
            for n, c in work.candidates.items()
        },
    }  # fmt: skip
    return summarised({**result, "about": about(work, result)}, work.targets)


def rates(work: Workload, figures: dict[str, float]) -> dict[str, float]:
    """Steps, and what they make, per second."""
    if "step_ms" not in figures:
        return {}
    rate = 1e3 / figures["step_ms"]
    made = {} if work.makes is None else {"made_per_s": rate * work.makes}
    return {"steps_per_s": rate, **made}


def compared(work: Workload, own: Arrays, like: Arrays) -> dict[str, Any]:
    """How far results are apart; without tolerances the losses of every group."""
    if work.tolerances:
        return {f"{k} apart": apart(own[k], like[k]) for k in work.tolerances}
    return {"losses": {group: losses.tolist() for group, losses in own.items()}}


def apart(own: np.ndarray, like: np.ndarray) -> float:
    """The largest difference, as a part of the largest number.

    Of whole numbers, which are symbols, the share that is not the same.
    """
    if own.shape != like.shape:
        return math.inf
    if np.issubdtype(like.dtype, np.integer):
        return float(np.mean(own != like))
    return float(np.abs(own - like).max() / np.abs(like).max())


def summarised(result: dict[str, Any], targets: Mapping[str, float]) -> dict[str, Any]:
    """Add medians and ranges, ratios by round, the best peer, what was aimed at."""
    candidates, time = result["candidates"], result["time"]
    for c in candidates.values():
        figures = [n for n in c["rounds"][0] if n != "losses"]
        c["figures"] = {n: spread([r[n] for r in c["rounds"]]) for n in figures}
        pairs = zip(candidates[OURS]["rounds"], c["rounds"], strict=True)
        ratios = [other[time] / mine[time] for mine, other in pairs]
        c["figures"]["times_as_fast"] = spread(ratios)

    def fastest(start: str) -> str:
        counted = [n for n, c in candidates.items() if c["counted"]]
        among = [n for n in counted if n.startswith(start)]
        return min(among, key=lambda n: candidates[n]["figures"][time]["median"])

    best = fastest("")
    reached = {}
    for whom, at_least in targets.items():
        peer = candidates[best if whom == "best peer" else fastest(whom)]
        measured = peer["figures"]["times_as_fast"]["median"]
        reached[whom] = {"at_least": at_least, "measured": measured}
    return {**result, "best_peer": best, "targets": reached}


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    middle = statistics.median(values)
    return {"median": middle, "low": min(values), "high": max(values)}


def disagreement(result: dict[str, Any]) -> str | None:
    """What is wrong with the results, if they are not those of the same work.

    With tolerances: in every round. Otherwise they are losses of seeds of their own,
    and in each group a peer's mean may be as far from ours as the noise of the seeds
    explains: 4 standard errors of the difference, both with the standard deviation of
    our seeds. Besides, `floor`, in nats or as a part of a loss over 1, for what is no
    noise (eps before or after a root, sums in another order) and for seeds that are
    alike by chance.
    """
    ours = pooled(result["candidates"][OURS])
    for name, candidate in result["candidates"].items():
        for what, tolerance in result["tolerances"].items():
            found = [figures[f"{what} apart"] for figures in candidate["rounds"]]
            if not all(value <= tolerance for value in found):  # or NaN
                return f"{name}: {what} is {max(found):.2g} apart, over {tolerance:g}"
        for group, losses in pooled(candidate).items():
            mine = ours[group]
            error = mine.std(ddof=1) * np.sqrt(1 / len(mine) + 1 / len(losses))
            allowed = 4 * error + result["floor"] * max(1.0, abs(mine.mean()))
            if not abs(losses.mean() - mine.mean()) <= allowed:  # or NaN
                return (
                    f"{name}, {group}: mean final loss {losses.mean():.5g}, not "
                    f"{mine.mean():.5g} +- {allowed:.2g}"
                )
    return None


def pooled(candidate: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The losses of every group, of all rounds: each round has other seeds."""
    rounds = [r["losses"] for r in candidate["rounds"] if "losses" in r]
    groups = rounds[0] if rounds else {}
    return {k: np.array([loss for r in rounds for loss in r[k]]) for k in groups}


# What is shown


def about(work: Workload, result: dict[str, Any]) -> str:
    """The sentences below the table: what was measured, and on what."""
    environment = result["environment"]
    untimed = "without evaluation" if work.compiling else "compiling is not timed"
    parts = [
        f"{work.title[0].upper()}{work.title[1:]}. Medians (and ranges) of "
        f"{result['rounds']} rounds, every figure from a process of its own, ratios "
        f"within a round; {untimed}.",
        work.about.format(length=result["length"]),
    ]
    if work.tolerances:
        within = ", ".join(f"{k} {v:g}" for k, v in work.tolerances.items())
        parts.append(f"Results agree within, relative to the largest number: {within}.")
    else:
        parts.append("Final losses agree within the noise of the seeds.")
    if result["operations"] is not None:
        parts.append(
            f"The matrix products of a step take {result['operations'] / 1e9:.3g} "
            f"GFLOP; the peak, {median_range(spread(result['peaks']))} GFLOP/s, is "
            "the highest of a product of two 4096x4096 float32 matrices by numpy, JAX "
            "and PyTorch, in a process of its own in each round."
        )
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    parts.append(
        f"{environment['cores']} cores, {environment['processor']}; Python "
        f"{environment['python']}, {versions}."
    )
    return " ".join(parts)


def table(result: dict[str, Any]) -> str:
    """The Markdown of a result file, and of nothing else."""
    columns = result["columns"]
    strong = {next(iter(columns.values())), "peak_share"}  # in this project's row
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    for name, c in result["candidates"].items():
        if name == OURS:
            cells = [f"**{c['label']}**"]
        else:
            cells = [c["label"] + ("" if c["counted"] else " (for comparison)")]
        for figure in columns.values():
            text = cell(figure, c["figures"].get(figure))
            if name == OURS and figure == "times_as_fast":
                text = ""
            cells.append(f"**{text}**" if name == OURS and figure in strong else text)
        lines.append(cells)
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{result['about']}"


def cell(figure: str, values: Mapping[str, float] | None) -> str:
    """A figure as the table has it; shares are in percent."""
    if values is None:
        return ""
    if figure == "loss":
        return f"{values['median']:.4f}"
    if figure == "peak_share":
        return median_range({name: 100 * value for name, value in values.items()})
    return median_range(values) + (" x" if figure == "times_as_fast" else "")


def median_range(values: Mapping[str, float]) -> str:
    """A median and, in parentheses, its range, at three digits or so."""

    def short(value: float) -> str:
        if value >= 100:
            digits = 3 - len(str(int(value)))
            return f"{round(value, digits):,.0f}"
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    low, high = short(values["low"]), short(values["high"])
    return f"{short(values['median'])} ({low} to {high})"


def verdicts(result: dict[str, Any]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    return [
        f"{target['measured']:.3g} times as fast as {name}; aim: "
        f"{target['at_least']:g}, "
        + ("reached" if target["measured"] >= target["at_least"] else "MISSED")
        for name, target in result["targets"].items()
    ]


def run(command: Command, workloads: dict[str, Workload], script: Path) -> int:
    """Be a candidate, or measure all, and write and print the results.

    Each candidate is a process of the script, which calls this again.
    """
    if command.workload not in (*workloads, "all"):
        sys.exit(f"--workload takes {', '.join(workloads)} or all")
    names = list(workloads) if command.workload == "all" else [command.workload]
    if command.rounds < 1 or (command.length is not None and command.length < 2):
        sys.exit("at least 1 round and a length of 2 are needed")
    if command.candidate is not None:
        known = [*workloads[names[0]].candidates, PEAK]
        if len(names) > 1 or command.candidate not in known:
            sys.exit(f"--candidate takes one of --workload: {', '.join(known)}")
        be(workloads[names[0]], command)
        return 0
    from jaxstudy.runs.files import write_atomically
    from jaxstudy.types import UserError

    for name in names:
        try:
            result = measure(name, workloads[name], command, script)
        except UserError as error:  # no data
            sys.exit(str(error))
        except importlib.metadata.PackageNotFoundError as error:
            sys.exit(f"no {error.name} here; `make bench` sets up what it needs")
        print("\n".join([table(result), "", *verdicts(result)]))
        wrong = disagreement(result)
        if wrong:
            sys.exit(f"nothing is written: {wrong}")
        command.out.mkdir(parents=True, exist_ok=True)
        path = command.out / f"{name}.json"
        write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {path}\n")
    return 0


def main(workloads: dict[str, Workload], script: str, description: str | None) -> None:
    """The command line of a script."""
    import tyro

    command = tyro.cli(Command, description=description)
    sys.exit(run(command, workloads, Path(script)))
