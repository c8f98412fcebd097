"""Training on pairs of sequences: the optimizer and the call of lessons 3.1.1."""

import optax

from jaxstudy.dataset import Dataset, steps_per_epoch
from jaxstudy.model import Model
from jaxstudy.objectives import sequence_cross_entropy
from jaxstudy.records import Log
from jaxstudy.training import EvalStep, Evaluator, make_eval_step, train_seeds
from jaxstudy.types import TrainState


def train_on_pairs(
    model: Model,
    end: int,
    train: Dataset,
    validation: Dataset,
    *,
    rate: float,
    epochs: int,
    seed: int,
    seeds: int,
    log: Log,
    batch_size: int = 32,
    clip: float = 1.0,
) -> tuple[TrainState, EvalStep]:
    """Minimise `sequence_cross_entropy` from every seed, each a replica.

    Adam's rate falls to 0 along a cosine; gradients with a norm above `clip` are scaled
    to it (Pascanu et al. 2013). Returns the last states [seeds, ...] and the evaluation
    step.

    Args:
        model: apply(params, extra, x, x_length, tokens) gives logits.
        end: the symbol that ends y, and begins it.
        train, validation: x and y with their lengths; validation is logged each epoch.
        rate: learning rate at the start.
        epochs: passes over the training set.
        seed, seeds: fix the weights and the order of every replica.
        log: of the run.
        batch_size: pairs in a gradient step.
        clip: largest norm of a gradient.
    """
    objective = sequence_cross_entropy(model, end)
    eval_step = make_eval_step(objective)
    steps = epochs * steps_per_epoch(len(train.indices), batch_size)
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )
    fitted = train_seeds(
        model,
        objective,
        optimizer,
        train,
        seed=seed,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        evaluators={"validation": Evaluator(eval_step, validation, 500)},
        evaluate_first=False,
        log=log,
    )
    return fitted.state, eval_step
