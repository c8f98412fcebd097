"""The command line of every experiment, and `python -m jaxstudy`.

An experiment is a module with a frozen dataclass of settings, presets of it, and
`main(config, run) -> metrics`; `experiment(main, PRESETS)` makes it a program.
"""

import contextlib
import dataclasses
import errno
import inspect
import io
import os
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from jaxstudy import processes
from jaxstudy.data.sources import MissingData
from jaxstudy.messages import did_you_mean, warn
from jaxstudy.parallel import usable_cores
from jaxstudy.runs import terminal
from jaxstudy.runs.environment import keep_freed_memory, set_xla_flags
from jaxstudy.runs.files import Result, read_json
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Stopped, open_run
from jaxstudy.runs.saved import Options, Saved, file_hashes, read_saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.types import UserError

Count = Annotated[int, pydantic.Field(ge=1)]  # a setting that must be 1 or more
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every experiment's settings have."""

    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Fixes the weights, the data order and everything else that is random."""


Main = Callable[[Any, Run], Mapping[str, Any]]
Actions = Mapping[str, Callable[..., None]]  # (saved, value) -> None, by option


@dataclasses.dataclass(frozen=True)
class Command:
    """What every experiment takes beside its settings."""

    preset: Literal["smoke", "quick", "full"] = "quick"
    """smoke: seconds. quick: a minute. full: the README's."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder of the run (default: runs/NAME/PRESET)."""
    resume: bool = False
    """Go on with the run in RUN_DIR, by its config."""
    allow_change: bool = False
    """Resume even if the settings differ."""
    all: bool = False
    """Print every metric, not the dozen that matter most."""
    heartbeat: int = 60
    """Seconds until the other processes end when one of several has died."""


def experiment(
    main: Main,
    presets: Mapping[str, Settings],
    lesson: Lesson | None = None,
    **actions: Any,
) -> None:
    """Parse the command line, hold the run folder, run `main`, write its result.

    It begins with the lesson's question, and ends with what became of its claims.

    Each action becomes an option that works on a saved run instead of training: its
    second parameter's type says what the option takes.
    """

    def work() -> None:
        if processes.find_launch(os.environ):
            given = _given(sys.argv[1:])
            _prepare_jax("deterministic" in given)  # joining starts JAX
            heartbeat = given.get("heartbeat", "")
            processes.join_processes(int(heartbeat) if heartbeat.isdecimal() else 60)
        _experiment(main, presets, lesson, actions)

    try:
        code = exit_code(work)
    except Exception:
        if not processes.are_several():
            raise
        traceback.print_exc()
        code = 1
    if code and processes.are_several():
        processes.leave(code)
    if code > 128:  # all is saved, and XLA may still compile: an exit tears it down
        os._exit(code)
    sys.exit(code)


# What no other argument would help against.
SYSTEM_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK,
}  # fmt: skip


def exit_code(work: Callable[[], None]) -> int:
    """Run something; the exit code: 2 for what the user can put right.

    It is 1 for what the system refuses: space, files, memory, a reader of the output.
    """
    for stream in (sys.stdout, sys.stderr):  # names may not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = _exit_code(work)
    if sys.stdout is None:  # closed from the start
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _complain(f"error: the output cannot be written: {_refusal(error)}")
        # what is left of the output has nowhere to go, nor may it at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    return code


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except UserError as error:
        _complain(f"error: {error}")
        if isinstance(error, MissingData):
            error.note()
        cause = error.__cause__
        refused = isinstance(cause, OSError) and cause.errno in SYSTEM_ERRORS
        return 1 if refused else error.exit_code
    except Stopped as stopped:
        _complain(f"{stopped}; --resume goes on")
        return stopped.exit_code
    except BrokenPipeError:  # who read the output has left, and wants no more
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:  # of the parser, which has said why
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        _complain(f"error: {refusal}")
        return 1
    return 0


def _refusal(error: Exception) -> str | None:
    """What the system refused, in a sentence; None where the program is wrong."""
    if isinstance(error, OSError):
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n]
        return ": ".join([*names[-1:], error.strerror or str(error)])
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        detail = str(error).splitlines() or [""]
        return f"not enough memory: {detail[0][:200]}".removesuffix(": ")
    return None


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        print(sentence, file=sys.stderr, flush=True)


def _experiment(
    main: Main,
    presets: Mapping[str, Settings],
    lesson: Lesson | None,
    actions: Actions,
) -> None:
    module = inspect.getmodule(main)
    assert module is not None
    assert module.__file__ is not None
    name = Path(module.__file__).stem
    description = module.__doc__ or ""
    asked = processes.together(lambda: _parse(name, description, presets, actions))
    if asked.heartbeat < 1:
        raise UserError(f"--heartbeat {asked.heartbeat}: it takes 1 second or more")
    processes.check_same({"command line": repr(asked)})
    folder = asked.run_dir or _default_folder(name, asked.preset, asked.settings.seed)
    for action_name, action in actions.items():
        value = getattr(asked, action_name)
        if value is not None:
            if processes.are_several():
                raise UserError(f"--{action_name} is for one process")
            _validate(asked.settings)
            saved = read_saved(folder, type(asked.settings), name)
            return action(dataclasses.replace(saved, config=asked.settings), value)
    _validate(asked.settings, asked.saving)
    if asked.resume and processes.told(lambda: _already_finished(folder, name, asked)):
        return None
    if lesson:
        terminal.print_question(lesson)
    _prepare_jax(asked.saving.deterministic)
    with open_run(
        folder, name, asked.preset, asked.settings, asked.saving,
        resume=asked.resume, allow_change=asked.allow_change,
    ) as run:  # fmt: skip
        metrics = main(asked.settings, run)
        plain = {
            k: v.json() if isinstance(v, Estimate) else v for k, v in metrics.items()
        }
        result = run.finish(plain, lesson)
    terminal.print_result(name, result, folder, everything=asked.all)
    return None


def _already_finished(folder: Path, name: str, asked: Any) -> bool:
    """Print the result of a run that has one and was asked for nothing else."""
    saved: Saved[Any] = read_saved(folder, type(asked.settings), name)
    path = folder / "result.json"
    files = file_hashes(asked.settings, asked.saving)
    changed = saved.changes(asked.preset, asked.settings, asked.saving, files)
    if changed or not path.exists():
        return False
    try:
        result = read_json(path, Result)
    except UserError as error:
        warn(f"{error}; it is made again")
        return False
    terminal.print_result(name, result, folder, everything=asked.all)
    print(f"{folder} was finished before")
    return True


def _default_folder(name: str, preset: str, seed: int) -> Path:
    return Path("runs") / name / (preset if seed == 0 else f"{preset}-seed{seed}")


def _parse(
    name: str, description: str, presets: Mapping[str, Settings], actions: Actions
) -> Any:
    """What the command line asks for: a `Command`, with a field for each action.

    Defaults come from the preset asked for, or, to resume or to act on one, from the
    saved run.
    """
    argv = sys.argv[1:]
    takes = {
        action_name: list(typing.get_type_hints(action).values())[1]
        for action_name, action in actions.items()
    }
    kind = type(presets["quick"])
    given = _given(argv)
    hints = takes.copy()
    for options in (Command, kind, Options):
        hints |= typing.get_type_hints(options)
    _check_values(given, hints)
    preset = given.get("preset", "quick")
    settings, saving = presets[preset], Options()
    wants_help = bool({"-h", "--help"} & set(argv))
    if "resume" in given or (actions.keys() & given.keys() and not wants_help):
        seed = given.get("seed", "")
        folder = given.get("run_dir") or _default_folder(
            name, preset, int(seed) if seed.isdecimal() else 0
        )
        saved: Saved[Any] = read_saved(Path(folder), kind, name)
        preset, settings, saving = saved.preset, saved.config, saved.options
    fields: list[Any] = [("settings", kind, settings), ("saving", Options, saving)]
    for action_name, action in actions.items():
        help_text = inspect.getdoc(action) or ""
        words = (word.rstrip(",") for word in help_text.removesuffix(".").split())
        names = [word for word in words if word.isupper()]
        option = tyro.conf.arg(help=help_text, metavar=" ".join(names) or None)
        fields.append((action_name, Annotated[takes[action_name] | None, option], None))
    command = dataclasses.make_dataclass("_", fields, bases=(Command,), frozen=True)
    return tyro.cli(
        command,
        prog=f"{name}.py",
        description=description,
        default=command(preset=preset),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def _given(argv: Sequence[str]) -> dict[str, str]:
    """The options of a command line by field, each with the word after it."""
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") else [word]
    return {
        flag[2:].replace("-", "_"): value
        for flag, value in zip(words, [*words[1:], ""], strict=False)
        if flag.startswith("--")
    }


def _check_values(given: Mapping[str, str], hints: Mapping[str, Any]) -> None:
    """Name the nearest choice where an option got an unknown one; refuse no path.

    An empty one, of a variable that is not set, would be the folder one works in.
    """
    for field, value in given.items():
        hint, flag = hints.get(field), "--" + field.replace("_", "-")
        if not value and Path in (hint, *typing.get_args(hint)):
            raise UserError(f"{flag} is empty: it takes a path")
        choices = typing.get_args(hint)
        if typing.get_origin(hint) is Literal and value not in choices:
            listed = f"{flag} takes {', '.join(choices)}, not {value!r}"
            raise UserError(listed + did_you_mean(value, choices))


def _validate(*records: Any) -> None:
    """Raise UserError naming the first setting that is out of its range."""
    for record in records:
        try:
            pydantic.TypeAdapter(type(record)).validate_python(dict(vars(record)))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            flag = str(first["loc"][0]).replace("_", "-")
            raise UserError(
                f"--{flag} {first['input']}: {first['msg'].lower()}"
            ) from error


def _prepare_jax(deterministic: bool) -> None:
    """Keep compiled programs between processes, unless the user set a cache.

    And let each core be a device, so that replicas are shared among them: a small step
    keeps one core busy at most. On a GPU or TPU this changes nothing.
    deterministic: a GPU adds in a fixed order.
    """
    import jax

    keep_freed_memory()
    with contextlib.suppress(RuntimeError):  # JAX has started, with what it has
        if "device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", usable_cores())
        set_xla_flags(deterministic)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        caches = _caches()
        if caches is not None:
            jax.config.update("jax_compilation_cache_dir", f"{caches}/jaxstudy/xla")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _caches() -> Path | None:
    """The user's folder of caches; None where no environment variable says it well."""
    home = os.environ.get("HOME", os.path.expanduser("~"))  # which may stay "~"
    for place in (os.environ.get("XDG_CACHE_HOME", ""), home and f"{home}/.cache"):
        if os.path.isabs(place):
            return Path(place)
    return None
