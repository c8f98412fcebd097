"""What the device that JAX finds does: tests, steps, studies and lessons, in 8 minutes.

Each part is a process of its own with a limit, and the file is written after each, so
what was measured before the time is up is kept. Where data is missing, or PyTorch, that
is written in the place of the figures. Nothing is fetched and nothing installed.

    python benchmarks/accelerator.py            on a GPU or TPU; 8 minutes at most
    python benchmarks/accelerator.py --quick    about a minute of a CPU
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parents[1]
TESTS = (  # of jit, parity, meshes and precision
    "model", "training", "objectives", "cnn", "recurrent", "dcgan", "devices",
    "bfloat16",
)  # fmt: skip
WORKLOADS = {  # of the speed comparisons; steps of ours, and of --quick
    "admission": ("admission", 100, 2),
    "cnn": ("images", 100, 2),
    "lstm": ("sequences", 100, 2),
    "dcgan": ("gan", 50, 2),
    "inception": ("images", 20, 2),
    "sampling": ("sequences", 10, 2),
}
LESSONS = ("ch2_cnn", "ch3_compose", "ch5_gan")
REPLICAS = (1, 4, 16, 64, 256, 1024, 4096)
# Of --quick, most of which is compiling: without LLVM's passes it takes a fraction.
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
Found = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """Measure all parts and write one JSON file, or print one part."""

    quick: bool = False
    """Few steps and small programs."""
    minutes: float = 8.0
    """When it ends; what has not begun by then is left out."""
    out: Path = ROOT / "results" / "accelerator.json"
    """The file to write."""
    part: str | None = None
    """Print the JSON of this part of PARTS alone: what each process is told."""


def device(quick: bool) -> Found:
    """The device, and the rates of its matrix products in TFLOP/s."""
    import jax

    from jaxstudy.runs.environment import environment

    size, times = (512, 2) if quick else (8192, 20)
    rates = {}
    for name in ("float32", "bfloat16"):
        a = jax.random.normal(jax.random.key(0), (size, size), name)
        product = jax.jit(lambda a: jax.lax.fori_loop(0, times, lambda _, b: a @ b, a))
        product(a).block_until_ready()
        began = time.perf_counter()
        product(a).block_until_ready()
        rates[name] = 2e-12 * times * size**3 / (time.perf_counter() - began)
    first = jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit")
    return {
        "device": first.device_kind, "devices": len(jax.devices()),
        "platform": first.platform, "memory_bytes": memory, "peak_tflops": rates,
        "environment": environment(),
    }  # fmt: skip


def replicas(quick: bool) -> Found:
    """Trainings per second of the admission network, by their number, by map and vmap.

    An epoch is compiled and run; then it is timed.
    """
    import jax
    import numpy as np
    import optax

    from jaxstudy.dataset import dataset
    from jaxstudy.models.mlp import mlp
    from jaxstudy.objectives import binary_cross_entropy
    from jaxstudy.parallel import Mode
    from jaxstudy.records import Log
    from jaxstudy.training import Replicas, fit, init_replicas, make_train_step

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    data = dataset({"x": x, "y": (x[:, 0] > 0).astype(np.float32)})
    model, tx = mlp(6, (64, 128), 1), optax.adam(1e-3)
    step = make_train_step(binary_cross_entropy(model), tx)
    rates: Found = {}
    modes: tuple[Mode, ...] = ("map", "vmap")
    for mode in modes:
        of_mode = rates[mode] = {}
        for count in REPLICAS[1:2] if quick else REPLICAS:
            keys, log = jax.random.split(jax.random.key(0), (count, 2)), Log()
            state = init_replicas(model, tx, keys[:, 0])
            fit(
                state, step, data, key=keys[:, 1], epochs=3, batch_size=32, log=log,
                chunk_steps=13, replicas=Replicas(mode=mode),
            )  # fmt: skip
            of_mode[str(count)] = {
                "steps_per_s": log.timing.steps / log.timing.train_s,
                "compile_s": log.timing.compile_s,
            }
    return {"epochs": 3, "steps_of_a_training": 39, "trainings": rates}


def tests(quick: bool) -> Found:
    """How many of the tests pass on this device."""
    names = TESTS[-1:] if quick else TESTS
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    counts = re.findall(r"(\d+) (\w+)", lines[-1] if lines else "")
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {**{what: int(n) for n, what in counts}, "failures": failed[:20]}


def _last_line(text: str) -> str:
    """What an error ends with."""
    return (text.splitlines() or ["?"])[-1]


def steps(workload: str, quick: bool) -> Found:
    """Milliseconds of a step of ours and of PyTorch, in float32 and bfloat16."""
    script, many, few = WORKLOADS[workload]
    path = ROOT / "benchmarks" / f"{script}_speed.py"
    found: Found = {}
    # the admission network is too small for bfloat16 to matter
    types: Sequence[list[str]] = [[], ["--bfloat16"]][
        : 1 if script == "admission" else 2
    ]
    for who in ("jaxstudy",) if quick else ("jaxstudy", "torch"):
        for words in types:
            done = subprocess.run(
                [sys.executable, str(path), "--workload", workload, "--candidate", who,
                 "--length", str(few if quick else many), *words],
                text=True, capture_output=True,
            )  # fmt: skip
            name = f"{who}, {'bfloat16' if words else 'float32'}"
            if done.returncode:
                found[name] = {"failed": _last_line(done.stderr)}
            else:
                figures = json.loads(done.stdout.splitlines()[-1])
                found[name] = {k: v for k, v in figures.items() if k != "environment"}
    operations = _operations(path, workload)
    return {"operations": operations, "candidates": found}


def _operations(path: Path, workload: str) -> float | None:
    """Of the matrix products that a step cannot do without."""
    import importlib

    sys.path.insert(0, str(path.parent))
    counted = importlib.import_module(path.stem).WORKLOADS[workload].operations
    return counted() if counted else None


def lesson(name: str, quick: bool) -> Found:
    """A lesson at full: its times, and what it claims."""
    folder = (
        Path(os.environ.get("TMPDIR", "/tmp")) / f"accelerator-{os.getpid()}" / name
    )
    preset = "smoke" if quick else "full"
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / f"{name}.py"), "--preset", preset,
         "--run-dir", str(folder)],
        text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        return {"failed": _last_line(done.stderr)}
    result = json.loads((folder / "result.json").read_text())
    claims = [(claim["sentence"], claim["verdict"]) for claim in result["claims"]]
    times = {k: result[k] for k in ("wall_s", "train_s", "compile_s", "steps")}
    return {"preset": preset, **times, "claims": claims}


PARTS: dict[str, Callable[[bool], Found]] = {
    "device": device,
    "replicas": replicas,
    **{f"steps of {w}": lambda quick, w=w: steps(w, quick) for w in WORKLOADS},
    "tests": tests,
    **{
        f"lesson {name}": lambda quick, name=name: lesson(name, quick)
        for name in LESSONS
    },
}


def run_part(name: str, command: Command, seconds: float) -> Found:
    """What a process of its own prints for a part, or why it printed nothing."""
    line = [sys.executable, __file__, "--part", name]
    variables = dict(os.environ)
    if command.quick:
        line += ["--quick"]
        variables.setdefault("XLA_FLAGS", QUICK_FLAGS)
    began = time.monotonic()
    try:
        done = subprocess.run(
            line, env=variables, text=True, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {seconds:.0f} s"}
    taken = {"took_s": round(time.monotonic() - began, 1)}
    if done.returncode:
        return {"failed": _last_line(done.stderr), **taken}
    return {**json.loads(done.stdout.splitlines()[-1]), **taken}


def main(command: Command) -> int:
    """Run the parts in turn; write what is known after each."""
    if command.part is not None:
        print(json.dumps(PARTS[command.part](command.quick)))
        return 0
    ends = time.monotonic() + 60 * command.minutes
    names: Sequence[str] = [*PARTS]
    if command.quick:  # one of each kind
        names = [
            "device", "replicas", "steps of admission", "tests", "lesson ch3_compose",
        ]  # fmt: skip
    found: Found = {"quick": command.quick}
    for name in names:
        left = ends - time.monotonic()
        found[name] = (
            run_part(name, command, left) if left > 5 else {"failed": "no time"}
        )
        summary = found[name].get("failed", "done")
        print(f"{name}: {summary} ({found[name].get('took_s', '-')} s)", flush=True)
        command.out.parent.mkdir(parents=True, exist_ok=True)
        command.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {command.out}")
    return int(any("failed" in found[name] for name in names if name == "device"))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))
