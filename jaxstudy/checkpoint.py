"""Checkpoints that are proved before they are used: the only file that imports orbax.

Orbax writes each step into a temporary folder and renames it, so a killed save leaves
no half step. It does not notice a flipped bit, though, and casts dtypes silently:
beside every step we keep the shape, dtype and SHA-256 of each leaf, and compare.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1

from jaxstudy.types import Array, PyTree, UserError

# its annotations do not hold: policies do not fit its own protocol
ocp: Any = orbax.checkpoint.experimental.v1
_policies: Any = ocp.training.preservation_policies


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the last n, every one, or the n best and the last."""

    which: Literal["last", "every", "best"] = "last"
    n: int = 2
    monitor: str = "validation.loss"
    mode: Literal["min", "max"] = "min"

    def score(self, value: float) -> float:
        """The monitored value so that larger is better; not finite is the worst."""
        if not math.isfinite(value):
            return -math.inf
        return value if self.mode == "max" else -value

    def policy(self) -> Any:
        """The orbax policy that does this."""
        if self.which == "every":
            return _policies.PreserveAll()
        if self.which == "last":
            return _policies.LatestN(self.n)
        best = _policies.BestN(
            get_metric_fn=lambda metrics: self.score(metrics["monitored"]),
            n=self.n,
            keep_checkpoints_without_metrics=False,
        )
        return _policies.AnyPreservationPolicy([_policies.LatestN(1), best])


class Restored(NamedTuple):
    """What a checkpoint held, and the folder name of its step."""

    step: int
    tree: dict[str, PyTree]
    facts: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint that is not what was saved; the text says which part and how."""


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


class Checkpoints:
    """The checkpoints of one training run, under one folder.

    A checkpoint has named parts, each a pytree ("weights", "training"), so that the
    weights can be read without the optimizer's state.
    """

    def __init__(self, folder: Path, keep: Keep | None = None) -> None:
        self.folder = Path(folder).absolute()
        self.keep = keep or Keep()
        self._writer: Any = None

    def steps(self) -> list[int]:
        """The steps there are, ascending, damaged ones included."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())

    def save(self, step: int, tree: dict[str, PyTree], facts: dict[str, Any]) -> None:
        """Write one step, then drop those that are not to be kept.

        `facts` is JSON beside it; facts["monitored"] ranks it where the best stay.
        """
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=self.keep.policy(),
                cleanup_tmp_directories=True,
            )
        host = jax.device_get(_plain(tree))
        leaves = {
            name: _describe(x) | {"sha256": _sha256(x)}
            for name, x in _leaves(host).items()
        }
        monitored = facts.get("monitored")
        self._writer.save_checkpointables(
            step,
            host,
            force=True,
            metrics=None if monitored is None else {"monitored": monitored},
            custom_metadata={"leaves": leaves, "facts": facts},
        )

    def load(self, step: int, like: dict[str, PyTree]) -> Restored:
        """Read the parts named in `like` (arrays or their shapes) of one step.

        Raises DamagedError where anything differs from what was saved.
        """
        folder = self.folder / str(step)
        plain = jax.eval_shape(_plain, like)
        try:
            facts = ocp.checkpointables_metadata(folder).custom_metadata
            saved, monitored = facts["leaves"], facts["facts"]
        except Exception as error:
            raise DamagedError(
                f"its description cannot be read ({_brief(error)})"
            ) from error
        for name, leaf in _leaves(plain).items():
            if name not in saved:
                raise DamagedError(f"{name} is missing")
            expected, found = _describe(leaf), saved[name]
            for what in ("shape", "dtype"):
                if found.get(what) != expected[what]:
                    raise DamagedError(
                        f"{name} has {what} {found.get(what)}, not {expected[what]}"
                    )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                host = ocp.load_checkpointables(folder, _numpy_like(plain))
        except Exception as error:
            raise DamagedError(
                f"its arrays cannot be read ({_brief(error)})"
            ) from error
        for name, x in _leaves(host).items():
            if _describe(x) != {k: saved[name][k] for k in ("shape", "dtype")}:
                raise DamagedError(f"{name} came back as {_describe(x)}")
            if _sha256(x) != saved[name].get("sha256"):
                raise DamagedError(f"the SHA-256 of {name} differs")
        return Restored(step, _typed(host, like), monitored)

    def newest(
        self, like: dict[str, PyTree], warn: Callable[[str], None]
    ) -> Restored | None:
        """The newest good checkpoint, or None where none was ever written.

        Damaged ones that are newer are named through `warn` and moved aside to
        `damaged-STEP`. Raises UserError when there are some and none is good.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                restored = self.load(step, like)
            except DamagedError as error:
                problems.append(
                    (step, f"checkpoint {self.folder / str(step)}: {error}")
                )
                continue
            for bad, problem in problems:
                self._set_aside(bad)
                warn(f"{problem}; going on from step {step}")
            return restored
        if problems:
            listed = "; ".join(problem for _, problem in problems)
            raise UserError(f"no checkpoint is good, so nothing was started: {listed}")
        return None

    def best(self) -> int | None:
        """The step with the best monitored value, or None where none has one."""
        scores = {}
        for step in self.steps():
            try:
                facts = ocp.checkpointables_metadata(self.folder / str(step))
                value = facts.custom_metadata["facts"]["monitored"]
            except Exception:  # a damaged step cannot be the best
                continue
            if value is not None and math.isfinite(value):
                scores[step] = self.keep.score(value)
        return max(scores, key=scores.__getitem__) if scores else None

    def _set_aside(self, step: int) -> None:
        target, i = self.folder / f"damaged-{step}", 1
        while target.exists():
            i += 1
            target = self.folder / f"damaged-{step}-{i}"
        (self.folder / str(step)).rename(target)

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _numpy_like(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
