"""Baselines that one need not run again: what a study stores, and is compared with.

A file for each problem holds the test losses of every optimizer by seed, the hash of
the problem and, of each seed, those of the first weights and of the order of the
batches. Seeds whose hashes agree are compared in pairs; where a platform draws other
numbers from the same keys, means are compared unpaired, and it is said. At the end
stands what others have published.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
import scipy  # its parts are imported where they are first used
from typing_extensions import TypedDict

from jaxstudy.dataset import epoch_batches, take
from jaxstudy.messages import did_you_mean
from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.runs.files import read_json, to_json, write_atomically
from jaxstudy.runs.run import Run
from jaxstudy.runs.statistics import holm, paired_test
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.comparison import (
    ALPHA,
    StudyRecord,
    budgets,
    grouped,
    listing,
    losses,
    outcome,
)
from jaxstudy.study.problems import (
    PROBLEMS,
    SPLITS,
    Problem,
    make_init,
    steps_of,
)
from jaxstudy.study.runner import Protocol, losses_at, seed_keys
from jaxstudy.types import UserError

STORED = Path(__file__).resolve().parents[2] / "results" / "baselines"
OF_PROTOCOL = ("trials", "tuning_seeds", "seeds", "seed", "epochs")


class SeedHashes(TypedDict):
    """What pairing needs: of each seed the first weights and the first epoch's rows."""

    start: list[str]
    order: list[str]


class Baseline(TypedDict):
    """An optimizer's reported seeds."""

    test: list[float | None]  # None: diverged
    steps_to_target: list[float | None]
    point: dict[str, float]
    schedule: str
    step_s: float | None


class Baselines(TypedDict):
    """results/baselines/PROBLEM.json."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # type: ignore[misc]
    schema: int
    problem: str
    title: str
    tier: str
    steps: int  # of a run
    version: str
    probe: list[float]
    protocol: dict[str, int | None]
    hashes: SeedHashes
    optimizers: dict[str, Baseline]


def version_of(problem: Problem) -> str:
    """The hash of what a loss depends on but the optimizer: data, sizes, epochs.

    Not of the model and the objective, which `probe_of` tells apart.
    """
    shapes = jax.eval_shape(problem.model.init, jax.random.key(0))
    facts = (
        str(jax.tree.map(lambda a: (a.shape, str(a.dtype)), shapes)),
        problem.batch_size, problem.epochs, steps_of(problem), problem.train.order,
    )  # fmt: skip
    digest = hashlib.sha256(repr(facts).encode())
    for split in SPLITS:
        data = getattr(problem, split)
        rows = np.asarray(data.indices)
        for name, array in sorted(data.arrays.items()):
            digest.update(f"{split} {name}".encode())
            digest.update(np.ascontiguousarray(np.asarray(array)[rows]).tobytes())
    return digest.hexdigest()[:16]


def probe_of(problem: Problem) -> list[float]:
    """The loss of the first batch at fixed weights, and its gradient's norm."""

    def fixed(leaf: Any) -> jax.Array:
        return 0.1 * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(
            leaf.shape
        )

    params, extra = problem.model.init(jax.random.key(0))
    batch: dict[str, Any] = take(
        problem.train, np.asarray(problem.train.indices)[: problem.batch_size]
    )
    batch["mask"] = np.ones(problem.batch_size, bool)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda p: problem.objective(p, extra, batch, None)[0])
    )(jax.tree.map(fixed, params))
    return [float(loss), float(optax.tree.norm(gradient))]


def seed_hashes(problem: Problem, protocol: Protocol) -> SeedHashes:
    """Of each reported seed: its first weights, and the rows of its first epoch."""
    start, order = seed_keys(protocol, protocol.reported_seeds())
    keys = jax.vmap(jax.random.split)(start)[:, 0]
    weights = make_init(problem.model)(keys)
    leaves = [np.asarray(a) for a in jax.tree.leaves(weights)]
    rows = jax.vmap(
        lambda key: (
            epoch_batches(problem.train, problem.batch_size, key, jnp.int32(0)).indices
        )
    )(order)

    def short(arrays: Sequence[np.ndarray]) -> str:
        content = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
        return hashlib.sha256(content).hexdigest()[:12]

    count = len(order)
    return {
        "start": [short([a[i] for a in leaves]) for i in range(count)],
        "order": [short([np.asarray(rows[i])]) for i in range(count)],
    }


def write_baselines(
    record: StudyRecord,
    problems: Mapping[str, Problem],
    protocol: Protocol,
    step_times: Mapping[str, Mapping[str, float]],
    folder: Path,
) -> None:
    """A file PROBLEM.json for each problem of a study that is done."""
    folder.mkdir(exist_ok=True)
    last = str(budgets(record)[-1])
    for name, problem in problems.items():
        found: dict[str, Baseline] = {}
        for cell in record["cells"]:
            if cell["problem"] != name:
                continue
            optimizer, reported = cell["optimizer"], cell["reported"][last]
            steps = outcome(record, name, optimizer).steps_to_target
            at = {n: v[reported["point"]] for n, v in cell["points"].items()}
            found[optimizer] = {
                "test": reported["test"],
                "steps_to_target": [
                    float(s) if np.isfinite(s) else None for s in steps
                ],
                "point": at,
                "schedule": record["optimizers"][optimizer]["schedule"],
                "step_s": step_times.get(name, {}).get(optimizer),
            }
        content: Baselines = {
            "schema": 1,
            "problem": name,
            "title": problem.title,
            "tier": problem.tier,
            "steps": problem.epochs * steps_of(problem),
            "version": version_of(problem),
            "probe": probe_of(problem),
            "protocol": {n: getattr(protocol, n) for n in OF_PROTOCOL},
            "hashes": seed_hashes(problem, protocol),
            "optimizers": found,
        }
        write_atomically(folder / f"{name}.json", to_json(content) + "\n")


def read_baselines(
    folder: Path, problems: Mapping[str, Problem]
) -> dict[str, Baselines]:
    """The baselines of these problems, which may be of another number of epochs.

    Raises UserError where there are none, they are of another version of the problem,
    or of another protocol than those of the first.
    """
    there = sorted(path.stem for path in folder.glob("*.json"))
    out: dict[str, Baselines] = {}
    for name, problem in problems.items():
        if name not in there:
            hint = did_you_mean(name, there) or f"; there are {', '.join(there)}"
            raise UserError(
                f"no baselines of {name!r} in {folder}{hint if there else ''}"
            )
        path = folder / f"{name}.json"
        found = read_json(path, Baselines)
        problem = replace(problem, epochs=found["protocol"]["epochs"] or problem.epochs)
        same = found["version"] == version_of(problem)
        if not same or not np.allclose(found["probe"], probe_of(problem), rtol=1e-3):
            what = "model or objective" if same else "data, sizes or epochs"
            raise UserError(
                f"{path} is of another version of the problem: its {what} have "
                "changed, so that losses are no longer comparable"
            )
        first = next(iter(out.values()), found)
        if found["protocol"] != first["protocol"]:
            raise UserError(
                f"{path} is of another protocol than {first['problem']}.json: "
                f"{found['protocol']}, not {first['protocol']}"
            )
        out[name] = found
    return out


class Difference(NamedTuple):
    """One's own optimizer against a baseline: a positive effect is a larger loss."""

    effect: float
    p: float
    paired: bool


def difference_of(mine: np.ndarray, base: np.ndarray, same: np.ndarray) -> Difference:
    """Of losses [S] by seed, in pairs if all seeds are the `same` [S].

    A few pairs tell less than all seeds without them. Unpaired: Welch's test of the
    means; of ranks where a run diverged.
    """
    if same.all():
        found = paired_test(mine, base)
        return Difference(found.effect, found.p, True)
    if np.isfinite([*mine, *base]).all():
        p = scipy.stats.ttest_ind(mine, base, equal_var=False).pvalue
        gap = float(mine.mean() - base.mean())
    else:
        p = scipy.stats.mannwhitneyu(mine, base).pvalue
        gap = float(np.median(scipy.stats.rankdata([*mine, *base])[: len(mine)]))
        gap -= (len(mine) + len(base) + 1) / 2
    return Difference(gap, 1.0 if np.isnan(p) else float(p), False)


def against(
    record: StudyRecord,
    problems: Mapping[str, Problem],
    protocol: Protocol,
    baselines: Mapping[str, Baselines],
) -> dict[str, Any]:
    """Each optimizer of a study against each baseline: differences, and sentences.

    Holm's correction is for all comparisons on a problem.
    """
    out: dict[str, Any] = {"problems": {}, "sentences": []}
    for name, problem in problems.items():
        stored, hashes = baselines[name], seed_hashes(problem, protocol)
        pairs = np.all(
            [np.equal(hashes[k], stored["hashes"][k]) for k in ("start", "order")], 0
        )
        bases = {n: losses(b["test"]) for n, b in stored["optimizers"].items()}
        tests = {o: outcome(record, name, o).test for o in record["optimizers"]}
        table = {
            mine: {base: difference_of(test, bases[base], pairs) for base in bases}
            for mine, test in tests.items()
        }
        p = holm(np.array([d.p for row in table.values() for d in row.values()]))
        each = iter(p.tolist())
        out["problems"][name] = {
            mine: {b: {**d._asdict(), "p_holm": next(each)} for b, d in row.items()}
            for mine, row in table.items()
        }
        out["sentences"] += _sentences(name, out["problems"][name], int(pairs.sum()))
    return out


def _sentences(problem: str, table: Mapping[str, Any], pairs: int) -> list[str]:
    some = next(iter(next(iter(table.values())).values()))
    how = f"in {pairs} pairs by seed"
    if not some["paired"]:
        how = (
            "unpaired, by their means: this platform draws other first weights or "
            "orders from the same seeds"
        )
    count = sum(len(row) for row in table.values())
    out = [
        f"On {problem}, test losses are compared with the baselines' {how} (Holm's "
        f"correction for {count})."
    ]
    if some["paired"] and (least := min(1.0, 2 / 2**pairs * count)) >= ALPHA:
        out.append(f"So few seeds cannot tell any apart: no p is under {least:.2g}.")
    for mine, row in table.items():
        groups = grouped(row)
        for kind in ("better", "worse"):
            if groups[kind]:
                p = max(row[base]["p_holm"] for base in groups[kind])
                out.append(
                    f"On {problem}, {mine} is {kind} than {listing(groups[kind])} "
                    f"(p <= {p:.2g})."
                )
        if groups["apart"]:
            p = min(row[base]["p_holm"] for base in groups["apart"])
            out.append(
                f"On {problem}, {mine} cannot be told from {listing(groups['apart'])} "
                f"(p >= {p:.2g})."
            )
    return out


# What DeepOBS published, and the same measured here


class Published(NamedTuple):
    """Test losses of 10 seeds after 100 epochs on the quadratic, at the best rate."""

    rate: float
    fixed: dict[str, float]
    mean: float
    deviation: float


# P1, the quadratic of 100 dimensions, from the 10 runs of each that are published with
# Schneider, Balles and Hennig 2019 (github.com/fsschneider/DeepOBS_Baselines): mean and
# standard deviation of the last test losses, at the best of 36 rates.
PUBLISHED_SEEDS = 10
P1 = {
    "sgd": Published(10**-1.8, {}, 87.39747, 0.16895),
    "momentum": Published(10**-2.6, {"momentum": 0.99}, 87.04504, 0.02518),
    "adam": Published(10**-1.4, {}, 87.11188, 0.02419),
}


def z_score(ours: np.ndarray, published: Published) -> float:
    """The difference of two means over seeds, in its standard error."""
    errors = [
        np.std(ours, ddof=1) / np.sqrt(len(ours)),
        published.deviation / PUBLISHED_SEEDS**0.5,
    ]
    return float((np.mean(ours) - published.mean) / np.hypot(*errors))


def reproduce_deepobs(run: Run, seed: int) -> dict[str, float]:
    """Train what was published, print both tables, and return ours as metrics."""
    problem = PROBLEMS["quadratic_fixed"]()
    protocol = Protocol(seeds=PUBLISHED_SEEDS, seed=seed)
    out: dict[str, float] = {}
    print(f"{'':10} {'rate':>10} {'published':>22} {'here':>22} {'z':>6}")
    for name, published in P1.items():
        candidates = {name: Candidate(OPTIMIZERS[name], {}, published.fixed)}
        found = losses_at(published.rate, "P1", problem, candidates, protocol, run)
        ours, z = found[name], z_score(found[name], published)
        both = (
            f"{mean:.4f} +- {deviation / PUBLISHED_SEEDS**0.5:.4f}"
            for mean, deviation in (
                (published.mean, published.deviation), (ours.mean(), ours.std(ddof=1))
            )
        )  # fmt: skip
        columns = " ".join(f"{text:>22}" for text in both)
        print(f"{name:10} {published.rate:10.4g} {columns} {z:6.2f}")
        out |= {f"{name}: test loss on P1": float(ours.mean()), f"{name}: z": z}
    print("means of 10 seeds and their standard errors; z: their difference in its own")
    return out
