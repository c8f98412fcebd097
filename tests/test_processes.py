"""Several processes as one training: launchers, agreement, and what is left of it."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import yaml

from jaxstudy import processes
from jaxstudy.dataset import dataset, subset
from jaxstudy.processes import Launch, find_launch
from jaxstudy.runs import cli
from jaxstudy.runs import run as runs
from jaxstudy.runs.cli import Settings
from jaxstudy.runs.run import Run
from jaxstudy.runs.saved import Options
from jaxstudy.types import UserError
from tests.conftest import PYTHONPATH, ROOT, Ask, Process

TESTS = Path(__file__).parent
TINY, TOGETHER = TESTS / "tiny.py", TESTS / "together.py"
SECONDS = 180  # after which a process that hangs is killed

KUBEFLOW = {
    "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "a:1",
}  # fmt: skip
TORCHRUN = {
    "WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "b", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[1-2]"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:34911",
}  # fmt: skip


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {k: v for k, v in variables.items() if k not in names}


def arguments(address: str, count: int, rank: int) -> dict[str, Any]:
    return {
        "coordinator_address": address, "num_processes": count, "process_id": rank,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, None),
        (KUBEFLOW, Launch("Kubeflow", 2, arguments("a:1", 2, 1))),
        # the launcher itself listens on MASTER_PORT
        (TORCHRUN, Launch("torchrun", 4, arguments("b:29501", 4, 3))),
        (
            TORCHRUN | {"LOCAL_RANK": "1"},
            Launch(
                "torchrun", 4, arguments("b:29501", 4, 3) | {"local_device_ids": [1]}
            ),
        ),
        (SLURM, Launch("Slurm", 8, {})),
        (OPEN_MPI, Launch("Open MPI", 2, {})),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, Launch("TPU", 2, {})),
        # a process that is alone; the script of a job; what a user has set comes first
        (TORCHRUN | {"WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (without(SLURM, "SLURM_STEP_NODELIST"), None),
        (SLURM | KUBEFLOW, Launch("Kubeflow", 2, arguments("a:1", 2, 1))),
        (SLURM | without(TORCHRUN, "RANK"), Launch("Slurm", 8, {})),
    ],
)
def test_launchers_are_known_by_their_variables(
    variables: dict[str, str], launch: Launch | None
) -> None:
    assert find_launch(variables) == launch


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            without(KUBEFLOW, "JAX_PROCESS_ID"),
            "JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS are set as by Kubeflow, but "
            "JAX_PROCESS_ID is not",
        ),
        (
            {"WORLD_SIZE": "2", "MASTER_ADDR": "b"},
            "WORLD_SIZE and MASTER_ADDR are set as by torchrun, but RANK and "
            "MASTER_PORT are not",
        ),
        (
            without(OPEN_MPI, "OMPI_MCA_orte_hnp_uri"),
            "OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK are set as by Open MPI, but "
            "OMPI_MCA_orte_hnp_uri is not",
        ),
        (TORCHRUN | {"RANK": "4"}, "RANK=4 is not one of WORLD_SIZE=4"),
        (TORCHRUN | {"MASTER_PORT": "x"}, "MASTER_PORT=x is not a number"),
        (
            TORCHRUN | {"MASTER_PORT": "65535"},
            "MASTER_PORT=65535: it takes 1 to 65534",
        ),
        *(
            (
                KUBEFLOW | {"JAX_COORDINATOR_ADDRESS": address},
                f"JAX_COORDINATOR_ADDRESS={address}: it takes HOST:PORT, with a port "
                "from 1 to 65535",
            )
            for address in ("a", ":", ":1", "a:", "a:x", "a:0", "a:65536")
        ),
    ],
)
def test_variables_half_set_are_named(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        find_launch(variables)


def test_jax_is_prepared_before_processes_join(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who joins looks at the devices: what is set after that has no effect."""
    calls = []

    def join(heartbeat_s: int) -> None:
        calls.append(f"join {heartbeat_s}")
        raise UserError("enough")

    for name, value in KUBEFLOW.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "_prepare_jax", lambda _: calls.append("prepare"))
    monkeypatch.setattr(processes, "join_processes", join)
    assert ask(tiny, "--run-dir", tmp_path / "run", "--heartbeat", 7).code == 2
    assert calls == ["prepare", "join 7"]


def test_an_experiment_names_what_its_launcher_has_not_set(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = ask(tiny, "--run-dir", tmp_path / "run")
    assert answer.code == 2
    assert answer.error.startswith("error: WORLD_SIZE is set as by torchrun, but RANK ")
    assert answer.error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seconds", [0, -5])
def test_a_heartbeat_takes_a_second_at_least(
    ask: Ask, tmp_path: Path, seconds: int
) -> None:
    answer = ask(tiny, "--run-dir", tmp_path / "run", "--heartbeat", seconds)
    assert answer.code == 2
    assert answer.error == f"error: --heartbeat {seconds}: it takes 1 second or more\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_wait_in_vain_say_so(rank: int) -> None:
    """The first one, and one that does not reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    join = "from jaxstudy import processes as p; p.MEETING_SECONDS = 2"
    done = subprocess.run(
        [sys.executable, "-c", f"{join}; p.join_processes(10)"],
        env={
            **os.environ, **KUBEFLOW, "JAX_PROCESS_ID": str(rank),
            "JAX_COORDINATOR_ADDRESS": address, "PYTHONPATH": PYTHONPATH,
        },
        text=True, capture_output=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    waited, error = done.stderr.splitlines()
    assert waited == "waiting for 2 processes by Kubeflow"
    assert error == (
        "error: 2 processes by Kubeflow did not meet within 2 s: each has to be "
        f"started, and to reach {address}"
    )


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever: JAX crashes there."""
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name, value in KUBEFLOW.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("JAX_PROCESS_ID", "0")
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        sentence = f"process 0 cannot listen at {address}: Address already in use"
        with pytest.raises(UserError, match=sentence):
            processes.join_processes(60)


def test_the_examples_of_the_guide_are_whole() -> None:
    """The manifest sets what is looked for, and the script of a job is one."""
    text = (ROOT / "docs" / "guides" / "scaling.md").read_text()
    kinds = re.findall(r"^```(bash|yaml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for script in (code for kind, code in kinds if kind == "bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=9)
    (manifest,) = (yaml.safe_load(code) for kind, code in kinds if kind == "yaml")
    (job,) = manifest["spec"]["replicatedJobs"]
    workers = job["template"]["spec"]
    (container,) = workers["template"]["spec"]["containers"]
    variables = {v["name"]: v.get("value", "1") for v in container["env"]}
    name = manifest["metadata"]["name"]
    host = f"{name}-{job['name']}-0-0.{name}"
    count = workers["completions"]
    assert workers["parallelism"] == count
    assert find_launch(variables) == Launch(
        "Kubeflow", count, arguments(f"{host}:8476", count, 1)
    )
    subprocess.run(
        ["bash", "-n"], input=container["args"][0], text=True, check=True, timeout=9
    )


def test_a_run_folder_that_another_process_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "x", "quick", Settings(), Options(), id="1")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"process 0 does not see .*/elsewhere: it has"):
        runs._follow(run, tmp_path / "elsewhere")


def test_the_same_data_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew where it may have changed, or is other data."""
    hashed: list[int] = []
    array_digest = processes._array_digest

    def counted(a: np.ndarray) -> bytes:
        hashed.append(a.size)
        return array_digest(a)

    monkeypatch.setattr(processes, "_array_digest", counted)
    before = set(processes._digests)
    rows = np.arange(40.0, dtype=np.float32).reshape(8, 5)
    data = dataset({"x": rows})
    first = processes._digest(data)
    assert sorted(hashed) == [8, 8, 40]
    assert processes._digest(data) == first
    assert sorted(hashed) == [8, 8, 40]
    half = subset(data, range(4))  # whose rows are those arrays
    assert processes._digest(half) != first
    assert sorted(hashed) == [4, 4, 8, 8, 40]
    rows[3, 2] = -1  # in place: not what the set holds, but what the next one will
    assert processes._digest(data) == first
    assert processes._digest(dataset({"x": rows})) != first
    # what is NumPy's, or may share its memory, is never remembered
    held = processes._digest({"x": rows})
    rows[3, 2] += 1
    assert processes._digest({"x": rows}) != held
    shared = dataset({"x": jax.device_put(rows)})
    processes._digest(shared)
    hashed.clear()
    processes._digest(shared)
    assert hashed == [40]
    del data, half, shared
    gc.collect()  # and nothing is kept of the dead
    assert processes._digests.keys() <= before


@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_a_digest_is_of_names_types_and_shapes_too(kind: Callable[..., Any]) -> None:
    a = np.arange(6, dtype=np.int32)
    others = [
        {"x": a}, {"y": a}, {"x": a.reshape(2, 3)}, {"x": a.reshape(3, 2)},
        {"x": a.view(np.float32)}, {"x": a[:3], "y": a[3:]}, {"x": a + 1},
    ]  # fmt: skip
    digests = [processes._digest(jax.tree.map(kind, tree)) for tree in others]
    assert len({*digests}) == len(others)
    assert processes._digest({"x": kind(a)}) == digests[0]
    keys = [processes._digest(jax.random.key(n)) for n in (0, 1, 0)]
    assert keys[0] == keys[2] != keys[1]


Launched = Callable[..., list[Process]]


@pytest.fixture(scope="module")
def launched() -> Iterator[Launched]:
    """Start a script in so many processes, of four devices in all, as a launcher does.

    The last one may have other arguments. What still runs in the end is killed.
    """
    started: list[Process] = []

    def launch(
        count: int, script: Path, shared: Sequence[object], own: Sequence[object] = ()
    ) -> list[Process]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flag = f"--xla_force_host_platform_device_count={4 // count}"
        variables = {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": PYTHONPATH,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        }
        first = len(started)
        for number in range(count):
            given = [*shared, *(own if number == count - 1 else ())]
            started.append(
                subprocess.Popen(
                    [sys.executable, str(script), *map(str, given)],
                    cwd=ROOT,
                    env={**os.environ, **variables, "JAX_PROCESS_ID": str(number)},
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        return started[first:]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def ended(launched: list[Process]) -> tuple[list[int], list[str]]:
    """Exit codes, and what was said, when all have ended."""
    said = [process.communicate(timeout=SECONDS)[1] for process in launched]
    return [process.returncode for process in launched], said


Seen = dict[str, Any]


@pytest.fixture(scope="module")
def folder(launched: Launched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of two devices do, and then one of four."""
    folder = tmp_path_factory.mktemp("together")
    codes, said = ended(launched(2, TOGETHER, [folder]))
    (folder / "ended").write_text(json.dumps(codes))
    assert (folder / "killed").exists(), said
    (folder / "ended_s").write_text(
        str(time.time() - (folder / "killed").stat().st_mtime)
    )
    codes, said = ended(launched(1, TOGETHER, [folder]))
    assert codes == [0], said
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[Seen]:
    """By both of the two processes, and by the one."""
    names = ("seen_2_0", "seen_2_1", "seen_1_0")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


def apart(a: Seen, b: Seen) -> float:
    """The largest difference of a weight."""
    pairs = zip(a["params"], b["params"], strict=True)
    return max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)


def test_two_processes_train_what_one_does(folder: Path, seen: list[Seen]) -> None:
    """To rounding where they share batches; replicas to the bit."""
    first, second, one = seen
    assert first["devices"] == one["devices"] == 4
    for name in ("whole", "stream", "replicas"):
        assert first[name]["sha256"] == second[name]["sha256"]
        assert apart(first[name], one[name]) < 1e-6
    assert first["whole"]["after"] == second["whole"]["after"]
    assert first["whole"]["after"] == pytest.approx(one["whole"]["after"], rel=1e-5)
    assert first["replicas"]["sha256"] == one["replicas"]["sha256"]
    texts = [
        (folder / name / "metrics.jsonl").read_text() for name in ("of_2_r", "of_1_r")
    ]
    assert texts[0] == texts[1]
    # 61 rows and 3 that fill up; 100 in evaluations; one looked at to know its size
    batches = 16 * 64 + 5 * 300
    assert one["rows read"] == batches + 1
    assert first["rows read"] == second["rows read"] == batches // 2 + 1 + 4


def test_one_process_keeps_the_run_folder(folder: Path) -> None:
    def files(name: str) -> set[str]:
        found = (p.relative_to(folder / name) for p in (folder / name).rglob("*"))
        return {str(path) for path in found if len(path.parts) < 4}

    assert files("of_2") == files("of_1")
    lines = [
        (folder / n / "metrics.jsonl").read_text().count("\n") for n in ("of_2", "of_1")
    ]
    assert lines[0] == lines[1]
    result = json.loads((folder / "stopped" / "result.json").read_text())
    assert result["attempts"] == 3
    assert result["goodput"] == pytest.approx(
        result["train_s"] / result["wall_s"], abs=1e-3
    )
    environment = json.loads((folder / "of_2" / "environment.json").read_text())
    assert (environment["processes"], environment["devices"]) == (2, 4)


def test_a_signal_to_one_process_stops_all_at_the_same_step(seen: list[Seen]) -> None:
    """Within a training, and pending when the next one begins."""
    for process in seen[:2]:
        assert process["within"] == {"code": 143, "steps": {"first": [8]}}
        steps = {"first": [8, 16], "second": []}
        assert process["between"] == {"code": 143, "steps": steps}


def test_a_stopped_training_goes_on_in_as_many_processes_or_in_one(
    folder: Path, seen: list[Seen]
) -> None:
    """The same bits in as many, though a checkpoint was damaged meanwhile."""
    first, second, one = seen
    assert (folder / "stopped" / "checkpoints" / "first" / "damaged-16").is_dir()
    assert first["resumed"] == second["resumed"] == first["whole"]
    assert apart(one["resumed"], first["whole"]) < 1e-6


def test_other_data_is_refused_by_all(seen: list[Seen]) -> None:
    for process in seen[:2]:
        assert (
            process["refused"] == "process 1 has another training data than process 0"
        )


def test_another_command_is_refused_by_whom_it_reaches(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the processes that a launcher starts: here what the other says is made up."""
    monkeypatch.setattr(processes, "are_several", lambda: True)
    monkeypatch.setattr(processes, "leave", sys.exit)
    monkeypatch.setattr(
        processes, "exchange", lambda **said: [said, {n: "other" for n in said}]
    )
    answer = ask(tiny, "--run-dir", tmp_path / "run")
    assert answer.code == 2
    assert "error: process 1 has another command line than process 0\n" in answer.error
    assert not (tmp_path / "run").exists()


@pytest.mark.torture
def test_another_command_ends_all(launched: Launched, tmp_path: Path) -> None:
    started = launched(2, TINY, ["--run-dir", tmp_path / "run"], ["--epochs", 5])
    codes, said = ended(started)
    assert codes == [2, 2], said
    for text in said:
        assert "error: process 1 has another command line than process 0\n" in text
    assert not (tmp_path / "run").exists()


def wait_for_training(started: list[Process], folder: Path) -> None:
    """Until the first epochs are logged."""
    path, deadline = folder / "metrics.jsonl", time.monotonic() + SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert all(process.poll() is None for process in started), ended(started)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.torture
def test_a_signal_to_one_process_of_an_experiment(
    launched: Launched, tmp_path: Path
) -> None:
    """All exit as if they had got it, with the last step saved."""
    options = ["--run-dir", tmp_path, "--epochs", 10**6, "--devices", "data"]
    started = launched(2, TINY, options)
    wait_for_training(started, tmp_path)
    started[1].send_signal(signal.SIGTERM)
    codes, said = ended(started)
    assert codes == [143, 143], said
    assert all("stopped by SIGTERM; --resume goes on\n" in text for text in said)
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert saved[-1] == last["step"]
    assert not (tmp_path / "run.lock").exists()


def test_when_one_process_is_killed_the_others_end(folder: Path) -> None:
    """Within the heartbeat, here of 10 seconds, and 5 more."""
    first, last = json.loads((folder / "ended").read_text())
    assert last == -signal.SIGKILL
    assert first != 0
    assert float((folder / "ended_s").read_text()) < 15
