import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ownlet.server.drift import DropDetector
from ownlet.server.publication import PUBLICATION_FILE, leave_publication, read_publication
from ownlet.server.published import Publication, SpentOnce, spent_together
from ownlet.server.registry import Registry
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector, dump_adapter, parse_adapter
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import AdapterError, ConfigError, DataError, StoreError
from ownlet.shared.privacy import epsilon, event_to_json, user_level_event
from ownlet.shared.rollout import MANIFEST_FILE, parse_manifest

SPEC = AdapterSpec(layers=(LayerShape(name="l", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64)
EVENT = user_level_event(0.2, 4.0, 10)


def vector(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(SPEC.size).astype(np.float32)


def publication(seed: int, *, version: int = 10, quality: float = 0.12, spec: AdapterSpec = SPEC) -> Publication:
    spent = SpentOnce(unit="user", epsilon=epsilon(EVENT, 1e-5), dp_delta=1e-5, event=event_to_json(EVENT))
    content = dump_adapter(spec, vector(seed), version=version)
    return Publication(content=content, quality=quality, base_quality=0.1, spent=spent, source=f"runs/{seed}")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with three published versions."""
    registry = Registry(tmp_path / "registry", clock=lambda: 1_700_000_000.0)
    for seed in range(3):
        registry.publish(publication(seed))
    return registry


def test_a_published_version_says_where_it_comes_from_and_what_it_cost(registry: Registry):
    registry.promote(1, 100)
    published = registry.publish(publication(7, version=40))
    assert (published.number, published.parent, published.created) == (4, 1, 1_700_000_000.0)
    assert (published.quality, published.base_quality, published.base_hash) == (0.12, 0.1, "b" * 64)
    assert published.spent == publication(7).spent
    content = registry.adapter(4)
    assert published.size == len(content)
    spec, found, version = parse_adapter(content)
    assert (spec, version) == (SPEC, published.adapter_version)
    assert np.array_equal(found, vector(7))
    assert Registry(registry.folder).version(4) == published


def test_adapter_versions_rise_so_that_devices_adopt_each_of_them(registry: Registry):
    assert [version.adapter_version for version in registry.versions()] == [10, 11, 12]
    assert registry.publish(publication(8, version=40)).adapter_version == 40


def test_an_adapter_below_the_base_on_public_users_is_never_published(registry: Registry):
    for quality in (0.0999, math.nan):
        with pytest.raises(AdapterError, match=r"adapter must not be below the base on public users, 0\.1000, got"):
            registry.publish(publication(9, quality=quality))
    assert len(registry.versions()) == 3


def test_what_is_there_already_or_of_another_base_is_refused(registry: Registry):
    with pytest.raises(AdapterError, match="adapter must not be published already, got that of version 2"):
        registry.publish(publication(1, version=99))
    with pytest.raises(AdapterError, match="adapter must have the base, layers and rank of those in the registry"):
        registry.publish(publication(9, spec=replace(SPEC, base_hash="c" * 64)))
    assert len(registry.versions()) == 3


def test_a_rollout_rises_to_stable_and_comes_back(registry: Registry):
    registry.promote(1, 100)
    begun = registry.promote(2, 5)
    wider = registry.promote(2, 20)
    assert wider.salt == begun.salt  # so whoever was in stays in
    assert registry.promote(2, 100).stable == 2
    assert registry.promote(3, 50).salt not in ("", begun.salt)
    taken_back = registry.rollback("complaints")
    assert (taken_back.stable, taken_back.candidate, taken_back.percent) == (2, 0, 0)
    assert registry.rollback().stable == 1
    assert registry.rollback().stable == 0
    with pytest.raises(ConfigError, match="rollback must have an earlier version, got stable=0"):
        registry.rollback()
    log = [entry.what for entry in registry.rollout().log]
    assert log[-3:] == [
        "version 3 taken back",
        "version 2 taken back, version 1 stable",
        "version 1 taken back, the bundle's adapter stable",
    ]
    assert registry.rollout().serial == len(log) == 8
    assert len(registry.versions()) == 3  # nothing is ever deleted


@pytest.mark.parametrize(
    ("number", "percent", "message"),
    [
        (2, 0, r"percent must be in \(0, 100\]"),
        (2, 101, r"percent must be in \(0, 100\]"),
        (2, math.nan, r"percent must be in \(0, 100\]"),
        (1, 50, "version must not be the stable one already"),
        (3, 50, "version must be 2, whose rollout is under way"),
        (2, 10, "percent must not fall below 20"),
    ],
)
def test_a_promotion_that_breaks_a_rule_changes_nothing(registry: Registry, number: int, percent: float, message: str):
    registry.promote(1, 100)
    before = registry.promote(2, 20)
    with pytest.raises(ConfigError, match=message):
        registry.promote(number, percent)
    assert registry.rollout() == before


def test_a_pause_holds_promotions_until_it_ends(registry: Registry):
    registry.promote(1, 20)
    assert registry.pause("looks odd").paused == "looks odd"
    assert registry.manifest().paused
    with pytest.raises(ConfigError, match=r"rollout must not be paused .*, got paused='looks odd'"):
        registry.promote(1, 50)
    registry.resume("it was the dashboard")
    assert registry.promote(1, 50).percent == 50
    assert [entry.why for entry in registry.rollout().log] == ["", "looks odd", "it was the dashboard", ""]


def test_the_detector_pauses_the_rollout_and_says_why(registry: Registry):
    registry.promote(1, 20)
    detector = DropDetector(baseline=0.11, drop=0.01, scale=0.003, false_alarm_every=1000)
    registry.watch(detector)
    assert not registry.observe([0.112, 0.108, 0.111]).paused
    after = registry.observe([0.09, 0.09])
    assert after.paused.startswith("quality fell: value 4 since the watch began")
    assert registry.observe([0.09]).log == after.log  # told once
    assert registry.resume().watched.values == 0


def test_the_manifest_names_what_devices_may_fetch(registry: Registry, tmp_path: Path):
    registry.promote(1, 100)
    registry.promote(2, 20)
    registry.start_experiment(CountTerms(count="first"), a=1, b=3, percent=10.0)
    manifest = registry.deliver(tmp_path / "out")
    assert parse_manifest((tmp_path / "out" / MANIFEST_FILE).read_bytes()) == manifest
    offers = {registry.version(number).offer for number in (1, 2, 3)}
    experiment = manifest.experiment
    assert experiment is not None
    assert {manifest.stable, manifest.candidate, experiment.b} == offers
    for offer in offers:
        assert len((tmp_path / "out" / offer.file).read_bytes()) == offer.size
    registry.stop_count("enough")
    assert registry.manifest().count is None
    with pytest.raises(ConfigError, match="count must have a name that was not used before, got count='first'"):
        registry.start_count(CountTerms(count="first"))


def test_damage_is_named_and_keeps_what_is_intact(registry: Registry):
    registry.promote(2, 20)
    file = registry.folder / "versions" / "000002" / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [version.number for version in registry.versions()] == [1, 3]
    assert [damage.number for damage in registry.damaged()] == [2]
    for refused in (lambda: registry.promote(2, 50), registry.manifest):
        with pytest.raises(StoreError, match="version must be published and intact, got version 2"):
            refused()
    assert registry.rollback("damaged").candidate == 0


def test_a_state_that_was_altered_or_lost_is_an_error_not_a_fresh_start(registry: Registry):
    registry.promote(1, 100)
    file = registry.folder / "registry.json"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"stable":1', b'"stable":2'))
    with pytest.raises(StoreError, match=r"registry\.json must have the sha256 it names, got an altered file"):
        registry.rollout()
    file.unlink()
    with pytest.raises(StoreError, match=r"registry\.json must be beside published versions, got none"):
        registry.promote(1, 50)
    file.write_bytes(content)
    assert registry.rollout().stable == 1


def _publish_some(folder: str, first: int) -> None:
    for seed in range(first, first + 4):
        Registry(Path(folder)).publish(publication(seed))


def test_processes_that_publish_at_once_lose_nothing(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_publish_some, args=(str(tmp_path / "r"), 100 * at)) for at in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    versions = Registry(tmp_path / "r").versions()
    assert [version.number for version in versions] == list(range(1, 13))
    assert len({version.adapter_version for version in versions}) == 12


def test_runs_over_the_same_devices_add_up_by_their_events(registry: Registry):
    together = spent_together(registry.versions(), 1e-5)
    assert together == {"user": pytest.approx(epsilon(user_level_event(0.2, 4.0, 30), 1e-5))}
    registry.publish(replace(publication(8), spent=None))
    assert spent_together(registry.versions(), 1e-5) == {"user": math.inf}


def test_a_run_leaves_its_adapter_and_what_the_registry_needs_to_know(tmp_path: Path):
    spent = publication(0).spent
    kept = leave_publication(tmp_path, SPEC, vector(0), version=7, quality=0.2, base_quality=0.2, spent=spent)
    assert kept == tmp_path / "adapter.safetensors"
    found = read_publication(tmp_path)
    assert (found.quality, found.base_quality, found.spent) == (0.2, 0.2, spent)
    assert parse_adapter(found.content)[2] == 7
    left = leave_publication(tmp_path, SPEC, vector(0), version=7, quality=0.1, base_quality=0.2, spent=None)
    assert left is None
    assert not kept.exists()
    with pytest.raises(DataError, match=r"run folder must hold publication\.json, .* got none"):
        read_publication(tmp_path)


def test_an_adapter_that_the_run_did_not_measure_is_refused(tmp_path: Path):
    leave_publication(tmp_path, SPEC, vector(0), version=7, quality=0.2, base_quality=0.1, spent=None)
    (tmp_path / "adapter.safetensors").write_bytes(dump_adapter(SPEC, vector(1), version=7))
    with pytest.raises(DataError, match=r"adapter\.safetensors must be the one that the run measured"):
        read_publication(tmp_path)
    document = tmp_path / PUBLICATION_FILE
    document.write_text(json.dumps({**json.loads(document.read_text()), "quality": 0.3}))
    with pytest.raises(DataError, match="published run must be readable"):
        read_publication(tmp_path)
