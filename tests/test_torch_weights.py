"""PyTorch's files: what is read, what is refused, and that nothing in them runs."""

import base64
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.pretrained.torch_weights import read_torch_weights
from jaxstudy.types import UserError

# What PyTorch 2.13's torch.save wrote, in the older format, of the state dict
#   across: torch.arange(6.).reshape(2, 3).t(), tail: the last 2 values of the same,
#   half: torch.tensor([[0.5, -1.5]], dtype=torch.float16), count: torch.tensor(7)
WRITTEN = zlib.decompress(
    base64.b64decode(
        b"eNptkstu1DAUhh0nM0MDLeVOuZZ7BqRRL6PJdEUXqEIyt4aNNyhKE9MEmXhO7FQCaaTZdAQ8AwuW"
        b"PAXvwyMgseAkGQqVxvJFOT7+v985ntAvrvz9defX6rvvr1Z6E/r8p43zGIjHlwkho0IZFSsZHohC"
        b"ZyoHCxP4Iu7IzBgpQpEnWZQD/cRdDJoPIxHq7KPQYI/B8XgLgzpVhYEWo9zGryw30GYOdyoNle9D"
        b"hzllicwYMVLEBinafVkkohDJkyw2LpBuAJbH23giigulNdDYqCJOe2FpMqndsBB7ZSaT0IhcqyI8"
        b"2HDB9jzeqeiYGe0LcJoj7o5UkXndBF1o8SXM2epvrQ/W/c2+v+lvDKFdG41HJXprvzBwYpcRZjM6"
        b"hQVmMXsK7ue08nTSwKkAFuurmCiTsJQiNXXSuaqn00ZteZc5jB7CGWYdwtlG6ZyB8wFcqJXSSL6F"
        b"i43SzPNTDB1ZvvRPfG3oo/5g0IfLKE5RfKWyalVWrzDKrClcbQDXDFwP4EZdj1iVWIObxwjPsBJH"
        b"hNVjhDV/gCvcQoKFhNtI6HYb1TsG7gZwrxzDfb6AR8L3wkRJZCJ4UO97HIMEumN4WNfi7yN6xCyt"
        b"9R4W/U310ObQrHmXpPN+qy16FmlaZ7bS2UqG5Eeb/N8mj3Haxo5jguPb9h8N38Fj"
    )
)

# Pickles put together by hand: importing the module that makes and loads them is
# forbidden here, and it would refuse to make the hostile ones.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def group(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def numbers(values: tuple[int, ...]) -> bytes:
    return group(*map(number, values))


def storage(
    kind: str = "Float", key: str = "0", size: int = 6, view: bytes = b"N"
) -> bytes:
    name = b"ctorch\n" + kind.encode() + b"Storage\n"
    parts = text("storage"), name, text(key), text("cpu"), number(size), view
    return group(*parts) + b"Q"


def tensor(
    values: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    numerals = number(offset), numbers(shape), numbers(strides)
    return REBUILD + group(values, *numerals, b"\x89", DICT + b")R") + b"R"


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    items = b"".join(text(name) + value for name, value in entries.items())
    return DICT + b")R(" + items + b"u"


SYSTEM = program(b"}(" + text("little_endian") + b"\x88u")
ONE = np.arange(6, dtype=np.float32)


def file(
    entries: bytes,
    values: Mapping[str, np.ndarray] | None = None,
    system: bytes = SYSTEM,
) -> bytes:
    values = {"0": ONE} if values is None else values
    keys = b"](" + b"".join(map(text, values)) + b"e"
    contents = [struct.pack("<q", v.size) + v.tobytes() for v in values.values()]
    return LEGACY + system + program(entries) + program(keys) + b"".join(contents)


def matrix(source: bytes | None = None, **changed: object) -> bytes:
    """The state dict of one 2x3 matrix of six values, or what is changed of it."""
    fields = {"offset": 0, "shape": (2, 3), "strides": (3, 1)} | changed
    return state_dict({"m": tensor(source or storage(), **fields)})  # type: ignore[arg-type]


def test_what_pytorch_wrote_is_read() -> None:
    read = read_torch_weights(WRITTEN, "file")
    expected = {
        "across": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "tail": np.array([4, 5], np.float32),
        "half": np.array([[0.5, -1.5]], np.float16),
        "count": np.array(7, np.int64),
    }
    assert list(read) == list(expected)
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert not read[name].flags.writeable
    assert np.shares_memory(read["across"], read["tail"])


KINDS = {"Float": np.float32, "Half": np.float16, "Long": np.int64}


@st.composite
def saved(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, str, int]:
    """An array somewhere in a storage, in any order of its axes; both, kind, offset."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=3)
    array = draw(hnp.arrays(KINDS[kind], shape))
    axes = draw(st.permutations(range(array.ndim)))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    values = np.pad(array.reshape(-1), (before, after))
    inside = values[before : before + array.size].reshape(array.shape)
    return inside.transpose(axes), values, kind, before


@settings(max_examples=50)
@given(st.lists(saved(), max_size=3))
def test_what_was_written_is_read(
    arrays: list[tuple[np.ndarray, np.ndarray, str, int]],
) -> None:
    entries, values = {}, {}
    for i, (array, whole, kind, offset) in enumerate(arrays):
        strides = tuple(s // array.itemsize for s in array.strides)
        source = storage(kind, str(i), whole.size)
        entries[f"t{i}"] = tensor(source, offset, array.shape, strides)
        values[str(i)] = whole
    read = read_torch_weights(file(state_dict(entries), values), "file")
    assert list(read) == list(entries)
    for i, (array, *_) in enumerate(arrays):
        assert (read[f"t{i}"].dtype, read[f"t{i}"].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[f"t{i}"], array)


def hostile(path: Path) -> dict[str, bytes]:
    """Values whose making writes a file, by each instruction that can call."""
    shell = text(f"echo ran > '{path}'")
    source = text(f"open({str(path)!r}, 'w').close()")
    return {
        "REDUCE": b"cos\nsystem\n" + group(shell) + b"R",
        "eval": b"cbuiltins\neval\n" + group(source) + b"R",
        "exec": b"cbuiltins\nexec\n" + group(source) + b"R",
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + shell + b"o",
        "NEWOBJ": b"cbuiltins\ntuple\n(cbuiltins\nmap\n(cos\nsystem\n](%be"
        b"t\x81t\x81" % shell,
        "STACK_GLOBAL": text("os") + text("system") + b"\x93" + group(shell) + b"R",
    }


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "first": lambda value: program(value) + file(matrix()),
    "system": lambda value: file(matrix(), system=program(value)),
    "whole": lambda value: file(value, {}),
    "entry": lambda value: file(state_dict({"m": value}), {}),
    "keys": lambda value: LEGACY + SYSTEM + program(matrix()) + program(value),
}


@pytest.mark.parametrize("instruction", hostile(Path()))
def test_a_hostile_file_is_refused_and_does_not_run(
    instruction: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    value = hostile(trace)[instruction]
    # that it would run in Python's own reader, in a process of its own
    load = "import pickle, sys; pickle.load(sys.stdin.buffer)"
    subprocess.run([sys.executable, "-c", load], input=program(value), check=True)
    assert trace.exists()
    trace.unlink()
    for place, put in PLACES.items():
        with pytest.raises(UserError, match=r"^the-file is no file of PyTorch") as info:
            read_torch_weights(put(value), "the-file")
        assert not trace.exists(), place
        said = "begins with" if place == "first" else "nothing was run|instruction"
        assert re.search(said, str(info.value)), place


NO_LIST = LEGACY + SYSTEM + program(matrix()) + program(b"}")
ESCAPE = b"cos\nsys\\q\n"
BIG_ENDIAN = program(b"}(" + text("little_endian") + b"\x89u")
TWICE = {kind: tensor(storage(kind), 0, (), ()) for kind in ("Float", "Long")}
SHARED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 100  # 2^100 empty tuples
TABLE = b"Nr\xff\xff\xff\xff"  # a memo of 2^32 values
ATTRIBUTES = b"}" + text("__defaults__") + number(1) + b"s"
TOO_MANY = "more than 20000 instructions"
NO_TENSOR = "calls something in a way that no tensor needs"

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"begins with b''"),
    "no such file": (b"\x89HDF\r\n", r"begins with b'\\x89HDF'"),
    "the zip format": (b"PK\3\4", "begins with"),
    "big-endian": (file(matrix(), system=BIG_ENDIAN), "not little-endian"),
    "no dict": (file(number(3), {}), "holds no dict of tensors"),
    "a number": (file(state_dict({"m": number(3)}), {}), "is no named tensor"),
    "a dict in a dict": (file(state_dict({"m": matrix()})), "is no named tensor"),
    "a number as key": (file(b"}" + number(1) + b"Ns", {}), "is no named tensor"),
    "a module": (file(b"cmy\nNet\n)R", {}), "asks for my.'Net'"),
    "an escape that is none": (file(ESCAPE, {}), "which is not admitted"),
    "other numbers": (file(matrix(storage("Bool"))), "asks for torch.'BoolStorage'"),
    "a view": (file(matrix(storage(view=group(text("1"))))), "no plain storage"),
    "a storage too many": (file(matrix(), {"0": ONE, "1": ONE}), "other storages"),
    "a storage missing": (file(matrix(), {}), "other storages than its tensors need"),
    "no list of storages": (NO_LIST, "list of storages is damaged"),
    "another size": (file(matrix(storage(size=5))), "'0' has not 5 values"),
    "a claim": (file(matrix(storage(size=2**39))), f"'0' has not {2**39} values"),
    "a negative storage": (file(matrix(storage(size=-1))), "no plain storage"),
    "a storage twice": (file(state_dict(TWICE)), "declares storage '0' twice"),
    "more values": (file(matrix(shape=(3, 3))), "'m' reaches outside the 6 values"),
    "a long stride": (file(matrix(strides=(4, 1))), "reaches outside"),
    "a stride that wraps": (file(matrix(strides=(2**60, 1))), NO_TENSOR),
    "a stride of none": (file(matrix(shape=(2**39,), strides=(0,))), "reaches outside"),
    "no values": (file(matrix(shape=(0, 2**39))), "reaches outside"),
    "a late offset": (file(matrix(offset=1)), "reaches outside"),
    "a negative offset": (file(matrix(offset=-1)), NO_TENSOR),
    "a negative stride": (file(matrix(strides=(-3, 1))), NO_TENSOR),
    "fewer strides": (file(matrix(strides=(1,))), NO_TENSOR),
    "too many axes": (file(matrix(shape=(1,) * 99, strides=(1,) * 99)), "dimension"),
    "bytes after the end": (file(matrix()) + b"x", "1 bytes follow its last storage"),
    "values cut off": (file(matrix())[:-1], "it is truncated"),
    "a bomb": (file(SHARED, {}), "uses a tuple twice"),
    "one put twice": (file(b"})q\x00\x80\x02q\x01h\x01h\x01\x86Ns"), "a tuple twice"),
    "a deep key": (file(b"})" + b"\x85" * 50_000 + b"Ns", {}), TOO_MANY),
    "a large table": (file(TABLE, {}), TOO_MANY),
    "a large array": (file(b"\x96" + b"\xff" * 7 + b"\0"), "BYTEARRAY8|expected"),
    "a large dict": (file(DICT + group(b"}") + b"R", {}), "instructions are damaged"),
    "an empty stack": (file(b"", {}), "instructions are damaged"),
    "an unknown memo": (file(b"h\x07", {}), "instructions are damaged"),
    "a key without a value": (file(b"}(" + text("a") + b"u", {}), "damaged|odd"),
    "appending to a dict": (file(b"}(Ne", {}), "instructions are damaged"),
    **{
        f"attributes of {what!r}": (
            file(what + b"N" + ATTRIBUTES + b"\x86b", {}),
            "instructions are damaged",
        )
        for what in (b"N", DICT, REBUILD, b"ctorch\nFloatStorage\n")
    },
}


@pytest.mark.parametrize("problem", REFUSED)
def test_a_file_that_is_refused_is_named(problem: str) -> None:
    content, reason = REFUSED[problem]
    with pytest.raises(UserError, match=f"^the-file is no file of PyTorch.*{reason}"):
        read_torch_weights(content, "the-file")


def read_or_refuse(content: bytes) -> None:
    try:
        read = read_torch_weights(content, "file")
    except UserError:
        return
    assert all(isinstance(array, np.ndarray) for array in read.values())


def test_a_file_that_ends_early_is_refused() -> None:
    content = file(matrix())
    read_torch_weights(content, "file")
    for end in range(len(content)):
        with pytest.raises(UserError):
            read_torch_weights(content[:end], "file")


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(file(matrix()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=4)
        )
    read_or_refuse(bytes(content))


PARTS = (
    *(bytes([i]) for i in b"NMK\x88\x89)]}(tabeusR0Q\x85\x86\x87h\x00q\x012"),
    DICT, REBUILD, text("0"), number(2), number(2**39), numbers((2, 3)), storage(),
    tensor(storage(), 0, (2, 3), (3, 1)), matrix(),
)  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=20).map(b"".join))
def test_any_program_is_read_or_refused(value: bytes) -> None:
    read_or_refuse(file(value))
