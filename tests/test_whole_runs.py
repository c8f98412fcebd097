"""Every lesson at the smoke preset: what it writes.

Last of the files, when those of the lessons have made most of the runs: before, one
worker waited for what the other was making.
"""

import json

import matplotlib.image
import numpy as np
import pytest

from tests.conftest import ROOT, Smoke

SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("ch*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_preset_writes_a_whole_run(name: str, smoke: Smoke) -> None:
    folder = smoke(name)
    result = json.loads((folder / "result.json").read_text())
    assert result["experiment"] == name
    assert result["preset"] == "smoke"
    assert result["metrics"]
    assert json.loads((folder / "config.json").read_text())["experiment"] == name
    assert json.loads((folder / "environment.json").read_text())["packages"]["jax"]
    assert not (folder / "run.lock").exists()
    figures = list((folder / "figures").glob("*.png"))
    assert figures
    for figure in figures:  # not blank: a good share of pixels is not background
        pixels = matplotlib.image.imread(figure)[..., :3]
        assert np.mean(np.abs(pixels - pixels[0, 0]).sum(-1) > 0.1) > 0.01, figure
