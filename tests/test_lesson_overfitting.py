"""Lesson 2.1.2: what is held fixed between the remedies, and what is made of them."""

import json
from collections import defaultdict
from typing import Any

import jax
import numpy as np
import pytest

from jaxstudy.dataset import dataset
from jaxstudy.images import splits
from jaxstudy.model import parameter_count
from jaxstudy.models.cnn import cnn
from jaxstudy.runs import plots
from jaxstudy.study.remedies import (
    TrainedRemedy,
    differences_from,
    remedy_metrics,
    save_memorising,
    save_remedy_differences,
    trained,
    tuned_on_test,
    with_stopped,
)
from tests.conftest import Smoke, load

lesson: Any = load("experiments", "ch2_overfitting")
# [epochs, seeds]: the lowest validation loss is in epoch 1 and in epoch 2
VALIDATION = np.array([[0.9, 0.8], [0.5, 0.6], [0.6, 0.4], [0.75, 0.8]])
TEST = np.array([[0.9, 0.9], [0.6, 0.5], [0.5, 0.7], [0.8, 0.9]])
FRESH = np.array([[0.9, 0.9], [0.6, 0.8], [0.7, 0.6], [0.8, 0.9]])


def base() -> TrainedRemedy:
    losses = {"validation": VALIDATION, "test": TEST, "fresh": FRESH}
    by_epoch = {(name, "loss"): values for name, values in losses.items()}
    by_epoch |= {(name, "accuracy"): 1 - values for name, values in losses.items()}
    end = {"loss": TEST[-1], "accuracy": 1 - TEST[-1]}
    return TrainedRemedy(end, by_epoch, np.arange(4))


def test_early_stopping_takes_each_seeds_epoch_of_lowest_validation_loss() -> None:
    stopped = base().stopped()
    assert stopped["loss"].tolist() == [0.6, 0.7]
    assert stopped["accuracy"].tolist() == [1 - 0.6, 1 - 0.7]
    ended = with_stopped({("base", 5): base(), ("other", 5): base()}, "base", "early")
    assert list(ended) == [("base", 5), ("early", 5), ("other", 5)]
    assert ended["early", 5]["loss"].tolist() == [0.6, 0.7]


def test_the_rise_is_of_each_seed() -> None:
    np.testing.assert_allclose(base().rise(), [0.5, 1.0])


def test_a_log_becomes_losses_by_epoch() -> None:
    records = [
        {"step": 10 * e, "split": split, "loss": [e, 2 * e], "accuracy": [0, 1]}
        for e in (1, 2)
        for split in ("train", "training set", "validation")
    ]
    got = trained({"loss": [1.0, 2.0], "accuracy": [0.5, 0.5], "other": 0}, records)
    assert got.by_epoch["validation", "loss"].tolist() == [[1, 2], [2, 4]]
    assert got.steps.tolist() == [10, 20]
    assert not any(split == "train" for split, _ in got.by_epoch)
    assert set(got.end) == {"loss", "accuracy"}


def test_more_data_is_compared_with_the_best_of_each_seed() -> None:
    losses = {"base": [0.8, 0.9], "a": [0.5, 0.9], "b": [0.7, 0.6], "more": [0.4, 0.7]}
    ended = {
        name: {"loss": np.array(v), "accuracy": 1 - np.array(v)}
        for name, v in losses.items()
    }
    result: Any = remedy_metrics(ended, "base", "more")
    differences = differences_from(ended, "base")
    best = result["more - best of the others: test loss"]
    assert best.values == pytest.approx([-0.1, 0.1])
    assert set(differences) == {"a", "b", "more"}
    assert differences["a"].values == pytest.approx([-0.3, 0.0])
    assert result["a - base: test loss"] == differences["a"]
    assert result["b: test accuracy"].values == pytest.approx([0.3, 0.4])


def test_figures_compare_in_pairs_and_with_what_claims_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, Any] = {}
    for save in ("save_estimates", "save_lines"):
        monkeypatch.setattr(
            plots, save, lambda _, name, p, **__: drawn.update({name: p})
        )
    run: Any = None
    losses = {"base": [0.8, 0.9], "a": [0.5, 0.7], "more": [0.4, 0.3]}
    ended = {name: {"loss": np.array(values)} for name, values in losses.items()}
    save_remedy_differences(run, "gaps", ended, "base", "more")
    left, right = (panel.estimates for panel in drawn["gaps"])
    assert left["a"].values == pytest.approx([-0.3, -0.2])
    assert right["base"].values == pytest.approx([-0.4, -0.6])
    assert right["lowest of these, by seed"].values == pytest.approx([-0.1, -0.4])

    of_base = base()
    for metric in ("loss", "accuracy"):
        of_base.by_epoch["training set", metric] = TEST
    save_memorising(run, "base", of_base, accuracy=0.99, rise=0.5)
    accuracy, loss = drawn["base"]
    assert list(accuracy.levels.values()) == [0.99]
    assert list(loss.levels.values()) == pytest.approx([1.5 * (0.5 + 0.4) / 2])
    steps, means = loss.lines["validation"]
    assert steps == [0, 1, 2, 3]
    assert [m.mean for m in means] == pytest.approx(VALIDATION.mean(1))


def test_what_tuning_on_the_test_set_reports() -> None:
    """The lowest test loss, and what images that chose nothing say of that epoch."""
    found = tuned_on_test(base())
    assert found["mistake: test loss"].values == pytest.approx([0.5, 0.5])
    gain = found["mistake - right: test loss"].values
    assert gain == pytest.approx([-0.1, -0.2])
    left = found["mistake - right: loss on fresh images"].values
    assert left == pytest.approx([0.1, 0.2])


def test_test_images_and_fresh_ones_are_disjoint() -> None:
    data = dataset({"x": np.zeros((21, 2, 2, 1), np.uint8), "y": np.arange(21)})
    sets = splits.ImageSplits(data, data, data, ("a", "b"), (2, 2, 1))
    config = lesson.Config(test_images=8)
    assert set(lesson.test_sets(sets, config)) == {"test"}
    both = lesson.test_sets(sets, lesson.Config(test_images=8, mistake="tuned_on_test"))
    test, fresh = (set(np.asarray(part.indices).tolist()) for part in both.values())
    assert len(test) == len(fresh) == 8
    assert not test & fresh


def test_the_convolution_leaves_the_dense_layers_as_large() -> None:
    """Four filters of 3 x 3 with a bias each are all that it adds on grey images."""
    networks = lesson.recipes(lesson.Config())
    counts = {
        name: parameter_count(
            cnn((28, 28, 1), 10, filters=recipe.filters, hidden=recipe.hidden)
        )
        for name, recipe in networks.items()
    }
    assert counts["+ convolution and pooling"] - counts["base"] == 40
    assert counts["smaller network"] < counts["base"] / 10
    assert counts["+ dense"] - counts["base"] == 256 * 257
    same = ("dropout", "weight decay", "augmentation")
    assert all(counts[name] == counts["base"] for name in same)


def test_each_remedy_changes_one_thing() -> None:
    recipes = lesson.recipes(lesson.Config())
    assert [*recipes] == [lesson.BASE, *lesson.Config().remedies]
    base, *others = recipes.values()
    for recipe in others:
        changed = [a != b for a, b in zip(recipe, base, strict=True)]
        assert sum(changed) == 1, recipe


def test_all_make_as_many_steps_from_nested_images(smoke: Smoke) -> None:
    folder = smoke("ch2_overfitting")
    steps: dict[str, int] = defaultdict(int)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "validation":
            steps[row["part"]] = max(steps[row["part"]], row["step"])
    assert set(steps.values()) == {8}  # 2 epochs of 64 images, 16 in a step
    assert {part for part in steps if "base" in part} == {
        "base_32", "base_64", "base_128",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())["metrics"]
    trained = {"base", "early stopping", "dropout", "augmentation", "more data"}
    named = {m for m in lesson.LESSON.metrics if m.split(":")[0] in trained}
    assert named <= set(result)
    assert "32 images, early stopping: test loss" in result

    data = dataset({"y": np.arange(200)})
    few, many = (splits.nested_subsets(data, (n,), 2, 0)[0] for n in (64, 128))
    for seed in range(2):
        assert len(set(few[seed])) == 64
        assert set(few[seed]) < set(many[seed])
    assert set(few[0]) != set(few[1])


def test_dropout_and_augmentation_act_in_training_alone() -> None:
    recipe = lesson.recipes(lesson.Config())["dropout"]
    model = cnn((8, 8, 1), 2, filters=(), hidden=(16,), dropout=recipe.dropout)
    objective = jax.jit(lesson.augmented(lesson.cross_entropy(model), lesson.LAYERS))
    params, extra = model.init(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    batch = {"x": x, "y": np.arange(4) % 2, "mask": np.ones(4)}

    def loss(key: Any) -> float:
        return float(objective(params, extra, batch, key)[0])

    assert len({loss(None), loss(jax.random.key(0)), loss(jax.random.key(1))}) == 3
    plain = cnn((8, 8, 1), 2, filters=(), hidden=(16,))
    evaluated = jax.jit(lesson.cross_entropy(plain))(params, extra, batch, None)[0]
    assert loss(None) == pytest.approx(float(evaluated), rel=1e-6)  # neither of both
