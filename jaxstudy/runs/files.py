"""JSON files, written whole or not at all, and read back by one reader.

A file may be damaged or another program's. Each kind is checked by pydantic, and what
is wrong is a UserError that names the file and the field.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

import pydantic
from typing_extensions import (  # pydantic asks for it before Python 3.12
    TypedDict,
    is_typeddict,
)

from jaxstudy.types import UserError

_T = TypeVar("_T")

Step = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
Seconds = Annotated[float, pydantic.Field(ge=0)]
Object = dict[str, pydantic.JsonValue]
StepTimes = dict[str, dict[str, float]]  # timing.json of a study: problem, optimizer


class Checked(TypedDict):
    """What pydantic checks field by field; fields of other names may be there."""

    __pydantic_config__ = pydantic.ConfigDict(  # type: ignore[misc]
        strict=True, allow_inf_nan=False, extra="allow"
    )


class Description(Checked):
    """config.json of a run."""

    schema: Literal[2]
    experiment: str
    run: str
    preset: str
    config: Object
    options: Object
    files: dict[str, str | None]


class Sealed(Checked):
    """What a run has learned beside its weights; `content` is of any type."""

    experiment: str
    run: str
    content: pydantic.JsonValue
    sha256: str


class Interval(Checked):
    """An estimate among the metrics of a run; null is a value that is not finite."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    of: str
    values: NotRequired[list[float | None]]


class JudgedClaim(Checked):
    """What a run says of a claim of its lesson."""

    sentence: str
    verdict: Literal["holds", "fails", "undetermined"]
    evidence: str


class LessonText(Checked):
    """What a run's lesson says of itself; figures have captions by name."""

    number: str
    title: str
    question: str
    metrics: list[str]
    figures: dict[str, str]
    try_it: dict[str, str]
    mistakes: dict[str, str]


class Result(Checked):
    """result.json of a run."""

    metrics: dict[str, Interval | bool | int | float | str | list[Any] | None]
    steps: Step
    compile_s: Seconds
    train_s: Seconds
    wall_s: Seconds
    peak_memory_gib: NotRequired[Annotated[float, pydantic.Field(gt=0)] | None]
    lesson: NotRequired[LessonText]
    claims: NotRequired[list[JudgedClaim]]


class Holder(Checked):
    """A lock file: the processes that hold it, by what they are."""

    host: str
    processes: dict[str, Annotated[int, pydantic.Field(gt=0, lt=2**31)]]


class StudyProtocol(Checked):
    """How a study was made."""

    trials: int
    tuning_seeds: int
    seeds: int


class StudyComparison(Checked):
    """What a study found."""

    sentences: list[str]
    problems: Object
    overall: Object


class Study(Checked):
    """study.json of a run, as far as every study has the same."""

    schema: int
    protocol: StudyProtocol
    problems: dict[str, Object]
    comparison: StudyComparison


class LoggedRecord(Checked):
    """A line of metrics.jsonl: the metrics of one split after one step."""

    step: Step
    split: str
    part: NotRequired[str]
    epoch: NotRequired[float | None]


def read_json(path: Path, kind: type[_T]) -> _T:
    """The value in a JSON file, which has to be of this type.

    Raises UserError where the file cannot be read or holds another thing.
    """
    content = read_file(path)
    try:
        return from_json(content, kind)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def json_lines(content: bytes, kind: type[_T]) -> tuple[list[_T], dict[int, str], bool]:
    """The values of the good lines, what is wrong with others, and if the last is torn.

    A last line that is wrong and has no end is torn: its program was killed, or still
    writes.
    """
    good, bad = [], {}
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            good.append(from_json(line, kind))
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                return good, bad, True
            bad[number] = reason(error)
    return good, bad, False


def read_file(path: Path) -> bytes:
    """The bytes of a regular file: of nothing else, for reading a pipe never ends.

    Raises UserError where there is none that can be read.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} cannot be read: it is no regular file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def from_json(content: bytes, kind: type[_T]) -> _T:
    """The value of this type that a JSON text describes, or ValueError."""
    value = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    _adapter(pydantic.JsonValue).validate_python(value)  # not nested without end
    checked = _adapter(kind).validate_python(value)
    return value if is_typeddict(kind) else checked  # whose fields are in their order


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def reason(error: Exception) -> str:
    """The first thing that is wrong, in a line: "options.keep_n: field required"."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"][:6]))
        text = f"{field}: {first['msg']}" if field else first["msg"]
    else:
        text = str(error)
    return " ".join(text.split())[:300]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content: a reader sees the old or the new, never a part.

    After a power cut, too: the content is on the disk before it gets its name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON, one line unless indented; what is not finite becomes null."""
    return json.dumps(_finite(value), allow_nan=False, indent=indent)


def plain_json(value: Any) -> Any:
    """What JSON can hold of a dataclass, or of another value that pydantic knows."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_json(value: Any) -> str:
    """The hash of a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
