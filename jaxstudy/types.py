"""The types every module speaks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array  # typed, from jax.random.key
PyTree = Any
Batch = Mapping[str, Array]  # fields [B, ...]; "mask" [B] is 0 where a row is padding


class Mean(NamedTuple):
    """A mean kept as its sum and count, so that parts of any size add up exactly."""

    total: Array
    count: Array


Metrics = Mapping[str, Mean]  # every objective reports at least "loss"


class TrainState(NamedTuple):
    """Everything a step changes, and the key it derives its randomness from.

    The state of replicas has a leading axis L throughout.
    """

    step: Array
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    key: Key


# (params, extra, batch, key) -> (loss, (extra, metrics)); key None means evaluation
Objective = Callable[
    [PyTree, PyTree, Batch, Key | None], tuple[Array, tuple[PyTree, Metrics]]
]
TrainStep = Callable[..., tuple[TrainState, Metrics]]  # (state, batch, *args)
EvalStep = Callable[..., Metrics]  # (state, batch, *args)


class UserError(Exception):
    """Something the user can put right, said in one sentence; exit code 2."""

    exit_code = 2


class Refused(UserError):
    """What the system does not grant, such as a lock that is held; exit code 1."""

    exit_code = 1
