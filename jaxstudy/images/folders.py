"""Image folders, FOLDER/CLASS/FILE: sort into them, find their problems, read them.

`audit` looks at everything once and names every problem; `load_folder` splits and reads
what is good.
"""

import hashlib
import os
import shutil
import stat
import tempfile
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from jaxstudy.images.decoding import (
    MAX_PIXELS,
    DecodeError,
    DecodeFault,
    decode,
    pixels,
)
from jaxstudy.messages import warn
from jaxstudy.parallel import usable_cores
from jaxstudy.runs.progress import Bar
from jaxstudy.types import UserError

MAX_BYTES = 4 * MAX_PIXELS  # of one file
MAX_THREADS = 8  # each may hold an image of MAX_PIXELS several times
MAX_SIDE = 4096  # of what images are resized to
_MAX_LISTED = 20  # problems in an error message, where there are more than a hundred

A = TypeVar("A")
B = TypeVar("B")
ProblemKind = Literal[
    DecodeFault,
    "bad link",
    "nested folder",
    "outside a class",
    "odd name",
    "case clash",
    "empty class",
    "single image",
]


class FileProblem(NamedTuple):
    """What is wrong with a file or folder; its path is relative, and printable."""

    path: str
    kind: ProblemKind
    detail: str


class Audit(NamedTuple):
    """A folder's usable images "CLASS/FILE" in order, their labels; its problems."""

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    problems: tuple[FileProblem, ...]


class ImageFolder(NamedTuple):
    """x uint8 [N, H, W, C], labels y int32 [N], and where they come from."""

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    audit: Audit


# ------------------------------------------------------------------ reading


def load_folder(
    folder: Path | Audit,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    subset: Literal["training", "validation"] | None = None,
    validation_split: float | None = None,
    seed: int = 0,
    group_of: Callable[[Path], str] | None = None,
    strict: bool = False,
) -> ImageFolder:
    """The images of a folder, or of its audit, in memory, ordered by class and name.

    As Keras's image_dataset_from_directory, with the class names in order as labels
    and images brought to (height, width) without regard to their proportions. It
    differs where Keras loses something: shrinking averages (an antialiased bilinear
    filter; Keras skips pixels), transparency shows white (Keras shows the hidden
    colour), photographs stand upright (EXIF), 16-bit grey keeps its upper byte, and
    the split is stratified (`stratified_split`). Of an animation it is the first frame.

    Faulty files are left out, and stand in `.audit.problems`; with `strict` they are
    refused. Raises UserError for that, for settings out of range, where no image is
    usable or the split leaves a class without examples, and where a file is no longer
    the image it was when audited.
    """
    if not all(1 <= side <= MAX_SIDE for side in image_size):
        raise UserError(f"image sides go from 1 to {MAX_SIDE}, not {image_size}")
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")
    if subset not in (None, "training", "validation"):
        raise UserError(f"a subset is 'training' or 'validation', not {subset!r}")
    if (subset is None) != (validation_split is None):
        raise UserError(
            "a subset needs a validation split, and the other way round; here the "
            f"subset is {subset} and the validation split {validation_split}"
        )
    if validation_split is not None:
        _check_share(validation_split)
    audited = folder if isinstance(folder, Audit) else audit(folder)
    check_usable(audited, strict)
    rows = np.arange(len(audited.paths))
    if validation_split is not None:
        parts = stratified_split(audited, validation_split, seed, group_of)
        rows = parts[subset == "validation"]
    paths = tuple(audited.paths[row] for row in rows)
    y = np.array([audited.labels[row] for row in rows], np.int32)
    x = np.empty((len(rows), *image_size, channels), np.uint8)

    def read(i: int) -> None:
        path = audited.folder / paths[i]
        try:
            x[i] = pixels(decode(_content(path)), image_size, channels)
        except DecodeError as bad:
            shown = _printable(str(path))
            raise UserError(f"{shown} has changed since the audit: {bad}") from bad

    _on_all_cores(read, range(len(rows)), "reading images")
    return ImageFolder(x, y, audited.classes, paths, audited)


def check_usable(audited: Audit, strict: bool) -> None:
    """Raise UserError where no image is usable, or there are problems and `strict`."""
    problems = audited.problems
    if problems and (strict or not audited.paths):
        shown = problems if len(problems) <= 100 else problems[:_MAX_LISTED]
        left = len(problems) - len(shown)
        without = "" if audited.paths else "no usable image, and "
        lines = [f"{audited.folder} has {without}{_number(problems)}:"]
        lines += map(_line, shown)
        raise UserError("\n  ".join([*lines, f"and {left} more"] if left else lines))
    if not audited.paths:
        raise UserError(f"{audited.folder} holds no class folder with images")


def warn_of_problems(audited: Audit) -> None:
    """Say on standard error what is left out, if anything is."""
    if audited.problems:
        warn(f"not all in {audited.folder} can be used:\n{report(audited)}")


def read_image(path: Path, image_size: tuple[int, int]) -> np.ndarray:
    """One image file as uint8 [H, W, 3], brought to (height, width).

    Raises UserError where the file is none, or damaged.
    """
    try:
        return pixels(decode(_content(path)), image_size, 3)
    except DecodeError as error:
        raise UserError(f"{path}: {error}") from error


def _content(path: Path) -> bytes:
    """What is in a file that may be an image. Raises DecodeError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait
            raise DecodeError("not a file", "a pipe, socket or device")
        if status.st_size > MAX_BYTES:
            raise DecodeError("too large", f"{status.st_size} bytes, over {MAX_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise DecodeError("unreadable", str(error.strerror)) from error
    if not content:
        raise DecodeError("zero bytes", "the file is empty")
    return content


def _on_all_cores(work: Callable[[A], B], items: Sequence[A], doing: str) -> list[B]:
    """[work(item) for item in items], with a bar on a terminal only.

    In threads: PIL decodes and resizes without holding the interpreter.
    """
    threads = min(MAX_THREADS, usable_cores())
    pool = ThreadPoolExecutor(threads)
    # what PIL warns of is a problem here, or nothing
    with warnings.catch_warnings(), Bar(len(items), doing) as bar:
        warnings.simplefilter("ignore")
        try:
            results = []
            for result in pool.map(work, items):
                results.append(result)
                bar.update(len(results), f"{len(results)}/{len(items)}")
            return results
        finally:  # interrupted, it must not first do the rest
            pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------ splitting


def stratified_split(
    audited: Audit,
    validation_split: float,
    seed: int,
    group_of: Callable[[Path], str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, validation rows) of an audit: disjoint, exhaustive, in order.

    Validation gets this share of every class, give or take half an image. Files with
    the same `group_of(CLASS/FILE)` are never separated: then give or take half a group.
    Groups are ranked by a hash of seed and name, so that nothing else matters: not the
    machine, nor the order of the files.
    Raises UserError naming the classes that either part would lack.
    """
    _check_share(validation_split)
    members: dict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(audited.paths):
        members[group_of(Path(path)) if group_of else path].append(row)
    sizes = Counter(audited.labels)
    missing = {label: validation_split * n for label, n in sizes.items()}
    validation: list[int] = []
    for group in sorted(members, key=lambda name: _rank(name, seed)):
        counts = Counter(audited.labels[row] for row in members[group])
        gain = sum(abs(missing[c]) - abs(missing[c] - n) for c, n in counts.items())
        if gain > 0:  # the group brings validation nearer to its shares
            validation += members[group]
            for label, n in counts.items():
                missing[label] -= n
    held = np.isin(np.arange(len(audited.paths)), validation)
    training_rows, validation_rows = np.flatnonzero(~held), np.flatnonzero(held)
    lacking = [
        f"no {part} example of class {_printable(audited.classes[label])!r} "
        f"({sizes[label]} in all)"
        for part, rows in (("training", training_rows), ("validation", validation_rows))
        for label in sorted(sizes.keys() - {audited.labels[row] for row in rows})
    ]
    if lacking:
        more = f", and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise UserError(f"this validation split leaves {', '.join(lacking[:3])}{more}")
    return training_rows, validation_rows


def _check_share(validation_split: float) -> None:
    if not 0 < validation_split < 1:
        raise UserError(
            f"a validation split lies between 0 and 1, not at {validation_split}"
        )


def _rank(name: str, seed: int) -> tuple[bytes, str]:
    """A place in an order that looks random and is the same on every machine."""
    text = f"{seed}\0{name}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).digest(), name


# ------------------------------------------------------------------ auditing


def audit(folder: Path) -> Audit:
    """Look at everything in a folder, decode every image, and name every problem.

    What cannot be used is left out: a file that is unreadable, empty, no image of
    `decoding.FORMATS`, truncated, over MAX_PIXELS by its header, a pipe or the like,
    outside a class folder or in a folder below one; a link that is broken, leaves the
    folder or leads to another; a class whose name holds control characters, or that has
    no usable image. Named but used are a class of one image and names that are one
    where case is ignored. A suffix that lies is no problem, nor are hidden files (left
    out), later frames of an animation and a PNG's metadata (not looked at).

    Raises UserError where there is no such folder.
    """
    folder = Path(folder)
    names = _names_in(folder)
    root = os.path.realpath(folder)
    problems = _case_clashes("", names)
    files: dict[str, list[str]] = {}
    for name in names:
        bad = _class_problem(folder / name, root)
        if bad:
            problems.append(FileProblem(_printable(name), *bad))
            continue
        try:
            inside = _visible(os.listdir(folder / name))
        except OSError as error:
            problems.append(
                FileProblem(_printable(name), "unreadable", str(error.strerror))
            )
            continue
        problems += _case_clashes(f"{name}/", inside)
        files[name] = [f"{name}/{file}" for file in inside]

    def examine(path: str) -> FileProblem | None:
        return _file_problem(folder, path, root)

    every = [path for paths in files.values() for path in paths]
    found = _on_all_cores(examine, every, "auditing images")
    problems += filter(None, found)
    good = {path for path, problem in zip(every, found, strict=True) if problem is None}
    usable = {name: [p for p in paths if p in good] for name, paths in files.items()}
    for name, paths in usable.items():
        if len(paths) < 2:  # too few to learn from
            detail = f"{len(paths)} usable of {len(files[name])} files"
            kind: ProblemKind = "single image" if paths else "empty class"
            problems.append(FileProblem(_printable(name), kind, detail))
    classes = tuple(name for name in files if usable[name])
    return Audit(
        folder,
        classes,
        tuple(path for name in classes for path in usable[name]),
        tuple(label for label, name in enumerate(classes) for _ in usable[name]),
        tuple(sorted(problems)),
    )


def report(audited: Audit) -> str:
    """An audit for people: one line per problem, then the counts."""
    counts = Counter(audited.labels)
    classes = ", ".join(
        f"{_printable(name)} {counts[label]}"
        for label, name in enumerate(audited.classes)
    )
    images = f"{len(audited.paths)} images in {len(audited.classes)} classes"
    kinds = Counter(problem.kind for problem in audited.problems)
    named = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    return "\n".join(
        [
            *map(_line, audited.problems),
            f"{images}: {classes}" if classes else images,
            f"{_number(audited.problems)}: {named}" if named else "no problems",
        ]
    )


def _line(problem: FileProblem) -> str:
    return f"{problem.path}: {problem.kind} ({problem.detail})"


def _number(problems: Sequence[FileProblem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"


def _class_problem(path: Path, root: str) -> tuple[ProblemKind, str] | None:
    """Why what lies directly in the folder is no class."""
    link = _link_problem(path, root)
    if link:
        return "bad link", link
    if not os.path.isdir(path):
        return "outside a class", "files belong into a folder named after their class"
    if _control_characters(path.name):
        return "odd name", "a class name holds no control characters"
    return None


def _file_problem(folder: Path, name: str, root: str) -> FileProblem | None:
    """Why what lies in a class folder is no image."""
    path, shown = folder / name, _printable(name)
    link = _link_problem(path, root)
    if link:
        return FileProblem(shown, "bad link", link)
    if os.path.isdir(path):
        return FileProblem(shown, "nested folder", "what it holds is not used")
    try:
        decode(_content(path), verify=True)
    except DecodeError as bad:
        return FileProblem(shown, bad.kind, _printable(bad.detail))
    return None


def _case_clashes(prefix: str, names: Iterable[str]) -> list[FileProblem]:
    """One problem for each name that is another's where case is ignored."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[_folded(name)].append(name)
    return [
        FileProblem(
            _printable(prefix + name),
            "case clash",
            f"the same as {_printable(others[others.index(name) - 1])}, but for case",
        )
        for others in same.values()
        if len(others) > 1
        for name in others
    ]


def _link_problem(path: Path, root: str) -> str | None:
    """Why a link is not followed; None where it is, or where there is no link."""
    if not os.path.islink(path):
        return None
    try:
        end = os.path.realpath(path, strict=True)
    except OSError as error:
        return f"it leads nowhere: {error.strerror}"
    if not Path(end).is_relative_to(root):
        return "it leaves the folder"
    return "it leads to a folder" if os.path.isdir(end) else None


# ------------------------------------------------------------------ sorting


def sort_into_folders(
    source: Path, target: Path, label_of: Callable[[Path], str | None]
) -> dict[str, int]:
    """Copy the files of a flat folder to TARGET/LABEL/NAME; how many by label.

    `label_of(path)` names the label, or None to leave a file out. Nothing is moved or
    overwritten: where a file of that name has other content, nothing is copied at all;
    where it has the same, it stays, so that a second call changes nothing. Each copy
    appears whole or not at all, and one that was interrupted goes on when called again.
    Raises UserError for that, for a label that is no plain folder name, for a source
    that is not flat, and where source and target lie in each other.
    """
    source, target = Path(source), Path(target)
    names = _flat_files(source)
    _check_apart(source, target)
    given = {name: label_of(source / name) for name in names}
    labels = {name: label for name, label in given.items() if label is not None}
    _check_labels(labels)
    _check_target(target, set(labels.values()))
    copies = {name: target / label / name for name, label in labels.items()}
    there = {name for name, copy in copies.items() if os.path.lexists(copy)}
    _check_same(source, {name: copies[name] for name in sorted(there)})
    for name in sorted(copies.keys() - there):
        try:
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            _copy(source / name, copies[name])
        except OSError as error:
            raise UserError(
                f"{_printable(str(source / name))} cannot be copied to "
                f"{_printable(str(copies[name].parent))}: {error.strerror}; "
                "called again, this goes on from here"
            ) from error
    return dict(sorted(Counter(labels.values()).items()))


def _flat_files(source: Path) -> list[str]:
    """The files in a folder. Raises UserError where there is anything else."""
    root = os.path.realpath(source)
    names = _names_in(source)
    for name in names:
        problem = _link_problem(source / name, root)
        if problem is None and not os.path.isfile(source / name):
            problem = "only files can be sorted"
        if problem:
            raise UserError(f"{_printable(str(source / name))}: {problem}")
    return names


def _check_apart(source: Path, target: Path) -> None:
    one, other = (Path(os.path.realpath(path)) for path in (source, target))
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise UserError(f"{source} and {target} lie in each other: copy elsewhere")


def _check_labels(labels: dict[str, str]) -> None:
    """Raise UserError for a label that cannot be the name of a class folder."""
    for name, label in labels.items():
        text = label if isinstance(label, str) else ""
        problems = {
            "is no text": not isinstance(label, str),
            "is empty": not text,
            "begins with a dot": text.startswith("."),
            "holds a slash": "/" in text,
            "holds control characters": _control_characters(text),
            "is reserved": not _visible([text]),
            "is longer than 255 bytes": len(text.encode(errors="replace")) > 255,
        }
        for problem, found in problems.items():
            if found:
                raise UserError(
                    f"the label {label!r} of {_printable(name)} {problem}: it cannot "
                    "be the name of a folder"
                )


def _check_target(target: Path, labels: set[str]) -> None:
    """Raise UserError where labels and what is in the target would be one another."""
    there = set(_names_in(target)) if os.path.lexists(target) else set()
    shown = {_printable(label) for label in labels}
    for clash in _case_clashes("", sorted(there | labels)):
        if clash.path in shown:
            raise UserError(f"the label {clash.path!r} is {clash.detail}")
    for label in sorted(labels & there):
        if os.path.islink(target / label) or not os.path.isdir(target / label):
            raise UserError(f"{target / label} is not a folder to copy into")


def _check_same(source: Path, copies: dict[str, Path]) -> None:
    """Raise UserError where what is there has other content than would be copied."""
    other = []
    for name, copy in copies.items():
        try:
            is_file = copy.is_file() and not copy.is_symlink()
            if not is_file or (source / name).read_bytes() != copy.read_bytes():
                other.append(_printable(str(copy)))
        except OSError as error:
            shown = _printable(str(copy))
            raise UserError(f"{shown} cannot be compared: {error.strerror}") from error
    if other:
        more = f" (and {len(other) - 1} more files)" if len(other) > 1 else ""
        raise UserError(
            f"{other[0]} exists with other content{more}; nothing was copied"
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a file under another name first, so that nobody ever sees half of it."""
    with tempfile.NamedTemporaryFile(
        prefix=".", suffix=".part", dir=target.parent
    ) as part:
        shutil.copy2(source, part.name)
        os.link(part.name, target)  # unlike a rename, this never overwrites


# ------------------------------------------------------------------ names


def _names_in(folder: Path) -> list[str]:
    """What lies in a folder, in order. Raises UserError where it cannot be listed."""
    try:
        return _visible(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error


def _visible(names: Iterable[str]) -> list[str]:
    """The names that are not hidden, nor what a file manager left behind; in order."""
    left = ("thumbs.db", "desktop.ini", "__macosx")
    return sorted(n for n in names if n[:1] != "." and n.casefold() not in left)


def _folded(name: str) -> str:
    """The name to a system that ignores case and how letters are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _control_characters(name: str) -> bool:
    """Whether a name breaks lines, steers a terminal or is no UTF-8."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)


def _printable(name: str) -> str:
    """The name on one line, whatever is in it."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in name
    )
