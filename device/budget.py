"""Whether one more charge fits into a privacy budget, decided in well under a millisecond almost always.

The decision is that of the accountant of ``shared.privacy`` (privacy loss distributions, PLD) on everything that was
spent on a unit. That takes 0.1 to 0.3 s and seconds of imports, so two shortcuts stand before it, neither of which may
change the decision:

* Renyi differential privacy of the sampled Gaussian mechanism at integer orders (Mironov, Talwar and Zhang 2019,
  https://arxiv.org/abs/1908.10530, section 3.3), which adds up over charges, turned into epsilon by Canonne, Kamath and
  Steinke 2020 (https://arxiv.org/abs/2004.00010, proposition 12). PLD is loose by its own grid h where steps are many
  and tiny; the chord over a grid cell adds at most order * h^2 / 8 per step to the Renyi divergence, which is added
  here, so that what the bound accepts PLD accepts too.
* A ``Limit``: the largest count of one mechanism that fits beside the other totals, found once by PLD. The ledger keeps
  it, so processes to come need no accountant.

Everything is counted per mechanism ("how many steps with this noise and this sampling rate"), because composition does
not depend on the order. Bits of randomised response add their epsilons to that of the rest. Neighbouring relation: add
or remove one unit; sampling: Poisson. Units are never added.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ownlet.shared.errors import PrivacyError, require
from ownlet.shared.privacy import ACCOUNTANT, epsilon, event_from_json, flip_epsilon

__all__ = ["Budget", "Limit", "Totals", "accountant", "epsilon_of", "find_limit", "quick_bound", "totals_of"]

Totals = Mapping[str, int]
"""Canonical JSON of a mechanism (one step) -> how many times it ran."""

_NON_PRIVATE = '{"kind":"non_private"}'
_ORDERS = (*range(2, 17), 18, 20, 24, 28, 32, 40, 48, 64, 96, 128)
_LOG_FACTORIAL = np.array([math.lgamma(n + 1) for n in range(_ORDERS[-1] + 1)])
_GRID = 1e-3  # of the PLD accountant in shared.privacy
_TOO_LARGE = 1000.0  # PLD of such an epsilon needs more memory than a phone has, and tells nothing


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be spent on each of the two units, for ever; it never renews.

    Args:
        epsilon: the most that a unit's charges may add up to; infinity means no limit.
        dp_delta: the privacy parameter delta at which epsilon is taken.
    """

    epsilon: float = 8.0
    dp_delta: float = 1e-6

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "epsilon must be positive", epsilon=self.epsilon)
        require(0 < self.dp_delta < 1, "dp_delta must be in (0, 1)", dp_delta=self.dp_delta)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What PLD once found: up to ``count`` steps of ``mechanism`` fit beside the other totals, one more does not.

    Args:
        mechanism: the key in ``Totals``.
        count: the largest total count that fits.
        accountant: what found it; another version decides anew.
    """

    mechanism: str
    count: int
    accountant: str


@functools.lru_cache(maxsize=256)
def totals_of(event: str) -> Totals:
    """Count the mechanisms of an event.

    Args:
        event: as ``privacy.event_to_json`` writes it.

    Raises:
        PrivacyError: not an event, or of a kind that the accountant cannot compose.
    """
    try:
        return MappingProxyType(_count(json.loads(event)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PrivacyError(f"privacy event must be one that ownlet records, got {event[:80]!r}") from error


def _count(event: Mapping[str, Any]) -> Counter[str]:
    match event["kind"]:
        case "none":
            return Counter()
        case "non_private":
            return Counter({_NON_PRIVATE: 1})
        case "gaussian":
            return _step({"kind": "gaussian"}, event)
        case "randomized_response":
            noise_parameter = float(event["noise_parameter"])
            if flip_epsilon(noise_parameter) == math.inf:
                return Counter({_NON_PRIVATE: 1})
            plain = {"kind": "randomized_response", "noise_parameter": noise_parameter}
            return Counter({json.dumps(plain, sort_keys=True, separators=(",", ":")): 1})
        case "poisson" if event["event"]["kind"] in ("gaussian", "non_private"):
            rate = float(event["rate"])
            if not 0 < rate <= 1:
                raise ValueError("rate")
            if event["event"]["kind"] == "non_private":
                return Counter({_NON_PRIVATE: 1})
            return _step({"kind": "poisson", "rate": rate}, event["event"])
        case "repeated":
            times = event["count"]
            if not isinstance(times, int) or isinstance(times, bool) or times < 1:
                raise ValueError("count")
            return Counter({name: times * count for name, count in _count(event["event"]).items()})
        case "composed":
            return sum((_count(part) for part in event["events"]), Counter())
    raise ValueError("kind")


def _step(outer: dict[str, Any], gaussian: Mapping[str, Any]) -> Counter[str]:
    sigma = float(gaussian["noise_multiplier"])
    if not 0 <= sigma < math.inf:
        raise ValueError("noise_multiplier")
    if sigma == 0:
        return Counter({_NON_PRIVATE: 1})
    inner = {"kind": "gaussian", "noise_multiplier": sigma}
    plain = inner if outer["kind"] == "gaussian" else {**outer, "event": inner}
    return Counter({json.dumps(plain, sort_keys=True, separators=(",", ":")): 1})


def quick_bound(totals: Totals, dp_delta: float) -> float:
    """Return an upper bound on ``epsilon_of``, typically 5 to 10 % above it; infinity where an event is not private."""
    if totals.get(_NON_PRIVATE):
        return math.inf
    if not any(totals.values()):
        return 0.0
    flipped = sum(count * _flip(mechanism) for mechanism, count in totals.items())
    noised = {mechanism: count for mechanism, count in totals.items() if count and not _flip(mechanism)}
    if not noised:
        return flipped
    spent = sum(count * _renyi(mechanism) for mechanism, count in noised.items())
    orders = np.array(_ORDERS, np.float64)
    epsilons = spent + np.log1p(-1 / orders) - np.log(dp_delta * orders) / (orders - 1)
    return flipped + max(0.0, float(epsilons.min()))


@functools.lru_cache(maxsize=1024)
def _flip(mechanism: str) -> float:
    """Epsilon of one bit of randomised response; 0 for other mechanisms. These add up without an accountant."""
    plain = json.loads(mechanism)
    return flip_epsilon(plain["noise_parameter"]) if plain["kind"] == "randomized_response" else 0.0


@functools.lru_cache(maxsize=1024)
def _renyi(mechanism: str) -> Any:
    """Renyi divergence of one step at each order, plus what the grid of PLD adds, (num_orders,)."""
    plain = json.loads(mechanism)
    rate = plain.get("rate", 1.0)
    variance = plain.get("event", plain)["noise_multiplier"] ** 2
    return np.array([_renyi_at(order, rate, variance) + order * _GRID**2 / 8 for order in _ORDERS])


def _renyi_at(order: int, rate: float, variance: float) -> float:
    if rate == 1:
        return order / (2 * variance)
    k = np.arange(order + 1)
    choose = _LOG_FACTORIAL[order] - _LOG_FACTORIAL[k] - _LOG_FACTORIAL[order - k]
    terms = choose + k * math.log(rate) + (order - k) * math.log1p(-rate) + k * (k - 1) / (2 * variance)
    largest = terms.max()
    return float(largest + math.log(np.exp(terms - largest).sum())) / (order - 1)


def epsilon_of(totals: Totals, dp_delta: float) -> float:
    """Return epsilon of these totals by PLD; above 1000 by the quick bound, since the grid would not fit into memory.

    Raises:
        ConfigError: ``dp_delta`` is out of its range.
    """
    bound = quick_bound(totals, dp_delta)
    if bound == 0 or bound > _TOO_LARGE:
        return bound
    parts = [
        {"count": count, "event": json.loads(mechanism), "kind": "repeated"}
        for mechanism, count in sorted(totals.items())
        if count
    ]
    return epsilon(event_from_json(json.dumps({"events": parts, "kind": "composed"})), dp_delta)


def find_limit(totals: Totals, mechanism: str, budget: Budget) -> Limit:
    """Find the largest count of one mechanism that fits beside the others, in about six evaluations of PLD.

    Args:
        totals: what fits, with at least one step of the mechanism.
        mechanism: the one that grows.
        budget: finite.
    """

    def spent(count: int) -> float:
        return epsilon_of({**totals, mechanism: count}, budget.dp_delta)

    fits, spent_fits = totals[mechanism], spent(totals[mechanism])
    slope = spent_fits / fits  # epsilon is about concave in the count, so this chord falls short rather than beyond
    exceeds: int | None = None
    secants = 0
    while exceeds is None or exceeds - fits > 1:
        guess = fits + max(1, int(min(fits, (budget.epsilon - spent_fits) / max(slope, 1e-12))))
        if exceeds is not None and (guess >= exceeds or secants > 6):
            guess = (fits + exceeds) // 2
        secants += 1
        spent_guess = spent(guess)
        slope = (spent_guess - spent_fits) / (guess - fits)
        if spent_guess <= budget.epsilon:
            fits, spent_fits = guess, spent_guess
        else:
            exceeds = guess
    return Limit(mechanism=mechanism, count=fits, accountant=accountant())


@functools.cache
def accountant() -> str:
    """Name the accountant and its version, without importing it."""
    return f"{ACCOUNTANT}, version {importlib.metadata.version('dp-accounting')}"
