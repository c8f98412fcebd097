"""The report: made by hand-written run folders, read back with html.parser."""

import base64
import hashlib
import io
import json
import math
import os
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxstudy.runs import charts, pages, reading
from jaxstudy.runs.report import write_report
from jaxstudy.runs.statistics import Estimate
from jaxstudy.runs.values import duration, value_of
from jaxstudy.types import UserError

PNG = b"\x89PNG\r\n\x1a\n not more than a reader of the signature needs"
VOID = {"meta", "link", "img", "br", "hr", "input"}
ESTIMATE = {"mean": 0.693, "low": 0.6495, "high": 0.73375, "n": 400, "of": "people"}
METRICS = {
    "majority": 0.6825000047683716,
    "net: accuracy": ESTIMATE,
    "linear: accuracy": ESTIMATE | {"mean": 0.6},
    "net - linear: accuracy": {"mean": -0.02, "low": -0.03, "high": 0.01, "n": 9,
                               "of": "pairs"},
    "verdict": "no better",
    "diverged": None,
}  # fmt: skip
ROWS = [
    {"step": 10 * e, "epoch": float(e), "split": split, "loss": 1.0 / e + bias}
    for e in range(1, 6)
    for split, bias in (("train", 0.0), ("validation", 0.25))
]


class Page(HTMLParser):
    """Tags, their attributes, and the text, of a page whose tags have to match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert not self.open
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "li" and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += " "

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, cls: str = "") -> list[dict[str, str]]:
        """The attributes of every such element."""
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and (not cls or cls in attrs.get("class", "").split())
        ]

    def images(self) -> list[dict[str, str]]:
        """The images that runs have made."""
        return [i for i in self.all("img") if "class" not in i]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[charts.ChartPanel]]:
    """The panels of every chart of curves; none is drawn before `undo`."""
    found: list[list[charts.ChartPanel]] = []

    def curves(panels: Any) -> charts.Chart:
        found.append(panels)
        names = [curve.name for panel in panels for curve in panel.curves]
        return {"source": "data:,", "alt": " ".join(names)}

    monkeypatch.setattr(charts, "curves", curves)
    monkeypatch.setattr(charts, "intervals", lambda _: {"source": "data:,", "alt": ""})
    return found


def make_run(
    root: Path,
    path: str = "ch1_x/quick",
    rows: Any = ROWS,
    metrics: dict[str, Any] | None = METRICS,
    **config: Any,
) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    experiment = config.pop("experiment", path.split("/")[0])
    head = {"schema": 2, "experiment": experiment, "run": "a", "preset": "quick"}
    described = head | {"config": {"seed": 0, **config}, "options": {"keep": "last"}}
    described |= {"files": {}}
    result = head | {"seed": 0, "metrics": metrics, "steps": 51000, "compile_s": 1.5}
    result |= {"train_s": 70.0, "wall_s": 185.2, "examples_per_s": 1234567.8}
    environment = {"device": "cpu", "devices": 1, "cores": 2, "processor": "Abacus"}
    environment |= {"packages": {"jax": "9.9.9"}, "git": "0123456789abcdef+changes"}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    if metrics is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def page_of(root: Path) -> Page:
    return Page(write_report(root))


def test_shows_each_metric_with_its_interval(tmp_path):
    make_run(tmp_path)
    page = page_of(tmp_path)
    for row in (
        ["majority", "0.6825", "", ""],
        ["net", "0.693", "[0.649, 0.734]", "400 people"],
        ["linear", "0.600", "[0.649, 0.734]", "400 people"],
        ["net - linear", "-0.020", "[-0.030, 0.010]", "9 pairs"],
        ["verdict", "no better"],
        ["diverged", "not finite"],
    ):
        assert row in page.rows
    overview = page.rows[1]
    assert overview[:3] == ["ch1_x", "quick", "finished"]
    assert "accuracy net 0.693 [0.649, 0.734] linear 0.600" in overview[3]
    assert overview[4:] == ["quick", "0", "3 min 05 s", "cpu", "0123456+"]
    for fact in ("51,000 steps", "1,234,568 examples/s", "Abacus, 2 cores", "9.9.9"):
        assert fact in page.text


def test_the_same_runs_give_the_same_bytes(tmp_path):
    names = ["ch1_x/quick", "ch1_x/quick-seed10", "ch1_x/quick-seed2", "ch2_y/full"]
    for root, order in (("a", names), ("b", names[::-1])):
        for name in order:
            make_run(tmp_path / root, name)
            for figure in order:
                path = tmp_path / root / name / "figures" / f"{figure[-4:]}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(PNG)
    first = write_report(tmp_path / "a").read_bytes()
    assert write_report(tmp_path / "b").read_bytes() == first
    assert write_report(tmp_path / "a").read_bytes() == first  # beside its old page
    written = {p.name for p in (tmp_path / "a").iterdir()}
    assert written == {"ch1_x", "ch2_y", "report.html"}
    (tmp_path / "b/ch2_y/full/metrics.jsonl").unlink()
    assert write_report(tmp_path / "b").read_bytes() != first
    at = [first.index(f'id="{name}"'.encode()) for name in names]
    assert at[0] < at[2] < at[1] < at[3]  # seed2 before seed10


def test_refers_to_nothing_outside(tmp_path):
    folder = make_run(tmp_path)
    (folder / "figures").mkdir()
    (folder / "figures" / "shift_curve.png").write_bytes(PNG)
    page = page_of(tmp_path)
    assert str(tmp_path) not in page.source
    assert "://" not in page.source
    assert "url(" not in page.source
    assert "@import" not in page.source
    references = [
        attrs[name]
        for _, attrs in page.tags
        for name in ("src", "href", "action", "data", "srcset", "poster")
        if name in attrs
    ]
    assert any(r.startswith("data:image/png;base64,") for r in references)
    assert all(r.startswith(("#", "data:")) for r in references)
    policies = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_every_link_has_its_target(tmp_path):
    for name in ("ch1_x/a b", "ch1_x/ä%20", "ch1_x/a/b", "ch1_x/a-b", "quick"):
        make_run(tmp_path, name, experiment="ch1 x")
    page = page_of(tmp_path)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    links = {attrs["href"] for attrs in page.all("a")}
    assert len(ids) == len(set(ids)) == 7  # the runs, their experiment, the top
    assert links == {f"#{name}" for name in ids}
    assert not any(" " in name for name in ids)
    assert "ä%20" in page.text
    assert page.source.isascii()  # the same in every locale


EVIL = "</script><script>alert(1)</script><img src=x onerror='a\"b'>"


def test_names_cannot_inject_html(tmp_path):
    name = EVIL.replace("/", "|")
    rows = [{"step": 1, "epoch": 1.0, "split": EVIL, "part": p, EVIL: 1.0}
            for p in (EVIL, "b")]  # fmt: skip
    metrics = {EVIL: EVIL, f"{EVIL}: a": ESTIMATE | {"of": EVIL}, "b: a": 1.0}
    for path in (f"ch1/{name}", f"ch1/{name}2"):
        folder = make_run(tmp_path, path, rows, metrics, experiment=EVIL, field=EVIL)
        (folder / "samples").mkdir()
        (folder / "samples" / f"{name}.txt").write_text(EVIL)
        (folder / "samples" / f"{name}.mid").write_text(EVIL)
        (folder / "samples" / f"{name}.png").write_bytes(PNG)
    page = page_of(tmp_path)
    assert not page.all("script")
    assert len(page.images()) == 2
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert page.text.count(EVIL) > 20
    assert any(EVIL in chart["alt"] for chart in page.all("img", "chart"))


DAMAGES = [
    ("config.json", "{", "config.json cannot be read: Expecting property name"),
    ("config.json", "[]", "config.json cannot be read: Input should be a"),
    ("config.json", "{}", "config.json cannot be read: schema: Field required"),
    ("config.json", None, "config.json cannot be read: No such file"),
    ("config.json",
     '{"schema": 2, "experiment": "a", "run": "c", "preset": "b", "config": 2}',
     "config.json cannot be read: config: Input should be a valid dictionary"),
    ("environment.json", "\xff", "environment.json cannot be read"),
    ("environment.json", "[" * 900 + "]" * 900, "Recursion error"),
    ("result.json", '{"metrics": {"net": {"mean": "x", "low": 1, "high": 2}}}',
     "result.json cannot be read: metrics.net.Interval.mean: Input should be a"),
    ("study.json", '{"comparison": {"sentences": 5}}', "study.json cannot be read"),
    ("metrics.jsonl", '{"step": 1, "split": "train"}\n{"step": 2, "split": 3}\n',
     "left out in line 2 (split: Input should be a valid string)"),
    ("result.json", '{"metrics": {"acc', "result.json cannot be read: Untermin"),
    ("result.json", '{"metrics": 1}', "metrics: Input should be a valid"),
    ("metrics.jsonl", '{"step": 1, "split": "train"}\nno\n[]\n{"step": "a"}\n1\n',
     "metrics.jsonl is damaged and left out in line 2, 3, 4, 5"),
    ("metrics.jsonl", '{"step": 1, "split": "train", "loss": 2.0}\n{"step": 2, "sp',
     "the last line of metrics.jsonl is torn"),
    ("figures/a.png", "no image", "figures/a.png is no PNG image"),
]  # fmt: skip


def test_a_damaged_run_is_listed_with_the_reason(tmp_path):
    make_run(tmp_path, "ch1_x/whole")
    for i, (file, text, _) in enumerate(DAMAGES):
        folder = make_run(tmp_path, f"ch2_y/{i}", experiment=f"e{i}")
        (folder / "figures").mkdir()
        if text is None:
            (folder / file).unlink()
        else:
            (folder / file).write_text(text, encoding="latin-1")
    page = page_of(tmp_path)
    runs = {row[1].split("/")[-1]: row for row in page.rows[1 : len(DAMAGES) + 2]}
    assert runs["whole"][2] == "finished"
    for i, (_, _, reason) in enumerate(DAMAGES):
        assert runs[str(i)][2] == "damaged"
        assert reason in runs[str(i)][3]
        assert page.text.count(reason) >= 2  # in the overview and with the run
    assert ["net", "0.693", "[0.649, 0.734]", "400 people"] in page.rows


def test_links_out_of_a_run_folder_are_left_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret.txt"
    secret.write_text("a secret")
    image = tmp_path / "elsewhere" / "secret.png"
    image.write_bytes(PNG + b"a secret")
    folder = make_run(tmp_path / "runs", "ch1_x/linked")
    other = make_run(tmp_path / "runs", "ch1_x/other")
    for kind in ("samples", "figures"):
        (folder / kind).mkdir()
    (folder / "samples" / "own.txt").write_text("my own")
    (folder / "samples" / "again.txt").symlink_to("own.txt")  # stays in the folder
    (folder / "samples" / "link.txt").symlink_to(secret)
    (folder / "figures" / "link.png").symlink_to(image)
    (other / "figures").symlink_to(tmp_path / "elsewhere")
    (other / "environment.json").unlink()
    (other / "environment.json").symlink_to(folder / "environment.json")
    page = page_of(tmp_path / "runs")
    assert "a secret" not in page.text
    assert not page.images()
    assert page.text.count("my own") == 2
    for named in (
        "Not shown here: link.txt (a link out of the run folder)",
        "Not shown here: link.png (a link out of the run folder)",
        "figures is a link out of the run folder and left out",
        "environment.json is a link out of the run folder and left out",
    ):
        assert named in page.text


def test_names_that_are_not_utf8(tmp_path):
    name = "\udcff9" + "1" * 99
    rows = [{"step": 1, "split": "train\ud800", "1" * 5000: 2.0, "loss": 1.0}]
    folder = make_run(tmp_path, f"ch1_x/{name}", rows, {"net\udcff": 1.0}, of=name)
    (folder / "figures").mkdir()
    (folder / "figures" / f"{name}.png").write_bytes(PNG)
    page = page_of(tmp_path)
    assert len(page.images()) == 1
    for shown in ("\\udcff911", "net\\udcff", "train\\ud800"):
        assert shown in page.source
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(a["href"][1:] in ids for a in page.all("a"))


def test_a_pipe_is_not_waited_for_and_a_folder_is_no_log(tmp_path):
    folder = make_run(tmp_path)
    for name, make in (("environment.json", os.mkfifo), ("metrics.jsonl", os.mkdir)):
        (folder / name).unlink()
        make(folder / name)
    text = page_of(tmp_path).text
    assert "environment.json cannot be read: it is no regular" in text
    assert "metrics.jsonl cannot be read: Is a directory" in text


def test_an_unfinished_run_says_how_far_it_got(tmp_path):
    folder = make_run(tmp_path, metrics=None)
    make_run(tmp_path, "ch1_x/begun", rows=[], metrics=None)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "ep')  # killed while writing, or writing still
    page = page_of(tmp_path)
    assert "2 unfinished" in page.text
    assert "damaged" not in page.text
    assert page.text.count("reached epoch 5, step 50") == 2
    assert page.text.count("nothing logged yet") == 2
    assert "the last line of metrics.jsonl is torn and left out" in page.text
    assert len(page.all("img", "chart")) == 1


def test_without_a_run_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*missing"):
        write_report(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no run")
    with pytest.raises(UserError, match="no run under"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_folder_can_be_the_root(tmp_path):
    folder = make_run(tmp_path)
    assert page_of(folder).rows[1][:2] == ["ch1_x", "quick"]
    for inside in (folder / "checkpoints" / "1", folder / "trainings" / "begun"):
        inside.mkdir(parents=True)
        shutil.copy(folder / "config.json", inside)
    assert "1 run of 1 experiment" in page_of(folder).text


def test_train_and_validation_share_a_panel(tmp_path, drawn):
    make_run(tmp_path)
    write_report(tmp_path)
    (((_, xlabel, (train, validation)),),) = drawn
    assert (train.name, validation.name, xlabel) == ("train", "validation", "epoch")
    epochs = np.arange(1.0, 6)
    assert np.array_equal(train.table[:, :2], np.stack([epochs, 1 / epochs], 1))
    assert np.array_equal(validation.table[:, 1], 1 / epochs + 0.25)


def test_replicas_are_a_median_and_a_band(tmp_path, drawn):
    values = [[float(replica + e) for replica in range(11)] for e in range(3)]
    rows = [{"step": e, "split": "train", "loss": v} for e, v in enumerate(values)]
    make_run(tmp_path, rows=rows)
    page = page_of(tmp_path)
    (((_, xlabel, (curve,)),),) = drawn
    assert curve.table.tolist() == [[0, 5, 1, 9], [1, 6, 2, 10], [2, 7, 3, 11]]
    assert "median of the replicas (up to 11); band: 80 %" in page.text
    assert xlabel == "step"  # no epoch was logged


def test_values_that_are_null_are_gaps_and_counted(tmp_path, drawn):
    lists = [[1.0, 2.0, 3.0], [None, 2.0, None], [None] * 3, [4.0, 4.0, None], None]
    rows = [{"step": e, "split": "train", "loss": v, "other": v and v[0]}
            for e, v in enumerate(lists)]  # fmt: skip
    make_run(tmp_path, rows=rows)
    page = page_of(tmp_path)
    loss, other = (panel.curves[0].table[:, 1] for panel in drawn[0])
    assert np.array_equal(loss, [2, 2, math.nan, 4, math.nan], equal_nan=True)
    assert np.array_equal(other, [1, *[math.nan] * 2, 4, math.nan], equal_nan=True)
    assert "Up to 3 of 3 replicas were not finite." in page.text
    assert "nan" not in page.source.lower()


def test_a_curve_without_any_finite_value_is_no_error(tmp_path, monkeypatch):
    monkeypatch.undo()
    rows = [{"step": e, "split": "train", "loss": [None, None]} for e in range(3)]
    make_run(tmp_path, rows=rows)
    chart = page_of(tmp_path).all("img", "chart")[-1]
    assert chart["alt"] == "loss: train ends at not finite"


@pytest.mark.parametrize(("parts", "together"), [(1, 0), (3, 1), (12, 0)])
def test_every_part_has_a_panel_and_few_share_one(tmp_path, drawn, parts, together):
    rows = [{**row, "part": f"part_{p}"} for p in range(parts) for row in ROWS]
    make_run(tmp_path, rows=rows)
    write_report(tmp_path)
    titles = [panel.title for panel in drawn[0]]
    assert len(titles) == parts + together
    assert all(f"part {p}" in titles[p - parts] for p in range(parts))
    assert ("all parts, validation" in titles) == together


def test_panels_get_a_scale_of_their_own_only_where_a_common_one_flattens():
    def shared(*factors: float) -> bool:
        line = np.arange(1.0, 6)[:, None] * np.ones(4)
        panels = [charts.ChartPanel("", "", [charts.Curve("", 0, f * line)])
                  for f in factors]  # fmt: skip
        return charts.have_one_scale(panels)

    assert shared(1, 2)
    assert not shared(1, 2, 3, 15)
    assert shared(1, 10, 100, 1000)  # on a logarithmic scale


def test_a_chart_is_one_image_for_light_and_dark_pages(monkeypatch):
    monkeypatch.undo()
    names = ["$x_", "_", "<&>", "\udcff\0", "\ud55c", "n" * 999, "e", "f", "g", "h"]
    table = np.array(
        [[0, 1, 0.5, 2], [1, math.nan, math.nan, math.nan], [2, 9, 1, 1e9]]
    )
    curves = [charts.Curve(name, i, table) for i, name in enumerate(names)]
    estimates = {name: Estimate(1.0, 0.5, 2.0, 9, "") for name in names}
    few = charts.curves([charts.ChartPanel("t", "epoch", curves[:3])] * 2)
    assert charts.curves([charts.ChartPanel("t", "epoch", curves[:3])] * 2) == few
    for chart in (few,
                  charts.curves([charts.ChartPanel("t", "epoch", curves)]),
                  charts.intervals({"loss": estimates})):  # fmt: skip
        kind, data = chart["source"].split(",")
        assert kind == "data:image/svg+xml;base64"
        source = base64.b64decode(data).decode()
        svg = ET.fromstring(source)
        style, *marked = source.split("prefers-color-scheme:dark")
        assert all(c in style for c in charts.DARK)
        assert all(c in marked[0] for c in charts.DARK.values())
        assert not set(charts.DARK) & set(marked[0])  # what is drawn has no colour
        assert "#000000" not in source
        texts = " ".join(svg.itertext())
        assert "$x_" in texts  # no mathematics, and no name is left out
        assert "<&>" in texts
    assert "n" * 37 + "..." in texts
    assert "n" * 38 not in texts


def test_runs_of_an_experiment_are_compared(tmp_path, drawn):
    first = METRICS | {"extra": 3, "its own": 5}
    make_run(tmp_path, "ch1_x/new", rate=0.1, metrics=METRICS | {"extra": 4})
    own = [{"step": 1, "epoch": 1.0, "split": "train", "loss": 1.0, "part": "own"}]
    make_run(tmp_path, "ch1_x/quick", rate=0.1, rows=ROWS + own)
    make_run(tmp_path, "ch1_x/slow", rate=0.0123, metrics=first)
    make_run(tmp_path, "ch1_x/begun", rate=0.1, metrics=None)
    make_run(tmp_path, "ch2_y/alone")
    page = page_of(tmp_path)
    value = "0.693 [0.649, 0.734]"
    assert page.text.count("runs compared") == 1
    assert ["net: accuracy", "", value, value, value] in page.rows
    assert ["extra", "", "4", "", "3"] in page.rows
    assert [len(row) for row in page.rows if row[0] == "its own"] == [4]  # with its run
    assert ["rate", "0.1", "0.1", "0.1", "0.0123"] in page.rows
    assert not any(row[0] == "seed" for row in page.rows)  # the same in all
    every = [panel for panels in drawn for panel in panels]
    names = ["begun", "new", "quick", "slow"]
    (shared,) = [p for p in every if [c.name for c in p.curves] == names]
    # the comparison's, three of one part, two parts with one of both, and ch2_y's
    assert len(every) == 1 + 3 + 3 + 1
    want = [1 / e + 0.25 for e in range(1, 6)]
    assert np.allclose(shared.curves[1].table[:, 1], want)


LESSON = {
    "number": "2.1", "title": "Nets", "question": "What is a net?",
    "metrics": ["net: accuracy"],
    "figures": {"samples/epoch*": "They sharpen.", "curves": "It falls.", "no": "-"},
    "try_it": {"--rate 3": "It diverges."}, "mistakes": {"peek": "It fakes 0.1."},
}  # fmt: skip
CLAIMS = [
    {"sentence": f"It {verdict}.", "verdict": verdict, "evidence": "net: 0.693"}
    for verdict in ("holds", "fails", "undetermined")
]


def make_lesson(
    root: Path, path: str = "ch1_x/quick", lesson: Any = LESSON, claims: Any = CLAIMS,
    preset: str = "quick", **how: Any,
) -> Path:  # fmt: skip
    folder = make_run(root, path, **how)
    for name, fields in (
        ("result.json", {"lesson": lesson, "claims": claims, "preset": preset}),
        ("config.json", {"preset": preset}),
    ):
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(record | fields))
    for name in ("samples/epoch_1", "samples/epoch_2", "figures/curves", "figures/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(PNG + name.encode())
    return folder


def scripts(page: Page) -> list[str]:
    """The scripts of a page, which its policy has to allow by their hashes."""
    found = [part.partition("</script>")[0] for part in page.source.split("<script>")]
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    for script in found[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy.endswith(f"; script-src 'sha256-{digest}'")
    return found[1:]


def test_a_lesson_tells_what_its_run_found(tmp_path):
    make_lesson(tmp_path)
    make_run(tmp_path, "a_user/own")
    page = page_of(tmp_path)
    text = page.text.partition("What is a net? \N{CHECK MARK} 1 holds")[2]
    order = [
        "2.1 Nets", "\N{CHECK MARK} holds It holds. net: 0.693",
        "\N{BALLOT X} fails It fails. net: 0.693",
        "? undetermined It undetermined.", "They sharpen.", "It falls.",
        "python experiments/ch1_x.py --rate 3 It diverges.",
        "python experiments/ch1_x.py --mistake peek It fakes 0.1.",
        "All 6 metrics", "Other files", "Settings", "Environment", "Other runs", "own",
    ]  # fmt: skip
    at = [text.index(words) for words in order]
    assert at == sorted(at)
    assert "2. Images and CNNs" in page.text
    assert [i["alt"] for i in page.images()] == ["Epoch 1", "Epoch 2", "Curves", "X"]
    assert len(page.all("div", "frames")) == 1
    assert len(page.all("img", "thumbnail")) == 1
    (script,) = scripts(page)
    assert "Image" not in script
    assert page.text.count("- ") < 9  # no caption of a figure that is not there


def test_the_fullest_run_of_a_lesson_is_the_one_shown(tmp_path):
    for preset in ("smoke", "full", "quick"):
        make_lesson(tmp_path, f"ch1_x/{preset}", preset=preset)
    make_run(tmp_path, "ch1_x/begun", metrics=None)
    page = page_of(tmp_path)
    assert len(page.images()) == 4  # of one
    assert len(page.all("section", "lesson")) == 1
    assert "preset full" in page.text.partition("Claims")[0]
    assert "preset smoke" not in page.text.partition("Other runs of this lesson: 3")[0]
    assert "4 runs compared" in page.text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) == 1 + 1 + 4
    assert all(a["href"][1:] in ids for a in page.all("a"))
    (tmp_path / "ch1_x/full/metrics.jsonl").write_text("no\n")  # damaged
    assert "preset quick" in page_of(tmp_path).text.partition("Claims")[0]


def test_lessons_stand_in_the_order_of_the_course(tmp_path):
    for path, number in (("a/q", "10"), ("b/q", "2.1.2"), ("c/q", "2.0, 2.1"),
                         ("d/q", "2")):  # fmt: skip
        make_lesson(tmp_path, path, LESSON | {"number": number})
    text = page_of(tmp_path).text
    at = [text.index(f"{number} Nets") for number in ("2", "2.0, 2.1", "2.1.2", "10")]
    assert at == sorted(at)


def test_a_page_is_filled_from_the_run(tmp_path, monkeypatch):
    text = "Found {{net: accuracy|mean}}.\n\n![](curves)\n\n![](no)\n\nThe end."
    monkeypatch.setattr(pages, "read_page", lambda name: text)
    make_lesson(tmp_path)
    page = page_of(tmp_path)
    text = page.text.partition("Found 0.693.")[2]
    at = [text.index(words) for words in ("It falls.", "The end.", "They sharpen.")]
    assert at == sorted(at)
    assert page.text.count("It falls.") == 1


def test_what_a_lesson_says_cannot_inject_html(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "read_page", lambda name: "{{evil}}\n\n![](curves)")
    lesson = {
        **dict.fromkeys(("number", "title", "question"), EVIL), "metrics": [EVIL],
        "figures": {"curves": EVIL, EVIL: EVIL, "[": EVIL},
        "try_it": {EVIL: EVIL}, "mistakes": {EVIL: EVIL},
    }  # fmt: skip
    claims = [{"sentence": EVIL, "verdict": "holds", "evidence": EVIL}]
    for name in ("a", "b"):
        make_lesson(tmp_path, f"ch1/{name}", lesson, claims, EVIL, experiment=EVIL,
                    metrics={"evil": EVIL, f"mistake {EVIL}: a": 1.0})  # fmt: skip
    page = page_of(tmp_path)
    assert len(scripts(page)) == len(page.all("script")) == 1
    assert len(page.images()) == 4
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert page.text.count(EVIL) > 20


def test_a_verdict_is_one_of_three(tmp_path):
    make_lesson(tmp_path, claims=[{**CLAIMS[0], "verdict": "<b>"}])
    text = page_of(tmp_path).text
    assert "claims.0.verdict: Input should be 'holds', 'fails' or" in text


def test_a_large_image_is_made_smaller():
    noise = np.random.default_rng(0).integers(0, 255, (100, 2000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    large = file.getvalue()
    small = reading.smaller(large)
    assert len(small) < len(large)
    assert Image.open(io.BytesIO(small)).size == (1600, 80)
    assert reading.smaller(large) == small
    assert reading.smaller(PNG) == PNG  # which is no image
    header = large[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + large[24:]
    assert reading.smaller(header) == header  # as are so many pixels


def test_figures_and_samples_are_inside(tmp_path):
    folder = make_run(tmp_path)
    (folder / "samples" / "from_noise").mkdir(parents=True)
    for name in ("epoch_10.png", "epoch_9.png", "from_noise/last.gif"):
        data = PNG if name.endswith("png") else b"GIF89a"
        (folder / "samples" / name).write_bytes(data + name.encode())
    (folder / "samples" / "tune.abc").write_text("X:1\nK:G")
    (folder / "samples" / "tune.mid").write_bytes(b"MThd")
    page = page_of(tmp_path)
    images = page.images()
    assert [i["alt"] for i in images] == ["Epoch 9", "Epoch 10", "From noise, last"]
    kind, data = images[1]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == PNG + b"epoch_10.png"
    assert images[2]["src"].startswith("data:image/gif;base64,")
    assert "X:1 K:G" in page.text
    assert "Not shown here: tune.mid" in page.text


@pytest.mark.parametrize(
    ("value", "text", "interval"),
    [
        (0.68250000476, "0.6825", ""), (12, "12", ""), (1267742.0, "1,267,742", ""),
        (3.1e-7, "3.1e-07", ""), (1e30, "1e+30", ""), (10**400, str(10**400), ""),
        (True, "true", ""), (math.nan, "NaN", ""), ([1, 2], "[1, 2]", ""),
        ({"mean": 1234.5, "low": 1000, "high": 1500}, "1,234", "[1,000, 1,500]"),
        ({"mean": None, "low": None, "high": None}, "not finite", ""),
        ({"mean": 2.0, "low": None, "high": None, "values": [1.5, 2.5]},
         "2", "(each: 1.5, 2.5)"),
    ],
)  # fmt: skip
def test_numbers_as_text(value, text, interval):
    if isinstance(value, dict):
        value |= {"n": 3, "of": "seeds"}
    assert value_of(value)[:2] == (text, interval)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (185.2, "3 min 05 s"), (3599.9, "1 h 00 min"),
     (7812, "2 h 10 min"), (None, ""), ("x", "")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
