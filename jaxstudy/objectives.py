"""Objectives: (params, extra, batch, key) -> (loss, (extra, metrics)).

Every metric is a mean over the rows whose mask is 1, so a padded batch weighs what its
real rows weigh, whatever is in the others: 0 times NaN is NaN, in gradients too. The
key says which mode is meant: with one the model trains (dropout on), with None it is
evaluated.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax

from jaxstudy.model import Model
from jaxstudy.types import Array, Batch, Key, Mean, Metrics, Objective, PyTree


def masked_mean(values: Array, mask: Array) -> Mean:
    """The mean of values [B] over the rows whose mask [B] is 1."""
    mask = mask.astype(values.dtype)
    return Mean(jnp.sum(hide_padding(values, mask)), jnp.sum(mask))


def hide_padding(a: Array, mask: Array) -> Array:
    """Zeros in a [B, ..., ...] where the mask [B, ...] is 0; no gradient goes there."""
    return jnp.where(_spread(mask, a), a, 0)


def finite_padding(batch: Batch) -> Batch:
    """The batch with 0 for NaN and infinity in the rows whose mask is 0.

    Their gradient is 0 times what a layer makes of them. What is finite stays: it is of
    other rows, and batch statistics see it.
    """
    return {
        name: jnp.where(_spread(batch["mask"], a) | jnp.isfinite(a), a, 0)
        for name, a in batch.items()
    }


def _spread(mask: Array, a: Array) -> Array:
    """Where a mask [B, ...] is not 0, to be broadcast to a [B, ..., ...]."""
    return jnp.expand_dims(mask > 0, tuple(range(mask.ndim, a.ndim)))


def mean_value(mean: Mean) -> Array:
    """Divide, once; a mean over no rows is 0."""
    return mean.total / jnp.maximum(mean.count, 1)


def supervised(
    model: Model,
    row_metrics: Callable[[Array, Array], dict[str, Array]],
    inputs: Sequence[str] = ("x",),
) -> Objective:
    """The objective of a model from x to y, given what to measure on every row.

    `row_metrics(outputs, y)` returns values [B] by name; "loss" is minimised. `inputs`
    are the fields that the model takes, if they are not x alone.
    """

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        batch = finite_padding(batch)
        taken = [batch[name] for name in inputs]
        outputs, extra = model.apply(
            params, extra, *taken, train=key is not None, key=key
        )
        rows = row_metrics(hide_padding(outputs, batch["mask"]), batch["y"])
        metrics = {name: masked_mean(v, batch["mask"]) for name, v in rows.items()}
        return mean_value(metrics["loss"]), (extra, metrics)

    return objective


def binary_cross_entropy(model: Model) -> Objective:
    """-[y log p + (1 - y) log(1 - p)], p = sigmoid(logit), y [B] in {0, 1}.

    Logits [B]. Metrics: loss in nats, accuracy at the threshold p > 1/2.
    """
    return supervised(
        model,
        lambda logits, y: {
            "loss": optax.sigmoid_binary_cross_entropy(logits, y),
            "accuracy": ((logits > 0) == (y > 0.5)).astype(logits.dtype),
        },
    )


def cross_entropy(model: Model, inputs: Sequence[str] = ("x",)) -> Objective:
    """-log softmax(logits)[y] for integer classes y [B], logits [B, K].

    Metrics: loss in nats, accuracy of the most probable class. `inputs` as `supervised`
    has them.
    """
    return supervised(
        model,
        lambda logits, y: {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, y),
            "accuracy": (jnp.argmax(logits, -1) == y).astype(logits.dtype),
        },
        inputs,
    )


def squared_error(model: Model) -> Objective:
    """(output - y)^2 for outputs and y of shape [B]. Metrics: loss."""
    return supervised(model, lambda outputs, y: {"loss": jnp.square(outputs - y)})


def reconstruction(model: Model) -> Objective:
    """-sum_d [y_d log p_d + (1 - y_d) log(1 - p_d)], p = sigmoid(logits), y in 0..1.

    Logits and y [B, D], such as pixels. Metrics: loss in nats per row.
    """
    return supervised(
        model,
        lambda logits, y: {
            "loss": jnp.sum(optax.sigmoid_binary_cross_entropy(logits, y), -1)
        },
    )


def sequence_cross_entropy(model: Model, begin: int) -> Objective:
    """-log softmax(logits_t)[y_t] of every symbol y_t, given those before it.

    Batch: x [B, S] of x_length [B] symbols, y [B, T] of y_length [B], the last the one
    that ends it; the model sees x and, after `begin`, y (teacher forcing). Metrics:
    loss in nats per symbol, accuracy of symbols, and "exact match", the share of rows
    whose every symbol is the most probable one: of just those greedy decoding gives y.
    """

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        y, training = batch["y"], key is not None
        before = jnp.concatenate([jnp.full_like(y[:, :1], begin), y[:, :-1]], axis=1)
        logits, extra = model.apply(
            params, extra, batch["x"], batch["x_length"], before,
            train=training, key=key,
        )  # fmt: skip
        within = jnp.arange(y.shape[1]) < batch["y_length"][:, None]
        counted = within * batch["mask"][:, None]
        logits = hide_padding(logits, counted)
        right = jnp.argmax(logits, -1) == y
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        exact = jnp.all(right | ~within, axis=1)
        metrics = {
            "loss": masked_mean(nats, counted),
            "accuracy": masked_mean(right.astype(nats.dtype), counted),
            "exact match": masked_mean(exact.astype(nats.dtype), batch["mask"]),
        }
        return mean_value(metrics["loss"]), (extra, metrics)

    return objective


def token_cross_entropy(model: Model) -> Objective:
    """-log softmax(logits)[y] of every token y [B, T] that is `real` [B, T].

    Metrics: loss in nats per token.
    """

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        logits, extra = model.apply(
            params, extra, batch["x"], train=key is not None, key=key
        )
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        loss = masked_mean(nats, batch["real"] * batch["mask"][:, None])
        return mean_value(loss), (extra, {"loss": loss})

    return objective
