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

__all__ = ["CLIENT_APP", "SERVER_APP", "write_shim_app"]

_PACKAGE = "ownlet_deployed"

SERVER_APP = "from ownlet.simulations.deployed_server import server_app\n\napp = server_app()\n"
CLIENT_APP = "from ownlet.simulations.deployed_node import node_app\n\napp = node_app()\n"

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
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
"""


def write_shim_app(
    folder: Path,
    run_config: Mapping[str, str | int],
    *,
    server_app: str = SERVER_APP,
    client_app: str = CLIENT_APP,
) -> None:
    """Write the app.

    Args:
        folder: made if it is missing.
        run_config: what nodes read of the run; public.
        server_app: content of the server's file; Flower wants a plain assignment to ``app``.
        client_app: content of the nodes' file.
    """
    version = importlib.metadata.version("ownlet").split("+")[0]
    project = _PROJECT.format(version=version, flwr=importlib.metadata.version("flwr"), package=_PACKAGE)
    project += "".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items())  # of TOML, too
    files = {
        "pyproject.toml": project,
        f"{_PACKAGE}/__init__.py": "",
        f"{_PACKAGE}/server.py": server_app,
        f"{_PACKAGE}/client.py": client_app,
    }
    for name, content in files.items():
        write_atomic(folder / name, content.encode())
