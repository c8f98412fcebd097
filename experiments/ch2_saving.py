"""Lesson 2.2.2: every way to keep what a network has learned, and to get it back.

A saved model is its layers and settings (config.json), its trained weights, and, to go
on training, the optimizer's state, the step and the random key (checkpoints/). Every
experiment has these ways as options; here each is used, and its promise checked:

    --save state | params      all that going on needs, or only what predicts
    --keep every               every epoch's weights, under the number of their step
    --keep last --keep-n 1     one that is overwritten
    --keep best --monitor validation.accuracy --mode max
    --resume                   go on, knowing only the folder
    --load-params FOLDER       another training begins with these weights
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from jaxstudy import training
from jaxstudy.dataset import subset
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import ImageSplits, image_splits
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import promises
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.promises import Trainings, same_bits
from jaxstudy.runs.run import Run, SubRun
from jaxstudy.runs.saved import Options
from jaxstudy.types import Array, PyTree

RESUMED = "resume: stopped half-way and gone on, the same bits"
NOTICED = "a flipped bit is noticed, not loaded"
BEST_KEPT = "keep best: the epoch with the highest validation accuracy"
BEST_LOADED = "keep best: loading takes that epoch"
ANEW = "weights into a model built anew: the same predictions"
SMALLER = "save params: takes less than half the space"
REFUSED = "save params: going on is refused"
FOLDERS = ("every", "last", "best", "params")
LESSON = Lesson(
    number="2.2.2",
    title="Checkpoints",
    question="What does a checkpoint hold?",
    metrics=(
        *(RESUMED, NOTICED, BEST_KEPT, BEST_LOADED, ANEW, SMALLER, REFUSED),
        *(f"{name}: MiB on the disk" for name in FOLDERS),
        "validation accuracy at the end",
    ),
    claims=(
        promises.promised(
            "A run that stops half-way and is resumed ends with the same bits as one "
            "that never stops.",
            RESUMED,
        ),
        promises.promised(
            "A checkpoint with one flipped bit is refused, not loaded.", NOTICED
        ),
        promises.promised(
            "Keeping the best keeps the epoch of highest validation accuracy, and "
            "loading takes that one.",
            BEST_KEPT,
            BEST_LOADED,
        ),
        promises.promised(
            "Weights loaded into a freshly built model predict the same, bit for bit.",
            ANEW,
        ),
        promises.promised(
            "Weights alone take less than half the space, and training cannot be "
            "resumed from them.",
            SMALLER,
            REFUSED,
        ),
    ),
    figures={
        "kept": "Validation accuracy after every epoch of the same training, saved in "
        "three ways; orange marks the checkpoints on the disk at the end. `best` keeps "
        "the highest point, and perhaps the last epoch, to resume from."
    },
    try_it={
        "--epochs 12": "`every` keeps twice as many checkpoints, the others as many.",
        "--rate 0.03": "The curve jumps up and down: the best epoch need not be the "
        "last one, and all promises should hold as before.",
        "--data emoji": "Larger images: all promises should hold, with more MiB.",
    },
)


@dataclass(frozen=True)
class Config(Settings):
    """A small training."""

    data: str = "fashion_mnist"
    """fashion_mnist, emoji, or tfds:NAME."""
    images: Count = 3_000
    """Images to learn from."""
    epochs: Count = 6
    """Passes over them."""
    batch_size: Count = 100
    """Images in a gradient step."""
    rate: Positive = 0.003
    """Learning rate of Adam."""


PRESETS = {
    "smoke": Config(images=200, epochs=4),
    "quick": Config(),
    "full": Config(images=10_000, epochs=10),
}
EVERY = Options(keep="every")
LAST = Options(keep="last", keep_n=1, save_every=0)
BEST = Options(keep="best", keep_n=1, monitor="validation.accuracy", mode="max")
WEIGHTS = Options(save="params", keep="last", keep_n=1)


def load(config: Config) -> ImageSplits:
    """The images, the validation set cut to as many, at most 1000."""
    data = image_splits(read_images(config.data), limit=config.images)
    few = np.asarray(data.validation.indices)[: min(1000, config.images)]
    return data._replace(validation=subset(data.validation, few))


def build(data: ImageSplits) -> Model:
    """The network: what a saved run's config and data say of it."""
    return cnn(data.shape, len(data.classes), filters=(16,), hidden=(32,))


def trainer(
    config: Config, data: ImageSplits
) -> Callable[[Config, SubRun], training.FitResult]:
    """What trains, always with the same compiled functions."""
    model, optimizer = build(data), optax.adam(config.rate)
    objective = cross_entropy(model)
    train_step = training.make_train_step(objective, optimizer)
    eval_step = training.make_eval_step(objective)
    evaluator = training.Evaluator(eval_step, data.validation, 500)

    def train(config: Config, log: SubRun) -> training.FitResult:
        key, order = jax.random.split(jax.random.key(config.seed))
        return training.fit(
            training.init_state(model, optimizer, key),
            train_step,
            data.train,
            key=order,
            epochs=config.epochs,
            batch_size=config.batch_size,
            evaluators={"validation": evaluator},
            chunk_steps=max(1, len(data.train.indices) // config.batch_size),
            log=log,
        )

    return train


def predict(data: ImageSplits, weights: PyTree) -> Array:
    """Logits of the first 100 validation images, by a network built anew."""
    rows = np.asarray(data.validation.indices)[:100]
    images = data.validation.arrays["x"][rows]  # type: ignore[union-attr]
    weights = weights["params"], weights["extra"]
    return build(data).apply(*weights, images, train=False, key=None)[0]


def weights_in(t: Trainings[Config], name: str, step: int | None = None) -> PyTree:
    """The weights in a folder, knowing no more than the folder."""
    saved = t.saved(name, Config)
    return saved.model_weights(build(load(saved.config)), step=step)


def checks(
    t: Trainings[Config], config: Config, data: ImageSplits
) -> tuple[dict[str, bool], dict[str, training.FitResult]]:
    """Save and load in every way: each promise, and whether it is kept."""
    holds: dict[str, bool] = {}
    whole = t.train("every", config, EVERY)
    accuracy = promises.by_step(whole.records, "validation", "accuracy")
    steps = list(accuracy)
    holds["keep every: one checkpoint for each epoch"] = t.kept("every") == steps
    loaded = weights_in(t, "every")
    holds[ANEW] = same_bits(predict(data, loaded), predict(data, whole.state._asdict()))
    first = weights_in(t, "every", steps[0])
    holds["an early epoch's weights are those of then"] = not same_bits(
        first["params"], loaded["params"]
    )

    last = t.train("last", config, LAST)
    holds["keep last: one, overwritten"] = t.kept("last") == steps[-1:]
    holds["keep last: the same training, to the bit"] = same_bits(
        last.state.params, whole.state.params
    )

    best = t.train("best", config, BEST)
    top = max(accuracy, key=lambda step: (accuracy[step], step))
    holds[BEST_KEPT] = top in t.kept("best") and len(t.kept("best")) <= 2
    holds[BEST_LOADED] = same_bits(weights_in(t, "best"), weights_in(t, "every", top))

    t.train("half", dataclasses.replace(config, epochs=config.epochs // 2), LAST)
    resumed = t.train("half", config, LAST, resume=True)
    holds[RESUMED] = same_bits(
        jax.tree.leaves(resumed.state)[:-1], jax.tree.leaves(whole.state)[:-1]
    )

    t.train("params", config, WEIGHTS)
    holds["save params: the same weights"] = same_bits(weights_in(t, "params"), loaded)
    holds[SMALLER] = t.size("params") < t.size("last") / 2
    more = dataclasses.replace(config, epochs=config.epochs + 1)
    holds[REFUSED] = promises.is_refused(
        lambda: t.train("params", more, WEIGHTS, resume=True)
    )

    begun = Options(load_params=t.folder / "every", save="params", keep_n=1)
    other = dataclasses.replace(config, epochs=1, seed=config.seed + 1)
    again = t.train("begun", other, begun)
    holds["load params: begins with the loaded weights"] = np.isclose(
        again.records[0]["accuracy"], accuracy[steps[-1]]
    )

    with promises.flipped_bit(t.checkpoint("params", steps[-1])):
        holds[NOTICED] = promises.is_refused(lambda: weights_in(t, "params"))
    holds["put right, it loads again"] = same_bits(weights_in(t, "params"), loaded)
    return holds, {"every": whole, "last": last, "best": best}


def main(config: Config, run: Run) -> dict[str, Any]:
    """Try everything: what is promised, and whether it holds."""
    shutil.rmtree(folder := run.folder / "trainings", ignore_errors=True)
    data = load(config)
    trainings = Trainings(folder, "ch2_saving", trainer(config, data))
    holds, trained = checks(trainings, config, data)
    records = trained["every"].records
    promises.draw_kept(run, trainings, trained, "accuracy")
    result: dict[str, Any] = {promise: bool(kept) for promise, kept in holds.items()}
    for name in FOLDERS:
        result[f"{name}: MiB on the disk"] = trainings.size(name) / 2**20
    *_, end = promises.by_step(records, "validation", "accuracy").values()
    result["validation accuracy at the end"] = end
    run.append([{"part": "every", **row} for row in records])
    run.sub_runs.update(trainings.sub_runs)  # whose steps and times are this run's
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
