"""The encoder-decoder: padding, causality, and decoding as it was trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.models.seq2seq import Seq2Seq, seq2seq
from jaxstudy.objectives import sequence_cross_entropy
from jaxstudy.text.decoding import beam_search
from tests.conftest import assert_rounding

KINDS: list[dict[str, Any]] = [
    {"attention": True},
    {"attention": False, "kind": "gru", "layers": 2},
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
    want = made.logits(X, LENGTHS, TOKENS)
    for place in range(5):
        other = made.logits(X.at[:, place].set(9 - X[:, place]), LENGTHS, TOKENS)
        moved = np.abs(np.asarray(other - want)).max((1, 2)) > 0
        np.testing.assert_array_equal(moved, place < LENGTHS)


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


def test_exact_match_is_greedy_s(made: Network) -> None:
    """Of what greedy decoding makes, and with a wrong symbol in some rows."""
    step, first = made.network.step(made.params), jnp.full(4, END)
    beams = jax.jit(lambda *source: beam_search(
        step, made.network.encode(made.params, *source), first,
        width=1, length=6, end=END,
    ))(X, LENGTHS)  # fmt: skip
    y = np.array(beams.tokens[:, 0])
    ended = np.argmax(np.append(y, np.full((4, 1), END), 1) == END, 1)
    y_length = np.minimum(ended + 1, 6)
    objective = sequence_cross_entropy(made.network.model, END)

    @jax.jit
    def exact_matches(y: Any) -> Any:
        batch = {"x": X, "x_length": LENGTHS, "y": y, "y_length": jnp.asarray(y_length)}
        batch["mask"] = jnp.ones(4)
        _, (_, metrics) = objective(made.params, {}, batch, None)
        return metrics["exact match"].total

    assert exact_matches(y) == 4
    for rows in ([0], [1, 3]):
        wrong = y.copy()
        wrong[rows, 0] = 2 + (wrong[rows, 0] - 1) % 5
        assert exact_matches(wrong) == 4 - len(rows)
