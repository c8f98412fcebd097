"""Rows divided at random into sets that share none: shares, groups, folds."""

from collections.abc import Hashable, Sequence

import numpy as np
import scipy  # its parts are imported where they are first used


def random_split(n: int, shares: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Cut range(n) at random into disjoint, exhaustive parts of about these shares.

    Raises ValueError when the shares do not add up to 1 or a part would be empty.
    """
    if not np.isclose(sum(shares), 1) or min(shares) <= 0:
        raise ValueError(f"shares must be positive and add up to 1, not {shares}")
    order = np.random.default_rng(seed).permutation(n)
    parts = np.split(order, np.round(np.cumsum(shares)[:-1] * n).astype(int))
    if min(len(p) for p in parts) == 0:
        raise ValueError(f"{n} rows are too few for the shares {shares}")
    return tuple(np.sort(p) for p in parts)


def grouped_split(
    keys: Sequence[Sequence[Hashable]], held_out: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, to choose by and to test on, the same at every call.

    Rows that share a key, or are linked by others that do, are never in two of them.
    `held_out` is the share of each of the last two, in such groups. Raises ValueError
    where there are too few groups.
    """
    numbers: dict[Hashable, int] = {}
    links = [
        (row, numbers.setdefault(key, len(numbers)))
        for row, own in enumerate(keys)
        for key in own
    ]
    rows, columns = np.array(links).reshape(-1, 2).T
    size = len(keys) + len(numbers)
    graph = scipy.sparse.coo_array(
        (np.ones(len(rows)), (rows, len(keys) + columns)), shape=(size, size)
    )
    _, groups = scipy.sparse.csgraph.connected_components(graph, directed=False)
    group = groups[: len(keys)]
    names = np.random.default_rng(0).permutation(np.unique(group))
    count = int(len(names) * held_out)
    if count < 1:
        raise ValueError(f"{len(names)} groups are too few to hold some of them out")
    parts = names[2 * count :], names[:count], names[count : 2 * count]
    train, validation, test = (np.flatnonzero(np.isin(group, part)) for part in parts)
    where: dict[Hashable, int] = {}
    for place, part in enumerate((train, validation, test)):
        for key in (key for row in part.tolist() for key in keys[row]):
            assert where.setdefault(key, place) == place, f"{key!r} is in two sets"
    return train, validation, test


def kfold(n: int, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, held-out rows) of every fold; held-out parts tile range(n).

    Raises ValueError unless 2 <= folds <= n.
    """
    if not 2 <= folds <= n:
        raise ValueError(f"need 2 to {n} folds for {n} rows, not {folds}")
    order = np.random.default_rng(seed).permutation(n)
    parts = [np.sort(p) for p in np.array_split(order, folds)]
    return [(np.setdiff1d(np.arange(n), part), part) for part in parts]
