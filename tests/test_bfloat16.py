"""Models in bfloat16: what is computed in it, what is kept in float32, how near."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.model import Model, Standardization, in_bfloat16, standardized
from jaxstudy.models import dcgan, recurrent
from jaxstudy.models.cnn import cnn
from jaxstudy.models.mlp import mlp
from jaxstudy.models.transformer import transformer
from jaxstudy.types import Array, PyTree

IMAGES = (8, 8, 1)
EPSILON = 2.0**-8  # half the distance of 1 to the next bfloat16: the largest rounding
PRODUCTS = ("dot_general", "conv_general_dilated")
key = jax.random.key(0)


class Case(NamedTuple):
    """A model, its input, and how many layers one after the other round."""

    make: Callable[[], Model]
    x: Callable[[], Array]
    layers: int


def tokens() -> Array:
    return jax.random.randint(key, (4, 6), 0, 9)


def carried() -> Model:
    model = recurrent.language_model(9, "lstm", (8,))
    return recurrent.carry_states(model, recurrent.first_states("lstm", (8,), 4), 0.5)


CASES = {
    "MLP": Case(
        lambda: standardized(mlp(5, (16,), 3), 5),
        lambda: jax.random.normal(key, (8, 5)),
        2,
    ),
    "CNN": Case(
        lambda: cnn(IMAGES, 3, filters=(4,), hidden=(8,), norm=True, dropout=0.5),
        lambda: jax.random.randint(key, (4, *IMAGES), 0, 256).astype(jnp.uint8),
        4,
    ),
    "language model": Case(carried, tokens, 8),
    "transformer": Case(
        lambda: transformer(9, 9, 6, width=8, heads=2, blocks=1), tokens, 8
    ),
    "generator": Case(
        lambda: dcgan.generator((16, 16, 1)), lambda: dcgan.sample_latent(key, 2), 8
    ),
}


def weights(model: Model) -> tuple[PyTree, PyTree]:
    """Random params that keep what the layers give near 1; extra all ones."""
    random = np.random.default_rng(0)

    def draw(a: Any) -> Array:
        inputs = np.prod(a.shape[:-1]) if len(a.shape) > 1 else 16
        return jnp.asarray(random.normal(0, inputs**-0.5, a.shape), a.dtype)

    params, extra = jax.eval_shape(model.init, key)
    ones = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), extra)
    return jax.tree.map(draw, params), ones


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program, those of its loops, branches and functions as well."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda a: hasattr(a, "eqns") or hasattr(a, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def operand_types(jaxpr: Any) -> set[str]:
    return {
        str(operand.aval.dtype)
        for equation in equations(jaxpr)
        if equation.primitive.name in PRODUCTS
        for operand in equation.invars
    }


def loss(model: Model, extra: PyTree, x: Array) -> Callable[[PyTree], Any]:
    """The mean of -log softmax of class 0, or of one output; and the outputs."""

    def of(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        y, after = model.apply(params, extra, x, train=True, key=key)
        losses = -jax.nn.log_softmax(y)[..., 0] if y.shape[-1] > 1 else jnp.square(y)
        return losses.mean(), (y, after)

    return of


def types(tree: PyTree) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", CASES)
def test_products_are_of_bfloat16_and_what_is_kept_of_float32(name: str) -> None:
    case = CASES[name]
    model, x = case.make(), case.x()
    low = in_bfloat16(model)
    params, extra = weights(low)
    assert types(params) == {"float32"}
    step = jax.value_and_grad(loss(low, extra, x), has_aux=True)
    jaxpr, ((value, (y, after)), gradient) = jax.make_jaxpr(step, return_shape=True)(
        params
    )
    assert operand_types(jaxpr) == {"bfloat16"}  # of the forward and the backward pass
    tx = optax.adam(1e-3)
    state = jax.eval_shape(tx.init, params)
    updates, state = jax.eval_shape(tx.update, gradient, state, params)
    assert types((value, y, gradient, updates)) == {"float32"}
    assert types(state) == {"float32", "int32"}
    kept = [jax.tree.map(lambda a: a.dtype, tree) for tree in (after, extra)]
    assert kept[0] == kept[1]

    @jax.jit
    def both(params: PyTree) -> Any:
        return loss(low, extra, x)(params), loss(model, extra, x)(params)

    (value, (y, after)), (want, (want_y, want_after)) = both(params)
    # A layer rounds its inputs, its weights and its outputs, each by EPSILON at most of
    # what is about 1. The signs vary: roundings add up as their squares do.
    bound = 2 * EPSILON * np.sqrt(3 * case.layers)
    pairs = zip(*map(jax.tree.leaves, ((y, after), (want_y, want_after))), strict=True)
    for a, b in pairs:
        error, size = float(jnp.abs(a - b).max()), float(jnp.abs(b).max())
        assert error < bound * size
    # a cross entropy moves by twice the largest change of the logits at most
    size = max(1.0, float(jnp.abs(want_y).max()))
    assert 0 < abs(float(value - want)) < 2 * bound * size**2


def test_columns_are_standardized_before_they_are_rounded() -> None:
    model = in_bfloat16(standardized(mlp(1, (), 1), 1))
    params = {"output": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}
    statistics = Standardization(jnp.array([700.0]), jnp.array([1.0]))
    extra = {"standardization": statistics, "model": {}}
    y, _ = model.apply(params, extra, jnp.array([[701.5]]), train=False, key=None)
    assert y == 1.5  # 701.5 itself would be 700 or 704
