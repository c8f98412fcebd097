"""Bits that held-out tunes take: by a network, an n-gram model, PPMd and `xz`."""

import lzma
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyppmd

from jaxstudy.model import Model
from jaxstudy.runs.statistics import REAL, Estimate, mean_over_cases
from jaxstudy.text.abc import TUNE_END, Tunes, joined
from jaxstudy.text.ngram import best_ngram, sequence_bits
from jaxstudy.text.vocabulary import Vocabulary
from jaxstudy.types import Array, PyTree

PPMD_ORDERS = (4, 6, 8, 10, 12, 16, 24)  # longest contexts to choose from
ROWS, STEP = 64, 256  # of a batch; its width is a multiple of STEP: few programs


def network_bits(
    model: Model, params: PyTree, sequences: Sequence[np.ndarray]
) -> np.ndarray:
    """-log2 p of sequences of symbols [n], all but the first: [replicas, N].

    Each sequence begins with zero states. params [replicas, ...].
    """

    @jax.jit
    def score(params: PyTree, x: Array, y: Array) -> Array:
        def replica_bits(params: PyTree) -> Array:
            logits, _ = model.apply(params, {}, x, train=False, key=None)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.sum(nats * (y >= 0), axis=-1) / math.log(2)

        return jax.lax.map(replica_bits, params)

    by_length = np.argsort([len(numbers) for numbers in sequences], kind="stable")
    bits = np.zeros((len(jax.tree.leaves(params)[0]), len(sequences)))
    for rows in np.split(by_length, range(ROWS, len(sequences), ROWS)):
        width = max(len(sequences[i]) - 1 for i in rows)
        width += -width % STEP
        x, y = np.zeros((ROWS, width), np.int32), np.full((ROWS, width), -1)
        for row, i in enumerate(map(int, rows)):
            x[row, : len(sequences[i]) - 1] = sequences[i][:-1]
            y[row, : len(sequences[i]) - 1] = sequences[i][1:]
        bits[:, rows] = score(params, x, y)[:, : len(rows)]
    return bits


def xz_bits(text: str, before: str = "") -> int:
    """Bits that a text takes in `xz -9e`, after another has been compressed."""

    def size(text: str) -> int:
        preset = 9 | lzma.PRESET_EXTREME
        return 8 * len(lzma.compress(text.encode(), preset=preset))

    return size(before + text) - (size(before) if before else 0)


def ppmd_bits(text: str, before: str, order: int) -> int:
    """Bits that a text takes in PPMd, variant H, after another has been compressed.

    Prediction by partial matching (Cleary and Witten 1984; Shkarin 2002): contexts of
    up to `order` characters, mixed, which go on learning from the text itself.
    """

    def size(text: str) -> int:
        limits = {"max_order": order, "mem_size": 2**28}
        return 8 * len(pyppmd.compress(text.encode(), **limits, variant="H"))

    return size(before + text) - size(before)


def bits_per_character(bits: np.ndarray, characters: np.ndarray) -> Estimate:
    """All bits [tunes] over all characters [tunes]; the interval is over the tunes.

    Tunes differ in length: to first order, a ratio r of sums varies as the mean of
    r + (bits - r characters) / (mean characters).
    """
    ratio = bits.sum() / characters.sum()
    values = ratio + (bits - ratio * characters) / characters.mean()
    return mean_over_cases(values, "tunes", REAL)


def compare_bits(
    model: Model,
    params: PyTree,
    vocabulary: Vocabulary,
    tunes: Tunes,
    orders: Sequence[int],
) -> dict[str, Estimate | float]:
    """A network, the best n-gram model, PPMd and `xz` on held-out tunes.

    params [seeds, ...]: the network's bits of a tune are the mean over the seeds. The
    orders of the n-gram model and of PPMd are those with the fewest bits on the
    validation tunes.
    """

    def encode(tunes: Sequence[str], begin: str = "") -> list[np.ndarray]:
        texts = [begin + tune + TUNE_END for tune in tunes]
        return [vocabulary.encode(text, allow_unknown=True) for text in texts]

    train, validation = encode(tunes.train), encode(tunes.validation)
    ngram = best_ngram(train, validation, len(vocabulary), orders)
    every = encode(tunes.validation + tunes.test, TUNE_END)
    of_seeds = network_bits(model, params, every)
    of_network = np.split(of_seeds.mean(0), [len(tunes.validation)])
    learned, chooses = joined(tunes.train), joined(tunes.validation)
    ppmd = min(PPMD_ORDERS, key=lambda order: ppmd_bits(chooses, learned, order))
    metrics: dict[str, Estimate | float] = {
        "n-gram: n": float(ngram.order),
        "PPMd: order": float(ppmd),
    }
    for split, its_bits in zip(("validation", "test"), of_network, strict=True):
        held_out, metric = getattr(tunes, split), f"{split} bits per character"
        ngram_bits = sequence_bits(ngram, encode(held_out))
        characters = np.array([len(tune) + 1 for tune in held_out])
        for name, bits in (
            ("network", its_bits),
            ("n-gram", ngram_bits),
            ("network - n-gram", its_bits - ngram_bits),
        ):
            metrics[f"{name}: {metric}"] = bits_per_character(bits, characters)
        text = joined(held_out)
        metrics[f"PPMd: {metric}"] = ppmd_bits(text, learned, ppmd) / len(text)
        metrics[f"xz -9: {metric}"] = xz_bits(text, learned) / len(text)
        metrics[f"xz -9, held-out tunes alone: {metric}"] = xz_bits(text) / len(text)
    return metrics
