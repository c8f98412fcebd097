"""IDX files: what is read, and what is refused."""

import gzip
import hashlib
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from jaxstudy.data.sources import FASHION_MNIST, Source
from jaxstudy.images import sets
from jaxstudy.images.decoding import pixels
from jaxstudy.images.sets import read_fashion_mnist, read_idx
from jaxstudy.types import UserError
from tests.conftest import Patch


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, gzipped."""
    lengths = b"".join(n.to_bytes(4, "big") for n in array.shape)
    head = bytes([0, 0, 8, array.ndim]) + lengths
    return gzip.compress(head + array.tobytes())


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3)))
def test_what_was_written_is_read(array: np.ndarray) -> None:
    got = read_idx(idx(array), "file")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, array)


GOOD = gzip.decompress(idx(np.arange(6, dtype=np.uint8).reshape(2, 3)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no gzip file|no IDX file"),
        (b"not gzip", "no gzip file"),
        (gzip.compress(GOOD)[:-9], "no gzip file"),
        (gzip.compress(b""), "no IDX file of bytes"),
        (gzip.compress(GOOD[:2] + b"\x0d" + GOOD[3:]), "no IDX file of bytes"),
        (gzip.compress(GOOD[:6]), "values where its header says"),
        (gzip.compress(GOOD[:-1]), r"has 5 values where its header says \[2, 3\]"),
        (gzip.compress(GOOD + b"x"), r"has 7 values where its header says \[2, 3\]"),
    ],
    # of the reasons: the bytes hold the time, which differs between test processes
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"the-file.*({reason})"):
        read_idx(content, "the-file")


def test_files_become_splits(tmp_path: Path, monkeypatch: Patch) -> None:
    sources = {}
    for i, name in enumerate(FASHION_MNIST):
        shape = (3 + i // 2, 28, 28) if "images" in name else (3 + i // 2,)
        content = idx(np.full(shape, i, np.uint8))
        (tmp_path / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        sources[name] = Source(tmp_path / name, digest, "", "make data")
    monkeypatch.setattr(sets, "FASHION_MNIST", sources)
    read = read_fashion_mnist()
    assert {k: (v.x.shape, v.y.shape) for k, v in read.items()} == {
        "train": ((3, 28, 28), (3,)),
        "test": ((4, 28, 28), (4,)),
    }
    assert read["train"].y.dtype == np.int32
    assert (read["test"].x[0, 0, 0], read["test"].y[0]) == (2, 3)
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(UserError, match="this brings it: make data"):
        read_fashion_mnist()


@pytest.mark.parametrize(
    ("size", "channels"), [((16, 16), 3), ((28, 40), 1), ((90, 9), 3)]
)
def test_all_images_are_resized_as_each_of_them(
    size: tuple[int, int], channels: int, monkeypatch: Patch
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 28, 28)).astype(np.uint8)
    few = sets.Images(x, np.zeros(7, np.int32))
    monkeypatch.setattr(sets, "read_fashion_mnist", lambda: {"train": few})
    found = sets.read_images("fashion_mnist", image_size=size, channels=channels)
    got = found.splits["train"].x  # type: ignore[union-attr]
    each = [pixels(Image.fromarray(i), size, channels) for i in x]
    assert got.dtype == np.uint8
    apart = np.abs(got.astype(int) - np.stack(each))
    assert apart.max() <= (size[0] != size[1])  # the same, where the sides are
