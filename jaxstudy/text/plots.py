"""Figures of the lessons on texts: perplexities, bits, piano rolls, attention."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxstudy.models.seq2seq import Seq2Seq
from jaxstudy.runs import plots
from jaxstudy.runs.run import Run
from jaxstudy.text.pairs import Pair
from jaxstudy.text.translation import Alphabets, decoder
from jaxstudy.text.tune_evaluation import notes_of
from jaxstudy.types import PyTree


def save_perplexities(
    run: Run,
    result: Mapping[str, Any],
    names: Sequence[str],
    orders: Sequence[str],
    context: int,
) -> None:
    """Test perplexities of networks and of the n-gram model, as perplexity.png.

    Beside them the metrics `orders`, from the words of a `context` alone.
    """
    figure, axes = plots.subplots(
        1, 2, figsize=(11, 0.9 + 0.55 * len(names)), sharey=True
    )
    for axis, metrics in zip(axes, (("test perplexity",), orders), strict=True):
        for metric, colour in zip(metrics, plots.COLOURS, strict=False):
            for y, name in enumerate(names):
                label = metric if y == 0 else None
                estimate = result[f"{name}: {metric}"]
                plots.draw_estimate(axis, estimate, y, colour, label)
        axis.set(yticks=range(len(names)), yticklabels=names)
        axis.margins(y=0.2)
        axis.grid(alpha=0.3)
    label = f"{result['n-gram: order']:.0f}-gram model"
    ngram = result["n-gram: test perplexity"]
    axes[0].axvline(ngram, color="0.3", linestyle="--", label=label)
    axes[0].set_xlabel("perplexity")
    axes[0].invert_yaxis()
    axes[1].set_xlabel(f"perplexity from {context} words alone")
    for axis in axes:
        axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    plots.save(figure, run, "perplexity")


def save_bits(run: Run, metrics: Mapping[str, Any]) -> None:
    """Bits per character by epoch as bits.png, beside what the baselines take.

    `metrics` are those of `compare_bits`; the run's only training logs "bits".
    """
    lines: dict[str, plots.Line] = {}
    for split in ("train", "validation"):
        epochs, bits, *_ = plots.curve(run.sub_runs[""].records, split, "bits").T
        lines[f"LSTM, {split}"] = epochs.tolist(), bits.tolist()
    ends = [0.0, max(lines["LSTM, train"][0])]
    ngram = metrics["n-gram: validation bits per character"].mean
    lines[f"{metrics['n-gram: n']:.0f}-gram"] = ends, [ngram, ngram]
    lines["xz -9"] = ends, [metrics["xz -9: validation bits per character"]] * 2
    panel = plots.Panel("validation tunes", "epoch", "loss [bits per character]", lines)
    plots.save_lines(run, "bits", [panel])


def save_piano_roll(run: Run, name: str, tunes: Sequence[str]) -> None:
    """Tunes below each other as NAME.png: pitch by time, a line an octave of C."""
    figure, axes = plots.subplots(
        len(tunes), 1, figsize=(11, 1.9 * len(tunes)), squeeze=False
    )
    for axis, tune in zip(axes[:, 0], tunes, strict=True):
        start, length, pitch = notes_of(tune).T
        axis.barh(pitch, 0.92 * length, left=start, height=0.9)
        octaves = np.arange(12 * (pitch.min() // 12), pitch.max() + 12, 12)
        axis.set_yticks(octaves, [f"C{int(c) // 12 - 1}" for c in octaves])
        axis.set_ylim(pitch.min() - 2, pitch.max() + 2)
        axis.set_xlim(0, (start + length).max())
        head = tune.partition("\n")[2].partition("\nK:")
        key = head[2].partition("\n")[0]
        axis.set_title(
            f"{head[0].replace(chr(10), '  ')}  K:{key}", fontsize=8, loc="left"
        )
        axis.grid(alpha=0.3)
    axes[-1][0].set_xlabel("quarter notes")
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
    figure, axes = plots.subplots(2, 2, figsize=(13, 11))
    for axis, pair in zip(axes.ravel(), examples, strict=True):
        arrays = alphabets.arrays([pair])
        x, lengths = map(jnp.asarray, (arrays["x"], arrays["x_length"]))
        tokens = np.asarray(decode(params, x, lengths).tokens[0, 0])
        text = alphabets.text(tokens)
        before = np.concatenate([[alphabets.end], tokens[: len(text)]])
        memory = network.encode(params, x, lengths)
        _, _, weights = network.decode(params, memory, jnp.asarray(before[None]))
        weights = np.asarray(weights[0, :, : len(pair.source)])
        axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        sounds = [romanised(character) for character in pair.source]
        axis.set_xticks(range(len(sounds)), sounds, rotation=90, fontsize=8)
        written = [*text.replace(" ", "_"), "(end)"]
        axis.set_yticks(range(len(written)), written, fontsize=8)
        title = text if text == pair.target else f"{text}\nright: {pair.target}"
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    plots.save(figure, run, name)
