"""Optimizers by name: one entry each.

Of optax's the following are left out: noisy_sgd draws random numbers, lbfgs and sophia
need the function itself, sam a second gradient, galore a rank for each matrix; mechanic
tunes another optimizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def current_weights(opt_state: Any, params: PyTree) -> PyTree:
    """What is trained is what is evaluated."""
    del opt_state
    return params


@dataclass(frozen=True)
class Optimizer:
    """How to make an optimizer, what of it to tune, and where it comes from.

    `make(rate, **hyperparameters)` builds it; every argument may be traced, so one
    compiled program can try many values. `rate` is a common starting point for dense
    networks on standardised inputs, not a recommendation. `space` is what a study
    tunes; the other arguments stay as they are. `weights(opt_state, params)` are the
    parameters to evaluate. A `self_tuning` one sets the lengths of its steps itself, so
    that its rate follows no schedule. One that goes `by_array` needs to know which
    numbers are of one array; for the others the parameters may as well be one vector.

    Rules are written with gradient g, parameters p, learning rate a, loss f; |x| is the
    root of the sum of squares of a parameter array, ||x|| of all arrays together.
    """

    make: Callable[..., optax.GradientTransformation]
    rate: float
    rule: str
    source: str
    space: Space = field(default_factory=dict)
    weights: Callable[[Any, PyTree], PyTree] = current_weights
    self_tuning: bool = False
    by_array: bool = False


class _Spaces(NamedTuple):
    """Ranges that several optimizers have: wide, and the same for alike ones."""

    # a step is as long as the gradient times the rate; or about as long as the rate
    gradient: LogUniform = LogUniform(1e-4, 1e1)
    sign: LogUniform = LogUniform(1e-5, 1e0)
    momentum: LogUniform = LogUniform(1e-3, 1e0, one_minus=True)
    decay: LogUniform = LogUniform(1e-4, 1e-1, one_minus=True)
    weight_decay: LogUniform = LogUniform(1e-5, 1e-1)
    factor: LogUniform = LogUniform(1e-1, 1e1)  # of a step length that is found


_S = _Spaces()
# of arguments by these names, where an optimizer of one's own gives no range
SPACES: Space = {
    "rate": LogUniform(1e-5, 1e1),
    "momentum": _S.momentum,
    "beta": _S.momentum,
    "b1": _S.momentum,
    "b2": _S.decay,
    "decay": _S.decay,
    "weight_decay": _S.weight_decay,
}
_BETAS = {"b1": _S.momentum, "b2": _S.decay}
_ADAM = {"rate": _S.sign, **_BETAS}


# optax's, which would be of 64 bits where these are enabled
_NEWTON_SCHULZ: Any = np.array([3.4445, -4.775, 2.0315], np.float32)


def _columns(params: PyTree) -> PyTree:
    """For muon, each array of two axes or more as a matrix: inputs x outputs."""
    return jax.tree.map(
        lambda p: (
            contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)
            if p.ndim > 1
            else None
        ),
        params,
    )


def _rprop(rate: Any, **factors: Any) -> optax.GradientTransformation:
    """Rprop, as PyTorch has it: optax 0.2.8 returns the step of the time before."""
    tx = optax.scale_by_rprop(rate, **factors)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = tx.update(updates, state, params)
        return jax.tree.map(jnp.negative, state.prev_updates), state

    return optax.GradientTransformation(tx.init, update)


OPTIMIZERS: dict[str, Optimizer] = {
    # Gradient descent
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
    # A rate for each parameter
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
        space=_ADAM,
    ),
    "adamw": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.004: optax.adamw(
            rate, b1, b2, eps, weight_decay=weight_decay
        ),
        rate=0.001,
        rule="as adam, and p -= a w p",
        source="Loshchilov and Hutter 2019",
        space={**_ADAM, "weight_decay": _S.weight_decay},
    ),
    "nadam": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.nadam(rate, b1, b2, eps),
        rate=0.001,
        rule=(
            "m, s as adam; p -= a (b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)) "
            "/ (sqrt(s / (1 - b2^t)) + eps)"
        ),
        source="Dozat 2016, without its schedule of b1",
        space=_ADAM,
    ),
    "nadamw": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.004: optax.nadamw(
            rate, b1, b2, eps, weight_decay=weight_decay
        ),
        rate=0.001,
        rule="as nadam, and p -= a w p",
        source="Dozat 2016; Loshchilov and Hutter 2019",
        space={**_ADAM, "weight_decay": _S.weight_decay},
    ),
    "adamax": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.adamax(rate, b1, b2, eps),
        rate=0.002,
        rule="m as adam; s = max(b2 s, abs(g) + eps); p -= a (m / (1 - b1^t)) / s",
        source="Kingma and Ba 2015, section 7.1",
        space=_ADAM,
    ),
    "amsgrad": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.amsgrad(rate, b1, b2, eps),
        rate=0.001,
        rule="as adam, but with the largest s / (1 - b2^t) so far",
        source="Reddi, Kale and Kumar 2018, bias-corrected",
        space=_ADAM,
    ),
    "radam": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: optax.radam(rate, b1, b2, eps),
        rate=0.001,
        rule=(
            "v = 2 / (1 - b2) - 1; n = v - 2 t b2^t / (1 - b2^t); "
            "if n < 5: p -= a m / (1 - b1^t); else as adam, "
            "times sqrt((n - 4) (n - 2) v / ((v - 4) (v - 2) n))"
        ),
        source="Liu et al. 2020",
        space=_ADAM,
    ),
    "yogi": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-3: optax.yogi(rate, b1, b2, eps),
        rate=0.01,
        rule="as adam, but s -= (1 - b2) sign(s - g^2) g^2; m and s start at 1e-6",
        source="Zaheer et al. 2018",
        space=_ADAM,
    ),
    "adabelief": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-16: optax.adabelief(
            rate, b1, b2, eps, eps
        ),
        rate=0.001,
        rule="as adam, but s = b2 s + (1 - b2) (g - m)^2 + eps",
        source="Zhuang et al. 2020",
        space=_ADAM,
    ),
    "acprop": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-16: contrib.acprop(
            rate, b1, b2, eps, eps
        ),
        rate=0.001,
        rule=(
            "s = b2 s + (1 - b2) (g - m)^2 + eps; m = b1 m + (1 - b1) g; "
            "p -= a g / (sqrt(r / (1 - b2^(t-1))) + eps), r the s of the step before; "
            "at first p -= a g"
        ),
        source="Zhuang et al. 2021, as optax has it",
        space=_ADAM,
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
    "ademamix": Optimizer(
        lambda rate, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, eps=1e-8: contrib.ademamix(
            rate, b1, b2, b3, alpha, eps
        ),
        rate=0.001,
        rule="as adam with (m / (1 - b1^t) + alpha n); n = b3 n + (1 - b3) g",
        source="Pagliardini, Ablin and Grangier 2024, without its warm-ups",
        space={"rate": _S.sign, "b1": _S.momentum, "b3": _S.decay},
    ),
    "adopt": Optimizer(
        lambda rate, b1=0.9, b2=0.9999, eps=1e-6: contrib.adopt(rate, b1, b2, eps),
        rate=0.001,
        rule=(
            "at first s = g^2 alone; then u = g / max(sqrt(s), eps), within "
            "-+ (t - 1)^(1/4); m = b1 m + (1 - b1) u; p -= a m; "
            "s = b2 s + (1 - b2) g^2"
        ),
        source="Taniguchi et al. 2024, with clipping",
        space=_ADAM,
    ),
    "madgrad": Optimizer(
        lambda rate, momentum=0.9, eps=1e-6: contrib.madgrad(rate, momentum, eps=eps),
        rate=0.01,
        rule=(
            "l = (a + eps) sqrt(t); v += l g^2; s += l g; "
            "z = p0 - s / (v^(1/3) + eps); p = b p + (1 - b) z"
        ),
        source="Defazio and Jelassi 2021",
        space={"rate": _S.sign, "momentum": _S.momentum},
    ),
    # Signs of the gradient
    "sign_sgd": Optimizer(
        lambda rate: optax.sign_sgd(rate),
        rate=0.001,
        rule="p -= a sign(g)",
        source="Bernstein et al. 2018",
        space={"rate": _S.sign},
    ),
    "signum": Optimizer(
        lambda rate, momentum=0.9: optax.signum(rate, momentum),
        rate=0.001,
        rule="m = b m + (1 - b) g; p -= a sign(m)",
        source="Bernstein et al. 2018",
        space={"rate": _S.sign, "momentum": _S.momentum},
    ),
    "lion": Optimizer(
        lambda rate, b1=0.9, b2=0.99: optax.lion(rate, b1, b2, weight_decay=0.0),
        rate=0.0001,
        rule="p -= a sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g",
        source="Chen et al. 2023, without weight decay",
        space={"rate": _S.sign, "b1": _S.momentum, "b2": _S.momentum},
    ),
    "rprop": Optimizer(
        lambda rate, eta_minus=0.5, eta_plus=1.2: _rprop(
            rate, eta_minus=eta_minus, eta_plus=eta_plus
        ),
        rate=0.001,
        rule=(
            "where g has the sign of before e *= eta_plus, where it has changed "
            "e *= eta_minus and g = 0; p -= e sign(g); e starts at a"
        ),
        source="Riedmiller and Braun 1993, as PyTorch has it",
        space={"rate": _S.sign},
        self_tuning=True,
    ),
    # Steps in proportion to the weights, or to the gradient, array by array
    "lars": Optimizer(
        lambda rate, momentum=0.9, trust=0.001: optax.lars(
            rate, momentum=momentum, trust_coefficient=trust
        ),
        rate=1.0,
        rule="m = b m + a trust g |p| / |g| (where neither is 0, else a g); p -= m",
        source="You, Gitman and Ginsburg 2017, without weight decay",
        space={"rate": LogUniform(1e-2, 1e2), "momentum": _S.momentum},
        by_array=True,
    ),
    "lamb": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-6: optax.lamb(rate, b1, b2, eps),
        rate=0.01,
        rule="u as adam; p -= a u |p| / |u| (where neither is 0, else a u)",
        source="You et al. 2020, without weight decay",
        space=_ADAM,
        by_array=True,
    ),
    "fromage": Optimizer(
        lambda rate: optax.fromage(rate),
        rate=0.01,
        rule="p = (p - a g |p| / |g|) / sqrt(1 + a^2), norms 1e-6 at least",
        source="Bernstein et al. 2020",
        space={"rate": _S.sign},
        by_array=True,
    ),
    "novograd": Optimizer(
        lambda rate, b1=0.9, b2=0.25, eps=1e-6: optax.novograd(rate, b1, b2, eps),
        rate=0.01,
        rule=(
            "s = b2 s + (1 - b2) |g|^2, at first |g|^2; "
            "m = b1 m + g / (sqrt(s) + eps); p -= a m"
        ),
        source="Ginsburg et al. 2019, without weight decay",
        space={"rate": _S.sign, "b1": _S.momentum},
        by_array=True,
    ),
    # Matrices
    "adafactor": Optimizer(
        lambda rate, decay=0.8, clip=1.0: optax.adafactor(
            rate, min_dim_size_to_factor=2, decay_rate=decay, clipping_threshold=clip
        ),
        rate=0.01,
        rule=(
            "d = 1 - t^-decay; s = d s + (1 - d) (g^2 + 1e-30), of a matrix only the "
            "means of its rows r and columns c, s = r c / mean(r); u = g / sqrt(s); "
            "p -= a max(rms(p), 0.001) u / max(1, rms(u) / clip)"
        ),
        source="Shazeer and Stern 2018, without momentum",
        space={"rate": _S.sign},
        by_array=True,
    ),
    "sm3": Optimizer(
        lambda rate, momentum=0.9: optax.chain(
            optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(rate)
        ),
        rate=0.1,
        rule=(
            "s = g^2 + the least over its axes of the largest s of each slice; "
            "m = b m + (1 - b) g / sqrt(s + 1e-8); p -= a m"
        ),
        source="Anil et al. 2019",
        space={"rate": _S.gradient, "momentum": _S.momentum},
        by_array=True,
    ),
    "muon": Optimizer(
        lambda rate, beta=0.95, eps=1e-8: contrib.muon(
            rate,
            _NEWTON_SCHULZ,
            beta=beta,
            eps=eps,
            muon_weight_dimension_numbers=_columns,
        ),
        rate=0.01,
        rule=(
            "m as nadam; x = m / (|m| + eps), then 5 times "
            "x = 3.4445 x + (2.0315 y^2 - 4.775 y) x, y = x x^T; "
            "p -= a sqrt(max(1, outputs / inputs)) x; vectors as nadam"
        ),
        source="Jordan et al. 2024, as optax has it",
        space={"rate": _S.sign, "beta": _S.momentum},
        by_array=True,
    ),
    # Self-tuning
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
        self_tuning=True,
    ),
    "schedule_free_sgd": Optimizer(
        lambda rate, b1=0.9: contrib.schedule_free_sgd(rate, b1=b1),
        rate=0.1,
        rule="as schedule_free, but z -= a g",
        source="Defazio et al. 2024",
        space={"rate": _S.gradient, "b1": LogUniform(1e-3, 0.9, one_minus=True)},
        weights=contrib.schedule_free_eval_params,
        self_tuning=True,
    ),
    "dadapt_adamw": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8, start=1e-6: contrib.dadapt_adamw(
            rate, (b1, b2), eps, start
        ),
        rate=1.0,
        rule=(
            "l = a d sqrt(1 - b2^t) / (1 - b1^t); "
            "r = q r + (1 - q) l sum(g k / (sqrt(s) + eps)), q = sqrt(b2); "
            "m = b1 m + (1 - b1) l g; s as adam; k = q k + (1 - q) l g; "
            "p -= m / (sqrt(s) + eps); d = max(d, r / ((1 - q) sum(abs(k)))), "
            "d starts at start"
        ),
        source="Defazio and Mishchenko 2023, without weight decay",
        space={"rate": _S.factor, **_BETAS},
        self_tuning=True,
    ),
    "prodigy": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8, start=1e-6: contrib.prodigy(
            rate, (b1, b2), eps=eps, estim_lr0=start
        ),
        rate=1.0,
        rule=(
            "l = a d sqrt(1 - b2^t) / (1 - b1^t); h = d g; m, s as adam of h; "
            "r = q r + (d / start) l sum(g (p0 - p)), q = sqrt(b2); "
            "k = q k + l h / start; d = max(d, r / sum(abs(k))), d starts at start; "
            "p -= l m / (sqrt(s) + d eps)"
        ),
        source="Mishchenko and Defazio 2023, without weight decay",
        space={"rate": _S.factor, **_BETAS},
        self_tuning=True,
    ),
    "dog": Optimizer(
        lambda rate, start=1e-6, eps=1e-8: contrib.dog(rate, ("heuristic", start), eps),
        rate=1.0,
        rule=(
            "d = max(d, ||p - p0||), d starts at start (1 + ||p0||); s += ||g||^2; "
            "p -= a d g / sqrt(s + eps)"
        ),
        source="Ivgi, Hinder and Carmon 2023",
        space={"rate": _S.factor, "start": LogUniform(1e-8, 1e-2)},
        self_tuning=True,
    ),
    "dowg": Optimizer(
        lambda rate, eps=1e-4: contrib.dowg(rate, eps=eps),
        rate=1.0,
        rule=(
            "d = max(d, ||p - p0||^2), d starts at eps; s += d ||g||^2; "
            "p -= a d g / (sqrt(s) + eps)"
        ),
        source="Khaled, Mishchenko and Jin 2023",
        space={"rate": _S.factor, "eps": LogUniform(1e-8, 1e-2)},
        self_tuning=True,
    ),
    "cocob": Optimizer(
        # it bets as much on gradients of any scale, so the rate has no effect
        lambda rate=1.0, alpha=100.0, eps=1e-8: contrib.cocob(rate, alpha, eps),
        rate=1.0,
        rule=(
            "l = max(l, abs(g)), l starts at eps; v += abs(g); c -= g; "
            "r = max(r - g (p - p0), 0); p = p0 + c (l + r) / (l max(v + l, alpha l))"
        ),
        source="Orabona and Tommasi 2017",
        space={"alpha": LogUniform(1e0, 1e4)},
        self_tuning=True,
    ),
    # With the loss of the batch, as if it could fall to 0
    "polyak_sgd": Optimizer(
        lambda rate: optax.polyak_sgd(rate),
        rate=1.0,
        rule="p -= min(f / ||g||^2, a) g",
        source="Polyak 1987; Loizou et al. 2021",
        space={"rate": _S.gradient},
        self_tuning=True,
    ),
    "momo": Optimizer(
        lambda rate, momentum=0.9: contrib.momo(rate, momentum),
        rate=1.0,
        rule=(
            "m, h, k: averages by b of g, f and sum(g p), at first these; "
            "p -= min(max(h - k + sum(m p), 0) / ||m||^2, a) m"
        ),
        source="Schaipp et al. 2024",
        space={"rate": _S.gradient, "momentum": _S.momentum},
        self_tuning=True,
    ),
    "momo_adam": Optimizer(
        lambda rate, b1=0.9, b2=0.999, eps=1e-8: contrib.momo_adam(rate, b1, b2, eps),
        rate=0.01,
        rule=(
            "m, h, k: averages by b1 of g, f and sum(g p) from 0; s as adam; "
            "u = m / (sqrt(s / (1 - b2^t)) + eps); "
            "p -= min(max(h - k + sum(m p), 0) / sum(m u), a / (1 - b1^t)) u"
        ),
        source="Schaipp et al. 2024",
        space=_ADAM,
        self_tuning=True,
    ),
}


# Schedules: what a rate is multiplied by at step 0, 1, ... of so many


def _warm_up_and_cosine(steps: int) -> optax.Schedule:
    warm_up = max(1, steps // 20)
    steps = max(steps, warm_up + 1)
    return optax.warmup_cosine_decay_schedule(1 / warm_up, 1.0, warm_up, steps)


SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "cosine": _warm_up_and_cosine,
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
}


class AveragedWeights(NamedTuple):
    """What `with_averaged_weights` keeps: the optimizer's state, and the average."""

    inner: optax.OptState
    average: PyTree


def with_averaged_weights(
    tx: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, and beside it an exponential moving average of the weights.

    w = d w + (1 - d) p after every step, from the first weights p on: noise of the last
    1 / (1 - d) steps or so averages out (Polyak and Juditsky 1992; Izmailov et al.
    2018). Training goes on from p; `averaged_weights` are those to evaluate. Statistics
    of BatchNorm stay those of p: they would have to be computed anew.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> AveragedWeights:
        copied = jax.tree.map(jnp.copy, params)  # both are to be donated
        return AveragedWeights(tx.init(params), copied)

    def update(
        updates: PyTree, state: Any, params: Any = None, **extra: Any
    ) -> tuple[PyTree, AveragedWeights]:
        updates, inner = tx.update(updates, state.inner, params, **extra)
        after = optax.apply_updates(params, updates)
        average = optax.incremental_update(after, state.average, 1 - decay)
        return updates, AveragedWeights(inner, average)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_weights(opt_state: AveragedWeights, params: PyTree) -> PyTree:
    """The average that stands beside what is trained."""
    del params
    return opt_state.average
