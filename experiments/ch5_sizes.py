"""Lesson 5, sizes: how many rows a transposed convolution makes of an image's.

The course gives a formula: (size - 1) stride - 2 padding + (kernel - 1) + 1. Here it
stands beside the shapes that JAX makes, for kernels of 1 to 7, strides of 1 to 3 and
paddings of 0 to 2. With "SAME" padding, as in the networks of ch5_gan.py, kernel -
stride rows are cut off in all, so that there are stride times as many as before.

Expected: the largest difference is 0; each assertion is a point of the figure.
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
from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.run import Run
from jaxstudy.types import Array

LESSON = Lesson(
    number="5.2.1",
    title="Transposed convolution",
    question="How large an image does a transposed convolution make?",
    metrics=("size formula: largest difference",),
    claims=(),
    figures={},
)


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


def main(config: Config, run: Run) -> dict[str, float]:
    """The formula beside what JAX makes: the largest difference, and a figure."""
    figure, axes = plots.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    largest = 0
    for axis, stride in zip(axes, (1, 2, 3), strict=True):
        for padding, colour in zip((0, 1, 2), plots.COLOURS, strict=False):
            kernels = range(padding + 1, 8)
            formula = [formula_rows(config.size, k, stride, padding) for k in kernels]
            made = [jax_rows(config.size, k, stride, padding) for k in kernels]
            largest = max(largest, int(np.abs(np.subtract(formula, made)).max()))
            label = f"formula, padding {padding}"
            axis.plot(kernels, formula, color=colour, label=label)
            axis.plot(kernels, made, "o", color=colour, label="made by JAX")
        kernels = range(stride, 8)
        same = [jax_rows(config.size, k, stride, "SAME") for k in kernels]
        axis.plot(kernels, same, "kx", label='made with "SAME"')
        axis.set(title=f"stride {stride}", xlabel="kernel")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"rows made of {config.size}")
    axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(figure, run, "sizes")
    return {"size formula: largest difference": float(largest)}


if __name__ == "__main__":
    experiment(main, PRESETS, LESSON)
