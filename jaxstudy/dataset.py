"""Datasets as resident arrays, and the order in which training visits them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported where they are first used

from jaxstudy.types import Array, Batch, Key


class Dataset(NamedTuple):
    """Some rows of arrays that live on the device.

    arrays: fields [N, ...]; indices [n]: which of the N belong to this set;
    mask [n]: False where an index is only padding (folds of unequal size).
    Subsets share the arrays: ten folds of a set cost ten index vectors.
    """

    arrays: Batch
    indices: Array
    mask: Array


class Source(Protocol):
    """Rows read one by one, or several by `__getitems__(rows)` if there is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Mapping[str, Any]: ...


class Streamed(NamedTuple):
    """Some rows of a source that is not on the device: as a Dataset otherwise."""

    source: Source
    indices: Array
    mask: Array


D = TypeVar("D", bound="Dataset | Streamed")


class BatchIndices(NamedTuple):
    """Indices of the rows of one or more batches, [..., B], with mask 0 on padding."""

    indices: Array
    mask: Array


def dataset(arrays: Mapping[str, np.ndarray | Array]) -> Dataset:
    """All rows of some arrays with a common leading axis.

    Raises ValueError when the lengths differ or there is no row.
    """
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"fields need one common length over 0, not {lengths}")
    n = next(iter(lengths.values()))
    device_arrays = {name: jnp.asarray(a) for name, a in arrays.items()}
    return Dataset(device_arrays, jnp.arange(n), jnp.ones(n, bool))


def streamed(source: Source) -> Streamed:
    """All rows of a source. Raises ValueError when there is none."""
    if len(source) == 0:
        raise ValueError("a source needs a row at least")
    return Streamed(source, jnp.arange(len(source)), jnp.ones(len(source), bool))


def subset(data: D, rows: np.ndarray | Sequence[int]) -> D:
    """The set with only these rows of the arrays, or of the source [n]."""
    _check_rows(data, rows)
    chosen = jnp.asarray(np.asarray(rows, np.int32))
    return data._replace(indices=chosen, mask=jnp.ones(len(chosen), bool))


def evenly_spaced(data: D, count: int) -> D:
    """At most `count` rows of a set, evenly spaced: the first may be all of one class.

    Raises ValueError when `count` is under 1.
    """
    if count < 1:
        raise ValueError(f"need 1 row at least, not {count}")
    n = len(data.indices)
    chosen = np.arange(min(count, n)) * n // min(count, n)
    return data._replace(indices=data.indices[chosen], mask=data.mask[chosen])


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
    return data._replace(indices=jnp.asarray(indices), mask=jnp.asarray(mask))


def _check_rows(data: Dataset | Streamed, rows: np.ndarray | Sequence[int]) -> None:
    """Raise ValueError where there is no such row: a gather would take another."""
    if isinstance(data, Streamed):
        n = len(data.source)
    else:
        n = len(next(iter(data.arrays.values())))
    if len(rows) == 0 or np.min(rows) < 0 or np.max(rows) >= n:
        raise ValueError(f"rows must be some of 0 to {n - 1}")


class Order(NamedTuple):
    """How an epoch visits the rows.

    shuffle: a new permutation each epoch, one permutation for all epochs, or the order
    of `indices`; drop_remainder: whole batches only, so that each epoch leaves some
    rows out, else the last batch is padded.
    """

    shuffle: Literal["each epoch", "once", "never"] = "each epoch"
    drop_remainder: bool = False


SHUFFLED = Order()


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
    data: Dataset, batch_size: int, key: Key, epoch: Array, order: Order = SHUFFLED
) -> BatchIndices:
    """The batches of one epoch [S, B]: a new permutation that (key, epoch) fixes.

    Each valid row occurs exactly once, unless `order` says otherwise; shuffled once,
    every epoch has the permutation of the first. Nothing is carried from epoch to
    epoch, so a resumed run needs only the step it had reached.
    """
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


def ordered_batches(data: Dataset, batch_size: int) -> BatchIndices:
    """The rows in order as batches [S, B], for evaluation."""
    return _batches(data.indices, data.mask, batch_size)


def gather(data: Dataset, batch: BatchIndices) -> Batch:
    """The fields of some rows [B, ...], and their "mask" [B]."""
    fields = {
        name: a.at[batch.indices].get(mode="promise_in_bounds")
        for name, a in data.arrays.items()
    }
    return {**fields, "mask": batch.mask}


def random_split(n: int, shares: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Cut range(n) at random into disjoint, exhaustive parts of about these shares.

    Raises ValueError when the shares do not add up to 1 or a part would be empty.
    """
    if not np.isclose(sum(shares), 1) or min(shares) <= 0:
        raise ValueError(f"shares must be positive and add up to 1, not {shares}")
    order = np.random.default_rng(seed).permutation(n)
    parts = np.split(order, np.round(np.cumsum(shares)[:-1] * n).astype(int))
    if min(len(p) for p in parts) == 0:
        raise ValueError(f"{n} rows are too few for the shares {shares}")
    return tuple(np.sort(p) for p in parts)


def grouped_split(
    keys: Sequence[Sequence[Hashable]], held_out: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, to choose by and to test on, the same at every call.

    Rows that share a key, or are linked by others that do, are never in two of them.
    `held_out` is the share of each of the last two, in such groups. Raises ValueError
    where there are too few groups.
    """
    numbers: dict[Hashable, int] = {}
    links = [
        (row, numbers.setdefault(key, len(numbers)))
        for row, own in enumerate(keys)
        for key in own
    ]
    rows, columns = np.array(links).reshape(-1, 2).T
    size = len(keys) + len(numbers)
    graph = scipy.sparse.coo_array(
        (np.ones(len(rows)), (rows, len(keys) + columns)), shape=(size, size)
    )
    _, groups = scipy.sparse.csgraph.connected_components(graph, directed=False)
    group = groups[: len(keys)]
    names = np.random.default_rng(0).permutation(np.unique(group))
    count = int(len(names) * held_out)
    if count < 1:
        raise ValueError(f"{len(names)} groups are too few to hold some of them out")
    parts = names[2 * count :], names[:count], names[count : 2 * count]
    train, validation, test = (np.flatnonzero(np.isin(group, part)) for part in parts)
    where: dict[Hashable, int] = {}
    for place, part in enumerate((train, validation, test)):
        for key in (key for row in part.tolist() for key in keys[row]):
            assert where.setdefault(key, place) == place, f"{key!r} is in two sets"
    return train, validation, test


def kfold(n: int, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of every fold; held-out parts tile range(n).

    Raises ValueError unless 2 <= folds <= n.
    """
    if not 2 <= folds <= n:
        raise ValueError(f"need 2 to {n} folds for {n} rows, not {folds}")
    order = np.random.default_rng(seed).permutation(n)
    parts = [np.sort(p) for p in np.array_split(order, folds)]
    return [(np.setdiff1d(np.arange(n), part), part) for part in parts]
