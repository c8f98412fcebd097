"""Lesson 2.2.2: every promise of a checkpoint is kept."""

import json
from typing import Any

from tests.conftest import Smoke, load

lesson: Any = load("experiments", "ch2_saving")


def test_every_promise_is_kept(smoke: Smoke) -> None:
    result = json.loads((smoke("ch2_saving") / "result.json").read_text())
    promises = {k: v for k, v in result["metrics"].items() if isinstance(v, bool)}
    assert len(promises) == 14
    assert [promise for promise, kept in promises.items() if not kept] == []
    assert {claim["verdict"] for claim in result["claims"]} == {"holds"}
    named = {m for c in lesson.LESSON.claims for m in c.metrics if isinstance(m, str)}
    assert named <= set(promises)
