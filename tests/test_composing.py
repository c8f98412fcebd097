"""Tunes judged by music21: what it accepts, which bars add up, what is copied."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import open_run
from jaxstudy.text.plots import save_piano_roll
from jaxstudy.text.tune_evaluation import (
    Verdict,
    copied_share,
    joined_melodies,
    judge,
    judge_tunes,
    longest_copy,
    notes_of,
    write_midi,
    write_samples,
)
from tests.conftest import Said

HEAD = "X:1\nM:6/8\nL:1/8\nK:G\n"
# an upbeat, a triplet, dotted pairs, a fermata, a chord symbol, grace notes, a slur, a
# trill, an ending with a second one, and a repeat within a line
GOOD = (
    HEAD
    + 'D|"G"G2G (3ABc d|{e}d>cB HA3|Tg3 !f!f3|[1 G3 G2:|[2 G3 G2||\n'
    + "B|(dBd) g`f`e:: d|[GB]3 A3|uG3 z2|]\n"
)


@pytest.mark.parametrize(
    ("body", "bars", "wrong"),
    [
        # D, four, two endings of one, B, one, d, two: the upbeats are bars, too
        (GOOD.removeprefix(HEAD), 11, 0),
        ("GGG GG:|G|GGG GGG|GGG GG||\n", 4, 0),  # in every part the same
        ("GGG GG:|G|GG|GGG GG||\n", 4, 1),
        ("GGG GG|:GGG|GGG GGG|GGG GG||\n", 4, 0),
        ("GGG GGG|GGG GG::G|GGG GGG|GGG GG:|\n", 5, 0),
        ("GGG GGG|GGG GG|1 GGG GG:|2 GGG GGG|]\n", 4, 1),  # an ending is no new part
        ("GGG GGG|\nM:2/4\nGGGG|GGGGGG|GGGG|\n", 4, 1),  # another metre from there
        ("GGG GGG|(3GGG GG G3|GGG GGG|\n", 3, 1),
    ],
)
def test_bars_are_counted(body: str, bars: int, wrong: int) -> None:
    verdict = judge(HEAD + body)
    assert verdict == Verdict("", bars, wrong)
    assert verdict.accepted
    assert verdict.adds_up == (wrong == 0)


@pytest.mark.parametrize(
    ("tune", "error"),
    [
        ("", ""),
        ("X:1\nM:6/8\nL:1/8\nGGG GGG|\n", "no key"),
        ("X:1\nM:6/8\nL:1/8\nGGG GGG|\nK:G\n", "no key"),  # it comes too late
        ("X:1\nL:1/8\nK:G\nGGG GGG|\n", "no metre"),
        ("M:6/8\nL:1/8\nK:G\nGGG GGG|\n", "no number"),
        ("X:1\nM:6/8\nL:1/8\nK:Qx\nGGG GGG|\n", "unknown key Qx"),
        ("X:1\nM:six\nL:1/8\nK:G\nGGG GGG|\n", ""),
        (HEAD, "no bar with a note"),
        (HEAD + 'GGG "G GGG|GGG GGG|\n', "a quotation is not closed"),
        (HEAD + "GGG 7 GGG|GGG GGG|\n", "left out: 7"),
        (HEAD + "GGG [GBd|GGG GGG|\n", ""),
        (HEAD + "GGG q4 GGG|GGG GGG|\n", ""),
        (HEAD + "GGG G//// GGG|\n", ""),
    ],
)
def test_what_a_parser_cannot_read_is_not_accepted(tune: str, error: str) -> None:
    verdict = judge(tune)
    assert verdict.error.startswith(error)
    assert not verdict.accepted
    assert not verdict.adds_up


@settings(deadline=None, max_examples=25)  # music21 takes seconds to import
@given(st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), max_size=3))
def test_bars_are_those_that_were_written(parts: list[list[int]]) -> None:
    """Of so many notes each; six fill a bar, and only within a part must they."""
    body = "||".join("|".join("G" * notes for notes in part) for part in parts)
    verdict = judge(f"{HEAD}{body}||\n")
    assert verdict.bars == sum(map(len, parts))
    assert verdict.wrong == sum(
        notes > 6 or (notes < 6 and 0 < i < len(part) - 1)
        for part in parts
        for i, notes in enumerate(part)
    )


@settings(deadline=None)
@given(st.text("abcGz|:[]()\"'!/23<>KXML\n ", max_size=60))
def test_no_text_breaks_the_judge(text: str) -> None:
    verdict = judge(HEAD + text)
    lines = len(re.findall(r"[|:]|\[[|12]", text))
    assert 0 <= verdict.wrong <= verdict.bars <= 1 + lines
    assert verdict.bars or not verdict.accepted


@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
def test_the_longest_copy_is_that_of_brute_force(text: str, source: str) -> None:
    pieces = {text[i:j] for i in range(len(text)) for j in range(i, len(text) + 1)}
    assert longest_copy(text, source) == max(
        (len(piece) for piece in pieces if piece in source), default=0
    )


def test_a_copy_is_found_whatever_its_rhythm_and_never_across_two_tunes() -> None:
    others = joined_melodies([HEAD + "GABc dedc|BAGF\n", HEAD + "g2e2 c4|\n"])
    assert others == "gabcdedcbagf|gec"
    assert copied_share(HEAD + "G3 A3|B3 c3|d2e4|\n", others) == 1
    assert copied_share(HEAD + "gag bag|\n", others) == pytest.approx(3 / 6)
    assert copied_share(HEAD + "g f g e c a|\n", others) == pytest.approx(3 / 6)
    assert copied_share(HEAD + "z4|\n", others) == 0


def test_notes_and_a_midi_file(tmp_path: Path) -> None:
    notes = notes_of("X:1\nM:4/4\nL:1/8\nK:G\nG2 F z [ce]4|{d}g>g f4 z2|\n")
    # F is sharp in G; a chord is two notes; a grace note takes no time; a quarter is 1
    assert notes.tolist() == [
        [0, 1, 67], [1, 0.5, 66], [2, 2, 72], [2, 2, 76], [4, 0.75, 79],
        [4.75, 0.25, 79], [5, 2, 78],
    ]  # fmt: skip
    path = tmp_path / "tune.mid"
    for tune in (GOOD, "X:1\nM:4/4\nL:1/4\nK:C\n^F F F F-|F F3|\n"):
        write_midi(tune, path)
        begun, ended = midi_pitches(path)
        assert begun == ended == Counter(notes_of(tune)[:, 2])
    assert begun == {66: 4, 65: 1}  # the fourth is held over the bar line


def midi_pitches(path: Path) -> tuple[Counter[Any], Counter[Any]]:
    """How often each pitch begins and ends in a MIDI file."""
    from music21 import midi  # slow to import

    file = midi.MidiFile()
    file.open(path)
    file.read()
    file.close()
    events = [event for track in file.tracks for event in track.events]
    begun = Counter(event.pitch for event in events if event.isNoteOn())
    return begun, Counter(event.pitch for event in events if event.isNoteOff())


@pytest.mark.parametrize(
    ("body", "pitches"),
    [
        ("^F F F F|F4|", [66, 66, 66, 66, 65]),
        ("^F f F, F|", [66, 77, 53, 66]),  # in no other octave
        ("^^F F __B =B B|F B|", [67, 67, 69, 71, 71, 65, 71]),
        ("^F\nF|F|", [66, 66, 65]),  # a line may end within a bar
        ("^F||F|]\n[|^F::F|:^F:|F|", [66, 65, 66, 65, 66, 65]),
        ("^F[|]F|^F|1 F:|2 F|]", [66, 65, 66, 65, 65]),
        ("{^F}G F|F|", [67, 66, 65]),
        ("[^FA] F|^F [FA]|[FA]|", [66, 69, 66, 66, 66, 69, 65, 69]),
        ('"^x"F T^F F ~F|u=F F|', [65, 66, 66, 66, 65, 65]),
        ("^F-|{G}F-|F F|", [66, 65]),  # a tied note is one with that before it
        ("[^FA]-|[FA] F|", [66, 69, 66, 69, 65]),
        ("F F|\nK:G\nF =F F|F|", [65, 65, 66, 65, 65, 66]),
        ("=F F[K:G]F|[K:C]F|[L:1/8]F|[P:A]F|", [65, 65, 66, 65, 65, 65]),
    ],
)
def test_an_accidental_lasts_to_the_end_of_its_bar(
    body: str, pitches: list[int]
) -> None:
    tune = f"X:1\nM:4/4\nL:1/4\nK:C\n{body}\n"
    assert notes_of(tune)[:, 2].tolist() == pitches


def test_an_inline_field_is_no_chord() -> None:
    tune = "X:1\nM:4/4\nL:1/4\nK:C\nG4|[M:3/4]G3|[L:1/8]G6|[K:D]F6|G6|\n"
    assert judge(tune) == Verdict("", 5, 0)
    assert notes_of(tune)[3].tolist() == [10.0, 3.0, 66.0]


def test_samples_are_tunes_and_midi_files_of_those_with_notes(
    tmp_path: Path, capsys: Said
) -> None:
    tunes = [GOOD, HEAD, HEAD + "z6|\n", "hello", HEAD + "[G|\n"]
    paths = write_samples(tmp_path, "tune", tunes)
    assert [path.read_text() for path in paths] == tunes
    assert capsys.readouterr().err.count("no tune that music21 reads") == 4
    files = {path.name for path in (tmp_path / "samples").glob("*.mid")}
    assert files == {"tune_1.mid"}
    write_samples(tmp_path, "tune", tunes[1:])
    assert not [*(tmp_path / "samples").glob("*.mid")]  # of another tune


def test_judged_tunes_are_counted() -> None:
    tunes = [GOOD, HEAD + "GGG GGG|GGG GG|GGG GGG|\n", "hello"]
    metrics, readable = judge_tunes("real", tunes, joined_melodies(tunes[:1]))
    assert readable == tunes[:2]
    assert {
        name.removeprefix("real: "): getattr(value, "mean", value)
        for name, value in metrics.items()
    } == pytest.approx({
        "accepted by music21": 2 / 3,
        "accepted, and all bars add up": 1 / 3,
        "bars of a wrong length": 1 / 14,
        "copies of a training tune": 1,
        "longest copied piece of the melody": (1 + 4 / 17) / 3,
    })  # fmt: skip


def test_a_piano_roll_shows_the_notes(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", "test", "smoke", Settings()) as run:
        save_piano_roll(run, "roll", {"good": [GOOD, HEAD + "G6|c6|\n"]})
    pixels = matplotlib.image.imread(tmp_path / "run" / "figures" / "roll.png")
    blue = np.all(np.abs(pixels[..., :3] - np.array([31, 119, 180]) / 255) < 0.02, -1)
    assert np.mean(blue) > 0.02
