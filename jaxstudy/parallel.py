"""How one program uses many cores and devices."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxstudy.types import PyTree

Mode = Literal["auto", "map", "vmap"]
Layout = Literal["replicas", "data"]  # what devices share: whole trainings, or batches


def device_mesh(layout: Layout, count: int | None) -> Mesh | None:
    """The devices that train so many replicas, or a training that is none (count None).

    Laid out by "data", as many groups of devices as is possible share out the replicas,
    and the devices of a group the rows of every batch: there are two at least.
    """
    devices = np.array(jax.devices())
    groups = math.gcd(count or 1, devices.size)
    if layout == "data" and groups < devices.size:
        auto = (AxisType.Auto, AxisType.Auto)
        return Mesh(devices.reshape(groups, -1), ("replicas", "data"), axis_types=auto)
    return replica_mesh(count) if count else None


def layout_of(a: Any) -> Layout:
    """How the devices are laid out that hold an array, if they do."""
    sharding = getattr(a, "sharding", None)
    by_data = isinstance(sharding, NamedSharding) and "data" in sharding.mesh.axis_names
    return "data" if by_data else "replicas"


def data_size(mesh: Mesh | None) -> int:
    """How many devices share a batch."""
    return mesh.shape.get("data", 1) if mesh else 1


def batch_sharding(mesh: Mesh, ndim: int, own: bool) -> NamedSharding:
    """Of batches [..., B]: the devices share the B, and the replicas' own L."""
    axes = ["replicas" if own else None, *[None] * (ndim - 1)]
    if data_size(mesh) > 1:
        axes[-1] = "data"
    return NamedSharding(mesh, P(*axes))


def _constrain(tree: PyTree, spec: P) -> PyTree:
    if "data" not in jax.sharding.get_abstract_mesh().axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, spec)


def split_rows(batch: PyTree) -> PyTree:
    """The same arrays [B, ...], whose rows the devices share that share a batch.

    Where each device has a batch of its own it does nothing. The compiler splits what
    depends on the rows, and sums gradients over the devices; a step uses it where it
    draws rows.
    """
    return _constrain(batch, P("data"))


def replicated(tree: PyTree) -> PyTree:
    """The same arrays, whole on each device that shares a batch."""
    return _constrain(tree, P())


def replica_mesh(count: int) -> Mesh | None:
    """As many devices as divide the replicas evenly, equally many of each process.

    None for one. Where all processes cannot share the replicas, each trains all.
    """
    by_process, count_of = [jax.local_devices()], jax.process_count()
    if count_of > 1 and count % count_of == 0:
        by_process = [
            [device for device in jax.devices() if device.process_index == p]
            for p in range(count_of)
        ]
    own = count // len(by_process)  # replicas of a process
    n = max(d for d in range(1, min(map(len, by_process)) + 1) if own % d == 0)
    devices = [device for of_process in by_process for device in of_process[:n]]
    return Mesh(devices, ("replicas",)) if len(devices) > 1 else None


def vectorises(mode: Mode) -> bool:
    """Whether replicas run at once (`vmap`), and not one after another (`lax.map`).

    "auto" vectorises on an accelerator, which one small training leaves idle; on a CPU
    it does not, where a loop is faster and a replica has the same bits beside any.
    """
    return mode == "vmap" or (mode == "auto" and jax.default_backend() != "cpu")


def over_replicas(
    program: Callable[..., Any], own: PyTree, mode: Mode, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """`program` of every replica: outputs get a leading axis L.

    own: a tree of the structure of the inputs or of the beginning of it, true where
    each replica has its own part of an array [L, ...] and false where all share it; the
    first input is each one's own. mode: see `vectorises`. A mesh shares replicas out
    among its devices.
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

    mapped = vectorised if vectorises(mode) else sequential
    if mesh is None:
        return mapped
    specs = jax.tree.map(lambda each: P("replicas") if each else P(), own)
    return jax.shard_map(
        mapped, mesh=mesh, in_specs=specs, out_specs=P("replicas"),
        axis_names={"replicas"},  # over the rest of the mesh the compiler decides
        check_vma=False,  # the loops begin with constants, alike everywhere
    )  # fmt: skip


def jit_on(
    mesh: Mesh | None,
    program: Callable[..., Any],
    own: PyTree,
    mode: Mode,
    **options: Any,
) -> Any:
    """`program` jitted for the devices of a mesh; `own` as in `over_replicas`.

    own None: there are no replicas. options: of `jax.jit`.
    """
    mapped = program if own is None else over_replicas(program, own, mode, mesh)
    if mesh is None or data_size(mesh) == 1:
        return jax.jit(mapped, **options)

    def sharing_batches(*inputs: Any) -> Any:  # `split_rows` sees the mesh
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return mapped(*inputs)

    outputs = NamedSharding(mesh, P() if own is None else P("replicas"))
    return jax.jit(sharing_batches, out_shardings=outputs, **options)


def map_replicas(fn: Callable[[Any], Any], tree: PyTree) -> Any:
    """`fn` of every replica of a tree [L, ...], sequentially."""
    return over_replicas(fn, (True,), "map")(tree)


def put(inputs: PyTree, own: PyTree, mesh: Mesh | None) -> PyTree:
    """Inputs on their devices: each replica's own split, what all share on each."""
    if mesh is None:
        return jax.device_put(inputs)

    def place(each: bool, tree: PyTree) -> PyTree:
        return _put(tree, NamedSharding(mesh, P("replicas") if each else P()))

    return jax.tree.map(place, own, inputs)


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Arrays that every process has whole, each process's part on its devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(a: Any) -> jax.Array:  # device_put would compare it over the network
        if getattr(a, "sharding", None) == sharding:
            return a
        if _is_key(a):
            return jax.random.wrap_key_data(place(jax.random.key_data(a)))
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

    return jax.tree.map(place, tree)


def localized(tree: PyTree) -> PyTree:
    """Arrays that processes share, as arrays that each has whole; all have to call it.

    What a training by "data" has made stays known as such, to `layout_of`.
    """
    if jax.process_count() == 1:
        return tree
    shared = [a for a in jax.tree.leaves(tree) if not _is_local(a)]
    if not shared:
        return tree
    mesh = shared[0].sharding.mesh
    plain = _everywhere(mesh)(tree)
    own = np.array(jax.local_devices()).reshape(1, -1)
    here = jax.local_devices()[0]
    if "data" in mesh.axis_names:
        here = NamedSharding(Mesh(own, ("replicas", "data")), P())

    def local(a: jax.Array, original: Any) -> jax.Array:
        placed = jax.device_put(a.addressable_data(0), here)
        return jax.random.wrap_key_data(placed) if _is_key(original) else placed

    return jax.tree.map(local, plain, tree)


@functools.lru_cache(maxsize=4)
def _everywhere(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """A program that gives each device all of some arrays, keys as integers."""

    def plain(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: jax.random.key_data(a) if _is_key(a) else a, tree)

    return jax.jit(plain, out_shardings=NamedSharding(mesh, P()))


def _is_local(a: Any) -> bool:
    return not isinstance(a, jax.Array) or a.is_fully_addressable


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def to_host(tree: PyTree) -> PyTree:
    """Arrays on the host, where other processes hold parts of them, too."""
    return jax.device_get(localized(tree))


def usable_cores() -> int:
    """How many processor cores this process may use; all, where no system says it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
