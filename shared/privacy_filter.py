"""Whether one more event fits into a budget where its parameters were chosen after earlier results were seen.

Composition of (epsilon, delta) and of privacy loss distributions is proved for parameters that were fixed beforehand.
Where noise, sampling rate or the decision to go on depend on what was released (noise shares that dropped out, a clip
that follows the data), adding up still holds for Renyi divergence of a fixed order: a filter stops before the sum at
that order would pass its bound (Feldman and Zrnic 2021, https://arxiv.org/abs/2008.11193, theorem 4.3; Lecuyer 2021,
https://arxiv.org/abs/2103.01379). The divergences are those of dp_accounting's ``RdpAccountant``, turned into epsilon
by Canonne, Kamath and Steinke 2020 (https://arxiv.org/abs/2004.00010, proposition 12).

Which of several orders decides would itself depend on the run. So delta is divided among them: each order alone is a
valid filter at its part of delta, and what goes on as long as any order allows it breaks epsilon only where one of them
does, with at most the sum of the parts (union bound). A single order, fixed from the plan, pays nothing for that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ownlet.shared.errors import BudgetExceededError, require
from ownlet.shared.privacy import event_to_json

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.rdp import RdpAccountant

__all__ = ["FILTER_ORDERS", "PrivacyFilter", "order_for"]

FILTER_ORDERS: tuple[float, ...] = (3.0, 6.0, 12.0, 24.0, 48.0)
"""Far apart, because each order costs a part of delta."""

_CANDIDATES = (*(1 + k / 10 for k in range(2, 100)), *map(float, range(11, 64)), 80.0, 96.0, 128.0, 192.0, 256.0)


def order_for(planned: DpEvent, dp_delta: float) -> float:
    """Return the order that is best if everything goes as planned; to be chosen before anything is released.

    Args:
        planned: the event of the whole run as it is meant to be.
        dp_delta: the privacy parameter delta.

    Raises:
        ConfigError: ``dp_delta`` is out of its range.
        PrivacyError: the event is of a kind that ownlet does not record.
    """
    require(0 < dp_delta < 1, "dp_delta must be in (0, 1)", dp_delta=dp_delta)
    accountant = _accountant(_CANDIDATES)
    accountant.compose(_recorded(planned))
    return float(accountant.get_epsilon_and_optimal_order(dp_delta)[1])


class PrivacyFilter:
    """Admits events of one unit until the next would pass the budget; what was admitted stays charged.

    Neighbouring relation: add or remove one unit. The events may be chosen by anybody who has seen all results so far.
    """

    def __init__(self, target_epsilon: float, dp_delta: float, orders: Sequence[float] = FILTER_ORDERS) -> None:
        """Start with nothing spent.

        Args:
            target_epsilon: the budget.
            dp_delta: the privacy parameter delta, divided evenly among the orders.
            orders: of Renyi divergence, above 1; fixed before anything is released.

        Raises:
            ConfigError: a number is out of its range.
        """
        require(target_epsilon > 0, "target_epsilon must be positive", target_epsilon=target_epsilon)
        require(0 < dp_delta < 1, "dp_delta must be in (0, 1)", dp_delta=dp_delta)
        require(
            len(orders) >= 1 and len(set(orders)) == len(orders) and all(1.01 < order < math.inf for order in orders),
            "orders must be different numbers above 1.01",
            orders=tuple(orders),
        )
        self.target_epsilon = target_epsilon
        self.dp_delta = dp_delta
        self.orders = tuple(orders)
        self._spent = [_accountant((order,)) for order in orders]

    @property
    def epsilon(self) -> float:
        """The smallest epsilon that a filter of these orders would have needed to admit what was admitted."""
        return self._epsilon(self._spent)

    def epsilon_with(self, event: DpEvent) -> float:
        """Return what ``epsilon`` would be after this event.

        Raises:
            PrivacyError: the event is of a kind that ownlet does not record.
        """
        return self._epsilon(self._with(event))

    def fits(self, event: DpEvent) -> bool:
        """Say whether the next event may run.

        Raises:
            PrivacyError: the event is of a kind that ownlet does not record.
        """
        return self.epsilon_with(event) <= self.target_epsilon

    def charge(self, event: DpEvent) -> None:
        """Admit an event; only then may its result be released.

        Raises:
            BudgetExceededError: it does not fit; nothing is charged.
            PrivacyError: the event is of a kind that ownlet does not record.
        """
        after = self._with(event)
        needed = self._epsilon(after)
        if needed > self.target_epsilon:
            raise BudgetExceededError(
                f"epsilon must not exceed {self.target_epsilon:g} at dp_delta={self.dp_delta:g}, got {needed:.4f}: "
                f"{self.epsilon:.4f} is spent"
            )
        self._spent = after

    def _with(self, event: DpEvent) -> list[RdpAccountant]:
        after = copy.deepcopy(self._spent)
        for accountant in after:
            accountant.compose(_recorded(event))
        return after

    def _epsilon(self, accountants: list[RdpAccountant]) -> float:
        part = self.dp_delta / len(self.orders)
        return min(float(accountant.get_epsilon(part)) for accountant in accountants)


def _accountant(orders: Sequence[float]) -> RdpAccountant:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    return RdpAccountant(list(orders), dp.NeighboringRelation.ADD_OR_REMOVE_ONE)


def _recorded(event: DpEvent) -> DpEvent:
    event_to_json(event)  # raises for a kind that ownlet does not record
    return event
