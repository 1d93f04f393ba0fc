"""What ``ownlet serve`` prepares: the adapter of the start, the settings, and the app that is submitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ownlet.server.deployment import Deployment, ServeFolder, public_config
from ownlet.server.shim_app import write_shim_app
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter, save_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.manifest import ADAPTER_FILE, read_manifest
from ownlet.shared.methods import rounds_for
from ownlet.shared.ranks import check_ranks
from ownlet.simulations.deployed_server import JudgingConfig
from ownlet.simulations.federated_run import FederatedRunConfig
from ownlet.simulations.fleet import fleet_of_data
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.progress import Silent
from ownlet.simulations.start import start_adapter

__all__ = ["prepare_server", "without_default_seed"]


def prepare_server(
    folder: ServeFolder,
    config: FederatedRunConfig,
    *,
    bundle: Path | None,
    num_users: int | None,
    min_nodes: int | None,
    wait_seconds: float,
    simulated: bool,
    status_port: int | None = None,
    registry: Path | None = None,
) -> Deployment:
    """Write what the server's processes read; in a folder with a run, check that it is the same one.

    Args:
        folder: of the run.
        config: base, judging data, adapter and federation, as ``ownlet simulate`` takes them; its nodes are partitions.
        bundle: in place of the base: the run starts from its adapter.
        num_users: N; by default the devices of the judging data.
        min_nodes: how many nodes a round waits for; by default the quorum of all.
        wait_seconds: how long.
        simulated: whether the run may have a seed.
        status_port: of status page and metrics; None serves neither.
        registry: to show on that page.

    Raises:
        ConfigError: something is missing or does not fit, or the folder is of another run.
    """
    federation = rounds_for(config.adapter, config.federation)
    require(
        federation.seed is None or simulated,
        "seed must be none without --simulated: who knows it can take the noise away again",
        seed=federation.seed,
    )
    secure = federation.secure.enabled
    no_ranks = bundle is None or not federation.ranks
    require(no_ranks, "ranks must be equal with a bundle, whose program trains all of it", ranks=federation.ranks)
    require(not (secure and bundle), "secure aggregation must go with a base: one device takes no part", bundle=bundle)
    spec, vector, version = _start_of_bundle(bundle, federation) if bundle is not None else _start(config)
    check_ranks(spec, federation.ranks)
    judging = None
    if bundle is None and (config.data.path is not None or simulated):
        chosen = JudgingConfig(
            base=config.base, data=config.data, spec=spec.to_json(), evaluate_every=config.evaluate_every
        )
        judging = chosen.to_plain()
        fleet = fleet_of_data(config.data, config.base, load_base(config.base))  # refused here, not by the server later
        num_users = num_users or fleet.num_users
    if num_users is None:
        raise ConfigError("num_users must be given where no judging data says it, got num_users=None")
    deployment = Deployment(
        config=federation,
        num_users=num_users,
        num_nodes=config.num_nodes,
        min_nodes=min_nodes or max(3 if secure else 1, round(federation.quorum * config.num_nodes)),
        wait_seconds=wait_seconds,
        judging=judging,
        status_port=status_port,
        registry=None if registry is None else registry.resolve(),
    )
    folder.root.mkdir(parents=True, exist_ok=True)
    if folder.start.exists():
        old_spec, old_vector, _ = load_adapter(folder.start)
        if old_spec != spec or not (old_vector == vector).all():
            raise ConfigError(f"state must be of the same run, got another adapter of the start in {folder.root}")
    save_adapter(folder.start, spec, vector, version=version)
    deployment.save(folder.settings)
    write_shim_app(folder.app, public_config(deployment, spec))
    return deployment


def _start(config: FederatedRunConfig) -> tuple[AdapterSpec, Vector, int]:
    model = load_base(config.base)
    spec = attach_adapter(model, config.adapter)
    seed = config.federation.seed or 0
    learned = config.adapter.method == "iak"
    public = fleet_of_data(config.data, config.base, model).public if learned else ()
    windows = config.federation.windows
    start = start_adapter(config.adapter, config.compression, model, spec, public, windows, seed, Silent())
    return spec, start, 0


def _start_of_bundle(bundle: Path, federation: FederationConfig) -> tuple[AdapterSpec, Vector, int]:
    manifest = read_manifest(bundle)
    require(federation.windows == manifest.windows, "windows must be the bundle's", windows=federation.windows)
    return load_adapter(bundle / ADAPTER_FILE, base_hash=manifest.base_hash)


def without_default_seed(config: FederatedRunConfig, given: frozenset[str]) -> FederatedRunConfig:
    """Return the settings without the default seed of a simulation, unless somebody gave it."""
    if "federation.seed" in given:
        return config
    return replace(config, federation=replace(config.federation, seed=None))
