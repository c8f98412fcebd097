"""Lesson 3.1.1: names letter by letter, years in order, sums that are right."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.data.sources import SUNSPOTS, read_bytes
from jaxstudy.dataset import dataset
from jaxstudy.models.seq2seq import seq2seq
from jaxstudy.records import Log
from jaxstudy.tabular.sets import read_digits
from jaxstudy.text.pair_training import train_on_pairs
from jaxstudy.text.pairs import END, Pair, text_before_end
from jaxstudy.text.vocabulary import UNKNOWN, fit_vocabulary
from jaxstudy.training import Evaluator
from jaxstudy.types import UserError
from tests.conftest import Smoke, load

spelling: Any = load("experiments", "ch3_spelling")
sunspots: Any = load("experiments", "ch3_sunspots")
addition: Any = load("experiments", "ch3_addition")


FIGURES = {
    "spelling": {"spelling", "curves"},
    "sunspots": {"sunspots", "errors"},
    "addition": {"sums", "curves"},
}
MODULES = {"spelling": spelling, "sunspots": sunspots, "addition": addition}


@pytest.mark.parametrize("name", FIGURES)
def test_every_shape_has_its_figures_and_metrics(name: str, smoke: Smoke) -> None:
    folder = smoke(f"ch3_{name}")
    assert {path.stem for path in (folder / "figures").iterdir()} == FIGURES[name]
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert set(metrics) == set(MODULES[name].LESSON.metrics)
    if name == "sunspots":
        kinds = ("SimpleRNN", "GRU", "LSTM", "largest of the networks")
        *each, largest = (metrics[f"{kind}: test RMSE"]["values"] for kind in kinds)
        assert largest == np.max(each, axis=0).tolist()
    if name == "spelling":  # of the second half of the digits, 92 of 899 are of a kind
        assert metrics["most frequent name: exact match"] == 92 / 899
        assert 0.9 < metrics["logistic regression: exact match"] < 1
    if name == "addition":  # of the ten test sums
        pairs = addition.sums(100, 2)[-10:]
        carries = [addition.needs_carry(pair) for pair in pairs]
        right = 1 - np.mean(carries)
        assert metrics["adder without carries: exact match"] == pytest.approx(right)
        shares = [metrics[f"network: exact match, sums {kind} a carry"]["values"]
                  for kind in ("without", "with")]  # fmt: skip
        both = right * np.array(shares[0]) + (1 - right) * np.array(shares[1])
        np.testing.assert_allclose(metrics["network: exact match"]["values"], both)


def test_training_on_pairs_learns_from_every_seed() -> None:
    """To copy one symbol."""
    rng = np.random.default_rng(0)
    symbols = rng.integers(1, 4, (64, 1))
    ones = np.ones(64, np.int32)
    pairs = {"x": symbols, "x_length": ones, "y": symbols, "y_length": ones}
    data = dataset(pairs)
    model = seq2seq(4, 4, 8, attention=False, kind="simple", embedding=4).model
    state, eval_step = train_on_pairs(
        model, 0, data, data, rate=0.03, epochs=8, seed=0, seeds=2, log=Log(),
        batch_size=16,
    )  # fmt: skip
    scores = Evaluator(eval_step, data)(state)
    assert np.all(np.array(scores["exact match"]) == 1)
    assert state.step.tolist() == [32, 32]
    first, second = (jax.tree.leaves(state.params)[0][i] for i in (0, 1))
    assert not np.array_equal(first, second)


def test_digits_have_their_names_and_test_hands_are_others() -> None:
    sets, letters = spelling.named_digits()
    rows = [np.asarray(data.indices) for data in sets]
    assert sorted(np.concatenate(rows).tolist()) == list(range(1797))
    assert rows[2].min() == 898
    digits, arrays = read_digits(), sets[0].arrays
    np.testing.assert_array_equal(arrays["x"], digits["x"])
    names = [text_before_end(np.asarray(y), letters) for y in np.asarray(arrays["y"])]
    assert names == [spelling.NAMES[digit] for digit in digits["y"]]
    lengths = [len(name) + len(END) for name in names]
    assert np.asarray(arrays["y_length"]).tolist() == lengths


def test_spelling_letter_by_letter_is_what_was_trained() -> None:
    """And a letter depends on the vector, and on those before it only."""
    network = spelling.speller(5, 7, 6)
    params, _ = jax.jit(network.model.init)(jax.random.key(0))
    params = jax.tree.map(lambda a: 2 * a, params)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    before = jnp.asarray(rng.integers(0, 7, (3, 4)))

    @jax.jit
    def logits(x: Any, before: Any) -> Any:
        inputs = x, jnp.full(len(x), 5), before
        return network.model.apply(params, {}, *inputs, train=False, key=None)[0]

    whole, states = logits(x, before), jax.jit(network.first)(params, x)
    step = jax.jit(network.step(params))
    for t in range(4):
        states, letter = step(states, before[:, t])
        np.testing.assert_allclose(letter, whole[:, t], atol=1e-5)
    later = logits(x, before.at[:, 2].add(1) % 7)
    np.testing.assert_array_equal(later[:, :2], whole[:, :2])
    assert np.all(np.abs(later[:, 2:] - whole[:, 2:]).max(-1) > 0)
    assert np.all(np.abs(logits(x + 1, before) - whole).max(-1) > 0)


def test_names_end_where_the_network_says_so() -> None:
    """With weights that make letter k + 1 follow k, and END stay what it is."""
    letters = fit_vocabulary(END + "abc")
    network = spelling.speller(2, len(letters), 6, "simple")
    params = jax.eval_shape(network.model.init, jax.random.key(0))[0]
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), params)
    layer = params["writer"]["layers"]["layer_1"]
    layer["kernel"] = 5 * jnp.eye(5, 6)  # h is which letter came last
    for last, following in {END: "a", "a": "b", "b": END, "c": "c"}.items():
        (i,), (j,) = letters.encode(last), letters.encode(following)
        kernel = params["writer"]["output"]["kernel"]
        params["writer"]["output"]["kernel"] = kernel.at[i, j].set(1.0)
    seeds = jax.tree.map(lambda a: jnp.stack([a, 0 * a]), params)
    names = spelling.spell(network, seeds, jnp.zeros((2, 2)), letters, 6)
    # all letters are equally probable to zeros: the first is the unknown one
    assert names.tolist() == [["ab", "ab"], [6 * UNKNOWN] * 2]


def test_years_are_in_order_and_scaled_by_the_past() -> None:
    series = sunspots.read_sunspots(11)
    lines = read_bytes(SUNSPOTS).decode().split()[1:]
    spots = {int(a): float(b) for a, b in (line.split(",") for line in lines)}
    assert len(spots) == 309
    for x, y, year in zip(series.x, series.y, series.year.astype(int), strict=True):
        want = [spots[year - back] for back in range(11, -1, -1)]
        got = series.sunspots(np.append(x[:, 0], y))
        np.testing.assert_allclose(got, want, atol=1e-4)
    years = [series.year[rows].tolist() for rows in series.split()]
    assert years == [[*range(1711, 1901)], [*range(1901, 1951)], [*range(1951, 2009)]]
    past = [spots[year] for year in range(1700, 1901)]
    assert (series.mean, series.scale) == pytest.approx((np.mean(past), np.std(past)))
    rows = series.split()[2]
    steps = [spots[year] - spots[year - 1] for year in range(1951, 2009)]
    persistence = series.rmse(series.x[rows, -1, 0], rows)
    assert persistence == pytest.approx(np.sqrt(np.mean(np.square(steps))), rel=1e-5)


def test_the_regression_finds_a_linear_law_and_sees_no_later_year() -> None:
    series = sunspots.read_sunspots(4)
    with pytest.raises(UserError, match="--years 101: there are only 201 to learn"):
        sunspots.read_sunspots(101)
    train, _, test = series.split()
    law = series.x[..., 0] @ np.array([0.1, -0.3, 0.2, 0.5]) + 0.7
    exact = sunspots.linear_regression(series._replace(y=law.astype(np.float32)), test)
    np.testing.assert_allclose(exact, law[test], atol=1e-4)
    later = series.y.copy()
    later[train[-1] + 1 :] = 99
    np.testing.assert_array_equal(
        sunspots.linear_regression(series._replace(y=later), test),
        sunspots.linear_regression(series, test),
    )


def test_the_second_training_ends_at_the_chosen_epoch(smoke: Smoke) -> None:
    """Its forecasts have the error that the first one had logged there."""
    log = smoke("ch3_sunspots") / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    config = sunspots.PRESETS["smoke"]
    series = sunspots.read_sunspots(config.years)
    logged = np.array([
        r["loss"] for r in records
        if r.get("part") == "sunspots_gru" and r["split"] == "validation"
    ])  # fmt: skip
    assert len(logged) == config.epochs

    class NoFolder:
        """A run whose trainings are not written."""

        def sub_run(self, name: str) -> None:
            assert name == "sunspots_gru"

    forecasts = sunspots.forecast("gru", series, config, NoFolder())
    _, validation, _ = series.split()
    errors = forecasts[:, validation] - series.y[validation]
    best = logged[logged.mean(1).argmin()]
    np.testing.assert_allclose(np.mean(errors**2, axis=1), best, rtol=1e-4)


def test_sums_are_right_and_none_comes_twice() -> None:
    pairs = addition.sums(5050, 2)
    numbers = [[int(text[::-1]) for text in p.source.split("+")] for p in pairs]
    assert [p.target for p in pairs] == [str(a + b)[::-1] for a, b in numbers]
    assert len({tuple(sorted(ab)) for ab in numbers}) == 5050
    assert 0.4 < np.mean([a < b for a, b in numbers]) < 0.6  # both orders occur
    assert addition.sums(50, 2) == pairs[:50]
    carries = [any(x % 10**k + y % 10**k >= 10**k for k in (1, 2)) for x, y in numbers]
    assert [addition.needs_carry(pair) for pair in pairs] == carries
    assert addition.written(Pair("321+54", "663")) == "123 + 45 = 366"
    with pytest.raises(UserError, match="--sums 56: there are 55 of 1 digits"):
        addition.sums(56, 1)
