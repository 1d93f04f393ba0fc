"""The state of a federated run, and its one file.

The file is replaced in one step after every round, so a crash leaves the state after a whole round. Cohorts and noise
of a seeded run are derived from the seed and the round's number, so no generator state is needed to go on equally.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ownlet.server.cohorts import draw_groups
from ownlet.server.correlated_noise import NoiseState, factor_of, realised_multiplier
from ownlet.server.noise_factor import Factor
from ownlet.server.optimizer import OptimizerState
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError
from ownlet.shared.privacy import compose_events, event_to_json, user_level_event, user_turns_event, window_level_event
from ownlet.shared.store import write_atomic

if TYPE_CHECKING:
    from dp_accounting import DpEvent

__all__ = ["RoundResult", "ServerState", "load_checkpoint", "save_checkpoint", "spent_event"]

_FORMAT = "ownlet-federation-3"
_MAY_CHANGE = ("rounds", "target_epsilon", "reply_timeout_seconds", "quorum")  # a resumed run may go on longer


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What is known of a finished round. Every number is public, or noised.

    Args:
        round: counted from 1.
        version: of the adapter after the round.
        void: the quorum was not met and nothing changed but the privacy that is charged.
        num_asked: users in the cohort.
        num_nodes: nodes that host them.
        num_admitted: nodes whose reply entered the adapter.
        rejected: why each other reply did not.
        num_missing: nodes that were not connected or did not answer in time.
        epsilon: spent so far, this round included, at the config's ``dp_delta`` and in its unit.
        update_norm: L2 norm of the released (noised) average delta; 0 in a void round.
        seconds: how long the round took, evaluation not counted.
        clip_norm: the bound on each user's delta in this round; infinity where there was none.
        quality: of the adapter on held-out public users, where this round was judged.
        noise_multiplier: sigma that the round is charged with, where it is known only afterwards (secure aggregation).
        server_epsilon: spent so far against a server that sees each round's sum and knows who was asked; there, too.
        bytes_up: of the arrays in the replies that were admitted; not counted under secure aggregation.
        bytes_down: of the arrays in the requests; there not, too.
        admitted: partitions whose reply entered the adapter, where the server sees single replies.
        num_late: replies to earlier rounds that came in this one and were refused; not counted there, too.
    """

    round: int
    version: int
    void: bool
    num_asked: int
    num_nodes: int
    num_admitted: int
    rejected: tuple[str, ...]
    num_missing: int
    epsilon: float
    update_norm: float
    seconds: float
    clip_norm: float
    quality: float | None = None
    noise_multiplier: float | None = None
    server_epsilon: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    num_late: int = 0
    admitted: tuple[int, ...] = ()

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> RoundResult:
        """Read what JSON made of ``dataclasses.asdict``."""
        lists = {name: tuple(values.get(name, ())) for name in ("rejected", "admitted")}
        return cls(**{**values, **lists})


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """Everything that lives across rounds.

    Args:
        vector: (P,) the global adapter.
        optimizer: what the server's optimiser remembers.
        clip_norm: C of the next round.
        noise: what correlated noise remembers.
        groups: (num_users,) who takes part together, with correlated noise; else empty.
        last_asked: (num_users,) the last round in which each user was asked, with correlated noise; else empty.
        version: how many rounds changed the adapter.
        participations: (num_users,) how often each user was asked.
        results: one per finished round, void ones included.
        best: (P,) the best adapter on held-out public users so far; the one of the start until one is better.
        best_version: its version.
    """

    vector: Vector
    optimizer: OptimizerState
    clip_norm: float
    noise: NoiseState
    groups: NDArray[np.int64]
    last_asked: NDArray[np.int64]
    version: int
    participations: NDArray[np.int64]
    results: tuple[RoundResult, ...]
    best: Vector
    best_version: int

    @classmethod
    def start(cls, config: FederationConfig, spec: AdapterSpec, vector: Vector, num_users: int) -> ServerState:
        """Return the state before the first round."""
        nobody = np.zeros(0, dtype=np.int64)
        return cls(
            vector=spec.check(vector).copy(),
            best=spec.check(vector).copy(),
            best_version=0,
            optimizer=OptimizerState.start(config.server_optimizer, spec.num_trainable),
            clip_norm=config.clip_norm,
            noise=NoiseState.start(config, spec.num_trainable),
            groups=draw_groups(config, num_users) if config.correlated else nobody,
            last_asked=np.zeros(num_users, dtype=np.int64) if config.correlated else nobody,
            version=0,
            participations=np.zeros(num_users, dtype=np.int64),
            results=(),
        )

    @property
    def realised(self) -> tuple[float, ...]:
        """The noise multipliers that rounds are charged with, where they were known only afterwards."""
        return tuple(one.noise_multiplier for one in self.results if one.noise_multiplier is not None)

    def asked(self, cohort: NDArray[np.int64], round_number: int) -> ServerState:
        """Return the state in which the users of a cohort have been asked once more."""
        participations, last_asked = self.participations.copy(), self.last_asked.copy()
        participations[cohort] += 1
        if len(last_asked):
            last_asked[cohort] = round_number
        return replace(self, participations=participations, last_asked=last_asked)


def spent_event(
    config: FederationConfig,
    rounds: int,
    participations: NDArray[np.int64],
    factor: Factor | None = None,
    realised: Sequence[float] = (),
) -> DpEvent:
    """Return the privacy event of a run so far: what its most exposed unit has spent.

    Cohorts do not depend on data, so how often the most asked user took part is public.

    Args:
        config: the unit and its numbers.
        rounds: how many rounds began, void ones and empty cohorts included.
        participations: (num_users,) how often each user was asked.
        factor: of correlated noise; by default the config's.
        realised: noise multipliers of the first rounds where they are another than the config's, which the others have.
    """
    if config.correlated:  # all rounds so far are one Gaussian mechanism
        multiplier = realised_multiplier(config, factor or factor_of(config), rounds) if rounds else 0.0
        return user_turns_event(multiplier, min(rounds, 1))
    if config.unit == "user":
        noises = Counter((*realised, *[config.noise_multiplier] * (rounds - len(realised))))
        if config.turns:
            return user_turns_event(min(noises, default=0.0), int(participations.max(initial=0)))
        parts = [user_level_event(config.asked_rate, noise, count) for noise, count in noises.items()]
        return compose_events(*parts or [user_level_event(config.asked_rate, config.noise_multiplier, 0)])
    if config.unit == "window":
        return window_level_event(config.plan, int(participations.max(initial=0)))
    return user_level_event(config.asked_rate, 0.0, rounds)


def save_checkpoint(path: Path, config: FederationConfig, spec: AdapterSpec, state: ServerState) -> None:
    """Replace the file at ``path`` with this state, atomically."""
    event = spent_event(config, len(state.results), state.participations, state.noise.factor, state.realised)
    metadata = {
        "format": _FORMAT,
        "spec": spec.to_json(),
        "config": json.dumps(asdict(config), sort_keys=True),
        "clip_norm": state.clip_norm.hex(),
        "version": str(state.version),
        "best_version": str(state.best_version),
        "event": event_to_json(event),
        "results": json.dumps([asdict(result) for result in state.results]),
    }
    arrays: dict[str, NDArray[Any]] = {
        "adapter": state.vector,
        "best": state.best,
        "momentum": state.optimizer.momentum,
        "squares": state.optimizer.squares,
        "participations": state.participations,
        "groups": state.groups,
        "last_asked": state.last_asked,
        "factor": np.array([state.noise.factor.scales, state.noise.factor.decays]),
        "buffers": state.noise.buffers,
        "owed": state.noise.owed,
    }
    write_atomic(path, save(arrays, metadata=metadata))


def load_checkpoint(path: Path, config: FederationConfig, spec: AdapterSpec, num_users: int) -> ServerState:
    """Read what ``save_checkpoint`` wrote, if it belongs to the same run.

    Args:
        path: the file.
        config: must equal the saved one, except that the number of rounds, the target epsilon, the quorum and the
            time-out may differ; the number of rounds only where neither schedule nor noise depends on it.
        spec: must equal the saved one.
        num_users: must equal the saved one.

    Raises:
        FederationError: unreadable, or of another run.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FederationError(f"checkpoint must be readable safetensors, got {path}: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise FederationError(f"checkpoint must have format {_FORMAT}, got {metadata.get('format')!r} in {path}")
    if metadata["spec"] != spec.to_json():
        raise FederationError(f"checkpoint must belong to this adapter spec and base, got another in {path}")
    if changed := _differences(json.loads(metadata["config"]), config):
        raise FederationError(f"checkpoint must belong to this config, got other values of {changed} in {path}")
    if arrays["participations"].shape != (num_users,):
        raise FederationError(f"checkpoint must be of {num_users} users, got {len(arrays['participations'])} in {path}")
    results = json.loads(metadata["results"])
    return ServerState(
        vector=spec.check(arrays["adapter"], what=f"adapter in {path}"),
        best=spec.check(arrays["best"], what=f"best adapter in {path}"),
        best_version=int(metadata["best_version"]),
        optimizer=OptimizerState(momentum=arrays["momentum"], squares=arrays["squares"]),
        clip_norm=float.fromhex(metadata["clip_norm"]),
        noise=_noise_state(arrays),
        groups=arrays["groups"],
        last_asked=arrays["last_asked"],
        version=int(metadata["version"]),
        participations=arrays["participations"],
        results=tuple(RoundResult.from_plain(result) for result in results),
    )


def _noise_state(arrays: Mapping[str, NDArray[Any]]) -> NoiseState:
    """Read the noise with the factor that it was drawn with: another machine's optimiser may end at other digits."""
    scales, decays = arrays["factor"].tolist()
    factor = Factor(scales=tuple(scales), decays=tuple(decays))
    return NoiseState(factor=factor, buffers=arrays["buffers"], owed=arrays["owed"])


def _differences(saved: dict[str, Any], config: FederationConfig) -> list[str]:
    current = json.loads(json.dumps(asdict(config)))
    scheduled = {"rounds"} if config.schedule != "constant" or config.correlated else set()
    names = sorted((set(saved) | set(current)) - (set(_MAY_CHANGE) - scheduled))
    return [name for name in names if saved.get(name) != current.get(name)]
