"""What frozen layers put out, computed once and cached.

The features of an image are the same in every epoch of every training, so they are kept
in the user's cache folder under the hash of all that they depend on.
`model.with_frozen_backbone` computes the same at every step.
"""

import hashlib
import importlib.metadata
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstudy.images.folders import read_image
from jaxstudy.messages import warn
from jaxstudy.model import Model
from jaxstudy.pretrained.backbones import (
    Backbone,
    on_pixels,
    with_stored_statistics,
)
from jaxstudy.runs.files import write_atomically
from jaxstudy.runs.progress import Bar
from jaxstudy.types import Array, PyTree, UserError

# What the outputs of frozen layers may take for all images, in memory and on the disk.
FEATURE_BYTES = 2**30
_SEAL = hashlib.sha256().digest_size


def features_of_files(
    network: Backbone, files: Sequence[Path], size: int
) -> np.ndarray:
    """What all layers of a backbone make of image files [N, D], brought to one size."""
    x = np.stack([read_image(path, (size, size)) for path in files])
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    model = on_pixels(network, with_stored_statistics(network.stages, image))
    return frozen_features(model, network.weights, x, batch_size=min(len(x), 64))


def frozen_features(
    model: Model,
    weights: PyTree,
    inputs: np.ndarray,
    *,
    batch_size: int = 64,
    title: str = "features",
    limit: int = FEATURE_BYTES,
) -> np.ndarray:
    """What a frozen model makes of inputs [N, ...], from the cache or new.

    `weights` are its {"params", "extra"}; it is evaluated in batches of `batch_size`.
    The cache is jaxstudy/features in the user's cache folder. A file there is named by
    the SHA-256 of the weights, the inputs, and the program that computes one from the
    other, as it is compiled for this device: whatever changes the outputs changes the
    name. It is read only if it is whole, by a SHA-256 at its end.
    Raises UserError where all outputs would take more than `limit` bytes.
    """

    def outputs_of(params: PyTree, extra: PyTree, x: Array) -> Array:
        return model.apply(params, extra, x, train=False, key=None)[0]

    batch = jax.ShapeDtypeStruct((batch_size, *inputs.shape[1:]), inputs.dtype)
    operands = weights["params"], weights["extra"]
    lowered = jax.jit(outputs_of).lower(*operands, batch)
    out = lowered.out_info
    shape = (len(inputs), *out.shape[1:])
    size = math.prod(shape) * out.dtype.itemsize
    if size > limit:
        raise UserError(
            f"the {title} of {len(inputs)} images take {size / 2**20:,.0f} MiB, more "
            f"than {limit / 2**20:,.0f}: freeze more layers, or take smaller images"
        )
    key = _content_hash(lowered.as_text(), weights, inputs)
    path = cache_folder() / f"{key}.npy"
    features = _read(path, size)
    if features is not None and (features.shape, features.dtype) == (shape, out.dtype):
        return features
    compiled = lowered.compile()
    features = np.empty(shape, out.dtype)
    with Bar(len(inputs), title) as bar:
        for begin in range(0, len(inputs), batch_size):
            # the last batch is filled up from the first images
            rows = np.arange(begin, begin + batch_size) % len(inputs)
            outputs = np.asarray(compiled(*operands, inputs[rows]))
            features[begin : begin + batch_size] = outputs[: len(inputs) - begin]
            bar.update(begin + batch_size)
    _write(path, features)
    return features


def cache_folder() -> Path:
    """Where features are kept; all in it can be removed, and is computed anew."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxstudy" / "features"


def _content_hash(program: str, weights: PyTree, inputs: np.ndarray) -> str:
    """The SHA-256 of all that the outputs depend on."""
    device = jax.devices()[0]
    digest = hashlib.sha256()

    def add(*description: Any, content: bytes = b"") -> None:
        digest.update(json.dumps([*description, len(content)]).encode())
        digest.update(content)

    def add_array(name: str, x: np.ndarray) -> None:
        content = np.ascontiguousarray(x).tobytes()
        add(name, list(x.shape), str(x.dtype), content=content)

    add(importlib.metadata.version("jaxlib"), device.platform, device.device_kind)
    add("program", content=program.encode())
    for path, leaf in jax.tree.leaves_with_path(weights):
        add_array(jax.tree_util.keystr(path), np.asarray(leaf))
    add_array("inputs", inputs)
    return digest.hexdigest()


def _seal(path: Path, content: bytes) -> bytes:
    """The end of a file. Its name counts, so that none passes for another."""
    return hashlib.sha256(path.name.encode() + content).digest()


def _read(path: Path, size: int) -> np.ndarray | None:
    """The array in a file; None where there is none, or not the whole."""
    try:
        if path.stat().st_size > size + 4096:  # an array's header is shorter
            return None
        content = path.read_bytes()
    except OSError:
        return None
    content, seal = content[:-_SEAL], content[-_SEAL:]
    if seal != _seal(path, content):
        return None
    return np.load(io.BytesIO(content), allow_pickle=False)


def _write(path: Path, array: np.ndarray) -> None:
    """Keep an array; a reader sees all of it or nothing. Warns where it cannot be."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    content = file.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content + _seal(path, content))
    except OSError as error:
        warn(f"{path.parent} cannot keep features: {error.strerror or error}")
