"""The pieces of ``ownlet serve`` that need no SuperLink: what it checks, writes and submits."""

import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.run import Run

from ownlet.server.app import make_server_app
from ownlet.server.certificates import SERVER_CERT_FILE, make_certificates
from ownlet.server.checkpoint import RoundResult
from ownlet.server.control import public_key_bytes, wait_until_healthy
from ownlet.server.deployed_app import Judging, setup_of
from ownlet.server.deployment import Deployment, ServeFolder, hold, public_config
from ownlet.server.publication import PUBLICATION_FILE, read_publication
from ownlet.server.published import SpentOnce
from ownlet.server.registry import Registry
from ownlet.server.rounds import FederationResult
from ownlet.server.serve import Link, require_status_port
from ownlet.server.shim_app import write_shim_app
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector, load_adapter, save_adapter
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import ConfigError, DataError, FederationError, StateBusyError
from ownlet.shared.flower_process import free_port
from ownlet.shared.metrics import PublicQuality
from ownlet.shared.privacy import event_to_json, user_level_event
from ownlet.shared.secure_config import SecureConfig
from ownlet.simulations.grid import InProcessGrid, node_context

SPEC = AdapterSpec(
    layers=(LayerShape(name="layer", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64
)
SECURE = FederationConfig(secure=SecureConfig(enabled=True), noise_multiplier=1.0)
START = np.linspace(-1, 1, SPEC.size, dtype=np.float32)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, hosts=[], num_nodes=1)
    return folder


def link(certs: Path, port: int) -> Link:
    return Link(host="127.0.0.1", port=port, certs=certs, node_keys=sorted((certs / "nodes").glob("*.pub")))


def folder_of(path: Path, deployment: Deployment, version: int = 0) -> ServeFolder:
    folder = ServeFolder(path)
    save_adapter(folder.start, SPEC, START, version=version)
    deployment.save(folder.settings)
    return folder


def test_a_port_that_is_taken_is_named(certs: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=f"must be free on this machine, got 127.0.0.1:{other.getsockname()[1]}"):
            link(certs, other.getsockname()[1]).check(wait_seconds=0.0)
    link(certs, free_port()).check()


def test_a_missing_certificate_and_a_key_that_is_none_are_named(certs: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"got no .*ca.crt"):
        link(tmp_path, free_port()).check()
    make_certificates(tmp_path, hosts=[], num_nodes=1)
    (tmp_path / "nodes" / "node-0.pub").write_text("ssh-rsa nonsense")
    with pytest.raises(ConfigError, match=r"node key must be an OpenSSH public key, got .*node-0.pub"):
        link(tmp_path, free_port()).check()
    (tmp_path / "nodes" / "node-0.pub").unlink()
    with pytest.raises(ConfigError, match="node keys must be at least one"):
        link(tmp_path, free_port()).check()
    (tmp_path / SERVER_CERT_FILE).unlink()
    with pytest.raises(ConfigError, match=r"got no .*server.crt"):
        link(tmp_path, free_port()).check()


def test_a_node_key_is_registered_in_the_form_that_flower_compares(certs: Path):
    assert public_key_bytes(certs / "nodes" / "node-0.pub").startswith(b"-----BEGIN PUBLIC KEY-----")


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(certs: Path):
    with pytest.raises(FederationError, match="SuperLink must answer at"):
        wait_until_healthy(f"127.0.0.1:{free_port()}", certs / "ca.crt", 0.1)
    with pytest.raises(FederationError, match="SuperLink must answer at"):
        wait_until_healthy(f"127.0.0.1:{free_port()}", certs / "ca.crt", 60.0, is_alive=lambda: False)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr 1.41 with pathspec 1.1
def test_the_app_that_is_submitted_is_small_valid_and_carries_the_public_configuration(tmp_path: Path):
    deployment = Deployment(config=FederationConfig(), num_users=9, num_nodes=3)
    told = public_config(deployment, SPEC)
    write_shim_app(tmp_path, told)
    assert load_and_validate(tmp_path / "pyproject.toml")[1] == []  # no warnings
    content = build_fab_from_disk(tmp_path)
    assert len(content) < 20_000
    assert get_fused_config_from_fab(content, Run.create_empty(run_id=1)) == told
    assert AdapterSpec.from_json(str(told["adapter-spec"])) == SPEC
    assert told["ranks"] == ""
    assert public_config(replace(deployment, config=FederationConfig(ranks=(2, 1, 1))), SPEC)["ranks"] == "2,1,1"


def test_a_deployment_comes_back_from_its_file(tmp_path: Path):
    deployment = Deployment(
        config=FederationConfig(clip_norm=0.2, rounds=7), num_users=9, num_nodes=3, min_nodes=2, judging={"a": 1},
        status_port=0, registry=tmp_path,
    )  # fmt: skip
    deployment.save(tmp_path / "serve.json")
    assert Deployment.load(tmp_path / "serve.json") == deployment
    (tmp_path / "serve.json").write_text("{}")
    with pytest.raises(FederationError, match="must be readable"):
        Deployment.load(tmp_path / "serve.json")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"min_nodes": 4}, "min_nodes must be from 1 to 3"),
        ({"num_users": 0}, "num_users must be at least 1"),
        ({"registry": Path("registry")}, "registry must go with a status port"),
        ({"config": SECURE, "num_nodes": 2}, "nodes must be at least 3 under secure aggregation"),
        ({"config": SECURE, "min_nodes": 2}, "min_nodes must be at least 3 under secure aggregation"),
        ({"config": FederationConfig(ranks=(4, 2))}, "nodes must be a multiple of the 2 ranks"),
        ({"config": FederationConfig(patience=2)}, "judging data must be given"),
    ],
)
def test_a_deployment_that_cannot_run_is_refused(changes: dict[str, object], rule: str):
    with pytest.raises(ConfigError, match=rule):
        Deployment(**{"config": FederationConfig(), "num_users": 9, "num_nodes": 3, **changes})  # type: ignore[arg-type]


def test_the_outcome_is_written_with_a_version_above_that_of_the_start(tmp_path: Path):
    folder = folder_of(tmp_path, Deployment(config=FederationConfig(), num_users=9, num_nodes=3), version=5)
    setup = setup_of(folder, lambda values, config: pytest.fail("nothing is judged here"))
    assert setup.presence is not None
    assert (setup.resume, setup.num_users, setup.presence.num_partitions) == (True, 9, 3)
    assert setup.on_result is not None
    setup.on_result(
        FederationResult(vector=START + 1, version=2, rounds=(RECORD,), epsilon=1.0, stopped=None, event=NOTHING)
    )
    spec, vector, version = load_adapter(folder.adapter)
    assert (spec, version) == (SPEC, 7)
    np.testing.assert_array_equal(vector, START + 1)
    assert '"admitted": [\n   0,\n   2\n  ]' in folder.rounds.read_text()
    assert folder.is_finished
    Deployment(config=FederationConfig(rounds=99), num_users=9, num_nodes=3).save(folder.settings)
    assert not folder.is_finished  # more rounds were asked for: it goes on


def judged(base: float, adapter: float) -> Judging:
    return Judging(
        judge=lambda number, vector: 0.0,
        quality=lambda vector: PublicQuality(base=base, adapter=adapter),
        length=lambda start, vector: (vector, 1.0),
    )


JUDGED = Deployment(config=FederationConfig(), num_users=9, num_nodes=3, judging={"x": 1})
RESULT = FederationResult(
    vector=START, version=2, rounds=(), epsilon=1.0, stopped=None, event=event_to_json(user_level_event(0.2, 1.0, 2))
)


def finished(folder: ServeFolder, judging: Judging) -> None:
    setup = setup_of(folder, lambda values, config: judging)
    assert setup.judge is judging.judge
    assert setup.on_result is not None
    setup.on_result(RESULT)


def test_an_adapter_that_is_not_below_the_base_can_be_published_by_the_registry(tmp_path: Path):
    folder = folder_of(tmp_path / "run", JUDGED, version=5)
    finished(folder, judged(0.25, 0.25))
    publication = read_publication(folder.root)
    assert (publication.quality, publication.base_quality) == (0.25, 0.25)
    assert publication.spent == SpentOnce(unit="user", epsilon=1.0, dp_delta=1e-5, event=RESULT.event)
    assert publication.content == folder.adapter.read_bytes()
    assert load_adapter(folder.adapter)[2] == 7
    published = Registry(tmp_path / "registry").publish(publication)
    assert published.quality == 0.25


def test_an_adapter_below_the_base_is_not_published_and_takes_an_older_outcome_along(tmp_path: Path):
    folder = folder_of(tmp_path, JUDGED)
    finished(folder, judged(0.25, 0.3))
    assert folder.adapter.exists()
    finished(folder, judged(0.25, 0.2499))
    assert not folder.adapter.exists()
    assert not (tmp_path / PUBLICATION_FILE).exists()


def test_an_adapter_that_nobody_judged_is_left_but_cannot_be_published(tmp_path: Path):
    folder = folder_of(tmp_path, JUDGED)
    finished(folder, judged(0.25, 0.3))
    replace(JUDGED, judging=None).save(folder.settings)
    setup = setup_of(folder, lambda values, config: pytest.fail("nothing is judged here"))
    assert setup.on_result is not None
    setup.on_result(RESULT)
    assert folder.adapter.exists()
    with pytest.raises(DataError, match=r"run folder must hold publication\.json"):
        read_publication(folder.root)


WINDOW = FederationConfig(
    unit="window", noise_multiplier=0.0, plan=Plan(steps=1, clip_norm=0.1, noise_multiplier=1.0), clip_norm=0.4
)
MOVED = replace(RESULT, vector=START + 2)


def halved(base: float, adapter: float, length: float) -> Judging:
    """Public users who like only a part of the way, and judge that part."""

    def quality(vector: Vector) -> PublicQuality:
        np.testing.assert_allclose(vector, START + 2 * length, atol=1e-6)
        return PublicQuality(base=base, adapter=adapter)

    return replace(
        judged(base, adapter), length=lambda start, end: (start + length * (end - start), length), quality=quality
    )


def window_outcome(folder: ServeFolder, judging: Judging | None, caplog: pytest.LogCaptureFixture) -> str:
    """Let a window-level run end, and return what it told."""
    replace(JUDGED, config=WINDOW, judging=None if judging is None else {"x": 1}).save(folder.settings)
    with caplog.at_level("INFO", "ownlet"):
        setup = setup_of(folder, lambda values, config: judging or pytest.fail("nothing is judged here"))
        assert setup.on_result is not None
        setup.on_result(MOVED)
    return caplog.text


def test_public_users_choose_how_far_a_window_level_run_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = folder_of(tmp_path, JUDGED, version=5)
    told = window_outcome(folder, halved(0.25, 0.26, 0.5), caplog)
    np.testing.assert_allclose(load_adapter(folder.adapter)[1], START + 1, atol=1e-6)
    assert read_publication(tmp_path).quality == 0.26
    assert "best at 0.5 of the rounds' step" in told
    assert "unscaled" not in told


def test_a_window_level_run_that_public_users_like_no_part_of_is_not_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = folder_of(tmp_path, JUDGED)
    window_outcome(folder, halved(0.25, 0.26, 1.0), caplog)
    assert folder.adapter.exists()
    assert "not published: public users found no part" in window_outcome(folder, halved(0.25, 0.25, 0.0), caplog)
    assert not folder.adapter.exists()
    assert not (tmp_path / PUBLICATION_FILE).exists()


def test_a_window_level_run_without_public_users_says_at_both_ends_that_it_is_unscaled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = folder_of(tmp_path, JUDGED)
    told = window_outcome(folder, None, caplog)
    assert told.count("nobody chooses the length of the rounds' step, the adapter is left unscaled") == 2
    np.testing.assert_array_equal(load_adapter(folder.adapter)[1], START + 2)


def metrics_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


class LookingGrid(InProcessGrid):
    """Looks at the run's metrics when the first round begins, and fails."""

    def __init__(self, folder: ServeFolder, port: int) -> None:
        super().__init__(ClientApp(), 1)
        self.folder, self.port, self.seen = folder, port, ""

    def get_node_ids(self) -> list[int]:
        self.seen = metrics_of(self.port)
        with pytest.raises(ConfigError, match=f"status port must be free on this machine, got 127.0.0.1:{self.port}"):
            require_status_port(self.folder, link_port=1)
        raise FederationError("a round that fails")


def test_the_process_of_the_rounds_serves_their_metrics_and_frees_the_port_also_where_they_fail(tmp_path: Path):
    port = free_port()
    sampled = FederationConfig(cohort_rate=1)  # a round of nobody would end, and be counted, without a look at nodes
    deployment = Deployment(config=sampled, num_users=9, num_nodes=3, status_port=port, registry=tmp_path / "registry")
    folder = folder_of(tmp_path, deployment)
    setup = setup_of(folder, lambda values, config: pytest.fail("nothing is judged here"))
    assert setup.on_round is not None
    setup.on_round(RECORD, START)
    grid = LookingGrid(folder, port)
    with pytest.raises(FederationError, match="a round that fails"):
        make_server_app(lambda context: setup)(grid, node_context(0, 1))
    assert "\nownlet_round 1\n" in grid.seen
    require_status_port(folder, link_port=1)
    with pytest.raises(ConfigError, match="must be another one than --port"):
        require_status_port(folder, link_port=port)


def test_one_server_at_a_time_runs_in_a_folder(tmp_path: Path):
    with (
        hold(tmp_path / "lock", 0.0),
        pytest.raises(StateBusyError, match="one server at a time"),
    ):
        hold(tmp_path / "lock", 0.0)
    hold(tmp_path / "lock", 0.0).close()


NOTHING = '{"kind":"none"}'
RECORD = RoundResult(
    round=1, version=1, void=False, num_asked=4, num_nodes=3, num_admitted=2, rejected=(), num_missing=1, epsilon=1.0,
    update_norm=0.1, seconds=2.0, clip_norm=0.3, admitted=(0, 2),
)  # fmt: skip
