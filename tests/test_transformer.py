"""The transformer: equal to its equations in numpy, and causal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from jaxstudy.model import Model
from jaxstudy.models.transformer import transformer
from jaxstudy.types import Array, PyTree

LENGTH, HEADS = 6, 2
Tree = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained() -> tuple[Model, PyTree]:
    """A model whose weights are large, so that attention is not nearly even."""
    model = transformer(11, 10, LENGTH, width=8, heads=HEADS, blocks=2)
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    assert extra == {}
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=a.shape).astype(np.float32) for a in leaves]
    return model, jax.tree.unflatten(structure, drawn)


def symbols(rows: int, length: int = LENGTH) -> Array:
    return jax.random.randint(jax.random.key(1), (rows, length), 0, 11)


def norm(h: np.ndarray, p: Tree) -> np.ndarray:
    apart = h - h.mean(-1, keepdims=True)
    scale = np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-6)
    return apart / scale * p["scale"] + p["bias"]


def dense(h: np.ndarray, p: Tree) -> np.ndarray:
    return h @ p["kernel"] + p["bias"]


def by_hand(params: PyTree, x: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one row, place by place."""
    h = params["symbols"]["embedding"][x] + params["places"][: len(x)]
    size = h.shape[1] // HEADS
    for block in (params["block_1"], params["block_2"]):
        q, k, v = np.split(dense(norm(h, block["norm_1"]), block["qkv"]), 3, axis=-1)
        mixed = np.zeros_like(h)
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            for t in range(len(x)):
                scores = k[: t + 1, own] @ q[t, own] / np.sqrt(size)
                mixed[t, own] = softmax(scores) @ v[: t + 1, own]
        h = h + dense(mixed, block["out"])
        z = dense(norm(h, block["norm_2"]), block["mlp_1"])
        h = h + dense(z * (1 + erf(z / np.sqrt(2))) / 2, block["mlp_2"])
    return dense(norm(h, params["norm"]), params["logits"])


@pytest.mark.parametrize("length", [LENGTH, 4])
def test_equals_a_hand_computation(trained: tuple[Model, PyTree], length: int) -> None:
    model, params = trained
    x = symbols(2, length)
    apply = jax.jit(lambda p: model.apply(p, {}, x, train=False, key=None)[0])
    got = apply(params)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    want = np.stack([by_hand(exact, np.asarray(row)) for row in x])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_no_logit_depends_on_later_symbols(trained: tuple[Model, PyTree]) -> None:
    """The gradient by the vectors at later places is exactly 0, by others it is not."""
    model, params = trained
    x = symbols(1)

    def logits(places: Array) -> Array:
        """The vectors of places are added where the symbols' are: the same gradient."""
        y, _ = model.apply({**params, "places": places}, {}, x, train=False, key=None)
        return jnp.sum(y[0] ** 2, -1)

    gradient = np.abs(jax.jit(jax.jacobian(logits))(params["places"])).max(-1)
    assert gradient.shape == (LENGTH, LENGTH)  # of logits at t, by the vector at s
    np.testing.assert_array_equal(np.triu(gradient, 1), 0)
    assert np.tril(gradient)[np.tril_indices(LENGTH)].min() > 0
