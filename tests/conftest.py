"""What all tests share: the environment, smoke runs, and processes of scripts."""

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

# Before jax, keras or matplotlib are imported. The cache is this session's own: a
# killed process may leave a torn entry, which jax would then find for ever.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("MPLBACKEND", "Agg")
_own_folders: list[str] = []  # never of a worker: it inherits the environment


def _own_folder(variable: str) -> str:
    """A folder of this session, which processes that it starts share."""
    _own_folders.append(tempfile.mkdtemp(prefix="jaxstudy-"))
    os.environ[variable] = _own_folders[-1]
    return _own_folders[-1]


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _own_folder("JAX_COMPILATION_CACHE_DIR")
# Where Python is to keep no bytecode, every process that a test starts would compile
# two thousand modules.
if sys.dont_write_bytecode:
    sys.pycache_prefix = _own_folder("PYTHONPYCACHEPREFIX")
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# Most of the tests' time is compiling, of programs that run once: with the old emitters
# of loops and none of LLVM's passes, a fifth of it. Nor are there idle cores: a program
# cut for more threads costs a quarter more here. Set XLA_FLAGS to have it all.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false "
    "--xla_cpu_experimental_ynn_fusion_type="
    "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
)
# Nobody reads where in a file each operation of a program came from.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Programs stay cached, and are looked through again by every full collection.
gc.set_threshold(50_000, 20, 100)
_collect = gc.collect


def _collect_unless_for_statsmodels(generation: int = 2) -> int:
    """Each of its corrections for many tests begins with one, which takes seconds."""
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return 0 if caller.startswith("statsmodels") else _collect(generation)


gc.collect = _collect_unless_for_statsmodels

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
Process = subprocess.Popen[str]
Patch = pytest.MonkeyPatch
Said = pytest.CaptureFixture[str]


@pytest.fixture
def cpu() -> None:
    """Skip what holds on a CPU alone: its lowering."""
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("runs where JAX computes on a CPU: JAX_PLATFORMS=cpu")


@pytest.fixture
def float64() -> Iterator[None]:
    """64-bit numbers in JAX and in Keras, for as long as a test lasts."""
    import jax
    import keras  # slow, and only some tests need it

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with jax.enable_x64(True):
        yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def numpy_kernels() -> Any:
    """A patch: Keras's first kernels by numpy. Compiling its own takes half a minute,
    of InceptionV3."""
    import keras
    import numpy as np

    numbers = np.random.default_rng(0)

    def random(self: Any, shape: Sequence[int], dtype: Any = None) -> Any:
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        return numbers.normal(0, scale, shape).astype(dtype or "float32")

    return mock.patch.object(keras.initializers.VarianceScaling, "__call__", random)


def pytest_unconfigure() -> None:
    sys.dont_write_bytecode = True  # what is imported yet would make the folder again
    for folder in _own_folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start() -> Any:
    """Start `python FILE ARGUMENTS` from the repository; what still runs is killed."""
    started: list[Process] = []

    def start(file: Path, arguments: Sequence[object] = ()) -> Process:
        process = subprocess.Popen(
            [sys.executable, str(file), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[..., Process]


def load(folder: str, name: str) -> ModuleType:
    """A script as a module."""
    from jaxstudy.runs.lesson import load_script

    return load_script(ROOT / folder / f"{name}.py")


Smoke = Callable[[str], Path]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Smoke:
    """The folder of a lesson's run at smoke, the same for all: to read, or to copy.

    Whoever asks first makes it; another worker that asks meanwhile waits.
    """
    root = tmp_path_factory.getbasetemp()
    root = (root if worker_id == "master" else root.parent) / "smoke"
    root.mkdir(exist_ok=True)

    def run(name: str) -> Path:
        folder, notes, ended = (root / f"{name}{s}" for s in ("", ".missing", ".code"))
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ended.exists():
                ended.write_text(str(run_smoke(name, folder, notes)))
        if notes.exists():
            pytest.skip(f"{notes.read_text().strip()} (then it runs)")
        assert ended.read_text() == "0"
        return folder

    return run


def run_smoke(name: str, folder: Path, notes: Path) -> int:
    """Run a lesson at smoke in this process: its exit code."""
    from jaxstudy.data.sources import NOTES

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NOTES, str(notes))
        module = load("experiments", name)
        return run_script(module, "--preset", "smoke", "--run-dir", folder)


def run_script(module: Any, *arguments: object, **actions: Any) -> int:
    """A script, loaded and perhaps patched, as from a command line: its exit code."""
    from jaxstudy.runs import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        lesson = getattr(module, "LESSON", None)
        with pytest.raises(SystemExit) as ended:
            cli.experiment(module.main, module.PRESETS, lesson, **actions)
    assert isinstance(ended.value.code, int | None)
    return ended.value.code or 0


class Answer(NamedTuple):
    """What a program came to: its exit code, and what it said."""

    code: int
    out: str
    error: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys: Said) -> Ask:
    """Ask a script, as `run_script` does, and hear what it says."""

    def ask(module: Any, *arguments: object, **actions: Any) -> Answer:
        capsys.readouterr()
        code, said = run_script(module, *arguments, **actions), capsys.readouterr()
        return Answer(code, said.out, said.err)

    return ask


def assert_rounding(found: Any, want: Any, ulps: float) -> None:
    """Two trees that differ by rounding alone; what are no floats are equal.

    Bits are promised where the program is the same: the same operations on arrays of
    the same shapes, compiled alike. Other shapes (padding, another batch size, another
    chunk) are another program, whose sums, fused operations and vectors XLA arranges in
    another way on each kind of CPU. `ulps` units in the last place of the largest value
    of an array (of 1, if that is larger, since terms may cancel) is what the roundings
    of the operation can add up to.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    def check(path: Any, a: Any, b: Any) -> None:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        a, b = np.asarray(a), np.asarray(b)
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        tolerance = 0.0
        if np.issubdtype(b.dtype, np.floating):
            largest = max(1.0, float(np.abs(b).max(initial=0)))
            tolerance = ulps * float(np.finfo(b.dtype).eps) * largest
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)

    jax.tree_util.tree_map_with_path(check, found, want)


def assert_rows(found: Any, want: Any, rel: float = 1e-5) -> None:
    """Logged rows that differ by rounding alone; see `assert_rounding`."""
    import jax

    def check(a: Any, b: Any) -> None:
        assert a == (b if isinstance(b, str) else pytest.approx(b, rel=rel))

    jax.tree.map(check, found, want)


def contents(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder, by its path: to see that nothing changed."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
