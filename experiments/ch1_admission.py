"""Lesson 1.4: build, train, evaluate and use a network on 400 real admissions.

Ten-fold cross-validation of a dense network, the same network on unscaled inputs, and
logistic regression (no hidden layer), on the same folds. Every fold of every repeat
trains as one replica of one compiled program.

Expected (quick): about 0.70 accuracy for all that see scaled inputs, where always
saying no gives 0.6825: with three weak predictors, more would be a leak. The network's
validation loss is lowest after about three epochs, and rises: it overfits.
Then: ch1_admission.py --predict GRE GPA RANK
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pydantic

from jaxstudy.data.splits import kfold
from jaxstudy.dataset import Dataset, dataset, stacked_subsets
from jaxstudy.messages import warn
from jaxstudy.model import Model, column_statistics, standardized
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import binary_cross_entropy
from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run, Saved
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    mean_over_cases,
    mean_over_runs,
)
from jaxstudy.tabular.sets import (
    Applicant,
    admission_arrays,
    applicant_row,
    read_admissions,
)
from jaxstudy.training import (
    Evaluator,
    FitResult,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Key, TrainState, UserError

LESSON = Lesson(
    number="1.4",
    title="Admissions",
    question="Does a network beat logistic regression on 400 rows?",
    metrics=(
        "network: accuracy",
        "logistic regression: accuracy",
        "majority class: accuracy",
        "network - logistic regression: log-loss",
    ),
    claims=(),
    figures={},
)

FEATURES = 5
RANGES = {"accuracy": SHARE, "log-loss": NONNEGATIVE}
DIFFERENCES = {"accuracy": SHARE_DIFFERENCE, "log-loss": REAL}
VARIANTS = ("network", "unscaled network", "logistic regression")


@dataclass(frozen=True)
class Config(Settings):
    """The network's layers, how it is trained, and how often it is cross-validated."""

    hidden: tuple[Count, ...] = (64, 128)
    """Widths of the hidden layers: powers of 2, as the course has it."""
    epochs: Count = 30
    """Epochs of the networks; logistic regression gets 300, to converge."""
    batch_size: Count = 32
    """Applicants in a gradient step."""
    rate: Positive = 0.001
    """Learning rate of Adam."""
    folds: Annotated[int, pydantic.Field(ge=2)] = 10
    """Parts of the cross-validation."""
    repeats: Count = 10
    """Cross-validations, each with folds and weights of its own."""
    csv: Path | None = None
    """Another table with the columns admit, gre, gpa, rank."""
    separator: str | None = None
    """What separates its cells, or tab; None: found out."""
    decimal: Literal[".", ","] | None = None
    """The decimal sign of its numbers; None: found out."""


PRESETS = {
    "smoke": Config(epochs=3, repeats=2),
    "quick": Config(),
    "full": Config(repeats=50),
}


def build(variant: str, hidden: tuple[int, ...]) -> Model:
    """The three models: logits of x [B, 5]."""
    linear = variant == "logistic regression"
    model = mlp(FEATURES, () if linear else hidden, 1)
    return model if variant.startswith("unscaled") else standardized(model, FEATURES)


def with_statistics(state: TrainState, train: Dataset) -> TrainState:
    """Standardise every replica's inputs by the statistics of its training rows."""
    x = train.arrays["x"]
    statistics = jax.jit(
        jax.vmap(lambda rows, valid: column_statistics(x[rows], valid))
    )(train.indices, train.mask)
    return state._replace(extra={**state.extra, "standardization": statistics})


def cross_validate(
    variant: str, config: Config, train: Dataset, held_out: Dataset, key: Key, run: Run
) -> FitResult:
    """Train one variant on every fold of every repeat: one replica each."""
    linear = variant == "logistic regression"
    model = build(variant, config.hidden)
    objective = binary_cross_entropy(model)
    optimizer = OPTIMIZERS["adam"].make(0.03 if linear else config.rate)
    init_key, order_key = jax.random.split(key)
    replicas = len(train.indices)
    state = init_replicas(model, optimizer, jax.random.split(init_key, replicas))
    if not variant.startswith("unscaled"):
        state = with_statistics(state, train)
    return fit(
        state,
        make_train_step(objective, optimizer),
        train,
        key=jax.random.split(order_key, replicas),
        epochs=10 * config.epochs if linear else config.epochs,
        batch_size=train.indices.shape[1] if linear else config.batch_size,
        evaluators={"validation": Evaluator(make_eval_step(objective), held_out)},
        log=run.sub_run(variant.replace(" ", "_")),
    )


def logits_of(variant: str, config: Config, state: TrainState, x: Array) -> Array:
    """What every replica says of every row: [L, N]."""
    model = build(variant, config.hidden)

    def one(params: object, extra: object) -> Array:
        return model.apply(params, extra, x, train=False, key=None)[0]

    return jax.vmap(one)(state.params, state.extra)


def scores(
    config: Config, logits: Array, y: np.ndarray, held_out: Dataset
) -> dict[str, np.ndarray]:
    """Accuracy and log-loss of every applicant when held out: [repeats, N] each."""
    loss = np.logaddexp(0, np.where(y > 0.5, -logits, logits))
    right = (np.asarray(logits) > 0) == (y > 0.5)
    out = {"accuracy": np.full((config.repeats, len(y)), np.nan)}
    out["log-loss"] = out["accuracy"].copy()
    for replica in range(len(logits)):
        rows = np.asarray(held_out.indices[replica])[np.asarray(held_out.mask[replica])]
        out["accuracy"][replica // config.folds, rows] = right[replica, rows]
        out["log-loss"][replica // config.folds, rows] = loss[replica, rows]
    assert not np.isnan(out["accuracy"]).any(), "a fold left somebody out"
    return out


def applicants(config: Config) -> pd.DataFrame:
    """The admissions, or the table that is given in their place."""
    return read_admissions(config.csv, config.separator, config.decimal)


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Cross-validate the three variants and compare them applicant by applicant."""
    data = dataset(admission_arrays(applicants(config)))
    n = len(data.indices)
    if config.folds > n:
        raise UserError(f"--folds {config.folds}: there are only {n} applicants")
    splits = [
        fold
        for repeat in range(config.repeats)
        for fold in kfold(n, config.folds, seed=config.seed * 1000 + repeat)
    ]
    train = stacked_subsets(data, [rows for rows, _ in splits])
    held_out = stacked_subsets(data, [rows for _, rows in splits])
    keys = jax.random.split(jax.random.key(config.seed), len(VARIANTS))

    y = np.asarray(data.arrays["y"])
    result: dict[str, Estimate | float] = {
        "majority class: accuracy": float(max(y.mean(), 1 - y.mean()))
    }
    each = {}
    for variant, key in zip(VARIANTS, keys, strict=True):
        fitted = cross_validate(variant, config, train, held_out, key, run)
        logits = logits_of(variant, config, fitted.state, data.arrays["x"])
        each[variant] = scores(config, logits, y, held_out)
        for name, values in each[variant].items():
            within = RANGES[name]
            result[f"{variant}: {name}"] = mean_over_cases(
                values.mean(0), "applicants", within
            )
            if config.repeats > 1:
                spread = mean_over_runs(values.mean(1), within, "repeats")
                result[f"{variant}: {name}, by repeat"] = spread
    for name in RANGES:
        gap = each["network"][name] - each["logistic regression"][name]
        result[f"network - logistic regression: {name}"] = mean_over_cases(
            gap.mean(0), "applicants, paired", DIFFERENCES[name]
        )
    plots.save_curves(run, VARIANTS, "loss", "log-loss [nats]")
    plots.save_intervals(run, result, VARIANTS, ("accuracy", "log-loss"))
    return result


def predict(saved: Saved[Config], applicant: tuple[float, float, int]) -> None:
    """Probability of admission for GRE GPA RANK, from the saved run."""
    config = saved.config
    x = jnp.asarray(applicant_row(Applicant(*applicant), applicants(config), warn))
    model = build("network", config.hidden)
    replicas = config.folds * config.repeats
    weights = saved.replica_weights(model, replicas, "network")
    logits, _ = jax.vmap(
        lambda params, extra: model.apply(params, extra, x, train=False, key=None)
    )(weights["params"], weights["extra"])
    p = np.asarray(jax.nn.sigmoid(logits[:, 0]))
    print(
        f"probability of admission {p.mean():.3f} (the {replicas} models of "
        f"{config.repeats} x {config.folds} folds: sd {p.std(ddof=1):.3f}, "
        f"{p.min():.3f} to {p.max():.3f})"
    )


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON, predict=predict)
