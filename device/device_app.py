"""The Flower side of one device: its ``Personalizer`` answers, with its own ledger, outbox and policy.

Other than a node that hosts users (``device/client.py``), a device keeps the shared adapter: it adopts what the request
carries, and its app goes on recommending with it. The run must start from the adapter of the device's bundle.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ownlet.device.budget import Budget
from ownlet.device.client import add_place, place_of
from ownlet.device.personalizer import Personalizer
from ownlet.shared.adapter import load_adapter, save_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError
from ownlet.shared.manifest import ADAPTER_FILE, read_manifest
from ownlet.shared.wire import (
    TrainReply,
    TrainRequest,
    reply_to_records,
    request_from_records,
)
from ownlet.shared.wire_config import FLOAT32

__all__ = ["contribute", "make_device_app"]


def contribute(request: TrainRequest, bundle: Path, state: Path, budget: Budget, user: int) -> TrainReply:
    """Adopt the request's adapter, and answer with the device's update.

    Args:
        request: what the server asks.
        bundle: of the device.
        state: the device's folder, as ``Personalizer`` keeps it.
        budget: what the device may ever spend.
        user: the device's number in the population.

    Raises:
        FederationError: it is for others, has a seed, or is not for the bundle's base.
        BudgetExceededError: the device has given all that it may; nothing leaves.
        OwnletError: what ``Personalizer.update`` raises.
    """
    manifest = read_manifest(bundle)
    if request.users != (user,):
        raise FederationError(f"users must be this device's, got {len(request.users)} in round {request.round}")
    if request.seed is not None:
        raise FederationError(f"seed must not come from the server of real users, got one in round {request.round}")
    if request.base_hash != manifest.base_hash:
        raise FederationError(f"base must be {manifest.base_hash[:12]}, got {request.base_hash[:12]}")
    if request.wire != FLOAT32:
        raise FederationError(f"wire must be float32 for a device that answers on its own, got {request.wire}")
    terms = FederationConfig(
        unit=request.unit,  # type: ignore[arg-type]
        clip_norm=request.clip_norm,
        noise_multiplier=request.noise_multiplier,
        plan=request.plan,
        windows=manifest.windows,
    )
    with Personalizer.open(bundle, state, budget=budget) as personalizer:
        _adopt(personalizer, request, bundle)
        update = personalizer.update(terms, round_number=request.round)
    if update is None:
        raise FederationError(f"update must be whole, got a stopped one in round {request.round}")
    return TrainReply(
        total=update.delta,
        round=request.round,
        version=request.version,
        base_hash=request.base_hash,
        num_users=1,
    )


def _adopt(personalizer: Personalizer, request: TrainRequest, bundle: Path) -> None:
    """Take the request's adapter where it is newer than the device's; a run's first one is the bundle's own."""
    spec, _, first = load_adapter(bundle / ADAPTER_FILE)
    version = first + request.version
    if version <= personalizer.status().shared_version:
        return
    with TemporaryDirectory(prefix="ownlet-") as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(path, spec, spec.check(request.vector, what="global adapter"), version=version)
        personalizer.adopt(path)


def make_device_app(bundle: Path, state: Path, budget: Budget) -> ClientApp:
    """Return the Flower app of one device; it takes no part in secure sums yet.

    Args:
        bundle: of the device.
        state: the device's folder.
        budget: what it may ever spend.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        size = load_adapter(bundle / ADAPTER_FILE)[0].size
        request = request_from_records(message.content, size)
        reply = contribute(request, bundle, state, budget, place_of(context).partition)
        return Message(reply_to_records(reply), reply_to=message)

    add_place(app)
    return app
