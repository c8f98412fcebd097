"""Sources: the content is what it should be, or the command that brings it."""

import dataclasses
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxstudy.data.sources import (
    ADMISSIONS,
    NOTES,
    PACKAGES,
    MissingData,
    Source,
    check_folder,
    check_records,
    folder_sha256,
    read_bytes,
    records_seal,
)
from jaxstudy.types import UserError
from tests.conftest import Patch

CONTENT = b"a,b\n1,2\n"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "table.csv"
    path.write_bytes(CONTENT)
    return Source(path, hashlib.sha256(CONTENT).hexdigest(), "here", "make table")


def test_other_content_is_found_and_comes_with_its_command(source: Source) -> None:
    assert read_bytes(source) == CONTENT
    flipped = [
        CONTENT[:i] + bytes([CONTENT[i] ^ 1 << bit]) + CONTENT[i + 1 :]
        for i, bit in ((0, 0), (3, 5), (len(CONTENT) - 1, 7))
    ]
    for content in (*flipped, b"", CONTENT[:-1], CONTENT + b"\n"):
        source.path.write_bytes(content)
        with pytest.raises(UserError, match="has SHA-256") as error:
            read_bytes(source)
        found = hashlib.sha256(content).hexdigest()
        for part in (str(source.path), found, source.sha256, "make table"):
            assert part in str(error.value)
    source.path.unlink()
    with pytest.raises(UserError, match=r"is missing .*this brings it: make table"):
        read_bytes(source)
    there = dataclasses.replace(source, path=source.path.parent)  # a folder
    with pytest.raises(UserError, match="this brings it: make table"):
        read_bytes(there)


@pytest.fixture
def folder(tmp_path: Path) -> Source:
    path = tmp_path / "folder"
    for name in ("b.txt", "a/z.txt", "a/b c.txt", "a-b/c.txt", "B.txt"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"this is {name}")
    return Source(path, folder_sha256(path), "here", "make folder")


def test_the_hash_of_a_folder_is_what_its_docstring_says(folder: Source) -> None:
    listed = subprocess.run(
        "find * -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum",
        shell=True, cwd=folder.path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert listed.stdout.split()[0] == folder.sha256
    assert check_folder(folder) == folder.path


CHANGES: dict[str, Callable[[Path], object]] = {
    "other content": lambda p: (p / "b.txt").write_text("this was b.txt"),
    "one less": lambda p: (p / "a/z.txt").unlink(),
    "one more": lambda p: (p / "a/new.txt").touch(),
    "renamed": lambda p: (p / "b.txt").rename(p / "c.txt"),
    "moved": lambda p: (p / "b.txt").rename(p / "a/b.txt"),
    "a link to nothing": lambda p: (
        (p / "b.txt").rename(p.parent / "x") and (p / "b.txt").symlink_to("x")
    ),
    "a file in its place": lambda p: p.rename(p.with_name("x")) and p.touch(),
    "nothing": lambda p: p.rename(p.with_name("x")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_found(folder: Source, change: str) -> None:
    CHANGES[change](folder.path)
    with pytest.raises(MissingData, match=r"this brings .*make folder"):
        check_folder(folder)


def test_changed_records_are_found(tmp_path: Path, source: Source) -> None:
    place = tmp_path / "mine"
    record = place / "1.0.0" / "data"
    record.parent.mkdir(parents=True)

    def found_wrong(version: str = "1.0.0", source: Source = source) -> bool:
        try:
            check_records(place, version, [source])
        except MissingData as error:
            return "make data" in str(error)
        return False

    record.write_text("some records")
    assert found_wrong()  # not sealed, as when their writing was stopped
    (place / "SHA256").write_text(records_seal(place, "1.0.0", [source]))
    assert not found_wrong()
    record.write_text("same records")
    assert found_wrong()
    record.write_text("some records")
    assert not found_wrong()
    assert found_wrong("1.0.1")  # by an older builder
    other = dataclasses.replace(source, sha256="0" * 64)
    assert found_wrong(source=other)  # made from something else


def test_what_is_missing_is_noted_where_somebody_asked(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.delenv(NOTES, raising=False)
    MissingData("no such data").note()
    monkeypatch.setenv(NOTES, str(tmp_path / "note"))
    MissingData("no such data").note()
    assert (tmp_path / "note").read_text() == "no such data"


def test_packages_and_the_committed_table_are_pinned() -> None:
    """By version and hash; what they bring lies in their place, or in the system."""
    assert len(read_bytes(ADMISSIONS).splitlines()) == 401
    assert str(ADMISSIONS.path).endswith(ADMISSIONS.command.rpartition("/")[2])
    for package in PACKAGES:
        assert package.version
        for digest in (package.sha256, *(s.sha256 for s in package.sources)):
            assert len(bytes.fromhex(digest)) == 32
        for source in package.sources:
            assert source.command == "make data"
            assert package.version.partition("-")[0] in source.origin
            paths = source.path.parts[-3:], source.path.parent.parts[-3:]
            assert package.place.parts[-3:] in paths
