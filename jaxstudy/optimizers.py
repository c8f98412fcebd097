"""Optimizers by name: one entry each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import optax
from optax import contrib

from jaxstudy.types import Array, PyTree, UserError

Rate = float | Array | optax.Schedule


@dataclass(frozen=True)
class LogUniform:
    """Where to look for a hyperparameter: evenly in the logarithm, low to high.

    With `one_minus` it is 1 - value that lies there: momentum 0.9 and 0.99 are as far
    apart as 0.99 and 0.999. Raises UserError when no such range has a logarithm.
    """

    low: float
    high: float
    one_minus: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.low < np.inf and 0 < self.high < np.inf):
            raise UserError(
                f"a log scale needs positive, finite bounds, not {self.low:g} to "
                f"{self.high:g}"
            )
        if self.low > self.high:
            raise UserError(f"the range {self.low:g} to {self.high:g} is empty")
        if self.one_minus and self.high > 1:
            raise UserError(f"1 - value must not exceed 1, so not {self.high:g}")

    def value(self, unit: np.ndarray) -> np.ndarray:
        """Values for places 0..1 of the range; 0 is `low`."""
        inside = self.low * (self.high / self.low) ** np.asarray(unit, np.float64)
        return 1 - inside if self.one_minus else inside


Space = Mapping[str, LogUniform]  # by the names of an optimizer's arguments


@dataclass(frozen=True)
class Optimizer:
    """How to make an optimizer, what of it to tune, and where it comes from.

    `make(rate, **hyperparameters)` builds it; every argument may be traced, so one
    compiled program can try many values. `rate` is a common starting point for dense
    networks on standardised inputs, not a recommendation. `space` is what a study
    tunes; the other arguments stay as they are. `weights(opt_state, params)` are the
    parameters to evaluate. Rules are written with gradient g, parameters p, learning
    rate a.
    """

    make: Callable[..., optax.GradientTransformation]
    rate: float
    rule: str
    source: str
    space: Space = field(default_factory=dict)
    weights: Callable[[Any, PyTree], PyTree] = lambda opt_state, params: params


class _Spaces(NamedTuple):
    """Ranges that several optimizers have: wide, and the same for alike ones."""

    # a step is as long as the gradient times the rate; or about as long as the rate
    gradient: LogUniform = LogUniform(1e-4, 1e1)
    sign: LogUniform = LogUniform(1e-5, 1e0)
    momentum: LogUniform = LogUniform(1e-3, 1e0, one_minus=True)
    decay: LogUniform = LogUniform(1e-4, 1e-1, one_minus=True)
    weight_decay: LogUniform = LogUniform(1e-5, 1e-1)


_S = _Spaces()
_BETAS = {"b1": _S.momentum, "b2": _S.decay}


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(
        lambda rate: optax.sgd(rate),
        rate=0.1,
        rule="p -= a g",
        source="Robbins and Monro 1951",
        space={"rate": _S.gradient},
    ),
    "momentum": Optimizer(
        lambda rate, momentum=0.9: optax.sgd(rate, momentum),
        rate=0.01,
        rule="m = b m + g; p -= a m",
        source="Polyak 1964",
        space={"rate": _S.gradient, "momentum": _S.momentum},
    ),
    "nesterov": Optimizer(
        lambda rate, momentum=0.9: optax.sgd(rate, momentum, nesterov=True),
        rate=0.01,
        rule="m = b m + g; p -= a (b m + g)",
        source="Nesterov 1983; Sutskever et al. 2013",
        space={"rate": _S.gradient, "momentum": _S.momentum},
    ),
    "adagrad": Optimizer(
        lambda rate, start=0.1, eps=1e-7: optax.adagrad(rate, start, eps),
        rate=0.1,
        rule="s += g^2; p -= a g / sqrt(s + eps)",
        source="Duchi, Hazan and Singer 2011",
        space={"rate": _S.gradient},
    ),
    "rmsprop": Optimizer(
        lambda rate, decay=0.9, eps=1e-7: optax.rmsprop(rate, decay, eps),
        rate=0.001,
        rule="s = d s + (1 - d) g^2; p -= a g / sqrt(s + eps)",
        source="Tieleman and Hinton 2012, lecture 6.5",
        space={"rate": _S.sign, "decay": _S.decay},
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
        space={"rate": LogUniform(1e-2, 1e3), "decay": _S.decay},
    ),
    "adam": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.adam(rate, b1, b2, eps),
        rate=0.001,
        rule=(
            "m = b1 m + (1 - b1) g; s = b2 s + (1 - b2) g^2; "
            "p -= a (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps)"
        ),
        source="Kingma and Ba 2015",
        space={"rate": _S.sign, **_BETAS},
    ),
    "adamw": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.004: optax.adamw(
            rate, b1, b2, eps, weight_decay=weight_decay
        ),
        rate=0.001,
        rule="as adam, and p -= a w p",
        source="Loshchilov and Hutter 2019",
        space={"rate": _S.sign, **_BETAS, "weight_decay": _S.weight_decay},
    ),
    "nadam": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.nadam(rate, b1, b2, eps),
        rate=0.001,
        rule=(
            "m, s as adam; p -= a (b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)) "
            "/ (sqrt(s / (1 - b2^t)) + eps)"
        ),
        source="Dozat 2016, without its schedule of b1",
        space={"rate": _S.sign, **_BETAS},
    ),
    "adabelief": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-16: optax.adabelief(
            rate, b1, b2, eps, eps
        ),
        rate=0.001,
        rule="as adam, but s = b2 s + (1 - b2) (g - m)^2 + eps",
        source="Zhuang et al. 2020",
        space={"rate": _S.sign, **_BETAS},
    ),
    "lion": Optimizer(
        lambda rate, b1=0.9, b2=0.99: optax.lion(rate, b1, b2, weight_decay=0.0),
        rate=0.0001,
        rule="p -= a sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g",
        source="Chen et al. 2023, without weight decay",
        space={"rate": _S.sign, "b1": _S.momentum, "b2": _S.momentum},
    ),
    "adan": Optimizer(
        lambda rate, b1=0.98, b2=0.92, b3=0.99, eps=1e-8: optax.adan(
            rate, b1, b2, b3, eps, 0.0
        ),
        rate=0.001,
        rule=(
            "d = g - (g before), at first 0; m = b1 m + (1 - b1) g; "
            "v = b2 v + (1 - b2) d; "
            "s = b3 s + (1 - b3) (g + (1 - b2) d)^2; all three bias-corrected; "
            "p -= a (m + (1 - b2) v) / (sqrt(s) + eps)"
        ),
        # with b2 = 0.92 as here, the paper's factor of d and v is b2, not 1 - b2
        source="Xie et al. 2022, as optax has it",
        space={"rate": _S.sign, "b1": _S.momentum, "b3": _S.decay},
    ),
    "schedule_free": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: contrib.schedule_free(
            optax.adam(rate, 0.0, b2, eps), rate, b1
        ),
        rate=0.001,
        rule=(
            "z -= a (adam without b1 of the gradient at p); x = mean of the z so far, "
            "the first one not counted; p = b1 x + (1 - b1) z; x is evaluated"
        ),
        source="Defazio et al. 2024, with Adam and no warm-up",
        # b1 = 0, which no range to 1 may reach, would divide by zero
        space={
            "rate": _S.sign,
            "b1": LogUniform(1e-3, 0.9, one_minus=True),
            "b2": _S.decay,
        },
        weights=contrib.schedule_free_eval_params,
    ),
}
