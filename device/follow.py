"""What a rollout's manifest asks of this device: decided here, under a secret that never leaves.

The secret is drawn once, from the operating system, and kept beside the events (sealed where the app gave a key). It
serves nothing but ``shared.rollout.place``, so a server learns from requests for adapters only what a share of all
devices would ask for, too.

Where the app pins the registry's public keys, a manifest counts only with a signature of one of them, and the serial
numbers of signed manifests are remembered apart: what an unsigned one once said cannot shut them out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from hashlib import sha256

from ownlet.device.adapters import Shared, SharedAdapters
from ownlet.device.history import EventHistory
from ownlet.shared.errors import AdapterError, StateError
from ownlet.shared.rollout import SECRET_BYTES, Choice, Manifest, Offer, choose, parse_manifest
from ownlet.shared.signature import check_public_keys

__all__ = ["Fetch", "Follower"]

Fetch = Callable[[Offer], bytes]
"""Gets the file of an offer from where the manifest came from: ``offer.file`` beside it."""

_SECRET, _SERIAL, _SIGNED_SERIAL = "rollout/secret", "rollout/serial", "rollout/signed-serial"


class Follower:
    """Follows one registry's manifests; its caller holds the state where something is changed."""

    def __init__(
        self, history: EventHistory, shared: SharedAdapters, public_keys: Sequence[bytes] | None = None
    ) -> None:
        """Take where the secret is kept, the shared adapters, and the keys that are pinned.

        Raises:
            ConfigError: keys that can be none.
        """
        if public_keys is not None:
            check_public_keys(public_keys)
        self._history, self._shared, self._public_keys = history, shared, public_keys
        self._serial = _SERIAL if public_keys is None else _SIGNED_SERIAL

    def read(self, content: bytes) -> Manifest:
        """Return the manifest in a file.

        Raises:
            StateError: it is altered, or keys are pinned and none of them signed it.
        """
        return parse_manifest(content, self._public_keys)

    def choice(self, manifest: Manifest) -> Choice:
        """Return what the manifest asks of this device.

        Raises:
            AdapterError: it is of another base.
            StateError: it is older than one that was followed.
        """
        current = self._shared.current()
        if manifest.base_hash != current.spec.base_hash:
            raise AdapterError(
                f"manifest must be of base {current.spec.base_hash[:12]}, got base {manifest.base_hash[:12]}"
            )
        followed = int(self._history.get(self._serial) or 0)
        if manifest.serial < followed:
            raise StateError(f"manifest must not be older than serial {followed}, got serial={manifest.serial}")
        return choose(manifest, self._secret(), current.version)

    def needed(self, choice: Choice, fetch: Fetch) -> bytes | None:
        """Return the file of the choice, fetched and compared with its hash; None where nothing has to be fetched.

        Raises:
            AdapterError: it is not the file that the manifest names.
        """
        offer = choice.offer
        if offer is None or self._shared.holds(offer.sha256) or offer.version < self._shared.bundled.version:
            return None
        content = fetch(offer)
        if len(content) != offer.size or sha256(content).hexdigest() != offer.sha256:
            raise AdapterError(f"adapter must be the {offer.size} bytes that the manifest names, got another file")
        return content

    def adopt(self, manifest: Manifest, choice: Choice, content: bytes | None) -> Shared:
        """Let the chosen adapter serve, and remember the manifest's serial number.

        Raises:
            AdapterError: damaged, of another base or shape.
            StateError: the disk refuses, or a newer manifest was followed meanwhile.
        """
        if self.choice(manifest) != choice:
            raise StateError("manifest must be followed by one at a time, got another choice in between")
        if content is not None and choice.offer is not None:
            self._shared.take(content, f"adapter version {choice.offer.version}")
        elif choice.offer is None or choice.offer.version < self._shared.bundled.version:
            self._shared.use_bundled()
        self._history.put(self._serial, str(manifest.serial))
        return self._shared.current()

    def _secret(self) -> bytes:
        kept = self._history.get(_SECRET)
        if kept is None:
            self._history.put(_SECRET, os.urandom(SECRET_BYTES).hex())
            kept = self._history.get(_SECRET) or ""
        return bytes.fromhex(kept)
