"""Lesson 5: its data, its pictures, resuming, samples from a saved run, bad input."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxstudy.data.sources import MissingData
from jaxstudy.models.cnn import cnn
from jaxstudy.models.dcgan import NOISE
from jaxstudy.runs import cli
from jaxstudy.runs.run import read_saved
from jaxstudy.runs.statistics import frechet_distance
from tests.conftest import Smoke, contents, load

lesson: Any = load("experiments", "ch5_gan")
NOTHING = "runs/no-such-folder"


def run(patch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> Any:
    """The exit code of the lesson at smoke in a folder, in this process."""
    argv = ["ch5_gan.py", "--preset", "smoke", "--run-dir", str(folder)]
    patch.setattr(sys, "argv", [*argv, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.experiment(lesson.main, lesson.PRESETS, sample=lesson.sample)
    return ended.value.code


@pytest.fixture(scope="module")
def smoke(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run at smoke."""
    copy = tmp_path_factory.mktemp("gan") / "run"
    return Path(shutil.copytree(smoke("ch5_gan"), copy))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_a_run_shows_all_that_the_lesson_promises(smoke: Path) -> None:
    assert {path.stem for path in (smoke / "figures").iterdir()} == {
        "accuracy", "classes", "interpolation", "intervals", "losses", "nearest",
        "sizes", "variants",
    }  # fmt: skip
    assert {path.name for path in (smoke / "samples").iterdir()} == {
        "epoch_000.png", "epoch_001.png", "epoch_002.png", "training.gif",
    }  # fmt: skip
    grids = [pixels_of(smoke / "samples" / f"epoch_00{i}.png") for i in range(3)]
    assert {grid.shape for grid in grids} == {(5 * 18 - 2 + 16, 10 * 18 - 2)}
    assert not np.array_equal(grids[0][16:], grids[2][16:])  # without the caption
    with Image.open(smoke / "samples" / "training.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
    metrics = result_of(smoke)
    assert metrics["size formula: largest difference"] == 0
    what = "Frechet distance of this CNN's features"
    saved = read_saved(smoke, lesson.Config, "ch5_gan")
    shapes = jax.eval_shape(cnn((28, 28, 1), 10).init, jax.random.key(0))
    like = dict(zip(("params", "extra"), shapes, strict=True))
    judge = saved.weights(like, "classifier")["params"]
    data = lesson.load(saved.config)
    new, test = (
        lesson.classifier_features(judge, lesson.pixels(part)).features
        for part in (data.held_out, data.test)
    )
    distance = frechet_distance(new, test)
    assert metrics[f"new images: {what}"] == pytest.approx(distance, rel=1e-6)
    for name in ("generated images", "untrained generator", "noise"):
        assert metrics[f"{name}: {what}"] > distance
    for name in ("generated", "new"):
        away = metrics[f"{name} images: distance to the nearest training image"]
        assert (away["n"], away["of"]) == (32, "images")
    for name in ("alternating", "real first"):
        for measured in ("accuracy on real", "accuracy on fake", "Frechet distance"):
            assert metrics[f"{name}: {measured}"]["of"] == "seeds"
    paired = metrics["real first - alternating: Frechet distance"]
    one, other = (
        metrics[f"{name}: Frechet distance"]["mean"]
        for name in ("real first", "alternating")
    )
    assert paired["mean"] == pytest.approx(one - other, abs=1e-9)
    # checkpoints of the experiment are not kept: its result is in the metrics
    assert {p.name for p in (smoke / "checkpoints").iterdir()} == {"gan", "classifier"}


class Crash(Exception):
    """Stands for a kill: nothing of the program expects it."""


def test_a_killed_run_ends_with_the_same_numbers_and_pictures(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as the second epoch's samples are made, before its checkpoint.

    Without the experiment at the end, whose step is resumed in test_adversarial.
    """
    monkeypatch.setattr(lesson, "compare_variants", lambda *_: {})
    generate, calls = lesson.generate, []

    def crashing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise Crash
        return generate(*args)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(lesson, "generate", crashing)
        patch.setattr(sys, "argv", ["ch5_gan.py", "--preset", "smoke", "--run-dir",
                                    str(folder), "--save-every", "0"])  # fmt: skip
        with pytest.raises(Crash):
            cli.experiment(lesson.main, lesson.PRESETS, sample=lesson.sample)
    assert not (folder / "samples" / "epoch_002.png").exists()
    assert run(monkeypatch, folder, "--resume") == 0
    assert contents(folder / "samples") == contents(smoke / "samples")
    found, whole = result_of(folder), result_of(smoke)
    assert "generated images: top probability" in found
    assert found == {name: whole[name] for name in found}
    rows, others = ((f / "metrics.jsonl").read_text() for f in (folder, smoke))
    assert '"gan"' in rows
    assert others.startswith(rows)


def test_samples_from_the_saved_run(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(smoke)
    assert run(monkeypatch, smoke, "--sample", 5) == 0
    path = smoke / "samples" / "sample_of_5_by_seed_0.png"
    assert capsys.readouterr().out == f"written to {path}\n"
    picture = path.read_bytes()
    assert pixels_of(path).shape == (2 * 18 - 2, 3 * 18 - 2)
    assert run(monkeypatch, smoke, "--sample", 5) == 0
    assert path.read_bytes() == picture
    saved = read_saved(smoke, lesson.Config, "ch5_gan")
    other = dataclasses.replace(saved.config, seed=1)
    lesson.sample(dataclasses.replace(saved, config=other), 5)
    another = smoke / "samples" / "sample_of_5_by_seed_1.png"
    assert another.read_bytes() != picture
    for made in (path, another):
        made.unlink()
    assert contents(smoke) == before


@pytest.mark.parametrize("count", [0, -3, 10_001])
def test_a_number_of_samples_that_cannot_be_drawn(
    count: int,
    smoke: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(smoke)
    assert run(monkeypatch, smoke, f"--sample={count}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --sample makes 1 to 10,000 images, not {count:,}"
    assert contents(smoke) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--image-size", "8"), "16, 32, 48, ... pixels a side, not of 8 by 8"),
        (("--variant-size", "40"), "pixels a side, not of 40 by 40"),
        (("--channels", "2"), "images have 1 or 3 channels, not 2"),
        (("--data", "fashion"), "did you mean 'fashion_mnist'"),
        (("--folder", NOTHING), NOTHING),
        (("--variants", "real frist"), "real first"),
        (("--rate", "0"), "--rate 0"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_no_trace(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, tmp_path / "run", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_data_is_told_with_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise MissingData("no images: `make data` brings them")

    monkeypatch.setattr(lesson, "read_images", missing)
    assert run(monkeypatch, tmp_path / "run") == 2
    assert capsys.readouterr().err == "error: no images: `make data` brings them\n"


# A folder of one's own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty coloured pictures of two classes, of two sizes."""
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            x = rng.integers(0, 256, (20 + i, 24, 3)).astype(np.uint8)
            Image.fromarray(x).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_pictures_is_brought_to_the_networks(
    folder: Path, channels: int
) -> None:
    """To their size, and to grey or colour; no picture is in two of the sets."""
    smoke = lesson.PRESETS["smoke"]
    config = dataclasses.replace(
        smoke, folder=folder, channels=channels, images=None, held_out=3
    )
    data = lesson.load(config)
    assert data.classes == ("cats", "dogs")
    for part, count in ((data.train, 32), (data.held_out, 3), (data.test, 3)):
        assert part.arrays["x"].shape == (count, 16, 16, channels)
        assert part.arrays["x"].dtype == np.uint8
        assert part.arrays["row"].tolist() == list(range(count))
    every = [x.tobytes() for part in data[:3] for x in lesson.pixels(part)]
    assert len(set(every)) == len(every)


def test_no_count_is_larger_than_what_there_is_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder of forty, with what the preset asks of 60,000."""
    config = dataclasses.replace(lesson.PRESETS["quick"], folder=folder, image_size=16)
    fitted = lesson.fitted_to(config, lesson.load(config))
    assert (fitted.batch_size, fitted.variant_images, fitted.held_out) == (32, 32, 4)
    assert capsys.readouterr().err.splitlines() == [
        "warning: --images 6000: there are only 32 images to train on, so it is 32",
        "warning: --batch-size 64: there are only 32 images to learn from, so it is 32",
        "warning: --variant-images 640: there are only 32 images to learn from, "
        "so it is 32",
        "warning: --held-out 500: there are only 4 held-out images, so it is 4",
    ]


def test_faults_in_a_folder_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cats" / "broken.png").write_bytes(b"none")
    config = dataclasses.replace(lesson.PRESETS["smoke"], folder=folder, images=None)
    assert len(lesson.load(config).train.indices) == 32
    assert "broken.png" in capsys.readouterr().err


def test_images_of_one_class_are_judged_without_the_cnn(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in (folder / "dogs").iterdir():
        path.unlink()
    (folder / "dogs").rmdir()
    words = ("--folder", folder, "--images", "16", "--channels", "3")
    made = run(monkeypatch, tmp_path / "run", *words, "--variants", "mixed")
    assert made == 0
    assert "of one class: no CNN can judge them" in capsys.readouterr().err
    names = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert "classes" not in names
    assert {"nearest", "variants", "intervals"} <= names
    metrics = result_of(tmp_path / "run")
    assert not [name for name in metrics if "Frechet" in name or "CNN" in name]
    assert metrics["mixed: accuracy on real"]["n"] == 2
    grid = pixels_of(tmp_path / "run" / "samples" / "epoch_001.png")
    assert grid.shape[-1] == 3


# The small things


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (4, 2), (7, 2)])
def test_the_size_formula(kernel: int, padding: int, stride: int) -> None:
    """A transposed convolution makes of n rows what a convolution makes n of."""
    made = lesson.enlarged(5, kernel, stride, padding)
    assert (made + 2 * padding - kernel) // stride + 1 == 5
    assert lesson.rows_made(5, kernel, stride, padding) == made
    if kernel >= stride:
        assert lesson.rows_made(5, kernel, stride, "SAME") == 5 * stride


def test_every_use_of_randomness_has_a_key_of_its_own() -> None:
    configs = [lesson.Config(seed=seed) for seed in (0, 1)]
    keys = {
        jax.random.key_data(lesson.key_for(config, use)).tobytes()
        for config in configs
        for use in lesson.USES
    }
    assert len(keys) == 2 * len(lesson.USES)
    with pytest.raises(ValueError, match="not in tuple"):
        lesson.key_for(configs[0], "something else")


def test_interpolation_goes_from_one_draw_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def generate(g: Any, params: Any, extra: Any, z: Any) -> Any:
        seen.append(np.asarray(z))
        return np.zeros((len(z), 2, 2, 1), np.uint8)

    monkeypatch.setattr(lesson, "generate", generate)
    monkeypatch.setattr(lesson.plots, "save_images", lambda *_: None)
    lesson.draw_interpolation(lesson.Config(), None, None, None, None)
    ways = seen[0].reshape(4, lesson.COLUMNS, NOISE)
    assert np.abs(ways).max() <= 1
    assert len(np.unique(ways[:, [0, -1]].reshape(8, NOISE), axis=0)) == 8
    steps = np.diff(ways, axis=1)
    np.testing.assert_allclose(steps, steps[:, :1].repeat(steps.shape[1], 1), atol=1e-6)
