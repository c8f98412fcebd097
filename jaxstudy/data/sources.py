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
