"""Measurements in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ownlet.shared.errors import FederationError

__all__ = ["last_json", "run_command"]


def run_command(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it printed.

    Args:
        command: the program and its arguments.
        variables: added to the environment, over what is set already.

    Raises:
        FederationError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(variables or {})}, check=False)
    if done.returncode != 0:
        told = (done.stderr or done.stdout)[-2000:]
        raise FederationError(f"{command[0]} must end well, got exit status {done.returncode}: {told}")
    return done.stdout


def last_json(printed: str) -> dict[str, Any]:
    """Return the last line of what a measurement printed, read as JSON."""
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found
