"""The ClientApp of a deployed node: real users with their ledgers, or one device's own state.

Flower starts it in a process of its own for every message, which finds the node's settings in an environment variable.
What a node hosts and what it may give is its own decision: nothing of the settings comes from the server. From the
server come, as the run's public configuration, the adapter's spec and how histories are cut.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp

from ownlet.device.account import Account
from ownlet.device.budget import Budget
from ownlet.device.client import Shard, make_client_app, place_of
from ownlet.device.low_rank import LowRankEngine
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import DataError, FederationError
from ownlet.shared.ranks import low_rank_spec, rank_of_node
from ownlet.shared.seal import read_key
from ownlet.shared.secure_sum.vouching import read_vouching
from ownlet.shared.store import write_atomic
from ownlet.shared.windows import Windows
from ownlet.simulations.supernode_log import tell_into_log

if TYPE_CHECKING:
    from ownlet.device.train import Engine
    from ownlet.simulations.store import EventStore

__all__ = ["NODE_VARIABLE", "NodeSettings", "NodeShard", "make_node_app", "node_app"]

NODE_VARIABLE = "OWNLET_NODE"


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a node hosts.

    Args:
        state: the node's folder: ledgers, last reply.
        base: safetensors file of the base; None for a device with a bundle.
        store: folder of the users' histories; None for a device with a bundle.
        bundle: of a device; None for a node with users.
        device_state: the device's state folder, as ``Personalizer`` keeps it.
        key_file: holds the key that this folder was made with; None where it was made without.
        simulated: the users are simulated, so the server may choose their randomness.
        key: the node's private key, which vouches for it in secure sums; None for a device with a bundle.
        peers: folder of all nodes' public keys, where the node takes part in secure sums among these only.
        rank: that the node trains; None takes what the run has for its partition.
        budget: of each user, or of the device.
    """

    state: Path
    base: Path | None = None
    store: Path | None = None
    bundle: Path | None = None
    device_state: Path | None = None
    key_file: Path | None = None
    key: Path | None = None
    peers: Path | None = None
    simulated: bool = False
    rank: int | None = None
    budget: Budget = field(default_factory=Budget)

    def save(self, path: Path) -> None:
        """Write it, as absolute paths."""
        plain = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in vars(self).items()}
        write_atomic(path, json.dumps({**plain, "budget": asdict(self.budget)}, indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> NodeSettings:
        """Read it.

        Raises:
            DataError: not what ``save`` wrote.
        """
        try:
            values = json.loads(path.read_text())
            paths = {name: None if values[name] is None else Path(values[name]) for name in _PATHS}
            return cls(**{**values, **paths, "budget": Budget(**values["budget"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"settings of a node must be readable, got {path}: {error}") from error


_PATHS = ("state", "base", "store", "bundle", "device_state", "key_file", "key", "peers")


class NodeShard:
    """The users of a store, for a population that may have more users than the store knows."""

    def __init__(self, engine: Engine, store: EventStore, windows: WindowConfig) -> None:
        """Take engine, users and how histories are cut."""
        self.engine, self._store, self._windows = engine, store, windows

    @property
    def base_hash(self) -> str:
        """The hash of the base that the engine holds."""
        return self.engine.spec.base_hash

    def windows(self, users: Sequence[int]) -> Sequence[Windows]:
        """Return each user's windows; none of a user who is not here, who contributes zero."""
        known = np.array([user if user < self._store.num_users else -1 for user in users], dtype=np.int64)
        found = self._store.windows(np.where(known < 0, 0, known), self._windows)
        if (known >= 0).all():
            return found
        return [one[:0] if user < 0 else one for user, one in zip(known.tolist(), found, strict=True)]


def make_node_app(settings: NodeSettings) -> ClientApp:
    """Return the app of a node with these settings."""
    if settings.bundle is not None and settings.device_state is not None:
        from ownlet.device.device_app import make_device_app

        key = None if settings.key_file is None else read_key(settings.key_file)
        return make_device_app(settings.bundle, settings.device_state, settings.budget, key)

    def load_shard(context: Context) -> Shard:
        run = context.run_config
        windows = (int(run["windows.window-length"]), int(run["windows.context-length"]))
        spec = AdapterSpec.from_json(str(run["adapter-spec"]))
        ranks = [int(rank) for rank in str(run.get("ranks", "")).split(",") if rank]
        rank = rank_of_node(spec, ranks, place_of(context).partition, settings.rank)
        return _shard(settings, spec, rank, *windows)

    return make_client_app(
        load_shard,
        simulated=settings.simulated,
        load_account=lambda context: Account(settings.state, settings.budget),
        vouching=None if settings.key is None else read_vouching(settings.key, settings.peers),
    )


@functools.lru_cache(maxsize=1)
def _shard(settings: NodeSettings, spec: AdapterSpec, rank: int, window_length: int, context_length: int) -> NodeShard:
    from ownlet.shared.adapter import hash_state
    from ownlet.shared.base import load_base_weights
    from ownlet.shared.lora import attach_spec
    from ownlet.simulations.cohort import CohortEngine
    from ownlet.simulations.store import EventStore

    assert settings.base is not None
    assert settings.store is not None
    model = load_base_weights(settings.base)
    base_hash = hash_state(model.state_dict())
    if spec.base_hash != base_hash:
        raise FederationError(f"base must be {base_hash[:12]}, got a run for {spec.base_hash[:12]}")
    attach_spec(model, spec)
    windows = WindowConfig(window_length=window_length, context_length=context_length)
    engine: Engine = CohortEngine(model, low_rank_spec(spec, rank) if rank < spec.rank else spec)
    if rank < spec.rank:
        engine = LowRankEngine(engine, spec)
    return NodeShard(engine, EventStore.open(settings.store), windows)


def node_app() -> ClientApp:
    """Return the app of the node that started this process, which tells its operator what it does."""
    tell_into_log()
    return make_node_app(NodeSettings.load(Path(os.environ[NODE_VARIABLE])))
