"""The ServerApp of a deployed run: it reads a run's folder, tells how the rounds go, and leaves the outcome there.

It runs in a process that SuperLink starts, anew after every restart of the server. Status page and metrics are served
from this process, for as long as the rounds run: only it knows how they go.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from flwr.app import Context
from flwr.serverapp import ServerApp

from ownlet.server.app import ServerSetup, make_server_app
from ownlet.server.checkpoint import RoundResult
from ownlet.server.deployment import LOCK_SECONDS, STATE_VARIABLE, Deployment, ServeFolder, hold
from ownlet.server.early_stop import Judge
from ownlet.server.metrics import RunStatus
from ownlet.server.nodes import Presence
from ownlet.server.publication import PUBLICATION_FILE, leave_publication, spent_by
from ownlet.server.rounds import FederationResult
from ownlet.server.status import serve_status
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter, save_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.metrics import PublicQuality
from ownlet.shared.store import write_atomic

__all__ = ["Judging", "LoadJudging", "leave_outcome", "make_deployed_app", "setup_of", "write_rounds"]

_log = logging.getLogger("ownlet.server.deployed_app")


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Looks at adapters on held-out public users.

    Args:
        judge: after a round; see ``early_stop.Judge``.
        quality: NDCG@10 of the base and of an adapter (P,), which decide about its publication.
        length: the adapter (P,) on the way from the first of two (P,) to the second, or beyond it, and how far as a
            share of that way; it reads released adapters and public users only, so it costs no privacy.
    """

    judge: Judge
    quality: Callable[[Vector], PublicQuality]
    length: Callable[[Vector, Vector], tuple[Vector, float]]


_UNSCALED = (
    "unit window without public users (--base with --data): nobody chooses the length of the rounds' step, the adapter "
    "is left unscaled and may be below the base"
)

LoadJudging = Callable[[Mapping[str, Any], FederationConfig], Judging]


def make_deployed_app(load_judging: LoadJudging) -> ServerApp:
    """Return the ServerApp of a deployed run.

    Args:
        load_judging: makes the judging of a deployment that asks for it.
    """

    def load_setup(context: Context) -> ServerSetup:
        folder = ServeFolder(Path(os.environ[STATE_VARIABLE]))
        _tell_into(folder.log)
        _held.append(hold(folder.run_lock, LOCK_SECONDS))  # for as long as this process lives
        return setup_of(folder, load_judging)

    return make_server_app(load_setup)


def setup_of(folder: ServeFolder, load_judging: LoadJudging) -> ServerSetup:
    """Return what the run in a folder needs.

    Args:
        folder: with settings and the adapter of the start.
        load_judging: makes the judging, where it is asked for.
    """
    deployment = Deployment.load(folder.settings)
    spec, vector, first_version = load_adapter(folder.start)
    config = deployment.config
    judging = None if deployment.judging is None else load_judging(deployment.judging, config)
    status = RunStatus(config, f"ownlet serve: {folder.root.name}")
    if judging is None and config.unit == "window":
        _log.warning(_UNSCALED)
    if folder.checkpoint.exists():
        _log.info("going on from %s", folder.checkpoint)

    def on_round(result: RoundResult, vector: Vector) -> None:
        status.on_round(result, vector)
        _log.info(_in_words(result, config))

    def on_result(result: FederationResult) -> None:
        status.finish(result.stopped)
        write_rounds(folder.rounds, result.rounds)
        if result.stopped:
            _log.info("stopped: %s", result.stopped)
        _log.info(leave_outcome(folder, (spec, vector, first_version), config, result, judging))
        folder.mark_finished()

    return ServerSetup(
        config=config,
        spec=spec,
        vector=vector,
        num_users=deployment.num_users,
        checkpoint=folder.checkpoint,
        resume=True,
        on_round=on_round,
        judge=None if judging is None else judging.judge,
        presence=Presence(
            min_nodes=deployment.min_nodes,
            num_partitions=deployment.num_nodes,
            wait_seconds=deployment.wait_seconds,
            on_connected=status.connected,
        ),
        on_result=on_result,
        meanwhile=_status_served(deployment, status),
    )


def leave_outcome(
    folder: ServeFolder,
    start: tuple[AdapterSpec, Vector, int],
    config: FederationConfig,
    result: FederationResult,
    judging: Judging | None,
) -> str:
    """Write the adapter, with what the registry needs where public users judged it; say what was done.

    Args:
        folder: of the run.
        start: spec, vector (P,) and version of the adapter that the run began with.
        config: of the run.
        result: what the run ended with.
        judging: None where nothing is judged, so that the adapter cannot be published.
    """
    spec, first, first_version = start
    version = first_version + result.version
    told = f"adapter version {version} in {folder.adapter}"
    if judging is None:
        (folder.root / PUBLICATION_FILE).unlink(missing_ok=True)  # of an outcome that was judged
        save_adapter(folder.adapter, spec, result.vector, version=version)
        return f"{told}, not judged on public users" + (f"; {_UNSCALED}" if config.unit == "window" else "")
    vector, length = judging.length(first, result.vector)
    quality = judging.quality(vector)
    spent = spent_by(config, result)
    measured = f"NDCG@10 {quality.adapter:.4f} on held-out public users, base {quality.base:.4f}"
    if config.unit == "window":
        measured += f", best at {length:g} of the rounds' step"
    if length == 0:
        (folder.root / PUBLICATION_FILE).unlink(missing_ok=True)
        folder.adapter.unlink(missing_ok=True)
        return f"not published: public users found no part of the rounds' step better than the start, {measured}"
    left = leave_publication(
        folder.root,
        spec,
        vector,
        version=version,
        quality=quality.adapter,
        base_quality=quality.base,
        spent=spent,
    )
    return f"{told}: {measured}" if left else f"not published: the adapter is below the base, {measured}"


@contextmanager
def _status_served(deployment: Deployment, status: RunStatus) -> Iterator[None]:
    """Serve the status page where it is asked for, and say at which address."""
    if deployment.status_port is None:
        yield
        return
    with serve_status(status, port=deployment.status_port, registry=deployment.registry) as address:
        _log.info("status: %s", address)
        yield


def write_rounds(path: Path, rounds: tuple[RoundResult, ...]) -> None:
    """Write the records of rounds as JSON."""
    plain = [asdict(replace(record, clip_norm=min(record.clip_norm, 1e308))) for record in rounds]
    write_atomic(path, json.dumps(plain, indent=1).encode())


_held: list[IO[bytes]] = []


def _tell_into(path: Path) -> None:
    """Let everything that ownlet logs in this process go into a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("ownlet")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _in_words(result: RoundResult, config: FederationConfig) -> str:
    parts = [
        f"round {result.round} of {config.rounds}: asked {result.num_asked} users on {result.num_nodes} nodes",
        f"admitted {result.num_admitted} replies",
    ]
    if result.rejected or result.num_missing:
        parts.append(f"rejected {len(result.rejected)}, missing {result.num_missing}")
    if result.void:
        parts.append("void")
    if config.unit != "none":
        parts.append(f"epsilon {result.epsilon:.3f}")
    if result.quality is not None:
        parts.append(f"NDCG@10 on public users {result.quality:.4f}")
    return ", ".join([*parts, f"{result.seconds:.1f} s"])
