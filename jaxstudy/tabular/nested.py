"""Nested cross-validation: inner folds choose, outer folds report.

An outer fold is held out from everything that a model of it learns or chooses. So what
is reported holds for the whole procedure, choosing included (Cawley and Talbot 2010).
Every fold trains as one replica of one compiled program.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported where they are first used

from jaxstudy.data.splits import kfold
from jaxstudy.dataset import Dataset, stacked_subsets, steps_per_epoch
from jaxstudy.model import Model
from jaxstudy.objectives import binary_cross_entropy
from jaxstudy.optimizers import OPTIMIZERS
from jaxstudy.records import Log
from jaxstudy.runs.statistics import (
    NONNEGATIVE,
    REAL,
    SHARE,
    SHARE_DIFFERENCE,
    Estimate,
    mean_over_cases,
)
from jaxstudy.training import (
    EvalStep,
    Evaluator,
    FitResult,
    Replicas,
    TrainStep,
    fit,
    init_replicas,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, Batch, Key, Metrics, PyTree, TrainState
from jaxstudy.wrappers import column_statistics

Scores = Mapping[str, np.ndarray]  # [repeats, N] by metric
SCORE_RANGES = {
    "log-loss": (NONNEGATIVE, REAL),
    "accuracy": (SHARE, SHARE_DIFFERENCE),
}  # of a metric, and of the difference of two


class Split(NamedTuple):
    """Folds: the rows that train each replica, and those held out from it, [L, n]."""

    train: Dataset
    held_out: Dataset


class Learner(NamedTuple):
    """What is cross-validated: the models to choose from, by name, and Adam's rate.

    Models are `standardized`; scaled: by the training rows, or not at all.
    """

    models: Mapping[str, Model]
    rate: float
    scaled: bool = True


class Choice(NamedTuple):
    """For each outer fold [L]: the number of the candidate, and its epochs."""

    candidate: np.ndarray
    epochs: np.ndarray


def nested_folds(
    data: Dataset, folds: int, inner_folds: int, repeats: int, seed: int
) -> tuple[Split, Split]:
    """The outer folds [repeats folds, n], and the inner ones of their training rows.

    The inner folds of outer fold f are the replicas f inner_folds to (f + 1)
    inner_folds - 1. Raises ValueError where there are fewer rows than folds.
    """
    outer, inner = [], []
    for repeat in range(repeats):
        own_seed = seed * 1000 + repeat
        for rows, held_out in kfold(len(data.indices), folds, seed=own_seed):
            outer.append((rows, held_out))
            parts = kfold(len(rows), inner_folds, seed=own_seed)
            inner += [(rows[train], rows[rest]) for train, rest in parts]

    def stacked(splits: list[tuple[np.ndarray, np.ndarray]]) -> Split:
        train, held_out = zip(*splits, strict=True)
        return Split(stacked_subsets(data, train), stacked_subsets(data, held_out))

    return stacked(outer), stacked(inner)


def lowest_losses(losses: np.ndarray, inner_folds: int = 1) -> Choice:
    """The candidate and the epoch with the lowest loss, for each outer fold.

    losses: of held-out rows, [candidates, epochs, outer folds x inner_folds], averaged
    over the inner folds. The first of equal ones.
    """
    candidates, epochs, _ = losses.shape
    each = losses.reshape(candidates * epochs, -1, inner_folds).mean(-1)
    candidate, epoch = np.divmod(each.argmin(0), epochs)
    return Choice(candidate, epoch + 1)


def early_stopping(model: Model) -> TrainStep:
    """A step of Adam (state, batch, rate, last) that changes nothing from `last` on.

    So replicas that run for the same number of steps stop each at a step of its own.
    """
    objective = binary_cross_entropy(model)

    def train_step(
        state: TrainState, batch: Batch, rate: Array, last: Array
    ) -> tuple[TrainState, Metrics]:
        optimizer = OPTIMIZERS["adam"].make(rate)
        after, metrics = make_train_step(objective, optimizer)(state, batch)
        going = functools.partial(jnp.where, state.step < last)
        return jax.tree.map(going, after, state)._replace(step=after.step), metrics

    return train_step


@functools.lru_cache(maxsize=16)
def _steps(model: Model) -> tuple[TrainStep, EvalStep]:
    """The same functions for the same model, so that it is compiled once."""
    return early_stopping(model), make_eval_step(binary_cross_entropy(model))


@functools.lru_cache(maxsize=16)
def _initial(model: Model, seed: int, replicas: int) -> tuple[TrainState, Key]:
    keys = jax.random.split(jax.random.key(seed), (replicas, 2))
    adam = OPTIMIZERS["adam"].make(1.0)  # whose state begins alike at every rate
    return init_replicas(model, adam, keys[:, 0]), keys[:, 1]


@jax.jit
def _statistics(x: Array, indices: Array, mask: Array) -> PyTree:
    return jax.vmap(lambda rows, valid: column_statistics(x[rows], valid))(
        indices, mask
    )


def logits_of(model: Model, params: PyTree, extra: PyTree, x: Array) -> Array:
    """What every replica says of every row of x [N, D]: [L, N]."""

    def one(params: PyTree, extra: PyTree) -> Array:
        return model.apply(params, extra, x, train=False, key=None)[0]

    return jax.vmap(one)(params, extra)


@dataclass(frozen=True)
class NestedCV:
    """Nested cross-validation of learners: what all of their trainings share.

    epochs: the most there are; log: of a training, by its name.
    """

    outer: Split
    inner: Split
    folds: int
    inner_folds: int
    epochs: int
    batch_size: int
    seed: int
    log: Callable[..., Log]

    def train(
        self,
        part: str,
        learner: Learner,
        model: Model,
        split: Split,
        epochs: np.ndarray,
        **options: bool,
    ) -> FitResult:
        """Train a replica on every fold, each for its own number of epochs [L].

        The same fold has the same weights to begin with, and the same batches, in
        whatever training.
        """
        rows, count = split.train, len(epochs)
        state, keys = _initial(model, self.seed, len(self.inner.train.indices))
        first = np.arange(count)  # a copy: training reuses the memory of a state
        state, keys = jax.tree.map(lambda a: a[first], (state, keys))
        if learner.scaled:
            fitted = _statistics(rows.arrays["x"], rows.indices, rows.mask)
            state = state._replace(extra={**state.extra, "standardization": fitted})
        sizes = np.asarray(rows.mask).sum(1)
        last = epochs * [steps_per_epoch(int(n), self.batch_size) for n in sizes]
        train_step, eval_step = _steps(model)
        return fit(
            state,
            train_step,
            rows,
            key=keys,
            epochs=self.epochs,
            batch_size=self.batch_size,
            evaluators={"validation": Evaluator(eval_step, split.held_out)},
            evaluate_first=False,
            replicas=Replicas((jnp.full(count, learner.rate), jnp.asarray(last))),
            log=self.log(part, **options),
        )

    def losses(self, name: str, learner: Learner, split: Split) -> np.ndarray:
        """Held-out log-loss of every model after every epoch: [models, epochs, L]."""
        every, losses = np.full(len(split.train.indices), self.epochs), []
        for key, model in learner.models.items():
            part = f"choose, {name}, {key}"
            trained = self.train(part, learner, model, split, every, temporary=True)
            rows = [r for r in trained.records if r["split"] == "validation"]
            losses.append([row["loss"] for row in rows])
        return np.array(losses)

    def choose(self, name: str, learner: Learner) -> Choice:
        """What the inner folds of each outer fold find the best."""
        return lowest_losses(self.losses(name, learner, self.inner), self.inner_folds)

    def without_choice(self, candidate: int) -> Choice:
        """The same model for every fold, and the most epochs."""
        folds = len(self.outer.train.indices)
        return Choice(np.full(folds, candidate), np.full(folds, self.epochs))

    def logits(self, name: str, learner: Learner, choice: Choice) -> np.ndarray:
        """Train every outer fold as chosen: what each says of all rows, [L, N]."""
        x, logits = self.outer.train.arrays["x"], np.zeros(())
        for number, (key, model) in enumerate(learner.models.items()):
            chosen = choice.candidate == number
            if chosen.any():
                part, epochs = f"{name}, {key}", choice.epochs * chosen
                state = self.train(part, learner, model, self.outer, epochs).state
                own = np.asarray(logits_of(model, state.params, state.extra, x))
                logits = np.where(chosen[:, None], own, logits)
        return logits

    def majority_logits(self) -> np.ndarray:
        """The share of y = 1 among the training rows as the prediction: [L, N]."""
        rows, y = self.outer.train, self._y
        counted = np.asarray(rows.mask)
        ones = (y[np.asarray(rows.indices)] * counted).sum(1)
        shares = ones / counted.sum(1)
        return np.tile(scipy.special.logit(shares)[:, None], len(y))

    def scores(self, logits: np.ndarray) -> Scores:
        """Accuracy and log-loss of every row when held out: [repeats, N] each."""
        rows = self.outer.held_out
        return row_scores(logits, self._y, rows, self.folds)

    @property
    def _y(self) -> np.ndarray:
        return np.asarray(self.outer.train.arrays["y"])


def row_scores(
    logits: np.ndarray, y: np.ndarray, held_out: Dataset, folds: int
) -> dict[str, np.ndarray]:
    """Accuracy and log-loss of every row when held out, [repeats, N] each.

    logits [L, N] for y [N] in {0, 1}; the replicas of a repeat are `folds` in a row.
    """
    loss = np.logaddexp(0, np.where(y > 0.5, -logits, logits))
    right = (logits > 0) == (y > 0.5)
    out = {"accuracy": np.full((len(logits) // folds, len(y)), np.nan)}
    out["log-loss"] = out["accuracy"].copy()
    mask = np.asarray(held_out.mask)
    for replica, indices in enumerate(np.asarray(held_out.indices)):
        rows = indices[mask[replica]]
        out["accuracy"][replica // folds, rows] = right[replica, rows]
        out["log-loss"][replica // folds, rows] = loss[replica, rows]
    assert not np.isnan(out["accuracy"]).any(), "a fold left somebody out"
    return out


def score_differences(
    each: Mapping[str, Scores], pairs: Sequence[tuple[str, str]]
) -> dict[str, Estimate]:
    """The scores "a: metric" of all learners, and the differences "a - b: metric"."""
    result = {}
    for metric in SCORE_RANGES:
        for a, b in pairs:
            gap = paired_difference(each[a], each[b], metric)
            result[f"{a} - {b}: {metric}"] = gap
        for name, scores in each.items():
            result[f"{name}: {metric}"] = mean_score(scores, metric)
    return result


def mean_score(scores: Scores, metric: str) -> Estimate:
    """Log-loss or accuracy over all rows, each averaged over the repeats."""
    return mean_over_cases(scores[metric].mean(0), "rows", SCORE_RANGES[metric][0])


def paired_difference(a: Scores, b: Scores, metric: str) -> Estimate:
    """The mean of a - b, row by row."""
    gap = (a[metric] - b[metric]).mean(0)
    return mean_over_cases(gap, "rows, paired", SCORE_RANGES[metric][1])
