"""Runs a federation on real nodes: a SuperLink, the nodes' keys, a run, and its end.

A server that was killed is started again in the same way: SuperLink finds its database, what is left of the old run is
stopped, and a new run goes on from our checkpoint (``server/deployment.py``).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from ownlet.server.certificates import CA_FILE, SERVER_CERT_FILE, SERVER_KEY_FILE
from ownlet.server.control import Control, RunStatus, public_key_bytes, wait_until_healthy
from ownlet.server.deployment import LOCK_SECONDS, STATE_VARIABLE, Deployment, ServeFolder, hold
from ownlet.server.refusals import RefusedNodes
from ownlet.server.status import STATUS_HOST
from ownlet.shared.errors import ConfigError, FederationError, require
from ownlet.shared.flower_process import end_flower, new_lines, require_free, start_flower

__all__ = ["Link", "serve"]

_START_SECONDS = 120.0
_PORT_SECONDS = 20.0
_POLL_SECONDS = 0.5
_STATUS_SECONDS = 3.0

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Link:
    """Where a SuperLink listens, and with which keys.

    Args:
        host: address to listen on; ``0.0.0.0`` is every one.
        port: the one port for nodes and for control.
        certs: folder with ``ca.crt``, ``server.crt`` and ``server.key``.
        node_keys: public keys of the nodes that may connect.
    """

    host: str
    port: int
    certs: Path
    node_keys: Sequence[Path]

    def check(self, wait_seconds: float = _PORT_SECONDS) -> None:
        """Make sure that all files are there, and the port free.

        Args:
            wait_seconds: for the port: what is left of a server that was killed may need a moment to end.

        Raises:
            ConfigError: one is not.
        """
        for name in (CA_FILE, SERVER_CERT_FILE, SERVER_KEY_FILE):
            if not (self.certs / name).is_file():
                raise ConfigError(
                    f"certs must hold {CA_FILE}, {SERVER_CERT_FILE} and {SERVER_KEY_FILE}, got no {self.certs / name}"
                )
        require(bool(self.node_keys), "node keys must be at least one", certs=str(self.certs))
        for path in self.node_keys:
            public_key_bytes(path)
        require_free(self.host, self.port, wait_seconds)

    @property
    def address(self) -> str:
        """How this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def serve(folder: ServeFolder, link: Link, tell: Tell) -> None:
    """Run the deployment in a folder to its end.

    Args:
        folder: with ``serve.json``, the adapter of the start and the app; afterwards with the outcome.
        link: where to listen; checked.
        tell: told every line of progress.

    Raises:
        ConfigError: the status port is taken.
        StateBusyError: another server runs in this folder.
        FederationError: SuperLink does not start or ends, or the run fails; start again to go on.
    """
    with hold(folder.root / "serve.lock", 0.0):
        require_status_port(folder, link.port)
        folder.finished.unlink(missing_ok=True)
        superlink = _start_superlink(folder, link)
        try:
            wait_until_healthy(link.address, link.certs / CA_FILE, _START_SECONDS, is_alive=_is_alive(superlink))
            with Control(link.address, link.certs / CA_FILE) as control:
                _register(control, link.node_keys, tell)
                if stale := control.stop_unfinished_runs():
                    tell(f"stopped {stale} unfinished run of an earlier server")
                refused = RefusedNodes({public_key_bytes(path): path.stem for path in link.node_keys}, tell)
                told = folder.log.stat().st_size if folder.log.exists() else 0
                run = control.start_run(folder.app)
                tell(f"run {run} started; nodes join at port {link.port}")
                status = _follow(control, run, superlink, folder, told, tell, refused)
        except httpx.HTTPError as error:
            raise FederationError(f"SuperLink must answer, got {error}; see {_superlink_log(folder)}") from error
        except FederationError as error:
            raise FederationError(f"{error}; see {_superlink_log(folder)}") from error
        finally:
            end_flower(superlink)
    if not status.is_completed:
        raise FederationError(
            f"run must complete, got {status.sub_status}: {status.details or 'see ' + str(folder.log)}"
        )


def require_status_port(folder: ServeFolder, link_port: int) -> None:
    """Make sure that the port of status page and metrics can be had, before anything is started.

    Args:
        folder: of the run; the process that ran its rounds before, if it has not ended yet, is waited for.
        link_port: that SuperLink is going to take.

    Raises:
        ConfigError: it cannot.
    """
    port = Deployment.load(folder.settings).status_port
    if not port:  # none is wanted, or any free one
        return
    require(port != link_port, "status port must be another one than --port", status_port=port)
    with hold(folder.run_lock, LOCK_SECONDS):
        require_free(STATUS_HOST, port, what="status port")


def _start_superlink(folder: ServeFolder, link: Link) -> subprocess.Popen[bytes]:
    certs = link.certs.resolve()
    arguments = [
        *("--host", link.host, "--port", str(link.port)),
        *("--database", "superlink.db"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--ssl-ca-certfile", str(certs / CA_FILE)),
        *("--ssl-certfile", str(certs / SERVER_CERT_FILE)),
        *("--ssl-keyfile", str(certs / SERVER_KEY_FILE)),
    ]
    return start_flower(
        "flower-superlink",
        arguments,
        home=folder.flower,
        log=_superlink_log(folder),
        variables={STATE_VARIABLE: str(folder.root.resolve())},
    )


def _superlink_log(folder: ServeFolder) -> Path:
    return folder.root / "superlink.log"


def _is_alive(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
    return lambda: process.poll() is None


def _register(control: Control, node_keys: Sequence[Path], tell: Tell) -> None:
    known = control.registered_keys()
    new = [path for path in node_keys if public_key_bytes(path) not in known]
    for path in new:
        control.register(public_key_bytes(path), path.stem)
    tell(f"{len(node_keys)} nodes may connect, {len(new)} of them new")


def _follow(
    control: Control,
    run: int,
    superlink: subprocess.Popen[bytes],
    folder: ServeFolder,
    told: int,
    tell: Tell,
    refused: RefusedNodes,
) -> RunStatus:
    """Show what the ServerApp tells, and whom SuperLink refuses, until its run has finished."""
    ask_at, read = 0.0, _superlink_log(folder).stat().st_size
    while True:
        told = new_lines(folder.log, told, tell)
        read = new_lines(_superlink_log(folder), read, refused.read)
        if superlink.poll() is not None:
            raise FederationError(f"SuperLink must stay up, got its end with code {superlink.returncode}")
        if time.monotonic() >= ask_at:
            status = control.status(run)
            if status.is_finished:
                new_lines(folder.log, told, tell)
                return status
            ask_at = time.monotonic() + _STATUS_SECONDS
        time.sleep(_POLL_SECONDS)
