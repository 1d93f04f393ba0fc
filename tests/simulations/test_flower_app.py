"""``flwr run .`` drives the same two apps through Ray and gives the adapter that the in-process grid gives."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from ownlet.shared.quiet import QUIET_ENVIRONMENT
from ownlet.simulations.grid import InProcessGrid, run_apps

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, bool | float | int | str] = {
    "num-users": 120,
    "num-items": 120,
    "dim": 16,
    "base-epochs": 1,
    "rounds": 2,
    "cohort-rate": 0.3,
    "seed": 4,
    "plan.learning-rate": 0.5,
}


def _last_adapter(folder: Path) -> tuple[np.ndarray, int]:
    """Return the adapter in the checkpoint and its version: one that is below the base is not published."""
    with safe_open(folder / "checkpoint.safetensors", framework="numpy") as file:
        return file.get_tensor("adapter"), int(file.metadata()["version"])


def _in_process(folder: Path, num_nodes: int, **changes: bool | float | int | str) -> np.ndarray:
    from ownlet.simulations.flower_app import client_app, server_app

    settings = {**SETTINGS, "folder": str(folder), **changes}
    run_apps(server_app, InProcessGrid(client_app, num_nodes, settings), settings)
    vector, version = _last_adapter(folder)
    assert version == changes.get("rounds", 2)
    return vector


def test_the_apps_run_on_the_built_in_population_and_resume(tmp_path: Path) -> None:
    one = _in_process(tmp_path, 1)
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert [record["num_admitted"] for record in rounds] == [1, 1]
    assert 0 < rounds[0]["epsilon"] < rounds[1]["epsilon"]
    np.testing.assert_allclose(_in_process(tmp_path, 3), one, atol=1e-5)
    _in_process(tmp_path, 2, rounds=1)
    np.testing.assert_allclose(_in_process(tmp_path, 2, resume=True), one, atol=1e-5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _superlink(folder: Path, environment: dict[str, str]) -> Iterator[int]:
    """Run a SuperLink with Flower's simulation runtime, in a folder of its own, and end it."""
    port = _free_port()
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _healthy(port):
            assert process.poll() is None, (folder / "superlink.log").read_text()
            assert time.monotonic() < deadline, "SuperLink did not start in a minute"
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.slow
def test_flwr_run_on_ray_gives_the_adapter_of_the_in_process_grid(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra [sim] is not installed")
    app, home, folder = tmp_path / "app", tmp_path / "home", tmp_path / "run"
    (app / "simulations").mkdir(parents=True)
    home.mkdir()
    # what the app file holds: a copy, so that the run cannot lean on the repository around it
    for name in ("pyproject.toml", "simulations/__init__.py", "simulations/flower_app.py"):
        shutil.copy(ROOT / name, app / name)
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        **QUIET_ENVIRONMENT,
        "FLWR_HOME": str(home),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    settings = {**SETTINGS, "folder": str(folder)}
    flags = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
    with _superlink(tmp_path, environment) as port:
        (home / "config.toml").write_text(f'[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')

        def flwr(*arguments: str) -> str:
            done = subprocess.run(
                [str(scripts / "flwr"), *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        nodes = "num-supernodes=2 client-resources-num-cpus=1"
        log = flwr("run", str(app), "test", "--federation-config", nodes, "--run-config", flags, "--stream")
        (run,) = json.loads(flwr("list", "test", "--format", "json"))["runs"]  # --stream exits 0 when a run fails
        assert run["status"] == "finished:completed", log
    through_ray, version = _last_adapter(folder)
    assert version == 2
    assert [record["num_nodes"] for record in json.loads((folder / "rounds.json").read_text())] == [2, 2]
    np.testing.assert_allclose(through_ray, _in_process(folder, 2), atol=1e-5)
