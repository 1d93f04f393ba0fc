"""What a SuperNode's log means to who runs the node: one sentence for each thing that happens, and none of Flower's.

The log has 6 to 8 lines of Flower per message. Here they become: connected, refused, the server is away or back, and
what the node's own app tells, which marks its lines (``ClientApp`` runs in another process with the same log).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["SuperNodeTeller", "tell_into_log"]

_MARK = "ownlet: "
_ERROR = "ownlet.shared.errors."  # ends the traceback of a refusal by the node's app
_CONNECTED = "SuperNode ID:"
_REFUSED = ("Failed to activate SuperNode", "401 Unauthorized")  # at the start, and later
_RETRYING = re.compile(r"Connection attempt failed, retrying in ([\d.]+) seconds")
_BACK = "Connection successful after"
_AWAY_SECONDS = 1.0  # shorter pauses are hiccups


class SuperNodeTeller:
    """Reads the log's lines, and says each thing once."""

    def __init__(self, server: str, key: Path, tell: Callable[[str], None]) -> None:
        """Begin before the first SuperNode.

        Args:
            server: host and port.
            key: the node's private key.
            tell: told sentences.
        """
        self._server, self._key, self._tell = server, key, tell
        self._last, self._away, self._refused, self._num_refused = "", False, False, 0

    def read(self, line: str) -> None:
        """Take in a line without colours."""
        if line.startswith(_MARK):
            self.say(line.removeprefix(_MARK))
        elif line.startswith(_ERROR):
            self.say(f"refused to answer: {line.partition(': ')[2] or line}")
        elif _CONNECTED in line:
            self._refused, self._num_refused, self._away = False, 0, False
            self.say(f"connected to {self._server}")
        elif (match := _RETRYING.search(line)) and float(match[1]) >= _AWAY_SECONDS and not self._away:
            self._away = True
            self.say(f"{self._server} does not answer; waiting for it")
        elif _BACK in line and self._away:
            self._away = False
            self.say(f"{self._server} answers again")
        elif any(sign in line for sign in _REFUSED):
            self._refused = True

    def say(self, text: str) -> None:
        """Tell something, unless it is what was told last."""
        if text != self._last:
            self._last = text
            self._tell(text)

    def why_ended(self) -> str | None:
        """Return why the SuperNode ended if the server did not let it in, and begin anew.

        SuperLink gives no reason. The first time is no matter: a server that has just started may not have registered
        its nodes yet, or it is another one than before.
        """
        if not self._refused:
            return None
        self._refused, self._num_refused = False, self._num_refused + 1
        if self._num_refused == 1:
            return f"not yet admitted by {self._server}"
        return (
            f"refused by {self._server}: it does not know the public key of {self._key} yet, or another process is "
            "connected with that key"
        )


def tell_into_log() -> None:
    """Let what ownlet logs in this process, a ClientApp's, go into the SuperNode's log, marked for the teller."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{_MARK}%(message)s"))
    logger = logging.getLogger("ownlet")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Flower's root handler would print it again
    logger.handlers = [handler]
