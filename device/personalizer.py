"""The device's front door: record what a user does, recommend, train on the spot, and hand out a private update.

Runs from a bundle alone. Everything personal (events, adapter, charges) stays in one folder of the app's choosing.

    with Personalizer.open(bundle, state) as personalizer:
        personalizer.record("tt0111161", timestamp=1_700_000_000)
        personalizer.train()
        best = personalizer.recommend(10)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.device.charges import Charge, append_charge, read_charges
from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.history import EventHistory
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter, save_adapter
from ownlet.shared.config import PERSONAL_PLAN, Plan
from ownlet.shared.delta import Update, clip_to_norm, delta_of
from ownlet.shared.errors import BundleError, DataError, PrivacyError, require
from ownlet.shared.manifest import ADAPTER_FILE, ITEMS_FILE, PROGRAM_FILE, Manifest, read_manifest
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.privacy import compose_events, event_from_json, event_to_json, window_level_event
from ownlet.shared.program import Program
from ownlet.shared.windows import cut_windows

__all__ = ["Personalizer", "Recommendation"]

_HISTORY_FILE = "history.sqlite"
_CHARGES_FILE = "charges.jsonl"


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item: its original id, its title and the model's score (a logit)."""

    item: str
    title: str
    score: float


@dataclass(frozen=True, kw_only=True)
class _Catalogue:
    """Original ids and titles; position i belongs to item number i, position 0 to padding."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    numbers: dict[str, int]


class Personalizer:
    """One user's recommender. Use it from one thread, as a context manager or with ``close``."""

    def __init__(self, bundle: Path, state: Path) -> None:
        """Open a bundle and a user's state; see ``open``."""
        self._manifest: Manifest = read_manifest(bundle)
        self._spec, self._global, self._version = load_adapter(
            bundle / ADAPTER_FILE, base_hash=self._manifest.base_hash
        )
        self._engine = ExecutorchEngine(Program(bundle / PROGRAM_FILE), self._spec, self._manifest)
        self._catalogue = _read_catalogue(bundle / ITEMS_FILE, self._manifest.num_items)
        state.mkdir(parents=True, exist_ok=True)
        self._state = state
        self._personal = _load_personal(state / ADAPTER_FILE, self._spec, self._version, self._global)
        self._history = EventHistory(state / _HISTORY_FILE)

    @classmethod
    def open(cls, bundle: str | Path, state_dir: str | Path) -> Personalizer:
        """Open a bundle for one user.

        A personal adapter that an earlier session trained is taken up again if it belongs to this bundle's base and
        adapter version; after a new bundle, training starts over from the new global adapter. Events always stay.

        Args:
            bundle: the folder that export wrote.
            state_dir: the user's own folder; made if it is missing.

        Raises:
            BundleError: the bundle is incomplete, altered, or newer than this ownlet.
            AdapterError: an adapter does not belong to its base, or is damaged.
            DataError: the history cannot be read.
        """
        return cls(Path(bundle), Path(state_dir))

    def __enter__(self) -> Personalizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the history. All state is on disk already."""
        self._history.close()

    def record(self, item: str, timestamp: float) -> None:
        """Remember an event; an item that the catalogue lacks is kept, and ignored until a bundle knows it.

        Args:
            item: the item's original id.
            timestamp: seconds since any fixed origin.

        Raises:
            DataError: an empty item or a timestamp that is not finite.
        """
        self._history.record(item, timestamp)

    def recommend(self, k: int = 10) -> list[Recommendation]:
        """Return the k best items that the user has not had, best first; fewer where fewer are left.

        Args:
            k: at most the bundle's ``top_k``.

        Raises:
            ConfigError: k is out of range.
        """
        require(1 <= k <= self._manifest.top_k, f"k must be from 1 to {self._manifest.top_k}", k=k)
        items, scores = self._engine.recommend(self._personal, self._events())
        ids, titles = self._catalogue.ids, self._catalogue.titles
        return [
            Recommendation(item=ids[number], title=titles[number], score=float(score))
            for number, score in zip(items[:k], scores[:k], strict=True)
        ]

    def score(self, items: Sequence[str]) -> list[float]:
        """Return the score of each item (original id) as the user's next one; comparable within one call.

        Raises:
            DataError: an item that the catalogue lacks.
        """
        numbers = self._catalogue.numbers
        unknown = [item for item in items if item not in numbers]
        if unknown:
            raise DataError(f"item must be in the catalogue, got item={unknown[0]!r}")
        scores = self._engine.score(self._personal, self._events())
        return [float(scores[numbers[item]]) for item in items]

    def train(self, plan: Plan | None = None, noise: NoiseSource | None = None) -> None:
        """Train the personal adapter on the user's windows, starting from where it stands.

        The privacy charge is on disk before the first step. With too few events for a window, a plan without noise
        changes nothing and a plan with noise adds its noise all the same, as its guarantee demands.

        Args:
            plan: the public numbers; by default ``PERSONAL_PLAN``, without noise, for use on this device only.
            noise: by default a fresh source keyed by the operating system; another one for tests only.

        Raises:
            AdapterError: the training diverged; the adapter is as before, the charge stays.
        """
        plan = PERSONAL_PLAN if plan is None else plan
        windows = cut_windows(self._events(), self._manifest.windows)
        if plan.noise_multiplier > 0 and self._manifest.windows.context_length > 0:
            raise PrivacyError("context_length must be 0 where windows are the privacy unit, got a bundle with context")
        event = event_to_json(window_level_event(plan, 1)) if plan.noise_multiplier > 0 else ""
        charge = Charge(base_hash=self._spec.base_hash, adapter_version=self._version, event=event)
        append_charge(self._state / _CHARGES_FILE, charge)
        trained = self._engine.train(self._personal, [windows], plan, [noise or AesNoise()])[0]
        save_adapter(self._state / ADAPTER_FILE, self._spec, trained, version=self._version)
        self._personal = trained

    def update(self, clip_norm: float = math.inf) -> Update:
        """Return what may leave the device: the personal minus the global adapter, clipped, and what it cost.

        Args:
            clip_norm: C, the bound on the delta's L2 norm; the server's, where the server adds the noise.

        Raises:
            PrivacyError: trainings with and without noise went into this delta, so no event describes it.
        """
        return Update(
            delta=clip_to_norm(delta_of(self._spec, self._personal, self._global), clip_norm),
            adapter_version=self._version,
            base_hash=self._spec.base_hash,
            event=self._spent(),
        )

    def _spent(self) -> str:
        """Compose the events of every training since this global adapter."""
        here = (self._spec.base_hash, self._version)
        charges = read_charges(self._state / _CHARGES_FILE)
        events = [charge.event for charge in charges if (charge.base_hash, charge.adapter_version) == here]
        if not any(events):
            return ""
        if not all(events):
            raise PrivacyError("an update must come from trainings that all add noise or all add none, got both kinds")
        return event_to_json(compose_events(*map(event_from_json, events)))

    def _events(self) -> NDArray[np.int64]:
        """Item numbers of the known events, in order, (num_events,)."""
        numbers = self._catalogue.numbers
        return np.array([numbers[item] for item in self._history.items() if item in numbers], np.int64)


def _read_catalogue(path: Path, num_items: int) -> _Catalogue:
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        in_order = [row["item"] for row in rows] == list(range(1, num_items + 1))
        ids, titles = ("", *(row["id"] for row in rows)), ("", *(row["title"] for row in rows))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"items must be readable JSON lines, got {path}: {error}") from error
    if not in_order:
        raise BundleError(f"items must be numbered from 1 to {num_items} in order, got {path}")
    return _Catalogue(ids=ids, titles=titles, numbers={name: n for n, name in enumerate(ids) if n})


def _load_personal(path: Path, spec: AdapterSpec, version: int, fallback: Vector) -> Vector:
    """Return the personal adapter if there is one of this spec, base and version, else the fallback."""
    if not path.exists():
        return fallback
    saved_spec, saved, saved_version = load_adapter(path)
    return saved if (saved_spec, saved_version) == (spec, version) else fallback
