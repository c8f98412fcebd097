"""The next word, by a dense layer on the last n words or by a recurrent one."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.model import Model, small_uniform
from jaxstudy.models.mlp import mlp
from jaxstudy.models.recurrent import CELLS, Kind, recurrent
from jaxstudy.types import Array, Key, PyTree

HiddenLayer = Literal["bag", "ordered"] | Kind


def next_word_model(
    hidden: HiddenLayer,
    vocabulary: int,
    *,
    context: int,
    embedding: int,
    units: int,
    dropout: float,
) -> Model:
    """Words x [B, n - 1 + T] to logits [B, T, V] of the word after every n of them.

    Words are numbers below V, or V before a text begins; n is the `context`, and each
    word has a vector of the `embedding`. The hidden layer h [B, T, U] is, with e the
    vectors of the last n words,
    "bag": tanh(W (e_1 + ... + e_n) + b), which does not depend on their order;
    "ordered": tanh(W_1 e_1 + ... + W_n e_n + b);
    else recurrent, with all words of the row up to there.
    """
    n, bag = context, hidden == "bag"
    if hidden in CELLS:
        layer = recurrent(embedding, hidden, (units,))
    else:
        layer = mlp(embedding if bag else n * embedding, (), units)
    output = mlp(units, (), vocabulary)

    def init(key: Key) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key, 3)
        return {
            "table": small_uniform(keys[0], (vocabulary + 1, embedding)),
            "reader": layer.init(keys[1])[0],
            "output": output.init(keys[2])[0],
        }, {}

    def read(table: Array, params: PyTree, x: Array) -> Array:
        if hidden in CELLS:
            (h, _), _ = layer.apply(params, {}, table[x], train=False, key=None)
            return h[:, n - 1 :]
        contexts = x[:, jnp.arange(x.shape[1] - n + 1)[:, None] + jnp.arange(n)]
        if bag:  # in the order of their numbers: sums of floats depend on the order
            e = table[jnp.sort(contexts, -1)].sum(2).reshape(-1, embedding)
        else:
            e = table[contexts].reshape(-1, n * embedding)
        z, _ = layer.apply(params, {}, e, train=False, key=None)
        return jnp.tanh(z).reshape(*contexts.shape[:2], -1)

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        h = read(params["table"], params["reader"], x)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - dropout, h.shape)
            h = jnp.where(kept, h / (1 - dropout), 0)
        # a product of two matrices takes a CPU two thirds of the time of [B, T, U]'s
        flat = h.reshape(-1, units)
        logits, _ = output.apply(params["output"], {}, flat, train=train, key=None)
        return logits.reshape(*h.shape[:2], vocabulary), extra

    return Model(init, apply)


def next_word_probabilities(model: Model, params: PyTree, x: Array) -> np.ndarray:
    """Probabilities [V] of the word after x [1, T]: the mean of params [L, ...]."""

    def probabilities(params: PyTree) -> Array:
        logits, _ = model.apply(params, {}, x, train=False, key=None)
        return jax.nn.softmax(logits[0, -1])

    return np.asarray(jax.vmap(probabilities)(params)).mean(0)
