"""A synthetic population whose best possible recommender is known.

``simulations/world.py`` says how the next item of a user comes about, ``simulations/oracle.py`` what the best possible
scores are. Here users are drawn, in blocks, each block from its own seed: so a user does not depend on how many users
there are, and a population of any size can be made block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.interactions import Interactions
from ownlet.simulations.world import DAY_SECONDS, START_SECONDS, PopulationConfig, Shelf, World, make_world

__all__ = ["BLOCK_USERS", "Block", "Population", "draw_blocks", "make_population", "populate"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK_USERS = 1000
"""Users that are drawn at once, from one seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Some users, with what a real data set would not tell about them.

    Args:
        events: (users, max_events) item numbers, 0 behind the last.
        times: (users, max_events) unix seconds, never decreasing; meaningless behind the last event.
        lengths: (users,) events per user.
        taste: (users,) the user's taste.
        region: (users,) the user's region.
    """

    events: Ints
    times: Ints
    lengths: Ints
    taste: Ints
    region: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """A world and its users.

    Args:
        world: the generating probabilities.
        interactions: the events, with the user's ``region`` as a context column.
        taste: (num_users,) each user's taste; hidden from every model.
        region: (num_users,) each user's region.
    """

    world: World
    interactions: Interactions
    taste: Ints
    region: Ints


def make_population(num_users: int = 2000, num_items: int = 1000, seed: int = 0) -> Population:
    """Make the built-in population.

    Args:
        num_users: how many users.
        num_items: how many items.
        seed: equal seeds give equal populations; the first n users do not depend on ``num_users``.

    Returns:
        The population, all in memory; for one that does not fit use ``draw_blocks``.

    Raises:
        ConfigError: a number breaks its rule.
    """
    return populate(make_world(PopulationConfig(num_users=num_users, num_items=num_items, seed=seed)))


def populate(world: World) -> Population:
    """Draw all users of a world."""
    blocks = list(draw_blocks(world))
    lengths = np.concatenate([block.lengths for block in blocks])
    real = np.arange(world.config.max_events) < lengths[:, None]  # (users, max_events)
    region = np.concatenate([block.region for block in blocks])
    interactions = Interactions(
        name=f"synthetic-{world.config.seed}",
        items=world.items,
        user_ids=tuple(f"user-{number}" for number in range(len(lengths))),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        events=np.concatenate([block.events for block in blocks])[real],
        times=np.concatenate([block.times for block in blocks])[real],
        context={"region": np.repeat(region, lengths)},
    )
    taste = np.concatenate([block.taste for block in blocks])
    return Population(world=world, interactions=interactions, taste=taste, region=region)


def draw_blocks(world: World, *, first_user: int = 0) -> Iterator[Block]:
    """Draw ``num_users`` users of a world, at most 1,000 at a time, so that memory does not grow with their number.

    Args:
        world: the generating probabilities, and how many users.
        first_user: draw this user and those who come later; a multiple of 1,000. Who a user is does not depend on it.

    Raises:
        ConfigError: ``first_user`` is not such a number.
    """
    begins = first_user >= 0 and first_user % BLOCK_USERS == 0
    require(begins, f"first_user must be a multiple of {BLOCK_USERS}", first_user=first_user)
    end = first_user + world.config.num_users
    return (
        _first_users(_draw_block(world, start // BLOCK_USERS), end - start)
        for start in range(first_user, end, BLOCK_USERS)
    )


def _first_users(block: Block, count: int) -> Block:
    """Keep at most so many. A block is always drawn whole, so that its first users do not depend on ``num_users``."""
    return Block(
        events=block.events[:count],
        times=block.times[:count],
        lengths=block.lengths[:count],
        taste=block.taste[:count],
        region=block.region[:count],
    )


def _draw_block(world: World, number: int) -> Block:
    """Draw a whole block, event by event for all its users at once."""
    config = world.config
    rng = np.random.default_rng([config.seed, 1, number])
    taste = rng.integers(config.num_tastes, size=BLOCK_USERS)
    region = rng.integers(config.num_regions, size=BLOCK_USERS)
    lengths = rng.integers(config.min_events, config.max_events + 1, size=BLOCK_USERS)
    times = _draw_times(config, rng)  # (users, max_events)
    periods = world.periods(times)
    events = np.zeros_like(times)
    shelf = Shelf(world, BLOCK_USERS)
    last = np.zeros(BLOCK_USERS, np.int64)
    for step in range(config.max_events):
        interest = world.taste[taste] * world.drift[region, periods[:, step]]  # (users, num_genres)
        last = _draw_next(world, shelf, last, interest, rng)
        shelf.take(last)
        events[:, step] = last
    events[np.arange(config.max_events) >= lengths[:, None]] = 0
    return Block(events=events, times=times, lengths=lengths, taste=taste, region=region)


def _draw_times(config: PopulationConfig, rng: np.random.Generator) -> Ints:
    """Draw exponential gaps, and a start that keeps the history within the horizon if it can: (users, max_events)."""
    gaps = rng.exponential(config.mean_gap_days * DAY_SECONDS, size=(BLOCK_USERS, config.max_events))
    elapsed = np.cumsum(gaps, axis=1)
    room = config.num_periods * config.period_days * DAY_SECONDS - elapsed[:, -1]
    start = rng.random(BLOCK_USERS) * np.maximum(room, 0.0)
    return START_SECONDS + (start[:, None] + elapsed).astype(np.int64)


def _draw_next(world: World, shelf: Shelf, last: Ints, interest: Floats, rng: np.random.Generator) -> Ints:
    """Draw the next item of every user: a sequel of the last one, or a genre and then an item of it."""
    users = len(last)
    sequels, weights = shelf.unseen_sequels(last)  # both (users, num_sequels)
    follows = (rng.random(users) < world.config.follow) & (weights.sum(axis=1) > 0)
    sequel = sequels[np.arange(users), _choose(weights, rng)]
    genre = _choose(world.transition[shelf.genre_row(last)] * interest * shelf.mass, rng)  # (users,)
    free = world.shelves[1][genre] * shelf.unseen_places(genre)  # (users, longest shelf)
    walked = world.shelves[0][genre, _choose(free, rng)]
    return np.where(follows, sequel, walked)


def _choose(weights: Floats, rng: np.random.Generator) -> Ints:
    """Choose a column of each row (rows, columns) with probability proportional to its weight."""
    cumulative = np.cumsum(weights, axis=1)
    threshold = rng.random(len(weights)) * cumulative[:, -1]
    chosen: Ints = (cumulative <= threshold[:, None]).sum(axis=1)
    last = weights.shape[1] - 1  # rounding could put the threshold on the sum itself
    return np.where(chosen > last, last, chosen)
