"""Sets that do not fit on the device: rows read when they are needed, ahead of use.

The order is that of resident sets, a function of (key, epoch), so a resumed run goes on
at its step with no state of an iterator to keep.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from jaxstudy.dataset import (
    BatchIndices,
    Dataset,
    Order,
    Source,
    Streamed,
    epoch_batches,
    ordered_batches,
    steps_per_epoch,
)
from jaxstudy.types import Key

# What one chunk of rows may take in the memory of the device; as much is read ahead.
CHUNK_BYTES = 256 * 2**20


class _Chunks:
    """Rows of a source by chunk: item c is the rows of chunk c, stacked."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        return read_rows(self.source, self.rows[index].tolist())


def read_rows(source: Source, rows: Sequence[int]) -> Mapping[str, np.ndarray]:
    """Some rows of a source as fields [n, ...]: at once, where the source can."""
    several = getattr(source, "__getitems__", None)
    read = several(rows) if several else [source[row] for row in rows]
    return {name: np.stack([row[name] for row in read]) for name in read[0]}


def take(data: Dataset | Streamed, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows [n] of the arrays of a set, or of its source, as fields [n, ...]."""
    if isinstance(data, Streamed):
        return dict(read_rows(data.source, rows.tolist()))
    return {name: np.asarray(a)[rows] for name, a in data.arrays.items()}


def row_bytes(data: Streamed) -> int:
    """The size of one row of all fields."""
    first = data.source[int(data.indices.reshape(-1)[0])]
    return sum(np.asarray(value).nbytes for value in first.values())


def _read_ahead(source: Source, rows: np.ndarray) -> Iterator[Mapping[str, np.ndarray]]:
    """The fields of each chunk of rows [chunks, n], in order."""
    import grain  # takes seconds, and only streams need it

    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    yield from grain.MapDataset.source(_Chunks(source, rows)).to_iter_dataset(ahead)


def training_chunks(
    data: Streamed, batch_size: int, key: Key, order: Order, steps: int, begin: int
) -> Iterator[Dataset]:
    """The rows of the next `steps` steps, from step `begin` on, for ever.

    Each is a resident set that holds its batches in order, to be visited without
    reshuffling; with keys [S], S sets of rows [S, steps B]. `steps` divides an epoch.
    """
    per_epoch = steps_per_epoch(data.indices.shape[-1], batch_size, order)
    grouped = key.ndim == 1
    own = 0 if data.indices.ndim == 2 else None

    def visit(
        key: Key, indices: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> BatchIndices:
        return epoch_batches(Dataset({}, indices, mask), batch_size, key, epoch, order)

    if grouped:
        visit = jax.vmap(visit, in_axes=(0, own, own, None))
    visit = jax.jit(visit)
    while True:
        epoch, first = divmod(begin, per_epoch)
        batches = jax.device_get(visit(key, data.indices, data.mask, np.int32(epoch)))
        chunks = [_by_chunk(a, grouped, first, steps) for a in batches]  # [c, S, n]
        read = _read_ahead(data.source, chunks[0].reshape(len(chunks[0]), -1))
        for fields, mask in zip(read, chunks[1], strict=True):
            rows = np.arange(mask.size, dtype=np.int32).reshape(mask.shape)
            chosen = (rows, mask > 0) if grouped else (rows[0], mask[0] > 0)
            yield Dataset(dict(fields), *chosen)  # type: ignore[arg-type]
        begin = (epoch + 1) * per_epoch


def _by_chunk(a: np.ndarray, grouped: bool, first: int, steps: int) -> np.ndarray:
    """Batches [S, steps of an epoch, B] from step `first` on, as [chunks, S, n]."""
    a = (a if grouped else a[None])[:, first:]
    groups, left, batch_size = a.shape
    a = a.reshape(groups, left // steps, steps * batch_size)
    return np.moveaxis(a, 1, 0)


def evaluation_chunks(data: Streamed, batch_size: int) -> Iterator[Dataset]:
    """The rows in order, a resident set for each batch [B]."""
    plain = Dataset({}, data.indices, data.mask)
    batches = jax.device_get(ordered_batches(plain, min(batch_size, len(data.indices))))
    read = _read_ahead(data.source, batches.indices)
    for fields, mask in zip(read, batches.mask, strict=True):
        rows = np.arange(len(mask), dtype=np.int32)
        yield Dataset(dict(fields), rows, mask > 0)  # type: ignore[arg-type]
