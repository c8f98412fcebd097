"""What a check of saved runs needs: equality to the bit, refusals, damaged files."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstudy.types import PyTree, UserError


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Whether two trees are equal to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def is_refused(work: Callable[[], Any]) -> bool:
    """Whether something raises UserError."""
    try:
        work()
    except UserError:
        return True
    return False


@contextlib.contextmanager
def flipped_bit(folder: Path) -> Iterator[None]:
    """A bit of the largest file in a folder is flipped, for as long as this lasts."""
    path = max(folder.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(content)
