"""What leaves a device, in every form: within C as the server reads it, and what was left out is added to the next."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ownlet.device.adapters import Shared
from ownlet.device.release import Release, check_terms, make_release, release_identity
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.coding import coded_bytes, decode, places_of_round
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.seal import Seal
from ownlet.shared.server_config import AdaptiveClip, NoisePlan
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack
from ownlet.shared.wire_config import FLOAT32, WireConfig

SPEC = AdapterSpec(
    layers=(LayerShape(name="layer", in_features=6, out_features=40),), rank=2, alpha=2.0, base_hash="b" * 64
)
SIZE = SPEC.num_trainable
SHARED = Shared(spec=SPEC, vector=np.linspace(-1, 1, SPEC.size, dtype=np.float32), version=3)
USER = FederationConfig(unit="user", clip_norm=0.5, noise_multiplier=4.0)
FORMS = [
    WireConfig(name="float16"),
    WireConfig(name="int8"),
    WireConfig(name="sparse", keep=0.25),
    WireConfig(name="float16", error_feedback=True),
    WireConfig(name="int8", error_feedback=True),
    WireConfig(name="sparse", keep=0.25, error_feedback=True),
]
EACH = pytest.mark.parametrize("wire", FORMS, ids=lambda wire: wire.name + ("-feedback" if wire.error_feedback else ""))
INT8, SPARSE = FORMS[4], FORMS[5]


def moved(norm: float) -> Vector:
    """Return an adapter that training has moved by this norm."""
    step = np.sin(np.arange(1, SIZE + 1)).astype(np.float32)
    trained = SHARED.vector.copy()
    trained[SPEC.trainable] += np.float32(norm / np.linalg.norm(step)) * step
    return trained


def delta(norm: float) -> Any:
    return (moved(norm) - SHARED.vector)[SPEC.trainable]


def released(
    norm: float,
    terms: FederationConfig,
    number: int | None = 1,
    before: Release | None = None,
    shared: Shared = SHARED,
) -> Release:
    return make_release(moved(norm), terms, shared, round_number=number, charge=7, before=before)


@EACH
@pytest.mark.parametrize("norm", [0.1, 5.0])
def test_what_the_server_reads_is_within_the_clip_norm_and_is_the_code(wire: WireConfig, norm: float) -> None:
    terms, before = replace(USER, wire=wire), None
    for number in range(1, 6):
        release = released(norm, terms, number, before)
        assert 0 < np.linalg.norm(release.delta.astype(np.float64)) <= 0.5 * (1 + 1e-6)
        if wire.is_coded:
            assert release.coded is not None
            assert len(release.coded) == coded_bytes(wire, SIZE)
            np.testing.assert_array_equal(decode(release.coded, wire, 0.5), release.delta)
        else:
            assert set(np.flatnonzero(release.delta)) <= set(places_of_round(wire, number, SIZE))
        before = release


@pytest.mark.parametrize("wire", [INT8, SPARSE], ids=lambda wire: wire.name)
def test_in_the_end_all_of_a_small_delta_is_sent_whatever_lay_in_the_outbox_between(
    tmp_path: Path, wire: WireConfig
) -> None:
    path, seal, total = tmp_path / "outbox", Seal(b"k" * 32), np.zeros(SIZE)
    for number in range(1, 9):
        release = released(0.01, replace(USER, wire=wire), number, Release.load(path, seal))
        release.save(path, seal)
        total += release.delta
        released(0.01, USER, number, Release.load(path, seal)).save(path, seal)  # another run's, without feedback
    kept = Release.load(path, seal)
    assert kept is not None
    assert kept.residual is not None
    assert kept.residual.any()
    np.testing.assert_allclose(total + kept.residual, 8 * delta(0.01), atol=1e-6)
    assert kept.residual.tobytes() not in path.read_bytes()


def test_what_was_left_out_enters_no_other_unit_and_no_other_coordinates() -> None:
    """Under ``window`` what is sent must have had its noise on the device; what is left under ``user`` has had none."""
    terms = replace(USER, wire=SPARSE)
    before = released(0.1, terms)
    assert before.residual is not None
    plan = Plan(noise_multiplier=1.0, clip_norm=0.1)
    window = FederationConfig(unit="window", plan=plan, clip_norm=0.5, wire=INT8)
    still = replace(terms, wire=replace(SPARSE, keep=1.0))
    nothing = Shared(spec=SPEC, vector=moved(0.1), version=4)  # training does not move it
    assert released(0.1, window, 2, before, nothing).delta.any() == np.False_
    assert not released(0.1, replace(still, unit="none"), 2, before, nothing).delta.any()
    turned = nothing.vector.copy()
    turned[0] += 1  # of A, which is frozen
    assert not make_release(
        turned, still, replace(nothing, vector=turned), round_number=2, charge=7, before=before
    ).delta.any()
    np.testing.assert_allclose(released(0.1, still, 2, before, nothing).delta, before.residual, atol=1e-7)


def test_a_count_says_whether_the_delta_was_within_the_clip_and_is_part_of_what_is_paid_for() -> None:
    terms = replace(USER, adaptive_clip=AdaptiveClip(quantile=0.5))
    assert (released(0.4, terms).count, released(0.6, terms).count) == (0.5, -0.5)
    assert released(0.4, USER).count is None
    assert released(0.4, terms).digest != released(0.4, USER).digest
    assert np.linalg.norm(released(0.6, terms).delta) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("wire", [FLOAT32, *FORMS], ids=lambda wire: wire.name)
def test_a_release_comes_back_from_the_outbox(tmp_path: Path, wire: WireConfig) -> None:
    counts = wire.name != "sparse"
    release = released(0.4, replace(USER, wire=wire, adaptive_clip=AdaptiveClip(quantile=0.5 * counts)))
    release.save(tmp_path / "outbox", Seal())
    found = Release.load(tmp_path / "outbox", Seal())
    assert found is not None
    for name, value in vars(release).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert found.digest == release.digest


def test_an_outbox_of_an_earlier_ownlet_is_read(tmp_path: Path) -> None:
    write_atomic(tmp_path / "outbox", pack({"delta": delta(0.1)}, {"identity": "i", "charge": "3"}))
    found = Release.load(tmp_path / "outbox", Seal())
    assert found is not None
    assert (found.charge, found.coded, found.count, found.residual) == (3, None, None, None)


def test_another_round_is_answered_by_the_same_update_unless_it_sends_other_numbers() -> None:
    for wire in (FLOAT32, INT8):
        terms = replace(USER, wire=wire)
        assert release_identity(terms, SHARED, 1) == release_identity(terms, SHARED, 2)
    sparse = replace(USER, wire=SPARSE)
    assert release_identity(sparse, SHARED, 1) != release_identity(sparse, SHARED, 2)


def test_what_a_device_on_its_own_cannot_do_is_refused_with_the_reason() -> None:
    windows = WindowConfig()
    sparse = replace(USER, wire=SPARSE, windows=windows)
    check_terms(sparse, windows, 1)
    with pytest.raises(ConfigError, match="round_number must be given where the wire is sparse"):
        check_terms(sparse, windows)
    blt = replace(USER, windows=windows, noise_plan=NoisePlan(name="blt", min_separation=10))
    with pytest.raises(ConfigError, match="no round of blt has noise that would cover it by itself"):
        check_terms(blt, windows, 1)
