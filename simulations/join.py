"""A node of a deployed federation: its data prepared once, then Flower's SuperNode, which starts the ClientApp."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificate

from ownlet.device.account import Account
from ownlet.device.budget import Budget
from ownlet.shared.base import save_base_weights
from ownlet.shared.errors import ConfigError, StateBusyError, StateError, require
from ownlet.shared.filelock import take_lock
from ownlet.shared.flower_process import end_flower, free_port, new_lines, start_flower
from ownlet.shared.secure_sum.vouching import read_node_key, read_vouching
from ownlet.shared.wire import Place
from ownlet.simulations.deployed_node import NODE_VARIABLE, NodeSettings
from ownlet.simulations.node_data import write_node_store
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.supernode_log import SuperNodeTeller

__all__ = ["Connection", "held_node", "prepare_node", "run_node"]

_POLL_SECONDS = 0.5
_PROBE_SECONDS = 3.0
_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How a node reaches its server.

    Args:
        server: host and port.
        ca: certificate of the server's CA.
        key: the node's private key.
        port: of the node's own processes on this machine; 0 takes a free one.
    """

    server: str
    ca: Path
    key: Path
    port: int = 0

    def check(self) -> None:
        """Make sure that files are there and can be read.

        Raises:
            ConfigError: one is not.
        """
        host, _, number = self.server.rpartition(":")
        require(bool(host) and number.isdecimal(), "server must be HOST:PORT", server=self.server)
        try:
            load_pem_x509_certificate(self.ca.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"certs must hold the CA's certificate, got {self.ca}: {error}") from error
        read_node_key(self.key)

    def is_reachable(self) -> bool:
        """Say whether the server answers by TLS, with a certificate that holds.

        Raises:
            ConfigError: it answers with a certificate that the CA did not sign, or for another name.
        """
        host, _, port = self.server.rpartition(":")
        context = ssl.create_default_context(cafile=str(self.ca))
        try:
            with (
                socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host.strip("[]")),
            ):
                return True
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message
            raise ConfigError(f"server must have a certificate of {self.ca}, got {self.server}: {reason}") from error
        except OSError:
            return False


@contextmanager
def held_node(state: Path) -> Iterator[None]:
    """Hold a node's folder for as long as the context lasts: two nodes would charge the same ledgers side by side.

    Args:
        state: the folder, made if it is missing.

    Raises:
        StateBusyError: another node runs in it.
        StateError: it cannot be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = take_lock(state / "join.lock", 0.0)
    except TimeoutError:
        raise StateBusyError(f"one node at a time must use {state}, got another `ownlet join` that runs") from None
    except OSError as error:
        raise StateError(f"state folder must be writable, got {state}: {error}") from error
    with lock:
        yield


def prepare_node(
    state: Path,
    place: Place,
    *,
    base: Path | None,
    data: DataConfig,
    bundle: Path | None,
    device_state: Path | None,
    simulated: bool,
    budget: Budget,
    key: Path | None = None,
    peers: Path | None = None,
    rank: int | None = None,
    key_file: Path | None = None,
) -> str:
    """Write what the node's processes read into its folder, which is held, and say in words what it hosts.

    Raises:
        ConfigError: neither users nor a device, or both; a rank or peers for a device, a key file for anything else;
            or keys that cannot vouch.
        DataError: base or data cannot be read, or there is nobody.
    """
    require(
        0 <= place.partition < place.num_partitions,
        f"partition must be from 0 to {place.num_partitions - 1}",
        partition=place.partition,
    )
    is_device = bundle is not None and device_state is not None
    require(
        is_device == (base is None) == (data.path is None and not simulated),
        "a node must have --base with --data, or --bundle with --device-state",
        base=base,
        data=data.path,
        bundle=bundle,
        device_state=device_state,
    )
    if is_device:
        require(not simulated, "simulated must not be set for a device", simulated=simulated)
        require(peers is None, "peers must not be set for a device, which takes no part in secure sums", peers=peers)
        require(rank is None, "rank must not be set for a device, whose bundle trains its own", rank=rank)
        settings = NodeSettings(state=state, bundle=bundle, device_state=device_state, key_file=key_file, budget=budget)
        told = f"hosts a device, user {place.partition} of {place.num_partitions}"
    else:
        assert base is not None
        require(key_file is None, "key_file must be given for a device only", key_file=key_file)
        if key is not None:
            read_vouching(key, peers)
        weights, store = state / "base.safetensors", state / "store"
        save_base_weights(weights, load_base(base))
        left = Account(state, budget).residuals
        hosted, population = write_node_store(store, base, data, place, simulated=simulated, residuals=left)
        settings = NodeSettings(
            state=state,
            base=weights,
            store=store,
            key=key,
            peers=peers,
            simulated=simulated,
            rank=rank,
            budget=budget,
        )
        part = f"partition {place.partition} of {place.num_partitions}"
        told = f"hosts {hosted} users, {part}; users are numbered below {population}"
        if peers is not None:
            told += f"; takes part in secure sums among the {len(list(peers.glob('*.pub')))} keys of {peers} only"
        if simulated:
            told += "; SIMULATED: the server may choose their randomness"
    settings.save(state / "node.json")
    return told


def run_node(state: Path, place: Place, connection: Connection, tell: Callable[[str], None]) -> None:
    """Run the SuperNode until this process is interrupted.

    A SuperNode that the server does not let in ends; it is started again after a while, since the server may not have
    registered its key yet.

    Args:
        state: the node's folder, prepared.
        place: its partition.
        connection: how it reaches its server.
        tell: told in a sentence, with the time, what happens; Flower's own lines are in ``supernode.log`` only.

    Raises:
        ConfigError: the server's certificate does not hold.
    """
    teller = SuperNodeTeller(
        connection.server, connection.key, lambda text: tell(f"{time.strftime('%H:%M:%S')} {text}")
    )
    try:
        while True:
            _wait_for_server(connection, teller)
            ended = _run_supernode(state, place, connection, teller)
            teller.say(f"{ended}; trying again every {_AGAIN_SECONDS:g} seconds")
            time.sleep(_AGAIN_SECONDS)
    except KeyboardInterrupt:
        teller.say("left; the same command joins again")


def _wait_for_server(connection: Connection, teller: SuperNodeTeller) -> None:
    while not connection.is_reachable():
        teller.say(f"waiting for a server at {connection.server}")
        time.sleep(_PROBE_SECONDS)


def _run_supernode(state: Path, place: Place, connection: Connection, teller: SuperNodeTeller) -> str:
    """Run a SuperNode until it ends by itself; say why it did."""
    log = state / "supernode.log"
    arguments = [
        *("--superlink", connection.server),
        *("--root-certificates", str(connection.ca.resolve())),
        *("--auth-supernode-private-key", str(connection.key.resolve())),
        *("--host", "127.0.0.1", "--port", str(connection.port or free_port())),
        *("--node-config", f"partition-id={place.partition} num-partitions={place.num_partitions}"),
    ]
    told = log.stat().st_size if log.exists() else 0
    began = told
    node = start_flower(
        "ownlet.simulations.supernode:main",
        arguments,
        home=state / "flower",
        log=log,
        variables={NODE_VARIABLE: str((state / "node.json").resolve())},
    )

    try:
        while node.poll() is None:
            told = new_lines(log, told, teller.read)
            time.sleep(_POLL_SECONDS)
        new_lines(log, told, teller.read)
    finally:
        end_flower(node)
    return teller.why_ended() or f"SuperNode ended with code {node.returncode}; see {log} from byte {began}"
