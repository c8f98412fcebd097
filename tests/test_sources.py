"""Sources: the content is what it should be, or the command that brings it."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from jaxstudy.data.sources import ADMISSIONS, Source, read_bytes
from jaxstudy.types import UserError

CONTENT = b"a,b\n1,2\n"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "table.csv"
    path.write_bytes(CONTENT)
    return Source(path, hashlib.sha256(CONTENT).hexdigest(), "here", "make table")


def test_reads_the_content(source: Source) -> None:
    assert read_bytes(source) == CONTENT


@pytest.mark.parametrize("bit", range(0, 8 * len(CONTENT), 7))
def test_a_flipped_bit_is_found(source: Source, bit: int) -> None:
    content = bytearray(CONTENT)
    content[bit // 8] ^= 1 << bit % 8
    source.path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_bytes(source)
    found = hashlib.sha256(content).hexdigest()
    for part in (str(source.path), found, source.sha256, "make table"):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\n"])
def test_other_lengths_are_found(source: Source, content: bytes) -> None:
    source.path.write_bytes(content)
    with pytest.raises(UserError, match="has SHA-256"):
        read_bytes(source)


def test_what_is_missing_comes_with_its_command(source: Source) -> None:
    source.path.unlink()
    with pytest.raises(UserError, match=r"is missing .*this brings it: make table"):
        read_bytes(source)


def test_a_folder_in_its_place(source: Source) -> None:
    there = dataclasses.replace(source, path=source.path.parent)
    with pytest.raises(UserError, match="this brings it: make table"):
        read_bytes(there)


def test_the_committed_table() -> None:
    assert len(read_bytes(ADMISSIONS).splitlines()) == 401
    assert str(ADMISSIONS.path).endswith(ADMISSIONS.command.rpartition("/")[2])
