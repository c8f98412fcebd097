"""A model as two pure functions, and the one seam to Flax."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy.messages import did_you_mean
from jaxstudy.types import Array, Key, PyTree, UserError


class Model(NamedTuple):
    """A network as two pure functions.

    `init(key) -> (params, extra)`;
    `apply(params, extra, *inputs, train, key) -> (outputs, extra)`.
    `extra` is what changes without a gradient: normalisation statistics, carried
    recurrent state. `key` feeds dropout; evaluation passes None.
    """

    init: Callable[[Key], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree]]


def from_linen(
    module: nn.Module, *example: Array | jax.ShapeDtypeStruct, capture: bool = False
) -> Model:
    """Wrap a linen module whose `__call__` takes `(*inputs, train)`.

    With `capture`, outputs become `(outputs, values)`, where `values` is the
    collection "intermediates" that the module has sown.
    """
    inputs = [jnp.zeros(a.shape, a.dtype) for a in example]

    def init(key: Key) -> tuple[PyTree, PyTree]:
        variables = dict(module.init({"params": key}, *inputs, train=False))
        variables.pop("intermediates", None)
        params = variables.pop("params", {})
        return params, variables

    def apply(
        params: PyTree, extra: PyTree, *inputs: Array, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        outputs, changed = module.apply(
            {"params": params, **extra},
            *inputs,
            train=train,
            rngs=None if key is None else {"dropout": key},
            mutable=[*(extra if train else ()), *(["intermediates"] * capture)],
        )
        changed = dict(changed)
        values = changed.pop("intermediates", {})
        return ((outputs, values) if capture else outputs), {**extra, **changed}

    return Model(init, apply)


class Stage(NamedTuple):
    """A named step of a network: `make(name=...)` is a linen module (x, train) -> x."""

    name: str
    make: Callable[..., nn.Module]


Stages = tuple[Stage, ...]


class _Sequence(nn.Module):
    stages: Stages

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for name, make in self.stages:
            x = make(name=name)(x, train)
        return x


def sequential(stages: Stages, example: Array | jax.ShapeDtypeStruct) -> Model:
    """The stages one after the other: params and extra hold a dict by stage name.

    A part of a network is the model of a part of its stages, with the same weights.
    """
    return from_linen(_Sequence(tuple(stages)), example)


def split_stages(stages: Stages, name: str) -> tuple[Stages, Stages]:
    """The stages before the one of this name, and those from it on.

    Raises UserError, naming the nearest, where there is none of this name.
    """
    names = [stage.name for stage in stages]
    if name not in names:
        hint = did_you_mean(name, names)
        raise UserError(f"no layer {name!r} among {', '.join(names)}{hint}")
    return stages[: names.index(name)], stages[names.index(name) :]


def compose(first: Model, second: Model) -> Model:
    """The second model on the outputs of the first; both are trained.

    Params and extra are {"first", "second"}.
    """

    def init(key: Key) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key)
        parts = [m.init(k) for m, k in zip((first, second), keys, strict=True)]
        (params, extra), (more, other) = parts
        return {"first": params, "second": more}, {"first": extra, "second": other}

    def apply(
        params: PyTree, extra: PyTree, *inputs: Array, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        keys = (None, None) if key is None else jax.random.split(key)
        hidden, before = first.apply(
            params["first"], extra["first"], *inputs, train=train, key=keys[0]
        )
        outputs, after = second.apply(
            params["second"], extra["second"], hidden, train=train, key=keys[1]
        )
        return outputs, {"first": before, "second": after}

    return Model(init, apply)


def parameter_count(model: Model) -> int:
    """How many numbers a model's gradient has."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def small_uniform(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Between -0.05 and 0.05, as Keras's Embedding starts."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)
