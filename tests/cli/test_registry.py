"""``ownlet registry`` as an operator types it, on what runs leave."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.server.publication import leave_publication
from ownlet.server.published import SpentOnce
from ownlet.shared.adapter import AdapterSpec, LayerShape
from ownlet.shared.counters import CountReport
from ownlet.shared.privacy import event_to_json, user_level_event
from ownlet.shared.rollout import parse_manifest

SPEC = AdapterSpec(layers=(LayerShape(name="l", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64)
SPENT = SpentOnce(unit="user", epsilon=2.0, dp_delta=1e-5, event=event_to_json(user_level_event(0.2, 4.0, 10)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two runs in it."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        run = tmp_path / "runs" / str(number)
        run.mkdir(parents=True)
        vector = np.full(SPEC.size, number, np.float32)
        leave_publication(run, SPEC, vector, version=30, quality=0.1 + number / 100, base_quality=0.1, spent=SPENT)
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(COMMANDS), ["registry", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refuse(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(COMMANDS), ["registry", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.output


def test_publish_promote_and_roll_back(folder: Path):
    assert run("publish", "runs/1").startswith(
        "Version 1 published: NDCG@10 0.1100 on public users, base 0.1000, ε 2.0"
    )
    assert json.loads(run("publish", "runs/2", "--json"))["number"] == 2
    assert "adapter must not be published already" in refuse("publish", "runs/2")
    assert run("promote", 1, "--percent", 100) == "All devices: version 1.\n"
    assert run("promote", 2, "--percent", 5) == "Version 2 on 5 % of devices; the others: version 1.\n"
    told = " ".join(run("list").split())
    assert "1 20" in told
    assert "the others" in told
    assert "5 %" in told
    plain = json.loads(run("list", "--json"))
    assert [version["parent"] for version in plain["versions"]] == [None, None]
    assert (plain["rollout"]["stable"], plain["rollout"]["candidate"], plain["damaged"]) == (1, 2, {})
    assert run("promote", 2, "--percent", 50).startswith("Version 2 on 50 %")
    assert "percent must not fall below 50" in refuse("promote", 2, "--percent", 5)
    assert "PAUSED: odd" in run("pause", "--why", "odd")
    assert run("resume") == "Version 2 on 50 % of devices; the others: version 1.\n"
    assert run("rollback", "--why", "complaints") == "All devices: version 1.\n"
    assert "version 2 taken back: complaints" in run("show")
    assert "All 2 published runs together, where they had the same devices: user ε = " in run("show", 2)
    assert json.loads(run("show", 1, "--json"))["sha256"] in run("show", 1)
    assert "version must be published and intact, got version 9" in refuse("show", 9)


def test_what_devices_fetch_is_delivered(folder: Path):
    run("publish", "runs/1")
    run("promote", 1, "--percent", 20)
    assert run("deliver", "out") == "out: manifest 1, 1 offered\n"
    manifest = parse_manifest((folder / "out" / "rollout.json").read_bytes())
    assert manifest.candidate is not None
    assert (folder / "out" / manifest.candidate.file).stat().st_size == manifest.candidate.size
    run("rollback")
    assert run("deliver", "out") == "out: manifest 2, 0 offered, 1 kept for devices that are fetching it\n"


def test_a_version_without_privacy_serves_only_where_that_is_said(folder: Path):
    run("publish", "runs/1")
    assert "together" not in run("list")
    run("publish", "runs/2")
    both = "All 2 published runs together, where they had the same devices: user ε = "
    vector = np.full(SPEC.size, 3, np.float32)
    (folder / "runs" / "3").mkdir()
    leave_publication(folder / "runs" / "3", SPEC, vector, version=30, quality=0.2, base_quality=0.1, spent=None)
    for told in (run("list"), run("show"), run("show", 1)):
        assert both in told
    assert run("publish", "runs/3").endswith("it is promoted only with --without-privacy.\n")
    for told in (run("list"), run("show"), run("show", 3)):
        assert "2 of 3 published runs together, where they had the same devices: user ε = " in told
        assert ", plus 1 run with no privacy (version 3): no ε holds for its devices\n" in told
    refused = "version must come from a run with privacy, or be allowed with --without-privacy, got version=3"
    assert refused in refuse("promote", 3, "--percent", 5)
    assert refused in refuse("count", "first", "--b", 3)
    assert run("promote", 3, "--percent", 5, "--without-privacy").startswith("Version 3 on 5 %")
    run("count", "first", "--b", 3, "--a", 1, "--without-privacy")


def test_an_experiment_from_count_to_verdict(folder: Path):
    run("publish", "runs/1")
    assert run("count", "first", "--b", 1, "--percent", 50, "--expected-reports", 2000) == (
        "count first started, version 1 against 0 on 50 % of devices; one bit of each device at ε = 1\n"
    )
    assert "another starts (`stop-count`), got running='first'\n" in refuse("count", "second")
    lines = [
        CountReport(
            count="first", arm=arm, version=30, bit=int(number % 3 >= least), id=f"{number:031x}{arm}"
        ).to_json()
        for arm, least in (("a", 2), ("b", 1))  # a third of the bits of arm a are 1, two thirds in arm b
        for number in range(900)
    ]
    (folder / "reports").write_text("\n".join([*lines, lines[0], "garbage"]))
    assert "1800 new, 1 repeated, 1 refused" in run("collect", "reports")
    assert "first: arm b is better" in run("verdict", "first")
    told = json.loads(run("verdict", "first", "--json"))
    assert (told["reports_a"], told["ones_a"], told["ones_b"]) == (900, 300, 600)
    assert run("stop-count", "--why", "clear") == "count first stopped\n"
    assert "count must be under way" in refuse("collect", "reports")


def test_a_fall_in_quality_pauses_the_rollout(folder: Path):
    run("publish", "runs/1")
    run("promote", 1, "--percent", 20)
    said = run("watch", "--baseline", 0.11, "--drop", 0.01, "--scale", 0.003, "--false-alarm-every", 1000)
    assert said == "quality watched from 0.11; a fall of 0.01 is found after about 1 values\n"
    assert "PAUSED" not in run("observe", 0.112, 0.109)
    assert "PAUSED: quality fell" in run("observe", 0.09, 0.09, 0.09)
    assert "rollout must not be paused" in refuse("promote", 1, "--percent", 50)
    assert "PAUSED" not in run("resume", "--why", "data bug")
    log = run("show")
    watched = "Quality, as `observe` is given it, is watched from 0.11 for a fall of 0.01: 0 values"
    assert run("watch").startswith(watched)  # shows, and disarms nothing
    assert watched in log
    assert run("show") == log
    assert "baseline must be given to start a watch, got --drop alone" in refuse("watch", "--drop", 0.02)
    assert "--stop must stand alone" in refuse("watch", "--stop", "--bits")
    assert run("watch", "--stop") == "quality not watched\n"
    assert run("watch") == "Quality is not watched.\n"


def test_a_watch_takes_one_kind_of_value_from_0_to_1(folder: Path):
    run("publish", "runs/1")
    assert "baseline must be in [0, 1], got baseline=1.5" in refuse("watch", "--baseline", 1.5)
    assert "quality must be watched (`registry watch --baseline`)" in refuse("observe", 0.4)
    assert run("watch", "--bits", "--baseline", 0.42).startswith("bits of devices watched from 0.42")
    before = json.loads(run("show", "--json"))
    assert "it takes bits of devices, which `registry collect` brings" in refuse("observe", 0.4)
    run("watch", "--baseline", 0.42)
    for value in (1.5, -0.1, "nan"):
        assert "watched value must be in [0, 1]" in refuse("observe", 0.4, "--", value)
    after = json.loads(run("show", "--json"))
    assert before["detector"]["of_bits"]
    assert not after["detector"]["of_bits"]
    assert after["watched"]["values"] == 0


def test_a_damaged_state_is_restored_with_a_serial_number_that_no_device_has_followed(folder: Path):
    state = folder / "registry" / "registry.json"
    run("publish", "runs/1")
    run("promote", 1, "--percent", 20)
    assert "must be damaged or lost to be restored" in refuse("restore")
    run("rollback", "--why", "complaints")
    run("deliver", "out")
    delivered = parse_manifest((folder / "out" / "rollout.json").read_bytes()).serial
    older = state.with_suffix(".old")
    older.write_bytes(state.read_bytes())
    for spoil in (lambda: state.write_text("{}"), state.unlink):
        spoil()
        assert "`ownlet registry restore` goes on from registry.json.bak" in refuse("list")
        assert (
            run("restore")
            == "Version 1 on 20 % of devices, PAUSED: restored from a copy; the others: the bundle's own adapter.\n"
        )
        run("deliver", "out")
        serial = parse_manifest((folder / "out" / "rollout.json").read_bytes()).serial
        assert serial > delivered
        delivered = serial
    state.write_text("{}")
    (folder / "registry" / "registry.json.bak").write_text("{}")
    assert "registry.json.bak must be" in refuse("restore")
    assert "above must be given with a copy of unknown age" in refuse("restore", "--from", older)
    assert json.loads(run("restore", "--from", older, "--above", 41, "--json"))["serial"] == 42


def test_a_run_that_was_not_publishable_is_refused(folder: Path):
    (folder / "runs" / "1" / "publication.json").unlink()
    assert "run folder must hold publication.json" in refuse("publish", "runs/1")
    assert "publish one of runs/2" in refuse("publish", "runs")
    assert "registry must be a folder" in refuse("list")


def test_a_signed_manifest_is_never_followed_by_an_unsigned_one(folder: Path):
    public_key = bytes.fromhex(run("keygen", "keys").split()[-1])
    assert (folder / "keys" / "rollout.key").stat().st_mode & 0o777 == 0o600
    assert (folder / "keys" / "rollout.pub").read_text() == public_key.hex() + "\n"
    assert "files must not be overwritten" in refuse("keygen", "keys")
    run("publish", "runs/1")
    run("promote", 1, "--percent", 20)
    run("deliver", "out")
    assert run("deliver", "out", "--key", "keys/rollout.key") == "out: manifest 1, signed, 1 offered\n"
    content = (folder / "out" / "rollout.json").read_bytes()
    assert parse_manifest(content, [public_key]) == parse_manifest(content)
    assert "key must be given where the manifest before was signed" in refuse("deliver", "out")
    assert (folder / "out" / "rollout.json").read_bytes() == content


def test_a_signing_key_that_others_may_read_or_that_is_none_is_refused(folder: Path):
    run("publish", "runs/1")
    run("keygen", "keys")
    key = folder / "keys" / "rollout.key"
    assert "must not lie in the folder that is handed out" in refuse("deliver", "keys", "--key", key)
    key.chmod(0o640)
    assert "its owner's alone (chmod 600), got mode 640" in refuse("deliver", "out", "--key", key)
    key.chmod(0o600)
    key.write_bytes(b"nothing")
    assert "Ed25519 key in PEM without password" in refuse("deliver", "out", "--key", key)
    assert "signing key must be readable" in refuse("deliver", "out", "--key", "nowhere")
    assert not (folder / "out").exists()
