"""Deep networks of every activation from two initialisations: rates, then results.

All networks of one depth train as replicas of one compiled program, whatever their
activation, initialisation, learning rate and seed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstudy import training
from jaxstudy.dataset import Dataset
from jaxstudy.model import Model
from jaxstudy.models import probes
from jaxstudy.models.mlp import ACTIVATIONS, mlp
from jaxstudy.objectives import cross_entropy
from jaxstudy.runs.run import Run
from jaxstudy.tabular.sets import DigitSets
from jaxstudy.types import Array, Batch, Key, Metrics, PyTree, TrainState

ACTIVATION_NAMES = tuple(ACTIVATIONS)
INITIALISATIONS = ("Glorot", "He")


class DepthFunctions(NamedTuple):
    """What replicas of one depth share, for any activation, rate and initialisation."""

    init: Callable[[Key, Array], TrainState]  # of keys [L] and `he` [L], compiled
    train_step: training.TrainStep
    probe: training.EvalStep


@functools.cache  # the same functions at every call, so that none is compiled twice
def activation_steps(depth: int, width: int) -> DepthFunctions:
    """Initialisation, training, and evaluation with probes."""

    def activate(which: Array, z: Array) -> Array:
        return jax.lax.switch(which, list(ACTIVATIONS.values()), z)

    def model(which: Array, capture: bool = False) -> Model:
        hidden = (width,) * depth
        return mlp(64, hidden, 10, lambda z: activate(which, z), capture=capture)

    def train_step(state: TrainState, batch: Batch, which: Array, rate: Array) -> Any:
        objective = cross_entropy(model(which))
        return training.make_train_step(objective, optax.sgd(rate))(state, batch)

    def probe(state: TrainState, batch: Batch, which: Array, rate: Array) -> Metrics:
        """Also the gradient's norm at each layer, and the share of dead units."""
        metrics = probes.gradient_norms(cross_entropy(model(which)), state, batch)
        (_, values), _ = model(which, capture=True).apply(
            state.params, state.extra, batch["x"], train=False, key=None
        )
        z = jnp.stack([values[f"z{i + 1}"][0] for i in range(depth)])
        dead = probes.dead_share(z, lambda z: activate(which, z))
        return {**metrics, "dead share": dead}

    none = mlp(64, (width,) * depth, 10, ACTIVATIONS["none"])
    init = jax.jit(functools.partial(initial_states, none))
    return DepthFunctions(init, train_step, probe)


def initial_states(model: Model, keys: Key, he: Array) -> TrainState:
    """States [L] of Glorot's initialisation; where `he`, scaled to be He's.

    So both begin with the same random numbers.
    """
    state = training.init_replicas(model, optax.sgd(0.1), keys)
    params = {}
    for name, scale in probes.he_scales(state.params).items():
        factor = jnp.where(he, scale, 1.0)[:, None, None]
        kernel = state.params[name]["kernel"] * factor
        params[name] = {**state.params[name], "kernel": kernel}
    return state._replace(params=params)


def best_rates(losses: np.ndarray) -> np.ndarray:
    """The number of the best rate [...], of validation losses [rate, ..., seed].

    By the mean of the tuning seeds, infinite where one of them diverged.
    """
    return np.argmin(np.mean(losses, axis=-1), axis=0)


def with_masked_rows(data: Dataset, rows: int) -> Dataset:
    """The set as so many rows, its first one again without counting.

    Sets of one length share a compiled evaluation.
    """
    more = rows - len(data.indices)
    indices = jnp.concatenate([data.indices, jnp.repeat(data.indices[:1], more)])
    mask = jnp.concatenate([data.mask, jnp.zeros(more, data.mask.dtype)])
    return dataclasses.replace(data, indices=indices, mask=mask)


Measures = dict[str, np.ndarray]


class TrainedNetworks(NamedTuple):
    """Metrics [activation, init, seed] before and after training, and the weights."""

    start: Measures
    validation: Measures
    test: Measures
    params: PyTree


class TunedNetworks(NamedTuple):
    """Of one depth, [activation, init]: the best rates, and their loss in tuning."""

    rate: np.ndarray
    tuned: np.ndarray
    reported: TrainedNetworks


@dataclass(frozen=True)
class DepthStudy:
    """Networks of one depth: on what, how long, and which rates and seeds."""

    depth: int
    width: int
    data: DigitSets
    rates: Sequence[float]
    tuning_seeds: int
    seeds: int
    epochs: int
    batch_size: int
    seed: int
    run: Run

    @property
    def model(self) -> Model:
        """The network without an activation; the others have the same weights."""
        return mlp(64, (self.width,) * self.depth, 10, ACTIVATIONS["none"])

    def train(
        self, rates: np.ndarray, first: int, name: str, report: bool
    ) -> TrainedNetworks:
        """Every activation from both initialisations, at rates [activation, init].

        As many seeds as tune, from number `first` on. Replicas of one seed begin with
        the same weights, but for their scale, and see the same batches. Only a report
        measures the start, and ever evaluates the test set.
        """
        shape = (len(ACTIVATION_NAMES), len(INITIALISATIONS), self.tuning_seeds)
        which, he, seed = (jnp.asarray(i.ravel()) for i in np.indices(shape))
        each = np.broadcast_to(rates[..., None], shape).ravel()
        args = which, jnp.asarray(each, jnp.float32)
        root = jax.random.key(self.seed)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i)))(
            first + seed
        )
        functions = activation_steps(self.depth, self.width)

        def measure(state: TrainState, rows: Dataset, needed: bool = True) -> Measures:
            if not needed:
                return {}
            held_out = self.data.validation, self.data.test
            rows = with_masked_rows(rows, max(len(each.indices) for each in held_out))
            metrics = training.Evaluator(functions.probe, rows, args=args)(state)
            return {
                metric: np.reshape([np.inf if v is None else v for v in values], shape)
                for metric, values in metrics.items()
            }

        state = functions.init(keys[:, 0], he == 1)
        start = measure(state, self.data.validation, report)
        fitted = training.fit(
            state, functions.train_step, self.data.train, key=keys[:, 1],
            epochs=self.epochs, batch_size=self.batch_size,
            replicas=training.Replicas(args, may_diverge=True),
            log=self.run.sub_run(f"depth {self.depth}, {name}"),
        )  # fmt: skip
        params = jax.tree.map(
            lambda a: np.asarray(a).reshape(*shape, *a.shape[1:]), fitted.state.params
        )
        return TrainedNetworks(
            start,
            measure(fitted.state, self.data.validation),
            measure(fitted.state, self.data.test, report),
            params,
        )

    def tune_and_report(self) -> TunedNetworks:
        """Choose rates by the tuning seeds, and train other seeds with them."""
        cells = (len(ACTIVATION_NAMES), len(INITIALISATIONS))
        tuned = [
            self.train(
                np.full(cells, rate), 0, f"rate {rate:g}", report=False
            ).validation["loss"]
            for rate in self.run.each(self.rates)
        ]
        rate = np.array(self.rates)[best_rates(np.stack(tuned))]
        seeds = self.tuning_seeds + np.arange(0, self.seeds, self.tuning_seeds)
        groups = [
            self.train(rate, first, f"seeds from {first}", report=True)
            for first in seeds.tolist()
        ]
        reported = jax.tree.map(
            lambda *parts: np.concatenate(parts, axis=2)[:, :, : self.seeds], *groups
        )
        return TunedNetworks(rate, np.min(np.mean(tuned, axis=-1), axis=0), reported)

    def affine_difference(self, networks: TrainedNetworks, x: np.ndarray) -> float:
        """How far trained networks without an activation are from one affine map."""
        none = ACTIVATION_NAMES.index("none")
        return max(
            probes.affine_difference(
                self.model,
                jax.tree.map(lambda a, j=j: np.float64(a[none, j, 0]), networks.params),
                x,
            )
            for j in range(len(INITIALISATIONS))
        )
