"""Optimizers, compared: equal trials, tuned on some seeds, reported on others.

Every optimizer gets the same number of trials on every problem: points of its own
space (see jaxstudy/optimizers.py), from one quasi-random sequence. The trial with the
lowest median validation loss over the tuning seeds is chosen; fresh seeds, paired by
start and batches, are reported on the test set. Runs that diverge count as the worst.
All runs of an optimizer on a problem are one compiled program.

    optimizers.py                                   all optimizers, the small tier
    optimizers.py --optimizers adam lion --problems digits --trials 20 --run-dir runs/x
    optimizers.py --spaces adam.rate=1e-4:1e-1 adam.b1=0.9 ...      your own ranges

    optimizers.py --optimizers adam mypackage.module:my_optimizer   your own
    optimizers.py --schedules constant cosine linear                of the rate

A range is LOW:HIGH, in the logarithm; of momentum, b1, b2, b3 and decay it is a range
of 1 - value. A single number is a value that is not tuned.

Expected (quick): under 3 minutes on two cores, most of it compiling.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from jaxstudy.optimizers import OPTIMIZERS, LogUniform
from jaxstudy.parallel import Mode
from jaxstudy.runs.cli import Count, Settings, experiment
from jaxstudy.runs.run import Run
from jaxstudy.study.candidates import (
    Candidate,
    find_optimizers,
    find_problems,
    look_up,
    with_schedules,
)
from jaxstudy.study.plots import save_study
from jaxstudy.study.problems import TIERS
from jaxstudy.study.runner import (
    Protocol,
    metrics,
    run_share,
    run_study,
)
from jaxstudy.study.shares import parse_share
from jaxstudy.types import UserError


@dataclass(frozen=True)
class Config(Settings):
    """Who competes, on what, and how thoroughly."""

    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Names of jaxstudy/optimizers.py; of one's own, package.module:function."""
    schedules: tuple[str, ...] = ("constant",)
    """Of the rate, for each optimizer: constant, cosine (with warm-up), linear."""
    tier: Literal["small", "medium", "large"] = "small"
    """Problems that take seconds a run, minutes, or an accelerator."""
    problems: tuple[str, ...] | None = None
    """Names of study/problems.py (None: the tier's); or package.module:function."""
    spaces: tuple[str, ...] = ()
    """Other ranges to tune in, OPTIMIZER.HYPERPARAMETER=LOW:HIGH, or set values."""
    trials: Annotated[int, pydantic.Field(le=4096)] = 10
    """Points of the space that each optimizer may try on each problem."""
    tuning_seeds: int = 3
    """Seeds that choose the point."""
    seeds: int = 10
    """Other seeds, that are reported."""
    epochs: Count | None = None
    """Epochs on every problem, instead of its own number."""
    share: str | None = None
    """I/N: only every N-th cell, as job I of N that never talk; see `jaxstudy join`."""
    replicas: Mode = "map"
    """map: sequential, each run with the same bits beside any others. vmap: vmapped."""


PRESETS = {
    "smoke": Config(
        optimizers=("sgd", "adam", "schedule_free"),
        problems=("quadratic", "digits"),
        trials=3,
        seeds=5,
        epochs=2,
    ),
    "quick": Config(),
    "full": Config(trials=36, tuning_seeds=10, seeds=15),
}


def candidates(config: Config) -> dict[str, Candidate]:
    """The optimizers by name, with the ranges that were asked for."""
    chosen = find_optimizers(config.optimizers)
    for text in config.spaces:
        where, _, value = text.partition("=")
        name, _, parameter = where.partition(".")
        candidate = look_up("optimizer of this study", name, chosen)
        chosen[name] = with_range(candidate, name, parameter, value)
    return with_schedules(chosen, config.schedules)


def with_range(
    candidate: Candidate, name: str, parameter: str, value: str
) -> Candidate:
    """The candidate with another range of a hyperparameter, or a fixed value."""
    known = candidate.optimizer.space
    usual = look_up(f"tuned hyperparameter of {name}", parameter, known)
    try:
        low, *high = [float(v) for v in value.split(":")]
        if len(high) > 1:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--spaces {name}.{parameter}={value}: neither LOW:HIGH nor a number"
        ) from None
    space, fixed = dict(candidate.space), dict(candidate.fixed)
    if not high:
        space.pop(parameter, None)
        return candidate._replace(space=space, fixed={**fixed, parameter: low})
    try:
        space[parameter] = LogUniform(low, high[0], usual.one_minus)
    except UserError as error:
        raise UserError(f"--spaces {name}.{parameter}={value}: {error}") from error
    fixed.pop(parameter, None)
    return candidate._replace(space=space, fixed=fixed)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Run the study, draw it, and return its figures."""
    protocol = Protocol(
        trials=config.trials,
        tuning_seeds=config.tuning_seeds,
        seeds=config.seeds,
        epochs=config.epochs,
        seed=config.seed,
        mode=config.replicas,
    )
    competitors = candidates(config)
    names = TIERS[config.tier] if config.problems is None else config.problems
    problems = find_problems(names)
    if config.share:
        share = parse_share(config.share)
        return run_share(problems, competitors, protocol, run, share)
    record = run_study(problems, competitors, protocol, run)
    save_study(record, run)
    print("\n".join(record["comparison"]["sentences"]))
    return metrics(record)


if __name__ == "__main__":
    experiment(main, PRESETS)
