"""Problems: published numbers, honest splits, known minima."""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.data.sources import FASHION_MNIST, MissingData
from jaxstudy.dataset import BatchIndices, Dataset, Order, gather
from jaxstudy.model import parameter_count
from jaxstudy.models.cnn import two_convolutions
from jaxstudy.objectives import mean_value
from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.study.baselines import P1, z_score
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.problems import (
    DIMENSIONS,
    PROBLEMS,
    TARGETS,
    TIERS,
    Problem,
    quadratic_hessian,
    quadratic_objective,
    quadratic_rows,
    steps_of,
)
from jaxstudy.study.programs import make_step_functions
from jaxstudy.study.runner import Protocol, as_replicas, fit_replicas, seed_keys
from jaxstudy.study.surfaces import SURFACES
from jaxstudy.tabular.sets import admission_arrays, read_admissions, read_titanic
from jaxstudy.training import Evaluator
from jaxstudy.types import Array, Key, Mean, PyTree

SETS = ("train", "validation", "test")
MISSING = not FASHION_MNIST["train-images-idx3-ubyte"].path.exists()
# Fashion-MNIST is fetched, not committed: these run where `make data` has run.
NAMES = [
    *TIERS["small"],
    pytest.param(
        "fashion",
        marks=pytest.mark.skipif(MISSING, reason="`make data` brings Fashion-MNIST"),
    ),
]
QUADRATICS = ("quadratic", "quadratic_fixed")


@functools.cache
def problem(name: str) -> Problem:
    return PROBLEMS[name]()


def rows_of(data: Dataset) -> np.ndarray:
    return np.asarray(data.indices)


@functools.cache
def start(name: str) -> tuple[PyTree, PyTree]:
    return jax.jit(problem(name).model.init)(jax.random.key(0))


def evaluate(name: str, split: str, params: PyTree) -> Mapping[str, Mean]:
    """The metrics of a whole set, in one batch."""
    data, extra = getattr(problem(name), split), start(name)[1]
    batch = gather(
        data.arrays, BatchIndices(data.indices, data.mask.astype(jnp.float32))
    )
    # compiled as one: each operation by itself would be, too
    return jax.jit(problem(name).objective)(params, extra, batch, None)[1][1]


def loss_of(name: str, split: str, params: PyTree) -> float:
    return float(mean_value(evaluate(name, split, params)["loss"]))


def direct(p: np.ndarray, x: np.ndarray, hessian: np.ndarray) -> float:
    """The mean of (p - x)^T H (p - x) / 2 over rows x, row by row in float64."""
    apart = p - x.astype(np.float64)
    return float(np.mean([0.5 * row @ hessian @ row for row in apart]))


# The quadratic of DeepOBS


def test_the_hessian_is_symmetric_with_the_drawn_eigenvalues() -> None:
    hessian = quadratic_hessian()
    assert hessian.shape == (100, 100)
    assert hessian.dtype == np.float64
    np.testing.assert_allclose(hessian, hessian.T, rtol=0, atol=1e-13)
    random = np.random.RandomState(42)
    drawn = [*random.uniform(0, 1, 90), *random.uniform(30, 60, 10)]
    found = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(found, sorted(drawn), rtol=0, atol=1e-12)
    assert found[-1] == pytest.approx(53.12901539863683, rel=1e-13)
    # turned: the largest eigenvalues are of no few coordinates
    assert np.diag(hessian).max() < 15


def test_the_rows_are_those_of_deepobs() -> None:
    for split, seed in (("train", 42), ("test", 43)):
        drawn = np.random.RandomState(seed).normal(0, 0.6, (1000, 100))
        x = quadratic_rows(seed)
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, drawn.astype(np.float32))
        for name in QUADRATICS:
            np.testing.assert_array_equal(getattr(problem(name), split).arrays["x"], x)


def test_the_losses_are_the_published_ones() -> None:
    """As printed: all digits of the first, in float64 from the rows themselves."""
    hessian = quadratic_hessian()
    train, test = quadratic_rows(42), quadratic_rows(43)[:896]
    at_ones = direct(np.ones(100), test, hessian)
    assert f"{at_ones:.5f}" == "353.44677"
    assert f"{direct(train.mean(0, np.float64), test, hessian):.3f}" == "87.046"
    assert f"{direct(test.mean(0, np.float64), test, hessian):.4f}" == "86.8735"
    mean = jnp.mean(problem("quadratic").train.arrays["x"], 0)
    for name in QUADRATICS:  # and as the problem computes them
        of, (params, _) = problem(name), start(name)
        assert loss_of(name, "test", params) == pytest.approx(353.44677, rel=1e-6)
        assert loss_of(name, "test", mean) == pytest.approx(87.046, abs=5e-4)
        assert of.floors["test"] == pytest.approx(86.8735, abs=5e-5)


@pytest.mark.parametrize(("real", "distance"), [(1, 0.0), (8, 1.0), (5, 30.0)])
def test_the_objective_is_the_mean_over_rows(real: int, distance: float) -> None:
    """Loss, metric and gradient, where the other rows of 8 are padding."""
    rng = np.random.default_rng(real)
    hessian = quadratic_hessian()
    p = (distance * rng.normal(size=DIMENSIONS)).astype(np.float32)
    x = rng.normal(0.3, 0.6, (8, DIMENSIONS)).astype(np.float32)
    mask = rng.permutation(np.arange(8) < real).astype(np.float32)
    x[mask == 0] = np.nan  # what padding holds must not count
    q = 0.5 * np.einsum("nd,de,ne->n", x, hessian, x, optimize=True)
    batch = {"x": jnp.asarray(x), "q": jnp.asarray(q, jnp.float32), "mask": mask}
    objective = jax.value_and_grad(quadratic_objective(hessian), has_aux=True)
    (loss, (_, metrics)), gradient = objective(jnp.asarray(p), {}, batch, None)
    want = direct(p, x[mask == 1], hessian)
    assert float(loss) == pytest.approx(want, rel=2e-6)
    assert float(metrics["loss"].count) == real
    assert float(metrics["loss"].total) == pytest.approx(real * want, rel=2e-6)
    slope = hessian @ (p - x[mask == 1].mean(0, np.float64))
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=2e-6 * np.abs(slope).max())


def test_an_epoch_is_7_whole_batches_the_same_ones_in_the_published_runs() -> None:
    for name, shuffle in zip(QUADRATICS, ("each epoch", "once"), strict=True):
        assert (steps_of(problem(name)), problem(name).epochs) == (7, 100)
        assert problem(name).train.order == Order(shuffle, drop_remainder=True)


@pytest.mark.parametrize("name", P1)
def test_the_published_test_losses_are_reached(name: str) -> None:
    """Within two standard errors of the difference of means of 10 seeds."""
    of, published = problem("quadratic_fixed"), P1[name]
    at = {"rate": published.rate, **published.fixed}
    point = {k: np.full(1, v, np.float32) for k, v in at.items()}
    replicas = as_replicas(point, 10, "vmap")
    functions = make_step_functions(of, Candidate(OPTIMIZERS[name], {}))
    keys = seed_keys(Protocol(), range(10))
    state, _ = fit_replicas(of, functions, replicas, keys, chunk_steps=10**6)
    test = Evaluator(functions.eval_step, of.test, args=replicas.args, mode="vmap")
    losses = test(state)["loss"]
    assert abs(z_score(np.array(losses), published)) < 2
    deviation = np.std(losses, ddof=1)  # seeds differ, as far as they should
    assert 0.3 < deviation / published.deviation < 3


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_floor_is_the_least_loss_of_its_set(split: str) -> None:
    """Of all its rows, at their mean: there the gradient is 0, and H is positive."""
    of = problem("quadratic")
    data = getattr(of, split)
    x = np.asarray(data.arrays["x"], np.float64)[rows_of(data)]
    hessian, floor = quadratic_hessian(), of.floors[split]
    assert floor == pytest.approx(direct(x.mean(0), x, hessian), rel=1e-12)
    mean = jnp.asarray(x.mean(0), jnp.float32)
    assert loss_of("quadratic", split, mean) == pytest.approx(floor, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(5):
        near = x.mean(0) + 0.1 * rng.normal(size=DIMENSIONS)
        assert direct(near, x, hessian) > floor


# Every problem


@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_in_two_sets(name: str) -> None:
    """The quadratic's sets have arrays of their own; the others share theirs."""
    sets = [getattr(problem(name), split) for split in SETS]
    shared = name not in QUADRATICS
    assert all((data.arrays is sets[0].arrays) == shared for data in sets[1:])
    assert all(np.asarray(data.mask).all() for data in sets)
    if shared:
        rows = np.concatenate([rows_of(data) for data in sets])
        assert sorted(rows) == list(range(len(sets[0].arrays["y"])))  # each in one
    else:
        values = [np.asarray(data.arrays["x"])[rows_of(data)] for data in sets]
        every = np.concatenate(values)
        assert len(np.unique(every, axis=0)) == len(every)


SIZES = {
    "quadratic": (1000, 1000, 896),
    "quadratic_fixed": (1000, 1000, 896),
    "admissions_regression": (240, 80, 80),
    "admissions_network": (240, 80, 80),
    "digits": (776, 511, 510),
    "digits_autoencoder": (776, 511, 510),
    "titanic": (784, 246, 279),
    "fashion": (54_000, 6_000, 10_000),
}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_targets(name: str) -> None:
    sizes = tuple(len(getattr(problem(name), split).indices) for split in SETS)
    assert sizes == SIZES[name]
    assert problem(name).target == TARGETS[name]
    assert name in TIERS[problem(name).tier]
    assert set(TARGETS) == set(SIZES)
    assert sorted(n for names in TIERS.values() for n in names) == sorted(PROBLEMS)


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_starts_above_its_target(name: str) -> None:
    """And can reach it, as far as one knows, in epochs of several steps."""
    of, metrics = problem(name), evaluate(name, "validation", start(name)[0])
    classes = name not in (*QUADRATICS, "digits_autoencoder")
    assert set(metrics) == ({"loss", "accuracy"} if classes else {"loss"})
    for mean in metrics.values():
        assert mean.count == SIZES[name][1]
        assert np.isfinite(mean.total)
    assert of.target is not None
    assert of.floors.get("validation", 0.0) < of.target < mean_value(metrics["loss"])
    assert of.batch_size < len(of.train.indices)


def test_admissions_are_standardised_by_training_rows_only() -> None:
    """Both problems have the same rows, and models of their own."""
    line, network = (problem(f"admissions_{m}") for m in ("regression", "network"))
    for split in SETS:
        rows, others = (rows_of(getattr(of, split)) for of in (line, network))
        np.testing.assert_array_equal(rows, others)
    data = network.train
    x, train = np.asarray(data.arrays["x"]), rows_of(data)
    # not by those of all rows, which would leave these at 0 and 1
    assert np.abs(x.mean(0)).max() > 0.01
    assert np.abs(x.std(0) - 1).max() > 0.01
    arrays = admission_arrays(read_admissions())
    raw = arrays["x"].astype(np.float64)
    want = (raw - raw[train].mean(0)) / raw[train].std(0)
    # to the last bits of float32: means and deviations are taken in float64
    np.testing.assert_allclose(x, want, rtol=2**-23, atol=1e-9)
    np.testing.assert_array_equal(data.arrays["y"], arrays["y"])
    assert parameter_count(line.model) == 5 + 1
    network_size = (5 + 1) * 64 + (64 + 1) * 128 + 128 + 1
    assert parameter_count(network.model) == network_size


def test_digits_to_choose_by_and_to_test_on_are_those_of_other_writers() -> None:
    digits = problem("digits")
    np.testing.assert_array_equal(rows_of(digits.test), np.arange(1287, 1797))
    np.testing.assert_array_equal(rows_of(digits.validation), np.arange(776, 1287))


def test_the_autoencoder_s_floor_is_the_loss_of_a_perfect_copy() -> None:
    of = problem("digits_autoencoder")
    x = np.asarray(of.test.arrays["x"], np.float64)[rows_of(of.test)]
    p = np.clip(x, 1e-12, 1 - 1e-12)
    copied = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(1).mean()
    assert of.floors["test"] == pytest.approx(copied, rel=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, start("digits_autoencoder")[0])
    loss = loss_of("digits_autoencoder", "test", zeros)  # p = 1/2 everywhere
    assert loss == pytest.approx(64 * np.log(2), rel=1e-5)


def test_passengers_of_a_ticket_are_in_one_set() -> None:
    tickets = read_titanic()["ticket"].to_numpy()
    of = problem("titanic")
    sets = [set(tickets[rows_of(getattr(of, split))]) for split in SETS]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_deepobs_s_2c2d_has_the_published_number_of_parameters() -> None:
    model = two_convolutions()
    assert parameter_count(model) == 3_274_634

    def start(key: Key) -> tuple[PyTree, Array]:  # less than all, for speed
        params, _ = model.init(key)
        return {n: p["bias"] for n, p in params.items()}, params["conv_1"]["kernel"]

    biases, kernel = jax.jit(start)(jax.random.key(0))
    for bias in biases.values():
        np.testing.assert_array_equal(bias, np.float32(0.05))
    # cut at two deviations of the normal distribution
    assert 0.095 < np.abs(kernel).max() <= 0.1
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(
        lambda p, x: model.apply(p, {}, x, train=False, key=None)[0],
        params, jnp.ones((2, 28, 28, 1)),
    )  # fmt: skip
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["tunes_lstm", "words_transformer"])
def test_a_text_is_learned_at_two_sizes(name: str) -> None:
    """One at ten times the other's."""
    try:
        of, large = problem(name), problem(f"{name}_large")
    except MissingData as missing:
        pytest.skip(str(missing))
    sizes = [parameter_count(each.model) for each in (large, of)]
    assert sizes[0] / sizes[1] == pytest.approx(10, abs=0.6)
    assert (of.tier, large.tier) == ("medium", "large")
    params, extra = jax.eval_shape(of.model.init, jax.random.key(0))
    output = params["output"]["output"] if "output" in params else params["logits"]
    symbols = len(output["bias"])
    for split in SETS:
        rows = {n: np.asarray(a) for n, a in getattr(of, split).arrays.items()}
        # a symbol is asked for once, and seen after it; before the first is another
        later = rows["real"][:, :-1]
        np.testing.assert_array_equal(rows["x"][:, 1:][later], rows["y"][:, :-1][later])
        assert rows["x"].max() <= symbols > rows["y"].max()
    batch = gather(of.test.arrays, BatchIndices(of.test.indices[:8], jnp.ones(8)))
    loss, _ = jax.eval_shape(of.objective, params, extra, batch, None)
    assert loss.shape == ()


# Surfaces


@pytest.fixture
def x64() -> Iterator[None]:
    """As `float64`, and without Keras, which is slow to import."""
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "value"),
    # Beale: 1.5^2 + 2.25^2 + 2.625^2; ravine: 4.4^2 / 2 along it, 25 0.8^2 across
    [("Rosenbrock", 24.2), ("Beale", 14.203125), ("ravine", 25.68)],
)
def test_a_surface_has_its_value_at_the_start_and_its_minimum(
    name: str, value: float
) -> None:
    surface = SURFACES[name]
    assert float(surface.value(jnp.asarray(surface.start))) == pytest.approx(value)
    at = jnp.asarray(surface.minimum)
    assert surface.value(at) == pytest.approx(0, abs=1e-30)
    np.testing.assert_allclose(jax.grad(surface.value)(at), 0, atol=1e-14)
    assert np.linalg.eigvalsh(jax.hessian(surface.value)(at)).min() > 0.1
    left, right, bottom, top = surface.box
    for x, y in (surface.start, surface.minimum):  # are drawn
        assert left < x < right
        assert bottom < y < top
    plane = np.meshgrid(np.linspace(left, right, 97), np.linspace(bottom, top, 97))
    values = np.asarray(surface.value(jnp.asarray(np.stack(plane))))
    away = np.hypot(*(p - m for p, m in zip(plane, surface.minimum, strict=True))) > 0
    assert values[away].min() > 0


@pytest.mark.usefixtures("x64")
def test_the_ravine_is_50_times_as_steep_across_as_along() -> None:
    value = SURFACES["ravine"].value
    for at in ((0.0, 0.0), (-3.0, 1.5)):  # a quadratic: the same everywhere
        eigenvalues, directions = np.linalg.eigh(jax.hessian(value)(jnp.asarray(at)))
        np.testing.assert_allclose(eigenvalues, [1, 50], rtol=1e-13)
        assert np.abs(directions).min() > 0.5  # turned
