"""Under jax_enable_x64: the same steps and draws, and what was float32 stays that.

Of a step only the types are asked for, which takes no compiling: a loop, and a choice
by the platform, are refused where these differ.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.random import key as key_of

from jaxstudy import ops
from jaxstudy.dataset import Dataset, dataset, epoch_batches, ordered_batches
from jaxstudy.gan.step import init_gan_state, make_gan_eval_step, make_gan_step
from jaxstudy.images.augment import (
    Flip,
    Rotation,
    Translation,
    Zoom,
    augment_batch,
    augmented,
)
from jaxstudy.model import (
    Model,
    Stages,
    compose,
    sequential,
    standardized,
    with_frozen_backbone,
)
from jaxstudy.models.cnn import cnn
from jaxstudy.models.dcgan import discriminator, generator, sample_latent
from jaxstudy.models.efficientnet import efficientnet_stages
from jaxstudy.models.inception import inception_stages
from jaxstudy.models.mlp import embedding_mlp, mlp
from jaxstudy.models.recurrent import (
    Kind,
    first_states,
    language_model,
    sequence_to_vector,
)
from jaxstudy.models.seq2seq import seq2seq
from jaxstudy.objectives import (
    binary_cross_entropy,
    cross_entropy,
    sequence_cross_entropy,
    squared_error,
)
from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.study.problems import quadratic
from jaxstudy.tabular.columns import Table
from jaxstudy.text.decoding import beam_search, sample
from jaxstudy.training import (
    EvalStep,
    TrainStep,
    evaluate,
    init_state,
    make_eval_step,
    make_train_step,
    run_steps,
)
from jaxstudy.types import Array, Objective, PyTree, TrainState

ADAM = optax.adam(0.01)
ROWS = 5
RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, ROWS)
NUMBERS = RNG.normal(size=(ROWS, 4)).astype(np.float32)
TARGETS = NUMBERS[:, 0]
SEQUENCES = RNG.normal(size=(ROWS, 6, 2)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (ROWS, 6))
IMAGES = RNG.integers(0, 256, (ROWS, 16, 16, 1)).astype(np.uint8)
POOL = efficientnet_stages(include_top=False)[-1]
LAYERS = (Flip("both"), Rotation(0.1), Zoom(0.2), Translation(0.1, 0.1))


class Case(NamedTuple):
    """A model, what it learns by, and the rows it learns from."""

    model: Model
    objective: Objective
    fields: dict[str, np.ndarray]


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


def of_numbers() -> Case:
    model = standardized(mlp(4, (3,), 1), 4)
    return Case(model, binary_cross_entropy(model), {"x": NUMBERS, "y": CLASSES % 2})


def of_categories() -> Case:
    model = embedding_mlp(4, (Table("a", 7, 3, slice(0, 2)),), (3,), 3, dropout=0.5)
    fields = {"x": NUMBERS, "ids": TOKENS[:, :2], "y": CLASSES}
    return Case(model, cross_entropy(model, ("x", "ids")), fields)


def of_images() -> Case:
    model = cnn((16, 16, 1), 3, filters=(2,), dropout=0.5)
    objective = augmented(cross_entropy(model), LAYERS)
    return Case(model, objective, {"x": IMAGES, "y": CLASSES})


def of_stages(stages: Stages, width: int) -> Case:
    """The first stage of a backbone frozen, its second trained."""
    first, second, image = *stages[:2], floats(9, 9, 3)
    frozen = sequential((first,), image)
    shape = jax.eval_shape(
        lambda key, x: frozen.apply(*frozen.init(key), x, train=False, key=None)[0],
        key_of(0), image,
    )  # fmt: skip
    trained = compose(sequential((second, POOL), shape), mlp(width, (), 3))
    model = with_frozen_backbone(frozen, trained)
    x = RNG.normal(size=(ROWS, 9, 9, 3)).astype(np.float32)
    return Case(model, cross_entropy(model), {"x": x, "y": CLASSES})


def of_sequences(kind: Kind, start: Any) -> Case:
    model = sequence_to_vector(2, kind, (3,), 1, start=start)
    return Case(model, squared_error(model), {"x": SEQUENCES, "y": TARGETS})


def of_texts(kind: Kind) -> Case:
    """With states that are carried from batch to batch."""
    plain = language_model(7, kind, (3,), dropout=0.5)
    states = first_states(kind, (3,), ROWS)
    model = Model(lambda key: (plain.init(key)[0], {"states": states}), plain.apply)

    def row_losses(params: PyTree, extra: PyTree, batch: Any, key: Any) -> Any:
        def last(*args: Any, **mode: Any) -> Any:
            logits, after = plain.apply(*args, **mode)
            return logits[:, -1], after

        return cross_entropy(Model(model.init, last))(params, extra, batch, key)

    return Case(model, row_losses, {"x": TOKENS, "y": TOKENS[:, 0]})


def of_pairs(kind: Kind, attention: bool) -> Case:
    made = seq2seq(7, 7, 4, attention=attention, kind=kind, embedding=3, dropout=0.5)
    lengths = np.full(ROWS, 4)
    fields = {"x": TOKENS, "x_length": lengths, "y": TOKENS, "y_length": lengths}
    return Case(made.model, sequence_cross_entropy(made.model, 1), fields)


KINDS = get_args(Kind)
CASES: dict[str, Callable[[], Case]] = {
    "numbers": of_numbers,
    "categories": of_categories,
    "images": of_images,
    "efficientnet": lambda: of_stages(efficientnet_stages(include_top=False), 16),
    "inception": lambda: of_stages(inception_stages(include_top=False), 32),
    **{f"{kind}, keras": lambda k=kind: of_sequences(k, "keras") for kind in KINDS},
    "lstm, flax": lambda: of_sequences("lstm", "flax"),
    **{f"{kind}, texts": lambda k=kind: of_texts(k) for kind in KINDS},
    "gru, pairs": lambda: of_pairs("gru", False),
    **{f"{kind}, attention": lambda k=kind: of_pairs(k, True) for kind in KINDS},
}


def types(tree: PyTree) -> list[Any]:
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def check(
    init: Callable[[Any], TrainState], train: TrainStep, test: EvalStep, fields: Any
) -> None:
    """Two steps as a loop, which changes no type, and the evaluation: no float64."""
    with jax.enable_x64(True):
        data = dataset(fields)
        state = jax.eval_shape(init, key_of(0))

        def program(state: TrainState, data: Dataset) -> Any:
            twice = ordered_batches(data, ROWS)
            twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), twice)
            after, metrics, _ = run_steps(train, state, data.arrays, twice)
            return after, metrics, evaluate(test, after, data, batch_size=ROWS)

        after, *metrics = jax.eval_shape(program, state, data)
        assert types(after) == types(state)
        for dtype in types((state, metrics)):
            assert not jnp.issubdtype(dtype, jnp.floating) or dtype == jnp.float32


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_every_model(name: str) -> None:
    with jax.enable_x64(True):
        model, objective, fields = CASES[name]()
    check(
        lambda key: init_state(model, ADAM, key),
        make_train_step(objective, ADAM), make_eval_step(objective), fields,
    )  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_every_optimizer(name: str) -> None:
    model, objective, fields = of_numbers()
    tx = OPTIMIZERS[name].make(0.01)
    check(
        lambda key: init_state(model, tx, key),
        make_train_step(objective, tx), make_eval_step(objective), fields,
    )  # fmt: skip


def test_a_step_of_the_gan() -> None:
    with jax.enable_x64(True):
        d, g = discriminator((16, 16, 1)), generator((16, 16, 1))
    check(
        lambda key: init_gan_state(d, g, ADAM, ADAM, key),
        make_gan_step(d, g, ADAM, ADAM), make_gan_eval_step(d, g, key_of(1)),
        {"x": IMAGES, "row": np.arange(ROWS)},
    )  # fmt: skip


def test_a_step_on_the_quadratic() -> None:
    with jax.enable_x64(True):
        of = quadratic()
        fields = {name: np.asarray(a)[:ROWS] for name, a in of.train.arrays.items()}
    check(
        lambda key: init_state(of.model, ADAM, key),
        make_train_step(of.objective, ADAM), make_eval_step(of.objective), fields,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_64_bits_go_through_weights_of_32(kind: Kind) -> None:
    with jax.enable_x64(True):
        model = sequence_to_vector(2, kind, (3,), 1)
        for network, x in (
            (model, SEQUENCES.astype(float)),
            (generator((16, 16, 1)), np.ones((2, 100))),
        ):
            params, extra = jax.eval_shape(network.init, key_of(0))

            def total(params: Any, extra: Any, network=network, x=x) -> Array:
                y, _ = network.apply(
                    params, extra, jnp.asarray(x), train=False, key=None
                )
                assert y.dtype == jnp.float64
                return jnp.sum(y)

            gradient = jax.eval_shape(jax.grad(total), params, extra)
            assert set(types(gradient)) == {np.dtype(np.float32)}


def in_both(draw: Callable[[], PyTree]) -> None:
    """The same values of the same types, without 64 bits and with them."""
    want = jax.device_get(jax.jit(draw)())
    with jax.enable_x64(True):
        got = jax.device_get(jax.jit(draw)())
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        if jnp.issubdtype(b.dtype, jnp.floating):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


def next_token(states: Array, token: Array) -> tuple[Array, Array]:
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(7, 7)), jnp.float32)
    return states, weights[token]


DRAWS: dict[str, Callable[[], PyTree]] = {
    "bits": lambda: ops.random_bits(key_of(1), (3, 4)),
    "bits of another generator": lambda: ops.random_bits(key_of(1, impl="rbg"), (5,)),
    "dropout": lambda: ops.dropout(jnp.asarray(NUMBERS), 0.4, key_of(1)),
    "noise": lambda: sample_latent(key_of(1), 2),
    "versions": lambda: augment_batch(key_of(1), jnp.asarray(IMAGES), LAYERS),
    "tokens": lambda: sample(
        next_token, jnp.zeros(3, jnp.float32), jnp.asarray(TOKENS[:3, :2], jnp.int32),
        key_of(1), length=20,
    ),
    "a beam": lambda: beam_search(
        next_token, jnp.zeros(3, jnp.float32), jnp.asarray(TOKENS[:3, 0], jnp.int32),
        width=2, length=5, end=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn(name: str) -> None:
    in_both(DRAWS[name])


@pytest.mark.parametrize("n", [20, 3000])  # both ways to shuffle
def test_the_order_of_an_epoch_with_its_padding(n: int) -> None:
    """In 64 bits, the padding was no longer the last."""

    def visited() -> Any:
        data = replace(dataset({"y": np.arange(n)}), mask=jnp.arange(n) < n - 5)
        return epoch_batches(data, 7, key_of(1), jnp.int32(2))

    in_both(visited)
