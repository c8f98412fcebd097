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


class Standardization(NamedTuple):
    """Column means and standard deviations, [D] each."""

    mean: Array
    scale: Array


def column_statistics(x: Array, valid: Array) -> Standardization:
    """Mean and population standard deviation of every column of x [N, D].

    Only rows whose `valid` [N] is true count. A constant column gets scale 1, so that
    it becomes zero and not NaN; rounding may leave it a variance.
    """
    counts = valid.astype(bool)[:, None]
    weights = counts.astype(x.dtype)
    mean = jnp.sum(x * weights, 0) / jnp.sum(weights)
    variance = jnp.sum(jnp.square(x - mean) * weights, 0) / jnp.sum(weights)
    low = jnp.min(jnp.where(counts, x, jnp.inf), 0)
    high = jnp.max(jnp.where(counts, x, -jnp.inf), 0)
    varies = (low < high) & (variance > 0)
    return Standardization(
        jnp.where(varies, mean, low), jnp.where(varies, jnp.sqrt(variance), 1.0)
    )


def standardized(model: Model, features: int) -> Model:
    """Put `(x - mean) / scale` in front of a model; the statistics live in `extra`.

    So they are saved with the model, and a run that learned them from its training
    rows applies the same ones to every later input. `init` gives mean 0, scale 1;
    replace `extra["standardization"]` by `column_statistics` of the training rows.
    """

    def init(key: Key) -> tuple[PyTree, PyTree]:
        params, extra = model.init(key)
        zeros = jnp.zeros(features, jnp.float32)
        identity = Standardization(zeros, zeros + 1)
        return params, {"standardization": identity, "model": extra}

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        mean, scale = extra["standardization"]
        outputs, inner = model.apply(
            params, extra["model"], (x - mean) / scale, train=train, key=key
        )
        return outputs, {**extra, "model": inner}

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


def with_frozen_backbone(frozen: Model, trained: Model) -> Model:
    """Train one model on the outputs of another that is frozen.

    The parameters are those of `trained` alone, so the frozen weights get neither a
    gradient nor an optimizer state: they live in `extra["frozen"]`, with params and
    extra of their own, and its normalisation uses its stored statistics throughout.
    """

    def init(key: Key) -> tuple[PyTree, PyTree]:
        frozen_key, trained_key = jax.random.split(key)
        params, extra = trained.init(trained_key)
        fixed = dict(zip(("params", "extra"), frozen.init(frozen_key), strict=True))
        return params, {"frozen": fixed, "trained": extra}

    def apply(
        params: PyTree, extra: PyTree, *inputs: Array, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        fixed = extra["frozen"]
        features, _ = frozen.apply(
            fixed["params"], fixed["extra"], *inputs, train=False, key=None
        )
        outputs, inner = trained.apply(
            params, extra["trained"], features, train=train, key=key
        )
        return outputs, {**extra, "trained": inner}

    return Model(init, apply)


def _floats_as(dtype: Any, tree: PyTree) -> PyTree:
    """A tree with its floating-point arrays in this type; all else as it is."""

    def cast(a: Any) -> Any:
        floating = isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jnp.floating)
        return a.astype(dtype) if floating else a

    return jax.tree.map(cast, tree)


def in_bfloat16(model: Model) -> Model:
    """The model with bfloat16 arithmetic: 8 bits of significand, the range of float32.

    Parameters, and what every layer gets, are rounded to bfloat16, so that matrix
    products and convolutions have such operands; outputs are float32 again. What is
    kept between steps stays as it is: parameters, and with them gradients and optimizer
    state, are float32, and so is `extra`. What is computed before the first layer of
    Flax, as the standardization of columns, is not rounded.

    A model within `extra`, as a frozen backbone, is wrapped by itself.
    """

    def rounded(layer: Any, inputs: Any, named_inputs: Any, context: Any) -> Any:
        # a layer computes in the widest type of its inputs and parameters, so one
        # float32 input (pixels / 255) would make float32 of all that follows
        del context
        return layer(
            *_floats_as(jnp.bfloat16, inputs), **_floats_as(jnp.bfloat16, named_inputs)
        )

    def apply(
        params: PyTree, extra: PyTree, *inputs: Array, train: bool, key: Key | None
    ) -> tuple[Any, PyTree]:
        low = _floats_as(jnp.bfloat16, params)
        with nn.intercept_methods(rounded):
            outputs, after = model.apply(low, extra, *inputs, train=train, key=key)
        # a recurrent state comes back as bfloat16: the same program takes it next
        after = jax.tree.map(lambda a, old: a.astype(old.dtype), after, extra)
        return _floats_as(jnp.float32, outputs), after

    return Model(model.init, apply)


def parameter_count(model: Model) -> int:
    """How many numbers a model's gradient has."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def small_uniform(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Between -0.05 and 0.05, as Keras's Embedding starts."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)
