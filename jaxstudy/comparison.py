"""What a study found: every number and sentence, from study.json alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstudy.statistics import (
    Estimate,
    algoperf_score,
    bootstrap_interval,
    holm,
    interquartile_mean,
    iqm_interval,
    paired_test,
    probability_better_interval,
)

SCHEMA = 1  # of study.json
ALPHA = 0.05
TAU_MAX = 4.0
Record = Mapping[str, Any]  # study.json


class Outcome(NamedTuple):
    """An optimizer on a problem, with the best of its first k trials; inf: diverged."""

    test: np.ndarray  # [S]
    train: np.ndarray  # [E, S]
    validation: np.ndarray  # [E, S]
    steps_to_target: np.ndarray  # [S]; inf where it was not reached: censored


def losses(values: Any) -> np.ndarray:
    """An array of a record; what was not finite is infinitely bad."""
    return np.nan_to_num(np.array(values, float), nan=np.inf, posinf=np.inf)


def cell_of(record: Record, problem: str, optimizer: str) -> Record:
    """What study.json says of an optimizer on a problem."""
    for cell in record["cells"]:
        if (cell["problem"], cell["optimizer"]) == (problem, optimizer):
            return cell
    raise KeyError((problem, optimizer))


def budgets(record: Record) -> list[int]:
    """After how many trials something was reported."""
    return [int(k) for k in record["cells"][0]["reported"]]


def outcome(
    record: Record, problem: str, optimizer: str, k: int | None = None
) -> Outcome:
    """The reported seeds, with the best of k trials, or of all."""
    cell = cell_of(record, problem, optimizer)
    reported = cell["reported"][str(k or budgets(record)[-1])]
    facts = record["problems"][problem]
    validation = losses(reported["validation"])
    reached = validation <= facts["target"]
    epochs = np.where(reached.any(0), reached.argmax(0) + 1, np.inf)
    return Outcome(
        losses(reported["test"]),
        losses(reported["train"]),
        validation,
        epochs * facts["steps_per_epoch"],
    )


def trial_losses(record: Record, problem: str, optimizer: str) -> np.ndarray:
    """Validation losses [P, T] of all trials with the tuning seeds."""
    return losses(cell_of(record, problem, optimizer)["tuning"]["validation"])


def tuned_loss(record: Record, problem: str, optimizer: str) -> float:
    """The lowest median validation loss of the tuning seeds over all trials."""
    return float(np.median(trial_losses(record, problem, optimizer), axis=1).min())


def scores(record: Record, optimizer: str) -> np.ndarray:
    """Test losses [problems, S] on one scale: 0 as before training, 1 as the best.

    (start - loss) / (start - best), within 0 and 1, with the lowest median of all
    optimizers as the best; a run that diverged gets 0.
    """
    out = []
    for name, facts in record["problems"].items():
        medians = [np.median(outcome(record, name, o).test) for o in optimizers(record)]
        start, best = facts["start"], min(medians)
        test = outcome(record, name, optimizer).test
        span = start - best
        share = (start - test) / span if span > 0 else np.zeros_like(test)
        out.append(np.clip(share, 0, 1))
    return np.array(out)


def optimizers(record: Record) -> list[str]:
    """Their names, in order."""
    return list(record["optimizers"])


def times_to_target(record: Record, k: int | None = None) -> np.ndarray:
    """Median steps to the target [optimizers, problems]; inf if half did not get there.

    Runs that did not reach it stay in, as later than all others.
    """
    return np.array(
        [
            [
                upper_median(outcome(record, p, o, k).steps_to_target)
                for p in record["problems"]
            ]
            for o in optimizers(record)
        ]
    )


def algoperf_intervals(record: Record, resamples: int = 1000) -> dict[str, Estimate]:
    """The AlgoPerf score of each optimizer, with its percentile bootstrap interval.

    The seeds of each problem are resampled, jointly for all optimizers: they are
    paired, and a score depends on who was the first.
    """
    names, problems = optimizers(record), list(record["problems"])
    steps = np.array(
        [[outcome(record, p, o).steps_to_target for p in problems] for o in names]
    )  # [optimizers, problems, S]
    n, rng = steps.shape[-1], np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        seeds = rng.integers(0, n, (1, len(problems), n))
        again = np.take_along_axis(steps, seeds, axis=-1)
        drawn.append(algoperf_score(upper_median(again), TAU_MAX))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    score = algoperf_score(upper_median(steps), TAU_MAX)
    return {
        name: Estimate(float(score[i]), float(low[i]), float(high[i]), n, "seeds")
        for i, name in enumerate(names)
    }


def upper_median(values: np.ndarray) -> np.ndarray:
    """The upper of the two middle values of [..., S]: with inf there is no mean."""
    return np.quantile(values, 0.5, axis=-1, method="higher")


def algoperf_target(record: Record, problem: str, reference: Sequence[str]) -> float:
    """A target set as AlgoPerf does, from the tuning seeds alone.

    The lowest, over the reference optimizers, of the median validation loss that their
    best trial has reached when 3/4 of the steps are done.
    """
    reached = []
    for name in reference:
        best = np.argmin(np.median(trial_losses(record, problem, name), axis=1))
        tuning = cell_of(record, problem, name)["tuning"]
        reached.append(np.median(losses(tuning["validation at 3/4"])[best]))
    return float(min(reached))


def compare(record: Record) -> dict[str, Any]:
    """Everything that is said of a study, as JSON."""
    names = optimizers(record)
    problems = {name: compare_on(record, name) for name in record["problems"]}
    algoperf = algoperf_intervals(record)
    overall = {
        name: {
            "score": iqm_interval(scores(record, name), "seeds").json(),
            "algoperf": algoperf[name].json(),
        }
        for name in names
    }
    comparison = {"problems": problems, "overall": overall}
    return {**comparison, "sentences": sentences(record, comparison)}


def compare_on(record: Record, problem: str) -> dict[str, Any]:
    """Each optimizer on a problem, and beside the one that tuning found the best.

    That one is chosen by the tuning seeds, so the reported ones test it afresh. Where
    the seeds change nothing, there is nothing to test.
    """
    names = optimizers(record)
    best = min(names, key=lambda name: tuned_loss(record, problem, name))
    table = {name: row_of(record, problem, name) for name in names}
    tests = [outcome(record, problem, name).test for name in names]
    random = any(len(np.unique(test)) > 1 for test in tests)
    facts: dict[str, Any] = {
        "best_tuned": best,
        "n": len(tests[0]) if random else 1,
        "comparisons": len(names) - 1 if random else 0,
        "optimizers": table,
    }
    if not facts["comparisons"]:
        return facts
    reference = outcome(record, problem, best).test
    others = [name for name in names if name != best]
    losses_of = {name: outcome(record, problem, name).test for name in others}
    paired = {name: paired_test(losses_of[name], reference) for name in others}
    adjusted = holm(np.array([paired[name].p for name in others]))
    for name, p in zip(others, adjusted, strict=True):
        better = probability_better_interval(
            losses_of[name], reference, "seeds, paired"
        )
        table[name] |= {
            "p": paired[name].p,
            "p_holm": float(p),
            "probability_better": better.json(),
        }
    some = paired[others[0]]
    smallest = min(1.0, some.smallest_p * len(others))
    return facts | {"smallest_p": smallest, "exact": some.exact}


def row_of(record: Record, problem: str, name: str) -> dict[str, Any]:
    """What an optimizer chose on a problem, and how it did."""
    found, cell = outcome(record, problem, name), cell_of(record, problem, name)
    chosen = cell["reported"][str(budgets(record)[-1])]
    steps = found.steps_to_target
    return {
        "point": {n: v[chosen["point"]] for n, v in cell["points"].items()},
        "at_edge": chosen["at_edge"],
        "test": estimate(found.test),
        "interquartile_mean": finite(interquartile_mean(found.test)),
        "diverged": int(np.isinf(found.test).sum()),
        "by_budget": {
            str(k): finite(np.median(outcome(record, problem, name, k).test))
            for k in budgets(record)
        },
        "steps_to_target": finite(float(upper_median(steps))),
        "reached": int(np.isfinite(steps).sum()),
        "runs": len(steps),
    }


def estimate(values: np.ndarray) -> dict[str, Any] | None:
    """The mean with its interval; None where a run diverged: there is no mean."""
    if not np.isfinite(values).all():
        return None
    found: Estimate = bootstrap_interval(values, "seeds")
    return found.json()


def finite(value: float) -> float | None:
    """A number of JSON: None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def sentences(record: Record, comparison: Mapping[str, Any]) -> list[str]:
    """The conclusions, each computed from the comparison."""
    out = []
    for problem, found in comparison["problems"].items():
        out += verdicts(problem, found)
        out += remarks(record, problem, found)
    if len(record["problems"]) > 1:
        overall = comparison["overall"]
        ranked = sorted(overall, key=lambda n: -overall[n]["algoperf"]["mean"])
        listed = ", ".join(f"{n} {overall[n]['algoperf']['mean']:.2f}" for n in ranked)
        out.append(
            f"How soon the targets of the {len(record['problems'])} problems were "
            f"reached, as AlgoPerf scores it (1: always first): {listed}."
        )
    return out


def verdicts(problem: str, found: Mapping[str, Any]) -> list[str]:
    """Who differs from the best tuned optimizer, and who cannot be told apart."""
    best, table = found["best_tuned"], found["optimizers"]
    if len(table) == 1:
        return []
    if not found["comparisons"]:
        return [
            f"On {problem}, tuning found {best} the best. The seeds change nothing "
            "there, neither the start nor the batches: one run each, nothing to test."
        ]
    groups: dict[str, list[str]] = {"worse": [], "better": [], "apart": []}
    for name, row in table.items():
        if name == best:
            continue
        low = row["probability_better"]["mean"] < 0.5
        kind = "apart" if row["p_holm"] >= ALPHA else "worse" if low else "better"
        groups[kind].append(name)
    how = "exact" if found["exact"] else "random signs"
    out = [
        f"On {problem}, tuning found {best} the best. The others are compared with "
        f"it on {found['n']} fresh seeds, in pairs (permutation test, {how}; Holm's "
        f"correction for {found['comparisons']}); the smallest p possible is "
        f"{found['smallest_p']:.2g}."
    ]
    for kind in ("worse", "better"):
        if groups[kind]:
            p = max(table[n]["p_holm"] for n in groups[kind])
            verb = "is" if len(groups[kind]) == 1 else "are"
            out.append(
                f"On {problem}, {listing(groups[kind])} {verb} {kind} than {best} in "
                f"test loss (p <= {p:.2g})."
            )
    if groups["apart"]:
        p = min(table[n]["p_holm"] for n in groups["apart"])
        out.append(
            f"On {problem}, {best} cannot be told apart from "
            f"{listing(groups['apart'])} (p >= {p:.2g})."
        )
    return out


def remarks(record: Record, problem: str, found: Mapping[str, Any]) -> list[str]:
    """Divergence, edges of the spaces, and targets that were not reached."""
    out = []
    for name, row in found["optimizers"].items():
        if row["diverged"]:
            out.append(
                f"On {problem}, {row['diverged']} of {row['runs']} runs of {name} "
                "diverged with its best trial: counted as the worst."
            )
    edges = {n: r["at_edge"] for n, r in found["optimizers"].items() if r["at_edge"]}
    if edges:
        named = ", ".join(f"{n} ({', '.join(e)})" for n, e in edges.items())
        out.append(
            f"On {problem}, the best trial has the smallest or largest value tried "
            f"of: {named}; another range or more trials may do better there."
        )
    missed = [
        f"{name} ({row['reached']} of {row['runs']})"
        for name, row in found["optimizers"].items()
        if row["reached"] < row["runs"]
    ]
    if missed:
        target = record["problems"][problem]["target"]
        out.append(
            f"On {problem}, the validation loss {target:g} was not reached by every "
            f"run of {', '.join(missed)}."
        )
    return out


def listing(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# Tables, as text


def summary_table(record: Record) -> list[list[str]]:
    """A heading and a row an optimizer: test loss on each problem, overall scores."""
    comparison = record["comparison"]
    titles = [name.replace("_", " ") for name in comparison["problems"]]
    rows = [["", *titles, "AlgoPerf score", "normalised score (IQM)"]]
    for name, overall in comparison["overall"].items():
        cells = [
            test_text(found["optimizers"][name])
            for found in comparison["problems"].values()
        ]
        both = (interval_text(overall[key]) for key in ("algoperf", "score"))
        rows.append([name, *cells, *both])
    return rows


def problem_table(
    record: Record, problem: str, paces: Mapping[str, float]
) -> list[list[str]]:
    """A heading and a row for each optimizer on one problem.

    `paces` has the seconds of a step, where they are known.
    """
    found = record["comparison"]["problems"][problem]
    best = found["best_tuned"]
    target = record["problems"][problem]["target"]
    rows = [
        [
            "", "chosen", "test loss", f"P(better than {best})",
            "p, Holm", f"steps to {target:.4g}", "ms to it", "got there",
        ]
    ]  # fmt: skip
    for name, row in found["optimizers"].items():
        point = ", ".join(f"{n} {v:.3g}" for n, v in row["point"].items())
        edge = f"; at the edge: {', '.join(row['at_edge'])}" if row["at_edge"] else ""
        better = row.get("probability_better")
        steps = row["steps_to_target"]
        rows.append(
            [
                name + (" (best tuned)" if name == best else ""),
                point + edge,
                test_text(row),
                interval_text(better) if better else "",
                f"{row['p_holm']:.2g}" if "p_holm" in row else "",
                f"{steps:,.0f}" if steps is not None else "not reached",
                f"{1e3 * steps * paces[name]:.3g}" if steps and name in paces else "",
                f"{row['reached']} of {row['runs']}",
            ]
        )
    return rows


def test_text(row: Mapping[str, Any]) -> str:
    """A test loss with its interval, or how many runs diverged."""
    if row["test"] is None:
        return f"diverged in {row['diverged']} of {row['runs']}"
    return interval_text(row["test"])


def interval_text(estimate: Mapping[str, float]) -> str:
    """ "0.2491 [0.2391, 0.2568]", to two digits of the interval's half-width."""
    half = (estimate["high"] - estimate["low"]) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 3
    mean, low, high = (f"{estimate[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
