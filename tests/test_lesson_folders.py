"""Lesson 2.2.1: what is lost, changed, planted and shared is counted."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxstudy.images import folders
from jaxstudy.runs import cli
from tests.conftest import Smoke, load
from tests.test_lesson_augmentation import make_folder

lesson: Any = load("experiments", "ch2_folders")


def test_counts_of_a_flat_folder(smoke: Smoke) -> None:
    folder = smoke("ch2_folders")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    zeros = ("files lost", "source files changed", "planted faults not found")
    assert [metrics[name] for name in (*zeros, "groups in both subsets")] == [0] * 4
    assert metrics["images missed or repeated in an epoch"] == 0
    flat = folder / "images" / "flat"
    assert len(list(flat.iterdir())) == metrics["files in the flat folder"]
    left_out = metrics["files left out by the rule"]
    assert left_out == 2 * lesson.TONES
    assert metrics["files in the flat folder"] == left_out + 2 * 9 * 4 + 3
    assert metrics["usable images"] == 2 * 9 * 4
    assert metrics["groups in both subsets, split file by file"] > 0


def test_what_goes_wrong_is_counted(
    smoke: Smoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sort that moves loses the source, and one that skips a file loses that."""
    monkeypatch.setattr(lesson, "make_flat", lambda flat, *_: flat_of(flat))

    def flat_of(flat: Path) -> dict[str, str]:
        source = smoke("ch2_folders") / "images" / "flat"
        flat.mkdir(parents=True)
        for path in sorted(source.iterdir())[:12]:
            (flat / path.name).write_bytes(path.read_bytes())
        return {"google-none.png": "zero bytes"}

    real = folders.sort_into_folders

    def moves(source: Path, target: Path, label_of: Any) -> None:
        first = sorted(p.name for p in source.iterdir() if label_of(p))[0]
        real(source, target, lambda p: None if p.name == first else label_of(p))
        (source / first).unlink()

    monkeypatch.setattr(folders, "sort_into_folders", moves)
    run: Any = type("Run", (), {"folder": tmp_path})
    _, found = lesson.sort_flat(run, lesson.PRESETS["smoke"])
    assert found["files lost"] == found["source files changed"] == 1
    assert found["planted faults not found"] == 1


def test_the_nearest_image_is_that_of_the_least_distance() -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)
    train, other = np.arange(0, 30, 2), np.arange(1, 30, 2)
    flat = x.reshape(30, -1).astype(float)
    apart = np.linalg.norm(flat[other, None] - flat[train], axis=-1)
    assert np.array_equal(lesson.nearest(x, train, other), train[apart.argmin(1)])


def test_a_folder_of_yours_needs_no_sorting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "images")
    argv = ["ch2_folders.py", "--preset", "smoke", "--folder", str(folder)]
    argv += ["--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        cli.experiment(lesson.main, lesson.PRESETS, lesson.LESSON)
    assert ended.value.code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["usable images"] == 40
    assert {claim["verdict"] for claim in result["claims"]} == {"undetermined"}
