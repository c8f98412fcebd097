"""Every lesson at the smoke preset: what it writes, and its row in the README."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
import optax
import pytest

from jaxstudy import training
from jaxstudy.data.splits import kfold
from jaxstudy.dataset import dataset, stacked_subsets
from jaxstudy.models import probes
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.records import Log
from jaxstudy.runs import cli
from jaxstudy.runs.lesson import shows
from jaxstudy.study import depths, surfaces
from jaxstudy.study.surfaces import SURFACES
from jaxstudy.tabular import nested, sets
from jaxstudy.tabular.sets import digit_sets
from tests.conftest import PYTHONPATH, ROOT, Smoke, load

SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("ch*.py"))


# From the last to the first: the tests of single lessons, which are run beside these
# from chapter 2 on, would wait for the same runs.
@pytest.mark.parametrize("name", SCRIPTS[::-1])
def test_smoke_preset_writes_a_whole_run(name: str, smoke: Smoke) -> None:
    folder = smoke(name)
    result = json.loads((folder / "result.json").read_text())
    assert result["experiment"] == name
    assert result["preset"] == "smoke"
    assert result["metrics"]
    assert json.loads((folder / "config.json").read_text())["experiment"] == name
    assert json.loads((folder / "environment.json").read_text())["packages"]["jax"]
    assert not (folder / "run.lock").exists()
    judged = [claim["sentence"] for claim in result["claims"]]
    lesson = load("experiments", name).LESSON
    assert judged == [claim.sentence for claim in lesson.claims]
    kinds = (".png", ".gif")
    drawn = [
        path.relative_to(folder).as_posix()
        for kind in ("figures", "samples")
        for path in (folder / kind).glob("*")
        if path.suffix in kinds
    ]
    for path in drawn:
        assert any(shows(key, path) for key in lesson.figures), path
    for key in lesson.figures:
        assert any(shows(key, path) for path in drawn), key
    figures = list((folder / "figures").glob("*.png"))
    assert figures
    for figure in figures:  # not blank: a good share of pixels is not background
        pixels = matplotlib.image.imread(figure)[..., :3]
        assert np.mean(np.abs(pixels - pixels[0, 0]).sum(-1) > 0.1) > 0.01, figure


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_lesson_has_presets_a_question_claims_and_a_page(name: str) -> None:
    module = load("experiments", name)
    assert set(module.PRESETS) == {"smoke", "quick", "full"}
    about = module.__doc__ or ""
    assert "Lesson" in about
    assert "Expected" not in about  # that is what claims are for
    lesson = module.LESSON
    assert lesson.question.endswith("?")
    assert 2 <= len(lesson.claims) <= 5
    assert len(lesson.figures) >= 1
    readme = load("benchmarks", "readme")
    stored = readme.stored_result(name)
    if not readme.outdated(stored, lesson):  # else it may lack what was added since
        assert stored is not None
        missing = [m for m in lesson.metrics if m not in stored["result"]["metrics"]]
        assert missing == []


def test_a_page_has_its_lesson() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "lessons").glob("ch*.md")}
    assert pages == set(SCRIPTS)


def test_readme_says_what_the_results_say() -> None:
    readme = load("benchmarks", "readme")
    assert readme.main(readme.Command(check=True)) == 0


def test_forward_pass_and_gradients_agree(smoke: Smoke) -> None:
    result = json.loads((smoke("ch1_forward") / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["forward: largest difference"] < 1e-14
    assert metrics["jax.grad - chain rule: largest difference"] < 1e-13
    assert metrics["finite differences - chain rule: largest difference"] < 1e-11
    assert metrics["loss after one step"] < metrics["loss"]
    assert [claim["verdict"] for claim in result["claims"]] == ["holds"] * 4
    for i in range(1, 9):  # the page shows all three
        by_hand = metrics[f"dL/dw{i} by chain rule"]
        for way in ("jax.grad", "finite differences"):
            assert metrics[f"dL/dw{i} by {way}"] == pytest.approx(by_hand, abs=1e-9)


def test_activations_measure_what_they_say(smoke: Smoke) -> None:
    """Of the reported seeds, at the start, from both initialisations."""
    folder = smoke("ch1_activations")
    result = json.loads((folder / "result.json").read_text())["metrics"]
    config = load("experiments", "ch1_activations").PRESETS["smoke"]
    assert result["none = one affine map: largest difference"] < 1e-12
    factor = result["sigmoid, Glorot: gradient factor per layer"]
    assert factor["n"] == len(factor["values"]) == config.seeds
    assert factor["mean"] < 0.6
    assert 0.6 < result["relu, He: gradient factor per layer"]["mean"] < 1.6
    share = result["relu, 3 hidden: share of its loss that initialisation explains"]
    losses = {
        (depth, init): result[f"relu, {depth} hidden, {init}: test log-loss"]["values"]
        for depth, init in ((1, "Glorot"), (3, "Glorot"), (3, "He"))
    }
    glorot, he = (np.array(losses[3, init]) for init in ("Glorot", "He"))
    want = (glorot - he) / (glorot - losses[1, "Glorot"])
    np.testing.assert_allclose(share["values"], want)
    learned = [v for k, v in result.items() if k.endswith("hidden, He: learning rate")]
    learned += [
        v for k, v in result.items() if k.endswith("hidden, Glorot: learning rate")
    ]
    assert len(learned) == 6 * 2 * 2
    rates = [v for v in learned if not isinstance(v, str)]
    assert (
        len(learned) - len(rates) == result["networks that learn nothing at any rate"]
    )
    # both rates of this preset are edges
    edges = "chosen rates at an edge of the grid, of networks that learn"
    assert result[edges] == len(rates) > 0


def test_the_fall_of_the_gradient_is_the_slope_of_the_logarithms() -> None:
    norms = 5 * np.array([0.25, 0.9])[None] ** np.arange(8)[::-1, None]  # [layer, seed]
    fall = probes.gradient_fall(norms)
    np.testing.assert_allclose(fall.factor, [0.25, 0.9])
    np.testing.assert_allclose(fall.straightness, 1)
    twice = probes.gradient_fall(norms[:, None])  # [layer, activation, seed]
    np.testing.assert_allclose(twice.factor, [[0.25, 0.9]])
    bent = probes.gradient_fall(np.exp([0.0, 0.0, 1.0]))  # line: -1/6, 1/3, 5/6
    np.testing.assert_allclose(bent, [np.exp(-0.5), 0.75])


def test_hes_initialisation_is_glorots_scaled() -> None:
    """Their variances are 2 / inputs and 2 / (inputs + outputs); the output's stays."""
    model, keys = mlp(64, (32, 32), 10), jax.random.split(jax.random.key(0), 200)
    state = depths.initial_states(model, keys, np.arange(200) % 2 == 1)
    for layer, inputs, outputs in (("hidden_1", 64, 32), ("hidden_2", 32, 32)):
        kernel = np.asarray(state.params[layer]["kernel"])
        assert kernel[::2].var() == pytest.approx(2 / (inputs + outputs), rel=0.02)
        assert kernel[1::2].var() == pytest.approx(2 / inputs, rel=0.02)
    kernel = np.asarray(state.params["output"]["kernel"])
    assert kernel.var() == pytest.approx(2 / 42, rel=0.02)
    plain = training.init_replicas(model, optax.sgd(0.1), keys[1:2])
    one, two = (s.params["hidden_2"]["kernel"] for s in (plain, state))
    np.testing.assert_allclose(np.sqrt(2) * one[0], two[1], rtol=1e-6)


def test_rows_that_pad_a_set_count_for_nothing() -> None:
    model = mlp(64, (4,), 10)
    state = training.init_state(model, optax.sgd(0.1), jax.random.key(0))
    measure = training.make_eval_step(cross_entropy(model))
    data = digit_sets().test
    longer = depths.with_masked_rows(data, 513)
    assert len(longer.indices) == 513
    got, want = (training.Evaluator(measure, d)(state) for d in (longer, data))
    assert got == pytest.approx(want, rel=1e-6)


def test_activations_choose_rates_by_the_mean_over_seeds() -> None:
    losses = np.random.default_rng(0).uniform(size=(4, 6, 2, 3))
    losses[1, 2, 0, 0] = np.inf  # a diverged replica is the worst
    means = losses.mean(-1)
    chosen = depths.best_rates(losses)
    for cell in np.ndindex(6, 2):
        assert chosen[cell] == np.argmin([means[r][cell] for r in range(4)])
    assert chosen[2, 0] != 1


def test_a_path_is_that_of_the_rate_with_the_lowest_mean() -> None:
    """Gradient descent in a quadratic: p - m is multiplied by 1 - rate H each step."""
    surface = SURFACES["ravine"]
    rates = np.array([1e-3, 0.02, 10.0])
    got = surfaces.path(surface, OPTIMIZERS["sgd"], rates, 30)
    across, along = np.array([-0.6, 0.8]), np.array([0.8, 0.6])
    hessian = 50 * np.outer(across, across) + np.outer(along, along)
    step = np.eye(2) - 0.02 * hessian
    apart = np.array(surface.start) - surface.minimum
    want = [np.linalg.matrix_power(step, k) @ apart for k in range(31)]
    np.testing.assert_allclose(got - surface.minimum, want, atol=1e-4)


def test_step_lengths_of_sgd_stay_and_adagrads_shrink(smoke: Smoke) -> None:
    folder = smoke("ch1_optimizers")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    for pixels in ("rare", "frequent"):
        end = f"step at the end / at the start, {pixels} pixels"
        # float32 weights near 1 that change by 1e-3: a relative error of some 1e-4
        assert metrics[f"sgd: {end}"]["values"] == pytest.approx([1, 1], rel=0.01)
        assert max(metrics[f"adagrad: {end}"]["values"]) < 0.8
    rows = [json.loads(t) for t in (folder / "metrics.jsonl").read_text().splitlines()]
    logs = [r for r in rows if r.get("part") == "steps adagrad"]
    # weights of pixels that are seldom inked change in the longest steps
    for row in logs:
        steps = np.subtract(row["log step, rare"], row["log step, frequent"])
        assert steps.shape == (2,)
        assert np.all(steps > 0)
    assert (folder / "study.json").exists()
    assert {p.stem for p in (folder / "figures").iterdir()} == {
        "differences", "paths", "sensitivity", "steps",
    }  # fmt: skip


@pytest.mark.torture
def test_a_stop_outside_training_has_its_exit_code_too(tmp_path: Path) -> None:
    """While XLA compiles, where a usual exit crashed the interpreter.

    After some programs; that of the first training is about the fifteenth.
    """
    folder, cache = tmp_path / "run", tmp_path / "cache"
    command = [sys.executable, "tests/tiny.py", "--run-dir", str(folder)]
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": PYTHONPATH,
    }
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own)
    try:
        deadline = time.monotonic() + 120
        while len([*cache.glob("*-cache")]) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not (folder / "metrics.jsonl").exists()  # nor has it trained
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    assert not (folder / "result.json").exists()


def test_admission_scores_everybody_once_per_repeat(smoke: Smoke) -> None:
    metrics = json.loads((smoke("ch1_admission") / "result.json").read_text())[
        "metrics"
    ]
    assert metrics["majority class: accuracy"]["mean"] == pytest.approx(0.6825)
    assert metrics["network: accuracy"]["n"] == 400
    folds = [rows for seed in (0, 1) for _, rows in kfold(23, 5, seed=seed)]
    held_out = stacked_subsets(dataset({"x": np.zeros((23, 5))}), folds)
    logits = np.full((len(folds), 23), -9.0)  # wrong of all that it was trained on
    for replica, rows in enumerate(folds):
        logits[replica, rows] = replica
    found = nested.row_scores(logits, np.ones(23), held_out, 5)["log-loss"]
    for replica, rows in enumerate(folds):
        np.testing.assert_allclose(
            found[replica // 5, rows], np.log1p(np.exp(-replica))
        )


def small_cv(y: np.ndarray, epochs: int = 4) -> tuple[nested.NestedCV, nested.Learner]:
    """Two repeats of 2 folds of 2 inner folds, and two networks to choose from."""
    x = np.random.default_rng(0).normal(size=(len(y), 5)).astype(np.float32)
    data = dataset({"x": x, "y": y.astype(np.float32)})
    outer, inner = nested.nested_folds(data, 2, 2, 2, seed=0)
    build = load("experiments", "ch1_admission").build
    learner = nested.Learner({"a": build((4,)), "b": build((4, 4))}, 0.03)
    return nested.NestedCV(outer, inner, 2, 2, epochs, 8, 0, lambda *_, **__: Log()), (
        learner
    )


def test_nested_folds_hold_the_outer_rows_out_of_every_inner_fold() -> None:
    cv, _ = small_cv(np.arange(21) % 2)
    n = 0
    for f, own in enumerate(np.asarray(cv.outer.held_out.mask)):
        held_out = set(np.asarray(cv.outer.held_out.indices[f])[own].tolist())
        n += len(held_out)
        rows = [2 * f, 2 * f + 1]  # the inner folds of this one
        tiles: list[int] = []
        for replica in rows:
            train, validation = (
                np.asarray(part.indices[replica])[np.asarray(part.mask[replica])]
                for part in cv.inner
            )
            assert not held_out & {*train.tolist(), *validation.tolist()}
            assert not {*train.tolist()} & {*validation.tolist()}
            tiles += validation.tolist()
        assert sorted([*tiles, *held_out]) == list(range(21))
    assert n == 2 * 21


def test_a_choice_sees_no_held_out_row() -> None:
    """The labels of a fold are flipped: nothing that chooses for it changes."""
    y = np.random.default_rng(1).integers(0, 2, 24)
    cv, learner = small_cv(y)
    held_out = np.asarray(cv.outer.held_out.indices[0])
    poisoned = y.copy()
    poisoned[held_out] = 1 - y[held_out]
    other, _ = small_cv(poisoned)
    learner = learner._replace(models={"a": learner.models["a"]})
    losses, spoiled = (c.losses("n", learner, c.inner) for c in (cv, other))
    assert np.array_equal(losses[..., :2], spoiled[..., :2])  # fold 0's inner folds
    assert not np.array_equal(losses[..., 2:4], spoiled[..., 2:4])  # it trains there
    # tuned on the held-out rows, as the mistake does, the choice does see them
    outer, wrong = (c.losses("n", learner, c.outer) for c in (cv, other))
    assert not np.array_equal(outer[..., 0], wrong[..., 0])


def test_a_choice_is_the_lowest_mean_of_its_inner_folds() -> None:
    losses = np.random.default_rng(0).uniform(size=(3, 5, 8))  # 4 folds of 2
    choice = nested.lowest_losses(losses, 2)
    for fold in range(4):
        mean = losses[:, :, 2 * fold : 2 * fold + 2].mean(-1)
        candidate, epoch = np.unravel_index(mean.argmin(), mean.shape)
        assert (choice.candidate[fold], choice.epochs[fold]) == (candidate, epoch + 1)


def test_a_stopped_network_is_the_one_it_was_at_that_epoch() -> None:
    """Its held-out loss is what the losses by epoch say, with the same seeds."""
    cv, learner = small_cv(np.random.default_rng(1).integers(0, 2, 24))
    losses = cv.losses("n", learner, cv.outer)  # [models, epochs, folds]
    choice = nested.lowest_losses(losses)
    scores = cv.scores(cv.logits("n", learner, choice))["log-loss"]
    lowest = losses.min((0, 1)).reshape(2, 2).mean(1)  # of the folds of a repeat
    np.testing.assert_allclose(scores.mean(1), lowest, rtol=1e-5)
    # so this mistake cannot score worse than any honest choice on the same folds
    honest = cv.scores(cv.logits("n", learner, cv.choose("n", learner)))["log-loss"]
    assert np.all(scores.mean(1) <= honest.mean(1) + 1e-6)


def test_a_mistake_is_made_on_the_same_folds_and_seeds() -> None:
    """Where there is nothing to choose, tuning on the test folds changes nothing."""
    module = load("experiments", "ch1_admission")
    cv, learner = small_cv(np.random.default_rng(1).integers(0, 2, 24), epochs=1)
    config = module.Config(hidden=(4,), epochs=1, rate=0.03, mistake="tuned_on_test")
    one = learner._replace(models={"1 hidden": module.build((4,))})
    right = cv.scores(cv.logits("network", one, cv.choose("network", one)))
    each = {"network": right, "logistic regression": right}
    gap = module.mistaken(config, cv, each)["mistake - right: network: log-loss"]
    assert (gap.mean, gap.low, gap.high, gap.n) == (0, 0, 0, 24)
    untuned = module.mistaken(
        module.Config(rate=0.03, mistake="untuned_baseline"), cv, each
    )
    assert set(untuned) == {
        "mistake: logistic regression: log-loss",
        "mistake - right: logistic regression: log-loss",
        "mistake: network - logistic regression: log-loss",
    }


def test_the_majority_class_is_the_share_of_the_training_rows() -> None:
    y = np.arange(21) % 3 == 0
    cv, _ = small_cv(y)
    p = 1 / (1 + np.exp(-cv.majority_logits()))
    for f, mask in enumerate(np.asarray(cv.outer.train.mask)):
        rows = np.asarray(cv.outer.train.indices[f])[mask]
        np.testing.assert_allclose(p[f], y[rows].mean(), rtol=1e-6)


def test_the_regression_of_the_lesson_is_the_maximum_likelihood_one() -> None:
    """The baseline is no straw man: scikit-learn's solver finds the same."""
    from sklearn.linear_model import LogisticRegression

    module = load("experiments", "ch1_admission")
    data = dataset(sets.admission_arrays(sets.read_admissions()))
    config = module.Config()
    outer, inner = nested.nested_folds(data, 4, 2, 1, seed=0)
    cv = nested.NestedCV(outer, inner, 4, 2, 30, 32, 0, lambda *_, **__: Log())
    learner = module.learners(config)["logistic regression"]
    ours = cv.logits("r", learner, cv.without_choice(0))
    x, y = (np.asarray(data.arrays[k], float) for k in "xy")
    for f, mask in enumerate(np.asarray(outer.train.mask)):
        rows = np.asarray(outer.train.indices[f])[mask]
        z = (x - x[rows].mean(0)) / x[rows].std(0)
        best = LogisticRegression(C=np.inf, max_iter=1000).fit(z[rows], y[rows])
        theirs = best.decision_function(z)
        logits = np.stack([ours[f], theirs])
        loss = np.logaddexp(0, np.where(y > 0, -logits, logits)).mean(1)
        assert loss[0] == pytest.approx(loss[1], abs=0.003)


def test_predict_from_the_saved_run(
    smoke: Smoke, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = smoke("ch1_admission")
    capsys.readouterr()  # what the run itself printed, where it ran just now
    module = load("experiments", "ch1_admission")

    def ask(*words: str) -> tuple[Any, str, str]:
        argv = ["ch1_admission.py", "--run-dir", str(folder), "--predict", *words]
        monkeypatch.setattr(sys, "argv", [*argv, "--preset", "smoke"])
        with pytest.raises(SystemExit) as ended:
            cli.experiment(module.main, module.PRESETS, predict=module.predict)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    code, good, _ = ask("800", "4.0", "1")
    assert code == 0
    code, poor, _ = ask("300", "2.5", "4")
    assert code == 0
    chance = [float(text.split("admission ")[1].split()[0]) for text in (good, poor)]
    assert 0 < chance[1] < chance[0] < 1
    assert "2 x 10 folds" in good
    code, _, error = ask("700", "3.7", "5")
    assert code == 2
    assert "rank: 5 is none of 1, 2, 3, 4" in error
    code, _, error = ask("700", "inf", "1")
    assert code == 2
    assert "gpa" in error
    _, _, error = ask("700", "9.0", "1")
    assert "gpa 9 lies outside the training data (2.26 to 4)" in error
