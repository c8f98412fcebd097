"""Who competes: schedules, and optimizers and problems of one's own."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.optimizers import OPTIMIZERS, SCHEDULES, SPACES
from jaxstudy.study.candidates import (
    Candidate,
    find_optimizers,
    find_problems,
    own_optimizer,
    transformation,
    with_schedules,
)
from jaxstudy.types import Array, PyTree, UserError
from tests.conftest import ROOT, Patch, load, run_script

PAGE = ROOT / "docs" / "guides" / "optimizers.md"
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: Patch) -> Iterator[Write]:
    """Write a module where one works; returns its name, which is forgotten later."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def write(content: str) -> str:
        names.append(f"own_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(content)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


# Schedules


def test_schedules_are_the_textbook_ones() -> None:
    t = np.arange(200)
    found = {name: np.array(jax.vmap(of(200))(t)) for name, of in SCHEDULES.items()}
    np.testing.assert_array_equal(found["constant"], 1)
    np.testing.assert_allclose(found["linear"], 1 - t / 200, atol=1e-6)
    warm = found["cosine"][:11]  # a twentieth of the steps, and the first is no zero
    np.testing.assert_allclose(warm, 0.1 + 0.9 * np.arange(11) / 10, atol=1e-6)
    fall = (1 + np.cos(np.pi * np.arange(190) / 190)) / 2
    np.testing.assert_allclose(found["cosine"][10:], fall, atol=1e-6)


def test_a_traced_rate_follows_its_schedule() -> None:
    gradients = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)

    @jax.jit
    def descend(rate: Array) -> Array:
        candidate = Candidate(OPTIMIZERS["momentum"], {}, schedule="linear")
        tx = transformation(candidate, {"rate": rate}, 20)

        def step(state: tuple, g: Array) -> tuple:
            p, opt_state = state
            updates, opt_state = tx.update(g, opt_state, p)
            return (p + updates, opt_state), p + updates

        start = jnp.zeros(3)
        given = jnp.asarray(gradients)
        return jax.lax.scan(step, (start, tx.init(start)), given)[1]

    p = m = np.zeros(3)
    want = []
    for t, g in enumerate(gradients):
        m = 0.9 * m + g
        p = p - 0.3 * (1 - t / 20) * m
        want.append(p)
    np.testing.assert_allclose(descend(jnp.float32(0.3)), want, rtol=1e-4, atol=1e-5)


def test_each_optimizer_runs_with_each_schedule_but_the_self_tuning() -> None:
    candidates = {n: Candidate(o, o.space) for n, o in OPTIMIZERS.items()}
    crossed = with_schedules(candidates, ("constant", "cosine", "linear"))
    tuning = {n for n, o in OPTIMIZERS.items() if o.self_tuning}
    assert {"prodigy", "schedule_free", "cocob", "momo"} <= tuning
    assert len(crossed) == 3 * len(OPTIMIZERS) - 2 * len(tuning)
    assert {"adam", "adam, cosine", "adam, linear", "prodigy"} <= set(crossed)
    only = with_schedules(candidates, ("cosine",))
    assert set(only) == {n if n in tuning else f"{n}, cosine" for n in candidates}
    params = {"b": jnp.zeros(3), "w": jnp.ones((2, 3))}
    for candidate in only.values():  # traced, and not compiled

        def step(rate: Array, candidate: Candidate = candidate) -> PyTree:
            tx = transformation(candidate, {"rate": rate}, 10)
            tx = optax.with_extra_args_support(tx)
            return tx.update(params, tx.init(params), params, value=1.0)[0]

        updates = jax.eval_shape(step, jnp.float32(0.1))
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    with pytest.raises(UserError, match=r"no schedule 'cosin' among .*'cosine'\?"):
        with_schedules(candidates, ("cosin",))


# One's own


def test_the_page_shows_how_to_bring_your_own(
    write: Write, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Its files as they stand, in a study beside ours."""
    section = PAGE.read_text().partition("## Bring your own")[2]
    optimizer, problem, *_ = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert max(len(code.splitlines()) for code in (optimizer, problem)) <= 16
    name = write(optimizer + problem)
    script = load("benchmarks", "optimizers")
    monkeypatch.setattr(script, "save_study", lambda *_: None)  # takes seconds
    assert run_script(
        script, "--preset", "smoke", "--epochs", 1,
        "--optimizers", "sgd", f"{name}:sign_momentum", "--problems", f"{name}:sines",
        "--schedules", "linear", "--run-dir", tmp_path / "run",
    ) == 0  # fmt: skip
    study = json.loads((tmp_path / "run" / "study.json").read_text())
    own = study["optimizers"]["sign_momentum, linear"]
    assert own["rule"] == "m = b m + g; p -= a sign(m)"
    assert own["space"]["rate"] == {"low": 1e-5, "high": 1.0, "one_minus": False}
    assert own["schedule"] == "linear"
    assert set(study["problems"]) == {"sines"}
    said = " ".join(study["comparison"]["sentences"])
    assert "On sines, no target is set" in said


def test_functions_of_optax_are_taken_as_they_are() -> None:
    found = find_optimizers(["adam", "optax:adam", "optax:sgd"])
    assert list(found) == ["adam", "optax:adam", "optax:sgd"]
    space = {n: SPACES[n] for n in ("rate", "b1", "b2")}
    assert found["optax:adam"].space == space
    ours, theirs = (
        found[n].optimizer.make(rate=0.1, b1=0.5) for n in ("adam", "optax:adam")
    )
    mine, other = (
        np.asarray(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0])
        for tx in (ours, theirs)
    )
    np.testing.assert_array_equal(mine, other)


MAKE = "import optax\ndef make(rate, mask=None): return optax.sgd(rate)\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = (", "cannot be imported: '(' was never closed"),
        ("import nowhere", "cannot be imported: No module named 'nowhere'"),
        ("def mak(rate): ...", "no 'make' in own_0; did you mean 'mak'?"),
        ("make = 3", "is a int: a function that makes it is expected"),
        ("def make(rate): return 3", "returns a int, no optax.GradientTransformation"),
        (
            "import optax\ndef make(rate): return optax.sgd(rate) if rate > 0 else 0",
            "fails: TracerBoolConversionError",
        ),
        ("def make(rate): return 1 / 0", "fails: ZeroDivisionError"),
        ("def make(rate, mask): ...", "needs 'mask', which nobody gives"),
        ("def make(): ...", "has nothing to tune"),
        (
            "import optax\ndef make(rate): return optax.lbfgs(rate)",
            "missing 2 required keyword-only arguments: 'grad' and 'value_fn'",
        ),
        (MAKE + "space = {'rat': (1, 2)}", "no argument of it; did you mean 'rate'?"),
        (MAKE + "space = {'rate': (2, 1)}", "rate: the range 2 to 1 is empty"),
        (MAKE + "space = {'rate': (0, 1)}", "rate: a log scale needs positive"),
        (MAKE + "space = {'rate': 3}", "rate is 3, neither (low, high) nor a range"),
        (MAKE + "space = 3", "is a int, no dict of ranges"),
    ],
)
def test_what_is_no_optimizer_is_refused(content: str, says: str, write: Write) -> None:
    name = write(content)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        own_optimizer(f"{name}:make")
    assert f"{name}:make" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("def make(): return 3", "returns a int, no jaxstudy.study.problems.Problem"),
        ("def make(n): return 3", "fails: TypeError"),
    ],
)
def test_what_is_no_problem_is_refused(content: str, says: str, write: Write) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        find_problems([f"{write(content)}:make"])


def test_arguments_of_known_names_are_tuned(write: Write) -> None:
    code = MAKE.replace("rate", "learning_rate").replace("mask", "b1=0.9, eps=0, mask")
    name = write(code)
    entry = own_optimizer(f"{name}:make")
    assert set(entry.space) == {"rate", "b1"}
    assert inspect.isfunction(entry.make)
    assert not entry.self_tuning


def test_one_that_takes_no_schedule_is_refused_with_one(write: Write) -> None:
    content = "import optax\ndef make(rate): return optax.scale(-rate)"
    text = f"{write(content)}:make"
    found = find_optimizers([text])
    assert len(with_schedules(found, ("constant",))) == 1
    with pytest.raises(UserError, match=r", cosine fails: TypeError: bad operand"):
        with_schedules(found, ("constant", "cosine"))


def test_one_called_as_ours_keeps_its_module(write: Write) -> None:
    content = "import optax\ndef adam(rate): return optax.adam(rate)"
    text = f"{write(content)}:adam"
    assert [*find_optimizers([text])] == [text]
