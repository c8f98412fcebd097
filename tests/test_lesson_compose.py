"""Lesson 3.2.1: states carried between batches, composing from a saved run."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.models.recurrent import first_states
from jaxstudy.runs.checkpoint import Checkpoints, Keep
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.saved import Options, read_saved, read_sealed
from jaxstudy.text.tune_evaluation import notes_of
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.types import UserError
from tests.conftest import Smoke, contents, load
from tests.scripts import run_script

lesson: Any = load("experiments", "ch3_compose")
PREFIX = "X:1\nM:6/8\nL:1/8\nK:G\nGBd"
CONFIG = dataclasses.replace(lesson.PRESETS["smoke"], seeds=1, dropout=0.5)
VOCABULARY = fit_vocabulary("X:1\nK:C\nabc|\nX:1\nK:D\nfga|bab|agf|\nX:1\nK:C\nz|\n")


@pytest.fixture(scope="module")
def folder(smoke: Smoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run at smoke."""
    copy = tmp_path_factory.mktemp("compose") / "run"
    return Path(shutil.copytree(smoke("ch3_compose"), copy))


def compose(folder: Path, prefix: str) -> Any:
    return run_script("ch3_compose", "--run-dir", folder, "--compose", prefix)


def test_training_carries_states_and_evaluation_begins_with_zeros() -> None:
    model = lesson.build_carrying(CONFIG, len(VOCABULARY))
    params, extra = jax.jit(model.init)(jax.random.key(1))
    objective = jax.jit(lesson.next_character(model))
    text = np.random.default_rng(0).integers(1, len(VOCABULARY), (CONFIG.streams, 9))
    x, y, mask = jnp.asarray(text[:, :-1]), jnp.asarray(text[:, 1:]), np.ones(16)
    batch, key = {"x": x, "y": y, "mask": mask}, jax.random.key(0)
    _, (carried, metrics) = objective(params, extra, batch, key)
    assert metrics["bits"].total == pytest.approx(metrics["loss"].total / np.log(2))
    assert all(np.any(a) for a in jax.tree.leaves(carried["states"]))
    again = objective(params, carried, batch, key)[0]
    assert again != objective(params, extra, batch, key)[0]
    losses = [objective(params, e, batch, None)[0] for e in (extra, carried)]
    assert losses[0] == losses[1]
    forgetful = dataclasses.replace(CONFIG, forget=1.0)
    model = lesson.build_carrying(forgetful, len(VOCABULARY))
    objective = jax.jit(lesson.next_character(model))
    losses = [objective(params, e, batch, key)[0] for e in (extra, carried)]
    assert losses[0] == losses[1]


def test_a_tune_goes_on_from_its_prefix_to_an_empty_line() -> None:
    model = lesson.build(CONFIG, len(VOCABULARY))
    # far from uniform, so that some end
    params, _ = jax.jit(model.init)(jax.random.key(1))
    params = jax.tree.map(lambda a: 4 * a[None], params)

    def go_on(count: int = 30, **settings: Any) -> list[str]:
        config = dataclasses.replace(CONFIG, **settings)
        return lesson.continue_tune(config, params, VOCABULARY, "X:1\n", count)

    tunes = go_on()
    assert all(tune.startswith("X:1\n") and "\n\n" not in tune for tune in tunes)
    lengths = [len(tune) - 4 for tune in tunes]
    assert min(lengths) < max(lengths) <= CONFIG.length
    assert len(set(tunes)) > 20
    assert go_on(count=3) == tunes[:3]
    assert go_on(seed=1) != tunes
    assert len(set(go_on(temperature=0.0))) == 1
    assert go_on(temperature=0.0) == go_on(top_k=1)


def test_a_run_keeps_its_vocabulary_its_best_epoch_and_its_tunes(folder: Path) -> None:
    vocabulary = read_sealed(folder, lesson.VOCABULARY, Vocabulary)
    assert {"X", ":", "|", "\n"} <= set(vocabulary.symbols)
    log = (folder / "metrics.jsonl").read_text().splitlines()
    losses = {
        record["step"]: np.mean(record["loss"])
        for record in map(json.loads, log)
        if record["split"] == "validation"
    }
    assert len(losses) == 2
    best = min(losses, key=lambda step: losses[step])
    assert best in Checkpoints(folder / "checkpoints").steps()
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    for split in ("validation", "test"):
        for name in ("network", "n-gram", "network - n-gram"):
            assert metrics[f"{name}: {split} bits per character"]["of"] == "tunes"
    assert metrics["composed: accepted by music21"]["n"] == 4
    assert (folder / "samples" / "all.abc").read_text().count("X:1\n") >= 4
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == {"bits", "piano_roll"}  # a real tune, if nothing else can be read
    assert set(lesson.LESSON.metrics) <= set(metrics)


def test_the_best_epoch_is_the_one_that_composes(folder: Path, tmp_path: Path) -> None:
    """Its weights, by the monitored value, not those of the last step."""
    saved = read_saved(folder, lesson.Config, "ch3_compose")
    symbols = len(read_sealed(folder, lesson.VOCABULARY, Vocabulary))
    weights = lesson.best_weights(folder, Options(), saved.config, symbols)
    owner = {"experiment": "ch3_compose", "run": saved.id, "part": ""}
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep("best", 1), owner)
    states = first_states("lstm", saved.config.units, saved.config.streams)
    extra = {"states": jax.tree.map(lambda a: jnp.stack([a, a]), states)}
    for step, value in ((1, 2.0), (2, 1.0), (3, 3.0)):
        params = jax.tree.map(lambda a, step=step: a + step, weights)
        checkpoints.save(
            step,
            {"weights": {"params": params, "extra": extra}},
            {"monitored": {"name": "validation.loss", "value": value}},
        )
    write_atomically(tmp_path / "config.json", (folder / "config.json").read_text())
    best = lesson.best_weights(tmp_path, Options(), saved.config, symbols)
    for a, b in zip(jax.tree.leaves(best), jax.tree.leaves(weights), strict=True):
        assert np.array_equal(a, b + 2)


def test_compose_from_the_saved_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(folder, PREFIX.replace("\n", "\\n")) == 0
    tune, notes = capsys.readouterr()
    assert tune.startswith(PREFIX)
    path = folder / "samples" / "composed_by_seed_0_1.abc"
    assert path.read_text() == tune
    # what a network of eight units makes up may be no tune
    with contextlib.suppress(UserError):
        notes_of(tune)
        assert path.with_suffix(".mid").read_bytes().startswith(b"MThd")
    assert path.with_suffix(".mid").exists() != ("became no MIDI file" in notes)
    before = contents(folder / "samples")
    assert compose(folder, PREFIX.replace("\n", "\r\n")) == 0
    assert capsys.readouterr().out == tune
    assert contents(folder / "samples").keys() == before.keys()

    saved = read_saved(folder, lesson.Config, "ch3_compose")
    config = dataclasses.replace(saved.config, seed=1, continued=2, unknown=True)
    lesson.compose(dataclasses.replace(saved, config=config), PREFIX + "é")
    others = capsys.readouterr().out
    assert others.count(PREFIX + "é") == 2
    assert (folder / "samples" / "composed_by_seed_1_2.abc").exists()


def test_a_run_or_a_prefix_that_cannot_compose_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path = tmp_path, prefix: str = PREFIX) -> str:
        assert compose(folder, prefix) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    assert "no run in" in refused()
    before = contents(folder)
    sharp = "\N{MUSIC SHARP SIGN}"
    assert "--compose needs a beginning" in refused(folder, "")
    assert f"'{sharp}', 'é': not in the voc" in refused(folder, f"X:1\\nK:{sharp}é")
    assert contents(folder) == before
    config = json.loads((folder / "config.json").read_text())
    other = json.dumps({**config, "experiment": "ch3_memory"})
    (tmp_path / "config.json").write_text(other)
    assert "holds a run of ch3_memory, not of ch3_compose" in refused()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"{lesson.VOCABULARY} cannot be read: No such file" in refused()
    (tmp_path / lesson.VOCABULARY).write_text((folder / lesson.VOCABULARY).read_text())
    assert "no checkpoint that fits" in refused()
