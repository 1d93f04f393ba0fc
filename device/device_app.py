"""The Flower side of one device: its ``Personalizer`` answers, with its own ledger, outbox and policy.

Other than a node that hosts users (``device/client.py``), a device keeps the shared adapter: it adopts what the request
carries, and its app goes on recommending with it. The run must start from the adapter of the device's bundle.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from ownlet.device.budget import Budget
from ownlet.device.client import add_place, place_of
from ownlet.device.personalizer import Personalizer
from ownlet.device.release import check_terms
from ownlet.device.sending import code_deltas, with_count
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter, save_adapter
from ownlet.shared.coding import places_of_round
from ownlet.shared.config import FederationConfig, WindowConfig
from ownlet.shared.delta import count_within
from ownlet.shared.errors import BudgetExceededError, FederationError
from ownlet.shared.manifest import ADAPTER_FILE, read_manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.server_config import AdaptiveClip
from ownlet.shared.wire import (
    TrainReply,
    TrainRequest,
    reply_to_records,
    request_from_records,
)

__all__ = ["contribute", "make_device_app"]

_log = logging.getLogger(__name__)


def contribute(
    request: TrainRequest, bundle: Path, state: Path, budget: Budget, user: int, key: bytes | None = None
) -> TrainReply:
    """Adopt the request's adapter, and answer with the device's update, or with zero where its budget is spent.

    Zero is what a node's users without budget give, too: the round has all its answers, and what it publishes goes on
    reaching the device. Nothing of the user is in it: when a budget ends follows from the rounds that were charged.

    Args:
        request: what the server asks.
        bundle: of the device.
        state: the device's folder, as ``Personalizer`` keeps it.
        budget: what the device may ever spend.
        user: the device's number in the population.
        key: the app's, where the folder was made with one.

    Raises:
        FederationError: it is for others, has a seed, is not for the bundle's base, or has an older adapter than the
            device, or another one of the same version.
        ConfigError: terms that a device on its own cannot do; see ``Personalizer.update``.
        OwnletError: what ``Personalizer.update`` raises.
    """
    manifest = read_manifest(bundle)
    if request.users != (user,):
        raise FederationError(f"users must be this device's, got {len(request.users)} in round {request.round}")
    if request.seed is not None:
        raise FederationError(f"seed must not come from the server of real users, got one in round {request.round}")
    if request.base_hash != manifest.base_hash:
        raise FederationError(f"base must be {manifest.base_hash[:12]}, got {request.base_hash[:12]}")
    with Personalizer.open(bundle, state, budget=budget, key=key) as personalizer:
        spec = load_adapter(bundle / ADAPTER_FILE)[0]
        terms = _terms_of(request, manifest.windows, spec)
        check_terms(terms, manifest.windows, request.round)
        _adopt(personalizer, request, bundle)
        try:
            update = personalizer.update(terms, round_number=request.round)
        except BudgetExceededError as error:
            delta, coded, count = _nothing(request, spec.num_trainable)
            _log.info("round %d: answers with zero, and is not charged: %s", request.round, error)
        else:
            if update is None:
                raise FederationError(f"update must be whole, got a stopped one in round {request.round}")
            delta, coded, count = update.delta, update.coded, update.count
            _log.info("round %d: answers with this device's update", request.round)
    total = delta[places_of_round(request.wire, request.round, len(delta))]
    if count is not None:
        total, coded = with_count(total, coded, count)
    return TrainReply(
        total=total,
        coded=coded,
        round=request.round,
        version=request.version,
        base_hash=request.base_hash,
        num_users=1,
    )


def _nothing(request: TrainRequest, size: int) -> tuple[Vector, NDArray[np.uint8] | None, float | None]:
    """Return a delta (size,) of zero as it would be sent: the delta, its code and its count."""
    zero = np.zeros((1, size), np.float32)
    sent = code_deltas(zero, request.wire, request.clip_norm, request.round, [AesNoise()])
    return sent.deltas[0], sent.coded, count_within(zero, request.clip_norm) if request.counts else None


def _terms_of(request: TrainRequest, windows: WindowConfig, spec: AdapterSpec) -> FederationConfig:
    """Return the terms that a request stands for."""
    terms = FederationConfig(
        unit=request.unit,  # type: ignore[arg-type]
        clip_norm=request.clip_norm,
        adaptive_clip=AdaptiveClip(quantile=0.5 if request.counts else 0.0),  # which quantile is the server's affair
        noise_multiplier=request.noise_multiplier,
        alternate=request.part != "all",
        wire=request.wire,
        plan=request.plan,
        windows=windows,
    )
    if terms.unit != "window":
        return terms
    room = terms.delta_bound(spec.num_trainable, 0.0)  # for the device's own noise: a request's bound includes it
    return replace(terms, clip_norm=request.clip_norm - room)


def _adopt(personalizer: Personalizer, request: TrainRequest, bundle: Path) -> None:
    """Take the request's adapter where it is newer than the device's; a run's first one is the bundle's own.

    An update is relative to the device's adapter: one that answers an old request would be relative to another one than
    its header says.
    """
    spec, _, first = load_adapter(bundle / ADAPTER_FILE)
    version, status = first + request.version, personalizer.status()
    if version < status.shared_version:
        raise FederationError(f"adapter must not be older than version {status.shared_version}, got {version}")
    if version == status.shared_version:
        if hashlib.sha256(request.vector.tobytes()).hexdigest() != status.shared_digest:
            raise FederationError(f"adapter must be the device's own of version {version}, got another in a request")
        return
    with TemporaryDirectory(prefix="ownlet-") as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(path, spec, spec.check(request.vector, what="global adapter"), version=version)
        personalizer.adopt(path)


def make_device_app(bundle: Path, state: Path, budget: Budget, key: bytes | None = None) -> ClientApp:
    """Return the Flower app of one device; it takes no part in secure sums yet.

    Args:
        bundle: of the device.
        state: the device's folder.
        budget: what it may ever spend.
        key: the app's, where the folder was made with one.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        size = load_adapter(bundle / ADAPTER_FILE)[0].size
        request = request_from_records(message.content, size)
        reply = contribute(request, bundle, state, budget, place_of(context).partition, key)
        return Message(reply_to_records(reply), reply_to=message)

    add_place(app)
    return app
