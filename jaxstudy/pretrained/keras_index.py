"""Where the arrays of a Keras HDF5 file lie: a program that `keras_weights` runs.

The HDF5 library is made for files that one trusts: a few flipped bytes make it crash or
never end. In a process of its own it can do neither harm, and it tells only what is
where: no values are read here, so no filter, external file or huge shape takes effect.

Standard input: the file. Standard output, as JSON: {"layers": [[NAME, [[DTYPE, SHAPE,
OFFSET], ...]], ...]}, or {"error": what is wrong with the file}.
"""

import contextlib
import io
import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import h5py
import numpy as np
from h5py import h5d, h5l, h5o, h5t  # pyright: ignore[reportAttributeAccessIssue]

_LIST = 2**16  # bytes of a list of names: Keras cuts longer ones
_SPARE = 2**31  # bytes of memory beside the file

ArrayPlace = tuple[str, tuple[int, ...], int]  # dtype, shape, offset in the file
LayerIndex = tuple[str, list[ArrayPlace]]
_Kind = TypeVar("_Kind", h5py.Group, h5py.Dataset)


def index_file() -> None:
    """Read the file from standard input and print where its arrays are."""
    content = sys.stdin.buffer.read()
    with contextlib.suppress(OSError, ValueError):  # not every system has this limit
        limit = _SPARE + 4 * len(content)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(index(content)))


def index(content: bytes) -> dict[str, Any]:
    """What the program prints about an HDF5 file."""
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            return {"layers": list(_Index().layers(file))}
    except _KerasError as error:
        return {"error": str(error)}
    except Exception as error:  # whatever h5py and numpy raise
        reason = str(error).partition("\n")[0].strip("'\"")
        return {"error": f"it is damaged ({reason})"}


class _KerasError(ValueError):
    """What Keras would not have written."""


class _Index:
    """Layers and their arrays, each object at most once: links can form circles."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def layers(self, file: h5py.Group) -> Iterator[LayerIndex]:
        """All layers, also those that hold nothing."""
        # of a whole model, they are one level down
        old = _group(file, "model_weights") if _has(file, "model_weights") else file
        names = _names(old, "layer_names")
        if names:  # lists of names give the order
            for name in names:
                yield from self._old_layers(name, _group(old, name))
        elif _has(file, "layers"):
            yield from self._new_layers(_group(file, "layers"))
        else:
            raise _KerasError("it holds no layers of Keras")

    def _old_layers(self, name: str, group: h5py.Group) -> Iterator[LayerIndex]:
        """A layer, or those of a model inside the model.

        Of these the list has what is trained before what is not: their numbers give the
        order.
        """
        self._once(group)
        inner: dict[str, list[str]] = {}
        for array in _names(group, "weight_names"):  # LAYER/VARIABLE
            inner.setdefault(array.rpartition("/")[0], []).append(array)
        if len(inner) > 1:
            for layer in sorted(inner, key=_counter):
                yield self._layer(layer, group, inner[layer])
        else:
            yield self._layer(name, group, next(iter(inner.values()), []))

    def _new_layers(self, group: h5py.Group) -> Iterator[LayerIndex]:
        """The layers of a model, with those of models inside it.

        dense, dense_1, ... are the dense layers in order.
        """
        self._once(group)
        for name in sorted(group, key=_counter):
            layer = _group(group, name)
            if _has(layer, "vars"):
                arrays = _group(layer, "vars")
                yield self._layer(name, arrays, sorted(arrays, key=_counter))
            if _has(layer, "layers"):
                yield from self._new_layers(_group(layer, "layers"))

    def _layer(self, name: str, group: h5py.Group, arrays: list[str]) -> LayerIndex:
        return name, [self._array(group, path) for path in arrays]

    def _array(self, group: h5py.Group, path: str) -> ArrayPlace:
        """Floating-point numbers that lie in the file as they are."""
        place, _, name = path.rpartition("/")
        dataset = _open(_group(group, place) if place else group, name, h5py.Dataset)
        self._once(dataset)
        created, stored = dataset.id.get_create_plist(), dataset.id.get_type()
        contiguous = created.get_layout() == h5d.CONTIGUOUS
        if not contiguous or created.get_external_count():
            problem = "values are compressed, in chunks, or in another file"
        elif dataset.dtype.kind != "f" or stored != h5t.py_create(dataset.dtype):
            problem = "there are no floating-point numbers"
        elif dataset.shape is None:
            problem = "there is no shape"
        elif dataset.id.get_storage_size() != dataset.nbytes:
            problem = "values are missing"
        else:
            offset = dataset.id.get_offset() or 0  # none where there are no values
            return dataset.dtype.str, dataset.shape, offset
        raise _KerasError(f"in {dataset.name}, {problem}")

    def _once(self, thing: h5py.Group | h5py.Dataset) -> None:
        address = h5o.get_info(thing.id).addr
        if address in self._seen:
            raise _KerasError(f"{thing.name} is there more than once")
        self._seen.add(address)


def _has(group: h5py.Group, name: str) -> bool:
    return group.id.links.exists(name.encode())


def _group(group: h5py.Group, path: str) -> h5py.Group:
    """The group at a path below another."""
    for name in path.split("/"):
        group = _open(group, name, h5py.Group)
    return group


def _open(group: h5py.Group, name: str, kind: type[_Kind]) -> _Kind:
    """What has this name in a group, not by a link that may lead into other files."""
    where = f"{group.name}/{name}".replace("//", "/")
    if not _has(group, name):
        raise _KerasError(f"{where} is missing")
    if group.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise _KerasError(f"{where} is a link")
    found = group[name]
    if not isinstance(found, kind):
        raise _KerasError(f"{where} is no {kind.__name__.lower()}")
    return found


def _counter(name: str) -> tuple[str, int]:
    """conv2d_10 after conv2d_9, and that after conv2d."""
    counted = re.fullmatch(r"(.*?)_?([0-9]{1,9})", name)
    return (counted[1], int(counted[2])) if counted else (name, 0)


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; Keras cuts a long one into attribute0, attribute1, ..."""
    pieces = [_texts(group, attribute)]
    while pieces[-1] is not None or len(pieces) == 1:
        pieces.append(_texts(group, f"{attribute}{len(pieces) - 1}"))
    return [name for piece in pieces if piece for name in piece]


def _texts(group: h5py.Group, name: str) -> list[str] | None:
    """The attribute of a group that is a list of texts; None where there is none."""
    if name not in group.attrs:
        return None
    attribute = group.attrs.get_id(name)
    if attribute.shape == (0,):  # of numbers, as numpy has it
        return []
    is_list = len(attribute.shape or ()) == 1 and attribute.get_storage_size() <= _LIST
    if not is_list or h5py.check_string_dtype(attribute.dtype) is None:
        raise _KerasError(f"{name} of {group.name} is no list of names")
    texts = np.asarray(group.attrs[name]).tolist()
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


if __name__ == "__main__":
    index_file()
