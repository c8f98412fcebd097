"""Runs exported: for three platforms, read back by JAX alone, equal to their models."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy import __main__ as program
from jaxstudy.runs import files
from jaxstudy.runs.cli import exit_code
from jaxstudy.runs.export import Predictor, export_function
from jaxstudy.runs.saved import Saved, read_saved
from jaxstudy.types import UserError
from tests.conftest import ROOT, Patch, Said, Smoke, load

# What is drawn for one example of each input: within what the lesson's model is for.
INPUTS = {
    "ch1_admission": lambda r, a: r.uniform(0, 1, a.shape) * [800, 4, 1, 1, 1],
    "ch2_cnn": lambda r, a: r.integers(0, 256, a.shape),
    "ch2_overfitting": lambda r, a: r.integers(0, 256, a.shape),
    "ch3_next_word": lambda r, a: r.integers(0, 100, a.shape),
    "ch4_table": lambda r, a: r.integers(0, 2, a.shape),
}


def draw(
    name: str, predictor: Predictor, rows: int, random: np.random.Generator
) -> tuple[Any, ...]:
    """A batch of so many examples of each input."""

    def one(a: jax.ShapeDtypeStruct) -> jax.Array:
        batch = jax.ShapeDtypeStruct((rows, *a.shape), a.dtype)
        return jnp.asarray(INPUTS[name](random, batch), a.dtype)

    return jax.tree.map(one, predictor.inputs)


def saved_run(name: str, folder: Path) -> tuple[Any, Saved[Any]]:
    script = load("experiments", name)
    return script, read_saved(folder, type(script.PRESETS["smoke"]), name)


@pytest.mark.parametrize("name", INPUTS)
def test_an_exported_run_computes_what_its_models_do(
    name: str, smoke: Smoke, tmp_path: Path, capsys: Said
) -> None:
    run, out = smoke(name), tmp_path / "model"
    program.export(run, out)
    script, saved = saved_run(name, run)
    told = capsys.readouterr().out
    assert script.predictor.__doc__.splitlines()[0] in told
    assert f"written to {out}, for cpu, cuda, tpu" in told
    read = jax.export.deserialize(bytearray(out.read_bytes()))
    assert read.platforms == ("cpu", "cuda", "tpu")
    assert {str(a.shape[0]) for a in read.in_avals} == {"batch"}
    random, predictor = np.random.default_rng(0), script.predictor(saved)
    for rows in (1, 7):  # each of another program: the direct one knows its size
        inputs = draw(name, predictor, rows, random)
        found = np.asarray(read.call(*inputs))
        want = np.asarray(jax.jit(predictor.function)(*inputs))
        assert len(found) == rows
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)
    # rows are of their own inputs, and probabilities
    assert np.ptp(found, axis=0).any()
    if found.ndim > 1:
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_a_batch_of_one_size_is_exported_where_it_is_named(
    smoke: Smoke, tmp_path: Path, capsys: Said
) -> None:
    program.export(smoke("ch1_admission"), tmp_path / "model", 3)
    assert "inputs: float32[3,5]" in capsys.readouterr().out
    read = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    with pytest.raises(ValueError, match="shape"):
        read.call(jnp.zeros((2, 5)))


def test_a_model_that_depends_on_the_batch_size_asks_for_one() -> None:
    example = jax.ShapeDtypeStruct((2,), jnp.float32)
    for function in (lambda x: x[: len(x) // 2], lambda x: x if x.shape[0] > 1 else -x):
        predictor = Predictor(function, (example,))
        with pytest.raises(UserError, match="name a number by --batch-size"):
            export_function(predictor, None)
        assert len(export_function(predictor, 2).out_avals) == 1

    def broken(x: jax.Array) -> jax.Array:  # whatever the size: an error of its own
        return len(5) * x  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        export_function(Predictor(broken, (example,)), 2)


def test_the_admissions_are_those_of_predict(smoke: Smoke, capsys: Said) -> None:
    script, saved = saved_run("ch1_admission", smoke("ch1_admission"))
    script.predict(saved, (700.0, 3.7, 1))
    p = script.predictor(saved).function(jnp.array([[700, 3.7, 0, 0, 0]]))
    assert f"probability of admission {p[0]:.3f} " in capsys.readouterr().out


def test_the_table_is_predicted_as_from_a_file(smoke: Smoke, tmp_path: Path) -> None:
    """A row as text, by --predict, and its numbers, by the exported function."""
    run = tmp_path / "run"
    shutil.copytree(smoke("ch4_table"), run)
    (tmp_path / "row.csv").write_text("gre,gpa,rank\n700,3.7,2\n")
    script, saved = saved_run("ch4_table", run)
    script.predict(saved, tmp_path / "row.csv")
    lines = (run / "predictions" / "row.csv").read_text().splitlines()
    want = [float(cell) for cell in lines[1].split(",")[1:3]]
    predictor = script.predictor(saved)
    features = json.loads((run / "features.json").read_text())["content"]["columns"]
    words = next(c["of"]["words"] for c in features if c["kind"] == "indicator")
    values = {"gre": 700.0, "gpa": 3.7, "rank": 2.0 + words.index("2")}
    columns = {
        key: jnp.array([values[key.split()[-1]]], a.dtype)
        for key, a in predictor.inputs[0].items()
    }
    np.testing.assert_allclose(predictor.function(columns)[0], want, atol=1e-5)


def test_the_six_lines_of_the_guide_read_it(smoke: Smoke, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guides" / "runs.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(code.split("\n")) - code.count("\n\n") - 1 == 6
    assert set(re.findall(r"^(?:from|import) (\w+)", code, re.M)) == {"jax", "pathlib"}
    run = smoke("ch1_admission")
    program.export(run, tmp_path / "admission.jax")
    blocked = "import sys; sys.modules.update(jaxstudy=None, flax=None, orbax=None)\n"
    student = [700, 3.7, 0, 0, 0]
    line = str([student])
    assert code.count(line) == 1
    script, saved = saved_run("ch1_admission", run)
    for rows in (1, 7):
        batch = [[student[0] - 20 * i, *student[1:]] for i in range(rows)]
        answer = subprocess.run(
            [sys.executable, "-c", blocked + code.replace(line, str(batch))],
            cwd=tmp_path, text=True, capture_output=True, check=True,
        )  # fmt: skip
        shapes, _, found = answer.stdout.rpartition("\n[")
        assert "float32[batch,5]" in shapes
        found = [float(word) for word in found.strip("]\n").split()]
        want = script.predictor(saved).function(jnp.array(batch))
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_what_cannot_be_exported_is_said(
    smoke: Smoke, tmp_path: Path, capsys: Said, monkeypatch: Patch
) -> None:
    run, out = smoke("ch1_admission"), tmp_path / "out"

    def said(folder: Path, out: Path, batch_size: int = 1) -> tuple[int, str]:
        code = exit_code(lambda: program.export(folder, out, batch_size))
        return code, capsys.readouterr().err

    unfinished, other, lost = (tmp_path / name for name in ("begun", "other", "lost"))
    for folder in (unfinished, other, lost):
        folder.mkdir()
        for name in ("config.json", "result.json"):
            shutil.copy(run / name, folder)
    (unfinished / "result.json").unlink()
    for folder, name in ((other, "ch1_forward"), (lost, "ch9_gone")):
        config = (folder / "config.json").read_text()
        config = config.replace('"ch1_admission"', f'"{name}"')
        (folder / "config.json").write_text(config)
    (tmp_path / "there").touch()
    for (*arguments, sentence), code in {
        (tmp_path / "none", out, f"no run in {tmp_path / 'none'}"): 2,
        (unfinished, out, f"{unfinished} has not finished"): 2,
        (other, out, "ch1_forward has no model to export"): 2,
        (lost, out, "there is no script ch9_gone.py"): 2,
        (run, tmp_path / "there", f"{tmp_path / 'there'} exists"): 2,
        (run, tmp_path / "no" / "out", f"there is no folder {tmp_path / 'no'}"): 2,
        (run, tmp_path / "there" / "out", "there is no folder"): 2,
        (run, out, 0, "--batch-size 0: it must be 1 or more"): 2,
    }.items():
        found, error = said(*arguments)
        assert (found, error.count("\n")) == (code, 1), error
        assert sentence in error

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    assert said(run, out) == (1, "error: No space left on device\n")
    assert not [*tmp_path.glob("*out*")]
