"""The messages of a secure sum as Flower messages: one config record each, under the name of its stage."""

from __future__ import annotations

from typing import Any, TypeVar

from flwr.app import ConfigRecord, RecordDict

from ownlet.shared.errors import FederationError
from ownlet.shared.secure_sum.plain import from_plain, to_plain

__all__ = ["SECURE_STAGES", "from_records", "message_type", "to_records"]

T = TypeVar("T")

SECURE_STAGES = ("secure_advert", "secure_shares", "secure_masked", "secure_confirm", "secure_reveal")
"""Flower's action names, in order; the third one trains."""

_RECORD = "secure"


def message_type(stage: str) -> str:
    """Return Flower's type of the message that asks for a stage."""
    return f"train.{stage}" if stage == "secure_masked" else f"query.{stage}"


def to_records(message: Any) -> RecordDict:
    """Write a message of ``shared.secure_sum.messages``, or a state of a client, as Flower records."""
    return RecordDict({_RECORD: ConfigRecord({"kind": type(message).__name__, **to_plain(message)})})


def from_records(kind: type[T], records: RecordDict) -> T:
    """Read what ``to_records`` wrote; other records beside it are passed over.

    Raises:
        FederationError: nothing there, or not exactly a message of this kind.
    """
    record = records.get(_RECORD)
    if not isinstance(record, ConfigRecord) or record.get("kind") != kind.__name__:
        raise FederationError(f"record {_RECORD} must be of kind {kind.__name__}, got another or none")
    return from_plain(kind, {name: value for name, value in record.items() if name != "kind"})
