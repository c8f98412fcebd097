"""What a model consists of: layers, shapes, parameters, and what feeds what."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import rich.console
import rich.table
from flax.core.tracers import current_trace
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, Literal

from jaxstudy.model import Model
from jaxstudy.types import Array

_MARK = "jaxstudy.models.summary "  # and the number of a row: the name of its outputs


class LayerRow(NamedTuple):
    """A layer: the shapes of its outputs, its numbers, and where its inputs come from.

    `trainable` counts its parameters; `other` what it keeps that is not trained:
    statistics, and the weights of a frozen model.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    trainable: int
    other: int
    connected_to: tuple[str, ...]


class Summary(NamedTuple):
    """The rows, and the totals of the model, with what belongs to no row."""

    rows: tuple[LayerRow, ...]
    trainable: int
    other: int


def summary(
    model: Model, *inputs: Array | jax.ShapeDtypeStruct, depth: int = 1
) -> Summary:
    """The inputs and layers of a model, for inputs of these shapes, as they are called.

    A layer is a linen module inside `depth` others, or inside fewer if it calls none:
    a larger depth opens stages. Weights that layers share count in the first of them.
    Nothing is computed, the model is only traced; modules in a loop are not opened.
    """
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    rows: list[LayerRow] = []
    for x in inputs:
        name = _unused("input", rows)
        rows.append(LayerRow(name, "Input", (tuple(x.shape),), 0, 0, ()))

    def marked(params: Any, extra: Any, *inputs: Array) -> Any:
        # Wherever a wrapper may have put them, the leaves are the same objects.
        uncounted = {id(x): "trainable" for x in jax.tree.leaves(params)}
        uncounted |= {id(x): "other" for x in jax.tree.leaves(extra)}
        outside = current_trace()
        opened: list[bool] = []  # of every module being called: does it call others?

        def mark(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__" or current_trace() != outside:
                return call(*args, **kwargs)
            opened[:] = [*([True] * len(opened)), False]
            outputs = call(*args, **kwargs)
            inner, module = opened.pop(), context.module
            level = len(module.path)
            if level > depth or (level < depth and inner):
                return outputs
            counts = Counter()
            for x in _variables(module):
                counts[uncounted.pop(id(x), "")] += x.size
            kind = type(module).__name__
            rows.append(
                LayerRow(
                    _unused("/".join(module.path) or kind, rows),
                    kind,
                    tuple(tuple(x.shape) for x in jax.tree.leaves(outputs)),
                    counts["trainable"],
                    counts["other"],
                    (),
                )
            )
            return checkpoint_name(outputs, f"{_MARK}{len(rows) - 1}")

        with nn.intercept_methods(mark):
            return model.apply(params, extra, *inputs, train=False, key=None)

    jaxpr = jax.make_jaxpr(marked)(params, extra, *inputs).jaxpr
    names = [row.name for row in rows]
    connected = [
        row._replace(connected_to=tuple(names[i] for i in sorted(found)))
        for row, found in zip(
            rows, _upstream(jaxpr, len(inputs), len(rows)), strict=True
        )
    ]
    trainable, other = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, extra)
    )
    return Summary(tuple(connected), trainable, other)


def _variables(module: nn.Module) -> list[Any]:
    """Those of a module and of the modules it was given, as an RNN its cell."""
    found = jax.tree.leaves(dict(module.variables))
    for field in dataclasses.fields(module):
        held = getattr(module, field.name, None)
        if isinstance(held, nn.Module) and field.name != "parent" and held.scope:
            found += _variables(held)
    return found


def _unused(name: str, rows: Sequence[LayerRow]) -> str:
    """The name, numbered if a row has it: a layer called twice has two rows."""
    count = sum(row.name.partition(" ")[0] == name for row in rows)
    return f"{name} ({count + 1})" if count else name


def _upstream(jaxpr: Jaxpr, inputs: int, rows: int) -> list[set[int]]:
    """For every row, the rows nearest before it; the first `inputs` rows are inputs.

    Each value remembers from which rows it has come with none between. An operation
    with a program inside passes on what any of its operands remembers.
    """
    found: list[set[int]] = [set() for _ in range(rows)]
    memory = {
        var: {i} for i, var in enumerate(jaxpr.invars[len(jaxpr.invars) - inputs :])
    }
    for eqn in jaxpr.eqns:
        operands = [v for v in eqn.invars if not isinstance(v, Literal)]
        sources = set().union(*(memory.get(v, ()) for v in operands))
        name = str(eqn.params.get("name"))
        if eqn.primitive.name == "name" and name.startswith(_MARK):
            row = int(name.removeprefix(_MARK))
            found[row] |= sources
            sources = {row}
        memory |= dict.fromkeys(eqn.outvars, sources)
    return found


def print_summary(
    model: Model, *inputs: Array | jax.ShapeDtypeStruct, depth: int = 1
) -> None:
    """Print `summary` as a table, and the totals."""
    rows, trainable, other = summary(model, *inputs, depth=depth)
    table = rich.table.Table()
    for heading in ("layer", "kind", "output", "trainable", "other", "connected to"):
        numbers = heading in ("trainable", "other")
        table.add_column(
            heading, justify="right" if numbers else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            ", ".join(map(str, row.shapes)),
            f"{row.trainable:,}",
            f"{row.other:,}",
            ", ".join(row.connected_to),
        )
    console = rich.console.Console()
    if not console.is_terminal:  # a pipe or a file has no width to fit into
        console.width = 120
    console.print(table)
    total = trainable + other
    print(f"{total:,} parameters: {trainable:,} trainable, {other:,} other")
    outside = total - sum(row.trainable + row.other for row in rows)
    if outside:
        print(f"{outside:,} of them belong to no layer")
