"""The work that the benchmarks share: users of one shape, a base of one size, one plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import AdapterConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.interactions import History, Item
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.simulations.store import EventStore, StoreWriter

__all__ = ["DP_PLAN", "Workload"]

_BLOCK_USERS = 10_000

DP_PLAN = Plan(steps=3, learning_rate=0.1, sample_rate=1.0, expected_batch=4.0, clip_norm=1.0, noise_multiplier=1.0)
"""Three steps of DP-SGD on all four windows of a user."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Users who all have equally many full windows of random items.

    Args:
        num_items: catalogue.
        dim: d of the base, two layers, two heads.
        rank: r of the adapter on query, value, up and down.
        windows_per_user: full windows.
        window_length: events in a window.
    """

    num_items: int = 1000
    dim: int = 64
    rank: int = 8
    windows_per_user: int = 4
    window_length: int = 20

    @property
    def windows(self) -> WindowConfig:
        """How a history is cut."""
        return WindowConfig(window_length=self.window_length)

    def base(self) -> tuple[SASRec, AdapterSpec, Vector]:
        """Return a random base in eval mode with the adapter attached, its spec, and the adapter to start from."""
        torch.manual_seed(0)
        content = torch.randn(self.num_items + 1, 16)
        content[0] = 0.0
        config = ModelConfig(dim=self.dim, num_layers=2, num_heads=2, max_length=50)
        model = SASRec(config, content).eval()
        spec = attach_adapter(model, AdapterConfig(rank=self.rank, alpha=2.0 * self.rank))
        return model, spec, initial_adapter(spec, 0)

    def histories(self, num_users: int) -> list[History]:
        """Return (windows_per_user * window_length,) random items for each user."""
        rng = np.random.default_rng(0)
        shape = (num_users, self.windows_per_user * self.window_length)
        return list(rng.integers(1, self.num_items + 1, shape))

    def store(self, folder: Path, num_users: int) -> EventStore:
        """Write users like these to a store, in blocks, and open it."""
        items = [Item(number=number, id=str(number), title="", genres=()) for number in range(1, self.num_items + 1)]
        length = self.windows_per_user * self.window_length
        with StoreWriter(folder, name="benchmark", items=items) as writer:
            for first in range(0, num_users, _BLOCK_USERS):
                users = min(_BLOCK_USERS, num_users - first)
                events = np.random.default_rng([0, first]).integers(1, self.num_items + 1, users * length)
                writer.append(events, np.full(users, length))
        return EventStore.open(folder)
