"""The Flower app that a deployed run submits: two files of one line that import what is installed.

Flower sends this folder to every node and runs what it names there. The code that trains and aggregates is the
installed ``ownlet`` of each machine, not a copy that travels: a node that has another version answers with its own.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from ownlet.shared.store import write_atomic

__all__ = ["APP_FILES", "COMPONENTS", "write_shim_app"]

_PACKAGE = "ownlet_deployed"

_SERVER_APP = "from ownlet.simulations.deployed_server import server_app\n\napp = server_app()\n"
_CLIENT_APP = "from ownlet.simulations.deployed_node import node_app\n\napp = node_app()\n"

APP_FILES = {
    f"{_PACKAGE}/__init__.py": "",
    f"{_PACKAGE}/server.py": _SERVER_APP,
    f"{_PACKAGE}/client.py": _CLIENT_APP,
}
"""The files of the app but its settings: name -> text. Nodes run nothing else (``simulations/supernode.py``)."""

COMPONENTS = {"serverapp": f"{_PACKAGE}.server:app", "clientapp": f"{_PACKAGE}.client:app"}
"""What of it Flower starts."""

_PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "ownlet-deployed"
version = "{version}"
description = "Runs the installed ownlet"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["flwr=={flwr}"]

[tool.flwr.app]
publisher = "ownlet"
fab-include = ["{package}/*.py"]

[tool.flwr.app.components]
serverapp = "{serverapp}"
clientapp = "{clientapp}"

[tool.flwr.app.config]
"""


def write_shim_app(folder: Path, run_config: Mapping[str, str | int]) -> None:
    """Write the app.

    Args:
        folder: made if it is missing.
        run_config: what nodes read of the run; public.
    """
    version = importlib.metadata.version("ownlet").split("+")[0]
    flwr = importlib.metadata.version("flwr")
    project = _PROJECT.format(version=version, flwr=flwr, package=_PACKAGE, **COMPONENTS)
    project += "".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items())  # of TOML, too
    for name, content in {"pyproject.toml": project, **APP_FILES}.items():
        write_atomic(folder / name, content.encode())
