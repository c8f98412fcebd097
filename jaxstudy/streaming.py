"""Datasets that do not fit on the device: their rows are read when they are needed."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxstudy.dataset import AnyDataset, BatchIndices, BatchRows, on_device
from jaxstudy.types import Array, PyTree

# What the rows of one chunk may take in the memory of the device.
CHUNK_BYTES = 256 * 2**20
READ_AT_ONCE, THREADS = 256, 2  # rows that one of the threads reads


class RowSource(Protocol):
    """Rows read one by one, or several by `__getitems__(rows)` if there is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class StreamedDataset(AnyDataset):
    """Some rows of a source that is not on the device: as a Dataset otherwise."""

    source: RowSource

    def row_count(self) -> int:
        """The length of the source."""
        return len(self.source)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Read some rows [n] of the source, by threads: fields [n, ...]."""
        cuts = range(READ_AT_ONCE, len(rows), READ_AT_ONCE)
        with ThreadPoolExecutor(THREADS) as threads:
            parts = [*threads.map(self._stacked, np.split(rows, cuts))]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _stacked(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        several = getattr(self.source, "__getitems__", None)
        numbers = rows.tolist()
        read = several(numbers) if several else [self.source[n] for n in numbers]
        return {name: np.stack([row[name] for row in read]) for name in read[0]}

    def contents(self) -> PyTree:
        """The first and the last row of the source."""
        ends = self.read(np.array([0, len(self.source) - 1]))
        return self.indices, self.mask, ends

    def max_steps(self, rows_per_step: int) -> int:
        """How many steps' rows the device holds at once, in CHUNK_BYTES."""
        first = self.source[int(np.ravel(self.indices)[0])]
        row_bytes = sum(np.asarray(value).nbytes for value in first.values())
        return max(1, CHUNK_BYTES // max(1, row_bytes * rows_per_step))

    def load(
        self, batches: BatchIndices, sharding: NamedSharding | None = None
    ) -> BatchRows:
        """The rows of some batches [..., B]: on the device, or shared by several.

        sharding: how devices share [..., B'], B' being B filled up to the next number
        that they share evenly. A process reads the rows of its own devices alone.
        """
        rows = np.asarray(batches.indices)
        if sharding is None:
            return BatchRows(jax.device_put(self._read_batches(rows)), batches.mask)
        fill = -rows.shape[-1] % sharding.mesh.shape.get("data", 1)
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, fill)], mode="wrap")
        places = sharding.addressable_devices_indices_map(rows.shape)
        different = {str(i): rows[i] for i in places.values()}  # devices may have one
        read = {name: self._read_batches(part) for name, part in different.items()}

        def shared(name: str) -> Array:
            pieces = [
                jax.device_put(read[str(i)][name], device)
                for device, i in places.items()
            ]
            shape = rows.shape + pieces[0].shape[rows.ndim :]
            return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

        names = next(iter(read.values()))
        return BatchRows({name: shared(name) for name in names}, batches.mask)

    def _read_batches(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fields [..., B, ...] of rows [..., B]."""
        fields = self.read(rows.ravel())
        return {n: a.reshape(rows.shape + a.shape[1:]) for n, a in fields.items()}


def streamed(source: RowSource) -> StreamedDataset:
    """All rows of a source. Raises ValueError when there is none."""
    n = len(source)
    if n == 0:
        raise ValueError("a source needs a row at least")
    return StreamedDataset(on_device(np.arange(n)), on_device(np.ones(n, bool)), source)
