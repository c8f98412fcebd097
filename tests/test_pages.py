"""Pages of lessons: placeholders, formulas, sources, and what hostile names cannot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jaxstudy.runs import pages
from jaxstudy.runs.lesson import Lesson
from tests.conftest import load

PAGES = sorted((pages.ROOT / "docs" / "lessons").glob("ch*.md"))
ESTIMATE = {"mean": 0.693, "low": 0.6495, "high": 0.73375, "n": 6, "of": "seeds"}
METRICS = {"net: accuracy": ESTIMATE, "share": 0.25, "lost": None}
EVIL = "</p><script>alert(1)</script> ![](curves) {{share}} $x$ `a` *b* | [c](d)"


def shown(text: str, metrics: Mapping[str, Any] = METRICS) -> str:
    """The HTML of a page whose figures are their keys."""
    return pages.html(pages.expanded(text, metrics, lambda key: f"<i>{key}</i>"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_refers_to_is_there(path: Path) -> None:
    text = pages.read_page(path.stem)
    assert text
    assert pages.unresolved(text, load("experiments", path.stem).LESSON) == []
    assert "There is no" not in shown(text)


def test_a_page_comes_from_the_folder_of_pages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "docs" / "lessons").mkdir(parents=True)
    (tmp_path / "docs" / "secret.md").write_text("secret")
    (tmp_path / "docs" / "lessons" / "ch1_x.md").write_text("page")
    assert pages.read_page("ch1_x") == "page"
    for name in ("../secret", "", "ch1_y", "ch1_x\n", str(tmp_path / "docs/secret")):
        assert pages.read_page(name) is None


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("{{net: accuracy}}", "0.693 [0.649, 0.734] (n = 6 seeds)"),
        ("**{{ net: accuracy|mean}}**", "<strong>0.693</strong>"),
        ("{{share}}, {{lost}}, {{no}}", "0.25, not finite, (not measured)"),
        ("`{{share}}` and `$x$`", "<code>{{share}}</code> and <code>$x$</code>"),
        (r"it costs \$5 or \$6", "it costs $5 or $6"),
        ("from $5 to $6", "from $5 to $6"),
    ],
)
def test_values(text: str, html: str) -> None:
    assert shown(text) == f"<p>{html}</p>\n"


def test_what_was_filled_in_is_not_read_again() -> None:
    """Neither as Markdown nor as HTML nor as a placeholder."""
    estimate = ESTIMATE | {"of": EVIL}
    page = shown("{{a}} {{b}}\n\n{{a}}", {"a": f"# {EVIL}\n\n", "b": estimate})
    assert "<script" not in page
    assert "<i>" not in page  # no figure
    assert not any(tag in page for tag in ("<math", "<code", "<em", "<h", "<a"))
    assert page.count("&lt;script&gt;") == 3
    assert page.count("{{share}}") == 3


def test_a_formula_is_mathml_that_markdown_leaves_alone() -> None:
    page = shown(r"With $a * b_i * c$, a *word*." "\n\n" r"$$\frac{x_1}{2} < 3$$")
    assert page.count("<math") == page.count("</math>") == 2
    assert 'display="block"' in page
    assert "<mo>*</mo>" in page
    assert "<em>word</em>" in page
    assert page.count("<em>") == 1
    assert "://" not in page
    assert shown(r"$\frac{$") == "<p><code>\\frac{</code></p>\n"


def test_a_figure_stands_on_a_line_of_its_own() -> None:
    page = shown("![](samples/epoch*)\n\nin a ![](line)")
    assert "<i>samples/epoch*</i>" in page
    assert "<i>line</i>" not in page


def test_source_is_cut_out_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    source = "import nothing_there\nA = {\n    1: 2}\n\nclass B:\n" + (
        "    @property\n    def c(self):\n        return '<b>'\n\ndef d(): return 1"
    )
    (tmp_path / "a.py").write_text(source)
    assert pages.source_of("a.py A") == "A = {\n    1: 2}"
    assert pages.source_of("a.py B.c") == "@property\ndef c(self):\n    return '<b>'"
    assert pages.source_of("a.py d") == "def d(): return 1"
    for place in ("a.py e", "a.py B.d", "a.py", "b.py d", ""):
        assert pages.source_of(place) is None
    page = shown("```source\na.py d\na.py B.c\na.py e\n```")
    assert page.count('<pre class="code">') == 2
    assert '<span class="title">a.py d</span>' in page
    assert "&lt;b&gt;" in page
    assert "There is no <code>a.py e</code>" in page


def test_keras_stands_beside_ours() -> None:
    pair = "```keras\nkeras.Model()\n```\n\n```python\nmodel = 1\n```\n"
    page = shown(f"{pair}\n{pair}```python\nalone = {{{{share}}}}\n```")
    assert page.count('<div class="pair">') == 2
    assert page.count("<div") == page.count("</div>") == 6
    assert page.count('<p class="caption">Keras</p>') == 2
    assert page.count('<pre class="code">') == 5
    assert "markdown=" not in page
    assert "0.25" not in page  # code is code


def test_headings_links_and_tables() -> None:
    page = shown("## Idea\n\n[two](ch2_cnn.md)\n\n|a|b|\n|-|-|\n|{{share}}|$x|y$|")
    assert "<h3>Idea</h3>" in page
    assert '<a href="#:ch2_cnn">two</a>' in page
    assert page.count("<td>") == 2


def test_unresolved_names_what_is_missing() -> None:
    lesson = Lesson(
        number="1", title="t", question="q?", metrics=(), claims=(), figures={"a": "A"}
    )
    text = "![](a)\n\n![](b)\n\n`$\\frac{$` $\\frac{$\n\n```source\nno.py x\n```\n"
    want = ["figure b", "formula \\frac{", "source no.py x"]
    assert pages.unresolved(text, lesson) == want


def test_code_has_colours_for_light_and_dark_pages() -> None:
    light, dark = pages.colours().split("@media screen and (prefers-color-scheme:dark)")
    assert ".code .k " in light
    assert ".code .k " in dark
    assert "<" not in light + dark
