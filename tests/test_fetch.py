"""Fetching, with programs that stand in for apt-get, npm and pip."""

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jaxstudy import __main__ as command
from jaxstudy.data import fetch as module
from jaxstudy.data.fetch import STEPS, FetchStep, fetch, package_step, unpack
from jaxstudy.data.sources import NOTES, MissingData, Package, Source, folder_sha256
from jaxstudy.types import UserError
from tests.conftest import ROOT, Patch, Said, contents

CONTENT = {"one.txt": b"the first", "two.txt": b"the second"}


def tar(files: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def wheel(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def deb(files: Mapping[str, bytes], folder: Path) -> bytes:
    """A real package: dpkg-deb, which unpacks it, comes with apt-get."""
    tree = folder / "deb"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: us\n"
        "Description: x\n"
    )
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    made = folder / "made.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, made],
        check=True, capture_output=True,
    )  # fmt: skip
    return made.read_bytes()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A folder before all others on PATH, and of Python's modules."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


Client = Callable[..., Package]


@pytest.fixture
def client(tmp_path: Path, programs: Path) -> Client:
    """A client that brings an archive of CONTENT, and the package that it brings."""

    def make(name: str, say: str = "", code: int = 0) -> Package:
        inside = {f"x/{file}": content for file, content in CONTENT.items()}
        if name == "npm":
            archive, ending = tar(inside | {"x/other": b""}), "tgz"
        elif name == "pip":
            archive, ending = wheel(inside | {"x/other": b""}), "whl"
        else:
            archive, ending = deb(inside, tmp_path), "deb"
        (tmp_path / f"archive.{ending}").write_bytes(archive)
        asked = {"npm": "pack", "apt-get": "download", "pip": "download"}[name]
        script = (
            f'#!/bin/sh\necho called >> "{tmp_path}/calls"\n'
            f'[ "$1" = {asked} ] || exit 99\n'
            f'case "$*" in *thing*1.0*) ;; *) exit 98;; esac\n'
            f'printf "{say}"\n[ {code} = 0 ] || exit {code}\n'
            f'cp "{tmp_path}/archive.{ending}" .\n'
        )
        program = programs / name
        program.write_text(script)
        program.chmod(0o755)
        if name == "pip":  # python -m pip
            program.rename(programs / "pip.sh")
            (programs / "pip.py").write_text(
                "import subprocess, sys\n"
                f"sys.exit(subprocess.call(['{programs}/pip.sh', *sys.argv[1:]]))\n"
            )
        good = tmp_path / "good"
        good.mkdir()
        for file, content in CONTENT.items():
            (good / file).write_bytes(content)
        place = tmp_path / "data" / "deep" / "place"
        source = Source(place, folder_sha256(good), "a licence", "make data")
        keep = (r"(?:\./)?x/(.*\.txt)", r"\1")
        digest = hashlib.sha256(archive).hexdigest()
        return Package(
            "Things", name, "thing", "1.0", digest, (keep,), place, (source,)  # type: ignore[arg-type]
        )  # fmt: skip

    return make


def bring(package: Package, data: Path) -> dict[str, str]:
    return fetch([package_step(package)], data)


CLIENTS = ("apt-get", "npm", "pip")


@pytest.mark.parametrize("name", CLIENTS)
def test_it_comes_once_and_no_other(
    name: str, client: Client, tmp_path: Path, capsys: Said
) -> None:
    package, data = client(name), tmp_path / "data"
    missing = bring(dataclasses.replace(package, sha256="0" * 64), data)
    assert "has SHA-256" in missing["Things"]
    assert "nothing of it is used" in missing["Things"]
    assert not package.place.exists()
    (data / ".fetching" / "unpacked").mkdir(parents=True)  # left by one that was killed
    assert bring(package, data) == {}
    assert contents(package.place) == CONTENT
    assert sorted(p.name for p in data.iterdir()) == [".lock", "deep"]
    assert "Things: brought in" in capsys.readouterr().out
    assert bring(package, data) == {}
    out = capsys.readouterr()
    assert out.out == "Things: there (a licence)\n"
    assert out.err == ""
    assert (tmp_path / "calls").read_text() == "called\n" * 2


def test_what_is_damaged_comes_again(client: Client, tmp_path: Path) -> None:
    """Of a folder; or of files that the system may have, or not."""
    package, data = client("npm"), tmp_path / "data"
    bring(package, data)
    damages = (
        lambda: (package.place / "one.txt").write_bytes(b"the firsT"),
        lambda: (package.place / "one.txt").unlink(),
        lambda: (package.place / "three.txt").touch(),
    )
    for calls, damage in enumerate(damages, 2):
        damage()
        assert bring(package, data) == {}
        assert contents(package.place) == CONTENT
        assert (tmp_path / "calls").read_text() == "called\n" * calls
    damages[0]()
    wrong = dataclasses.replace(package.sources[0], sha256="0" * 64)
    missing = bring(dataclasses.replace(package, sources=(wrong,)), data)
    assert "SHA-256" in missing["Things"]
    assert (package.place / "one.txt").read_bytes() == b"the firsT"  # as it was
    files = tuple(
        Source(tmp_path / name, hashlib.sha256(content).hexdigest(), "")
        for name, content in CONTENT.items()
    )
    files[0].path.write_bytes(CONTENT["one.txt"])  # the other one is missing
    assert bring(dataclasses.replace(package, sources=files), data) == {}
    assert contents(package.place) == CONTENT


LATER = "when the registry can be reached: make data"
FAILURES = {
    "apt-get": ("Reading package lists...\\nE: Unable to locate package thing\\n", 100,
                "E: Unable to locate package thing", "apt-get update, then make data"),
    "npm": ("npm error code X\\nnpm error network request failed\\nnpm error log\\n", 1,
            "npm error network request failed", LATER),
    "pip": ("WARNING: retrying\\nERROR: No matching distribution\\nnotice\\n", 1,
            "ERROR: No matching distribution", LATER),
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_fails_is_quoted(
    name: str, client: Client, tmp_path: Path
) -> None:
    say, code, reason, remedy = FAILURES[name]
    package = client(name, say, code)
    said = bring(package, tmp_path / "data")["Things"]
    assert f"{name} did not fetch thing 1.0 ({reason}); " in said
    assert remedy in said
    assert not package.place.exists()
    client_archive = next(tmp_path.glob("archive.*"))
    client_archive.unlink()  # and one that brings nothing
    program = tmp_path / "programs" / ("pip.sh" if name == "pip" else name)
    program.write_text("#!/bin/sh\n")
    assert "did not fetch" in bring(package, tmp_path / "data")["Things"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("apt-get", "needs a Debian system"),
        ("npm", "apt-get install npm, then make data"),
        ("pip", "ensurepip, then make data"),
    ],
)
def test_no_such_client(
    name: str, remedy: str, client: Client, programs: Path, tmp_path: Path,
    monkeypatch: Patch,
) -> None:  # fmt: skip
    package = client(name)
    for program in programs.iterdir():
        program.unlink()
    monkeypatch.setenv("PATH", str(programs))
    (programs / "pip").mkdir()  # hides the real one
    (programs / "pip" / "__init__.py").touch()
    said = bring(package, tmp_path / "data")["Things"]
    assert name in said
    assert remedy in said
    if name == "apt-get":  # nor one to unpack with
        (programs / name).write_text(
            f"#!{sys.executable}\nimport shutil\n"
            f"shutil.copy('{tmp_path}/archive.deb', 'archive.deb')\n"
        )
        (programs / name).chmod(0o755)
        said = bring(package, tmp_path / "data")["Things"]
        assert "dpkg-deb cannot be run" in said


# ------------------------------------------------------------------ stops


def test_interrupted_it_cleans_up(tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([FetchStep("x", "", absent, stop)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    fetch([FetchStep("x", "", absent, lambda folder: None)], tmp_path)  # not locked


def test_two_at_a_time_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    def bring(folder: Path) -> None:
        with pytest.raises(UserError, match="another process is fetching"):
            fetch([], tmp_path)

    assert fetch([FetchStep("x", "", absent, bring)], tmp_path) == {}
    assert fetch([], tmp_path) == {}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        fetch([], tmp_path / "file")


def absent() -> None:
    raise MissingData("not there")


def test_a_full_disk_is_one_missing_item(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder / "big"))

    missing = fetch([FetchStep("x", "", absent, full)], tmp_path)
    assert "big cannot be written: No space left on device" in missing["x"]


# ------------------------------------------------------------------ archives

TORN = tar({"x/a": b"1" * 999})[:60]


def npm_package(keep: str, place: Path) -> Package:
    return Package("x", "npm", "x", "1", "", ((keep, r"\1"),), place, ())


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_no_member_leaves_its_folder_or_is_there_twice(tmp_path: Path) -> None:
    for i, name in enumerate(("x/../../out", "x//out", "x/a/../../../out")):
        (tmp_path / "a.tgz").write_bytes(tar({name: b"evil"}))
        package = npm_package("x/(.*)", tmp_path)
        with pytest.raises(UserError, match="would leave its folder"):
            unpack(package, tmp_path / "a.tgz", tmp_path / f"in{i}")
        assert not (tmp_path / "out").exists()
    (tmp_path / "a.tgz").write_bytes(tar({"x/a": b"1", "y/a": b"2"}))
    with pytest.raises(UserError, match="holds 'a' twice"):
        unpack(npm_package("./(.*)", tmp_path), tmp_path / "a.tgz", tmp_path / "in")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_only_files_are_kept(kind: bytes, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    members = {
        "a": link("x/dir", str(outside), kind),
        "b": link("x/passwd", "/etc/passwd", kind),
        "x/dir/file": b"content",
        "y/other": b"not asked for",
    }
    (tmp_path / "a.tgz").write_bytes(tar(members))
    unpack(npm_package("x/(.*)", tmp_path), tmp_path / "a.tgz", tmp_path / "in")
    assert contents(tmp_path / "in") == {"dir/file": b"content"}
    assert not any(path.is_symlink() for path in (tmp_path / "in").rglob("*"))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("client_name", CLIENTS)
def test_no_archive(client_name: Any, tmp_path: Path) -> None:
    package = dataclasses.replace(npm_package("x/(.*)", tmp_path), client=client_name)
    for i, content in enumerate((b"", b"no archive", TORN)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match="cannot be unpacked"):
            unpack(package, tmp_path / "a", tmp_path / f"in{i}")


# ------------------------------------------------------------------ the command


def test_every_step_comes_after_what_it_needs() -> None:
    titles = [step.title for step in STEPS]
    assert len(set(titles)) == len(titles)
    for i, step in enumerate(STEPS):
        assert set(step.needs) <= set(titles[:i])


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: Patch) -> list[str]:
    """Five steps, of which the second fails and the third needs it."""
    done: list[str] = []

    def fail(folder: Path) -> None:
        raise MissingData("no network; this brings it: make data")

    def step(name: str, licence: str = "", needs: tuple[str, ...] = ()) -> FetchStep:
        return FetchStep(name, licence, absent, lambda folder: done.append(name), needs)

    five = (
        step("first", "MIT"),
        FetchStep("second", "", absent, fail),
        step("third", needs=("second",)),
        step("fourth", needs=("third",)),
        step("fifth", needs=("first",)),
    )
    monkeypatch.setattr(command, "STEPS", five)
    monkeypatch.setattr(
        command, "fetch", lambda steps: module.fetch(steps, tmp_path / "data")
    )
    return done


def test_the_command_goes_on_and_says_what_is_missing(
    steps: list[str], monkeypatch: Patch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxstudy", "data"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert steps == ["first", "fifth"]
    assert "second: missing; no network; this brings it: make data\n" in out
    assert "third: missing; it is made from second, which is missing\n" in out
    assert err == "error: 3 of 5 are missing: second, third, fourth\n"


GOOD = "print('good lesson')"
BROKEN = "raise SystemExit(1)"
BADLY_SET = "raise SystemExit(2)"
LACKING = f"""
import os
with open(os.environ["{NOTES}"], "w") as note:  # as MissingData.note
    note.write("emoji are missing; this brings it: make data")
raise SystemExit(2)
"""


def study(scripts: Mapping[str, str], tmp_path: Path, monkeypatch: Patch) -> int:
    (tmp_path / "experiments").mkdir()
    for name, text in scripts.items():
        (tmp_path / "experiments" / f"{name}.py").write_text(text)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "write_report", lambda runs: runs / "report.html")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    argv = ["jaxstudy", "study", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("failing", [{}, {"ch1_b": BROKEN, "ch1_c": BADLY_SET}])
def test_a_study_goes_on_without_data_and_after_failures(
    failing: dict[str, str], tmp_path: Path, monkeypatch: Patch, capfd: Any
) -> None:
    scripts = {"ch1_a": LACKING, **failing, "ch2_b": GOOD}
    assert study(scripts, tmp_path, monkeypatch) == (2 if failing else 0)
    out, err = capfd.readouterr()
    assert "good lesson" in out
    listed = out.partition("\nmissing data:\n")[2].partition("\n\nreport: ")[0]
    assert listed == "  ch1_a: emoji are missing; this brings it: make data"
    assert ("2 of 4 failed: ch1_b, ch1_c" in err) == ("failed" in err) == bool(failing)
