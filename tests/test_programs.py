"""One program for several optimizers: each is trained as it would be by itself."""

from collections import Counter
from dataclasses import replace

import chex
import jax
import numpy as np
import optax

from jaxstudy.optimizers import OPTIMIZERS, Optimizer
from jaxstudy.study import programs
from jaxstudy.study.candidates import Candidate
from jaxstudy.study.programs import make_step_functions, shared_step_functions
from jaxstudy.study.runner import (
    Protocol,
    as_replicas,
    fit_replicas,
    points,
    seed_keys,
)
from jaxstudy.training import Evaluator
from tests.conftest import Patch
from tests.test_study import tiny_problem

PROTOCOL = Protocol(trials=2)
# states of 0 to 3 copies of the parameters and of scalars; by array and as a vector;
# with the loss of the batch; with other parameters to evaluate
NAMES = ("sgd", "momentum", "adam", "lamb", "schedule_free", "prodigy", "momo", "muon")
TRAINED = ("adam, linear", "momo", "muon")  # schedule_free is in test_study


def candidates(*names: str) -> dict[str, Candidate]:
    chosen = {n: Candidate(OPTIMIZERS[n], OPTIMIZERS[n].space) for n in names}
    return chosen | {"adam, linear": chosen["adam"]._replace(schedule="linear")}


def test_a_shared_program_trains_each_as_its_own_would() -> None:
    problem = tiny_problem()
    chosen = candidates("sgd", "adam", "schedule_free", "momo", "muon")
    # the problem is traced for what trains and for what evaluates, once for all
    objective = chex.assert_max_traces(n=2)(problem.objective)
    counted = replace(problem, objective=objective)
    chex.clear_trace_counter()
    shared = shared_step_functions(counted, chosen, "map")
    for name in TRAINED:
        candidate, found = chosen[name], []
        for functions in (shared[name], make_step_functions(problem, candidate)):
            at = functions.arguments(points(candidate, PROTOCOL, "blobs"))
            replicas = as_replicas(at, 3)
            measure = Evaluator(
                functions.eval_step, problem.validation, args=replicas.args
            )
            state, records = fit_replicas(
                problem, functions, replicas, seed_keys(PROTOCOL, range(3)),
                evaluators={"validation": measure}, evaluate_first=False,
            )  # fmt: skip
            evaluated = jax.vmap(functions.evaluated)(state).params
            found.append(([row["loss"] for row in records], evaluated))
        chex.assert_trees_all_close(
            *jax.tree.map(np.float32, found), rtol=2e-4, atol=2e-5
        )
        losses = found[0][0]
        assert not np.allclose(losses[0], losses[-1])  # it has learned


def test_optimizers_share_a_program_with_their_like(monkeypatch: Patch) -> None:
    problem, chosen = tiny_problem(), candidates(*NAMES)
    noisy = Optimizer(
        lambda rate: optax.noisy_sgd(rate, key=jax.random.key(0)),
        rate=0.1, rule="", source="", space=OPTIMIZERS["sgd"].space,
    )  # fmt: skip
    # whose state has keys of random numbers, and so a program of its own
    small = shared_step_functions(
        problem, chosen | {"noisy": Candidate(noisy, noisy.space)}, "map"
    )
    assert set(small) == {*chosen, "noisy"}
    steps = Counter(functions.train_step for functions in small.values())
    assert sorted(steps.values()) == [1, len(chosen)]
    monkeypatch.setattr(programs, "MANY", 1)
    large = shared_step_functions(problem, chosen, "map")
    step = {name: functions.train_step for name, functions in large.items()}
    assert step["momentum"] is step["momo"] is not step["sgd"]
    assert step["adam"] is step["lamb"] is step["adam, linear"] is not step["momentum"]
    assert next(iter(large)) == "sgd"  # one program after another
    by_itself = shared_step_functions(problem, chosen, "vmap")
    assert len({f.train_step for f in by_itself.values()}) == len(chosen)
