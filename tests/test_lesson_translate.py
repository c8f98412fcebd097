"""The translating lesson: what a saved run says, and refuses."""

import dataclasses
import json
import unicodedata
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxstudy.runs import plots
from jaxstudy.runs.saved import read_saved, read_sealed
from jaxstudy.text.pairs import Pair
from jaxstudy.text.plots import learning_lines, romanised, save_scores
from jaxstudy.text.translation import Alphabets, compare_epochs, score_nearest
from jaxstudy.text.vocabulary import Vocabulary, fit_vocabulary
from jaxstudy.types import UserError
from tests.conftest import Smoke, load
from tests.scripts import run_script


def test_a_saved_run_translates_the_same_each_time(
    smoke: Smoke, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = smoke("ch3_translate")

    def ask(text: str) -> tuple[Any, str, str]:
        capsys.readouterr()
        code = run_script("ch3_translate", "--run-dir", folder, "--translate", text)
        out, error = capsys.readouterr()
        return code, out, error

    symbols = read_sealed(folder, "messages-ko.json", Vocabulary).symbols
    text = "".join(symbol for symbol in symbols if symbol >= "가")[:5]
    code, out, _ = ask(text)
    assert code == 0
    assert out.count("attention, probability") == 8  # 2 networks, a beam of 4 each
    assert ask(unicodedata.normalize("NFD", text)) == (code, out, "")
    code, out, error = ask(text * 2)
    assert (code, out) == (2, "")
    assert error == "error: --translate takes 1 to 8 characters, not 10\n"

    lesson: Any = load("experiments", "ch3_translate")
    saved = read_saved(folder, lesson.Config, "ch3_translate")
    for tasks in (("dates",), ("dates", "messages")):
        config = dataclasses.replace(saved.config, tasks=tasks)
        with pytest.raises(UserError, match="there is no such day"):
            lesson.translate(dataclasses.replace(saved, config=config), "2024. 2. 30.")


def test_a_translation_ends_where_the_end_is() -> None:
    alphabets = Alphabets(fit_vocabulary("가나"), fit_vocabulary("\nab"), (2, 3))
    arrays = alphabets.arrays([Pair("가", "ab"), Pair("나", "b")])
    assert [alphabets.text(row) for row in arrays["y"]] == ["ab", "b"]


def test_hangul_is_drawn_as_its_sound() -> None:
    assert [*map(romanised, "화5. \n")] == ["hwa", "5", ".", "_", "\n"]


def test_claims_are_about_dates_which_quick_and_full_have(smoke: Smoke) -> None:
    lesson: Any = load("experiments", "ch3_translate")
    text = (smoke("ch3_translate") / "result.json").read_text()
    named = {m for m in lesson.LESSON.metrics if m not in json.loads(text)["metrics"]}
    assert all(
        name.startswith(("dates, ", "dates: ")) for name in named
    )  # smoke has messages
    for preset in ("quick", "full"):
        assert "dates" in lesson.PRESETS[preset].tasks
        assert lesson.PRESETS[preset].beam == 4


def test_learning_is_drawn_by_pairs_seen() -> None:
    records = [
        {"split": "validation", "epoch": epoch, "loss": [epoch, 10.0 * epoch, 2.0]}
        for epoch in (1, 2)
    ]
    other = {"split": "train", "epoch": 1, "loss": [9.0, 9.0, 9.0]}
    sub_run = SimpleNamespace(records=[other, *records])
    run: Any = SimpleNamespace(sub_runs={"no_attention": sub_run})
    lines = learning_lines(run, ["no attention"], "validation", "loss", 400)
    assert lines == {"no attention": ([400.0, 800.0], [2.0, 2.0])}


def test_the_baseline_looks_up_the_most_similar_training_text() -> None:
    """It is right where the source was seen; of equals it takes the first."""
    train = [Pair("가나다", "abc"), Pair("다나가", "cba"), Pair("나", "b")]
    assert score_nearest(train, train) == {"exact match": 1.0, "chrF": 100.0}
    near = score_nearest(train, [Pair("가나라", "abd"), Pair("라", "abc")])
    assert near["exact match"] == 0.5  # abc twice: nothing is like the second
    assert 0 < near["chrF"] < 100


def test_both_scores_are_drawn_beside_the_baseline(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (smoke("ch3_translate") / "result.json").read_text()
    result = json.loads(text)["metrics"]
    panels: list[Any] = []
    monkeypatch.setattr(plots, "save_comparison", lambda *args: panels.extend(args[4]))
    run: Any = None
    save_scores(run, "messages", result, ["attention"], 4)
    drawn = [(panel.metrics, [*panel.baselines.values()]) for panel in panels]
    for score, (metrics, levels) in zip(("exact match", "chrF"), drawn, strict=True):
        assert levels == [result[f"messages, nearest training text: {score}"]]
        assert all(f"messages, attention: {metric}" in result for metric in metrics)


def test_how_many_times_as_many_pairs_are_needed() -> None:
    """A seed that never gets there counts with all epochs: a lower bound."""

    def logged(*epochs: list[float]) -> list[dict[str, Any]]:
        other = {"split": "train", "exact match": [1.0, 1.0, 1.0]}
        rows = [{"split": "validation", "exact match": share} for share in epochs]
        return [row for each in rows for row in (other, each)]

    attending = logged([0.5, 0.99, 0.0], [1.0, 1.0, 0.99])
    without = logged([0.0] * 3, [0.0] * 3, [0.4, 0.0, 1.0], [0.8, 0.3, 1.0])
    times, rise = compare_epochs(attending, without, enough=0.99)
    assert times.values == (2.0, 4.0, 1.5)  # seeds 0 and 1 never, of 4 epochs
    assert rise.values == pytest.approx((0.4, 0.3, 0.0))
    never = compare_epochs(logged([0.5] * 3), without, enough=0.99)[0]
    assert np.isnan(never.mean)
