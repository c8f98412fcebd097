"""Checkpoints: exactly the bits that were saved, or a refusal that says why."""

import contextlib
import gc
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstudy.runs import checkpoint
from jaxstudy.runs.checkpoint import Checkpoints, DamagedError, Keep, Restored
from jaxstudy.types import UserError
from tests.conftest import Patch, contents

# what orbax leaves behind when it fails to read: tasks that nobody awaits any more
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Tree = dict[str, Any]
STEPS = (1, 2, 3)
LOSSES = {1: 0.5, 2: 0.25, 3: 0.75, 4: 0.375}


def tree(step: int) -> Tree:
    """Weights and training state: large and small, of many types, and typed keys."""
    key = jax.random.key(step)
    params = {
        "kernel": jax.random.normal(key, (64, 32)),
        "bias": jnp.arange(4.0) + step,
        "half": jnp.full((3, 2), step, jnp.bfloat16),
    }
    moments = ({"kernel": jax.random.uniform(key, (64, 32))}, jnp.bool_(step % 2))
    return {
        "weights": {"params": params, "extra": {}},
        "training": {
            "step": jnp.int32(step),
            "opt_state": moments,
            "key": jax.random.split(key, 2),
        },
    }


def facts(step: int, name: str = "validation.loss") -> dict[str, Any]:
    monitored = {"name": name, "value": LOSSES.get(step)}
    return {"timing": {"steps": step}, "monitored": monitored}


def bits(t: Any) -> list[tuple[str, Any, Any, bytes]]:
    """Everything there is to a pytree: paths, shapes, types and bytes."""
    out = []
    for path, x in jax.tree_util.tree_leaves_with_path(t):
        plain = x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            plain = jax.random.key_data(x)
        host = np.asarray(plain)
        name = jax.tree_util.keystr(path)
        out.append((name, host.shape, x.dtype, host.tobytes()))
    return out


def shapes(t: Any) -> Any:
    return jax.eval_shape(lambda: t)


def save(folder: Path, keep: Keep, steps: Any = STEPS) -> None:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, tree(step), facts(step))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1, 2 and 3; not to be changed."""
    folder = tmp_path_factory.mktemp("three")
    save(folder, Keep("every"))
    return folder


@pytest.fixture
def folder(three: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `three`, to be damaged."""
    yield shutil.copytree(three, tmp_path / "checkpoints")
    gc.collect()


def files(folder: Path, step: int) -> list[Path]:
    inside = (folder / str(step)).rglob("*")
    return sorted(p.relative_to(folder) for p in inside if p.is_file())


def assert_is(restored: Restored | None, step: int) -> None:
    assert restored is not None
    assert restored.step == step
    assert bits(restored.tree) == bits(tree(step))
    assert restored.facts == facts(step)


# what was saved comes back


def test_round_trip(three: Path, monkeypatch: Patch) -> None:
    for step in STEPS:
        assert_is(Checkpoints(three).load(step, tree(0)), step)
    assert_is(Checkpoints(three).load(2, shapes(tree(0))), 2)  # shapes are enough
    like = {"weights": tree(0)["weights"]}  # weights alone
    loaded = Checkpoints(three).load(2, like).tree
    assert bits(loaded) == bits({"weights": tree(2)["weights"]})
    # loaded arrays may be donated
    add = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    add(loaded["weights"])
    assert_is(Checkpoints(three).load(2, tree(0)), 2)
    monkeypatch.chdir(three.parent)  # a relative folder
    assert_is(Checkpoints(Path(three.name)).load(3, tree(0)), 3)


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.steps() == []
    assert checkpoints.newest(tree(0), pytest.fail) is None
    assert checkpoints.best() is None
    assert not (tmp_path / "none").exists()


# which stay


def kept(folder: Path, keep: Keep, losses: dict[int, float | None]) -> list[int]:
    checkpoints = Checkpoints(folder, keep)
    for step, loss in losses.items():
        monitored = {"name": keep.monitor, "value": loss}
        checkpoints.save(step, {"weights": jnp.ones(2)}, {"monitored": monitored})
    return checkpoints.steps()


FOUR: dict[int, float | None] = {10: 0.5, 20: 0.25, 30: 0.75, 40: 0.375}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep("every"), [10, 20, 30, 40]),
        (Keep("last", 1), [40]),
        (Keep("last", 9), [10, 20, 30, 40]),
        (Keep("best", 1), [20, 40]),
        (Keep("best", 3), [10, 20, 40]),
        (Keep("best", 1, mode="max"), [30, 40]),
        (Keep("best", 2, mode="max"), [10, 30, 40]),
    ],
)
def test_which_stay(keep: Keep, expected: list[int]) -> None:
    scores = {step: keep.score(loss or 0) for step, loss in FOUR.items()}
    assert sorted(keep.stay(scores)) == expected


def test_which_stay_on_the_disk(tmp_path: Path) -> None:
    for keep, expected, best in (
        (Keep("last", 2), [30, 40], None),
        (Keep("best", 2), [20, 40], 20),
        (Keep("best", 2, mode="max"), [10, 30, 40], 30),
    ):
        folder = tmp_path / f"{keep.which} {keep.mode}"
        assert kept(folder, keep, FOUR) == expected
        assert Checkpoints(folder, keep).best() == best


def test_what_is_not_finite_never_scores() -> None:
    for keep in (Keep("best"), Keep("best", mode="max")):
        for bad in (None, math.nan, math.inf, -math.inf):
            assert keep.score(bad) == -math.inf
        assert keep.score(1e300) > -math.inf


def test_what_has_no_finite_value_never_counts_as_best(tmp_path: Path) -> None:
    keep = Keep("best", 2, mode="max")
    losses = {10: None, 20: 0.5, 30: None, 40: None}
    assert kept(tmp_path, keep, losses) == [20, 40]
    assert Checkpoints(tmp_path, keep).best() == 20


def test_ranking_goes_on_after_a_restart(tmp_path: Path) -> None:
    keep = Keep("best", 1)
    kept(tmp_path, keep, {10: 0.25, 20: 0.5})
    assert kept(tmp_path, keep, {30: 0.375, 40: 0.75}) == [10, 40]


def test_values_of_another_metric_do_not_rank(tmp_path: Path) -> None:
    kept(tmp_path, Keep("best", 2), {10: 0.25, 20: 0.5})
    keep = Keep("best", 2, "validation.accuracy", "max")
    assert kept(tmp_path, keep, {30: 0.1, 40: 0.2}) == [30, 40]
    assert Checkpoints(tmp_path, keep).best() == 40


# damage


def flip(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def damages(path: Path, rng: random.Random, flips: int) -> dict[str, bytes | None]:
    """What may become of a file; None: it is gone."""
    data = path.read_bytes()
    if not data:
        return {"missing": None, "filled": b"{}"}
    end = 8 * len(data) - 1
    places = {0, end, *(rng.randint(0, end) for _ in range(flips))}
    return {
        "missing": None,
        "empty": b"",
        "half": data[: len(data) // 2],
        "one byte short": data[:-1],
        **{f"bit {bit} flipped": flip(data, bit) for bit in sorted(places)},
    }


def put(path: Path, data: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def test_damage_anywhere_is_found_or_harmless(folder: Path) -> None:
    """The campaign: every file, every kind of damage; never other bits or errors."""
    rng = random.Random(0)
    checkpoints = Checkpoints(folder)
    expected = bits(tree(3)), facts(3)
    refused: dict[str, list[str]] = {}
    assert len(files(folder, 3)) >= 10
    for name in files(folder, 3):
        path = folder / name
        original = path.read_bytes()
        for kind, data in damages(path, rng, flips=0).items():
            put(path, data)
            try:
                restored = checkpoints.load(3, tree(0))
            except DamagedError as error:
                refused.setdefault(name.parts[1], []).append(str(error))
            else:
                found = bits(restored.tree), restored.facts
                assert found == expected, (name, kind)
        put(path, original)
    assert set(refused) >= {"_CHECKPOINT_METADATA", "training", "weights"}, refused
    assert not any("\n" in text for texts in refused.values() for text in texts)
    assert_is(checkpoints.load(3, tree(0)), 3)


def test_a_flipped_bit_of_the_description_is_found_wherever_it_is(folder: Path) -> None:
    """The names, types, hashes, times and values that we keep ourselves."""
    path = folder / "3" / "_CHECKPOINT_METADATA"
    data = path.read_bytes()
    ours = json.dumps(json.loads(data)["custom_metadata"]).encode()
    start, rng = data.index(ours), random.Random(0)
    for place in rng.sample(range(start, start + len(ours)), 40):
        put(path, flip(data, 8 * place + rng.randrange(8)))
        with contextlib.suppress(DamagedError):
            assert_is(Checkpoints(folder).load(3, tree(0)), 3)


def change(folder: Path, step: int, name: str, how: Callable[[bytes], bytes]) -> None:
    path = folder / str(step) / name
    if path.is_dir():  # the largest of its arrays
        path = max(path.rglob("d/*"), key=lambda p: p.stat().st_size)
    put(path, how(path.read_bytes()))


def damage_weights(folder: Path, step: int) -> None:
    change(folder, step, "weights", lambda data: flip(data, 4 * len(data)))


def truncate_training(folder: Path, step: int) -> None:
    change(folder, step, "training", lambda data: data[: len(data) // 2])


def forget_description(folder: Path, step: int) -> None:
    (folder / str(step) / "_CHECKPOINT_METADATA").unlink()


def empty_description(folder: Path, step: int) -> None:
    put(folder / str(step) / "_CHECKPOINT_METADATA", b"")


def empty_folder(folder: Path, step: int) -> None:
    shutil.rmtree(folder / str(step))
    (folder / str(step)).mkdir()


def lose_weights(folder: Path, step: int) -> None:
    shutil.rmtree(folder / str(step) / "weights")


DAMAGES = [
    damage_weights, truncate_training, forget_description, empty_description,
    empty_folder, lose_weights,
]  # fmt: skip
Damage = Callable[[Path, int], None]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_good_one_is_used_and_the_bad_one_named(
    folder: Path, damage: Damage
) -> None:
    damage(folder, 3)
    before = contents(folder / "3")
    said: list[str] = []
    checkpoints = Checkpoints(folder, Keep("every"))
    assert_is(checkpoints.newest(tree(0), said.append), 2)
    (sentence,) = said
    assert sentence.startswith(f"checkpoint {folder / '3'}: ")
    assert sentence.endswith("; going on from step 2")
    assert "\n" not in sentence
    # set aside as it was
    assert checkpoints.steps() == [1, 2]
    assert contents(folder / "damaged-3") == before


def test_none_good_stops_and_changes_nothing_and_all_bad_ones_are_named(
    folder: Path,
) -> None:
    damage_weights(folder, 3)
    truncate_training(folder, 2)
    copy = shutil.copytree(folder, folder.parent / "copy")
    said: list[str] = []
    assert_is(Checkpoints(copy).newest(tree(0), said.append), 1)
    assert [str(copy / "3") in said[0], str(copy / "2") in said[1]] == [True, True]
    assert sorted(os.listdir(copy)) == ["1", "damaged-2", "damaged-3"]
    forget_description(folder, 1)
    before = contents(folder)
    with pytest.raises(UserError, match="no checkpoint is good") as error:
        Checkpoints(folder).newest(tree(0), pytest.fail)
    for step in STEPS:
        assert f"checkpoint {folder / str(step)}: " in str(error.value)
    assert contents(folder) == before


def test_damage_again_at_the_same_step_keeps_both(folder: Path) -> None:
    for _ in range(2):
        damage_weights(folder, 3)
        checkpoints = Checkpoints(folder, Keep("every"))
        assert_is(checkpoints.newest(tree(0), lambda _: None), 2)
        checkpoints.save(3, tree(3), facts(3))
    assert sorted(os.listdir(folder)) == ["1", "2", "3", "damaged-3", "damaged-3-2"]


@pytest.mark.parametrize("part", ["", "_CHECKPOINT_METADATA"])
def test_an_old_damaged_step_does_not_stop_saving(three: Path, part: str) -> None:
    """Whatever is wrong with a step one does not need, training goes on.

    Where the best stay, old steps matter most: there all of them are read.
    """
    rng, folder = random.Random(1), three.parent / "old"
    damaged = [name for name in files(three, 2) if part in ("", name.parts[1])]
    assert damaged
    for kind in ("missing", "half", "a bit flipped"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(three, folder)
        for name in damaged:
            of_file = damages(folder / name, rng, flips=1)
            put(folder / name, of_file.get(kind, list(of_file.values())[-1]))
        checkpoints = Checkpoints(folder, Keep("best", 4))
        assert_is(checkpoints.newest(tree(0), pytest.fail), 3)
        checkpoints.save(4, tree(4), facts(4))
        assert {3, 4} <= set(checkpoints.steps()), kind
    assert_is(Checkpoints(folder).newest(tree(0), pytest.fail), 4)
    shutil.rmtree(folder)
    gc.collect()


def test_a_damaged_step_is_not_the_best_and_makes_room(folder: Path) -> None:
    assert Checkpoints(folder, Keep("best", 3)).best() == 2
    empty_description(folder, 2)
    assert Checkpoints(folder, Keep("best", 3)).best() == 1
    forget_description(folder, 2)
    checkpoints = Checkpoints(folder, Keep("best", 1))
    assert checkpoints.best() == 1
    checkpoints.save(4, tree(4), facts(4))
    assert checkpoints.best() == 4
    assert checkpoints.steps() == [4]


def test_a_torn_save_is_no_step(folder: Path) -> None:
    """A kill while orbax writes leaves a temporary folder; the next save removes it.

    So does one while an old step is dropped.
    """
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp-17")
    shutil.copytree(folder / "1", folder / ".dropped-0")
    checkpoints = Checkpoints(folder, Keep("every"))
    assert checkpoints.steps() == [1, 2, 3]
    assert_is(checkpoints.newest(tree(0), pytest.fail), 3)
    checkpoints.save(4, tree(4), facts(4))
    assert sorted(os.listdir(folder)) == ["1", "2", "3", "4"]


# another state


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (jnp.zeros((64, 33)), " has shape [64, 32], not [64, 33]"),
        (jnp.zeros((64, 32), jnp.bfloat16), " has dtype float32, not bfloat16"),
        ({"nested": jnp.zeros((64, 32))}, "/nested is missing"),
    ],
)
def test_another_shape_or_type_is_named(
    three: Path, kernel: Any, expected: str
) -> None:
    other = tree(0)
    other["weights"]["params"]["kernel"] = kernel
    expected = f"weights/params/kernel{expected}"
    with pytest.raises(DamagedError) as damaged:
        Checkpoints(three).load(3, other)
    assert str(damaged.value) == expected
    before = contents(three)
    with pytest.raises(UserError, match="no checkpoint is good") as error:
        Checkpoints(three).newest(other, pytest.fail)
    assert expected in str(error.value)
    assert contents(three) == before


def test_weights_without_training_are_no_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": tree(1)["weights"]}, {})
    with pytest.raises(DamagedError, match=r"^training/key is missing$"):
        checkpoints.load(1, tree(0))
    loaded = checkpoints.load(1, {"weights": tree(0)["weights"]})
    assert bits(loaded.tree) == bits({"weights": tree(1)["weights"]})


def test_a_step_that_is_not_there(three: Path) -> None:
    with pytest.raises(DamagedError, match="cannot be read"):
        Checkpoints(three).load(9, tree(0))


def test_what_reads_say_after_the_end_is_dropped(monkeypatch: Patch) -> None:
    """One read of many fails, orbax closes its event loop, and the others find it so.

    That comes at any moment and cannot be awaited; all else is passed on.
    """
    heard: list[str] = []
    monkeypatch.setattr(
        checkpoint._silent, "hook", lambda found: heard.append(str(found.exc_value))
    )
    for text in ("Event loop is closed", "no space left"):
        checkpoint._silent.unraisable(SimpleNamespace(exc_value=RuntimeError(text)))  # type: ignore[arg-type]
    assert heard == ["no space left"]
