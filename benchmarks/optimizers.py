"""Optimizers, compared: equal trials, tuned on some seeds, reported on others.

Every optimizer gets the same number of trials on every problem: points of its own
space (see jaxstudy/optimizers.py), from one quasi-random sequence. The trial with the
lowest median validation loss over the tuning seeds is chosen; fresh seeds, paired by
start and batches, are reported on the test set. Runs that diverge count as the worst.
All runs on a small problem, of all optimizers, are one compiled program.

    optimizers.py                                   all optimizers, the small tier
    optimizers.py --optimizers adam lion --problems digits --trials 20 --run-dir runs/x
    optimizers.py --spaces adam.rate=1e-4:1e-1 adam.b1=0.9 ...      your own ranges

    optimizers.py --optimizers adam mypackage.module:my_optimizer   your own
    optimizers.py --schedules constant cosine linear                of the rate
    optimizers.py --against baselines --optimizers mine:make        run yours only
    optimizers.py --reproduce deepobs                               the published table

A range is LOW:HIGH, in the logarithm; of momentum, b1, b2, b3 and decay it is a range
of 1 - value. A single number is a value that is not tuned.

Expected (quick): under 10 minutes on two cores.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from jaxstudy.optimizers import OPTIMIZERS, LogUniform
from jaxstudy.parallel import Mode
from jaxstudy.runs.cli import Count, Settings, experiment
from jaxstudy.runs.files import to_json, write_atomically
from jaxstudy.runs.run import Run
from jaxstudy.study.baselines import (
    STORED,
    against,
    read_baselines,
    reproduce_deepobs,
    write_baselines,
)
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
    step_times,
    with_epochs,
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
    seeds: int = 15
    """Other seeds, that are reported."""
    budgets: tuple[int, ...] = (1,)
    """Also report what had been chosen after so many trials."""
    epochs: Count | None = None
    """Epochs on every problem, instead of its own number."""
    share: str | None = None
    """I/N: only every N-th cell, as job I of N that never talk; see `jaxstudy join`."""
    against: str | None = None
    """A folder of baselines, or "baselines": ours. Their protocol and seeds count."""
    reproduce: Literal["deepobs"] | None = None
    """Only train what DeepOBS published on the quadratic, and print both."""
    replicas: Mode = "auto"
    """map: sequential, each run with the same bits beside any others. vmap: vmapped.
    auto: map on a CPU, vmap on an accelerator."""


PRESETS = {
    "smoke": Config(
        optimizers=("sgd", "adam", "schedule_free"),
        problems=("quadratic", "digits"),
        trials=3,
        seeds=9,
        budgets=(),
        epochs=2,
    ),
    # as many replicas tune as report, so that both are one program
    "quick": Config(),
    "full": Config(trials=36, tuning_seeds=10, budgets=(1, 5, 10)),
}


def candidates(config: Config) -> dict[str, Candidate]:
    """The optimizers by name, with the ranges that were asked for."""
    chosen = find_optimizers(config.optimizers)
    for text in config.spaces:
        where, _, value = text.partition("=")
        name, _, parameter = where.rpartition(".")
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
        if len(high) > 1 or not math.isfinite(low):
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
    if config.reproduce:
        return reproduce_deepobs(run, config.seed)
    protocol = Protocol(
        trials=config.trials,
        tuning_seeds=config.tuning_seeds,
        seeds=config.seeds,
        budgets=config.budgets,
        epochs=config.epochs,
        seed=config.seed,
        mode=config.replicas,
    )
    competitors = candidates(config)
    names = TIERS[config.tier] if config.problems is None else config.problems
    problems = find_problems(names)
    baselines = None
    if config.against:
        ours = config.against == "baselines"
        folder = STORED if ours else Path(config.against)
        baselines = read_baselines(folder, problems)
        stored: Any = next(iter(baselines.values()))["protocol"]
        protocol = replace(protocol, **stored)
    problems = with_epochs(problems, protocol)
    if config.share is not None:
        share = parse_share(config.share)
        return run_share(problems, competitors, protocol, run, share)
    record = run_study(problems, competitors, protocol, run)
    write_baselines(
        record, problems, protocol, step_times(record, run), run.folder / "baselines"
    )
    save_study(record, run)
    said = record["comparison"]["sentences"]
    if baselines:
        found = against(record, problems, protocol, baselines)
        write_atomically(run.folder / "against.json", to_json(found) + "\n")
        said = [*said, *found["sentences"]]
    print("\n".join(said))
    return metrics(record)


if __name__ == "__main__":
    experiment(main, PRESETS)
