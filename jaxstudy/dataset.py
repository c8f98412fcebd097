"""Datasets: which rows belong to a set, how an epoch visits them, how they are read.

A `Dataset` lives on the device; the rows of a `StreamedDataset` are read when they are
needed. Both have `indices`, `mask` and `order`, which fix the batches of every epoch as
a pure function of (key, epoch), and `load`, which brings the rows of some batches to
the device. So a resumed run needs only the step it had reached, and no iterator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxstudy.types import Array, Batch, Key, PyTree

# What the rows of one chunk may take in the memory of the device.
CHUNK_BYTES = 256 * 2**20
READ_AT_ONCE = 256  # rows that one thread reads


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dataset:
    """Some rows of arrays that live on the device.

    arrays: fields [N, ...]; indices [n]: which of the N belong to this set ([L, n]: to
    each replica's); mask: False where an index is only padding (folds of unequal
    size). Subsets share the arrays: ten folds of a set cost ten index vectors.
    """

    arrays: Batch
    indices: Array
    mask: Array
    order: Order = field(default=SHUFFLED, metadata={"static": True})

    def load(self, batches: BatchIndices) -> tuple[Batch, BatchIndices]:
        """All fields, and the batches [..., B] as they are: all is on the device."""
        return self.arrays, batches

    def max_steps(self, rows_per_step: int) -> int | None:
        """How many steps' rows the device holds at once: of all steps."""
        del rows_per_step
        return None


class RowSource(Protocol):
    """Rows read one by one, or several by `__getitems__(rows)` if there is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class StreamedDataset:
    """Some rows of a source that is not on the device: as a Dataset otherwise."""

    source: RowSource
    indices: Array
    mask: Array
    order: Order = SHUFFLED

    def load(self, batches: BatchIndices) -> tuple[Batch, BatchIndices]:
        """Read the rows of some batches [..., B], by threads.

        Returns their fields [n, ...], and the batches as places among these rows.
        """
        rows = np.asarray(batches.indices)
        fields = jax.device_put(self._read(rows.ravel()))
        places = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
        return fields, BatchIndices(jnp.asarray(places), batches.mask)

    def load_columns(self, batches: BatchIndices, split: NamedSharding) -> BatchRows:
        """Read of some batches [..., B] the rows that each device of this process has.

        split: how the devices share indices [..., B'], B' being B filled up to the next
        number that they share evenly; the mask stays as it is.
        """
        rows = np.asarray(batches.indices)
        fill = -rows.shape[-1] % split.mesh.shape["data"]
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, fill)], mode="wrap")
        places = split.addressable_devices_indices_map(rows.shape)
        different = {str(i): i for i in places.values()}  # devices may have the same
        read = {key: self._read(rows[i].ravel()) for key, i in different.items()}

        def shared(name: str) -> Array:
            pieces = [
                jax.device_put(a.reshape(rows[i].shape + a.shape[1:]), device)
                for device, i in places.items()
                for a in [read[str(i)][name]]
            ]
            shape = rows.shape + pieces[0].shape[rows.ndim :]
            return jax.make_array_from_single_device_arrays(shape, split, pieces)

        names = next(iter(read.values()))
        return BatchRows({name: shared(name) for name in names}, batches.mask)

    def max_steps(self, rows_per_step: int) -> int | None:
        """How many steps' rows the device holds at once, in CHUNK_BYTES."""
        first = self.source[int(np.ravel(self.indices)[0])]
        row_bytes = sum(np.asarray(value).nbytes for value in first.values())
        return max(1, CHUNK_BYTES // max(1, row_bytes * rows_per_step))

    def _read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        import grain  # takes seconds, and only streams need it

        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        pieces = _Pieces(self.source, rows)
        parts = list(grain.MapDataset.source(pieces).to_iter_dataset(threads))
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


class _Pieces:
    """Rows of a source, READ_AT_ONCE an item, stacked."""

    def __init__(self, source: RowSource, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return -(-len(self.rows) // READ_AT_ONCE)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        rows = self.rows[index * READ_AT_ONCE :][:READ_AT_ONCE].tolist()
        return read_rows(self.source, rows)


AnyDataset = Dataset | StreamedDataset
D = TypeVar("D", bound=AnyDataset)


def dataset(arrays: Mapping[str, np.ndarray | Array]) -> Dataset:
    """All rows of some arrays with a common leading axis.

    Raises ValueError when the lengths differ or there is no row.
    """
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"fields need one common length over 0, not {lengths}")
    n = next(iter(lengths.values()))
    device_arrays = {name: on_device(a) for name, a in arrays.items()}
    return Dataset(device_arrays, on_device(np.arange(n)), on_device(np.ones(n, bool)))


def on_device(a: np.ndarray | Array) -> Array:
    """A copy of an array, by no program: `jnp.asarray` compiles one for each shape."""
    return a if isinstance(a, Array) else jax.device_put(np.array(a))


def streamed(source: RowSource) -> StreamedDataset:
    """All rows of a source. Raises ValueError when there is none."""
    n = len(source)
    if n == 0:
        raise ValueError("a source needs a row at least")
    return StreamedDataset(source, on_device(np.arange(n)), on_device(np.ones(n, bool)))


def read_rows(source: RowSource, rows: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Some rows of a source as fields [n, ...]: at once, where the source can."""
    several = getattr(source, "__getitems__", None)
    read = several(rows) if several else [source[row] for row in rows]
    return {name: np.stack([row[name] for row in read]) for name in read[0]}


def take(data: AnyDataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows [n] of the arrays of a set, or of its source, as fields [n, ...]."""
    if isinstance(data, StreamedDataset):
        return dict(read_rows(data.source, rows.tolist()))
    return {name: np.asarray(a)[rows] for name, a in data.arrays.items()}


def contents(data: AnyDataset) -> PyTree:
    """What tells one set from another: its rows, of a source the first and the last."""
    if isinstance(data, StreamedDataset):
        ends = read_rows(data.source, [0, len(data.source) - 1])
        return data.indices, data.mask, dict(ends)
    return data.indices, data.mask, dict(data.arrays)


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
    if isinstance(data, StreamedDataset):
        n = len(data.source)
    else:
        n = len(next(iter(data.arrays.values())))
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
