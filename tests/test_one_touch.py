"""What is added in one place is found everywhere.

An image set is added in test_builders.py, a lesson in test_benchmarks.py.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import optax
import pytest

from jaxstudy.optimizers import OPTIMIZERS, LogUniform, Optimizer
from jaxstudy.runs.report import write_report
from jaxstudy.runs.run import open_run
from jaxstudy.runs.saved import Options
from tests.conftest import load


def test_an_optimizer_is_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark takes, tunes, compares and draws it; the report shows it."""
    toy = Optimizer(
        make=lambda rate: optax.sgd(rate),
        rate=0.1,
        rule="w - rate g",
        source="this test",
        space={"rate": LogUniform(0.01, 1.0)},
    )
    monkeypatch.setitem(OPTIMIZERS, "toy", toy)
    script: Any = load("benchmarks", "optimizers")
    assert "toy" in script.Config().optimizers
    config = dataclasses.replace(
        script.PRESETS["smoke"], optimizers=("sgd", "toy"), problems=("quadratic",),
        epochs=1,
    )  # fmt: skip
    folder = tmp_path / "optimizers" / "quick"
    with open_run(folder, "optimizers", "quick", config, Options()) as run:
        script.main(config, run)
    record = json.loads((folder / "study.json").read_text())
    assert set(record["optimizers"]) == {"sgd", "toy"}
    assert {cell["optimizer"] for cell in record["cells"]} == {"sgd", "toy"}
    write_report(tmp_path)
    assert "toy" in (tmp_path / "report.html").read_text()
