"""A small pair of networks that compete: dense, with dropout and BatchNorm."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.gan.step import init_gan_state, make_gan_eval_step
from jaxstudy.model import Model, from_linen
from jaxstudy.training import Evaluator, FitResult, TrainStep, fit
from jaxstudy.types import Array, Key, TrainState

SHAPE, B = (16, 16, 1), 6
EVALUATION = jax.random.key(99)


class Judge(nn.Module):
    """The discriminator."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dropout(0.4, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(1)(x)[:, 0]


class Painter(nn.Module):
    """The generator."""

    shape: tuple[int, ...] = SHAPE

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(z))
        x = nn.Dense(math.prod(self.shape))(x)
        return nn.sigmoid(x).reshape(-1, *self.shape)


def judge(shape: tuple[int, ...]) -> Model:
    """The discriminator of such images."""
    return from_linen(Judge(), jnp.zeros((1, *shape)))


def painter(shape: tuple[int, ...]) -> Model:
    """The generator of such images."""
    return from_linen(Painter(shape), jnp.zeros((1, 100)))


D, G = judge(SHAPE), painter(SHAPE)
ADAM = optax.adam(1e-3, b1=0.5)
PAIR = D, G, ADAM, ADAM
EVALUATE = make_gan_eval_step(D, G, EVALUATION)


@functools.cache
def pixels(n: int, channels: int = 1) -> np.ndarray:
    """Images of noise."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 16, 16, channels)).astype(np.uint8)


@functools.cache
def rows_of(n: int) -> Dataset:
    """Images with their numbers."""
    return dataset({"x": pixels(n), "row": np.arange(n)})


def train(state: TrainState, key: Key, step: TrainStep, **options: Any) -> FitResult:
    """Two epochs over 14 images: three steps each, the last with padding."""
    return fit(
        state,
        step,
        rows_of(14),
        key=key,
        epochs=2,
        batch_size=B,
        evaluators={"validation": Evaluator(EVALUATE, rows_of(7))},
        evaluate_first=False,
        chunk_steps=3,
        **options,
    )


def train_alone(step: TrainStep, **options: Any) -> FitResult:
    """From one key for the weights, and one for the order."""
    state = init_gan_state(*PAIR, jax.random.key(3))
    return train(state, jax.random.key(4), step, **options)
