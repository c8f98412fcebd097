"""Lesson 3.2.1: streams in order, bits of whole tunes, composing from a saved run."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.runs import cli
from jaxstudy.runs.checkpoint import Checkpoints
from jaxstudy.runs.run import Options, read_saved, read_sealed, write_atomically
from jaxstudy.text.tune_evaluation import notes_of
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.types import UserError
from tests.conftest import Smoke, contents, load

lesson: Any = load("experiments", "ch3_compose")
PREFIX = "X:1\nM:6/8\nL:1/8\nK:G\nGBd"
TUNES = ["X:1\nK:C\nabc|\n", "X:1\nK:D\nfga|bab|agf|\n", "X:1\nK:C\nz|\n"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> Any:
    """The exit code of the lesson at smoke in a folder, in this process."""
    argv = ["ch3_compose.py", "--preset", "smoke", "--run-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", [*argv, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.experiment(lesson.main, lesson.PRESETS, compose=lesson.compose)
    return ended.value.code


@pytest.fixture(scope="module")
def smoke(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run at smoke."""
    copy = tmp_path_factory.mktemp("compose") / "run"
    return Path(shutil.copytree(smoke("ch3_compose"), copy))


@pytest.fixture
def small() -> Any:
    """A configuration, a vocabulary and weights [1, ...] that nobody trained."""
    config = dataclasses.replace(lesson.PRESETS["smoke"], seeds=1, dropout=0.5)
    vocabulary = fit_vocabulary("".join(TUNES))
    model = lesson.build(config, len(vocabulary))
    params, extra = model.init(jax.random.key(1))
    larger = jax.tree.map(lambda a: 4 * a[None], params)  # far from uniform
    return config, vocabulary, model, larger, extra


@pytest.mark.parametrize("length", [7, 41, 160, 161, 1000, 1003])
def test_a_batch_goes_on_where_each_stream_was_left(length: int) -> None:
    data = lesson.streams(np.arange(length), 4, 5)
    x, y = (np.asarray(data.arrays[name]) for name in ("x", "y"))
    assert np.array_equal(y, x + 1)
    batches = x.reshape(-1, 4, 5)
    assert np.array_equal(batches[1:, :, 0], batches[:-1, :, -1] + 1)
    steps = len(batches)
    assert steps % 8 == 0 or steps == (length - 1) // 5  # all that there is
    assert set(x.ravel().tolist()) == set(range(length - 1))
    assert steps <= 8 * np.ceil(length / 160)


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="shorter than one window"):
        lesson.streams(np.arange(5), 4, 5)


def test_training_carries_states_and_evaluation_begins_with_zeros(small: Any) -> None:
    config, vocabulary, model, params, extra = small
    params = jax.tree.map(lambda a: a[0], params)
    objective = lesson.bits(model)
    x = np.random.default_rng(0).integers(1, len(vocabulary), (config.streams, 9))
    batch = {
        "x": jnp.asarray(x[:, :-1]),
        "y": jnp.asarray(x[:, 1:]),
        "mask": np.ones(16),
    }
    key = jax.random.key(0)
    _, (after, metrics) = objective(params, extra, batch, key)
    assert all(np.any(a) for a in jax.tree.leaves(after["states"]))
    bits, nats = metrics["bits"], metrics["loss"]
    assert bits.total == pytest.approx(nats.total / np.log(2))

    evaluate = lesson.from_zero_states(objective)
    found = [
        evaluate(lesson.TrainState(jnp.int32(0), params, left, None, key), batch)
        for left in (extra, after)
    ]
    assert found[0]["loss"].total == found[1]["loss"].total
    on = [objective(params, left, batch, None)[1][1] for left in (extra, after)]
    assert on[0]["loss"].total == found[0]["loss"].total  # without dropout, too
    assert on[0]["loss"].total != on[1]["loss"].total


def test_bits_of_a_tune_are_those_of_its_characters_one_by_one(small: Any) -> None:
    config, vocabulary, model, params, _ = small
    found = lesson.bits_of_tunes(model, params, vocabulary, TUNES)
    assert found.shape == (1, 3)
    weights = jax.tree.map(lambda a: a[0], params)
    for tune, bits in zip(TUNES, found[0], strict=True):
        numbers = vocabulary.encode("\n" + tune + "\n")
        states, expected = lesson.first_states("lstm", config.units, 1), 0.0
        for this, after in itertools.pairwise(numbers):
            logits, extra = model.apply(
                weights, {"states": states}, jnp.array([[this]]), train=False, key=None
            )
            states = extra["states"]
            expected -= float(jax.nn.log_softmax(logits[0, 0])[after]) / np.log(2)
        assert bits == pytest.approx(expected, rel=1e-5)


def test_bits_a_character_are_a_ratio_of_sums() -> None:
    bits, tunes = np.array([10.0, 30.0, 5.0] * 2), TUNES * 2
    found = lesson.per_character(bits, tunes)
    assert found.mean == pytest.approx(90 / sum(len(tune) + 1 for tune in tunes))
    assert found.low < found.mean < found.high
    exact = np.array([2.0 * (len(tune) + 1) for tune in tunes])
    assert lesson.per_character(exact, tunes)[:3] == pytest.approx((2, 2, 2))


def test_the_order_of_the_ngram_is_chosen_on_validation_tunes(small: Any) -> None:
    config, vocabulary, *_ = small
    config = dataclasses.replace(config, orders=(1, 2, 3, 4))
    sets = lesson.Tunes(tuple(TUNES), tuple(TUNES[:1]), tuple(TUNES[1:]))
    order, validation, test = lesson.bits_of_ngram(config, vocabulary, sets)
    assert (validation.shape, test.shape) == ((1,), (2,))
    each = [
        lesson.bits_of_ngram(
            dataclasses.replace(config, orders=(n,)), vocabulary, sets
        )[1].sum()
        for n in config.orders
    ]
    assert order == 1 + int(np.argmin(each))
    assert validation.sum() == min(each)


def test_xz_packs_what_it_has_seen_into_less() -> None:
    tunes = [
        "".join(np.random.default_rng(i).choice(list("abcd"), 400)) for i in (0, 1)
    ]
    alone, after_another, after_itself = (
        lesson.xz_bits(tunes[:1], before) for before in ((), tunes[1:], tunes[:1])
    )
    assert 2 < after_another < alone  # two bits a letter is what there is to say
    assert after_itself < 0.2


def test_a_tune_goes_on_from_its_prefix_to_an_empty_line(small: Any) -> None:
    config, vocabulary, _, params, _ = small

    def go_on(count: int = 30, **settings: Any) -> list[str]:
        own = dataclasses.replace(config, **settings)
        return lesson.continue_tune(own, params, vocabulary, "X:1\n", count)

    tunes = go_on()
    assert all(tune.startswith("X:1\n") for tune in tunes)
    assert all("\n\n" not in tune for tune in tunes)
    assert {len(tune) for tune in tunes} != {4 + config.length}  # some have ended
    assert max(map(len, tunes)) <= 4 + config.length
    assert len(set(tunes)) > 20
    assert go_on() == tunes
    assert go_on(count=3) == tunes[:3]
    assert go_on(seed=1) != tunes
    assert len(set(go_on(temperature=0.0))) == len(set(go_on(top_k=1))) == 1
    assert go_on(temperature=0.0) == go_on(top_k=1)


def test_a_run_keeps_its_vocabulary_its_best_epoch_and_its_tunes(smoke: Path) -> None:
    vocabulary = read_sealed(smoke, lesson.VOCABULARY, Vocabulary)
    assert {"X", ":", "|", "\n"} <= set(vocabulary.symbols)
    rows = [json.loads(t) for t in (smoke / "metrics.jsonl").read_text().splitlines()]
    losses = {
        row["step"]: np.mean(row["loss"])
        for row in rows
        if row["split"] == "validation"
    }
    assert len(losses) == 2
    kept = Checkpoints(smoke / "checkpoints").steps()
    assert min(losses, key=lambda step: losses[step]) in kept
    metrics = json.loads((smoke / "result.json").read_text())["metrics"]
    for split in ("validation", "test"):
        for name in ("LSTM", "n-gram", "LSTM - n-gram"):
            assert metrics[f"{name}: {split} bits per character"]["of"] == "tunes"
    assert metrics["composed: accepted by music21"]["n"] == 4
    tunes = (smoke / "samples" / "all.abc").read_text()
    assert tunes.count("X:1\n") >= 4
    assert (smoke / "figures" / "bits.png").exists()


def test_the_best_epoch_is_the_one_that_composes(smoke: Path, tmp_path: Path) -> None:
    """Its weights, by the monitored value, not those of the last step."""
    saved = read_saved(smoke, lesson.Config, "ch3_compose")
    symbols = len(read_sealed(smoke, lesson.VOCABULARY, Vocabulary))
    weights = lesson.best_weights(smoke, Options(), saved.config, symbols)
    folder = tmp_path / "checkpoints"
    owner = {"experiment": "ch3_compose", "run": saved.id, "part": ""}
    again = Checkpoints(folder, lesson.Keep("best", 1), owner)
    states = lesson.first_states("lstm", saved.config.units, saved.config.streams)
    extra = {"states": jax.tree.map(lambda a: jnp.stack([a, a]), states)}
    for step, value in ((1, 2.0), (2, 1.0), (3, 3.0)):
        mine = jax.tree.map(lambda a, step=step: a + step, weights)
        again.save(
            step,
            {"weights": {"params": mine, "extra": extra}},
            {"monitored": {"name": "validation.loss", "value": value}},
        )
    write_atomically(tmp_path / "config.json", (smoke / "config.json").read_text())
    found = lesson.best_weights(tmp_path, Options(), saved.config, symbols)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(weights), strict=True):
        assert np.array_equal(a, b + 2)


def test_compose_from_the_saved_run(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = PREFIX.replace("\n", "\\n")
    assert run(monkeypatch, smoke, "--compose", written) == 0
    tune, said = capsys.readouterr()
    assert tune.startswith(PREFIX)
    assert "samples" in said
    path = smoke / "samples" / "composed_by_seed_0_1.abc"
    assert path.read_text() == tune
    # what a network of eight units makes up may be no tune
    with contextlib.suppress(UserError):
        notes_of(tune)
        assert path.with_suffix(".mid").read_bytes().startswith(b"MThd")
    assert path.with_suffix(".mid").exists() != ("became no MIDI file" in said)
    before = contents(smoke / "samples")
    lines = PREFIX.replace("\n", "\r\n")
    assert run(monkeypatch, smoke, "--compose", lines) == 0
    assert capsys.readouterr().out == tune
    assert contents(smoke / "samples").keys() == before.keys()

    saved = read_saved(smoke, lesson.Config, "ch3_compose")
    config = dataclasses.replace(saved.config, seed=1, continued=2)
    lesson.compose(dataclasses.replace(saved, config=config), PREFIX)
    others = capsys.readouterr().out
    assert others.count(PREFIX) == 2
    assert tune not in others
    assert (smoke / "samples" / "composed_by_seed_1_2.abc").exists()


def test_a_prefix_that_cannot_be_read_is_refused(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(smoke)
    assert run(monkeypatch, smoke, "--compose", "") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --compose needs a beginning")
    assert run(monkeypatch, smoke, "--compose", "X:1\\nK:\N{MUSIC SHARP SIGN}é") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'\N{MUSIC SHARP SIGN}', 'é': not in the vocabulary" in line
    assert contents(smoke) == before

    saved = read_saved(smoke, lesson.Config, "ch3_compose")
    config = dataclasses.replace(saved.config, unknown=True)
    lesson.compose(dataclasses.replace(saved, config=config), "X:1\nK:é")
    assert capsys.readouterr().out.startswith("X:1\nK:é")


def test_a_run_that_cannot_compose_is_refused(
    smoke: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused() -> str:
        assert run(monkeypatch, tmp_path, "--compose", PREFIX) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    assert "no run in" in refused()
    config = json.loads((smoke / "config.json").read_text())
    other = json.dumps({**config, "experiment": "ch3_memory"})
    (tmp_path / "config.json").write_text(other)
    assert "holds a run of ch3_memory, not of ch3_compose" in refused()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"{lesson.VOCABULARY} cannot be read: No such file" in refused()
    (tmp_path / lesson.VOCABULARY).write_text((smoke / lesson.VOCABULARY).read_text())
    assert "no checkpoint that fits" in refused()
