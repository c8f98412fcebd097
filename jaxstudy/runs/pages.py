"""The pages of the lessons, docs/lessons/SCRIPT.md: for the report and for the docs.

A page is Markdown with a few additions, which `expanded` turns into Markdown with HTML
in it: {{metric}} and {{metric|mean}}, $formula$ and $$formula$$, `![](figure)` on a
line of its own, ```source fences and pairs of a ```keras and a ```python fence.
"""

import ast
import html as entities
import re
import string
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import latex2mathml.converter
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from jaxstudy.runs.lesson import Lesson
from jaxstudy.runs.values import value_of

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = {
    "1": "Predicting admission",
    "2": "Images and CNNs",
    "3": "Sequences",
    "4": "CSV data",
    "5": "GAN",
}
LIGHT, DARK = "default", "github-dark"  # Pygments styles
# What is looked for in one pass, so that nothing that was filled in is read again.
SYNTAX = re.compile(
    r"""
    ^```keras\n(?P<keras>.*?)^```\n\s*?^```python\n(?P<ours>.*?)^```[ ]*$
    | ^```source\n(?P<source>.*?)^```[ ]*$
    | ^(?P<fence>```+|~~~+).*?^(?P=fence)[ ]*$              # any other is left alone
    | ^!\[\]\((?P<figure>[^)\n]+)\)[ ]*$
    | (?<!`)(?P<code>`+)(?!`)(?:(?!\n\n).)+?(?<!`)(?P=code)(?!`)         # as is this
    | (?P<dollar>\\\$)
    | \{\{(?P<metric>[^{}\n]+?)(?P<mean>\|mean)?\}\}
    | \$\$(?P<display>(?:(?!\n\n)[^$])+?)\$\$
    | \$(?P<inline>[^\s$](?:(?!\n\n)[^$])*?)(?<!\s)\$(?!\d)
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
PAIR = """\
<div class="pair" markdown="1">
<div class="side-by-side" markdown="1">
<p class="caption">Keras</p>

```python
{keras}```

</div>
<div class="side-by-side" markdown="1">
<p class="caption">here</p>

```python
{ours}```

</div>
</div>
"""


def read_page(experiment: str) -> str | None:
    """The page of an experiment; None where the source tree has none."""
    path = ROOT / "docs" / "lessons" / f"{experiment}.md"
    # the name may come from a file on disk, and must not lead to another folder
    if not re.fullmatch(r"\w+", experiment) or not path.is_file():
        return None
    return path.read_text("utf-8")


def expanded(
    text: str, metrics: Mapping[str, Any], figure: Callable[[str], str]
) -> str:
    """A page as Markdown with HTML in it.

    Args:
        text: the page.
        metrics: those of a result.json, which fill the placeholders.
        figure: the HTML or Markdown to put in the place of a figure, by its key.
    """

    def replaced(match: re.Match[str]) -> str:
        groups = match.groupdict()
        if groups["keras"] is not None:
            return PAIR.format(**groups)
        if groups["source"] is not None:
            return "\n\n".join(map(_source_fence, groups["source"].splitlines()))
        if groups["figure"] is not None:
            return f"\n{figure(groups['figure'])}\n"
        if groups["metric"] is not None:
            return _metric(metrics, groups["metric"].strip(), bool(groups["mean"]))
        if groups["dollar"] is not None:
            return "&#36;"  # which not every Markdown lets one escape
        if groups["display"] is not None:
            return _formula(groups["display"], "block")
        if groups["inline"] is not None:
            return _formula(groups["inline"], "inline")
        return match[0]

    return SYNTAX.sub(replaced, text)


def _metric(metrics: Mapping[str, Any], name: str, mean: bool) -> str:
    """The value of a metric, as "0.693 [0.650, 0.733] (n = 6 seeds)"."""
    if name not in metrics:
        return "(not measured)"
    value = value_of(metrics[name])
    over = value.over and f"(n = {value.over})"
    texts = [value.text] if mean else filter(None, [value.text, value.interval, over])
    return escaped(" ".join(texts))


def escaped(text: str) -> str:
    """Text that is neither Markdown nor HTML, whatever it holds: in one line."""
    return "".join(
        f"&#{ord(c)};" if c in string.punctuation else c for c in " ".join(text.split())
    )


def inline(text: str) -> str:
    """A caption as HTML: escaped, and what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", entities.escape(text))


def _formula(latex: str, display: str) -> str:
    """LaTeX as MathML; what is no LaTeX as it is."""
    try:
        found = latex2mathml.converter.convert(latex, display=display)
    except Exception:  # its own, and those of whatever it stumbles over
        return f"<code>{escaped(latex)}</code>"
    found = found.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    # Markdown reads what stands between tags: a * there is no emphasis
    return re.sub(
        r">([^<]+)<", lambda m: f">{escaped(entities.unescape(m[1])) or m[1]}<", found
    )


def _source_fence(place: str) -> str:
    code = source_of(place)
    if code is None:
        return f"(There is no `{place}`.)"
    return f'````python title="{place}"\n{code}\n````'


def source_of(place: str) -> str | None:
    """The source of "PATH NAME", as "jaxstudy/models/cnn.py cnn"; None without one.

    It is cut out of the file, which is not imported. A dotted name is a method.
    """
    path, _, name = place.strip().partition(" ")
    if not (ROOT / path).is_file():
        return None
    text = (ROOT / path).read_text("utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        node = next((n for n in node.body if part in _names(n)), None)
        if node is None:
            return None
    first = min([node, *getattr(node, "decorator_list", ())], key=lambda n: n.lineno)
    lines = text.splitlines()[first.lineno - 1 : node.end_lineno]
    return textwrap.dedent("\n".join(lines))


def _names(node: Any) -> list[str | None]:
    """The names that a statement defines."""
    targets = getattr(node, "targets", [getattr(node, "target", node)])
    return [getattr(t, "name", getattr(t, "id", None)) for t in targets]


def html(markdown: str) -> str:
    """Markdown as HTML, its headings one level down, its code with CSS classes.

    A link to another page, as "ch2_cnn.md", leads to that lesson in the report.
    """
    options = {"html": True, "highlight": _coloured}
    parser = MarkdownIt("commonmark", options).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 1)}"
        for child in token.children or ():
            if child.type == "link_open":
                target = re.sub(r"^(ch\w+)\.md$", r"#:\1", str(child.attrs["href"]))
                child.attrs["href"] = target
    text = parser.renderer.render(tokens, parser.options, {})
    return text.replace(' markdown="1"', "")


def _coloured(code: str, language: str, attributes: str) -> str:
    """A fence as HTML, with its title above."""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    titled = re.search(r'title="([^"]*)"', attributes)
    title = f'<span class="title">{entities.escape(titled[1])}</span>' if titled else ""
    coloured = highlight(code, lexer, HtmlFormatter(nowrap=True))
    return f'<pre class="code">{title}<code>{coloured}</code></pre>'


def colours() -> str:
    """The CSS of coloured code, for light and dark pages."""
    light, dark = (
        "\n".join(HtmlFormatter(style=style).get_token_style_defs(".code"))
        for style in (LIGHT, DARK)
    )
    return f"{light}\n@media screen and (prefers-color-scheme:dark){{\n{dark}\n}}"


def unresolved(text: str, lesson: Lesson) -> list[str]:
    """What a page refers to and is not there: figures, sources, formulas."""
    missing = []
    for match in SYNTAX.finditer(text):
        groups = match.groupdict()
        if groups["figure"] and groups["figure"] not in lesson.figures:
            missing.append(f"figure {groups['figure']}")
        for place in (groups["source"] or "").splitlines():
            if source_of(place) is None:
                missing.append(f"source {place}")
        latex = groups["display"] or groups["inline"]
        if latex and not _formula(latex, "inline").startswith("<math"):
            missing.append(f"formula {latex}")
    return missing
