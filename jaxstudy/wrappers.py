"""Models around other models: scaled inputs, a frozen backbone, bfloat16."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstudy.model import Model
from jaxstudy.types import Array, Key, PyTree


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
