"""The encoder-decoder: padding, causality, and decoding as it was trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    {"attention": False, "kind": "gru"},
]
END = 1


RNG = np.random.default_rng(0)
X, TOKENS = jnp.asarray(RNG.integers(1, 9, (4, 5))), RNG.integers(2, 7, (4, 6))
LENGTHS = jnp.asarray(RNG.integers(2, 6, 4))


class Network(NamedTuple):
    """An encoder-decoder, its weights, and logits(x, lengths, tokens), compiled."""

    network: Seq2Seq
    params: Any
    logits: Callable[..., Any]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def made(request: pytest.FixtureRequest) -> Network:
    network = seq2seq(9, 7, 16, embedding=8, **request.param)
    params, _ = jax.jit(network.model.init)(jax.random.key(0))
    # Keras's embeddings start so small that all sources look alike
    params = jax.tree.map(lambda a: 3 * a, params)
    apply = network.model.apply
    logits = jax.jit(lambda *x: apply(params, {}, *x, train=False, key=None)[0])
    return Network(network, params, logits)


def test_padding_of_the_source_changes_nothing(made: Network) -> None:
    """What it holds, no bit; how much of it there is, the program."""
    want = made.logits(X, LENGTHS, TOKENS)
    other = jnp.where(jnp.arange(5) < LENGTHS[:, None], X, 3)
    np.testing.assert_array_equal(made.logits(other, LENGTHS, TOKENS), want)
    longer = jnp.concatenate([X, jnp.full((4, 3), 8)], axis=1)
    # sums of up to 48 products, a dozen after one another
    assert_rounding(made.logits(longer, LENGTHS, TOKENS), want, 64)


def test_every_symbol_of_the_source_is_heard(made: Network) -> None:
    apply, encoder = made.network.model.apply, made.params["encoder"]

    @jax.jit
    @jax.grad
    def gradient(table: Any) -> Any:
        changed = {**encoder, "embedding": {"embedding": table}}
        params = {**made.params, "encoder": changed}
        inputs = X[:1], jnp.array([5]), TOKENS[:1]
        return apply(params, {}, *inputs, train=False, key=None)[0].sum()

    heard = np.abs(gradient(encoder["embedding"]["embedding"])).sum(1)
    assert set(np.flatnonzero(heard).tolist()) == set(np.asarray(X[0]).tolist())


def test_no_logit_depends_on_later_tokens(made: Network) -> None:
    want, changed = made.logits(X, LENGTHS, TOKENS), TOKENS.copy()
    changed[:, 3] = 7 - changed[:, 3]
    got = made.logits(X, LENGTHS, changed)
    np.testing.assert_array_equal(got[:, :3], want[:, :3])
    assert np.abs(np.asarray(got - want)[:, 3:]).max(axis=(0, 2)).min() > 0


def test_step_by_step_is_teacher_forcing(made: Network) -> None:
    """And attention is a share of the real source."""
    memory = first = jax.jit(made.network.encode)(made.params, X, LENGTHS)
    step = jax.jit(made.network.step(made.params))
    teacher_forced = made.logits(X, LENGTHS, TOKENS)
    for t, want in enumerate(teacher_forced.swapaxes(0, 1)):
        memory, got = step(memory, jnp.asarray(TOKENS[:, t]))
        np.testing.assert_allclose(got, want, atol=1e-5)
    _, _, weights = jax.jit(made.network.decode)(made.params, first, TOKENS)
    padding = np.arange(5) >= LENGTHS[:, None]
    assert not np.asarray(weights).swapaxes(1, 2)[padding].any()
    sums = 1 if "keys" in made.params["decoder"] else 0
    np.testing.assert_allclose(weights.sum(-1), sums, rtol=1e-6)


def test_it_learns_to_turn_a_sequence_round_and_exact_match_is_greedy_s() -> None:
    """Three symbols reversed: with attention, in a few steps; lengths differ."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 400)
    x, y = np.zeros((400, 4), int), np.full((400, 5), END)
    for row, length in enumerate(lengths):
        x[row, :length] = symbols = rng.integers(2, 7, length)
        y[row, :length] = symbols[::-1]
    data = dataset({"x": x, "x_length": lengths, "y": y, "y_length": lengths + 1})
    network = seq2seq(7, 7, 32, attention=True, embedding=16)
    objective = sequence_cross_entropy(network.model, END)
    optimizer = optax.adam(0.01)
    state = init_state(network.model, optimizer, jax.random.key(0))
    fitted = fit(
        state, make_train_step(objective, optimizer), data,
        batch_size=50, epochs=12, key=jax.random.key(1),
    )  # fmt: skip
    scores = Evaluator(make_eval_step(objective), data)(fitted.state)
    assert scores["exact match"] > 0.5

    params = fitted.state.params
    step, first = network.step(params), jnp.full(400, END)
    beams = jax.jit(lambda *source: beam_search(
        step, network.encode(params, *source), first, width=1, length=5, end=END,
    ))(x, lengths)  # fmt: skip
    exact = np.all(np.asarray(beams.tokens[:, 0]) == y, axis=1).mean()
    assert exact == pytest.approx(scores["exact match"], abs=0.005)
