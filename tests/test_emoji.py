"""Emoji: the rule that labels them, what counts as the same, and their splits."""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.data.sources import EMOJI_FOLDERS
from jaxstudy.images import emoji
from jaxstudy.images.decoding import decode
from jaxstudy.images.emoji import SHARES, emoji_group, emoji_label, emoji_splits
from tests.conftest import Patch

TABLE = [
    {"image": "1f600.png", "category": "Smileys & Emotion"},
    {
        "image": "1f385.png",
        "category": "People & Body",
        "skin_variations": {"1F3FB": {"image": "1f385-1f3fb.png"}},
    },
    {"image": "1f3fb.png", "category": "Component"},
]


def test_the_rule_leaves_skin_tones_out(tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "emoji.json"
    path.write_text(json.dumps(TABLE))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    table = dataclasses.replace(emoji.EMOJI_TABLE, path=path, sha256=digest)
    monkeypatch.setattr(emoji, "EMOJI_TABLE", table)
    emoji._categories.cache_clear()
    names = ("google-1f600", "twitter-1f385", "google-1f385-1f3fb", "google-1f3fb", "x")
    got = [emoji_label(Path(f"{name}.png")) for name in names]
    emoji._categories.cache_clear()
    assert got == ["Smileys & Emotion", "People & Body", None, None, None]


GROUPS = (
    # running: person, woman, man, to the right, with a skin tone
    "1f3c3 1f3c3-200d-2640-fe0f 1f3c3-200d-2642-fe0f 1f3c3-200d-27a1-fe0f "
    "1f3c3-1f3fd-200d-2642-fe0f",
    "1f468-200d-1f692 1f469-200d-1f692 1f9d1-200d-1f692",  # who fights fires
    "1f46a 1f468-200d-1f469-200d-1f466 1f9d1-200d-1f9d1-200d-1f9d2",  # families
    "1f1f3-1f1f4 1f1e7-1f1fb",  # Norway, Bouvet Island
    *["1f600", "1f603", "2640-fe0f", "2642-fe0f", "27a1-fe0f", "1f468", "1f466"],
)


def test_near_copies_are_one_group_and_others_are_not() -> None:
    groups = [
        {emoji_group(Path(f"{v}-{c}.png")) for c in codes.split() for v in "ab"}
        for codes in GROUPS
    ]
    assert {len(found) for found in groups} == {1}
    assert len(set().union(*groups)) == len(GROUPS)


PATHS = st.sets(
    st.builds(
        "{}/{}-{:x}.png".format,
        st.sampled_from(["a", "b & c"]),
        st.sampled_from(["google", "twitter"]),
        st.integers(0x1F600, 0x1F640),
    ),
    min_size=1,
)


@given(PATHS, st.randoms())
def test_splits_are_disjoint_exhaustive_and_the_same_in_any_order(
    paths: set[str], random: st.randoms  # type: ignore[valid-type]
) -> None:  # fmt: skip
    splits = emoji_splits(paths)
    shuffled = list(paths)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert emoji_splits(shuffled) == splits
    assert sorted(itertools.chain(*splits.values())) == sorted(paths)
    homes = defaultdict(set)
    for split, found in splits.items():
        for path in found:
            category = path.partition("/")[0]
            homes[category, emoji_group(Path(path))].add(split)
    assert all(len(found) == 1 for found in homes.values())
    for category in ("a", "b & c"):
        mine = [path for path in paths if path.startswith(category)]
        for split, share in SHARES.items():
            n = sum(path.startswith(category) for path in splits[split])
            assert abs(n - share * len(mine)) <= 2  # a group: two vendors


def test_the_split_is_the_same_on_every_machine() -> None:
    """Ranked by SHA-256 of the group: here, that of the code's digits."""
    codes = sorted(
        (f"{code:x}" for code in range(10, 20)),
        key=lambda code: hashlib.sha256(code.encode()).hexdigest(),
    )
    splits = emoji_splits(f"a/google-{code}.png" for code in codes)
    # in this order each goes where most is lacking of 6, 2 and 2
    order = ["train"] * 4 + ["train", "validation", "test"] * 2
    want: dict[str, set[str]] = {split: set() for split in SHARES}
    for code, split in zip(codes, order, strict=True):
        want[split].add(f"a/google-{code}.png")
    assert {split: set(found) for split, found in splits.items()} == want


@pytest.mark.skipif(
    not EMOJI_FOLDERS.path.exists(), reason="`make data` brings the emoji"
)
def test_the_real_emoji() -> None:
    """No two groups hold the same picture; the splits are as documented."""
    paths = [
        p.relative_to(EMOJI_FOLDERS.path) for p in EMOJI_FOLDERS.path.rglob("*.png")
    ]
    groups = defaultdict(set)
    for path in paths:
        image = decode((EMOJI_FOLDERS.path / path).read_bytes())
        groups[image.tobytes()].add(emoji_group(path))
    assert {len(found) for found in groups.values()} == {1}
    splits = emoji_splits(map(str, paths))
    assert {split: len(found) for split, found in splits.items()} == {
        "train": 2286, "validation": 764, "test": 762,
    }  # fmt: skip
    counts = Counter(path.parts[0] for path in paths)
    assert len(counts) == 9
    assert max(counts.values()) / len(paths) == pytest.approx(0.2025, abs=1e-4)
