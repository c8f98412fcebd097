"""How fast training is beside Keras and PyTorch: same work, same cores, one go.

Every contestant is a small function that trains the same network on the same rows in
the same way: same initial distribution, batches of the same size (the last one partly
filled), rows shuffled anew in every epoch, same Adam, same loss. Without evaluation.
Each round runs every contestant in a process of its own, in rotated order, with that
contestant's default threads; what is compared are medians over the rounds, and ratios
of figures of the same round. Nothing is written unless the final losses agree.

    make bench                           all of them; writes benchmarks/results/
    speed.py --contestant jaxstudy       what each of the processes runs

A workload is one entry in WORKLOADS, a contestant one entry in its `contestants`.
"""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA = 1
OURS = "jaxstudy"
FIRST_STEP = "the first step is finished"
Arrays = Mapping[str, np.ndarray]
Signal = Callable[[], None]


class Trained(NamedTuple):
    """One training from scratch.

    loss: mean over the rows of the last epoch, each as its batch was trained on.
    preparing_s: building, tracing, compiling, with the first epoch where a library
    compiles only by running. train_s: what the `timed_steps` after that took.
    """

    loss: float
    steps: int
    preparing_s: float
    timed_steps: int
    train_s: float


class Contestant(NamedTuple):
    """Somebody who trains, by `train(work, data, epochs, seed, signal)`.

    With a `signal`, only the time to the first step matters: it is called as soon as
    one is known to be finished. long_epochs: how long to train for the rate, where the
    workload's epochs take too little time. Only who is `counted` can be the best peer.
    cached: JAX's persistent compilation cache helps, so starting is timed with it too.
    """

    label: str
    train: "Callable[[Workload, Arrays, int, int, Signal | None], Trained]"
    packages: tuple[str, ...]
    long_epochs: int = 0
    counted: bool = True
    cached: bool = False


@dataclass(frozen=True)
class Workload:
    """What is trained; `tolerance` is how far median losses may be apart."""

    title: str
    data: Callable[[], dict[str, np.ndarray]]
    contestants: dict[str, Contestant]
    batch_size: int
    rate: float
    adam_eps: float
    epochs: int
    tolerance: float
    targets: dict[str, float]  # this project is to be so many times as fast as whom


# The admission network: 400 rows, 3-64-128-1 with ReLU, cross-entropy of the logit

HIDDEN = (64, 128)


def admission_data() -> dict[str, np.ndarray]:
    """x [400, 3]: gre, gpa and rank, standardised; y [400]."""
    from jaxstudy.tabular.sets import read_admissions

    table = read_admissions()
    x = table[["gre", "gpa", "rank"]].to_numpy(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    return {"x": x.astype(np.float32), "y": table["admit"].to_numpy(np.float32)}


@dataclass(frozen=True)
class _Settings:
    epochs: int
    seed: int


def admission_jaxstudy(
    work: Workload, data: Arrays, epochs: int, seed: int, signal: Signal | None
) -> Trained:
    """`fit`, all epochs in one chunk; in a run folder, which keeps its timing.

    `fit` returns after whole epochs: the first step is signalled 12 steps late.
    """
    began = time.perf_counter()
    import jax

    from jaxstudy.dataset import dataset
    from jaxstudy.models.mlp import mlp
    from jaxstudy.objectives import binary_cross_entropy
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.runs.run import open_run
    from jaxstudy.training import Timing, fit, init_state, make_train_step

    model = mlp(data["x"].shape[1], HIDDEN, 1)
    optimizer = OPTIMIZERS["adam"].make(work.rate, eps=work.adam_eps)
    init_key, order_key = jax.random.split(jax.random.key(seed))
    state = init_state(model, optimizer, init_key)
    train_step = make_train_step(binary_cross_entropy(model), optimizer)
    rows = dataset(data)
    built = time.perf_counter() - began
    with contextlib.ExitStack() as stack:
        sub_run = None
        if signal is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            settings = _Settings(epochs, seed)
            run = stack.enter_context(open_run(folder, "speed", "", settings))
            sub_run = run.sub_run()
        fitted = fit(
            state,
            train_step,
            rows,
            key=order_key,
            epochs=epochs,
            batch_size=work.batch_size,
            chunk_steps=10**9,
            log=sub_run,
        )
    if signal is not None:
        signal()
    timing = sub_run.timing if sub_run is not None else Timing()
    return Trained(
        loss=fitted.records[-1]["loss"],
        steps=fitted.records[-1]["step"],
        preparing_s=built + timing.compile_s,
        timed_steps=timing.steps,
        train_s=timing.train_s,
    )


def _admission_keras(backend: str, steps_per_execution: int = 1) -> Any:
    def train(
        work: Workload, data: Arrays, epochs: int, seed: int, signal: Signal | None
    ) -> Trained:
        """`Model.fit`; layers start as everywhere here: Glorot uniform, bias 0."""
        began = time.perf_counter()
        os.environ["KERAS_BACKEND"] = backend
        import keras

        class FirstStep(keras.callbacks.Callback):
            told = signal is None

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if not self.told and signal is not None:
                    float(logs["loss"])  # there is none before the step is finished
                    signal()
                    self.told = True

        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.layers.Input((data["x"].shape[1],)),
                *(keras.layers.Dense(width, activation="relu") for width in HIDDEN),
                keras.layers.Dense(1),
            ]
        )
        model.compile(
            optimizer=keras.optimizers.Adam(work.rate, epsilon=work.adam_eps),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            steps_per_execution=steps_per_execution,
        )

        def fit(epochs: int, callbacks: Any = None) -> float:
            history = model.fit(
                data["x"],
                data["y"],
                batch_size=work.batch_size,
                epochs=epochs,
                shuffle=True,
                verbose=0,  # pyright: ignore[reportArgumentType]
                callbacks=callbacks,
            )
            return float(history.history["loss"][-1])

        loss = fit(1, [FirstStep()] if signal is not None else None)
        prepared = time.perf_counter()
        if epochs > 1:
            loss = fit(epochs - 1)
        done = time.perf_counter()
        per_epoch = -(-len(data["y"]) // work.batch_size)
        timed = (epochs - 1) * per_epoch
        steps = int(np.asarray(model.optimizer.iterations))
        return Trained(loss, steps, prepared - began, timed, done - prepared)

    return train


def _admission_torch(threads: int | None = None) -> Any:
    def train(
        work: Workload, data: Arrays, epochs: int, seed: int, signal: Signal | None
    ) -> Trained:
        """A plain loop over a permutation of tensors: no DataLoader, no compile."""
        began = time.perf_counter()
        import torch  # pyright: ignore[reportMissingImports]

        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
        widths = (x.shape[1], *HIDDEN, 1)
        layers: list[Any] = []
        for inputs, outputs in itertools.pairwise(widths):
            linear = torch.nn.Linear(inputs, outputs)
            torch.nn.init.xavier_uniform_(linear.weight)  # Glorot, as everywhere here
            torch.nn.init.zeros_(linear.bias)
            layers += [linear, torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        optimizer = torch.optim.Adam(
            model.parameters(), lr=work.rate, eps=work.adam_eps
        )
        criterion = torch.nn.BCEWithLogitsLoss()
        steps, untimed, prepared = 0, 0, began
        total = torch.zeros(())
        for epoch in range(epochs):
            total.zero_()
            order = torch.randperm(len(x))
            for start in range(0, len(x), work.batch_size):
                rows = order[start : start + work.batch_size]
                optimizer.zero_grad()
                loss = criterion(model(x[rows])[:, 0], y[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
                steps += 1
                if steps == 1 and signal is not None:
                    signal()
            if epoch == 0:
                prepared, untimed = time.perf_counter(), steps
        done = time.perf_counter()
        mean = total.item() / len(x)
        return Trained(mean, steps, prepared - began, steps - untimed, done - prepared)

    return train


WORKLOADS: dict[str, Workload] = {
    "admission": Workload(
        title="dense network 3-64-128-1 on the 400 admissions, batch 32, Adam",
        data=admission_data,
        contestants={
            OURS: Contestant(
                "this project, `fit`", admission_jaxstudy,
                ("jaxstudy", "jax", "optax", "flax"), long_epochs=2000, cached=True,
            ),
            "keras-jax": Contestant(
                "Keras on JAX, `fit`", _admission_keras("jax"),
                ("keras", "jax"), cached=True,
            ),
            "keras-jax-epoch": Contestant(
                "Keras on JAX, `fit`, `steps_per_execution=13`",
                _admission_keras("jax", 13),
                ("keras", "jax"), counted=False, cached=True,
            ),
            "keras-tensorflow": Contestant(
                "Keras on TensorFlow, `fit`", _admission_keras("tensorflow"),
                ("keras", "tensorflow_cpu"),
            ),
            "torch": Contestant(
                "PyTorch, a plain loop", _admission_torch(), ("torch",)
            ),
            "torch-1-thread": Contestant(
                "PyTorch, a plain loop, 1 thread", _admission_torch(1), ("torch",)
            ),
        },
        batch_size=32, rate=1e-3, adam_eps=1e-7, epochs=100, tolerance=0.02,
        targets={"best peer": 8, "keras-tensorflow": 100},
    ),
}  # fmt: skip


# One contestant's process, and the one that starts them


@dataclass(frozen=True)
class Command:
    """Measure every contestant of a workload, or be one."""

    workload: str = "admission"
    """What is trained."""
    rounds: int = 5
    """Processes of every contestant; medians are over these."""
    epochs: int | None = None
    """Epochs to train; the workload's own number if not given."""
    out: Path = Path(__file__).resolve().parent / "results"
    """Folder for WORKLOAD.json."""
    contestant: str | None = None
    """Be this one, once, and print the figures as JSON."""
    seed: int = 0
    """With --contestant: fixes the weights and the order of the rows."""
    data: Path | None = None
    """With --contestant: the .npz with the rows; read afresh if not given."""
    first_step_only: bool = False
    """With --contestant: stop when the first step is finished."""


def be(work: Workload, command: Command) -> None:
    """Train as one contestant; print when the first step is finished, then figures."""
    assert command.contestant is not None
    contestant = work.contestants[command.contestant]
    data = work.data() if command.data is None else dict(np.load(command.data))
    epochs = command.epochs or work.epochs

    def signal() -> None:
        print(FIRST_STEP, flush=True)

    contestant.train(work, data, 1, command.seed, signal)
    if command.first_step_only:
        return
    trained = contestant.train(work, data, epochs, command.seed, None)
    per_epoch = -(-len(data["y"]) // work.batch_size)
    if trained.steps != epochs * per_epoch:
        raise AssertionError(f"{trained.steps} steps, not {epochs} x {per_epoch}")
    rated = trained
    if contestant.long_epochs > epochs:
        rated = contestant.train(work, data, contestant.long_epochs, command.seed, None)
    figures = {
        "steps_per_s": rated.timed_steps / rated.train_s,
        "preparing_s": trained.preparing_s,
        "total_s": trained.preparing_s + trained.train_s,
        "loss": trained.loss,
    }
    print(json.dumps(figures), flush=True)


def run_contestant(
    name: str, command: Command, data: Path, *, seed: int, cache: Path | None = None
) -> dict[str, float]:
    """Figures of one process; with a cache, only how soon the first step is finished.

    The clock is this process's: it runs from before the start of the other.
    """
    line = [
        sys.executable, __file__, "--workload", command.workload, "--contestant", name,
        "--data", str(data), "--seed", str(seed),
    ]  # fmt: skip
    line += [] if command.epochs is None else ["--epochs", str(command.epochs)]
    line += [] if cache is None else ["--first-step-only"]
    environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if cache is not None:  # what jaxstudy's own command line sets
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    first, last = None, ""
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            line, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors
        )
        with process:
            assert process.stdout is not None
            for last in process.stdout:
                if first is None and last.strip() == FIRST_STEP:
                    first = time.perf_counter() - began
        if process.returncode or first is None:
            errors.seek(0)
            sys.exit(f"{name} failed ({process.returncode}):\n{errors.read()[-3000:]}")
    if cache is not None:
        return {"first_step_cached_s": first}
    return {"first_step_s": first, **json.loads(last)}


def measure(work: Workload, command: Command) -> dict[str, Any]:
    """Run all rounds and return what goes into the result file."""
    from rich.progress import track

    from jaxstudy.runs.run import environment

    names = list(work.contestants)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data.npz"
        np.savez(data, **work.data())  # pyright: ignore[reportArgumentType]
        caches = {n: Path(scratch) / n for n in names if work.contestants[n].cached}
        for name, cache in caches.items():  # untimed: this fills the cache
            run_contestant(name, command, data, seed=0, cache=cache)
        turns = [
            (r, names[(r + i) % len(names)])
            for r in range(command.rounds)
            for i in range(len(names))
        ]
        for r, name in track(turns, description=f"{command.rounds} rounds"):
            figures = run_contestant(name, command, data, seed=r)
            if name in caches:
                cache = caches[name]
                figures |= run_contestant(name, command, data, seed=r, cache=cache)
            rounds[name].append(figures)
    packages = {p for c in work.contestants.values() for p in c.packages}
    return summarised(
        {
            "schema": SCHEMA,
            "workload": command.workload,
            "title": work.title,
            "epochs": command.epochs or work.epochs,
            "rounds": command.rounds,
            "tolerance": work.tolerance,
            "environment": environment(),
            "versions": {p: importlib.metadata.version(p) for p in sorted(packages)},
            "contestants": {
                name: {
                    "label": c.label,
                    "counted": c.counted and name != OURS,
                    "rounds": rounds[name],
                }
                for name, c in work.contestants.items()
            },
        },
        work.targets,
    )


def summarised(result: dict[str, Any], targets: dict[str, float]) -> dict[str, Any]:
    """Add medians and ranges, ratios by round, the best peer, what was aimed at."""
    contestants = result["contestants"]
    for c in contestants.values():
        names = c["rounds"][0]
        c["figures"] = {n: spread([r[n] for r in c["rounds"]]) for n in names}
        ours = contestants[OURS]["rounds"]
        c["times_as_fast"] = spread(
            [
                mine["steps_per_s"] / other["steps_per_s"]
                for mine, other in zip(ours, c["rounds"], strict=True)
            ]
        )

    def speed(name: str) -> float:
        return contestants[name]["figures"]["steps_per_s"]["median"]

    best = max((n for n, c in contestants.items() if c["counted"]), key=speed)
    reached = {
        name: {
            "at_least": at_least,
            "measured": contestants[best if name == "best peer" else name][
                "times_as_fast"
            ]["median"],
        }
        for name, at_least in targets.items()
    }
    return {**result, "best_peer": best, "targets": reached}


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def disagreement(result: dict[str, Any]) -> str | None:
    """What is wrong with the losses, if they are not those of the same training."""
    losses = {
        name: c["figures"]["loss"]["median"]
        for name, c in result["contestants"].items()
    }
    apart = {n: v for n, v in losses.items() if not _close(v, losses[OURS], result)}
    if not apart:
        return None
    return f"final losses differ by more than {result['tolerance']}: {losses}"


def _close(loss: float, ours: float, result: dict[str, Any]) -> bool:
    return abs(loss - ours) <= result["tolerance"]  # False where one is NaN


# What is shown


HEADINGS = (
    "", "steps/s", "this project is faster by", "first step, s",
    "first step, cached, s", "{epochs} epochs, s", "loss",
)  # fmt: skip


def _rows(result: dict[str, Any]) -> list[list[str]]:
    """The headings, then the cells of every contestant."""
    rows = [[heading.format_map(result) for heading in HEADINGS]]
    for name, c in result["contestants"].items():
        figures = c["figures"]
        ratio = "" if name == OURS else f"{_range(c['times_as_fast'])} x"
        note = "" if c["counted"] or name == OURS else " (for comparison)"
        rows.append(
            [
                c["label"] + note,
                _range(figures["steps_per_s"]),
                ratio,
                _range(figures["first_step_s"]),
                _range(figures.get("first_step_cached_s")),
                _range(figures["total_s"]),
                f"{figures['loss']['median']:.4f}",
            ]
        )
    return rows


def _range(figure: Mapping[str, float] | None) -> str:
    """A median and, in parentheses, its range, at three digits or so."""
    if figure is None:
        return ""

    def short(value: float) -> str:
        if value >= 100:
            digits = 3 - len(str(int(value)))
            return f"{round(value, digits):,.0f}"
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    low, high = short(figure["low"]), short(figure["high"])
    return f"{short(figure['median'])} ({low} to {high})"


def table(result: dict[str, Any]) -> str:
    """The Markdown of a result file, and of nothing else."""
    environment = result["environment"]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in _rows(result)]
    heading, *body = rows
    body = [
        [f"**{cell}**" if cell and i < 2 else cell for i, cell in enumerate(row)]
        if row[2] == ""
        else row
        for row in body
    ]
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *body]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    about = (
        f"{result['title'][0].upper()}{result['title'][1:]}. Medians (and ranges) of "
        f"{result['rounds']} rounds, every figure from a process of its own, ratios "
        "within a round; without evaluation. First step: from the start of the "
        "process, "
        "importing and compiling included; cached: with JAX's persistent compilation "
        f"cache filled. {result['epochs']} epochs: building, compiling and training, "
        "without importing. Loss: the last epoch's, on the training rows; medians "
        f"agree within {result['tolerance']:g}. {environment['cores']} cores, "
        f"{environment['processor']}; Python {environment['python']}, {versions}."
    )
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", about])


def show(result: dict[str, Any]) -> None:
    """Print the same to the terminal, and what was aimed at."""
    import rich.console
    import rich.table

    heading, *body = _rows(result)
    printed = rich.table.Table(title=result["title"], title_justify="left")
    for i, name in enumerate(heading):
        printed.add_column(name, justify="right" if i else "left")
    for row in body:
        printed.add_row(*row)
    console = rich.console.Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console.width = 160
    console.print(printed)
    for name, target in result["targets"].items():
        whom = f"the best peer, {result['best_peer']}" if name == "best peer" else name
        verdict = "reached" if target["measured"] >= target["at_least"] else "MISSED"
        print(
            f"{target['measured']:.1f} times as fast as {whom}; "
            f"aim: {target['at_least']:g}, {verdict}"
        )


def main(command: Command) -> int:
    """Be a contestant, or measure all, and write and print the result."""
    if command.workload not in WORKLOADS:
        sys.exit(f"--workload takes {', '.join(WORKLOADS)}, not {command.workload!r}")
    work = WORKLOADS[command.workload]
    if command.contestant is not None:
        if command.contestant not in work.contestants:
            sys.exit(f"--contestant takes {', '.join(work.contestants)}")
        be(work, command)
        return 0
    if command.rounds < 1 or (command.epochs is not None and command.epochs < 2):
        sys.exit("at least 1 round and 2 epochs are needed")
    missing = [
        p for p in ("keras", "tensorflow", "torch") if not importlib.util.find_spec(p)
    ]
    if missing:
        sys.exit(f"no {', '.join(missing)} here; `make bench` sets up what it needs")
    result = measure(work, command)
    show(result)
    wrong = disagreement(result)
    if wrong:
        sys.exit(f"nothing is written: {wrong}")
    from jaxstudy.runs.run import write_atomically

    command.out.mkdir(parents=True, exist_ok=True)
    path = command.out / f"{command.workload}.json"
    write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Command, description=__doc__)))
