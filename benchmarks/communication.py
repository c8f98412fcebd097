"""What a step costs to communicate when devices share its batch: on paper.

Counts, of each problem of the optimizer benchmark, the multiplications and additions of
a training step and the bytes of its gradient; states how long an accelerator would
compute, and how long devices would take to sum the gradient, at round figures of
today's hardware. Nothing is timed. Writes results/communication.json, from which
docs/guides/scaling.md has its table.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstudy.dataset import take
from jaxstudy.runs.cli import exit_code
from jaxstudy.runs.files import write_atomically
from jaxstudy.study.problems import PROBLEMS, Problem

OUT = Path(__file__).parents[1] / "results" / "communication.json"
SHOWN = (
    "admissions_network", "digits", "fashion_cnn", "tunes_lstm", "words_transformer",
    "fmnist_2c2d", "tunes_lstm_large", "words_transformer_large",
)  # fmt: skip
COMPUTE = 400e12  # operations a second: half of what an H100 does in bfloat16
BANDWIDTHS = (25e9, 200e9, 900e9)  # bytes a second: between hosts; fast; within a host
LEAST = 0.9  # efficiency: time to compute / all time


def operations(jaxpr: Any) -> int:
    """Multiplications and additions of the products and convolutions of a program.

    A scan counts as often as it runs; of branches for several platforms, the cheapest.
    """
    total = 0
    for eqn in jaxpr.eqns:
        kind, inner = eqn.primitive.name, [operations(j) for j in programs_within(eqn)]
        if kind == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            sizes = [eqn.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes)
        elif kind == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * each
        elif kind == "scan":
            total += eqn.params["length"] * sum(inner)
        elif kind == "cond":
            total += min(inner)
        else:
            total += sum(inner)
    return total


def programs_within(eqn: Any) -> list[Any]:
    """The programs within an operation."""
    leaves = jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns"))
    programs = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [program for program in programs if hasattr(program, "eqns")]


def step_operations(problem: Problem) -> int:
    """Those of the gradient of a problem's objective on one of its batches."""
    batch: dict[str, Any] = take(problem.train, np.arange(problem.batch_size))
    batch["mask"] = np.ones(problem.batch_size, bool)
    params, extra = jax.eval_shape(problem.model.init, jax.random.key(0))
    gradient = jax.grad(problem.objective, has_aux=True)
    program = jax.make_jaxpr(gradient)(params, extra, batch, jax.random.key(0))
    return operations(program.jaxpr)


def costs(problem: Problem) -> dict[str, Any]:
    """Bytes and operations of a step, and what follows of them.

    n devices sum a gradient of b bytes in about 2 (n - 1) / n b / bandwidth seconds,
    each sending and receiving that much (a ring); that nothing is computed meanwhile,
    and that a message takes no time to begin, are assumed.
    """
    params, _ = jax.eval_shape(problem.model.init, jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    work, size = step_operations(problem), 4 * count
    compute_s = work / COMPUTE
    found: dict[str, Any] = {
        "title": problem.title,
        "batch": problem.batch_size,
        "parameters": count,
        "bytes": size,
        "operations": work,
        "compute_s": compute_s,
    }
    for bandwidth in BANDWIDTHS:
        sum_s = 2 * size / bandwidth  # by many devices
        allowed = compute_s * (1 / LEAST - 1)  # for the sum, if one device computed all
        found[f"{bandwidth / 1e9:.0f} GB/s"] = {
            "sum_s": sum_s,
            "devices": 1 + int(allowed / sum_s),
            "rows": math.ceil(sum_s / (allowed / problem.batch_size)),
        }
    return found


def main() -> None:
    """Count, and write."""
    found = {name: costs(PROBLEMS[name]()) for name in SHOWN}
    assumed = {"compute": COMPUTE, "bandwidths": BANDWIDTHS, "efficiency": LEAST}
    text = json.dumps({"assumed": assumed, "problems": found}, indent=1)
    write_atomically(OUT, text + "\n")
    print(f"written to {OUT}")


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
