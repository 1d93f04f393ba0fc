"""The adapter that a federated run starts from: one that changes nothing, whose A is random or learned in public."""

from __future__ import annotations

from collections.abc import Sequence

from ownlet.server.compression import CompressionConfig, compress
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import AdapterConfig, WindowConfig
from ownlet.shared.interactions import History
from ownlet.shared.methods import METHODS
from ownlet.shared.model import SASRec
from ownlet.simulations.progress import Progress
from ownlet.simulations.store import EventStore

__all__ = ["start_adapter"]


def start_adapter(
    config: AdapterConfig,
    compression: CompressionConfig,
    model: SASRec,
    spec: AdapterSpec,
    public: Sequence[History],
    windows: WindowConfig,
    seed: int,
    progress: Progress,
) -> Vector:
    """Return the adapter (P,) to start from, with B = 0.

    Args:
        config: its method says whether A is learned.
        compression: how.
        model: the frozen base, prepared with ``attach``.
        spec: the adapter's spec.
        public: histories of public users; read only where A is learned.
        windows: how they are cut.
        seed: of A.
        progress: told of steps.
    """
    if not METHODS[config.method].learned_a:
        return initial_adapter(spec, seed)
    stack = EventStore.of(public).all_windows(windows)
    with progress.stage(f"seed {seed}: A on {len(public)} public users", compression.steps) as step:
        return compress(
            model, spec, stack.windows, compression, seed, on_step=lambda number, loss: step(f"loss {loss:.3f}")
        )
