"""Lesson 5: its data, pictures, resuming, samples, bad input, and its claims."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_gan
from PIL import Image
from small_gan import judge, painter

from jaxstudy import ops
from jaxstudy.data.sources import MissingData
from jaxstudy.dataset import dataset
from jaxstudy.gan import settings as gan_settings
from jaxstudy.gan import step as gan_step
from jaxstudy.gan.evaluation import FRECHET, classifier_features
from jaxstudy.gan.settings import USES, gan_pixels, key_for
from jaxstudy.gan.step import changes_of_the_other, init_gan_state, make_gan_step
from jaxstudy.models.cnn import cnn
from jaxstudy.models.dcgan import LATENT_SIZE
from jaxstudy.runs import cli
from jaxstudy.runs.lesson import judge_claim
from jaxstudy.runs.saved import read_saved
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    frechet_distance,
    mean_over_runs,
)
from tests.conftest import Patch, Said, Smoke, contents, load, run_script

lesson: Any = load("experiments", "ch5_gan")
orders: Any = load("experiments", "ch5_orders")
sizes: Any = load("experiments", "ch5_sizes")


def run(folder: Path, *arguments: object, module: Any = lesson) -> int:
    """The exit code of a script at smoke in a folder."""
    where = "--preset", "smoke", "--run-dir", folder
    return run_script(module, *where, *arguments, sample=lesson.sample)


@pytest.fixture(scope="module")
def smoke_run(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run at smoke."""
    copy = tmp_path_factory.mktemp("gan") / "run"
    return Path(shutil.copytree(smoke("ch5_gan"), copy))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_shows_all_that_the_lesson_promises(smoke_run: Path) -> None:
    names = "accuracy", "classes", "distance", "interpolation", "losses", "nearest"
    assert names_in(smoke_run / "figures") == {f"{name}.png" for name in names}
    samples = smoke_run / "samples"
    epochs = [f"epoch_00{i}.png" for i in range(3)]
    assert names_in(samples) == {*epochs, "training.gif"}
    grids = [pixels_of(samples / name) for name in epochs]
    assert {grid.shape for grid in grids} == {(5 * 66 - 2 + 16, 10 * 66 - 2)}
    assert not np.array_equal(grids[0][16:], grids[2][16:])  # without the caption
    with Image.open(samples / "training.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
    metrics = metrics_of(smoke_run)
    lines = (smoke_run / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["split"] == "generated"]
    logged = {record["epoch"]: record[FRECHET] for record in records}
    assert [*logged] == [1, 2]
    assert [metrics[f"after epoch 1: {FRECHET}"]] == logged[1]
    assert [metrics[f"generated images: {FRECHET}"]] == pytest.approx(logged[2])
    saved = read_saved(smoke_run, lesson.Config, "ch5_gan")
    shapes = jax.eval_shape(cnn((28, 28, 1), 10).init, jax.random.key(0))
    like = dict(zip(("params", "extra"), shapes, strict=True))
    classifier = saved.weights(like, "classifier")["params"]
    data = gan_settings.load(saved.config)
    distance = frechet_distance(
        *(
            classifier_features(classifier, gan_pixels(part)).features
            for part in (data.held_out, data.test)
        )
    )
    assert metrics[f"new images: {FRECHET}"] == pytest.approx(distance, rel=1e-6)
    for name in ("generated images", "untrained generator", "noise"):
        assert metrics[f"{name}: {FRECHET}"] > distance
    for name in ("generated", "new"):
        nearest = metrics[f"{name} images: distance to the nearest training image"]
        assert (nearest["n"], nearest["of"]) == (32, "images")


def test_the_orders_are_compared_over_seeds(smoke: Smoke) -> None:
    folder = smoke("ch5_orders")
    metrics = metrics_of(folder)
    for name in ("alternating", "real first"):
        for metric in ("accuracy on real", "accuracy on fake", "Frechet distance"):
            assert metrics[f"{name}: {metric}"]["of"] == "seeds"
    first, alternating = (
        metrics[f"{name}: Frechet distance"]["mean"]
        for name in ("real first", "alternating")
    )
    paired = metrics["real first - alternating: Frechet distance"]["mean"]
    assert paired == pytest.approx(first - alternating, abs=1e-9)
    for name in ("alternating", "real first"):
        assert metrics[f"{name}: factor of the rates"] == 1
    # checkpoints of the orders are not kept: their results are in the metrics
    assert names_in(folder / "checkpoints") == {"classifier"}


def test_an_order_has_the_rates_that_are_best_on_validation_images_with_other_seeds(
    monkeypatch: Patch,
) -> None:
    """Each replica's factor is a number here, and so is the distance of its images."""
    asked: list[Any] = []

    class Judged:
        def of(self, real: np.ndarray) -> "Judged":
            asked.append(real)
            return self

        def distance(self, x: float) -> float:
            return {0.5: 3.0, 1.0: 1.0, 2.0: 2.0}[x]

    def train_variant(
        name: str, config: Any, data: Any, key: Any, factors: Any, run: Any
    ) -> Any:
        asked.append((jax.random.key_data(key).tolist(), factors.tolist()))
        return orders.Trained([*factors], {})

    monkeypatch.setattr(orders, "train_variant", train_variant)
    parts = [dataset({"x": np.full((3, 2, 2, 1), i)}) for i in range(3)]
    data = gan_settings.GanImages(*parts, classes=("a", "b"))
    config = orders.Config(factors=(0.5, 1.0, 2.0), tuning_seeds=2)
    assert orders.best_factor("mixed", config, data, Judged(), None) == 1.0
    held_out, (key, factors) = asked
    assert np.all(held_out == 1)
    assert factors == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    assert key != jax.random.key_data(key_for(config.seed, "variants")).tolist()
    assert orders.best_factor("mixed", orders.Config(), data, Judged(), None) == 1.0
    assert len(asked) == 2  # one factor is no choice


def test_replicas_of_one_factor_differ_and_those_of_two_are_paired(
    monkeypatch: Patch,
) -> None:
    given: dict[str, Any] = {}

    def fit(state: Any, step: Any, data: Any, **options: Any) -> Any:
        given.update(options, state=state)
        return state, [{}]

    monkeypatch.setattr(orders, "fit", fit)
    monkeypatch.setattr(orders, "discriminator", judge)
    monkeypatch.setattr(orders, "generator", lambda shape, norm: painter(shape))
    config = orders.Config(image_size=16, held_out=2)
    rows = dataset({"x": np.zeros((8, 16, 16, 1), np.uint8)})
    data = gan_settings.GanImages(rows, rows, rows, classes=("a", "b"))
    factors, log = (
        np.array([0.5, 0.5, 2, 2]),
        SimpleNamespace(sub_run=lambda *a, **k: None),
    )
    images, _ = orders.train_variant(
        "mixed", config, data, key_for(0, "tuning"), factors, log
    )
    keys = jax.random.key_data(given["key"]).tolist()
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]
    assert np.array_equal(given["replicas"].args[0], factors)
    assert np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])


class Crash(Exception):
    """Stands for a kill: nothing of the program expects it."""


@pytest.mark.torture
def test_a_killed_run_ends_with_the_same_numbers_and_pictures(
    smoke_run: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Killed as the second epoch's samples are made, before its checkpoint."""
    made, calls = lesson.made, []

    def crashing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise Crash
        return made(*args)

    folder = tmp_path / "run"
    argv = ["ch5_gan.py", "--preset", "smoke", "--save-every", "0", "--run-dir"]
    with monkeypatch.context() as patch:
        patch.setattr(lesson, "made", crashing)
        patch.setattr(sys, "argv", [*argv, str(folder)])
        with pytest.raises(Crash):
            cli.experiment(lesson.main, lesson.PRESETS)
    assert not (folder / "samples" / "epoch_002.png").exists()
    assert run(folder, "--resume") == 0
    assert contents(folder / "samples") == contents(smoke_run / "samples")
    assert metrics_of(folder) == metrics_of(smoke_run)
    rows, others = ((f / "metrics.jsonl").read_text() for f in (folder, smoke_run))
    assert '"gan"' in rows
    assert rows == others


def test_samples_from_the_saved_run(smoke_run: Path, capsys: Said) -> None:
    before = contents(smoke_run)
    assert run(smoke_run, "--sample", 5) == 0
    path = smoke_run / "samples" / "sample_of_5_by_seed_0.png"
    assert capsys.readouterr().out == f"written to {path}\n"
    picture = path.read_bytes()
    assert pixels_of(path).shape == (2 * 66 - 2, 3 * 66 - 2)
    saved = read_saved(smoke_run, lesson.Config, "ch5_gan")
    for seed in (0, 1):  # the same again, and others
        config = dataclasses.replace(saved.config, seed=seed)
        lesson.sample(dataclasses.replace(saved, config=config), 5)
        made = smoke_run / "samples" / f"sample_of_5_by_seed_{seed}.png"
        assert (made.read_bytes() == picture) == (seed == 0)
        made.unlink()
    for count in (0, 10_001):
        capsys.readouterr()
        assert run(smoke_run, f"--sample={count}") == 2
        says = f"error: --sample makes 1 to 10,000 images, not {count:,}\n"
        assert capsys.readouterr().err == says
    assert contents(smoke_run) == before


BAD = (
    (lesson, ("--image-size", "8"), "32, 48, ... pixels a side, not of 8 by 8"),
    (orders, ("--image-size", "40"), "pixels a side, not of 40 by 40"),
    (lesson, ("--channels", "2"), "images have 1 or 3 channels, not 2"),
    (lesson, ("--data", "fashion"), "did you mean 'fashion_mnist'"),
    (lesson, ("--folder", "runs/no-such"), "runs/no-such"),
    (orders, ("--variants", "real frist"), "real first"),
    (lesson, ("--rate", "0"), "--rate 0"),
)


def test_bad_settings_are_one_sentence_and_leave_no_trace(
    tmp_path: Path, monkeypatch: Patch, capsys: Said
) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise MissingData("no images: `make data` brings them")

    for module, words, says in BAD:
        assert run(tmp_path / "run", *words, module=module) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr(gan_settings, "read_images", missing)
    assert run(tmp_path / "run") == 2
    assert capsys.readouterr().err == "error: no images: `make data` brings them\n"
    assert not (tmp_path / "run").exists()


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
    folder: Path, channels: int, capsys: Said
) -> None:
    """To their size, and to grey or colour; no picture is in two sets."""
    (folder / "cats" / "broken.png").write_bytes(b"none")
    smoke = lesson.PRESETS["smoke"]
    config = dataclasses.replace(
        smoke, folder=folder, channels=channels, images=None, held_out=3
    )
    data = gan_settings.load(config)
    assert "broken.png" in capsys.readouterr().err
    assert data.classes == ("cats", "dogs")
    for part, count in ((data.train, 32), (data.held_out, 3), (data.test, 3)):
        assert part.arrays["x"].shape == (count, 16, 16, channels)
        assert part.arrays["x"].dtype == np.uint8
        assert part.arrays["row"].tolist() == list(range(count))
    every = [x.tobytes() for part in data[:3] for x in gan_pixels(part)]
    assert len(set(every)) == len(every)


@pytest.mark.torture
def test_images_of_one_class_are_compared_without_the_cnn(
    folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: Said
) -> None:
    """And no count is larger than what there is, which is said. By small networks."""
    for module in (lesson, orders):
        monkeypatch.setattr(module, "discriminator", judge)
        monkeypatch.setattr(module, "generator", lambda shape, norm: painter(shape))
    shutil.rmtree(folder / "dogs")
    words = ("--folder", folder, "--channels", "3", "--images", "50", "--held-out", 9)
    made, compared = tmp_path / "made", tmp_path / "compared"
    assert run(made, *words, "--epochs", 1) == 0
    variants = ("--variants", "alternating", "--factors", "1", "2")
    assert run(compared, *words, *variants, module=orders) == 0
    common = [
        "warning: --images 50: there are only 16 images to train on, so it is 16",
        "warning: --held-out 9: there are only 2 held-out images, so it is 2",
    ]
    one_class = "warning: the images are of one class: no CNN can judge them"
    assert capsys.readouterr().err.splitlines() == [
        *common, one_class, *common, one_class
    ]  # fmt: skip
    assert "classes.png" not in names_in(made / "figures")
    assert "nearest.png" in names_in(made / "figures")
    assert names_in(compared / "figures") == {"variants.png", "intervals.png"}
    metrics = metrics_of(made) | metrics_of(compared)
    assert not [name for name in metrics if "Frechet" in name or "CNN" in name]
    assert metrics["alternating: accuracy on real"]["n"] == 2
    assert pixels_of(made / "samples" / "epoch_001.png").shape[-1] == 3


# The small things


def test_the_size_formula() -> None:
    """A transposed convolution makes of n rows what a convolution makes n of."""
    for kernel, stride, padding in ((1, 3, 0), (4, 2, 2), (7, 3, 2)):
        rows = sizes.formula_rows(5, kernel, stride, padding)
        assert sizes.convolved_rows(rows, kernel, stride, padding) == 5
        assert (rows + 2 * padding - kernel) // stride + 1 == 5
        assert sizes.jax_rows(5, kernel, stride, padding) == rows
        if kernel >= stride:
            assert sizes.jax_rows(5, kernel, stride, "SAME") == 5 * stride


def test_every_use_of_randomness_has_a_key_of_its_own() -> None:
    keys = {
        jax.random.key_data(key_for(seed, use)).tobytes()
        for seed in (0, 1)
        for use in USES
    }
    assert len(keys) == 2 * len(USES)
    with pytest.raises(ValueError, match="not in tuple"):
        key_for(0, "something else")


def test_interpolation_goes_from_one_draw_to_another(monkeypatch: Patch) -> None:
    drawn: list[Any] = []

    def made(g: Any, state: Any, z: Any, replica: int) -> Any:
        drawn.append(np.asarray(z))
        return np.zeros((len(z), 2, 2, 1), np.uint8)

    monkeypatch.setattr(lesson, "made", made)
    monkeypatch.setattr(lesson.plots, "save_images", lambda *_: None)
    lesson.draw_interpolation(lesson.Config(), None, None, None)
    ways = drawn[0].reshape(4, lesson.COLUMNS, LATENT_SIZE)
    assert np.abs(ways).max() <= 1
    assert len(np.unique(ways[:, [0, -1]].reshape(8, LATENT_SIZE), axis=0)) == 8
    steps = np.diff(ways, axis=1)
    np.testing.assert_allclose(steps, steps[:, :1].repeat(steps.shape[1], 1), atol=1e-6)


# What the claims rest on


def changes() -> tuple[float, float]:
    state = init_gan_state(*small_gan.PAIR, jax.random.key(0))
    batch = {"x": jnp.asarray(small_gan.pixels(2)), "mask": jnp.ones(2)}
    return changes_of_the_other(small_gan.D, small_gan.G, state, batch)


def test_no_update_changes_the_other_network(monkeypatch: Patch) -> None:
    """A step that lets G's update through to D as well is found out."""
    assert changes() == (0, 0)

    def leaking(d: Any, g: Any, tx_d: Any, tx_g: Any) -> Any:
        return make_gan_step(d, g, optax.sgd(0.1), tx_g)

    monkeypatch.setattr(gan_step, "make_gan_step", leaking)
    of_d, of_g = changes()
    assert of_d > 0
    assert of_g == 0


def test_the_orders_are_judged_by_seed() -> None:
    """Differences that the seeds agree on decide, though the seeds lie far apart."""
    seeds = np.array([40.0, 80, 120, 160, 200])
    small = np.array([0.9, 1.1, 1, 1.2, 0.8])

    def verdicts(more: float, keep: int = 5) -> list[str]:
        mean = mean_over_runs(seeds[:keep] + more, NONNEGATIVE)
        gap = mean_over_runs(more * small[:keep], REAL, "seeds, paired")
        metrics = {
            "real first - alternating: Frechet distance": gap,
            "mixed - alternating: Frechet distance": gap,
            "alternating, no BatchNorm - alternating: Frechet distance": gap,
            "real first: accuracy on real": mean_over_runs(small * 0, REAL),
            "alternating: accuracy on real": mean_over_runs(small, REAL),
            "alternating: Frechet distance": mean,
        }
        claims = orders.LESSON.claims
        return [judge_claim(claim, metrics).verdict for claim in claims]

    assert verdicts(5) == ["holds", "holds", "fails", "holds"]
    assert verdicts(-5) == ["fails", "holds", "holds", "fails"]
    few = verdicts(5, keep=3)
    assert few == ["undetermined", "holds", "undetermined", "undetermined"]


def test_the_layer_is_a_transpose(monkeypatch: Patch) -> None:
    assert sizes.transpose_difference(4, seed=1) < 1e-5
    layer = ops.conv2d_transpose
    monkeypatch.setattr(
        ops, "conv2d_transpose", lambda x, k, s: layer(x, k[::-1, ::-1], s)
    )
    assert sizes.transpose_difference(4, seed=1) > 0.1
