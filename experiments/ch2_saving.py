"""Lesson 2.2.2: every way to keep what a network has learnt, and to get it back.

A saved model is its layers and settings (config.json), its trained weights, and, to go
on training, the optimizer's state, the step and the random key (checkpoints/). Every
experiment here has these ways as options; this one uses each, and checks what it
promises:

    --save state | params      all that going on needs, or only what predicts
    --keep every               every epoch's weights, under the number of their step
    --keep last --keep-n 1     one that is overwritten
    --keep best --monitor validation.accuracy --mode max
    --resume                   go on, knowing only the folder
    --load-params FOLDER       another training begins with these weights

Expected: every line says yes; each is an assertion, so otherwise the lesson fails.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxstudy.dataset import subset
from jaxstudy.images.sets import read_images
from jaxstudy.images.splits import ImageSplits, image_splits
from jaxstudy.model import Model
from jaxstudy.models.cnn import cnn
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Options, Run, SubRun, open_run, read_saved
from jaxstudy.training import (
    Evaluator,
    FitResult,
    fit,
    init_state,
    make_eval_step,
    make_train_step,
)
from jaxstudy.types import Array, PyTree, UserError

LESSON = Lesson(
    number="2.2.2",
    title="Every way to save and load, each checked",
    headline={
        "resume: stopped half-way and gone on, the same bits": (
            "promises kept: resumed, the same bits"
        ),
        "a flipped bit is noticed, not loaded": "a flipped bit is noticed",
        "every: MiB on the disk": "checkpoints, MiB: every epoch's",
        "last: MiB on the disk": "last",
        "params: MiB on the disk": "weights alone",
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
        self.train_step = make_train_step(objective, self.optimizer)
        self.eval_step = make_eval_step(objective)
        self.sub_runs: dict[str, SubRun] = {}

    def train(
        self,
        name: str,
        options: Options,
        *,
        epochs: int | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> FitResult:
        """One training, in the folder of this name."""
        key, order = jax.random.split(jax.random.key(self.config.seed + seed))
        epochs = epochs or self.config.epochs
        config = dataclasses.replace(self.config, epochs=epochs)
        with open_run(
            self.folder / name, NAME, "lesson", config, options,
            resume=resume, allow_change=resume,
        ) as run:  # fmt: skip
            self.sub_runs[name] = run.sub_run()
            return fit(
                init_state(self.model, self.optimizer, key),
                self.train_step,
                self.data.train,
                key=order,
                epochs=epochs,
                batch_size=config.batch_size,
                evaluators={
                    "validation": Evaluator(self.eval_step, self.data.validation, 500)
                },
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


def same(a: PyTree, b: PyTree) -> bool:
    """Whether two trees are equal to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def refused(work: Any) -> bool:
    """Whether something is refused in a sentence."""
    try:
        work()
    except UserError:
        return True
    return False


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """One byte of the largest file is another, for as long as this lasts."""
    path = max(folder.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    )
    try:
        yield
    finally:
        path.write_bytes(content)


def checks(t: Trainings) -> tuple[dict[str, bool], dict[str, FitResult]]:
    """Save and load in every way; what each promises, and whether it is so."""
    found: dict[str, bool] = {}
    whole = t.train("every", EVERY)
    steps = [r["step"] for r in whole.records if r["split"] == "train"]
    accuracy = {
        r["step"]: r["accuracy"]
        for r in whole.records
        if r["split"] == "validation" and r["step"]
    }
    found["keep every: one checkpoint for each epoch"] = t.kept("every") == steps
    logits = t.predict(whole.state.params, whole.state.extra)
    loaded = t.weights("every")
    found["weights into a model built anew: the same predictions"] = same(
        t.predict(loaded["params"], loaded["extra"]), logits
    )
    first = t.weights("every", steps[0])
    found["an early epoch's weights are those of then"] = not same(
        first["params"], loaded["params"]
    )

    last = t.train("last", LAST)
    found["keep last: one, overwritten"] = t.kept("last") == steps[-1:]
    found["keep last: the same training, to the bit"] = same(
        last.state.params, whole.state.params
    )

    best = t.train("best", BEST)
    top = max(accuracy, key=lambda step: (accuracy[step], step))
    found["keep best: the epoch with the highest validation accuracy"] = (
        top in t.kept("best") and len(t.kept("best")) <= 2
    )
    found["keep best: loading takes that epoch"] = same(
        t.weights("best"), t.weights("every", top)
    )

    t.train("half", LAST, epochs=t.config.epochs // 2)
    resumed = t.train("half", LAST, resume=True)
    found["resume: stopped half-way and gone on, the same bits"] = same(
        jax.tree.leaves(resumed.state)[:-1], jax.tree.leaves(whole.state)[:-1]
    )

    t.train("params", WEIGHTS)
    found["save params: the same weights"] = same(t.weights("params"), loaded)
    found["save params: takes less than half the space"] = (
        t.size("params") < t.size("last") / 2
    )
    found["save params: going on is refused"] = refused(
        lambda: t.train("params", WEIGHTS, epochs=t.config.epochs + 1, resume=True)
    )

    begun = Options(load_params=t.folder / "every", save="params", keep_n=1)
    again = t.train("begun", begun, epochs=1, seed=1)
    found["load params: begins with the loaded weights"] = np.isclose(
        again.records[0]["accuracy"], accuracy[steps[-1]]
    )

    with damaged(t.folder / "params" / "checkpoints" / str(steps[-1])):
        found["a flipped bit is noticed, not loaded"] = refused(
            lambda: t.weights("params")
        )
    found["put right, it loads again"] = same(t.weights("params"), loaded)
    return found, {"every": whole, "last": last, "best": best}


def draw(run: Run, t: Trainings, trained: dict[str, FitResult]) -> None:
    """The validation accuracy of every epoch, and which checkpoints each way kept."""
    panels = []
    for name, fitted in trained.items():
        rows = [r for r in fitted.records if r["split"] == "validation"]
        curve = [r["epoch"] for r in rows], [r["accuracy"] for r in rows]
        kept = [r for r in rows if r["step"] in t.kept(name)]
        marks = [r["epoch"] for r in kept], [r["accuracy"] for r in kept]
        size = f"{t.size(name) / 2**20:.1f} MiB"
        panels.append(
            plots.Panel(
                f"--keep {name}: {size}",
                "epoch",
                "validation accuracy",
                {"each epoch": curve, "on the disk": marks},
            )
        )
    plots.save_lines(run, "kept", panels)


def main(config: Config, run: Run) -> dict[str, Any]:
    """Try everything; fail if anything is not as promised."""
    folder = run.folder / "trainings"
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted lesson left
    trainings = Trainings(folder, config)
    found, trained = checks(trainings)
    draw(run, trainings, trained)
    wrong = [promise for promise, kept in found.items() if not kept]
    if wrong:
        raise AssertionError(f"not as promised: {'; '.join(wrong)}")
    last = [r for r in trained["every"].records if r["split"] == "validation"][-1]
    result: dict[str, Any] = {promise: "yes" for promise in found}
    for name in ("every", "last", "best", "params"):
        result[f"{name}: MiB on the disk"] = trainings.size(name) / 2**20
    result["validation accuracy at the end"] = last["accuracy"]
    run.append([{"part": "every", **row} for row in trained["every"].records])
    run.sub_runs.update(trainings.sub_runs)  # whose steps and times are this run's
    return result


if __name__ == "__main__":
    experiment(main, PRESETS)
