"""Lesson 2.2.3: folders with problems, sets split by group, paired seeds."""

import json
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxstudy.images import reading
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.study import sizes
from tests.conftest import ROOT, Answer, Ask, load

lesson: Any = load("experiments", "ch2_augmentation")
CLASSES = ("dark", "light")


def test_the_page_shows_the_layers_of_the_lesson() -> None:
    """As strong in Keras's code and in ours as in the run."""
    page = (ROOT / "docs" / "lessons" / "ch2_augmentation.md").read_text()
    strengths = [
        value for layer in lesson.LAYERS for value in astuple(layer)
        if isinstance(value, float)
    ]  # fmt: skip
    ours = re.findall(r"^layers = \((.*)\)$", page, re.M)
    keras = re.findall(r"keras\.layers\.Random\w+\((.*)\),$", page, re.M)
    for code in ("".join(ours), "".join(keras)):
        assert [float(number) for number in re.findall(r"0\.\d+", code)] == strengths


def make_folder(folder: Path, count: int = 20) -> Path:
    """Two classes of 8x8 noise, the one darker than the other."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            x = rng.integers(100 * label, 156 + 100 * label, (8, 8, 3))
            Image.fromarray(x.astype(np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


def add_problems(folder: Path) -> set[tuple[str, str]]:
    """Spoil a folder; the path and kind of each problem."""
    whole = (folder / "dark" / "00.png").read_bytes()
    (folder / "dark" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dark" / "nothing.png").write_bytes(b"")
    (folder / "light" / "notes.png").write_text("no image")
    (folder / "stray.png").write_bytes(whole)
    (folder / "none").mkdir()
    return {
        ("dark/cut.png", "truncated or damaged"),
        ("dark/nothing.png", "zero bytes"),
        ("light/notes.png", "not an image"),
        ("none", "empty class"),
        ("stray.png", "outside a class"),
    }


def on_folder(ask: Ask, folder: Path, *arguments: object) -> Answer:
    """The lesson at smoke on a folder."""
    return ask(lesson, "--preset", "smoke", "--folder", folder, *arguments)


def test_problems_are_left_out_and_listed_and_seeds_are_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    problems = add_problems(make_folder(tmp_path / "images"))
    # without layers nothing tells the arms apart, unless images, weights or order do
    monkeypatch.setattr(lesson, "LAYERS", ())
    monkeypatch.setattr(lesson, "draw_versions", lambda *_: None)
    where = tmp_path / "run"
    arguments = ("--sizes", 8, 60, 24, "--run-dir", where)
    code, _, warned = on_folder(ask, tmp_path / "images", *arguments)
    assert code == 0

    listed = json.loads((where / "problems.json").read_text())
    assert {(problem["path"], problem["kind"]) for problem in listed} == problems
    assert all(f"{path}: {kind}" in warned for path, kind in problems)
    assert "--sizes 60: there are only 24 images to train on, so it is 24" in warned
    assert f"40 images in 2 classes: {CLASSES[0]} 20, {CLASSES[1]} 20" in warned

    metrics = json.loads((where / "result.json").read_text())["metrics"]
    gain = "accuracy gained by augmentation"
    assert metrics[f"middle sizes: {gain}"] == metrics[f"24 images: {gain}"]
    assert set(metrics[f"24 images: {gain}"]["values"]) == {0}
    assert lesson.WIDEST not in metrics  # two seeds have no interval
    assert lesson.MORE in metrics

    lines = (where / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    losses = np.array([np.reshape(row["loss"], (2, 2, 2)) for row in rows])
    assert np.array_equal(losses[..., 0], losses[..., 1])  # the arms
    assert np.all(losses[:, :, 0] != losses[:, :, 1])  # the seeds
    assert np.all(losses[:, 0] != losses[:, 1])  # the sizes


def test_what_cannot_be_learned_from_is_refused_and_leaves_no_trace(
    tmp_path: Path, ask: Ask
) -> None:
    where = tmp_path / "runs" / "one"
    problems = add_problems(make_folder(tmp_path / "images"))
    arguments = ("--sizes", 8, "--strict", "--run-dir", where)
    code, _, error = on_folder(ask, tmp_path / "images", *arguments)
    assert code == 2
    assert all(f"{path}: {kind}" in error for path, kind in problems)
    for number, (count, classes, more, sentence) in enumerate((
        (2, 2, ("--sizes", 2), "too small for a test set"),
        (4, 2, ("--sizes", 2, "--validation-split", 0.01), "no validation example of"),
        (20, 1, ("--sizes", 8), "has one class only"),
        (20, 0, ("--sizes", 8), "holds no class folder with images"),
    )):  # fmt: skip
        folder = make_folder(tmp_path / str(number), count)
        for name in CLASSES[classes:]:
            (folder / name).rename(tmp_path / f"{number} {name}")
        code, _, error = on_folder(ask, folder, *more, "--run-dir", where)
        assert code == 2
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sentence in error
    assert not (tmp_path / "runs").exists()


def test_sets_are_disjoint_by_group_and_the_test_set_is_everyones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one group have one colour: no colour may be in two sets."""
    codes = [f"{0x1F300 + i:x}" for i in range(40)]
    names = [
        f"{vendor}-{code}{mark}.png"
        for code in codes
        for vendor in ("google", "twitter")
        for mark in ("", "-200d-2640-fe0f")  # the same of a woman
    ]
    groups = {emoji_group(Path(name)) for name in names}
    colours = {group: i + 1 for i, group in enumerate(sorted(groups))}
    paths = []
    for category in ("Food & Drink", "Objects"):
        (tmp_path / category).mkdir()
        for name in names[:80] if category == "Objects" else names[80:]:
            colour = colours[emoji_group(Path(name))]
            path = tmp_path / category / name
            Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)
            paths.append(f"{category}/{name}")
    monkeypatch.setattr(reading, "check_folder", lambda _: tmp_path)

    def found(seed: int) -> dict[str, set[int]]:
        images: Any
        images, audited = reading.read_folder_sets(
            None, size=(8, 8), strict=False, validation_split=0.25, seed=seed
        )
        assert not audited.problems
        assert images.classes == ("Food & Drink", "Objects")
        assert sum(len(split.x) for split in images.splits.values()) == len(paths)
        for split in images.splits.values():
            half = split.x[:, 0, 0, 0] <= 20
            assert np.array_equal(split.y, half.astype(int))
        return {n: set(s.x[:, 0, 0, 0].tolist()) for n, s in images.splits.items()}

    here, there = found(0), found(1)
    for sets in (here, there):
        assert not sets["train"] & sets["validation"]
        assert not (sets["train"] | sets["validation"]) & sets["test"]
    test = {colours[emoji_group(Path(p))] for p in emoji_splits(paths)["test"]}
    assert here["test"] == there["test"] == test
    assert here["validation"] != there["validation"]


def test_only_one_arm_sees_other_versions() -> None:
    model, tx = lesson.cnn((8, 8, 3), 2, filters=()), lesson.optax.adam(1e-3)
    step = jax.jit(lesson.train_step_of_arms(model, tx, 255.0))
    state = lesson.training.init_replicas(
        model, tx, jax.random.split(jax.random.key(0), 1)
    )
    state = jax.tree.map(lambda a: a[0], state)
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    batch = {"x": jnp.asarray(x), "y": jnp.arange(4) % 2, "mask": jnp.ones(4)}

    def loss(arm: int, step_number: int) -> float:
        moved = state._replace(step=jnp.int32(step_number))
        return float(step(moved, batch, jnp.int32(arm))[1]["loss"].total)

    assert loss(0, 0) == loss(0, 1)
    assert len({loss(0, 0), loss(1, 0), loss(1, 1)}) == 3  # new ones at each step


def test_the_middle_sizes_and_the_end_of_training() -> None:
    by_epoch = np.arange(16.0)[:, None] ** 2 * [[1, -1]]  # [epochs, seeds]
    want = (14**2 + 15**2 - 12**2 - 13**2) / 2
    np.testing.assert_allclose(sizes.last_rise(by_epoch), [want, -want])
    test = {"a": np.array([[0.5, 0.5]]), "b": np.array([[0.75, 1.0]])}
    result = sizes.size_metrics([7], test, {"gain": ("b", "a")})
    assert result["7 images: gain"].values == (0.25, 0.5)
    assert result["7 images: gain"].of == "seeds, paired"
