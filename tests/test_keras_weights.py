"""Keras's weight files: read as they were written, refused if anything is off."""

import contextlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import h5py
import jax
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras.src.legacy.saving import legacy_h5_format
from test_inception import copied, keras_inception, random_weights

from jaxstudy.pretrained import hdf5
from jaxstudy.pretrained.keras_weights import (
    KerasLayer,
    inception_weights,
    load_inception_v3,
    read_keras_layers,
)
from jaxstudy.types import UserError
from tests.conftest import contents

# of Keras's own variables, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept"
)

Write = Callable[[keras.Model, Path], None]


def write_old(model: keras.Model, path: Path) -> None:
    """The weights alone, as the files of keras.applications have them."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


FORMATS: dict[str, Write] = {
    "old.h5": write_old,
    "whole.h5": lambda model, path: model.save(path),
    "new.weights.h5": lambda model, path: model.save_weights(path),
    "model.keras": lambda model, path: model.save(path),
}
formats = pytest.mark.parametrize("name", FORMATS)


def network(convolutions: int = 2) -> keras.Model:
    """A small network with layers of every kind, and random weights, built by Keras."""
    layers: list[Any] = [keras.Input((6, 6, 2))]
    for _ in range(convolutions):
        layers += [
            keras.layers.Conv2D(2, 1, use_bias=False),
            keras.layers.BatchNormalization(scale=False),
            keras.layers.ReLU(),
        ]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(3)])
    numbers = np.random.default_rng(0)
    model.set_weights([numbers.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return network()


@pytest.fixture
def written(name: str, small: keras.Model, tmp_path: Path) -> Path:
    FORMATS[name](small, tmp_path / name)
    return tmp_path / name


def arrays(layers: Sequence[KerasLayer]) -> list[list[np.ndarray]]:
    return [list(map(np.asarray, layer.arrays)) for layer in layers]


def kind(layer: Any) -> str:
    return layer.name.rstrip("0123456789").rstrip("_")


def same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@formats
def test_layers_read_back_as_keras_has_them(name: str, tmp_path: Path) -> None:
    """In the model's order; twelve of a kind, so that 10 has to come after 9."""
    model = network(12)
    FORMATS[name](model, tmp_path / name)
    expected = [layer for layer in model.layers if layer.weights]
    if name in ("new.weights.h5", "model.keras"):  # class by class
        expected.sort(key=kind)
    same(
        arrays(read_keras_layers(tmp_path / name)),
        [[np.asarray(w) for w in layer.get_weights()] for layer in expected],
    )


@formats
@pytest.mark.parametrize("trained", [slice(0), slice(6, None), slice(6)])
def test_a_model_inside_a_model_is_opened(
    name: str, trained: slice, tmp_path: Path
) -> None:
    """Whichever of its layers are trained, between layers of any other make."""
    inner = network(4)
    inner.trainable = False
    for layer in inner.layers[trained]:
        layer.trainable = True
    layers: list[Any] = [keras.Input((6, 6, 2)), keras.layers.RandomFlip()]
    layers += [keras.Sequential([inner]), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dropout(0.5)])
    FORMATS[name](model, tmp_path / name)
    expected = sorted((layer for layer in inner.layers if layer.weights), key=kind)
    found = [
        layer for layer in read_keras_layers(tmp_path / name) if len(layer.arrays) < 4
    ]
    same(
        arrays(found),
        [[np.asarray(w) for w in layer.get_weights()] for layer in expected],
    )


@formats
def test_frozen_layers_are_written_in_the_same_order(name: str, tmp_path: Path) -> None:
    model = network()
    FORMATS[name](model, tmp_path / name)
    before = arrays(read_keras_layers(tmp_path / name))
    model.trainable = False
    FORMATS[name](model, tmp_path / name)
    same(arrays(read_keras_layers(tmp_path / name)), before)


@formats
def test_a_trained_model_brings_its_weights_alone(
    name: str, small: keras.Model, tmp_path: Path
) -> None:
    """Not the moments that Adam keeps, which are as large."""
    FORMATS[name](small, tmp_path / name)
    before = arrays(read_keras_layers(tmp_path / name))
    optimizer = keras.optimizers.Adam()
    optimizer.build(small.trainable_variables)
    small.compile(optimizer)
    FORMATS[name](small, tmp_path / name)
    same(arrays(read_keras_layers(tmp_path / name)), before)


def test_long_lists_of_names_come_in_pieces(small: keras.Model, tmp_path: Path) -> None:
    """As bytes of a fixed length, too, as older files have them."""
    path = tmp_path / "old.h5"
    write_old(small, path)
    before = arrays(read_keras_layers(path))

    def split(file: h5py.File) -> None:
        names = np.asarray(file.attrs["layer_names"]).astype("S")
        del file.attrs["layer_names"]
        for i, piece in enumerate(np.array_split(names, 3)):
            file.attrs[f"layer_names{i}"] = piece

    same(arrays(read_keras_layers(changed(path, split))), before)


@pytest.fixture(scope="module")
def inception() -> keras.Model:
    """Keras's InceptionV3 of random weights, random statistics too."""
    model = keras_inception()
    weights = random_weights(model)
    model.set_weights([weights[id(v)] for v in model.weights])
    return model


@formats
def test_inception_loads_from_what_keras_writes(
    name: str, inception: keras.Model, tmp_path: Path
) -> None:
    """The file does not outlast the test."""
    path = tmp_path / name
    FORMATS[name](inception, path)
    weights = random_weights(inception)
    try:
        found = load_inception_v3(path)
        same(found, copied(inception, weights))
        leaves = jax.tree.leaves(found)
        assert all(isinstance(x, jax.Array) for x in leaves)
        assert sum(x.size for x in leaves) == 23_851_784
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def transfer(inception: keras.Model) -> keras.Model:
    """What people make of InceptionV3: some of its last layers are trained, too."""
    bottom = keras.Model(inception.input, inception.get_layer("mixed10").output)
    for i, layer in enumerate(bottom.layers):
        layer.trainable = i >= 249
    augment = keras.Sequential([keras.layers.RandomFlip(), keras.layers.Rescaling(2)])
    layers: list[Any] = [keras.Input((75, 75, 3)), augment, bottom]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(5)])


@pytest.mark.parametrize("name", ["whole.h5", "model.keras"])
def test_the_network_is_found_inside_another(
    name: str, inception: keras.Model, transfer: keras.Model, tmp_path: Path
) -> None:
    """As many parameters as it has without top, and the same as they were."""
    path = tmp_path / name
    FORMATS[name](transfer, path)
    weights = random_weights(inception)
    try:
        found = load_inception_v3(path, include_top=False)
        same(found, copied(inception, weights, include_top=False))
        assert sum(x.size for x in jax.tree.leaves(found)) == 21_802_784
        with pytest.raises(UserError, match=r"layer batch_normalization\w* holds arr"):
            load_inception_v3(path)
    finally:
        path.unlink()


def layers_of(model: keras.Model) -> list[KerasLayer]:
    """Zeros in the shapes of a Keras model's weights, which take no memory."""
    return [
        KerasLayer(
            layer.name, [np.broadcast_to(np.float32(0), w.shape) for w in layer.weights]
        )
        for layer in model.layers
        if layer.weights
    ]


def of_ten_classes(layers: list[KerasLayer]) -> None:
    layers[-1] = KerasLayer("top", [np.zeros((2048, 10)), np.zeros(10)])


def one_more_layer(layers: list[KerasLayer]) -> None:
    layers.append(KerasLayer("dense", [np.zeros((1000, 10)), np.zeros(10)]))


def one_less(layers: list[KerasLayer]) -> None:
    layers.pop(1)


def with_scale(layers: list[KerasLayer]) -> None:
    layers[1] = KerasLayer("bn", [np.zeros(32)] * 4)


def in_order_of_creation(layers: list[KerasLayer]) -> None:
    """That in which Keras makes them, and numbers them."""

    def number(layer: KerasLayer) -> int:
        counted = re.search(r"_(\d+)$", layer.name)
        return int(counted[1]) if counted else 0

    layers.sort(key=number)


def in_another_order(layers: list[KerasLayer]) -> None:
    in_order_of_creation(layers)
    layers.reverse()


def nothing_finite(layers: list[KerasLayer]) -> None:
    layers[0] = KerasLayer("conv2d", [np.full(layers[0].arrays[0].shape, np.nan)])


def nested(layers: list[KerasLayer]) -> None:
    layers[:] = [KerasLayer("inception", [a for x in layers for a in x.arrays])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_ten_classes, r"layer top .* \(2048, 10\) instead of \(2048, 1000\)"),
        (one_more_layer, r"2 dense layers instead of 1"),
        (one_less, r"93 normalisation layers instead of 94"),
        (with_scale, r"layer bn holds arrays of shape \(32,\), \(32,\)"),
        (in_another_order, r"layer \w+ .* instead of .* conv1/"),
        (nothing_finite, r"not every number in layer conv2d is finite"),
        (nested, r"layer inception holds arrays of shape .*, \.\.\.$"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_another_network_is_refused(
    change: Callable[[list[KerasLayer]], None], message: str
) -> None:
    layers = layers_of(keras_inception())
    inception_weights(layers)  # as it is, it will do
    change(layers)
    with pytest.raises(ValueError, match=message):
        inception_weights(layers)


def with_another_head(layers: list[KerasLayer]) -> None:
    """Of convolutions and normalisations, before and after, and of other kinds."""
    shape = [np.zeros((1, 1, 3, 3))], [np.zeros(3)] * 3, [np.zeros(5)] * 4
    more = [KerasLayer("more", arrays) for arrays in shape]
    layers[:] = [*more, *layers[:-1], *more, *layers[-1:], *layers[-1:]]


@pytest.mark.parametrize(
    "change", [lambda _: None, of_ten_classes, with_another_head, in_order_of_creation]
)
def test_other_layers_and_another_order_make_no_difference(
    change: Callable[[list[KerasLayer]], None],
) -> None:
    """Each array is its own: all numbers of a layer are its place."""
    layers = [
        KerasLayer(name, [np.broadcast_to(np.float32(i), a.shape) for a in arrays])
        for i, (name, arrays) in enumerate(layers_of(keras_inception()))
    ]
    expected = inception_weights(layers[:-1], include_top=False)
    change(layers)
    same(inception_weights(layers, include_top=False), expected)


def test_the_same_network_twice_is_refused() -> None:
    layers = layers_of(keras_inception())
    with pytest.raises(ValueError, match="holds the network more than once"):
        inception_weights([*layers, *layers], include_top=False)


@formats
def test_a_file_of_another_network_is_refused(written: Path) -> None:
    with pytest.raises(UserError, match=f"{written}.* 2 convolution layers .* of 94"):
        load_inception_v3(written)


# A pickle that makes a file, if it is loaded.
PICKLE = b"cposix\nsystem\n(S'touch ran'\ntR."


def member(path: Path, name: str = "model.weights.h5", **how: Any) -> Path:
    """The weights of a file, as the only member of a zip file."""
    target = path.with_name("packed.keras")
    with zipfile.ZipFile(target, "w", **how) as archive:
        archive.writestr(name, path.read_bytes())
    return target


def changed(path: Path, change: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(make: Callable[[h5py.Group, str], Any]) -> Callable[[Path], Path]:
    """The bias of dense, made anew in the newer kind of file."""

    def change(file: h5py.File) -> None:
        group: Any = file["layers/dense/vars"]
        del group["1"]
        make(group, "1")

    return lambda path: changed(path, change)


def written_over(old: bytes, new: bytes) -> Callable[[Path], Path]:
    """Where the file first has `old`."""

    def change(path: Path) -> Path:
        content = bytearray(path.read_bytes())
        start = content.index(old)
        content[start : start + len(new)] = new
        path.write_bytes(content)
        return path

    return change


def rewritten(content: bytes) -> Callable[[Path], Path]:
    def change(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return change


def a_pipe(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


def in_circles(path: Path) -> Path:
    """The tree of names of the first group is above itself."""
    content = bytearray(path.read_bytes())
    node = content.index(b"TREE")
    content[node + 5] = 1
    content[node + 32 : node + 40] = node.to_bytes(8, "little")
    path.write_bytes(content)
    return path


def inside_itself(path: Path) -> Path:
    """A model whose layer is the model."""

    def change(file: h5py.File) -> None:
        layer: Any = file["layers/dense"]
        layer["layers"] = file["layers"]

    return changed(path, change)


def too_large(path: Path) -> Path:
    """A zip file that claims a terabyte."""
    packed = member(path)
    content = bytearray(packed.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")
    packed.write_bytes(content)
    return packed


def external(group: h5py.Group, name: str) -> None:
    secret = Path(group.file.filename).with_name("secret")
    secret.write_bytes(np.ones(3, "f4").tobytes())
    group.create_dataset(name, (3,), "f4", external=[(str(secret), 0, 12)])


def virtual(group: h5py.Group, name: str) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    group.create_virtual_dataset(name, layout)


def link(what: Any) -> Callable[[Path], Path]:
    return replaced(lambda group, name: group.__setitem__(name, what))


def array(*args: Any, **how: Any) -> Callable[[Path], Path]:
    return replaced(lambda group, name: group.create_dataset(name, *args, **how))


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path.with_name("none"), "none: it is missing"),
    "folder": (lambda path: path.parent, "it is no file"),
    "pipe": (a_pipe, "it is no file"),
    "empty": (rewritten(b""), "it is not an HDF5 file"),
    "text": (rewritten(b"weights"), "it is not an HDF5 file"),
    "pickle": (rewritten(PICKLE), "it is not an HDF5 file"),
    "packed pickle": (
        lambda path: member(rewritten(PICKLE)(path)),
        "it is not an HDF5 file",
    ),
    "other HDF5": (lambda path: changed(path, h5py.File.clear), "no layers of Keras"),
    "newer HDF5": (
        lambda path: h5py.File(path, "w", libver="latest").close() or path,
        "of an unknown version",
    ),
    "compressed zip": (
        lambda path: member(path, compression=zipfile.ZIP_DEFLATED),
        "model.weights.h5 is compressed",
    ),
    "large zip": (too_large, "model.weights.h5 is compressed"),
    "other zip": (
        lambda path: member(path, "../model.weights.h5"),
        "a zip file without model.weights.h5",
    ),
    "damaged zip": (
        lambda path: written_over(b"PK\1\2", b"PK\0\0")(member(path)),
        "zip file is damaged",
    ),
    "integers": (array(data=[1, 2, 3]), "no floating-point numbers"),
    "complex": (array(data=[1j, 2, 3]), "no floating-point numbers"),
    "texts": (array(data=["a", "b", "c"]), "no floating-point numbers"),
    "references": (array((3,), h5py.ref_dtype), "no floating-point numbers"),
    "empty array": (array(data=h5py.Empty("f4")), "there is no shape"),
    "group": (replaced(h5py.Group.create_group), "there is no array"),
    "never written": (array((3,), "f4"), "vars/1, a part of it is missing"),
    "chunks": (array(data=np.zeros(3), chunks=(1,)), "in chunks"),
    "bomb": (
        array((2**20, 2**20), "f8", chunks=(1024, 1024), compression="gzip"),
        "in chunks",
    ),
    "external array": (replaced(external), "or in another file"),
    "virtual array": (replaced(virtual), "or in another file"),
    "soft link": (link(h5py.SoftLink("/layers/dense/vars/0")), "vars/1 is a link"),
    "external link": (link(h5py.ExternalLink("other.h5", "/x")), "is no group of"),
    "inside itself": (inside_itself, "nested more than 8 deep"),
    "circles": (in_circles, "leads back to itself"),
    "damaged": (written_over(b"SNOD", b"SNOX"), "list of names is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_and_nothing_else_happens(
    fault: str, small: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()
    path = folder / "new.weights.h5"
    small.save_weights(path)
    inject, message = FAULTS[fault]
    path = inject(path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        read_keras_layers(path)
    assert contents(tmp_path) == before
    assert not Path("ran").exists()


def test_the_pickle_would_run(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    (tmp_path / "x").write_bytes(PICKLE)
    subprocess.run([sys.executable, "-m", "pickle", "x"], cwd=tmp_path, check=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["whole.h5", "model.keras"])
def test_code_in_a_file_does_not_run(name: str, tmp_path: Path) -> None:
    """Keras writes the bytes of a lambda; the file may as well describe no model."""
    double = keras.layers.Lambda(lambda x: 2 * x, output_shape=(2,))
    model = keras.Sequential([keras.Input((2,)), double, keras.layers.Dense(3)])
    FORMATS[name](model, tmp_path / name)
    (found,) = read_keras_layers(tmp_path / name)
    same(found.arrays, [np.asarray(v.value) for v in model.variables])


@formats
def test_a_truncated_file_is_refused(written: Path) -> None:
    content = written.read_bytes()
    for size in {*range(0, len(content), 397), len(content) - 1}:
        written.write_bytes(content[:size])
        with pytest.raises(UserError, match=str(written)):
            read_keras_layers(written)


@pytest.fixture(scope="module")
def originals(
    small: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    for name, write in FORMATS.items():
        write(small, folder / name)
    return {name: (folder / name).read_bytes() for name in FORMATS}


@settings(deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(list(FORMATS)),
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        min_size=1,
        max_size=8,
    ),
)
def test_any_bytes_are_read_or_refused(
    originals: dict[str, bytes],
    tmp_path: Path,
    name: str,
    flips: list[tuple[float, int]],
) -> None:
    """The HDF5 library itself crashes or never ends on some of these."""
    content = bytearray(originals[name])
    for place, value in flips:
        # half of them in the first part, which has most of the structure
        content[int(place**2 * len(content))] = value
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(UserError):
        for layer in read_keras_layers(tmp_path / name):
            assert sum(np.asarray(a).nbytes for a in layer.arrays) <= len(content)


names = st.text("abcdefgh_0123", min_size=1, max_size=9)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
dtypes = st.sampled_from(["<f2", "<f4", "<f8", ">f4", ">f8"])


@settings(deadline=None, max_examples=40)
@given(
    tree=st.dictionaries(
        names,
        st.dictionaries(names, st.tuples(shapes, dtypes), max_size=3),
        max_size=12,
    ),
    texts=st.lists(st.text("abcå/:0", max_size=20), max_size=30),
    fixed=st.booleans(),
)
def test_files_are_what_h5py_makes_of_them(
    tree: dict[str, dict[str, tuple[tuple[int, ...], str]]],
    texts: list[str],
    fixed: bool,
) -> None:
    """Groups, arrays and lists of texts, of a fixed length or not."""
    numbers, buffer = np.random.default_rng(0), io.BytesIO()
    encoded = [text.encode() for text in texts]
    with h5py.File(buffer, "w") as file:
        for group, leaves in tree.items():
            file.create_group(group)
            for leaf, (shape, dtype) in leaves.items():
                file[f"{group}/{leaf}"] = numbers.normal(size=shape).astype(dtype)
        file.attrs["other"] = 3
        file.attrs["texts"] = np.array(encoded, "S40") if fixed else texts
    root = hdf5.root(buffer.getvalue())
    assert root.texts("texts") == texts
    assert root.texts("none") is None
    assert set(root) == set(tree)
    with h5py.File(buffer) as file:
        for group, leaves in tree.items():
            assert set(root.group(group)) == set(leaves)
            for leaf in leaves:
                expected = np.asarray(file[f"{group}/{leaf}"])
                found = root.array(f"{group}/{leaf}")
                assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
                np.testing.assert_array_equal(found, expected)
