"""The compiled functions of a study: one program for several optimizers.

The network's gradient and its evaluation are most of what is compiled, and the same for
all optimizers. So the update rule is a branch of `lax.switch`, chosen by a number that
stands among the hyperparameters, and the states of all branches are kept in one form, a
`StatePool`. For most of them the parameters are one vector, which makes a rule one
kernel where there would be one for each array.

A step carries the largest state of its program. Where the parameters are many,
optimizers share a program only if their states hold as many copies of them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxstudy.optimizers import current_weights
from jaxstudy.parallel import Mode
from jaxstudy.study.candidates import Candidate, transformation
from jaxstudy.study.problems import Problem, steps_of
from jaxstudy.training import EvalStep, TrainStep, make_eval_step, make_train_step
from jaxstudy.types import Array, Batch, Key, Metrics, PyTree, TrainState

Points = dict[str, np.ndarray]  # values [P] of each hyperparameter
StatePool = dict[str, list[Array]]  # the arrays of a state, by their type and shape
BRANCH = "optimizer"  # the hyperparameter that says which one
MANY = 20_000  # parameters, of which a copy costs a step more than it saves compiling


class StepFunctions(NamedTuple):
    """The compiled functions of an optimizer on a problem.

    The steps receive a point, {hyperparameter: value}, after their batch: what
    `arguments` makes of the optimizer's own.
    """

    train_step: TrainStep
    eval_step: EvalStep
    init: Callable[..., TrainState]  # (params, extra, key, point)
    evaluated: Callable[[TrainState], TrainState]  # with the parameters to evaluate
    arguments: Callable[[Points], Points] = lambda points: points


def make_step_functions(problem: Problem, candidate: Candidate) -> StepFunctions:
    """Build the optimizer within each step, so that one program serves every point."""
    steps = problem.epochs * steps_of(problem)
    evaluate = make_eval_step(problem.objective)

    def train_step(
        state: TrainState, batch: Batch, point: Mapping[str, Array]
    ) -> tuple[TrainState, Metrics]:
        tx = transformation(candidate, point, steps)
        return make_train_step(problem.objective, tx)(state, batch)

    def evaluated(state: TrainState) -> TrainState:
        params = candidate.optimizer.weights(state.opt_state, state.params)
        return state._replace(params=params)

    def eval_step(
        state: TrainState, batch: Batch, point: Mapping[str, Array]
    ) -> Metrics:
        del point
        return evaluate(evaluated(state), batch)

    def init(
        params: PyTree, extra: PyTree, key: Key, point: Mapping[str, Array]
    ) -> TrainState:
        opt_state = transformation(candidate, point, steps).init(params)
        return TrainState(jnp.int32(0), params, extra, opt_state, key)

    return StepFunctions(train_step, eval_step, init, evaluated)


def shared_step_functions(
    problem: Problem, candidates: Mapping[str, Candidate], mode: Mode
) -> dict[str, StepFunctions]:
    """The functions of every candidate, those that share a program one after another.

    Replicas that are vectorised would run every branch: they share none.
    """
    if mode == "vmap":
        return {n: make_step_functions(problem, c) for n, c in candidates.items()}
    params, _ = jax.eval_shape(problem.model.init, jax.random.key(0))
    steps = problem.epochs * steps_of(problem)
    size = sum(a.size for a in jax.tree.leaves(params))
    out: dict[str, StepFunctions] = {}
    groups: dict[int, list[_Member]] = {}  # by copies of the parameters in a state
    for name, candidate in candidates.items():
        member = _member(name, candidate, params, steps)
        leaves = jax.tree.leaves(member.state)
        if any(jnp.issubdtype(a.dtype, jax.dtypes.extended) for a in leaves):
            # keys, say, of random numbers are no arrays of a pool
            out[name] = make_step_functions(problem, candidate)
        else:
            copies = sum(a.size for a in leaves) // size if size > MANY else 0
            groups.setdefault(copies, []).append(member)
    for copies in sorted(groups):
        out |= _functions_of_group(problem, groups[copies], steps)
    return out


class _Member(NamedTuple):
    """One of the optimizers of a program."""

    name: str
    candidate: Candidate
    hyperparameters: tuple[str, ...]
    state: PyTree  # shapes and types


def _member(name: str, candidate: Candidate, params: PyTree, steps: int) -> _Member:
    names = tuple(dict.fromkeys([*candidate.space, *candidate.fixed]))
    point = dict.fromkeys(names, jax.ShapeDtypeStruct((), jnp.float32))

    def init(point: Mapping[str, Array], params: PyTree) -> PyTree:
        own = params if candidate.optimizer.by_array else _vector(params)
        return transformation(candidate, point, steps).init(own)

    return _Member(name, candidate, names, jax.eval_shape(init, point, params))


def _vector(tree: PyTree) -> Array:
    return ravel_pytree(tree)[0]


def _functions_of_group(
    problem: Problem, group: Sequence[_Member], steps: int
) -> dict[str, StepFunctions]:
    evaluate = make_eval_step(problem.objective)
    names = dict.fromkeys(n for m in group for n in m.hyperparameters)
    counts = [Counter(map(_kind, jax.tree.leaves(m.state))) for m in group]
    kinds = {_kind(a): a for m in group for a in jax.tree.leaves(m.state)}
    empty: StatePool = {k: [a] * max(c[k] for c in counts) for k, a in kinds.items()}

    def update(
        grads: Array,
        pool: StatePool,
        params: PyTree,
        point: Any,
        value: Array,
        m: _Member,
    ) -> tuple[Array, StatePool]:
        own = {n: point[n] for n in m.hyperparameters}
        tx = optax.with_extra_args_support(transformation(m.candidate, own, steps))
        vector, unravel = ravel_pytree(params)
        by_array = m.candidate.optimizer.by_array
        given = (unravel(grads), params) if by_array else (grads, vector)
        updates, state = tx.update(
            given[0], unpack_state(pool, m.state), given[1], value=value
        )
        return _vector(updates), pack_state(state, m.state, pool)

    def train_step(
        state: TrainState, batch: Batch, point: Mapping[str, Array]
    ) -> tuple[TrainState, Metrics]:
        def chosen(
            grads: PyTree, pool: Any, params: Any = None, *, value: Any, **_: Any
        ) -> tuple[PyTree, Any]:
            branches = [functools.partial(update, m=m) for m in group]
            vector, unravel = ravel_pytree(grads)
            operands = vector, pool, params, point, value
            updates, pool = jax.lax.switch(point[BRANCH], branches, *operands)
            return unravel(updates), pool

        update_fn: Any = chosen
        tx = optax.GradientTransformationExtraArgs(lambda params: {}, update_fn)
        return make_train_step(problem.objective, tx)(state, batch)

    def weights(pool: StatePool, params: PyTree, m: _Member) -> PyTree:
        vector, unravel = ravel_pytree(params)
        optimizer, state = m.candidate.optimizer, unpack_state(pool, m.state)
        if optimizer.by_array:
            return optimizer.weights(state, params)
        return unravel(optimizer.weights(state, vector))

    def eval_step(
        state: TrainState, batch: Batch, point: Mapping[str, Array]
    ) -> Metrics:
        if any(m.candidate.optimizer.weights is not current_weights for m in group):
            branches = [functools.partial(weights, m=m) for m in group]
            params = jax.lax.switch(
                point[BRANCH], branches, state.opt_state, state.params
            )
            state = state._replace(params=params)
        return evaluate(state, batch)

    def functions(number: int, m: _Member) -> StepFunctions:
        def init(
            params: PyTree, extra: PyTree, key: Key, point: Mapping[str, Array]
        ) -> TrainState:
            own = {n: point[n] for n in m.hyperparameters}
            given = params if m.candidate.optimizer.by_array else _vector(params)
            state = transformation(m.candidate, own, steps).init(given)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty)
            pool = pack_state(state, m.state, zeros)
            return TrainState(jnp.int32(0), params, extra, pool, key)

        def evaluated(state: TrainState) -> TrainState:
            return state._replace(params=weights(state.opt_state, state.params, m))

        def arguments(points: Points) -> Points:
            some = next(iter(points.values()))
            others = {n: np.zeros_like(some) for n in names if n not in points}
            which = np.full(len(some), number, np.int32)
            return {n: (points | others)[n] for n in names} | {BRANCH: which}

        return StepFunctions(train_step, eval_step, init, evaluated, arguments)

    return {m.name: functions(number, m) for number, m in enumerate(group)}


def pack_state(state: PyTree, like: PyTree, pool: StatePool) -> StatePool:
    """The pool with the arrays of a state as the first of their kinds."""
    out, used = {k: list(arrays) for k, arrays in pool.items()}, Counter[str]()
    leaves = jax.tree.leaves(state), jax.tree.leaves(like)
    for leaf, shape in zip(*leaves, strict=True):
        kind = _kind(shape)
        out[kind][used[kind]] = jnp.asarray(leaf, shape.dtype)
        used[kind] += 1
    return out


def unpack_state(pool: StatePool, like: PyTree) -> PyTree:
    """The state of this structure that a pool holds."""
    leaves, structure = jax.tree.flatten(like)
    used = Counter[str]()
    found = []
    for leaf in leaves:
        kind = _kind(leaf)
        found.append(pool[kind][used[kind]])
        used[kind] += 1
    return jax.tree.unflatten(structure, found)


def _kind(a: Any) -> str:
    return f"{a.dtype}{list(a.shape)}"
