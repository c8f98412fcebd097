"""Imports point downwards: every module may import only what stands above it here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lowest first. A module may import from lower lines only, never from its own line;
# a folder stands for its modules that have no line of their own.
ORDER = (
    {"types"},
    {"messages", "parallel", "processes", "runs.progress", "runs.statistics"},
    {"runs.lesson"},
    {
        "runs.files",
        "runs.terminal",
        "runs.values",
        "pretrained.keras_index",
        "pretrained.torch_weights",
    },
    {"tabular.columns", "data.splits", "model", "ops", "optimizers", "dataset"},
    {"runs.pages"},
    {"chunks"},
    {"records"},
    {"objectives", "text.vocabulary", "tabular.cells", "data.sources"},
    {"training", "models", "text.decoding", "tabular.encoding"},
    {
        "models.seq2seq",
        "models.next_word",
        "models.summary",
        "models.efficientnet",
        "models.inception",
        "tabular.fitting",
    },
    {"images.decoding", "tabular.inference"},
    {"images.emoji", "images.folders", "text", "tabular.reading"},
    {
        "images.sets",
        "images.augment",
        "text.compression",
        "text.word_sets",
        "tabular.sets",
    },
    {"images.splits", "data.builders", "pretrained.keras_weights"},
    {"tabular.cross_validation", "tabular.nested"},
    {"pretrained.backbones", "data.fetch", "runs.checkpoint"},
    {"runs.environment", "runs.locks", "runs.saved", "images.subsets"},
    {"pretrained.features", "runs.export"},
    {"runs.run"},
    {
        "runs.plots",
        "tabular.prediction",
        "images.reading",
        "pretrained.tuning",
    },
    {
        "study.problems",
        "study.comparison",
        "study.memory",
        "study.shares",
        "study.sizes",
        "study.remedies",
        "gan.step",
        "gan.evaluation",
        "pretrained.cutting",
    },
    {
        "images.figures",
        "tabular.figures",
        "runs.charts",
        "runs.promises",
        "study.candidates",
    },
    {"study.programs"},
    {
        "study.runner",
        "study.depths",
        "study.step_lengths",
        "study.plots",
        "study.surfaces",
        "runs.reading",
    },
    {"runs.generic", "study.baselines"},
    {"runs.report"},
    {"text.tune_evaluation", "text.translation"},
    {"runs.cli", "text.plots"},
    {"tabular.settings", "gan.settings"},
    {"tabular.comparison"},
    {"__main__"},
)
FLAX = {"model", "models"}
FLAX |= {
    f"models.{name}" for name in ("seq2seq", "summary", "efficientnet", "inception")
}
ORBAX = {"runs.checkpoint"}
OUTSIDE = {"experiments", "tests", "benchmarks"}
PACKAGES = {
    f"jaxstudy.{path.parent.name}" for path in ROOT.glob("jaxstudy/*/__init__.py")
}
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
# A restricted pickle.Unpickler, tested by hostile files; nothing else of the module.
UNPICKLER = "pretrained.torch_weights"
OLD_FLAX = ("flax.training", "flax.nnx", "flax.optim")


def place(module: str) -> str:
    """The name under which a module of jaxstudy stands in ORDER."""
    listed = set().union(*ORDER)
    return module if module in listed else module.partition(".")[0]


def level(module: str) -> int:
    """The line of ORDER that holds a module."""
    for number, names in enumerate(ORDER):
        if place(module) in names:
            return number
    raise AssertionError(f"jaxstudy.{module} has no place in ORDER")


def imported(tree: ast.AST) -> list[str]:
    """Every module a source imports, anywhere in it: "a.b" and, for names, "a.b.c"."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from jaxstudy import plots` imports a module; from a module, a name
            whole = base in {"jaxstudy", *PACKAGES, *OUTSIDE}
            names += [f"{base}.{a.name}" for a in node.names] if whole else [base]
    return names


def unsafe(tree: ast.AST) -> list[str]:
    """What could run code that came with the data."""
    found = [n for n in imported(tree) if n.partition(".")[0] in UNSAFE]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(f"{node.func.id}()")
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", True)
            if keyword.arg == "allow_pickle" and value is not False:
                found.append("allow_pickle")
    return found


def errors(module: str, source: str) -> list[str]:
    """What a module of the library ("training"), or a script ("experiments.x"), does
    that the layers forbid."""
    tree = ast.parse(source)
    inside = module.partition(".")[0] not in OUTSIDE
    package = place(module)
    out = []
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if top == "" or not name[0].isalpha():
            out.append(f"relative import {name}")
        elif top in OUTSIDE and (inside or top == "experiments"):
            out.append(f"imports {name}")
        elif top == "flax" and package not in FLAX:
            out.append("imports flax")
        elif top == "orbax" and package not in ORBAX:
            out.append("imports orbax")
        elif top == "jaxstudy" and inside and level(rest) >= level(module):
            out.append(f"imports {name}, which is not below it")
        if name.startswith(OLD_FLAX):
            out.append(f"imports {name}")
    used = unsafe(tree)
    if module == UNPICKLER and of_pickle(tree) == {"Unpickler"}:
        used.remove("pickle")
    return out + [f"uses {what}" for what in used]


def of_pickle(tree: ast.AST) -> set[str]:
    """What a source takes of the module pickle."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    }


def modules() -> dict[str, Path]:
    """The library's modules and the scripts, by name."""
    found = {}
    for path in sorted(ROOT.joinpath("jaxstudy").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "jaxstudy").with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path
    for path in sorted(ROOT.joinpath("experiments").rglob("*.py")):
        found[f"experiments.{path.stem}"] = path
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_keeps_to_the_layers(module: str) -> None:
    source = MODULES[module].read_text()
    if MODULES[module].name == "__init__.py":  # the packages themselves hold nothing
        assert len(ast.parse(source).body) == 1, "a package's __init__ is a docstring"
    else:
        assert errors(module, source) == []


SCRIPTS = [p for d in sorted(OUTSIDE) for p in sorted(ROOT.joinpath(d).rglob("*.py"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_nothing_unpickles_or_evaluates_text(path: Path) -> None:
    assert unsafe(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("types", "from jaxstudy.model import Model"),
        ("model", "import jaxstudy.training"),
        ("model", "from jaxstudy import training"),
        ("training", "def f():\n    from jaxstudy.runs.run import Run"),
        ("models.mlp", "from jaxstudy.models.cnn import cnn"),
        ("tabular.reading", "from jaxstudy.images import sets"),
        ("dataset", "from jaxstudy.tabular.reading import read_table"),
        ("objectives", "from jaxstudy.training import fit"),
        ("runs.checkpoint", "from jaxstudy.runs.run import Run"),
        ("training", "from jaxstudy.study.runner import Protocol"),
        ("runs.plots", "from jaxstudy.runs.cli import experiment"),
        ("training", "from . import model"),
        ("training", "from .model import Model"),
        ("training", "import flax.linen as nn"),
        ("training", "from orbax import checkpoint"),
        ("models.mlp", "from flax.training.train_state import TrainState"),
        ("model", "from flax import nnx\nimport flax.nnx"),
        ("runs.cli", "import experiments.ch1_admission"),
        ("runs.cli", "from experiments import ch1_admission"),
        ("training", "import tests.test_training"),
        ("training", "from benchmarks.speed import main"),
        ("experiments.b", "from experiments.a import build"),
        ("experiments.b", "from experiments import a"),
        ("experiments.b", "from .a import build"),
        ("experiments.b", "import flax"),
        ("runs.run", "import pickle"),
        ("runs.run", "from pickle import loads"),
        ("runs.run", "import pickle\npickle.Unpickler"),
        (UNPICKLER, "import pickle\npickle.loads(content)"),
        (UNPICKLER, "import pickle\npickle.Unpickler\npickle.load(file)"),
        (UNPICKLER, "from pickle import loads"),
        ("runs.run", "value = eval(text)"),
        ("runs.run", "def f(text):\n    exec(text)"),
        ("runs.run", "np.load(path, allow_pickle=True)"),
        ("runs.run", "np.load(path, allow_pickle=flag)"),
    ],
)
def test_a_breach_is_seen(module: str, source: str) -> None:
    assert errors(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "import flax.linen as nn\nfrom jaxstudy.types import Array"),
        ("models.mlp", "from jaxstudy.model import from_linen\nimport flax"),
        ("tabular.reading", "from jaxstudy.data.sources import read_bytes"),
        ("training", "from jaxstudy.dataset import gather"),
        ("runs.checkpoint", "import orbax.checkpoint"),
        (
            "experiments.b",
            "from jaxstudy import plots\nfrom jaxstudy.runs.cli import x",
        ),
        ("runs.run", "np.load(path, allow_pickle=False)\nmodel.eval()"),
        (UNPICKLER, "import pickle\nclass A(pickle.Unpickler): ..."),
    ],
)
def test_what_is_allowed_is_not_a_breach(module: str, source: str) -> None:
    assert errors(module, source) == []


def test_a_module_without_a_place_is_named() -> None:
    with pytest.raises(AssertionError, match="newcomer has no place"):
        errors("newcomer", "from jaxstudy.types import Array")


def test_every_public_name_has_one_meaning() -> None:
    """No two modules of the library define the same one."""
    defined: dict[str, list[str]] = {}
    for module in (name for name in MODULES if not name.startswith("experiments")):
        for node in ast.parse(MODULES[module].read_text()).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = (
                    node.targets if isinstance(node, ast.Assign) else [node.target]
                )
                names = [t.id for t in targets if isinstance(t, ast.Name)]
            for name in names:
                defined.setdefault(name, []).append(module)
    shared = {n: m for n, m in defined.items() if len(m) > 1 and n[0] != "_"}
    assert shared == {}
