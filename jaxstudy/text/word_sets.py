"""What networks learn the next word from, and are evaluated on, with a baseline."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxstudy.dataset import Dataset, evenly_spaced
from jaxstudy.text.ngram import best_ngram, perplexity
from jaxstudy.text.windows import passage_windows, shuffled_contexts, without_target

WordNumbers = Mapping[str, Sequence[np.ndarray]]  # passages of each split

TRAIN, VALIDATION, TEST = "train", "validation perplexity", "test perplexity"
KNOWN = "test perplexity of known words"
ORDERS = ("perplexity, context in order", "perplexity, context shuffled")


def word_sets(
    numbers: WordNumbers, *, context: int, window: int, start: int, asked: int
) -> dict[str, dict[str, Dataset]]:
    """Sets of words to predict, by the name of what is measured on them.

    "windows": rows of `window` words in a row, and for evaluation also the words that
    are not 0, and `asked` words after `context` words alone, in order and shuffled;
    "in order" and "shuffled": all rows of one word after `context` words. In training
    these are in order: `with_shuffled_contexts` shuffles them.
    """
    windows = {
        split: passage_windows(passages, context, window, start)
        for split, passages in numbers.items()
    }
    contexts = {
        split: shuffled_contexts(passages, context)
        for split, passages in numbers.items()
    }
    test = [evenly_spaced(data, asked) for data in contexts["test"]]
    orders = dict(zip(ORDERS, test, strict=True))
    sets = {
        TRAIN: windows["train"],
        VALIDATION: windows["validation"],
        TEST: windows["test"],
        KNOWN: without_target(windows["test"], 0),
    }
    controls = {
        kind: {TRAIN: contexts["train"][0], VALIDATION: held_out, order: orders[order]}
        for kind, held_out, order in zip(
            ("in order", "shuffled"), contexts["validation"], ORDERS, strict=True
        )
    }
    return {"windows": {**sets, **orders}, **controls}


def ngram_baseline(
    numbers: WordNumbers, vocabulary: int, orders: Iterable[int]
) -> dict[str, float]:
    """How many words there are, and the perplexities of the best n-gram model."""
    result = {}
    for split, passages in numbers.items():
        joined = np.concatenate(passages)
        result[f"{split}: words"] = float(len(joined))
        result[f"{split}: share of unknown words"] = float(np.mean(joined == 0))
    ngram = best_ngram(numbers["train"], numbers["validation"], vocabulary, orders)
    result["n-gram: order"] = float(ngram.order)
    result[f"n-gram: {VALIDATION}"] = perplexity(ngram, numbers["validation"])
    result[f"n-gram: {TEST}"] = perplexity(ngram, numbers["test"])
    result[f"n-gram: {KNOWN}"] = perplexity(ngram, numbers["test"], without=0)
    return result
