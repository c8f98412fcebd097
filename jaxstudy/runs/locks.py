"""A folder that one process holds at a time, and who that is."""

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxstudy.messages import warn
from jaxstudy.runs.files import Holder, from_json
from jaxstudy.types import Refused, UserError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Any]:
    """Hold a lock file, which says who holds it, and remove it in the end.

    The system drops the lock when this process and all that inherited the file have
    ended, however they die. Raises Refused where another holds it.
    """
    file = _lock(path)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # the lock goes with this process anyway
            path.unlink(missing_ok=True)
            file.close()


def _lock(path: Path) -> Any:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (open while held)
        except OSError as error:
            sentence = f"{path.parent} cannot be written: {error.strerror}"
            raise UserError(sentence) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file) or "another process"
            file.close()
            raise Refused(f"{path.parent} is in use by {holder}") from error
        except OSError as error:
            # some network file systems cannot: the file's text has to do
            _look_for_holder(path, file, error)
        # a holder that just left may have removed the file under this lock
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        file.close()
    write_holder(file, {"": os.getpid()})
    return file


def write_holder(file: Any, processes: Mapping[str, int]) -> None:
    """Write into a lock file which processes hold it, by what they run, or ""."""
    file.seek(0)
    file.truncate()
    file.write(json.dumps({"host": platform.node(), "processes": dict(processes)}))
    file.flush()


def _holder(file: Any) -> str:
    """Who holds a lock file: of its processes, if they are here, those that live."""
    file.seek(0)
    try:
        stored = from_json(file.read().encode(), Holder)
    except (ValueError, RecursionError):  # it writes just now
        return "another process"
    here = stored["host"] == platform.node()
    processes = [
        f"process {pid}" + (f" ({name})" if name else "")
        for name, pid in stored["processes"].items()
        if not here or is_alive(pid)
    ]
    return " and ".join(processes) + ("" if here else f" on {stored['host']}")


def _look_for_holder(path: Path, file: Any, error: OSError) -> None:
    """Warn that a file cannot be locked. Raises Refused where it names a holder."""
    holder = _holder(file) if file.seek(0, os.SEEK_END) else ""
    if holder:
        file.close()
        raise Refused(
            f"{path.parent} is in use by {holder}, as {path} says; if it has ended, "
            "remove that file"
        ) from error
    warn(
        f"{path.parent} cannot be locked ({error.strerror}): do not start another "
        "program there"
    )


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return True
