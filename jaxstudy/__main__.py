"""`python -m jaxstudy`: run the lessons, make the report."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxstudy.cli import guarded
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


def run_to_its_end(command: list[str]) -> int:
    """Run a program; on a signal, let it save and stop before this one does."""
    child = subprocess.Popen(command)
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
    """Run the experiments one after the other; name those that failed at the end."""
    failed = []
    scripts = sorted((ROOT / "experiments").glob("ch*.py"))
    if command.preset == "full":
        scripts.append(ROOT / "benchmarks" / "optimizers.py")
    for script in scripts:
        folder = command.runs / script.stem / command.preset
        arguments = ["--preset", command.preset, "--run-dir", str(folder)]
        if (folder / "config.json").exists():
            arguments.append("--resume")
        print(f"\n== {script.stem} ({command.preset})", flush=True)
        code = run_to_its_end([sys.executable, str(script), *arguments])
        if code >= 128 or code < 0:
            print(f"{script.stem} was stopped; the same command goes on")
            sys.exit(code if code > 0 else 128 - code)
        if code:
            failed.append(script.stem)
    page = write_report(command.runs)
    print(f"\nreport: {page}")
    if failed:
        raise UserError(f"{len(failed)} of {len(scripts)} failed: {', '.join(failed)}")


def main() -> None:
    """Parse and run."""
    choice = tyro.cli(
        Annotated[Study, tyro.conf.subcommand("study")]
        | Annotated[Report, tyro.conf.subcommand("report")],
        prog="jaxstudy",
        description="A deep-learning course as executable JAX research code.",
    )  # type: ignore[call-overload]

    def work() -> None:
        if isinstance(choice, Study):
            study(choice)
        else:
            print(write_report(choice.runs))

    sys.exit(guarded(work))


if __name__ == "__main__":
    main()
