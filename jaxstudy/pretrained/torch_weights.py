"""The tensors of a PyTorch file, read so that nothing in the file can run.

Such a file describes its tensors by a pickle: a program for a stack machine, whose
instructions can import and call anything. The machine here, `_Machine`, has the few
instructions and names that tensors need and a meaning of its own for each: it imports
and calls nothing that a file names, and refuses everything else.
"""

import io
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxstudy.types import UserError

# The first two pickles of the older format: its magic number, and its version 1001.
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e80024de9032e")
_ZIP = b"PK\x03\x04"

_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
}
# A tensor takes about 30 instructions. An instruction of one byte can take a hundred
# bytes of memory, and lengths in a file can be numbers of any size: hence the bounds.
_INSTRUCTIONS = 1_000_000
_AXES = 32
_LENGTH = 2**40


@dataclass(frozen=True)
class _Name:
    text: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(content: bytes, name: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that PyTorch's `torch.save` wrote, by their names.

    Both formats are read: a row of pickles with the values behind them, and the zip
    file that came after it. The arrays are read-only and share memory with what was
    read, so that no number in the file can claim more. Raises UserError, with the
    `name` of the file, where it is truncated, holds anything besides named tensors of
    real numbers, or asks for anything to be imported or called.
    """
    try:
        if content.startswith(_LEGACY):
            entries, storages = _read_legacy(content)
        elif content.startswith(_ZIP):
            entries, storages = _read_zip(content)
        else:
            raise ValueError(f"it begins with {content[:4]!r}")
        if not isinstance(entries, dict):
            raise ValueError("it holds no dict of tensors")
        return {key: _array(key, value, storages) for key, value in entries.items()}
    except ValueError as error:
        raise UserError(f"{name} is no file of PyTorch weights: {error}") from error


def _read_legacy(content: bytes) -> tuple[Any, dict[str, memoryview]]:
    """Three pickles (system, tensors, keys of storages), then storage by storage."""
    stream = io.BytesIO(content)
    stream.seek(len(_LEGACY))
    system = _Machine().run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    machine = _Machine()
    entries = machine.run(stream)
    keys = _Machine().run(stream)
    declared = machine.storages
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged")
    if len(keys) != len(declared) or set(keys) != set(declared):
        raise ValueError("it holds other storages than its tensors need")
    whole, begin, storages = memoryview(content), stream.tell(), {}
    for key in keys:  # the number of values in 8 bytes, then the values
        begin, size = begin + 8, declared[key].size
        end = begin + size * declared[key].dtype.itemsize
        if end > len(content):
            raise ValueError(f"it ends before the {size} values of storage {key!r}")
        if int.from_bytes(whole[begin - 8 : begin], "little") != size:
            raise ValueError(f"storage {key!r} has not {size} values")
        storages[key], begin = whole[begin:end], end
    if begin != len(content):
        raise ValueError(f"{len(content) - begin} bytes follow its last storage")
    return entries, storages


def _read_zip(content: bytes) -> tuple[Any, dict[str, memoryview]]:
    """One pickle, data.pkl, and a file for each storage, in a folder of any name."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            # few bytes unpack to many, and many entries can share the same bytes
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise ValueError("its zip file is compressed")
            if sum(info.file_size for info in infos) > len(content):
                raise ValueError("its zip file claims more bytes than it has")
            files = {info.filename: archive.read(info) for info in infos}
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,  # a version of the format
        OverflowError,  # an offset
        RuntimeError,  # encryption
        struct.error,
    ) as error:
        raise ValueError(f"its zip file is damaged ({error})") from error
    roots = [n.removesuffix("data.pkl") for n in files if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"its zip file has {len(roots)} files data.pkl")
    if files.get(f"{roots[0]}byteorder", b"little") != b"little":
        raise ValueError("its numbers are not little-endian")
    machine, storages = _Machine(), {}
    entries = machine.run(io.BytesIO(files[f"{roots[0]}data.pkl"]))
    for key, storage in machine.storages.items():
        values = files.get(f"{roots[0]}data/{key}", b"")
        if len(values) != storage.size * storage.dtype.itemsize:
            raise ValueError(f"storage {key!r} has not {storage.size} values")
        storages[key] = memoryview(values)
    return entries, storages


def _array(name: str, tensor: Any, storages: Mapping[str, memoryview]) -> np.ndarray:
    """A tensor as the view of its storage that it is, known to stay inside."""
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"entry {name!r} is no tensor")
    size, dtype = tensor.storage.size, tensor.storage.dtype
    if math.prod(tensor.shape) == 0:
        return np.empty(tensor.shape, dtype)
    # numpy checks this too, but in 64 bits, where a stride of 2^62 wraps around
    steps = [length - 1 for length in tensor.shape]
    last = sum(n * s for n, s in zip(steps, tensor.strides, strict=True))
    if math.prod(tensor.shape) > size or tensor.offset + last >= size:
        raise ValueError(f"tensor {name!r} reaches outside the {size} values it has")
    # the stride of an axis of length 1 says nothing and may be any number
    strides = [
        stride * dtype.itemsize if n else 0
        for n, stride in zip(steps, tensor.strides, strict=True)
    ]
    return np.ndarray(
        tensor.shape,
        dtype,
        storages[tensor.storage.key],
        tensor.offset * dtype.itemsize,
        strides,
    )


class _Machine:
    """The stack machine of pickles, with nothing but the instructions tensors need.

    Values are numbers, strings, tuples, lists, dicts with strings as keys, and the
    dataclasses above; `storages` has every storage that was mentioned, by its key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """The value that the next pickle of a stream describes."""
        try:
            # of escapes in names, which no name that is admitted has
            with warnings.catch_warnings(action="ignore"):
                return self._run(stream)
        except LookupError as error:  # of the stack or the memo
            raise ValueError("its instructions are damaged") from error

    def _run(self, stream: io.BytesIO) -> Any:
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stacks under the marks
        memo: dict[int, Any] = {}
        argument: Any
        # genops takes instructions apart; it does not follow them
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count == _INSTRUCTIONS:
                raise ValueError(f"it has more than {_INSTRUCTIONS} instructions")
            match instruction.name:
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(instruction.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINUNICODE":
                    stack.append(argument)
                case "GLOBAL":
                    stack.append(_name(argument))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    below.append(stack)
                    stack = []
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    items = [stack.pop() for _ in range(int(instruction.name[-1]))]
                    stack.append(tuple(reversed(items)))
                case "TUPLE":
                    items, stack = stack, below.pop()
                    stack.append(tuple(items))
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    _extend(stack[-2], [stack.pop()])
                case "APPENDS":
                    items, stack = stack, below.pop()
                    _extend(stack[-1], items)
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _update(stack[-1], [key, value])
                case "SETITEMS":
                    items, stack = stack, below.pop()
                    _update(stack[-1], items)
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_call(function, arguments))
                case "BUILD":  # an OrderedDict's attributes: its modules' versions
                    stack.pop()
                    if not isinstance(stack[-1], dict):
                        raise ValueError("it gives attributes to something unknown")
                case unknown:
                    raise ValueError(f"it has the instruction {unknown}")
        raise AssertionError("genops ends after STOP")

    def _storage(self, description: Any) -> _Storage:
        """("storage", type, key, device, size), and a None in the older format."""
        match description:
            case ("storage", _Name(text), str(key), str(), int(size), *views) if (
                text in _DTYPES and views in ([], [None]) and 0 <= size < _LENGTH
            ):
                storage = _Storage(key, _DTYPES[text], size)
            case _:
                raise ValueError("it refers to something that is no plain storage")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it declares storage {key!r} twice")
        return storage


def _name(text: str) -> _Name:
    text = text.replace(" ", ".", 1)
    if text not in (_DICT, _TENSOR, *_DTYPES):
        raise ValueError(
            f"it asks for {text!r}, which is not admitted; nothing was run"
        )
    return _Name(text)


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name(text), () if text == _DICT:
            return {}
        # whether there are gradients, hooks and metadata matters to PyTorch alone
        case _Name(text), (_Storage() as storage, offset, shape, strides, _, _, *_) if (
            text == _TENSOR
            and _lengths((offset,))
            and _lengths(shape)
            and _lengths(strides)
            and len(shape) == len(strides)
        ):
            return _Tensor(storage, offset, shape, strides)
    raise ValueError("it calls something in a way that no tensor needs")


def _lengths(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _AXES
        and all(type(n) is int and 0 <= n < _LENGTH for n in value)
    )


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError("it appends to something that is no list")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    keys = items[::2]
    # other keys would have to be hashed, and a tuple of tuples can take for ever
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it has a dict whose keys are not all strings")
    target.update(zip(keys, items[1::2], strict=True))
