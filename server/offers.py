"""From a registry's state to what devices are told (``shared/rollout.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from ownlet.server.published import Published
from ownlet.server.rollout import Rollout
from ownlet.shared.errors import StoreError
from ownlet.shared.rollout import Experiment, Manifest, Offer

__all__ = ["manifest_of", "serving_numbers"]


def serving_numbers(state: Rollout) -> set[int]:
    """Return the numbers of all versions that some device may be told to use."""
    arms = state.count.arms if state.count else None
    return {state.stable, state.candidate, *((arms.a, arms.b) if arms else ())} - {0}


def manifest_of(state: Rollout, versions: Sequence[Published]) -> Manifest:
    """Return what devices are told.

    Args:
        state: which version serves whom.
        versions: the intact ones.

    Raises:
        StoreError: there is none, or one that serves is not among them.
    """
    known = {version.number: version for version in versions}
    if not known:
        raise StoreError("registry must have an intact version, got none")
    for number in sorted(serving_numbers(state) - set(known)):
        raise StoreError(f"version must be published and intact, got version {number}, which serves")

    def offer(number: int) -> Offer | None:
        return known[number].offer if number else None

    arms, experiment = state.count.arms if state.count else None, None
    if arms is not None:
        experiment = Experiment(salt=arms.salt, percent=arms.percent, a=offer(arms.a), b=offer(arms.b))
    return Manifest(
        serial=state.serial,
        base_hash=next(iter(known.values())).base_hash,
        stable=offer(state.stable),
        candidate=offer(state.candidate),
        percent=state.percent,
        salt=state.salt,
        paused=bool(state.paused),
        experiment=experiment,
        count=state.count.terms if state.count else None,
    )
