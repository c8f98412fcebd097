"""Texts as rows of one length: windows, parallel streams, words and their contexts."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from jaxstudy.dataset import Dataset, Order, dataset
from jaxstudy.types import Array, Batch, Key, Metrics, Objective, PyTree, UserError


def windows(numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """A text [n] as inputs x and targets y [N, length], y being x one step later.

    Windows do not overlap but for that one symbol; what is left at the end is left out.
    Raises UserError where the text is shorter than one window.
    """
    count = (len(numbers) - 1) // length
    if count < 1:
        raise UserError(
            f"a text of {len(numbers)} symbols is shorter than one window of "
            f"{length} and the next symbol"
        )
    x, y = numbers[: count * length], numbers[1 : count * length + 1]
    return {"x": x.reshape(count, length), "y": y.reshape(count, length)}


def parallel_streams(numbers: np.ndarray, count: int, length: int) -> Dataset:
    """A text [n] as windows x, y [W count, length], those of all streams in turn.

    Row w count + b is window w of stream b: visited in order, a batch of `count` rows
    has one of each stream, and the next batch what comes next in each. Streams
    begin evenly spaced and overlap a little, so that all of the text is in them. Raises
    UserError where it is shorter than one window.
    """
    available = len(windows(numbers, length)["x"])
    # a multiple of 8, if there are so many: `fit` cuts an epoch into equal chunks
    needed = 8 * math.ceil((len(numbers) - 1) / (8 * count * length))
    steps = min(needed, available)
    starts = np.linspace(0, len(numbers) - 1 - steps * length, count).astype(int)
    x = (starts + length * np.arange(steps)[:, None])[..., None] + np.arange(length)
    x = x.reshape(-1, length)
    data = dataset({"x": numbers[x], "y": numbers[x + 1]})
    return dataclasses.replace(data, order=Order(shuffle="never"))


def passage_windows(
    passages: Sequence[np.ndarray], context: int, length: int, start: int
) -> Dataset:
    """Passages as x [N, context - 1 + length] and y [N, length], one row after another.

    y are the symbols after every `context` symbols of x; `real` [N, length] is false
    where a passage has ended. Before each passage stand `context` symbols `start`.
    """
    rows: dict[str, list[np.ndarray]] = {"x": [], "y": [], "real": []}
    for passage in passages:
        count = -(-len(passage) // length)
        missing = count * length - len(passage)
        padded = np.pad(passage, (context, missing), constant_values=start)
        starts = length * np.arange(count)[:, None]
        rows["x"].append(padded[starts + np.arange(context - 1 + length)])
        y = padded[context:].reshape(count, length)
        real = np.arange(count * length).reshape(y.shape) < len(passage)
        rows["real"].append(real)
        rows["y"].append(np.where(real, y, 0))
    return dataset({name: np.concatenate(parts) for name, parts in rows.items()})


def without_target(data: Dataset, symbol: int) -> Dataset:
    """The same rows, of which no y that is the symbol counts as `real`."""
    arrays = data.arrays
    real = arrays["real"] & (arrays["y"] != symbol)
    return dataclasses.replace(data, arrays={**arrays, "real": real})


def with_shuffled_contexts(objective: Objective) -> Objective:
    """The objective of x [B, T] whose symbols are shuffled anew at every step.

    Each row in a way of its own; in evaluation x stays as it is.
    """

    def shuffled(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        if key is not None:
            shuffle, key = jax.random.split(key)
            x = jax.random.permutation(shuffle, batch["x"], axis=1, independent=True)
            batch = {**batch, "x": x}
        return objective(params, extra, batch, key)

    return shuffled


def shuffled_contexts(
    passages: Sequence[np.ndarray], context: int
) -> tuple[Dataset, Dataset]:
    """Symbols y [N, 1] after x [N, context]: first with x in order, then shuffled.

    The same at every call; fields as those of `passage_windows`. Raises UserError where
    no passage has more symbols than a context.
    """
    rows = [
        np.lib.stride_tricks.sliding_window_view(passage, context + 1)
        for passage in passages
        if len(passage) > context
    ]
    if not rows:
        raise UserError(f"context {context}: no passage of the test set has more words")
    x, y = np.split(np.concatenate(rows), [context], axis=1)
    shuffled = np.random.default_rng(0).permuted(x, axis=1)
    real = np.ones(y.shape, bool)
    ordered, other = (dataset({"x": a, "y": y, "real": real}) for a in (x, shuffled))
    return ordered, other
