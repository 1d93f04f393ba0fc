"""Rollouts and counts as a device lives them, with a real registry's files; test_personalizer has the front door."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device.adapters import Shared, SharedAdapters
from ownlet.device.budget import Budget
from ownlet.device.counter import HitCounter
from ownlet.device.follow import Follower
from ownlet.device.history import EventHistory
from ownlet.device.ledger import Charge, Ledger, read_ledger, verify_ledger
from ownlet.device.state import StateFolder
from ownlet.server.published import Publication, SpentOnce
from ownlet.server.registry import Registry
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector, dump_adapter
from ownlet.shared.config import Plan
from ownlet.shared.counters import CountReport, CountTerms, chance_of_one
from ownlet.shared.errors import AdapterError, BudgetExceededError, PrivacyError, StateError
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import epsilon, event_to_json, user_level_event
from ownlet.shared.rollout import MANIFEST_FILE, Offer
from ownlet.shared.sealed_json import sealed_json
from ownlet.shared.store import VersionStore
from ownlet.simulations.audit.accounts import accountant_checks
from ownlet.simulations.audit.promise import promises_of
from ownlet.simulations.audit.subject import open_subject

SPENT = SpentOnce(unit="user", epsilon=2.0, dp_delta=1e-5, event=event_to_json(user_level_event(0.2, 4.0, 10)))
SPEC = AdapterSpec(layers=(LayerShape(name="l", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64)
BUNDLED = Shared(spec=SPEC, vector=np.ones(SPEC.size, np.float32), version=3)
TERMS = CountTerms(count="week-1", impressions=4, epsilon=1.0)


class Device:
    """What a ``Personalizer`` puts together, without model and bundle."""

    def __init__(self, root: Path, budget: Budget | None = None, keys: Sequence[bytes] | None = None) -> None:
        folder = StateFolder.make(root)
        self.ledger = Ledger(folder.ledger, budget=budget, may_start=not folder.has_trained)
        self.history = EventHistory(folder.history)
        self.shared = SharedAdapters(VersionStore(folder.shared), BUNDLED)
        self.follower = Follower(self.history, self.shared, keys)
        self.counter = HitCounter(self.history, self.ledger, folder)

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *error: object) -> None:
        self.history.close()

    def follow(self, manifest: Path, fetch: Any) -> int:
        told = self.follower.read(manifest.read_bytes())
        choice = self.follower.choice(told)
        shared = self.follower.adopt(told, choice, self.follower.needed(choice, fetch))
        self.counter.begin(told.count, choice.arm, shared.version)
        return shared.version

    def report(self, noise: AesNoise | None = None) -> CountReport | None:
        return self.counter.report(SPEC.base_hash, noise or AesNoise())


class World:
    """A registry, the folder that it delivers to, and the state of a device whose bundle has adapter version 3."""

    def __init__(self, root: Path) -> None:
        self.registry, self.out, self.state, self.fetched = Registry(root / "registry"), root / "out", root / "state", 0
        self.publish(1)

    def publish(self, version: int) -> int:
        vector: Vector = np.full(SPEC.size, version, np.float32)
        content = dump_adapter(SPEC, vector, version=version)
        told = Publication(content=content, quality=0.2, base_quality=0.1, spent=SPENT, source="test")
        return self.registry.publish(told).number

    def open(self, budget: Budget | None = None) -> Device:
        return Device(self.state, budget)

    def fetch(self, offer: Offer) -> bytes:
        self.fetched += 1
        return (self.out / offer.file).read_bytes()

    def follow(self, device: Device) -> int:
        self.registry.deliver(self.out)
        return device.follow(self.out / MANIFEST_FILE, self.fetch)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_device_goes_with_the_rollout_and_back(world: World):
    assert (world.publish(7), world.publish(8)) == (2, 3)
    with world.open() as device:
        assert world.follow(device) == 3  # the bundle's own: nothing is promoted
        world.registry.promote(2, 100)
        assert world.follow(device) == 7
        world.registry.promote(3, 100)
        assert world.follow(device) == 8
        assert world.follow(device) == 8
        assert world.fetched == 2  # nothing is fetched twice
        world.registry.rollback()
        assert world.follow(device) == 7
        world.registry.rollback()
        assert world.follow(device) == 3
        world.registry.promote(1, 100)  # older than the bundle's own
        assert world.follow(device) == 3
    with world.open() as device:
        assert device.shared.current() == BUNDLED


def test_an_old_manifest_and_another_file_are_refused(world: World):
    world.publish(9)
    with world.open() as device:
        world.registry.promote(2, 50)
        world.registry.deliver(world.out)
        old = (world.out / MANIFEST_FILE).read_bytes()
        world.registry.promote(2, 100)
        world.registry.deliver(world.out)
        with pytest.raises(AdapterError, match=r"adapter must be the \d+ bytes that the manifest names, got another"):
            device.follow(world.out / MANIFEST_FILE, lambda offer: b"x" * offer.size)
        assert device.shared.current().version == 3
        assert world.follow(device) == 9
        (world.out / MANIFEST_FILE).write_bytes(old)
        with pytest.raises(StateError, match="manifest must not be older than serial 2, got serial=1"):
            device.follow(world.out / MANIFEST_FILE, world.fetch)
        assert device.shared.current().version == 9


KEY, FOREIGN = (Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in (1, 2))
PINNED = (KEY.public_key().public_bytes_raw(),)


def resealed(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a manifest changed by somebody who can write the file, and its hash, but not sign."""
    plain = json.loads(content)
    del plain["sha256"]
    change(plain)
    return sealed_json(plain)


def test_a_pinned_key_lets_signed_manifests_lead_forth_and_back(world: World):
    world.publish(7)
    with Device(world.state, keys=PINNED) as device:
        for step, version in ((lambda: world.registry.promote(2, 100), 7), (world.registry.rollback, 3)):
            step()
            world.registry.deliver(world.out, KEY)
            assert device.follow(world.out / MANIFEST_FILE, world.fetch) == version
    with world.open() as device:
        assert device.follow(world.out / MANIFEST_FILE, world.fetch) == 3  # signed is fine without a pinned key, too


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        (lambda content: resealed(content, lambda plain: plain["stable"].update(version=9)), "got other content"),
        (lambda content: resealed(content, lambda plain: plain.update(serial=10**9)), "got other content"),
        (lambda content: resealed(content, lambda plain: plain.pop("signature")), "pinned key, .*, got no signature"),
        (lambda content: content.replace(b'"serial":1', b'"serial":2'), "must have the sha256 it names"),
        (lambda content: content[: len(content) // 2], "must be JSON as it was written"),
        (lambda content: b"", "must be JSON as it was written"),
    ],
)
def test_a_forged_or_torn_manifest_changes_nothing(world: World, attack: Callable[[bytes], bytes], rule: str):
    world.publish(7)
    world.registry.promote(2, 100)
    world.registry.deliver(world.out, KEY)
    file = world.out / MANIFEST_FILE
    good = file.read_bytes()
    with Device(world.state, keys=PINNED) as device:
        file.write_bytes(attack(good))
        with pytest.raises(StateError, match=rule):
            device.follow(file, world.fetch)
        assert (device.shared.current(), world.fetched) == (BUNDLED, 0)
        file.write_bytes(good)
        assert device.follow(file, world.fetch) == 7


def test_another_registrys_key_and_an_older_signed_manifest_are_refused(world: World):
    world.publish(7), world.publish(8)
    file = world.out / MANIFEST_FILE
    with Device(world.state, keys=PINNED) as device:
        world.registry.promote(2, 100)
        world.registry.deliver(world.out, KEY)
        older = file.read_bytes()
        world.registry.promote(3, 100)
        world.registry.deliver(world.out, FOREIGN)
        with pytest.raises(StateError, match=r"manifest must be signed by a pinned key, .*, got key"):
            device.follow(file, world.fetch)
        world.registry.deliver(world.out, KEY)
        assert device.follow(file, world.fetch) == 8
        file.write_bytes(older)
        with pytest.raises(StateError, match="manifest must not be older than serial 2, got serial=1"):
            device.follow(file, world.fetch)
        assert device.shared.current().version == 8


def test_what_an_unsigned_manifest_said_does_not_shut_out_signed_ones(world: World):
    world.publish(7)
    world.registry.promote(2, 100)
    world.registry.deliver(world.out)
    file = world.out / MANIFEST_FILE
    file.write_bytes(resealed(file.read_bytes(), lambda plain: plain.update(serial=10**9)))
    with world.open() as device:
        device.follow(file, world.fetch)
    world.registry.deliver(world.out, KEY)
    with Device(world.state, keys=PINNED) as device:
        assert device.follow(file, world.fetch) == 7


def test_the_secret_stays_the_same_and_differs_between_devices(world: World):
    secrets = []
    for name in ("one", "one", "two"):
        with Device(world.state / name) as device:
            world.follow(device)
            secrets.append(device.history.get("rollout/secret") or "")
    assert secrets[0] == secrets[1] != secrets[2]
    assert len(bytes.fromhex(secrets[0])) == 32


def test_a_report_is_one_bit_charged_once_and_the_ledger_verifies(world: World):
    world.registry.start_count(TERMS)
    with world.open() as device:
        assert device.report() is None  # nothing was asked yet
        world.follow(device)
        for hit in (True, False, True, True, True, True):  # the last two are beyond the four that count
            device.counter.shown(hit)
        chances: list[float] = []

        class Watched(AesNoise):
            def poisson_mask(self, size: int, rate: float) -> Any:
                chances.append(rate)
                return super().poisson_mask(size, rate)

        report = device.report(Watched(bytes(32)))
        assert report is not None
        assert chances == [chance_of_one(3, TERMS)]
        assert (report.count, report.arm, report.version) == ("week-1", None, 3)
        assert device.report() == report
        device.counter.shown(True)
        assert device.ledger.spent("user").epsilon == pytest.approx(1.0)
        assert device.ledger.spent("window").epsilon == 0
    with world.open() as device:
        assert device.report() == report  # and in another session
    told = verify_ledger(world.state / "ledger.jsonl", b"")
    assert (told.charges, told.uncommitted) == (1, 0)
    intent = next(entry for entry in read_ledger(world.state / "ledger.jsonl")[1] if entry["state"] == "intent")
    assert intent["plan"] == {"count": "week-1", "epsilon": 1.0, "impressions": 4}
    shown = CliRunner().invoke(build_app(COMMANDS), ["ledger", "show", str(world.state)])
    assert "one bit at epsilon 1" in shown.stdout


def test_the_audit_accounts_for_reports_beside_trainings(world: World):
    with world.open() as device:
        for name in ("one", "two"):
            world.registry.start_count(CountTerms(count=name, epsilon=0.5))
            world.follow(device)
            assert device.report() is not None
            world.registry.stop_count()
        noised = event_to_json(user_level_event(1.0, 4.0, 1))
        device.ledger.charge(
            Charge(unit="user", event=noised, base_hash="b" * 64, adapter_version=3, plan=Plan(steps=1))
        )
    (promise,) = promises_of(open_subject(world.state))
    assert (promise.unit, promise.charges, promise.epsilon_once) == ("user", 3, None)
    assert promise.epsilon == pytest.approx(1.0 + epsilon(user_level_event(1.0, 4.0, 1), promise.dp_delta))
    assert all(check.passed for check in accountant_checks([promise]))


def test_a_budget_that_is_spent_refuses_the_report_and_charges_nothing(world: World):
    world.registry.start_count(TERMS)
    with world.open(budget=Budget(epsilon=0.9)) as device:
        world.follow(device)
        with pytest.raises(BudgetExceededError, match=r"epsilon per user must not exceed 0\.9"):
            device.report()
        assert device.ledger.spent("user").charges == 0


def test_a_lost_ledger_beside_a_report_is_no_fresh_budget(world: World):
    world.registry.start_count(TERMS)
    with world.open() as device:
        world.follow(device)
        device.report()
    (world.state / "ledger.jsonl").unlink()
    with pytest.raises(PrivacyError, match="ledger must be present beside what was trained"):
        world.open()


def test_forgetting_takes_the_counted_hits_and_the_report_but_not_the_charge(world: World):
    world.registry.start_count(TERMS)
    with world.open() as device:
        world.follow(device)
        device.counter.shown(True)
        device.report()
        device.counter.forget()
        assert not (world.state / "report").exists()
        assert device.report() is None  # one that was drawn is not drawn again
        assert device.ledger.spent("user").charges == 1


def test_another_adapter_starts_the_count_anew(world: World):
    world.publish(9)
    world.registry.start_count(TERMS)
    with world.open() as device:
        world.follow(device)
        device.counter.shown(True)
        world.follow(device)
        assert device.counter.counting is not None
        assert device.counter.counting.hits == 1
        world.registry.promote(2, 100)
        world.follow(device)
        assert device.counter.counting.hits == 0
        report = device.report()
    assert report is not None
    assert report.version == 9


def test_two_arms_get_what_their_experiment_says(world: World):
    world.publish(7), world.publish(8)
    world.registry.start_experiment(TERMS, a=2, b=3, percent=100)
    found = set()
    for number in range(14):
        with Device(world.state / str(number)) as device:
            version = world.follow(device)
            report = device.report()
            assert report is not None
            assert report.version == version
            found.add((report.arm, version))
    assert found == {("a", 7), ("b", 8)}  # all in one arm has a chance of 1 in 8,192


def test_a_kill_between_charge_and_report_costs_budget_never_a_second_bit_for_free(world: World):
    world.registry.start_count(TERMS)

    class Killed(AesNoise):
        def poisson_mask(self, size: int, rate: float) -> Any:
            raise KeyboardInterrupt

    with world.open() as device:
        world.follow(device)
        with pytest.raises(KeyboardInterrupt):
            device.report(Killed())
        spent = device.ledger.spent("user")
        assert (spent.charges, spent.uncommitted) == (1, 1)
        assert device.report() is not None
        assert device.ledger.spent("user").epsilon == pytest.approx(2.0)
