"""The translating lesson: what a saved run says, and refuses."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxstudy.text.pairs import Pair
from jaxstudy.text.plots import romanised
from jaxstudy.text.translation import Alphabets
from jaxstudy.text.vocabulary import fit_vocabulary
from tests.scripts import run_script

Ask = Callable[[str], tuple[Any, str, str]]
DATE = "2024년 3월 5일 화요일"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at smoke on dates, with a network too small to be right."""
    folder = tmp_path_factory.mktemp("runs") / "dates"
    settings = ("--tasks", "dates", "--dates", 100, "--units", 8, "--date-epochs", 1)
    arguments = ("--preset", "smoke", "--run-dir", folder, *settings)
    assert run_script("ch3_translate", *arguments) == 0
    return folder


@pytest.fixture
def ask(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The exit code, the output and the error of --translate."""

    def ask(text: str) -> tuple[Any, str, str]:
        code = run_script("ch3_translate", "--run-dir", folder, "--translate", text)
        return code, *capsys.readouterr()

    return ask


def test_a_saved_run_translates_the_same_each_time(ask: Ask) -> None:
    code, out, _ = ask(DATE)
    assert code == 0
    assert out.count("attention, probability") == 8  # 2 networks, a beam of 4 each
    assert ask(unicodedata.normalize("NFD", DATE)) == (code, out, "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2024년 2월 30일", "'2024년 2월 30일': there is no such day"),
        ("안녕하세요", "'안녕하세요' is not written as one of"),
    ],
)
def test_what_is_no_date_is_refused(text: str, sentence: str, ask: Ask) -> None:
    code, out, error = ask(text)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {sentence}")


def test_a_damaged_vocabulary_is_named(ask: Ask, folder: Path) -> None:
    path = folder / "dates-ko.json"
    whole = path.read_text(encoding="utf-8")
    for damaged, sentence in (
        (whole[:-4], "dates-ko.json cannot be read: "),
        (whole.replace("일", "이"), "its SHA-256 differs"),
    ):
        path.write_text(damaged, encoding="utf-8")
        code, _, error = ask("2024년 3월 5일")
        assert code == 2
        assert sentence in error
    path.write_text(whole, encoding="utf-8")


def test_a_translation_ends_where_the_end_is() -> None:
    alphabets = Alphabets(fit_vocabulary("가나"), fit_vocabulary("\nab"), (2, 3))
    arrays = alphabets.arrays([Pair("가", "ab"), Pair("나", "b")])
    assert [alphabets.text(row) for row in arrays["y"]] == ["ab", "b"]


def test_hangul_is_drawn_as_its_sound() -> None:
    assert [*map(romanised, "화5. \n")] == ["hwa", "5", ".", "_", "\n"]
