"""What a saved run predicts, as one file that JAX alone reads.

The file holds StableHLO for every platform, with the weights in it.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.errors import InconclusiveDimensionOperation
from jax.export import Exported, export, symbolic_shape

from jaxstudy.model import Model
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.saved import Saved, read_experiment, read_saved
from jaxstudy.types import Array, PyTree, UserError

PLATFORMS = ("cpu", "cuda", "tpu")


class Predictor(NamedTuple):
    """What a run predicts, as a function of arrays.

    Args:
        function: takes batches of inputs; `jax.jit` compiles it, weights are constants.
        inputs: shape and dtype of one example of each input, without the batch axis.
    """

    function: Callable[..., Any]
    inputs: tuple[PyTree, ...]


def mean_probabilities(model: Model, weights: PyTree) -> Callable[..., Array]:
    """A function of inputs: softmax of the logits, averaged over the replicas.

    weights: {"params", "extra"}, [replicas, ...] each.
    """

    def function(*inputs: Array) -> Array:
        def one(replica: PyTree) -> Array:
            trees = replica["params"], replica["extra"]
            logits, _ = model.apply(*trees, *inputs, train=False, key=None)
            return jax.nn.softmax(logits)

        return jax.lax.map(one, weights).mean(0)

    return function


def seeds_predictor(
    saved: Saved[Any],
    part: str,
    model: Model,
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
) -> Predictor:
    """The mean probabilities of a model that a run has trained from `config.seeds`.

    Args:
        saved: the run.
        part: the name of these trainings.
        model: from one input to logits.
        shape: of one example of the input.
        dtype: of the input.
    """
    weights = saved.replica_weights(model, saved.config.seeds, part)
    example = jax.ShapeDtypeStruct(shape, dtype)
    return Predictor(mean_probabilities(model, weights), (example,))


def export_function(predictor: Predictor, batch_size: int | None) -> Exported:
    """The exported function, of batches of that size, or of any where it is None."""
    size = symbolic_shape("batch")[0] if batch_size is None else batch_size
    examples = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((size, *a.shape), a.dtype), predictor.inputs
    )
    try:
        return export(jax.jit(predictor.function), platforms=PLATFORMS)(*examples)
    except (TypeError, InconclusiveDimensionOperation) as error:
        if batch_size is not None:
            raise
        raise UserError(
            "this model depends on how many examples a batch has: name a number by "
            "--batch-size"
        ) from error


def export_run(
    folder: Path,
    out: Path,
    batch_size: int | None,
    load: Callable[[str], ModuleType],
) -> str:
    """Write what a finished run predicts to a file, and describe it.

    The script of its experiment says what that is: `predictor(saved) -> Predictor`,
    whose docstring describes inputs and outputs. `load` imports a script by its name.
    Without a batch size the exported function takes any. Raises UserError where there
    is no such run or function, or the file cannot be.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: it must be 1 or more")
    if out.exists():
        raise UserError(f"{out} exists: --out takes the name of a new file")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} for --out {out}")
    name = read_experiment(folder)
    if not (folder / "result.json").is_file():
        raise UserError(f"the run in {folder} has not finished: --resume goes on")
    script = load(name)
    if not hasattr(script, "predictor"):
        raise UserError(f"{name} has no model to export: it defines no predictor()")
    saved = read_saved(folder, type(script.PRESETS["quick"]), name)
    predictor = script.predictor(saved)
    exported = export_function(predictor, batch_size)
    write_atomically(out, bytes(exported.serialize()))
    inputs, _ = jax.tree.unflatten(exported.in_tree, map(str, exported.in_avals))
    lines = (
        inspect.getdoc(script.predictor),
        f"inputs: {', '.join(map(str, inputs))}",
        f"outputs: {', '.join(map(str, exported.out_avals))}",
        f"written to {out}, for {', '.join(exported.platforms)}",
    )
    return "\n".join(map(str, lines))
