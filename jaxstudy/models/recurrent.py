"""Recurrent layers with the arithmetic of Keras: SimpleRNN, GRU and LSTM.

What comes from the inputs is multiplied for all steps at once, and so is the gradient
of the recurrent kernel; a step of the recurrence is one product with that kernel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers
from flax.linen.dtypes import promote_dtype

from jaxstudy.model import Model, from_linen
from jaxstudy.ops import flat_dot_general
from jaxstudy.types import Array, Key, PyTree

Kind = Literal["simple", "gru", "lstm"]
States = tuple[Array, ...]  # h [B, U], and of an LSTM the cell c [B, U]
KERAS_NAMES: dict[Kind, str] = {"simple": "SimpleRNN", "gru": "GRU", "lstm": "LSTM"}


class Cell(NamedTuple):
    """One step: `step(x, r, states) -> states`, with x of the input, r of h.

    x and r are [B, gates U]. additive: only their sum matters.
    """

    gates: int
    states: int
    additive: bool
    step: Callable[[Array, Array, States], States]


def _simple(x: Array, r: Array, states: States) -> States:
    """h' = tanh(x + r)."""
    del states
    return (jnp.tanh(x + r),)


def _gates(z: Array, *kinds: str) -> list[Array]:
    """Equal parts of z [B, gates U], each through its kind: "sigmoid" or "tanh".

    sigmoid(z) = (1 + tanh(z / 2)) / 2 makes one tanh of all of them: on a CPU, one loop
    over whole rows takes a quarter of the time of a loop for every part.
    """
    halves = np.repeat([0.5 if kind == "sigmoid" else 1 for kind in kinds],
                       z.shape[-1] // len(kinds))  # fmt: skip
    half, rest = jnp.asarray(halves, z.dtype), jnp.asarray(1 - halves, z.dtype)
    return jnp.split(half * jnp.tanh(half * z) + rest, len(kinds), -1)


def _gru(x: Array, r: Array, states: States) -> States:
    """h' = z h + (1 - z) tanh(x_n + s(x_r + r_r) r_n), z = s(x_z + r_z).

    s is the sigmoid; Keras calls it "reset_after" (Cho et al. 2014, arXiv:1406.1078).
    """
    (h,), two = states, 2 * x.shape[-1] // 3
    z, reset = _gates(x[..., :two] + r[..., :two], "sigmoid", "sigmoid")
    return (z * h + (1 - z) * jnp.tanh(x[..., two:] + reset * r[..., two:]),)


def _lstm(x: Array, r: Array, states: States) -> States:
    """c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c'), with i, f, g, o = x + r.

    s is the sigmoid (Hochreiter and Schmidhuber 1997; Gers et al. 2000).
    """
    _, c = states
    i, f, g, o = _gates(x + r, "sigmoid", "sigmoid", "tanh", "sigmoid")
    c = f * c + i * g
    return o * jnp.tanh(c), c


CELLS: dict[Kind, Cell] = {
    "simple": Cell(1, 1, True, _simple),
    "gru": Cell(3, 1, False, _gru),
    "lstm": Cell(4, 2, True, _lstm),
}


def _masked(cell: Cell, x: Array, r: Array, states: States, real: Any) -> States:
    """The step, where it is `real` [B]; elsewhere the states stay as they are."""
    after = cell.step(x, r, states)
    if real is None:
        return after
    pairs = zip(after, states, strict=True)
    return tuple(jnp.where(real[:, None], new, old) for new, old in pairs)


def _forward(
    kind: Kind, x: Array, kernel: Array, bias: Array, begin: States, real: Any
) -> tuple[States, Array]:
    def step(states: States, inputs: Any) -> tuple[States, tuple[States, Array]]:
        x, real = inputs
        r = states[0] @ kernel + bias
        after = _masked(CELLS[kind], x, r, states, real)
        return after, (after, r)

    return jax.lax.scan(step, begin, (x, real))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    kind: Kind, x: Array, kernel: Array, bias: Array, begin: States, real: Any
) -> States:
    """The states after every step, [T, B, U] each.

    x [T, B, gates U] are the inputs' parts, kernel [U, gates U] and bias [gates U] make
    h's; `begin` [B, U] are the first states; steps with `real` [T, B] false change
    nothing (None: all are real). There is no forward mode: the derived gradient would
    add up that of the kernel step by step.
    """
    return _forward(kind, x, kernel, bias, begin, real)[0]


def _recur_forward(
    kind: Kind, x: Array, kernel: Array, bias: Array, begin: States, real: Any
) -> tuple[States, Any]:
    states, r = _forward(kind, x, kernel, bias, begin, real)
    return states, (x, kernel, begin, real, states, r)


def _recur_backward(kind: Kind, kept: Any, d_states: States) -> tuple[Any, ...]:
    x, kernel, begin, real, states, r = kept
    cell = CELLS[kind]
    before = tuple(
        jnp.concatenate([first[None], later[:-1]])
        for first, later in zip(begin, states, strict=True)
    )

    def step(d_after: States, inputs: Any) -> tuple[States, tuple[Array, ...]]:
        x, r, states, real, d_outputs = inputs
        d_after = tuple(a + b for a, b in zip(d_after, d_outputs, strict=True))
        _, pull = jax.vjp(
            lambda x, r, states: _masked(cell, x, r, states, real), x, r, states
        )
        d_x, d_r, (d_h, *d_others) = pull(d_after)
        d_states = (d_h + d_r @ kernel.T, *d_others)
        return d_states, (d_r,) if cell.additive else (d_r, d_x)

    zeros = tuple(jnp.zeros_like(a) for a in begin)
    d_begin, (d_r, *d_x) = jax.lax.scan(
        step, zeros, (x, r, before, real, d_states), reverse=True
    )
    rows, width = before[0].size // kernel.shape[0], kernel.shape[1]
    d_kernel = before[0].reshape(rows, -1).T @ d_r.reshape(rows, width)
    return d_x[0] if d_x else d_r, d_kernel, d_r.sum((0, 1)), d_begin, None


recur.defvjp(_recur_forward, _recur_backward)


@jax.custom_vjp
def one_hot_product(tokens: Array, kernel: Array) -> Array:
    """One-hot vectors of tokens [...] times a kernel [V, U]: its rows [..., U].

    Forward they are looked up, which takes a fifth of the product's time; the gradient
    is the product's, for adding row by row takes longer. There is no forward mode.
    """
    return jnp.take(kernel, tokens, axis=0, mode="clip")


def _one_hot_product_forward(tokens: Array, kernel: Array) -> tuple[Array, Any]:
    return one_hot_product(tokens, kernel), (tokens, kernel)


def _one_hot_product_backward(kept: Any, d_rows: Array) -> tuple[None, Array]:
    tokens, kernel = kept
    vectors = jax.nn.one_hot(tokens.ravel(), len(kernel), dtype=kernel.dtype)
    return None, vectors.T @ d_rows.reshape(-1, kernel.shape[1])


one_hot_product.defvjp(_one_hot_product_forward, _one_hot_product_backward)


class RecurrentLayer(nn.Module):
    """One recurrent layer; its arrays are Keras's, a GRU's two biases apart."""

    kind: Kind
    units: int
    vocabulary: int | None = None

    @nn.compact
    def __call__(
        self, x: Array, lengths: Array | None = None, begin: States | None = None
    ) -> tuple[Array, States]:
        """Map x [B, T, D] to h of every step [B, T, U], and the last states.

        Of a vocabulary, x are tokens [B, T], each a one-hot vector. Steps from
        `lengths` [B] on are padding: h and the states stay as they were.
        """
        cell = CELLS[self.kind]
        width = cell.gates * self.units
        glorot, orthogonal = initializers.glorot_uniform(), initializers.orthogonal()
        features = x.shape[-1] if self.vocabulary is None else self.vocabulary
        kernel = self.param("kernel", glorot, (features, width), jnp.float32)
        recurrent_kernel = self.param(
            "recurrent_kernel", orthogonal, (self.units, width), jnp.float32
        )
        first = np.zeros(width, np.float32)
        if self.kind == "lstm":  # the forget gate begins open, so that it remembers
            first[self.units : 2 * self.units] = 1
        bias = self.param("bias", lambda key: jnp.asarray(first))
        recurrent_bias = jnp.zeros(width, bias.dtype)
        if not cell.additive:
            none = initializers.zeros_init()
            recurrent_bias = self.param("recurrent_bias", none, (width,), jnp.float32)
        steps = x.swapaxes(0, 1)
        real = None
        if lengths is not None:
            real = jnp.arange(len(steps))[:, None] < lengths
        if self.vocabulary is None:
            arrays = steps, kernel, recurrent_kernel, bias, recurrent_bias
            steps, kernel, recurrent_kernel, bias, recurrent_bias = promote_dtype(
                *arrays
            )
            inputs = flat_dot_general(steps, kernel, (((2,), (0,)), ((), ()))) + bias
        else:
            inputs = one_hot_product(steps, kernel) + bias
        if begin is None:
            zeros = jnp.zeros((x.shape[0], self.units), kernel.dtype)
            begin = (zeros,) * cell.states
        after = recur(self.kind, inputs, recurrent_kernel, recurrent_bias, begin, real)
        states = cast(States, after)
        last = tuple(a[-1] for a in states)
        return states[0].swapaxes(0, 1), last


class Recurrent(nn.Module):
    """Recurrent layers on top of each other."""

    kind: Kind
    units: tuple[int, ...]
    vocabulary: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        lengths: Array | None = None,
        begin: Sequence[States] | None = None,
    ) -> tuple[Array, tuple[States, ...]]:
        """Map x [B, T, D] to the last layer's h [B, T, U], and every layer's states.

        `begin` goes on from states that an earlier part of the sequence left.
        """
        last = []
        for i, units in enumerate(self.units):
            of = self.vocabulary if i == 0 else None
            layer = RecurrentLayer(self.kind, units, of, name=f"layer_{i + 1}")
            mine = None if begin is None else begin[i]
            x, states = layer(x, lengths, mine)
            last.append(states)
        return x, tuple(last)


def recurrent(features: int, kind: Kind, units: tuple[int, ...]) -> Model:
    """Recurrent layers from x [B, T, D] to (h of every step [B, T, U], last states)."""
    module = Recurrent(kind, tuple(units))

    def init(key: Key) -> tuple[PyTree, PyTree]:
        return module.init(key, jnp.zeros((1, 1, features)))["params"], {}

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[tuple[Array, tuple[States, ...]], PyTree]:
        del train, key
        return cast(Any, module.apply({"params": params}, x)), extra

    return Model(init, apply)


class SequenceToVector(nn.Module):
    """Recurrent layers, and a dense one on the last h."""

    kind: Kind
    units: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, T, D] to [B, outputs], or to [B] where there is one output."""
        h, _ = Recurrent(self.kind, self.units, name="layers")(x)
        init = initializers.glorot_uniform()
        y = nn.Dense(self.outputs, kernel_init=init, name="output")(h[:, -1])
        return y[:, 0] if self.outputs == 1 else y


def sequence_to_vector(
    features: int,
    kind: Kind,
    units: tuple[int, ...],
    outputs: int,
) -> Model:
    """Recurrent layers from a sequence [B, T, D], of any length, to [B, outputs].

    A dense layer reads h after the last step; [B] where there is one output.
    """
    module = SequenceToVector(kind, tuple(units), outputs)
    return from_linen(module, jax.ShapeDtypeStruct((1, 1, features), jnp.float32))


class LanguageModel(nn.Module):
    """What comes next, from all that came before: one-hot vectors, layers, a dense."""

    vocabulary: int
    kind: Kind
    units: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(
        self, tokens: Array, begin: Sequence[States] | None, train: bool
    ) -> tuple[Array, tuple[States, ...]]:
        """Map tokens [B, T] to logits [B, T, V], and every layer's last states."""
        layers = Recurrent(self.kind, self.units, self.vocabulary, name="layers")
        x, last = layers(tokens, None, begin)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        init = initializers.glorot_uniform()
        output = nn.Dense(
            self.vocabulary, kernel_init=init, dot_general=flat_dot_general,
            name="output",
        )  # fmt: skip
        return output(x), last


def language_model(
    vocabulary: int,
    kind: Kind,
    units: tuple[int, ...],
    *,
    dropout: float = 0.0,
) -> Model:
    """Recurrent layers from tokens [B, T] to logits [B, T, V] of the next token.

    Tokens enter as one-hot vectors. Every call begins with zeros, unless
    `extra["states"]` are there: then with those, and they come back as they are after
    the last token. `first_states` are those of a beginning.
    """
    module = LanguageModel(vocabulary, kind, tuple(units), dropout)

    def init(key: Key) -> tuple[PyTree, PyTree]:
        variables = module.init(key, jnp.zeros((1, 1), jnp.int32), None, train=False)
        return variables["params"], {}

    def apply(
        params: PyTree, extra: PyTree, tokens: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        logits, last = module.apply(
            {"params": params}, tokens, extra.get("states"), train=train,
            rngs=None if key is None else {"dropout": key},
        )  # fmt: skip
        return logits, {**extra, "states": last} if "states" in extra else extra

    return Model(init, apply)


def first_states(kind: Kind, units: tuple[int, ...], rows: int) -> tuple[States, ...]:
    """The zeros [B, U] that every layer begins with."""
    return tuple(
        tuple(jnp.zeros((rows, width), jnp.float32) for _ in range(CELLS[kind].states))
        for width in units
    )


def carry_states(model: Model, states: tuple[States, ...], forget: float) -> Model:
    """Truncated backpropagation: a batch goes on from the states of the one before it.

    In training row b begins with the states that row b of the last batch ended with, or
    with zeros, with probability `forget`: a network that never begins with zeros may
    not learn to. In evaluation every row begins with zeros. `states` are the first.
    """

    def init(key: Key) -> tuple[PyTree, PyTree]:
        params, extra = model.init(key)
        return params, {**extra, "states": states}

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        if key is None:
            return model.apply(params, {}, x, train=train, key=None)[0], extra
        key, forget_key = jax.random.split(key)
        kept = jax.random.bernoulli(forget_key, 1 - forget, (len(x), 1))
        begin = jax.tree.map(lambda a: a * kept, extra["states"])
        return model.apply(params, {"states": begin}, x, train=train, key=key)

    return Model(init, apply)


def to_keras(params: dict[str, Array]) -> list[np.ndarray]:
    """A layer's arrays as `get_weights` of Keras's layer has them.

    kernel, recurrent_kernel, bias; a GRU's bias is [2, 3 U], the input's first.
    """
    arrays = {name: np.asarray(a) for name, a in params.items()}
    bias = arrays["bias"]
    if "recurrent_bias" in arrays:
        bias = np.stack([bias, arrays["recurrent_bias"]])
    return [arrays["kernel"], arrays["recurrent_kernel"], bias]


def from_keras(weights: Sequence[np.ndarray]) -> dict[str, Array]:
    """A layer's arrays from `get_weights` of Keras's SimpleRNN, GRU or LSTM.

    Raises ValueError where these are not the arrays of one of them, with biases.
    """
    shapes = [np.shape(a) for a in weights]
    fits = len(shapes) == 3 and len(shapes[0]) == len(shapes[1]) == 2
    width = shapes[1][1] if fits else 0
    if not fits or shapes[0][1] != width or shapes[2] not in ((width,), (2, width)):
        raise ValueError(
            f"arrays of shapes {shapes} are not those of a recurrent layer of Keras: "
            "[D, G], [U, G] and [G], or [2, G] of a GRU with reset_after"
        )
    kernel, recurrent, bias = (jnp.asarray(a) for a in weights)
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent}
    if bias.ndim == 2:
        return {**arrays, "bias": bias[0], "recurrent_bias": bias[1]}
    return {**arrays, "bias": bias}
