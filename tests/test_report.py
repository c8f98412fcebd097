"""The report: made by hand-written run folders, read back with html.parser."""

import base64
import json
import math
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstudy.runs import report
from jaxstudy.runs.report import scale_over, value_of, write_report
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

    def charts(self) -> dict[str, list[list[Any]]]:
        """The numbers behind every chart, by its label."""
        charts = self.all("svg", "chart")
        return {c["aria-label"]: json.loads(c["data-numbers"]) for c in charts}


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
        ["majority", "0.6825", "", "", ""],
        ["net", "0.693", "0.649 to 0.734", "400 people", ""],
        ["linear", "0.600", "0.649 to 0.734", "400 people", ""],
        ["net - linear", "-0.020", "-0.030 to 0.010", "9 pairs", ""],
        ["verdict", "no better", ""],
        ["diverged", "not finite", ""],
    ):
        assert row in page.rows
    overview = page.rows[1]
    assert overview[:3] == ["ch1_x", "quick", "finished"]
    assert "accuracy net 0.693 [0.649 to 0.734] linear 0.600" in overview[3]
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
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "ch1_x",
        "ch2_y",
        "report.html",
    ]
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
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 2
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert page.text.count(EVIL) > 20
    assert json.loads(page.all("svg", "chart")[0]["data-numbers"])[0][0]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
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
    ],
)  # fmt: skip
def test_a_damaged_run_is_listed_with_the_reason(tmp_path, file, text, reason):
    make_run(tmp_path, "ch1_x/whole")
    folder = make_run(tmp_path, "ch1_x/broken")
    (folder / "figures").mkdir()
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text, encoding="latin-1")
    page = page_of(tmp_path)
    status = {row[1]: row[2] for row in page.rows[1:3]}
    assert status == {"whole": "finished", "broken": "damaged"}
    assert page.text.count(reason) == 2  # in the overview and with the run
    assert ["net", "0.693", "0.649 to 0.734", "400 people", ""] in page.rows


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
    assert not page.all("img")
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
    assert len(page.all("img")) == 1
    for shown in ("\\udcff911", "net\\udcff", "train\\ud800"):
        assert shown in page.text
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(a["href"][1:] in ids for a in page.all("a"))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    folder = make_run(tmp_path)
    (folder / "environment.json").unlink()
    os.mkfifo(folder / "environment.json")
    assert "environment.json cannot be read: it is no regular" in page_of(tmp_path).text


def test_unreadable_logs_do_not_break_the_page(tmp_path):
    folder = make_run(tmp_path)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    assert "metrics.jsonl cannot be read: Is a directory" in page_of(tmp_path).text


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
    assert len(page.charts()) == 1


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


def test_train_and_validation_share_a_chart(tmp_path):
    make_run(tmp_path)
    charts = page_of(tmp_path).charts()
    label = "loss: train ends at 0.2000; validation ends at 0.4500"
    assert list(charts) == [label]
    epochs, values = [1, 2, 3, 4, 5], [1 / e for e in range(1, 6)]
    train, validation = charts[label]
    assert train[:2] == ["train", epochs]
    assert validation[:2] == ["validation", epochs]
    assert np.allclose(train[2], values, rtol=1e-4)
    assert np.allclose(validation[2], np.add(values, 0.25), rtol=1e-4)


def test_replicas_are_a_median_and_a_band(tmp_path):
    values = [[float(replica + e) for replica in range(11)] for e in range(3)]
    rows = [{"step": e, "split": "train", "loss": v} for e, v in enumerate(values)]
    make_run(tmp_path, rows=rows)
    page = page_of(tmp_path)
    ((name, x, middle, low, high),) = next(iter(page.charts().values()))
    assert name == "train"
    assert x == [0, 1, 2]
    assert middle == [5, 6, 7]
    assert low == [1, 2, 3]
    assert high == [9, 10, 11]
    assert "median of the replicas (up to 11); band: 80 %" in page.text
    assert page.all("svg", "chart")[0]["data-x"] == "step"  # no epoch was logged


def test_values_that_are_null_are_left_out_and_counted(tmp_path):
    lists = [[1.0, 2.0, 3.0], [None, 2.0, None], [None] * 3, [4.0, 4.0, None], None]
    rows = [{"step": e, "split": "train", "loss": v, "other": v and v[0]}
            for e, v in enumerate(lists)]  # fmt: skip
    make_run(tmp_path, rows=rows)
    page = page_of(tmp_path)
    charts = page.charts()
    assert charts["loss: train ends at not finite"][0][2] == [2, 2, None, 4, None]
    assert charts["other: train ends at not finite"][0][2] == [1, None, None, 4, None]
    assert "Up to 3 of 3 replicas were not finite." in page.text
    lines = [
        a["d"] for t, a in page.tags if t == "path" and "d" in a and "class" not in a
    ]
    assert sum(d.count("M") == 2 for d in lines) == 2  # each in two pieces
    assert "nan" not in page.source.lower()


def test_a_curve_without_any_finite_value_is_no_error(tmp_path):
    rows = [{"step": e, "split": "train", "loss": [None, None]} for e in range(3)]
    make_run(tmp_path, rows=rows)
    assert "loss: train ends at not finite" in page_of(tmp_path).charts()


def test_long_curves_keep_their_spikes(tmp_path):
    rows = [{"step": e, "split": "train", "loss": 100.0 if e == 777 else 1.0}
            for e in range(5000)]  # fmt: skip
    make_run(tmp_path, rows=rows)
    (((_, x, middle, _, high),),) = page_of(tmp_path).charts().values()
    assert len(x) == len(middle) == report.POINTS
    assert x[-1] == 4999
    assert max(middle) == 1
    assert sorted(high)[-2:] == [1, 100]


@pytest.mark.parametrize(("parts", "together"), [(1, 0), (3, 1), (12, 0)])
def test_every_part_has_a_chart_and_few_share_one(tmp_path, parts, together):
    rows = [{**row, "part": f"part_{p}"} for p in range(parts) for row in ROWS]
    make_run(tmp_path, rows=rows)
    page = page_of(tmp_path)
    assert len(page.charts()) == parts + together
    for p in range(parts):
        assert f"part {p}" in page.text
    assert page.text.count("all parts") == together


def test_parts_get_a_scale_of_their_own_only_where_a_common_one_flattens(tmp_path):
    def chart_of(factors):
        rows = [{**row, "part": f"p{f}", "loss": row["loss"] * f}
                for f in factors for row in ROWS]  # fmt: skip
        make_run(tmp_path / str(factors), rows=rows)
        return page_of(tmp_path / str(factors)).text

    assert "one vertical scale" in chart_of([1, 2])
    assert "each on its own vertical scale" in chart_of([1, 2, 3, 15])


def test_runs_of_an_experiment_are_compared(tmp_path):
    first = METRICS | {"extra": 3, "its own": 5}
    make_run(tmp_path, "ch1_x/new", rate=0.1, metrics=METRICS | {"extra": 4})
    own = [{"step": 1, "epoch": 1.0, "split": "train", "loss": 1.0, "part": "own"}]
    make_run(tmp_path, "ch1_x/quick", rate=0.1, rows=ROWS + own)
    make_run(tmp_path, "ch1_x/slow", rate=0.0123, metrics=first)
    make_run(tmp_path, "ch1_x/begun", rate=0.1, metrics=None)
    make_run(tmp_path, "ch2_y/alone")
    page = page_of(tmp_path)
    value = "0.693 [0.649 to 0.734]"
    assert page.text.count("runs compared") == 1
    assert next(r for r in page.rows if r[0] == "net: accuracy")[2:] == [
        "", value, value, value,
    ]  # fmt: skip
    assert next(r for r in page.rows if r[0] == "extra")[2:] == ["", "4", "", "3"]
    assert [len(row) for row in page.rows if row[0] == "its own"] == [5]  # with its run
    assert ["rate", "0.1", "0.1", "0.1", "0.0123"] in page.rows
    assert not any(row[0] == "seed" for row in page.rows)  # the same in all
    shared = [c for c in page.charts().values() if [ln[0] for ln in c] ==
              ["begun", "new", "quick", "slow"]]  # fmt: skip
    assert len(shared) == 1
    # the comparison's, three of one part, two parts with one of both, and ch2_y's
    assert len(page.all("svg", "chart")) == 1 + 3 + 3 + 1
    assert np.allclose(shared[0][1][2], [1 / e + 0.25 for e in range(1, 6)], rtol=1e-4)


def test_figures_and_samples_are_inside(tmp_path):
    folder = make_run(tmp_path)
    (folder / "samples" / "from_noise").mkdir(parents=True)
    for name in ("epoch_10.png", "epoch_9.png", "from_noise/last.gif"):
        data = PNG if name.endswith("png") else b"GIF89a"
        (folder / "samples" / name).write_bytes(data + name.encode())
    (folder / "samples" / "tune.abc").write_text("X:1\nK:G")
    (folder / "samples" / "tune.mid").write_bytes(b"MThd")
    page = page_of(tmp_path)
    images = page.all("img")
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
        (0.68250000476, "0.6825", ""),
        (12, "12", ""),
        (1267742.0, "1,267,742", ""),
        (3.1e-7, "3.1e-07", ""),
        (1e30, "1e+30", ""),
        (10**400, str(10**400), ""),
        (True, "true", ""),
        (math.nan, "NaN", ""),
        ([1, 2], "[1, 2]", ""),
        ({"mean": 1234.5, "low": 1000, "high": 1500}, "1,234", "1,000 to 1,500"),
        ({"mean": 0.5, "low": 0.5, "high": 0.5}, "0.5", "0.5 to 0.5"),
        ({"mean": 1e-9, "low": 0.5e-9, "high": 2e-9}, "1e-09", "5e-10 to 2e-09"),
        ({"mean": None, "low": None, "high": None}, "not finite", ""),
        ({"mean": 2.0, "low": None, "high": None}, "2", "not finite"),
        (
            {"mean": 2.0, "low": None, "high": None, "values": [1.5, 2.5]},
            "2",
            "each: 1.5, 2.5",
        ),
    ],
)
def test_numbers_as_text(value, text, interval):
    assert value_of(value)[:2] == (text, interval)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (185.2, "3 min 05 s"), (3599.9, "1 h 00 min"),
     (7812, "2 h 10 min"), (None, ""), ("x", "")],
)  # fmt: skip
def test_durations(seconds, text):
    assert report.duration(seconds) == text


NUMBERS = st.floats(-1e30, 1e30, allow_subnormal=False)


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.integers(3, 8), st.booleans())
def test_ticks_are_few_in_order_and_on_the_axis(values, about, log):
    scale = scale_over([report.number_of(v) for v in values], 0.05, log)
    assert all(0 <= scale(report.number_of(v)) <= 1 for v in values)
    places = [place for place, _ in scale.ticks(about)]
    assert places == sorted(set(places))
    least = 2 if scale.log else about / 2 - 0.99
    assert least <= len(places) <= about + 1
    assert -1e-9 <= places[0] <= places[-1] <= 1 + 1e-9


def test_a_log_scale_where_values_span_more_than_two_decades():
    decades = scale_over([0.001, 5.0], 0.05)
    assert decades.log
    assert [text for _, text in decades.ticks(5)] == ["0.001", "0.01", "0.1", "1"]
    assert math.isclose(decades(math.sqrt(0.001 * 5.0)), 0.5)
    assert not scale_over([0.05, 4.9], 0.05).log
    assert not scale_over([0.0, 5000.0], 0.05).log
    linear = [text for _, text in scale_over([0.0, 0.1], 0.0).ticks(4)]
    assert linear == ["0.000", "0.025", "0.050", "0.075", "0.100"]
    tenths = [text for _, text in scale_over([0.0, 0.3], 0.0).ticks(4)]
    assert tenths == ["0.0", "0.1", "0.2", "0.3"]
    steps = [text for _, text in scale_over([0, 60000], 0.0).ticks(4)]
    assert steps == ["0", "20k", "40k", "60k"]
