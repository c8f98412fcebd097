"""The command line: what is wrong is said in one sentence, with exit code 2."""

import errno
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from jax.errors import JaxRuntimeError

from jaxstudy import __main__ as program
from jaxstudy.ops import CPU_CONVOLUTION
from jaxstudy.runs import cli, terminal
from jaxstudy.runs.environment import set_xla_flags
from jaxstudy.runs.locks import locked
from jaxstudy.runs.run import Stopped
from jaxstudy.types import Refused, UserError
from tests.conftest import Answer, Ask, Patch, Said, contents, load, run_script

Call = Callable[..., Answer]


def here(ask: Ask, module: Any, patch: Patch, tmp_path: Path) -> Call:
    """Call a script with some arguments, in an empty folder."""
    patch.chdir(tmp_path)
    patch.setenv("COLUMNS", "200")
    return functools.partial(ask, module, predict=module.predict)


@pytest.fixture
def call(ask: Ask, monkeypatch: Patch, tmp_path: Path) -> Call:
    """Call the tiny experiment."""
    return here(ask, tiny, monkeypatch, tmp_path)


def refused(answer: Answer) -> str:
    """The one sentence of an answer that is an error."""
    assert answer.code == 2
    assert answer.error.startswith("error: ")
    assert answer.error.count("\n") == 1
    return answer.error.removeprefix("error: ").rstrip("\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smoke preset; not to be changed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run_script(tiny, "--preset", "smoke", "--run-dir", folder) == 0
    return folder


def test_a_run_by_its_defaults(call: Call, tmp_path: Path) -> None:
    answer = call("--preset", "smoke", "--seed", 3)
    assert answer.code == 0
    folder = tmp_path / "runs" / "tiny" / "smoke-seed3"
    result = json.loads((folder / "result.json").read_text())
    assert (result["seed"], result["preset"], result["steps"]) == (3, "smoke", 6)
    assert "loss 0" in answer.out
    assert "runs/tiny/smoke-seed3" in answer.out


def test_every_setting_is_an_option(call: Call) -> None:
    answer = call("--help")
    assert answer.code == 0
    for flag in (
        "preset", "run-dir", "seed", "resume", "allow-change", "predict",
        "epochs", "rate", "hidden", "kind",
        "save", "keep", "keep-n", "monitor", "mode", "save-every", "load-params",
        "tensorboard",
    ):  # fmt: skip
        assert f"--{flag}" in answer.out, flag
    assert "Learning rate." in answer.out
    assert "(default: 0.05)" in answer.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--epoch 3", "--epochs"),
        ("--load-param a", "--load-params"),
        ("--epochs 1.5", "--epochs"),
        ("--epochs=", "--epochs"),
    ],
)
def test_what_the_parser_refuses_names_the_option(
    call: Call, tmp_path: Path, arguments: str, expected: str
) -> None:
    answer = call(*arguments.split())
    assert answer.code == 2
    assert expected in answer.error
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # an unknown choice: the nearest
        ("--preset smok", "did you mean 'smoke'?"),
        ("--preset=fulll", "did you mean 'full'?"),
        ("--kind nosy", "--kind takes plain, noisy, not 'nosy'; did you mean 'noi"),
        ("--keep=all", "--keep takes last, every, best, not 'all'"),
        ("--keep --keep-n 3", "--keep takes last, every, best, not '--keep-n'"),
        # a value out of range
        ("--epochs 0", "--epochs 0"),
        ("--rate nan", "--rate nan"),
        ("--rate 1e400", "--rate inf"),
        ("--seed 4294967296", "--seed 4294967296"),
        ("--keep-n -2", "--keep-n -2"),
        ("--save-every nan", "--save-every nan"),
        # what is not there
        ("--resume", "no run in runs/tiny/quick"),
        ("--resume --run-dir nowhere", "no run in nowhere"),
        ("--predict 1 2 --run-dir nowhere", "no run in nowhere"),
        ("--load-params nowhere", "no run in nowhere"),
        ("--keep best --monitor validation.los", "--monitor validation.los: not logg"),
        # a path of a variable that is not set
        ("--run-dir=", "--run-dir is empty: it takes a path"),
        ("--load-params= --preset smoke", "--load-params is empty: it takes a path"),
        (os.fsdecode(b"--run-dir caf\xe9"), r"caf\udce9 has a name that is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing(
    call: Call, tmp_path: Path, arguments: str, expected: str
) -> None:
    assert expected in refused(call(*arguments.split(" ")))
    assert list(tmp_path.iterdir()) == []


def test_a_change_has_to_be_allowed(call: Call, finished: Path, tmp_path: Path) -> None:
    before, where = contents(finished), ["--run-dir", finished]
    same = refused(call(*where, "--preset", "smoke"))
    assert "already holds a run of this config" in same
    changed = refused(call(*where, "--resume", "--rate", "0.1", "--keep", "best"))
    assert "rate: 0.05 there, 0.1 here" in changed
    assert "--allow-change" in changed
    assert contents(finished) == before
    shutil.copytree(finished, tmp_path / "run")
    longer = ["--run-dir", "run", "--resume", "--epochs", 4, "--allow-change"]
    assert call(*longer).code == 0
    assert json.loads(Path("run/result.json").read_text())["steps"] == 12


def test_metrics_as_they_are_printed(capsys: Said) -> None:
    few = {"low": None, "high": None, "n": 2, "of": "seeds"}
    metrics = {
        "few": {"mean": 1.5, "values": [1.0, 2.0], **few},
        "lost": {"mean": None, "values": [1.0, None], **few},
        "class [/x] :bug:": 0.5,  # no markup of rich
    }
    times = {"wall_s": 1.0, "compile_s": 0.5, "train_s": 0.2, "steps": 3}
    terminal.print_result("tiny", {"metrics": metrics, **times}, Path("run"))
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in row] for row in rows if row] == [
        ["few", "1.5", "(each: 1, 2)", "2 seeds"],
        ["lost", "not finite", "(each: 1, -)", "2 seeds"],
        ["class [/x] :bug:", "0.5", "", ""],
    ]


def test_a_finished_run_prints_its_result_again(call: Call, finished: Path) -> None:
    before = contents(finished)
    answer = call("--resume", "--run-dir", finished)
    assert answer.code == 0
    assert "was finished before" in answer.out
    assert "loss 0" in answer.out
    assert contents(finished) == before


def test_a_run_is_not_finished_if_what_it_read_has_changed(
    call: Call, finished: Path
) -> None:
    shutil.copytree(finished, "begun")
    run = ["--run-dir", "run", "--load-params", "begun", "--preset", "smoke"]
    assert call(*run).code == 0
    assert "was finished before" in call("--resume", "--run-dir", "run").out
    (step,) = Path("begun/checkpoints").iterdir()
    step.rename(step.with_name("99"))
    sentence = refused(call("--resume", "--run-dir", "run"))
    assert "the content of load_params" in sentence


def test_a_run_goes_on_knowing_its_folder_alone(call: Call, tmp_path: Path) -> None:
    """Every setting comes from the folder: none is given, none is the default."""
    settings = ["--epochs", 3, "--rate", 0.1, "--hidden", 6, "--seed", 5]
    keeping = ["--keep", "every", "--kind", "noisy"]
    assert call("--run-dir", "whole", *settings, *keeping).code == 0
    shutil.copytree("whole", "part")
    for step in (9, 6):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / str(step))
    (tmp_path / "part" / "result.json").unlink()
    answer = call("--resume", "--run-dir", "part")
    assert answer.code == 0, answer.error
    whole, part = contents(tmp_path / "whole"), contents(tmp_path / "part")
    for name in ("config.json", "metrics.jsonl"):
        assert part[name] == whole[name], name
    results = [json.loads(files["result.json"]) for files in (whole, part)]
    assert results[0]["metrics"] == results[1]["metrics"]
    predictions = [
        call("--predict", 1, 2, "--run-dir", f).out for f in ("whole", "part")
    ]
    assert predictions[0] == predictions[1]
    assert predictions[0].startswith("predicted ")


def test_what_cannot_be_predicted_from(call: Call, finished: Path) -> None:
    for values in (["1"], ["1", "x"]):
        answer = call("--run-dir", finished, "--predict", *values)
        assert (answer.code, answer.out) == (2, "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("the table is empty"), 2, "error: the table is empty\n"),
        (Refused("runs is in use"), 1, "error: runs is in use\n"),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "a/b.json"),
            1,
            "error: a/b.json: Disk quota exceeded\n",
        ),
        (MemoryError(), 1, "error: not enough memory\n"),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nX"),
            1,
            "error: not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 "
            "bytes.\n",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 130, ""),
        (Stopped(15), 143, "stopped by SIGTERM; --resume goes on\n"),
        (Stopped(2), 130, "stopped by SIGINT; --resume goes on\n"),
    ],
)
def test_exit_codes(capsys: Said, error: Exception, code: int, said: str) -> None:
    def work() -> None:
        raise error

    assert cli.exit_code(work) == code
    assert capsys.readouterr().err == said


def test_what_the_system_refuses_is_not_the_users_error(capsys: Said) -> None:
    for number, code in ((errno.EMFILE, 1), (errno.ENOENT, 2)):

        def work(number: int = number) -> None:
            raise UserError("t.csv cannot be read") from OSError(number, "", "t.csv")

        assert cli.exit_code(work) == code
        assert capsys.readouterr().err == "error: t.csv cannot be read\n"
    with pytest.raises(ZeroDivisionError):  # what nobody expected is not hidden
        cli.exit_code(lambda: print(1 / 0))


@pytest.mark.parametrize("lines", [1, 100_000])  # more than a pipe and buffers hold
def test_a_reader_that_left_is_no_error(
    capsys: Said, monkeypatch: Patch, lines: int
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert cli.exit_code(lambda: print("x\n" * lines)) == 1
    assert capsys.readouterr().err == ""


def test_an_output_that_is_full(capsys: Said, monkeypatch: Patch) -> None:
    with open("/dev/full", "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert cli.exit_code(lambda: print("x")) == 1
    sentence = f"error: the output cannot be written: {os.strerror(errno.ENOSPC)}\n"
    assert capsys.readouterr().err == sentence


def test_names_that_are_not_utf8_are_printed(
    monkeypatch: Patch, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.exit_code(lambda: print(os.fsdecode(b"caf\xe9 "), "caf\u00e9")) == 0
    assert (tmp_path / "out").read_bytes() == rb"caf\udce9  caf\xe9" + b"\n"


def test_a_damaged_result_is_made_again(call: Call, finished: Path) -> None:
    shutil.copytree(finished, "run")
    Path("run/result.json").write_text('{"metrics": {"loss": {"mean": "x"}}}')
    answer = call("--run-dir", "run", "--resume")
    assert answer.code == 0
    assert "run/result.json cannot be read: " in answer.error
    a, b = (
        json.loads((f / "result.json").read_text()) for f in (Path("run"), finished)
    )
    assert a["metrics"] == b["metrics"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/c"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "c"}, "/h/.cache"),  # as its standard says
        ({"HOME": "h"}, None),
        ({}, None),
    ],
)
def test_where_compiled_programs_are_kept(
    monkeypatch: Patch, variables: dict[str, str], expected: str | None
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    nobody = lambda path: path  # noqa: E731  (an unknown user's home)
    monkeypatch.setattr(cli.os.path, "expanduser", nobody)
    assert cli._caches() == (Path(expected) if expected else None)


# python -m jaxstudy


STUDY = """
import sys
from pathlib import Path
from jaxstudy import __main__ as program
program.ROOT = Path(sys.argv[1])
program.study("smoke", Path(sys.argv[2]))
"""
LESSON = """
import os, pathlib, sys, time
print(os.getpid(), flush=True)
while not pathlib.Path(__file__).with_name("go").exists():
    time.sleep(0.05)
"""


@pytest.mark.torture
def test_a_killed_studys_lesson_is_noticed_by_the_next(
    tmp_path: Path,
    start: Any,
    capsys: Said,
    monkeypatch: Patch,
) -> None:
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "write_report", lambda runs: runs / "report.html")
    runs, lessons = tmp_path / "runs", tmp_path / "experiments"
    lessons.mkdir()
    (lessons / "ch1_waits.py").write_text(LESSON)
    (tmp_path / "study.py").write_text(STUDY)

    def study() -> int:
        return cli.exit_code(lambda: program.study("smoke", runs))

    first = start(tmp_path / "study.py", [tmp_path, runs])
    lines = [first.stdout.readline() for _ in range(4)]
    lesson = int(lines[-1])
    both = f"process {first.pid} (study) and process {lesson} (ch1_waits)"
    assert study() == 1
    assert capsys.readouterr().err == f"error: {runs} is in use by {both}\n"
    first.kill()
    first.wait()
    assert study() == 1
    sentence = f"error: {runs} is in use by process {lesson} (ch1_waits)\n"
    assert capsys.readouterr().err == sentence
    (lessons / "go").touch()
    for _ in range(100):
        if study() == 0:
            break
        time.sleep(0.05)
    assert study() == 0
    assert not (runs / "study.lock").exists()
    # a lesson that was started by hand
    lock = runs / "ch1_waits" / "smoke" / "run.lock"
    capsys.readouterr()
    with locked(lock):
        assert study() == 1
    sentence = f"error: {lock.parent} is in use by process {os.getpid()}\n"
    assert capsys.readouterr().err == sentence


def test_a_study_begins_with_what_needs_no_data(
    tmp_path: Path, capfd: Said, monkeypatch: Patch
) -> None:
    """In the order of the lessons' numbers; data that is missing stops nothing."""

    def fetch(steps: object) -> dict[str, str]:
        print("fetching", flush=True)
        return {"images": "no network"}

    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "fetch", fetch)
    monkeypatch.setattr(program, "write_report", lambda runs: runs / "report.html")
    (tmp_path / "experiments").mkdir()
    for name, number in {"ch1_b": "1.1", "ch1_a": "1.2", "ch2_a": "2.1"}.items():
        text = f'print("lesson")\nnumber="{number}"\n'
        (tmp_path / "experiments" / f"{name}.py").write_text(text)
    program.study("smoke", tmp_path / "runs")
    lines = capfd.readouterr().out.splitlines()
    kept = [x for x in lines if x.startswith(("== ", "fetching", "1 of"))]
    assert [x.split()[1 if x[0] == "=" else 0] for x in kept] == [
        "ch1_b", "ch1_a", "fetching", "1", "ch2_a"
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [True, False])
def test_modules_are_compiled_once_in_a_study(
    kept: bool, tmp_path: Path, capfd: Said, monkeypatch: Patch
) -> None:
    """Where Python keeps no bytecode, too; then it is gone when the study ends."""
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "write_report", lambda runs: runs / "report.html")
    monkeypatch.setattr(sys, "dont_write_bytecode", not kept)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    if not kept:
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "experiments").mkdir()
    said = "print('says', sys.dont_write_bytecode, sys.pycache_prefix)"
    for name in ("ch1_a", "ch1_b"):
        script = tmp_path / "experiments" / f"{name}.py"
        script.write_text(f"import sys\n{said}\n")
    program.study("smoke", tmp_path / "runs")
    output = capfd.readouterr().out.splitlines()
    first, second = (x.split()[1:] for x in output if x.startswith("says"))
    assert first == second
    assert first[0] == "False"
    assert (first[1] == "None") == kept
    assert not Path(first[1]).exists()


def test_a_report_that_fails_stops_no_study(
    tmp_path: Path, capsys: Said, monkeypatch: Patch
) -> None:
    program.refresh(tmp_path)  # where no run is yet
    monkeypatch.setattr(program, "write_report", lambda runs: 1 / 0)
    program.refresh(tmp_path)
    assert capsys.readouterr().out.count("no report yet: ") == 2


def test_an_empty_folder_of_runs(
    capsys: Said, monkeypatch: Patch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["report", ""], ["study", "--runs", ""]):
        monkeypatch.setattr(sys, "argv", ["jaxstudy", *words])
        with pytest.raises(SystemExit, match="2"):
            program.main()
        said = capsys.readouterr().err
        assert said == "error: a path on the command line is empty\n"
    assert list(tmp_path.iterdir()) == []


# lesson 1.4, whose table is the user's


@pytest.fixture
def admission(ask: Ask, monkeypatch: Patch, tmp_path: Path) -> Call:
    return here(ask, load("experiments", "ch1_admission"), monkeypatch, tmp_path)


TABLE = "admit,gre,gpa,rank\n" + "1,500,3.1,2\n0,600,2.9,3\n" * 6


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),  # of more, in test_tabular.py
    [
        ("", "", "t.csv is empty"),
        (
            TABLE + "1,abc,3,1\n",
            "",
            "t.csv, row 13 (line 14), column 'gre': 'abc' is no",
        ),
        (TABLE.replace("\n0", "\n1"), "", "t.csv: column 'admit' is 1 in every row"),
        (None, "", "t.csv cannot be read: No such file or directory"),
        (TABLE, "--folds 1", "--folds 1"),
        (TABLE, "--folds 13", "--folds 13"),
        (TABLE, "--hidden 0", "--hidden 0"),
    ],
)
def test_a_bad_table_and_folds_and_layers_that_cannot_be(
    admission: Call, tmp_path: Path, text: str | None, arguments: str, expected: str
) -> None:
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    before = contents(tmp_path)
    how = ["--csv", "t.csv", "--preset", "smoke", *arguments.split()]
    assert refused(admission(*how)).startswith(expected)
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def test_sums_in_a_fixed_order_are_a_flag_of_xla(monkeypatch: Patch) -> None:
    """Beside the flags that the user set, which stay."""
    for asked in (False, True):
        monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        set_xla_flags(asked)
        first, *others = os.environ["XLA_FLAGS"].split()
        assert first == "--xla_backend_optimization_level=0"
        fixed_order = ["--xla_gpu_deterministic_ops=true"] * asked
        assert others == [CPU_CONVOLUTION, *fixed_order]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its setting")
def test_freed_memory_is_not_given_back() -> None:
    """Pages of a block that is allocated again are not cleared by the system again."""
    script = """if 1:
        import resource
        from jaxstudy.runs.environment import keep_freed_memory

        def pages():
            len(b"x" * 2**27)  # allocated, filled, freed
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            len(b"x" * 2**27)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        print(pages())
        keep_freed_memory()
        print(pages())
        """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < before / 10
