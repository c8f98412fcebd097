"""The README, docs/ and what is made of them: short, true to the code, runnable."""

import ast
import functools
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pandas as pd
import pytest
from PIL import Image

import jaxstudy.__main__
from jaxstudy.__main__ import COMMANDS
from jaxstudy.dataset import Order, dataset
from jaxstudy.models.mlp import mlp
from jaxstudy.objectives import binary_cross_entropy
from jaxstudy.runs import cli, plots
from jaxstudy.runs.lesson import Claim, Lesson
from jaxstudy.runs.saved import Options
from jaxstudy.tabular.columns import Numeric
from jaxstudy.tabular.fitting import fit_columns
from jaxstudy.training import (
    Evaluator,
    fit,
    init_state,
    make_eval_step,
    make_train_step,
)
from tests.conftest import ROOT, load, numpy_kernels

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("ch*.py"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+).*?\1|\$\$.*?\$\$|\$[^$\n]+\$|\{\{.*?\}\}", re.DOTALL)
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\d.]*\.\d)")
PARTS = r"\b(?:[Ll]esson|[Cc]hapter|[Ss]ection)s?"
LESSONS = re.compile(rf"{PARTS}\s[\d.]+(?:, [\d.]+)*(?:,? (?:and|or|to) [\d.]+)?")
CONSTANTS = re.compile(r"<!-- constants: (.*?) -->", re.DOTALL)
Patch = pytest.MonkeyPatch


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(path.read_text()) if kind == language]


# What stands there


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert [line for line in lines if len(line) > 400] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", text))
    local = [t for t in targets if "://" not in t]
    if page.parent.name != "lessons":  # figures of a lesson are keys
        made = ("figures/", "api/")  # by benchmarks/docs_hooks.py
        local = [t for t in local if not t.removeprefix("../").startswith(made)]
        assert [t for t in local if not (page.parent / t).exists()] == []
    paths = re.findall(
        r"`((?:jaxstudy|experiments|benchmarks|tests|docs)/[\w./-]*)", text
    )
    assert [p for p in paths if not (ROOT / p.rstrip(".")).exists()] == []


def settings_of(lesson: Lesson, presets: Mapping[str, Any]) -> set[str]:
    """The numbers that a lesson's claims and presets set, as text."""
    values: list[Any] = [claim.margin for claim in lesson.claims]
    values += [m for claim in lesson.claims for m in claim.metrics]
    for value in (v for config in presets.values() for v in vars(config).values()):
        values += value if isinstance(value, tuple) else [value]
    return {f"{value:g}" for value in values if isinstance(value, float)}


def typed_numbers(text: str, settings: Collection[str] = ()) -> list[str]:
    """Decimals in prose that might be measured: not in code, formulas, placeholders.

    Numbers of lessons are none, nor settings, nor what the page declares as a constant,
    in a comment: <!-- constants: 0.5 1.96 -->.
    """
    declared = {*settings, *" ".join(CONSTANTS.findall(text)).split()}
    prose = CODE.sub("", FENCE.sub("", CONSTANTS.sub("", text)))
    prose = LESSONS.sub("", prose)
    return [number for number in DECIMAL.findall(prose) if number not in declared]


@pytest.mark.parametrize("page", sorted(DOCS.glob("lessons/ch*.md")), ids=name_of)
def test_no_measured_number_is_typed(page: Path) -> None:
    module = load("experiments", page.stem)
    settings = settings_of(module.LESSON, module.PRESETS)
    assert typed_numbers(page.read_text(), settings) == []


def test_a_typed_number_is_seen() -> None:
    text = "It reaches 0.798 and 12.5 %."
    assert typed_numbers(text) == ["0.798", "12.5"]
    assert typed_numbers(text, {"0.798"}) == ["12.5"]
    assert typed_numbers(f"<!-- constants: 0.798 12.5 -->\n{text}") == []
    fine = (
        "`0.1` $0.2 x$ {{m 0.3}} lesson 2.1.2, lessons 1.2 and 3.1\n```sh\n0.4\n```\n"
    )
    assert typed_numbers(fine) == []


def rows() -> list[list[str]]:
    lines = (DOCS / "keras-to-jax.md").read_text().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]


def test_the_tests_named_beside_keras_exist() -> None:
    assert len(rows()) > 30
    for row in rows():
        named = re.findall(r"`tests/(test_\w+)\.py::(test_\w+)`", row[-1])
        assert named or "#optimizers" in row[-1], row
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
            assert test in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]


# What can be run


def with_fences(language: str) -> list[Path]:
    return [page for page in PAGES if fences(page, language)]


@pytest.mark.parametrize("page", with_fences("python"), ids=name_of)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """As one program per page, as a reader would paste it."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / f"{page.stem}.py"
    program.write_text("\n".join(fences(page, "python")))
    runpy.run_path(str(program))


@pytest.mark.torture  # Keras stays as it is
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept")
@pytest.mark.parametrize("page", with_fences("keras"), ids=name_of)
def test_the_keras_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / f"{page.stem}_keras.py"
    program.write_text("\n".join(fences(page, "keras")))
    with warnings.catch_warnings(), numpy_kernels():
        # what it warns of among its own is not ours to mend
        warnings.simplefilter("ignore", DeprecationWarning)
        runpy.run_path(str(program))


@functools.cache
def program(path: Path) -> tuple[Any, dict[str, Any]]:
    """The presets of a script, and its options that act on a saved run."""
    found: list[Any] = []

    def experiment(main: Any, presets: Any, lesson: Any = None, **actions: Any) -> None:
        found.append((presets, actions))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "experiment", experiment)
        runpy.run_path(str(path), run_name="__main__")
    return found[0]


def parse(path: Path, arguments: list[str]) -> None:
    """Parse and check a script's command line as it would, and stop there."""
    presets, actions = program(path)
    saved = SimpleNamespace(preset="quick", config=presets["quick"], options=Options())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *arguments])
        patch.setattr(cli, "read_saved", lambda *_: saved)  # no run is needed
        asked = cli._parse(path.stem, "", presets, actions)
        cli._validate(asked.settings, asked.saving)


def commands(page: Path) -> Iterator[list[str]]:
    for code in fences(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def nothing(command: Any) -> Any:
    """A command with the same parameters, which does nothing."""
    return functools.wraps(command)(lambda *_, **__: None)


NOTHING_DONE = {k: nothing(command) for k, command in COMMANDS.items()}


@pytest.mark.parametrize("page", with_fences("sh"), ids=name_of)
def test_the_commands_of_a_page_parse(page: Path, monkeypatch: Patch) -> None:
    make = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    monkeypatch.setattr(jaxstudy.__main__, "COMMANDS", NOTHING_DONE)
    for words in commands(page):
        match words:
            case ["make", target]:
                assert target in make
            case ["python", "-m", "jaxstudy", *arguments]:
                monkeypatch.setattr(sys, "argv", ["jaxstudy", *arguments])
                with pytest.raises(SystemExit) as ended:
                    jaxstudy.__main__.main()
                assert ended.value.code == 0, words
            case ["python", script, *arguments]:
                parse(ROOT / script, arguments)
            case _:
                pytest.fail(f"nobody checks {shlex.join(words)}")


def test_a_wrong_command_is_seen() -> None:
    with pytest.raises((SystemExit, cli.UserError)):
        parse(ROOT / "experiments" / "ch1_admission.py", ["--epoch", "3"])
    with pytest.raises((SystemExit, cli.UserError)):
        parse(ROOT / "experiments" / "ch1_admission.py", ["--epochs", "0"])


def suggested(name: str) -> list[str]:
    lesson = load("experiments", name).LESSON
    return [*lesson.try_it, *(f"--mistake {m}" for m in lesson.mistakes)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_lesson_suggests_to_try_parses(name: str) -> None:
    for line in suggested(name):
        parse(ROOT / "experiments" / f"{name}.py", shlex.split(line))


@pytest.mark.torture
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_lesson_suggests_to_try_runs(name: str, tmp_path: Path) -> None:
    for i, line in enumerate(suggested(name)):
        words = ["--preset", "smoke", "--run-dir", str(tmp_path / str(i))]
        script = str(ROOT / "experiments" / f"{name}.py")
        command = [sys.executable, script, *words, *shlex.split(line)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, (line, ended.stderr[-2000:])


# What is made of it


def test_every_guide_has_its_place_and_the_configuration_is_valid() -> None:
    config = pytest.importorskip("mkdocs.config")  # with the extra "docs"
    guides = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("guides/*.md")}
    assert guides == set(load("benchmarks", "docs_hooks").GUIDES.values())
    loaded = config.load_config(str(ROOT / "mkdocs.yml"))
    assert loaded.site_dir == str(ROOT / "build" / "docs")


def lesson(**more: Any) -> Lesson:
    claim = Claim("A is below B.", ("a", "b"), "<")
    other = Claim("C is 0.", ("c", 0), "=")
    return Lesson(
        number="9", title="Toy", question="Is A < B?", metrics=("a", "b", "c"),
        claims=(claim, other), figures={"curve": "Look & see.", "else": "Not there."},
        **more,
    )  # fmt: skip


STORED = {
    "config": {}, "outdated": "the toy was broken",
    "environment": {"cores": 2, "processor": "X", "device": "cpu", "python": "3",
                    "packages": {"jax": "0"}, "git": "abc"},
    "result": {"metrics": {"a": 0.5, "b": 0.75}, "wall_s": 90.0},
}  # fmt: skip


def test_a_lessons_page_says_what_was_measured(monkeypatch: Patch) -> None:
    hooks = load("benchmarks", "docs_hooks")
    figure = ROOT / "results" / "figures" / "ch9_toy" / "curve.png"
    monkeypatch.setattr(hooks.readme, "stored_result", lambda name: STORED)
    found = {"curve": [figure]}
    monkeypatch.setattr(
        hooks.readme, "stored_figures", lambda name, key: found.get(key, [])
    )
    text = "It is {{a}}.\n\n![](curve)\n"
    monkeypatch.setattr(hooks, "read_page", lambda name: text)
    page = hooks.lesson_page(
        "ch9_toy", lesson(try_it={"--epochs 9": "More."}, mistakes={"peek": "Fakes."})
    )
    for part in (
        "# 9 Toy", "Is A &lt; B?", "the toy was broken", '"verdict holds">holds<',
        "not measured yet", "It is 0&#46;5.", 'src="../figures/ch9_toy/curve.png"',
        "Look &amp; see.", "else: run the lesson to see it", "ch9_toy.py --epochs 9",
        "--mistake peek", "1 min 30 s", "`abc`",
    ):  # fmt: skip
        assert part in page, part
    assert page.count("curve.png") == 1
    monkeypatch.setattr(hooks.readme, "stored_result", lambda name: None)
    assert "There is no full run" in hooks.lesson_page("ch9_toy", lesson())


def test_only_pictures_without_images_are_published(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    readme = load("benchmarks", "readme")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    run: Any = SimpleNamespace(figures=tmp_path / "run" / "figures")
    run.figures.mkdir(parents=True)
    for name, draws in (("chart", "plot"), ("photograph", "imshow")):
        figure, axis = plots.subplots(figsize=(2, 1))
        getattr(axis, draws)([[0, 1], [1, 0]])
        plots.save(figure, run, name)
    samples = tmp_path / "run" / "samples"
    samples.mkdir()
    for epoch in (1, 2):
        Image.new("L", (4, 4)).save(samples / f"epoch{epoch:03}.png")
    for name, published in (
        ("ch9_toy", {"chart.png"}),
        ("ch5_gan", {"chart.png", "samples/epoch002.png"}),
    ):
        target = tmp_path / "results" / "figures" / name
        readme.store_figures(tmp_path / "run", target)
        files = (path for path in target.rglob("*.png"))
        assert {path.relative_to(target).as_posix() for path in files} == published
    sheet = readme.contact_sheet({"ch9_toy": lesson(), "ch5_gan": lesson()})
    assert sheet.width < 2 * readme.THUMBNAIL[0]  # of "curve" there is no picture
    charted = Lesson(number="9", title="", question="?", metrics=(), claims=(),
                     figures={"chart": "One."})  # fmt: skip
    both = readme.contact_sheet({"ch9_toy": charted, "ch5_gan": charted})
    assert both.width > 1.5 * readme.THUMBNAIL[0]


# Beside Keras: what no other test compares


def test_fit_evaluate_and_predict_are_those_of_keras() -> None:
    import keras

    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 40, 3)).astype(np.float32)
    y, w = ((a.sum(1) > 0).astype(np.float32) for a in (x, v))
    model, tx = mlp(3, (8,), 1), optax.adam(1e-2, eps=1e-10)
    objective = binary_cross_entropy(model)
    state, step = (
        init_state(model, tx, jax.random.key(0)),
        make_train_step(objective, tx),
    )
    params = state.params
    theirs: Any = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    theirs.set_weights(
        [np.asarray(params[n][k]) for n in params for k in ("kernel", "bias")]
    )
    theirs.compile(
        keras.optimizers.Adam(1e-2, epsilon=1e-10),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    batch = {"x": x[:16], "y": y[:16], "mask": np.ones(16)}
    _, metrics = jax.jit(step)(state, jax.tree.map(jax.numpy.asarray, batch))
    first = metrics["loss"].total / metrics["loss"].count
    assert first == pytest.approx(theirs.test_on_batch(x[:16], y[:16]), rel=1e-5)
    history = theirs.fit(
        x, y, validation_data=(v, w), epochs=3, batch_size=16, shuffle=False, verbose=0
    ).history
    data = replace(dataset({"x": x, "y": y}), order=Order(shuffle="never"))
    evaluator = Evaluator(make_eval_step(objective), dataset({"x": v, "y": w}))
    state, records = fit(
        state, step, data, key=jax.random.key(1), epochs=3, batch_size=16,
        evaluators={"validation": evaluator}, evaluate_first=False,
    )  # fmt: skip
    for split, name in (("train", "loss"), ("validation", "val_loss")):
        ours = [r["loss"] for r in records if r["split"] == split]
        np.testing.assert_allclose(ours, history[name], rtol=1e-5)
    loss = theirs.evaluate(v, w, verbose=0)
    assert evaluator(state)["loss"] == pytest.approx(loss, rel=1e-5)
    logits, _ = model.apply(state.params, state.extra, v, train=False, key=None)
    predicted = theirs.predict(v, verbose=0)
    np.testing.assert_allclose(np.ravel(logits), np.ravel(predicted), atol=1e-5)


def test_an_embedding_and_a_scaled_number_are_those_of_keras() -> None:
    import keras

    ids = np.array([[1, 4, 0]])
    embed = nn.Embed(5, 3)
    params = embed.init(jax.random.key(0), ids)
    layer = keras.layers.Embedding(5, 3)
    layer.build()
    layer.set_weights([np.asarray(params["params"]["embedding"])])
    np.testing.assert_array_equal(embed.apply(params, ids), layer(ids))

    table = pd.DataFrame({"fare": [7.25, 71.3, 8.05, 53.1]})
    features = fit_columns([Numeric("fare")], table)
    scaled = keras.layers.Normalization()
    scaled.adapt(table.to_numpy(np.float32))
    x = features.encode(features.numbers(table)).x
    np.testing.assert_allclose(x, scaled(table.to_numpy(np.float32)), rtol=1e-5)
