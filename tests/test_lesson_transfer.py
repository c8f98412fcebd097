"""Lesson 2.3: where fine-tuning begins, what chooses the epoch, and prediction."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxstudy import training
from jaxstudy.images import subsets
from jaxstudy.images.sets import Images, ImageSet
from jaxstudy.model import Stage, compose, sequential
from jaxstudy.models.efficientnet import efficientnet_stages, normalise_pixels
from jaxstudy.pretrained import backbones, tuning
from jaxstudy.runs.run import open_run
from jaxstudy.runs.saved import Options, read_saved
from jaxstudy.types import UserError
from tests.conftest import Ask, Patch, load

lesson: Any = load("experiments", "ch2_transfer")
CLASSES = ("dark", "light", "red")
SMALL = efficientnet_stages(include_top=False)
STAGES: tuple[Stage, ...] = (*SMALL[:2], SMALL[-1])  # stem, block0 and the pool


def few(rng: np.random.Generator, n: int, size: int) -> Images:
    y = (np.arange(n) % 3).astype(np.int32)
    x = rng.integers(0, 100, (n, size, size, 3))
    x[y == 1] += 120
    x[y == 2, ..., 0] += 150
    return Images(x.astype(np.uint8), y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The lesson on three easy classes and a backbone of two blocks, run once.

    `begun` and `ended` are the states of each training, `given` its other arguments.
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, extra = jax.jit(sequential(STAGES, image).init)(jax.random.key(3))
    network = backbones.Backbone(
        "efficientnet_lite0",
        STAGES,
        {"params": params, "extra": extra},
        normalise_pixels,
    )
    config = lesson.Config(
        fine_tune_from="block0", image_size=32, small_size=8, sizes=(6, 2286, 100),
        versions=2, epochs=2, regression_epochs=20, tuning_epochs=1, seeds=2,
        batch_size=10, rate=0.01,
    )  # fmt: skip
    found = SimpleNamespace(
        config=config, network=network, begun={}, ended={}, given={}, data={}
    )

    def read(
        spec: str, folder: None, *, image_size: tuple[int, int], channels: int
    ) -> ImageSet:
        rng = np.random.default_rng(0)
        counts = {"train": 30, "validation": 12, "test": 12}
        sets = {name: few(rng, n, image_size[0]) for name, n in counts.items()}
        return ImageSet(sets, CLASSES)  # type: ignore[arg-type]

    real = training.fit

    def fit(state: Any, *args: Any, **options: Any) -> Any:
        name = options["log"].name
        found.begun[name] = jax.device_get(state)
        found.given[name], found.data[name] = options, args[1]
        fitted = real(state, *args, **options)
        found.ended[name] = jax.device_get(fitted.state)
        return fitted

    root = tmp_path_factory.mktemp("transfer")
    found.folder = root / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subsets, "read_images", read)
        patch.setattr(training, "fit", fit)
        patch.setattr(backbones, "backbone", lambda *_: network)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        with open_run(found.folder, "ch2_transfer", "smoke", config, Options()) as run:
            found.result = lesson.main(config, run)
    found.read = read
    return found


def test_the_whole_lesson_and_what_it_predicts(
    finished: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Patch,
) -> None:
    result = finished.result
    for arm in (*lesson.ARMS, lesson.ALONE):
        assert f"30 images, {arm}: test accuracy" in result
    assert result["30 images, frozen: test accuracy"].mean > 0.9
    for gain, arms in lesson.GAINS.items():
        one, over = (result[f"30 images, {arm}: test accuracy"] for arm in arms)
        values = result[f"30 images: {gain}"].values
        np.testing.assert_allclose(values, np.subtract(one.values, over.values))
    tuned = [result[f"{n} images: gained by fine-tuning"].mean for n in (6, 30)]
    assert result[lesson.LEAST].mean == min(tuned)
    assert "block0" in (finished.folder / "summary.txt").read_text()
    assert {path.stem for path in (finished.folder / "figures").iterdir()} == {
        "curves", "predictions", "sizes",
    }  # fmt: skip
    rng, files = np.random.default_rng(1), []
    for label, x in zip(CLASSES, few(rng, 3, 20).x, strict=True):
        files.append(tmp_path / f"{label}.png")
        Image.fromarray(x).save(files[-1])
    monkeypatch.setattr(backbones, "backbone", lambda *_: finished.network)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    saved = read_saved(finished.folder, lesson.Config, "ch2_transfer")
    lesson.predict(saved, tuple(files))
    lines = capsys.readouterr().out.splitlines()
    for path, label, line in zip(files, CLASSES, lines, strict=True):
        assert line.startswith(f"{path}: {label} ")
    files[1].write_bytes(b"none")
    with pytest.raises(UserError, match=r"light\.png: not an image"):
        lesson.predict(saved, tuple(files))


def test_fine_tuning_begins_where_the_regression_ended(
    finished: SimpleNamespace,
) -> None:
    """Before its first step, the network says what the regression says."""
    state, ended = finished.begun["fine-tuned"], finished.ended["head"]
    kept, plain = (
        finished.given[arm]["evaluators"]["test"].data.arrays["x"]
        for arm in ("fine-tuned", "frozen")
    )
    rest = backbones.with_stored_statistics(STAGES[1:], kept[:1])
    regression = tuning.regression(plain.shape[1], 3)
    tuned = compose(rest, regression)
    for replica in range(4):
        one, other = (
            jax.tree.map(lambda a, replica=replica: a[replica], (s.params, s.extra))
            for s in (state, ended)
        )
        assert np.array_equal(
            jax.tree.leaves(one[0]["first"])[0],
            jax.tree.leaves(finished.network.weights["params"]["block0"])[0],
        )
        got, _ = tuned.apply(*one, kept, train=False, key=None)
        want, _ = regression.apply(*other, plain, train=False, key=None)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_controls_differ_from_what_they_are_compared_with_in_one_thing(
    finished: SimpleNamespace,
) -> None:
    arms = ("random weights", "equal resolution", "frozen")
    epochs = {arm: given["epochs"] for arm, given in finished.given.items()}
    assert {epochs[arm] for arm in arms} == {epochs["head"] + epochs["fine-tuned"]}
    assert epochs[lesson.ALONE] == epochs["fine-tuned"]
    head = finished.ended["head"].params
    jax.tree.map(
        np.testing.assert_array_equal, finished.begun[lesson.ALONE].params, head
    )
    want = finished.data["frozen"]
    for arm in (*arms, "head", lesson.ALONE, "fine-tuned"):
        data = finished.data[arm]
        assert np.array_equal(data.indices, want.indices)
        assert np.array_equal(data.arrays["y"], want.arrays["y"])
    for arm in ("head", lesson.ALONE):
        assert np.array_equal(finished.data[arm].arrays["x"], want.arrays["x"])
    for arm in arms[:2]:
        assert not np.allclose(finished.data[arm].arrays["x"], want.arrays["x"])


def test_every_image_is_there_in_two_versions(finished: SimpleNamespace) -> None:
    """The first as it is. Each training is standardised by its own images."""
    data = finished.data["frozen"]
    x, rows = np.asarray(data.arrays["x"]), np.asarray(data.indices)
    assert len(x) == 60
    assert rows.shape == (4, 60)
    assert np.array_equal(rows[:, :30] + 30, rows[:, 30:])
    assert [len(np.unique(of_replica)) for of_replica in rows] == [12, 12, 60, 60]
    y = np.asarray(data.arrays["y"])
    assert np.array_equal(y[:30], y[30:])
    assert not np.any(np.all(np.isclose(x[:30], x[30:]), 1))
    found = finished.begun["frozen"].extra["standardization"].mean
    for replica, own in enumerate(rows):
        np.testing.assert_allclose(found[replica], x[own].mean(0), atol=1e-5)


BAD = {
    ("--fine-tune-from", "blok15"): "did you mean 'block15'",
    ("--fine-tune-from", "stem"): "'stem' is the first layer",
    ("--image-size", "16"): "needs images of 32 pixels a side at least, not 16",
    ("--backbone", "inception_v3", "--image-size", "75"): "--weights FILE",
    ("--folder", "no-such-folder"): "no-such-folder cannot be listed",
}


def test_bad_settings_leave_no_trace(
    finished: SimpleNamespace, tmp_path: Path, monkeypatch: Patch, ask: Ask
) -> None:
    small, real = finished.network, backbones.backbone
    network = small._replace(stages=SMALL)  # whose weights nothing gets to
    monkeypatch.setattr(
        backbones, "backbone", lambda *x: network if x[0] == small.name else real(*x)
    )
    where = "--preset", "smoke", "--run-dir", tmp_path / "run"
    for words, says in BAD.items():
        code, _, error = ask(lesson, *where, *words, predict=lesson.predict)
        assert code == 2
        assert says in error
        assert not (tmp_path / "run").exists()
