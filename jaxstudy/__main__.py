"""`python -m jaxstudy`: run the lessons, make the report."""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxstudy.cli import guarded
from jaxstudy.data.fetch import STEPS, fetch
from jaxstudy.data.sources import NOTES
from jaxstudy.report import write_report
from jaxstudy.types import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Study:
    """Run every experiment at one preset, go on with those begun, and report.

    At full that includes the benchmark of optimizers.
    """

    preset: Literal["smoke", "quick", "full"] = "quick"
    """smoke: seconds each. quick: about a minute each. full: the README's figures."""
    runs: Path = Path("runs")
    """Where the run folders are."""


@dataclass(frozen=True)
class Report:
    """Write report.html over all runs under a folder."""

    runs: tyro.conf.Positional[Path] = Path("runs")
    """Where the run folders are."""


@dataclass(frozen=True)
class Data:
    """Fetch the data sets and weights that the lessons read, into .data."""


def data() -> None:
    """Fetch what is not there. Raises UserError at the end if something is missing."""
    try:
        missing = fetch(STEPS)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        sys.exit(130)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(STEPS)} are missing: {', '.join(missing)}"
        )


def run_to_its_end(command: list[str], notes: Path) -> int:
    """Run a program; on a signal, let it save and stop before this one does.

    Into `notes` it writes which data it lacks, if that is why it stopped.
    """
    child = subprocess.Popen(command, env=os.environ | {NOTES: str(notes)})
    previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the terminal sent it to the child as well
                continue
    finally:
        signal.signal(signal.SIGTERM, previous)


def study(command: Study) -> None:
    """Run the experiments one after the other; name those that failed at the end.

    One that lacks data has not failed: it is named with the command that brings them.
    """
    failed, lacking = [], {}
    scripts = sorted((ROOT / "experiments").glob("ch*.py"))
    if command.preset == "full":
        scripts.append(ROOT / "benchmarks" / "optimizers.py")
    for script in scripts:
        folder = command.runs / script.stem / command.preset
        arguments = ["--preset", command.preset, "--run-dir", str(folder)]
        if (folder / "config.json").exists():
            arguments.append("--resume")
        print(f"\n== {script.stem} ({command.preset})", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            notes = Path(scratch) / "missing"
            code = run_to_its_end([sys.executable, str(script), *arguments], notes)
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
    page = write_report(command.runs)
    print(f"\nreport: {page}")
    if failed:
        raise UserError(f"{len(failed)} of {len(scripts)} failed: {', '.join(failed)}")


def main() -> None:
    """Parse and run."""
    choice = tyro.cli(
        Annotated[Data, tyro.conf.subcommand("data")]
        | Annotated[Study, tyro.conf.subcommand("study")]
        | Annotated[Report, tyro.conf.subcommand("report")],
        prog="jaxstudy",
        description="A deep-learning course as executable JAX research code.",
    )  # type: ignore[call-overload]

    def work() -> None:
        if isinstance(choice, Data):
            data()
        elif isinstance(choice, Study):
            study(choice)
        else:
            print(write_report(choice.runs))

    sys.exit(guarded(work))


if __name__ == "__main__":
    main()
