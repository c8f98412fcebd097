"""How fast training a small network is beside Keras and PyTorch: lesson 1.4's.

    admission    dense network 3-64-128-1 on 400 rows, batch 32, Adam

Every candidate trains the same network on the same rows in the same way: same initial
distribution, batches of the same size (the last one partly filled), rows shuffled anew
in every epoch, same loss. Without evaluation. How it is measured is in harness.py.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import harness
import numpy as np
from harness import Arrays, Candidate, Job, Measured, Workload, on_keras, ours

HIDDEN, BATCH = (64, 128), 32
RATE, EPS = 1e-3, 1e-7


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


Train = Callable[[Arrays, int, int], Trained]  # of (rows, epochs, seed)


def admission_data() -> dict[str, np.ndarray]:
    """x [400, 3]: gre, gpa and rank, standardised; y [400]."""
    from jaxstudy.tabular.sets import read_admissions

    table = read_admissions()
    x = table[["gre", "gpa", "rank"]].to_numpy(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    return {"x": x.astype(np.float32), "y": table["admit"].to_numpy(np.float32)}


def measured(job: Job, train: Train, long_epochs: int = 0) -> Measured:
    """Time to the first step, one training, and its rate.

    long_epochs: how long to train for the rate, where the job takes too little time.
    """
    train({name: a[:BATCH] for name, a in job.data.items()}, 1, job.seed)
    first = {"first_step_s": time.time() - job.started}
    if job.first_step_only:
        return Measured(first, {})
    whole = train(job.data, job.length, job.seed)
    per_epoch = -(-len(job.data["y"]) // BATCH)
    if whole.steps != job.length * per_epoch:
        raise AssertionError(f"{whole.steps} steps, not {job.length} x {per_epoch}")
    rated = whole
    if long_epochs > job.length:
        rated = train(job.data, long_epochs, job.seed)
    figures = {
        "step_ms": 1e3 * rated.train_s / rated.timed_steps,
        "preparing_s": whole.preparing_s,
        "total_s": whole.preparing_s + whole.train_s,
        "loss": whole.loss,
    }
    return Measured({**first, **figures}, {"loss": np.array([whole.loss])})


def train_jaxstudy(data: Arrays, epochs: int, seed: int) -> Trained:
    """`fit`, all epochs in one chunk."""
    began = time.perf_counter()
    import jax

    from jaxstudy.dataset import dataset
    from jaxstudy.models.mlp import mlp
    from jaxstudy.objectives import binary_cross_entropy
    from jaxstudy.optimizers import OPTIMIZERS
    from jaxstudy.training import fit, init_state, make_train_step

    model = mlp(data["x"].shape[1], HIDDEN, 1)
    optimizer = OPTIMIZERS["adam"].make(RATE, eps=EPS)
    init_key, order_key = jax.random.split(jax.random.key(seed))
    records, rates = harness.run_fit(
        fit, init_state(model, optimizer, init_key),
        make_train_step(binary_cross_entropy(model), optimizer),
        dataset(data), batch_size=BATCH, epochs=epochs, key=order_key,
        chunk_steps=10**9,
    )  # fmt: skip
    total, steps = time.perf_counter() - began, records[-1]["step"]
    train_s = steps / rates[-1]
    return Trained(records[-1]["loss"], steps, total - train_s, steps, train_s)


def keras_network(inputs: int) -> Any:
    """The network; layers start as everywhere here: Glorot uniform, bias 0."""
    import keras

    layers = [keras.layers.Dense(width, activation="relu") for width in HIDDEN]
    return keras.Sequential(
        [keras.layers.Input((inputs,)), *layers, keras.layers.Dense(1)]
    )


def train_keras(
    data: Arrays, epochs: int, seed: int, steps_per_execution: int = 1
) -> Trained:
    """`Model.fit`."""
    began = time.perf_counter()
    import keras

    keras.utils.set_random_seed(seed)
    model = keras_network(data["x"].shape[1])
    model.compile(
        optimizer=keras.optimizers.Adam(RATE, epsilon=EPS),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
    )

    def fit(epochs: int) -> float:
        history = model.fit(
            data["x"], data["y"], batch_size=BATCH, epochs=epochs,
            verbose=0,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return float(history.history["loss"][-1])

    loss = fit(1)
    prepared = time.perf_counter()
    if epochs > 1:
        loss = fit(epochs - 1)
    train_s = time.perf_counter() - prepared
    timed = (epochs - 1) * -(-len(data["y"]) // BATCH)
    steps = int(np.asarray(model.optimizer.iterations))
    return Trained(loss, steps, prepared - began, timed, train_s)


def torch_network(torch: Any, inputs: int) -> Any:
    """The network; layers start as everywhere here: Glorot uniform, bias 0."""
    layers: list[Any] = []
    for narrow, wide in itertools.pairwise((inputs, *HIDDEN, 1)):
        linear = torch.nn.Linear(narrow, wide)
        torch.nn.init.xavier_uniform_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def torch_epoch(torch: Any, model: Any, optimizer: Any, x: Any, y: Any) -> float:
    """Steps over a permutation of tensors, without DataLoader; the mean loss."""
    criterion = torch.nn.BCEWithLogitsLoss()
    total = torch.zeros(())
    for rows in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        loss = criterion(model(x[rows])[:, 0], y[rows])
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    return total.item() / len(x)


def train_torch(
    data: Arrays, epochs: int, seed: int, threads: int | None = None
) -> Trained:
    """A plain loop: no compile."""
    began = time.perf_counter()
    import torch  # pyright: ignore[reportMissingImports]

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    model = torch_network(torch, x.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=EPS)
    loss = torch_epoch(torch, model, optimizer, x, y)
    prepared = time.perf_counter()
    for _ in range(epochs - 1):
        loss = torch_epoch(torch, model, optimizer, x, y)
    train_s = time.perf_counter() - prepared
    per_epoch = -(-len(x) // BATCH)
    steps = epochs * per_epoch
    return Trained(loss, steps, prepared - began, steps - per_epoch, train_s)


def candidates() -> dict[str, Candidate]:
    """Keras on JAX also with an epoch at a time, PyTorch also with one thread."""
    keras = partial(measured, train=train_keras)
    on_tensorflow, on_jax = on_keras(keras, "`fit`", "`fit`").values()
    epoch = partial(measured, train=partial(train_keras, steps_per_execution=13))
    thread = partial(measured, train=partial(train_torch, threads=1))
    label, torch = "PyTorch, a plain loop", ("torch",)
    return {
        **ours(
            "`fit`", partial(measured, train=train_jaxstudy, long_epochs=2000),
            cached=True,
        ),
        "keras-jax": replace(on_jax, cached=True),
        "keras-jax-epoch": replace(
            on_jax, label=f"{on_jax.label}, `steps_per_execution=13`", run=epoch,
            counted=False, cached=True,
        ),
        "keras-tensorflow": on_tensorflow,
        "torch": Candidate(label, partial(measured, train=train_torch), torch),
        "torch-1-thread": Candidate(f"{label}, 1 thread", thread, torch),
    }  # fmt: skip


WORKLOADS: dict[str, Workload] = {
    "admission": Workload(
        "dense network 3-64-128-1 on the 400 admissions, batch 32, Adam",
        "First step: from the start of the process, importing and compiling included; "
        "cached: with JAX's persistent compilation cache filled. {length} epochs: "
        "building, compiling and training, without importing. Loss: the last epoch's, "
        "on the training rows.",
        admission_data, candidates(), 100,
        {
            "steps/s": "steps_per_s", **harness.FASTER_BY,
            "first step, s": "first_step_s",
            "first step, cached, s": "first_step_cached_s",
            "{length} epochs, s": "total_s", "loss": "loss",
        },
        {"best peer": 8, "keras-tensorflow": 100}, floor=0.005, compiling=True,
    ),
}  # fmt: skip

if __name__ == "__main__":
    harness.main(WORKLOADS, __file__, __doc__)
