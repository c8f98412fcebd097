"""Several processes that train together: who started them, and what they agree on.

A launcher (Slurm, MPI, JobSet, torchrun) starts the same command several times, and
says by variables how many there are and which one this is. All compute the same from
the same arguments; what depends on a disk, a clock or a signal one of them decides, or
all do together, by `exchange`. Only the first one keeps the run folder.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxstudy.types import PyTree, UserError

_T = TypeVar("_T")
MESSAGE_BYTES = 2048
MAX_CHARACTERS = 400  # of an error that is told to the others
MEETING_SECONDS = 300  # in which all processes have to be started
LEAVE_SECONDS = 10.0  # others may be where they cannot hear that one leaves


# ------------------------------------------------------------------ launchers


class Launcher(NamedTuple):
    """The variables a launcher sets: how many processes, which one, and where.

    own: whether JAX reads them itself; then others that lack do not matter, for the
    script of a Slurm job has the first two, and is one process.
    """

    count: str
    rank: str
    where: tuple[str, ...]
    own: bool = False


LAUNCHERS = {
    "Kubeflow": Launcher(
        "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", ("JAX_COORDINATOR_ADDRESS",)
    ),
    "torchrun": Launcher("WORLD_SIZE", "RANK", ("MASTER_ADDR", "MASTER_PORT")),
    "Slurm": Launcher("SLURM_NTASKS", "SLURM_PROCID", ("SLURM_STEP_NODELIST",), True),
    "Open MPI": Launcher(
        "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ("OMPI_MCA_orte_hnp_uri",), True
    ),
}


class Launch(NamedTuple):
    """What a launcher has started: what `jax.distributed.initialize` is to be told."""

    name: str
    count: int
    arguments: dict[str, Any]


def find_launch(variables: Mapping[str, str]) -> Launch | None:
    """The processes of which this one is one, or None where it is alone.

    Raises UserError where the variables of a launcher are half set, or no numbers.
    """
    half = []
    for name, launcher in LAUNCHERS.items():
        names = launcher.count, launcher.rank, *launcher.where
        there = [n for n in names if variables.get(n)]
        missing = [n for n in names if n not in there]
        if not there or (launcher.count in there and variables[launcher.count] == "1"):
            continue
        if missing:
            if not launcher.own or name == "Open MPI":
                half.append(
                    f"{' and '.join(there)} {'is' if len(there) == 1 else 'are'} set "
                    f"as by {name}, but {' and '.join(missing)} "
                    f"{'is' if len(missing) == 1 else 'are'} not"
                )
            continue
        count, rank = (_number(n, variables[n]) for n in names[:2])
        if rank >= count:
            raise UserError(f"{names[1]}={rank} is not one of {names[0]}={count}")
        if launcher.own:
            return Launch(name, count, {})
        address = variables[names[2]]
        if name == "Kubeflow":
            host, _, port = address.rpartition(":")
            if not host or not _is_port(port):
                raise UserError(
                    f"{names[2]}={address}: it takes HOST:PORT, with a port from 1 to "
                    "65535"
                )
        if name == "torchrun":  # which listens on that port itself
            next_port = _number(names[3], variables[names[3]]) + 1
            if not _is_port(str(next_port)):
                raise UserError(f"{names[3]}={next_port - 1}: it takes 1 to 65534")
            address = f"{address}:{next_port}"
        arguments: dict[str, Any] = {
            "coordinator_address": address, "num_processes": count, "process_id": rank
        }  # fmt: skip
        if name == "torchrun" and variables.get("LOCAL_RANK"):  # its GPU of a host
            own = _number("LOCAL_RANK", variables["LOCAL_RANK"])
            arguments["local_device_ids"] = [own]
        return Launch(name, count, arguments)
    if half:
        raise UserError("; ".join(half))
    hosts = variables.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return Launch("TPU", len(hosts), {}) if len(hosts) > 1 else None


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 2**16


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise UserError(f"{name}={value} is not a number")
    return int(value)


def join_processes(heartbeat_s: int) -> None:
    """Join the processes that a launcher started with this one.

    Before JAX has looked for devices. A process that dies ends the others after
    `heartbeat_s` seconds. What others than the first print is not shown.
    """
    launch = find_launch(os.environ)
    if launch is None:
        return
    if heartbeat_s < 1:
        raise UserError(f"--heartbeat {heartbeat_s}: it takes 1 second or more")
    who = f"{launch.count} processes by {launch.name}"
    if launch.arguments.get("process_id") == 0:
        _check_port(launch.arguments["coordinator_address"])
    print(f"waiting for {who}", file=sys.stderr, flush=True)

    def give_up() -> None:  # before JAX does, which ends with a trace of its C++
        where = launch.arguments.get("coordinator_address", "the first one's host")
        print(
            f"error: {who} did not meet within {MEETING_SECONDS} s: each has to be "
            f"started, and to reach {where}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    waiting = threading.Timer(MEETING_SECONDS, give_up)
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            **launch.arguments,
            heartbeat_timeout_seconds=heartbeat_s,
            initialization_timeout=MEETING_SECONDS + 60,
        )
    except Exception as error:
        detail = (str(error).splitlines() or [""])[0][:MAX_CHARACTERS]
        raise UserError(f"{who} did not meet: {detail}") from error
    finally:
        waiting.cancel()
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _check_port(address: str) -> None:
    """Raise UserError where this host's port is taken: JAX would crash."""
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {address}: {os.strerror(error.errno or 0)}"
        ) from error


# ------------------------------------------------------------------ agreement


def are_several() -> bool:
    """Whether other processes train with this one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process keeps the run folder; it does where it is alone."""
    return not are_several() or jax.process_index() == 0


class AgreedError(UserError):
    """An error that every process raises, of one of them."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code


def exchange(**message: Any) -> list[dict[str, Any]]:
    """What every process says at the same place of the program, by process.

    A message is short JSON. Raises AgreedError where one has an "error" to tell, here
    or wherever it is.
    """
    if not are_several():
        return [message]
    text = json.dumps(message, ensure_ascii=False).encode(errors="replace")
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(buffer))
    messages = [json.loads(row.tobytes().rstrip(b"\0")) for row in rows]
    for other in messages:
        if "error" in other:
            raise AgreedError(other["error"], other["code"])
    return messages


def largest(*values: int) -> tuple[int, ...]:
    """The largest of each value that any process has."""
    if not are_several():
        return values
    messages = exchange(values=values)
    return tuple(np.max([m["values"] for m in messages], axis=0).tolist())


def together(work: Callable[[], _T]) -> _T:
    """What `work` returns, done by every process; a UserError of one is every one's."""
    with _errors_shared():
        result = work()
    exchange()
    return result


def told(work: Callable[[], _T]) -> _T:
    """What `work` returns on the first process alone, as JSON; a UserError of it is
    raised on all."""
    if not are_several():
        return work()
    message, text = {}, b""
    if is_first():
        with _errors_shared():
            value = work()
        text = json.dumps(value).encode()
        fits = len(text) < MESSAGE_BYTES - 100
        message = {"value": value} if fits else {"size": len(text)}
    told_first = exchange(**message)[0]
    if "value" in told_first:
        return told_first["value"]
    buffer = np.zeros(told_first["size"], np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(
        np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()
    )


@contextlib.contextmanager
def _errors_shared() -> Iterator[None]:
    """A UserError is told to the others, where they `exchange` next."""
    try:
        yield
    except UserError as error:
        with contextlib.suppress(AgreedError):
            exchange(error=str(error)[:MAX_CHARACTERS], code=error.exit_code)
        raise


def check_same(what: Mapping[str, PyTree]) -> None:
    """Raise UserError where a process has another of these than the first, by name.

    Each is a tree of arrays, or of JSON.
    """
    if not are_several():
        return
    messages = exchange(**{name: _digest(tree) for name, tree in what.items()})
    for number, other in enumerate(messages):
        for name in what:
            if other[name] != messages[0][name]:
                raise AgreedError(
                    f"process {number} has another {name} than process 0", 2
                )


def _digest(tree: PyTree) -> str:
    """A hash of all leaves: where they are, and their types, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, jax.Array):
            digest.update(_jax_digest(leaf))
        elif isinstance(leaf, np.ndarray):
            digest.update(_array_digest(leaf))
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]


_digests: dict[int, bytes | None] = {}  # by the id of an array, as long as it lives


def hash_once(a: jax.Array) -> jax.Array:
    """The same array, whose digest this process remembers: a study trains on it often.

    Only for an array whose memory is its own. JAX changes none, but one that
    `jax.device_put` makes of a NumPy array may share its memory, and be changed in
    place by it. Whoever is not known here is hashed at every comparison; and every
    process takes part in each, whether it remembers or not.
    """
    _digests[id(a)] = None
    weakref.finalize(a, _digests.pop, id(a), None).atexit = False
    return a


def _jax_digest(a: jax.Array) -> bytes:
    digest = _digests.get(id(a))
    if digest is None:
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        digest = _array_digest(np.asarray(jax.random.key_data(a) if is_key else a))
        if id(a) in _digests:
            _digests[id(a)] = digest
    return digest


def _array_digest(a: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{a.dtype} {a.shape} ".encode())
    digest.update(np.ascontiguousarray(a).tobytes())
    return digest.digest()


def leave(code: int) -> None:
    """End this process with an exit code, and the others, where they hear of it.

    At an ordinary exit the processes would wait for each other for minutes. The first
    one goes last: who still lives when it is gone is ended by JAX, as after a crash.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    deaf = threading.Timer(LEAVE_SECONDS, os._exit, (code,))
    deaf.daemon = True
    deaf.start()
    with contextlib.suppress(Exception):  # all hear of it by this, or are gone
        exchange(error=f"process {jax.process_index()} ended: it says why", code=code)
    if is_first():
        time.sleep(1)
    os._exit(code)
