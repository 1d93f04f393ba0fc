"""One user's state while it is open: events, the two adapters, and which of them serve."""

from __future__ import annotations

import threading

from ownlet.device.adapters import Personal, PersonalAdapters, Shared, SharedAdapters
from ownlet.device.history import EventHistory
from ownlet.device.state import StateFolder
from ownlet.device.timeline import KnownEvents, Timeline
from ownlet.device.training import Halted
from ownlet.shared.adapter import Vector
from ownlet.shared.errors import StateError
from ownlet.shared.seal import Seal

__all__ = ["UserState"]


class UserState:
    """What serving, personal training and updates all look at; safe to use from several threads."""

    def __init__(
        self,
        folder: StateFolder,
        seal: Seal,
        history: EventHistory,
        timeline: Timeline,
        shared: SharedAdapters,
        personal: PersonalAdapters,
    ) -> None:
        """Take the open parts."""
        self.folder, self.seal, self.history, self.timeline = folder, seal, history, timeline
        self.shared, self.personal = shared, personal
        self._mutex = threading.Lock()
        self._in_use: tuple[object, Shared, Personal | None] | None = None

    def adapters(self) -> tuple[Shared, Personal | None]:
        """Return what is in use; read anew where another process has changed it."""
        stamp = (self.shared.store.stamp(), self.personal.store.stamp())
        with self._mutex:
            if self._in_use is None or self._in_use[0] != stamp:
                shared, personal = self.shared.current(), self.personal.current()
                if personal is not None and personal.stands_on != shared.digest:
                    personal = None  # made on another shared adapter, and not judged on this one yet
                self._in_use = (stamp, shared, personal)
            return self._in_use[1], self._in_use[2]

    def serving(self) -> Vector:
        """Return the adapter that serves, (P,): the shared one, and the personal one on top where there is one."""
        shared, personal = self.adapters()
        return shared.vector if personal is None else personal.on(shared)

    def events(self, until: int | None = None) -> KnownEvents:
        """Return the known events, in order of time.

        Args:
            until: only those recorded up to this sequence number; by default all.
        """
        self.timeline.refresh()
        return self.timeline.snapshot().up_to(until)

    def halted(self, kind: str) -> Halted | None:
        """Return where a training of this kind was stopped."""
        return Halted.load(self.folder.halted(kind), self.seal)

    def halt(self, kind: str, reached: Halted) -> None:
        """Keep where a training was stopped.

        Raises:
            StateError: the disk refuses.
        """
        try:
            reached.save(self.folder.halted(kind), self.seal)
        except OSError as error:
            raise StateError(f"state must accept a stopped training, got {self.folder.root}: {error}") from error

    def finish(self, kind: str, until: int) -> None:
        """Note that a training of this kind has read the events up to ``until``, and drop where it was stopped."""
        self.folder.halted(kind).unlink(missing_ok=True)
        self.history.put(f"{kind}/until", str(until))

    def finished_until(self, kind: str) -> int:
        """Return the last sequence number that the latest training of this kind has read."""
        return int(self.history.get(f"{kind}/until") or 0)
