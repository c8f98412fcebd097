"""The emoji: what their names say of category, likeness and split."""

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from jaxstudy.data.sources import EMOJI_TABLE, read_bytes

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def emoji_label(path: Path) -> str | None:
    """The category of VENDOR-CODE.png; None where it has a skin tone, or is one.

    A rule for `folders.sort_into_folders`. Each emoji of a person comes in six tones:
    kept, three of five images would be people.
    """
    return _categories().get(path.stem.partition("-")[2])


@functools.cache
def _categories() -> dict[str, str]:
    """The category of each emoji without skin tone, by code."""
    return {
        row["image"].removesuffix(".png"): row["category"]
        for row in json.loads(read_bytes(EMOJI_TABLE))
        if row["category"] != "Component"  # the five skin tones
    }


# Flags of territories that are another's, to the pixel.
_SAME_FLAG = {
    "1f1e8-1f1f5": "1f1eb-1f1f7",  # Clipperton: France
    "1f1f2-1f1eb": "1f1eb-1f1f7",  # Saint Martin
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # Bouvet: Norway
    "1f1f8-1f1ef": "1f1f3-1f1f4",  # Svalbard
    "1f1ea-1f1e6": "1f1ea-1f1f8",  # Ceuta: Spain
    "1f1ed-1f1f2": "1f1e6-1f1fa",  # Heard: Australia
    "1f1e9-1f1ec": "1f1ee-1f1f4",  # Diego Garcia: British Indian Ocean
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # US outlying islands
    "1f1e8-1f1f6": "1f1f8-1f1e6",  # Sark: as Google draws it, Saudi Arabia
}
_UNMARKED = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}
_TONES = {f"1f3f{tone}" for tone in "bcdef"}
_MARKS = _TONES | {"200d", "fe0f", "2640", "2642", "27a1"}  # joiner, style, sex, right
_FAMILY = "1f9d1-1f9d1-1f9d2"


def emoji_group(path: Path) -> str:
    """What VENDOR-CODE.png shows, whoever drew it: near-copies have the same group.

    Its code without skin tone, sex and direction: man, woman and person running are
    one group, families of as many are, and so are equal flags. An image to test on that
    belongs to a group trained on would be known already.
    """
    code = path.stem.partition("-")[2]
    first, *rest = code.split("-")
    parts = [first, *(part for part in rest if part not in _MARKS)]
    plain = "-".join(_UNMARKED.get(part, part) for part in parts)
    return {**_SAME_FLAG, "1f46a": _FAMILY}.get(plain, plain)


def emoji_splits(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths CATEGORY/FILE in "train", "validation" and "test", no group in two.

    Of each category about 60, 20 and 20 % of the images. A hash of the group orders the
    groups, so the split is the same wherever and whenever it is made.
    """
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(paths):
        groups[Path(path).parts[0]][emoji_group(Path(path))].append(path)
    splits: dict[str, list[str]] = {split: [] for split in SHARES}
    for members in groups.values():
        total = sum(map(len, members.values()))
        have: Counter[str] = Counter()
        for group in sorted(members, key=_rank):
            # the split that lacks most of its share
            split = max(SHARES, key=lambda s: SHARES[s] * total - have[s])
            splits[split] += members[group]
            have[split] += len(members[group])
    return {split: sorted(found) for split, found in splits.items()}


def _rank(group: str) -> bytes:
    return hashlib.sha256(group.encode()).digest()
