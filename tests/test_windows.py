"""Texts as rows: every symbol once, what comes before it, streams that go on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.text.windows import (
    parallel_streams,
    passage_windows,
    shuffled_contexts,
    windows,
)
from jaxstudy.types import UserError


@given(st.integers(1, 9), st.integers(2, 60))
def test_windows_are_the_text_and_its_next_symbol(length: int, n: int) -> None:
    text = np.arange(n)
    if n <= length:
        with pytest.raises(UserError, match="shorter than one window"):
            windows(text, length)
        return
    rows = windows(text, length)
    count = (n - 1) // length
    assert rows["x"].shape == rows["y"].shape == (count, length)
    np.testing.assert_array_equal(rows["x"].ravel(), text[: count * length])
    np.testing.assert_array_equal(rows["y"], rows["x"] + 1)


@pytest.mark.parametrize("length", [7, 41, 160, 161, 1000, 1003])
def test_a_batch_goes_on_where_each_stream_was_left(length: int) -> None:
    data = parallel_streams(np.arange(length), 4, 5)
    x, y = (np.asarray(data.arrays[name]) for name in ("x", "y"))
    assert np.array_equal(y, x + 1)
    batches = x.reshape(-1, 4, 5)
    assert np.array_equal(batches[1:, :, 0], batches[:-1, :, -1] + 1)
    steps = len(batches)
    assert steps % 8 == 0 or steps == (length - 1) // 5  # all that there is
    assert set(x.ravel().tolist()) == set(range(length - 1))
    assert steps <= 8 * np.ceil(length / 160)


def test_passages_predict_every_word_once_from_those_before() -> None:
    passages = [np.random.default_rng(n).integers(0, 7, n) for n in (1, 4, 5, 6, 13)]
    arrays = passage_windows(passages, 3, 5, start=7).arrays
    x, y, real = (np.asarray(arrays[name]) for name in ("x", "y", "real"))
    assert x.shape[1] == 3 - 1 + 5
    assert real.sum() == sum(map(len, passages))
    np.testing.assert_array_equal(y[real], np.concatenate(passages))
    before = [np.concatenate([[7] * 3, p])[i : i + 3]
              for p in passages for i in range(len(p))]  # fmt: skip
    contexts = np.lib.stride_tricks.sliding_window_view(x, 3, axis=1)
    np.testing.assert_array_equal(contexts[real], before)
    assert y.max() < 7  # no start is to be predicted


def test_shuffled_contexts_keep_words_and_answers() -> None:
    passages = [np.random.default_rng(n).integers(0, 7, n) for n in (2, 3, 40)]
    ordered, shuffled = (d.arrays for d in shuffled_contexts(passages, 3))
    rows = np.lib.stride_tricks.sliding_window_view(passages[2], 4)
    np.testing.assert_array_equal(ordered["x"], rows[:, :3])
    np.testing.assert_array_equal(np.sort(ordered["x"]), np.sort(shuffled["x"]))
    assert np.any(ordered["x"] != shuffled["x"])
    for arrays in (ordered, shuffled):
        np.testing.assert_array_equal(arrays["y"], rows[:, 3:])
    with pytest.raises(UserError, match="context 3: no passage"):
        shuffled_contexts(passages[:2], 3)
