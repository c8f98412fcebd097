"""The smallest experiment: 3 steps an epoch, each epoch a chunk with a checkpoint."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy.dataset import Dataset, dataset, subset
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import squared_error
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.training import (
    Evaluator,
    FitResult,
    TrainStep,
    fit,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Batch, Key, Metrics, PyTree, TrainState

PER_EPOCH = 3


@dataclass(frozen=True)
class Config(Settings):
    """What a test may vary."""

    epochs: Count = 4
    """Epochs of 3 steps."""
    rate: Positive = 0.05
    """Learning rate."""
    hidden: Count = 4
    """Width of the hidden layer."""
    parts: Count = 1
    """Trainings, one after the other."""
    kind: Literal["plain", "noisy"] = "plain"
    """Whether the inputs get noise, so that the key of the state matters."""
    spins: int = 0
    """Iterations of nothing within each step: a compiled program that takes long."""


PRESETS = {
    "smoke": Config(epochs=2),
    "quick": Config(),
    "full": Config(epochs=40),
}


class Work(NamedTuple):
    """What a training is made of."""

    first: Callable[[Key], TrainState]
    step: TrainStep
    data: Dataset
    evaluators: dict[str, Evaluator]


@functools.cache
def work(hidden: int, rate: float, kind: str, spins: int) -> Work:
    """A line through 24 points. The same functions each time, so they compile once."""
    x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    data = dataset({"x": x, "y": x @ np.array([1, -2], np.float32)})
    model, tx = mlp(2, (hidden,), 1), optax.adam(rate)
    error = squared_error(model)

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        if kind == "noisy" and key is not None:
            noise = jax.random.normal(key, batch["x"].shape)
            batch = {**batch, "x": batch["x"] + 0.1 * noise}
        if spins:
            spun = jax.lax.fori_loop(
                0, spins, lambda _, v: jnp.sin(v), jnp.sum(batch["x"])
            )
            batch = {**batch, "y": batch["y"] + 1e-9 * spun}
        return error(params, extra, batch, key)

    held_out = Evaluator(make_eval_step(error), subset(data, range(24, 32)))
    return Work(
        jax.jit(lambda key: init_state(model, tx, key)),
        make_train_step(objective, tx),
        subset(data, range(24)),
        {"validation": held_out},
    )


def train(run: Run, config: Config, name: str = "", seed: int = 0) -> FitResult:
    """Fit the line, every epoch a chunk."""
    key, order = jax.random.split(jax.random.key(config.seed + seed))
    first, step, data, evaluators = work(
        config.hidden, config.rate, config.kind, config.spins
    )
    return fit(
        first(key),
        step,
        data,
        key=order,
        epochs=config.epochs,
        batch_size=8,
        evaluators=evaluators,
        chunk_steps=PER_EPOCH,
        log=run.sub_run(name),
    )


def main(config: Config, run: Run) -> dict[str, float]:
    """Every part's last training loss."""
    losses = {}
    for i in range(config.parts):
        rows = train(run, config, f"part{i}" if config.parts > 1 else "", i).records
        losses[f"loss {i}"] = [r["loss"] for r in rows if r["split"] == "train"][-1]
    return losses


def weights_like(config: Config) -> PyTree:
    """The shapes of the weights."""
    init = mlp(2, (config.hidden,), 1).init
    shapes = jax.eval_shape(init, jax.random.key(0))
    return dict(zip(("params", "extra"), shapes, strict=True))


def predict(saved: Saved[Config], point: tuple[float, float]) -> None:
    """The line at X1 X2."""
    model = mlp(2, (saved.config.hidden,), 1)
    weights = saved.weights(weights_like(saved.config))
    y, _ = model.apply(
        weights["params"], weights["extra"], jnp.array([point]), train=False, key=None
    )
    print(f"predicted {float(y[0]):.9g}")


if __name__ == "__main__":
    experiment(main, PRESETS, predict=predict)
