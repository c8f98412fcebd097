"""Lesson 1.4: build, train, evaluate and use a network on 400 real admissions.

Nested cross-validation. Each outer fold is predicted by a model that saw the other
folds alone: its layers and epochs are chosen by an inner cross-validation of those
training rows, for the network and for logistic regression (no hidden layer) alike.
Every fold trains as one replica of one compiled program. Then: --predict 700 3.7 1
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from jaxstudy.dataset import dataset
from jaxstudy.messages import warn
from jaxstudy.model import Model
from jaxstudy.models.mlp import mlp
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.export import Predictor
from jaxstudy.runs.lesson import Claim, Lesson, paired_differences
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Saved
from jaxstudy.runs.statistics import Estimate
from jaxstudy.tabular import nested, sets
from jaxstudy.tabular.nested import Choice, Learner, NestedCV, Scores
from jaxstudy.tabular.prediction import logits_of_chosen
from jaxstudy.types import UserError
from jaxstudy.wrappers import standardized

REGRESSION, MAJORITY = "logistic regression", "majority class"
UNSTOPPED, UNSCALED = "without early stopping", "unscaled network"
MARGIN = 0.02  # nats: probabilities of what happened within 2 %, in geometric mean

LESSON = Lesson(
    number="1.4",
    title="Admissions",
    question="Does a network beat logistic regression on 400 rows?",
    metrics=(
        "network - logistic regression: log-loss",
        "without early stopping - network: log-loss",
        "unscaled network - network: log-loss",
        "logistic regression - majority class: log-loss",
        "network - majority class: accuracy",
        *(f"{name}: {score}" for score in ("log-loss", "accuracy")
          for name in ("network", REGRESSION, MAJORITY)),
        *(f"{name}: epochs chosen" for name in ("network", REGRESSION, UNSCALED)),
        f"{UNSCALED}: log-loss", f"{UNSTOPPED}: log-loss",
    ),
    claims=(
        Claim("Early-stopped network and regression differ by under 0.02 nats.",
              ("network - logistic regression: log-loss", 0.0), "within", MARGIN),
        Claim("With all layers and epochs, not those chosen, the log-loss is higher.",
              ("without early stopping - network: log-loss", 0.0), ">"),
        Claim("On unscaled inputs, the network has a higher log-loss.",
              ("unscaled network - network: log-loss", 0.0), ">"),
        Claim("Logistic regression has a lower log-loss than the majority class.",
              ("logistic regression - majority class: log-loss", 0.0), "<"),
        Claim("The network is right more often than the majority class.",
              ("network - majority class: accuracy", 0.0), ">"),
    ),
    figures={
        "curves": "Log-loss of the network after each epoch, averaged over all folds, "
        "beside the held-out loss of logistic regression and of the majority class. "
        "Where the held-out loss turns up while the training loss falls, the network "
        "overfits. Vertical: where the folds that chose these layers stopped (median).",
        "differences": "Paired differences with 95 % intervals. Left of 0 in log-loss, "
        "right of 0 in accuracy, the model named first is better. An interval within "
        "the grey band says that log-losses differ by under 0.02 nats.",
    },
    try_it={
        "--hidden 256 256 256": "A larger network overfits sooner: look at how many "
        "epochs the inner folds choose, and at the loss without early stopping.",
        "--rate 0.0001": "With steps ten times smaller, 30 epochs may end before the "
        "network overfits, and early stopping makes no difference.",
        "--mistake untuned_baseline": "Logistic regression gets the network's learning "
        "rate: look at how much better the network seems.",
    },
    mistakes={
        "tuned_on_test": "Each fold's layers and epochs are those with the lowest loss "
        "on the held-out rows themselves, as early stopping on a test set has it: the "
        "network's log-loss looks lower than it is.",
        "untuned_baseline": "Logistic regression gets the network's learning rate and "
        "most epochs, and nothing is chosen for it: it looks worse than it is.",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Config(Settings):
    """The network's layers, how it is trained, and how often it is cross-validated."""

    hidden: tuple[Count, ...] = (64, 128)
    """Widths of the hidden layers; the inner folds choose how many are used."""
    epochs: Count = 30
    """The most epochs; the inner folds choose how many are trained."""
    batch_size: Count = 32
    """Applicants in a gradient step."""
    rate: Positive = 0.001
    """Learning rate of Adam for the networks."""
    regression_rate: Positive = 0.03
    """Learning rate of Adam for logistic regression."""
    folds: Annotated[int, pydantic.Field(ge=2)] = 10
    """Folds of the cross-validation that reports."""
    inner_folds: Annotated[int, pydantic.Field(ge=2)] = 5
    """Folds of the training rows, for the cross-validation that chooses."""
    repeats: Count = 5
    """Cross-validations, each with folds and weights of its own."""
    mistake: Literal["tuned_on_test", "untuned_baseline"] | None = None
    """Make this mistake as well, on the same folds and seeds."""
    csv: Path | None = None
    """Another table with the columns admit, gre, gpa, rank."""
    separator: str | None = None
    """What separates its cells, or tab; None: found out."""
    decimal: Literal[".", ","] | None = None
    """The decimal sign of its numbers; None: found out."""


PRESETS = {
    "smoke": Config(epochs=3, repeats=2, inner_folds=2),
    "quick": Config(),
    "full": Config(repeats=20),
}

PAIRS = (
    ("network", REGRESSION), (UNSTOPPED, "network"), ("unscaled network", "network"),
    (REGRESSION, MAJORITY), ("network", MAJORITY),
)  # fmt: skip
CHOSEN = "layers.json"  # the number of the layers that each fold chose


@functools.lru_cache(maxsize=16)  # the same model is compiled once
def build(hidden: tuple[int, ...]) -> Model:
    """Dense layers on gre, gpa and rank, standardised: logits of x [B, 5]."""
    return standardized(mlp(5, hidden, 1), 5)


def learners(config: Config) -> dict[str, Learner]:
    """What is compared: a network has the first 1, 2, ... of the hidden layers."""
    widths = [config.hidden[: i + 1] for i in range(len(config.hidden))]
    networks = {f"{len(hidden)} hidden": build(hidden) for hidden in widths}
    return {
        "network": Learner(networks, config.rate),
        "unscaled network": Learner(networks, config.rate, scaled=False),
        REGRESSION: Learner({"0 hidden": build(())}, config.regression_rate),
    }


def mistaken(config: Config, cv: NestedCV, right: Mapping[str, Scores]) -> dict:
    """What the mistake does to the log-loss, and to the lesson's comparison."""
    if config.mistake == "tuned_on_test":
        of, learner = "network", learners(config)["network"]
        choice = nested.lowest_losses(cv.losses("mistake", learner, cv.outer))
    else:
        of, learner = REGRESSION, learners(config)[REGRESSION]
        learner, choice = learner._replace(rate=config.rate), cv.without_choice(0)
    wrong = cv.scores(cv.logits("mistake", learner, choice))
    a, b = ({**right, of: wrong}[name] for name in ("network", REGRESSION))
    difference = nested.paired_difference
    return {
        f"mistake: {of}: log-loss": nested.mean_score(wrong, "log-loss"),
        f"mistake - right: {of}: log-loss": difference(wrong, right[of], "log-loss"),
        f"mistake: network - {REGRESSION}: log-loss": difference(a, b, "log-loss"),
    }


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Choose on the inner folds, train, and compare applicant by applicant."""
    table = sets.read_admissions(config.csv, config.separator, config.decimal)
    data = dataset(sets.admission_arrays(table))
    if config.folds > (n := len(data.indices)):
        raise UserError(f"--folds {config.folds}: there are only {n} applicants")
    if config.inner_folds > (least := n - -(-n // config.folds)):
        raise UserError(f"--inner-folds must be at most {least} here")
    outer, inner = nested.nested_folds(
        data, config.folds, config.inner_folds, config.repeats, config.seed
    )
    cv = NestedCV(
        outer, inner, config.folds, config.inner_folds, config.epochs,
        config.batch_size, config.seed, run.sub_run,
    )  # fmt: skip
    logits, chosen, every = {}, {}, learners(config)
    for name, learner in run.each(every.items()):
        chosen[name] = cv.choose(name, learner)
        logits[name] = cv.logits(name, learner, chosen[name])
    run.write_sealed(CHOSEN, chosen["network"].candidate.tolist())
    largest = cv.without_choice(len(config.hidden) - 1)
    logits[UNSTOPPED] = cv.logits(UNSTOPPED, every["network"], largest)
    logits[MAJORITY] = cv.majority_logits()
    each = {name: cv.scores(values) for name, values in logits.items()}
    epochs = {f"{k}: epochs chosen": float(c.epochs.mean()) for k, c in chosen.items()}
    result: dict = {**nested.score_differences(each, PAIRS), **epochs}
    if config.mistake:
        result |= mistaken(config, cv, each)
    draw(run, config, chosen["network"], result)
    return result


def draw(run: Run, config: Config, choice: Choice, result: Mapping) -> None:
    """The loss by epoch, and the differences."""
    part, lines = f"{UNSTOPPED}, {len(config.hidden)} hidden", {}
    for split, label in (("train", "training"), ("validation", "held-out")):
        rows = [r for r in run.sub_run(part).records if r["split"] == split]
        losses = [float(np.mean(r["loss"])) for r in rows]
        lines[f"network, {label} rows"] = [r["epoch"] for r in rows], losses
    levels = {n: result[f"{n}: log-loss"].mean for n in (REGRESSION, MAJORITY)}
    stops = choice.epochs[choice.candidate == len(config.hidden) - 1]
    if len(stops):
        ends = [f(v for _, y in lines.values() for v in y) for f in (min, max)]
        lines["early stopping, median"] = [float(np.median(stops))] * 2, ends
    panel = plots.Panel(UNSTOPPED, "epoch", "log-loss [nats]", lines, levels=levels)
    plots.save_lines(run, "curves", [panel])
    gaps = paired_differences(result, PAIRS, "log-loss")
    right = paired_differences(result, PAIRS, "accuracy")
    plots.save_estimates(run, "differences", [
        plots.EstimatePanel("", "difference in log-loss [nats]", gaps, margin=MARGIN),
        plots.EstimatePanel("", "difference in accuracy", right),
    ])  # fmt: skip


def predict(saved: Saved[Config], applicant: tuple[float, float, int]) -> None:
    """Probability of admission for GRE GPA RANK, from the saved run."""
    config, person = saved.config, sets.Applicant(*applicant)
    table = sets.read_admissions(config.csv, config.separator, config.decimal)
    x = jnp.asarray(sets.applicant_row(person, table, warn))
    networks = learners(config)["network"].models
    p = jax.nn.sigmoid(logits_of_chosen(saved, "network", networks, CHOSEN)(x))
    print(
        f"probability of admission {p.mean():.3f} (the {len(p)} models of "
        f"{config.repeats} x {config.folds} folds: sd {p.std(ddof=1):.3f}, "
        f"{p.min():.3f} to {p.max():.3f})"
    )


def predictor(saved: Saved[Config]) -> Predictor:
    """Probability of admission [B] from x [B, 5]: GRE, GPA, is the rank 2, 3, 4."""
    networks = learners(saved.config)["network"].models
    logits = logits_of_chosen(saved, "network", networks, CHOSEN)
    example = jax.ShapeDtypeStruct((5,), jnp.float32)
    return Predictor(lambda x: jax.nn.sigmoid(logits(x)).mean(0), (example,))


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
