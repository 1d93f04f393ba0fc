"""The Flower side of a node under secure aggregation: five answers, of which the third trains.

What a node remembers between two messages, its secrets included, lies in Flower's context, which never leaves the node:
a deployed node answers each message in a process of its own. The state is written before the answer goes out, and each
answer takes the state that only the one before it leaves, so no message is answered twice. A node with ledgers does not
rely on that alone: its account remembers the sum (``device/account.py``).

An identity is made for every sum. A node with a key vouches for its own, and one that knows the keys of the others
takes part among these only; one without trusts the server's roster of identities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from ownlet.device import secure_client as protocol
from ownlet.device.agreed_sum import AgreedSum
from ownlet.shared.secure_sum.keys import new_identity
from ownlet.shared.secure_sum.messages import Agreement, Inbox, Invite, Roster, Survivors
from ownlet.shared.secure_sum.purpose import Purpose
from ownlet.shared.secure_sum.vouching import Vouching
from ownlet.shared.secure_wire import SECURE_STAGES, from_records, to_records

__all__ = ["add_secure_sum"]

T = TypeVar("T")
_STATE = "secure-sum"


def add_secure_sum(
    app: ClientApp,
    values_of: Callable[[Message, Context, AgreedSum], NDArray[np.int64]],
    vouching: Vouching | None = None,
) -> None:
    """Let a node's app answer the five messages of a secure sum.

    Args:
        app: of the node.
        values_of: trains what the third message asks for, if it is for that sum, and returns whole numbers (size,).
            Called only for a message that can be answered, since it may cost budget.
        vouching: the node's key, and whom it trusts; None trusts the server's roster.
    """
    known = None if vouching is None else vouching.peers
    advert, shares, masked, confirm, reveal = SECURE_STAGES

    @app.query(advert)
    def answer_invite(message: Message, context: Context) -> Message:
        invite = from_records(Invite, message.content)
        return _keep(context, message, *protocol.advertise(invite, new_identity(), vouching))

    @app.query(shares)
    def answer_roster(message: Message, context: Context) -> Message:
        state = _take(context, protocol.Advertised)
        return _keep(context, message, *protocol.join(state, from_records(Roster, message.content), known))

    @app.train(masked)
    def answer_inbox(message: Message, context: Context) -> Message:
        state, inbox = _take(context, protocol.Joined), from_records(Inbox, message.content)
        entrusted = protocol.open_inbox(state, inbox)
        agreed = AgreedSum(purpose=Purpose.from_bytes(state.about), terms=state.terms, transcript=state.transcript)
        return _keep(context, message, *protocol.mask(state, entrusted, values_of(message, context, agreed)))

    @app.query(confirm)
    def answer_survivors(message: Message, context: Context) -> Message:
        state = _take(context, protocol.Sent)
        return _keep(context, message, *protocol.confirm(state, from_records(Survivors, message.content)))

    @app.query(reveal)
    def answer_agreement(message: Message, context: Context) -> Message:
        state = _take(context, protocol.Confirmed)
        revealed = protocol.reveal(state, from_records(Agreement, message.content))
        return Message(to_records(revealed), reply_to=message)


def _take(context: Context, kind: type[T]) -> T:
    """Take the state out of the context; whatever happens next, this stage is over."""
    kept = RecordDict({"secure": context.state.get(_STATE, ConfigRecord())})
    context.state[_STATE] = ConfigRecord()
    return from_records(kind, kept)


def _keep(context: Context, message: Message, state: Any, answer: Any) -> Message:
    context.state[_STATE] = to_records(state)["secure"]
    return Message(to_records(answer), reply_to=message)
