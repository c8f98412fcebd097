"""Figures of the lessons on texts: perplexities, bits, piano rolls, attention."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from jaxstudy.models.seq2seq import Seq2Seq
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.text.pairs import Pair
from jaxstudy.text.translation import Alphabets, decoder
from jaxstudy.text.tune_evaluation import notes_of
from jaxstudy.text.word_sets import KNOWN, ORDERS, TEST, VALIDATION
from jaxstudy.types import Array, PyTree


class Comparison(NamedTuple):
    """A panel of estimates: metrics as colours, baselines as vertical lines."""

    xlabel: str
    metrics: Sequence[str]
    baselines: Mapping[str, float] = {}
    bands: Mapping[str, tuple[float, float]] = {}  # from, to: drawn in grey


def save_comparison(
    run: Run,
    name: str,
    result: Mapping[str, Any],
    names: Sequence[str],
    panels: Sequence[Comparison],
    *,
    shared_log: bool = False,
) -> None:
    """Estimates "NAME: METRIC" of several networks, a row each, as NAME.png.

    A network may lack some of the metrics; the first one has all. With `shared_log` all
    panels are of one quantity, on one logarithmic axis.
    """
    figure, axes = plots.subplots(
        1,
        len(panels),
        figsize=(5.5 * len(panels), 0.9 + 0.55 * len(names)),
        sharex=shared_log,
        sharey=True,
        squeeze=False,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        offsets = 0.16 * (np.arange(len(panel.metrics)) - (len(panel.metrics) - 1) / 2)
        for metric, colour, offset in zip(
            panel.metrics, plots.COLOURS, offsets, strict=False
        ):
            for y, network in enumerate(names):
                if (estimate := result.get(f"{network}: {metric}")) is not None:
                    label = None if y else metric
                    plots.draw_estimate(axis, estimate, y + offset, colour, label)
        for label, (low, high) in panel.bands.items():
            axis.axvspan(low, high, color="0.9", zorder=-1, label=label)
        for (label, x), style in zip(
            panel.baselines.items(), ("--", ":"), strict=False
        ):
            axis.axvline(x, color="0.3", linestyle=style, label=label)
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel=panel.xlabel)
        axis.margins(y=0.2)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
        if shared_log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].invert_yaxis()
    plots.save(figure, run, name)


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
    whole = Comparison("perplexity", [TEST, KNOWN], ngrams)
    bands = {}
    if (estimate := result.get(f"{bag}: {ORDERS[0]}")) is not None:
        bands[f"{bag} ± 5 %"] = 0.95 * estimate.mean, 1.05 * estimate.mean
    alone = Comparison(f"perplexity from {context} words alone", ORDERS, bands=bands)
    save_comparison(
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
    panel = plots.Panel(
        "LSTM", "epoch", "loss [bits per character]", lines, levels=levels
    )
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

    figure, axes = plots.subplots(2, 2, figsize=(13, 11))
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
        axis.set_xticks(range(len(sounds)), sounds, rotation=90, fontsize=8)
        written = [*text.replace(" ", "_"), "(end)"]
        axis.set_yticks(range(len(written)), written, fontsize=8)
        axis.set(xlabel="character read", ylabel="character written")
        title = text if text == pair.target else f"{text}\nright: {pair.target}"
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
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
