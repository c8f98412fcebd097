"""Datasets: which rows belong to a set, and in which batches an epoch visits them.

`indices`, `mask` and `order` fix the batches of every epoch as a pure function of
(key, epoch): a resumed run needs only the step it had reached, and no iterator. The
rows of a `Dataset` live on the device; `streaming` has one whose rows are read when
they are needed.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.processes import hash_once
from jaxstudy.types import Array, Batch, Key, PyTree


class Order(NamedTuple):
    """How an epoch visits the rows.

    shuffle: a new permutation each epoch, one permutation for all epochs, or the order
    of `indices`; drop_remainder: whole batches only, so that each epoch leaves some
    rows out, else the last batch is padded.
    """

    shuffle: Literal["each epoch", "once", "never"] = "each epoch"
    drop_remainder: bool = False


SHUFFLED = Order()


class BatchIndices(NamedTuple):
    """Indices of the rows of one or more batches, [..., B], with mask 0 on padding."""

    indices: Array
    mask: Array


class BatchRows(NamedTuple):
    """The rows themselves, [..., B', ...], with mask [..., B]; others follow the B."""

    fields: Batch
    mask: Array


@dataclass(frozen=True)
class AnyDataset(abc.ABC):
    """Some of the rows that are to be had.

    indices [n]: which belong to this set ([L, n]: to each replica's); mask: False where
    an index is only padding (folds of unequal size).
    """

    indices: Array
    mask: Array
    order: Order = field(default=SHUFFLED, kw_only=True, metadata={"static": True})

    @abc.abstractmethod
    def row_count(self) -> int:
        """How many rows are to be had."""

    @abc.abstractmethod
    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows [n] of all that are to be had, as fields [n, ...]."""

    def contents(self) -> PyTree:
        """What tells one set from another: all of it, unless that has to be read."""
        return self

    def max_steps(self, rows_per_step: int) -> int | None:
        """How many steps' rows the device holds at once; None for all."""
        return None


D = TypeVar("D", bound=AnyDataset)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dataset(AnyDataset):
    """Some rows of arrays that live on the device: fields [N, ...].

    Subsets share the arrays: ten folds of a set cost ten index vectors.
    """

    arrays: Batch

    def row_count(self) -> int:
        """N."""
        return len(next(iter(self.arrays.values())))

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows [n] of the N, as fields [n, ...]."""
        return {name: np.asarray(a)[rows] for name, a in self.arrays.items()}


def dataset(arrays: Mapping[str, np.ndarray | Array]) -> Dataset:
    """All rows of some arrays with a common leading axis.

    Raises ValueError when the lengths differ or there is no row.
    """
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"fields need one common length over 0, not {lengths}")
    n = next(iter(lengths.values()))
    device_arrays = {name: on_device(a) for name, a in arrays.items()}
    return Dataset(on_device(np.arange(n)), on_device(np.ones(n, bool)), device_arrays)


def on_device(a: np.ndarray | Array) -> Array:
    """A copy of an array, by no program: `jnp.asarray` compiles one for each shape."""
    return a if isinstance(a, Array) else hash_once(jax.device_put(np.array(a)))


def take(data: AnyDataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows [n] of the arrays of a set, or of its source, as fields [n, ...]."""
    return data.read(rows)


def subset(data: D, rows: np.ndarray | Sequence[int]) -> D:
    """The set with only these rows of the arrays, or of the source [n]."""
    _check_rows(data, rows)
    chosen, every = np.asarray(rows, np.int32), np.ones(len(rows), bool)
    return replace(data, indices=on_device(chosen), mask=on_device(every))


def evenly_spaced(data: D, count: int) -> D:
    """At most `count` rows of a set, evenly spaced: the first may be all of one class.

    Raises ValueError when `count` is under 1.
    """
    if count < 1:
        raise ValueError(f"need 1 row at least, not {count}")
    n = len(data.indices)
    chosen = np.arange(min(count, n)) * n // min(count, n)
    rows, mask = (on_device(np.asarray(a)[chosen]) for a in (data.indices, data.mask))
    return replace(data, indices=rows, mask=mask)


def stacked_subsets(data: D, groups: Sequence[np.ndarray]) -> D:
    """One subset per replica: indices and mask [L, n], padded to the longest group."""
    for group in groups:
        _check_rows(data, group)
    n = max(len(g) for g in groups)
    indices = np.zeros((len(groups), n), np.int32)
    mask = np.zeros((len(groups), n), bool)
    for i, group in enumerate(groups):
        # padding repeats the group: batch statistics must not see another's rows
        indices[i] = np.resize(group, n)
        mask[i, : len(group)] = True
    return replace(data, indices=on_device(indices), mask=on_device(mask))


def _check_rows(data: AnyDataset, rows: np.ndarray | Sequence[int]) -> None:
    """Raise ValueError where there is no such row: a gather would take another."""
    n = data.row_count()
    if len(rows) == 0 or np.min(rows) < 0 or np.max(rows) >= n:
        raise ValueError(f"rows must be some of 0 to {n - 1}")


def steps_per_epoch(n: int, batch_size: int, order: Order = SHUFFLED) -> int:
    """How many batches an epoch over n rows has; none is 0 whole ones of too few."""
    return n // batch_size if order.drop_remainder else -(-n // batch_size)


def _batches(
    indices: Array, mask: Array, batch_size: int, order: Order = SHUFFLED
) -> BatchIndices:
    """Cut indices [n] into [S, B], padding or dropping the last batch."""
    steps = steps_per_epoch(len(indices), batch_size, order)
    indices, mask = indices[: steps * batch_size], mask[: steps * batch_size]
    pad = steps * batch_size - len(indices)
    shape = (steps, batch_size)
    return BatchIndices(
        jnp.pad(indices, (0, pad), mode="wrap").reshape(shape),
        jnp.pad(mask, (0, pad)).astype(jnp.float32).reshape(shape),
    )


def epoch_batches(
    data: AnyDataset, batch_size: int, key: Key, epoch: Array
) -> BatchIndices:
    """The batches of one epoch [S, B]: a new permutation that (key, epoch) fixes.

    Each valid row occurs exactly once, unless `data.order` says otherwise; shuffled
    once, every epoch has the permutation of the first.
    """
    order = data.order
    if order.shuffle == "never":
        return _batches(data.indices, data.mask, batch_size, order)
    drawn = 0 if order.shuffle == "once" else epoch
    key = jax.random.fold_in(key, drawn)
    bits = jax.random.bits(key, data.indices.shape, jnp.uint32)
    ranks = _shuffled(bits, data.mask)
    return _batches(data.indices[ranks], data.mask[ranks], batch_size, order)


SMALL = 2048  # rows that leave 20 of 31 bits to chance: ties in one epoch of ten


def _shuffled(bits: Array, mask: Array) -> Array:
    """Positions [n] by 31 random bits each, those of padding last; ties by position.

    Few positions are sorted in the same word as their bits: on a CPU one operand takes
    XLA a seventh of the time of two, and shuffling is a third of a small epoch.
    """
    first = jnp.where(mask, bits >> 1, jnp.uint32(1 << 31))
    if len(bits) > SMALL:
        return jnp.argsort(first)
    low = jnp.uint32(SMALL - 1)
    packed = (first & ~low) | jnp.arange(len(bits), dtype=jnp.uint32)
    return (jnp.sort(packed) & low).astype(jnp.int32)


def ordered_batches(data: AnyDataset, batch_size: int) -> BatchIndices:
    """The rows in order as batches [S, B], for evaluation: none is left out."""
    return _batches(data.indices, data.mask, min(batch_size, len(data.indices)))


def gather(arrays: Batch, batch: BatchIndices | BatchRows) -> Batch:
    """The fields of some rows [B, ...], and their "mask" [B]."""
    if isinstance(batch, BatchRows):
        fields = {name: a[: len(batch.mask)] for name, a in batch.fields.items()}
        return {**fields, "mask": batch.mask}
    fields = {
        name: a.at[batch.indices].get(mode="promise_in_bounds")
        for name, a in arrays.items()
    }
    return {**fields, "mask": batch.mask}
