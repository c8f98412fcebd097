"""One program for several optimizers: each is trained as it would be by itself."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstudy.optimizers import OPTIMIZERS, Optimizer
from jaxstudy.study import programs
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.programs import (
    make_step_functions,
    pack_state,
    shared_step_functions,
    unpack_state,
)
from jaxstudy.study.runner import (
    Protocol,
    as_replicas,
    make_common,
    points,
    seed_keys,
    start_replicas,
    tile,
)
from jaxstudy.training import Evaluator, fit
from tests.conftest import Patch
from tests.test_study import tiny_problem

PROTOCOL = Protocol(trials=2)
# states of 0 to 3 copies of the parameters and of scalars; by array and as a vector;
# with the loss of the batch; with other parameters to evaluate
NAMES = ("sgd", "momentum", "adam", "lamb", "schedule_free", "prodigy", "momo", "muon")
TRAINED = ("adam, linear", "schedule_free", "momo", "muon")


def candidates(*names: str) -> dict[str, Candidate]:
    chosen = {n: Candidate(OPTIMIZERS[n], OPTIMIZERS[n].space) for n in names}
    return chosen | {"adam, linear": chosen["adam"]._replace(schedule="linear")}


def test_a_shared_program_trains_each_as_its_own_would() -> None:
    problem, common = tiny_problem(), make_common(tiny_problem())
    chosen = candidates("sgd", "adam", "schedule_free", "momo", "muon")
    # the problem is traced for what trains and for what evaluates, once for all
    objective = chex.assert_max_traces(n=2)(problem.objective)
    counted = replace(problem, objective=objective)
    chex.clear_trace_counter()
    shared = shared_step_functions(counted, chosen, "map")
    start, order = seed_keys(PROTOCOL, range(3))
    for name in TRAINED:
        candidate, losses = chosen[name], []
        for functions in (shared[name], make_step_functions(problem, candidate)):
            at = functions.arguments(points(candidate, PROTOCOL, "blobs"))
            replicas = as_replicas(at, 3, PROTOCOL)
            fitted = fit(
                start_replicas(common, functions, start, replicas),
                functions.train_step,
                problem.train,
                key=tile(order, 6),
                epochs=2,
                batch_size=problem.batch_size,
                evaluators={
                    "validation": Evaluator(
                        functions.eval_step, problem.validation, args=replicas.args
                    )
                },
                evaluate_first=False,
                replicas=replicas,
            )
            losses.append([row["loss"] for row in fitted.records])
            state = jax.vmap(functions.evaluated)(fitted.state)
            losses.append(jax.tree.leaves(state.params))
        for got, want in zip(losses[:2], losses[2:], strict=True):
            chex.assert_trees_all_close(
                *jax.tree.map(np.float32, (got, want)), rtol=2e-4, atol=2e-5
            )
        assert not np.allclose(losses[0][0], losses[0][-1])  # it has learned


def test_optimizers_of_large_networks_share_only_with_their_like(
    monkeypatch: Patch,
) -> None:
    problem, chosen = tiny_problem(), candidates(*NAMES)
    small = shared_step_functions(problem, chosen, "map")
    assert len({f.train_step for f in small.values()}) == 1
    monkeypatch.setattr(programs, "MANY", 1)
    large = shared_step_functions(problem, chosen, "map")
    step = {name: functions.train_step for name, functions in large.items()}
    assert step["momentum"] is step["momo"] is not step["sgd"]
    assert step["adam"] is step["lamb"] is step["adam, linear"] is not step["momentum"]
    assert next(iter(large)) == "sgd"  # one program after another
    by_itself = shared_step_functions(problem, chosen, "vmap")
    assert len({f.train_step for f in by_itself.values()}) == len(chosen)


def test_a_state_with_keys_of_random_numbers_has_a_program_of_its_own() -> None:
    noisy = Optimizer(
        lambda rate: optax.noisy_sgd(rate, key=jax.random.key(0)),
        rate=0.1, rule="", source="", space=OPTIMIZERS["sgd"].space,
    )  # fmt: skip
    chosen = candidates("sgd", "adam") | {"noisy": Candidate(noisy, noisy.space)}
    shared = shared_step_functions(tiny_problem(), chosen, "map")
    steps = {functions.train_step for functions in shared.values()}
    assert set(shared) == set(chosen)
    assert len(steps) == 2


@pytest.mark.parametrize("name", ["sgd", "muon", "dog"])
def test_a_pool_gives_a_state_back(name: str) -> None:
    params = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
    state = OPTIMIZERS[name].make(0.1).init(params)
    like = jax.eval_shape(lambda: state)
    others = jax.eval_shape(OPTIMIZERS["prodigy"].make(0.1).init, params)
    pool: dict = {}
    for leaf in [*jax.tree.leaves(like), *jax.tree.leaves(others)]:
        kind = f"{leaf.dtype}{list(leaf.shape)}"
        pool.setdefault(kind, []).append(jnp.zeros(leaf.shape, leaf.dtype))
    packed = pack_state(state, like, pool)
    chex.assert_trees_all_equal(unpack_state(packed, like), state)
    assert jax.tree.structure(packed) == jax.tree.structure(pool)
