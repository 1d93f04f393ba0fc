"""Flower's programs as children of ours: quiet, with a home of their own, and never outliving who started them.

``start_flower`` runs this module in a new process, which becomes the program: it watches its parent, and when that is
gone, however it went, it ends too. So a port is free again when its owner was killed, and no server goes on writing
beside the one that took its place. Flower's own children watch the program in the same way.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ownlet.shared.quiet
from ownlet.shared.errors import ConfigError, FederationError

__all__ = ["end_flower", "free_port", "new_lines", "require_free", "start_flower"]

_WATCH_SECONDS = 0.5
_END_SECONDS = 15.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def start_flower(
    program: str, arguments: Sequence[str], *, home: Path, log: Path, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start one of Flower's console programs.

    Args:
        program: its name, such as ``flower-superlink``, or ``module:function`` of one that changes it first.
        arguments: of the program.
        home: its ``FLWR_HOME`` and working folder: away from any repository, since Flower's processes import from it.
        log: file that gets what it prints.
        variables: more of its environment.
    """
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        **ownlet.shared.quiet.QUIET_ENVIRONMENT,
        "FLWR_HOME": str(home.resolve()),
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",  # Flower starts its parts by name
        **(variables or {}),
    }
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "ownlet.shared.flower_process", str(os.getpid()), program, *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def end_flower(process: subprocess.Popen[bytes]) -> None:
    """Ask a program to end, and make it end where it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int, wait_seconds: float = 0.0, what: str = "host and port") -> None:
    """Make sure that a port can be listened on.

    Args:
        host: an address of this machine.
        port: on it.
        wait_seconds: how long to wait until it can.
        what: it is called in the error.

    Raises:
        ConfigError: another program listens there, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + wait_seconds
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are closing do not count
            try:
                probe.bind((host, port))
                return
            except (OSError, OverflowError) as error:
                reason = str(error)
        if time.monotonic() >= deadline:
            raise ConfigError(f"{what} must be free on this machine, got {host}:{port}: {reason}")
        time.sleep(_WATCH_SECONDS)


def new_lines(path: Path, told: int, tell: Callable[[str], None]) -> int:
    """Tell the whole lines behind the first ``told`` bytes of a log, without colours; return how many are told."""
    if not path.exists():
        return told
    with path.open("rb") as file:
        file.seek(told)
        whole, newline, _ = file.read().rpartition(b"\n")
    for line in _COLOURS.sub("", whole.decode(errors="replace")).splitlines():
        tell(line)
    return told + len(whole) + len(newline)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _become(parent: int, program: str, arguments: Sequence[str]) -> None:
    """Run a console program of Flower in this process until it ends, or its parent does."""
    group = "console_scripts"
    if ":" in program:
        entry = importlib.metadata.EntryPoint(program, program, group)
    elif found := importlib.metadata.entry_points(group=group, name=program):
        (entry,) = found
    else:
        raise FederationError(f"flwr must be installed with its programs, got no {program}")
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    sys.argv = [program, *arguments]
    sys.exit(entry.load()())


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
