"""A run on the disk, read knowing only its folder: its settings and its weights."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import jax
import pydantic

from jaxstudy.messages import warn
from jaxstudy.model import Model
from jaxstudy.parallel import Layout
from jaxstudy.runs.checkpoint import Checkpoints, Keep
from jaxstudy.runs.files import Description, Sealed, read_json, reason, sha256_of_json
from jaxstudy.types import PyTree, UserError

C = TypeVar("C")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Options:
    """How a run is kept and on what; it computes the same but for load_params."""

    save: Literal["state", "params"] = "state"
    """state: everything, so the run can go on. params: only what predicts."""
    keep: Literal["last", "every", "best"] = "last"
    """Which checkpoints stay: the last KEEP_N, every epoch's, or the KEEP_N best."""
    keep_n: Annotated[int, pydantic.Field(ge=1)] = 2
    """How many stay with --keep last or best."""
    monitor: str = "validation.loss"
    """The logged metric that --keep best ranks by, as split.name."""
    mode: Literal["min", "max"] = "min"
    """Whether a small (min) or a large (max) monitored value is better."""
    save_every: Annotated[float, pydantic.Field(ge=0)] = 30.0
    """Seconds between checkpoints with --keep last."""
    load_params: Path | None = None
    """Begin with the weights of this run folder instead of fresh ones."""
    devices: Layout = "replicas"
    """replicas: each device trains some. data: devices share every batch, too."""
    deterministic: bool = False
    """On a GPU, sums in a fixed order: the same bits again, more slowly."""
    tensorboard: bool = False
    """Also write TensorBoard event files, to RUN_DIR/tensorboard."""


@dataclass(frozen=True)
class Saved(Generic[C]):
    """A run on the disk, read knowing only its folder."""

    folder: Path
    experiment: str
    preset: str
    config: C
    options: Options
    id: str
    files: Mapping[str, str | None]

    def changes(
        self, preset: str, config: C, options: Options, files: Mapping[str, str | None]
    ) -> list[str]:
        """Where what is asked for differs: "epochs: 50 there, 60 here"."""

        def sha256(text: str | None) -> str:
            return "not readable" if text is None else f"SHA-256 {text[:12]}..."

        pairs = [
            (name, repr(value), repr(getattr(asked, name)))
            for there, asked in ((self.config, config), (self.options, options))
            for name, value in vars(there).items()
            if value != getattr(asked, name)
        ] + [
            (f"the content of {name}", sha256(self.files[name]), sha256(files[name]))
            for name in self.files.keys() & files.keys()
            if self.files[name] != files[name]
        ]
        if preset != self.preset:
            pairs.append(("preset", repr(self.preset), repr(preset)))
        return [f"{name}: {there} there, {here} here" for name, there, here in pairs]

    def weights(self, like: PyTree, part: str = "", step: int | None = None) -> PyTree:
        """The weights of one training; see `load_weights`."""
        return load_weights(self.folder, like, part, step)

    def model_weights(
        self, model: Model, part: str = "", step: int | None = None
    ) -> PyTree:
        """The weights of a model that was trained once."""
        params, extra = jax.eval_shape(model.init, jax.random.key(0))
        return self.weights({"params": params, "extra": extra}, part, step)

    def replica_weights(
        self, model: Model, replicas: int, part: str = "", step: int | None = None
    ) -> PyTree:
        """The weights [replicas, ...] of a model that was trained in replicas."""
        keys = jax.random.split(jax.random.key(0), replicas)
        params, extra = jax.eval_shape(jax.vmap(model.init), keys)
        return self.weights({"params": params, "extra": extra}, part, step)


def read_saved(folder: Path, config_type: type[C], experiment: str) -> Saved[C]:
    """Read what config.json of a run folder says.

    Raises UserError when there is no run, or it is another experiment's.
    """
    fields = _read_config(folder)
    if fields["experiment"] != experiment:
        raise UserError(
            f"{folder} holds a run of {fields['experiment']}, not of {experiment}"
        )
    config = _record(config_type, "config", folder, fields)
    options = _record(Options, "options", folder, fields)
    return Saved(
        folder, experiment, fields["preset"], config, options,
        fields["run"], fields["files"],
    )  # fmt: skip


def read_experiment(folder: Path) -> str:
    """The experiment of a run folder. Raises UserError where there is no run."""
    return _read_config(folder)["experiment"]


def _record(
    kind: type[C], name: Literal["config", "options"], folder: Path, fields: Description
) -> C:
    """The dataclass that one field of config.json describes."""
    stored = fields[name]
    try:
        unknown = set(stored) - set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
        if unknown:
            raise ValueError(f"unknown {name} {', '.join(sorted(unknown))}")
        return pydantic.TypeAdapter(kind).validate_python(stored)
    except (ValueError, TypeError) as error:
        path = folder / "config.json"
        raise UserError(f"{path} does not fit: {name}: {reason(error)}") from error


def _read_config(folder: Path) -> Description:
    path = folder / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"no run in {folder}: there is no {path.name}")
    return read_json(path, Description)


def read_sealed(folder: Path, name: str, kind: type[_T]) -> _T:
    """What `Run.write_sealed` wrote into a run folder, as a type that pydantic knows.

    Raises UserError where it is another run's, or is not what was written.
    """
    path, run = folder / name, _read_config(folder)
    try:
        sealed = dict(read_json(path, Sealed))
        if sealed.pop("sha256") != sha256_of_json(sealed):
            raise ValueError("its SHA-256 differs")
        for field in ("experiment", "run"):
            if sealed[field] != run[field]:
                raise ValueError(f"it belongs to {field} {sealed[field]!r}")
        types = pydantic.TypeAdapter(kind)
        value = types.validate_python(sealed["content"])
        if types.dump_python(value, mode="json") != sealed["content"]:
            raise ValueError("it has fields that nobody knows")
        return value
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def load_weights(
    folder: Path, like: PyTree, part: str = "", step: int | None = None
) -> PyTree:
    """{"params", "extra"} of one training of a saved run, in the structure of `like`.

    The step is the best one where the run kept the best, else the newest good one,
    unless given. `like` holds arrays or their shapes. Raises UserError where no good
    checkpoint fits.
    """
    fields = _read_config(folder)
    options = _record(Options, "options", folder, fields)
    checkpoints = checkpoints_of(
        folder, options, fields["experiment"], fields["run"], part
    )
    steps = checkpoints.steps()[::-1] if step is None else [step]
    if step is None and (best := checkpoints.best()) is not None:
        steps = [best, *(s for s in steps if s != best)]
    restored, problems = checkpoints.first_good(steps, {"weights": like})
    listed = "; ".join(problems.values())
    if restored is None:
        detail = f": {listed}" if listed else ""
        raise UserError(f"no checkpoint that fits in {checkpoints.folder}{detail}")
    if problems:
        warn(f"{listed}; step {restored.step} is used")
    return restored.tree["weights"]


def checkpoints_of(
    folder: Path, options: Options, experiment: str, run: str, part: str
) -> Checkpoints:
    """The checkpoints of one training of a run folder."""
    where = folder / "checkpoints"
    return Checkpoints(
        where / part if part else where,
        Keep(options.keep, options.keep_n, options.monitor, options.mode),
        {"experiment": experiment, "run": run, "part": part},
    )


def file_hashes(*records: Any) -> dict[str, str | None]:
    """The SHA-256 of what each path in the settings leads to, a file or a folder.

    None where it cannot be read, which whoever reads it will say.
    """
    return {
        name: _sha256_of_path(value)
        for record in records
        for name, value in vars(record).items()
        if isinstance(value, Path)
    }


def _sha256_of_path(path: Path) -> str | None:
    """The hash of a file, or of the names and hashes of all files in a folder.

    Of a run folder: of what its checkpoints say of themselves, every array's hash.
    """
    is_run = (path / "config.json").is_file() and (path / "checkpoints").is_dir()
    names = "_CHECKPOINT_METADATA" if is_run else "*"
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if not path.is_dir():  # a pipe can be read once, and not here
            return None
        digest = hashlib.sha256()
        for found in sorted(path.rglob(names)):
            if found.is_file() and not found.name.startswith("."):
                digest.update(os.fsencode(found.relative_to(path)) + b"\0")
                digest.update((_sha256_of_path(found) or "").encode())
        return digest.hexdigest()
    except OSError:
        return None
