"""The adding problem, and what recurrent networks keep of its first marked number."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.dataset import Dataset, dataset
from jaxstudy.model import Model
from jaxstudy.objectives import masked_mean
from jaxstudy.training import EvalStep
from jaxstudy.types import Array, Batch, Metrics, PyTree, TrainState


def adding_problem(count: int, length: int, seed: int) -> Dataset:
    """x [N, T, 2]: numbers between 0 and 1, and marks; y [N]: the sum of the marked.

    One mark is in the first half of the steps, one in the second. Always predicting 1
    has a squared error of 1/6, the variance of the sum. Source: Hochreiter and
    Schmidhuber 1997, as Le, Jaitly and Hinton have it, arXiv:1504.00941.
    """
    rng = np.random.default_rng((seed, length))
    numbers = rng.uniform(0, 1, (count, length))
    marks = np.zeros((count, length))
    half = length // 2
    for place in (rng.integers(0, half, count), rng.integers(half, length, count)):
        marks[np.arange(count), place] = 1
    x = np.stack([numbers, marks], axis=-1).astype(np.float32)
    return dataset({"x": x, "y": (numbers * marks).sum(1).astype(np.float32)})


def error_by_first_mark(model: Model, bins: int) -> EvalStep:
    """The squared error of `adding_problem`, and that by the step of the first mark.

    Metrics: loss, and "bin 0", ... of equal parts of the first half of the steps.
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        x = batch["x"]
        outputs, _ = model.apply(state.params, {}, x, train=False, key=None)
        error, first = jnp.square(outputs - batch["y"]), jnp.argmax(x[..., 1], 1)
        bin_of = first * bins // (x.shape[1] // 2)
        metrics = {"loss": masked_mean(error, batch["mask"])}
        for i in range(bins):
            own = (bin_of == i) * batch["mask"]
            metrics[f"bin {i}"] = masked_mean(error, own)
        return metrics

    return eval_step


def input_jacobian_norms(
    model: Model, state: TrainState, x: Array | np.ndarray
) -> np.ndarray:
    """Mean norm of d output / d x_t over sequences x [N, T, D]: [L, T].

    For each of the replicas L of a model whose output is one number a sequence.
    """

    def output(x: Array, params: PyTree) -> Array:
        return jnp.sum(model.apply(params, {}, x, train=False, key=None)[0])

    def norms(params: PyTree) -> Array:
        return jnp.linalg.norm(jax.grad(output)(x, params), axis=-1).mean(0)

    return np.asarray(jax.jit(lambda params: jax.lax.map(norms, params))(state.params))


def with_forget_bias(state: TrainState, value: float) -> TrainState:
    """An LSTM of `sequence_to_vector` whose forget gates have this bias.

    At sigmoid(value) of its cell a step, (sigmoid(value))^k of it is left after k
    steps. Source: Gers et al. 2000; Jozefowicz et al. 2015, section 5.
    """

    def changed(layer: dict[str, Array]) -> dict[str, Array]:
        units = layer["bias"].shape[-1] // 4  # of the gates i, f, g, o
        bias = layer["bias"].at[..., units : 2 * units].set(value)
        return {**layer, "bias": bias}

    layers = {name: changed(layer) for name, layer in state.params["layers"].items()}
    return state._replace(params={**state.params, "layers": layers})
