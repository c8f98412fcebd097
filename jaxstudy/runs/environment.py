"""What the numbers of a run depend on beside its settings: versions, device, source."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from jaxstudy.messages import warn
from jaxstudy.ops import CPU_CONVOLUTION
from jaxstudy.parallel import usable_cores
from jaxstudy.runs.files import Object, read_json
from jaxstudy.types import UserError


def set_xla_flags(deterministic: bool = False) -> None:
    """Add this project's settings to XLA_FLAGS, before JAX starts, but those set there.

    LLVM's last level of optimisation takes a third of a lesson's compiling; without it
    the LSTM of the benchmarks trains as fast, the GAN a twentieth slower. Convolutions
    on a CPU are those of the faster library.
    deterministic: a GPU adds in a fixed order.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    own = ["--xla_backend_optimization_level=2", CPU_CONVOLUTION]
    own += ["--xla_gpu_deterministic_ops=true"] if deterministic else []
    missing = [flag for flag in own if flag.split("=")[0] not in flags]
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])


def keep_freed_memory() -> None:
    """Let freed memory serve the next allocation, where the C library is glibc.

    XLA on a CPU allocates the temporary arrays of a program at each call. Blocks of
    over 32 MiB would go back to the system in between, and their pages be cleared anew:
    a fourteenth of the time of InceptionV3's features.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, most)
        mallopt(trim_threshold, most)


def environment() -> dict[str, Any]:
    """Versions, device, cores, flags and source: what the numbers depend on."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "jaxstudy",
    )
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "backend": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git": _git_revision(),
        "source": source_hash()[:16],
    } | ({"processes": jax.process_count()} if jax.process_count() > 1 else {})


def source_hash() -> str:
    """The SHA-256 of the library, of JAX's version, and of the script that runs."""
    digest = hashlib.sha256(jax.__version__.encode())
    script = getattr(sys.modules["__main__"], "__file__", None)
    library = sorted(Path(__file__).parents[1].rglob("*.py"))
    for path in (*library, *([Path(script)] if script else [])):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def peak_memory_gib() -> float | None:
    """The most memory that this process had, in GiB, where the system says so."""
    if sys.platform == "win32":
        return None
    import resource  # there is none on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * unit / 2**30, 3)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git_revision() -> str | None:
    """The commit of the source tree, with "+changes" where files differ from it."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def compare_environment(folder: Path) -> None:
    """Warn where a run that is resumed was begun in another environment."""
    here = environment()
    try:
        there = read_json(folder / "environment.json", Object)
    except UserError as error:
        return warn(str(error))
    unsaid = ("cores", "source")  # of which git tells
    names = [k for k in here if k not in unsaid and there.get(k) != here[k]]
    if names:
        warn(
            f"{folder} was begun with another {', '.join(names)}: "
            "the same bits are not to be expected"
        )
