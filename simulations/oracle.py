"""The best possible scores on the synthetic population, and the scores of its popularity.

``bayes_scores`` is the exact probability of every item to be the next one, given the history, the times of its events
and the time of the next one. Taste and region are unknown to it, as they are to a model: it sums over their posterior,
which Bayes' rule updates event by event from a uniform prior. No recommender that sees the same has a higher expected
HR, NDCG or MRR, because ranking by the probability of the single relevant item is optimal for each of them
(Robertson 1977, the probability ranking principle). A model that does not read times sees less: its bound too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.interactions import History, pad_histories
from ownlet.simulations.world import Shelf, World

__all__ = ["bayes_scores", "popularity_scores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def bayes_scores(
    world: World, histories: Sequence[History], times: Sequence[NDArray[np.int64]], next_times: Ints
) -> Floats:
    """Return the probability of every item to come next.

    Args:
        world: what generated the histories.
        histories: item numbers per user, without repeats.
        times: unix seconds per event.
        next_times: (users,) unix seconds of the event that is to be predicted.

    Returns:
        (users, num_items + 1) probabilities; rows sum to 1, column 0 and seen items are 0.

    Raises:
        ConfigError: numbers of users or events do not fit.
    """
    require(len(histories) == len(times) == len(next_times), "users must be the same", users=len(histories))
    same = all(len(h) == len(t) for h, t in zip(histories, times, strict=True))
    require(same, "every event must have a time", users=len(histories))
    longest = max([1, *(len(h) for h in histories)])
    events, _ = pad_histories(histories, longest)  # (users, longest)
    periods = world.periods(pad_histories(times, longest)[0])
    config = world.config
    log_posterior = np.zeros((len(events), config.num_tastes, config.num_regions))
    shelf = Shelf(world, len(events))
    last = np.zeros(len(events), np.int64)
    for step in range(longest):
        item = events[:, step]
        likelihood = _likelihood(world, shelf, last, item, periods[:, step])
        log_posterior += np.log(np.where((item > 0)[:, None, None], likelihood, 1.0))
        shelf.take(item)
        last = np.where(item > 0, item, last)
    posterior = np.exp(log_posterior - log_posterior.max(axis=(1, 2), keepdims=True))
    posterior /= posterior.sum(axis=(1, 2), keepdims=True)
    return _predict(world, shelf, last, world.periods(next_times), posterior)


def popularity_scores(world: World, users: int) -> NDArray[np.float64]:
    """Return every item's popularity within its genre times the genre's average interest, the same for every user.

    This is popularity as far as the world's parameters tell it; it needs no histories.

    Args:
        world: the generating probabilities.
        users: how many equal rows.

    Returns:
        (users, num_items + 1).
    """
    interest = np.einsum("cg,rpg->crpg", world.taste, world.drift)
    share = (interest / interest.sum(axis=-1, keepdims=True)).mean(axis=(0, 1, 2))  # (num_genres,)
    return np.tile(world.popularity * share[world.genre], (users, 1))


def _normalisers(world: World, shelf: Shelf, last: Ints, period: Ints) -> tuple[Floats, Floats, Floats]:
    """Return transition (users, genres), drift (users, regions, genres), walk's sum (users, tastes, regions)."""
    transition = world.transition[shelf.genre_row(last)]
    drift = world.drift[:, period].transpose(1, 0, 2)
    by_taste = (transition * shelf.mass)[:, None, :] * world.taste  # (users, tastes, genres)
    return transition, drift, by_taste @ drift.transpose(0, 2, 1)


def _follow(world: World, shelf: Shelf, last: Ints) -> tuple[Floats, Ints, Floats]:
    """Return the chance to follow a sequel (users,), the sequels and their shares, both (users, num_sequels)."""
    sequels, weights = shelf.unseen_sequels(last)
    total = weights.sum(axis=1)
    return np.where(total > 0, world.config.follow, 0.0), sequels, weights / np.where(total > 0, total, 1.0)[:, None]


def _likelihood(world: World, shelf: Shelf, last: Ints, item: Ints, period: Ints) -> Floats:
    """Return the probability of the item that came (users,) under every taste and region: (users, tastes, regions)."""
    transition, drift, total = _normalisers(world, shelf, last, period)
    rows, genre = np.arange(len(item)), world.genre[item]
    interest = world.taste[:, genre].T[:, :, None] * drift[rows, :, genre][:, None, :]  # (users, tastes, regions)
    walked = (transition[rows, genre] * world.popularity[item])[:, None, None] * interest / total
    chance, sequels, shares = _follow(world, shelf, last)
    followed = (shares * (sequels == item[:, None])).sum(axis=1)
    likelihood: Floats = (chance * followed)[:, None, None] + (1 - chance)[:, None, None] * walked
    return likelihood


def _predict(world: World, shelf: Shelf, last: Ints, period: Ints, posterior: Floats) -> Floats:
    """Mix the next item's probabilities over tastes and regions: (users, num_items + 1)."""
    transition, drift, total = _normalisers(world, shelf, last, period)
    mixed = np.einsum("ucr,cg,urg->ug", posterior / total, world.taste, drift, optimize=True)  # (users, genres)
    chance, sequels, shares = _follow(world, shelf, last)
    walk = (1 - chance)[:, None] * transition * mixed
    scores: Floats = walk[:, world.genre] * world.popularity * ~shelf.seen
    np.add.at(scores, (np.arange(len(last))[:, None], sequels), chance[:, None] * shares)
    return scores
