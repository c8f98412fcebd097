"""PyTorch's files: what is read, what is refused, and that nothing in them runs."""

import base64
import io
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.pretrained import torch_weights
from jaxstudy.pretrained.torch_weights import read_torch_weights
from jaxstudy.types import UserError

# What PyTorch 2.13's torch.save wrote, in either format, of the state dict
#   across: torch.arange(6.).reshape(2, 3).t(), tail: the last 2 values of the same,
#   half: torch.tensor([[0.5, -1.5]], dtype=torch.float16), count: torch.tensor(7)
WRITTEN = {
    "legacy": (
        b"eNptkstu1DAUhh0nM0MDLeVOuZZ7BqRRL6PJdEUXqEIyt4aNNyhKE9MEmXhO7FQCaaTZdAQ8AwuW"
        b"PAXvwyMgseAkGQqVxvJFOT7+v985ntAvrvz9defX6rvvr1Z6E/r8p43zGIjHlwkho0IZFSsZHohC"
        b"ZyoHCxP4Iu7IzBgpQpEnWZQD/cRdDJoPIxHq7KPQYI/B8XgLgzpVhYEWo9zGryw30GYOdyoNle9D"
        b"hzllicwYMVLEBinafVkkohDJkyw2LpBuAJbH23giigulNdDYqCJOe2FpMqndsBB7ZSaT0IhcqyI8"
        b"2HDB9jzeqeiYGe0LcJoj7o5UkXndBF1o8SXM2epvrQ/W/c2+v+lvDKFdG41HJXprvzBwYpcRZjM6"
        b"hQVmMXsK7ue08nTSwKkAFuurmCiTsJQiNXXSuaqn00ZteZc5jB7CGWYdwtlG6ZyB8wFcqJXSSL6F"
        b"i43SzPNTDB1ZvvRPfG3oo/5g0IfLKE5RfKWyalVWrzDKrClcbQDXDFwP4EZdj1iVWIObxwjPsBJH"
        b"hNVjhDV/gCvcQoKFhNtI6HYb1TsG7gZwrxzDfb6AR8L3wkRJZCJ4UO97HIMEumN4WNfi7yN6xCyt"
        b"9R4W/U310ObQrHmXpPN+qy16FmlaZ7bS2UqG5Eeb/N8mj3Haxo5jguPb9h8N38Fj"
    ),
    "zip": (
        b"eNqllU1PE0EYx2e37bZUKS++8KLiuxSDpd0WWkCFbMyqWRNLfUnDpVnahW5Yujy7U4wmJEQDiTe9"
        b"eTJ+CcNNP4MejAdvxqAnTyYendkty+6SUoRJp5Pszv///GbmeWbzUiCIUCSCdrVO1I1ko1xVV5SR"
        b"iozlxPKiJgoxNOtpa2y5rGuaUsaqXjOj942KYiiVW2oZRwENFYCJFzliJpcN3TSBLWOdWCZKdaxq"
        b"ZrRkKHN1VauUsFIzdaO0wkchEI8Xw0RhkpnyggJBWxIVNV3GD+yHUQgVGTInCVwxQMbych3CEoch"
        b"MiMhKSCxG9AmMVJgA6Ivq5TiCIajBWgvkqUiLKsaxKokTjVYDVW5qqXsmJGCErsOnRKzDl22qhvD"
        b"sQIct1RVWZuHE7aqQXSHPHKATlpAKeghdiyGXgrCUJA+iZWYDei3LU9hOF2AM8UQpdbrNQwDHs97"
        b"em3B8TxrefJwjngyGM4Tz6Eh2+cChosFuFRfhcvFNjKptKRgmZ4SXLHeDxbpEUJ8FYas3VxRDJMc"
        b"EFyVGNM05xJ5KRyZWLz7fJNEoD3fNA16UNBJg8S8bizJuNRwEwWyYuq0+fvbC4pKe3OnfpTdcWoc"
        b"b0nW1IXaklLDopD2pda+2liGAkw9gV8sCcHuCdCFphyAuadY0WmyisLkQeJuN03FWFMow/qN7300"
        b"1bk9GWLopqeqRpKiMHEIANt1bYr8TZMf6Wukv5umRD2vtl73khe9LYiGvUQpUYjvmwjl0Aca6+Of"
        b"H4O0ToItYk17Y/GicP0w2z8bbjhThuUvWzoNGtmToQNNOgxOImcPCpGO0sif3i48ap1/A4jfKQBr"
        b"+aZiqKQCnsn09iypFVFI/CdIMpcZz+RyuUx2fGw0mcll06PJ1GgqPZ7kMzyfGstmSOPTaUr5Rmh/"
        b"HycccYuSobAOp/sy6NxF7v8O+NXuC6DHowyzqNn14TdxF3G/x2TGbbLr5vD7uAuxy+Pz2eXjXAB+"
        b"ubtqYh754wDy1a5f664Cr/anX5vya93Z69U+DPq0vF/rzr8Oj/arS9tk391pMeARF0KoRcLmJY4b"
        b"3k7vwDVH2eYbb7P2+De0Xa6cVblTDQb7yxHibE2bNd+e+w84deNR"
    ),
}

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


def storage(kind: str, key: str, size: int, *view: bytes) -> bytes:
    name = b"ctorch\n" + kind.encode() + b"Storage\n"
    parts = text("storage"), name, text(key), text("cpu"), number(size), *view
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


def legacy(
    entries: bytes, values: Mapping[str, np.ndarray], system: bytes = SYSTEM
) -> bytes:
    keys = b"](" + b"".join(map(text, values)) + b"e"
    contents = [struct.pack("<q", v.size) + v.tobytes() for v in values.values()]
    return LEGACY + system + program(entries) + program(keys) + b"".join(contents)


def zipped(
    entries: bytes,
    values: Mapping[str, np.ndarray],
    *,
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] | None = None,
) -> bytes:
    files = {f"any/data/{key}": value.tobytes() for key, value in values.items()}
    files |= {"any/data.pkl": program(entries), **(more or {})}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


ONE = np.arange(6, dtype=np.float32)


def matrix(size: int = 6, *view: bytes, **changed: object) -> bytes:
    """The state dict of one 2x3 matrix of six values, or what is changed of it."""
    fields = {"offset": 0, "shape": (2, 3), "strides": (3, 1)} | changed
    return state_dict({"m": tensor(storage("Float", "0", size, *view), **fields)})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", WRITTEN)
def test_what_pytorch_wrote_is_read(form: str) -> None:
    content = zlib.decompress(base64.b64decode(WRITTEN[form]))
    read = read_torch_weights(content, "file")
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


KINDS = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
}


@st.composite
def saved(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, str, int]:
    """An array somewhere in a storage, in any order of its axes; both, kind, offset."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
    array = draw(hnp.arrays(KINDS[kind], shape))
    axes = draw(st.permutations(range(array.ndim)))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    values = np.pad(array.reshape(-1), (before, after))
    inside = values[before : before + array.size].reshape(array.shape)
    return inside.transpose(axes), values, kind, before


@given(st.lists(saved(), max_size=3), st.booleans())
def test_what_was_written_is_read(
    arrays: list[tuple[np.ndarray, np.ndarray, str, int]], is_zip: bool
) -> None:
    entries, values = {}, {}
    for i, (array, whole, kind, offset) in enumerate(arrays):
        strides = tuple(s // array.itemsize for s in array.strides)
        source = storage(kind, str(i), whole.size, *([] if is_zip else [b"N"]))
        entries[f"t{i}"] = tensor(source, offset, array.shape, strides)
        values[str(i)] = whole
    write = zipped if is_zip else legacy
    read = read_torch_weights(write(state_dict(entries), values), "file")
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
    "first": lambda value: program(value) + legacy(matrix(), {"0": ONE}),
    "system": lambda value: legacy(matrix(), {"0": ONE}, program(value)),
    "whole": lambda value: legacy(value, {}),
    "entry": lambda value: legacy(state_dict({"m": value}), {}),
    "keys": lambda value: LEGACY + SYSTEM + program(matrix()) + program(value),
    "zip": lambda value: zipped(state_dict({"m": value}), {}),
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


NO_LIST = LEGACY + SYSTEM + program(matrix(6, b"N")) + program(b"}")
BOMB = b")q\x00" + b"h\x00h\x00\x86q\x00" * 100  # 2^100 empty tuples, one in memory

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"begins with b''"),
    "no such file": (b"\x89HDF\r\n", r"begins with b'\\x89HDF'"),
    "big-endian": (
        legacy(matrix(), {"0": ONE}, program(b"}(" + text("little_endian") + b"\x89u")),
        "not little-endian",
    ),
    "big-endian zip": (
        zipped(matrix(), {"0": ONE}, more={"any/byteorder": b"big"}),
        "not little-endian",
    ),
    "no dict": (legacy(number(3), {}), "holds no dict of tensors"),
    "a number": (legacy(state_dict({"m": number(3)}), {}), "entry 'm' is no tensor"),
    "a dict in a dict": (legacy(state_dict({"m": matrix()}), {"0": ONE}), "'m' is no"),
    "a module": (legacy(b"cmy\nNet\n)\x81", {}), "asks for 'my.Net'"),
    "an escape that is none": (legacy(b"cos\nsys\\q\n", {}), "which is not admitted"),
    "other numbers": (
        legacy(state_dict({"m": storage("Bool", "0", 1)}), {}),
        "asks for 'torch.BoolStorage'",
    ),
    "a view of a storage": (
        legacy(matrix(6, group(text("1"), number(0), number(6))), {"0": ONE}),
        "no plain storage",
    ),
    "a storage too many": (
        legacy(matrix(6, b"N"), {"0": ONE, "1": ONE}),
        "other storages than its tensors need",
    ),
    "a storage missing": (legacy(matrix(6, b"N"), {}), "other storages than"),
    "no list of storages": (NO_LIST, "list of storages is damaged"),
    "a storage of another size": (
        legacy(matrix(5, b"N"), {"0": ONE}),
        "storage '0' has not 5 values",
    ),
    "another size in the zip": (zipped(matrix(7), {"0": ONE}), "'0' has not 7 values"),
    "a storage declared twice": (
        zipped(
            state_dict(
                {k: tensor(storage(k, "0", 6), 0, (), ()) for k in ("Float", "Int")}
            ),
            {"0": ONE},
        ),
        "declares storage '0' twice",
    ),
    "a storage as large as claimed": (
        legacy(matrix(2**39, b"N"), {"0": ONE}),
        f"ends before the {2**39} values of storage '0'",
    ),
    "a storage larger than any": (
        legacy(matrix(2**62), {"0": ONE}),
        "no plain storage",
    ),
    "a negative storage": (legacy(matrix(-1), {"0": ONE}), "no plain storage"),
    "more values": (zipped(matrix(shape=(3, 3)), {"0": ONE}), "'m' reaches outside"),
    "a long stride": (zipped(matrix(strides=(4, 1)), {"0": ONE}), "reaches outside"),
    "a huge stride": (
        zipped(matrix(strides=(2**39, 1)), {"0": ONE}),
        "reaches outside",
    ),
    "a stride that wraps": (
        zipped(matrix(shape=(5, 1), strides=(2**60, 1)), {"0": ONE}),
        "calls something in a way",
    ),
    "a stride of none": (
        zipped(matrix(shape=(2**39,), strides=(0,)), {"0": ONE}),
        "reaches outside",
    ),
    "a late offset": (zipped(matrix(offset=1), {"0": ONE}), "reaches outside"),
    "a negative offset": (zipped(matrix(offset=-1), {"0": ONE}), "calls something"),
    "a negative stride": (zipped(matrix(strides=(-3, 1)), {"0": ONE}), "calls some"),
    "fewer strides": (zipped(matrix(strides=(1,)), {"0": ONE}), "calls something"),
    "too many axes": (
        zipped(matrix(shape=(1,) * 33, strides=(1,) * 33), {"0": ONE}),
        "calls something",
    ),
    "bytes after the end": (
        legacy(matrix(6, b"N"), {"0": ONE}) + b"x",
        "1 bytes follow its last storage",
    ),
    "a compressed zip": (
        zipped(matrix(), {"0": ONE}, compression=zipfile.ZIP_DEFLATED),
        "its zip file is compressed",
    ),
    "no pickle in the zip": (
        zipped(matrix(), {}).replace(b"data.pkl", b"data.pkx"),
        "has 0 files data.pkl",
    ),
    "two in the zip": (
        zipped(matrix(), {"0": ONE}, more={"other/data.pkl": b""}),
        "has 2 files data.pkl",
    ),
    "a number as key": (legacy(b"}" + number(1) + b"Ns", {}), "not all strings"),
    "a bomb": (legacy(BOMB, {}), "holds no dict"),
    "a bomb as key": (legacy(b"}" + BOMB + b"Ns", {}), "not all strings"),
    "a bomb as shape": (
        zipped(state_dict({"m": REBUILD + group(BOMB, BOMB, BOMB) + b"R"}), {}),
        "calls something",
    ),
    "a deep list": (legacy(b"]" * 50_000 + b"a" * 49_999, {}), "holds no dict"),
    "a list in itself": (legacy(b"]q\x00h\x00a", {}), "holds no dict"),
    "an empty stack": (legacy(b"", {}), "instructions are damaged"),
    "no mark": (legacy(b"NNt", {}), "instructions are damaged"),
    "an unknown memo": (legacy(b"h\x07", {}), "instructions are damaged"),
    "a key without a value": (legacy(b"}(" + text("a") + b"u", {}), "is shorter"),
    "appending to a dict": (legacy(b"}Na", {}), "no list"),
    "attributes of a number": (legacy(b"NNb", {}), "attributes"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_file_that_is_refused_is_named(fault: str) -> None:
    content, reason = REFUSED[fault]
    with pytest.raises(UserError, match=f"^the-file is no file of PyTorch.*{reason}"):
        read_torch_weights(content, "the-file")


def test_a_zip_whose_entries_share_bytes_is_refused() -> None:
    """As bombs do: many names, each of all that is there."""
    content = zipped(matrix(), {"0": ONE})
    begin = content.index(b"PK\x01\x02")  # the central directory: size at 24
    claimed = content[: begin + 24] + struct.pack("<I", 2**31) + content[begin + 28 :]
    with pytest.raises(UserError, match="claims more bytes than it has"):
        read_torch_weights(claimed, "file")


def test_the_number_of_instructions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped(matrix(), {"0": ONE})
    read_torch_weights(content, "file")
    monkeypatch.setattr(torch_weights, "_INSTRUCTIONS", 20)
    with pytest.raises(UserError, match="more than 20 instructions"):
        read_torch_weights(content, "file")


GOOD = {
    "legacy": legacy(matrix(6, b"N"), {"0": ONE}),
    "zip": zipped(matrix(), {"0": ONE}),
}


@pytest.mark.parametrize("form", GOOD)
def test_a_file_that_ends_early_is_refused(form: str) -> None:
    read_torch_weights(GOOD[form], "file")
    for end in range(len(GOOD[form])):
        with pytest.raises(UserError):
            read_torch_weights(GOOD[form][:end], "file")


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_damaged_file_is_read_or_refused(form: str, data: st.DataObject) -> None:
    content = bytearray(GOOD[form])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=4)
        )
    try:
        read = read_torch_weights(bytes(content), "file")
    except UserError:
        return
    assert all(isinstance(array, np.ndarray) for array in read.values())


PARTS = (
    *(bytes([i]) for i in b"NMK\x88\x89)]}(tabeusR0Q\x85\x86\x87h\x00q\x012"),
    DICT,
    REBUILD,
    text("0"),
    number(2),
    number(2**39),
    numbers((2, 3)),
    storage("Float", "0", 6),
    tensor(storage("Float", "0", 6), 0, (2, 3), (3, 1)),
    matrix(),
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PARTS), max_size=20).map(b"".join))
def test_any_program_is_read_or_refused(value: bytes) -> None:
    try:
        read = read_torch_weights(zipped(value, {"0": ONE}), "file")
    except UserError:
        return
    assert all(isinstance(array, np.ndarray) for array in read.values())
