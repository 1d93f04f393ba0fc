"""What a node keeps of its users' messages: what a round may read and write, and through the app, with ledgers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from ownlet.device.account import Account
from ownlet.device.client import make_client_app
from ownlet.device.ledger import Budget
from ownlet.device.residual_folder import ResidualFolder
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.coding import decode, places_of_round
from ownlet.shared.config import Plan
from ownlet.shared.errors import StateError
from ownlet.shared.interactions import Item
from ownlet.shared.noise import NoiseSource
from ownlet.shared.seal import Seal
from ownlet.shared.windows import Windows
from ownlet.shared.wire import TrainRequest, request_to_records
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.grid import InProcessGrid
from ownlet.simulations.node_data import forget_others
from ownlet.simulations.store import StoreWriter

SPEC = AdapterSpec(
    layers=(LayerShape(name="layer", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64
)
START: Vector = np.linspace(-1, 1, SPEC.size, dtype=np.float32)
INT8 = WireConfig(name="int8", error_feedback=True)
SPARSE = WireConfig(name="sparse", keep=0.25, error_feedback=True)
RESIDUAL = np.linspace(-1, 1, SPEC.num_trainable, dtype=np.float32)
SMALL = np.linspace(-0.01, 0.02, SPEC.num_trainable, dtype=np.float32)


def request(number: int, **changes: Any) -> TrainRequest:
    values: dict[str, Any] = {
        "vector": START,
        "round": number,
        "version": number - 1,
        "base_hash": SPEC.base_hash,
        "plan": Plan(),
        "unit": "user",
        "clip_norm": 0.15,
        "users": (3,),
        "noise_multiplier": 1.0,
        "wire": SPARSE,
    }
    return TrainRequest(**{**values, **changes})


def kept(folder: ResidualFolder, number: int, run: int = 1, **changes: Any) -> Any:
    """Return what round ``number`` may read of user 3."""
    return folder.of_round(request(number, **changes), SPEC, run=run, users=(3,)).of(3, SPEC.base_hash)


def keep(folder: ResidualFolder, number: int, size: float, run: int = 1) -> None:
    round_of = folder.of_round(request(number), SPEC, run=run, users=(3,))
    round_of.keep(3, SPEC.base_hash, np.float32(size) * RESIDUAL)


def test_a_round_reads_what_the_one_before_it_kept_and_again_the_same(tmp_path: Path) -> None:
    folder = ResidualFolder(tmp_path)
    assert kept(folder, 1) is None
    keep(folder, 1, 1.0)
    assert kept(folder, 1) is None  # asked again, it starts from where it started
    np.testing.assert_array_equal(kept(folder, 2), RESIDUAL)
    keep(folder, 2, 2.0)
    keep(folder, 2, 3.0)  # the node died in between, and trained anew
    np.testing.assert_array_equal(kept(folder, 2), RESIDUAL)
    np.testing.assert_array_equal(kept(folder, 3), 3 * RESIDUAL)
    np.testing.assert_array_equal(kept(folder, 2, run=2), RESIDUAL)  # the server died, and its run has a new number


def test_a_request_of_an_earlier_round_reads_nothing_and_changes_nothing(tmp_path: Path) -> None:
    folder = ResidualFolder(tmp_path)
    keep(folder, 7, 1.0)
    assert kept(folder, 5) is None
    keep(folder, 5, 9.0)
    np.testing.assert_array_equal(kept(folder, 8), RESIDUAL)
    keep(folder, 1, 4.0, run=2)  # another run begins
    np.testing.assert_array_equal(kept(folder, 2, run=2), 4 * RESIDUAL)


@pytest.mark.parametrize(
    "changes",
    [{"unit": "window"}, {"vector": np.flip(START)}, {"base_hash": "c" * 64}],
    ids=["unit", "frozen A", "base"],
)
def test_what_was_left_of_another_unit_or_of_another_adapter_enters_nothing(tmp_path: Path, changes: Any) -> None:
    folder = ResidualFolder(tmp_path)
    keep(folder, 1, 1.0)
    round_two = folder.of_round(request(2, **changes), SPEC, run=1, users=(3,))
    assert round_two.of(3, changes.get("base_hash", SPEC.base_hash)) is None
    trained = START.copy()
    trained[SPEC.trainable] += 1  # an adapter that has moved on is not another
    np.testing.assert_array_equal(kept(folder, 2, vector=trained), RESIDUAL)


def test_files_are_the_owners_and_sealed_by_a_key_and_one_that_does_not_open_is_lost(tmp_path: Path) -> None:
    sealed = ResidualFolder(tmp_path, Seal(b"k" * 32))
    keep(sealed, 1, 1.0)
    path = tmp_path / "3"
    assert path.stat().st_mode & 0o077 == 0
    assert RESIDUAL.tobytes() not in path.read_bytes()
    np.testing.assert_array_equal(kept(sealed, 2), RESIDUAL)
    assert kept(ResidualFolder(tmp_path, Seal(b"j" * 32)), 2) is None
    (tmp_path / "4").write_bytes(path.read_bytes())  # user 3's under the name of user 4
    stolen = sealed.of_round(request(2, users=(4,)), SPEC, run=1, users=(4,))
    assert stolen.of(4, SPEC.base_hash) is None
    path.write_bytes(b"broken")
    assert kept(sealed, 2) is None
    keep(sealed, 2, 2.0)
    np.testing.assert_array_equal(kept(sealed, 3), 2 * RESIDUAL)


def test_a_disk_that_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="must accept a residual"):
        keep(ResidualFolder(tmp_path / "file"), 1, 1.0)


def test_a_residual_stays_only_while_its_users_history_goes_on_from_where_it_was(tmp_path: Path) -> None:
    items = tuple(Item(number=number, id=str(number), title="") for number in range(1, 10))
    with StoreWriter(tmp_path / "store", name="node", items=items) as writer:
        writer.append(np.array([1, 2, 3, 4, 5, 6, 7, 8]), np.array([2, 2, 1, 2, 1]))
    folder = ResidualFolder(tmp_path / "residuals")
    for user in range(6):
        folder.of_round(request(1), SPEC, run=1, users=(user,)).keep(user, SPEC.base_hash, RESIDUAL)
    now = [[1, 2], [3, 4, 9], [9], [7]]  # the same, more, another person, an event forgotten; two have gone
    forget_others(folder, tmp_path / "store", [np.array(history) for history in now])
    assert folder.users() == [0, 1]
    forget_others(folder, tmp_path / "no store", [np.array([1, 2])])
    assert folder.users() == []


class SameEngine:
    """Every user's delta is ``SMALL``, where there are windows."""

    spec = SPEC

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        trained = np.repeat(vector[None], len(users), axis=0)
        for row, windows in zip(trained, users, strict=True):
            row[SPEC.trainable] += SMALL * (len(windows) > 0)
        return trained


class Everybody:
    engine, base_hash = SameEngine(), SPEC.base_hash

    def windows(self, users: Sequence[int]) -> list[Windows]:
        row = np.ones((1, 2), np.int64)
        return [Windows(history=row, target=row, valid=np.ones((1, 2), np.float32)) for _ in users]


def ask(folder: Path, asked: TrainRequest, budget: float = 1e6) -> Message:
    account = Account(folder, Budget(epsilon=budget))
    grid = InProcessGrid(make_client_app(lambda context: Everybody(), load_account=lambda context: account), 1)
    (reply,) = grid.send_and_receive([Message(request_to_records(asked), grid.get_node_ids()[0], "train")])
    return reply


def sent_by(reply: Message, wire: WireConfig, number: int) -> Any:
    """Return the delta that the server reads, (num_trainable,)."""
    sent = reply.content["delta"]["total"].numpy()
    if wire.is_coded:
        return decode(sent, wire, np.inf)
    whole = np.zeros(SPEC.num_trainable)
    whole[places_of_round(wire, number, SPEC.num_trainable)] = sent
    return whole


@pytest.mark.parametrize("wire", [SPARSE, INT8], ids=lambda wire: wire.name)
def test_in_the_end_a_node_that_is_restarted_every_round_has_sent_all_of_a_users_deltas(
    tmp_path: Path, wire: WireConfig
) -> None:
    total = np.zeros(SPEC.num_trainable)
    for number in range(1, 9):
        total += sent_by(ask(tmp_path, request(number, wire=wire)), wire, number)
    rest = kept(Account(tmp_path, Budget()).residuals, 9)
    np.testing.assert_allclose(total + rest, 8 * SMALL, atol=1e-6)
    assert np.abs(rest).max() > 1e-5


def test_the_same_request_again_moves_no_residual(tmp_path: Path) -> None:
    first = sent_by(ask(tmp_path, request(1)), SPARSE, 1)
    path = tmp_path / "residuals" / "3"
    before = path.read_bytes()
    np.testing.assert_array_equal(sent_by(ask(tmp_path, request(1)), SPARSE, 1), first)
    assert path.read_bytes() == before
    (tmp_path / "reply").unlink()  # the node died before its reply was on disk
    np.testing.assert_array_equal(sent_by(ask(tmp_path, request(1)), SPARSE, 1), first)
    np.testing.assert_allclose(first + kept(Account(tmp_path, Budget()).residuals, 2), SMALL, atol=1e-7)


def test_a_user_whose_budget_is_spent_sends_nothing_of_what_was_left_either(tmp_path: Path) -> None:
    assert sent_by(ask(tmp_path, request(1), 6.0), SPARSE, 1).any()  # one round of noise multiplier 1, not two
    path = tmp_path / "residuals" / "3"
    before = path.read_bytes()
    assert not sent_by(ask(tmp_path, request(2), 6.0), SPARSE, 2).any()
    assert path.read_bytes() == before
