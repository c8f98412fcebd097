"""What a study found: every number and sentence, from study.json alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are imported where they are first used

from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    SHARE,
    Estimate,
    algoperf_score,
    estimate_texts,
    holm,
    interquartile_mean,
    interquartile_mean_over_seeds,
    mean_over_runs,
    paired_test,
)

STUDY_SCHEMA = 2  # of study.json
ALPHA = 0.05
TAU_MAX = 4.0
NEAR = 0.05  # of the way to the best
LEADERS = 5  # of which a sentence lists the ranks
StudyRecord = dict[str, Any]  # study.json

# metrics of what a study can tell
TOLD = "{}: optimizers told from the one tuned best"
BETTER = "{}: optimizers better than the one tuned best"
SPREAD = "{}: spread of the optimizers' test losses"
WORST = "problems whose optimizer tuned best is significantly worst"


class Outcome(NamedTuple):
    """An optimizer on a problem, with the best of its first k trials; inf: diverged."""

    test: np.ndarray  # [S]
    train: np.ndarray  # [E, S]
    validation: np.ndarray  # [E, S]
    steps_to_target: np.ndarray  # [S]; inf where it was not reached: censored


def losses(values: Any) -> np.ndarray:
    """An array of a record; what was not finite is infinitely bad."""
    return np.nan_to_num(np.array(values, float), nan=np.inf, posinf=np.inf)


def cell_of(record: StudyRecord, problem: str, optimizer: str) -> StudyRecord:
    """What study.json says of an optimizer on a problem."""
    for cell in record["cells"]:
        if (cell["problem"], cell["optimizer"]) == (problem, optimizer):
            return cell
    raise KeyError((problem, optimizer))


def budgets(record: StudyRecord) -> list[int]:
    """After how many trials something was reported."""
    return [int(k) for k in record["cells"][0]["reported"]]


def outcome(
    record: StudyRecord, problem: str, optimizer: str, k: int | None = None
) -> Outcome:
    """The reported seeds, with the best of k trials, or of all."""
    cell = cell_of(record, problem, optimizer)
    reported = cell["reported"][str(k or budgets(record)[-1])]
    facts = record["problems"][problem]
    validation = losses(reported["validation"])
    reached = validation <= (-np.inf if facts["target"] is None else facts["target"])
    epochs = np.where(reached.any(0), reached.argmax(0) + 1, np.inf)
    return Outcome(
        losses(reported["test"]),
        losses(reported["train"]),
        validation,
        epochs * facts["steps_per_epoch"],
    )


def tested_losses(record: StudyRecord) -> np.ndarray:
    """Test losses [optimizers, problems, S] of the seeds reported for all trials."""
    return np.array(
        [
            [outcome(record, problem, name).test for problem in record["problems"]]
            for name in optimizers(record)
        ]
    )


def trial_medians(record: StudyRecord, problem: str, optimizer: str) -> np.ndarray:
    """The median validation loss of the tuning seeds for each trial [P]."""
    cell = cell_of(record, problem, optimizer)
    return np.median(losses(cell["tuning"]["validation"]), axis=1)


def scores(record: StudyRecord) -> np.ndarray:
    """Test losses on one scale: 0 as before training, 1 as the best.

    [optimizers, problems, S]: (start - loss) / (start - best), within 0 and 1, with the
    lowest median of all optimizers as the best; a run that diverged gets 0.
    """
    test = tested_losses(record)
    start = np.array([[facts["start"]] for facts in record["problems"].values()])
    span = start - np.median(test, axis=2).min(0)[:, None]
    share = np.divide(start - test, span, out=np.zeros_like(test), where=span > 0)
    return np.clip(share, 0, 1)


def optimizers(record: StudyRecord) -> list[str]:
    """Their names, in order."""
    return list(record["optimizers"])


def times_to_target(record: StudyRecord, k: int | None = None) -> np.ndarray:
    """Median steps to the target [optimizers, problems]; inf if half did not get there.

    Of the problems that have one. Runs that did not reach it stay in, as later than all
    others.
    """
    return np.array(
        [
            [
                upper_median(outcome(record, p, o, k).steps_to_target)
                for p in with_target(record)
            ]
            for o in optimizers(record)
        ]
    )


def with_target(record: StudyRecord) -> list[str]:
    """The problems whose target is set."""
    return [p for p, of in record["problems"].items() if of["target"] is not None]


def upper_median(values: np.ndarray) -> np.ndarray:
    """The upper of the two middle values of [..., S]: with inf there is no mean."""
    return np.quantile(values, 0.5, axis=-1, method="higher")


def algoperf_target(
    record: StudyRecord, problem: str, reference: Sequence[str]
) -> float:
    """A target set as AlgoPerf does, from the tuning seeds alone.

    The lowest, over the reference optimizers, of the median validation loss that their
    best trial has reached when 3/4 of the steps are done.
    """
    reached = []
    for name in reference:
        best = np.argmin(trial_medians(record, problem, name))
        tuning = cell_of(record, problem, name)["tuning"]
        reached.append(np.median(losses(tuning["validation at 3/4"])[best]))
    return float(min(reached))


def compare(record: StudyRecord) -> dict[str, Any]:
    """Everything that is said of a study, as JSON.

    AlgoPerf's score is of medians, by which it jumps from one value to another; it has
    no interval, since the bootstrap's does not cover it 95 times in 100.
    """
    names = optimizers(record)
    problems = {name: compare_on(record, name) for name in record["problems"]}
    algoperf, ranks, each = np.zeros(len(names)), mean_ranks(record), scores(record)
    if with_target(record):
        algoperf = algoperf_score(times_to_target(record), TAU_MAX)
    overall = {
        name: {
            "score": interquartile_mean_over_seeds(each[i], SHARE).json(),
            "algoperf": float(algoperf[i]),
            "rank": float(ranks[i]),
        }
        for i, name in enumerate(names)
    }
    comparison = {"problems": problems, "overall": overall}
    return {**comparison, "sentences": sentences(record, comparison)}


def problem_ranks(record: StudyRecord) -> np.ndarray:
    """The rank of each optimizer's median test loss on each problem [K, N]."""
    medians = np.median(tested_losses(record), axis=2)
    return scipy.stats.rankdata(medians, axis=0)


def mean_ranks(record: StudyRecord) -> np.ndarray:
    """Those ranks, the mean over the problems [K]."""
    return problem_ranks(record).mean(axis=1)


def critical_difference(methods: int, problems: int) -> float:
    """Mean ranks that differ by less cannot be told apart: Nemenyi's test, 5 %.

    q sqrt(k (k + 1) / 6 N) for k methods on N problems, with q the studentized range
    over sqrt 2. Source: Demsar 2006.
    """
    q = scipy.stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * problems)))


def compare_on(record: StudyRecord, problem: str) -> dict[str, Any]:
    """Each optimizer on a problem, and beside one that tuning found the best.

    That one is chosen by the tuning seeds, so the reported ones test it afresh. Nothing
    is tested where no optimizer could be tuned, where no run finished, and where the
    loss of each optimizer is the same with every seed.
    """
    names = optimizers(record)
    table = {name: row_of(record, problem, name) for name in names}
    tuned = {name: trial_medians(record, problem, name).min() for name in names}
    lowest = min(tuned.values())
    best = [name for name in names if tuned[name] == lowest < math.inf]
    tests = {name: outcome(record, problem, name).test for name in names}
    finished = bool(np.isfinite(list(tests.values())).any())
    random = any(len(np.unique(test)) > 1 for test in tests.values())
    tested = bool(best) and finished and random
    facts: dict[str, Any] = {
        "best_tuned": best,  # all that share the lowest loss; the first is compared
        "finished": finished,
        "n": len(tests[names[0]]) if random or not finished else 1,
        "comparisons": len(names) - 1 if tested else 0,
        "optimizers": table,
    }
    if not facts["comparisons"]:
        return facts
    others = [name for name in names if name != best[0]]
    paired = {name: paired_test(tests[name], tests[best[0]]) for name in others}
    adjusted = holm(np.array([paired[name].p for name in others]))
    for name, p in zip(others, adjusted, strict=True):
        found = paired[name]
        needed = seeds_needed(tests[name], tests[best[0]], len(others))
        table[name] |= {
            "p": found.p, "p_holm": float(p), "effect": found.effect,
            "seeds_needed": needed,
        }  # fmt: skip
    some = paired[others[0]]
    smallest = min(1.0, some.smallest_p * len(others))
    return facts | {"smallest_p": smallest, "exact": some.exact}


def row_of(record: StudyRecord, problem: str, name: str) -> dict[str, Any]:
    """What an optimizer chose on a problem, and how it did."""
    found, cell = outcome(record, problem, name), cell_of(record, problem, name)
    chosen = cell["reported"][str(budgets(record)[-1])]
    steps = found.steps_to_target
    return {
        "point": {n: v[chosen["point"]] for n, v in cell["points"].items()},
        "tuned": finite(trial_medians(record, problem, name).min()),
        "at_edge": chosen["at_edge"],
        "near_best": near_best(record, problem, name),
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


def near_best(record: StudyRecord, problem: str, optimizer: str) -> float | None:
    """The share of its trials within 5 % of its best one: how little tuning matters.

    Of the way from the loss before training to that of its best trial, by the medians
    of the tuning seeds. None where no trial is better than no training.
    """
    medians = trial_medians(record, problem, optimizer)
    start, best = record["problems"][problem]["start"], medians.min()
    if not best < start:
        return None
    return float(np.mean(medians <= best + NEAR * (start - best)))


def estimate(values: np.ndarray) -> dict[str, Any] | None:
    """The mean with its interval; None where a run diverged: there is no mean."""
    if not np.isfinite(values).all():
        return None
    return mean_over_runs(values, NONNEGATIVE).json()


def finite(value: float) -> float | None:
    """A number of JSON: None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def sentences(record: StudyRecord, comparison: Mapping[str, Any]) -> list[str]:
    """The conclusions, each computed from the comparison."""
    out = []
    for problem, found in comparison["problems"].items():
        out += verdicts(problem, found)
        out += remarks(record, problem, found)
    overall, several = comparison["overall"], len(record["problems"])
    if several > 1 and len(overall) > 1:
        first = sorted(overall, key=lambda n: overall[n]["rank"])[:LEADERS]
        listed = listing([f"{n} ({overall[n]['rank']:.1f})" for n in first])
        least = critical_difference(len(overall), several)
        out.append(
            f"The mean ranks by test loss on the {several} problems are lowest of "
            f"{listed}; of {len(overall)} optimizers, any whose mean ranks differ by "
            f"less than {least:.1f} cannot be told apart by them (Nemenyi's test)."
        )
    scores = {n: row["algoperf"] for n, row in overall.items()}
    count = len(with_target(record))
    if count > 1 and any(scores.values()):
        ranked = sorted(scores, key=lambda n: -scores[n])
        listed = ", ".join(f"{n} {scores[n]:.2f}" for n in ranked)
        out.append(
            f"How soon the targets of the {count} problems were "
            f"reached, as AlgoPerf scores it (1: always first): {listed}."
        )
    return out


def verdicts(problem: str, found: Mapping[str, Any]) -> list[str]:
    """Who differs from the best tuned optimizer, and who cannot be told apart."""
    best, table = found["best_tuned"], found["optimizers"]
    if len(table) == 1:
        return []
    if not best:
        return [
            f"On {problem}, tuning found no optimizer the best: with every trial of "
            "every optimizer half of the tuning runs or more diverged."
        ]
    tuning = f"On {problem}, tuning found {best[0]} the best."
    if len(best) > 1:
        tuning = f"On {problem}, tuning found {listing(best)} equally good."
    if not found["finished"]:
        return [f"{tuning} No reported run of any optimizer finished: all diverged."]
    if not found["comparisons"]:
        return [
            f"{tuning} The test loss of each optimizer is the same with every seed: "
            "one run each, nothing to test."
        ]
    reference, groups = best[0], against_best(found)
    how = "exact" if found["exact"] else "random signs"
    out = [
        f"{tuning} The others are compared with {reference} on {found['n']} fresh "
        f"seeds, in pairs (permutation test of signed ranks, {how}; Holm's correction "
        f"for {found['comparisons']}); the smallest p possible is "
        f"{found['smallest_p']:.2g}."
    ]

    def named(names: Sequence[str]) -> str:
        many = len(names) == found["comparisons"] > LEADERS
        return f"all {len(names)} others" if many else listing(names)

    for kind in ("worse", "better"):
        if groups[kind]:
            p = max(table[n]["p_holm"] for n in groups[kind])
            verb = "is" if len(groups[kind]) == 1 else "are"
            out.append(
                f"On {problem}, {named(groups[kind])} {verb} {kind} than {reference} "
                f"in test loss (p <= {p:.2g})."
            )
    if groups["apart"]:
        p = min(table[n]["p_holm"] for n in groups["apart"])
        out.append(
            f"On {problem}, {reference} cannot be told apart from "
            f"{named(groups['apart'])} (p >= {p:.2g})."
        )
    needed = {n: table[n].get("seeds_needed") for n in groups["apart"]}
    countable = {n: count for n, count in needed.items() if count}
    if countable:
        name = min(countable, key=lambda n: countable[n])
        others = ", from any other of them as many or more"
        out.append(
            f"On {problem}, if the differences are as measured, to tell {reference} "
            f"from {name} would need about {countable[name]:,} seeds (--seeds)"
            f"{others if len(countable) > 1 else ''}."
        )
    return out


def seeds_needed(
    a: np.ndarray, b: np.ndarray, comparisons: int, power: float = 0.8
) -> int | None:
    """How many pairs would tell two losses [n] apart with this power, about.

    ((z(1 - alpha / 2m) + z(power)) s / d)^2 pi / 3 for a mean difference d of deviation
    s, m comparisons corrected by Bonferroni; pi / 3 is what ranks lose where
    differences are normal. At least what the exact test needs to reach alpha / m. None
    where that is over 10,000, or not every run finished.
    """
    if not np.isfinite([a, b]).all() or (a == b).all():
        return None
    d = a - b
    level = ALPHA / comparisons
    z = scipy.stats.norm.ppf([1 - level / 2, power]).sum()
    # of the deviation, so that a mean of 0 needs no division
    wanted, found = np.sqrt(np.pi / 3) * z * d.std(ddof=1), abs(d.mean())
    if wanted >= 100 * found:
        return None
    least = math.ceil(math.log2(2 / level))
    return max(least, math.ceil((wanted / found) ** 2))


def against_best(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Who is better or worse than the best tuned optimizer, or not told apart."""
    best = found["best_tuned"][0]
    return grouped({n: row for n, row in found["optimizers"].items() if n != best})


def grouped(differences: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names by their difference: a positive effect is worse, if it is significant."""
    groups: dict[str, list[str]] = {"better": [], "apart": [], "worse": []}
    for name, row in differences.items():
        # the effect and p are of one statistic, so they cannot disagree
        kind = "worse" if row["effect"] > 0 else "better"
        groups[kind if row["p_holm"] < ALPHA else "apart"].append(name)
    return groups


def telling(record: StudyRecord) -> dict[str, Estimate | int]:
    """What a study can tell, and whether its choice by validation misleads.

    Of each problem how many optimizers are told from the one tuned best (Holm's p <
    0.05), how many of them are better, and the spread of a seed: the largest less the
    smallest test loss of its optimizers. Of all problems on how many the one tuned best
    is significantly worst: its mean test loss is the largest, and another is better.
    """
    out: dict[str, Estimate | int] = {}
    worst = 0
    for problem, found in record["comparison"]["problems"].items():
        tests = [outcome(record, problem, name).test for name in optimizers(record)]
        if np.isfinite(tests).all():
            spread = np.max(tests, axis=0) - np.min(tests, axis=0)
            out[SPREAD.format(problem)] = mean_over_runs(spread, NONNEGATIVE)
        if found["comparisons"]:
            groups, best = against_best(found), found["best_tuned"][0]
            better = len(groups["better"])
            out[TOLD.format(problem)] = better + len(groups["worse"])
            out[BETTER.format(problem)] = better
            means = dict(zip(optimizers(record), np.mean(tests, axis=1), strict=True))
            worst += int(better > 0 and means[best] == max(means.values()))
    return out | {WORST: worst}


def remarks(record: StudyRecord, problem: str, found: Mapping[str, Any]) -> list[str]:
    """Divergence, edges of the spaces, and targets that were not reached."""
    out, table = [], found["optimizers"]
    for name, row in table.items():
        if row["diverged"]:
            trial = "its best trial"
            if row["tuned"] is None:
                trial = "its first trial, none being better in tuning"
            out.append(
                f"On {problem}, {row['diverged']} of {row['runs']} runs of {name} "
                f"diverged with {trial}: counted as the worst."
            )
    tuned = {n: row for n, row in table.items() if row["tuned"] is not None}
    edges = {n: r["at_edge"] for n, r in tuned.items() if r["at_edge"]}
    if edges:
        named = ", ".join(f"{n} ({', '.join(e)})" for n, e in edges.items())
        out.append(
            f"On {problem}, the best trial has the smallest or largest value tried "
            f"of: {named}; another range or more trials may do better there."
        )
    loss = record["problems"][problem]["target"]
    if loss is None:
        return [*out, f"On {problem}, no target is set: no time to it is compared."]
    target = f"On {problem}, the validation loss {loss:g}"
    missed: dict[str, list[str]] = {}
    for name, row in sorted(table.items(), key=lambda item: -item[1]["reached"]):
        if row["reached"] < row["runs"]:
            missed.setdefault(f"{row['reached']} of {row['runs']}", []).append(name)
    if not any(row["reached"] for row in table.values()):
        out.append(f"{target} was reached by no run.")
    elif missed:
        counts = "; ".join(f"{n} of {listing(names)}" for n, names in missed.items())
        out.append(f"{target} was reached by only so many runs: {counts}.")
    return out


def listing(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# Tables, as text


def summary_table(record: StudyRecord) -> list[list[str]]:
    """A heading and a row an optimizer: test loss on each problem, overall scores."""
    comparison = record["comparison"]
    titles = [name.replace("_", " ") for name in comparison["problems"]]
    rows = [["", *titles, "AlgoPerf score", "normalised score (IQM)"]]
    for name, overall in comparison["overall"].items():
        cells = [
            test_text(found["optimizers"][name])
            for found in comparison["problems"].values()
        ]
        score = " ".join(estimate_texts(overall["score"]))
        rows.append([name, *cells, f"{overall['algoperf']:.2f}", score])
    return rows


def problem_table(
    record: StudyRecord, problem: str, step_times: Mapping[str, float]
) -> list[list[str]]:
    """A heading and a row for each optimizer on one problem.

    `step_times` has the seconds of a step, where they are known.
    """
    found = record["comparison"]["problems"][problem]
    best = found["best_tuned"]
    target = record["problems"][problem]["target"]
    to = "the target (not set)" if target is None else f"{target:.4g}"
    rows = [
        [
            "", "chosen", "near the best", "test loss", "rank-biserial", "p, Holm",
            f"steps to {to}", "ms to it", "got there",
        ]
    ]  # fmt: skip
    for name, row in found["optimizers"].items():
        point = ", ".join(f"{n} {v:.3g}" for n, v in row["point"].items())
        edge = f"; at the edge: {', '.join(row['at_edge'])}" if row["at_edge"] else ""
        steps = row["steps_to_target"]
        rows.append(
            [
                name + (" (best tuned)" if name in best else ""),
                point + edge,
                "" if (near := row.get("near_best")) is None else f"{near:.0%}",
                test_text(row),
                f"{row['effect']:+.2f}" if "effect" in row else "",
                f"{row['p_holm']:.2g}" if "p_holm" in row else "",
                f"{steps:,.0f}" if steps is not None else "not reached",
                f"{1e3 * steps * step_times[name]:.3g}"
                if steps and name in step_times
                else "",
                f"{row['reached']} of {row['runs']}",
            ]
        )
    return rows


def test_text(row: Mapping[str, Any]) -> str:
    """A test loss with its interval, or how many runs diverged."""
    if row["test"] is None:
        return f"diverged in {row['diverged']} of {row['runs']}"
    return " ".join(estimate_texts(row["test"]))
