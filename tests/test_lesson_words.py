"""Lesson 3.1: windows that hold each word once, causality, the bag, the saved run."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.runs import cli
from jaxstudy.runs.run import read_sealed
from jaxstudy.text.prose import read_prose
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.types import UserError
from tests.conftest import load

lesson: Any = load("experiments", "ch3_next_word")
CONFIG = lesson.Config(context=3, window=5, embedding=4, units=6, asked=1000)
SIZE = 7  # words; the start is the next number
NETWORKS = lesson.get_args(lesson.Name)


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """The exit code of the lesson, in this process."""
    monkeypatch.setattr(sys, "argv", ["ch3_next_word.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.experiment(lesson.main, lesson.PRESETS, predict=lesson.predict)
    return ended.value.code


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of one's own: words of one letter, each more frequent than the next."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    numbers = np.random.default_rng(0).zipf(1.3, 2500) % 26
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text(" ".join(letters[numbers]))
    return path


@pytest.fixture(scope="module")
def folder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smoke preset on that text."""
    where = tmp_path_factory.mktemp("runs") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ("--preset", "smoke", "--text", text, "--vocabulary", 12)
        assert ask(patch, *arguments, "--run-dir", where) == 0
    return where


@pytest.fixture(scope="module")
def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_only_the_bag_answers_the_same_to_shuffled_words(
    metrics: dict[str, Any],
) -> None:
    for name in NETWORKS:
        here, there = (metrics[f"{name}: {order}"] for order in lesson.ORDERS)
        assert (here == there) == (name == "bag of words")


def test_the_vocabulary_is_that_of_the_training_text(text: Path, folder: Path) -> None:
    train = [word for passage in read_prose(text).train for word in passage]
    want = fit_vocabulary(train, size=12)
    assert read_sealed(folder, lesson.VOCABULARY, Vocabulary) == want
    assert len(want) == 12


def test_predict_names_what_may_follow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    symbols = read_sealed(folder, lesson.VOCABULARY, Vocabulary).symbols
    prefix = " ".join(symbols[:2]).upper()
    assert ask(monkeypatch, "--run-dir", folder, "--predict", prefix) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(NETWORKS)
    for line in lines:
        pairs = [p.rsplit(" ", 1) for p in line.partition(": ")[2].split(", ")]
        assert {word for word, _ in pairs} <= {*symbols, "(unknown)"}
        chances = [float(p) for _, p in pairs]
        assert len(chances) == lesson.SHOWN
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1.01


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        ("", "takes a word at least"),
        (" \n", "takes a word at least"),
        ("a whale, a ship", "'whale', ',', 'ship': not in the vocabulary"),
    ],
)
def test_predict_refuses_in_a_sentence(
    prefix: str,
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask(monkeypatch, "--run-dir", folder, "--predict", prefix) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_predict_refuses_another_lessons_run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = json.loads((folder / "config.json").read_text())
    other = json.dumps({**config, "experiment": "ch3_memory"})
    (tmp_path / "config.json").write_text(other)
    assert ask(monkeypatch, "--run-dir", tmp_path, "--predict", "a") == 2
    assert "ch3_memory" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ask(monkeypatch, "--run-dir", tmp_path, "--predict", "a") == 2
    assert "vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"call me", b"caf\xe9 " * 2000])
def test_a_text_that_will_not_do_is_refused_without_a_trace(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    arguments = ("--preset", "smoke", "--text", tmp_path / "mine.txt")
    assert ask(monkeypatch, *arguments, "--run-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.txt" in line
    assert not (tmp_path / "run").exists()


def test_windows_predict_every_word_once_from_those_before() -> None:
    rng = np.random.default_rng(0)
    passages = [rng.integers(0, SIZE, n) for n in (1, 4, 5, 6, 13)]
    found = lesson.windows(passages, CONFIG, SIZE)
    x, y, real = (np.asarray(found.arrays[name]) for name in ("x", "y", "real"))
    assert x.shape[1] == 3 - 1 + 5
    assert real.sum() == sum(map(len, passages))
    np.testing.assert_array_equal(y[real], np.concatenate(passages))
    before = [np.concatenate([[SIZE] * 3, p])[i : i + 3]
              for p in passages for i in range(len(p))]  # fmt: skip
    contexts = np.lib.stride_tricks.sliding_window_view(x, 3, axis=1)
    np.testing.assert_array_equal(contexts[real], before)
    assert y.max() < SIZE  # no start is to be predicted


def test_the_order_test_keeps_words_and_answers() -> None:
    rng = np.random.default_rng(0)
    passages = [rng.integers(0, SIZE, n) for n in (2, 3, 40)]
    ordered, shuffled = lesson.order_test(passages, CONFIG).values()
    a, b = np.asarray(ordered.arrays["x"]), np.asarray(shuffled.arrays["x"])
    whole = np.lib.stride_tricks.sliding_window_view(passages[2], 4)
    np.testing.assert_array_equal(a, whole[:, :3])
    np.testing.assert_array_equal(np.sort(a), np.sort(b))
    assert np.any(a != b)
    for one in (ordered, shuffled):
        np.testing.assert_array_equal(one.arrays["y"], whole[:, 3:])
    with pytest.raises(UserError, match="--context 3: no passage"):
        lesson.order_test(passages[:2], CONFIG)


def network(name: str) -> tuple[Any, Any]:
    """A network and weights large enough for words to matter."""
    model = lesson.build(name, CONFIG, SIZE)
    params, _ = model.init(jax.random.key(0))
    return model, jax.tree.map(lambda a: 3 * a, params)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_word_depends_on_itself_or_later_ones(name: str) -> None:
    """And those of dense networks on none but the last n."""
    model, params = network(name)
    x = np.random.default_rng(0).integers(0, SIZE, (2, 3 - 1 + 5))

    def logits(x: np.ndarray) -> np.ndarray:
        found, _ = model.apply(params, {}, jnp.asarray(x), train=False, key=None)
        return np.asarray(found)

    here = logits(x)
    assert here.shape == (2, 5, SIZE)
    for at in range(x.shape[1]):
        changed = x.copy()
        changed[:, at] = (changed[:, at] + 1) % SIZE
        moved = np.abs(logits(changed) - here).max((0, 2)) > 0
        last = at - 3 + 1  # the first prediction that has seen it
        sees = np.arange(5) >= last
        if name not in lesson.KINDS:
            sees &= np.arange(5) <= at
        np.testing.assert_array_equal(moved, sees)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_bag_has_no_order(name: str) -> None:
    model, params = network(name)
    x = jnp.array([[0, 1, 2]])
    each = [x, x[:, ::-1], jnp.array([[1, 0, 2]])]
    found = [model.apply(params, {}, x, train=False, key=None)[0] for x in each]
    same = [bool(jnp.array_equal(found[0], other)) for other in found[1:]]
    assert same == [name == "bag of words"] * 2


@pytest.mark.parametrize("name", NETWORKS)
def test_words_after_the_end_of_a_passage_count_for_nothing(name: str) -> None:
    model, params = network(name)
    objective = lesson.next_word(model)
    data = lesson.windows([np.arange(6) % SIZE], CONFIG, SIZE)
    batch = {**data.arrays, "mask": jnp.ones(2)}
    real = batch["real"]
    loss, (_, metrics) = objective(params, {}, batch, None)
    other = {**batch, "y": jnp.where(real, batch["y"], (batch["y"] + 1) % SIZE)}
    assert objective(params, {}, other, None)[0] == loss
    assert metrics["loss"].count == 6
    wrong = {**batch, "y": jnp.where(real, (batch["y"] + 1) % SIZE, batch["y"])}
    assert objective(params, {}, wrong, None)[0] != loss
    keys = jax.random.split(jax.random.key(0))
    dropped = [objective(params, {}, batch, key)[0] for key in keys]
    assert len({float(v) for v in (loss, *dropped)}) == 3


def test_the_order_of_the_ngram_is_chosen_on_validation_alone() -> None:
    """In a text whose words depend on the one before, and in one of chance."""
    text = np.random.default_rng(0).integers(0, 3, 400).cumsum() % SIZE
    noise = np.random.default_rng(1).integers(0, SIZE, 100)
    train = {"train": [text[:200]]}
    pairs = {
        (a, b): lesson.best_ngram(
            {**train, "validation": [here], "test": [there]}, SIZE, 4
        )
        for a, here in (("text", text[200:300]), ("noise", noise))
        for b, there in (("text", text[300:]), ("noise", noise))
    }
    for a, order in (("text", pairs["text", "text"].order), ("noise", 1)):
        assert {pairs[a, b].order for b in ("text", "noise")} == {order}
    assert pairs["text", "text"].order > 1
    assert 3 < pairs["text", "noise"].validation < 4 < pairs["text", "noise"].test


def test_whole_passages_until_there_are_enough() -> None:
    passages = tuple([["a"] * n for n in (3, 4, 5)])
    for most, count in ((1, 1), (3, 1), (3.5, 2), (7, 2), (8, 3), (99, 3)):
        assert lesson.first_passages(passages, most) == passages[:count]
