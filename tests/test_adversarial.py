"""The GAN's step: the lesson's three `train_on_batch`, and nothing else changes."""

import functools
import math
import signal
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import scipy.stats
from small_gan import (
    ADAM,
    EVALUATE,
    EVALUATION,
    PAIR,
    SHAPE,
    B,
    D,
    G,
    pixels,
    rows_of,
    train_alone,
)
from test_dcgan import (
    CONVOLUTIONS,
    generator_weights,
    keras_discriminator,
    keras_generator,
    weights_of,
)
from test_training import bits, traced_at_most

from jaxstudy.dataset import subset
from jaxstudy.gan import step as gan_step
from jaxstudy.gan.step import (
    BatchOrder,
    alternating,
    discriminator_objective,
    init_gan_state,
    make_gan_eval_step,
    make_gan_step,
    mixed,
    real_first,
    stopping_epochs,
)
from jaxstudy.model import Model
from jaxstudy.models.dcgan import discriminator, generator, sample_latent
from jaxstudy.runs.checkpoint import Checkpoints
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import Stopped, open_run
from jaxstudy.runs.saved import Options
from jaxstudy.training import Evaluator, FitResult
from jaxstudy.types import Array, Batch, Key, Metrics, PyTree, TrainState
from tests.conftest import Patch

SGD = optax.sgd(0.1)
NAMES = ("discriminator", "generator")


def batch(n: int = B, channels: int = 1) -> dict[str, Array]:
    return {"x": jnp.asarray(pixels(n, channels)), "mask": jnp.ones(n)}


def compiled_init(d: Model, g: Model) -> TrainState:
    return jax.jit(lambda key: init_gan_state(d, g, SGD, SGD, key))(jax.random.key(0))


@functools.cache
def fresh() -> TrainState:
    return compiled_init(D, G)


def seen(model: Model, name: str, calls: list[Any]) -> Model:
    """The model, keeping what it is called with."""

    def apply(
        params: PyTree, extra: PyTree, x: Array, *, train: bool, key: Key | None
    ) -> Any:
        data = None if key is None else jax.random.key_data(key)
        jax.debug.callback(
            lambda *values: calls.append((name, train, *values)), x, data, ordered=True
        )
        return model.apply(params, extra, x, train=train, key=key)

    return Model(model.init, apply)


@functools.cache
def calls_of(steps: int, use_running_stats: bool = False) -> list[Any]:
    """(network, training, input, bits of the key) of each application."""
    calls: list[Any] = []
    models = seen(D, "D", calls), seen(G, "G", calls)
    options: Any = {"use_running_stats": use_running_stats}
    step = jax.jit(make_gan_step(*models, SGD, SGD, **options))
    state = fresh()
    for _ in range(steps):
        state, _ = step(state, batch())
    jax.effects_barrier()
    return calls


@jax.jit
def step_at(
    d_rate: float, g_rate: float, state: TrainState, rows: Batch
) -> tuple[TrainState, Metrics]:
    """A step with these learning rates."""
    return make_gan_step(D, G, optax.sgd(d_rate), optax.sgd(g_rate))(state, rows)


def test_a_step_is_the_lessons_in_keras(monkeypatch: Patch) -> None:
    """`train_on_batch` of D on real images and on fakes, then of G through a D that
    is frozen: losses, weights and moving statistics of the course's two networks.

    Without dropout, whose masks no two libraries draw alike, and with noise from a
    table: that for D, then that for G.
    """
    z = np.random.default_rng(1).uniform(-1, 1, (2, B, 100)).astype(np.float32)
    draws = iter(z)
    monkeypatch.setattr(
        gan_step, "sample_latent", lambda key, n: jnp.asarray(next(draws))
    )
    real_d, g_model = discriminator(SHAPE), generator(SHAPE)

    def undropped(params: PyTree, extra: PyTree, x: Array, **mode: Any) -> Any:
        return real_d.apply(params, extra, x, train=False, key=None)

    d_model = Model(real_d.init, undropped)
    first = compiled_init(d_model, g_model)
    step, rows = make_gan_step(d_model, g_model, SGD, SGD), batch()
    after, metrics = jax.jit(step)(first, rows)

    def compiled(model: Any) -> Any:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        return model

    def of(state: TrainState) -> tuple[list[np.ndarray], list[np.ndarray]]:
        of_d = weights_of(state.params["discriminator"], CONVOLUTIONS)
        params, extra = state.params["generator"], state.extra["generator"]
        return of_d, generator_weights(params, extra)

    d, frozen = (keras_discriminator(SHAPE, dropout=0.0) for _ in range(2))
    g, copy = (keras_generator(SHAPE) for _ in range(2))
    compiled(d).set_weights(of(first)[0])
    g.set_weights(of(first)[1])
    copy.set_weights(of(first)[1])
    one, zero = np.ones((B, 1)), np.zeros((B, 1))
    fakes = np.asarray(copy(z[0], training=True))
    loss1 = d.train_on_batch(np.asarray(rows["x"]) / np.float32(255), one)
    loss2 = d.train_on_batch(fakes, zero)
    frozen.set_weights([np.asarray(w.value) for w in d.weights])
    frozen.trainable = False
    loss3 = compiled(keras.Sequential([g, frozen])).train_on_batch(z[1], one)

    for name, want in (("loss1", loss1), ("loss2", loss2), ("loss3", loss3)):
        assert metrics[name].count == B
        assert metrics[name].total / B == pytest.approx(float(want), abs=1e-5)
    total = sum(map(float, (loss1, loss2, loss3)))
    assert metrics["loss"].total == pytest.approx(total, abs=3e-5)
    assert metrics["loss"].count == 1
    ours, before = ([*of_d, *of_g] for of_d, of_g in map(of, (after, first)))
    theirs = [np.asarray(w.value) for w in (*d.weights, *g.weights)]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    changes = [np.abs(a - b).max() for a, b in zip(ours, before, strict=True)]
    assert min(changes) > 5e-5


@pytest.mark.parametrize("use_running_stats", [False, True])
def test_the_modes_of_both_networks(use_running_stats: bool) -> None:
    """Fakes for D as in G's own update, or by running ones; D drops out whenever it is
    trained, or trained through."""
    # of the usual step, two are needed below
    calls = calls_of(1, True) if use_running_stats else calls_of(2)[:5]
    assert [(name, train) for name, train, *_ in calls] == [
        ("G", not use_running_stats), ("D", True), ("D", True), ("G", True), ("D", True)
    ]  # fmt: skip
    first, _, last = (x for name, _, x, _ in calls if name == "D")
    np.testing.assert_allclose(first, pixels(B) / np.float32(255), rtol=1e-6)
    assert last.shape == first.shape


def test_no_noise_and_no_dropout_is_drawn_twice() -> None:
    """In two steps: two draws of noise each, three of dropout."""
    noises = [np.asarray(x).tobytes() for name, _, x, _ in calls_of(2) if name == "G"]
    keys = [np.asarray(key).tobytes() for *_, key in calls_of(2) if key is not None]
    assert len(set(noises)) == len(noises) == 4
    assert len(set(keys)) == len(keys) == 6


def test_the_update_of_one_network_leaves_the_other_alone() -> None:
    """Bit for bit; so does G's normalisation of what D is trained on."""
    first, rows = fresh(), batch()
    both, only_d, only_g = (
        step_at(*rates, first, rows)[0]
        for rates in ((0.1, 0.1), (0.1, 0.0), (0.0, 0.1))
    )
    changed = {
        which: [bits(state.params[n]) != bits(first.params[n]) for n in NAMES]
        for which, state in (("both", both), ("D", only_d), ("G", only_g))
    }
    assert changed == {"both": [True, True], "D": [True, False], "G": [False, True]}
    # D learns the same, whatever G does after it
    d, g = NAMES
    assert bits(only_d.params[d]) == bits(both.params[d])
    # the statistics change by G's own update alone: not by D's, twice on G's images
    assert bits(only_g.extra[g]) == bits(both.extra[g]) != bits(first.extra[g])
    *_, z = (x for name, _, x, _ in calls_of(2)[:5] if name == "G")
    _, want = G.apply(first.params[g], first.extra[g], z, train=True, key=None)
    chex.assert_trees_all_close(both.extra[g], want, atol=1e-6)


def test_padding_counts_for_nothing() -> None:
    rows = {**batch(), "mask": jnp.asarray([1.0] * 4 + [0.0] * 2)}
    other = {**rows, "x": rows["x"].at[4:].set(7)}
    (state, metrics), (same, _) = (step_at(0.1, 0.1, fresh(), r) for r in (rows, other))
    assert bits(state) == bits(same)
    counts = {name: float(mean.count) for name, mean in metrics.items()}
    assert counts == {
        "loss1": 4, "accuracy on real": 4, "loss2": B, "accuracy on fake": B,
        "loss3": B, "loss": 1,
    }  # fmt: skip
    full, _ = step_at(0.1, 0.1, fresh(), batch())
    assert bits(state.params["discriminator"]) != bits(full.params["discriminator"])


def test_no_loss_counts_what_it_is_not_of() -> None:
    """Neither the other label's rows nor padding, were they never so bad."""
    rows = {
        "x": jnp.array([1.0, 2.0, jnp.inf, jnp.nan]),
        "y": jnp.array([1.0, 0.0, 0.0, 1.0]),
        "mask": jnp.array([1.0, 1.0, 1.0, 0.0]),
    }

    def judge(scale: PyTree, extra: PyTree, x: Array, **_: Any) -> Any:
        return scale * x, {}

    objective = discriminator_objective(Model(lambda key: ({}, {}), judge))
    _, (_, metrics) = jax.jit(objective)(jnp.float32(1), {}, rows, None)
    assert metrics["loss1"].total == pytest.approx(np.log1p(np.exp(-1)))
    assert metrics["loss1"].count == 1
    assert metrics["loss2"].total == np.inf
    # without the infinite one, padding leaves loss and gradient as they are
    rows["mask"] = jnp.array([1.0, 1.0, 0.0, 0.0])
    both = [{k: a[:n] for k, a in rows.items()} for n in (4, 2)]
    slopes = jax.jit(jax.value_and_grad(lambda s, r: objective(s, {}, r, None)[0]))
    (padded, slope), (loss, want) = (slopes(1.0, r) for r in both)
    np.testing.assert_allclose([padded, slope], [loss, want], rtol=1e-6)


# The orders


def numbered(n: int) -> tuple[Batch, Any]:
    """Real images numbered from 1, fakes from -1 down: those of a key begin anew."""
    ones = jnp.ones(n)
    real = {"x": 1 + jnp.arange(n), "y": ones, "mask": ones.at[-1].set(0)}

    def fakes(key: Key) -> Batch:
        first = 100 * (jax.random.key_data(key)[-1] % 1000).astype(int)
        return {"x": -1 - jnp.arange(n) - first, "y": 0 * ones, "mask": ones}

    return real, fakes


def learnt(
    order: BatchOrder, step: int = 0, n: int = 4
) -> list[list[tuple[int, int, int]]]:
    """(image, label, mask) of the rows of both batches."""
    real, fakes = numbered(n)
    batches = order(real, fakes, jax.random.key(5), jnp.int32(step))
    return [
        sorted(zip(*(np.asarray(b[k]).astype(int).tolist() for k in ("x", "y", "mask")),
                   strict=True))
        for b in batches
    ]  # fmt: skip


@pytest.mark.parametrize("n", [4, 5])
def test_alternating_is_a_real_batch_and_then_a_generated_one(n: int) -> None:
    real, fake = learnt(alternating, n=n)
    assert real == [(i, 1, int(i < n)) for i in range(1, n + 1)]
    assert [row[1:] for row in fake] == [(0, 1)] * n
    assert max(row[0] for row in fake) < 0
    assert len({row[0] for row in fake}) == n


@pytest.mark.parametrize("n", [4, 5])
def test_mixed_is_the_same_images_in_two_batches_of_both(n: int) -> None:
    batches = learnt(mixed, n=n)
    assert sorted(batches[0] + batches[1]) == sorted(
        row for each in learnt(alternating, n=n) for row in each
    )
    labels = [sum(label for _, label, _ in each) for each in batches]
    assert [len(each) for each in batches] == [n, n]
    assert labels == [(n + 1) // 2, n // 2]


def test_real_first_is_half_an_epoch_each() -> None:
    order = real_first(6)
    labels = [
        [{row[1] for row in each} for each in learnt(order, step)] for step in range(12)
    ]
    epoch = [[{1}, {1}]] * 3 + [[{0}, {0}]] * 3
    assert labels == epoch * 2
    assert learnt(order, 0) == [learnt(alternating)[0]] * 2
    one, other = learnt(order, 3)
    assert not set(one) & set(other)  # fakes of two keys


@pytest.mark.parametrize("order", [mixed, real_first(2)], ids=["mixed", "real first"])
def test_work_is_equal_in_every_order(order: BatchOrder) -> None:
    """Two updates of D by as many images, one of G; the losses say of what."""
    state = init_gan_state(D, G, ADAM, ADAM, jax.random.key(0))
    step = jax.jit(make_gan_step(D, G, ADAM, ADAM, order))
    counts = []
    for _ in range(2):
        state, metrics = step(state, batch())
        counts.append([int(metrics[f"loss{i}"].count) for i in (1, 2, 3)])
    updates = {
        name: int(optax.tree.get(state.opt_state[name], "count")) for name in NAMES
    }
    assert updates == {"discriminator": 4, "generator": 2}
    expected = [[B, B, B]] * 2 if order is mixed else [[2 * B, 0, B], [0, 2 * B, B]]
    assert counts == expected


# Evaluation


def test_evaluation_is_of_as_many_fakes_and_the_same_in_any_batches() -> None:
    n = 7
    one, other = (Evaluator(EVALUATE, rows_of(n), size)(fresh()) for size in (3, 50))
    assert other == pytest.approx(one, rel=1e-5)
    few = Evaluator(EVALUATE, subset(rows_of(n), [2, 5]))(fresh())
    noise = jax.jit(lambda k: jax.random.uniform(k, (1, 100), minval=-1, maxval=1)[0])
    z = jnp.stack([noise(jax.random.fold_in(EVALUATION, row)) for row in (2, 5)])
    d, g = (
        (fresh().params[k], fresh().extra[k]) for k in ("discriminator", "generator")
    )
    fake, _ = G.apply(*g, z, train=False, key=None)
    real = pixels(n)[[2, 5]] / np.float32(255)
    on_real, on_fake = (
        np.asarray(D.apply(*d, x, train=False, key=None)[0], float)
        for x in (real, fake)
    )
    want = {
        "loss1": np.log1p(np.exp(-on_real)).mean(),
        "loss2": np.log1p(np.exp(on_fake)).mean(),
        "loss3": np.log1p(np.exp(-on_fake)).mean(),
        "accuracy on real": np.mean(on_real > 0),
        "accuracy on fake": np.mean(on_fake <= 0),
    }
    want["loss"] = sum(want[f"loss{i}"] for i in (1, 2, 3))
    assert few == pytest.approx(want, rel=1e-5)


def stops(accuracies: list[tuple[float, float]], n: int) -> float:
    """Of one replica, beside one that is always right."""
    names = ("accuracy on real", "accuracy on fake")
    rows = [
        {"split": split, "epoch": epoch}
        | {name: [share, 1.0] for name, share in zip(names, pair, strict=True)}
        for epoch, pair in enumerate(accuracies, 1)
        for split in ("train", "validation")
    ]
    first, never = stopping_epochs(rows, n)
    assert math.isnan(never)
    return first


def test_the_course_stops_where_d_cannot_tell() -> None:
    """Wilson's interval of 0.55 holds 1/2 for 200 answers, and for 2000 it does not."""
    tells = [(0.9, 0.8), (1.0, 0.1), (0.3, 0.8), (0.9, 0.9)]
    assert stops(tells, 100) == 2
    assert math.isnan(stops(tells, 1000))
    assert stops([(0.8, 0.9), (1.0, 0.0)], 1000) == 2
    # wrong more often than by chance is no ignorance
    assert math.isnan(stops([(0.1, 0.1)], 100))
    n, z = 300, scipy.stats.norm.ppf(0.975)
    for right in (270, 276, 277, 282):  # of 600, by the formula of the interval
        p = right / (2 * n)
        centre = p + z**2 / (4 * n)
        half = z * np.sqrt(p * (1 - p) / (2 * n) + z**2 / (16 * n**2))
        holds = centre + half >= 0.5 * (1 + z**2 / (2 * n))
        assert (stops([(right / n, 0.0)], n) == 1) == holds
        assert holds == (right > 275)


# The loop: nothing in it knows that there are two networks.


@functools.cache
def trained() -> FitResult:
    """The step may be traced once, and says so."""
    chex.clear_trace_counter()
    return train_alone(traced_at_most(1, make_gan_step(*PAIR)))


def test_the_whole_run_is_one_trace_of_the_step() -> None:
    fitted = trained()
    assert fitted.state.step == 6
    assert [(row["step"], row["split"]) for row in fitted.records] == [
        (step, split) for step in (3, 6) for split in ("train", "validation")
    ]
    names = {"loss", "loss1", "loss2", "loss3", "accuracy on real", "accuracy on fake"}
    assert all(names < set(row) for row in fitted.records)
    row = fitted.records[-1]
    assert row["loss"] == pytest.approx(sum(row[f"loss{i}"] for i in (1, 2, 3)))


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Both networks, their statistics and both optimizers are one checkpoint."""

    def go(resume: bool, stop: bool) -> FitResult:
        with open_run(
            tmp_path / "run", "gan", "quick", Settings(), Options(), resume=resume
        ) as run:

            def progress(*of_chunk: Any) -> None:
                run.signum = signal.SIGTERM if stop else None

            return train_alone(
                make_gan_step(*PAIR), log=run.sub_run("gan", on_chunk=progress)
            )

    with pytest.raises(Stopped):
        go(False, True)
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "gan").steps() == [3]
    fitted = go(True, False)
    assert bits(fitted.state) == bits(trained().state)
    assert [{"part": "gan", **row} for row in fitted.records] == [
        {"part": "gan", **row} for row in trained().records
    ]


def test_images_of_three_colours() -> None:
    """D judges all of them, and G makes them."""
    d, g = discriminator((16, 16, 3)), generator((16, 16, 3), batch_norm=False)
    state = compiled_init(d, g)
    assert jax.tree.leaves(state.extra) == []
    evaluate = jax.jit(make_gan_eval_step(d, g, EVALUATION))
    found = evaluate(state, {**batch(2, 3), "row": jnp.arange(2)})
    z = jnp.concatenate(
        [sample_latent(jax.random.fold_in(EVALUATION, row), 1) for row in range(2)]
    )
    apply = [jax.jit(functools.partial(m.apply, train=False, key=None)) for m in (d, g)]
    fake, _ = apply[1](state.params[NAMES[1]], {}, z)
    assert fake.shape == (2, 16, 16, 3)
    real = pixels(2, 3) / np.float32(255)
    grey = real.mean(-1, keepdims=True).repeat(3, -1)
    on_real, on_grey, on_fake = (
        np.asarray(apply[0](state.params[NAMES[0]], {}, x)[0])
        for x in (real, grey, fake)
    )
    assert np.abs(on_real - on_grey).min() > 1e-4
    want = np.log1p(np.exp(-on_real)).sum(), np.log1p(np.exp(on_fake)).sum()
    got = found["loss1"].total, found["loss2"].total
    np.testing.assert_allclose(got, want, rtol=1e-5)
