"""What a node hosts: users, and the engine that trains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ownlet.device.train import Engine
from ownlet.shared.windows import Windows

__all__ = ["Shard", "SomeUsers"]


class Shard(Protocol):
    """What a node hosts."""

    @property
    def engine(self) -> Engine:
        """The engine that trains, holding the node's copy of the frozen base."""
        ...

    @property
    def base_hash(self) -> str:
        """The hash of that base."""
        ...

    def windows(self, users: Sequence[int]) -> Sequence[Windows]:
        """Return each user's windows, possibly none.

        Raises:
            KeyError: the node does not host one of them.
        """
        ...


class SomeUsers:
    """A shard in which only some users have windows: the others contribute zero, or noise where the plan has any."""

    def __init__(self, shard: Shard, users: Sequence[int]) -> None:
        """Take a shard and the users who may train."""
        self._shard, self._users = shard, frozenset(users)

    @property
    def engine(self) -> Engine:
        """That of the shard."""
        return self._shard.engine

    @property
    def base_hash(self) -> str:
        """That of the shard."""
        return self._shard.base_hash

    def windows(self, users: Sequence[int]) -> Sequence[Windows]:
        """Return each user's windows; none for one who may not train."""
        found = self._shard.windows(users)
        if self._users.issuperset(users):
            return found
        return [one if user in self._users else one[:0] for user, one in zip(users, found, strict=True)]
