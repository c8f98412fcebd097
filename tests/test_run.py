"""The run folder: held by one, nothing lost, and what is resumed ends the same."""

import dataclasses
import errno
import itertools
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from tiny import PER_EPOCH, Config

from jaxstudy.runs import locks
from jaxstudy.runs import run as run_module
from jaxstudy.runs.checkpoint import Checkpoints, Keep
from jaxstudy.runs.files import to_json, write_atomically
from jaxstudy.runs.run import Run, Stopped, _read_records, open_run
from jaxstudy.runs.saved import (
    Options,
    file_hashes,
    load_weights,
    read_saved,
    read_sealed,
)
from jaxstudy.types import Refused, TrainState, UserError
from tests.conftest import ROOT, Patch, Said, contents

CONFIG = Config(kind="noisy", epochs=3)
TWO_PARTS = dataclasses.replace(CONFIG, epochs=2, parts=2)
EACH = Options(save_every=0)  # a checkpoint after every chunk, the last two stay
LAST = CONFIG.epochs * PER_EPOCH
LIKE = tiny.weights_like(CONFIG)


def opened(
    folder: Path, config: Config = CONFIG, options: Options = EACH, **how: bool
) -> Any:
    return open_run(folder, "tiny", "quick", config, options, **how)


def go(
    folder: Path, config: Config = CONFIG, options: Options = EACH, **how: bool
) -> TrainState:
    """Run the tiny training in a folder; the state it ends with."""
    with opened(folder, config, options, **how) as run:
        fitted = tiny.train(run, config)
        run.finish({"loss": fitted.records[-1]["loss"]})
    return fitted.state


def bits(tree: Any) -> list[bytes]:
    if isinstance(tree, TrainState):
        tree = tree._replace(key=jax.random.key_data(tree.key))
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(folder: Path) -> list[int]:
    return Checkpoints(folder / "checkpoints").steps()


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an uninterrupted run comes to."""

    folder: Path
    bits: list[bytes]
    metrics: bytes

    def assert_same(self, folder: Path, state: TrainState) -> None:
        assert bits(state) == self.bits
        assert (folder / "metrics.jsonl").read_bytes() == self.metrics
        mine, theirs = (
            json.loads((f / "result.json").read_text()) for f in (folder, self.folder)
        )
        for key in ("experiment", "preset", "seed", "metrics", "steps"):
            assert mine[key] == theirs[key]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("whole") / "run"
    state = go(folder)
    return Reference(folder, bits(state), (folder / "metrics.jsonl").read_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def copy(whole: Reference, tmp_path: Path) -> Path:
    """The uninterrupted run, to be changed."""
    return shutil.copytree(whole.folder, tmp_path / "run")


class Crash(Exception):
    """Stands for a kill: nothing of the program expects it."""


@pytest.fixture
def crash(monkeypatch: Patch) -> Callable[..., None]:
    """Do some work while the call-th call of a method crashes, after or before it."""

    def crash(
        owner: Any, name: str, call: int, after: bool, work: Callable[[], Any]
    ) -> None:
        original, calls = getattr(owner, name), iter(range(1, 1000))

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            number = next(calls)
            if number == call and not after:
                raise Crash
            result = original(*args, **kwargs)
            if number == call:
                raise Crash
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, wrapper)
            with pytest.raises(Crash):
                work()

    return crash


def refused(folder: Path, *args: Any, **how: Any) -> str:
    """Start something there that is refused in one line; nothing changes."""
    before = contents(folder)
    with pytest.raises(UserError) as error:
        go(folder, *args, **how)
    assert contents(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


# what is in the folder


def test_a_whole_run(whole: Reference) -> None:
    folder = whole.folder
    assert sorted(os.listdir(folder)) == [
        "attempts.json", "checkpoints", "config.json", "environment.json",
        "metrics.jsonl", "result.json",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["config"] == {
        "seed": 0, "epochs": 3, "rate": 0.05, "hidden": 4, "parts": 1,
        "kind": "noisy", "spins": 0,
    }  # fmt: skip
    assert set(config["options"]) == {f.name for f in dataclasses.fields(Options)}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["backend"] == jax.default_backend()
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["seed"]) == (LAST, 0)
    assert result["metrics"] == {"loss": rows_of(folder)[-1]["loss"]}
    assert steps_of(folder) == [LAST - PER_EPOCH, LAST]
    steps = [r["step"] for r in rows_of(folder) if r["split"] == "train"]
    assert steps == [3, 6, 9]
    mask = os.umask(0o022)
    os.umask(mask)
    for name in ("config.json", "metrics.jsonl", "result.json"):
        mode = stat.S_IMODE((folder / name).stat().st_mode)
        assert mode == 0o666 & ~mask, name  # readable by others
    for name, data in contents(folder).items():  # nothing is pickled
        assert not name.endswith((".pkl", ".pickle", ".npy", ".npz")), name
        assert not data.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")), name
    # known by its folder alone
    saved = read_saved(folder, Config, "tiny")
    assert (saved.config, saved.options, saved.preset) == (CONFIG, EACH, "quick")
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), LIKE)
    weights = saved.weights(fresh)
    assert jax.tree.structure(weights) == jax.tree.structure(LIKE)
    assert bits(weights)[0] in whole.bits
    with pytest.raises(UserError, match="holds a run of tiny, not of ch1_admission"):
        read_saved(folder, Config, "ch1_admission")


def test_the_seed_alone_decides_the_bits(whole: Reference, tmp_path: Path) -> None:
    whole.assert_same(tmp_path / "same", go(tmp_path / "same"))
    state = go(tmp_path / "other", dataclasses.replace(CONFIG, seed=1), Options())
    assert bits(state) != whole.bits


def test_json_is_strict() -> None:
    for bad in (math.nan, -math.inf, np.float64("inf")):
        assert to_json({"a": [bad, (1.5, bad)], "b": {"c": bad}}) == (
            '{"a": [null, [1.5, null]], "b": {"c": null}}'
        )


def test_a_failed_write_leaves_the_old_text(
    tmp_path: Path, crash: Callable[..., None]
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    crash(os, "replace", 1, False, lambda: write_atomically(path, "new"))
    assert path.read_text() == "old"
    write_atomically(path, "newer")
    assert path.read_text() == "newer"


def test_what_is_written_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """The order of flushing and renaming, which a power cut would show."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushing(descriptor: int) -> None:
        done.append(f"flush {os.readlink(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    def renaming(a: Any, b: Any) -> None:
        done.append(f"rename {b}")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", renaming)
    path = tmp_path / "file.json"
    write_atomically(path, "text")
    hidden = tmp_path / f".file.json.{os.getpid()}"
    assert done == [f"flush {hidden}", f"rename {path}", f"flush {tmp_path}"]
    folder = tmp_path / "run"
    go(folder, dataclasses.replace(CONFIG, epochs=1))
    step = folder / "checkpoints" / str(PER_EPOCH)
    metrics = done.index(f"flush {folder / 'metrics.jsonl'}")
    files = [done.index(f"flush {p}") for p in (step, *step.rglob("*"))]
    assert metrics < min(files) < done.index(f"flush {step.parent}")
    assert max(files) < done.index(f"flush {step.parent}")


# interrupted anywhere, resumed: the same end


def test_crashes_one_after_the_other_change_nothing(
    whole: Reference, folder: Path, crash: Callable[..., None]
) -> None:
    """Of each chunk the records are appended, then the checkpoint is saved."""
    for owner, name, call, after, steps in (
        (Run, "append", 1, False, []),  # the evaluation before the first step
        (Run, "append", 1, True, []),
        (Run, "append", 2, False, []),
        (Run, "append", 2, True, []),
        (Checkpoints, "save", 1, True, [3]),
        (Run, "append", 1, True, [3]),
        (Checkpoints, "save", 2, False, [3, 6]),
        (Run, "finish", 1, False, [6, 9]),
    ):
        resume = folder.exists()
        crash(owner, name, call, after, lambda r=resume: go(folder, resume=r))
        assert steps_of(folder) == steps
        assert not (folder / "result.json").exists()
    whole.assert_same(folder, go(folder, resume=True))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (Options(keep="every"), [3, 6, 9]),
        (Options(keep="best", keep_n=1, monitor="train.loss", mode="max"), [3, 9]),
    ],
)
def test_which_checkpoints_stay_crashed_or_not(
    folder: Path,
    tmp_path: Path,
    crash: Callable[..., None],
    options: Options,
    kept: list[int],
) -> None:
    expected = go(tmp_path / "whole", options=options)
    crash(Run, "append", 4, True, lambda: go(folder, options=options))
    assert bits(go(folder, options=options, resume=True)) == bits(expected)
    for run in (folder, tmp_path / "whole"):
        assert steps_of(run) == kept
    assert rows_of(folder) == rows_of(tmp_path / "whole")


def test_every_epochs_end_is_seen_for_a_callback_or_a_checkpoint(folder: Path) -> None:
    for keep, on_epoch, seen in (
        ("last", None, False), ("every", None, True), ("best", None, True),
        ("last", print, True),
    ):  # fmt: skip
        options = Options(keep=keep)  # pyright: ignore[reportArgumentType]
        with opened(folder / f"{keep} {seen}", options=options) as run:
            assert run.sub_run(on_epoch=on_epoch).every_epoch == seen


def test_a_torn_last_line_is_dropped(whole: Reference, copy: Path) -> None:
    """Killed between the rows of the last epoch and its checkpoint."""
    shutil.rmtree(copy / "checkpoints" / str(LAST))
    (copy / "result.json").unlink()
    (copy / "metrics.jsonl").write_bytes(whole.metrics[:-40])
    whole.assert_same(copy, go(copy, resume=True))


def test_rows_are_read_wherever_the_file_is_torn(
    whole: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = whole.metrics.splitlines(keepends=True)[:2]
    data = b"".join(lines)
    rows = [json.loads(line) for line in lines]
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        read = _read_records(path)
        assert read == rows[: len(read)]
        assert len(read) >= data[:end].count(b"\n")
        # what follows goes onto a line of its own
        with path.open("ab") as file:
            file.write(lines[0])
        assert _read_records(path) == [*read, rows[0]]


def test_damaged_rows_are_named_and_nothing_changes(
    whole: Reference, copy: Path
) -> None:
    lines = whole.metrics.splitlines(keepends=True)
    for text in (b"{", b"{}", b'{"step": 1}', b"\xff", b""):
        damaged = b"".join([*lines[:2], text + b"\n", *lines[3:]])
        (copy / "metrics.jsonl").write_bytes(damaged)
        assert "line 3, is damaged" in refused(copy, resume=True)
    for old, new in ((b"loss", b"lass"), (b"0.", b"1."), (b"train", b"test")):
        (copy / "metrics.jsonl").write_bytes(whole.metrics.replace(old, new, 1))
        message = refused(copy, resume=True)
        assert "metrics.jsonl is damaged: its records up to" in message


def test_resuming_what_is_finished_changes_nothing(
    whole: Reference, copy: Path, capsys: Said
) -> None:
    before = contents(copy)
    for name in ("config.json", "metrics.jsonl", "result.json"):
        (copy / f".{name}.4711").write_text("{")  # left by a kill
    whole.assert_same(copy, go(copy, resume=True))
    after = contents(copy)
    assert after.keys() == before.keys()
    for name in before:
        if name != "result.json":  # it says how long this took
            assert after[name] == before[name], name
    # what is lost or different beside it is said
    (copy / "attempts.json").write_text('{"wall_s": ["long"]}')
    path = copy / "environment.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"device": "abacus", "cores": 99}))
    capsys.readouterr()
    whole.assert_same(copy, go(copy, resume=True))
    said = capsys.readouterr().err
    assert "earlier attempts are not counted" in said
    assert "was begun with another device: the same bits are not" in said


def test_a_file_that_may_not_grow_stops_and_what_was_saved_goes_on(
    whole: Reference, folder: Path, monkeypatch: Patch
) -> None:
    """As on a full disk, and as there by an error that is tensorstore's own."""
    original, calls = Checkpoints.save, iter(range(9))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(checkpoints: Checkpoints, *args: Any) -> None:
        if next(calls) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (150, usual[1]))
        try:
            original(checkpoints, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as error:
            go(folder)
    assert error.value.errno == errno.EFBIG
    assert str(folder) in error.value.filename
    assert steps_of(folder) == [3]
    whole.assert_same(folder, go(folder, resume=True))


def test_a_folder_that_is_removed_is_named(folder: Path, monkeypatch: Patch) -> None:
    def remove(*_: Any) -> None:
        shutil.rmtree(folder)

    monkeypatch.setattr(Checkpoints, "save", remove)
    with pytest.raises(Refused, match=f"{folder} was removed while it was in use"):
        go(folder)
    assert not folder.exists()


def damage(folder: Path, step: int) -> None:
    where = folder / "checkpoints" / str(step) / "weights"
    for path in where.rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoints_are_named(
    whole: Reference, copy: Path, capsys: Said
) -> None:
    before, newest = LAST - PER_EPOCH, copy / "checkpoints" / str(LAST)
    older = load_weights(copy, LIKE, step=before)
    damage(copy, LAST)
    assert bits(load_weights(copy, LIKE)) == bits(older)
    said = capsys.readouterr().err
    assert str(newest) in said
    assert f"step {before} is used" in said
    with pytest.raises(UserError, match="no checkpoint that fits"):
        load_weights(copy, LIKE, step=LAST)
    # the end is the same
    whole.assert_same(copy, go(copy, resume=True))
    said = capsys.readouterr().err
    assert f"warning: checkpoint {newest}: " in said
    assert f"going on from step {before}\n" in said
    assert steps_of(copy) == [before, LAST]
    theirs = load_weights(whole.folder, LIKE)
    assert bits(load_weights(copy, LIKE)) == bits(theirs)
    # none is good
    for step in steps_of(copy):
        damage(copy, step)
    message = refused(copy, resume=True)
    assert "no checkpoint is good" in message
    assert str(newest) in message
    with pytest.raises(UserError, match="no checkpoint that fits"):
        load_weights(copy, LIKE)


# what a run is made of, and what belongs to it


@dataclasses.dataclass(frozen=True)
class Reading(Config):
    """A run that reads a file of the user."""

    table: Path | None = None


def test_another_content_of_a_file_is_another_run(tmp_path: Path) -> None:
    table, folder = tmp_path / "table.csv", tmp_path / "run"
    table.write_text("a,b\n1,2\n")
    config = Reading(table=table)

    def reopen(**how: bool) -> None:
        with opened(folder, config, EACH, **how):
            pass

    reopen()
    reopen(resume=True)
    table.write_text("a,b\n1,3\n")
    with pytest.raises(UserError, match="the content of table: SHA-256 "):
        reopen(resume=True)
    reopen(resume=True, allow_change=True)
    reopen(resume=True)
    table.unlink()
    with pytest.raises(UserError, match=r"the content of table: .* not readable here"):
        reopen(resume=True)


def test_a_folder_has_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def hashed() -> str | None:
        return file_hashes(Reading(table=tmp_path))["table"]

    first = hashed()
    (tmp_path / "cat" / ".thumbnails").write_text("of a file manager")
    assert hashed() == first
    path = tmp_path / "cat" / "2.png"
    changes = (
        lambda: path.write_text("other"), lambda: path.rename(path.with_name("3.png")),
        lambda: path.write_text("cat/2.png"), path.unlink,
    )  # fmt: skip
    found = [first]
    for change in changes:  # content, name, one more, and fewer
        change()
        assert hashed() != found[-1]
        found.append(hashed())
    assert None not in found


def test_a_pipe_is_left_to_its_reader() -> None:
    """Whoever hashed it would take what is to be read once."""
    reading, writing = os.pipe()
    os.write(writing, b"a,b\n1,2\n")
    os.close(writing)
    pipe = Path(f"/dev/fd/{reading}")
    assert file_hashes(Reading(table=pipe)) == {"table": None}
    assert os.read(reading, 100) == b"a,b\n1,2\n"
    os.close(reading)


def test_beginning_with_the_weights_of_another_run(
    whole: Reference, copy: Path, folder: Path
) -> None:
    # a rate that moves nothing: the weights are those that were loaded
    still = dataclasses.replace(CONFIG, epochs=1, rate=1e-30)
    options = Options(load_params=copy)
    go(folder, still, options)
    assert bits(load_weights(folder, LIKE)) == bits(load_weights(whole.folder, LIKE))
    (copy / "result.json").write_text("{}")  # which nobody begins with
    go(folder, still, options, resume=True)
    longer = dataclasses.replace(CONFIG, epochs=4)
    go(copy, longer, Options(), resume=True, allow_change=True)
    assert "the content of load_params" in refused(folder, still, options, resume=True)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one config with two parts: in the folders 0 and 1."""
    root = tmp_path_factory.mktemp("two")
    for name in ("0", "1"):
        with opened(root / name, TWO_PARTS) as run:
            tiny.main(TWO_PARTS, run)
            run.finish({})
    return root


def test_a_checkpoint_is_refused_elsewhere(
    two_runs: Path, tmp_path: Path, capsys: Said
) -> None:
    """Of the same shapes, so that nothing else would show."""
    for what, source in {
        "part": "0/checkpoints/part0/6", "run": "1/checkpoints/part1/6",
        "step": "0/checkpoints/part1/3",
    }.items():  # fmt: skip
        folder = shutil.copytree(two_runs / "0", tmp_path / what)
        newest = folder / "checkpoints" / "part1" / "6"
        shutil.rmtree(newest)
        shutil.copytree(two_runs / source, newest)
        load_weights(folder, LIKE, "part1")
        assert f"{newest}: it belongs to {what} " in capsys.readouterr().err
    with opened(folder, TWO_PARTS, resume=True) as run:
        tiny.train(run, TWO_PARTS, "part1", 1)
    assert f"{newest}: it belongs to {what} " in capsys.readouterr().err


def test_two_parts_have_their_own_rows_and_checkpoints(two_runs: Path) -> None:
    folder = two_runs / "0"
    assert json.loads((folder / "result.json").read_text())["steps"] == 12
    for name in ("part0", "part1"):
        assert Checkpoints(folder / "checkpoints" / name).steps() == [3, 6]
        own = [r["step"] for r in rows_of(folder) if r["part"] == name]
        assert own == [0, 3, 3, 6, 6]


Words = tuple[str, ...]


def test_what_a_run_has_learned_comes_back_and_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    for where in (folder, tmp_path / "other"):
        with opened(where) as run:
            run.write_sealed("words.json", ("가", "b"))
            run.write_sealed("keep.json", Keep("best", 3))
    assert read_sealed(folder, "words.json", Words) == ("가", "b")
    assert read_sealed(folder, "keep.json", Keep) == Keep("best", 3)

    def refused(kind: Any) -> str:
        with pytest.raises(UserError, match=r"words.json cannot be read: ") as caught:
            read_sealed(folder, "words.json", kind)
        return str(caught.value)

    path = folder / "words.json"
    data = path.read_bytes()
    for damaged in (data.replace(b'"b"', b'"c"'), data[:-5], b"[]", b"{}", b"\xff"):
        path.write_bytes(damaged)
        refused(Words)
    path.unlink()
    refused(Words)
    # well sealed, and yet not what is asked for
    shutil.copy(tmp_path / "other" / "words.json", path)
    assert "it belongs to run " in refused(Words)
    with opened(folder, resume=True) as run:
        run.write_sealed("words.json", {"which": "best", "n": 3, "color": "red"})
    refused(Words)
    refused(Keep)


def test_checkpoints_are_deleted_all_or_none(folder: Path, monkeypatch: Patch) -> None:
    """A kill in the middle leaves a run that can be resumed."""

    def half(path: Path, **how: bool) -> None:
        for file in [p for p in Path(path).rglob("*") if p.is_file()][::2]:
            file.unlink()
        if not how:
            raise Crash

    once = dataclasses.replace(CONFIG, epochs=1)
    with opened(folder, once) as run:
        expected = tiny.train(run, once).state
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", half)
            with pytest.raises(Crash):
                run.sub_run().delete_checkpoints()
    assert steps_of(folder) == []
    with opened(folder, once, resume=True) as run:
        assert bits(tiny.train(run, once).state) == bits(expected)
        run.sub_run().delete_checkpoints()
    assert not [p.name for p in folder.iterdir() if "checkpoints" in p.name]


def test_temporary_checkpoints_stay_until_there_is_a_result(
    folder: Path, crash: Callable[..., None]
) -> None:
    def work(resume: bool) -> None:
        with opened(folder, options=Options(), resume=resume) as run:
            run.sub_run(temporary=True)
            tiny.train(run, CONFIG)
            run.finish({})

    crash(Run, "finish", 1, False, lambda: work(resume=False))
    assert steps_of(folder) == [LAST]
    rows = (folder / "metrics.jsonl").read_bytes()
    work(resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == rows  # nothing trained again
    assert not (folder / "checkpoints").exists()


def test_the_result_counts_every_attempt(
    folder: Path, crash: Callable[..., None], monkeypatch: Patch
) -> None:
    """Of a training that was finished before the kill, and of one that was not."""

    def work(resume: bool) -> None:
        with opened(folder, TWO_PARTS, resume=resume) as run:
            first = run.sub_run("part0", checkpoint_at_end=False)
            if not any(row["step"] == 6 for row in first.records):
                tiny.train(run, TWO_PARTS, "part0", 0)
            first.delete_checkpoints()
            tiny.train(run, TWO_PARTS, "part1", 1)
            run.finish({})

    clock = itertools.count(time.monotonic() + 100, 100)  # a run began by the real one
    monkeypatch.setattr(run_module.time, "monotonic", lambda: next(clock))
    crash(Checkpoints, "save", 3, True, lambda: work(resume=False))
    killed = json.loads((folder / "attempts.json").read_text())
    assert killed["parts"]["part0"]["steps"] == 6
    assert 0.05 < killed["peak_memory_gib"] < 64
    (folder / "attempts.json").write_text(json.dumps(killed | {"peak_memory_gib": 99}))
    assert len(killed["wall_s"]) == 1
    work(resume=True)
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["attempts"]) == (12, 2)
    assert result["train_s"] > killed["parts"]["part0"]["train_s"]
    walls = json.loads((folder / "attempts.json").read_text())["wall_s"]
    assert len(walls) == 2
    assert max(walls) < result["wall_s"] <= sum(walls)
    assert result["goodput"] == round(result["train_s"] / result["wall_s"], 4)
    assert result["peak_memory_gib"] == 99  # of both attempts


# signals


def signal_at(patch: Patch, signum: int, append: int) -> None:
    """Send a signal to this process right after some rows were logged."""
    original, calls = Run.append, iter(range(1, 1000))

    def wrapper(run: Run, *args: Any) -> None:
        original(run, *args)
        if next(calls) == append:
            os.kill(os.getpid(), signum)

    patch.setattr(Run, "append", wrapper)


@pytest.mark.parametrize(
    ("signum", "code", "append"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 3)]
)
def test_a_signal_saves_and_stops(
    whole: Reference,
    folder: Path,
    monkeypatch: Patch,
    signum: int,
    code: int,
    append: int,
) -> None:
    """At once before the first chunk (append 1), else when the chunk is saved."""

    def handling() -> tuple[Any, ...]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return wakeup, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = handling()
    with monkeypatch.context() as patch:
        signal_at(patch, signum, append)
        with pytest.raises(Stopped) as stopped:
            go(folder, options=Options())  # which would save at the end alone
    assert stopped.value.exit_code == code
    reached = (append - 1) * PER_EPOCH
    assert steps_of(folder) == ([reached] if reached else [])
    assert max(row["step"] for row in rows_of(folder)) == reached
    assert not (folder / "result.json").exists()
    assert not (folder / "run.lock").exists()
    assert handling() == before
    whole.assert_same(folder, go(folder, options=Options(), resume=True))


def test_a_signal_in_the_last_chunk_of_a_part_stops_before_the_next(
    two_runs: Path, folder: Path, monkeypatch: Patch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 3)
        with pytest.raises(Stopped), opened(folder, TWO_PARTS) as run:
            tiny.main(TWO_PARTS, run)
    assert {row["part"] for row in rows_of(folder)} == {"part0"}
    with opened(folder, TWO_PARTS, resume=True) as run:
        tiny.main(TWO_PARTS, run)
    assert rows_of(folder) == rows_of(two_runs / "0")


def test_a_signal_within_a_callback_of_the_program_is_not_lost(
    whole: Reference, folder: Path, monkeypatch: Patch
) -> None:
    """Python runs the handler inside the callback; XLA would swallow what it raises."""
    squared_error = tiny.squared_error

    def calling(model: Any) -> Any:
        error = squared_error(model)

        def objective(params: Any, extra: Any, batch: Any, key: Any) -> Any:
            jax.debug.callback(os.kill, os.getpid(), int(signal.SIGTERM))
            return error(params, extra, batch, key)

        return objective

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "squared_error", calling)
        patch.setattr(tiny, "work", tiny.work.__wrapped__)  # nothing made before
        patch.setattr(os, "_exit", lambda code: None)  # it comes with every step
        with pytest.raises(Stopped):
            go(folder, options=Options())
    whole.assert_same(folder, go(folder, options=Options(), resume=True))


@pytest.mark.parametrize("stage", ["part", "figures", "end"])
def test_a_signal_between_stages_stops_at_the_next(folder: Path, stage: str) -> None:
    def work() -> None:
        with opened(folder) as run:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # the handler has run, and raised nothing
            if stage == "part":
                run.sub_run()
            if stage == "figures":
                _ = run.figures
            run.finish({})

    with pytest.raises(Stopped):
        work()
    assert (folder / "result.json").exists() == (stage == "end")


def test_a_second_signal_exits_at_once(folder: Path, monkeypatch: Patch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def work() -> None:
        with opened(folder):
            os.kill(os.getpid(), signal.SIGTERM)
            assert codes == []
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        work()
    assert codes == [130]


@pytest.mark.torture
def test_a_second_signal_ends_a_compiled_program_too(
    whole: Reference, folder: Path, start: Any
) -> None:
    """Which leaves everything as it is, as SIGKILL does; the folder is free again."""
    arguments = [
        "--run-dir", folder, "--spins", 2_000_000_000, "--save-every", 0,
        "--kind", "noisy",
    ]  # fmt: skip
    process = start(ROOT / "tests" / "tiny.py", arguments)
    end = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists():  # before the first step
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    with pytest.raises(Refused, match=f"is in use by process {process.pid}$"):
        go(folder, resume=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert (process.returncode, out) == (130, "")
    assert "once more: stop at once" in error
    assert "Traceback" not in error
    assert (folder / "run.lock").exists()  # and is not in the way
    whole.assert_same(folder, go(folder, resume=True, allow_change=True))
    assert not (folder / "run.lock").exists()


# who may have the folder


def test_a_run_in_use(folder: Path) -> None:
    with opened(folder):
        for how in ({}, {"resume": True}, {"resume": True, "allow_change": True}):
            expected = f"{folder} is in use by process {os.getpid()}"
            assert refused(folder, **how) == expected
    assert not (folder / "run.lock").exists()
    with opened(folder, resume=True):
        pass


def test_a_file_system_that_does_not_lock(
    folder: Path, monkeypatch: Patch, capsys: Said
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    path, here = folder / "run.lock", platform.node()
    with opened(folder):
        said = f"warning: {folder} cannot be locked ({os.strerror(errno.ENOLCK)})"
        assert said in capsys.readouterr().err
        assert json.loads(path.read_text()) == {
            "host": here, "processes": {"": os.getpid()}
        }  # fmt: skip
        assert f"in use by process {os.getpid()}, as " in refused(folder, resume=True)
    assert not path.exists()
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = {"host": here, "processes": {"x": ended.pid}}
    path.write_text(json.dumps(holder))
    with opened(folder, resume=True):
        pass
    path.write_text(json.dumps(holder | {"host": "abacus"}))
    sentence = f"in use by process {ended.pid} (x) on abacus, as {path}"
    assert sentence in refused(folder, resume=True)


def test_the_lock_is_asked_again_when_its_holder_has_just_left(
    folder: Path, monkeypatch: Patch
) -> None:
    """The file one has locked may be gone by then: the lock would hold nobody off."""
    original, calls = locks.fcntl.flock, iter(range(9))

    def flock(file: Any, how: int) -> None:
        original(file, how)
        if next(calls) == 0:
            (folder / "run.lock").unlink()

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with opened(folder):
        assert next(calls) == 2
        with pytest.raises(UserError, match="in use"):
            go(folder)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Be a user whom permissions bind, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize(("mode", "below"), [(0o555, "run"), (0o000, "a/b/run")])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, request: pytest.FixtureRequest, mode: int, below: str
) -> None:
    for path in (tmp_path, *tmp_path.parents):  # which everybody can reach
        if path.owner() == tmp_path.owner() and "pytest" in path.name:
            path.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(mode)
    request.getfixturevalue("nobody")
    with pytest.raises(UserError) as error:
        go(closed / below)
    os.seteuid(os.getuid())
    closed.chmod(0o755)
    assert str(error.value) == (
        f"{closed / below} cannot be written: Permission denied"
    )
    assert os.listdir(closed) == []
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "run"):
        with pytest.raises(UserError, match="cannot be written"):
            go(path)
    assert contents(tmp_path) == {"file": b"mine"}


# what the folder holds


def test_nothing_to_resume(folder: Path) -> None:
    expected = f"there is nothing to resume in {folder}: no config.json"
    assert refused(folder, resume=True) == expected
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    assert refused(folder, resume=True) == expected


def test_another_run_is_not_overwritten_or_mixed_in(whole: Reference) -> None:
    assert "already holds a run of this config" in refused(whole.folder)
    other = dataclasses.replace(CONFIG, rate=0.1, epochs=9)
    for how in ({}, {"resume": True}, {"allow_change": True}):
        message = refused(whole.folder, other, **how)
        assert str(whole.folder) in message
        assert "epochs: 3 there, 9 here; rate: 0.05 there, 0.1 here" in message
        assert ("--allow-change" in message) == ("resume" in how)
    message = refused(whole.folder, CONFIG, Options(save_every=0, keep="best"))
    assert "keep: 'last' there, 'best' here" in message
    with (
        pytest.raises(UserError, match="preset: 'quick' there, 'full' here"),
        open_run(whole.folder, "tiny", "full", CONFIG, EACH, resume=True),
    ):
        pass


def test_a_change_that_is_allowed_goes_on(copy: Path, tmp_path: Path) -> None:
    wider = dataclasses.replace(CONFIG, hidden=5)
    message = refused(copy, wider, resume=True, allow_change=True)
    assert "hidden_1/bias has shape [4], not [5]" in message
    longer = dataclasses.replace(CONFIG, epochs=5)
    state = go(copy, longer, Options(), resume=True, allow_change=True)
    assert bits(state) == bits(go(tmp_path / "at once", longer, Options()))
    assert rows_of(copy) == rows_of(tmp_path / "at once")
    assert read_saved(copy, Config, "tiny").config == longer


def test_a_config_that_does_not_fit(copy: Path) -> None:
    path = copy / "config.json"
    fields = json.loads(path.read_text())
    config, options = fields["config"], fields["options"]
    for damaged, expected in (
        (fields | {"experiment": "ch9"}, "a run of ch9, not of tiny"),
        ({k: v for k, v in fields.items() if k != "options"}, "cannot be read"),
        (fields | {"config": config | {"epochs": -1}}, "config.json does not fit"),
        (fields | {"config": config | {"epoch": 3}}, "does not fit.*epoch"),
        (fields | {"options": options | {"keep": "all"}}, "config.json does not fit"),
        (fields | {"schema": 99}, "schema"),
        (b"", "config.json cannot be read"),
        (b"null", "config.json cannot be read"),
        (b"\xed\xa0\x80", "config.json cannot be read"),
    ):
        text = damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode()
        path.write_bytes(text)
        for resume in (False, True):
            assert re.search(expected, refused(copy, resume=resume))
        if isinstance(damaged, bytes):
            with pytest.raises(UserError, match=expected):
                load_weights(copy, LIKE)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "result.json"])
def test_what_another_run_left_is_not_mixed_with_a_fresh_one(
    copy: Path, name: str
) -> None:
    """A folder whose config.json was lost is not taken for an empty one."""
    for path in copy.iterdir():
        if path.is_dir() and path.name != name:
            shutil.rmtree(path)
        elif path.name != name:
            path.unlink()
    assert name in refused(copy)


# a run that fails


def test_a_user_error_before_training_leaves_what_was_there(folder: Path) -> None:
    def fail() -> None:
        with pytest.raises(UserError, match="no such table"), opened(folder):
            raise UserError("no such table")

    fail()
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    fail()
    assert contents(folder) == {"notes": b"mine"}


def test_a_loss_that_stops_being_finite_keeps_what_was_good(
    copy: Path, folder: Path
) -> None:
    diverging = dataclasses.replace(CONFIG, rate=1e38, epochs=9)
    with pytest.raises(UserError, match=r"loss (at|after) step \d+ was not finite"):
        go(copy, diverging, resume=True, allow_change=True)
    assert max(row["step"] for row in rows_of(copy)) >= LAST
    assert all(row["loss"] is not None for row in rows_of(copy))
    for step in steps_of(copy):
        weights = load_weights(copy, LIKE, step=step)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(weights)), step
    longer = dataclasses.replace(CONFIG, epochs=5)
    go(copy, longer, Options(), resume=True, allow_change=True)
    # the training loss of a step says nothing of what the last step then does
    with pytest.raises(UserError, match="not finite"):
        go(folder, dataclasses.replace(diverging, epochs=1))
    assert not (folder / "result.json").exists()
    assert steps_of(folder) == []


# options


def test_parameters_alone_predict_but_do_not_go_on(
    whole: Reference, folder: Path
) -> None:
    options = Options(save="params", keep_n=2, save_every=0, tensorboard=True)
    go(folder, options=options)
    theirs = load_weights(whole.folder, LIKE)
    assert bits(load_weights(folder, LIKE)) == bits(theirs)
    assert not list(folder.glob("checkpoints/*/training"))
    message = refused(folder, options=options, resume=True)
    assert "--save params" in message
    assert f"--load-params {folder}" in message
    (events,) = (folder / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data
    assert b"validation/loss" in data


def test_the_best_by_a_logged_metric(folder: Path, tmp_path: Path) -> None:
    options = Options(keep="best", keep_n=1)
    config = dataclasses.replace(CONFIG, rate=0.7)  # so that it goes up and down
    go(folder, config, options)
    losses = {
        r["step"]: r["loss"]
        for r in rows_of(folder)
        if r["split"] == "validation" and r["step"]
    }
    best = min(losses, key=losses.__getitem__)
    assert steps_of(folder) == sorted({best, LAST})
    assert Checkpoints(folder / "checkpoints", Keep("best", 1)).best() == best
    # what predicts is the best, not the last
    saved = read_saved(folder, Config, "tiny")
    assert bits(saved.weights(LIKE)) == bits(saved.weights(LIKE, step=best))
    for monitor in ("validation.accuracy", ""):
        options = Options(keep="best", monitor=monitor)
        message = refused(tmp_path / "other", options=options)
        assert message == (
            f"--monitor {monitor}: not logged here, only train.loss, validation.loss"
        )
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (shutil.rmtree, "no run in .*run: there is no config.json"),
        (lambda f: shutil.rmtree(f / "checkpoints"), "no checkpoint that fits in"),
        (contents, r"weights/params/hidden_1/bias has shape \[4\], not \[5\]"),
    ],
)
def test_parameters_that_cannot_be_loaded(
    copy: Path, folder: Path, prepare: Any, expected: str
) -> None:
    prepare(copy)
    config = dataclasses.replace(CONFIG, hidden=5)
    with pytest.raises(UserError, match=expected):
        go(folder, config, Options(load_params=copy))
    assert not folder.parent.exists()
