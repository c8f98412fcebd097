"""Replicas: one program for independent trainings, over the devices of this process."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxstudy.types import PyTree

Mode = Literal["map", "vmap"]


def replica_mesh(count: int) -> Mesh | None:
    """As many of this process's devices as divide the replicas evenly; None for one."""
    devices = jax.local_devices()
    n = max(d for d in range(1, len(devices) + 1) if count % d == 0)
    return Mesh(devices[:n], ("replicas",)) if n > 1 else None


def over_replicas(
    program: Callable[..., Any], own: PyTree, mode: Mode, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """`program` of every replica: outputs get a leading axis L.

    own: a tree of the structure of the inputs or of the beginning of it, true where
    each replica has its own part of an array [L, ...] and false where all share it; the
    first input is each one's own. mode: sequentially (`lax.map`) or vectorised
    (`vmap`). A mesh shares the replicas out among its devices.
    """

    def vectorised(*inputs: Any) -> Any:
        axes = jax.tree.map(lambda each: 0 if each else None, own)
        return jax.vmap(program, axes)(*inputs)

    def sequential(*inputs: Any) -> Any:
        def replica(i: jax.Array) -> Any:
            def part(each: bool, tree: PyTree) -> PyTree:
                return jax.tree.map(lambda a: a[i], tree) if each else tree

            return program(*jax.tree.map(part, own, inputs))

        return jax.lax.map(replica, jnp.arange(len(jax.tree.leaves(inputs[0])[0])))

    mapped = vectorised if mode == "vmap" else sequential
    if mesh is None:
        return mapped
    specs = jax.tree.map(lambda each: P("replicas") if each else P(), own)
    return jax.shard_map(
        mapped, mesh=mesh, in_specs=specs, out_specs=P("replicas"),
        check_vma=False,  # the loops begin with constants, alike everywhere
    )  # fmt: skip


def map_replicas(fn: Callable[[Any], Any], tree: PyTree, mode: Mode = "map") -> Any:
    """`fn` of every replica of a tree [L, ...], by `lax.map` or by `vmap`."""
    return over_replicas(fn, (True,), mode)(tree)


def put(inputs: PyTree, own: PyTree, mesh: Mesh | None) -> PyTree:
    """Inputs on their devices: each replica's own split, what all share on each."""
    if mesh is None:
        return jax.device_put(inputs)

    def place(each: bool, tree: PyTree) -> PyTree:
        spec = P("replicas") if each else P()
        return jax.device_put(tree, NamedSharding(mesh, spec))

    return jax.tree.map(place, own, inputs)
