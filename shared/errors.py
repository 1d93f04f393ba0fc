"""One error tree for the whole package.

    OwnletError
    ├── ConfigError (ValueError)    a setting breaks its rule
    ├── DataError                   an input file or event cannot be read
    ├── AdapterError                an adapter does not fit its base, or is damaged
    ├── BundleError                 a bundle is incomplete, altered or does not agree with eager
    ├── PrivacyError                a privacy rule would be broken
    │   ├── BudgetExceededError     the next step would spend more than is allowed
    │   └── LedgerError             a privacy ledger does not verify
    ├── FederationError             a round cannot go on
    │   └── ReplyRejectedError      one node's reply is not admitted
    ├── StateError                  a state folder cannot be used, or its disk refuses
    │   ├── StateBusyError          another training holds it
    │   └── StoreError              a store of versions cannot be written, or lacks an intact version
    └── NotEligibleError            the device's policy does not allow training now

Every message names the thing, the rule and the value: ``clip_norm must be positive, got clip_norm=-1.0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

__all__ = [
    "OwnletError",
    "ConfigError",
    "DataError",
    "AdapterError",
    "StoreError",
    "BundleError",
    "PrivacyError",
    "BudgetExceededError",
    "LedgerError",
    "FederationError",
    "ReplyRejectedError",
    "StateError",
    "StateBusyError",
    "NotEligibleError",
    "require",
]


class OwnletError(Exception):
    """Base of all errors that ownlet raises on purpose."""


class ConfigError(OwnletError, ValueError):
    """A setting breaks its rule."""


class DataError(OwnletError):
    """An input file or an event cannot be read."""


class AdapterError(OwnletError):
    """An adapter does not fit its base, or is damaged."""


class BundleError(OwnletError):
    """A bundle is incomplete, altered, or does not agree with the eager model."""


class PrivacyError(OwnletError):
    """A privacy rule would be broken."""


class BudgetExceededError(PrivacyError):
    """The next step would spend more privacy than is allowed."""


class LedgerError(PrivacyError):
    """A privacy ledger does not verify; ``line`` (from 1) and ``reason`` say where and why."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"ledger must verify, got line {line} of {path}: {reason}")
        self.line = line
        self.reason = reason


class FederationError(OwnletError):
    """A federated round cannot go on."""


class ReplyRejectedError(FederationError):
    """One node's reply is not admitted; the message carries round, stage and node, never data."""


class StateError(OwnletError):
    """A folder of state cannot be used: damaged, made with another key, or on a disk that refuses."""


class StoreError(StateError):
    """A store of versions cannot be written, or does not have the version that was asked for, whole and unaltered."""


class StateBusyError(StateError):
    """Another training holds the folder, in this process or in another."""


class NotEligibleError(OwnletError):
    """The device's policy does not allow training now; ``reasons`` says why, one line each."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("training must wait: " + "; ".join(reasons))
        self.reasons = tuple(reasons)


def require(condition: bool, rule: str, **values: object) -> None:
    """Raise ConfigError unless the condition holds.

    Args:
        condition: what must be true.
        rule: the rule in words, ``clip_norm must be positive``.
        **values: the values that broke it, shown behind the rule.

    Raises:
        ConfigError: ``<rule>, got <name>=<value>``.
    """
    if not condition:
        shown = {name: str(value) if isinstance(value, PurePath) else value for name, value in values.items()}
        got = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        raise ConfigError(f"{rule}, got {got}")
