"""What DeepOBS published, and the same measured here."""

from typing import NamedTuple

import numpy as np

from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.runs.run import Run
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.problems import PROBLEMS
from jaxstudy.study.runner import Protocol, losses_at


class Published(NamedTuple):
    """Test losses of 10 seeds after 100 epochs on the quadratic, at the best rate."""

    rate: float
    fixed: dict[str, float]
    mean: float
    deviation: float


# P1, the quadratic of 100 dimensions, from the 10 runs of each that are published with
# Schneider, Balles and Hennig 2019 (github.com/fsschneider/DeepOBS_Baselines): mean and
# standard deviation of the last test losses, at the best of 36 rates.
SEEDS = 10
P1 = {
    "sgd": Published(10**-1.8, {}, 87.39747, 0.16895),
    "momentum": Published(10**-2.6, {"momentum": 0.99}, 87.04504, 0.02518),
    "adam": Published(10**-1.4, {}, 87.11188, 0.02419),
}


def z_score(ours: np.ndarray, published: Published) -> float:
    """The difference of two means over seeds, in its standard error."""
    errors = [
        np.std(ours, ddof=1) / np.sqrt(len(ours)),
        published.deviation / SEEDS**0.5,
    ]
    return float((np.mean(ours) - published.mean) / np.hypot(*errors))


def reproduce_deepobs(run: Run, seed: int) -> dict[str, float]:
    """Train what was published, print both tables, and return ours as metrics."""
    problem, protocol = PROBLEMS["quadratic_fixed"](), Protocol(seeds=SEEDS, seed=seed)
    out: dict[str, float] = {}
    print(f"{'':10} {'rate':>10} {'published':>22} {'here':>22} {'z':>6}")
    for name, published in P1.items():
        candidate = Candidate(OPTIMIZERS[name], {}, published.fixed)
        found = losses_at(
            published.rate, "P1", problem, {name: candidate}, protocol, run
        )[name]
        z = z_score(found, published)
        both = (
            f"{mean:.4f} +- {deviation / SEEDS**0.5:.4f}"
            for mean, deviation in (
                (published.mean, published.deviation),
                (found.mean(), found.std(ddof=1)),
            )
        )
        print(f"{name:10} {published.rate:10.4g}", *map("{:>22}".format, both), end="")
        print(f" {z:6.2f}")
        out |= {f"{name}: test loss on P1": float(found.mean()), f"{name}: z": z}
    print("means of 10 seeds and their standard errors; z: their difference in its own")
    return out
