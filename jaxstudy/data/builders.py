"""TFDS builders of the image sets: prepared as array_record, without TensorFlow.

Importing this takes a second; what reads the prepared records (`images.read_images`)
does not need it.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from jaxstudy.data.sources import (
    EMOJI,
    EMOJI_FOLDERS,
    FASHION_MNIST,
    RECORDS,
    check_folder,
    records_seal,
)
from jaxstudy.images.decoding import decode
from jaxstudy.images.emoji import emoji_group, emoji_splits
from jaxstudy.images.sets import (
    FASHION_CLASSES,
    Images,
    read_fashion_mnist,
)


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Fashion-MNIST as TFDS's own builder gives it, in the order of the IDX files."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version(RECORDS["fashion_mnist"][0])

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "60,000 images to train on and 10,000 to test on: articles of "
                f"clothing, 28x28, grey. {next(iter(FASHION_MNIST.values())).origin}."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=FASHION_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {
            split: self._generate_examples(images)
            for split, images in read_fashion_mnist().items()
        }

    def _generate_examples(self, images: Images) -> Iterator[tuple[int, dict]]:
        for i, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
            yield i, {"image": Image.fromarray(x), "label": int(y)}


class Emoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Nine categories of emoji, as Google and Twitter draw them, on white."""

    VERSION = tfds.core.Version(RECORDS["emoji"][0])

    def _info(self) -> tfds.core.DatasetInfo:
        paths = _emoji_paths()
        splits = {
            split: dict(Counter(path.partition("/")[0] for path in found))
            for split, found in emoji_splits(paths).items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Emoji without skin tones, 64x64, drawn by Google and by Twitter; the "
                "label is the category. `group`: what is shown; no group is in two "
                f"splits. Images by split and category: {splits}. "
                + " ".join(f"{source.origin}." for source in EMOJI.values())
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3)),
                    "label": tfds.features.ClassLabel(
                        names=sorted({path.partition("/")[0] for path in paths})
                    ),
                    "group": tfds.features.Text(),
                    "vendor": tfds.features.ClassLabel(names=sorted(EMOJI)),
                    "file": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {
            split: self._generate_examples(paths)
            for split, paths in emoji_splits(_emoji_paths()).items()
        }

    def _generate_examples(self, paths: list[str]) -> Iterator[tuple[int, dict]]:
        for i, path in enumerate(paths):
            category, file = path.split("/")
            yield (
                i,
                {
                    "image": decode((EMOJI_FOLDERS.path / path).read_bytes()),
                    "label": category,
                    "group": emoji_group(Path(path)),
                    "vendor": file.partition("-")[0],
                    "file": path,
                },
            )


def _emoji_paths() -> list[str]:
    """CATEGORY/FILE of every image in the folders of `make data`."""
    folder = check_folder(EMOJI_FOLDERS)
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")]


BUILDERS: Mapping[str, type[tfds.core.GeneratorBasedBuilder]] = {
    builder.name: builder for builder in (FashionMnist, Emoji)
}


def prepare(name: str, data_dir: Path) -> None:
    """Write one of BUILDERS as DATA_DIR/NAME/VERSION, and its seal beside that.

    Raises MissingData where what it is made from is not there.
    """
    tfds.disable_progress_bar()
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where it writes
        builder.download_and_prepare()
    (data_dir / name / "SHA256").write_text(records_seal(name, data_dir))
