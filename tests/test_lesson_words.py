"""Lesson 3.1: causality, the bag, the order test, the saved run."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxstudy.objectives import token_cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.saved import read_sealed
from jaxstudy.runs.statistics import NONNEGATIVE, mean_over_runs
from jaxstudy.text.ngram import bits, fit_ngram
from jaxstudy.text.plots import save_learning, save_perplexities
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.text.windows import passage_windows, with_shuffled_contexts
from jaxstudy.text.word_sets import (
    KNOWN,
    ORDERS,
    TEST,
    VALIDATION,
    ngram_baseline,
    word_sets,
)
from tests.conftest import Ask, Smoke, load

lesson: Any = load("experiments", "ch3_next_word")
CONFIG = lesson.Config(context=3, window=5, embedding=4, units=6)
SIZE = 7  # words; the start is the next number
NETWORKS = [n for n, (_, seen) in lesson.NETWORKS.items() if seen == "windows"]


def test_only_the_bag_answers_the_same_to_shuffled_words(smoke: Smoke) -> None:
    result = (smoke("ch3_next_word") / "result.json").read_text()
    metrics = json.loads(result)["metrics"]
    for name in NETWORKS:
        ordered, shuffled = (metrics[f"{name}: {order}"] for order in lesson.ORDERS)
        assert (ordered == shuffled) == (name == "bag of words")
    assert set(lesson.LESSON.metrics) <= set(metrics)
    shuffled, bag = (metrics[m]["values"] for m in (lesson.CONTROLS[1], lesson.BAGS[0]))
    assert metrics[lesson.RATIO]["values"] == pytest.approx(np.divide(shuffled, bag))
    verdicts = [claim.verdict for claim in lesson.LESSON.judge(metrics)]
    assert verdicts == ["undetermined"] * 4 + ["holds"]  # of two seeds


def test_the_learning_figure_has_validation_curves_and_the_ngram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The validation set's records are named by what is measured on it."""
    records = [
        {"split": split, "epoch": epoch, "loss": loss}
        for split, loss in (("train", 5.0), (VALIDATION, 4.0))
        for epoch in (1, 2)
    ]
    sub_run: Any = SimpleNamespace(records=records)
    run: Any = SimpleNamespace(sub_runs={"LSTM": sub_run})
    panels: list[plots.Panel] = []
    monkeypatch.setattr(
        plots, "save_lines", lambda run, name, some: panels.extend(some)
    )
    save_learning(run, ["LSTM"], "loss", "loss", {"n-gram model": 4.5})
    training, validation = panels
    assert training.lines["LSTM"] == ([1, 2], [5, 5])
    assert validation.lines["LSTM"] == ([1, 2], [4, 4])
    assert (training.levels, validation.levels) == ({}, {"n-gram model": 4.5})


def test_all_perplexities_are_drawn_on_one_axis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the right panel is compared with the left; equal values lie apart."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    estimate = mean_over_runs(np.array([200.0, 210.0]), NONNEGATIVE)
    result: dict[str, Any] = {f"n-gram: {split}": 150.0 for split in (TEST, KNOWN)}
    result |= {f"bag: {metric}": estimate for metric in (TEST, KNOWN, *ORDERS)}
    run: Any = None
    save_perplexities(run, result, ["bag"], context=4, bag="bag")
    whole, alone = figures[0].axes
    assert whole.get_xlim() == alone.get_xlim()
    assert whole.get_xscale() == "log"
    heights = {float(np.ravel(line.get_ydata())[0]) for line in alone.lines}
    assert len(heights) == 2
    legend = alone.get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "bag ± 5 %"


def test_predict_names_what_may_follow(smoke: Smoke, ask: Ask) -> None:
    folder = smoke("ch3_next_word")
    vocabulary = read_sealed(folder, lesson.VOCABULARY, Vocabulary)
    config = lesson.PRESETS["smoke"]
    train = lesson.first_words(lesson.read_prose(), config.words).train
    words = itertools.chain(*train)
    assert vocabulary == fit_vocabulary(words, size=config.vocabulary)

    def predict(prefix: str) -> Any:
        where = ("--run-dir", folder, "--predict", prefix)
        return ask(lesson, *where, predict=lesson.predict)

    code, out, _ = predict("The Whale,")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == list(NETWORKS)
    for line in out.splitlines():
        chances = [float(p) for p in re.findall(r"\d\.\d{3}", line)]
        assert len(chances) == lesson.MAX_SHOWN
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1.01
        assert "(unknown)" in line  # two fifths of all words
    for prefix, sentence in (
        (" \n", "takes a word at least"),
        ("the zyzzyva, a qat", "'zyzzyva', 'qat': not in the vocabulary"),
    ):
        code, _, error = predict(prefix)
        assert code == 2
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sentence in error


def test_a_text_that_will_not_do_is_refused_without_a_trace(
    tmp_path: Path, ask: Ask
) -> None:
    path, folder = tmp_path / "mine.txt", tmp_path / "run"
    path.write_bytes(b"caf\xe9 " * 2000)
    code, _, error = ask(lesson, "--text", path, "--run-dir", folder)
    assert code == 2
    assert error.startswith(f"error: {path} is no text in UTF-8")
    assert error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_sees(name: str) -> None:
    """No word itself or a later one; a dense layer the last n; a bag not their order.

    Words after the end of a passage count for nothing.
    """
    model = lesson.build(name, CONFIG, SIZE)
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(0))[0])
    apply = jax.jit(lambda x: model.apply(params, {}, x, train=False, key=None)[0])
    x = np.random.default_rng(0).integers(0, SIZE, (2, 3 - 1 + 5))
    x[:, :3] = 0, 1, 2
    logits = apply(x)
    assert logits.shape == (2, 5, SIZE)
    for place in range(x.shape[1]):
        changed = x.copy()
        changed[:, place] = (changed[:, place] + 1) % SIZE
        differs = np.abs(apply(changed) - logits).max((0, 2)) > 0
        sees = np.arange(5) >= place - 3 + 1  # from the first that has seen it
        if name in ("bag of words", "concatenated words"):
            sees &= np.arange(5) <= place
        np.testing.assert_array_equal(differs, sees)
    for words in ((2, 1, 0), (1, 0, 2)):
        other = np.concatenate([[words] * 2, x[:, 3:]], axis=1)
        same = np.array_equal(apply(other)[:, 0], logits[:, 0])
        assert same == (name == "bag of words")

    objective = jax.jit(token_cross_entropy(model))
    data = passage_windows([np.arange(6) % SIZE], 3, 5, SIZE)
    batch = {**data.arrays, "mask": jnp.ones(2)}
    loss, (_, metrics) = objective(params, {}, batch, None)
    assert metrics["loss"].count == 6
    real, wrong = batch["real"], (batch["y"] + 1) % SIZE
    padding = {**batch, "y": jnp.where(real, batch["y"], wrong)}
    assert objective(params, {}, padding, None)[0] == loss
    other = {**batch, "y": jnp.where(real, wrong, batch["y"])}
    assert objective(params, {}, other, None)[0] != loss
    keys = jax.random.split(jax.random.key(0))
    dropped = [objective(params, {}, batch, key)[0] for key in keys]
    assert len({float(v) for v in (loss, *dropped)}) == 3


def test_contexts_are_shuffled_in_training_alone_and_each_in_its_own_way() -> None:
    seen = []

    def objective(params: Any, extra: Any, batch: Any, key: Any) -> Any:
        seen.append(np.asarray(batch["x"]))
        return 0.0, ({}, {})

    shuffled = with_shuffled_contexts(objective)
    batch = {"x": jnp.arange(60).reshape(6, 10)}
    for key in (jax.random.key(0), jax.random.key(1), None):
        shuffled({}, {}, batch, key)
    first, second, evaluated = seen
    np.testing.assert_array_equal(evaluated, batch["x"])
    for x in (first, second):
        np.testing.assert_array_equal(np.sort(x, 1), batch["x"])
    assert np.any(first != second)
    assert len({tuple(row % 10) for row in first}) == 6


def test_known_words_are_measured_apart() -> None:
    """The words that are not 0, by the networks' sets and the n-gram model alike."""
    numbers = {split: [np.array([1, 2, 0, 3, 1, 0, 2])] for split in
               ("train", "validation", "test")}  # fmt: skip
    sets = word_sets(numbers, context=2, window=3, start=4, asked=4)["windows"]
    counted = {name: int(np.sum(sets[name].arrays["real"])) for name in (TEST, KNOWN)}
    assert counted == {TEST: 7, KNOWN: 5}
    metrics = ngram_baseline(numbers, 4, [1])
    p = np.exp2(-bits(fit_ngram(numbers["train"], 4, 1), numbers["test"]))
    known = np.exp(-np.log(p[[0, 1, 3, 4, 6]]).mean())
    assert metrics[f"n-gram: {KNOWN}"] == pytest.approx(known)
    assert metrics["test: share of unknown words"] == 2 / 7
