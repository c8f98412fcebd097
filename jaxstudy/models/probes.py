"""What happens inside a dense network: gradients by layer, dead units, its affine map.

"hidden_1" is the layer next to the input, as `mlp` names it.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.model import Model
from jaxstudy.types import Array, Batch, Mean, Metrics, Objective, PyTree, TrainState


def gradient_norms(objective: Objective, state: TrainState, batch: Batch) -> Metrics:
    """The objective's metrics, and the gradient's norm of each layer's weights."""
    grads, (_, metrics) = jax.grad(objective, has_aux=True)(
        state.params, state.extra, batch, None
    )
    norms = {
        f"gradient norm {name}": Mean(jnp.linalg.norm(g["kernel"]), jnp.float32(1))
        for name, g in grads.items()
    }
    return {**metrics, **norms}


def dead_share(z: Array, activation: Callable[[Array], Array]) -> Mean:
    """The share of units of z [layers, B, units] that are dead.

    The slope of the activation is under 1e-3 on every row: nothing that such a unit did
    wrong can reach its weights.
    """
    _, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
    dead = jnp.sum(jnp.all(jnp.abs(slope) < 1e-3, axis=1), dtype=jnp.float32)
    return Mean(dead, jnp.float32(z.shape[0] * z.shape[2]))


class GradientFall(NamedTuple):
    """How the weight gradient changes from layer to layer, on its way down: [...].

    factor: by what it is multiplied at each layer, exp(-b) for the slope b of the line
    through the logarithms by least squares. straightness: the share of the variance of
    the logarithms over the layers that this line explains (R^2).
    """

    factor: np.ndarray
    straightness: np.ndarray


def gradient_fall(norms: np.ndarray) -> GradientFall:
    """Of norms [layers, ...], the first layer first, two layers or more."""
    logs, layer = np.log(norms).reshape(len(norms), -1), np.arange(len(norms))
    slope, middle = np.polyfit(layer, logs, 1)
    rest = logs - np.outer(layer, slope) - middle
    explained = 1 - np.var(rest, 0) / np.var(logs, 0)
    shape = norms.shape[1:]
    return GradientFall(np.exp(-slope).reshape(shape), explained.reshape(shape))


def he_scales(params: Mapping[str, PyTree]) -> dict[str, float]:
    """What hidden kernels of Glorot's initialisation are multiplied by to be He's.

    Glorot draws with the variance 2 / (inputs + outputs), He with 2 / inputs, so it is
    the root of (inputs + outputs) / inputs; 1 for the output layer, which no ReLU
    follows.
    """
    inputs_outputs = {
        name: layer["kernel"].shape[-2:] for name, layer in params.items()
    }
    return {
        name: 1.0 if name == "output" else math.sqrt((inputs + outputs) / inputs)
        for name, (inputs, outputs) in inputs_outputs.items()
    }


def affine_map(params: Mapping[str, PyTree]) -> tuple[np.ndarray, np.ndarray]:
    """W [D, outputs] and b of the dense layers without their activations, in order."""
    order = sorted(params, key=lambda name: (name == "output", len(name), name))
    kernels, biases = ([params[n][k] for n in order] for k in ("kernel", "bias"))
    w, b = np.asarray(kernels[0]), np.asarray(biases[0])
    for kernel, bias in zip(kernels[1:], biases[1:], strict=True):
        w, b = w @ kernel, b @ kernel + bias
    return w, b


def affine_difference(
    model: Model, params: Mapping[str, PyTree], x: Array | np.ndarray
) -> float:
    """max |model(x) - (x W + b)|, in float64, of a dense network without activations.

    W and b come of the layers' own, one product after the other.
    """
    w, b = affine_map(params)
    with jax.enable_x64(True):
        logits, _ = model.apply(params, {}, x, train=False, key=None)
        return float(np.abs(np.asarray(logits) - (x @ w + b)).max())
