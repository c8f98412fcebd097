"""The order in which training visits a set, and how a set is cut into parts."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxstudy.data.splits import grouped_split, kfold, random_split
from jaxstudy.dataset import (
    SHUFFLED,
    BatchIndices,
    Dataset,
    Order,
    dataset,
    epoch_batches,
    evenly_spaced,
    gather,
    ordered_batches,
    stacked_subsets,
    steps_per_epoch,
    subset,
)
from jaxstudy.types import Array, Key
from tests.conftest import Patch

pure = settings(max_examples=60, deadline=None)
some = settings(max_examples=20, deadline=None)
# Each pair of sizes compiles something: one row, batches of one, whole batches, a
# remainder, and a batch larger than all.
SIZES = {1: 1, 5: 1, 8: 4, 11: 4, 9: 20}
valid_rows = st.sampled_from(list(SIZES)).flatmap(
    lambda n: st.lists(st.booleans(), min_size=n, max_size=n)
)
seeds, epochs = st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1)


def shuffled(n: int) -> np.ndarray:
    """So many numbers of rows."""
    return np.random.default_rng(0).permutation(1000)[:n]


@functools.partial(jax.jit, static_argnums=(2, 5))
def batches_of(
    rows: Array,
    valid: Array,
    size: int,
    key: Key,
    epoch: Array,
    order: Order = SHUFFLED,
) -> BatchIndices:
    """One compilation for each pair of sizes, where each operation would need one."""
    return epoch_batches(Dataset(rows, valid, {}, order=order), size, key, epoch)


def real(batches: BatchIndices) -> np.ndarray:
    """The rows that are not padding, in order."""
    return np.asarray(batches.indices)[np.asarray(batches.mask) == 1]


@pytest.mark.parametrize("drop", [False, True])
@some
@given(valid=valid_rows, seed=seeds, epoch=epochs)
def test_an_epoch_visits_every_real_row_once(
    drop: bool, valid: list[bool], seed: int, epoch: int
) -> None:
    """Also where padding stands among the rows, as in a replica of a short fold.

    Of whole batches only, padding goes last: it is dropped before any real row.
    """
    n, order = len(valid), Order(drop_remainder=drop)
    rows, size = shuffled(n), SIZES[n]
    place = jax.random.key(seed), jnp.int32(epoch)
    batches = batches_of(jnp.asarray(rows), jnp.asarray(valid), size, *place, order)
    steps = steps_per_epoch(n, size, order)
    assert batches.indices.shape == batches.mask.shape == (steps, size)
    assert set(np.unique(batches.mask)) <= {0, 1}
    kept = real(batches)
    assert len(set(kept)) == len(kept) == min(sum(valid), steps * size)
    assert set(kept) <= set(rows[np.asarray(valid)])
    # padding stands at the end, so only the last batches with real rows are short
    assert np.all(np.ravel(batches.mask)[: len(kept)] == 1)
    # promised to be in bounds wherever they are gathered
    assert set(np.ravel(batches.indices)) <= {*rows, 0}


@some
@given(valid=valid_rows)
def test_evaluation_visits_every_real_row_in_order(valid: list[bool]) -> None:
    rows = shuffled(len(valid))
    data = Dataset(jnp.asarray(rows), jnp.asarray(valid), {})
    batches = ordered_batches(data, SIZES[len(valid)])
    assert list(real(batches)) == list(rows[np.asarray(valid)])


def test_the_order_is_a_function_of_key_and_epoch() -> None:
    rows, valid = jnp.arange(40), jnp.ones(40, bool)

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        key = jax.random.key(seed)
        return tuple(real(batches_of(rows, valid, 8, key, jnp.int32(epoch))).tolist())

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert order(1, 1) == orders[1, 1]
    assert order(0, 0) != tuple(range(40))


def test_every_row_is_as_likely_in_every_place() -> None:
    keys = jax.random.split(jax.random.key(0), 3000)
    valid = jnp.asarray([True, True, False, True, True, True])
    data = Dataset(jnp.arange(6), valid, {})
    batches = jax.vmap(lambda key: epoch_batches(data, 3, key, jnp.int32(0)))(keys)
    order = np.asarray(batches.indices).reshape(3000, 6)[:, :5]
    counts = np.stack([np.bincount(place, minlength=6) for place in order.T])
    assert not counts[:, 2].any()
    # 3000 draws of probability 1/5: sd 22
    assert np.abs(counts[:, [0, 1, 3, 4, 5]] - 600).max() < 5 * 22


@pytest.mark.parametrize("drop", [False, True])
@some
@given(valid=valid_rows, seed=seeds, epoch=epochs)
def test_rows_stay_as_they_are_unless_shuffled(
    drop: bool, valid: list[bool], seed: int, epoch: int
) -> None:
    n, order = len(valid), Order(shuffle="never", drop_remainder=drop)
    rows, size = shuffled(n), SIZES[n]
    place = jax.random.key(seed), jnp.int32(epoch)
    batches = batches_of(jnp.asarray(rows), jnp.asarray(valid), size, *place, order)
    steps = steps_per_epoch(n, size, order)
    assert batches.indices.shape == batches.mask.shape == (steps, size)
    kept = min(n, steps * size)
    assert list(np.ravel(batches.indices)[:kept]) == list(rows[:kept])
    assert list(np.ravel(batches.mask)[:kept]) == valid[:kept]
    assert not np.ravel(batches.mask)[kept:].any()


@pytest.mark.parametrize("drop", [False, True])
def test_shuffled_once_every_epoch_is_the_first_one(drop: bool) -> None:
    """Of each key another one: what each seed of a published run has."""
    rows, valid = jnp.arange(11), jnp.asarray([True] * 9 + [False] * 2)

    def visited(seed: int, epoch: int, order: Order) -> list[int]:
        key = jax.random.key(seed)
        return real(batches_of(rows, valid, 4, key, jnp.int32(epoch), order)).tolist()

    once, each = (Order(shuffle, drop) for shuffle in ("once", "each epoch"))
    orders = [visited(seed, 0, once) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for seed, order in enumerate(orders):
        assert order == visited(seed, 0, each)
        assert order == visited(seed, 1, once) == visited(seed, 99, once)
        assert len(set(order)) == len(order) == (8 if drop else 9)


def arrays(n: int) -> dict[str, np.ndarray]:
    return {
        "x": np.arange(3 * n, dtype=np.float32).reshape(n, 3),
        "y": np.arange(n, dtype=np.int32) + 100,
    }


def test_gather_brings_the_fields_of_the_rows() -> None:
    data = dataset(arrays(7))
    batch = gather(
        data.arrays, BatchIndices(jnp.asarray([5, 0, 5]), jnp.asarray([1.0, 1, 0]))
    )
    assert sorted(batch) == ["mask", "x", "y"]
    np.testing.assert_array_equal(batch["x"], arrays(7)["x"][[5, 0, 5]])
    np.testing.assert_array_equal(batch["y"], [105, 100, 105])
    np.testing.assert_array_equal(batch["mask"], [1, 1, 0])


def test_subsets_share_the_arrays() -> None:
    data = dataset(arrays(7))
    part = subset(data, [6, 2])
    assert part.arrays is data.arrays
    np.testing.assert_array_equal(part.indices, [6, 2])
    np.testing.assert_array_equal(part.mask, [True, True])
    stacked = stacked_subsets(data, [np.array([1, 2, 3]), np.array([4])])
    assert stacked.arrays is data.arrays
    assert stacked.indices.shape == stacked.mask.shape == (2, 3)
    np.testing.assert_array_equal(stacked.mask, [[1, 1, 1], [1, 0, 0]])
    for replica, want in enumerate(([1, 2, 3], [4])):
        got = stacked.indices[replica][stacked.mask[replica]]
        np.testing.assert_array_equal(got, want)


def test_fields_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="'x': 3, 'y': 2"):
        dataset({"x": np.zeros((3, 1)), "y": np.zeros(2)})
    with pytest.raises(ValueError, match="length over 0"):
        dataset({"x": np.zeros((0, 1))})


@given(n=st.integers(1, 10**6), size=st.integers(1, 10**6))
def test_steps_per_epoch_is_the_ceiling_or_the_floor(n: int, size: int) -> None:
    steps = steps_per_epoch(n, size)
    assert (steps - 1) * size < n <= steps * size
    assert steps == steps_per_epoch(n, size, Order(shuffle="never"))
    whole = steps_per_epoch(n, size, Order(drop_remainder=True))
    assert whole * size <= n < (whole + 1) * size
    assert whole == steps_per_epoch(n, size, Order("never", drop_remainder=True))


@pure
@given(
    n=st.integers(1, 500),
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_a_split_is_disjoint_exhaustive_and_of_its_shares(
    n: int, weights: list[int], seed: int
) -> None:
    shares = [w / sum(weights) for w in weights]
    try:
        parts = random_split(n, shares, seed)
    except ValueError:
        # only where rounding may leave a part with nothing
        assert min(shares) * n < 1
        return
    assert sorted(np.concatenate(parts)) == list(range(n))
    for part, weight in zip(parts, weights, strict=True):
        assert len(part) > 0
        assert abs(len(part) - Fraction(weight, sum(weights)) * n) <= 1
        assert list(part) == sorted(part)
    again = random_split(n, shares, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_splits_and_folds_depend_on_their_seed() -> None:
    first, second = (random_split(100, (0.7, 0.3), seed)[1] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert list(first) != list(range(70, 100))
    (_, first), (_, second) = kfold(50, 5, 0)[0], kfold(50, 5, 1)[0]
    assert not np.array_equal(first, second)
    assert np.array_equal(first, kfold(50, 5, 0)[0][1])


def test_shares_and_folds_that_cannot_be_are_refused() -> None:
    for shares in ((0.5, 0.4), (0.7, 0.7), (1.5, -0.5), (1.0, 0.0)):
        with pytest.raises(ValueError, match="add up to 1"):
            random_split(100, shares, 0)
    with pytest.raises(ValueError, match="3 rows are too few"):
        random_split(3, (0.9, 0.1), 0)
    for folds in (1, 11):
        with pytest.raises(ValueError, match="need 2 to 10 folds for 10 rows"):
            kfold(10, folds, 0)


@pure
@given(n=st.integers(2, 300), folds=st.integers(2, 20), seed=st.integers(0, 2**32))
def test_folds_tile_the_rows(n: int, folds: int, seed: int) -> None:
    assume(folds <= n)
    splits = kfold(n, folds, seed)
    assert len(splits) == folds
    held_out = [held for _, held in splits]
    assert sorted(np.concatenate(held_out)) == list(range(n))
    sizes = [len(held) for held in held_out]
    assert max(sizes) - min(sizes) <= 1
    for train, held in splits:
        assert sorted([*train, *held]) == list(range(n))


@pytest.mark.parametrize(("n", "count"), [(1, 1), (7, 3), (7, 9), (200, 150)])
def test_spread_rows_are_distinct_in_order_and_even(n: int, count: int) -> None:
    rows = np.asarray(evenly_spaced(dataset({"x": np.arange(n)}), count).indices)
    assert len(rows) == min(n, count)
    assert rows[0] == 0
    gaps = np.diff([*rows, n])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    with pytest.raises(ValueError, match="1 row"):
        evenly_spaced(dataset({"x": np.arange(n)}), 0)


def test_a_split_that_shares_a_key_is_refused(monkeypatch: Patch) -> None:
    keys = [[row // 2, f"own {row}"] for row in range(40)]
    sets = grouped_split(keys, 0.2)
    assert sorted(np.concatenate(sets).tolist()) == list(range(40))
    assert [len(rows) for rows in sets] == [24, 8, 8]
    halves = [set((rows // 2).tolist()) for rows in sets]
    assert not halves[0] & halves[1]
    assert not halves[0] & halves[2]
    assert not halves[1] & halves[2]

    def apart(graph: scipy.sparse.coo_array, directed: bool) -> tuple[int, np.ndarray]:
        return graph.shape[0], np.arange(graph.shape[0])

    monkeypatch.setattr(scipy.sparse.csgraph, "connected_components", apart)
    with pytest.raises(AssertionError, match="is in two sets"):
        grouped_split(keys, 0.2)
