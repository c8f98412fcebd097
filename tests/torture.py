"""Kill a run at random moments; what it comes to must be what it would have been.

    python tests/torture.py --kills 20 --seed 0

runs lesson 1.4 (small, with a checkpoint after every chunk) once undisturbed, then once
more while it is killed by SIGKILL at random moments (of its life, or of the time after
its first row) and resumed after each. At the end the checkpoints must hold the same
bits, metrics.jsonl the same bytes, result.json the same metrics, and nothing
half-written may be left. Exits with 1 where anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Arguments of what is killed: a prime number of epochs, of which few fit into a chunk,
# so that each epoch is a chunk. SMALL has less to import, and is for the tests.
FULL = (
    "experiments/ch1_admission.py", "--preset", "smoke", "--repeats", "1",
    "--folds", "2", "--hidden", "8", "--epochs", "17", "--batch-size", "6",
    "--save-every", "0",
)  # fmt: skip
SMALL = (
    "tests/tiny.py", "--kind", "noisy", "--parts", "2", "--epochs", "13",
    "--save-every", "0",
)  # fmt: skip


def command(folder: Path, settings: Sequence[str]) -> list[str]:
    """Start the run in a folder, or go on with it where there is a config."""
    script, *rest = settings
    how = ["--resume"] if (folder / "config.json").exists() else rest
    return [sys.executable, script, "--run-dir", str(folder), *how]


def environment(cache: Path) -> dict[str, str]:
    """A cache of compiled programs that only this campaign uses."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run_whole(folder: Path, settings: Sequence[str], cache: Path) -> float:
    """Run or resume to the end; the seconds it took."""
    began = time.monotonic()
    done = subprocess.run(
        command(folder, settings), env=environment(cache), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"the run in {folder} ended with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - began


def progress(folder: Path) -> str:
    """How far the run had got when it was killed."""
    if not (folder / "config.json").exists():
        return "before config.json"
    if not (folder / "metrics.jsonl").exists():
        return "before the first row"
    whole = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    row: dict[str, Any] = json.loads(whole[-1]) if whole else {}
    torn = [
        path.name
        for path in (folder / "checkpoints").glob("*/*")
        if not path.name.isdecimal()
    ]
    text = f"after step {row.get('step')} of {row.get('part')}"
    if torn:
        text += f", in the middle of {', '.join(torn)}"
    return text + (", result written" if (folder / "result.json").exists() else "")


def stamp(folder: Path) -> int:
    """Changes when rows are logged."""
    path = folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_once(
    folder: Path, settings: Sequence[str], cache: Path, delay: float, at_work: bool
) -> str | None:
    """Start or resume, kill after a delay; None where the run was faster.

    The delay counts from the start or, `at_work`, from the first row it logs.
    """
    before = stamp(folder)
    with (cache.parent / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            command(folder, settings), env=environment(cache), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        while at_work and process.poll() is None and stamp(folder) == before:
            time.sleep(0.002)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        errors.seek(0)
        text = errors.read()
    if process.returncode == -signal.SIGKILL:
        return progress(folder)
    if process.returncode:
        sys.exit(f"the run in {folder} ended with {process.returncode}:\n{text}")
    return None


def arrays(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Shape, type and bytes of every array of every checkpoint, read by orbax alone."""
    import jax
    import numpy as np
    import orbax.checkpoint.experimental.v1 as ocp

    out = {}
    for step in sorted(folder.glob("checkpoints/*/*")):
        if not step.name.isdecimal():
            continue
        tree = ocp.load_checkpointables(str(step))
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            name = f"{step.parent.name}/{step.name}{jax.tree_util.keystr(path)}"
            host = np.asarray(x)
            out[name] = host.shape, host.dtype, host.tobytes()
    return out


def differences(reference: Path, tortured: Path) -> list[str]:
    """What is not the same at the end; empty where all is."""
    wrong = []
    expected, found = arrays(reference), arrays(tortured)
    if not expected or expected.keys() != found.keys():
        wrong.append(f"arrays: {sorted(found)}, not {sorted(expected)}")
    wrong += [
        f"{name} differs" for name in expected if found.get(name) != expected[name]
    ]
    metrics = [(f / "metrics.jsonl").read_bytes() for f in (reference, tortured)]
    if metrics[0] != metrics[1]:
        wrong.append("metrics.jsonl differs")
    results = [
        json.loads((f / "result.json").read_bytes()) for f in (reference, tortured)
    ]
    for key in ("experiment", "preset", "seed", "metrics", "steps"):
        if results[0][key] != results[1][key]:
            wrong.append(f"result.json: {key} differs")
    if not results[0]["metrics"]:
        wrong.append("result.json has no metrics")
    names = [
        sorted(str(p.relative_to(f)) for d in (".", "checkpoints", "checkpoints/*")
               for p in f.glob(f"{d}/*"))
        for f in (reference, tortured)
    ]  # fmt: skip
    if names[0] != names[1]:
        extra = sorted(set(names[0]) ^ set(names[1]))
        wrong.append(f"left over or missing: {', '.join(extra)}")
    return wrong


def torture(folder: Path, kills: int, seed: int, settings: Sequence[str]) -> list[str]:
    """Run the campaign below a folder; what differs at the end."""
    cache, reference, tortured = (folder / x for x in ("cache", "whole", "killed"))
    first = run_whole(reference, settings, cache)
    result = json.loads((reference / "result.json").read_bytes())
    whole = first - 0.9 * result["compile_s"]  # the programs are in the cache now
    working = result["wall_s"] - 0.9 * result["compile_s"]
    print(f"seed {seed}: undisturbed {first:.1f} s, when compiled about {whole:.1f} s")
    wrong: list[str] = []
    rng = random.Random(seed)
    done = 0
    while done < kills:
        at_work = rng.random() < 0.6  # else most kills would hit the imports
        # what is resumed has less to do: at 60 % of it, few runs end unharmed
        delay = rng.uniform(0, 0.6 * (working if at_work else whole))
        where = kill_once(tortured, settings, cache, delay, at_work)
        if where is not None:
            done += 1
            since = "of work" if at_work else "of life"
            print(f"kill {done:3} after {delay:5.2f} s {since}: {where}", flush=True)
        if (tortured / "result.json").exists():
            print("it was finished: compared, and begun anew", flush=True)
            (tortured / "run.lock").unlink(missing_ok=True)  # killed at the very end
            wrong += differences(reference, tortured)
            shutil.rmtree(tortured)
    run_whole(tortured, settings, cache)
    return wrong + differences(reference, tortured)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        wrong = torture(Path(folder), asked.kills, asked.seed, FULL)
    for line in wrong:
        print(f"DIFFERENT: {line}")
    verdict = f"{len(wrong)} differences" if wrong else "bit for bit the same end"
    took = time.monotonic() - began
    print(f"{asked.kills} kills in {took:.0f} s: {verdict}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
