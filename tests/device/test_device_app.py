"""One device as a node: its own ledger and outbox answer, and the shared adapter moves on with the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from ownlet.device import Personalizer
from ownlet.device.budget import Budget
from ownlet.device.device_app import contribute, make_device_app
from ownlet.device.release import Release
from ownlet.server.admit import Expected, admit
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.seal import Seal
from ownlet.shared.wire import TrainReply, TrainRequest, place_from_records, reply_to_records, request_to_records
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.grid import InProcessGrid, take_identity

pytestmark = pytest.mark.slow  # a bundle is lowered and loaded many times

LOOSE = Budget(epsilon=100.0)


@pytest.fixture
def device(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The state folder of a device with a history."""
    with Personalizer.open(tiny_bundle, tmp_path / "device", budget=LOOSE) as personalizer:
        for second, item in enumerate([5, 9] * 6):
            personalizer.record(f"item-{item}", timestamp=float(second))
    return tmp_path / "device"


def first_request(tiny: Any, **changes: Any) -> TrainRequest:
    asked = TrainRequest(
        vector=tiny.vector,
        round=1,
        version=0,
        base_hash=tiny.spec.base_hash,
        plan=Plan(steps=2),
        unit="user",
        clip_norm=0.1,
        users=(4,),
        noise_multiplier=4.0,
    )
    return replace(asked, **changes)


def charges(bundle: Path, device: Path) -> int:
    with Personalizer.open(bundle, device) as personalizer:
        return personalizer.status().privacy["user"].charges


def test_a_device_answers_with_its_clipped_update_and_charges_its_own_ledger(
    tiny: Any, tiny_bundle: Path, device: Path
) -> None:
    asked = first_request(tiny)
    reply = contribute(asked, tiny_bundle, device, LOOSE, user=4)
    assert 0 < np.linalg.norm(reply.total) <= 0.1 * (1 + 1e-6)
    assert (reply.round, reply.version, reply.num_users) == (1, 0, 1)
    assert charges(tiny_bundle, device) == 1
    again = contribute(replace(asked, round=2), tiny_bundle, device, LOOSE, user=4)  # the round was void
    np.testing.assert_array_equal(again.total, reply.total)
    assert charges(tiny_bundle, device) == 1


def test_a_device_adopts_the_adapter_of_the_round(tiny: Any, tiny_bundle: Path, device: Path) -> None:
    moved = tiny.vector.copy()
    moved[tiny.spec.trainable] += np.float32(0.01)
    contribute(first_request(tiny, version=1, round=2, vector=moved), tiny_bundle, device, LOOSE, user=4)
    with Personalizer.open(tiny_bundle, device) as personalizer:
        assert personalizer.status().shared_version == 4  # the bundle's is 3


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"users": (4, 5)}, "users must be this device's"),
        ({"users": (3,)}, "users must be this device's"),
        ({"seed": 1}, "seed must not come from the server"),
        ({"base_hash": "c" * 64}, "base must be"),
        ({"part": "b"}, "alternate must be false"),
        ({"vector": np.zeros(1, np.float32)}, "adapter must be the device's own of version 3"),
        ({"version": -1}, "adapter must not be older than version 3"),
    ],
)
def test_what_a_device_refuses_costs_nothing(
    tiny: Any, tiny_bundle: Path, device: Path, changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises((FederationError, ConfigError), match=rule):
        contribute(first_request(tiny, **changes), tiny_bundle, device, LOOSE, user=4)
    assert charges(tiny_bundle, device) == 0


FORMS = [
    WireConfig(name="float16"),
    WireConfig(name="int8", error_feedback=True),
    WireConfig(name="sparse", keep=0.25, error_feedback=True),
]


def admitted(asked: TrainRequest, reply: TrainReply, size: int) -> Any:
    """Return what the server reads, if it lets the reply in."""
    take_identity()
    message = Message(reply_to_records(reply), 1, "train")
    expected = Expected(
        round=asked.round,
        version=asked.version,
        base_hash=asked.base_hash,
        num_trainable=size,
        clip_norm=asked.clip_norm,
        users_by_node={message.metadata.src_node_id: 1},
        counts=asked.counts,
        wire=asked.wire,
    )
    return admit(message, expected)


@pytest.mark.parametrize("wire", FORMS, ids=lambda wire: wire.name)
def test_a_device_codes_its_update_and_what_it_left_out_goes_with_its_events(
    tiny: Any, tiny_bundle: Path, device: Path, wire: WireConfig
) -> None:
    outbox, vector = device / "outbox", tiny.vector.copy()
    for number in (1, 2):
        asked = first_request(tiny, wire=wire, round=number, version=number - 1, vector=vector, counts=wire.is_coded)
        reply = contribute(asked, tiny_bundle, device, LOOSE, user=4)
        sent = admitted(asked, reply, tiny.spec.num_trainable)
        assert sent.any()
        release = Release.load(outbox, Seal())
        assert release is not None
        np.testing.assert_array_equal(sent[: tiny.spec.num_trainable], release.delta)
        assert (release.residual is not None) == wire.error_feedback
        vector = vector.copy()  # the request holds the one before
        vector[tiny.spec.trainable] += np.float32(0.01)
    again = contribute(asked, tiny_bundle, device, LOOSE, user=4)
    np.testing.assert_array_equal(again.total, reply.total)
    assert charges(tiny_bundle, device) == 2
    with Personalizer.open(tiny_bundle, device) as personalizer:
        personalizer.forget(item="item-5")
    assert not outbox.exists()


def test_the_bound_of_a_request_under_window_is_that_of_the_update(tiny: Any, tiny_bundle: Path, device: Path) -> None:
    plan = Plan(steps=2, clip_norm=5.0, noise_multiplier=1.0)
    config = FederationConfig(unit="window", clip_norm=0.001, plan=plan)
    bound = config.delta_bound(tiny.spec.num_trainable)
    asked = first_request(tiny, unit="window", plan=plan, clip_norm=bound, wire=FORMS[1])
    reply = contribute(asked, tiny_bundle, device, LOOSE, user=4)
    assert 0.5 * bound < np.linalg.norm(admitted(asked, reply, tiny.spec.num_trainable)) <= bound


@pytest.mark.parametrize("wire", [WireConfig(), *FORMS], ids=lambda wire: wire.name)
def test_a_device_without_budget_gives_zero_is_not_charged_and_follows_the_run(
    tiny: Any, tiny_bundle: Path, device: Path, wire: WireConfig
) -> None:
    moved = tiny.vector.copy()
    moved[tiny.spec.trainable] += np.float32(0.01)
    asked = first_request(tiny, version=1, vector=moved, wire=wire, counts=wire.is_coded)
    reply = contribute(asked, tiny_bundle, device, Budget(epsilon=0.1), user=4)
    sent = admitted(asked, reply, tiny.spec.num_trainable)
    assert not sent[: tiny.spec.num_trainable].any()
    assert sent[tiny.spec.num_trainable :].tolist() == [0.5] * wire.is_coded  # within the clip
    with Personalizer.open(tiny_bundle, device) as personalizer:
        status = personalizer.status()
    assert (status.privacy["user"].charges, status.shared_version, status.has_update) == (0, 4, False)


def test_the_app_answers_by_message_and_says_which_user_it_is(tiny: Any, tiny_bundle: Path, device: Path) -> None:
    grid = InProcessGrid(make_device_app(tiny_bundle, device, LOOSE), 1)
    grid._contexts[0].node_config = {"partition-id": 4, "num-partitions": 9}
    (node,) = grid.get_node_ids()
    (place,) = grid.send_and_receive([Message(request_to_records(first_request(tiny)), node, "query.place")])
    assert place_from_records(place.content).partition == 4
    (reply,) = grid.send_and_receive([Message(request_to_records(first_request(tiny)), node, "train")])
    assert reply.content["reply"]["num-users"] == 1
