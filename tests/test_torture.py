"""A run that is killed at random moments ends as if it had not been."""

import json
import shutil
from pathlib import Path

import pytest
import torture

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("torture")
    return folder, torture.torture(folder, kills=3, seed=2, settings=torture.SMALL)


def test_three_kills_change_nothing(campaign: tuple[Path, list[str]]) -> None:
    folder, wrong = campaign
    assert wrong == []
    assert (folder / "killed" / "result.json").exists()


@pytest.mark.parametrize("what", ["array", "metric", "result", "leftover"])
def test_a_difference_would_be_seen(
    campaign: tuple[Path, list[str]], tmp_path: Path, what: str
) -> None:
    whole = campaign[0] / "whole"
    other = shutil.copytree(whole, tmp_path / "other")
    if what == "array":  # the step before in place of the last
        steps = sorted((other / "checkpoints" / "part0").iterdir(), key=by_number)
        shutil.rmtree(steps[-1])
        shutil.copytree(steps[-2], steps[-1])
    elif what == "metric":
        path = other / "metrics.jsonl"
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    elif what == "result":
        result = json.loads((other / "result.json").read_bytes())
        name = next(iter(result["metrics"]))
        result["metrics"][name] = "other"
        (other / "result.json").write_text(json.dumps(result))
    else:
        (other / "checkpoints" / "part0" / "5.orbax-checkpoint-tmp").mkdir()
    assert torture.differences(whole, whole) == []
    assert torture.differences(whole, other) != []


def by_number(path: Path) -> int:
    return int(path.name)
