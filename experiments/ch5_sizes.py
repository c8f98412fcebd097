"""Lesson 5, sizes: how many rows a transposed convolution makes of an image's.

The course gives a formula: (size - 1) stride - 2 padding + (kernel - 1) + 1. Here it
stands beside the shapes that JAX makes, for kernels of 1 to 7, strides of 1 to 3 and
paddings of 0 to 2. With "SAME" padding, as in the networks of ch5_gan.py, kernel -
stride rows are cut off in all, so that there are stride times as many as before. Its
name comes from its matrix, which is that of a convolution, transposed.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxstudy import ops
from jaxstudy.runs import plots
from jaxstudy.runs.cli import Count, Settings, experiment
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.run import Run
from jaxstudy.types import Array

FORMULA, SAME, BACK, TRANSPOSE = (
    "size formula: largest difference", '"SAME": largest difference from stride x size',
    "convolution of what was made: largest difference from size",
    "transpose of a convolution: largest difference",
)  # fmt: skip
LESSON = Lesson(
    number="5.2.1",
    title="Transposed convolution",
    question="How large an image does a transposed convolution make of another?",
    metrics=(FORMULA, SAME, BACK, TRANSPOSE),
    claims=(
        Claim("The course's formula gives the number of rows for every kernel, stride "
              "and padding that was tried.", (FORMULA, 0), "="),
        Claim('With "SAME" padding there are stride times as many rows.',
              (SAME, 0), "="),
        Claim("A convolution with the same kernel, stride and padding leads back to "
              "the size before.", (BACK, 0), "="),
        Claim("The layer of the generator multiplies by the transpose of a "
              "convolution's matrix, to within 0.00001.", (TRANSPOSE, 1e-5), "<"),
    ),
    figures={
        "sizes": "Rows after the layer by size of the kernel, a panel for each stride. "
        "Lines are the formula, dots what JAX makes: a dot beside its line would be an "
        'error. Crosses are made with "SAME": they stay at stride times the size, '
        "whatever the kernel.",
        "overlap": "How many places of the kernel are added into each row of the "
        "result, without padding. With a kernel that is a multiple of the stride all "
        "inner rows get as many; with kernel 3 and stride 2 they get one and two by "
        "turns, which can show as a checkerboard in generated images.",
    },
    try_it={
        "--size 8": "Twice as many rows before: the lines move up by 4 times the "
        "stride, and keep their slope.",
        "--size 1": "A single row: without padding the result is as large as the "
        "kernel, whatever the stride.",
        "--size 16": "The rows of the last layer of a network for 32 by 32 pixels.",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Config(Settings):
    """The image."""

    size: Count = 4
    """Height and width before the convolution."""


PRESETS = {"smoke": Config(), "quick": Config(), "full": Config()}


def formula_rows(size: int, kernel: int, stride: int, padding: int) -> int:
    """How many rows a transposed convolution makes of `size`, by the formula."""
    return (size - 1) * stride - 2 * padding + (kernel - 1) + 1


def jax_rows(
    size: int, kernel: int, stride: int, padding: int | Literal["SAME"]
) -> int:
    """How many rows JAX makes of `size`: it pads what the stride has spread out."""

    def enlarge(x: Array, k: Array) -> Array:
        if padding == "SAME":  # as in the networks
            return ops.conv2d_transpose(x, k, stride)
        around = kernel - 1 - padding
        pads = [(around, around), (around, around)]
        return lax.conv_transpose(x, k, (stride, stride), pads)

    x, k = jnp.ones((1, size, size, 1)), jnp.ones((kernel, kernel, 1, 1))
    return jax.eval_shape(enlarge, x, k).shape[1]


def convolved_rows(rows: int, kernel: int, stride: int, padding: int) -> int:
    """How many rows JAX makes of `rows` by a convolution."""

    def convolve(x: Array, k: Array) -> Array:
        pads = [(padding, padding), (padding, padding)]
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, k, (stride, stride), pads, dimension_numbers=dimensions
        )

    x, k = jnp.ones((1, rows, rows, 1)), jnp.ones((kernel, kernel, 1, 1))
    return jax.eval_shape(convolve, x, k).shape[1]


def transpose_difference(size: int, seed: int) -> float:
    """The layer beside the transpose that JAX makes of a convolution: the largest gap.

    Kernel 3, stride 2 and "SAME", as in the networks, of 2 channels and 3.
    """
    x_key, k_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(x_key, (1, size, size, 3))
    kernel = jax.random.normal(k_key, (3, 3, 2, 3))

    def convolve(image: Array) -> Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=dimensions
        )

    image = jax.ShapeDtypeStruct((1, 2 * size, 2 * size, 2), x.dtype)
    (transposed,) = jax.linear_transpose(convolve, image)(x)
    return float(jnp.max(jnp.abs(transposed - ops.conv2d_transpose(x, kernel, 2))))


def draw_overlap(size: int, run: Run) -> None:
    """How many places of the kernel each row of the result gets."""
    spread = np.arange(2 * size - 1) % 2 == 0  # by a stride of 2
    figure, axes = plots.subplots(1, 3, figsize=(12, 2.4), sharey=True)
    for axis, kernel in zip(axes, (2, 3, 4), strict=True):
        counts = np.convolve(spread, np.ones(kernel))
        axis.bar(np.arange(len(counts)), counts)
        axis.set(title=f"kernel {kernel}, stride 2", xlabel="row of the result")
    axes[0].set(ylabel="terms added", yticks=range(3))
    plots.save(figure, run, "overlap")


def main(config: Config, run: Run) -> dict[str, float]:
    """The formula beside what JAX makes: the largest difference, and a figure."""
    figure, axes = plots.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    largest: dict[str, int] = dict.fromkeys((FORMULA, SAME, BACK), 0)
    for axis, stride in zip(axes, (1, 2, 3), strict=True):
        for padding, colour in zip((0, 1, 2), plots.COLOURS, strict=False):
            kernels = [
                k
                for k in range(padding + 1, 8)
                if formula_rows(config.size, k, stride, padding) > 0
            ]
            how = [(config.size, k, stride, padding) for k in kernels]
            formula, made = [formula_rows(*h) for h in how], [jax_rows(*h) for h in how]
            back = [convolved_rows(r, *h[1:]) for r, h in zip(made, how, strict=True)]
            for name, a, b in (
                (FORMULA, formula, made),
                (BACK, back, [config.size] * len(back)),
            ):
                apart = int(np.abs(np.subtract(a, b)).max())
                largest[name] = max(largest[name], apart)
            name = f"padding {padding}"
            axis.plot(kernels, formula, color=colour, label=f"{name}: formula")
            axis.plot(kernels, made, "o", color=colour, label=f"{name}: JAX")
        kernels = range(stride, 8)
        same = [jax_rows(config.size, k, stride, "SAME") for k in kernels]
        apart = int(np.abs(np.subtract(same, stride * config.size)).max())
        largest[SAME] = max(largest[SAME], apart)
        axis.plot(kernels, same, "kx", label='"SAME": JAX')
        axis.set(title=f"stride {stride}", xlabel="size of the kernel [rows]")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"rows of the output (input: {config.size})")
    axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(figure, run, "sizes")
    draw_overlap(config.size, run)
    differences = {name: float(apart) for name, apart in largest.items()}
    return differences | {TRANSPOSE: transpose_difference(config.size, config.seed)}


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
