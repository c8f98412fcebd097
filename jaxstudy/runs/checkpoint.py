"""Checkpoints that are proved before they are used: the only file that imports orbax.

Orbax writes each step into a temporary folder and renames it, so a killed save leaves
no half step. It does not notice a flipped bit, though, and casts dtypes silently:
beside every step we keep the shape, dtype and SHA-256 of each leaf, and compare.
Which steps stay we decide here too: orbax's Checkpointer reads the metadata of every
old step, and a damaged one would stop a run that does not need it.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1

from jaxstudy import processes
from jaxstudy.parallel import localized
from jaxstudy.runs.files import flush_to_disk, sha256_of_json
from jaxstudy.types import Array, PyTree, UserError

_T = TypeVar("_T")
ocp: Any = orbax.checkpoint.experimental.v1


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the last n, every one, or the n best and the last."""

    which: Literal["last", "every", "best"] = "last"
    n: int = 2
    monitor: str = "validation.loss"
    mode: Literal["min", "max"] = "min"

    def score(self, value: float | None) -> float:
        """The monitored value so that larger is better; None and inf are the worst."""
        if value is None or not math.isfinite(value):
            return -math.inf
        return value if self.mode == "max" else -value

    def stay(self, scores: Mapping[int, float]) -> set[int]:
        """The steps that stay, given the score of each: -inf where it has none."""
        steps = sorted(scores)
        if self.which == "every":
            return set(steps)
        if self.which == "last":
            return set(steps[-self.n :])
        ranked = sorted(
            (step for step in steps if scores[step] > -math.inf),
            key=lambda step: (scores[step], step),
        )
        return {*steps[-1:], *ranked[-self.n :]}


class Restored(NamedTuple):
    """What a checkpoint held, and the folder name of its step."""

    step: int
    tree: dict[str, PyTree]
    facts: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint that is not what was saved; the text says which part and how."""


def _agreed(work: Callable[[], _T]) -> _T:
    """What `work` returns, or DamagedError on every process where it raises that."""
    result, problem = None, ""
    try:
        result = work()
    except DamagedError as error:
        problem = str(error)
        if not processes.are_several():
            raise
    told = [m["problem"] for m in processes.exchange(problem=problem[:200])]
    if any(told):
        raise DamagedError(problem or f"another process says: {max(told)}")
    return cast(_T, result)


def _plain(tree: PyTree) -> PyTree:
    """Typed keys as their integers: what can be written and hashed."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def _typed(plain: PyTree, like: PyTree) -> PyTree:
    """The inverse of `_plain`, given the original's leaves or their shapes."""

    def restore(x: np.ndarray, original: Any) -> Array:
        if jnp.issubdtype(original.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.array(x))
        return jnp.array(x)  # a copy: what the device may overwrite must be its own

    return jax.tree.map(restore, plain, like)


def _leaves(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves
    }


def _describe(x: Any) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype)}


def _sha256(x: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


class _Silent(logging.Filter):
    """Drops what orbax says on the way to an exception that we report ourselves."""

    loading = False
    hook: Any = None  # who was told before

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop all while loading; later, what its abandoned tasks still have to say."""
        return not (self.loading or "was never retrieved" in record.getMessage())

    def unraisable(self, found: Any) -> None:
        """Drop what reads say that go on when another has failed and all has ended."""
        known = ("Event loop is closed", "has no attribute '_ssock'")  # one never open
        if not str(found.exc_value).endswith(known):
            self.hook(found)

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Inside, neither logs nor warnings; `filter` and `unraisable` stay."""
        if self.hook is None:
            self.hook, sys.unraisablehook = sys.unraisablehook, self.unraisable
            for name in ("absl", "asyncio"):
                logging.getLogger(name).addFilter(self)
        self.loading = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self.loading = False


_silent = _Silent()


class Checkpoints:
    """The checkpoints of one training run, under one folder.

    A checkpoint has named parts, each a pytree ("weights", "training"), so that the
    weights can be read without the optimizer's state. It says what it belongs to, its
    step and the fields of `owner`, and is refused anywhere else.
    """

    def __init__(
        self,
        folder: Path,
        keep: Keep | None = None,
        owner: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder).resolve()  # the same for every process
        self.keep = keep or Keep()
        self.owner = dict(owner or {})

    def steps(self) -> list[int]:
        """The steps there are, ascending, damaged ones included."""
        return processes.told(self._steps)

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())

    def save(self, step: int, tree: dict[str, PyTree], facts: dict[str, Any]) -> None:
        """Write one step, then drop those that are not to be kept.

        `facts` is JSON beside it; facts["monitored"] = {"name", "value"} ranks it
        where the best stay: a value that is not finite, or of another name than the
        one to monitor, never counts.
        """
        if processes.is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            for pattern in ("*.orbax-checkpoint-tmp*", ".dropped-*"):  # left by a kill
                for leftover in self.folder.glob(pattern):
                    shutil.rmtree(leftover)
        host = jax.device_get(_plain(localized(tree)))
        leaves = {
            name: _describe(x) | {"sha256": _sha256(x)}
            for name, x in _leaves(host).items()
        }
        owner = {**self.owner, "step": step}
        description = {"owner": owner, "leaves": leaves, "facts": facts}
        metadata = description | {"sha256": sha256_of_json(description)}
        folder = self.folder / str(step)
        try:
            with _silent.silence():
                ocp.save_checkpointables(folder, host, custom_metadata=metadata)
        except ValueError as error:  # so tensorstore says what the system refused
            refused = re.search(r"os_error_code='(\d+)'", str(error))
            if refused is None:
                raise
            code = int(refused[1])
            raise OSError(code, os.strerror(code), str(folder)) from error
        if not processes.is_first():  # which orbax has waited for
            return
        for path in (*folder.rglob("*"), folder, self.folder):
            flush_to_disk(path)
        scores = self._scores()
        for old in scores.keys() - self.keep.stay(scores):
            delete_whole(self.folder / str(old))

    def load(self, step: int, like: dict[str, PyTree]) -> Restored:
        """Read the parts named in `like` (arrays or their shapes) of one step.

        Raises DamagedError where anything differs from what was saved.
        """
        folder = self.folder / str(step)
        plain = jax.eval_shape(_plain, like)
        description = _agreed(lambda: self._describe_fitting(step, plain))
        host = _agreed(lambda: self._read(folder, plain, description["leaves"]))
        return Restored(step, _typed(host, like), description["facts"])

    def _describe_fitting(self, step: int, plain: PyTree) -> dict[str, Any]:
        """As `_describe_step`, where it has these shapes. Raises DamagedError."""
        description = self._describe_step(step)
        saved = description["leaves"]
        for name, leaf in _leaves(plain).items():
            if name not in saved:
                raise DamagedError(f"{name} is missing")
            expected, found = _describe(leaf), saved[name]
            for what in ("shape", "dtype"):
                if found.get(what) != expected[what]:
                    raise DamagedError(
                        f"{name} has {what} {found.get(what)}, not {expected[what]}"
                    )
        return description

    def _read(self, folder: Path, plain: PyTree, saved: Mapping[str, Any]) -> PyTree:
        """The arrays of one step, proved. Raises DamagedError."""
        try:
            with _silent.silence():
                like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), plain)
                host = ocp.load_checkpointables(folder, like)
        except Exception as error:
            raise DamagedError(
                f"its arrays cannot be read ({_brief(error)})"
            ) from error
        for name, x in _leaves(host).items():
            if _describe(x) != {k: saved[name][k] for k in ("shape", "dtype")}:
                raise DamagedError(f"{name} came back as {_describe(x)}")
            if _sha256(x) != saved[name].get("sha256"):
                raise DamagedError(f"the SHA-256 of {name} differs")
        return host

    def _describe_step(self, step: int) -> dict[str, Any]:
        """{"leaves", "facts"} of one step, proved. Raises DamagedError."""
        try:
            # not through orbax, which would open every array for it
            text = (self.folder / str(step) / "_CHECKPOINT_METADATA").read_bytes()
            description = json.loads(text)["custom_metadata"]
            sha256 = description.pop("sha256")
        except Exception as error:
            raise DamagedError(
                f"its description cannot be read ({_brief(error)})"
            ) from error
        if sha256_of_json(description) != sha256:
            raise DamagedError("the SHA-256 of its description differs")
        for name, own in {**self.owner, "step": step}.items():
            other = description.get("owner", {}).get(name)
            if other != own:
                raise DamagedError(f"it belongs to {name} {other!r}, not {own!r}")
        return description

    def _scores(self) -> dict[int, float]:
        """The score of every step: -inf where it has none, or is damaged."""
        scores = dict.fromkeys(self._steps(), -math.inf)
        for step in scores if self.keep.which == "best" else ():
            with contextlib.suppress(DamagedError):
                monitored = self._describe_step(step)["facts"].get("monitored")
                if monitored and monitored["name"] == self.keep.monitor:
                    scores[step] = self.keep.score(monitored["value"])
        return scores

    def newest(
        self, like: dict[str, PyTree], warn: Callable[[str], None]
    ) -> Restored | None:
        """The newest good checkpoint, or None where none was ever written.

        Damaged ones that are newer are named through `warn` and moved aside to
        `damaged-STEP`. Raises UserError when there are some and none is good.
        """
        restored, problems = self.first_good(self.steps()[::-1], like)
        if restored is None:
            if problems:
                raise UserError(
                    "no checkpoint is good, so nothing was started: "
                    + "; ".join(problems.values())
                )
            return None
        for step, problem in problems.items() if processes.is_first() else ():
            self._set_aside(step)
            warn(f"{problem}; going on from step {restored.step}")
        return restored

    def first_good(
        self, steps: Iterable[int], like: dict[str, PyTree]
    ) -> tuple[Restored | None, dict[int, str]]:
        """The first good one of some steps, and what is wrong before it, by step."""
        problems = {}
        for step in steps:
            try:
                return self.load(step, like), problems
            except DamagedError as error:
                problems[step] = f"checkpoint {self.folder / str(step)}: {error}"
        return None, problems

    def best(self) -> int | None:
        """The step with the best monitored value, or None where none has one."""

        def find() -> int | None:
            scores = {s: x for s, x in self._scores().items() if x > -math.inf}
            return max(scores, key=lambda s: (scores[s], s)) if scores else None

        return processes.told(find)

    def _set_aside(self, step: int) -> None:
        target, i = self.folder / f"damaged-{step}", 1
        while target.exists():
            i += 1
            target = self.folder / f"damaged-{step}-{i}"
        (self.folder / str(step)).rename(target)


def delete_whole(folder: Path) -> None:
    """Delete a folder, renamed first, so that a kill leaves all of it or none."""
    doomed = folder.with_name(f".dropped-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a kill
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
