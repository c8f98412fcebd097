"""Lesson 2.2.2: every way to keep what a network has learned, and to get it back.

A saved model is its layers and settings (config.json), its trained weights, and, to go
on training, the optimizer's state, the step and the random key (checkpoints/). Every
experiment here has these ways as options; this one uses each, and checks what it
promises (True: the promise is kept):

    --save state | params      all that going on needs, or only what predicts
    --keep every               every epoch's weights, under the number of their step
    --keep last --keep-n 1     one that is overwritten
    --keep best --monitor validation.accuracy --mode max
    --resume                   go on, knowing only the folder
    --load-params FOLDER       another training begins with these weights
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
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
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.promises import flipped_bit, is_refused, same_bits
from jaxstudy.runs.run import Options, Run, SubRun, open_run, read_saved
from jaxstudy.types import Array, PyTree

LESSON = Lesson(
    number="2.2.2",
    title="Checkpoints",
    question="What does a checkpoint hold?",
    metrics=(
        "resume: stopped half-way and gone on, the same bits",
        "a flipped bit is noticed, not loaded",
        "keep best: the epoch with the highest validation accuracy",
        "keep best: loading takes that epoch",
        "weights into a model built anew: the same predictions",
        "save params: takes less than half the space",
        "save params: going on is refused",
        "every: MiB on the disk",
        "last: MiB on the disk",
        "best: MiB on the disk",
        "params: MiB on the disk",
        "validation accuracy at the end",
    ),
    claims=(
        Claim(
            "A run that stops half-way and is resumed ends with the same bits as one "
            "that never stops.",
            ("resume: stopped half-way and gone on, the same bits", True),
            "=",
        ),
        Claim(
            "A checkpoint with one flipped bit is refused, not loaded.",
            ("a flipped bit is noticed, not loaded", True),
            "=",
        ),
        Claim(
            "Keeping the best keeps the epoch of highest validation accuracy, and "
            "loading takes that one.",
            (
                "keep best: the epoch with the highest validation accuracy",
                "keep best: loading takes that epoch",
                True,
            ),
            "=",
        ),
        Claim(
            "Weights loaded into a freshly built model predict the same, bit for bit.",
            ("weights into a model built anew: the same predictions", True),
            "=",
        ),
        Claim(
            "Weights alone take less than half the space, and training cannot be "
            "resumed from them.",
            (
                "save params: takes less than half the space",
                "save params: going on is refused",
                True,
            ),
            "=",
        ),
    ),
    figures={
        "kept": "Validation accuracy after every epoch of the same training, saved in "
        "three ways; orange marks the epochs whose checkpoints are on the disk at the "
        "end. With `best` the mark at the highest point counts: the last epoch may "
        "lie beside it, to resume from."
    },
    try_it={
        "--epochs 12": "Twice the checkpoints of `every`, as many of `last` and "
        "`best`: only the first row of sizes grows.",
        "--rate 0.03": "The curve jumps up and down: the best epoch need not be the "
        "last one, and all promises should hold as before.",
        "--data emoji": "Other images, larger ones: every promise should hold, with "
        "more MiB.",
    },
)

NAME = "ch2_saving"


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
    """The images, the validation set cut to 1000."""
    data = image_splits(read_images(config.data), limit=config.images)
    few = np.asarray(data.validation.indices)[:1000]
    return data._replace(validation=subset(data.validation, few))


def build(data: ImageSplits) -> Model:
    """The network: what a saved run's config and data say of it."""
    return cnn(data.shape, len(data.classes), filters=(16,), hidden=(32,))


class Trainings:
    """Trainings in run folders of their own, all with the same compiled functions."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.data = folder, config, load(config)
        self.model = build(self.data)
        self.optimizer = optax.adam(config.rate)
        objective = cross_entropy(self.model)
        self.train_step = training.make_train_step(objective, self.optimizer)
        eval_step = training.make_eval_step(objective)
        self.evaluator = training.Evaluator(eval_step, self.data.validation, 500)
        self.sub_runs: dict[str, SubRun] = {}

    def train(
        self, name: str, options: Options, *, epochs: int | None = None,
        resume: bool = False, seed: int = 0,
    ) -> training.FitResult:  # fmt: skip
        """One training, in the folder of this name."""
        key, order = jax.random.split(jax.random.key(self.config.seed + seed))
        epochs = epochs or self.config.epochs
        config = dataclasses.replace(self.config, epochs=epochs)
        with open_run(
            self.folder / name, NAME, "lesson", config, options,
            resume=resume, allow_change=resume,
        ) as run:  # fmt: skip
            self.sub_runs[name] = run.sub_run()
            return training.fit(
                training.init_state(self.model, self.optimizer, key),
                self.train_step,
                self.data.train,
                key=order,
                epochs=epochs,
                batch_size=config.batch_size,
                evaluators={"validation": self.evaluator},
                chunk_steps=max(1, len(self.data.train.indices) // config.batch_size),
                log=run.sub_run(),
            )

    def kept(self, name: str) -> list[int]:
        """The steps whose checkpoints a folder has."""
        folder = self.folder / name / "checkpoints"
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())

    def size(self, name: str) -> int:
        """Bytes of the checkpoints in a folder."""
        files = (self.folder / name / "checkpoints").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def predict(self, params: PyTree, extra: PyTree) -> Array:
        """Logits of the first 100 validation images, by a network built anew."""
        rows = np.asarray(self.data.validation.indices)[:100]
        images = self.data.validation.arrays["x"][rows]  # type: ignore[union-attr]
        return build(self.data).apply(params, extra, images, train=False, key=None)[0]

    def weights(self, name: str, step: int | None = None) -> PyTree:
        """The weights in a folder, knowing no more than the folder."""
        saved = read_saved(self.folder / name, Config, NAME)
        shapes = jax.eval_shape(build(load(saved.config)).init, jax.random.key(0))
        return saved.weights(
            dict(zip(("params", "extra"), shapes, strict=True)), step=step
        )


def checks(t: Trainings) -> tuple[dict[str, bool], dict[str, training.FitResult]]:
    """Save and load in every way: each promise, and whether it is kept."""
    holds: dict[str, bool] = {}
    whole = t.train("every", EVERY)
    steps = [r["step"] for r in whole.records if r["split"] == "train"]
    accuracy = {
        r["step"]: r["accuracy"]
        for r in whole.records
        if r["split"] == "validation" and r["step"]
    }
    holds["keep every: one checkpoint for each epoch"] = t.kept("every") == steps
    logits = t.predict(whole.state.params, whole.state.extra)
    loaded = t.weights("every")
    holds["weights into a model built anew: the same predictions"] = same_bits(
        t.predict(loaded["params"], loaded["extra"]), logits
    )
    first = t.weights("every", steps[0])
    holds["an early epoch's weights are those of then"] = not same_bits(
        first["params"], loaded["params"]
    )

    last = t.train("last", LAST)
    holds["keep last: one, overwritten"] = t.kept("last") == steps[-1:]
    holds["keep last: the same training, to the bit"] = same_bits(
        last.state.params, whole.state.params
    )

    best = t.train("best", BEST)
    top = max(accuracy, key=lambda step: (accuracy[step], step))
    holds["keep best: the epoch with the highest validation accuracy"] = (
        top in t.kept("best") and len(t.kept("best")) <= 2
    )
    holds["keep best: loading takes that epoch"] = same_bits(
        t.weights("best"), t.weights("every", top)
    )

    t.train("half", LAST, epochs=t.config.epochs // 2)
    resumed = t.train("half", LAST, resume=True)
    holds["resume: stopped half-way and gone on, the same bits"] = same_bits(
        jax.tree.leaves(resumed.state)[:-1], jax.tree.leaves(whole.state)[:-1]
    )

    t.train("params", WEIGHTS)
    holds["save params: the same weights"] = same_bits(t.weights("params"), loaded)
    holds["save params: takes less than half the space"] = (
        t.size("params") < t.size("last") / 2
    )
    holds["save params: going on is refused"] = is_refused(
        lambda: t.train("params", WEIGHTS, epochs=t.config.epochs + 1, resume=True)
    )

    begun = Options(load_params=t.folder / "every", save="params", keep_n=1)
    again = t.train("begun", begun, epochs=1, seed=1)
    holds["load params: begins with the loaded weights"] = np.isclose(
        again.records[0]["accuracy"], accuracy[steps[-1]]
    )

    with flipped_bit(t.folder / "params" / "checkpoints" / str(steps[-1])):
        holds["a flipped bit is noticed, not loaded"] = is_refused(
            lambda: t.weights("params")
        )
    holds["put right, it loads again"] = same_bits(t.weights("params"), loaded)
    return holds, {"every": whole, "last": last, "best": best}


def draw(run: Run, t: Trainings, trained: dict[str, training.FitResult]) -> None:
    """The validation accuracy of every epoch, and which checkpoints each way kept."""
    figure, axes = plots.subplots(1, len(trained), figsize=(11, 3.2), sharey=True)
    for axis, (name, fitted) in zip(axes, trained.items(), strict=True):
        rows = [r for r in fitted.records if r["split"] == "validation"]
        kept = [r for r in rows if r["step"] in t.kept(name)]
        for of, style, label in ((rows, "-", "each epoch"), (kept, "o", "on the disk")):
            x, y = [r["epoch"] for r in of], [r["accuracy"] for r in of]
            axis.plot(x, y, style, label=label)
        axis.set(title=f"--keep {name}: {t.size(name) / 2**20:.1f} MiB", xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="validation accuracy")
    axes[0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    plots.save(figure, run, "kept")


def main(config: Config, run: Run) -> dict[str, Any]:
    """Try everything: what is promised, and whether it holds."""
    folder = run.folder / "trainings"
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted lesson left
    trainings = Trainings(folder, config)
    holds, trained = checks(trainings)
    draw(run, trainings, trained)
    last = [r for r in trained["every"].records if r["split"] == "validation"][-1]
    result: dict[str, Any] = {promise: bool(kept) for promise, kept in holds.items()}
    for name in ("every", "last", "best", "params"):
        result[f"{name}: MiB on the disk"] = trainings.size(name) / 2**20
    result["validation accuracy at the end"] = last["accuracy"]
    run.append([{"part": "every", **row} for row in trained["every"].records])
    run.sub_runs.update(trainings.sub_runs)  # whose steps and times are this run's
    return result


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
