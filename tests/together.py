"""What several processes do together, or one does alone: run by test_processes.py.

`python together.py FOLDER` trains in FOLDER, and writes what it saw there as JSON,
named after the number of processes and which one it was.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxstudy import processes
from jaxstudy.dataset import AnyDataset, dataset
from jaxstudy.model import Model
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import binary_cross_entropy
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import Run, Stopped, open_run
from jaxstudy.runs.saved import Options
from jaxstudy.streaming import streamed
from jaxstudy.training import (
    EvalStep,
    Evaluator,
    FitResult,
    TrainStep,
    fit,
    init_replicas,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import TrainState, UserError

TX = optax.sgd(0.1)
EPOCHS = 4  # of four steps, the last of 47 rows
RNG = np.random.default_rng(0)
X = RNG.normal(size=(230, 5)).astype(np.float32)
Y = (X[:, 0] + RNG.normal(size=230) > 0).astype(np.float32)
DATA = {"x": X, "y": Y}


class Rows:
    """A source of the rows, which counts those that this process reads."""

    read = 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.read += 1
        return {name: a[row] for name, a in DATA.items()}


class Network(NamedTuple):
    """What a training is made of."""

    model: Model
    step: TrainStep
    evaluate: EvalStep


@functools.cache  # not before the processes have met
def network() -> Network:
    model = mlp(5, (8,), 1)
    objective = binary_cross_entropy(model)
    return Network(model, make_train_step(objective, TX), make_eval_step(objective))


def evaluator(data: AnyDataset) -> Evaluator:
    return Evaluator(network().evaluate, data, 100)


def train(run: Run, data: AnyDataset, seeds: int = 0, **options: Any) -> FitResult:
    """A small network in a run, each epoch a chunk."""
    key, init, log = jax.random.key(3), init_state, run.sub_run(**options)
    if seeds:
        init, key = init_replicas, jax.random.split(key, seeds)
    if log.name == "second" and os.environ.get("STOP") == "between":
        stop_last()
    return fit(
        init(network().model, TX, key), network().step, data, key=jax.random.key(4),
        epochs=EPOCHS, batch_size=61, evaluators={"validation": evaluator(data)},
        log=log, chunk_steps=4,
    )  # fmt: skip


def stop_last() -> None:
    """A signal to the last process, as of a scheduler that wants its machine back."""
    if jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def described(fitted: FitResult) -> dict[str, Any]:
    """The weights as numbers, and the hash of all that is in the state."""
    state = fitted.state._replace(key=jax.random.key_data(fitted.state.key))
    sha256 = hashlib.sha256()
    for a in jax.tree.leaves(state):
        sha256.update(np.asarray(a).tobytes())
    params = [np.asarray(a).tolist() for a in jax.tree.leaves(state.params)]
    return {"params": params, "sha256": sha256.hexdigest()}


def two_trainings(folder: Path, stop: str = "", resume: bool = False) -> dict[str, Any]:
    """One after the other: stopped within the first, or after it, or not at all."""
    os.environ["STOP"] = stop

    def on_epoch(epoch: int, state: TrainState) -> None:
        if stop == "within" and epoch == 2:
            stop_last()

    run, data = None, dataset(DATA)
    try:
        with open_run(
            folder, "together", "quick", Settings(),
            Options(devices="data", save_every=1e9), resume=resume,
        ) as run:  # fmt: skip
            first = train(run, data, name="first", on_epoch=on_epoch)
            second = train(run, data, name="second")
            after = evaluator(data)(second.state)
            run.finish({"loss": after["loss"]})
            return {**described(first), "after": after}
    except Stopped as stopped:
        assert run is not None
        steps = {n: s.checkpoints.steps() for n, s in run.sub_runs.items()}
        return {"code": stopped.exit_code, "steps": steps}


def one_training(folder: Path, devices: Any, data: AnyDataset, **options: Any) -> Any:
    """A run of one training."""
    options_of_run = Options(devices=devices)
    with open_run(folder, "together", "quick", Settings(), options_of_run) as run:
        return described(train(run, data, **options))


def refused(folder: Path, devices: Any, data: AnyDataset, **options: Any) -> str:
    """What is said of a run that does not come to be."""
    try:
        one_training(folder, devices, data, **options)
    except UserError as error:
        return str(error)
    return ""


def damage(step: Path) -> None:
    """Change a byte of the largest file of a checkpoint."""
    path = max(
        (p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def everything(folder: Path) -> dict[str, Any]:
    """All cases, in the processes that there are."""
    number, count = jax.process_index(), jax.process_count()
    source = Rows()
    name = f"of_{count}"
    seen = {
        "devices": jax.device_count(),
        "whole": two_trainings(folder / f"{name}"),
        "replicas": one_training(
            folder / f"{name}_r", "replicas", dataset(DATA), seeds=4
        ),
        "stream": one_training(folder / f"{name}_s", "data", streamed(source)),
        "rows read": source.read,
    }
    if count == 1:
        resumed = [folder / "resumed_alone"]
    else:
        resumed = [folder / "stopped"]
        seen["within"] = two_trainings(resumed[0], "within")
        processes.exchange()
        if processes.is_first():  # what one process goes on with
            shutil.copytree(resumed[0], folder / "resumed_alone")
        seen["between"] = two_trainings(resumed[0], "between", resume=True)
        if processes.is_first():
            damage(resumed[0] / "checkpoints" / "first" / "16")
        other = {**DATA, "y": 1 - Y} if number else DATA
        seen["refused"] = refused(folder / "other", "data", dataset(other))
    seen["resumed"] = two_trainings(resumed[0], resume=True)
    return seen


def main(folder: Path) -> None:
    """Join the other processes, if there are any, and write what was seen.

    In the end the last of several is killed, and the others train on.
    """
    processes.join_processes(10)
    seen = everything(folder)
    count, number = jax.process_count(), jax.process_index()
    (folder / f"seen_{count}_{number}.json").write_text(json.dumps(seen))
    if count == 1:
        return
    processes.exchange()
    if number == count - 1:
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        one_training(folder / "on", "data", dataset(DATA))
    except Exception:
        processes.leave(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
