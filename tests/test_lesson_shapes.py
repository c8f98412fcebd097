"""Lesson 3.1.1: names letter by letter, years in order, sums that are right."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.data.sources import SUNSPOTS, read_bytes
from jaxstudy.runs import cli
from jaxstudy.tabular.sets import read_digits
from jaxstudy.text.pairs import END
from jaxstudy.types import UserError
from tests.conftest import Smoke, load

lesson: Any = load("experiments", "ch3_shapes")
KINDS = lesson.get_args(lesson.Kind)


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """The exit code of the lesson at smoke, in this process."""
    argv = ["ch3_shapes.py", "--preset", "smoke", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        cli.experiment(lesson.main, lesson.PRESETS)
    return ended.value.code


def test_every_shape_has_its_figure_and_its_baseline(smoke: Smoke) -> None:
    folder = smoke("ch3_shapes")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert {p.stem for p in (folder / "figures").iterdir()} == {
        "spelling", "sunspots", "curves",
    }  # fmt: skip
    names = ["persistence", "linear regression", *KINDS]
    assert {f"sunspots, {name}: error" for name in names} <= set(metrics)
    for shape in ("spelling", "addition"):
        assert 0 <= metrics[f"{shape}: exact match"]["mean"] <= 1
    # of the second half of the digits, 92 of 899 are of one kind
    assert metrics["spelling, always one name: exact match"] == pytest.approx(92 / 899)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--years", 101), "--years 101: there are only 201 to learn from"),
        (("--sums", 5051), "--sums 5051: there are 5050 of 2 digits"),
    ],
)
def test_too_much_to_ask_for_is_said_before_training(
    arguments: tuple[object, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask(monkeypatch, *arguments, "--run-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {sentence}"
    assert not (tmp_path / "run").exists()


def test_digits_have_their_names_and_test_hands_are_others() -> None:
    sets, letters = lesson.named_digits()
    digits = read_digits()
    rows = [np.asarray(data.indices) for data in sets]
    assert sorted(np.concatenate(rows).tolist()) == list(range(1797))
    assert rows[2].min() == 898
    arrays = {name: np.asarray(a) for name, a in sets.train.arrays.items()}
    np.testing.assert_array_equal(arrays["x"], digits["x"])
    for y, length, digit in zip(
        arrays["y"], arrays["y_length"], digits["y"], strict=True
    ):
        name = "".join(letters.decode(y))
        assert name.rstrip(END) == lesson.NAMES[digit]
        assert name[length - 1] == END
        assert END not in name[: length - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_spelling_letter_by_letter_is_what_was_trained(kind: str) -> None:
    """And a letter depends on the vector, and on those before it only."""
    network = lesson.speller(5, 7, 6, kind)
    params, _ = network.model.init(jax.random.key(0))
    params = jax.tree.map(lambda a: 2 * a, params)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    before = jnp.asarray(rng.integers(0, 7, (3, 4)))

    def logits(x: Any, before: Any) -> Any:
        lengths = jnp.full(len(x), 5)
        return network.model.apply(
            params, {}, x, lengths, before, train=False, key=None
        )[0]

    whole, states = logits(x, before), network.first(params, x)
    for t in range(4):
        states, one = network.step(params)(states, before[:, t])
        np.testing.assert_allclose(one, whole[:, t], atol=1e-5)
    later = logits(x, before.at[:, 2].add(1) % 7)
    np.testing.assert_array_equal(later[:, :2], whole[:, :2])
    assert np.all(np.abs(later[:, 2:] - whole[:, 2:]).max(-1) > 0)
    assert np.all(np.abs(logits(x + 1, before) - whole).max(-1) > 0)


def test_names_end_where_the_network_says_so() -> None:
    """With weights that make letter k + 1 follow k, and END stay what it is."""
    letters = lesson.fit_vocabulary(END + "abc")
    network = lesson.speller(2, len(letters), 6, "simple")
    params, _ = network.model.init(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, params)
    layer = params["writer"]["layers"]["layer_1"]
    layer["kernel"] = 5 * jnp.eye(5, 6)  # h is which letter came last
    follows = {END: "a", "a": "b", "b": END, "c": "c"}
    for last, following in follows.items():
        (i,), (j,) = letters.encode(last), letters.encode(following)
        kernel = params["writer"]["output"]["kernel"]
        params["writer"]["output"]["kernel"] = kernel.at[i, j].set(1.0)
    names = lesson.spelled(network, params, jnp.zeros((2, 2)), letters, 6)
    assert names == ["ab", "ab"]


def test_years_are_in_order_and_scaled_by_the_past() -> None:
    data = lesson.read_sunspots(11)
    lines = read_bytes(SUNSPOTS).decode().split()[1:]
    spots = {int(a): float(b) for a, b in (line.split(",") for line in lines)}
    assert len(spots) == 309
    for x, y, year in zip(data.x, data.y, data.year.astype(int), strict=True):
        want = [spots[year - back] for back in range(11, -1, -1)]
        got = data.spots(np.append(x[:, 0], y))
        np.testing.assert_allclose(got, want, atol=1e-4)
    learned, chosen, tested = (data.year[rows] for rows in data.rows())
    assert learned.tolist() == list(range(1711, 1901))
    assert chosen.tolist() == list(range(1901, 1951))
    assert tested.tolist() == list(range(1951, 2009))
    past = [spots[year] for year in range(1700, 1901)]
    assert data.mean == pytest.approx(np.mean(past))
    assert data.scale == pytest.approx(np.std(past))
    rows = data.rows()[2]
    steps = [spots[year] - spots[year - 1] for year in range(1951, 2009)]
    persistence = data.error(data.x[rows, -1, 0], rows)
    assert persistence == pytest.approx(np.sqrt(np.mean(np.square(steps))), rel=1e-5)


def test_the_regression_finds_a_linear_law_and_sees_no_later_year() -> None:
    data = lesson.read_sunspots(4)
    learned, _, tested = data.rows()
    law = data.x[..., 0] @ np.array([0.1, -0.3, 0.2, 0.5]) + 0.7
    exact = data._replace(y=law.astype(np.float32))
    np.testing.assert_allclose(lesson.regression(exact, tested), law[tested], atol=1e-4)
    later = data.y.copy()
    later[learned[-1] + 1 :] = 99
    np.testing.assert_array_equal(
        lesson.regression(data._replace(y=later), tested),
        lesson.regression(data, tested),
    )


def test_the_second_training_ends_at_the_chosen_epoch(smoke: Smoke) -> None:
    """Its forecasts have the error that the first one had logged there."""
    log = smoke("ch3_shapes") / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    config = lesson.PRESETS["smoke"]
    data = lesson.read_sunspots(config.years)
    kind = "gru"
    logged = np.array([
        r["loss"] for r in rows
        if r.get("part") == f"sunspots_{kind}" and r["split"] == "validation"
    ])  # fmt: skip
    assert len(logged) == config.forecast_epochs

    class NoFolder:
        """A run whose parts are not written."""

        def sub_run(self, name: str) -> None:
            assert name == f"sunspots_{kind}"

    found = lesson.forecast(kind, data, config, NoFolder())
    _, chosen, _ = data.rows()
    squares = np.mean((found[:, chosen] - data.y[chosen]) ** 2, axis=1)
    np.testing.assert_allclose(squares, logged[logged.mean(1).argmin()], rtol=1e-4)


def test_sums_are_right_and_none_comes_twice() -> None:
    pairs = lesson.sums(5050, 2)
    numbers = [[int(text[::-1]) for text in p.source.split("+")] for p in pairs]
    assert [p.target for p in pairs] == [str(a + b)[::-1] for a, b in numbers]
    assert len({tuple(sorted(ab)) for ab in numbers}) == 5050
    assert 0.4 < np.mean([a < b for a, b in numbers]) < 0.6  # both orders occur
    assert lesson.sums(50, 2) == pairs[:50]
    with pytest.raises(UserError, match="there are 55 of 1 digits"):
        lesson.sums(56, 1)
