"""The encoder-decoder: padding, causality, and decoding as it was trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.dataset import dataset
from jaxstudy.models.seq2seq import Seq2Seq, seq2seq
from jaxstudy.objectives import sequence_cross_entropy
from jaxstudy.text.decoding import beam_search
from jaxstudy.training import (
    Evaluator,
    fit,
    init_state,
    make_eval_step,
    make_train_step,
)
from tests.conftest import assert_rounding

KINDS: list[dict[str, Any]] = [
    {"attention": True, "layers": 2},
    {"attention": False},
    {"attention": True, "kind": "gru"},
]
END = 1


@pytest.fixture(scope="module", params=KINDS, ids=str)
def network(request: pytest.FixtureRequest) -> tuple[Seq2Seq, Any]:
    made = seq2seq(9, 7, 16, embedding=8, **request.param)
    params, _ = jax.jit(made.model.init)(jax.random.key(0))
    # Keras's embeddings start so small that all sources look alike
    return made, jax.tree.map(lambda a: 3 * a, params)


def batch(rows: int, source: int, target: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (rows, source))
    tokens = rng.integers(2, 7, (rows, target))
    return jnp.asarray(x), jnp.asarray(rng.integers(2, source + 1, rows)), tokens


def logits_of(network: Any, x: Any, lengths: Any, tokens: Any) -> Any:
    made, params = network
    apply = jax.jit(lambda *inputs: made.model.apply(
        params, {}, *inputs, train=False, key=None)[0])  # fmt: skip
    return apply(x, lengths, jnp.asarray(tokens))


def test_padding_of_the_source_changes_nothing(network: Any) -> None:
    """What it holds, no bit; how much of it there is, the program."""
    x, lengths, tokens = batch(4, 5, 6)
    want = logits_of(network, x, lengths, tokens)
    other = jnp.where(jnp.arange(5) < lengths[:, None], x, 3)
    np.testing.assert_array_equal(logits_of(network, other, lengths, tokens), want)
    longer = jnp.concatenate([x, jnp.full((4, 3), 8)], axis=1)
    # sums of up to 48 products, a dozen after one another
    assert_rounding(logits_of(network, longer, lengths, tokens), want, 64)


def test_every_symbol_of_the_source_is_heard(network: Any) -> None:
    made, params = network
    x, _, tokens = batch(3, 5, 4)

    def last(table: Any) -> Any:
        changed = {**params["encoder"], "embedding": {"embedding": table}}
        return made.model.apply(
            {**params, "encoder": changed}, {}, x[:1], jnp.array([5]), tokens[:1],
            train=False, key=None,
        )[0].sum()  # fmt: skip

    heard = jnp.abs(jax.grad(last)(params["encoder"]["embedding"]["embedding"])).sum(1)
    said = set(np.asarray(x[0]).tolist())
    assert set(np.flatnonzero(np.asarray(heard)).tolist()) == said


def test_no_logit_depends_on_later_tokens(network: Any) -> None:
    x, lengths, tokens = batch(2, 5, 6)
    want = logits_of(network, x, lengths, tokens)
    changed = tokens.copy()
    changed[:, 3] = 7 - changed[:, 3]
    got = logits_of(network, x, lengths, changed)
    np.testing.assert_array_equal(got[:, :3], want[:, :3])
    assert np.abs(np.asarray(got - want)[:, 3:]).max(axis=(0, 2)).min() > 0


def test_step_by_step_is_teacher_forcing(network: Any) -> None:
    made, params = network
    x, lengths, tokens = batch(4, 5, 6)
    memory, step = made.encode(params, x, lengths), jax.jit(made.step(params))
    for at, want in enumerate(logits_of(network, x, lengths, tokens).swapaxes(0, 1)):
        memory, got = step(memory, jnp.asarray(tokens[:, at]))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_attention_is_a_share_of_the_real_source(network: Any) -> None:
    made, params = network
    x, lengths, tokens = batch(4, 5, 6)
    memory = made.encode(params, x, lengths)
    _, _, weights = made.decode(params, memory, jnp.asarray(tokens))
    padding = jnp.arange(5) >= lengths[:, None]
    assert np.all(
        np.asarray(weights)[np.broadcast_to(padding[:, None], (4, 6, 5))] == 0
    )
    if "keys" in params["decoder"]:
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    else:
        assert not weights.any()


def test_it_learns_to_turn_a_sequence_round_and_exact_match_is_greedy_s() -> None:
    """Three symbols reversed: with attention, in a few steps; lengths differ."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 400)
    x, y = np.zeros((400, 4), int), np.full((400, 5), END)
    for row, length in enumerate(lengths):
        x[row, :length] = symbols = rng.integers(2, 7, length)
        y[row, :length] = symbols[::-1]
    data = dataset({"x": x, "x_length": lengths, "y": y, "y_length": lengths + 1})
    made = seq2seq(7, 7, 32, attention=True, embedding=16)
    objective = sequence_cross_entropy(made.model, END)
    optimizer = optax.adam(0.01)
    state = init_state(made.model, optimizer, jax.random.key(0))
    fitted = fit(
        state,
        make_train_step(objective, optimizer),
        data,
        key=jax.random.key(1),
        epochs=12,
        batch_size=50,
    )
    found = Evaluator(make_eval_step(objective), data)(fitted.state)
    assert found["exact match"] > 0.5

    params = fitted.state.params
    memory = made.encode(params, jnp.asarray(x), jnp.asarray(lengths))
    first = jnp.full(400, END)
    beams = jax.jit(lambda memory: beam_search(
        made.step(params), memory, first, width=1, length=5, end=END))  # fmt: skip
    exact = np.all(np.asarray(beams(memory).tokens[:, 0]) == y, axis=1).mean()
    assert exact == pytest.approx(found["exact match"], abs=0.005)
