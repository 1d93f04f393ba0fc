"""Flower's SuperNode, but one that runs no code of the server's: the app of a run must be ownlet's own.

Flower sends the code of a run to its nodes, and in its open build whoever reaches the server may submit some. The app
that ``ownlet serve`` submits is two files of one line that import what is installed (``server/shim_app.py``), so a node
loses nothing by insisting on exactly that: what else comes is not stored, not run and not answered.

Flower 1.41 can ask for signatures of apps, but only of those that its own platform hands out. So the check stands where
SuperNode reads a new app, before it keeps it: ``flwr.supernode.start_client_internal``, not a public interface. Were it
to move in another version of Flower, this program would not start.
"""

from __future__ import annotations

import io
import re
import sys
import tomllib
import zipfile
from pathlib import Path

from flwr.app.user_config import UserConfig
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode

from ownlet.server.shim_app import APP_FILES, COMPONENTS
from ownlet.shared.errors import FederationError

__all__ = ["main", "require_own_app"]

_PROJECT, _CONTENTS = "pyproject.toml", ".info/CONTENT"  # Flower reads the first, and made the second of the others
_VERSION = re.compile(r"(flwr==)?\d[\w.]*")  # of ownlet, and of the one dependency


def require_own_app(content: bytes) -> None:
    """Make sure that a Flower app holds ownlet's own files, and nothing else that could be run.

    Args:
        content: of the file that Flower sends, a ZIP archive.

    Raises:
        FederationError: it is another app.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            files = {name: archive.read(name) for name in names}
        project = tomllib.loads(files[_PROJECT].decode())
        app, package = project["tool"]["flwr"]["app"], project["project"]
        identity = (app["publisher"], package["name"], app["components"])
        versions = [str(text) for text in (package["version"], *package["dependencies"])]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise FederationError(f"app of a run must be ownlet's own, got one that is not readable: {error}") from error
    if sorted(names) != sorted([*APP_FILES, _PROJECT, _CONTENTS]):
        raise FederationError(f"app of a run must be ownlet's own, got the files {', '.join(sorted(names))}"[:300])
    changed = [name for name, text in APP_FILES.items() if files[name] != text.encode()]
    if identity != ("ownlet", "ownlet-deployed", COMPONENTS) or not all(map(_VERSION.fullmatch, versions)):
        changed.append(_PROJECT)
    if changed:
        raise FederationError(f"app of a run must be ownlet's own, got another {', '.join(changed)}")


def main() -> None:
    """Run ``flower-supernode`` with that check; messages of other apps are left unanswered, and said aloud."""
    read_app = flower.get_fused_config_from_fab  # type: ignore[attr-defined]  # it is private

    def read_own_app(fab_file: Path | bytes, run: Run) -> UserConfig:
        try:
            require_own_app(fab_file if isinstance(fab_file, bytes) else fab_file.read_bytes())
        except FederationError as error:
            print(f"ownlet: refused the code of run {run.run_id}: {error}", file=sys.stderr, flush=True)
            raise RunNotRunningException from error  # SuperNode then drops the message and goes on
        return read_app(fab_file, run)

    flower.get_fused_config_from_fab = read_own_app  # type: ignore[attr-defined]
    flower_supernode()
