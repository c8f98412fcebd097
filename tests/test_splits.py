"""An image set as three: disjoint, exhaustive, the same every time."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.dataset import Dataset
from jaxstudy.images.sets import Images, ImageSet
from jaxstudy.images.splits import (
    ImageSplits,
    image_splits,
    nested_subsets,
    sizes_at_most,
)
from jaxstudy.streaming import StreamedDataset
from jaxstudy.types import UserError
from tests.conftest import Said


def images(n: int, begin: int = 0) -> Images:
    """Images that are known by their label."""
    return Images(np.zeros((n, 4, 5, 3), np.uint8), np.arange(begin, begin + n))


def labels(splits: ImageSplits) -> dict[str, list[int]]:
    found = {}
    for name in ("train", "validation", "test"):
        data = getattr(splits, name)
        found[name] = np.asarray(data.arrays["y"])[np.asarray(data.indices)].tolist()
    return found


@settings(deadline=None, max_examples=10)
@given(n=st.integers(26, 200), limit=st.integers(1, 15), more=st.integers(0, 5))
def test_what_is_missing_is_drawn_from_train(n: int, limit: int, more: int) -> None:
    whole = ImageSet({"train": images(n)}, ("a",))
    found = labels(image_splits(whole))
    assert sorted(itertools.chain(*found.values())) == list(range(n))
    assert abs(len(found["test"]) - n / 10) <= 1
    assert labels(image_splits(whole)) == found
    few = labels(image_splits(whole, limit=limit))
    assert len(few["train"]) == limit
    assert set(few["train"]) <= set(
        labels(image_splits(whole, limit=limit + more))["train"]
    )
    assert {n: few[n] for n in ("validation", "test")} == {
        n: found[n] for n in ("validation", "test")
    }


def test_splits_that_there_are_stay_as_they_are() -> None:
    sets = {"train": images(20), "validation": images(5, 20), "test": images(6, 25)}
    found = labels(image_splits(ImageSet(sets, ("a",))))
    assert found == {n: s.y.tolist() for n, s in sets.items()}


def test_the_shape_has_channels_also_where_the_images_have_none() -> None:
    grey = Images(np.zeros((30, 4, 5), np.uint8), np.zeros(30, np.int32))
    splits = image_splits(ImageSet({"train": grey}, ("a",)))
    assert splits.shape == (4, 5, 1)
    assert splits.train.arrays["x"].shape == (30, 4, 5, 1)  # type: ignore[union-attr]


class Few:
    """A source of three images."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return {"x": np.zeros((4, 5, 3), np.uint8), "y": np.int32(row)}


def test_a_source_is_streamed() -> None:
    whole: Any = ImageSet({"train": Few(), "test": images(4)}, ("a",))  # type: ignore[dict-item]
    splits = image_splits(whole, limit=10)
    assert isinstance(splits.train, StreamedDataset)
    assert isinstance(splits.validation, StreamedDataset)
    assert splits.shape == (4, 5, 3)
    rows = [
        set(np.asarray(d.indices).tolist()) for d in (splits.train, splits.validation)
    ]
    assert not rows[0] & rows[1]


def test_a_limit_is_at_most_what_there_is_and_that_is_said(capsys: Said) -> None:
    whole = ImageSet({"train": images(30)}, ("a",))
    assert labels(image_splits(whole, limit=24)) == labels(image_splits(whole))
    assert capsys.readouterr().err == ""
    assert labels(image_splits(whole, limit=25)) == labels(image_splits(whole))
    said = "--images 25: there are only 24 images to train on, so it is 24"
    assert capsys.readouterr().err == f"warning: {said}\n"


@pytest.mark.parametrize("n", [6, 12, 15])
def test_few_images_leave_two_to_validate_and_two_to_test(n: int) -> None:
    found = labels(image_splits(ImageSet({"train": images(n)}, ("a",))))
    assert sorted(itertools.chain(*found.values())) == list(range(n))
    assert len(found["validation"]) == len(found["test"]) == 2


def test_sizes_are_at_most_what_there_is_and_that_is_said(capsys: Said) -> None:
    assert sizes_at_most((20, 144, 60), 144) == (20, 144, 60)
    assert capsys.readouterr().err == ""
    assert sizes_at_most((600, 150, 60, 2286), 144) == (144, 60)
    said = "--sizes 2286: there are only 144 images to train on, so it is 144"
    assert capsys.readouterr().err == f"warning: {said}\n"


def test_what_cannot_be_split_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'train', only test"):
        image_splits(ImageSet({"test": images(4)}, ("a",)))
    with pytest.raises(UserError, match="5 images to train on cannot be split"):
        image_splits(ImageSet({"train": images(5)}, ("a",)))


@given(
    there=st.integers(1, 50),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_smaller_training_sets_are_within_larger_ones(
    there: int, sizes: list[int], seed: int
) -> None:
    rows = 2 * np.arange(there)  # not all of the arrays belong to the set
    train = Dataset(rows, np.ones(there, bool), {})  # type: ignore[arg-type]
    sizes = [min(size, there) for size in sizes]
    drawn = nested_subsets(train, sizes, 3, seed)
    assert drawn.shape == (len(sizes), 3, max(sizes))
    for number in range(3):
        sets = {}
        for size, each in zip(sizes, drawn[:, number], strict=True):
            images, times = np.unique(each, return_counts=True)
            assert len(images) == size
            assert np.isin(images, rows).all()
            assert np.ptp(times) <= 1  # all as often, but for the last round
            sets[size] = set(images.tolist())
        nested = [sets[size] for size in sorted(sets)]
        assert all(a <= b for a, b in itertools.pairwise(nested))
