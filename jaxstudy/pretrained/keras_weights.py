"""The weights of Keras files, read so that nothing in a file can run, grow or reach.

Keras has written HDF5 files of the weights or of the whole model (`.h5`, the files of
keras.applications among them), its newer `.weights.h5`, and `.keras`, a zip file
around one of those. Only arrays are read: not the description of the model, which may
ask for code to be run, and no other file that this one may point to.

A layer has another name in every file (conv2d_94 for the first one), so layers are
matched by what they hold and by their order, and every shape is checked.
"""

import functools
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.model import Stages
from jaxstudy.models.inception import (
    ConvBN,
    Make,
    Mixed,
    inception_stages,
    inception_v3,
)
from jaxstudy.types import PyTree, UserError

_MEMBER = "model.weights.h5"  # of a .keras file
_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_SECONDS = 60  # that the HDF5 library may take; a file of InceptionV3 takes one

Where = tuple[str, ...]  # a path in the trees of parameters and statistics

# By the ranks of a layer's arrays. A normalisation with a scale would hold four.
_KINDS = {(4,): "convolution", (1, 1, 1): "normalisation", (2, 1): "dense"}


class KerasLayer(NamedTuple):
    """A layer with weights: its name in the file, and its arrays in Keras's order.

    That order is kernel, bias; or beta, moving mean, moving variance.
    """

    name: str
    arrays: Sequence[np.ndarray]


class _Slot(NamedTuple):
    """Where the arrays of a layer go, and their shapes."""

    wheres: Sequence[Where]
    shapes: Sequence[tuple[int, ...]]


def read_keras_layers(path: str | Path) -> list[KerasLayer]:
    """Every layer with weights of a Keras file, as read-only numpy arrays.

    They come in the model's order; in the newer files, which do not hold that, class
    by class, each in the model's order. The layers of a model inside the model stand
    in its place; in the older files, which tell no order of theirs, by class and the
    number in their name: as they were made. Raises UserError where the file is missing,
    damaged, or not as Keras would have written it.
    """
    try:
        return _layers(_read(Path(path)))
    except ValueError as error:
        raise UserError(f"no Keras weights can be read from {path}: {error}") from error


def load_inception_v3(
    path: str | Path, *, include_top: bool = True
) -> dict[str, PyTree]:
    """{"params", "extra"} of `inception_v3` from a Keras file, in float32.

    Without top, a file with any layers before and after the network will do, be it
    inside another model: they are left out. Raises UserError as `read_keras_layers`
    does, and where the file is of another network, with the first difference, or a
    number in it is not finite.
    """
    layers = read_keras_layers(path)
    try:
        weights = inception_weights(layers, include_top=include_top)
    except ValueError as error:
        raise UserError(
            f"{path} does not hold the weights of this InceptionV3: {error}"
        ) from error
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), weights)


def inception_weights(
    layers: Sequence[KerasLayer], *, include_top: bool = True
) -> dict[str, PyTree]:
    """The layers of a Keras InceptionV3 as {"params", "extra"}, its arrays as they are.

    Raises ValueError where they are of another network, with the first difference, or
    a number is not finite.
    """
    pairs = _in_either_order(layers, include_top)
    weights: dict[str, PyTree] = {}
    for layer, slot in pairs:
        for array, where in zip(layer.arrays, slot.wheres, strict=True):
            if not np.isfinite(array).all():
                raise ValueError(f"not every number in layer {layer.name} is finite")
            tree = weights
            for part in where[:-1]:
                tree = tree.setdefault(part, {})
            tree[where[-1]] = array
    return weights


def _in_either_order(
    layers: Sequence[KerasLayer], include_top: bool
) -> list[tuple[KerasLayer, _Slot]]:
    """`_matched` in the model's order, or that of making: shapes fit one of them."""
    errors = []
    for order in (keras_order, creation_order):
        slots = _slots(order)
        try:
            return _matched(
                layers, slots if include_top else slots[:-1], exactly=include_top
            )
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def keras_order(stages: Stages) -> list[Where]:
    """Where the convolutions of these stages are, in the order of Keras's layers.

    Keras sorts the layers of a network by their distance from its end, the longest
    first, and those of the same distance by branch.
    """
    ordered: list[Where] = []
    for name, make in stages:
        convolutions, _ = _distances(make, (name,), 0)
        convolutions.sort(key=lambda found: -found[0])  # stable: branches keep order
        ordered += [where for _, where in convolutions]
    return ordered


def creation_order(stages: Stages) -> list[Where]:
    """Where the convolutions of these stages are, in the order in which Keras's
    function makes them, and numbers them.
    """
    return [
        where for name, make in stages for _, where in _distances(make, (name,), 0)[0]
    ]


def _distances(
    make: Make, where: Where, end: int
) -> tuple[list[tuple[int, Where]], int]:
    """The convolutions of a step, in order, with their distances; that of its begin.

    `end` is how many layers come after the step.
    """
    module = make(name=where[-1])
    if isinstance(module, ConvBN):  # with its normalisation and activation
        return [(end + 3, where)], end + 3
    if not isinstance(module, Mixed):
        return [], end + 1
    found, farthest = [], 0
    for branch, steps in module.branches:
        distance = end + 1  # the concatenation
        of_branch = []
        for i, step in reversed(list(enumerate(steps, 1))):
            inner, distance = _distances(step, (*where, f"{branch}_{i}"), distance)
            of_branch = inner + of_branch
        found += of_branch
        farthest = max(farthest, distance)
    return found, farthest


@functools.cache  # tracing takes a second
def _expected_shapes() -> dict[Where, tuple[int, ...]]:
    model = inception_v3()
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree.leaves_with_path({"params": params, "extra": extra})
    return {tuple(part.key for part in path): leaf.shape for path, leaf in leaves}


def _slots(order: Callable[[Stages], list[Where]]) -> list[_Slot]:
    """What InceptionV3 has to be filled with, in one order; last of all the top."""
    shapes = _expected_shapes()

    def slot(*wheres: Where) -> _Slot:
        return _Slot(wheres, [shapes[where] for where in wheres])

    slots = []
    for where in order(inception_stages()):
        statistics = ("extra", "batch_stats", *where, "bn")
        slots += [
            slot(("params", *where, "conv", "kernel")),
            slot(
                ("params", *where, "bn", "bias"),
                (*statistics, "mean"),
                (*statistics, "var"),
            ),
        ]
    dense = ("params", "predictions", "dense")
    return [*slots, slot((*dense, "kernel"), (*dense, "bias"))]


def _matched(
    layers: Sequence[KerasLayer], slots: Sequence[_Slot], *, exactly: bool
) -> list[tuple[KerasLayer, _Slot]]:
    """Every slot beside its layer: the layers of a kind have the same order in both.

    Unless `exactly`, there may be other layers, before and after these.
    """
    expected: dict[str, list[_Slot]] = {kind: [] for kind in _KINDS.values()}
    for slot in slots:
        expected[_KINDS[_ranks(slot.shapes)]].append(slot)
    found: dict[str, list[KerasLayer]] = {kind: [] for kind in _KINDS.values()}
    for layer in layers:
        shapes = _shapes(layer)
        if _ranks(shapes) in _KINDS:
            found[_KINDS[_ranks(shapes)]].append(layer)
        elif exactly:
            listed = ", ".join(map(str, shapes[:4])) + ", ..." * (len(shapes) > 4)
            raise ValueError(f"layer {layer.name} holds arrays of shape {listed}")
    pairs = []
    for kind, own in expected.items():
        others = len(found[kind]) - len(own)
        if others < 0 or (exactly and others):
            raise ValueError(
                f"it holds {len(found[kind])} {kind} layers instead of {len(own)}"
            )
        pairs += zip(_most_alike(found[kind], own), own, strict=True)
    for layer, slot in pairs:
        for array, where, shape in zip(layer.arrays, *slot, strict=True):
            if array.shape != shape:
                raise ValueError(
                    f"layer {layer.name} holds an array of shape {array.shape} instead "
                    f"of {shape}, that of {'/'.join(where[1:])}"
                )
    return pairs


def _most_alike(
    layers: Sequence[KerasLayer], slots: Sequence[_Slot]
) -> Sequence[KerasLayer]:
    """As many neighbouring layers as there are slots: those with most of their shapes.

    Raises ValueError where all shapes are there more than once.
    """
    shapes = [_shapes(layer) for layer in layers]
    alike = [
        sum(a == b.shapes for a, b in zip(shapes[begin:], slots, strict=False))
        for begin in range(len(layers) - len(slots) + 1)
    ]
    if slots and alike.count(len(slots)) > 1:
        raise ValueError("it holds the network more than once")
    begin = alike.index(max(alike))
    return layers[begin : begin + len(slots)]


def _shapes(layer: KerasLayer) -> list[tuple[int, ...]]:
    return [array.shape for array in layer.arrays]


def _ranks(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(len, shapes))


def _read(path: Path) -> bytes:
    """A file of HDF5, or the one inside a .keras file."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise ValueError("it is no file" if path.exists() else "it is missing")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    if not content.startswith(_ZIP):
        return content
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if _MEMBER not in archive.namelist():
                raise ValueError(f"it is a zip file without {_MEMBER}")
            info = archive.getinfo(_MEMBER)
            # few bytes unpack to many; Keras stores them as they are
            packed = info.compress_type != zipfile.ZIP_STORED
            if packed or info.file_size > len(content):
                raise ValueError(f"its {_MEMBER} is compressed")
            return archive.read(info)  # nothing is unpacked to a folder
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,  # a version of the format
        OSError,  # an offset
        OverflowError,
        RuntimeError,  # encryption
        struct.error,
    ) as error:
        raise ValueError(f"its zip file is damaged ({error})") from error


def _layers(content: bytes) -> list[KerasLayer]:
    """The layers of an HDF5 file, whose arrays are views of its bytes."""
    if not content.startswith(_HDF5):
        raise ValueError("it is not an HDF5 file")
    index = _index(content)
    if "error" in index:
        raise ValueError(index["error"])
    return [
        KerasLayer(name, [_array(content, *place) for place in arrays])
        for name, arrays in index["layers"]
        if arrays
    ]


def _index(content: bytes) -> dict[str, Any]:
    """What the program `keras_index` prints about a file."""
    program = Path(__file__).with_name("keras_index.py")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(program)],
            # threads reserve memory, which is limited there
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            input=content, capture_output=True, timeout=_SECONDS, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise ValueError("it is damaged (the HDF5 library crashes)") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"it is damaged (the HDF5 library takes over {_SECONDS} s)"
        ) from error
    return json.loads(done.stdout)


def _array(content: bytes, dtype: str, shape: Sequence[int], offset: int) -> np.ndarray:
    try:
        return np.ndarray(shape, dtype, content, offset)
    except TypeError as error:  # numpy checks that it lies inside
        raise ValueError("an array reaches beyond its end") from error
