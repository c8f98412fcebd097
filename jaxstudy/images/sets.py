"""Image sets by name: Fashion-MNIST, the emoji, and whatever TFDS has.

TFDS is imported only where its records are read: that takes a second.
"""

import contextlib
import functools
import gzip
import io
import logging
import math
import re
import socket
import sys
import urllib.parse
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxstudy.data.sources import (
    EMOJI,
    EMOJI_FOLDERS,
    FASHION_MNIST,
    TFDS,
    MissingData,
    Source,
    check_folder,
    check_records,
    read_bytes,
)
from jaxstudy.images.decoding import DecodeError, decode, pixels
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.images.folders import load_folder, warn_of_problems
from jaxstudy.messages import did_you_mean
from jaxstudy.types import UserError

_SEVERAL = "images of several sizes: give the one they are brought to"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Images(NamedTuple):
    """x uint8 [N, H, W, C], labels y int32 [N].

    Those of `read_fashion_mnist` lack the axis C.
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class RecordImages:
    """A split of a prepared TFDS set, decoded when asked for; it can be pickled.

    Item i is {"x": uint8 [H, W, C], "y": int32}, as row i of a split read at once.
    """

    folder: Path
    split: str
    length: int
    image: str  # the features' names
    label: str
    image_size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several items, which is twice as fast as one by one."""
        return [self.item(record) for record in self.records(indices)]

    @property
    def nbytes(self) -> int:
        """What all its pixels take in memory."""
        return len(self) * math.prod(self.image_size) * self.channels

    def records(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """All features of some examples, the image as a file's content.

        Raises IndexError where there is no such example, UserError where the records
        are damaged, which array_record proves by hashes of its own.
        """
        rows = [range(len(self))[index] for index in indices]
        try:
            return list(self._opened.__getitems__(rows))
        except Exception as error:  # what array_record and protobuf raise
            raise self._damaged(error) from error

    def item(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The image and label of one of `records`."""
        if record[self.label] < 0:
            raise UserError(f"{self.folder}: {self.split!r} has images without label")
        try:
            image = decode(record[self.image])
        except DecodeError as error:
            raise self._damaged(error) from error
        x = pixels(image, self.image_size, self.channels)
        return {"x": x, "y": np.int32(record[self.label])}

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.folder} is damaged ({_first(error)}); remove it, and `make data`, "
            "or reading it again, brings it"
        )

    @functools.cached_property
    def _opened(self) -> Any:
        import tensorflow_datasets as tfds

        with _quiet():
            builder: Any = tfds.builder_from_directory(self.folder)
            # decoded here: TFDS would take whichever decoder it finds installed
            encoded = {
                name: tfds.decode.SkipDecoding()
                for name, feature in builder.info.features.items()
                if type(feature) is tfds.features.Image
            }
            return builder.as_data_source(self.split, decoders=encoded)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ImageSet(NamedTuple):
    """Splits by name, in memory or to be read one by one, and the classes' names."""

    splits: Mapping[str, Images | RecordImages]
    classes: tuple[str, ...]


def read_idx(content: bytes, name: str | Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped.

    Two zero bytes, the type (8: unsigned byte), the number of axes, their lengths as
    big-endian 32-bit numbers, the values. Raises UserError where it is no such file.
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name} is no gzip file: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UserError(f"{name} is no IDX file of bytes: it begins with {raw[:4]!r}")
    axes = raw[3]
    begin = 4 + 4 * axes
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, begin, 4)]
    if len(raw) < begin or len(raw) - begin != math.prod(shape):
        raise UserError(
            f"{name} has {len(raw) - begin} values where its header says {shape}"
        )
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(shape)


def read_fashion_mnist() -> dict[str, Images]:
    """The 60,000 "train" and 10,000 "test" images of Fashion-MNIST, 28x28, 10 classes.

    Source: Xiao, Rasul and Vollgraf 2017. Raises UserError where the files are missing
    or have other content, with the command that brings them.
    """
    arrays = {
        name: read_idx(read_bytes(source), source.path)
        for name, source in FASHION_MNIST.items()
    }
    return {
        split: Images(
            arrays[f"{prefix}-images-idx3-ubyte"],
            arrays[f"{prefix}-labels-idx1-ubyte"].astype(np.int32),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


# ------------------------------------------------------------------ by name


class Examples(NamedTuple):
    """What the records of a set are made from.

    splits: by name, for each image its "image" (of PIL), "label" (a number or a name)
    and what else is kept of it.
    shape: (height, width, channels) of all images. more: the features besides image and
    label, as the names of classes, or None for a text.
    """

    description: str
    splits: Mapping[str, Iterable[Mapping[str, Any]]]
    shape: tuple[int, int, int]
    classes: Sequence[str]
    more: Mapping[str, Sequence[str] | None] = MappingProxyType({})


@dataclass(frozen=True)
class Recipe:
    """An image set of this project; whatever needs its name finds it in IMAGE_SETS.

    version: of its records. sources: what they are made from. needs: the titles of what
    `make data` brings before. examples: what the records hold. read: reads the set at
    an image size and number of channels without records, where there is a quicker way.
    """

    version: str
    sources: Sequence[Source]
    needs: tuple[str, ...]
    examples: Callable[[], Examples]
    read: Callable[[tuple[int, int] | None, int | None], ImageSet] | None = None

    def check(self, place: Path) -> None:
        """Raise MissingData unless its records lie in a folder as they should be."""
        check_records(place, self.version, self.sources)


def read_images(
    spec: str,
    folder: Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    resident_bytes: int = 2 << 30,
    data_dir: Path = TFDS,
) -> ImageSet:
    """An image-classification set by name, with the splits that it comes with.

    With a `folder`, FOLDER/CLASS/FILE, its images in the place of the set, as the split
    "train"; faulty ones are told.

    Those of IMAGE_SETS are read as they say, or from the records that `make data`
    prepares; "tfds:NAME" from those under `data_dir` or, where they are not there, from
    what TFDS downloads and prepares there. A split of more than `resident_bytes` of
    pixels comes as RecordImages.

    image_size (height, width): what images are brought to, by PIL's bilinear filter;
    it may be left out where all have one size. channels: 1 or 3, by default as they
    are; transparency becomes white.

    Raises UserError for another spec, for a set that does not have one image and one
    class as features, and where images of several sizes get no image_size; MissingData
    where there is no such data and it cannot be had.
    """
    if folder is not None:
        if image_size is None:
            raise UserError(f"{folder} has {_SEVERAL}")
        found = load_folder(folder, image_size=image_size, channels=channels or 3)
        warn_of_problems(found.audit)
        return ImageSet({"train": Images(found.x, found.y)}, found.classes)
    _check_form(image_size, channels)
    recipe = IMAGE_SETS.get(spec)
    if recipe and recipe.read:
        return recipe.read(image_size, channels)
    if recipe:
        recipe.check(data_dir / spec)
    builder = _tfds_builder(spec if recipe else _tfds_name(spec, data_dir), data_dir)
    with _quiet():
        image, label = _image_and_label(builder)
        shape = builder.info.features[image].shape
        prepared = builder.is_prepared()
    if image_size is None and None in shape[:2]:
        raise UserError(f"{spec} has {_SEVERAL}")
    if not prepared:  # only now: nothing is downloaded to be refused then
        _download(builder)
    splits: dict[str, Images | RecordImages] = {}
    for split, info in builder.info.splits.items():
        source = RecordImages(
            Path(builder.data_dir), str(split), info.num_examples, image, label,
            image_size or shape[:2], channels or (1 if shape[2] == 1 else 3),
        )  # fmt: skip
        resident = source.nbytes <= resident_bytes
        splits[str(split)] = _all_of(source) if resident else source
    return ImageSet(splits, tuple(builder.info.features[label].names))


def _check_form(image_size: tuple[int, int] | None, channels: int | None) -> None:
    if image_size is not None and min(image_size) < 1:
        raise UserError(f"an image size is 1 or more by 1 or more, not {image_size}")
    if channels not in (None, 1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")


def _all_of(source: RecordImages) -> Images:
    """A split in memory."""
    x = np.empty((len(source), *source.image_size, source.channels), np.uint8)
    y = np.empty(len(source), np.int32)
    for begin in range(0, len(source), 1024):
        rows = range(begin, min(begin + 1024, len(source)))
        for row, item in zip(rows, source.__getitems__(rows), strict=True):
            x[row], y[row] = item["x"], item["y"]
    return Images(x, y)


# ------------------------------------------------------------------ TFDS


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log of TFDS, which warns of what is usual."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tfds_name(spec: str, data_dir: Path) -> str:
    """The NAME of "tfds:NAME". Raises UserError, with a suggestion, for other specs."""
    kind, _, name = spec.partition(":")
    if kind == "tfds" and re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", name):
        return name
    known = (*IMAGE_SETS, *(f"tfds:{name}" for name in _local_names(data_dir)))
    raise UserError(
        f"{', '.join(IMAGE_SETS)} and tfds:NAME are image sets, not {spec!r}"
        + did_you_mean(spec, known)
    )


def _local_names(data_dir: Path) -> list[str]:
    """The sets that are prepared in a folder."""
    found = [  # NAME/VERSION and NAME/CONFIG/VERSION
        path.relative_to(data_dir).parts[0]
        for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json")
        for path in data_dir.glob(pattern)
    ]
    return sorted(set(found))


def _tfds_builder(name: str, data_dir: Path) -> Any:
    """The builder of a set, which need not be prepared yet."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        # it also prints, where a builder cannot do without TensorFlow
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except DatasetNotFoundError:
        local = _local_names(data_dir)
        known = [*tfds.list_builders(with_community_datasets=False), *local]
        short = re.split("[/:]", name)[0]
        raise UserError(
            f"TFDS has no data set {name!r}, and in {data_dir} are "
            f"{', '.join(local) or 'none'}"
            + ("" if short in known else did_you_mean(short, known))
        ) from None
    except Exception as error:  # what its thousand builders raise
        reason = (
            "it needs TensorFlow, which this project does without"
            if "No module named 'tensorflow'" in str(error)
            else _first(error)
        )
        raise UserError(f"TFDS cannot build {name}: {reason}") from error


def _image_and_label(builder: Any) -> tuple[str, str]:
    """The names of the image and the class to predict among a set's features.

    Of several, it is that which the set's supervised_keys name. Raises UserError
    saying what it has instead.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    named = dict(features.items()) if hasattr(features, "items") else {}

    def all_of(kind: type) -> list[str]:
        names = [name for name, feature in named.items() if type(feature) is kind]
        supervised = [n for n in names if n in (builder.info.supervised_keys or ())]
        return supervised or names

    images, labels = all_of(tfds.features.Image), all_of(tfds.features.ClassLabel)
    if len(images) != 1 or len(labels) != 1:
        has = ", ".join(f"{name} ({type(f).__name__})" for name, f in named.items())
        raise UserError(
            f"{builder.name} is no set of images with one class each: it has {has}"
        )
    feature = named[images[0]]
    if feature.np_dtype != np.uint8 or feature.shape[2] not in (None, 1, 3, 4):
        raise UserError(
            f"{builder.name} has images of shape {feature.shape} and type "
            f"{feature.np_dtype.__name__}, not of 1, 3 or 4 channels of uint8"
        )
    return images[0], labels[0]


def _download(builder: Any) -> None:
    """Download and prepare a set of TFDS.

    Raises MissingData where that fails. Without a network TFDS would retry for minutes.
    """
    import tensorflow_datasets as tfds

    for url in list(builder.url_infos or ())[: 0 if urllib.request.getproxies() else 1]:
        host = urllib.parse.urlsplit(url).hostname
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            raise MissingData(
                f"{builder.name} is not prepared in {builder.data_dir}, and {host}, "
                f"which has it, cannot be reached: {error.strerror}"
            ) from error
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        # it prints where it writes
        with _quiet(), contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:  # what its thousand builders raise
        raise MissingData(
            f"TFDS cannot prepare {builder.name}: {_first(error)}"
        ) from error


def _first(error: Exception) -> str:
    """The first line of what an exception says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# ------------------------------------------------------------------ the sets


def _fashion(image_size: tuple[int, int] | None, channels: int | None) -> ImageSet:
    size, channels = image_size or (28, 28), channels or 1
    splits = {}
    for split, images in read_fashion_mnist().items():
        x = images.x if size == (28, 28) else _grey_resized(images.x, size)
        splits[split] = Images(np.stack([x] * channels, -1), images.y)
    return ImageSet(splits, FASHION_CLASSES)


def _grey_resized(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Grey images [N, h, w] at another size, by the filter of `pixels`.

    It treats rows and columns apart; those of all images in one call take less than
    half the time. Which come first may differ, and show by rounding: 1 in 255.
    """

    def one_axis(x: np.ndarray, size: int) -> np.ndarray:
        rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
        wide = Image.fromarray(rows).resize(
            (size, len(rows)), Image.Resampling.BILINEAR
        )
        return np.asarray(wide).reshape(*x.shape[:-1], size)

    height, width = size
    return one_axis(one_axis(x, width).swapaxes(1, 2), height).swapaxes(1, 2)


def _fashion_examples() -> Examples:
    """In the order of the IDX files, as TFDS's own builder has them."""
    splits = {
        split: [
            {"image": Image.fromarray(x), "label": int(y)}
            for x, y in zip(images.x, images.y, strict=True)
        ]
        for split, images in read_fashion_mnist().items()
    }
    about = (
        "60,000 images to train on and 10,000 to test on: articles of clothing, 28x28, "
        f"grey. {next(iter(FASHION_MNIST.values())).origin}."
    )
    return Examples(about, splits, (28, 28, 1), FASHION_CLASSES)


def _emoji_examples() -> Examples:
    """Nine categories of emoji, as Google and Twitter draw them, on white."""
    folder = check_folder(EMOJI_FOLDERS)
    every = [path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")]
    splits = emoji_splits(every)
    counts = {
        split: dict(Counter(path.partition("/")[0] for path in paths))
        for split, paths in splits.items()
    }
    about = (
        "Emoji without skin tones, 64x64, drawn by Google and by Twitter; the label is "
        "the category. `group`: what is shown; no group is in two splits. Images by "
        f"split and category: {counts}. "
        + " ".join(f"{source.origin}." for source in EMOJI.values())
    )

    def example(path: str) -> dict[str, Any]:
        category, file = path.split("/")
        return {
            "image": decode((folder / path).read_bytes()),
            "label": category,
            "group": emoji_group(Path(path)),
            "vendor": file.partition("-")[0],
            "file": path,
        }

    return Examples(
        about,
        {split: map(example, paths) for split, paths in splits.items()},
        (64, 64, 3),
        sorted({path.partition("/")[0] for path in every}),
        {"group": None, "vendor": sorted(EMOJI), "file": None},
    )


IMAGE_SETS: dict[str, Recipe] = {
    "fashion_mnist": Recipe(
        "3.0.1",
        tuple(FASHION_MNIST.values()),
        ("Fashion-MNIST",),
        _fashion_examples,
        _fashion,
    ),
    "emoji": Recipe("1.0.0", (EMOJI_FOLDERS,), ("emoji in folders",), _emoji_examples),
}
