"""What happens inside a dense network: gradients by layer, dead units, its affine map.

"hidden_1" is the layer next to the input, as `mlp` names it.
"""

from collections.abc import Callable, Mapping

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


def gradient_factors(norms: np.ndarray) -> np.ndarray:
    """By what the weight gradient changes per layer on its way down: [...].

    exp(-b) for the slope b of the line through log norms [layers, ...], the first layer
    first, by least squares.
    """
    logs = np.log(norms).reshape(len(norms), -1)
    slope = np.polyfit(np.arange(len(norms)), logs, 1)[0]
    return np.exp(-slope).reshape(norms.shape[1:])


def affine_map(params: Mapping[str, PyTree]) -> tuple[np.ndarray, np.ndarray]:
    """W [D, outputs] and b of the dense layers without their activations, in order."""
    order = sorted(params, key=lambda name: (name == "output", len(name), name))
    kernels, biases = ([params[n][k] for n in order] for k in ("kernel", "bias"))
    w, b = np.asarray(kernels[0]), np.asarray(biases[0])
    for kernel, bias in zip(kernels[1:], biases[1:], strict=True):
        w, b = w @ kernel, b @ kernel + bias
    return w, b


def affine_difference(model: Model, params: Mapping[str, PyTree], x: Array) -> float:
    """max |model(x) - (x W + b)|, in float64, of a dense network without activations.

    W and b come of the layers' own, one product after the other.
    """
    w, b = affine_map(params)
    with jax.enable_x64(True):
        logits, _ = model.apply(params, {}, x, train=False, key=None)
        return float(np.abs(np.asarray(logits) - (x @ w + b)).max())
