"""Visits: which batches each chunk is given, and their rows."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxstudy.chunks import Chunk
from jaxstudy.dataset import (
    AnyDataset,
    BatchIndices,
    BatchRows,
    Dataset,
    Order,
    epoch_batches,
    stacked_subsets,
    steps_per_epoch,
    subset,
)
from jaxstudy.parallel import batch_sharding, data_size, put
from jaxstudy.streaming import StreamedDataset
from jaxstudy.types import Array, Batch, Key, UserError


def with_whole_batches(
    data: AnyDataset, batch_size: int
) -> tuple[AnyDataset, int, int]:
    """The set, the steps of an epoch, and how many rows a batch needs to be a step.

    Replicas may have epochs of different lengths: the rows are then padded anew to the
    longest, so that one replica has a batch for every step.
    """
    indices, mask = (
        np.atleast_2d(a) for a in jax.device_get((data.indices, data.mask))
    )
    counts = [int(n) for n in mask.sum(axis=-1)]
    steps = [steps_per_epoch(n, batch_size, data.order) for n in counts]
    if min(steps) == 0:
        raise UserError(f"{min(counts)} rows do not make one batch of {batch_size}")
    if min(steps) < steps_per_epoch(indices.shape[-1], batch_size, data.order):
        own = [rows[real] for rows, real in zip(indices, mask, strict=True)]
        alone = data.indices.ndim == 1
        data = subset(data, own[0]) if alone else stacked_subsets(data, own)
    if min(steps) == max(steps):
        return data, max(steps), 0
    return data, max(steps), batch_size if data.order.drop_remainder else 1


def load_batches(
    data: AnyDataset, batches: BatchIndices, own: bool, mesh: Mesh | None
) -> tuple[Batch, BatchIndices | BatchRows]:
    """Some arrays, and what `gather` takes of them for some batches [..., B].

    On the devices; own: whether each replica has its own batches.
    """
    if isinstance(data, StreamedDataset):
        sharding = batch_sharding(mesh, batches.mask.ndim, own) if mesh else None
        rows = data.load(batches, sharding)
        return {}, rows._replace(mask=put(rows.mask, own, mesh))
    assert isinstance(data, Dataset)
    return put((data.arrays, batches), (False, own), mesh)


class Visits:
    """The batches of every chunk [E, S, B], of replicas [L, E, S, B], and their rows.

    One order serves all chunks of an epoch, and one dispatch makes all of several.
    mesh: the devices that they are for.
    """

    def __init__(
        self,
        data: AnyDataset,
        key: Key,
        batch_size: int,
        per_epoch: int,
        chunk: Chunk,
        mesh: Mesh | None = None,
    ) -> None:
        if batch_size < data_size(mesh):
            raise UserError(
                f"--devices data: {data_size(mesh)} devices cannot share a batch of "
                f"{batch_size}; --devices replicas does without, or use fewer devices"
            )
        if mesh and isinstance(data, Dataset):  # once, not with every chunk
            data = replace(data, arrays=put(data.arrays, False, mesh))
        self.data, self.key, self.per_epoch, self.chunk = data, key, per_epoch, chunk
        self.mesh = mesh
        own = data.indices.ndim == 2, key.ndim == 1
        self.own, self.epoch = any(own), -1
        self.order = _order(data.order, batch_size, chunk.epochs, own)

    def load(self, step: int) -> tuple[Batch, BatchIndices | BatchRows]:
        """Those of the chunk that begins with this step, as `load_batches`."""
        epoch, first = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, rows = epoch, (self.data.indices, self.data.mask)
            self.batches = self.order(rows, self.key, jax.device_put(np.int32(epoch)))
        batches = self.batches
        if self.chunk.steps < self.per_epoch:
            first = jax.device_put(np.int32(first))
            batches = _cut(batches, first, self.chunk.steps)
        return load_batches(self.data, batches, self.own, self.mesh)


@functools.lru_cache(maxsize=32)
def _order(
    order: Order, batch_size: int, epochs: int, own: tuple[bool, bool]
) -> Callable[..., BatchIndices]:
    """The batches of some epochs, of the rows, a key and the first of the epochs.

    own: whether each replica has rows, and a key, of its own.
    """

    def batches(rows: tuple[Array, Array], key: Key, first: Array) -> BatchIndices:
        data = Dataset(*rows, {}, order=order)
        visited = first + jnp.arange(epochs)
        return jax.vmap(lambda e: epoch_batches(data, batch_size, key, e))(visited)

    axes = (0 if own[0] else None, 0 if own[1] else None, None)
    return jax.jit(jax.vmap(batches, axes) if any(own) else batches)


@functools.partial(jax.jit, static_argnames="steps")
def _cut(batches: BatchIndices, first: Array, steps: int) -> BatchIndices:
    """The batches of so many steps of [..., S, B], from one on."""

    def cut(a: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(a, first, steps, a.ndim - 2)

    return jax.tree.map(cut, batches)
