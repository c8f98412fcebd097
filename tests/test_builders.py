"""TFDS builders on tiny data: prepared, read back, and no TensorFlow anywhere."""

import copy
import dataclasses
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxstudy.data import fetch
from jaxstudy.data.builders import prepare
from jaxstudy.data.sources import MissingData, Source, folder_sha256
from jaxstudy.images import sets
from jaxstudy.images.decoding import decode, pixels
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.images.sets import Images, RecordImages, read_images
from jaxstudy.types import UserError
from tests.conftest import ROOT, Patch, Said
from tests.test_images import idx
from tests.test_layers import MODULES

Prepared = tuple[Path, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def patch() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        yield patched


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory, patch: Any) -> Prepared:
    """Twelve and five images, as IDX files and as records."""
    folder = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 12), ("t10k", 5)):
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28))
        arrays[f"{split}-labels-idx1-ubyte"] = rng.integers(0, 10, n)
    files = {}
    for name, array in arrays.items():
        content = idx(array.astype(np.uint8))
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files[name] = Source(folder / name, digest, "", "make data")
    patch.setattr(sets, "FASHION_MNIST", files)
    prepare("fashion_mnist", folder / "tfds")
    return folder / "tfds", arrays


CODES = [f"{0x1F600 + i:x}" for i in range(10)]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory, patch: Any) -> Prepared:
    """Two categories of ten drawings by each vendor, in each of the modes of PNG."""
    folder = tmp_path_factory.mktemp("emoji")
    rng = np.random.default_rng(1)
    drawn = {}
    for i, code in enumerate(CODES):
        for category in ("Food & Drink", "Flags"):
            for vendor in ("google", "twitter"):
                path = f"{category}/{vendor}-{code}{'f' * (category == 'Flags')}.png"
                (folder / "emoji" / category).mkdir(parents=True, exist_ok=True)
                rgba = rng.integers(0, 256, (64, 64, 4)).astype(np.uint8)
                rgba[..., 3] = 255 * (rgba[..., 3] > 99)
                image = Image.fromarray(rgba).convert(("RGBA", "LA", "P", "RGB")[i % 4])
                image.save(folder / "emoji" / path)
                content = (folder / "emoji" / path).read_bytes()
                drawn[path] = pixels(decode(content), (64, 64), 3)
    digest = folder_sha256(folder / "emoji")
    source = Source(folder / "emoji", digest, "a licence", "make data")
    patch.setattr(sets, "EMOJI_FOLDERS", source)
    recipe = dataclasses.replace(sets.IMAGE_SETS["emoji"], sources=(source,))
    patch.setitem(sets.IMAGE_SETS, "emoji", recipe)
    prepare("emoji", folder / "tfds")
    return folder / "tfds", drawn


def test_fashion_comes_back_in_order(fashion: Prepared) -> None:
    data_dir, arrays = fashion
    found = read_images("tfds:fashion_mnist", data_dir=data_dir)
    direct = read_images("fashion_mnist")
    assert found.classes == direct.classes
    assert list(found.splits) == list(direct.splits) == ["train", "test"]
    for split, name in (("train", "train"), ("test", "t10k")):
        for got in (found.splits[split], direct.splits[split]):
            assert isinstance(got, Images)
            want = arrays[f"{name}-images-idx3-ubyte"][..., None]
            np.testing.assert_array_equal(got.x, want)
            np.testing.assert_array_equal(got.y, arrays[f"{name}-labels-idx1-ubyte"])
            assert (got.x.dtype, got.y.dtype) == (np.uint8, np.int32)


def test_emoji_come_back_with_their_splits_and_groups(emoji: Prepared) -> None:
    data_dir, drawn = emoji
    found = read_images("emoji", data_dir=data_dir)
    assert found.classes == ("Flags", "Food & Drink")
    for split, paths in emoji_splits(drawn).items():
        got = found.splits[split]
        assert isinstance(got, Images)
        assert len(got.x) == len(paths) == {"train": 24}.get(split, 8)
        np.testing.assert_array_equal(got.x, [drawn[path] for path in paths])
        labels = [found.classes[label] for label in got.y]
        assert labels == [path.partition("/")[0] for path in paths]
        records = tfds.data_source("emoji", split=split, data_dir=data_dir)
        groups = [record["group"].decode() for record in records]  # type: ignore
        assert groups == [emoji_group(Path(path)) for path in paths]


def test_the_description_has_licences_and_counts(emoji: Prepared) -> None:
    data_dir, _ = emoji
    text = tfds.builder("emoji", data_dir=data_dir).info.description
    for part in ("Apache License 2.0", "CC-BY 4.0", "Twemoji, copyright Twitter"):
        assert part in text
    assert "'train': {'Flags': 12, 'Food & Drink': 12}" in text


def test_records_are_sealed(emoji: Prepared, tmp_path: Path) -> None:
    data_dir, _ = emoji
    with pytest.raises(MissingData, match="this brings it: make data"):
        read_images("emoji", data_dir=tmp_path)
    record = next((data_dir / "emoji" / "1.0.0").glob("*test.array_record*"))
    content = record.read_bytes()
    record.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(MissingData, match=r"damaged.*this brings it: make data"):
            read_images("emoji", data_dir=data_dir)
    finally:
        record.write_bytes(content)


def test_changed_folders_are_not_prepared(
    emoji: Prepared, tmp_path: Path, monkeypatch: Patch
) -> None:
    wrong = dataclasses.replace(sets.EMOJI_FOLDERS, sha256="0" * 64)
    monkeypatch.setattr(sets, "EMOJI_FOLDERS", wrong)
    with pytest.raises(MissingData, match="make data"):
        prepare("emoji", tmp_path)


def test_an_image_set_is_one_entry(
    tmp_path: Path, monkeypatch: Patch, capfd: Said
) -> None:
    """Fetching, preparing, sealing, reading and messages find it by its name."""
    (tmp_path / "toy").write_bytes(b"made from this")
    digest = hashlib.sha256(b"made from this").hexdigest()
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    splits = {
        split: [
            {"image": Image.fromarray(image + i), "label": i % 2, "note": "x"}
            for i in range(count)
        ]
        for split, count in (("train", 5), ("test", 2))
    }
    toy = sets.Recipe(
        "2.0.0",
        (Source(tmp_path / "toy", digest, "", "make data"),),
        ("Moby Dick",),
        lambda: sets.Examples("A toy.", splits, (4, 4, 3), ("a", "b"), {"note": None}),
    )
    monkeypatch.setitem(sets.IMAGE_SETS, "toy", toy)
    step = fetch.all_steps()[-1]
    assert (step.title, step.needs) == ("toy for TFDS", ("Moby Dick",))
    with pytest.raises(UserError, match=r"emoji, toy and tfds:NAME.*mean 'toy'\?"):
        read_images("toi", data_dir=tmp_path)

    step = fetch.records_step("toy", tmp_path / "tfds")
    with pytest.raises(MissingData, match=r"toy is missing.*make data"):
        read_images("toy", data_dir=tmp_path / "tfds")
    assert fetch.fetch([step], tmp_path / "data") == {}
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")  # nothing of TFDS
    found = read_images("toy", data_dir=tmp_path / "tfds")
    assert found.classes == ("a", "b")
    train, test = found.splits["train"], found.splits["test"]
    assert isinstance(train, Images)
    assert isinstance(test, Images)
    np.testing.assert_array_equal(train.x, [image + i for i in range(5)])
    assert train.y.tolist() == [0, 1, 0, 1, 0]
    assert len(test.x) == 2
    assert len(tfds.data_source("toy", split="test", data_dir=tmp_path / "tfds")) == 2
    monkeypatch.setitem(
        sets.IMAGE_SETS, "toy", dataclasses.replace(toy, version="2.0.1")
    )
    with pytest.raises(MissingData, match="out of date"):
        read_images("toy", data_dir=tmp_path / "tfds")


# ------------------------------------------------------------------ one by one


@pytest.mark.parametrize("form", [((64, 64), 3), ((20, 30), 1)])
def test_a_large_split_is_read_one_by_one(emoji: Prepared, form: Any) -> None:
    data_dir, _ = emoji
    size, channels = form
    bound = 8 * size[0] * size[1] * channels  # of validation and test
    found = read_images(
        "emoji", data_dir=data_dir, image_size=size, channels=channels,
        resident_bytes=bound,
    )  # fmt: skip
    whole = read_images("emoji", data_dir=data_dir, image_size=size, channels=channels)
    assert isinstance(found.splits["test"], Images)
    source, want = found.splits["train"], whole.splits["train"]
    assert isinstance(source, RecordImages)
    assert isinstance(want, Images)
    assert source.nbytes == want.x.nbytes
    copies = [copy.deepcopy(source)]  # by the same methods as pickle
    assert source[0]["y"] == want.y[0]
    # opened, it still is only its settings
    assert set(source.__getstate__()) == {f.name for f in dataclasses.fields(source)}
    copies.append(copy.deepcopy(source))
    for opened in (source, *copies):
        assert len(opened) == 24
        for i in (0, 23, -1, 5):
            item = opened[i]
            np.testing.assert_array_equal(item["x"], want.x[i])
            assert (item["y"], item["y"].dtype) == (want.y[i], np.int32)
        items = opened.__getitems__([7, 2, 7])
        np.testing.assert_array_equal([i["x"] for i in items], want.x[[7, 2, 7]])
        for i in (24, -25):
            with pytest.raises(IndexError):
                opened[i]


def test_damage_is_found_while_reading(fashion: Prepared, tmp_path: Path) -> None:
    record = next(fashion[0].glob("fashion_mnist/3.0.1/*test.array_record*"))
    content = record.read_bytes()
    source: Any = read_images(
        "tfds:fashion_mnist", data_dir=fashion[0], resident_bytes=1
    ).splits["test"]
    with pytest.raises(UserError, match="'test' has images without label"):
        source.item({**source.records([0])[0], "label": -1})
    try:
        middle = bytearray(content)
        middle[200] ^= 1
        for damaged in (bytes(middle), content[:-3000], b""):
            record.write_bytes(damaged)
            fresh = copy.deepcopy(source)
            with pytest.raises(UserError, match=r"fashion_mnist/3\.0\.1 is damaged"):
                fresh.__getitems__(range(5))
    finally:
        record.write_bytes(content)


# ------------------------------------------------------------------ other sets


class Varied(tfds.core.GeneratorBasedBuilder):
    """Images of several sizes, and an image and a class more than are meant."""

    name = "jaxstudy_varied"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=["dark", "light"])
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "mask": tfds.features.Image(shape=(None, None, 1)),
                    "photo": tfds.features.Image(encoding_format="jpeg"),
                    "kind": label,
                    "other": label,
                }
            ),
            supervised_keys=("photo", "kind"),
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"every": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i in range(6):
            file = io.BytesIO()
            Image.new("RGB", (30, 20 + i), (0, 100 + i, 255 * (i % 2))).save(
                file, "JPEG"
            )
            mask = io.BytesIO()
            Image.new("L", (30, 20 + i)).save(mask, "PNG")
            coded = {"mask": mask.getvalue(), "photo": file.getvalue()}
            yield i, {**coded, "kind": i % 2, "other": 0}


def test_a_set_is_prepared_where_it_is_not(tmp_path: Path, capsys: Said) -> None:
    """Registered with TFDS, as its own are; with images of several sizes."""
    with pytest.raises(UserError, match="several sizes"):
        read_images("tfds:jaxstudy_varied", data_dir=tmp_path)
    found = read_images("tfds:jaxstudy_varied", data_dir=tmp_path, image_size=(8, 9))
    assert found.classes == ("dark", "light")
    got = found.splits["every"]
    assert isinstance(got, Images)
    assert got.x.shape == (6, 8, 9, 3)
    assert set(got.x[:, 0, 0, 1] // 10) == {10}  # green, in each
    np.testing.assert_array_equal(got.x[..., 2].min((1, 2)) > 128, got.y == 1)
    assert sorted(got.y) == [0, 0, 0, 1, 1, 1]
    assert capsys.readouterr().out == ""
    again = read_images(
        "tfds:jaxstudy_varied:1.0.0", data_dir=tmp_path, image_size=(8, 9)
    )
    np.testing.assert_array_equal(got.x, again.splits["every"].x)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("oxford_iiit_pet", ("image", "label")),  # beside a mask and the species
        ("caltech_birds2011", ("image", "label")),  # beside a mask
        ("smallnorb", ("image", "label_category")),  # of two images and five labels
        ("dtd", ("image", "label")),  # has no supervised_keys
    ],
)
def test_of_several_features_it_is_those_of_the_supervised_keys(
    name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    assert sets._image_and_label(sets._tfds_builder(name, tmp_path)) == keys


REFUSED = [
    ("fashon_mnist", r"not 'fashon_mnist'; did you mean 'fashion_mnist'\?"),
    (
        "tfds:emojis",
        r"no data set 'emojis', and in .* are emoji; did you mean 'emoji'",
    ),
    ("tfds:mnits", r"did you mean 'mnist'\?"),
    ("tfds:emoji:7.0.0", r"no data set 'emoji:7\.0\.0', and in .* are emoji$"),
    ("tfds:../emoji", "are image sets, not"),
    ("tfds:huggingface:mnist", "are image sets, not"),
    ("tfds:", "are image sets, not"),
    ("tfds:titanic", "needs TensorFlow, which this project does without"),
    ("tfds:imdb_reviews", r"it has text \(Text\), label \(ClassLabel\)$"),
    ("tfds:celeb_a", r"it has image \(Image\), landmarks"),
    ("tfds:diabetic_retinopathy_detection/none", "TFDS"),
]


def test_other_names_and_forms_are_refused(emoji: Prepared) -> None:
    for spec, reason in REFUSED:
        with pytest.raises(UserError, match=reason):
            read_images(spec, data_dir=emoji[0])
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        read_images("fashion_mnist", channels=4)
    with pytest.raises(UserError, match=r"not \(0, 8\)"):
        read_images("fashion_mnist", image_size=(0, 8))


def test_without_a_network(tmp_path: Path, monkeypatch: Patch) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(sets.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(sets.urllib.request, "getproxies", dict)
    with pytest.raises(
        MissingData, match=r"mnist is not prepared in .*cannot be reached"
    ):
        read_images("tfds:mnist", data_dir=tmp_path)


def test_a_download_that_fails(tmp_path: Path, monkeypatch: Patch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the server says no\nand more")

    monkeypatch.setattr(Varied, "_generate_examples", fail)
    with pytest.raises(MissingData, match="TFDS cannot prepare jaxstudy_varied"):
        read_images("tfds:jaxstudy_varied", data_dir=tmp_path, image_size=(8, 9))


def test_no_tensorflow_no_tfds_unless_asked_and_nobodys_hooks(emoji: Prepared) -> None:
    """In a process of its own: Keras, in others, may import what it finds.

    Whoever imports any module keeps their own hooks, and the backend of figures.
    """
    own = [n for n in MODULES if n != "__main__" and not n.startswith("experiments")]
    names = ", ".join(f"jaxstudy.{name}".rstrip(".") for name in own)
    code = f"""
import logging, signal, sys
from pathlib import Path

def seen():
    filters = [logging.getLogger(name).filters for name in ("absl", "asyncio")]
    return sys.unraisablehook, sys.excepthook, signal.getsignal(2), str(filters)

before = seen()
import jaxstudy.__main__
from jaxstudy.images.sets import read_images
assert 'tensorflow_datasets' not in sys.modules
found = read_images('tfds:emoji', data_dir=Path({str(emoji[0])!r}))
assert len(found.splits['train'].y) == 24
import {names}
assert 'tensorflow_datasets' in sys.modules
assert 'tensorflow' not in sys.modules
assert 'matplotlib.pyplot' not in sys.modules
assert seen() == before, seen()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
