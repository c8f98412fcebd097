"""Image folders: problems are named, splits keep their promises, copies are safe."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import struct
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxstudy.images import folders
from jaxstudy.images.decoding import IMAGE_FORMATS
from jaxstudy.images.folders import (
    Audit,
    audit,
    load_folder,
    report,
    sort_into_folders,
    stratified_split,
)
from jaxstudy.types import UserError
from tests.conftest import Patch, contents


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(seed: int = 0, format: str = "PNG") -> bytes:
    return encoded(Image.fromarray(noise((6, 5, 3), seed)), format)


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def pets(folder: Path, each: int = 2) -> Path:
    """Two classes of good images."""
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(each)]
    return tree(folder, {name: picture(seed) for seed, name in enumerate(names)})


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(
    depth: int, colour: int, width: int, rows: Sequence[bytes], **chunks: bytes
) -> bytes:
    """A PNG of these rows of samples, with more chunks before them."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    every = {"IHDR": header, **chunks, "IDAT": data, "IEND": b""}
    parts = [chunk(kind.encode(), content) for kind, content in every.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds no pixel at all."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + parts


def kinds(audited: Audit) -> dict[str, str]:
    named = {problem.path: problem.kind for problem in audited.problems}
    assert len(named) == len(audited.problems)  # one problem each
    return named


def pixels(content: bytes, folder: Path, **asked: Any) -> np.ndarray:
    """One image [H, W, C] by way of a folder, in its own size unless told."""
    tree(folder, {"class/a.png": content})
    (path,) = (folder / "class").iterdir()
    with Image.open(path) as image:
        asked = {"image_size": (image.height, image.width), **asked}
    return load_folder(folder, **asked).x[0]


# ------------------------------------------------------------------ auditing


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Root may read everything, so be somebody else meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_every_problem_is_named_at_once(open_folder: Path) -> None:
    folder, photo = open_folder / "data", picture()
    secret = tree(open_folder, {"outside.png": photo}) / "outside.png"
    good = {
        name: picture(seed)
        for seed, name in enumerate(
            [
                *(f"cat/{i}.png" for i in range(3)),
                *("dog/a.png", "dog/b.png"),
                *("Owl/a.png", "Owl/b.png", "owl/a.png", "owl/b.png"),
                *("fish/X.png", "fish/x.png"),
                "lonely/a.png",
            ]
        )
    }
    tree(folder, good)
    bad = {
        "cat/empty.png": (b"", "zero bytes"),
        "cat/cut.png": (photo[:-30], "truncated or damaged"),
        "cat/cut.jpg": (picture(format="JPEG")[:-30], "truncated or damaged"),
        "cat/headless.gif": (b"GIF89a", "truncated or damaged"),
        "cat/flipped.png": (photo[:60] + b"~" + photo[61:], "truncated or damaged"),
        "cat/notes.png": (b"not an image at all", "not an image"),
        "cat/program.eps": (picture(format="EPS"), "not an image"),
        "cat/scan.tiff": (picture(format="TIFF"), "not an image"),
        "cat/bomb.png": (png_of(9000, 9000), "too large"),
        "cat/warned.png": (png_of(12000, 12000), "too large"),
        "cat/refused.png": (png_of(20000, 20000), "too large"),
        "cat/locked.png": (photo, "unreadable"),
        "cat/inner/a.png": (photo, "nested folder"),
        "readme.txt": (b"hello", "outside a class"),
        "stray.png": (photo, "outside a class"),
        "broken/a.png": (b"", "zero bytes"),
        "locked/a.png": (photo, "unreadable"),
        "odd\x1b[2J/a.png": (photo, "odd name"),
    }
    tree(folder, {name: content for name, (content, _) in bad.items()})
    hidden = ("cat/.DS_Store", "cat/Thumbs.db", ".git/a", "__MACOSX/a", ".DS_Store")
    tree(folder, dict.fromkeys(hidden, b"left out"))
    (folder / "hollow").mkdir()
    os.mkfifo(folder / "cat/pipe.png")
    links = {
        "cat/leaves.png": secret,
        "cat/climbs.png": Path("../../outside.png"),
        "cat/nowhere.png": Path("gone.png"),
        "cat/loop.png": Path("loop.png"),
        "cat/up": Path(".."),
        "twin": Path("dog"),
        "elsewhere": open_folder,
        "cat/inside.png": Path("../dog/a.png"),  # the only one to follow
    }
    for name, end in links.items():
        (folder / name).symlink_to(end)
    os.chmod(folder / "cat/locked.png", 0)
    os.chmod(folder / "locked", 0)

    Image.init()  # nobody may not be allowed to import
    with without_root():
        audited = audit(folder)
    expected = {name: kind for name, (_, kind) in bad.items() if "cat/in" not in name}
    expected |= dict.fromkeys(links.keys() - {"cat/inside.png"}, "bad link")
    expected |= dict.fromkeys(("Owl", "owl", "fish/X.png", "fish/x.png"), "case clash")
    expected |= dict.fromkeys(("hollow", "broken"), "empty class")
    expected |= {"cat/inner": "nested folder", "cat/pipe.png": "not a file"}
    expected |= {"lonely": "single image", "locked": "unreadable"}
    del expected["locked/a.png"], expected["odd\x1b[2J/a.png"]
    expected["odd\\x1b[2J"] = "odd name"
    assert kinds(audited) == expected
    assert list(audited.problems) == sorted(audited.problems)
    assert audited.classes == ("Owl", "cat", "dog", "fish", "lonely", "owl")
    assert set(audited.paths) == {*good, "cat/inside.png"}
    assert [audited.classes[label] for label in audited.labels] == [
        path.partition("/")[0] for path in audited.paths
    ]
    lines = report(audited).splitlines()
    assert len(lines) == len(expected) + 2
    assert lines[-2] == (
        "13 images in 6 classes: Owl 2, cat 4, dog 2, fish 2, lonely 1, owl 2"
    )
    assert lines[-1].startswith(f"{len(expected)} problems: 7 bad link, 4 case clash,")

    os.chmod(folder / "locked", 0o755)
    loaded = load_folder(audited, image_size=(6, 5))
    assert loaded.audit == audited
    for row, path in zip(loaded.x, loaded.paths, strict=True):
        name = path.replace("cat/inside.png", "dog/a.png")
        with Image.open(io.BytesIO(good[name])) as image:
            np.testing.assert_array_equal(row, image)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_good_folder_has_no_problem_and_a_terminal_sees_a_bar(
    tmp_path: Path, capsys: Any, monkeypatch: Patch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    audited = audit(pets(tmp_path))
    assert audited.problems == ()
    assert report(audited) == "4 images in 2 classes: cat 2, dog 2\nno problems"
    out, err = capsys.readouterr()
    assert out == ""
    assert ("auditing images" in err, "4/4" in err) == (terminal, terminal)
    assert bool(err) == terminal
    loaded = load_folder(audited, image_size=(2, 2), strict=True)
    assert loaded.y.tolist() == [0, 0, 1, 1]


# Last bytes that no pixel needs: the checksum of a PNG's end mark, the end mark of a
# GIF, what fills the last row of a BMP.
IDLE = {"PNG": 4, "GIF": 2, "BMP": 1, "JPEG": 0, "WEBP": 0}


@pytest.mark.parametrize("format", IMAGE_FORMATS)
def test_no_part_of_an_image_passes(tmp_path: Path, format: str) -> None:
    content = picture(format=format)
    content = content[: len(content) - IDLE[format]]
    parts = {f"a/{n:04}": content[:n] for n in range(len(content) + 1)}
    audited = audit(tree(tmp_path, parts))
    assert audited.paths == (f"a/{len(content):04}",)
    named = kinds(audited)
    assert named.pop("a") == "single image"
    assert named.pop("a/0000") == "zero bytes"
    first = min(n for n, kind in named.items() if kind == "truncated or damaged")
    assert first <= "a/0016"
    assert {kind for n, kind in named.items() if n < first} <= {"not an image"}
    assert {kind for n, kind in named.items() if n >= first} == {"truncated or damaged"}


def test_what_is_too_large_or_not_given_is_not_read(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    pets(tmp_path, 3)
    with open(tmp_path / "cat/0.png", "r+b") as file:
        file.truncate(folders.MAX_BYTES + 1)  # sparse
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        assert path.name != "0.png" or path.parent.name != "cat"
        if path.name == "1.png":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    failed = dict.fromkeys(("cat/1.png", "dog/1.png"), "unreadable")
    assert kinds(audit(tmp_path)) == {
        "cat": "single image", "cat/0.png": "too large", **failed
    }  # fmt: skip


@pytest.mark.parametrize("name", [b"a\nb", b"caf\xe9", "\u2028".encode()])
def test_any_file_name_is_read_and_stays_on_its_line(
    tmp_path: Path, name: bytes
) -> None:
    pets(tmp_path)
    for content, suffix in ((picture(), b".png"), (b"bad", b".bad")):
        path = os.fsencode(tmp_path / "cat/") + b"/" + name + suffix
        Path(os.fsdecode(path)).write_bytes(content)
    asked: Any = {"subset": "training", "validation_split": 0.5}
    audited = load_folder(tmp_path, image_size=(6, 5), **asked).audit
    assert audited.classes == ("cat", "dog")
    assert len(audited.paths) == 5
    (problem,) = audited.problems
    assert problem.path.isprintable()
    assert len(report(audited).encode("utf-8").splitlines()) == 3


def test_a_folder_without_images(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, bytes], str]] = [
        ({}, "cannot be listed"),
        ({"data/.keep": b""}, "holds no class folder with images"),
        ({"data": b""}, "cannot be listed"),
        ({"data/a.png": b"x", "data/c/b": b"x"}, r"no usable image, and 3 problems:"),
    ]
    for i, (files, reason) in enumerate(cases):
        tree(tmp_path / f"{i}", files)
        with pytest.raises(UserError, match=f"data.*{reason}"):
            load_folder(tmp_path / f"{i}" / "data", image_size=(2, 2))


@pytest.mark.parametrize(("bad", "listed"), [(1, 1), (100, 100), (101, 20)])
def test_strict_lists_the_problems(tmp_path: Path, bad: int, listed: int) -> None:
    audited = audit(tree(pets(tmp_path), {f"cat/bad{i:03}": b"x" for i in range(bad)}))
    assert len(load_folder(audited, image_size=(2, 2)).x) == 4
    with pytest.raises(UserError) as error:
        load_folder(audited, image_size=(2, 2), strict=True)
    first, *lines = str(error.value).splitlines()
    assert first == f"{tmp_path} has {bad} problem{'s' if bad > 1 else ''}:"
    expected = [f"  cat/bad{i:03}" for i in range(listed)]
    expected += [f"  and {bad - listed} more"] if bad > listed else []
    assert [line.partition(":")[0] for line in lines] == expected


# ------------------------------------------------------------------ pixels


RED = (200, 40, 30)
GREY = 77


def deep(*values: int) -> bytes:
    """Samples of 16 bits, as PNG has them."""
    return struct.pack(f">{len(values)}H", *values)


def palette(**transparent: Any) -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, **transparent)


WHITE = (255,) * 3
FRAMES = [Image.new("RGB", (4, 4), color) for color in (RED, "blue", "green")]
MODES = {
    "1": (encoded(Image.new("1", (4, 4), 1)), WHITE, 0),
    "L": (encoded(Image.new("L", (4, 4), GREY)), (GREY,) * 3, 0),
    "LA": (encoded(Image.new("LA", (4, 4), (GREY, 255))), (GREY,) * 3, 0),
    "LA, hidden": (encoded(Image.new("LA", (4, 4), (GREY, 0))), WHITE, 0),
    "RGB": (encoded(FRAMES[0]), RED, 0),
    "RGB, one colour transparent": (encoded(FRAMES[0], transparency=RED), WHITE, 0),
    "RGBA, hidden": (encoded(Image.new("RGBA", (4, 4), (*RED, 0))), WHITE, 0),
    "P": (palette(), RED, 0),
    "P, hidden": (palette(transparency=1), WHITE, 0),
    "I;16": (encoded(Image.fromarray(np.full((4, 4), 19912, np.uint16))), (77,) * 3, 0),
    "LA, 16 bits": (png(16, 4, 4, [deep(19912, 65535) * 4] * 4), (77,) * 3, 0),
    "RGB, 16 bits": (png(16, 2, 4, [deep(*(256 * c + 255 for c in RED)) * 4] * 4),
                     RED, 0),
    "RGBA, 16 bits, hidden": (png(16, 6, 4, [deep(1, 2, 3, 0) * 4] * 4), WHITE, 0),
    "CMYK": (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"),
             (255, 0, 0), 1),
    "YCbCr": (encoded(FRAMES[0], "JPEG", quality=95), RED, 3),
    "WEBP": (encoded(FRAMES[0], "WEBP", lossless=True), RED, 0),
    "BMP": (encoded(FRAMES[0], "BMP"), RED, 0),
    "animated": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
                 RED, 0),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_colour_that_people_see(
    tmp_path: Path, mode: str
) -> None:
    content, colour, tolerance = MODES[mode]
    got = pixels(content, tmp_path).astype(int)  # whatever it is, named .png
    assert got.shape == (4, 4, 3)
    assert np.abs(got - colour).max() <= tolerance
    grey = pixels(content, tmp_path, channels=1).astype(int)
    luma = np.dot(colour, (0.299, 0.587, 0.114))
    assert grey.shape == (4, 4, 1)
    assert np.abs(grey - luma).max() <= 1 + tolerance


# Two pixels, of which the first has the colour that is transparent, and the second's.
ONE_COLOUR = {
    "grey, 1 bit": (png(1, 0, 2, [b"\x40"], tRNS=deep(0)), 255),
    "grey, 2 bits": (png(2, 0, 2, [b"\x90"], tRNS=deep(2)), 85),
    "grey, 4 bits": (png(4, 0, 2, [b"\x93"], tRNS=deep(9)), 51),
    "grey": (png(8, 0, 2, [b"\x09\x0a"], tRNS=deep(9)), 10),
    "grey, 16 bits": (png(16, 0, 2, [deep(2570, 2571)], tRNS=deep(2570)), 10),
    "RGB": (png(8, 2, 2, [bytes([1, 2, 3, 1, 2, 4])], tRNS=deep(1, 2, 3)), (1, 2, 4)),
    "RGB, 16 bits": (
        png(16, 2, 2, [deep(257, 514, 771, 257, 514, 772)], tRNS=deep(257, 514, 771)),
        (1, 2, 3),
    ),
    "RGB, upright": (
        png(8, 2, 1, [bytes([1, 2, 4]), bytes([1, 2, 3])], tRNS=deep(1, 2, 3),
            eXIf=b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
        (1, 2, 4),
    ),
    "palette": (
        png(8, 3, 2, [b"\1\0"], PLTE=bytes([*RED, 0, 0, 0]), tRNS=b"\xff\0"), RED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_COLOUR)
def test_one_transparent_colour_is_white_and_no_other(
    tmp_path: Path, kind: str
) -> None:
    content, colour = ONE_COLOUR[kind]
    got = pixels(content, tmp_path, image_size=(1, 2))
    np.testing.assert_array_equal(got, [[WHITE, np.broadcast_to(colour, 3)]])


def test_a_frame_may_be_a_part_of_the_picture(tmp_path: Path) -> None:
    """A GIF of 4x4 whose only frame is its lower right quarter."""
    content = bytearray(encoded(Image.new("RGB", (2, 2), RED), "GIF"))
    content[6:10] = struct.pack("<HH", 4, 4)
    place = content.index(b"\x2c")  # of the frame
    content[place + 1 : place + 5] = struct.pack("<HH", 2, 2)
    expected = np.full((4, 4, 3), 255)
    expected[2:, 2:] = RED
    np.testing.assert_array_equal(pixels(bytes(content), tmp_path), expected)


BOMB = zlib.compress(bytes(2**26))  # 64 MiB in 64 KiB
METADATA = {
    "a text that unpacks to much": {"zTXt": b"key\0\0" + BOMB},
    "a large profile": {"iCCP": b"name\0\0" + BOMB},
    "a text of another kind": {"zTXt": b"key\0\7"},
    "half a gamma": {"gAMA": b"\0"},
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_is_no_problem_of_the_pixels(tmp_path: Path, kind: str) -> None:
    """However much, or broken; nor is it unpacked."""
    content = png(8, 2, 1, [bytes(RED)], **METADATA[kind])
    tree(tmp_path, {"class/0.png": content, "class/1.png": content})
    tracemalloc.start()
    audited = audit(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert audited.problems == ()
    got = load_folder(audited, image_size=(1, 1)).x
    np.testing.assert_array_equal(got, [[[RED]]] * 2)
    assert most < 2**24


def test_photographs_stand_upright_and_broken_exif_does_not_matter(
    tmp_path: Path,
) -> None:
    raw = noise((6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    content = encoded(Image.fromarray(raw), exif=exif)
    got = pixels(content, tmp_path / "turned", image_size=(4, 6))
    np.testing.assert_array_equal(got, np.rot90(raw, -1))
    content = encoded(Image.fromarray(raw), exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(pixels(content, tmp_path / "broken"), raw)


@pytest.mark.parametrize("size", [(19, 11), (3, 4)])
def test_resizing_is_that_of_keras_with_antialiasing(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    raw = noise((12, 10, 3))
    got = pixels(encoded(Image.fromarray(raw)), tmp_path, image_size=size)
    expected = keras.ops.image.resize(
        raw.astype(np.float32), size, interpolation="bilinear", antialias=True
    )
    assert got.shape == (*size, 3)
    assert np.abs(got - np.asarray(expected)).max() <= 1.01


# ------------------------------------------------------------------ loading


def test_subsets_are_rows_of_the_whole(tmp_path: Path, monkeypatch: Patch) -> None:
    """In order, whatever order the system lists files in, with their own labels."""
    list_folder = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: list_folder(path)[::-1])
    asked: Any = {"validation_split": 0.4, "seed": 3, "image_size": (6, 5)}
    whole = load_folder(pets(tmp_path, 5), image_size=(6, 5))
    assert list(whole.paths) == sorted(whole.paths)
    assert (whole.x.dtype, whole.y.dtype) == (np.uint8, np.int32)
    rows = dict(zip(whole.paths, whole.x, strict=True))
    every: list[str] = []
    parts: Any = {"training": [3, 3], "validation": [2, 2]}
    for subset, counts in parts.items():
        loaded = load_folder(tmp_path, subset=subset, **asked)
        assert np.bincount(loaded.y).tolist() == counts
        assert loaded.classes == ("cat", "dog")
        for path, x, y in zip(loaded.paths, loaded.x, loaded.y, strict=True):
            np.testing.assert_array_equal(x, rows[path])
            assert path.startswith(loaded.classes[y])
        every += loaded.paths
    assert sorted(every) == list(whole.paths)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    audited = audit(pets(tmp_path))
    path = tmp_path / "dog/1.png"
    for change in (path.unlink, lambda: path.write_bytes(b"no image")):
        change()
        with pytest.raises(UserError, match=r"dog/1.png has changed since the audit"):
            load_folder(audited, image_size=(2, 2))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"image_size": (4, 0)}, "image sides go from 1"),
        ({"image_size": (4, folders.MAX_SIDE + 1)}, "image sides go from 1"),
        ({"channels": 4}, "1 or 3 channels"),
        ({"subset": "train", "validation_split": 0.2}, "'training' or 'validation'"),
        ({"subset": "training"}, "a subset needs a validation split"),
        ({"validation_split": 0.2}, "a subset needs a validation split"),
        *(
            ({"subset": "training", "validation_split": share}, "between 0 and 1")
            for share in (0.0, 1.0, float("nan"))
        ),
    ]
    for asked, reason in refused:  # before anything is read
        with pytest.raises(UserError, match=reason):
            load_folder(tmp_path / "none", **{"image_size": (4, 4), **asked})


# ------------------------------------------------------------------ splitting


def listed(sizes: list[int]) -> Audit:
    """An audit of classes of these sizes; a split looks at nothing else."""
    paths = [f"c{c}/{i}" for c, n in enumerate(sizes) for i in range(n)]
    labels = [c for c, n in enumerate(sizes) for _ in range(n)]
    classes = tuple(f"c{c}" for c in range(len(sizes)))
    return Audit(Path("x"), classes, tuple(paths), tuple(labels), ())


pure = settings(max_examples=25, deadline=None)
shares = st.floats(0.1, 0.9)
seeds = st.integers(0, 2**32 - 1)
class_sizes = st.lists(st.integers(10, 40), min_size=1, max_size=5)


@pure
@given(class_sizes, shares, seeds, st.randoms(use_true_random=False))
def test_a_split_is_disjoint_exhaustive_stratified_and_repeatable(
    sizes: list[int], share: float, seed: int, random: Any
) -> None:
    """It depends on names, not on their order or on other classes."""
    audited = listed(sizes)
    training, validation = stratified_split(audited, share, seed)
    both = np.concatenate([training, validation])
    np.testing.assert_array_equal(np.sort(both), np.arange(sum(sizes)))
    assert all((np.diff(rows) > 0).all() for rows in (training, validation))
    held = np.bincount(np.array(audited.labels)[validation], minlength=len(sizes))
    assert (np.abs(held - share * np.array(sizes)) <= 0.5 + 1e-9).all()

    def held_out(audited: Audit) -> set[str]:
        return {audited.paths[i] for i in stratified_split(audited, share, seed)[1]}

    order = list(range(sum(sizes)))
    random.shuffle(order)
    paths, labels = ([x[i] for i in order] for x in (audited.paths, audited.labels))
    names = held_out(audited)
    assert held_out(audited._replace(paths=tuple(paths), labels=tuple(labels))) == names
    assert held_out(listed(sizes[:1])) == {n for n in names if n.startswith("c0/")}


def test_a_split_is_the_same_on_every_machine() -> None:
    audited = listed([10, 6])
    _, rows = stratified_split(audited, 0.5, 7)
    hashes = [hashlib.sha256(f"7\0{p}".encode()).hexdigest() for p in audited.paths]
    first = sorted(range(10), key=hashes.__getitem__)[:5]
    second = sorted(range(10, 16), key=hashes.__getitem__)[:3]
    assert rows.tolist() == sorted(first + second)


@pure
@given(
    st.lists(
        st.lists(st.integers(1, 6), min_size=12, max_size=20), min_size=1, max_size=4
    ),
    shares,
    seeds,
)
def test_groups_are_never_separated(
    groups: list[list[int]], share: float, seed: int
) -> None:
    """Of each class, groups of these sizes; nor those across classes."""
    audited = listed([sum(group) for group in groups])
    names = [f"{c}-{g}" for c, ns in enumerate(groups) for g, n in enumerate(ns)
             for _ in range(n)]  # fmt: skip
    group = dict(zip(audited.paths, names, strict=True))
    parts = stratified_split(audited, share, seed, lambda path: group[path.as_posix()])
    training, validation = ({names[row] for row in rows} for rows in parts)
    assert not training & validation
    assert training | validation == set(names)
    held = np.bincount(np.array(audited.labels)[parts[1]], minlength=len(groups))
    for n, sizes in zip(held, groups, strict=True):
        assert abs(n - share * sum(sizes)) <= max(sizes) / 2 + 1e-9
    _, rows = stratified_split(listed([12, 12, 12]), 0.25, seed, lambda path: path.name)
    assert len(rows) == 9
    assert len({row % 12 for row in rows}) == 3


@pytest.mark.parametrize(
    ("sizes", "share", "reason"),
    [
        ([20, 2], 0.2, r"no validation example of class 'c1' \(2 in all\)$"),
        ([20, 2], 0.8, r"no training example of class 'c1' \(2 in all\)$"),
        ([1, 20], 0.5, r"no validation example of class 'c0' \(1 in all\)$"),
        ([1] * 9, 0.5, r"'c0' .*'c1' .*'c2' .*, and 6 more$"),
    ],
)
def test_a_class_that_a_part_would_lack_is_named(
    sizes: list[int], share: float, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        stratified_split(listed(sizes), share, 0)
    with pytest.raises(UserError, match="no validation example of class 'c0'"):
        stratified_split(listed([9]), 0.2, 0, lambda path: "the same")


# ------------------------------------------------------------------ sorting


def by_letter(path: Path) -> str | None:
    return {"c": "cat", "d": "dog"}.get(path.name[0])


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    names = ("c1.png", "c2.png", "d1.png", "other.png")
    return tree(tmp_path / "flat", {n: picture(i) for i, n in enumerate(names)})


def test_files_are_copied_by_their_labels(flat: Path, tmp_path: Path) -> None:
    tree(flat, {".DS_Store": b"x", "Thumbs.db": b"x"})
    (flat / "c3.png").symlink_to("c1.png")
    os.chmod(flat / "c1.png", 0o444)
    before, target = contents(flat), tmp_path / "new/sorted"
    counts = sort_into_folders(flat, target, by_letter)
    assert list(counts.items()) == [("cat", 3), ("dog", 1)]
    assert contents(target) == {
        f"{label}/{name}": before[name]
        for name in before
        if (label := by_letter(Path(name))) and name[0] != "."
    }
    assert not (target / "cat/c3.png").is_symlink()
    assert audit(target).classes == ("cat", "dog")

    stamps = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert sort_into_folders(flat, target, by_letter) == counts
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == stamps

    copy = target / "cat/c1.png"  # is not the file itself
    assert copy.stat().st_mode & 0o777 == 0o444
    os.chmod(copy, 0o644)
    copy.write_bytes(b"changed")
    assert contents(flat) == before


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    flat: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    target, copy = tmp_path / "sorted", shutil.copy2

    def slow(source: Path, name: str) -> None:
        copy(source, name)
        tree(target, {"cat/c1.png": b"somebody else's"})

    monkeypatch.setattr(shutil, "copy2", slow)
    with pytest.raises(UserError, match=r"c1.png cannot be copied"):
        sort_into_folders(flat, target, by_letter)
    assert contents(target) == {"cat/c1.png": b"somebody else's"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_copy_leaves_whole_files_and_goes_on(
    flat: Path, tmp_path: Path, monkeypatch: Patch, error: BaseException
) -> None:
    target, copy = tmp_path / "sorted", shutil.copy2

    def broken(source: Path, name: str) -> None:
        if Path(source).name == "c2.png":
            Path(name).write_bytes(Path(source).read_bytes()[:9])
            raise error
        copy(source, name)

    monkeypatch.setattr(shutil, "copy2", broken)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(expected, match=r"|c2.png cannot be copied .*: full"):
        sort_into_folders(flat, target, by_letter)
    assert contents(target) == {"cat/c1.png": picture(0)}
    monkeypatch.undo()
    (target / "cat/.left.part").write_bytes(b"by one that was killed")
    assert sort_into_folders(flat, target, by_letter) == {"cat": 2, "dog": 1}
    assert audit(target).paths == ("cat/c1.png", "cat/c2.png", "dog/d1.png")


HOSTILE = {
    **dict.fromkeys(("..", ".", ".hidden", "../up"), "begins with a dot"),
    **dict.fromkeys(("a/b", "/etc"), "holds a slash"),
    **dict.fromkeys(("a\nb", "a\0b", "a\u2028b", "\udce9"), "holds control"),
    "Thumbs.db": "is reserved",
    "": "is empty",
    "é" * 128: "is longer than 255 bytes",
    3: "is no text",
}
# where case, the way letters are composed, or an invisible joiner is ignored
ALIKE = (("cat", "Cat"), ("a\u200db", "a\u200dB"), ("caf\u00e9", "cafe\u0301"))


def test_a_label_must_be_a_plain_folder_name(flat: Path, tmp_path: Path) -> None:
    for bad, reason in HOSTILE.items():
        labels: Any = {"d1.png": bad}
        with pytest.raises(UserError, match=rf"of d1\.png {reason}") as error:
            sort_into_folders(
                flat, tmp_path / "sorted", lambda p, x=labels: x.get(p.name, "fine")
            )
        assert "\n" not in str(error.value)
    for pair in ALIKE:
        with pytest.raises(UserError, match="but for case"):
            sort_into_folders(flat, tmp_path / "a", lambda p, x=pair: x[p.name < "d"])
    assert os.listdir(tmp_path) == ["flat"]
    for good in ("Smileys & Emotion", "고양이", "a.b", "é" * 127):
        target = tmp_path / "one" / good
        sort_into_folders(flat, target, lambda path, label=good: label)
        assert os.listdir(target) == [good]


def test_source_and_target_lie_apart(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(flat)
    for target in (flat, flat / "in", tmp_path, tmp_path / "alias/in", flat / "x/.."):
        with pytest.raises(UserError, match="lie in each other"):
            sort_into_folders(flat, target, by_letter)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop cannot be listed"):
        sort_into_folders(flat, tmp_path / "loop", by_letter)
    with pytest.raises(UserError, match="gone cannot be listed: No such file"):
        sort_into_folders(tmp_path / "gone", tmp_path / "sorted", by_letter)
    assert sort_into_folders(flat, tmp_path / "flat2", by_letter)  # a prefix, no parent


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


OTHER = "dog/d1.png exists with other content"
CANNOT: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a folder": (lambda flat, to: (flat / "c9.png").mkdir(), "c9.png: only files"),
    "a link out": (lambda flat, to: link(flat / "c9.png", "/etc/hosts"), "it leaves"),
    "a link to nothing": (lambda flat, to: link(flat / "c9.png", "gone"), "nowhere"),
    "content of the same length": (
        lambda flat, to: tree(to, {"dog/d1.png": picture(2)[:-1] + b"x"}), OTHER
    ),
    "a link to the same": (
        lambda flat, to: link(to / "dog/d1.png", flat / "d1.png"), OTHER
    ),
    "a folder as a copy": (
        lambda flat, to: (to / "dog/d1.png").mkdir(parents=True), OTHER
    ),
    "a file as a label": (lambda flat, to: tree(to, {"dog": b""}), "is not a folder"),
    "a link as a label": (lambda flat, to: link(to / "dog", flat), "is not a folder"),
    "a file as the target": (lambda flat, to: to.write_bytes(b""), "cannot be listed"),
    "another case": (
        lambda flat, to: tree(to, {"cAt/x": b""}), "'cat' is the same as cAt, but for"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_be_sorted_is_refused_and_nothing_copied(
    flat: Path, tmp_path: Path, what: str
) -> None:
    prepare, reason = CANNOT[what]
    prepare(flat, tmp_path / "sorted")
    before = contents(tmp_path), sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=reason):
        sort_into_folders(flat, tmp_path / "sorted", by_letter)
    assert (contents(tmp_path), sorted(tmp_path.rglob("*"))) == before
