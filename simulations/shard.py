"""A shard whose users all lie in memory: what a simulated node hosts."""

from __future__ import annotations

from collections.abc import Sequence

from ownlet.device.train import Engine
from ownlet.shared.config import WindowConfig
from ownlet.shared.interactions import History, Windows, cut_windows

__all__ = ["MemoryShard"]


class MemoryShard:
    """Implements ``ownlet.device.client.Shard`` over histories; a user's windows are cut when first asked for."""

    def __init__(self, engine: Engine, histories: Sequence[History], windows: WindowConfig) -> None:
        """Host everybody.

        In a simulation every node could train every user; which users it does train, the server's placement says.

        Args:
            engine: trains the users; its spec names the base.
            histories: per user 0..N-1, the events to train on, in time order.
            windows: how a history is cut.
        """
        self.engine, self._histories, self._windows = engine, histories, windows
        self._cut: dict[int, Windows] = {}

    @property
    def base_hash(self) -> str:
        """The hash of the base that the engine holds."""
        return self.engine.spec.base_hash

    def windows(self, user: int) -> Windows:
        """Return a user's windows, possibly none.

        Raises:
            KeyError: there is no such user.
        """
        if not 0 <= user < len(self._histories):
            raise KeyError(user)
        if user not in self._cut:
            self._cut[user] = cut_windows(self._histories[user], self._windows)
        return self._cut[user]
