"""Figures of the lessons on texts: perplexities, bits, piano rolls, attention."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstudy.models.seq2seq import Seq2Seq
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.text.pairs import Pair
from jaxstudy.text.translation import NEAREST, Alphabets, decoder
from jaxstudy.text.tune_evaluation import notes_of
from jaxstudy.text.word_sets import KNOWN, ORDERS, TEST, VALIDATION
from jaxstudy.types import Array, PyTree


def save_perplexities(
    run: Run,
    result: Mapping[str, Any],
    networks: Sequence[str],
    *,
    context: int,
    bag: str,
) -> None:
    """Perplexities of `word_sets` and of the n-gram model, as perplexity.png.

    On the right, from `context` words alone, the band is where a network is within 5 %
    of the bag of words of this name, if that was trained.
    """
    sets = {"n-gram model": TEST, "n-gram model, known words": KNOWN}
    ngrams = {label: result[f"n-gram: {split}"] for label, split in sets.items()}
    whole = plots.Comparison("perplexity", [TEST, KNOWN], ngrams)
    bands = {}
    if (estimate := result.get(f"{bag}: {ORDERS[0]}")) is not None:
        bands[f"{bag} ± 5 %"] = 0.95 * estimate.mean, 1.05 * estimate.mean
    alone = plots.Comparison(
        f"perplexity from {context} words alone", ORDERS, bands=bands
    )
    plots.save_comparison(
        run, "perplexity", result, networks, [whole, alone], shared_log=True
    )


def save_forecasts(
    run: Run,
    name: str,
    years: np.ndarray,
    measured: np.ndarray,
    forecasts: Mapping[str, np.ndarray],
    regression: np.ndarray,
) -> None:
    """A series [N] with the forecasts of each network, one below the other."""
    count = len(forecasts)
    figure, axes = plots.subplots(
        count, 1, figsize=(9, 2.3 * count), sharex=True, sharey=True, squeeze=False
    )
    for axis, (network, forecast) in zip(axes[:, 0], forecasts.items(), strict=True):
        axis.plot(years, measured, "k-", label="measured")
        axis.plot(years, forecast, "C0o-", label=network, markersize=3)
        axis.plot(years, regression, "C1--", label="linear regression")
        axis.set(ylabel="sunspots")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1, 0].set_xlabel("year")
    plots.save(figure, run, name)


def learning_lines(
    run: Run, names: Sequence[str], split: str, metric: str, per_epoch: float = 1
) -> dict[str, plots.Line]:
    """Median of a metric over the seeds of each sub-run, by epochs x `per_epoch`."""
    lines: dict[str, plots.Line] = {}
    for name in names:
        records = run.sub_runs[name.replace(" ", "_")].records
        epochs, median, *_ = plots.curve(records, split, metric).T
        lines[name] = (per_epoch * epochs).tolist(), median.tolist()
    return lines


def save_learning(
    run: Run,
    names: Sequence[str],
    metric: str,
    label: str,
    baselines: Mapping[str, float],
) -> None:
    """A logged metric of networks on `word_sets` by epoch as learning.png.

    A panel a split; `baselines` are values on the validation set by label.
    """
    splits = {"training": ("train", {}), "validation": (VALIDATION, baselines)}
    panels = [
        plots.Panel(
            title, "epoch", label, learning_lines(run, names, split, metric),
            levels=levels,
        )
        for title, (split, levels) in splits.items()
    ]  # fmt: skip
    plots.save_lines(run, "learning", panels)


def save_exact_match(
    run: Run, pairs: Mapping[str, float], networks: Sequence[str], enough: float
) -> None:
    """Validation exact match by pairs seen as learning.png, a panel a task.

    `pairs` are those of an epoch by task; sub-runs are named "TASK NETWORK".
    """
    label, level = "validation exact match [share]", {f"{enough:g}": enough}
    panels = []
    for task, per_epoch in pairs.items():
        names = [f"{task} {network}" for network in networks]
        curves = learning_lines(run, names, "validation", "exact match", per_epoch)
        lines = dict(zip(networks, curves.values(), strict=True))
        panels.append(
            plots.Panel(task, "training pairs seen", label, lines, levels=level)
        )
    plots.save_lines(run, "learning", panels)


def save_scores(
    run: Run, task: str, result: Mapping[str, Any], networks: Sequence[str], beam: int
) -> None:
    """Exact match and chrF of a task's test pairs, and of the baseline NEAREST.

    As scores_TASK.png; from result["TASK, NETWORK: SCORE"].
    """
    panels = [
        plots.Comparison(
            f"{score} {unit}",
            [f"{score}, greedy", f"{score}, beam of {beam}"],
            {NEAREST: result[f"{task}, {NEAREST}: {score}"]},
        )
        for score, unit in (("exact match", "[share]"), ("chrF", "[0 to 100]"))
    ]
    names = [f"{task}, {network}" for network in networks]
    plots.save_comparison(run, f"scores_{task}", result, names, panels)


def save_bits(run: Run, metrics: Mapping[str, Any]) -> None:
    """Bits per character by epoch as bits.png, beside what the baselines take.

    `metrics` are those of `compare_bits`; the run's only training logs "bits".
    """
    splits = {"training": "train", "validation": "validation"}
    lines = {
        label: learning_lines(run, [""], split, "bits")[""]
        for label, split in splits.items()
    }
    ngram = metrics["n-gram: validation bits per character"].mean
    levels = {
        f"{metrics['n-gram: n']:.0f}-gram, validation": ngram,
        "PPMd, validation": metrics["PPMd: validation bits per character"],
    }
    label = "loss [bits per character]"
    panel = plots.Panel("", "epoch", label, lines, levels=levels)
    plots.save_lines(run, "bits", [panel])


def save_piano_roll(run: Run, name: str, tunes: Mapping[str, Sequence[str]]) -> None:
    """Tunes below each other as NAME.png: pitch by time, a line at every C.

    `tunes` are some of each kind, which is named in their titles.
    """
    every = [(kind, tune) for kind, some in tunes.items() for tune in some]
    figure, axes = plots.subplots(
        len(every), 1, figsize=(11, 2 * len(every)), squeeze=False
    )
    for axis, (kind, tune) in zip(axes[:, 0], every, strict=True):
        start, length, pitch = notes_of(tune).T
        axis.barh(pitch, 0.92 * length, left=start, height=0.9)
        octaves = np.arange(12 * (pitch.min() // 12), pitch.max() + 12, 12)
        axis.set_yticks(octaves, [f"C{int(c) // 12 - 1}" for c in octaves])
        axis.set_ylim(pitch.min() - 2, pitch.max() + 2)
        axis.set_xlim(0, (start + length).max())
        head = tune.partition("\n")[2].partition("\nK:")
        key = head[2].partition("\n")[0]
        fields = head[0].replace("\n", "  ").replace("$", r"\$")
        axis.set_title(f"{kind}: {fields}  K:{key}", fontsize=8, loc="left")
        axis.set_ylabel("pitch")
        axis.grid(alpha=0.3)
    axes[-1][0].set_xlabel("time [quarter notes]")
    figure.tight_layout()
    plots.save(figure, run, name)


def romanised(character: str) -> str:
    """A Hangul syllable as its sound, since few fonts have it."""
    name = unicodedata.name(character, "")
    syllable = name.removeprefix("HANGUL SYLLABLE ")
    return syllable.lower() if syllable != name else character.replace(" ", "_")


def save_attention(
    run: Run,
    name: str,
    network: Seq2Seq,
    params: PyTree,
    alphabets: Alphabets,
    pairs: Sequence[Pair],
) -> None:
    """Attention weights of greedy translations of four pairs, as NAME.png.

    A row is a character that the decoder writes, a column one of the source: short
    sources and long ones.
    """
    by_length = sorted(pairs, key=lambda pair: (len(pair.source), pair))
    examples = [by_length[int(q * (len(pairs) - 1))] for q in (0.3, 0.6, 0.8, 0.95)]
    decode = decoder(network, alphabets, 1)

    @jax.jit
    def attend(params: PyTree, x: Array, lengths: Array, before: Array) -> Array:
        memory = network.encode(params, x, lengths)
        return network.decode(params, memory, before)[2]

    figure, axes = plots.subplots(2, 2, figsize=(13, 11), layout="constrained")
    for axis, pair in zip(axes.ravel(), examples, strict=True):
        arrays = alphabets.arrays([pair])
        x, lengths = map(jnp.asarray, (arrays["x"], arrays["x_length"]))
        tokens = np.asarray(decode(params, x, lengths).tokens[0, 0])
        text = alphabets.text(tokens)
        before = np.concatenate([[alphabets.end], tokens[:-1]])
        weights = np.asarray(attend(params, x, lengths, before[None]))
        weights = weights[0, : len(text) + 1, : len(pair.source)]
        axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        sounds = [romanised(character) for character in pair.source]
        axis.set_xticks(range(len(sounds)), sounds, fontsize=8)
        for label in axis.get_xticklabels():  # a full stop would look like another sign
            label.set_rotation(90 if len(label.get_text()) > 1 else 0)
        written = [*text.replace(" ", "_"), "(end)"]
        axis.set_yticks(range(len(written)), written, fontsize=8)
        axis.set(xlabel="character read", ylabel="character written")
        title = text if text == pair.target else f"{text}\nright: {pair.target}"
        axis.set_title(title, fontsize=9)
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="attention weight")
    plots.save(figure, run, name)


def save_written(
    run: Run,
    name: str,
    network: Seq2Seq,
    params: PyTree,
    alphabets: Alphabets,
    pairs: Sequence[Pair],
    titles: Sequence[str],
) -> None:
    """Probabilities of every symbol while a network writes, as NAME.png.

    A panel for each pair, a column for each step of greedy decoding; a circle marks the
    right symbol.
    """
    arrays = alphabets.arrays(pairs)
    x, lengths = map(jnp.asarray, (arrays["x"], arrays["x_length"]))
    tokens = np.asarray(decoder(network, alphabets, 1)(params, x, lengths).tokens[:, 0])
    before = np.insert(tokens[:, :-1], 0, alphabets.end, axis=1)
    memory = jax.jit(network.encode)(params, x, lengths)
    _, logits, _ = jax.jit(network.decode)(params, memory, before)
    symbols = [symbol.replace("\n", "end") for symbol in alphabets.target.symbols]
    figure, axes = plots.subplots(
        1, len(pairs), figsize=(2.5 * len(pairs), 4), sharey=True, squeeze=False
    )
    for i, axis in enumerate(axes[0]):
        steps = int(arrays["y_length"][i])
        p = np.asarray(jax.nn.softmax(logits[i, :steps]))[:, 1:]  # 0 is unknown
        axis.imshow(p.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.plot(range(steps), arrays["y"][i, :steps] - 1, "o", mfc="none", color="C1")
        axis.set_xticks(range(steps), range(1, steps + 1))
        axis.set_yticks(range(len(symbols)), symbols)
        axis.set(title=titles[i], xlabel="step of the decoder")
    axes[0, 0].set_ylabel("symbol")
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="probability")
    plots.save(figure, run, name)
