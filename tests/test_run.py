"""The run folder: held by one, nothing lost, and what is resumed ends the same."""

import dataclasses
import errno
import json
import math
import os
import platform
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

from jaxstudy.runs import run as run_module
from jaxstudy.runs.checkpoint import Checkpoints, Keep
from jaxstudy.runs.run import (
    Options,
    Run,
    Stopped,
    _read_records,
    file_hashes,
    load_weights,
    open_run,
    read_saved,
    read_sealed,
    to_json,
    write_atomically,
)
from jaxstudy.types import Refused, TrainState, UserError
from tests.conftest import ROOT, contents

CONFIG = Config(kind="noisy")
EACH = Options(save_every=0)  # a checkpoint after every chunk, the last two stay
LAST = CONFIG.epochs * PER_EPOCH


def go(
    folder: Path,
    config: Config = CONFIG,
    options: Options = EACH,
    *,
    preset: str = "quick",
    **how: bool,
) -> TrainState:
    """Run the tiny training in a folder; the state it ends with."""
    with open_run(folder, "tiny", preset, config, options, **how) as run:
        fitted = tiny.train(run, config)
        run.finish({"loss": fitted.records[-1]["loss"]})
    return fitted.state


def bits(state: Any) -> list[bytes]:
    plain = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(plain)]


def weight_bits(weights: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(weights)]


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


class Crash(Exception):
    """Stands for a kill: nothing of the program expects it."""


def crash_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool
) -> None:
    """Let the call-th call of a method crash, before or after it did its work."""
    original = getattr(owner, name)
    calls = iter(range(1, 1000))

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == call and not after:
            raise Crash
        result = original(*args, **kwargs)
        if number == call:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, wrapper)


# what is in the folder


def test_a_whole_run(whole: Reference) -> None:
    folder = whole.folder
    assert sorted(os.listdir(folder)) == [
        "attempts.json",
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "result.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["config"] == {
        "seed": 0, "epochs": 4, "rate": 0.05, "hidden": 4, "parts": 1,
        "kind": "noisy", "spins": 0,
    }  # fmt: skip
    assert set(config["options"]) == {f.name for f in dataclasses.fields(Options)}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["backend"] == jax.default_backend()
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == LAST
    assert result["seed"] == 0
    assert result["metrics"] == {"loss": rows_of(folder)[-1]["loss"]}
    assert steps_of(folder) == [LAST - PER_EPOCH, LAST]
    steps = [r["step"] for r in rows_of(folder) if r["split"] == "train"]
    assert steps == [3, 6, 9, 12]


def test_the_seed_alone_decides_the_bits(whole: Reference, tmp_path: Path) -> None:
    whole.assert_same(tmp_path / "same", go(tmp_path / "same"))
    state = go(tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    assert bits(state) != whole.bits


def test_nothing_is_pickled(whole: Reference) -> None:
    for name, data in contents(whole.folder).items():
        assert not name.endswith((".pkl", ".pickle", ".npy", ".npz")), name
        assert not data.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_json_is_strict(bad: float) -> None:
    assert to_json({"a": [bad, (1.5, bad)], "b": {"c": bad}}) == (
        '{"a": [null, [1.5, null]], "b": {"c": null}}'
    )


def test_a_failed_write_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        crash_at(patch, os, "replace", 1, after=False)
        with pytest.raises(Crash):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, "newer")
    assert path.read_text() == "newer"


# interrupted anywhere, resumed: the same end

# Of each chunk the records are appended, then the checkpoint is saved: a crash after
# the former is one before the latter, and one after the latter is before the next.
CRASHES = [
    *((Run, "append", call, after) for call in (1, 3) for after in (False, True)),
    *((Checkpoints, "save", 4, after) for after in (False, True)),
    (Run, "finish", 1, False),
]


@pytest.mark.parametrize(("owner", "name", "call", "after"), CRASHES)
def test_a_crashed_run_ends_the_same(
    whole: Reference,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    after: bool,
) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, owner, name, call, after)
        with pytest.raises(Crash):
            go(folder)
    assert not (folder / "result.json").exists()
    whole.assert_same(folder, go(folder, resume=True))


@pytest.mark.parametrize("keep", ["every", "best"])
def test_a_crashed_run_keeps_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Any
) -> None:
    options = Options(keep=keep, keep_n=1, monitor="train.loss")
    expected = go(tmp_path / "whole", options=options)
    with monkeypatch.context() as patch:
        crash_at(patch, Checkpoints, "save", 3, after=False)
        with pytest.raises(Crash):
            go(folder, options=options)
    assert bits(go(folder, options=options, resume=True)) == bits(expected)
    assert steps_of(folder) == steps_of(tmp_path / "whole")
    kept = contents(folder), contents(tmp_path / "whole")
    assert kept[0]["metrics.jsonl"] == kept[1]["metrics.jsonl"]


def test_crashes_one_after_the_other(
    whole: Reference, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in range(3):
        with monkeypatch.context() as patch:
            crash_at(patch, Run, "append", 2, after=bool(attempt % 2))
            with pytest.raises(Crash):
                go(folder, resume=attempt > 0)
    whole.assert_same(folder, go(folder, resume=True))


def test_resuming_what_is_finished_changes_nothing(
    whole: Reference, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    before = contents(folder)
    whole.assert_same(folder, go(folder, resume=True))
    after = contents(folder)
    for name in before:
        if name != "result.json":  # it says how long this took
            assert after[name] == before[name], name


@pytest.mark.parametrize("cut", [40, "row"])
def test_a_torn_last_line_is_dropped(
    whole: Reference, folder: Path, monkeypatch: pytest.MonkeyPatch, cut: Any
) -> None:
    """A kill while rows were written, after the checkpoint of the epoch before."""
    with monkeypatch.context() as patch:
        crash_at(patch, Checkpoints, "save", 3, after=False)
        with pytest.raises(Crash):
            go(folder)
    path = folder / "metrics.jsonl"
    data = path.read_bytes()
    last = len(data) - len(data.splitlines(keepends=True)[-1])
    path.write_bytes(data[: last if cut == "row" else len(data) - cut])
    whole.assert_same(folder, go(folder, resume=True))


def test_rows_are_read_wherever_the_file_is_torn(
    whole: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = whole.metrics.splitlines(keepends=True)[:3]
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


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"step": 1}', b"\xff", b""])
def test_a_damaged_line_is_named_and_nothing_changes(
    whole: Reference, tmp_path: Path, text: bytes
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    lines = whole.metrics.splitlines()
    lines[2] = text
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    before = contents(folder)
    with pytest.raises(UserError, match="line 3, is damaged"):
        go(folder, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize("change", [("loss", "lass"), ("0.", "1."), ("train", "test")])
def test_rows_that_are_not_those_logged_are_noticed(
    whole: Reference, tmp_path: Path, change: tuple[str, str]
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    text = whole.metrics.decode().replace(*change, 1)
    (folder / "metrics.jsonl").write_text(text)
    before = contents(folder)
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: its records up to"):
        go(folder, resume=True)
    assert contents(folder) == before


def test_a_file_that_may_not_grow_stops_and_what_was_saved_goes_on(
    whole: Reference, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, and as there by an error that is tensorstore's own."""
    original, calls = Checkpoints.save, iter(range(9))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(checkpoints: Checkpoints, *args: Any) -> None:
        if next(calls) == 2:
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
    assert steps_of(folder) == [3, 6]
    whole.assert_same(folder, go(folder, resume=True))


def test_a_folder_that_is_removed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Run.append, iter(range(9))

    def append(run: Run, rows: Any) -> None:
        if next(calls) == 2:
            shutil.rmtree(folder)
        original(run, rows)

    monkeypatch.setattr(Run, "append", append)
    with pytest.raises(Refused, match=f"{folder} was removed while it was in use"):
        go(folder)
    assert not folder.exists()


def test_leftovers_of_a_kill_are_cleared(whole: Reference, tmp_path: Path) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    for name in ("config.json", "metrics.jsonl", "result.json"):
        (folder / f".{name}.4711").write_text("{")
    whole.assert_same(folder, go(folder, resume=True))
    assert sorted(os.listdir(folder)) == sorted(os.listdir(whole.folder))


# damaged checkpoints


def damage(folder: Path, step: int) -> None:
    where = folder / "checkpoints" / str(step) / "weights"
    for path in where.rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_and_the_end_is_the_same(
    whole: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    damage(folder, LAST)
    whole.assert_same(folder, go(folder, resume=True))
    said = capsys.readouterr().err
    assert f"warning: checkpoint {folder / 'checkpoints' / str(LAST)}: " in said
    assert f"going on from step {LAST - PER_EPOCH}\n" in said
    assert steps_of(folder) == [LAST - PER_EPOCH, LAST]
    weights = load_weights(folder, tiny.weights_like(CONFIG))
    theirs = load_weights(whole.folder, tiny.weights_like(CONFIG))
    assert weight_bits(weights) == weight_bits(theirs)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_good_checkpoint_stops_and_nothing_is_lost(
    whole: Reference, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    for step in steps_of(folder):
        damage(folder, step)
    before = contents(folder)
    with pytest.raises(UserError, match="no checkpoint is good") as error:
        go(folder, resume=True)
    assert str(LAST) in str(error.value)
    assert contents(folder) == before
    with pytest.raises(UserError, match="no checkpoint that fits"):
        load_weights(folder, tiny.weights_like(CONFIG))


# what a run is made of, and what belongs to it


@dataclasses.dataclass(frozen=True)
class Reading(Config):
    """A run that reads a file of the user."""

    table: Path | None = None


def test_another_content_of_a_file_is_another_run(tmp_path: Path) -> None:
    table, folder = tmp_path / "table.csv", tmp_path / "run"
    table.write_text("a,b\n1,2\n")
    config = Reading(table=table, epochs=1)
    go(folder, config)
    go(folder, config, resume=True)
    table.write_text("a,b\n1,3\n")
    with pytest.raises(UserError, match="the content of table: SHA-256 "):
        go(folder, config, resume=True)
    go(folder, config, resume=True, allow_change=True)
    go(folder, config, resume=True)
    table.unlink()
    with pytest.raises(UserError, match="not readable here"):
        go(folder, config, resume=True)


def test_another_content_of_a_folder_is_another_run(tmp_path: Path) -> None:
    images, folder = tmp_path / "images", tmp_path / "run"
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_text(name)
    config = Reading(table=images, epochs=1)
    go(folder, config)
    (images / "cat" / ".thumbnails").write_text("of a file manager")
    go(folder, config, resume=True)
    path, other = images / "cat" / "2.png", images / "dog" / "2.png"
    changes = (
        lambda: path.write_text("other"), lambda: path.rename(other),
        lambda: path.write_text("cat/2.png"), path.unlink,
    )  # fmt: skip
    for change in changes:  # content, name, one more and one less
        change()
        with pytest.raises(UserError, match="the content of table"):
            go(folder, config, resume=True)


def test_a_pipe_is_left_to_its_reader(tmp_path: Path) -> None:
    """Whoever hashed it would take what is to be read once."""
    reading, writing = os.pipe()
    os.write(writing, b"a,b\n1,2\n")
    os.close(writing)
    pipe = Path(f"/dev/fd/{reading}")
    assert file_hashes(Reading(table=pipe)) == {"table": None}
    assert os.read(reading, 100) == b"a,b\n1,2\n"
    os.close(reading)


def test_a_folder_with_a_config_of_its_own_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "1.png").write_text("one")
    before = file_hashes(Reading(table=tmp_path))
    (tmp_path / "1.png").write_text("other")
    assert file_hashes(Reading(table=tmp_path)) != before


def test_weights_to_begin_with_are_part_of_a_run(
    whole: Reference, tmp_path: Path
) -> None:
    first = shutil.copytree(whole.folder, tmp_path / "first")
    options = dataclasses.replace(EACH, load_params=first)
    go(tmp_path / "run", options=options)
    (first / "result.json").write_text("{}")  # which nobody begins with
    go(tmp_path / "run", options=options, resume=True)
    go(first, dataclasses.replace(CONFIG, epochs=5), resume=True, allow_change=True)
    with pytest.raises(UserError, match="the content of load_params"):
        go(tmp_path / "run", options=options, resume=True)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one config with two parts: in the folders 0 and 1."""
    config, root = dataclasses.replace(CONFIG, parts=2), tmp_path_factory.mktemp("two")
    for name in ("0", "1"):
        with open_run(root / name, "tiny", "quick", config, EACH) as run:
            tiny.main(config, run)
            run.finish({})
    return root


@pytest.mark.parametrize("what", ["part", "step", "run"])
def test_a_checkpoint_is_refused_elsewhere(
    two_runs: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same shapes, so that nothing else would show."""
    config = dataclasses.replace(CONFIG, parts=2)
    folder = shutil.copytree(two_runs / "0", tmp_path / "run")
    part = folder / "checkpoints" / "part1"
    newest = part / str(LAST)
    if what == "step":
        newest = newest.rename(part / str(LAST + PER_EPOCH))
    else:
        shutil.rmtree(newest)
        source = two_runs / (
            "0/checkpoints/part0" if what == "part" else "1/checkpoints/part1"
        )
        shutil.copytree(source / str(LAST), newest)
    load_weights(folder, tiny.weights_like(config), "part1")
    assert f"{newest}: it belongs to {what} " in capsys.readouterr().err
    with open_run(folder, "tiny", "quick", config, EACH, resume=True) as run:
        tiny.train(run, config, "part1", 1)
    assert f"{newest}: it belongs to {what} " in capsys.readouterr().err


Words = tuple[str, ...]


def test_what_a_run_has_learned_comes_back_and_nothing_else(
    whole: Reference, folder: Path, tmp_path: Path
) -> None:
    with open_run(folder, "tiny", "quick", CONFIG) as run:
        run.write_sealed("words.json", ("가", "b"))
        run.write_sealed("keep.json", Keep("best", 3))
    assert read_sealed(folder, "words.json", Words) == ("가", "b")
    assert read_sealed(folder, "keep.json", Keep) == Keep("best", 3)

    def refused(name: str, kind: Any) -> str:
        with pytest.raises(UserError, match=f"{name} cannot be read: ") as caught:
            read_sealed(folder, name, kind)
        return str(caught.value)

    path = folder / "words.json"
    text = path.read_text()
    for damaged in (text.replace('"b"', '"c"'), text[:-5], "", "[]", "null", "{}"):
        path.write_text(damaged)
        refused("words.json", Words)
    path.write_bytes(b"\xff" + text.encode())
    refused("words.json", Words)
    path.unlink()
    refused("words.json", Words)

    # well sealed, and yet not what is asked for
    with open_run(tmp_path / "other", "tiny", "quick", CONFIG) as run:
        run.write_sealed("words.json", ("가", "b"))
    shutil.copy(tmp_path / "other" / "words.json", path)
    assert "it belongs to run " in refused("words.json", Words)
    with open_run(folder, "tiny", "quick", CONFIG, resume=True) as run:
        run.write_sealed("words.json", {"which": "best", "n": 3, "color": "red"})
    assert "which.n" not in refused("words.json", Words)
    refused("words.json", Keep)


def test_checkpoints_are_deleted_all_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the middle leaves a run that can be resumed."""

    def half(path: Path, **how: bool) -> None:
        for file in [p for p in Path(path).rglob("*") if p.is_file()][::2]:
            file.unlink()
        if not how:
            raise Crash

    with open_run(folder, "tiny", "quick", CONFIG, EACH) as run:
        expected = tiny.train(run, CONFIG).state
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", half)
            with pytest.raises(Crash):
                run.sub_run().delete_checkpoints()
    assert steps_of(folder) == []
    with open_run(folder, "tiny", "quick", CONFIG, EACH, resume=True) as run:
        assert bits(tiny.train(run, CONFIG).state) == bits(expected)
        run.sub_run().delete_checkpoints()
    assert not [p.name for p in folder.iterdir() if "checkpoints" in p.name]


def test_temporary_checkpoints_stay_until_there_is_a_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(resume: bool) -> int:
        with open_run(folder, "tiny", "quick", CONFIG, EACH, resume=resume) as run:
            run.sub_run(temporary=True)
            rows = tiny.train(run, CONFIG).records
            run.finish({})
            return len(rows)

    with monkeypatch.context() as patch:
        crash_at(patch, Run, "finish", 1, after=False)
        with pytest.raises(Crash):
            work(resume=False)
    rows = (folder / "metrics.jsonl").read_bytes()
    work(resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == rows  # nothing trained again
    assert not (folder / "checkpoints").exists()


def test_the_result_counts_every_attempt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training that was finished before the kill, and of one that was not."""
    config = dataclasses.replace(CONFIG, parts=2)

    def work(resume: bool) -> None:
        with open_run(folder, "tiny", "quick", config, EACH, resume=resume) as run:
            first = run.sub_run("part0", checkpoint_at_end=False)
            if not any(row["step"] == LAST for row in first.records):
                tiny.train(run, config, "part0", 0)
            first.delete_checkpoints()
            tiny.train(run, config, "part1", 1)
            run.finish({})

    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(run_module.time, "monotonic", lambda: float(next(clock)))
    with monkeypatch.context() as patch:
        crash_at(patch, Checkpoints, "save", 5, after=True)
        with pytest.raises(Crash):
            work(resume=False)
    killed = json.loads((folder / "attempts.json").read_text())
    assert killed["parts"]["part0"]["steps"] == LAST
    assert len(killed["wall_s"]) == 1
    work(resume=True)
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 2 * LAST
    assert result["attempts"] == 2
    assert result["train_s"] > killed["parts"]["part0"]["train_s"]
    assert result["wall_s"] > killed["wall_s"][0]
    assert result["goodput"] == round(result["train_s"] / result["wall_s"], 4)


def test_attempts_that_are_lost_are_said(
    whole: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    (folder / "attempts.json").write_text('{"wall_s": ["long"]}')
    whole.assert_same(folder, go(folder, resume=True))
    assert "earlier attempts are not counted" in capsys.readouterr().err


def test_what_is_written_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of flushing and renaming, which a power cut would show."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    monkeypatch.setattr(
        os, "fsync", lambda d: (done.append(f"flush {name_of(d)}"), fsync(d))
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append(f"rename {b}"), replace(a, b))
    )
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


# signals


def signal_at(
    monkeypatch: pytest.MonkeyPatch, signum: int, append: int, name: str = "append"
) -> None:
    """Send a signal to this process right after some rows were logged."""
    original = getattr(Run, name)
    calls = iter(range(1, 1000))

    def wrapper(run: Run, *args: Any) -> Any:
        result = original(run, *args)
        if next(calls) == append:
            os.kill(os.getpid(), signum)
        return result

    monkeypatch.setattr(Run, name, wrapper)


@pytest.mark.parametrize(
    ("signum", "code", "append"),
    [
        (signal.SIGTERM, 143, 1),
        (signal.SIGINT, 130, 2),
        (signal.SIGTERM, 143, 3),
        (signal.SIGINT, 130, 5),
    ],
)
def test_a_signal_saves_and_stops(
    whole: Reference,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    code: int,
    append: int,
) -> None:
    """At once before the first chunk (append 1), else when the chunk is saved."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
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
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    whole.assert_same(folder, go(folder, options=Options(), resume=True))


def test_a_signal_in_the_last_chunk_of_a_part_stops_before_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, parts=2)
    one_chunk = dataclasses.replace(config, epochs=1)

    def go_on(where: Path, resume: bool) -> dict[str, float]:
        with open_run(where, "tiny", "quick", one_chunk, EACH, resume=resume) as run:
            return tiny.main(one_chunk, run)

    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 2)
        with pytest.raises(Stopped):
            go_on(folder, resume=False)
    assert {row["part"] for row in rows_of(folder)} == {"part0"}
    resumed = go_on(folder, resume=True)
    assert resumed == go_on(tmp_path / "whole", resume=False)
    metrics = [(f / "metrics.jsonl").read_bytes() for f in (folder, tmp_path / "whole")]
    assert metrics[0] == metrics[1]


def test_a_signal_within_a_callback_of_the_program_is_not_lost(
    whole: Reference, folder: Path, monkeypatch: pytest.MonkeyPatch
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
        patch.setattr(os, "_exit", lambda code: None)  # it comes with every step
        with pytest.raises(Stopped):
            go(folder, options=Options())
    whole.assert_same(folder, go(folder, options=Options(), resume=True))


@pytest.mark.parametrize("stage", ["part", "figures", "end"])
def test_a_signal_between_stages_stops_at_the_next(folder: Path, stage: str) -> None:
    def work() -> None:
        with open_run(folder, "tiny", "quick", CONFIG) as run:
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


def test_handlers_are_put_back(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with open_run(folder, "tiny", "quick", CONFIG):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(wakeup) == wakeup


# who may have the folder


def test_a_run_in_use(folder: Path) -> None:
    with open_run(folder, "tiny", "quick", CONFIG):
        before = contents(folder)
        hows: list[Any] = [{}, {"resume": True}, {"resume": True, "allow_change": True}]
        for how in hows:
            with pytest.raises(UserError) as error:
                go(folder, **how)
            expected = f"{folder} is in use by process {os.getpid()}"
            assert str(error.value) == expected
        assert contents(folder) == before
    assert not (folder / "run.lock").exists()
    go(folder, options=Options(), resume=True)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_does_not_lock(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(run_module.fcntl, "flock", flock)
    path, here = folder / "run.lock", platform.node()
    with open_run(folder, "tiny", "quick", CONFIG):
        said = f"warning: {folder} cannot be locked ({os.strerror(code)})"
        assert said in capsys.readouterr().err
        assert json.loads(path.read_text()) == {
            "host": here, "processes": {"": os.getpid()}
        }  # fmt: skip
        with pytest.raises(Refused, match=f"in use by process {os.getpid()}, as "):
            go(folder, resume=True)
    assert not path.exists()
    ended = subprocess.Popen(["true"])
    ended.wait()
    for host, refused in ((here, False), ("abacus", True)):
        path.write_text(json.dumps({"host": host, "processes": {"x": ended.pid}}))
        if refused:
            sentence = rf"in use by process {ended.pid} \(x\) on abacus, as .*run.lock"
            with pytest.raises(Refused, match=sentence):
                go(folder, resume=True)
        else:
            with open_run(folder, "tiny", "quick", CONFIG, resume=True):
                pass


HOLD = """
import sys, time
from pathlib import Path
from jaxstudy.runs.run import Options, Run, open_run
sys.path.insert(0, sys.argv[2])
import tiny
config = tiny.Config(kind="noisy")
append = Run.append
def wait(run, records):
    append(run, records)
    if records[-1]["step"] == 9:
        print("held", flush=True)
        time.sleep(60)
Run.append = wait
with open_run(Path(sys.argv[1]), "tiny", "quick", config, Options(save_every=0)) as run:
    tiny.train(run, config)
"""


def test_a_run_in_use_by_another_process_and_then_killed(
    whole: Reference, folder: Path, tmp_path: Path, start: Any
) -> None:
    """By SIGKILL between the records of an epoch and its checkpoint: no bit is lost."""
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    process = start(script, [folder, ROOT / "tests"])
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"is in use by process {process.pid}$"):
        go(folder)
    process.kill()
    process.wait()
    assert (folder / "run.lock").exists()  # and is not in the way
    assert (steps_of(folder), rows_of(folder)[-1]["step"]) == ([3, 6], 9)
    whole.assert_same(folder, go(folder, resume=True))
    assert not (folder / "run.lock").exists()


@pytest.fixture
def nobody() -> Iterator[None]:
    """Be a user whom permissions bind, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that everybody can reach."""
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == tmp_path.owner() and "pytest" in path.name:
            path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("below", ["run", "a/b/run"])
def test_a_folder_that_cannot_be_written(
    open_path: Path, request: pytest.FixtureRequest, mode: int, below: str
) -> None:
    closed = open_path / "closed"
    closed.mkdir()
    closed.chmod(mode)
    request.getfixturevalue("nobody")
    with pytest.raises(UserError) as error:
        go(closed / below)
    os.seteuid(os.getuid())
    closed.chmod(0o755)
    assert str(error.value) == (
        f"the run folder {closed / below} cannot be written: Permission denied"
    )
    assert os.listdir(closed) == []


@pytest.mark.parametrize("below", ["", "run", "a/run"])
def test_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        go(tmp_path / "file" / below)
    assert contents(tmp_path) == {"file": b"mine"}


# what the folder holds


def test_nothing_to_resume(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        go(folder, resume=True)
    expected = f"there is nothing to resume in {folder}: no config.json"
    assert str(error.value) == expected
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    assert "nothing to resume" in refused(folder, resume=True)


def refused(folder: Path, *args: Any, **how: Any) -> str:
    """Start something there that is refused; nothing changes."""
    before = contents(folder)
    with pytest.raises(UserError) as error:
        go(folder, *args, **how)
    assert contents(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_is_not_overwritten(whole: Reference) -> None:
    assert "already holds a run of this config" in refused(whole.folder)


def test_another_config_is_not_mixed_in(whole: Reference) -> None:
    other = dataclasses.replace(CONFIG, rate=0.1, epochs=9)
    for how in ({}, {"resume": True}, {"allow_change": True}):
        message = refused(whole.folder, other, **how)
        assert str(whole.folder) in message
        assert "epochs: 4 there, 9 here; rate: 0.05 there, 0.1 here" in message
    assert "--allow-change" in refused(whole.folder, other, resume=True)


def test_another_option_or_preset_is_shown(whole: Reference) -> None:
    message = refused(whole.folder, CONFIG, Options(save_every=0, keep="best"))
    assert "keep: 'last' there, 'best' here" in message
    message = refused(whole.folder, preset="full", resume=True)
    assert "preset: 'quick' there, 'full' here" in message


def test_a_change_that_is_allowed_goes_on(whole: Reference, tmp_path: Path) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    longer = dataclasses.replace(CONFIG, epochs=6)
    state = go(folder, longer, resume=True, allow_change=True)
    assert bits(state) == bits(go(tmp_path / "at once", longer))
    metrics = [
        (f / "metrics.jsonl").read_bytes() for f in (folder, tmp_path / "at once")
    ]
    assert metrics[0] == metrics[1]
    assert read_saved(folder, Config, "tiny").config == longer


def test_a_change_that_cannot_go_on_changes_nothing(
    whole: Reference, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    wider = dataclasses.replace(CONFIG, hidden=5)
    message = refused(folder, wider, resume=True, allow_change=True)
    assert "hidden_1/bias has shape [4], not [5]" in message
    whole.assert_same(folder, go(folder, resume=True))


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda f: f.update(experiment="ch9"), "a run of ch9, not of tiny"),
        (lambda f: f.pop("options"), "config.json cannot be read"),
        (lambda f: f["config"].update(epochs="many"), "config.json does not fit"),
        (lambda f: f["config"].update(epochs=-1), "config.json does not fit"),
        (lambda f: f["config"].update(epoch=3), "config.json does not fit.*epoch"),
        (lambda f: f["options"].update(keep="all"), "config.json does not fit"),
        (
            lambda f: f["options"].update(keeep="last"),
            "config.json does not fit.*keeep",
        ),
        (lambda f: f.update(schema=99), "schema"),
    ],
)
def test_a_config_that_does_not_fit(
    whole: Reference, tmp_path: Path, edit: Any, expected: str
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    edit_config(folder, edit)
    before = contents(folder)
    for resume in (False, True):
        with pytest.raises(UserError, match=expected) as error:
            go(folder, resume=resume)
        assert str(folder) in str(error.value)
    assert contents(folder) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800"])
def test_a_config_that_cannot_be_read(
    whole: Reference, tmp_path: Path, text: str
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    before = contents(folder)
    for resume in (False, True):
        with pytest.raises(UserError, match=r"config.json cannot be read"):
            go(folder, resume=resume)
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        load_weights(folder, tiny.weights_like(CONFIG))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "result.json"])
def test_what_another_run_left_is_not_mixed_with_a_fresh_one(
    whole: Reference, tmp_path: Path, name: str
) -> None:
    """A folder whose config.json was lost is not taken for an empty one."""
    folder = tmp_path / "run"
    folder.mkdir()
    source = whole.folder / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    assert name in refused(folder)


def test_another_environment_is_said(
    whole: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    path = folder / "environment.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"device": "abacus"}))
    go(folder, resume=True)
    assert "was begun with another device: the same bits are not" in (
        capsys.readouterr().err
    )


# a run that fails


def test_a_user_error_before_training_leaves_what_was_there(folder: Path) -> None:
    def fail() -> None:
        with (
            pytest.raises(UserError, match="no such table"),
            open_run(folder, "tiny", "quick", CONFIG),
        ):
            raise UserError("no such table")

    fail()
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes").write_text("mine")
    fail()
    assert contents(folder) == {"notes": b"mine"}


def test_a_loss_that_is_not_finite_names_its_step(folder: Path) -> None:
    diverging = dataclasses.replace(CONFIG, rate=1e25, epochs=9)
    with pytest.raises(UserError, match=r"loss (at|after) step \d+ was not finite"):
        go(folder, diverging)
    assert not (folder / "result.json").exists()
    for row in rows_of(folder) if (folder / "metrics.jsonl").exists() else []:
        assert row["loss"] is not None


def test_a_loss_that_stops_being_finite_keeps_what_was_good(
    whole: Reference, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    diverging = dataclasses.replace(CONFIG, rate=1e30, epochs=9)
    with pytest.raises(UserError, match=r"not finite") as error:
        go(folder, diverging, resume=True, allow_change=True)
    assert str(error.value).count("step") == 1
    assert max(row["step"] for row in rows_of(folder)) >= LAST
    assert all(row["loss"] is not None for row in rows_of(folder))
    for step in steps_of(folder):
        weights = load_weights(folder, tiny.weights_like(CONFIG), step=step)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(weights)), step
    go(folder, dataclasses.replace(CONFIG, epochs=6), resume=True, allow_change=True)


def test_weights_ruined_by_the_last_step_are_no_result(folder: Path) -> None:
    """The training loss of a step says nothing of what the step then does."""
    once = dataclasses.replace(CONFIG, epochs=1, rate=1e38)
    with pytest.raises(UserError, match="not finite"):
        go(folder, once)
    assert not (folder / "result.json").exists()
    assert steps_of(folder) == []


# options


def test_parameters_alone_predict_but_do_not_go_on(
    whole: Reference, folder: Path
) -> None:
    options = Options(save="params", save_every=0)
    go(folder, options=options)
    like = tiny.weights_like(CONFIG)
    weights = load_weights(folder, like)
    assert weight_bits(weights) == weight_bits(load_weights(whole.folder, like))
    sizes = [sum(map(len, contents(f).values())) for f in (folder, whole.folder)]
    assert sizes[0] < sizes[1]
    assert not list(folder.glob("checkpoints/*/training"))
    message = refused(folder, options=options, resume=True)
    assert "--save params" in message
    assert f"--load-params {folder}" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(keep="every"), [3, 6, 9, 12]),
        (Options(keep="last"), [12]),
        (Options(keep="best", keep_n=1, monitor="train.loss", mode="max"), [3, 12]),
    ],
)
def test_which_checkpoints_stay(
    folder: Path, options: Options, expected: list[int]
) -> None:
    go(folder, options=options)
    assert steps_of(folder) == expected


@pytest.mark.parametrize(
    ("monitor", "mode"), [("train.loss", "max"), ("validation.loss", "min")]
)
def test_the_best_by_any_logged_metric(folder: Path, monitor: str, mode: Any) -> None:
    options = Options(keep="best", keep_n=1, monitor=monitor, mode=mode)
    config = dataclasses.replace(CONFIG, rate=0.7)  # so that it goes up and down
    go(folder, config, options)
    split, _, name = monitor.partition(".")
    values = {
        r["step"]: r[name] for r in rows_of(folder) if r["split"] == split and r["step"]
    }
    best = (min if mode == "min" else max)(values, key=values.__getitem__)
    assert steps_of(folder) == sorted({best, LAST})
    keep = Keep("best", 1, monitor, mode)
    assert Checkpoints(folder / "checkpoints", keep).best() == best
    # what predicts is the best, not the last
    saved = read_saved(folder, Config, "tiny")
    like = tiny.weights_like(config)
    assert weight_bits(saved.weights(like)) == weight_bits(
        saved.weights(like, step=best)
    )


@pytest.mark.parametrize("monitor", ["validation.accuracy", "loss", ""])
def test_a_metric_that_is_not_logged(folder: Path, monitor: str) -> None:
    with pytest.raises(UserError) as error:
        go(folder, options=Options(keep="best", monitor=monitor))
    assert str(error.value) == (
        f"--monitor {monitor}: not logged here, only train.loss, validation.loss"
    )
    assert not folder.parent.exists()


def test_a_run_is_known_by_its_folder_alone(whole: Reference) -> None:
    saved = read_saved(whole.folder, Config, "tiny")
    assert (saved.config, saved.options, saved.preset) == (CONFIG, EACH, "quick")
    like = tiny.weights_like(saved.config)
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    weights = saved.weights(fresh)
    assert jax.tree.structure(weights) == jax.tree.structure(like)
    # the flattened state is step, then the weights
    assert weight_bits(weights)[0] in whole.bits


def test_another_experiments_run_is_not_taken(whole: Reference) -> None:
    with pytest.raises(UserError, match="holds a run of tiny, not of ch1_admission"):
        read_saved(whole.folder, Config, "ch1_admission")


def test_beginning_with_loaded_parameters(whole: Reference, folder: Path) -> None:
    first = dataclasses.replace(CONFIG, epochs=1, rate=1e-30)
    go(folder, first, Options(load_params=whole.folder))
    like = tiny.weights_like(CONFIG)
    # a rate that moves nothing: the weights are those that were loaded
    theirs = load_weights(whole.folder, like)
    assert weight_bits(load_weights(folder, like)) == weight_bits(theirs)


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (shutil.rmtree, "no run in .*run: there is no config.json"),
        (lambda f: shutil.rmtree(f / "checkpoints"), "no checkpoint that fits in"),
        (
            lambda f: edit_config(f, lambda c: c["options"].update(keep_n="x")),
            "config.json does not fit",
        ),
        (contents, r"weights/params/hidden_1/bias has shape \[4\], not \[5\]"),
    ],
)
def test_parameters_that_cannot_be_loaded(
    whole: Reference, folder: Path, tmp_path: Path, prepare: Any, expected: str
) -> None:
    source = shutil.copytree(whole.folder, tmp_path / "run")
    prepare(source)
    config = dataclasses.replace(CONFIG, hidden=5)
    with pytest.raises(UserError, match=expected):
        go(folder, config, Options(load_params=source))
    assert not folder.parent.exists()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_parameters_of_the_newest_good_step(
    whole: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    like = tiny.weights_like(CONFIG)
    before = load_weights(folder, like, step=LAST - PER_EPOCH)
    damage(folder, LAST)
    assert weight_bits(load_weights(folder, like)) == weight_bits(before)
    said = capsys.readouterr().err
    assert str(folder / "checkpoints" / str(LAST)) in said
    assert f"step {LAST - PER_EPOCH} is used" in said
    with pytest.raises(UserError, match="no checkpoint that fits"):
        load_weights(folder, like, step=LAST)


def test_two_parts_have_their_own_rows_and_checkpoints(two_runs: Path) -> None:
    folder = two_runs / "0"
    assert json.loads((folder / "result.json").read_text())["steps"] == 2 * LAST
    for name in ("part0", "part1"):
        assert Checkpoints(folder / "checkpoints" / name).steps() == [9, 12]
        own = [r["step"] for r in rows_of(folder) if r["part"] == name]
        assert own == sorted(own)
        assert own[-1] == LAST


def test_event_files(folder: Path) -> None:
    go(folder, options=Options(tensorboard=True))
    (events,) = (folder / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data
    assert b"validation/loss" in data


def test_files_are_readable_by_others(whole: Reference) -> None:
    """An atomic write does not leave the mode of a private temporary file."""
    mask = os.umask(0o022)
    os.umask(mask)
    for name in ("config.json", "metrics.jsonl", "result.json"):
        mode = stat.S_IMODE((whole.folder / name).stat().st_mode)
        assert mode == 0o666 & ~mask, name


def test_the_lock_is_asked_again_when_its_holder_has_just_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file one has locked may be gone by then: the lock would hold nobody off."""
    original, calls = run_module.fcntl.flock, iter(range(9))

    def flock(file: Any, how: int) -> None:
        original(file, how)
        if next(calls) == 0:
            (folder / "run.lock").unlink()

    monkeypatch.setattr(run_module.fcntl, "flock", flock)
    with open_run(folder, "tiny", "quick", CONFIG):
        assert next(calls) == 2
        with pytest.raises(UserError, match="in use"):
            go(folder)


# processes: exit codes, and the second signal


def wait_for(path: Path, process: Any, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def test_a_process_saves_and_exits(folder: Path, start: Any) -> None:
    arguments = ["--run-dir", folder, "--epochs", 100000, "--keep", "last"]
    process = start(ROOT / "tests" / "tiny.py", arguments)
    wait_for(folder / "metrics.jsonl", process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 143, error
    assert "--resume goes on" in error
    assert "Traceback" not in error
    assert out == ""
    (step,) = steps_of(folder)
    assert max(row["step"] for row in rows_of(folder)) == step
    assert not (folder / "run.lock").exists()


def test_a_second_signal_exits_at_once_even_from_a_compiled_program(
    folder: Path, start: Any
) -> None:
    arguments = ["--run-dir", folder, "--spins", 2_000_000_000, "--save-every", 0]
    process = start(ROOT / "tests" / "tiny.py", arguments)
    wait_for(folder / "metrics.jsonl", process)  # the evaluation before the first step
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert "once more: stop at once" in error
