import json
import os
from dataclasses import replace

import pytest
from scipy.stats import chi2_contingency, kstest

from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import ConfigError, StateError
from ownlet.shared.rollout import Choice, Experiment, Manifest, Offer, choose, dump_manifest, parse_manifest, place
from ownlet.shared.sealed_json import sealed_json

STABLE, CANDIDATE, OTHER = (Offer(version=n, sha256=f"{n:x}" * 64, size=100 + n) for n in (1, 2, 3))
MANIFEST = Manifest(
    serial=7,
    base_hash="b" * 64,
    stable=STABLE,
    candidate=CANDIDATE,
    percent=20.0,
    salt="salt",
    experiment=Experiment(salt="pepper", percent=10.0, a=None, b=OTHER),
    count=CountTerms(count="test", impressions=10, epsilon=0.5),
)
ROLLOUT = replace(MANIFEST, experiment=None)
DEVICES = [index.to_bytes(32, "big") for index in range(4000)]


def test_a_manifest_survives_the_trip():
    assert parse_manifest(dump_manifest(MANIFEST)) == MANIFEST
    bare = Manifest(serial=0, base_hash="b" * 64)
    assert parse_manifest(dump_manifest(bare)) == bare


def test_places_are_uniform_over_devices():
    assert kstest([place(device, "salt", "rollout") for device in DEVICES], "uniform").pvalue > 0.001


def test_who_is_in_at_five_percent_is_in_at_twenty():
    def inside(percent: float) -> set[bytes]:
        manifest = replace(ROLLOUT, percent=percent)
        return {device for device in DEVICES if choose(manifest, device).offer == CANDIDATE}

    five, twenty = inside(5), inside(20)
    assert five < twenty
    assert len(five) / len(DEVICES) == pytest.approx(0.05, abs=0.014)  # four standard errors
    assert len(twenty) / len(DEVICES) == pytest.approx(0.2, abs=0.026)
    assert inside(100) == set(DEVICES)
    assert not inside(0)


def test_another_rollout_draws_other_devices():
    first, second = (
        [choose(replace(ROLLOUT, salt=salt), device).offer == CANDIDATE for device in DEVICES] for salt in ("x", "y")
    )
    both = sum(one and two for one, two in zip(first, second, strict=True))
    assert both / len(DEVICES) == pytest.approx(0.04, abs=0.013)


def test_arms_say_nothing_about_the_rollout():
    """Pearson's test of independence, on a table of arm by place in the rollout."""
    whole = replace(MANIFEST, experiment=Experiment(salt="pepper", percent=100.0, a=None, b=OTHER))
    table = [[0, 0], [0, 0]]
    for device in DEVICES:
        table[choose(whole, device).arm == "a"][choose(ROLLOUT, device).offer == CANDIDATE] += 1
    assert chi2_contingency(table).pvalue > 0.001
    assert sum(table[1]) / len(DEVICES) == pytest.approx(0.5, abs=0.032)


def test_an_experiment_goes_before_the_rollout_and_leaves_the_others_alone():
    arms = {"a": Choice(offer=None, arm="a"), "b": Choice(offer=OTHER, arm="b")}
    told = [choose(MANIFEST, device) for device in DEVICES]
    assert all(choice in arms.values() for choice in told if choice.arm)
    assert sum(choice.arm is not None for choice in told) / len(DEVICES) == pytest.approx(0.1, abs=0.019)
    outside = [(choice, choose(ROLLOUT, device)) for choice, device in zip(told, DEVICES, strict=True)]
    assert all(choice == plain for choice, plain in outside if choice.arm is None)


def test_a_pause_keeps_new_devices_out_and_takes_nothing_away():
    paused = replace(ROLLOUT, percent=100.0, paused=True)
    device = os.urandom(32)
    assert choose(paused, device, serving_version=1).offer == STABLE
    assert choose(paused, device, serving_version=2).offer == CANDIDATE


def test_an_altered_manifest_is_refused():
    content = dump_manifest(MANIFEST)
    with pytest.raises(StateError, match=r"manifest must be what the registry wrote: rollout\.json must have the sha"):
        parse_manifest(content.replace(b'"percent":20.0', b'"percent":90.0'))
    with pytest.raises(StateError, match="manifest must be what the registry wrote"):
        parse_manifest(content[:-5])


@pytest.mark.parametrize(
    "change",
    [
        {"percent": 101},
        {"percent": "5"},
        {"serial": -1},
        {"serial": 1.5},
        {"stable": {"version": 1, "sha256": "../../etc/passwd", "size": 5}},
        {"stable": {"version": 1, "size": 5}},
        {"stable": 5},
        {"surprise": 1},
        {"count": {"count": "../x", "impressions": 10, "epsilon": 1.0}},
        {"count": {"count": "x", "impressions": 10, "epsilon": 1000.0}},
    ],
)
def test_a_manifest_with_values_that_cannot_be_is_refused_even_if_its_hash_fits(change: dict[str, object]):
    plain = json.loads(dump_manifest(MANIFEST))
    del plain["sha256"]
    with pytest.raises(StateError, match="manifest must"):
        parse_manifest(sealed_json({**plain, **change}))


def test_a_short_secret_is_refused():
    with pytest.raises(ConfigError, match="secret must have at least 16 bytes, got length=4"):
        place(b"1234", "salt", "rollout")
