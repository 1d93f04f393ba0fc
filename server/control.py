"""What ``ownlet serve`` asks of a SuperLink: register nodes, submit a run, see how it goes.

Flower's own command line does the same in a process of some seconds per question. Its client of the Control API is not
part of Flower's public interface; this file is the only one that uses it, and flwr is pinned.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from ownlet.shared.errors import ConfigError, FederationError

__all__ = ["Control", "RunStatus", "public_key_bytes", "wait_until_healthy"]

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request

_POLL_SECONDS = 0.3
_FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run stands: ``pending``, ``starting``, ``running`` or ``finished``; then ``completed``, ``failed``, ..."""

    status: str
    sub_status: str
    details: str

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.status == _FINISHED

    @property
    def is_completed(self) -> bool:
        """Whether it has ended well."""
        return self.is_finished and self.sub_status == "completed"


def wait_until_healthy(address: str, ca: Path, seconds: float, *, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a SuperLink answers over TLS.

    Args:
        address: host and port.
        ca: the CA's certificate.
        seconds: how long.
        is_alive: whether it still runs at all.

    Raises:
        FederationError: it does not in time, or has ended.
    """
    context = ssl.create_default_context(cafile=str(ca))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"https://{address}/health", timeout=2, context=context) as answer:
                if answer.status == 200:
                    return
                reason = f"status {answer.status}"
        except (urllib.error.URLError, OSError) as error:
            reason = str(error)
        if time.monotonic() >= deadline or not is_alive():
            raise FederationError(f"SuperLink must answer at {address} in {seconds:g} seconds, got {reason}")
        time.sleep(_POLL_SECONDS)


def public_key_bytes(path: Path) -> bytes:
    """Return a node's public key (OpenSSH form, P-384) as Flower registers it.

    Raises:
        ConfigError: no such key.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"node key must be an OpenSSH public key, got {path}: {error}") from error
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


class Control:
    """A connection to a SuperLink's Control API."""

    def __init__(self, address: str, ca: Path) -> None:
        """Name the SuperLink.

        Args:
            address: host and port.
            ca: the CA's certificate.
        """
        version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        self._client = ControlHttpClient.from_server_address(
            server_address=address, insecure=False, root_certificates=ca.read_bytes(), interceptors=[version]
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def registered_keys(self) -> set[bytes]:
        """Return the public keys of registered nodes."""
        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {node.public_key for node in nodes if node.status != "unregistered"}

    def online_nodes(self) -> int:
        """Return how many nodes are connected."""
        return sum(node.status == "online" for node in self._client.ListNodes(ListNodesRequest()).nodes_info)

    def register(self, public_key: bytes, name: str) -> None:
        """Let the node with this key connect."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))

    def start_run(self, app: Path) -> int:
        """Submit an app; return the run's id.

        Raises:
            FederationError: the SuperLink refuses it.
        """
        content = build_fab_from_disk(app)
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        started = self._client.StartRun(StartRunRequest(fab=fab))
        if not started.HasField("run_id"):
            raise FederationError(f"SuperLink must start the run, got {started.note or 'no reason'}")
        return int(started.run_id)

    def status(self, run_id: int) -> RunStatus:
        """Return how a run stands."""
        run = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
        return RunStatus(status=run.status.status, sub_status=run.status.sub_status, details=run.status.details)

    def stop_unfinished_runs(self) -> int:
        """Stop runs that an earlier server left; return how many."""
        runs = self._client.ListRuns(ListRunsRequest()).run_dict
        stale = [run_id for run_id, run in runs.items() if run.status.status != _FINISHED]
        for run_id in stale:
            try:
                self._client.StopRun(StopRunRequest(run_id=run_id))
            except httpx.HTTPStatusError:  # it has finished since
                continue
        return len(stale)
