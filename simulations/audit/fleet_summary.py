"""What a fleet of ledgers comes to: counts, quantiles, and every device that somebody has to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ownlet.device.budget import quick_bound
from ownlet.simulations.audit.fleet_reading import Account, DeviceLedger, Spending

__all__ = [
    "QUANTILES",
    "BrokenLedger",
    "Epsilons",
    "FleetSummary",
    "FleetUnit",
    "PastBudget",
    "SharedPast",
    "needed_epsilons",
    "summarise_fleet",
]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_TOLERANCE = 1 + 1e-6

Epsilons = Mapping[tuple[Spending, float], float]
"""(totals, delta) -> epsilon."""


@dataclass(frozen=True, kw_only=True)
class BrokenLedger:
    """A ledger that does not verify: the device, its file, the line (0: the file as a whole) and why."""

    device: str
    file: str
    line: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class PastBudget:
    """A charge of a ledger whose chain verifies that went past the budget of its time."""

    device: str
    file: str
    line: int
    unit: str
    epsilon: float
    budget: float


@dataclass(frozen=True, kw_only=True)
class SharedPast:
    """Devices whose ledgers begin with the same charge: ``duplicate`` where they also end alike, else ``fork``."""

    kind: Literal["duplicate", "fork"]
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FleetUnit:
    """What the devices with a charge of one unit have spent.

    Args:
        devices: how many.
        charges: of all of them.
        uncommitted: of these, without a commit.
        exhausted: devices on which one more charge like their last would not fit.
        epsilon_quantiles: at ``QUANTILES``, over these devices, each at the delta of its budget.
        share_quantiles: the same of epsilon divided by the budget.
        spent: (epsilon, budget's epsilon, devices) for each distinct pair, rising.
    """

    devices: int
    charges: int
    uncommitted: int
    exhausted: int
    epsilon_quantiles: tuple[float, ...]
    share_quantiles: tuple[float, ...]
    spent: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True, kw_only=True)
class FleetSummary:
    """A fleet in numbers; ``results.plain_json`` makes JSON of it.

    Args:
        ledgers: files found.
        verified: ledgers that verify, with every charge within its budget.
        broken: those that do not verify.
        past_budget: charges past their budget in chains that verify.
        keyed: whether keys were given; without them this finds damage, not forgery.
        units: ``window`` and ``user`` -> what was spent; a unit that nobody spent is left out.
        budgets: ``epsilon E at delta D`` -> devices.
        versions: version of ownlet that wrote the last entry -> devices.
        torn: device -> bytes of a torn line at its end, which never counted.
        shared_pasts: devices that share a past.
        distinct_totals: epsilons that had to be computed.
    """

    ledgers: int
    verified: int
    broken: tuple[BrokenLedger, ...]
    past_budget: tuple[PastBudget, ...]
    keyed: bool
    units: Mapping[str, FleetUnit]
    budgets: Mapping[str, int]
    versions: Mapping[str, int]
    torn: Mapping[str, int]
    shared_pasts: tuple[SharedPast, ...]
    distinct_totals: int

    @property
    def passed(self) -> bool:
        """Whether every ledger verifies, within its budget, and none shares a past."""
        return self.verified == self.ledgers and not self.shared_pasts


def needed_epsilons(ledgers: Iterable[DeviceLedger]) -> list[tuple[Spending, float]]:
    """Return the distinct (totals, delta) that a summary needs an epsilon of."""
    needed: dict[tuple[Spending, float], None] = {}
    for ledger in ledgers:
        for _, _, totals, budget in ledger.points:
            needed[totals, budget.dp_delta] = None
        if ledger.budget is not None:
            for account in ledger.accounts:
                needed[account.totals, ledger.budget.dp_delta] = None
                if _near_the_end(account, ledger):
                    needed[account.once_more, ledger.budget.dp_delta] = None
    return list(needed)


def summarise_fleet(ledgers: Sequence[DeviceLedger], epsilons: Epsilons, *, keyed: bool) -> FleetSummary:
    """Sum ledgers up.

    Args:
        ledgers: of all devices, in the order in which they are to be listed.
        epsilons: of everything that ``needed_epsilons`` names.
        keyed: whether keys were given.
    """
    whole = [ledger for ledger in ledgers if not ledger.reason]
    past = tuple(found for ledger in whole for found in _past_budget(ledger, epsilons))
    over = {found.device for found in past}
    units = {unit: _unit(unit, whole, epsilons) for unit in ("window", "user")}
    return FleetSummary(
        ledgers=len(ledgers),
        verified=sum(ledger.device not in over for ledger in whole),
        broken=tuple(
            BrokenLedger(device=ledger.device, file=str(ledger.path), line=ledger.line, reason=ledger.reason)
            for ledger in ledgers
            if ledger.reason
        ),
        past_budget=past,
        keyed=keyed,
        units={name: unit for name, unit in units.items() if unit is not None},
        budgets=_counted(f"epsilon {b.epsilon:g} at delta {b.dp_delta:g}" for b in (x.budget for x in whole) if b),
        versions=_counted(ledger.version for ledger in whole),
        torn={ledger.device: ledger.torn_bytes for ledger in whole if ledger.torn_bytes},
        shared_pasts=tuple(_shared_pasts(whole)),
        distinct_totals=len(epsilons),
    )


def _near_the_end(account: Account, ledger: DeviceLedger) -> bool:
    """Whether it takes the accountant to say that one more charge fits; mostly a bound says so at once."""
    assert ledger.budget is not None
    return quick_bound(dict(account.once_more), ledger.budget.dp_delta) > ledger.budget.epsilon


def _past_budget(ledger: DeviceLedger, epsilons: Epsilons) -> Iterable[PastBudget]:
    for line, unit, totals, budget in ledger.points:
        spent = epsilons[totals, budget.dp_delta]
        if spent > budget.epsilon * _TOLERANCE:
            yield PastBudget(
                device=ledger.device,
                file=str(ledger.path),
                line=line,
                unit=unit,
                epsilon=spent,
                budget=budget.epsilon,
            )


def _unit(unit: str, ledgers: Iterable[DeviceLedger], epsilons: Epsilons) -> FleetUnit | None:
    pairs: Counter[tuple[float, float]] = Counter()
    charges = uncommitted = exhausted = 0
    for ledger in ledgers:
        for account in ledger.accounts:
            if account.unit != unit or ledger.budget is None:
                continue
            budget, dp_delta = ledger.budget.epsilon, ledger.budget.dp_delta
            pairs[epsilons[account.totals, dp_delta], budget] += 1
            charges += account.charges
            uncommitted += account.uncommitted
            exhausted += _near_the_end(account, ledger) and epsilons[account.once_more, dp_delta] > budget
    if not pairs:
        return None
    spent = np.repeat([epsilon for epsilon, _ in pairs], list(pairs.values()))
    shares = np.repeat([epsilon / budget for epsilon, budget in pairs], list(pairs.values()))
    return FleetUnit(
        devices=len(spent),
        charges=charges,
        uncommitted=uncommitted,
        exhausted=exhausted,
        epsilon_quantiles=_quantiles(spent),
        share_quantiles=_quantiles(shares),
        spent=tuple((epsilon, budget, devices) for (epsilon, budget), devices in sorted(pairs.items())),
    )


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    """Quantiles that were really seen: infinity is not interpolated."""
    return tuple(float(value) for value in np.quantile(values, QUANTILES, method="inverted_cdf"))


def _shared_pasts(ledgers: Iterable[DeviceLedger]) -> Iterable[SharedPast]:
    by_start: dict[str, list[DeviceLedger]] = defaultdict(list)
    for ledger in ledgers:
        if ledger.first_charge:  # ledgers that only name a budget may begin alike
            by_start[ledger.first_charge].append(ledger)
    for group in by_start.values():
        if len(group) > 1:
            same = len({ledger.head for ledger in group}) == 1
            yield SharedPast(kind="duplicate" if same else "fork", devices=tuple(ledger.device for ledger in group))


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
