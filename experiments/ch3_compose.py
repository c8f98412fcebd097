"""Lessons 3.2 and 3.2.1: composing, with an LSTM that says which character comes next.

The course's recipe, on the tunes of three old collections: (1) the bag of all
characters that occur; (2) a number for each; (3) the source as numbers. LSTM layers
read them, and a dense layer with softmax says what comes next. What it says is drawn
from, character by character, and a new tune comes out.

Backpropagation is truncated: the training text is cut into parallel streams, a step
sees one window of each, and the states that it ends with begin the next window. They
go on where a tune ends, or an epoch: the network reads that a tune begins. But a few
streams, drawn at every step, begin again from zero.
Held-out tunes are read one by one, from zero states, and every character counts, from
the first "X" to the empty line that ends a tune. Each epoch is judged by windows of the
validation tunes, also from zero states, and the best epoch is kept.

Expected (quick, a minute or two): 2.09 bits per character on the validation tunes,
where the best n-gram takes 2.42, and `xz -9`, which has packed the training tunes
before, 2.17. music21 accepts about 0.90 of the composed tunes, but in 0.15 only do all
bars add up, as they do in nine of ten real ones. Expected (full, 21 minutes): 1.69
bits, the best n-gram (n = 16) 2.41; on the test tunes 1.67, 2.35, and `xz -9` 2.20.
music21 accepts 0.97 of 200 composed tunes, in 0.76 all bars add up, and one is a copy.
Then: ch3_compose.py --compose "X:1\\nM:6/8\\nK:G\\n"
"""

import dataclasses
import itertools
import lzma
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from jaxstudy.data.sources import TUNES, check_folder
from jaxstudy.dataset import Dataset, Order, dataset
from jaxstudy.model import Model
from jaxstudy.models.recurrent import first_states, language_model
from jaxstudy.objectives import supervised
from jaxstudy.runs import plots
from jaxstudy.runs.checkpoint import Checkpoints, Keep
from jaxstudy.runs.cli import Count, Positive, Settings, experiment
from jaxstudy.runs.run import (
    Options,
    Run,
    Saved,
    load_weights,
    read_sealed,
    write_atomically,
)
from jaxstudy.runs.statistics import REAL, SHARE, Estimate, mean_over_cases
from jaxstudy.text import ngram
from jaxstudy.text.abc import Tunes, read_tunes, split_tunes
from jaxstudy.text.decoding import sample
from jaxstudy.text.tune_evaluation import (
    copied_share,
    joined_melodies,
    judge,
    save_piano_roll,
    write_midi,
)
from jaxstudy.text.vocabulary import (
    Vocabulary,
    fit_vocabulary,
    normalise,
    windows,
)
from jaxstudy.training import (
    EvalStep,
    Evaluator,
    TrainState,
    fit,
    init_replicas,
    make_train_step,
)
from jaxstudy.types import (
    Array,
    Batch,
    Key,
    Metrics,
    Objective,
    PyTree,
    UserError,
    warn,
)

END = "\n"  # an empty line ends a tune; another tune's end stands before the first
VOCABULARY = "vocabulary.json"  # in the run folder
SHOWN = 4  # tunes that are drawn, and written as MIDI


@dataclass(frozen=True)
class Config(Settings):
    """The tunes, the network that reads them, and how it composes."""

    tunes: Annotated[int, pydantic.Field(ge=50)] | None = None
    """Tunes to learn from, with as many held-out ones as belong to them; None: all."""
    units: tuple[Count, ...] = (128,)
    """Units of each LSTM layer."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the last layer's outputs that is left out in a training step."""
    forget: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    """Share of the streams that go on from zero states, in a training step."""
    epochs: Count = 2
    """Passes over the tunes."""
    streams: Count = 16
    """Parts of the training text that are read in parallel."""
    window: Count = 32
    """Characters of each stream in a gradient step."""
    rate: Positive = 0.006
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    clip: Positive = 1.0
    """Largest norm of a gradient: longer ones are shortened to it."""
    seeds: Count = 2
    """Trainings; an even number shares two cores evenly. The first one composes."""
    orders: tuple[Count, ...] = (6, 8, 10)
    """Lengths n of the n-grams to compare with: the best on the validation tunes."""
    composed: Annotated[int, pydantic.Field(ge=2)] = 60
    """Tunes to compose and judge."""
    length: Count = 1000
    """Characters of a composed tune, at most."""
    temperature: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.8
    """Under 1 the probable becomes more probable; 0: always the most probable one."""
    top_k: Count | None = None
    """Draw from the so many most probable characters; None: from all."""
    continued: Count = 1
    """Tunes that --compose makes."""
    unknown: bool = False
    """Let --compose read characters that no training tune has, as the unknown one."""


PRESETS = {
    "smoke": Config(
        tunes=50,
        units=(8,),
        epochs=2,
        orders=(2, 3),
        composed=4,
        length=60,
    ),
    "quick": Config(),
    "full": Config(
        units=(256, 256),
        dropout=0.4,
        epochs=10,
        window=50,
        rate=0.004,
        orders=(*range(2, 17), 20, 24, 32),
        composed=200,
    ),
}


def evenly_spaced(tunes: Sequence[str], count: int) -> tuple[str, ...]:
    """At most so many tunes, evenly spaced: of all the collections."""
    count = min(count, len(tunes))
    return tuple(tunes[i * len(tunes) // count] for i in range(count))


def load(limit: int | None) -> Tunes:
    """The tunes of the three collections; at most so many of them to learn from."""
    found = [tune for source in TUNES for tune in read_tunes(check_folder(source))]
    tunes = split_tunes(list(dict.fromkeys(found)))
    share = 1 if limit is None else limit / len(tunes.train)
    return Tunes(
        *(evenly_spaced(part, max(2, int(len(part) * share))) for part in tunes)
    )


def build(config: Config, symbols: int) -> Model:
    """LSTM layers and a dense one, with carried states for every stream.

    In training some streams forget theirs before a window: what never begins from zero
    states can be lost in them, and tunes begin so when they are judged or composed.
    """
    model = language_model(symbols, "lstm", config.units, dropout=config.dropout)

    def init(key: Key) -> tuple[PyTree, PyTree]:
        params, extra = model.init(key)
        states = first_states("lstm", config.units, config.streams)
        return params, {**extra, "states": states}

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> tuple[Array, PyTree]:
        if key is not None:
            key, own = jax.random.split(key)
            kept = jax.random.bernoulli(own, 1 - config.forget, (len(x), 1))
            states = jax.tree.map(lambda a: a * kept, extra["states"])
            extra = {**extra, "states": states}
        return model.apply(params, extra, x, train=train, key=key)

    return Model(init, apply)


def bits(model: Model) -> Objective:
    """-log2 softmax(logits)[y] a character, x and y [B, T]; the loss is in nats."""

    def of_rows(logits: Array, y: Array) -> dict[str, Array]:
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(-1)
        return {"loss": nats, "bits": nats / math.log(2)}

    return supervised(model, of_rows)


def from_zero_states(objective: Objective) -> EvalStep:
    """The metrics of rows that do not go on from what the training batch left."""

    def eval_step(state: TrainState, batch: Batch, *replica: PyTree) -> Metrics:
        del replica
        return objective(state.params, {}, batch, None)[1][1]

    return eval_step


def streams(numbers: np.ndarray, count: int, length: int) -> Dataset:
    """A text [n] as windows x, y [W count, length], those of all streams in turn.

    Row w count + b is window w of stream b: visited in order, a batch of `count` rows
    has one of each stream, and the batch after it what comes next in each. Streams
    begin evenly spaced and overlap a little, so that all of the text is in them. Raises
    UserError where it is shorter than one window.
    """
    most = len(windows(numbers, length)["x"])
    # a multiple of 8, if there are so many: `fit` cuts an epoch into equal chunks
    needed = 8 * math.ceil((len(numbers) - 1) / (8 * count * length))
    steps = min(needed, most)
    starts = np.linspace(0, len(numbers) - 1 - steps * length, count).astype(int)
    x = (starts + length * np.arange(steps)[:, None])[..., None] + np.arange(length)
    x = x.reshape(-1, length)
    return dataset({"x": numbers[x], "y": numbers[x + 1]})


def train(config: Config, tunes: Tunes, vocabulary: Vocabulary, run: Run) -> PyTree:
    """Train every seed, each a replica; the weights [seeds, ...] of the best epoch."""
    text = {
        name: vocabulary.encode("".join(t + END for t in part), allow_unknown=True)
        for name, part in tunes._asdict().items()
    }
    data = streams(text["train"], config.streams, config.window)
    model = build(config, len(vocabulary))
    objective = bits(model)
    steps = config.epochs * (len(data.indices) // config.streams)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adam(optax.cosine_decay_schedule(config.rate, steps)),
    )
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    fit(
        init_replicas(model, optimizer, keys[:, 0]),
        make_train_step(objective, optimizer),
        dataclasses.replace(data, order=Order(shuffle="never")),
        key=keys[:, 1],
        epochs=config.epochs,
        batch_size=config.streams,
        evaluators={
            "validation": Evaluator(
                from_zero_states(objective),
                dataset(windows(text["validation"], 512)),
                64,
            )
        },
        evaluate_first=False,
        log=run.sub_run(),
    )
    return best_weights(run.folder, run.options, config, len(vocabulary))


def best_weights(
    folder: Path, options: Options, config: Config, symbols: int
) -> PyTree:
    """The weights [seeds, ...] of the epoch with the lowest mean validation loss."""
    keys = jax.random.split(jax.random.key(0), config.seeds)
    params, extra = jax.eval_shape(jax.vmap(build(config, symbols).init), keys)
    keep = Keep("best", monitor=options.monitor, mode=options.mode)
    step = Checkpoints(folder / "checkpoints", keep).best()
    like = {"params": params, "extra": extra}
    return load_weights(folder, like, step=step)["params"]


def bits_of_tunes(
    model: Model, params: PyTree, vocabulary: Vocabulary, tunes: Sequence[str]
) -> np.ndarray:
    """Bits [seeds, tunes] of whole tunes, each from zero states to its end."""

    @jax.jit
    def score(params: PyTree, x: Array, y: Array) -> Array:
        def one(params: PyTree) -> Array:
            logits, _ = model.apply(params, {}, x, train=False, key=None)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.sum(nats * (y >= 0), axis=-1) / math.log(2)

        return jax.lax.map(one, params)

    by_length = np.argsort([len(tune) for tune in tunes], kind="stable")
    found = np.zeros((len(jax.tree.leaves(params)[0]), len(tunes)))
    for rows in np.split(by_length, range(64, len(tunes), 64)):
        width = max(len(tunes[i]) + 1 for i in rows)
        width += -width % 256  # few lengths, so few programs
        x, y = np.zeros((64, width), np.int32), np.full((64, width), -1)
        for row, i in enumerate(map(int, rows)):
            numbers = vocabulary.encode(END + tunes[i] + END, allow_unknown=True)
            x[row, : len(numbers) - 1] = numbers[:-1]
            y[row, : len(numbers) - 1] = numbers[1:]
        found[:, rows] = score(params, x, y)[:, : len(rows)]
    return found


def bits_of_ngram(
    config: Config, vocabulary: Vocabulary, tunes: Tunes
) -> tuple[int, np.ndarray, np.ndarray]:
    """The order with the fewest validation bits; bits of validation and test tunes."""
    train, *held_out = (
        [vocabulary.encode(tune + END, allow_unknown=True) for tune in part]
        for part in (tunes.train, tunes.validation, tunes.test)
    )
    fitted = {n: ngram.fit_ngram(train, len(vocabulary), n) for n in config.orders}
    order = min(fitted, key=lambda n: ngram.bits(fitted[n], held_out[0]).sum())
    starts = [np.cumsum([0, *map(len, part[:-1])]) for part in held_out]
    validation, test = (
        np.add.reduceat(ngram.bits(fitted[order], part), start)
        for part, start in zip(held_out, starts, strict=True)
    )
    return order, validation, test


def xz_bits(held_out: Sequence[str], before: Sequence[str] = ()) -> float:
    """Bits per character that tunes take in `xz -9e`, after others have been packed."""

    def size(tunes: Sequence[str]) -> int:
        content = "".join(tune + END for tune in tunes).encode()
        return 8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))

    more = size([*before, *held_out]) - (size(before) if before else 0)
    return more / sum(len(tune) + 1 for tune in held_out)


def per_character(bits: np.ndarray, tunes: Sequence[str]) -> Estimate:
    """All bits [tunes] over all characters; its interval is over the tunes.

    Tunes differ in length: to first order, a ratio r of sums varies as the mean of
    r + (bits - r characters) / (mean characters).
    """
    characters = np.array([len(tune) + 1 for tune in tunes])
    ratio = bits.sum() / characters.sum()
    values = ratio + (bits - ratio * characters) / characters.mean()
    return mean_over_cases(values, "tunes", REAL)


def continue_tune(
    config: Config, params: PyTree, vocabulary: Vocabulary, prefix: str, count: int
) -> list[str]:
    """Tunes that go on from a prefix, each to its end or to the longest allowed.

    By the first seed's weights; the same ones give the same tunes.
    """
    model = build(config, len(vocabulary))
    weights = jax.tree.map(lambda a: a[0], params)

    def step(states: PyTree, token: Array) -> tuple[PyTree, Array]:
        logits, extra = model.apply(
            weights, {"states": states}, token[:, None], train=False, key=None
        )
        return extra["states"], logits[:, 0]

    numbers = vocabulary.encode(END + prefix, allow_unknown=config.unknown)
    drawn = jax.jit(
        lambda key: sample(
            step,
            first_states("lstm", config.units, count),
            jnp.tile(jnp.asarray(numbers), (count, 1)),
            key,
            length=config.length,
            temperature=config.temperature,
            k=config.top_k,
        )
    )(jax.random.key(config.seed))
    found = []
    for row in np.asarray(drawn):
        tune = prefix + "".join(vocabulary.decode(row))
        end = tune.find("\n" + END, len(prefix) - 1)
        found.append(tune if end < 0 else tune[: end + 1])
    return found


def judged(
    name: str, tunes: Sequence[str], melodies: str
) -> tuple[dict[str, Estimate | float], list[bool]]:
    """What the judge says of tunes, as metrics, and which of them it accepts."""
    verdicts = [judge(tune) for tune in tunes]
    copied = np.array([copied_share(tune, melodies) for tune in tunes])
    shares = {
        "accepted by music21": [v.accepted for v in verdicts],
        "accepted, and all bars add up": [v.adds_up for v in verdicts],
    }
    found: dict[str, Estimate | float] = {
        f"{name}: {what}": mean_over_cases(np.array(each, float), "tunes", SHARE)
        for what, each in shares.items()
    }
    bars = sum(v.bars for v in verdicts)
    wrong = sum(v.wrong for v in verdicts)
    found[f"{name}: bars of a wrong length"] = wrong / max(1, bars)
    found[f"{name}: copies of a training tune"] = float(np.sum(copied > 0.5))
    found[f"{name}: longest copied piece of the melody"] = mean_over_cases(
        copied, "tunes", SHARE
    )
    return found, shares["accepted by music21"]


def write_samples(run_folder: Path, name: str, tunes: Sequence[str]) -> list[Path]:
    """Tunes as samples/NAME_1.abc, ... and, where music21 reads them, NAME_1.mid."""
    folder = run_folder / "samples"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}_{number}.abc" for number in range(1, len(tunes) + 1)]
    for path, tune in zip(paths, tunes, strict=True):
        write_atomically(path, tune)
        midi = path.with_suffix(".mid")
        try:
            write_midi(tune, midi)
        except UserError as error:
            midi.unlink(missing_ok=True)  # of another tune
            warn(f"{path.name} became no MIDI file: {error}")
    return paths


def draw(run: Run, others: dict[str, float]) -> None:
    """Bits per character by epoch, and of what the LSTM is compared with."""
    lines: dict[str, plots.Line] = {}
    for split in ("train", "validation"):
        table = plots.curve(run.sub_runs[""].records, split, "bits")
        lines[f"LSTM, {split}"] = table[:, 0].tolist(), table[:, 1].tolist()
    ends = [0.0, max(lines["LSTM, train"][0])]
    for name, value in others.items():
        lines[name] = ends, [value, value]
    panel = plots.Panel("validation tunes", "epoch", "loss [bits per character]", lines)
    plots.save_lines(run, "bits", [panel])


def measure_bits(
    config: Config, tunes: Tunes, vocabulary: Vocabulary, params: PyTree, run: Run
) -> dict[str, Estimate | float]:
    """The LSTM on held-out tunes beside the n-gram and `xz`, as metrics and a figure.

    Its bits of a tune are the mean of all seeds'.
    """
    order, *of_ngram = bits_of_ngram(config, vocabulary, tunes)
    model, held_out = build(config, len(vocabulary)), tunes.validation + tunes.test
    of_seeds = bits_of_tunes(model, params, vocabulary, held_out).mean(0)
    of_lstm = np.split(of_seeds, [len(tunes.validation)])
    result: dict[str, Estimate | float] = {"n-gram: n": float(order)}
    for split, mine, theirs in zip(
        ("validation", "test"), of_lstm, of_ngram, strict=True
    ):
        held_out = getattr(tunes, split)
        what = f"{split} bits per character"
        result[f"LSTM: {what}"] = per_character(mine, held_out)
        result[f"n-gram: {what}"] = per_character(theirs, held_out)
        result[f"LSTM - n-gram: {what}"] = per_character(mine - theirs, held_out)
        result[f"xz -9: {what}"] = xz_bits(held_out, tunes.train)
        result[f"xz -9, held-out tunes alone: {what}"] = xz_bits(held_out)
    others = {}
    for name, shown in (("n-gram", f"{order}-gram"), ("xz -9", "xz -9")):
        found = result[f"{name}: validation bits per character"]
        others[shown] = found.mean if isinstance(found, Estimate) else found
    draw(run, others)
    return result


def main(config: Config, run: Run) -> dict[str, Estimate | float]:
    """Train, measure in bits, compose and judge."""
    # composing needs the best epoch, so that is kept whatever the options say
    run.options = dataclasses.replace(run.options, keep="best", keep_n=1)
    tunes = load(config.tunes)
    vocabulary = fit_vocabulary("".join(tunes.train) + END)
    run.write_sealed(VOCABULARY, vocabulary)
    params = train(config, tunes, vocabulary, run)
    result = measure_bits(config, tunes, vocabulary, params, run)

    composed = continue_tune(config, params, vocabulary, "X:1\n", config.composed)
    melodies = joined_melodies(tunes.train)
    found, accepted = judged("composed", composed, melodies)
    real, _ = judged("real", evenly_spaced(tunes.test, config.composed), melodies)
    good = list(itertools.compress(composed, accepted))[:SHOWN]
    write_samples(run.folder, "tune", good)
    write_atomically(run.folder / "samples" / "all.abc", "\n".join(composed))
    if good:
        save_piano_roll(run, "piano_roll", good)
    return result | found | real


def compose(saved: Saved[Config], prefix: str) -> None:
    """Go on from PREFIX, the beginning of a tune, with the saved run."""
    config, prefix = saved.config, normalise(prefix.replace("\\n", "\n"))
    if not prefix:
        raise UserError('--compose needs a beginning, such as "X:1\\nM:6/8\\nK:G\\n"')
    vocabulary = read_sealed(saved.folder, VOCABULARY, Vocabulary)
    params = best_weights(saved.folder, saved.options, config, len(vocabulary))
    tunes = continue_tune(config, params, vocabulary, prefix, config.continued)
    print("\n".join(tunes), end="")
    name = f"composed_by_seed_{config.seed}"
    paths = write_samples(saved.folder, name, tunes)
    print(f"written to {paths[0].parent}", file=sys.stderr)


if __name__ == "__main__":
    experiment(main, PRESETS, compose=compose)
