"""Arrays out of HDF5 files such as h5py writes by default, without the HDF5 library.

The library is for files that one trusts: a few flipped bytes make it crash or hang,
and a file may point into others. Here a file is a string of bytes and an array a view
of some of them, so that nothing can run, grow, or reach beyond it. What Keras never
writes is not read: compression, chunks, links, the newer kinds of groups.

After the HDF Group's "HDF5 File Format Specification": superblock 0, version 1 of
object headers and B-trees.
"""

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# Types of header messages
_SPACE, _TYPE, _EXTERNAL, _LAYOUT, _ATTRIBUTE, _MORE, _TABLE = 1, 3, 7, 8, 12, 16, 17
# The offset, precision, exponent's place and size, mantissa's, and bias of a number
_FLOATS: dict[tuple[int, ...], str] = {
    (0, 16, 10, 5, 0, 10, 15): "f2",
    (0, 32, 23, 8, 0, 23, 127): "f4",
    (0, 64, 52, 11, 0, 52, 1023): "f8",
}
# A few bytes can keep us busy for long. A file of InceptionV3 takes 150,000 steps.
_STEPS = 1_000_000
_NAME = 4096  # bytes, at most


class _Bytes:
    """A string of bytes that gives no more than it has, and not for ever."""

    def __init__(self, view: memoryview, steps: Iterator[int]) -> None:
        self.view = view
        self.steps = steps

    def take(self, start: int, size: int) -> "_Bytes":
        """The bytes from `start` on."""
        if next(self.steps, None) is None:
            raise ValueError("it has too many parts")
        if start + size > len(self.view):
            raise ValueError("a part of it is missing")
        return _Bytes(self.view[start : start + size], self.steps)

    def number(self, start: int, size: int) -> int:
        return int.from_bytes(self.take(start, size).view, "little")

    def numbers(self, start: int, *sizes: int) -> list[int]:
        """Numbers of these sizes, one after the other."""
        out = []
        for size in sizes:
            out.append(self.number(start, size))
            start += size
        return out

    def text(self, start: int) -> str:
        """The characters up to a zero."""
        text, _, _ = bytes(self.view[start : start + _NAME]).partition(b"\0")
        return text.decode(errors="replace")

    def expect(self, start: int, value: bytes, what: str) -> None:
        if self.take(start, len(value)).view != value:
            raise ValueError(f"its {what} is damaged or of an unknown version")


class Group:
    """A group of an HDF5 file: arrays and groups by name. Faults are ValueErrors."""

    def __init__(self, file: _Bytes, address: int, path: str) -> None:
        self._file = file
        self._messages = list(_messages(file, address))
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def group(self, path: str) -> "Group":
        """The group at a path below this one."""
        found = self
        for name in path.split("/"):
            found = Group(self._file, found._address(name), f"{found.path}/{name}")
        return found

    def array(self, path: str) -> np.ndarray:
        """The floating-point numbers at a path below this group, read-only."""
        place, _, name = path.rpartition("/")
        group = self.group(place) if place else self
        messages = dict(_messages(self._file, group._address(name)))
        try:
            return _array(self._file, messages)
        except ValueError as error:
            raise ValueError(f"in {group.path}/{name}, {error}") from error

    def texts(self, attribute: str) -> list[str] | None:
        """A list of texts that is an attribute of this group, or None if it is none."""
        for kind, message in self._messages:
            if kind == _ATTRIBUTE:
                name, *parts = _attribute(message)
                if name == attribute:
                    return _texts(self._file, *parts)
        return None

    def _address(self, name: str) -> int:
        address = self._addresses.get(name)
        if address is None:
            why = "a link" if name in self._addresses else "missing"
            raise ValueError(f"{self.path}/{name} is {why}")
        return address

    @cached_property
    def _addresses(self) -> dict[str, int | None]:
        """Where the object of each name begins; None for a link."""
        table = dict(self._messages).get(_TABLE)
        if table is None:
            raise ValueError(f"{self.path or '/'} is no group of the kind Keras writes")
        tree, heap = table.numbers(0, 8, 8)
        self._file.expect(heap, b"HEAP\0", "list of names")
        size, _, start = self._file.numbers(heap + 8, 8, 8, 8)
        names = self._file.take(start, size)
        found = {}
        for leaf in _leaves(self._file, tree):
            self._file.expect(leaf, b"SNOD\1", "list of names")
            for i in range(self._file.number(leaf + 6, 2)):
                entry = leaf + 8 + 40 * i
                name, address, cached = self._file.numbers(entry, 8, 8, 4)
                found[names.text(name)] = None if cached == 2 else address
        return found


def root(content: bytes) -> Group:
    """The outermost group of a file. Raises ValueError where it is damaged or other."""
    if not content.startswith(_SIGNATURE):
        raise ValueError("it is not an HDF5 file")
    file = _Bytes(memoryview(content), iter(range(_STEPS)))
    file.expect(8, b"\0\0\0\0\0\x08\x08", "beginning")  # superblock 0, 8-byte numbers
    base, _, end = file.numbers(24, 8, 8, 8)
    if base:
        raise ValueError("it does not begin with its first byte")
    if end > len(content):
        raise ValueError(f"it is truncated: {len(content)} bytes instead of {end}")
    return Group(file, file.number(64, 8), "")


def _leaves(file: _Bytes, address: int) -> Iterator[int]:
    """The leaves below a node (version 1 B-tree), in the order of their names."""
    waiting, seen = [address], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            raise ValueError("its tree of names leads back to itself")
        seen.add(node)
        file.expect(node, b"TREE\0", "tree of names")
        level, used = file.numbers(node + 5, 1, 2)
        children = [file.number(node + 32 + 16 * i, 8) for i in range(used)]
        if level:
            waiting += reversed(children)
        else:
            yield from children


def _messages(file: _Bytes, address: int) -> Iterator[tuple[int, _Bytes]]:
    """The types and contents of an object's header messages (version 1)."""
    file.expect(address, b"\1\0", "header")
    count, _, size = file.numbers(address + 2, 2, 4, 4)
    blocks = [file.take(address + 16, size)]
    while blocks and count:
        block, start = blocks.pop(0), 0
        while count and start + 8 <= len(block.view):
            kind, size, flags = block.numbers(start, 2, 2, 1)
            message = block.take(start + 8, size)
            if flags & 2:
                raise ValueError("it shares headers among its parts")
            if kind == _MORE:
                blocks.append(file.take(*message.numbers(0, 8, 8)))
            yield kind, message
            start += 8 + size
            count -= 1


def _shape(message: _Bytes) -> tuple[int, ...]:
    """Dataspace: the sizes of an array."""
    version, rank, _, kind = message.numbers(0, 1, 1, 1, 1)
    if version == 1:
        start = 8
    elif version == 2 and kind < 2:
        start = 4
    else:
        raise ValueError("there is no shape")
    return tuple(message.numbers(start, *[8] * rank))


def _dtype(message: _Bytes) -> np.dtype:
    """Datatype, of floating-point numbers."""
    kind, low, sign = message.numbers(0, 1, 1, 1)
    if kind & 15 == 1:
        parts = message.numbers(8, 2, 2, 1, 1, 1, 1, 4)
        code = _FLOATS.get(tuple(parts))
        # normalised, no padding, the sign in the last bit; bit 0 is the order of bytes
        if code and low & ~1 == 0x20 and sign == parts[1] - 1:
            return np.dtype((">" if low & 1 else "<") + code)
    raise ValueError("there are no floating-point numbers")


def _array(file: _Bytes, messages: dict[int, _Bytes]) -> np.ndarray:
    if not {_SPACE, _TYPE, _LAYOUT} <= messages.keys():
        raise ValueError("there is no array")
    dtype, shape = _dtype(messages[_TYPE]), _shape(messages[_SPACE])
    layout = messages[_LAYOUT]
    version, kind = layout.numbers(0, 1, 1)
    if version != 3 or kind > 1 or _EXTERNAL in messages:
        raise ValueError("values are compressed, in chunks, or in another file")
    size = math.prod(shape) * dtype.itemsize
    if kind == 0:  # in the header itself
        values = layout.take(4, layout.number(2, 2))
    else:
        start, stored = layout.numbers(2, 8, 8)
        values = file.take(start, stored) if stored else layout.take(0, 0)
    if len(values.view) != size:
        raise ValueError(f"{len(values.view)} bytes are stored instead of {size}")
    return np.ndarray(shape, dtype, values.view)


def _attribute(message: _Bytes) -> tuple[str, _Bytes, _Bytes, _Bytes]:
    """The name of an attribute, its datatype, its dataspace and its values."""
    version, flags, *sizes = message.numbers(0, 1, 1, 2, 2, 2)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise ValueError("an attribute is damaged or of an unknown kind")
    start = 9 if version == 3 else 8
    parts = []
    for size in sizes:
        parts.append(message.take(start, size))
        start += -(-size // 8) * 8 if version == 1 else size
    name, dtype, space = parts
    return name.text(0), dtype, space, message.take(start, len(message.view) - start)


def _texts(file: _Bytes, dtype: _Bytes, space: _Bytes, values: _Bytes) -> list[str]:
    """The values of an attribute that is a list of texts."""
    shape = _shape(space)
    kind, low, _, size = dtype.numbers(0, 1, 1, 2, 4)
    if len(shape) != 1:
        raise ValueError("there is no list of texts")
    if shape[0] == 0:  # of numbers, as numpy has it
        return []
    if kind & 15 == 3:  # of a fixed length
        return [values.take(i * size, size).text(0) for i in range(shape[0])]
    if kind & 15 == 9 and low & 15 == 1:  # on a heap
        return [_on_heap(file, values.take(i * size, size)) for i in range(shape[0])]
    raise ValueError("there is no list of texts")


def _on_heap(file: _Bytes, reference: _Bytes) -> str:
    """One text out of a global heap collection."""
    length, address, index = reference.numbers(0, 4, 8, 4)
    file.expect(address, b"GCOL\1", "list of texts")
    heap = file.take(address, file.number(address + 8, 8))
    start = 16
    while True:
        found, size = heap.number(start, 2), heap.number(start + 8, 8)
        if found == index:
            return heap.take(start + 16, size).take(0, length).text(0)
        if found == 0:
            raise ValueError("a text is missing")
        start += 16 + -(-size // 8) * 8
