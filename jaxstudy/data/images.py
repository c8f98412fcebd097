"""Images: Fashion-MNIST, from the IDX files of its Debian package."""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxstudy.data.sources import FASHION_MNIST, read_bytes
from jaxstudy.types import UserError


class Images(NamedTuple):
    """x [N, H, W] uint8 and labels y [N] int32."""

    x: np.ndarray
    y: np.ndarray


def read_idx(content: bytes, name: str | Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped.

    Two zero bytes, the type (8: unsigned byte), the number of axes, their lengths as
    big-endian 32-bit numbers, the values. Raises UserError where it is no such file.
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name} is no gzip file: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UserError(f"{name} is no IDX file of bytes: it begins with {raw[:4]!r}")
    axes = raw[3]
    begin = 4 + 4 * axes
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, begin, 4)]
    if len(raw) < begin or len(raw) - begin != math.prod(shape):
        raise UserError(
            f"{name} has {len(raw) - begin} values where its header says {shape}"
        )
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(shape)


def read_fashion_mnist() -> dict[str, Images]:
    """The 60,000 "train" and 10,000 "test" images of Fashion-MNIST, 28x28, 10 classes.

    Source: Xiao, Rasul and Vollgraf 2017. Raises UserError where the files are missing
    or have other content, with the command that brings them.
    """
    arrays = {
        name: read_idx(read_bytes(source), source.path)
        for name, source in FASHION_MNIST.items()
    }
    return {
        split: Images(
            arrays[f"{prefix}-images-idx3-ubyte"],
            arrays[f"{prefix}-labels-idx1-ubyte"].astype(np.int32),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
