"""The command line: what is wrong is said in one sentence, with exit code 2."""

import errno
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from jax.errors import JaxRuntimeError

from jaxstudy.runs import cli, terminal
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
    ("wrong", "suggested"),
    [
        ("--epoch", "--epochs"),
        ("--resum", "--resume"),
        ("--keepn", "--keep-n"),
        ("--load-param", "--load-params"),
        ("--allow-changes", "--allow-change"),
    ],
)
def test_an_unknown_flag_gets_a_suggestion(
    call: Call, tmp_path: Path, wrong: str, suggested: str
) -> None:
    answer = call(wrong, "3")
    assert answer.code == 2
    assert wrong in answer.error
    assert suggested in answer.error.replace(wrong, "", 1)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "smok"], "did you mean 'smoke'?"),
        (["--preset=fulll"], "did you mean 'full'?"),
        (
            ["--keep", "bets"],
            "--keep takes last, every, best, not 'bets'; did you mean",
        ),
        (["--keep=all"], "--keep takes last, every, best, not 'all'"),
        (["--save", "param"], "did you mean 'params'?"),
        (["--mode", "mni"], "did you mean 'min'?"),
        (
            ["--kind", "nosy"],
            "--kind takes plain, noisy, not 'nosy'; did you mean 'noi",
        ),
        (["--keep", "--keep-n", "3"], "--keep takes last, every, best, not '--keep-n'"),
    ],
)
def test_an_unknown_choice_gets_a_suggestion(
    call: Call, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    assert expected in refused(call(*arguments))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "flag", "value"),
    [
        (["--epochs", "0"], "--epochs", "0"),
        (["--epochs", "-3"], "--epochs", "-3"),
        (["--rate", "0"], "--rate", "0"),
        (["--rate", "nan"], "--rate", "nan"),
        (["--rate", "1e400"], "--rate", "inf"),
        (["--seed", "-1"], "--seed", "-1"),
        (["--seed", "4294967296"], "--seed", "4294967296"),
        (["--keep-n", "0"], "--keep-n", "0"),
        (["--keep-n", "-2"], "--keep-n", "-2"),
        (["--save-every", "-1"], "--save-every", "-1"),
        (["--save-every", "nan"], "--save-every", "nan"),
    ],
)
def test_a_value_out_of_range(
    call: Call, tmp_path: Path, arguments: list[str], flag: str, value: str
) -> None:
    sentence = refused(call("--preset", "smoke", *arguments))
    assert sentence.startswith(f"{flag} {value}")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("value", ["many", "1.5", "", "1e3"])
def test_a_value_of_another_type(call: Call, tmp_path: Path, value: str) -> None:
    answer = call("--epochs", value)
    assert answer.code == 2
    assert "--epochs" in answer.error
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--resume"], "no run in runs/tiny/quick"),
        (["--resume", "--run-dir", "nowhere"], "no run in nowhere"),
        (["--predict", "1", "2", "--run-dir", "nowhere"], "no run in nowhere"),
        (["--load-params", "nowhere"], "no run in nowhere"),
        (
            ["--keep", "best", "--monitor", "validation.los"],
            "--monitor validation.los: not logged here",
        ),
    ],
)
def test_what_is_not_there(
    call: Call, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    assert expected in refused(call(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_change_has_to_be_allowed(call: Call, finished: Path, tmp_path: Path) -> None:
    before, where = contents(finished), ["--run-dir", finished]
    same = refused(call(*where, "--preset", "smoke"))
    assert "already holds a run of this config" in same
    changed = refused(call(*where, "--resume", "--rate", "0.1", "--keep", "best"))
    assert "rate: 0.05 there, 0.1 here" in changed
    assert "keep: 'last' there, 'best' here" in changed
    assert "--allow-change" in changed
    preset = refused(call(*where, "--resume", "--preset", "full"))
    assert "preset: 'smoke' there, 'full' here" in preset
    assert contents(finished) == before
    shutil.copytree(finished, tmp_path / "run")
    longer = ["--run-dir", "run", "--resume", "--epochs", 4, "--allow-change"]
    assert call(*longer).code == 0
    config, result = (
        json.loads((tmp_path / "run" / f"{name}.json").read_text())
        for name in ("config", "result")
    )
    assert (config["config"]["epochs"], result["steps"]) == (4, 12)


def test_without_an_interval_the_values_are_printed(
    capsys: Said,
) -> None:
    metrics = {
        "few": {"mean": 1.5, "low": None, "high": None, "n": 2, "of": "seeds",
                "values": [1.0, 2.0]},
        "lost": {"mean": None, "low": None, "high": None, "n": 2, "of": "seeds",
                 "values": [1.0, None]},
    }  # fmt: skip
    times = {"wall_s": 1.0, "compile_s": 0.5, "train_s": 0.2, "steps": 3}
    terminal.print_result("tiny", {"metrics": metrics, **times}, Path("run"))
    lines = capsys.readouterr().out.splitlines()
    few, lost = (next(x for x in lines if name in x) for name in metrics)
    assert [c.strip() for c in few.strip("│").split("│")] == [
        "few", "1.5", "(each: 1, 2)", "2 seeds"
    ]  # fmt: skip
    assert [c.strip() for c in lost.strip("│").split("│")] == [
        "lost", "not finite", "(each: 1, -)", "2 seeds"
    ]  # fmt: skip


def test_a_finished_run_prints_its_result_again(call: Call, finished: Path) -> None:
    before = contents(finished)
    answer = call("--resume", "--run-dir", finished)
    assert answer.code == 0
    assert "was finished before" in answer.out
    assert "loss 0" in answer.out
    assert contents(finished) == before


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


def test_loaded_parameters_and_those_alone_predict_the_same(
    call: Call, finished: Path
) -> None:
    begin = ["--load-params", finished, "--rate", 1e-30, "--epochs", 1]
    assert call("--run-dir", "next", *begin).code == 0
    alone = ["--run-dir", "params", "--preset", "smoke", "--save", "params"]
    assert call(*alone).code == 0
    folders = (finished, "next", "params")
    said = {call("--predict", 1, 2, "--run-dir", folder).out for folder in folders}
    assert len(said) == 1
    (Path("params") / "result.json").unlink()
    assert "--save params" in refused(call("--resume", "--run-dir", "params"))


@pytest.mark.parametrize("values", [["1"], ["1", "x"], ["1", "2", "3"]])
def test_what_cannot_be_predicted_from(
    call: Call, finished: Path, values: list[str]
) -> None:
    answer = call("--run-dir", finished, "--predict", *values)
    assert answer.code == 2
    assert answer.out == ""


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


def test_what_the_system_refuses_is_not_the_users_error(
    capsys: Said,
) -> None:
    def read(code: int) -> Callable[[], None]:
        def work() -> None:
            try:
                raise OSError(code, os.strerror(code), "t.csv")
            except OSError as error:
                raise UserError(f"t.csv cannot be read: {error.strerror}") from error

        return work

    assert cli.exit_code(read(errno.EMFILE)) == 1
    assert cli.exit_code(read(errno.ENOENT)) == 2
    assert capsys.readouterr().err.count("error: t.csv cannot be read") == 2


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--run-dir", ""],
        ["--run-dir="],
        ["--load-params", "", "--preset", "smoke"],
    ],
)
def test_a_path_that_is_empty(call: Call, tmp_path: Path, arguments: list[str]) -> None:
    flag = arguments[0].rstrip("=")
    assert refused(call(*arguments)) == f"{flag} is empty: it takes a path"
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_not_utf8(call: Call, tmp_path: Path) -> None:
    answer = call("--run-dir", os.fsdecode(b"caf\xe9"), "--preset", "smoke")
    assert refused(answer) == (
        r"the run folder caf\udce9 has a name that is not UTF-8: checkpoints need one"
    )
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf8_are_printed(
    monkeypatch: Patch, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.exit_code(lambda: print(os.fsdecode(b"caf\xe9 "), "caf\u00e9")) == 0
    assert (tmp_path / "out").read_bytes() == rb"caf\udce9  caf\xe9" + b"\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": {"loss": {"mean": "x"}}}'])
def test_a_damaged_result_is_made_again(call: Call, finished: Path, text: str) -> None:
    shutil.copytree(finished, "run")
    Path("run/result.json").write_text(text)
    answer = call("--run-dir", "run", "--resume")
    assert answer.code == 0
    assert "run/result.json cannot be read: " in answer.error
    results = [json.loads((f / "result.json").read_text())["metrics"]
               for f in (Path("run"), finished)]  # fmt: skip
    assert results[0] == results[1]


def test_metrics_are_named_as_they_are(capsys: Said) -> None:
    times = {"steps": 1, "wall_s": 1.0, "compile_s": 0.5, "train_s": 0.5}
    terminal.print_result(
        "tiny", {"metrics": {"class [/x] :bug:": 0.5}, **times}, Path("run")
    )
    assert "class [/x] :bug:" in capsys.readouterr().out  # no markup of rich


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/c"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "c"}, "/h/.cache"),  # as its standard says
        ({"HOME": "/h"}, "/h/.cache"),
        ({"HOME": ""}, None),
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


def test_what_nobody_expected_is_not_hidden() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.exit_code(work)


# python -m jaxstudy


STUDY = """
import sys
from pathlib import Path
from jaxstudy import __main__ as program
program.ROOT = Path(sys.argv[1])
program.study(program.StudyCommand("smoke", Path(sys.argv[2])))
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
    from jaxstudy import __main__ as program

    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "write_report", lambda runs: runs / "report.html")
    runs, lessons = tmp_path / "runs", tmp_path / "experiments"
    lessons.mkdir()
    (lessons / "ch1_waits.py").write_text(LESSON)
    (tmp_path / "study.py").write_text(STUDY)

    def study() -> int:
        return cli.exit_code(lambda: program.study(program.StudyCommand("smoke", runs)))

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
    from jaxstudy import __main__ as program

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
    program.study(program.StudyCommand("smoke", tmp_path / "runs"))
    lines = capfd.readouterr().out.splitlines()
    kept = [x for x in lines if x.startswith(("== ", "fetching", "1 of"))]
    assert [x.split()[1 if x[0] == "=" else 0] for x in kept] == [
        "ch1_b", "ch1_a", "fetching", "1", "ch2_a"
    ]  # fmt: skip


def test_a_report_that_fails_stops_no_study(
    tmp_path: Path, capsys: Said, monkeypatch: Patch
) -> None:
    from jaxstudy import __main__ as program

    def write_report(runs: Path) -> Path:
        raise ZeroDivisionError("in a chart")

    program.refresh(tmp_path)  # where no run is yet
    monkeypatch.setattr(program, "write_report", write_report)
    program.refresh(tmp_path)
    assert capsys.readouterr().out.count("no report yet: ") == 2


@pytest.mark.parametrize("words", [["report", ""], ["study", "--runs", ""]])
def test_an_empty_folder_of_runs(
    words: list[str],
    capsys: Said,
    monkeypatch: Patch,
    tmp_path: Path,
) -> None:
    from jaxstudy import __main__ as program

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jaxstudy", *words])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert capsys.readouterr().err == "error: a path on the command line is empty\n"
    assert list(tmp_path.iterdir()) == []


# lesson 1.4, whose table is the user's


@pytest.fixture
def admission(ask: Ask, monkeypatch: Patch, tmp_path: Path) -> Call:
    return here(ask, load("experiments", "ch1_admission"), monkeypatch, tmp_path)


TABLE = "admit,gre,gpa,rank\n" + "1,500,3.1,2\n0,600,2.9,3\n" * 6


@pytest.mark.parametrize(
    ("text", "expected"),  # of more, in test_tabular.py
    [
        ("", "t.csv is empty"),
        (TABLE.replace("gpa", "gap"), "t.csv: column 'gpa' is missing"),
        (
            TABLE + "1,abc,3,1\n",
            "t.csv, row 13 (line 14), column 'gre': 'abc' is not a number",
        ),
        (TABLE.replace("\n0", "\n1"), "t.csv: column 'admit' is 1 in every row"),
        (None, "t.csv cannot be read: No such file or directory"),
    ],
)
def test_a_bad_table(
    admission: Call, tmp_path: Path, text: str | None, expected: str
) -> None:
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    before = contents(tmp_path)
    sentence = refused(admission("--csv", "t.csv", "--preset", "smoke"))
    assert sentence.startswith(expected)
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--folds", "1"], "--folds 1"),
        (["--folds", "13"], "--folds 13"),
        (["--folds", "500"], "--folds 500"),
        (["--hidden", "0"], "--hidden 0"),
    ],
)
def test_folds_and_layers_that_cannot_be(
    admission: Call, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    before = contents(tmp_path)
    sentence = refused(admission("--csv", "t.csv", "--preset", "smoke", *arguments))
    assert sentence.startswith(expected)
    assert contents(tmp_path) == before


def test_a_command_line_may_be_empty() -> None:
    assert cli._given([]) == {}
    assert cli._given(["--epochs=3", "--resume"]) == {"epochs": "3", "resume": ""}
