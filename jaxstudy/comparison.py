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
            # the upper one of two middle values: a median with inf has no mean
            [
                np.quantile(
                    outcome(record, p, o, k).steps_to_target, 0.5, method="higher"
                )
                for p in record["problems"]
            ]
            for o in optimizers(record)
        ]
    )


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
    overall: dict[str, Any] = {}
    times = times_to_target(record)
    for i, name in enumerate(names):
        overall[name] = {
            "score": iqm_interval(scores(record, name), "seeds").json(),
            "algoperf": float(algoperf_score(times, TAU_MAX)[i]),
        }
    comparison = {"problems": problems, "overall": overall}
    return {**comparison, "sentences": sentences(record, comparison)}


def compare_on(record: Record, problem: str) -> dict[str, Any]:
    """Each optimizer on a problem, and beside the one that tuning found the best.

    That one is chosen by the tuning seeds, so the reported ones test it afresh.
    """
    names = optimizers(record)
    best = min(names, key=lambda name: tuned_loss(record, problem, name))
    reference = outcome(record, problem, best).test
    others = [name for name in names if name != best]
    tests = {
        n: paired_test(outcome(record, problem, n).test, reference) for n in others
    }
    adjusted = dict(
        zip(others, holm(np.array([tests[n].p for n in others])), strict=True)
    )
    table = {}
    for name in names:
        found = outcome(record, problem, name)
        cell = cell_of(record, problem, name)
        chosen = cell["reported"][str(budgets(record)[-1])]
        steps = found.steps_to_target
        middle = np.quantile(steps, 0.5, method="higher")
        diverged = int(np.isinf(found.test).sum())
        table[name] = {
            "point": {n: v[chosen["point"]] for n, v in cell["points"].items()},
            "at_edge": chosen["at_edge"],
            "test": estimate(found.test),
            "interquartile_mean": finite(interquartile_mean(found.test)),
            "diverged": diverged,
            "by_budget": {
                str(k): finite(np.median(outcome(record, problem, name, k).test))
                for k in budgets(record)
            },
            "steps_to_target": finite(middle),
            "reached": int(np.isfinite(steps).sum()),
        }
        if name != best:
            better = probability_better_interval(found.test, reference, "seeds, paired")
            table[name] |= {
                "p": tests[name].p,
                "p_holm": float(adjusted[name]),
                "probability_better": better.json(),
            }
    some = tests[others[0]] if others else None
    return {
        "best_tuned": best,
        "n": len(reference),
        "comparisons": len(others),
        "smallest_p": min(1.0, some.smallest_p * len(others)) if some else None,
        "exact": some.exact if some else None,
        "optimizers": table,
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
        ranked = sorted(overall, key=lambda n: -overall[n]["algoperf"])
        listed = ", ".join(f"{n} {overall[n]['algoperf']:.2f}" for n in ranked)
        out.append(
            f"How soon the targets of the {len(record['problems'])} problems were "
            f"reached, as AlgoPerf scores it (1: always first): {listed}."
        )
    return out


def verdicts(problem: str, found: Mapping[str, Any]) -> list[str]:
    """Who differs from the best tuned optimizer, and who cannot be told apart."""
    best, table = found["best_tuned"], found["optimizers"]
    if not found["comparisons"]:
        return []
    groups: dict[str, list[str]] = {"worse": [], "better": [], "apart": []}
    for name, row in table.items():
        if name == best:
            continue
        low = row["probability_better"]["mean"] < 0.5
        kind = "apart" if row["p_holm"] >= ALPHA else "worse" if low else "better"
        groups[kind].append(name)
    how = "exact" if found["exact"] else "by random signs"
    terms = (
        f"{found['n']} fresh seeds, paired permutation test ({how}), Holm's correction "
        f"for {found['comparisons']} comparisons"
    )
    out = [f"On {problem}, tuning found {best} the best; {terms}."]
    for kind in ("worse", "better"):
        if groups[kind]:
            p = max(table[n]["p_holm"] for n in groups[kind])
            out.append(
                f"On {problem}, {listing(groups[kind])} "
                f"{'is' if len(groups[kind]) == 1 else 'are'} {kind} than {best} in "
                f"test loss (p <= {p:.2g})."
            )
    if groups["apart"]:
        p = min(table[n]["p_holm"] for n in groups["apart"])
        reason = (
            f"; {found['n']} seeds cannot give less than p = {found['smallest_p']:.2g}"
        )
        out.append(
            f"On {problem}, {listing(groups['apart'])} and {best} cannot be told "
            f"apart (p >= {p:.2g}{reason})."
        )
    return out


def remarks(record: Record, problem: str, found: Mapping[str, Any]) -> list[str]:
    """Divergence, edges of the spaces, and targets that were not reached."""
    out = []
    for name, row in found["optimizers"].items():
        if row["diverged"]:
            out.append(
                f"On {problem}, {row['diverged']} of {found['n']} runs of {name} "
                "diverged with its best trial: counted as the worst."
            )
    edges = {n: r["at_edge"] for n, r in found["optimizers"].items() if r["at_edge"]}
    if edges:
        named = ", ".join(f"{n} ({', '.join(e)})" for n, e in edges.items())
        out.append(
            f"On {problem}, the best trial has the smallest or largest value tried "
            f"of: {named}; another range or more trials may do better there."
        )
    late = {n: r["reached"] for n, r in found["optimizers"].items()}
    missed = [f"{n} ({c} of {found['n']})" for n, c in late.items() if c < found["n"]]
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
