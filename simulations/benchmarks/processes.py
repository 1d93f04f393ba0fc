"""Measurements and faults in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ownlet.shared.errors import FederationError

__all__ = ["Say", "end_child", "last_json", "run_command", "start_child"]

Say = Callable[[str], None]
"""Told a line; each is written at once, so that a kill loses at most the one that is being said."""


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


def start_child(work: Callable[[Say], None]) -> tuple[int, int]:
    """Fork a process that does the work; return its id and the end of the pipe that it speaks into.

    For a parent without threads of its own. What the work raises is said as a line that begins with ``unexpected``.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)

        def say(line: str) -> None:
            os.write(write, f"{line}\n".encode())

        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the runtime's own lines
            work(say)
        except BaseException:
            say("unexpected: " + traceback.format_exc().replace("\n", " | "))
        os._exit(0)  # no atexit, no flushing of what the parent had buffered
    os.close(write)
    return child, read


def end_child(child: int, pipe: int) -> list[str]:
    """Wait for a child of ``start_child`` to end, and return what it said."""
    with os.fdopen(pipe) as file:
        said = file.read().split("\n")[:-1]  # the last piece may have been cut off by a kill
    os.waitpid(child, 0)
    return said
