"""What privacy was spent, as events; epsilon is always computed from them, never stored instead of them.

An event (``dp_accounting.DpEvent``) says which mechanism ran, with which noise and which sampling. Events add up by
composition; epsilons do not. Epsilon comes from the privacy loss distributions of Koskela et al. 2020
(https://arxiv.org/abs/1906.03049) in the pessimistic discretisation of Doroshenko et al. 2022
(https://arxiv.org/abs/2207.04380), so it is an upper bound.

Neighbouring relation everywhere: add or remove one unit (a user, or a window). Two units, never mixed or added:

* ``user``: each user is in a round's cohort with probability ``cohort_rate``, independently (Poisson sampling), the
  whole delta is clipped to C, and one Gaussian of standard deviation sigma * C is added to the sum. Or each user is in
  at most so many of the rounds (turns), and then nothing is gained by sampling.
* ``window``: each window of a device is in a step's batch with probability ``plan.sample_rate``, independently, its
  gradient is clipped to C, and a Gaussian of standard deviation sigma * C is added on the device. The secrecy of the
  cohort gains nothing here, because the server sees each update.

A device may also send a bit that it flips by chance (randomised response): that is epsilon-differentially private with
delta 0, for all that the bit depends on. Such epsilons are added to that of everything else, at the same delta (basic
composition, Dwork and Roth 2014, theorem 3.16, https://doi.org/10.1561/0400000042): exact for few reports, and an upper
bound always.

Where noise comes in shares see ``shared/distributed_noise.py``; where the parameters of an event are chosen after
results of earlier ones were seen, ``shared/privacy_filter.py``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ownlet.shared.config import Plan
from ownlet.shared.errors import PrivacyError, require

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld import PLDAccountant

__all__ = [
    "ACCOUNTANT",
    "compose_events",
    "epsilon",
    "epsilon_curve",
    "event_from_json",
    "event_to_json",
    "flip_epsilon",
    "noise_multiplier_for",
    "randomized_response_event",
    "user_level_event",
    "user_turns_event",
    "window_level_event",
]

_GRID = 1e-3  # width of the privacy loss grid; a finer one changes epsilon by less than 1e-3 in our ranges

ACCOUNTANT = "dp_accounting PLDAccountant, add-or-remove-one, grid 1e-3"


def user_level_event(cohort_rate: float, noise_multiplier: float, rounds: int) -> DpEvent:
    """Return the event of ``rounds`` rounds with Poisson sampled cohorts and central Gaussian noise.

    Args:
        cohort_rate: the chance of each user to be in a round.
        noise_multiplier: sigma, standard deviation of the noise on the sum divided by the clip norm; 0 is not private.
        rounds: how many rounds released an aggregate, empty cohorts included.

    Raises:
        ConfigError: a number is out of its range.
    """
    require(rounds >= 0, "rounds must not be negative", rounds=rounds)
    return _sampled_gaussians(cohort_rate, noise_multiplier, rounds)


def user_turns_event(noise_multiplier: float, turns: int) -> DpEvent:
    """Return the event of rounds of which each user is in at most ``turns``, with central Gaussian noise.

    One user is in at most that many sums, so adding or removing the user changes that many Gaussians, in full: who
    takes part may be known, and may be decided in any way that does not depend on data.

    Args:
        noise_multiplier: sigma, standard deviation of the noise on the sum divided by the clip norm; 0 is not private.
        turns: the most rounds that any user is in, void ones included.

    Raises:
        ConfigError: a number is out of its range.
    """
    require(turns >= 0, "turns must not be negative", turns=turns)
    return _sampled_gaussians(1.0, noise_multiplier, turns)


def window_level_event(plan: Plan, participations: int) -> DpEvent:
    """Return the event of one device that ran the plan ``participations`` times, for each of its windows.

    Args:
        plan: the public numbers of a local training; a noise multiplier of 0 is not private.
        participations: how often the device trained, steps with an empty batch included.

    Raises:
        ConfigError: ``participations`` is negative.
    """
    require(participations >= 0, "participations must not be negative", participations=participations)
    return _sampled_gaussians(plan.sample_rate, plan.noise_multiplier, plan.steps * participations)


def randomized_response_event(epsilon: float) -> DpEvent:
    """Return the event of one bit that is flipped with probability 1 / (1 + e^epsilon).

    Args:
        epsilon: what one such bit costs, at delta 0.

    Raises:
        ConfigError: ``epsilon`` is not positive, or not finite.
    """
    import dp_accounting as dp

    require(0 < epsilon < math.inf, "epsilon must be positive", epsilon=epsilon)
    return dp.RandomizedResponseDpEvent(2 / (1 + math.exp(epsilon)), 2)


def _sampled_gaussians(rate: float, noise_multiplier: float, count: int) -> DpEvent:
    import dp_accounting as dp

    require(0 < rate <= 1, "sampling rate must be in (0, 1]", rate=rate)
    require(
        0 <= noise_multiplier < math.inf, "noise_multiplier must not be negative", noise_multiplier=noise_multiplier
    )
    if count == 0:
        return dp.NoOpDpEvent()
    if noise_multiplier == 0:
        return dp.NonPrivateDpEvent()
    return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier)), count)


def compose_events(*events: DpEvent) -> DpEvent:
    """Return the event of all the given ones on the same unit, one after the other."""
    import dp_accounting as dp

    return events[0] if len(events) == 1 else dp.ComposedDpEvent(list(events))


def epsilon(event: DpEvent, dp_delta: float) -> float:
    """Return the smallest epsilon for which the event is (epsilon, dp_delta) differentially private.

    An upper bound by privacy loss distributions, under adding or removing one unit.

    Args:
        event: what was spent.
        dp_delta: the privacy parameter delta, in (0, 1).

    Returns:
        epsilon; infinity where the event is not private.

    Raises:
        ConfigError: ``dp_delta`` is out of its range.
        PrivacyError: the event is of a kind that ownlet does not record.
    """
    require(0 < dp_delta < 1, "dp_delta must be in (0, 1)", dp_delta=dp_delta)
    return _epsilon(event_to_json(event), dp_delta)


def epsilon_curve(event: DpEvent, dp_deltas: Sequence[float]) -> tuple[float, ...]:
    """Return ``epsilon`` at each of the deltas; hardly more work than at one of them."""
    return tuple(epsilon(event, dp_delta) for dp_delta in dp_deltas)


@functools.lru_cache(maxsize=4096)
def _epsilon(text: str, dp_delta: float) -> float:
    flipped, rest = _without_flips(json.loads(text))
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return flipped + float(_accountant(text).get_epsilon(dp_delta))


def _without_flips(plain: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    """Return the epsilon of all flipped bits in an event, and the event without them."""
    match plain["kind"]:
        case "randomized_response":
            return flip_epsilon(plain["noise_parameter"]), {"kind": "none"}
        case "repeated":
            flipped, rest = _without_flips(plain["event"])
            return int(plain["count"]) * flipped, {**plain, "event": rest}
        case "composed":
            parts = [_without_flips(part) for part in plain["events"]]
            return sum(flipped for flipped, _ in parts), {**plain, "events": [rest for _, rest in parts]}
    return 0.0, plain


def flip_epsilon(noise_parameter: float) -> float:
    """Return the epsilon of one bit that is replaced by a coin with this probability.

    Raises:
        PrivacyError: it is not a probability; at 0 nothing is hidden, and epsilon is infinite.
    """
    if not 0 <= noise_parameter <= 1:
        raise PrivacyError(f"noise_parameter must be in [0, 1], got noise_parameter={noise_parameter!r}")
    return math.inf if noise_parameter == 0 else math.log((2 - noise_parameter) / noise_parameter)


@functools.lru_cache(maxsize=8)  # each holds the whole distribution of the privacy loss, some megabytes at most
def _accountant(text: str) -> PLDAccountant:
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=_GRID)
    accountant.compose(event_from_json(text))
    return accountant


def noise_multiplier_for(target_epsilon: float, dp_delta: float, cohort_rate: float, rounds: int) -> float:
    """Return the least noise multiplier, to 0.1 %, with which ``rounds`` rounds stay within ``target_epsilon``.

    Args:
        target_epsilon: the budget; infinity asks for no noise.
        dp_delta: the privacy parameter delta.
        cohort_rate: the chance of each user to be in a round.
        rounds: how many rounds must be possible.

    Returns:
        sigma; the epsilon that it gives never exceeds the target.

    Raises:
        ConfigError: a number is out of its range.
        PrivacyError: no noise multiplier below 2^20 is enough.
    """
    require(target_epsilon > 0, "target_epsilon must be positive", target_epsilon=target_epsilon)
    require(rounds >= 1, "rounds must be at least 1", rounds=rounds)
    if target_epsilon == math.inf:
        return 0.0

    def fits(sigma: float) -> bool:
        return epsilon(user_level_event(cohort_rate, sigma, rounds), dp_delta) <= target_epsilon

    enough = 1.0
    while not fits(enough):
        enough *= 2.0
        if enough > 2.0**20:
            raise PrivacyError(f"target_epsilon must be reachable, got target_epsilon={target_epsilon!r}")
    too_little = enough / 2.0
    while enough == 1.0 and too_little > 2.0**-5 and fits(too_little):  # below, the privacy loss grid gets too large
        too_little /= 2.0
    while enough / too_little > 1.001:
        middle = math.sqrt(enough * too_little)
        enough, too_little = (middle, too_little) if fits(middle) else (enough, middle)
    return enough


def event_to_json(event: DpEvent) -> str:
    """Write an event as canonical JSON: sorted keys, no spaces.

    dp_accounting's own named tuples are not used for reading, because they import the module that the text names.

    Raises:
        PrivacyError: the event is of a kind that ownlet does not record.
    """
    return json.dumps(_to_plain(event), sort_keys=True, separators=(",", ":"))


def event_from_json(text: str) -> DpEvent:
    """Read what ``event_to_json`` wrote.

    Raises:
        PrivacyError: the text is not an event.
    """
    try:
        return _from_plain(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PrivacyError(f"privacy event must be valid JSON of an event, got {text[:80]!r}") from error


def _to_plain(event: DpEvent) -> dict[str, Any]:
    import dp_accounting as dp

    match event:
        case dp.NoOpDpEvent():
            return {"kind": "none"}
        case dp.NonPrivateDpEvent():
            return {"kind": "non_private"}
        case dp.GaussianDpEvent():
            return {"kind": "gaussian", "noise_multiplier": float(event.noise_multiplier)}
        case dp.RandomizedResponseDpEvent() if event.num_buckets == 2:
            return {"kind": "randomized_response", "noise_parameter": float(event.noise_parameter)}
        case dp.PoissonSampledDpEvent():
            return {"kind": "poisson", "rate": float(event.sampling_probability), "event": _to_plain(event.event)}
        case dp.SelfComposedDpEvent():
            return {"kind": "repeated", "count": int(event.count), "event": _to_plain(event.event)}
        case dp.ComposedDpEvent():
            return {"kind": "composed", "events": [_to_plain(part) for part in event.events]}
    raise PrivacyError(f"privacy event must be of a recorded kind, got {type(event).__name__}")


def _from_plain(plain: Mapping[str, Any]) -> DpEvent:
    import dp_accounting as dp

    match plain["kind"]:
        case "none":
            return dp.NoOpDpEvent()
        case "non_private":
            return dp.NonPrivateDpEvent()
        case "gaussian":
            return dp.GaussianDpEvent(float(plain["noise_multiplier"]))
        case "randomized_response":
            flip_epsilon(float(plain["noise_parameter"]))
            return dp.RandomizedResponseDpEvent(float(plain["noise_parameter"]), 2)
        case "poisson":
            return dp.PoissonSampledDpEvent(float(plain["rate"]), _from_plain(plain["event"]))
        case "repeated":
            return dp.SelfComposedDpEvent(_from_plain(plain["event"]), int(plain["count"]))
        case "composed":
            return dp.ComposedDpEvent([_from_plain(part) for part in plain["events"]])
    raise PrivacyError(f"privacy event must be of a recorded kind, got {plain['kind']!r}")
