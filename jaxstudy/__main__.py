"""`python -m jaxstudy`: run the lessons, make the report."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional
from tyro.extras import subcommand_cli_from_dict

from jaxstudy.data.fetch import STEPS, fetch
from jaxstudy.data.sources import NOTES
from jaxstudy.runs.cli import exit_code
from jaxstudy.runs.export import export_run
from jaxstudy.runs.lesson import load_script
from jaxstudy.runs.locks import locked, write_holder
from jaxstudy.runs.pages import ROOT
from jaxstudy.runs.report import write_report
from jaxstudy.study.shares import join_shares
from jaxstudy.types import UserError

# The commands: what follows `python -m jaxstudy` are their parameters.


def data() -> None:
    """Fetch the data sets and weights that the lessons read, into .data."""
    try:
        missing = fetch(STEPS)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        sys.exit(130)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(STEPS)} are missing: {', '.join(missing)}"
        )


def study(
    preset: Literal["smoke", "quick", "full"] = "quick", runs: Path = Path("runs")
) -> None:
    """Run every experiment at one preset, go on with those begun, and report.

    The data sets are fetched before the first lesson that needs any. At full, the
    benchmark of optimizers is run too. Those that failed are named at the end, and
    those that lack data, with the command that brings them.

    Args:
        preset: smoke: seconds each. quick: about a minute each. full: the README's
            figures.
        runs: Where the run folders are.
    """
    # raises Refused where another study, or what it left running, is at work there
    with locked(runs / "study.lock") as lock:
        run_all(preset, runs, lock)


def join(shares: Positional[tuple[Path, ...]], out: Path = Path("runs/joined")) -> None:
    """Join the shares of a study (--share I/N) into the run that one job would make.

    Args:
        shares: Their run folders, all of them, in any order.
        out: The run folder to write.
    """
    script = str(script_of(join_shares(shares, out)))
    command = [sys.executable, script, "--resume", "--run-dir", str(out)]
    if code := subprocess.call(command):
        sys.exit(code)


def export(run: Positional[Path], out: Path, batch_size: int | None = None) -> None:
    """Write what a run predicts, weights included, to a file that JAX alone reads.

    It computes on a CPU, an NVIDIA GPU or a TPU.

    Args:
        run: The run folder, of a lesson that has a model to export.
        out: The file to write; it must not exist.
        batch_size: How many examples the exported function takes at once; any number
            unless set.
    """
    load = lambda name: load_script(script_of(name))  # noqa: E731
    print(export_run(run, out, batch_size, load))


def make_report(runs: Positional[Path] = Path("runs")) -> None:
    """Write report.html over all runs under a folder.

    Args:
        runs: Where the run folders are.
    """
    print(write_report(runs))


COMMANDS = {"data": data, "study": study, "join": join, "export": export,
            "report": make_report}  # fmt: skip


def main() -> None:
    """Parse and run."""

    def work() -> None:
        if "" in sys.argv:
            raise UserError("a path on the command line is empty")
        subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxstudy",
            description="A deep-learning course as executable JAX research code.",
        )

    sys.exit(exit_code(work))


# What they do


def script_of(experiment: str) -> Path:
    """The script of an experiment. Raises UserError where there is none."""
    for folder in ("experiments", "benchmarks"):
        path = ROOT / folder / f"{experiment}.py"
        if path.is_file():
            return path
    raise UserError(f"there is no script {experiment}.py of that run")


def with_bytecode(folder: str) -> dict[str, str]:
    """The environment of a lesson: modules are compiled for the first one alone.

    Also where Python is to keep no bytecode beside the sources, as in many containers,
    which costs each process seconds: then it is kept in a folder of the study.
    """
    if not sys.dont_write_bytecode:
        return dict(os.environ)
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": folder}


def run_to_its_end(
    script: Path, arguments: list[str], lock: Any, environment: dict[str, str]
) -> int:
    """Run a program; on a signal, let it save and stop before this one does.

    It holds the study's lock too: killed, this one leaves it running, and the next must
    know.
    """
    child = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=environment,
        pass_fds=[lock.fileno()],
    )
    write_holder(lock, {"study": os.getpid(), script.stem: child.pid})
    previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the terminal sent it to the child as well
                continue
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_all(preset: str, runs: Path, lock: Any) -> None:
    """Run the experiments, holding the lock of their folder."""
    with tempfile.TemporaryDirectory() as scratch:
        run_each(preset, runs, lock, Path(scratch))


def run_each(preset: str, runs: Path, lock: Any, scratch: Path) -> None:
    """Run them one after the other; into `scratch` goes what need not be kept.

    In `notes` a lesson says which data it lacks, if that is why it stopped.
    """
    environment = with_bytecode(str(scratch / "bytecode"))
    failed, lacking = [], {}
    page = runs / "report.html"
    print(f"the report, written anew after each lesson: {page}", flush=True)
    scripts = sorted((ROOT / "experiments").glob("ch*.py"), key=place_in_course)
    if preset == "full":
        scripts.append(ROOT / "benchmarks" / "optimizers.py")
    fetched = False
    for script in scripts:
        if script is not scripts[0]:
            refresh(runs)
        if not fetched and not script.stem.startswith("ch1"):  # which needs none
            fetched = True
            try:
                data()
            except UserError as error:
                print(error)
        folder = runs / script.stem / preset
        arguments = ["--preset", preset, "--run-dir", str(folder)]
        if (folder / "config.json").exists():
            arguments.append("--resume")
        if (folder / "run.lock").exists():
            with locked(folder / "run.lock"):  # or say who is at work there
                pass
        print(f"\n== {script.stem} ({preset})", flush=True)
        notes = scratch / f"{script.stem} lacks"
        noting = environment | {NOTES: str(notes)}
        code = run_to_its_end(script, arguments, lock, noting)
        note = notes.read_text() if notes.exists() else ""
        if code >= 128 or code < 0:
            print(f"{script.stem} was stopped; the same command goes on")
            sys.exit(code if code > 0 else 128 - code)
        if code and note:
            lacking[script.stem] = note
        elif code:
            failed.append(script.stem)
    if lacking:
        print("\nmissing data:")
        for name, note in lacking.items():
            print(f"  {name}: {note}")
    print(f"\nreport: {write_report(runs)}")
    if failed:
        raise UserError(f"{len(failed)} of {len(scripts)} failed: {', '.join(failed)}")


def place_in_course(script: Path) -> tuple[bool, str, str]:
    """A sort key: the number of the lesson that a script says it is, or the last."""
    number = re.search(r'\bnumber="([^"]+)"', script.read_text(encoding="utf-8"))
    return number is None, number[1] if number else "", script.stem


def refresh(runs: Path) -> None:
    """Write the report of the runs so far; what is wrong with it stops no study."""
    try:
        write_report(runs)
    except Exception as error:  # whatever it is, the lessons are worth more
        print(f"no report yet: {error!r}")


if __name__ == "__main__":
    main()
