"""Records of the image sets: a TFDS builder of array_record, without TensorFlow.

Importing this takes a second; what reads the prepared records (`images.read_images`)
does not need it.
"""

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxstudy.data.sources import records_seal
from jaxstudy.images.sets import IMAGE_SETS, Examples


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One of IMAGE_SETS, by its `name`, in the order of its examples."""

    @functools.cached_property
    def _examples(self) -> Examples:
        return IMAGE_SETS[self.name].examples()

    def _info(self) -> tfds.core.DatasetInfo:
        description, _, shape, classes, more = self._examples
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=list(classes)),
                    **{
                        feature: tfds.features.ClassLabel(names=list(names))
                        if names
                        else tfds.features.Text()
                        for feature, names in more.items()
                    },
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {
            split: self._generate_examples(examples)
            for split, examples in self._examples.splits.items()
        }

    def _generate_examples(
        self, examples: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(examples)


def prepare(name: str, data_dir: Path) -> None:
    """Write one of IMAGE_SETS as DATA_DIR/NAME/VERSION, and its seal beside that.

    Raises MissingData where what it is made from is not there.
    """
    recipe = IMAGE_SETS[name]
    tfds.disable_progress_bar()
    # TFDS takes these from the class
    version = tfds.core.Version(recipe.version)
    own = {"name": name, "VERSION": version, "__module__": __name__}
    kind = type(name, (_Builder,), own, skip_registration=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where it writes
        kind(data_dir=data_dir, file_format="array_record").download_and_prepare()
    seal = records_seal(data_dir / name, recipe.version, recipe.sources)
    (data_dir / name / "SHA256").write_text(seal)
