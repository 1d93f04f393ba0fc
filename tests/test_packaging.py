"""What is installed: the wheel holds every module, and a device does not load the tools of server and simulation."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "device", "export", "server", "shared", "simulations")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the wheel from a copy of the sources, without network, and return the names of its files."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = target.glob("ownlet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run_python(code: str) -> str:
    """Run code in a fresh interpreter, away from the repository, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_every_module_and_nothing_beside_the_package(wheel_names: set[str]):
    modules = {f"ownlet/{p.relative_to(ROOT).as_posix()}" for f in FOLDERS for p in (ROOT / f).rglob("*.py")}
    assert {name for name in wheel_names if name.endswith(".py")} == modules
    assert {name.split("/")[0].split("-")[0] for name in wheel_names} == {"ownlet"}


def test_the_wheel_holds_the_files_that_modules_read(wheel_names: set[str]):
    assert {"ownlet/simulations/report.html.jinja", "ownlet/server/status.html.jinja"} <= wheel_names
    assert {f"ownlet/{folder}/py.typed" for folder in FOLDERS} <= wheel_names
    assert any(name.endswith("/LICENSE") for name in wheel_names)


def test_the_device_loads_neither_flower_nor_ray_nor_a_data_frame_library():
    modules = [f"ownlet.device.{path.stem}" for path in sorted((ROOT / "device").glob("[a-z]*.py"))]
    for shell in ("client", "device_app", "secure_app"):  # of Flower
        modules.remove(f"ownlet.device.{shell}")
    code = f"import importlib, sys\nfor name in {['ownlet.device', *modules]!r}: importlib.import_module(name)\n"
    code += "print(sorted({'flwr', 'ray', 'polars'} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_starting_the_command_line_turns_telemetry_off_and_loads_nothing_heavy():
    code = "import os, sys\nimport ownlet.cli.main\n"
    code += "print(sorted({'torch', 'flwr', 'ray', 'polars', 'matplotlib'} & set(sys.modules)))\n"
    code += "print([os.environ.get(k) for k in ('FLWR_TELEMETRY_ENABLED', 'RAY_USAGE_STATS_ENABLED')])"
    assert run_python(code).splitlines() == ["[]", "['0', '0']"]


@pytest.mark.parametrize("command", [["ownlet"], [sys.executable, "-m", "ownlet.cli"]], ids=["script", "module"])
def test_the_command_line_answers_help(command: list[str]):
    if command == ["ownlet"]:
        command = [str(Path(sys.executable).parent / "ownlet")]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "Usage: ownlet" in done.stdout
