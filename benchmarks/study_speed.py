"""How long a whole study takes beside Keras, PyTorch and vectorised numpy.

    study       6 optimizers x 12 rates x 5 seeds on the admission network. This project
                trains all 360; a peer a sample of them, one after the other, scaled.
    quadratic   SGD with 36 rates x 10 seeds on the quadratic of DeepOBS, beside numpy.

Without evaluation. Each round runs every contestant in a process of its own, in rotated
order; figures are medians over the rounds, ratios are of the same round. The clock
starts when the libraries are imported. Nothing is written unless final losses agree.

    make bench                                       all; writes benchmarks/results/
    study_speed.py --part study --contestant torch   what each of the processes runs
"""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import speed
from speed import OURS, Arrays

SCHEMA = 1
Figures = dict[str, Any]  # "total_s", "losses": {group: [...]}, and more


@dataclass(frozen=True)
class Command:
    """Measure every contestant of one part or of both, or be one."""

    part: Literal["study", "quadratic", "both"] = "both"
    """What is trained."""
    rounds: int = 5
    """Processes of every contestant; medians are over these."""
    sample: int = 1
    """Study: replicas of each optimizer, of 60, that a peer is timed on."""
    epochs: int | None = None
    """Epochs to train; the part's own number if not given."""
    out: Path = Path(__file__).resolve().parent / "results"
    """Folder for PART.json."""
    contestant: str | None = None
    """Be this one, once, and print the figures as JSON."""
    seed: int = 0
    """With --contestant: fixes the weights and the order of the rows."""
    data: Path | None = None
    """With --contestant: the .npz with the rows; read afresh if not given."""


class Contestant(NamedTuple):
    label: str
    run: Callable[[Command, Arrays], Figures]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What is trained. `floor`: see `disagreement`.

    A target is met by the median ratio to the fastest of some contestants: this project
    is to be at least so many times as fast.
    """

    title: str
    data: Callable[[], dict[str, np.ndarray]]
    contestants: dict[str, Contestant]
    epochs: int
    floor: float
    targets: dict[str, tuple[tuple[str, ...], float]]


# The study: network 3-64-128-1 on the 400 admissions, batch 32, 13 steps an epoch

RATES = np.geomspace(1e-4, 1, 12).astype(np.float32)
SEEDS = 5
BATCH = 32
# Of each optimizer the rate whose losses are compared, where training is stable and
# gets somewhere; the peers' sample begins there.
COMPARED = {"sgd": 8, "momentum": 6, "adagrad": 7, "rmsprop": 3, "adadelta": 11,
            "adam": 3}  # fmt: skip
REPLICAS = len(COMPARED) * len(RATES) * SEEDS


class Replica(NamedTuple):
    optimizer: str
    rate: int  # which of RATES
    seed: int


def sampled(sample: int, round_seed: int) -> list[Replica]:
    """The replicas a peer trains: all seeds of the compared rate first, then the next.

    Every round has seeds of its own, so that their losses show the noise of the seeds.
    """
    return [
        Replica(name, (first + k // SEEDS) % len(RATES), SEEDS * round_seed + k % SEEDS)
        for name, first in COMPARED.items()
        for k in range(sample)
    ]


def study_jaxstudy(command: Command, data: Arrays) -> Figures:
    """All replicas by the study's functions: one `fit`, one program per optimizer."""
    import optax

    from jaxstudy.dataset import dataset
    from jaxstudy.models.mlp import mlp
    from jaxstudy.objectives import supervised
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.study.problems import Problem
    from jaxstudy.study.runner import (
        Candidate,
        Protocol,
        as_replicas,
        make_common,
        make_step_functions,
        seed_keys,
        start_replicas,
        tile,
    )  # fmt: skip
    from jaxstudy.training import fit

    began = time.perf_counter()
    epochs = command.epochs or PARTS["study"].epochs
    model = mlp(data["x"].shape[1], speed.HIDDEN, 1)
    rows = dataset(data)
    entropy = optax.sigmoid_binary_cross_entropy  # and no accuracy: the peers have none
    objective = supervised(model, lambda logits, y: {"loss": entropy(logits, y)})
    problem = Problem(
        title="", model=model, objective=objective, train=rows,
        validation=rows, test=rows, batch_size=BATCH, epochs=epochs, target=0.0,
    )  # fmt: skip
    protocol = Protocol(seeds=SEEDS, seed=command.seed)
    common = make_common(problem)
    start, order = seed_keys(protocol, range(SEEDS))
    stepping: list[float] = []
    replica_steps = len(RATES) * SEEDS * epochs * -(-len(data["y"]) // BATCH)
    losses: dict[str, list[float]] = {}
    for name in COMPARED:
        more = {"eps": 1e-7} if name == "adam" else {}  # Keras's; the others have it
        functions = make_step_functions(problem, Candidate(OPTIMIZERS[name], {}, more))
        at = {k: np.full(RATES.shape, v, np.float32) for k, v in more.items()}
        replicas = as_replicas({"rate": RATES, **at}, SEEDS, protocol)
        fitted = fit(
            start_replicas(common, functions, start, replicas),
            functions.train_step,
            rows,
            key=tile(order, len(RATES) * SEEDS),
            epochs=epochs,
            batch_size=BATCH,
            replicas=replicas,
            progress=lambda step, rate, _: stepping.append(replica_steps / rate),
            chunk_steps=10**9,
        )
        final = np.array(fitted.records[-1]["loss"], float).reshape(len(RATES), SEEDS)
        losses[name] = final[COMPARED[name]].tolist()
    total = time.perf_counter() - began
    assert len(stepping) == len(COMPARED)
    return {"total_s": total, "preparing_s": total - sum(stepping), "losses": losses}


def peer(
    train: Callable[[Arrays, Replica, int], float], command: Command, data: Arrays
):
    """Time the sampled replicas, each built afresh, and scale to all of them.

    `train` returns a replica's last loss. What a process pays only once is not scaled:
    a first replica of one epoch is not timed.
    """
    train(data, Replica("sgd", 0, 0), 1)
    replicas = sampled(command.sample, command.seed)
    epochs = command.epochs or PARTS["study"].epochs
    losses: dict[str, list[float]] = {name: [] for name in COMPARED}
    began = time.perf_counter()
    for replica in replicas:
        loss = train(data, replica, epochs)
        if replica.rate == COMPARED[replica.optimizer]:
            losses[replica.optimizer].append(loss)
    each = (time.perf_counter() - began) / len(replicas)
    return {"total_s": each * REPLICAS, "replica_s": each, "losses": losses}


def study_keras(backend: str) -> Callable[[Command, Arrays], Figures]:
    """A new model, `compile` and `fit` for every replica, as one would write it."""

    def run(command: Command, data: Arrays) -> Figures:
        os.environ["KERAS_BACKEND"] = backend
        import keras

        make: dict[str, Callable[[float], Any]] = {
            "sgd": lambda rate: keras.optimizers.SGD(rate),
            "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
            "adagrad": lambda rate: keras.optimizers.Adagrad(rate),
            "rmsprop": lambda rate: keras.optimizers.RMSprop(rate),
            "adadelta": lambda rate: keras.optimizers.Adadelta(rate),
            "adam": lambda rate: keras.optimizers.Adam(rate),
        }

        def train(data: Arrays, replica: Replica, epochs: int) -> float:
            keras.utils.set_random_seed(replica.seed)
            model = keras.Sequential(
                [
                    keras.layers.Input((data["x"].shape[1],)),
                    *(keras.layers.Dense(n, activation="relu") for n in speed.HIDDEN),
                    keras.layers.Dense(1),
                ]
            )
            model.compile(
                optimizer=make[replica.optimizer](float(RATES[replica.rate])),
                loss=keras.losses.BinaryCrossentropy(from_logits=True),
            )
            history = model.fit(
                data["x"], data["y"], batch_size=BATCH, epochs=epochs,
                verbose=0,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            return float(history.history["loss"][-1])

        return peer(train, command, data)

    return run


def study_torch(threads: int | None) -> Callable[[Command, Arrays], Figures]:
    """A plain loop over a permutation of tensors: no DataLoader, no compile."""

    def run(command: Command, data: Arrays) -> Figures:
        import torch  # pyright: ignore[reportMissingImports]

        if threads is not None:
            torch.set_num_threads(threads)
        optim = torch.optim
        # eps is added after the root here, in rmsprop and adagrad; Keras adds it before
        make: dict[str, Callable[[Any, float], Any]] = {
            "sgd": lambda p, rate: optim.SGD(p, rate),
            "momentum": lambda p, rate: optim.SGD(p, rate, momentum=0.9),
            "adagrad": lambda p, rate: optim.Adagrad(
                p, rate, initial_accumulator_value=0.1, eps=1e-7
            ),
            "rmsprop": lambda p, rate: optim.RMSprop(p, rate, alpha=0.9, eps=1e-7),
            "adadelta": lambda p, rate: optim.Adadelta(p, rate, rho=0.95, eps=1e-7),
            "adam": lambda p, rate: optim.Adam(p, rate, eps=1e-7),
        }

        def train(data: Arrays, replica: Replica, epochs: int) -> float:
            torch.manual_seed(replica.seed)
            x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
            layers: list[Any] = []
            for inputs, outputs in itertools.pairwise((x.shape[1], *speed.HIDDEN, 1)):
                linear = torch.nn.Linear(inputs, outputs)
                torch.nn.init.xavier_uniform_(linear.weight)  # Glorot, as everywhere
                torch.nn.init.zeros_(linear.bias)
                layers += [linear, torch.nn.ReLU()]
            model = torch.nn.Sequential(*layers[:-1])
            rate = float(RATES[replica.rate])
            optimizer = make[replica.optimizer](model.parameters(), rate)
            criterion = torch.nn.BCEWithLogitsLoss()
            total = torch.zeros(())
            for _ in range(epochs):
                total.zero_()
                for rows in torch.randperm(len(x)).split(BATCH):
                    optimizer.zero_grad()
                    loss = criterion(model(x[rows])[:, 0], y[rows])
                    loss.backward()
                    optimizer.step()
                    total += loss.detach() * len(rows)
            return total.item() / len(x)

        return peer(train, command, data)

    return run


# The quadratic: 1000 rows of 100, batch 128 without the remainder, 7 steps an epoch

QUADRATIC_RATES = np.geomspace(1e-5, 1e-2, 36).astype(np.float32)
QUADRATIC_SEEDS = 10
QUADRATIC_BATCH = 128


def quadratic_data() -> dict[str, np.ndarray]:
    """x [1000, 100], q [1000] = x^T H x / 2, H [100, 100]: float32."""
    from jaxstudy.study.problems import quadratic, quadratic_hessian

    arrays = {name: np.asarray(a) for name, a in quadratic().train.arrays.items()}
    return {**arrays, "h": quadratic_hessian().astype(np.float32)}


def by_rate(losses: np.ndarray) -> dict[str, list[float]]:
    """The final losses [R, S] of every rate."""
    return {
        f"{rate:.3g}": row.tolist()
        for rate, row in zip(QUADRATIC_RATES, losses, strict=True)
    }


def quadratic_jaxstudy(command: Command, data: Arrays) -> Figures:
    """`fit` with all replicas vmapped, twice: the first time compiles."""
    del data  # the project's own problem has the same
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.study.problems import quadratic
    from jaxstudy.study.runner import (
        Candidate,
        Protocol,
        as_replicas,
        make_common,
        make_step_functions,
        seed_keys,
        start_replicas,
    )  # fmt: skip
    from jaxstudy.training import fit

    problem = quadratic()
    protocol = Protocol(seeds=QUADRATIC_SEEDS, seed=command.seed, mode="vmap")
    common = make_common(problem)
    functions = make_step_functions(problem, Candidate(OPTIMIZERS["sgd"], {}))

    def train() -> list[float]:
        start, order = seed_keys(protocol, range(QUADRATIC_SEEDS))
        replicas = as_replicas({"rate": QUADRATIC_RATES}, QUADRATIC_SEEDS, protocol)
        fitted = fit(
            start_replicas(common, functions, start, replicas),
            functions.train_step,
            replace(problem.train, order=problem.order),
            key=order,
            epochs=command.epochs or PARTS["quadratic"].epochs,
            batch_size=problem.batch_size,
            replicas=replicas,
            progress=lambda *_: None,
            chunk_steps=10**9,
        )
        return fitted.records[-1]["loss"]

    began = time.perf_counter()
    train()
    compiled = time.perf_counter()
    losses = train()
    total = time.perf_counter() - compiled
    first = compiled - began
    final = np.array(losses, float).reshape(-1, QUADRATIC_SEEDS)
    return {"total_s": total, "preparing_s": first - total, "losses": by_rate(final)}


def sgd_on_quadratic(
    data: Arrays, rates: np.ndarray, orders: np.ndarray, batch_size: int
) -> np.ndarray:
    """SGD from ones in numpy: the mean loss of each epoch, [E, R, S].

    Orders [E, S, n]: in each epoch the seeds' permutations, rows that make no whole
    batch left out. The means of all batches of an epoch are one product.
    """
    x_and_q = np.concatenate([data["x"], data["q"][:, None]], 1)
    dimensions, h = data["x"].shape[1], data["h"]
    epochs, seeds, n = orders.shape
    steps = n // batch_size
    p = np.ones((len(rates), seeds, dimensions), np.float32)
    apart, gradient = np.empty_like(p), np.empty_like(p)
    rate = rates[:, None, None]
    losses = np.empty((epochs, len(rates), seeds), np.float32)
    which = np.arange(seeds * steps)[:, None]
    for epoch, order in enumerate(orders):
        rows = order[:, : steps * batch_size].reshape(seeds * steps, batch_size)
        weights = np.zeros((seeds * steps, len(x_and_q)), np.float32)
        weights[which, rows] = 1 / batch_size
        means = weights @ x_and_q
        mean = np.ascontiguousarray(means[:, :-1])
        spread = means[:, -1] - 0.5 * np.einsum("bd,bd->b", mean @ h, mean)
        mean = mean.reshape(seeds, steps, dimensions)
        total = np.zeros((len(rates), seeds), np.float32)
        for step in range(steps):
            np.subtract(p, mean[:, step], out=apart)
            flat = gradient.reshape(-1, dimensions)
            np.matmul(apart.reshape(-1, dimensions), h, out=flat)
            total += np.einsum("rsd,rsd->rs", apart, gradient)
            gradient *= rate
            p -= gradient
        losses[epoch] = (0.5 * total + spread.reshape(seeds, steps).sum(1)) / steps
    return losses


def quadratic_numpy(command: Command, data: Arrays) -> Figures:
    """All replicas as one array; an untimed epoch goes before, as in our first run."""
    epochs = command.epochs or PARTS["quadratic"].epochs
    rng = np.random.default_rng(command.seed)

    def train(epochs: int) -> np.ndarray:
        every = np.tile(np.arange(len(data["x"])), (epochs, QUADRATIC_SEEDS, 1))
        orders = rng.permuted(every, axis=2)
        return sgd_on_quadratic(data, QUADRATIC_RATES, orders, QUADRATIC_BATCH)[-1]

    train(1)
    began = time.perf_counter()
    losses = train(epochs)
    return {"total_s": time.perf_counter() - began, "losses": by_rate(losses)}


ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # numpy reads it
OURS_PACKAGES = ("jaxstudy", "jax", "optax", "flax")
PARTS: dict[str, Part] = {
    "study": Part(
        title=(
            "study of 6 optimizers x 12 rates x 5 seeds: network 3-64-128-1 on the 400 "
            "admissions, batch 32"
        ),
        data=speed.admission_data,
        contestants={
            OURS: Contestant("this project, replicas", study_jaxstudy, OURS_PACKAGES),
            "keras-tensorflow": Contestant(
                "Keras on TensorFlow, `fit`", study_keras("tensorflow"),
                ("keras", "tensorflow_cpu"),
            ),
            "keras-jax": Contestant(
                "Keras on JAX, `fit`", study_keras("jax"), ("keras", "jax")
            ),
            "torch": Contestant("PyTorch, a plain loop", study_torch(None), ("torch",)),
            "torch-1-thread": Contestant(
                "PyTorch, a plain loop, 1 thread", study_torch(1), ("torch",)
            ),
        },
        epochs=50, floor=0.005,
        targets={
            "Keras on TensorFlow": (("keras-tensorflow",), 100),
            "PyTorch": (("torch", "torch-1-thread"), 10),
        },
    ),
    "quadratic": Part(
        title=(
            "SGD with 36 rates x 10 seeds on the quadratic of DeepOBS: 100 dimensions, "
            "batch 128, 7 steps an epoch"
        ),
        data=quadratic_data,
        contestants={
            OURS: Contestant(
                "this project, replicas vmapped", quadratic_jaxstudy, OURS_PACKAGES
            ),
            "numpy": Contestant("numpy, vectorised", quadratic_numpy, ("numpy",)),
            "numpy-1-thread": Contestant(
                "numpy, vectorised, 1 thread", quadratic_numpy, ("numpy",)
            ),
        },
        epochs=100, floor=1e-4,
        targets={
            "numpy": (("numpy",), 0.5),
            "the faster numpy": (("numpy", "numpy-1-thread"), 0.5),
        },
    ),
}  # fmt: skip


# One contestant's process, and the one that starts them


def use_all_cores() -> None:
    """Each core a device of JAX, as this project's command line has it."""
    import jax

    from jaxstudy.types import usable_cores

    jax.config.update("jax_num_cpu_devices", usable_cores())


def be(name: str, command: Command) -> None:
    """Train as one contestant; print the figures."""
    part = PARTS[name]
    assert command.contestant is not None
    if command.contestant == OURS:
        use_all_cores()
    data = part.data() if command.data is None else dict(np.load(command.data))
    figures = part.contestants[command.contestant].run(command, data)
    print(json.dumps(figures), flush=True)


def run_contestant(part: str, name: str, command: Command, data: Path) -> Figures:
    """The figures of one process."""
    line = [
        sys.executable, __file__, "--part", part, "--contestant", name,
        "--sample", str(command.sample), "--seed", str(command.seed),
        "--data", str(data),
    ]  # fmt: skip
    line += [] if command.epochs is None else ["--epochs", str(command.epochs)]
    environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    environment |= ONE_THREAD if name.startswith("numpy-1") else {}
    done = subprocess.run(line, env=environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, command: Command) -> dict[str, Any]:
    """Run all rounds and return what goes into the result file."""
    from rich.progress import track

    from jaxstudy.runs.run import environment

    part = PARTS[name]
    names = list(part.contestants)
    rounds: dict[str, list[Figures]] = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data.npz"
        np.savez(data, **part.data())  # pyright: ignore[reportArgumentType]
        turns = [
            (r, names[(r + i) % len(names)])
            for r in range(command.rounds)
            for i in range(len(names))
        ]
        for r, n in track(turns, description=f"{name}, {command.rounds} rounds"):
            rounds[n].append(run_contestant(name, n, replace(command, seed=r), data))
    packages = {p for c in part.contestants.values() for p in c.packages}
    result = {
        "schema": SCHEMA,
        "kind": name,
        "title": part.title,
        "epochs": command.epochs or part.epochs,
        "rounds": command.rounds,
        "floor": part.floor,
        "environment": environment(),
        "versions": {p: importlib.metadata.version(p) for p in sorted(packages)},
        "contestants": {
            n: {"label": c.label, "rounds": rounds[n]}
            for n, c in part.contestants.items()
        },
    }
    if name == "study":
        compared = {n: float(f"{RATES[i]:.4g}") for n, i in COMPARED.items()}
        sample = command.sample * len(COMPARED)
        result |= {"replicas": REPLICAS, "sample": sample, "compared_at": compared}
    return summarised(result, part.targets)


def summarised(
    result: dict[str, Any], targets: Mapping[str, tuple[Sequence[str], float]]
) -> dict[str, Any]:
    """Add medians and ranges, ratios by round, mean losses, what was aimed at."""
    contestants = result["contestants"]
    ours = contestants[OURS]["rounds"]
    for c in contestants.values():
        seconds = [n for n in c["rounds"][0] if n != "losses"]
        c["figures"] = {n: speed.spread([r[n] for r in c["rounds"]]) for n in seconds}
        c["times_as_fast"] = speed.spread(
            [
                other["total_s"] / mine["total_s"]
                for mine, other in zip(ours, c["rounds"], strict=True)
            ]
        )
        c["mean_losses"] = {k: float(np.mean(v)) for k, v in _pooled(c).items()}
    reached = {
        name: {
            "at_least": at_least,
            "measured": min(contestants[n]["times_as_fast"]["median"] for n in whom),
        }
        for name, (whom, at_least) in targets.items()
    }
    return {**result, "targets": reached}


def _pooled(contestant: Mapping[str, Any]) -> dict[str, list[float]]:
    """The losses of every group, of all rounds: each round has other seeds."""
    rounds = [r["losses"] for r in contestant["rounds"]]
    return {k: [loss for r in rounds for loss in r[k]] for k in rounds[0]}


def disagreement(result: dict[str, Any]) -> str | None:
    """What is wrong with the losses, if they are not those of the same training.

    In each group (an optimizer at one rate; a rate) a peer's mean may be as far from
    ours as the noise of the seeds explains: 4 standard errors of the difference, both
    with the standard deviation of our seeds. Besides, `floor`, in nats or as a part of
    a loss over 1, for what is no noise (eps before or after a root, sums in another
    order) and for seeds that are alike by chance: in the study 0.005, when the next
    rate of the grid changes the compared losses by 0.006 to 0.03; in the quadratic the
    rounding of float32.
    """
    ours = {k: np.array(v) for k, v in _pooled(result["contestants"][OURS]).items()}
    for name, contestant in result["contestants"].items():
        for group, values in _pooled(contestant).items():
            mine, theirs = ours[group], np.array(values)
            error = mine.std(ddof=1) * np.sqrt(1 / len(mine) + 1 / len(theirs))
            allowed = 4 * error + result["floor"] * max(1.0, abs(mine.mean()))
            apart = abs(theirs.mean() - mine.mean())
            if not apart <= allowed:  # or NaN
                return (
                    f"{name}, {group}: mean final loss {theirs.mean():.5g}, not "
                    f"{mine.mean():.5g} +- {allowed:.2g}"
                )
    return None


# What is shown


def table(result: dict[str, Any]) -> str:
    """The Markdown of a result file, and of nothing else."""
    study = result["kind"] == "study"
    what = "all trainings, s" if study else f"{result['epochs']} epochs, s"
    compiling = "of it compiling and building, s" if study else "compiling besides, s"
    ratio = "this project is faster by" if study else "of this project's time"
    lines = [["", what, compiling, ratio], ["---", *["---:"] * 3]]
    for name, c in result["contestants"].items():
        figures, ours = c["figures"], name == OURS
        ratio = "" if ours else f"{speed._range(c['times_as_fast'])} x"
        cells = [c["label"], speed._range(figures["total_s"])]
        cells = [f"**{cell}**" if ours else cell for cell in cells]
        lines.append([*cells, speed._range(figures.get("preparing_s")), ratio])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{rows}\n\n{_about(result)}"


def _about(result: dict[str, Any]) -> str:
    """The sentences below the table: what was measured, and on what."""
    environment = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    parts = [
        f"{result['title'][0].upper()}{result['title'][1:]}, {result['epochs']} "
        f"epochs. Medians (and ranges) of {result['rounds']} rounds, every figure from "
        "a process of its own, ratios within a round; without evaluation."
    ]
    if result["kind"] == "study":
        compared = ", ".join(f"{n} {r:g}" for n, r in result["compared_at"].items())
        parts.append(
            "From when the libraries are imported to the last final loss, compiling "
            f"included. This project trains all {result['replicas']}; the peers train "
            f"a sample of {result['sample']}, each with a model and an optimizer built "
            "afresh, and the time is scaled by "
            f"{result['replicas']}/{result['sample']} "
            "(after an untimed first one, so what a process pays once is not scaled). "
            f"Final losses agree within the noise of the seeds at the rates {compared}."
        )
    else:
        parts.append(
            "Both sides' second run in a process; compiling is this project's first "
            "run less its second. Final losses agree within the noise of the seeds at "
            "every rate."
        )
    parts.append(
        f"{environment['cores']} cores, {environment['processor']}; Python "
        f"{environment['python']}, {versions}."
    )
    return " ".join(parts)


def verdicts(result: dict[str, Any]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    return [
        f"{target['measured']:.3g} times as fast as {name}; aim: "
        f"{target['at_least']:g}, "
        + ("reached" if target["measured"] >= target["at_least"] else "MISSED")
        for name, target in result["targets"].items()
    ]


def main(command: Command) -> int:
    """Be a contestant, or measure all, and write and print the results."""
    names = list(PARTS) if command.part == "both" else [command.part]
    if not 1 <= command.sample <= len(RATES) * SEEDS:
        sys.exit(f"--sample takes 1 to {len(RATES) * SEEDS}, not {command.sample}")
    if command.rounds < 1 or (command.epochs is not None and command.epochs < 1):
        sys.exit("at least 1 round and 1 epoch are needed")
    if command.contestant is not None:
        known = PARTS[names[0]].contestants
        if len(names) > 1 or command.contestant not in known:
            sys.exit(f"--contestant takes one of --part: {', '.join(known)}")
        be(names[0], command)
        return 0
    peers = ("keras", "tensorflow", "torch") if "study" in names else ()
    missing = [p for p in peers if not importlib.util.find_spec(p)]
    if missing:
        sys.exit(f"no {', '.join(missing)} here; `make bench` sets up what it needs")
    use_all_cores()  # so that the environment says so
    from jaxstudy.runs.run import write_atomically

    for name in names:
        result = measure(name, command)
        print("\n".join([table(result), "", *verdicts(result)]))
        wrong = disagreement(result)
        if wrong:
            sys.exit(f"nothing is written: {wrong}")
        command.out.mkdir(parents=True, exist_ok=True)
        path = command.out / f"{name}.json"
        write_atomically(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written to {path}\n")
    return 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Command, description=__doc__)))
