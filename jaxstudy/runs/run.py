"""The run folder: who holds it, what was run, on what, and the results.

    runs/<experiment>/<name>/
        config.json environment.json metrics.jsonl attempts.json checkpoints/
        figures/ result.json; run.lock while it runs

`fit` writes through a `SubRun`, which is its log.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar, cast

import jax
import numpy as np

from jaxstudy import processes
from jaxstudy.messages import warn
from jaxstudy.parallel import localized
from jaxstudy.records import Advance, Log, Timing
from jaxstudy.runs.checkpoint import Restored, delete_whole
from jaxstudy.runs.environment import (
    compare_environment,
    environment,
    peak_memory_gib,
    source_hash,
)
from jaxstudy.runs.files import (
    Description,
    LoggedRecord,
    flush_to_disk,
    json_lines,
    plain_json,
    read_file,
    read_json,
    sha256_of_json,
    to_json,
    write_atomically,
)
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.locks import locked
from jaxstudy.runs.progress import Bar
from jaxstudy.runs.saved import (
    Options,
    checkpoints_of,
    file_hashes,
    load_weights,
    read_saved,
)
from jaxstudy.types import PyTree, Refused, TrainState, UserError

CONFIG_SCHEMA = 2
_T = TypeVar("_T")


class Stopped(Exception):
    """The run was asked to stop by a signal; what it had reached is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class SubRun(Log):
    """One training within a run: its metrics and checkpoints. Most runs have one.

    checkpoint_at_end: false saves nothing when it ends, only on the way. temporary: the
    checkpoints are deleted when the run has its result. on_epoch: gets the number and
    the state of each epoch at its end, before a checkpoint is saved of it, so a resumed
    run leaves none out. on_chunk: gets every chunk in the place of the progress bar.
    """

    def __init__(
        self,
        run: "Run",
        name: str,
        *,
        checkpoint_at_end: bool = True,
        temporary: bool = False,
        on_epoch: Callable[[int, TrainState], None] | None = None,
        on_chunk: Callable[[Advance, list[dict[str, Any]]], None] | None = None,
    ) -> None:
        self.run, self.name = run, name
        self.checkpoint_at_end, self.temporary = checkpoint_at_end, temporary
        self.on_epoch, self.layout = on_epoch, run.options.devices
        self.on_chunk, self.bar = on_chunk or self._show, contextlib.ExitStack()
        self.shown: Bar | None = None
        self.checkpoints = checkpoints_of(
            run.folder, run.options, run.experiment, run.id, name
        )
        # of one that was finished before, which is not trained again
        self.timing = run.attempts.parts.get(name, Timing())
        self.saved_at = time.monotonic()

    @property
    def every_epoch(self) -> bool:  # type: ignore[override]
        """Whether each epoch's end has to be seen: for a callback or a checkpoint."""
        return self.on_epoch is not None or self.checkpoints.keep.which != "last"

    def begin(self, state: TrainState) -> tuple[TrainState, list[dict[str, Any]]]:
        """Go on from the newest checkpoint, or with loaded weights, or afresh.

        Raises Stopped where a signal came before, UserError where the checkpoints hold
        no training state or none is good.
        """
        self.run.stop_if_asked()
        tree = _as_saved(state)
        restored = self._restore(tree) if self.run.resumed else None
        if restored is not None:
            fields = restored.tree["weights"] | restored.tree["training"]
            return TrainState(**fields), self.records
        folder = self.run.options.load_params
        if folder is not None:
            weights = load_weights(folder, tree["weights"], self.name)
            state = state._replace(**weights)
        return state, []

    def compiled(self, seconds: float, metrics: Mapping[str, list[str]]) -> None:
        """Say before training, not after, that there is no metric to monitor."""
        super().compiled(seconds, metrics)
        self.saved_at, keep = time.monotonic(), self.checkpoints.keep
        logged = [
            f"{split}.{name}" for split, names in metrics.items() for name in names
        ]
        if keep.which == "best" and keep.monitor not in logged:
            raise UserError(
                f"--monitor {keep.monitor}: not logged here, only {', '.join(logged)}"
            )

    def evaluated(self, records: list[dict[str, Any]]) -> None:
        """Keep the evaluation before the first step. Raises Stopped."""
        if records:
            self.log(records)
        self.run.stop_if_asked()

    def advanced(
        self, state: TrainState, chunk: Advance, records: list[dict[str, Any]]
    ) -> None:
        """Write the records, and a checkpoint where one is due. Raises Stopped."""
        super().advanced(state, chunk, records)
        self.on_chunk(chunk, records)
        epoch, within = divmod(chunk.step, chunk.per_epoch)
        if self.on_epoch is not None and not within:
            self.on_epoch(epoch, localized(state))
        ended = chunk.step == chunk.total
        if ended:  # first: its records say that the training is finished
            self.run.save_attempts()
        self.log(records)
        due = time.monotonic() - self.saved_at >= self.run.options.save_every
        if self.checkpoints.keep.which != "last":
            due = not within
        signum, due = self.run.agree(due)
        if signum or due or (ended and self.checkpoint_at_end):
            self._save(chunk.step, state)
            self.saved_at = time.monotonic()
        if signum:
            raise Stopped(signum)

    def ended(self) -> None:
        """Leave the terminal as it was."""
        self.bar.close()
        self.shown = None

    def _show(self, chunk: Advance, records: list[dict[str, Any]]) -> None:
        """Epoch, training loss (the median of replicas) and speed, in a bar."""
        if self.shown is None:
            name = "  ".join(filter(None, (self.run.place, self.name)))
            self.shown = self.bar.enter_context(Bar(chunk.total, name))
        losses = [r["loss"] for r in records if r["split"] == "train"][-1]
        finite = _finite(losses)
        loss = np.median(finite) if finite else np.nan
        epoch, speed = chunk.step / chunk.per_epoch, chunk.steps / chunk.seconds
        text = (
            f"epoch {epoch:.4g}  loss {loss:.4f}  {speed:,.0f} steps/s{self.run.left}"
        )
        self.shown.update(chunk.step, text)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The metrics logged so far, as they stand in metrics.jsonl."""
        return [r for r in self.run.records if r.get("part", "") == self.name]

    def delete_checkpoints(self) -> None:
        """Delete the checkpoints: what they were for is in the metrics."""
        if processes.is_first():
            with contextlib.suppress(FileNotFoundError):
                delete_whole(self.checkpoints.folder)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append {"step", "epoch", "split", names...: values} each to metrics.jsonl."""
        tag = {"part": self.name} if self.name else {}
        self.run.append([{**tag, **record} for record in records])

    def _save(self, step: int, state: TrainState) -> None:
        """Write a checkpoint, unless this step has one."""
        if step in self.checkpoints.steps():
            return
        tree, keep = _as_saved(state), self.checkpoints.keep
        if self.run.options.save == "params":
            del tree["training"]
        facts: dict[str, Any] = {
            "timing": asdict(self.timing), "metrics": self._logged(len(self.records))
        }  # fmt: skip
        if keep.which == "best":
            facts["monitored"] = {"name": keep.monitor, "value": self._monitored(step)}
        # a checkpoint that survives a power cut needs the records before it
        with contextlib.suppress(FileNotFoundError):
            flush_to_disk(self.run.folder / "metrics.jsonl")
        self.checkpoints.save(step, tree, facts)
        self.run.save_attempts()

    def _restore(self, like: dict[str, PyTree]) -> Restored | None:
        """The newest good state to go on from; later metrics are dropped."""
        if self.checkpoints.steps() and self.run.options.save == "params":
            raise UserError(
                f"{self.run.folder} was run with --save params, so it cannot go on; "
                f"start another run with --load-params {self.run.folder}"
            )
        restored = self.checkpoints.newest(like, warn)
        reached = -1 if restored is None else restored.step
        self.run.drop_records(
            lambda r: r.get("part", "") == self.name and r["step"] > reached
        )
        if restored is None:
            self.timing = Timing()
            return None
        self.timing = Timing(**restored.facts["timing"])
        logged = restored.facts["metrics"]
        if self._logged(logged["rows"]) != logged:
            raise UserError(
                f"{self.run.folder / 'metrics.jsonl'} is damaged: its records "
                f"up to step {restored.step} are not those that were logged"
            )
        return restored

    def _logged(self, count: int) -> dict[str, Any]:
        """What proves the first records of the metrics, kept with each checkpoint."""
        text = "".join(to_json(record) for record in self.records[:count])
        return {"rows": count, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def _monitored(self, step: int) -> float | None:
        """The monitored metric after a step, of replicas the mean, where finite."""
        split, _, name = self.run.options.monitor.partition(".")
        for record in reversed(self.records):
            if (record["step"], record["split"]) == (step, split):
                value = record.get(name)
                values: list[Any] = value if isinstance(value, list) else [value]
                return None if None in values else sum(values) / len(values)
        return None


def _as_saved(state: TrainState) -> dict[str, PyTree]:
    """A state as a checkpoint has it: its weights, and what training needs beside."""
    training = state._asdict()
    weights = {name: training.pop(name) for name in ("params", "extra")}
    return {"weights": weights, "training": training}


@dataclass(frozen=True)
class Attempts:
    """attempts.json: how long each process worked on a run, and on which training.

    And what memory the largest of them took, in GiB, where the system says so.
    """

    wall_s: list[float] = field(default_factory=list)
    peak_memory_gib: float | None = None
    parts: dict[str, Timing] = field(default_factory=dict)

    def joined(self, other: Self) -> Self:
        """These and others, which worked on other trainings."""
        both = self.peak_memory_gib, other.peak_memory_gib
        peaks = [peak for peak in both if peak is not None]
        return type(self)(
            self.wall_s + other.wall_s,
            max(peaks, default=None),
            self.parts | other.parts,
        )


ATTEMPTS_SECONDS = 5.0  # at most so much of a killed attempt is not counted


@dataclass
class Run:
    """A run folder that this process holds, from `open_run`."""

    folder: Path
    experiment: str
    preset: str
    config: Any
    options: Options
    resumed: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    files: Mapping[str, str | None] = field(default_factory=dict)
    """SHA-256 of what each path in the settings leads to; see `file_hashes`."""
    records: list[dict[str, Any]] = field(default_factory=list)
    changed: bool = False  # whether this process wrote metrics
    sub_runs: dict[str, SubRun] = field(default_factory=dict)
    attempts: Attempts = field(default_factory=Attempts)  # the earlier ones
    started: float = field(default_factory=time.monotonic)
    signum: int | None = None
    place: str = ""  # which of how many trainings this is, from `each`
    left: str = ""  # how long the others may take
    _attempts_saved: float = field(default_factory=time.monotonic)
    _board: Any = None

    @property
    def figures(self) -> Path:
        """The folder for PNG figures. Raises Stopped after a signal."""
        self.stop_if_asked()
        path = self.folder / "figures"
        path.mkdir(exist_ok=True)
        return path

    def sub_run(self, name: str = "", **options: Any) -> SubRun:
        """The training of this name, with `SubRun`'s options, the same at every call.

        Its checkpoints are under checkpoints/NAME. Raises Stopped after a signal.
        """
        self.stop_if_asked()
        if name not in self.sub_runs:
            self.sub_runs[name] = SubRun(self, name, **options)
        return self.sub_runs[name]

    def each(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items; while one is worked on, the progress says "3 of 8" and time left.

        Of loops within each other the outermost knows the time that is left.
        """
        items, begun = list(items), time.monotonic()
        outer, outer_left = self.place, self.left
        for i, item in enumerate(items):
            self.place = f"{outer}{', ' if outer else ''}{i + 1} of {len(items)}"
            if i and not outer:
                left = (time.monotonic() - begun) / i * (len(items) - i)
                self.left = f"  about {left / 60:.0f} min left in all"
            yield item
        self.place, self.left = outer, outer_left

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add records to metrics.jsonl, in the file when this returns."""
        self.changed = True
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.writelines(to_json(record) + "\n" for record in records)
        self.records += records
        if time.monotonic() - self._attempts_saved > ATTEMPTS_SECONDS:
            self.save_attempts()
        if self.options.tensorboard:
            self._write_events(records)

    def drop_records(self, drop: Any) -> None:
        """Take records out of metrics.jsonl: those after the state one goes on from."""
        kept = [record for record in self.records if not drop(record)]
        if len(kept) != len(self.records):
            self.records, self.changed = kept, True
            text = "".join(to_json(record) + "\n" for record in kept)
            write_atomically(self.folder / "metrics.jsonl", text)

    def _write_events(self, records: list[dict[str, Any]]) -> None:
        if self._board is None:
            import tensorboardX  # only with --tensorboard

            self._board = tensorboardX.SummaryWriter(str(self.folder / "tensorboard"))
        for record in records:
            for name, value in record.items():
                if name in ("part", "split", "step", "epoch"):
                    continue
                tags = filter(None, (record.get("part"), record["split"], name))
                if finite := _finite(value):
                    mean = sum(finite) / len(finite)
                    self._board.add_scalar("/".join(tags), mean, record["step"])
        self._board.flush()

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Note that the run is to stop; at the second signal, stop at once.

        An exception from here would be raised wherever Python happens to be: in a
        callback of XLA it is lost.
        """
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum
        with contextlib.suppress(OSError):  # not print, which is not reentrant
            os.write(2, b"\nsaving, then stopping (once more: stop at once)\n")

    def stop_if_asked(self) -> None:
        """Raise Stopped after a signal to any process; called by all where nothing is
        half done."""
        signum, _ = self.agree()
        if signum:
            raise Stopped(signum)

    def agree(self, due: bool = False) -> tuple[int, bool]:
        """The signal that any process got, or 0, and whether any finds it is due."""
        signum, any_due = processes.largest(self.signum or 0, int(due))
        return signum, bool(any_due)

    def peak_memory_gib(self) -> float | None:
        """The most memory that one of the processes so far had, in GiB."""
        peaks = self.attempts.peak_memory_gib, peak_memory_gib()
        return max((peak for peak in peaks if peak is not None), default=None)

    def save_attempts(self) -> None:
        """Write attempts.json: what a resumed run cannot measure."""
        self._attempts_saved = time.monotonic()
        walls = [*self.attempts.wall_s, time.monotonic() - self.started]
        timings = {name: sub_run.timing for name, sub_run in self.sub_runs.items()}
        parts = {**self.attempts.parts, **timings}
        fields = asdict(Attempts(walls, self.peak_memory_gib(), parts))
        write_atomically(self.folder / "attempts.json", to_json(fields) + "\n")

    def finish(
        self, metrics: Mapping[str, Any], lesson: Lesson | None = None
    ) -> dict[str, Any]:
        """Write result.json, the last file of a run, and return what it holds."""
        timings = [sub_run.timing for sub_run in self.sub_runs.values()]
        train_s = sum(t.train_s for t in timings)
        wall_s = sum(self.attempts.wall_s) + time.monotonic() - self.started
        examples = sum(t.examples for t in timings)
        result = {
            "schema": CONFIG_SCHEMA,
            "experiment": self.experiment,
            "preset": self.preset,
            "seed": self.config.seed,
            "metrics": dict(metrics),
            **(lesson.json(metrics) if lesson else {}),
            "steps": sum(t.steps for t in timings),
            "compile_s": round(sum(t.compile_s for t in timings), 3),
            "train_s": round(train_s, 3),
            "wall_s": round(wall_s, 3),
            "attempts": len(self.attempts.wall_s) + 1,
            "goodput": round(train_s / wall_s, 4),
            "examples_per_s": round(examples / train_s, 1) if train_s else None,
            "peak_memory_gib": self.peak_memory_gib(),
        }
        write_atomically(self.folder / "result.json", to_json(result, indent=1) + "\n")
        for sub_run in self.sub_runs.values():
            if sub_run.temporary:
                sub_run.delete_checkpoints()
        return result

    def write_sealed(self, name: str, value: Any) -> None:
        """Write JSON that `read_sealed` proves to be this run's, and unchanged."""
        content = {"content": plain_json(value)}
        sealed = {"experiment": self.experiment, "run": self.id, **content}
        text = json.dumps(
            {**sealed, "sha256": sha256_of_json(sealed)}, indent=1, ensure_ascii=False
        )
        write_atomically(self.folder / name, text + "\n")


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line torn by a kill is dropped."""
    if not path.exists():
        return []
    content = read_file(path)
    records, bad, _ = json_lines(content, LoggedRecord)
    for number, what in bad.items():
        raise UserError(f"{path}, line {number}, is damaged: {what}")
    if content and not content.endswith(b"\n"):  # torn, be it only of its line end
        write_atomically(path, "".join(to_json(record) + "\n" for record in records))
    return cast(list[dict[str, Any]], records)


def _read_attempts(path: Path) -> Attempts:
    """What earlier attempts took; nothing where that is lost, which is said."""
    try:
        return read_json(path, Attempts) if path.exists() else Attempts()
    except UserError as error:
        warn(f"{error}; earlier attempts are not counted")
        return Attempts()


def _finite(value: Any) -> list[float]:
    """The values of a logged metric, of one replica or of each, that are finite."""
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


@contextlib.contextmanager
def open_run(
    folder: Path,
    experiment: str,
    preset: str,
    config: Any,
    options: Options | None = None,
    *,
    resume: bool = False,
    allow_change: bool = False,
) -> Iterator[Run]:
    """Hold a run folder: lock it, write or compare its config, handle signals.

    Raises UserError when another process holds it, it cannot be written, it holds
    another config, there is nothing to resume, or there is a run and `resume` is
    not set. A fresh run that ends by a UserError before it trained leaves no trace.

    Of several processes the first one holds it, and each other has a folder for the
    time being, with what is there and the same checkpoints.
    """
    run = Run(folder, experiment, preset, config, options or Options(), resume)
    if not processes.are_several():
        with _hold(run, allow_change):
            yield run
        return
    _check_processes(run)
    with contextlib.ExitStack() as stack:

        def begin() -> list[str]:
            stack.enter_context(_hold(run, allow_change))
            return [str(folder.absolute()), run.id]

        home, run.id = processes.told(begin)
        if not processes.is_first():
            run.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(_signals_noted(run))
        processes.together(lambda: _follow(run, Path(home)))
        yield run
        if not processes.is_first():  # which asks for itself
            run.stop_if_asked()


def _check_processes(run: Run) -> None:
    """Raise UserError where another process was started as something else."""
    hashes = file_hashes(run.config, run.options)
    settings = [plain_json(run.config), plain_json(run.options)]
    processes.check_same(
        {
            "source code": source_hash(),
            "experiment": (run.experiment, run.preset),
            "configuration": json.dumps(settings),
            "content of a file it is given": json.dumps(hashes),
        }
    )


def _follow(run: Run, home: Path) -> None:
    """See that this process finds the run folder, and copy what it may read of it."""
    if processes.is_first():
        return
    for delay in (0.1, 0.4, 1.5, 3):  # a network file system may be late
        with contextlib.suppress(UserError):
            if read_json(home / "config.json", Description)["run"] == run.id:
                break
        time.sleep(delay)
    else:
        raise UserError(
            f"process {jax.process_index()} does not see the run folder {home}: it "
            "has to be on a file system that all processes share"
        )
    skipped = shutil.ignore_patterns(
        "checkpoints", "figures", "tensorboard", "run.lock", ".*"
    )
    shutil.copytree(home, run.folder, ignore=skipped, dirs_exist_ok=True)
    (run.folder / "checkpoints").symlink_to(home / "checkpoints")
    if run.resumed:
        run.records = _read_records(run.folder / "metrics.jsonl")
        run.attempts = _read_attempts(run.folder / "attempts.json")


@contextlib.contextmanager
def _signals_noted(run: Run) -> Iterator[None]:
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for signum in handlers:
        signal.signal(signum, run.on_signal)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _hold(run: Run, allow_change: bool) -> Iterator[None]:
    """`open_run` of one process, or the first."""
    folder, path = run.folder, run.folder / "config.json"
    if run.resumed and not os.path.isfile(path):
        raise UserError(f"there is nothing to resume in {folder}: no config.json")
    try:
        str(folder.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the run folder {folder} has a name that is not UTF-8: checkpoints need "
            "one"
        ) from error
    run.files = file_hashes(run.config, run.options)  # may take long: before the lock
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_empty_folders(folder))
        stack.enter_context(locked(folder / "run.lock"))
        stack.enter_context(_signals_noted(run))
        _check_contents(run, allow_change)
        before = path.read_text(encoding="utf-8") if run.resumed else None
        try:
            _begin(run)
            yield
            run.stop_if_asked()  # all is done, but whoever asked may have more to stop
        except (UserError, OSError) as error:
            if not os.path.isdir(folder):
                raise Refused(f"{folder} was removed while it was in use") from error
            with contextlib.suppress(OSError):
                if before is None and not run.records:
                    for name in ("config.json", "environment.json", "attempts.json"):
                        (folder / name).unlink(missing_ok=True)
                if before is not None and not run.changed:
                    write_atomically(path, before)
            raise
        finally:
            if run.changed:
                with contextlib.suppress(OSError):  # so that an earlier error is told
                    run.save_attempts()
            if run._board is not None:
                run._board.close()  # its flush does not wait for what is in the queue


def _begin(run: Run) -> None:
    """Read what an earlier attempt left, and write what this one is."""
    for leftover in run.folder.glob(".*.json*.[0-9]*"):  # of a kill while writing
        leftover.unlink()
    if run.resumed:
        run.records = _read_records(run.folder / "metrics.jsonl")
        run.attempts = _read_attempts(run.folder / "attempts.json")
        compare_environment(run.folder)
    else:
        text = json.dumps(environment(), indent=1) + "\n"
        write_atomically(run.folder / "environment.json", text)
    config = {
        "schema": CONFIG_SCHEMA,
        "experiment": run.experiment,
        "run": run.id,
        "preset": run.preset,
        "config": plain_json(run.config),
        "options": plain_json(run.options),
        "files": dict(run.files),
    }
    text = json.dumps(config, indent=1) + "\n"
    write_atomically(run.folder / "config.json", text)


@contextlib.contextmanager
def _no_empty_folders(folder: Path) -> Iterator[None]:
    """In the end, remove a folder and its parents that were created and are empty."""
    # not Path.exists, which raises where a parent may not be searched
    missing = [p for p in (folder, *folder.parents) if not os.path.exists(p)]
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _check_contents(run: Run, allow_change: bool) -> None:
    if not os.path.exists(run.folder / "config.json"):
        for name in ("metrics.jsonl", "checkpoints", "result.json"):
            if (run.folder / name).exists():
                raise UserError(
                    f"{run.folder} has {name} of a run without config.json; "
                    "--run-dir starts another"
                )
        return
    saved = read_saved(run.folder, type(run.config), run.experiment)
    changed = saved.changes(run.preset, run.config, run.options, run.files)
    run.id = saved.id
    if not run.resumed:
        what = f"another config ({'; '.join(changed)})" if changed else "this config"
        raise UserError(
            f"{run.folder} already holds a run of {what}; "
            "--resume goes on with it, --run-dir starts another"
        )
    if changed and not allow_change:
        raise UserError(
            f"{run.folder} holds a run of another config ({'; '.join(changed)}); "
            "--allow-change goes on with the new one, --run-dir starts another"
        )
