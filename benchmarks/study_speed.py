"""How long a whole study takes beside Keras, PyTorch and vectorised numpy.

    study       6 optimizers x 12 rates x 5 seeds on the admission network. This project
                trains all 360; a peer a sample of them, one after the other, scaled.
    quadratic   SGD with 36 rates x 10 seeds on the quadratic of DeepOBS, beside numpy.

Without evaluation. The clock starts when the libraries are imported. How it is measured
is in harness.py.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import harness
import numpy as np
from admission_speed import (
    BATCH,
    HIDDEN,
    admission_data,
    keras_network,
    torch_epoch,
    torch_network,
)
from harness import Arrays, Candidate, Job, Measured, Workload, on_keras, ours


def use_all_cores() -> None:
    """Each core a device of JAX, as this project's command line has it."""
    import jax

    from jaxstudy.parallel import usable_cores

    jax.config.update("jax_num_cpu_devices", usable_cores())


# The study: network 3-64-128-1 on the 400 admissions, batch 32, 13 steps an epoch

RATES = np.geomspace(1e-4, 1, 12).astype(np.float32)
SEEDS = 5
# Of each optimizer the rate whose losses are compared, where training is stable and
# gets somewhere; the peers' sample begins there.
COMPARED = {"sgd": 8, "momentum": 6, "adagrad": 7, "rmsprop": 3, "adadelta": 11,
            "adam": 3}  # fmt: skip
REPLICAS = len(COMPARED) * len(RATES) * SEEDS
SAMPLE = 1  # replicas of each optimizer, of 60, that a peer is timed on


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


def study_jaxstudy(job: Job) -> Measured:
    """All replicas by the study's functions: one `fit` per optimizer, one program."""
    use_all_cores()
    import optax

    from jaxstudy.dataset import dataset
    from jaxstudy.models.mlp import mlp
    from jaxstudy.objectives import supervised
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.study import runner
    from jaxstudy.study.candidates import Candidate
    from jaxstudy.study.problems import Problem, steps_of
    from jaxstudy.study.programs import shared_step_functions

    began = time.perf_counter()
    model = mlp(job.data["x"].shape[1], HIDDEN, 1)
    rows = dataset(job.data)
    entropy = optax.sigmoid_binary_cross_entropy  # and no accuracy: the peers have none
    objective = supervised(model, lambda logits, y: {"loss": entropy(logits, y)})
    problem = Problem(
        title="", model=model, objective=objective, train=rows, validation=rows,
        test=rows, batch_size=BATCH, epochs=job.length, target=0.0,
    )  # fmt: skip
    protocol = runner.Protocol(seeds=SEEDS, seed=job.seed)
    keys = runner.seed_keys(protocol, range(SEEDS))
    replica_steps = len(RATES) * SEEDS * job.length * steps_of(problem)
    stepping = 0.0
    losses = {}
    more = {"adam": {"eps": 1e-7}}  # Keras's; the others have it
    candidates = {
        name: Candidate(OPTIMIZERS[name], {}, {"rate": 0.0, **more.get(name, {})})
        for name in COMPARED
    }
    shared = shared_step_functions(problem, candidates, "map")
    for name, compared in COMPARED.items():
        functions = shared[name]
        own = more.get(name, {})
        at = {k: np.full(RATES.shape, v, np.float32) for k, v in own.items()}
        points = functions.arguments({"rate": RATES, **at})
        records, [rate] = harness.run_fit(
            runner.fit_replicas, problem, functions,
            runner.as_replicas(points, SEEDS), keys,
            chunk_steps=10**9,  # all of it in one dispatch, so there is one rate
        )  # fmt: skip
        stepping += replica_steps / rate
        final = np.array(records[-1]["loss"], float).reshape(len(RATES), SEEDS)
        losses[name] = final[compared]
    total = time.perf_counter() - began
    return Measured({"total_s": total, "preparing_s": total - stepping}, losses)


def peer(train: Callable[[Arrays, Replica, int], float], job: Job) -> Measured:
    """Time the sampled replicas, each built afresh, and scale to all of them.

    `train` returns a replica's last loss. What a process pays only once is not scaled:
    a first replica of one epoch is not timed.
    """
    train(job.data, Replica("sgd", 0, 0), 1)
    replicas = sampled(SAMPLE, job.seed)
    losses: dict[str, list[float]] = {name: [] for name in COMPARED}
    began = time.perf_counter()
    for replica in replicas:
        loss = train(job.data, replica, job.length)
        if replica.rate == COMPARED[replica.optimizer]:
            losses[replica.optimizer].append(loss)
    each = (time.perf_counter() - began) / len(replicas)
    results = {name: np.array(values) for name, values in losses.items()}
    return Measured({"total_s": each * REPLICAS, "replica_s": each}, results)


def study_keras(job: Job) -> Measured:
    """A new model, `compile` and `fit` for every replica, as one would write it."""
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
        model = keras_network(data["x"].shape[1])
        model.compile(
            optimizer=make[replica.optimizer](float(RATES[replica.rate])),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
        )
        history = model.fit(
            data["x"], data["y"], batch_size=BATCH, epochs=epochs,
            verbose=0,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return float(history.history["loss"][-1])

    return peer(train, job)


def study_torch(job: Job, threads: int | None = None) -> Measured:
    """A plain loop over a permutation of tensors: no DataLoader, no compile."""
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
        model = torch_network(torch, x.shape[1])
        rate = float(RATES[replica.rate])
        optimizer = make[replica.optimizer](model.parameters(), rate)
        return [torch_epoch(torch, model, optimizer, x, y) for _ in range(epochs)][-1]

    return peer(train, job)


# The quadratic: 1000 rows of 100, batch 128 without the remainder, 7 steps an epoch

QUADRATIC_RATES = np.geomspace(1e-5, 1e-2, 36).astype(np.float32)
QUADRATIC_SEEDS = 10
QUADRATIC_BATCH = 128


def quadratic_data() -> dict[str, np.ndarray]:
    """x [1000, 100], q [1000] = x^T H x / 2, H [100, 100]: float32."""
    from jaxstudy.study.problems import quadratic, quadratic_hessian

    arrays = {name: np.asarray(a) for name, a in quadratic().train.arrays.items()}
    return {**arrays, "h": quadratic_hessian().astype(np.float32)}


def by_rate(losses: np.ndarray) -> dict[str, np.ndarray]:
    """The final losses [R, S] of every rate."""
    named = zip(QUADRATIC_RATES, losses, strict=True)
    return {f"{rate:.3g}": row for rate, row in named}


def quadratic_jaxstudy(job: Job) -> Measured:
    """`fit` with all replicas vmapped, twice: the first time compiles."""
    use_all_cores()
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.study import runner
    from jaxstudy.study.problems import quadratic  # which has the same rows as `job`

    problem = replace(quadratic(), epochs=job.length)
    protocol = runner.Protocol(seeds=QUADRATIC_SEEDS, seed=job.seed)
    functions = runner.make_step_functions(
        problem, runner.Candidate(OPTIMIZERS["sgd"], {})
    )

    def train() -> list[float]:
        keys = runner.seed_keys(protocol, range(QUADRATIC_SEEDS))
        rates = {"rate": QUADRATIC_RATES}
        replicas = runner.as_replicas(rates, QUADRATIC_SEEDS, "vmap")
        records, _ = harness.run_fit(
            runner.fit_replicas, problem, functions, replicas, keys, chunk_steps=10**9
        )
        return records[-1]["loss"]

    began = time.perf_counter()
    train()
    compiled = time.perf_counter()
    losses = train()
    total = time.perf_counter() - compiled
    final = np.array(losses, float).reshape(-1, QUADRATIC_SEEDS)
    figures = {"total_s": total, "preparing_s": compiled - began - total}
    return Measured(figures, by_rate(final))


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


def quadratic_numpy(job: Job, threads: int | None = None) -> Measured:
    """All replicas as one array; an untimed epoch goes before, as in our first run."""
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(job.seed)

    def train(epochs: int) -> np.ndarray:
        every = np.tile(np.arange(len(job.data["x"])), (epochs, QUADRATIC_SEEDS, 1))
        orders = rng.permuted(every, axis=2)
        return sgd_on_quadratic(job.data, QUADRATIC_RATES, orders, QUADRATIC_BATCH)[-1]

    with threadpool_limits(threads):
        train(1)
        began = time.perf_counter()
        losses = train(job.length)
        total = time.perf_counter() - began
    return Measured({"total_s": total}, by_rate(losses))


PLAIN, THREAD = "PyTorch, a plain loop", partial(study_torch, threads=1)
VECTORISED = "numpy, vectorised"
RATES_SHOWN = ", ".join(f"{n} {RATES[i]:.4g}" for n, i in COMPARED.items())
WORKLOADS: dict[str, Workload] = {
    "study": Workload(
        f"study of {len(COMPARED)} optimizers x {len(RATES)} rates x {SEEDS} seeds: "
        "network 3-64-128-1 on the 400 admissions, batch 32",
        "{length} epochs, from when the libraries are imported to the last final loss, "
        f"compiling included. This project trains all {REPLICAS}; the peers train a "
        f"sample of {SAMPLE * len(COMPARED)}, each with a model and an optimizer built "
        f"afresh, and the time is scaled by {REPLICAS}/{SAMPLE * len(COMPARED)} (after "
        "an untimed first one, so what a process pays once is not scaled). Losses are "
        f"compared at the rates {RATES_SHOWN}.",
        admission_data,
        {
            **ours("replicas", study_jaxstudy),
            **on_keras(study_keras, "`fit`", "`fit`"),
            "torch": Candidate(PLAIN, study_torch, ("torch",)),
            "torch-1-thread": Candidate(f"{PLAIN}, 1 thread", THREAD, ("torch",)),
        },
        50,
        {
            "all trainings, s": "total_s",
            "of it compiling and building, s": "preparing_s",
            **harness.FASTER_BY,
        },
        {"keras-tensorflow": 100, "torch": 10}, time="total_s",
        # the next rate of the grid changes the compared losses by 0.006 to 0.03
        floor=0.005, compiling=True,
    ),
    "quadratic": Workload(
        "SGD with 36 rates x 10 seeds on the quadratic of DeepOBS: 100 dimensions, "
        "batch 128, 7 steps an epoch",
        "Both sides' second run in a process; compiling is this project's first run "
        "less its second. Losses are compared at every rate.",
        quadratic_data,
        {
            **ours("replicas vmapped", quadratic_jaxstudy),
            "numpy": Candidate(VECTORISED, quadratic_numpy, ("numpy",)),
            "numpy-1-thread": Candidate(
                f"{VECTORISED}, 1 thread", partial(quadratic_numpy, threads=1),
                ("numpy",),
            ),
        },
        100,
        {
            "{length} epochs, s": "total_s", "compiling besides, s": "preparing_s",
            "of this project's time": "times_as_fast",
        },
        {"numpy": 0.5}, time="total_s",
        floor=1e-4,  # the rounding of float32
        compiling=True,
    ),
}  # fmt: skip

if __name__ == "__main__":
    harness.main(WORKLOADS, __file__, __doc__)
