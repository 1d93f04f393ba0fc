"""``certs``, ``serve`` and ``join`` as a user types them, where they end at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.server.deployment import Deployment, ServeFolder
from ownlet.server.serve import Link
from ownlet.shared.flower_process import free_port
from ownlet.shared.manifest import read_manifest
from ownlet.simulations.join import held_node


def run(code: int, *arguments: object) -> str:
    result = CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_certs_writes_a_key_per_node_and_overwrites_nothing(tmp_path: Path) -> None:
    out = run(0, "certs", "--out", tmp_path, "--nodes", 2)
    assert f"{tmp_path / 'nodes' / 'node-1.pub'}\n" in out
    assert "For development" in out
    assert "must not be overwritten without --force" in run(2, "certs", "--out", tmp_path)
    run(0, "certs", "--out", tmp_path, "--force", "--nodes", 1)


def test_serve_says_what_is_missing(tmp_path: Path) -> None:
    certs, state = tmp_path / "certs", tmp_path / "state"
    always = ("serve", "--certs", certs, "--state", state, "--port", free_port())
    assert "one of base and bundle must be given" in run(2, *always)
    base = ("--base", tmp_path / "base.pt", "--noise-multiplier", 1)
    assert f"got no {certs / 'ca.crt'}" in run(2, *always, *base)
    run(0, "certs", "--out", certs, "--nodes", 1)
    assert "unit user must have --target-epsilon or --noise-multiplier" in run(2, *always, *base[:2])
    assert "seed must be none without --simulated" in run(2, *always, *base, "--set", "federation.seed=3")
    of_bundle = ("--bundle", tmp_path, "--noise-multiplier", 1, "--nodes", 3, "--secure-aggregation")
    assert "secure aggregation must go with a base" in run(2, *always, *of_bundle)
    missing = run(2, *always, *base)
    assert "base.pt" in missing
    assert not state.exists()


def test_serve_on_a_finished_run_says_so_and_starts_nothing(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def finish(folder: ServeFolder, link: Link, tell: Callable[[str], None]) -> None:
        started.append(Deployment.load(folder.settings).config.rounds)
        folder.mark_finished()

    monkeypatch.setattr("ownlet.server.serve.serve", finish)
    certs = tmp_path / "certs"
    run(0, "certs", "--out", certs, "--nodes", 1)
    window = read_manifest(tiny_bundle).windows.window_length
    always = (
        "serve", "--certs", certs, "--state", tmp_path / "state", "--port", free_port(), "--bundle", tiny_bundle,
        "--num-users", 9, "--noise-multiplier", 1, "--window-length", window,
    )  # fmt: skip
    assert "registry must be a folder" in run(2, *always, "--status-port", 0, "--registry", tmp_path / "none")
    assert "status port must be 0 to 65535, got status_port=99999" in run(2, *always, "--status-port", 99999)
    assert "This run is finished" not in run(0, *always, "--rounds", 3)
    assert "This run is finished" in run(0, *always, "--rounds", 3)
    assert "This run is finished" not in run(0, *always, "--rounds", 4)
    assert started == [3, 4]


def test_join_says_what_is_missing(tmp_path: Path) -> None:
    certs, state = tmp_path / "certs", tmp_path / "state"
    run(0, "certs", "--out", certs, "--nodes", 1)
    always = ("join", "--certs", certs, "--key", certs / "nodes" / "node-0", "--state", state)
    assert "server must be HOST:PORT" in run(2, *always, "--server", "localhost")
    there = ("--server", "localhost:1")
    assert "a node must have --base with --data, or --bundle with --device-state" in run(2, *always, *there)
    assert "partition" in run(2, *always, *there, "--partition", 3, "--partitions", 3, "--base", tmp_path / "base.pt")
    other = ("--key", tmp_path / "no-key")
    assert "key must be an OpenSSH private key" in run(2, *always, *there, *other)


def test_a_second_node_in_a_folder_with_ledgers_is_refused_at_once(tmp_path: Path) -> None:
    certs, state = tmp_path / "certs", tmp_path / "state"
    run(0, "certs", "--out", certs, "--nodes", 1)
    node = ("join", "--server", "localhost:1", "--certs", certs, "--key", certs / "nodes" / "node-0", "--state", state)
    with held_node(state):
        assert f"one node at a time must use {state}, got another" in run(2, *node, "--base", tmp_path, "--data", certs)
    assert "base must be" in run(2, *node, "--base", tmp_path, "--data", certs)  # the lock is free again
