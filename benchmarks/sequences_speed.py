"""How fast an LSTM is beside Keras and PyTorch: same work, same cores, one go.

    lstm       training a model of the next character
    sampling   drawing characters from it

How it is measured, and the command line, are in harness.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import numpy as np
from harness import Arrays, Job, Measured, Workload, on_keras, on_torch, ours

# The model: characters as one-hot vectors, an LSTM, and a dense layer at every step.
# Not an embedding: in Keras on TensorFlow, Adam adds up the squares of the gradients of
# a character that is there more than once, where all others square their sum.

VOCABULARY, UNITS = 64, 256
BATCH, LENGTH = 64, 64
FOLLOWERS = 4  # characters that may come after a character
KERNEL = "params/layers/layer_1/kernel"
RECURRENT = "params/layers/layer_1/recurrent_kernel"
OUTPUT = "params/output/kernel"
WEIGHTS = [
    KERNEL, RECURRENT, "params/layers/layer_1/bias", OUTPUT, "params/output/bias"
]  # fmt: skip


def model_jaxstudy() -> Any:
    from jaxstudy.models.recurrent import language_model

    return language_model(VOCABULARY, "lstm", (UNITS,))


def weights() -> dict[str, np.ndarray]:
    """Random ones, so large that what comes next depends on what came before."""
    arrays = harness.random_weights(model_jaxstudy())
    arrays[KERNEL] *= 8  # a character is one row of it
    arrays[OUTPUT] *= 4
    return arrays


def text(rows: int) -> np.ndarray:
    """Made-up characters [rows, LENGTH + 1]: each has one of four that follow it."""
    rng = np.random.default_rng(0)
    followers = rng.integers(0, VOCABULARY, (VOCABULARY, FOLLOWERS))
    characters = [rng.integers(0, VOCABULARY, rows)]
    for choice in rng.integers(0, FOLLOWERS, (LENGTH, rows)):
        characters.append(followers[characters[-1], choice])
    return np.stack(characters, 1).astype(np.int32)


def model_keras(data: Arrays) -> Any:
    """Keras's layers of the same names, in a model of texts of any length."""
    import keras

    class OneHot(keras.layers.Layer):
        def call(self, characters: Any) -> Any:
            return keras.ops.one_hot(characters, VOCABULARY)

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            OneHot(),
            layers.LSTM(UNITS, return_sequences=True),
            layers.Dense(VOCABULARY),
        ]
    )
    model.set_weights([data[name] for name in WEIGHTS])
    return model


def model_torch(data: Arrays) -> Any:
    """The same with PyTorch's layers.

    Its LSTM has a second bias. It is 0 and not trained: Adam would move the sum of two
    twice as far.
    """
    import torch  # pyright: ignore[reportMissingImports]

    nn = torch.nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one_hot = nn.Embedding.from_pretrained(torch.eye(VOCABULARY))  # frozen
            self.lstm = nn.LSTM(VOCABULARY, UNITS, batch_first=True)
            self.output = nn.Linear(UNITS, VOCABULARY)

        def forward(self, characters: Any) -> Any:
            return self.output(self.lstm(self.one_hot(characters))[0])

    model = Model()
    lstm, output = model.lstm, model.output
    lstm.bias_hh_l0.requires_grad_(False).zero_()
    own = [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0]
    for parameter, name in zip([*own, *output.parameters()], WEIGHTS, strict=True):
        parameter.data.copy_(torch.tensor(data[name].T))
    return model


# Training


def lstm_data() -> dict[str, np.ndarray]:
    """x and y [N, T], and the weights; y is x one character later."""
    found = text(WORKLOADS["lstm"].length * BATCH)
    return {"x": found[:, :-1], "y": found[:, 1:], **weights()}


def products(name: str) -> int:
    """Products of numbers of a step, of one row, by an array of the weights."""
    return weights()[name].size


def lstm_operations() -> float:
    """Forward and for both gradients; the inputs need none, and the first h is zero."""
    whole = LENGTH * sum(map(products, (KERNEL, RECURRENT, OUTPUT)))
    return 2.0 * BATCH * (3 * (whole - products(RECURRENT)) - LENGTH * products(KERNEL))


def lstm_jaxstudy(job: Job) -> Measured:
    return harness.training_jaxstudy(model_jaxstudy(), job, BATCH)


def lstm_keras(job: Job) -> Measured:
    data, steps, *_ = job
    x, y = (data[name][: steps * BATCH] for name in ("x", "y"))
    return harness.training_keras(model_keras(data), x, y, steps, BATCH)


def lstm_torch(job: Job, compiled: bool = False) -> Measured:
    data, steps, *_ = job
    import torch  # pyright: ignore[reportMissingImports]

    x, y = (torch.tensor(data[n][: steps * BATCH]).long() for n in ("x", "y"))
    return harness.training_torch(model_torch(data), x, y, steps, BATCH, compiled)


# Sampling

PREFIX, DRAWN = 8, 256
TEMPERATURE = 0.8

Draw = Callable[[int], np.ndarray]  # number -> characters [B, DRAWN]


def sampling_data() -> dict[str, np.ndarray]:
    """x [B, T], whose first characters are the prefix, and the weights."""
    return {"x": text(BATCH)[:, :-1], **weights()}


def sampling_operations() -> float:
    """Logits of the last of the prefix and later; the first h is zero."""
    steps = PREFIX + DRAWN - 1
    recurrent = (steps - 1) * products(RECURRENT)
    return (
        2.0 * BATCH * (steps * products(KERNEL) + recurrent + DRAWN * products(OUTPUT))
    )


def sampled(
    job: Job, drawing: Callable[[float], Draw], logits: Callable[[np.ndarray], Any]
) -> Measured:
    """Time drawing at TEMPERATURE; compare what rounding and chance leave alone.

    Those are the logits of a given text, the share of greedy characters that differ,
    and the mean nats of drawn ones by the distribution that they are to come from.
    Once two greedy characters are as good as equal, rounding may decide between them,
    and what follows in that row differs.
    """
    from scipy.special import log_softmax

    data, draw = job.data, drawing(TEMPERATURE)
    figures = harness.timed(draw, job.length)
    drawn, prefix = draw(-1), data["x"][:, :PREFIX]
    whole = np.concatenate([prefix, drawn], 1)[:, :-1]
    after = np.asarray(logits(whole))[:, PREFIX - 1 :] / TEMPERATURE
    chances = np.take_along_axis(log_softmax(after, -1), drawn[..., None], -1)
    results = {
        "logits": np.asarray(logits(data["x"])),
        "greedy characters": drawing(0.0)(0),
        "nats of drawn ones": -chances.mean(),
    }
    return Measured(figures, results)


def sampling_jaxstudy(job: Job) -> Measured:
    """`sample`, which is one compiled scan."""
    data = job.data
    import jax

    from jaxstudy.models.recurrent import first_states
    from jaxstudy.text.decoding import sample

    model, params = job.rounded(model_jaxstudy()), harness.tree(data, "params")
    prefix = jax.numpy.asarray(data["x"][:, :PREFIX])
    begin = first_states("lstm", (UNITS,), len(prefix))

    @jax.jit
    def drawn(params: Any, number: Any, temperature: Any) -> Any:
        def step(states: Any, token: Any) -> Any:
            extra = {"states": states}
            logits, extra = model.apply(
                params, extra, token[:, None], train=False, key=None
            )
            return extra["states"], logits[:, 0]

        key = jax.random.fold_in(jax.random.key(0), number)
        return sample(step, begin, prefix, key, length=DRAWN, temperature=temperature)

    logits = jax.jit(lambda x: model.apply(params, {}, x, train=False, key=None)[0])
    return sampled(job, lambda t: lambda i: np.asarray(drawn(params, i, t)), logits)


def sampling_keras(job: Job, loop: bool = False) -> Measured:
    """A compiled function of one character of all rows, called in a loop.

    Or, as KerasHub samples, the `loop` compiled too.
    """
    data = job.data
    import keras

    whole, ops = model_keras(data), keras.ops
    one_hot, lstm, output = whole.layers
    prefix = data["x"][:, :PREFIX].T
    zeros = ops.zeros((len(data["x"]), UNITS))

    class Sampler(keras.Model):
        def __init__(self, temperature: float) -> None:
            super().__init__()
            self.parts = [one_hot, lstm.cell, output]
            self.temperature = temperature
            self.seeds = keras.random.SeedGenerator(0)

        def step(self, character: Any, states: Any) -> tuple[Any, Any]:
            one_hot, cell, output = self.parts
            x, states = cell(one_hot(character), states)
            return output(x), states

    class Step(Sampler):
        def call(self, inputs: Any, training: bool = False) -> Any:
            """The next character [B], and the states."""
            logits, states = self.step(*inputs)
            if not self.temperature:
                return ops.argmax(logits, -1), states
            logits = logits / self.temperature
            drawn = keras.random.categorical(logits, 1, dtype="int32", seed=self.seeds)
            return drawn[:, 0], states

    class Loop(Sampler):
        def call(self, given: Any, training: bool = False) -> Any:
            """All characters [1 + steps, B]; those to draw are -1."""
            steps, rows = given.shape[0] - 1, given.shape[1]
            # argmax(z / t + noise) draws by softmax(z / t), where noise is Gumbel's
            shape = (steps, rows, VOCABULARY)
            uniform = keras.random.uniform(shape, 1e-7, 1, seed=self.seeds)
            noise = -self.temperature * ops.log(-ops.log(uniform))

            def body(at: Any, characters: Any, *states: Any) -> Any:
                logits, states = self.step(characters[at], states)
                drawn = ops.argmax(logits + noise[at], -1)
                given = characters[at + 1]
                following = ops.where(given < 0, drawn, given)[None]
                characters = ops.slice_update(characters, (at + 1, 0), following)
                return at + 1, characters, *states

            begin = (0, given, zeros, zeros)
            return ops.while_loop(lambda at, *_: at < steps, body, begin)[1]

    def stepping(temperature: float) -> Draw:
        characters = [ops.array(column) for column in prefix]
        model = Step(temperature)
        model((characters[0], [zeros, zeros]))
        step = harness.keras_function(model, False, wait=False)

        def draw(number: int) -> np.ndarray:
            states, found = [zeros, zeros], []
            for character in characters:
                following, states = step((character, states))
            for _ in range(DRAWN - 1):
                found.append(following)
                following, states = step((following, states))
            return np.stack([np.asarray(a) for a in [*found, following]], 1)

        return draw

    def looping(temperature: float) -> Draw:
        given = ops.array(np.pad(prefix, ((0, DRAWN), (0, 0)), constant_values=-1))
        model = Loop(temperature)
        model(given)
        function = harness.keras_function(model, False)
        return lambda number: np.asarray(function(given))[PREFIX:].T

    return sampled(job, looping if loop else stepping, whole)


def sampling_torch(job: Job, compiled: bool = False) -> Measured:
    """One character of all rows is a function, called in a loop."""
    data = job.data
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model = model_torch(data)
    cell = torch.nn.LSTMCell(VOCABULARY, UNITS)
    for name, array in model.lstm.state_dict().items():
        getattr(cell, name.removesuffix("_l0")).data.copy_(array)
    prefix = torch.tensor(data["x"][:, :PREFIX]).long().T.contiguous()
    zeros = torch.zeros(len(data["x"]), UNITS)

    def drawing(temperature: float) -> Draw:
        def advance(character: Any, h: Any, c: Any) -> Any:
            h, c = cell(model.one_hot(character), (h, c))
            logits = model.output(h)
            if not temperature:
                return logits.argmax(-1), h, c
            chances = torch.softmax(logits / temperature, -1)
            return torch.multinomial(chances, 1)[:, 0], h, c

        step = torch.compile(advance) if compiled else advance

        @torch.inference_mode()
        def draw(number: int) -> np.ndarray:
            found, h, c = [], zeros, zeros
            for character in prefix:
                following, h, c = step(character, h, c)
            for _ in range(DRAWN - 1):
                found.append(following)
                following, h, c = step(following, h, c)
            return torch.stack([*found, following], 1).numpy()

        return draw

    @torch.inference_mode()
    def logits(x: np.ndarray) -> np.ndarray:
        return model(torch.tensor(x).long()).numpy()

    return sampled(job, drawing, logits)


# Who takes part

WORKLOADS: dict[str, Workload] = {
    "lstm": Workload(
        "training a model of the next of 64 characters, one-hot vectors, an LSTM of "
        "256 units and a dense layer, batch 64, 64 characters a row, Adam",
        "All begin with the same weights and see the same batches in the same order, "
        "in epochs of {length} steps, of which `fit` of this project makes one "
        "compiled chunk each; the second bias of PyTorch's LSTM is 0 and not trained.",
        lstm_data,
        {
            **ours("`fit`", lstm_jaxstudy),
            **on_keras(lstm_keras, "`fit`", "`fit`"),
            **on_torch(lstm_torch, "a plain loop"),
        },
        25, tolerances={"loss": 5e-4}, operations=lstm_operations,
    ),
    "sampling": Workload(
        "drawing 64 rows of 256 characters at temperature 0.8, after prefixes of 8, "
        "from the model of the next character",
        "All have the same random weights; the others' step is one character of all "
        "rows, from the states to the next character, which a loop in Python calls, "
        "but with `while_loop` all steps are one compiled function as here. What is "
        "compared are the logits of a given text, the share of greedy characters that "
        "differ, since rounding may decide between two as good as equal, and the mean "
        "nats of the characters drawn.",
        sampling_data,
        {
            **ours("`sample`", sampling_jaxstudy),
            **on_keras(sampling_keras, "a loop of `tf.function`", "a loop, jitted"),
            **{
                f"{name}-loop": candidate
                for name, candidate in on_keras(
                    partial(sampling_keras, loop=True),
                    "`keras.ops.while_loop` in a `tf.function`",
                    "`keras.ops.while_loop`, jitted",
                ).items()
            },
            **on_torch(sampling_torch, "a loop"),
        },
        5,
        {"characters per second": "made_per_s", **harness.SHARE, **harness.FASTER_BY},
        tolerances={
            "logits": 1e-4, "greedy characters": 0.1, "nats of drawn ones": 0.03
        },
        operations=sampling_operations, makes=BATCH * DRAWN,
    ),
}  # fmt: skip

if __name__ == "__main__":
    harness.main(WORKLOADS, __file__, __doc__)
