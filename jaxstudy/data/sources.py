"""Where data comes from, and proof that it is what it should be."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jaxstudy.types import UserError


@dataclass(frozen=True)
class Source:
    """A file of known content: its place, SHA-256, origin, and what brings it back."""

    path: Path
    sha256: str
    origin: str
    command: str


ADMISSIONS = Source(
    path=Path(__file__).with_name("ucla_admissions.csv"),
    sha256="54509b840d56237df595c1e600af61f6c3aa40f637f124cd5f9989d0177c7708",
    origin=(
        "UCLA Institute for Digital Research and Education, the graduate admissions "
        "of its page on logistic regression (made-up applicants, as it says); values "
        "as in binary.csv.gz of the PyPI package arch 8.0.0, whose unpacked SHA-256 is "
        "23ece4a1ae3a274dec9cbc545cceb623ac5a47c9bd251f4adc613a9025441fa0, written "
        "without needless decimals and doubled line ends"
    ),
    command="git checkout -- jaxstudy/data/ucla_admissions.csv",
)


# Where the Debian package puts it, in the checkout (`make data`) or in the system.
_PLACE = Path("usr/share/datasets/fashion-mnist")
_FASHION = next(
    (
        root / _PLACE
        for root in (Path(__file__).resolve().parents[2] / ".data", Path("/"))
        if (root / _PLACE).is_dir()
    ),
    Path(".data") / _PLACE,
)
_FASHION_SHA256 = {
    "train-images-idx3-ubyte": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
FASHION_MNIST = {
    name: Source(
        path=_FASHION / f"{name}.gz",
        sha256=sha256,
        origin="Debian package dataset-fashion-mnist 0.0~git20200523.55506a9-1, MIT",
        command="make data",
    )
    for name, sha256 in _FASHION_SHA256.items()
}


def read_bytes(source: Source) -> bytes:
    """The content of a source, its SHA-256 checked.

    Raises UserError, with the command that brings the file, when it is missing or
    has other content.
    """
    try:
        content = source.path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{source.path} is missing ({error.strerror}); "
            f"this brings it: {source.command}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise UserError(
            f"{source.path} has SHA-256 {found}, not {source.sha256}; "
            f"this brings the right one: {source.command}"
        )
    return content
