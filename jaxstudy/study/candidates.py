"""Who competes in a study: optimizers with what is tuned, schedules, and one's own.

An optimizer or a problem of one's own is "package.module:function", a function that
anybody can import; nothing here is edited for it.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxstudy.messages import did_you_mean
from jaxstudy.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    SPACES,
    LogUniform,
    Optimizer,
    Space,
)
from jaxstudy.study.problems import PROBLEMS, Problem
from jaxstudy.types import Array, PyTree, UserError

_T = TypeVar("_T")


class Candidate(NamedTuple):
    """An optimizer in a study: what of it is tuned and where, and what is set."""

    optimizer: Optimizer
    space: Space
    fixed: Mapping[str, float] = {}
    schedule: str = "constant"


def transformation(
    candidate: Candidate, point: Mapping[str, Array], steps: int
) -> optax.GradientTransformation:
    """The optimizer at a point, its rate on the candidate's schedule over the steps."""
    if candidate.schedule == "constant":
        return candidate.optimizer.make(**point)
    shape = SCHEDULES[candidate.schedule](steps)
    rate = point.get("rate", candidate.optimizer.rate)
    return candidate.optimizer.make(**{**point, "rate": lambda t: rate * shape(t)})


def with_schedules(
    candidates: Mapping[str, Candidate], schedules: tuple[str, ...]
) -> dict[str, Candidate]:
    """Each candidate with each schedule; one that is self-tuning, with none.

    Those of another schedule than the constant one are called "NAME, SCHEDULE".
    """
    out = {}
    for name, candidate in candidates.items():
        for schedule in schedules:
            look_up("schedule", schedule, SCHEDULES)
            if candidate.optimizer.self_tuning or schedule == "constant":
                out[name] = candidate
            else:
                scheduled = candidate._replace(schedule=schedule)
                if ":" in candidate.optimizer.source:  # one's own
                    _trace(f"{candidate.optimizer.source}, {schedule}", scheduled)
                out[f"{name}, {schedule}"] = scheduled
    return out


def look_up(what: str, name: str, known: Mapping[str, _T]) -> _T:
    """known[name]; raises UserError with the nearest name where there is none."""
    if name in known:
        return known[name]
    hint = did_you_mean(name, known)
    raise UserError(f"no {what} {name!r} among {', '.join(known)}{hint}")


# One's own


def find_optimizers(texts: Iterable[str]) -> dict[str, Candidate]:
    """Optimizers of ours, or of one's own, by their names."""
    own = _named(texts, own_optimizer, "optimizer", OPTIMIZERS)
    return {name: Candidate(entry, entry.space) for name, entry in own.items()}


def find_problems(texts: Iterable[str]) -> dict[str, Problem]:
    """Problems of ours, or of one's own, by their names."""
    found = _named(texts, lambda text: lambda: own_problem(text), "problem", PROBLEMS)
    return {name: build() for name, build in found.items()}


def _named(
    texts: Iterable[str], own: Callable[[str], _T], what: str, ours: Mapping[str, _T]
) -> dict[str, _T]:
    """What is asked for; one's own is called as its function, if nothing else is.

    Nor is any of ours: who compares with those must be able to tell them apart.
    """
    texts, out = list(texts), {}
    for text in texts:
        name = text.rpartition(":")[2]
        if ":" not in text:
            out[text] = look_up(what, text, ours)
        else:
            out[text if name in {*ours, *texts, *out} else name] = own(text)
    return out


def own_optimizer(text: str) -> Optimizer:
    """The entry of a function that returns an optax.GradientTransformation.

    What is tuned are its arguments of known names (`rate` or `learning_rate`, `b1`,
    ...), and those that a dict `space` of its module gives a range, {name: (low, high)}
    or {name: LogUniform}. Others need a default. Raises UserError.
    """
    module, function = _import(text)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(f"{text} is no function that makes an optimizer") from None
    alias = "learning_rate" if "rate" not in parameters else "rate"
    given = getattr(module, "space", {})
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise UserError(f"space of {text} is a {kind}, no dict of ranges")
    own = {p: _range(text, p, v) for p, v in given.items()}
    for name in own:
        if name not in parameters:
            hint = did_you_mean(name, parameters)
            raise UserError(f"space of {text} has {name!r}, no argument of it{hint}")
    ranges = {"learning_rate": SPACES["rate"], **SPACES, **own}
    space = {n: ranges[n] for n in parameters if n in ranges}
    for name, parameter in parameters.items():
        optional = parameter.default is not inspect.Parameter.empty
        variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if not (name in space or optional or variable):
            raise UserError(
                f"{text} needs {name!r}, which nobody gives: it takes a default there, "
                "or a range in the module's space"
            )
    if not space:
        raise UserError(f"{text} has nothing to tune: no rate, and no space beside it")

    def make(**values: Any) -> optax.GradientTransformation:
        if alias == "learning_rate" and "rate" in values:
            values["learning_rate"] = values.pop("rate")
        return function(**values)

    first_rate = float(SPACES["rate"].value(jnp.float32(0.5)))
    ranges = {"rate" if n == alias else n: r for n, r in space.items()}
    entry = Optimizer(
        make,  # type: ignore[arg-type]
        rate=first_rate,
        rule=(inspect.getdoc(function) or "").partition("\n")[0],
        source=text,
        space=ranges,
        self_tuning="rate" not in ranges,
        by_array=True,  # for all that is known
    )
    middle = {n: float(r.value(jnp.float32(0.5))) for n, r in ranges.items()}
    made = _call(text, lambda: make(**middle))
    if not isinstance(made, optax.GradientTransformation):
        kind = type(made).__name__
        raise UserError(f"{text} returns a {kind}, no optax.GradientTransformation")

    _trace(text, Candidate(entry, entry.space))
    return entry


def _trace(text: str, candidate: Candidate) -> None:
    """Raise UserError for what an optimizer cannot do, before anything is trained.

    Its hyperparameters are traced, as a study has them: no `if` may depend on them.
    """

    def step(point: Mapping[str, Array], params: PyTree) -> PyTree:
        tx = optax.with_extra_args_support(transformation(candidate, point, 10))
        return tx.update(params, tx.init(params), params, value=jnp.float32(1))

    point = {name: jnp.float32(0.1) for name in candidate.space}
    params = {"b": jnp.ones(2), "w": jnp.ones((2, 3))}
    _call(text, lambda: jax.eval_shape(step, point, params))


def own_problem(text: str) -> Problem:
    """What a function of one's own returns, which must be a Problem."""
    _, function = _import(text)
    made = _call(text, function)
    if not isinstance(made, Problem):
        kind = type(made).__name__
        raise UserError(f"{text} returns a {kind}, no jaxstudy.study.problems.Problem")
    return made


def _import(text: str) -> tuple[Any, Callable[..., Any]]:
    """The module and the function of "package.module:function"."""
    path, _, name = text.rpartition(":")
    where = os.getcwd()  # of a script, Python looks beside the script alone
    sys.path.insert(0, where)
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever a module does when it is read
        raise UserError(f"{text}: {path!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(where)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{text}: no {name!r} in {path}{did_you_mean(name, public)}")
    function = getattr(module, name)
    if not callable(function):
        kind = type(function).__name__
        raise UserError(f"{text} is a {kind}: a function that makes it is expected")
    return module, function


def _call(text: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        detail = (str(error).splitlines() or [""])[0]
        raise UserError(f"{text} fails: {type(error).__name__}: {detail}") from error


def _range(text: str, name: str, value: Any) -> LogUniform:
    """A range, or (low, high) of one."""
    if isinstance(value, LogUniform):
        return value
    try:
        low, high = map(float, value)
        return LogUniform(low, high)
    except (TypeError, ValueError):
        raise UserError(
            f"space of {text}: {name} is {value!r}, neither (low, high) nor a range"
        ) from None
    except UserError as error:
        raise UserError(f"space of {text}: {name}: {error}") from error
