"""Optimizers by name: one entry each."""

from collections.abc import Callable
from dataclasses import dataclass

import optax

from jaxstudy.types import Array

Rate = float | Array | optax.Schedule


@dataclass(frozen=True)
class Optimizer:
    """How to make an optimizer, and where it comes from.

    `make(rate, **hyperparameters)` builds it; every argument may be traced, so one
    compiled program can try many values. `rate` is a common starting point for dense
    networks on standardised inputs, not a recommendation. Rules are written with
    gradient g, parameters p, learning rate a.
    """

    make: Callable[..., optax.GradientTransformation]
    rate: float
    rule: str
    source: str


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(
        lambda rate: optax.sgd(rate),
        rate=0.1,
        rule="p -= a g",
        source="Robbins and Monro 1951",
    ),
    "momentum": Optimizer(
        lambda rate, momentum=0.9: optax.sgd(rate, momentum),
        rate=0.01,
        rule="m = b m + g; p -= a m",
        source="Polyak 1964",
    ),
    "nesterov": Optimizer(
        lambda rate, momentum=0.9: optax.sgd(rate, momentum, nesterov=True),
        rate=0.01,
        rule="m = b m + g; p -= a (b m + g)",
        source="Nesterov 1983; Sutskever et al. 2013",
    ),
    "adagrad": Optimizer(
        lambda rate, start=0.1, eps=1e-7: optax.adagrad(rate, start, eps),
        rate=0.1,
        rule="s += g^2; p -= a g / sqrt(s + eps)",
        source="Duchi, Hazan and Singer 2011",
    ),
    "rmsprop": Optimizer(
        lambda rate, decay=0.9, eps=1e-7: optax.rmsprop(rate, decay, eps),
        rate=0.001,
        rule="s = d s + (1 - d) g^2; p -= a g / sqrt(s + eps)",
        source="Tieleman and Hinton 2012, lecture 6.5",
    ),
    "adadelta": Optimizer(
        # rate 1 as in the paper: at Keras's 0.001 it hardly moves
        lambda rate, decay=0.95, eps=1e-7: optax.adadelta(rate, decay, eps),
        rate=1.0,
        rule=(
            "s = d s + (1 - d) g^2; u = sqrt((x + eps) / (s + eps)) g; "
            "x = d x + (1 - d) u^2; p -= a u"
        ),
        source="Zeiler 2012",
    ),
    "adam": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.adam(rate, b1, b2, eps),
        rate=0.001,
        rule=(
            "m = b1 m + (1 - b1) g; s = b2 s + (1 - b2) g^2; "
            "p -= a (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps)"
        ),
        source="Kingma and Ba 2015",
    ),
    "adamw": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.004: optax.adamw(
            rate, b1, b2, eps, weight_decay=weight_decay
        ),
        rate=0.001,
        rule="as adam, and p -= a w p",
        source="Loshchilov and Hutter 2019",
    ),
}
