"""Two networks that compete: the step of a GAN, made of two training steps.

The discriminator D says whether an image is real, the generator G makes images of
noise. The state is a `TrainState` like any other, whose params, extra and opt_state are
{"discriminator": ..., "generator": ...}: one loop, one checkpoint. As the course has it
(`train_on_batch`), a step is D on real images, D on generated ones, and then G through
a frozen D:

    loss1 = -log D(x)    loss2 = -log(1 - D(G(z)))    loss3 = -log D(G(z'))

Source: Goodfellow et al. 2014, with the loss3 of section 3 that does not saturate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # its parts are imported where they are first used

from jaxstudy.model import Model
from jaxstudy.models.dcgan import generate, sample_latent
from jaxstudy.objectives import (
    finite_padding,
    hide_padding,
    masked_mean,
    mean_value,
)
from jaxstudy.parallel import map_replicas, split_rows
from jaxstudy.training import EvalStep, TrainStep, init_state, make_train_step
from jaxstudy.types import (
    Array,
    Batch,
    Key,
    Mean,
    Metrics,
    Objective,
    PyTree,
    TrainState,
)

D, G = "discriminator", "generator"
Fakes = Callable[[Key], Batch]  # generated images x, labelled y = 0
# (real images labelled 1, what generates, key, step) -> the two batches D learns from
BatchOrder = Callable[[Batch, Fakes, Key, Array], tuple[Batch, Batch]]


def alternating(
    real: Batch, fakes: Fakes, key: Key, step: Array
) -> tuple[Batch, Batch]:
    """A batch of real images, then one of generated ones: the course's order."""
    del step
    return real, fakes(key)


def mixed(real: Batch, fakes: Fakes, key: Key, step: Array) -> tuple[Batch, Batch]:
    """Two batches of both: the real images of the even rows and generated ones of the
    odd, and the other way round."""
    _, fake = alternating(real, fakes, key, step)
    even = jnp.arange(len(real["mask"])) % 2 == 0

    def choose(of_even: Array, of_odd: Array) -> Array:
        return jnp.where(even.reshape(-1, *[1] * (of_even.ndim - 1)), of_even, of_odd)

    return jax.tree.map(choose, real, fake), jax.tree.map(choose, fake, real)


def real_first(steps_per_epoch: int) -> BatchOrder:
    """In the first half of every epoch only real images, then only generated ones.

    A real batch is trained on twice, or two generated ones are, so that a step has as
    many updates and images as in the other orders. The real images of the second half
    are left out: another half in every epoch, as its order is new.
    """

    def order(real: Batch, fakes: Fakes, key: Key, step: Array) -> tuple[Batch, Batch]:
        first, second = jax.random.split(key)
        early = step % steps_per_epoch < steps_per_epoch // 2
        return jax.lax.cond(
            early, lambda: (real, real), lambda: (fakes(first), fakes(second))
        )

    return order


def discriminator_objective(discriminator: Model) -> Objective:
    """-[y log D(x) + (1 - y) log(1 - D(x))], y [B] 1 for real images and 0 for others.

    Metrics: loss1 and "accuracy on real" over the rows with y = 1, loss2 and "accuracy
    on fake" over the others.
    """

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        batch = finite_padding(batch)
        y, mask = batch["y"], batch["mask"]
        logits, extra = discriminator.apply(
            params, extra, batch["x"], train=key is not None, key=key
        )
        logits = hide_padding(logits, mask)
        losses = optax.sigmoid_binary_cross_entropy(logits, y)
        right = ((logits > 0) == (y > 0.5)).astype(losses.dtype)
        metrics = {
            "loss1": masked_mean(losses, mask * y),
            "loss2": masked_mean(losses, mask * (1 - y)),
            "accuracy on real": masked_mean(right, mask * y),
            "accuracy on fake": masked_mean(right, mask * (1 - y)),
        }
        return mean_value(masked_mean(losses, mask)), (extra, metrics)

    return objective


def generator_objective(discriminator: Model, generator: Model) -> Objective:
    """-log D(G(z)), z [B, 100]: G's images, labelled as real ones. Metric: loss3.

    The batch has z, its mask [B], and as "discriminator" D's (params, extra), which get
    no gradient. In training G normalises by the batch, and D drops out.
    """

    def objective(
        params: PyTree, extra: PyTree, batch: Batch, key: Key | None
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        train = key is not None
        x, extra = generator.apply(params, extra, batch["z"], train=train, key=None)
        logits, _ = discriminator.apply(*batch[D], x, train=train, key=key)
        losses = optax.sigmoid_binary_cross_entropy(logits, jnp.ones_like(logits))
        loss3 = masked_mean(losses, batch["mask"])
        return mean_value(loss3), (extra, {"loss3": loss3})

    return objective


def init_gan_state(
    discriminator: Model,
    generator: Model,
    tx_d: optax.GradientTransformation,
    tx_g: optax.GradientTransformation,
    key: Key,
) -> TrainState:
    """A fresh state at step 0 of both networks and both optimizers."""

    @jax.jit  # of the networks only the weights are compiled, not what they make
    def init(key: Key) -> TrainState:
        d_key, g_key, run_key = jax.random.split(key, 3)
        d = init_state(discriminator, tx_d, d_key)
        g = init_state(generator, tx_g, g_key)
        return _joined(jnp.int32(0), d, g, run_key)

    return init(key)


def init_gan_replicas(
    discriminator: Model,
    generator: Model,
    tx_d: optax.GradientTransformation,
    tx_g: optax.GradientTransformation,
    keys: Key,
) -> TrainState:
    """A fresh state for every key [L], each what `init_gan_state` makes of it."""

    def init(key: Key) -> TrainState:
        return init_gan_state(discriminator, generator, tx_d, tx_g, key)

    return jax.jit(lambda keys: map_replicas(init, keys))(keys)


def _joined(step: Array, d: TrainState, g: TrainState, key: Key) -> TrainState:
    """The state of both: its params, extra and opt_state name the network."""
    params, extra, opt_state = (
        {D: getattr(d, field), G: getattr(g, field)}
        for field in ("params", "extra", "opt_state")
    )
    return TrainState(step, params, extra, opt_state, key)


def _of(name: str, state: TrainState, key: Key) -> TrainState:
    """The state of one of the two, with a key of its own."""
    _, params, extra, opt_state, _ = state
    return TrainState(state.step, params[name], extra[name], opt_state[name], key)


def make_gan_step(
    discriminator: Model,
    generator: Model,
    tx_d: optax.GradientTransformation,
    tx_g: optax.GradientTransformation,
    order: BatchOrder = alternating,
    *,
    use_running_stats: bool = False,
) -> TrainStep:
    """Two updates of D, one of G: a pure function (state, batch) -> (state, metrics).

    The batch has real images x [B, H, W, C], 0 to 255, and their mask [B]; for every
    row, padding too, one image is generated for D, and one for G. G's update is through
    D as it is after its own two, with other noise. Metrics: those of both objectives,
    and as "loss" the sum of the three losses.

    D's updates leave G alone, its moving statistics too. Its images for D are
    normalised by their batch, as those in its own update are; `use_running_stats`, by
    the moving statistics, as Keras's `predict` does it in the course. These lag by a
    hundred steps, so D then learns to see something that G's update never shows it.
    """
    d_step = make_train_step(discriminator_objective(discriminator), tx_d)
    g_step = make_train_step(generator_objective(discriminator, generator), tx_g)

    def gan_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        noise_key, d_key, z_key, g_key = jax.random.split(key, 4)
        d, g = _of(D, state, d_key), _of(G, state, g_key)
        count, ones = len(batch["mask"]), jnp.ones_like(batch["mask"])

        def fakes(key: Key) -> Batch:
            z = split_rows(sample_latent(key, count))
            x, _ = generator.apply(
                g.params, g.extra, z, train=not use_running_stats, key=None
            )
            return {"x": x, "y": jnp.zeros_like(ones), "mask": ones}

        real = {"x": _scaled(batch["x"]), "y": ones, "mask": batch["mask"]}
        batches = order(real, fakes, noise_key, state.step)
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *batches)
        d, of_d = jax.lax.scan(d_step, d, stacked)  # a key of its own for each, too
        through = {
            "z": split_rows(sample_latent(z_key, count)),
            "mask": ones,
            D: (d.params, d.extra),
        }
        g, of_g = g_step(g, through)
        metrics = jax.tree.map(lambda a: jnp.sum(a, 0), of_d) | of_g
        after = _joined(state.step + 1, d, g, state.key)
        return after, _with_sum(metrics, jnp.float32(1))

    return gan_step


def changes_of_the_other(
    discriminator: Model, generator: Model, state: TrainState, batch: Batch
) -> tuple[float, float]:
    """How much G's update changes D's weights, and D's updates change G's.

    From two steps of gradient descent on the same batch: in the first D's learning rate
    is 0, in the second G's, so that the weights of that network can change by the
    other's updates alone. Returns the largest change of a weight of each.
    """

    @jax.jit
    def changes(rates: Array, state: TrainState) -> Array:
        tx_d, tx_g = optax.sgd(rates[0]), optax.sgd(rates[1])
        fresh = {D: tx_d.init(state.params[D]), G: tx_g.init(state.params[G])}
        step = make_gan_step(discriminator, generator, tx_d, tx_g)
        after, _ = step(state._replace(opt_state=fresh), batch)
        apart = jax.tree.map(
            lambda a, b: jnp.max(jnp.abs(a - b)), after.params, state.params
        )
        return jnp.stack(
            [jnp.max(jnp.stack(jax.tree.leaves(apart[n]))) for n in (D, G)]
        )

    of_d = changes(jnp.array([0, 0.1]), state)[0]
    of_g = changes(jnp.array([0.1, 0]), state)[1]
    return float(of_d), float(of_g)


def make_gan_eval_step(discriminator: Model, generator: Model, key: Key) -> EvalStep:
    """The metrics of the training step in evaluation mode, (state, batch) -> metrics.

    The batch has images x [B, H, W, C], 0 to 255, their mask [B], and a number "row"
    [B] of each: it and the key fix the noise of one generated image, so there are as
    many of these as real ones, the same at every call and however they are batched.
    """
    objective = discriminator_objective(discriminator)

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        mask, params, extra = batch["mask"], state.params, state.extra
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        z = jax.vmap(lambda key: sample_latent(key, 1)[0])(keys)
        fake, _ = generator.apply(params[G], extra[G], z, train=False, key=None)

        def judged(x: Array, label: float) -> Metrics:
            rows = {"x": x, "y": jnp.full_like(mask, label), "mask": mask}
            return objective(params[D], extra[D], rows, None)[1][1]

        on_real, on_fake = judged(_scaled(batch["x"]), 1), judged(fake, 0)
        metrics = {
            **jax.tree.map(jnp.add, on_real, on_fake),
            "loss3": judged(fake, 1)["loss1"],
        }
        return _with_sum(metrics, jnp.sum(mask))

    return eval_step


def made(generator: Model, state: TrainState, z: Array, replica: int) -> np.ndarray:
    """What the generator of one of the replicas [L] makes of noise z [N, 100]."""
    weights = jax.tree.map(lambda a: a[replica], (state.params[G], state.extra[G]))
    return np.asarray(generate(generator, *weights, z))


def made_by_each(generator: Model, state: TrainState, z: Array) -> list[np.ndarray]:
    """The images that every replica makes of the same noise, uint8 [N, H, W, C]."""
    return [made(generator, state, z, i) for i in range(len(state.step))]


def stopping_epochs(rows: Sequence[Mapping[str, Any]], n: int) -> np.ndarray:
    """The first epoch [L] after which D cannot tell: where the course says to stop.

    That is, 1/2 is in Wilson's 95 % interval of its accuracy on n real images and n
    generated ones, of `fit`'s records of L replicas. NaN where there is none.
    """
    first: dict[int, float] = {}
    for row in (row for row in rows if row["split"] == "validation"):
        accuracies = zip(row["accuracy on real"], row["accuracy on fake"], strict=True)
        for replica, accuracy in enumerate(accuracies):
            found = scipy.stats.binomtest(round(sum(accuracy) * n), 2 * n)
            low, high = found.proportion_ci(0.95, "wilson")
            first.setdefault(replica, math.nan)
            if low <= 0.5 <= high and math.isnan(first[replica]):
                first[replica] = float(row["epoch"])
    return np.array([*first.values()])


def _scaled(x: Array) -> Array:
    """Pixels of 0 to 255 as numbers 0 to 1, as the generator makes them."""
    return x.astype(jnp.float32) / 255


def _with_sum(metrics: Metrics, weight: Array) -> Metrics:
    """Also the sum of the three losses as "loss", which has to be finite."""
    total = sum(mean_value(metrics[f"loss{i}"]) for i in (1, 2, 3))
    return {**metrics, "loss": Mean(total * weight, weight)}
