"""The translating lesson: what a saved run says, and refuses."""

import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxstudy.runs import cli
from jaxstudy.text.pairs import Pair
from tests.conftest import load

Ask = Callable[..., tuple[Any, str, str]]
SETTINGS = (
    "--preset", "smoke", "--tasks", "dates", "--dates", "100", "--units", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dates"
    module = load("experiments", "ch3_translate")
    with pytest.MonkeyPatch.context() as patch:
        argv = ["ch3_translate.py", *SETTINGS, "--run-dir", str(folder)]
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            cli.experiment(module.main, module.PRESETS, translate=module.translate)
        assert ended.value.code == 0
    return folder


@pytest.fixture
def ask(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ask:
    module = load("experiments", "ch3_translate")

    def ask(text: str) -> tuple[Any, str, str]:
        argv = ["ch3_translate.py", "--run-dir", str(folder), "--translate", text]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            cli.experiment(module.main, module.PRESETS, translate=module.translate)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return ask


def test_a_saved_run_translates_the_same_each_time(ask: Ask) -> None:
    code, said, _ = ask("2024년 3월 5일 화요일")
    assert code == 0
    assert said.count("attention, probability") == 8  # 2 networks, a beam of 4 each
    decomposed = unicodedata.normalize("NFD", "2024년 3월 5일 화요일")
    assert ask(decomposed) == (code, said, "")


def test_what_is_no_date_is_refused(ask: Ask) -> None:
    assert ask("2024년 2월 30일")[::2] == (
        2, "error: '2024년 2월 30일': there is no such day\n"
    )  # fmt: skip
    code, _, error = ask("안녕하세요")
    assert code == 2
    assert "is not written as one of" in error


def test_a_damaged_vocabulary_is_named(
    ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "dates-ko.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-4], encoding="utf-8")
    code, _, error = ask("2024년 3월 5일")
    path.write_text(whole.replace("일", "이"), encoding="utf-8")
    other, _, changed = ask("2024년 3월 5일")
    path.write_text(whole, encoding="utf-8")
    assert (code, other) == (2, 2)
    assert "dates-ko.json cannot be read: " in error
    assert "its SHA-256 differs" in changed


def test_a_translation_ends_where_the_end_is() -> None:
    module = load("experiments", "ch3_translate")
    made = module.Alphabets(
        module.fit_vocabulary("가나"), module.fit_vocabulary("\nab"), (2, 3)
    )
    arrays = made.arrays([Pair("가", "ab"), Pair("나", "b")])
    texts = [module.text_of(np.asarray(row), made) for row in arrays["y"]]
    assert texts == ["ab", "b"]


def test_hangul_is_drawn_as_its_sound() -> None:
    module = load("experiments", "ch3_translate")
    assert [module.readable(c) for c in "화5. \n"] == ["hwa", "5", ".", "_", "\n"]
