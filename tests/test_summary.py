"""Summaries: every layer, every number once, and the connections that there are."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import pytest
from test_inception import keras_inception

from jaxstudy.model import (
    Model,
    Stage,
    from_linen,
    sequential,
    split_stages,
)
from jaxstudy.models.inception import inception_stages, inception_v3
from jaxstudy.models.mlp import mlp
from jaxstudy.models.summary import LayerRow, Summary, print_summary, summary
from jaxstudy.pretrained.keras_weights import keras_order
from jaxstudy.types import Array
from jaxstudy.wrappers import standardized, with_frozen_backbone

IMAGE = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)


def test_a_dense_network() -> None:
    model = mlp(3, (4, 5), 2)
    found = summary(model, jnp.ones((7, 3)))
    assert found.rows == (
        LayerRow("input", "Input", ((7, 3),), 0, 0, ()),
        LayerRow("hidden_1", "Dense", ((7, 4),), 16, 0, ("input",)),
        LayerRow("hidden_2", "Dense", ((7, 5),), 25, 0, ("hidden_1",)),
        LayerRow("output", "Dense", ((7, 2),), 12, 0, ("hidden_2",)),
    )
    assert (found.trainable, found.other) == (53, 0)
    whole = summary(model, jnp.ones((7, 3)), depth=0).rows[1]
    assert whole == LayerRow("MLP", "MLP", ((7, 2),), 53, 0, ("input",))


@pytest.fixture(scope="module")
def stages() -> Summary:
    """InceptionV3, one row a stage."""
    return summary(inception_v3((75, 75)), IMAGE)


@pytest.fixture(scope="module")
def opened() -> Summary:
    """InceptionV3, one row a layer."""
    return summary(inception_v3((75, 75)), IMAGE, depth=9)


def test_one_row_a_stage(stages: Summary) -> None:
    names = [stage.name for stage in inception_stages()]
    assert [row.name for row in stages.rows] == ["input", *names]
    before = [("input",), *((name,) for name in names[:-1])]
    assert [row.connected_to for row in stages.rows[1:]] == before
    shapes = {row.name: row.shapes for row in stages.rows}
    assert shapes["mixed2"] == ((2, 7, 7, 288),)
    assert shapes["mixed10"] == ((2, 1, 1, 2048),)


def test_parameters_are_those_of_keras(stages: Summary, opened: Summary) -> None:
    """In all, and layer by layer."""
    twin = keras_inception()
    for found in (stages, opened):
        trainable = sum(row.trainable for row in found.rows)
        other = sum(row.other for row in found.rows)
        assert (trainable, other) == (found.trainable, found.other)
        assert trainable + other == twin.count_params()
        assert trainable == 23_817_352
    weighted = [layer for layer in twin.layers if layer.weights]
    rows = [row for row in opened.rows if row.trainable]
    assert sorted(row.trainable + row.other for row in rows) == sorted(
        layer.count_params() for layer in weighted
    )


Graph = Mapping[str, Iterable[str]]


def between(graph: Graph, kept: Mapping[str, str]) -> dict[str, set[str]]:
    """What is kept of a graph, renamed, connected through what is left out."""

    def sources(name: str) -> set[str]:
        out: set[str] = set()
        for source in graph[name]:
            out |= {kept[source]} if source in kept else sources(source)
        return out

    return {new: sources(old) for old, new in kept.items()}


def test_all_connections_are_those_of_keras(opened: Summary) -> None:
    """Between convolutions, normalisations and the dense layer, across the others."""
    twin = keras_inception()
    places = keras_order(inception_stages())
    named = {"predictions": "predictions/dense"}
    for kind, place in (
        (keras.layers.Conv2D, "conv"),
        (keras.layers.BatchNormalization, "bn"),
    ):
        layers = [layer for layer in twin.layers if isinstance(layer, kind)]
        for layer, where in zip(layers, places, strict=True):
            named[layer.name] = "/".join((*where, place))
    expected = between(
        {
            layer.name: [
                parent.operation.name
                for node in layer._inbound_nodes
                for parent in node.parent_nodes
            ]
            for layer in twin.layers
        },
        named,
    )
    kept = ("Conv", "BatchNorm", "Dense")
    found = between(
        {row.name: row.connected_to for row in opened.rows},
        {row.name: row.name for row in opened.rows if row.kind in kept},
    )
    assert len(expected) == 2 * 94 + 1
    assert found == expected


def test_frozen_weights_are_not_trainable() -> None:
    """Nor are the numbers of a model in front, which belong to no layer of it."""
    bottom, top = split_stages(inception_stages()[:4], "conv2")
    features = jax.ShapeDtypeStruct((2, 37, 37, 32), jnp.float32)
    model = with_frozen_backbone(sequential(bottom, IMAGE), sequential(top, features))
    rows = {row.name: row for row in summary(model, IMAGE).rows}
    assert (rows["conv1"].trainable, rows["conv1"].other) == (0, 864 + 3 * 32)
    assert (rows["conv2"].trainable, rows["conv2"].other) == (9216 + 32, 64)
    assert rows["conv2"].connected_to == ("conv1",)

    found = summary(standardized(mlp(3, (), 1), 3), jnp.ones((5, 3)))
    assert [(row.trainable, row.other) for row in found.rows] == [(0, 0), (4, 0)]
    assert (found.trainable, found.other) == (4, 6)


class Twisted(nn.Module):
    """Two inputs and outputs, a layer called twice, a loop, one without parameters."""

    @nn.compact
    def __call__(self, x: Array, y: Array, train: bool) -> tuple[Array, Array]:
        shared = nn.Dense(4, name="shared")
        a, b = shared(x), shared(y)
        dropped = nn.Dropout(0.5, name="dropout")(a, deterministic=not train)
        rolled: Any = nn.RNN(nn.SimpleCell(4), name="rnn")(b)
        carry, _ = nn.RNN(nn.LSTMCell(4), name="lstm", return_carry=True)(a + b)
        return dropped + rolled, carry[0]


@pytest.fixture
def twisted() -> tuple[Model, Array, Array]:
    x, y = jnp.ones((2, 3, 5)), jnp.ones((2, 3, 5))
    return from_linen(Twisted(), x, y), x, y


def test_shared_layers_and_loops(twisted: tuple[Model, Array, Array]) -> None:
    model, *inputs = twisted
    found = summary(model, *inputs, depth=5)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == [
        *("input", "input (2)", "shared", "shared (2)", "dropout", "rnn", "lstm")
    ]
    assert {name: row.connected_to for name, row in rows.items()} == {
        "input": (),
        "input (2)": (),
        "shared": ("input",),
        "shared (2)": ("input (2)",),
        "dropout": ("shared",),
        "rnn": ("shared (2)",),
        "lstm": ("shared", "shared (2)"),
    }
    assert rows["shared"].trainable == 24
    assert rows["shared (2)"].trainable == rows["dropout"].trainable == 0
    assert rows["rnn"].trainable == 4 * 4 + 4 * 4 + 4
    assert rows["lstm"].trainable == 4 * (4 * 4 + 4 * 4 + 4)
    assert rows["rnn"].shapes == ((2, 3, 4),)
    assert rows["lstm"].shapes == ((2, 4), (2, 4), (2, 3, 4))
    assert found.trainable == sum(row.trainable for row in found.rows)


def test_a_summary_does_not_compute() -> None:
    """A model far too large for any memory is summed up as well."""
    size = 2**20
    stage = Stage("vast", lambda name: Vast(name=name))
    x = jax.ShapeDtypeStruct((1, size), jnp.float32)
    ((_, vast), trainable, _) = summary(sequential((stage,), x), x)
    assert vast.trainable == trainable == size**2 + size


class Vast(nn.Module):
    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return nn.Dense(x.shape[-1])(x)


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(sequential(inception_stages()[:4], IMAGE), IMAGE)
    printed = capsys.readouterr().out
    lines = [line.split("│")[1:-1] for line in printed.splitlines() if "│" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["input", "Input", "(2, 75, 75, 3)", "0", "0", ""],
        ["conv1", "ConvBN", "(2, 37, 37, 32)", "896", "64", "input"],
        ["conv2", "ConvBN", "(2, 35, 35, 32)", "9,248", "64", "conv1"],
        ["conv3", "ConvBN", "(2, 35, 35, 64)", "18,496", "128", "conv2"],
        ["pool1", "MaxPool", "(2, 17, 17, 64)", "0", "0", "conv3"],
    ]
    assert printed.endswith("\n28,896 parameters: 28,640 trainable, 256 other\n")
    print_summary(standardized(mlp(3, (), 1), 3), jnp.ones((5, 3)))
    printed = capsys.readouterr().out
    assert "10 parameters: 4 trainable, 6 other\n6 of them belong to no" in printed
