"""The server's mechanism: whole deltas clipped on the nodes, summed, noised once, divided by a public number.

The unit is one user, under add-or-remove neighbours and Poisson sampling of cohorts; a user who is not there has an
empty history, and the population's size N is public. The functions are those of a deployment (``draw_cohort``, a
node's app, ``collect``, ``noised_average``), called in the order of ``run_rounds``, with a source that the audit can
watch in place of the operating system's. That this order is the deployed one is a check of its own: whole rounds of
``simulate``, messages and all, must end with the very same adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from ownlet.device.client import make_client_app
from ownlet.device.train import Engine, clipped_deltas
from ownlet.server.admit import Expected
from ownlet.server.aggregate import noised_average
from ownlet.server.cohorts import draw_cohort
from ownlet.server.collect import collect
from ownlet.server.combine import ExactSum
from ownlet.shared.adapter import Vector, initial_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import PrivacyError, require
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.wire import TrainRequest, request_to_records
from ownlet.simulations.audit.component import QUICK, Trials, audit_component
from ownlet.simulations.audit.core import core_of
from ownlet.simulations.audit.engine_mechanism import norms_by_tensor
from ownlet.simulations.audit.mechanism import LOUD, tensors_of
from ownlet.simulations.audit.result import AuditResult, Check, Claim
from ownlet.simulations.audit.sources import Batch
from ownlet.simulations.grid import InProcessGrid
from ownlet.simulations.progress import Progress
from ownlet.simulations.run import simulate
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["UserLevelMechanism", "audit_user_level", "claim_of_federation"]

_ROUNDS = 3  # of the whole path
_SEED = 11  # of it


def claim_of_federation(config: FederationConfig) -> Claim:
    """Return what a user-level run promises to every user."""
    return Claim(
        unit="user",
        sample_rate=config.asked_rate,
        noise_multiplier=config.noise_multiplier,
        clip_norm=config.clip_norm,
        steps=config.rounds,
        dp_delta=config.dp_delta,
    )


def audit_user_level(
    engine: Engine,
    config: FederationConfig,
    *,
    num_items: int,
    vector: Vector | None = None,
    name: str = "user level, server",
    trials: Trials = QUICK,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit the rounds of a user-level run.

    Args:
        engine: trains the canary users.
        config: the public numbers of the run; the local learning rate plays no part.
        num_items: items in the engine's catalogue.
        vector: (P,) an adapter whose A is the start's; by default a fresh one.
        name: for the report.
        trials: how much is measured.
        progress: told of the stages.

    Raises:
        ConfigError: the run is not at user level, or adds no noise.
        PrivacyError: no canary users were found that are loud enough.
    """
    mechanism = UserLevelMechanism(
        engine, config, num_users=trials.units, num_items=num_items, name=name, vector=vector
    )
    result = audit_component(mechanism, trials=trials, progress=progress)
    return replace(result, checks=(*result.checks, mechanism.check_rounds()))


class UserLevelMechanism:
    """Implements ``Mechanism`` over the functions of a round."""

    def __init__(
        self,
        engine: Engine,
        config: FederationConfig,
        *,
        num_users: int,
        num_items: int,
        name: str,
        vector: Vector | None = None,
    ) -> None:
        """Make canary users, each with one full window of random items, and a local learning rate that is loud."""
        require(config.unit == "user", "unit must be user", unit=config.unit)
        self._claim = claim_of_federation(config)  # refuses a run without noise
        self._engine, self._name = engine, name
        spec = engine.spec
        start = initial_adapter(spec, 0) if vector is None else vector.copy()
        if not spec.train_a:
            start[spec.size_a :] = 0
        self._start = start
        rng, length = np.random.default_rng(0), config.windows.window_length
        self._histories = [rng.integers(1, num_items + 1, length) for _ in range(num_users)]
        everybody = np.ones(num_users, np.bool_)
        self._config = replace(core_of(config), seed=None, plan=replace(config.plan, steps=1, sample_rate=1.0))
        self._raw = norms_by_tensor(self._raw_deltas(everybody), self.tensors)
        while (least := float(np.linalg.norm(self._raw, axis=1).min())) < LOUD * config.clip_norm:
            if not 0 < least < np.inf or self._config.plan.learning_rate > 1e6:
                raise PrivacyError(f"canary users must have deltas of at least {LOUD:g} clip norms, got {least:.2g}")
            rate = 2 * self._config.plan.learning_rate * max(1.0, LOUD * config.clip_norm / least)
            self._config = replace(self._config, plan=replace(self._config.plan, learning_rate=rate))
            self._raw = norms_by_tensor(self._raw_deltas(everybody), self.tensors)

    @property
    def name(self) -> str:
        """What is audited."""
        return self._name

    @property
    def claim(self) -> Claim:
        """What is promised of it."""
        return self._claim

    @property
    def num_units(self) -> int:
        """Candidate users."""
        return len(self._histories)

    @property
    def tensors(self) -> Mapping[str, slice]:
        """The matrices of the adapter."""
        return tensors_of(self._engine.spec)

    @property
    def noised(self) -> slice:
        """What a delta covers."""
        return self._engine.spec.trainable

    def raw_norms(self) -> NDArray[np.float64]:
        """Return (users, tensors) norms of unclipped deltas."""
        return self._raw

    def release(self, present: NDArray[np.bool_], source: NoiseSource, batch: Batch = "all") -> NDArray[np.float64]:
        """Return the noised sum of one round; see ``Mechanism``."""
        users = self.num_units
        cohort = np.arange(users if batch == "all" else 0)
        if batch == "drawn":
            cohort = draw_cohort(self._config, users, 1)
        shard = self._shard(present)
        average = noised_average(self._total(shard, cohort), self._config, users, source)
        return self._whole(average * self._config.expected_share * users)

    def training(self, source: NoiseSource) -> NDArray[np.float64]:
        """Return the noised sums of as many rounds without anybody as the run has."""
        nobody = np.zeros(self.num_units, np.bool_)
        return np.stack([self.release(nobody, source, "none") for _ in range(self._claim.steps)])

    def check_rounds(self) -> Check:
        """Run whole rounds, and hold the adapter that they end with against the audited functions."""
        config, spec = replace(self._config, rounds=_ROUNDS, seed=_SEED), self._engine.spec
        present = np.ones(self.num_units, np.bool_)
        store, shard = self._store(present), self._shard(present)
        got = simulate(self._engine, store, self._start, config).vector
        vector = self._start.astype(np.float64)
        for number in range(1, _ROUNDS + 1):
            total = self._total(shard, draw_cohort(config, self.num_units, number), number, vector)
            noise = AesNoise.seeded(config.seed, "server", number)
            vector[spec.trainable] += config.server_learning_rate * noised_average(total, config, self.num_units, noise)
        gap = float(np.abs(got - vector).max())
        moved = float(np.abs(got - self._start).max())
        return Check(
            name="whole-rounds",
            passed=gap <= 1e-3 * moved and moved > 0,
            statement=f"{_ROUNDS} rounds of the server and client apps end where what is audited does, to {gap:.2g}",
            measured=gap,
            claimed=0.0,
        )

    def _total(
        self, shard: StoreShard, cohort: NDArray[np.int64], number: int = 1, vector: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Ask a node for the cohort's sum, admit it and add it up, as a round does."""
        if len(cohort) == 0:
            return np.zeros(self._engine.spec.num_trainable)
        spec, clip_norm = self._engine.spec, self._config.delta_bound(self._engine.spec.num_trainable)
        request = TrainRequest(
            vector=self._start if vector is None else vector.astype(np.float32),
            round=number,
            version=0,
            base_hash=spec.base_hash,
            plan=self._config.plan,
            unit=self._config.unit,
            clip_norm=clip_norm,
            users=tuple(cohort.tolist()),
            seed=_SEED,  # of negatives and of rounding; nothing else is random on a node at user level
            wire=self._config.wire,
        )
        grid = InProcessGrid(make_client_app(lambda context: shard, simulated=True), 1)
        (node,) = grid.get_node_ids()
        asked = Message(request_to_records(request), node, "train", group_id=str(number))
        expected = Expected(
            round=number,
            version=0,
            base_hash=spec.base_hash,
            num_trainable=spec.num_trainable,
            clip_norm=clip_norm,
            users_by_node={node: len(cohort)},
            wire=self._config.wire,
        )
        combiner = ExactSum(spec.num_trainable, len(cohort) * clip_norm)
        found = collect(grid.send_and_receive([asked]), expected, combiner)
        if found.rejected:
            raise PrivacyError(f"replies of canary users must be admitted, got {'; '.join(found.rejected)}")
        return found.total

    def _raw_deltas(self, present: NDArray[np.bool_]) -> NDArray[np.float64]:
        users = self._shard(present).windows(range(self.num_units))
        noises = [AesNoise.seeded("raw", user) for user in range(self.num_units)]
        deltas = clipped_deltas(self._engine, self._start, users, self._config.plan, noises, float("inf"))
        return np.stack([self._whole(delta.astype(np.float64)) for delta in deltas])

    def _whole(self, trained: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.zeros(self._engine.spec.size)
        whole[self._engine.spec.trainable] = trained
        return whole

    def _store(self, present: NDArray[np.bool_]) -> EventStore:
        empty = np.zeros(0, np.int64)
        return EventStore.of([h if here else empty for h, here in zip(self._histories, present, strict=True)])

    def _shard(self, present: NDArray[np.bool_]) -> StoreShard:
        return StoreShard(self._engine, self._store(present), self._config.windows)
