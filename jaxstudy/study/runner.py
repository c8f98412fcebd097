"""A study: problems x optimizers x hyperparameters x seeds, and who does how well.

Every optimizer gets the same number of trials on a problem, from one sequence of
points. The trial whose validation loss has the lowest median over the tuning seeds is
chosen; then other seeds train with what was chosen, and only those are reported. The
seeds fix the start and the order of the batches, so optimizers are compared in pairs.

All trials of an optimizer on a problem are replicas of one compiled program, in which
the optimizer is built from traced hyperparameters; see `programs`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported where they are first used

from jaxstudy.model import Model, parameter_count
from jaxstudy.parallel import Mode
from jaxstudy.runs.files import to_json, write_atomically
from jaxstudy.runs.progress import Bar
from jaxstudy.runs.run import Run
from jaxstudy.study import comparison
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.comparison import STUDY_SCHEMA, StudyRecord, compare
from jaxstudy.study.problems import Problem, make_init, steps_of
from jaxstudy.study.programs import (
    Points,
    StepFunctions,
    make_step_functions,
    shared_step_functions,
)
from jaxstudy.study.shares import WHOLE, Share
from jaxstudy.training import Evaluator, FitResult, Replicas, fit, make_eval_step
from jaxstudy.types import Array, Key, TrainState, UserError

LEAST_TUNING_SEEDS = 3
LEAST_SEEDS = 5


@dataclass(frozen=True)
class Protocol:
    """How optimizers are compared: the same for all of them.

    Raises UserError when the statistics would need more than this.
    """

    trials: int = 10
    """Points of each optimizer's space, on every problem."""
    search: Literal["quasi-random", "grid"] = "quasi-random"
    """A Halton sequence over the space, or evenly spaced values of its one axis."""
    tuning_seeds: int = LEAST_TUNING_SEEDS
    """Seeds of every trial; their median chooses."""
    seeds: int = 10
    """Other seeds, with what was chosen: these are reported."""
    budgets: tuple[int, ...] = (1, 5, 10)
    """Also report what had been chosen after so many trials."""
    epochs: int | None = None
    """Epochs on every problem, instead of its own number."""
    seed: int = 0
    """Fixes all of the above."""
    mode: Mode = "map"
    """Sequential, each with the same bits beside any others, or vmapped."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(
                "the grid is empty: an optimizer needs at least one trial, "
                f"not {self.trials}"
            )
        if self.tuning_seeds < LEAST_TUNING_SEEDS:
            raise UserError(
                f"a median to choose by needs {LEAST_TUNING_SEEDS} tuning seeds or "
                f"more, not {self.tuning_seeds}"
            )
        if self.seeds < LEAST_SEEDS:
            raise UserError(
                f"{self.seeds} seeds are too few to compare by: the smallest p that "
                f"{self.seeds} pairs can give is {2.0 ** (1 - self.seeds):g}; "
                f"{LEAST_SEEDS} or more are needed"
            )

    def all_budgets(self) -> tuple[int, ...]:
        """The numbers of trials to report for; the last is all of them."""
        return (*sorted({k for k in self.budgets if k < self.trials}), self.trials)

    def reported_seeds(self) -> range:
        """The numbers of the seeds after those that tune."""
        return range(self.tuning_seeds, self.tuning_seeds + self.seeds)


def points(candidate: Candidate, protocol: Protocol, problem: str) -> Points:
    """The trials of an optimizer on a problem: values [P] of each hyperparameter.

    All optimizers read the same sequence, the first coordinate being the rate. Raises
    UserError for a grid over more than one axis.
    """
    names = list(candidate.space)
    if protocol.search == "grid":
        if len(names) != 1:
            raise UserError(f"a grid has one axis, not {len(names)}")
        unit = np.linspace(0, 1, protocol.trials)[:, None]
    else:
        # of the problem's name, so that another problem more changes nothing here
        seed = [protocol.seed, *problem.encode()]
        sequence = scipy.stats.qmc.Halton(
            max(8, len(names)), rng=np.random.default_rng(seed)
        )
        unit = sequence.random(protocol.trials)
    if not names:
        raise UserError("there is nothing to tune: the space is empty")
    tuned = {n: candidate.space[n].value(unit[:, i]) for i, n in enumerate(names)}
    fixed = {n: np.full(protocol.trials, v) for n, v in candidate.fixed.items()}
    return {n: v.astype(np.float32) for n, v in {**tuned, **fixed}.items()}


def at_edge(tried: np.ndarray, best: int) -> bool:
    """Whether the best trial has the smallest or the largest value that was tried."""
    return len(tried) > 1 and bool(tried[best] in (tried.min(), tried.max()))


def choose(losses: np.ndarray, budgets: Sequence[int]) -> list[int]:
    """The best of the first k trials for each k, by the median over the seeds.

    Validation losses [P, T]; a run that diverged counts as infinitely bad.
    """
    medians = np.median(comparison.losses(losses), axis=1)
    return [int(np.argmin(medians[:k])) for k in budgets]


def seed_keys(protocol: Protocol, numbers: Sequence[int]) -> tuple[Key, Key]:
    """Of each seed a key for the start and one for the order of the batches: [S]."""
    root = jax.random.key(protocol.seed)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i)))(
        jnp.asarray(numbers)
    )
    return keys[:, 0], keys[:, 1]


def as_replicas(at: Points, seeds: int, mode: Mode = "map") -> Replicas:
    """Replicas [P * S] of these points, each with every seed: seeds vary fastest."""
    args = {name: jnp.asarray(np.repeat(v, seeds)) for name, v in at.items()}
    return Replicas((args,), mode, may_diverge=True)


def start_replicas(
    model: Model, functions: StepFunctions, keys: Key, replicas: Replicas
) -> TrainState:
    """States [P * S] at every point from the key of every seed [S].

    Each is what `init_state` makes of the seed's key.
    """
    split = jax.vmap(jax.random.split)(keys)
    params, extra = make_init(model)(split[:, 0])
    count = len(jax.tree.leaves(replicas.args)[0])
    start = (params, extra, split[:, 1])
    tiled = jax.tree.map(lambda a: tile(a, count), start)
    state = jax.vmap(functions.init)(*tiled, *replicas.args)
    # an optimizer may keep the parameters themselves, and both are to be donated
    return state._replace(opt_state=jax.tree.map(jnp.copy, state.opt_state))


def tile(a: Array, count: int) -> Array:
    """Repeat [S, ...] as a whole until there are `count`."""
    return jnp.concatenate([a] * (count // len(a)))


def fit_replicas(
    problem: Problem,
    functions: StepFunctions,
    replicas: Replicas,
    keys: tuple[Key, Key],
    **options: Any,
) -> FitResult:
    """`fit` on a problem at every point from every seed.

    keys: what `seed_keys` gives of the seeds; options: of `fit`.
    """
    start, order = keys
    state = start_replicas(problem.model, functions, start, replicas)
    return fit(
        state, functions.train_step, problem.train, key=tile(order, state.step.size),
        epochs=problem.epochs, batch_size=problem.batch_size, replicas=replicas,
        **options,
    )  # fmt: skip


CHUNK_SECONDS = 3.0  # about, between two moments at which a study can stop
STEP_SECONDS, FLOPS = 2e-5, 1e10  # what a small step takes at least; a core's speed


def chunk_length(problem: Problem, replicas: int) -> int:
    """How many steps so many replicas take in CHUNK_SECONDS, roughly."""
    work = 6 * parameter_count(problem.model) * problem.batch_size / FLOPS
    return max(1, int(CHUNK_SECONDS / (STEP_SECONDS + work) / replicas))


class Trained(NamedTuple):
    """Losses of all replicas, NaN where diverged: curves [E, P, S]; test set [P, S]."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray | None


@dataclass(frozen=True)
class StudyCell:
    """One optimizer on one problem."""

    problem_name: str
    problem: Problem
    candidate_name: str
    candidate: Candidate
    functions: StepFunctions
    protocol: Protocol
    run: Run
    number: int = 0
    """How many cells of the study are before it."""

    def train(
        self, at: Points, numbers: Sequence[int], stage: str, bar: Bar
    ) -> Trained:
        """Train every point from every seed, unless the run has done so already.

        Only the stage "report" ever evaluates the test set, when training is over.
        """
        problem, functions = self.problem, self.functions
        name = f"{stage} {self.problem_name} {self.candidate_name}"
        begun = 2 * self.number + (stage == "report")
        bar.update(begun, name=name)
        sub_run = self.run.sub_run(
            name,
            checkpoint_at_end=False,
            on_chunk=lambda chunk, _: bar.update(begun + chunk.step / chunk.total),
        )
        last = "test" if stage == "report" else "validation"
        shape = len(next(iter(at.values()))), len(numbers)
        if not any(
            row["split"] == last and row["epoch"] == problem.epochs
            for row in sub_run.records
        ):
            mode = self.protocol.mode
            replicas = as_replicas(functions.arguments(at), len(numbers), mode)
            validation = Evaluator(
                functions.eval_step, problem.validation, args=replicas.args, mode=mode
            )
            state = fit_replicas(
                problem, functions, replicas, seed_keys(self.protocol, numbers),
                evaluators={"validation": validation}, evaluate_first=False,
                chunk_steps=chunk_length(problem, math.prod(shape)), log=sub_run,
            ).state  # fmt: skip
            if stage == "report":
                # of the parameters that one would use
                state = jax.vmap(functions.evaluated)(state)
                evaluate = make_eval_step(problem.objective)
                tested = Evaluator(evaluate, problem.test, mode=mode)(
                    state._replace(opt_state=())
                )
                end = {n: sub_run.records[-1][n] for n in ("step", "epoch")}
                pace = sub_run.timing.train_s / max(sub_run.timing.steps, 1)
                row = {**end, "split": "test", **tested, "seconds per step": pace}
                sub_run.log([row])
        sub_run.delete_checkpoints()
        return Trained(
            *(loss_curve(sub_run.records, split, shape) for split in Trained._fields)
        )


def loss_curve(
    rows: Sequence[Mapping[str, Any]], split: str, shape: tuple[int, int]
) -> np.ndarray:
    """Losses [E, P, S] of a split by epoch, the mean of an epoch's rows; or [P, S]."""
    epochs: dict[int, list[np.ndarray]] = {}
    for row in rows:
        if row["split"] == split:
            losses = np.array(row["loss"], float).reshape(shape)
            epochs.setdefault(math.ceil(row["epoch"]), []).append(losses)
    out = np.array([np.mean(epochs[e], axis=0) for e in sorted(epochs)])
    return out[-1] if split == "test" and len(out) else out


def run_cells(
    problems: Mapping[str, Problem],
    candidates: Mapping[str, Candidate],
    protocol: Protocol,
    run: Run,
    share: Share = WHOLE,
) -> list[StudyRecord]:
    """Tune and report every candidate on every problem, or a share of these cells.

    A resumed run repeats nothing that its metrics hold.
    """
    if not problems or not candidates:
        raise UserError("a study needs a problem and an optimizer")
    pairs = itertools.product(problems, candidates)
    mine = [(number, *pair) for number, pair in enumerate(pairs) if share.has(number)]
    cells: dict[int, StudyRecord] = {}
    with Bar(2 * len(mine)) as bar:
        for name, pairs in itertools.groupby(mine, lambda pair: pair[1]):
            problem = problems[name]
            # of all candidates: each is trained as it would be in any share
            functions = shared_step_functions(problem, candidates, protocol.mode)
            order = list(functions)  # those of one program one after another
            own = sorted(pairs, key=lambda pair: order.index(pair[2]))
            for number, _, candidate_name in own:
                cell = StudyCell(
                    name, problem, candidate_name, candidates[candidate_name],
                    functions[candidate_name], protocol, run, number=len(cells),
                )  # fmt: skip
                cells[number] = run_cell(cell, bar)
    return [cells[number] for number in sorted(cells)]


def run_study(
    problems: Mapping[str, Problem],
    candidates: Mapping[str, Candidate],
    protocol: Protocol,
    run: Run,
) -> StudyRecord:
    """All cells of a study, compared; the record is study.json."""
    cells = run_cells(problems, candidates, protocol, run)
    record = {
        "schema": STUDY_SCHEMA,
        "protocol": asdict(protocol),
        "problems": {name: describe(p, protocol) for name, p in problems.items()},
        "optimizers": {
            name: {
                "rule": e.optimizer.rule,
                "source": e.optimizer.source,
                "space": {n: asdict(log) for n, log in e.space.items()},
                "fixed": dict(e.fixed),
                "schedule": e.schedule,
            }
            for name, e in candidates.items()
        },
        "cells": cells,
    }
    record["comparison"] = compare(record)
    write_atomically(run.folder / "study.json", to_json(record) + "\n")
    write_atomically(
        run.folder / "timing.json", to_json(step_times(record, run)) + "\n"
    )
    return record


def step_times(record: StudyRecord, run: Run) -> dict[str, dict[str, float]]:
    """Seconds a step of a replica took, by problem and optimizer, compiling apart.

    Beside study.json and not in it, which is the same however often it is made.
    """
    out: dict[str, dict[str, float]] = {name: {} for name in record["problems"]}
    for cell in record["cells"]:
        problem, optimizer = cell["problem"], cell["optimizer"]
        rows = run.sub_run(
            f"report {problem} {optimizer}", checkpoint_at_end=False
        ).records
        out[problem][optimizer] = rows[-1]["seconds per step"]
    return out


def run_cell(cell: StudyCell, bar: Bar) -> StudyRecord:
    """Tune, choose, report: what study.json says of one optimizer on one problem."""
    protocol, problem = cell.protocol, cell.problem
    tuning_seeds, seeds = range(protocol.tuning_seeds), protocol.reported_seeds()
    at = points(cell.candidate, protocol, cell.problem_name)

    tuned = cell.train(at, tuning_seeds, "tune", bar)
    budgets = protocol.all_budgets()
    chosen = choose(tuned.validation[-1], budgets)

    best = {name: values[chosen] for name, values in at.items()}
    reported = cell.train(best, seeds, "report", bar)
    assert reported.test is not None
    late = math.ceil(0.75 * problem.epochs) - 1
    return {
        "problem": cell.problem_name,
        "optimizer": cell.candidate_name,
        "points": {name: values.tolist() for name, values in at.items()},
        "tuning": {
            "seeds": list(tuning_seeds),
            "validation": listed(tuned.validation[-1]),
            "validation at 3/4": listed(tuned.validation[late]),
        },
        "reported": {
            str(k): {
                "point": chosen[i],
                "at_edge": [
                    name for name in cell.candidate.space
                    if at_edge(at[name][:k], chosen[i])
                ],
                "seeds": list(seeds),
                "test": listed(reported.test[i]),
                "train": listed(reported.train[:, i]),
                "validation": listed(reported.validation[:, i]),
            }
            for i, k in enumerate(budgets)
        },
    }  # fmt: skip


def listed(values: np.ndarray) -> Any:
    """Nested lists, as numbers of 32 bits; None for what is not finite."""
    if values.ndim:
        return [listed(v) for v in values]
    return float(str(np.float32(values))) if np.isfinite(values) else None


def run_share(
    problems: Mapping[str, Problem],
    candidates: Mapping[str, Candidate],
    protocol: Protocol,
    run: Run,
    share: Share,
) -> dict[str, float]:
    """Train the cells of a share alone, which `join_shares` adds to the others."""
    cells = run_cells(problems, candidates, protocol, run, share)
    every = len(problems) * len(candidates)
    print(f"share {share.index}/{share.count}: {len(cells)} of {every} cells trained")
    print("when all shares are: python -m jaxstudy join RUN_FOLDER RUN_FOLDER ...")
    return {"cells trained": len(cells), "cells of the study": every}


def with_epochs(
    problems: Mapping[str, Problem], protocol: Protocol
) -> dict[str, Problem]:
    """The problems with the number of epochs that the protocol asks for, if it does."""
    if protocol.epochs is None:
        return dict(problems)
    return {n: replace(p, epochs=protocol.epochs) for n, p in problems.items()}


def describe(problem: Problem, protocol: Protocol) -> StudyRecord:
    """What study.json says of a problem; "start" is the loss before training."""
    params, extra = problem.model.init(seed_keys(protocol, [0])[0][0])
    state = TrainState(jnp.int32(0), params, extra, (), jax.random.key(0))
    start = Evaluator(make_eval_step(problem.objective), problem.test)(state)["loss"]
    return {
        "title": problem.title,
        "parameters": parameter_count(problem.model),
        "batch_size": problem.batch_size,
        "epochs": problem.epochs,
        "steps_per_epoch": steps_of(problem),
        "shuffle": problem.train.order.shuffle,
        "target": problem.target,
        "floors": dict(problem.floors),
        "start": start,
    }


def losses_at(
    rate: float,
    name: str,
    problem: Problem,
    candidates: Mapping[str, Candidate],
    protocol: Protocol,
    run: Run,
) -> dict[str, np.ndarray]:
    """Test losses [S] of every candidate at one rate, of the seeds a study reports.

    `name` is what the runs are called; where a run diverged its loss is infinite.
    """
    out = {}
    with Bar(2 * len(candidates)) as bar:
        for number, (candidate_name, candidate) in enumerate(candidates.items()):
            cell = StudyCell(
                name, problem, candidate_name, candidate,
                make_step_functions(problem, candidate), protocol, run, number,
            )  # fmt: skip
            values = {"rate": rate, **candidate.fixed}
            at = {n: np.array([v], np.float32) for n, v in values.items()}
            trained = cell.train(at, protocol.reported_seeds(), "report", bar)
            assert trained.test is not None
            out[candidate_name] = comparison.losses(trained.test[0])
    return out


def reported_losses(record: StudyRecord) -> dict[str, Any]:
    """What result.json says of the reported seeds, "optimizer: measure on problem"."""
    out: dict[str, Any] = {}
    for problem, found in record["comparison"]["problems"].items():
        for name, row in found["optimizers"].items():
            diverged = f"diverged in {row['diverged']} of {row['runs']} seeds"
            out[f"{name}: test loss on {problem}"] = row["test"] or diverged
    return out


def metrics(record: StudyRecord) -> dict[str, Any]:
    """What result.json says of a study: test losses, and scores over all problems."""
    out, overall = reported_losses(record), record["comparison"]["overall"]
    for name, row in overall.items():
        out[f"{name}: score on all problems (IQM)"] = row["score"]
    for name, row in overall.items():
        out[f"{name}: AlgoPerf score, in steps"] = row["algoperf"]
    return out
