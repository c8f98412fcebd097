"""The tensors of a PyTorch file, read by a `pickle.Unpickler` that can make no others.

A pickle is a program whose instructions can import and call anything. Only those that a
state dict needs are admitted, and each name that a file may import has a meaning of its
own here; whatever else a file asks for is refused before anything is called.
"""

import io
import math
import pickle
import pickletools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxstudy.types import UserError

# The first two pickles of a file: its magic number, and the format's version 1001.
_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e80024de9032e")
_DTYPES = {"HalfStorage": "<f2", "FloatStorage": "<f4", "LongStorage": "<i8"}
_INSTRUCTIONS = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINUNICODE "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL BINPERSID REDUCE "
    "BUILD"
)
# EfficientNet-Lite0 takes half as many. Each can take some memory, or nest a value.
_COUNT = 20_000
_LENGTH = 2**40


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict[Any, Any]):
    """What stands for an OrderedDict: made empty, its attributes left out."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, attributes: object) -> None:
        """The versions of PyTorch's modules are not kept."""


def read_torch_weights(content: bytes, name: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by their names, as read-only views of `content`.

    The format is that of PyTorch before 1.6: a row of pickles with the values behind
    them. Raises UserError, with the `name` of the file, where it has another format,
    is truncated, holds anything besides tensors of float16, float32 and int64, or
    asks for anything else to be imported or called.
    """
    try:
        if not content.startswith(_MAGIC):
            raise ValueError(f"it begins with {content[:4]!r}")
        stream = io.BytesIO(content)
        stream.seek(len(_MAGIC))
        system = _Unpickler(stream).load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its numbers are not little-endian")
        unpickler = _Unpickler(stream)
        tensors = unpickler.load()
        keys = _Unpickler(stream).load()
        begins = _begins(content, stream.tell(), keys, unpickler.storages)
        if not isinstance(tensors, dict):
            raise ValueError("it holds no dict of tensors")
        return {key: _array(key, tensors[key], content, begins) for key in tensors}
    except ValueError as error:
        raise UserError(f"{name} is no file of PyTorch weights: {error}") from error


class _Unpickler(pickle.Unpickler):
    """The next pickle of a stream. `storages` has those that it mentions, by key."""

    def __init__(self, stream: io.BytesIO) -> None:
        begin = stream.tell()
        _check_instructions(stream)
        super().__init__(io.BytesIO(stream.getbuffer()[begin : stream.tell()]))
        self.storages: dict[str, _Storage] = {}

    def load(self) -> Any:
        """Its value. Raises ValueError where its instructions do not fit together."""
        try:
            return super().load()
        except ValueError:
            raise
        except Exception as error:  # whatever its stack, memo or calls do not allow
            raise ValueError("its instructions are damaged") from error

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises ValueError for all but those of tensors."""
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise ValueError(
            f"it asks for {module}.{name!r}, which is not admitted; nothing was run"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of ("storage", type, key, device, size, None)."""
        match pid:
            case ("storage", str(dtype), str(key), str(), int(size), None) if (
                dtype in _DTYPES.values() and 0 <= size < _LENGTH
            ):
                storage = _Storage(key, dtype, size)
                if self.storages.setdefault(key, storage) == storage:
                    return storage
                raise ValueError(f"it declares storage {key!r} twice")
        raise ValueError("it refers to something that is no plain storage")

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
    ) -> _Tensor:
        """Gradients, hooks and metadata are left out."""
        places = (offset,), shape, strides
        if not (
            isinstance(storage, _Storage)
            and all(isinstance(ns, tuple) for ns in places)
            and all(type(n) is int and 0 <= n < _LENGTH for ns in places for n in ns)
            and len(shape) == len(strides)
        ):
            raise ValueError("it calls something in a way that no tensor needs")
        return _Tensor(storage, offset, shape, strides)


def _check_instructions(stream: io.BytesIO) -> None:
    """Look through the next pickle of a stream, without following its instructions."""
    admitted = set(_INSTRUCTIONS.split())
    argument: Any
    tuples: set[int] = set()
    is_tuple = False  # what the last instruction made
    with warnings.catch_warnings(action="ignore"):  # of escapes in names
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if code.name not in admitted:
                raise ValueError(f"it has the instruction {code.name}; nothing was run")
            if count >= _COUNT or (code.name == "LONG_BINPUT" and argument >= _COUNT):
                raise ValueError(f"it has more than {_COUNT} instructions or values")
            if code.name.endswith("PUT"):
                (tuples.add if is_tuple else tuples.discard)(argument)
            elif code.name.endswith("GET") and argument in tuples:
                # tuples of the same tuples take for ever to hash
                raise ValueError("it uses a tuple twice")
            elif code.name != "PROTO":
                is_tuple = "TUPLE" in code.name


def _begins(
    content: bytes, begin: int, keys: Any, storages: dict[str, _Storage]
) -> dict[str, int]:
    """Where the values of each storage begin: after their number, in 8 bytes."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged")
    if len(keys) != len(storages) or set(keys) != set(storages):
        raise ValueError("it holds other storages than its tensors need")
    begins = {}
    for key in keys:
        size, begins[key] = storages[key].size, begin + 8
        if int.from_bytes(content[begin : begin + 8], "little") != size:
            raise ValueError(f"storage {key!r} has not {size} values")
        begin += 8 + size * np.dtype(storages[key].dtype).itemsize
    if begin > len(content):
        raise ValueError("it is truncated")
    if begin < len(content):
        raise ValueError(f"{len(content) - begin} bytes follow its last storage")
    return begins


def _array(
    name: Any, tensor: Any, content: bytes, begins: dict[str, int]
) -> np.ndarray:
    """A tensor as the view of its storage that it is, known to stay inside."""
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise ValueError("an entry of it is no named tensor")
    (key, dtype, size), offset, shape, strides = tensor
    # numpy checks this too, but in 64 bits, where a stride of 2^62 wraps around
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if not 0 < math.prod(shape) <= size or offset + last >= size:
        raise ValueError(f"tensor {name!r} reaches outside the {size} values it has")
    item = np.dtype(dtype).itemsize
    # the stride of an axis of length 1 says nothing and may be any number
    steps = [s * item if n > 1 else 0 for n, s in zip(shape, strides, strict=True)]
    return np.ndarray(shape, dtype, content, begins[key] + offset * item, steps)
