"""Measures pfl-research in a virtual environment of its own, so that its requirements never meet the project's.

pfl 0.6 wants a dp-accounting older than the project's; torch and numpy are the versions that the project's lock has, so
that both sides of a comparison compute with the same libraries.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from ownlet.shared.errors import require
from ownlet.simulations.benchmarks.processes import last_json, run_command
from ownlet.simulations.benchmarks.workload import Workload

__all__ = ["REQUIREMENTS", "measure_pfl", "pfl_python"]

REQUIREMENTS = (
    "absl-py==1.4.0",
    "attrs==23.2.0",
    "dill==0.4.1",
    "dm-tree==0.1.10",
    "dp-accounting==0.5.1",
    "filelock==4.2.11",
    "fsspec==2026.9.0",
    "Jinja2==3.1.6",
    "MarkupSafe==3.0.4",
    "mpmath==1.3.0",
    "multiprocess==0.70.19",
    "networkx==3.6.1",
    "numpy==2.4.6",
    "packaging==25.0",
    "pfl==0.6.0",
    "prv-accountant==0.2.0",
    "safetensors==0.8.0",
    "scipy==1.17.1",
    "setuptools==84.2.1",
    "sympy==1.14.0",
    "torch==2.13.0",
    "typing_extensions==4.16.0",
    "wheel==0.45.1",
    "wrapt==2.5.2",
)
"""Everything in the environment beside ownlet itself and, where torch comes with CUDA, what that brings."""

_ROOT = Path(__file__).resolve().parents[2]
_DEFAULT_FOLDER = _ROOT / "build" / "pfl"
_DEFAULT = Workload()


def pfl_python(folder: Path = _DEFAULT_FOLDER) -> Path:
    """Return the Python of the environment, made first if it is missing, incomplete or of other versions.

    ownlet is installed from the repository as it is, editable and without its requirements: what ``pfl_cohort`` imports
    of it needs torch, numpy and safetensors only, and later changes take effect.

    Args:
        folder: of the virtual environment; missing, empty or one that this function made.

    Raises:
        ConfigError: the folder holds something else, there is no repository, or Python is newer than pfl allows.
        FederationError: an installation failed.
    """
    python = folder / "bin" / "python"
    stamp = folder / "ownlet-requirements.txt"
    wanted = "\n".join((*REQUIREMENTS, f"ownlet @ {_ROOT}", f"python {sys.version}", ""))
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    require(sys.version_info < (3, 13), "Python must be older than 3.13 for pfl", version=sys.version)
    require((_ROOT / "pyproject.toml").exists(), "ownlet must be used from its repository", root=str(_ROOT))
    ours = stamp.exists() or not folder.exists() or not any(folder.iterdir())
    require(ours, "folder must be empty or an environment that was made here", folder=str(folder))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    stamp.write_text("incomplete\n")  # if this is interrupted, the next call starts anew
    run_command([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_command([*pip, *REQUIREMENTS])
    run_command([*pip, "--no-deps", "--no-build-isolation", "--editable", str(_ROOT)])
    stamp.write_text(wanted)
    return python


def measure_pfl(
    cohort: int, rounds: int = 3, threads: int = 1, *, folder: Path = _DEFAULT_FOLDER, workload: Workload = _DEFAULT
) -> float:
    """Time rounds of pfl's federated averaging with central differential privacy (``pfl_cohort``).

    ``threads`` threads run as that many processes of one thread each, among which pfl divides the users: with one user
    at a time the operations are too small for two threads to gain anything.

    Args:
        cohort: users in a round, all there are; a multiple of ``threads``.
        rounds: at least 2; the first, in which pfl also evaluates, does not count.
        threads: how many cores pfl may use.
        folder: see ``pfl_python``.
        workload: the users and the base.

    Returns:
        Users per second, over whole rounds; the median over the rounds.

    Raises:
        ConfigError: cohort, rounds or threads break their rules, or no environment can be made.
        FederationError: the processes failed.
    """
    require(threads >= 1, "threads must be at least 1", threads=threads)
    require(rounds >= 2, "rounds must be at least 2", rounds=rounds)
    shared = cohort >= 1 and cohort % threads == 0  # or else pfl trains some users twice and others never
    require(shared, "cohort must be a multiple of threads", cohort=cohort, threads=threads)
    command = [str(pfl_python(folder))]
    if threads > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={threads}"]
    command += [str(Path(__file__).with_name("pfl_cohort.py")), f"--cohort={cohort}", f"--rounds={rounds}"]
    printed = run_command([*command, f"--workload={json.dumps(asdict(workload))}"], {"OMP_NUM_THREADS": "1"})
    return float(last_json(printed)["users_per_second"])
