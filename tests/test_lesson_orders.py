"""Lesson 5: what its claims rest on, each measured where it holds and where not."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_gan

from jaxstudy import ops
from jaxstudy.gan import step as gan_step
from jaxstudy.gan.evaluation import FRECHET
from jaxstudy.gan.step import (
    changes_of_the_other,
    init_gan_state,
    make_gan_step,
)
from jaxstudy.runs.lesson import judge_claim
from jaxstudy.runs.statistics import NONNEGATIVE, REAL, mean_over_runs
from tests.conftest import Smoke, load

lesson: Any = load("experiments", "ch5_gan")
orders: Any = load("experiments", "ch5_orders")
sizes: Any = load("experiments", "ch5_sizes")


def changes() -> tuple[float, float]:
    state = init_gan_state(*small_gan.PAIR, jax.random.key(0))
    batch = {"x": jnp.asarray(small_gan.pixels(2)), "mask": jnp.ones(2)}
    return changes_of_the_other(small_gan.D, small_gan.G, state, batch)


def test_no_update_changes_the_other_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that lets G's update through to D as well is found out."""
    assert changes() == (0, 0)

    def leaking(d: Any, g: Any, tx_d: Any, tx_g: Any) -> Any:
        return make_gan_step(d, g, optax.sgd(0.1), tx_g)

    monkeypatch.setattr(gan_step, "make_gan_step", leaking)
    of_d, of_g = changes()
    assert of_d > 0
    assert of_g == 0


def test_the_distance_is_logged_after_every_epoch(smoke: Smoke) -> None:
    folder = smoke("ch5_gan")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    logged = {
        record["epoch"]: record[FRECHET]
        for record in map(json.loads, lines)
        if record["split"] == "generated"
    }
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert [*logged] == [1, 2]
    assert [metrics[f"after epoch 1: {FRECHET}"]] == logged[1]
    assert [metrics[f"generated images: {FRECHET}"]] == pytest.approx(logged[2])
    assert (folder / "figures" / "distance.png").exists()


def test_the_orders_are_judged_by_seed() -> None:
    """Differences that the seeds agree on decide, though the seeds lie far apart."""
    seeds = np.array([40.0, 80, 120, 160, 200])
    small = np.array([0.9, 1.1, 1, 1.2, 0.8])

    def verdicts(more: float, keep: int = 5) -> list[str]:
        mean = mean_over_runs(seeds[:keep] + more, NONNEGATIVE)
        gap = mean_over_runs(more * small[:keep], REAL, "seeds, paired")
        metrics = {
            "real first - alternating: Frechet distance": gap,
            "mixed - alternating: Frechet distance": gap,
            "alternating, no BatchNorm - alternating: Frechet distance": gap,
            "real first: accuracy on real": mean_over_runs(small * 0, REAL),
            "alternating: accuracy on real": mean_over_runs(small, REAL),
            "alternating: Frechet distance": mean,
        }
        claims = orders.LESSON.claims
        return [judge_claim(claim, metrics).verdict for claim in claims]

    assert verdicts(5) == ["holds", "holds", "fails", "holds"]
    assert verdicts(-5) == ["fails", "holds", "holds", "fails"]
    few = verdicts(5, keep=3)
    assert few == ["undetermined", "holds", "undetermined", "undetermined"]


def test_the_layer_is_a_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes.transpose_difference(4, seed=1) < 1e-5
    layer = ops.conv2d_transpose
    monkeypatch.setattr(
        ops, "conv2d_transpose", lambda x, k, s: layer(x, k[::-1, ::-1], s)
    )
    assert sizes.transpose_difference(4, seed=1) > 0.1
