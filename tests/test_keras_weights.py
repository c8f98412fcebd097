"""Keras's weight files: read as they were written, refused if anything is off."""

import os
import re
import shutil
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
from keras.src.legacy.saving import legacy_h5_format
from test_inception import copied, keras_inception, random_weights

from jaxstudy.pretrained import keras_index, keras_weights
from jaxstudy.pretrained.keras_weights import (
    KerasLayer,
    inception_weights,
    load_inception_v3,
    read_keras_layers,
)
from jaxstudy.types import UserError
from tests.conftest import Patch, contents

# of Keras's own variables, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept"
)

Layers = list[KerasLayer]
OWN_PROCESS = keras_weights._index


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: Patch) -> None:
    """Starting the program that opens HDF5 takes longer than most of these tests."""
    monkeypatch.setattr(keras_weights, "_index", keras_index.index)


@pytest.fixture
def in_its_own_process(in_this_process: None, monkeypatch: Patch) -> None:
    monkeypatch.setattr(keras_weights, "_index", OWN_PROCESS)


def write_old(model: keras.Model, path: Path) -> None:
    """The weights alone, as the files of keras.applications have them."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


FORMATS: dict[str, Callable[[keras.Model, Path], None]] = {
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


def arrays(layers: Sequence[KerasLayer]) -> list[list[np.ndarray]]:
    return [list(layer.arrays) for layer in layers]


def values(layers: Sequence[Any]) -> list[list[np.ndarray]]:
    """Of Keras's own layers."""
    return [list(map(np.asarray, x.get_weights())) for x in layers if x.weights]


def kind(layer: Any) -> str:
    return layer.name.rstrip("0123456789").rstrip("_")


def same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@formats
def test_layers_read_back_as_keras_has_them(name: str, tmp_path: Path) -> None:
    """In the model's order; twelve of a kind, so that 10 has to come after 9.

    Neither frozen layers nor the moments that Adam keeps make a difference.
    """
    path, model = tmp_path / name, network(12)
    layers = list(model.layers)
    if name in ("new.weights.h5", "model.keras"):  # class by class
        layers.sort(key=kind)
    FORMATS[name](model, path)
    same(arrays(read_keras_layers(path)), values(layers))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    model.trainable = False
    model.compile(optimizer)
    FORMATS[name](model, path)
    same(arrays(read_keras_layers(path)), values(layers))


@formats
@pytest.mark.parametrize("trained", [slice(6, None), slice(6)])
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
    FORMATS[name](
        keras.Sequential([*layers, keras.layers.Dropout(0.5)]), tmp_path / name
    )
    found = [x for x in read_keras_layers(tmp_path / name) if len(x.arrays) < 4]
    same(arrays(found), values(sorted(inner.layers, key=kind)))


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

    same(arrays(read_keras_layers(edited(split)(path))), before)


@pytest.mark.torture
@pytest.mark.usefixtures("in_its_own_process")
def test_the_network_is_found_inside_another(tmp_path: Path) -> None:
    """What people make of InceptionV3: some of its last layers are trained, too.

    It has as many parameters as without top, and the same as they were.
    """
    inception = keras_inception()
    weights = random_weights(inception)
    inception.set_weights([weights[id(v)] for v in inception.weights])
    bottom = keras.Model(inception.input, inception.get_layer("mixed10").output)
    for i, layer in enumerate(bottom.layers):
        layer.trainable = i >= 249
    augment = keras.Sequential([keras.layers.RandomFlip(), keras.layers.Rescaling(2)])
    layers: list[Any] = [keras.Input((75, 75, 3)), augment, bottom]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    path = tmp_path / "whole.h5"
    keras.Sequential([*layers, keras.layers.Dense(5)]).save(path)
    found = load_inception_v3(path, include_top=False)
    path.unlink()
    same(found, copied(inception, random_weights(inception), include_top=False))
    leaves = jax.tree.leaves(found)
    assert all(isinstance(x, jax.Array) for x in leaves)
    assert sum(x.size for x in leaves) == 21_802_784


def layers_of(model: keras.Model) -> Layers:
    """Zeros in the shapes of a Keras model's weights, which take no memory."""
    return [
        KerasLayer(
            layer.name, [np.broadcast_to(np.float32(0), w.shape) for w in layer.weights]
        )
        for layer in model.layers
        if layer.weights
    ]


def of_ten_classes(layers: Layers) -> None:
    layers[-1] = KerasLayer("top", [np.zeros((2048, 10)), np.zeros(10)])


def in_order_of_creation(layers: Layers) -> None:
    """That in which Keras makes them, and numbers them."""

    def number(layer: KerasLayer) -> int:
        counted = re.search(r"_(\d+)$", layer.name)
        return int(counted[1]) if counted else 0

    layers.sort(key=number)


def in_another_order(layers: Layers) -> None:
    in_order_of_creation(layers)
    layers.reverse()


def replaced(at: int, name: str, arrays: Sequence[np.ndarray]) -> Any:
    return lambda layers: layers.__setitem__(at, KerasLayer(name, arrays))


NAN = np.full((3, 3, 3, 32), np.nan)
ANOTHER = {
    r"layer top .* \(2048, 10\) instead of \(2048, 1000\)": of_ten_classes,
    "2 dense layers instead of 1": lambda layers: layers.append(layers[-1]),
    "93 normalisation layers instead of 94": lambda layers: layers.pop(1),
    r"layer bn holds arrays of shape \(32,\), \(32,\)": replaced(
        1, "bn", [np.zeros(32)] * 4
    ),
    r"layer \w+ .* instead of .* conv1/": in_another_order,
    "not every number in layer conv2d is finite": replaced(0, "conv2d", [NAN]),
    r"layer deep holds arrays of shape .*, \.\.\.$": replaced(0, "deep", [NAN] * 9),
}


def test_another_network_is_refused() -> None:
    whole = layers_of(keras_inception())
    inception_weights(whole)  # as it is, it will do
    for message, change in ANOTHER.items():
        layers = [*whole]
        change(layers)
        with pytest.raises(ValueError, match=message):
            inception_weights(layers)
    with pytest.raises(ValueError, match="holds the network more than once"):
        inception_weights([*whole, *whole], include_top=False)


def with_another_head(layers: Layers) -> None:
    """Of convolutions and normalisations, before and after, and of other kinds."""
    shape = [np.zeros((1, 1, 3, 3))], [np.zeros(3)] * 3, [np.zeros(5)] * 4
    more = [KerasLayer("more", arrays) for arrays in shape]
    layers[:] = [*more, *layers[:-1], *more, *layers[-1:], *layers[-1:]]


def test_other_layers_and_another_order_make_no_difference() -> None:
    """Each array is its own: all numbers of a layer are its place."""
    whole = [
        KerasLayer(name, [np.broadcast_to(np.float32(i), a.shape) for a in arrays])
        for i, (name, arrays) in enumerate(layers_of(keras_inception()))
    ]
    expected = inception_weights(whole[:-1], include_top=False)
    for change in (of_ten_classes, with_another_head, in_order_of_creation):
        layers = [*whole]
        change(layers)
        same(inception_weights(layers, include_top=False), expected)


Change = Callable[[Path], Path]  # of new.weights.h5; returns where the result lies


def zipped(path: Path, name: str = "model.weights.h5", compression: int = 0) -> Path:
    """The weights of a file, as the only member of a zip file."""
    target = path.with_name("packed.keras")
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr(name, path.read_bytes())
    return target


def edited(change: Callable[[Any], Any]) -> Change:
    def edit(path: Path) -> Path:
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return edit


def bias(make: Callable[[Any, str], Any]) -> Change:
    """The bias of dense, made anew."""

    def change(file: Any) -> None:
        del file["layers/dense/vars/1"]
        make(file["layers/dense/vars"], "1")

    return edited(change)


def array(*args: Any, **how: Any) -> Change:
    return bias(lambda group, name: group.create_dataset(name, *args, **how))


def put(path: str, value: Any) -> Change:
    return edited(lambda file: file.__setitem__(path, value))


def linked(path: str, target: str) -> Change:
    return edited(lambda file: file.__setitem__(path, file[target]))


def names(value: Any) -> Change:
    return edited(lambda file: file.attrs.create("layer_names", value))


def written_over(path: Path, old: bytes, new: bytes, skip: int = 0) -> Path:
    """Where the file first has `old`, and so many bytes on."""
    content = bytearray(path.read_bytes())
    start = content.index(old) + skip
    content[start : start + len(new)] = new
    path.write_bytes(content)
    return path


def emptied(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def a_pipe(path: Path) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


def external(group: h5py.Group, name: str) -> None:
    secret = Path(group.file.filename).with_name("secret")
    secret.write_bytes(np.ones(3, "f4").tobytes())
    group.create_dataset(name, (3,), "f4", external=[(str(secret), 0, 12)])


def virtual(group: h5py.Group, name: str) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    group.create_virtual_dataset(name, layout)


def odd_floats(group: Any, name: str) -> None:
    """Of four bytes, with another exponent than numpy's."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 22, 9, 0, 22)
    space = h5py.h5s.create_simple((3,))
    dataset = h5py.h5d.create(group.id, name.encode(), kind, space)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones(3, "f4"))


BIAS = "layers/dense/vars/1"
MANY = (2**20, 2**20)
NO_FLOATS = "vars/1, there are no floating-point numbers"
ELSEWHERE = "vars/1, values are compressed, in chunks, or in another file"
NO_NAMES = "layer_names of / is no list of names"
PROBLEMS: dict[str, tuple[Change, str]] = {
    "missing": (lambda path: path.with_name("none"), "none: it is missing"),
    "folder": (lambda path: path.parent, "it is no file"),
    "pipe": (a_pipe, "it is no file"),
    "empty": (emptied, "it is not an HDF5 file"),
    "other HDF5": (edited(h5py.File.clear), "it holds no layers of Keras"),
    "compressed zip": (lambda p: zipped(p, compression=8), "weights.h5 is compressed"),
    "large zip": (
        lambda p: written_over(zipped(p), b"PK\1\2", b"\xfe\xff\xff\xff", 24),
        "model.weights.h5 is compressed",
    ),
    "other zip": (lambda p: zipped(p, "../model.weights.h5"), "a zip file without mod"),
    "damaged zip": (
        lambda p: written_over(zipped(p), b"PK\1\2", b"PK\0\0"),
        "zip file is damaged",
    ),
    "zipped text": (lambda path: zipped(emptied(path)), "it is not an HDF5 file"),
    "complex": (array(data=[1j, 2, 3]), NO_FLOATS),
    "objects": (array((3,), h5py.vlen_dtype("f4")), NO_FLOATS),
    "odd numbers": (bias(odd_floats), NO_FLOATS),
    "empty array": (array(data=h5py.Empty("f4")), "vars/1, there is no shape"),
    "group": (bias(h5py.Group.create_group), "vars/1 is no dataset"),
    "dataset": (put("layers/x", 1.0), "layers/x is no group"),
    "never written": (array((3,), "f4"), "vars/1, values are missing"),
    "bomb": (array(MANY, "f8", chunks=(2**10,) * 2, compression="gzip"), ELSEWHERE),
    "external array": (bias(external), ELSEWHERE),
    "virtual array": (bias(virtual), ELSEWHERE),
    "soft link": (put("layers/x", h5py.SoftLink("/layers/dense")), "/x is a link"),
    "external link": (put("layers/x", h5py.ExternalLink("o.h5", "/")), "/x is a link"),
    "inside itself": (linked("layers/dense/layers", "layers"), "more than once"),
    "same array": (linked("layers/dense/vars/2", BIAS), "vars/2 is there more than"),
    "one name": (names("a"), NO_NAMES),
    "another name": (names(["layers/../.."]), r"/layers/\.\. is missing"),
    "damaged": (lambda p: written_over(p, b"SNOD", b"X"), r"it is damaged \(.*signat"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_named_and_nothing_else_happens(
    problem: str, small: keras.Model, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "files"
    folder.mkdir()
    path = folder / "new.weights.h5"
    small.save_weights(path)
    inject, message = PROBLEMS[problem]
    path = inject(path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"^no Keras weights can .*{message}") as info:
        read_keras_layers(path)
    assert "\n" not in str(info.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["whole.h5", "model.keras"])
def test_code_in_a_file_does_not_run(name: str, tmp_path: Path) -> None:
    """Keras writes the bytes of a lambda; the file may as well describe no model."""
    double = keras.layers.Lambda(lambda x: 2 * x, output_shape=(2,))
    model = keras.Sequential([keras.Input((2,)), double, keras.layers.Dense(3)])
    FORMATS[name](model, tmp_path / name)
    (found,) = read_keras_layers(tmp_path / name)
    same(found.arrays, [np.asarray(v.value) for v in model.variables])


@formats
def test_a_file_cut_anywhere_is_refused(
    name: str, small: keras.Model, tmp_path: Path
) -> None:
    path = tmp_path / name
    FORMATS[name](small, path)
    with pytest.raises(UserError, match=f"{path}.* 2 convolution layers .* of 94"):
        load_inception_v3(path)  # it is whole, but of another network
    content = path.read_bytes()
    for size in range(0, len(content), 997):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=str(path)):
            read_keras_layers(path)


@pytest.mark.usefixtures("in_its_own_process")
def test_a_crash_of_the_library_or_one_without_end_is_an_error(
    small: keras.Model, tmp_path: Path, monkeypatch: Patch
) -> None:
    """A few flipped bytes are enough for either."""
    path = tmp_path / "new.weights.h5"
    small.save_weights(path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("false"))
        with pytest.raises(UserError, match=f"{path}: .*library crashes"):
            read_keras_layers(path)
    monkeypatch.setattr(keras_weights, "_SECONDS", 0.001)
    with pytest.raises(UserError, match=rf"{path}: .*takes over 0.001 s"):
        read_keras_layers(path)
