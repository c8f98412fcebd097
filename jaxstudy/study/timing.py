"""How long gradient steps take."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.dataset import BatchIndices, Dataset, gather
from jaxstudy.training import TrainStep
from jaxstudy.types import TrainState


def seconds_of_steps(
    train_step: TrainStep,
    state: TrainState,
    data: Dataset,
    *,
    batch_size: int,
    arms: int,
    turns: int = 20,
) -> np.ndarray:
    """What a step of each arm takes, [turns, arms].

    The arms take turns: other load slows all of them alike.

    Args:
        train_step: takes a state, a batch and the number of the arm.
        state: of one training; every step begins with it.
        data: its first rows are the batch, repeated where there are too few.
        batch_size: rows in the batch.
        arms: how many there are.
        turns: steps of each arm; one before them warms up.
    """
    rows = jnp.resize(data.indices.ravel(), (batch_size,))
    batch = gather(data.arrays, BatchIndices(rows, jnp.ones(batch_size, bool)))
    step = jax.jit(train_step).lower(state, batch, jnp.int32(0)).compile()
    times = [time.perf_counter()]
    for turn in range((1 + turns) * arms):
        jax.block_until_ready(step(state, batch, jnp.int32(turn % arms)))
        times.append(time.perf_counter())
    return np.diff(times).reshape(-1, arms)[1:]
