"""The world of the synthetic population: its items, and the probabilities that generate every history.

Each user has one of a few tastes (a preference over genres) and lives in one of a few regions. The interests of a
region drift from period to period, and all its users drift together; that is what federated learning can pick up and a
base trained earlier cannot. The next item of a user follows from the last one in one of two ways:

- with probability ``follow`` it is one of the last item's few *sequels* (by fixed weights, among those not yet seen);
- otherwise any unseen item i with probability proportional to ``transition[genre(last), genre(i)] * taste[genre(i)] *
  drift[region, period, genre(i)] * popularity(i)``, where popularity within a genre is Zipf's.

No user sees an item twice. Tastes and regions are discrete, so the exact posterior over them given a history, and with
it the Bayes-optimal scores, is a finite sum (``simulations/oracle.py``).

Users are drawn from it in ``simulations/population.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.interactions import Item
from ownlet.simulations.titles import GENRES, make_title

__all__ = ["PopulationConfig", "Shelf", "World", "make_world"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY_SECONDS = 86_400
START_SECONDS = 1_704_067_200  # 2024-01-01 UTC


@dataclass(frozen=True, kw_only=True)
class PopulationConfig:
    """The public numbers of a synthetic population.

    Args:
        num_users: how many users.
        num_items: how many items; at least 10 per genre.
        seed: everything follows from it.
        num_genres: at most 18.
        num_tastes: kinds of users.
        num_regions: groups of users that drift together.
        num_periods: time steps of the drift.
        period_days: length of a period.
        min_events: shortest history.
        max_events: longest history.
        mean_gap_days: average time between two events of a user.
        follow: probability that the next item is a sequel of the last one.
        num_sequels: sequels per item.
        zipf: exponent of popularity within a genre.
        drift: standard deviation of a region's interest in a genre, on the log scale; 0 turns drift off.
        common_drift: share of the drift's variance that all regions have in common.
    """

    num_users: int = 2000
    num_items: int = 1000
    seed: int = 0
    num_genres: int = 12
    num_tastes: int = 12
    num_regions: int = 4
    num_periods: int = 12
    period_days: int = 30
    min_events: int = 20
    max_events: int = 40
    mean_gap_days: float = 3.0
    follow: float = 0.15
    num_sequels: int = 3
    zipf: float = 1.2
    drift: float = 1.2
    common_drift: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_users", "num_tastes", "num_regions", "num_periods", "period_days", "num_sequels"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(
            2 <= self.num_genres <= len(GENRES), f"num_genres must be 2 to {len(GENRES)}", num_genres=self.num_genres
        )
        require(
            self.num_items >= 10 * self.num_genres, "num_items must be at least 10 per genre", num_items=self.num_items
        )
        lengths = 1 <= self.min_events <= self.max_events <= self.num_items // 2
        require(lengths, "1 <= min_events <= max_events <= num_items / 2", low=self.min_events, high=self.max_events)
        require(0 <= self.follow < 1, "follow must be in [0, 1)", follow=self.follow)
        require(0 <= self.common_drift <= 1, "common_drift must be in [0, 1]", common_drift=self.common_drift)
        require(self.mean_gap_days > 0, "mean_gap_days must be positive", mean_gap_days=self.mean_gap_days)
        require(
            self.zipf >= 0 and self.drift >= 0, "zipf and drift must not be negative", zipf=self.zipf, drift=self.drift
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What all users share: the generating probabilities. Item 0 is padding and has weight 0 everywhere.

    Args:
        config: the numbers it was made from.
        items: the catalogue.
        genre: (num_items + 1,) the genre that generates an item; 0 for padding, whose weight is 0.
        popularity: (num_items + 1,) weight within the genre; sums to 1 in each genre.
        sequels: (num_items + 1, num_sequels) item numbers.
        sequel_weights: (num_sequels,) sums to 1.
        transition: (num_genres + 1, num_genres) row = genre of the last item; the last row, all 1: no item yet.
        taste: (num_tastes, num_genres).
        drift: (num_regions, num_periods, num_genres), positive.
    """

    config: PopulationConfig
    items: tuple[Item, ...]
    genre: Ints
    popularity: Floats
    sequels: Ints
    sequel_weights: Floats
    transition: Floats
    taste: Floats
    drift: Floats

    def periods(self, times: Ints) -> Ints:
        """Return the period of each time in unix seconds; what lies outside the horizon is in the first or last one."""
        period = (times - START_SECONDS) // (self.config.period_days * DAY_SECONDS)
        return np.clip(period, 0, self.config.num_periods - 1)

    @cached_property
    def shelves(self) -> tuple[Ints, Floats]:
        """Items by genre, (num_genres, longest shelf), padded with item 0, and their popularity."""
        members = [np.flatnonzero(self.genre == g) for g in range(self.config.num_genres)]
        members[0] = members[0][members[0] > 0]
        shelf = np.zeros((len(members), max(len(m) for m in members)), np.int64)
        for g, numbers in enumerate(members):
            shelf[g, : len(numbers)] = numbers
        return shelf, self.popularity[shelf]

    @cached_property
    def places(self) -> Ints:
        """Where each item stands on the shelf of its genre, (num_items + 1,); meaningless for padding."""
        shelf = self.shelves[0]
        places = np.zeros(len(self.genre), np.int64)
        places[shelf] = np.arange(shelf.shape[1])
        return places


class Shelf:
    """What some users have not seen yet; drawing a history and judging one both walk along it."""

    def __init__(self, world: World, users: int) -> None:
        """Start with everything unseen.

        Args:
            world: the generating probabilities.
            users: how many users.
        """
        num_genres = world.config.num_genres
        self._world = world
        self._places = world.places
        self._rows = np.arange(users)
        self._left = np.tile(np.bincount(world.genre[1:], minlength=num_genres), (users, 1))
        self.seen = np.zeros((users, len(world.genre)), bool)
        self.seen[:, 0] = True
        self._unseen = np.ones((users, *world.shelves[0].shape), bool)  # the same by genre and place, to copy whole
        self.mass = np.ones((users, num_genres))  # popularity that is left in each genre

    def genre_row(self, last: Ints) -> Ints:
        """Return the row of ``transition`` for the last item (users,), 0 where there is none."""
        return np.where(last > 0, self._world.genre[last], self._world.config.num_genres)

    def unseen_sequels(self, last: Ints) -> tuple[Ints, Floats]:
        """Return the sequels of the last items and their weights, 0 where seen; both (users, num_sequels)."""
        sequels = self._world.sequels[last]
        return sequels, self._world.sequel_weights * ~self.seen[self._rows[:, None], sequels]

    def unseen_places(self, genre: Ints) -> NDArray[np.bool_]:
        """Return which places of one shelf per user (users,) hold an unseen item: (users, longest shelf)."""
        unseen: NDArray[np.bool_] = self._unseen[self._rows, genre]
        return unseen

    def take(self, items: Ints) -> None:
        """Mark one item per user (users,) as seen; 0 marks nothing."""
        genre = self._world.genre[items]
        self.seen[self._rows, items] = True
        self._unseen[self._rows, genre, self._places[items]] &= items == 0
        self._left[self._rows, genre] -= items > 0
        self.mass[self._rows, genre] -= self._world.popularity[items]
        self.mass = np.where(self._left > 0, np.maximum(self.mass, 0.0), 0.0)  # rounding must not revive an empty genre


def make_world(config: PopulationConfig) -> World:
    """Draw what all users share."""
    rng = np.random.default_rng([config.seed, 0])
    genre = np.concatenate([[0], rng.permutation(np.arange(config.num_items) % config.num_genres)])
    popularity = np.zeros(config.num_items + 1)
    for g in range(config.num_genres):
        shelf = 1 + rng.permutation(np.flatnonzero(genre[1:] == g))
        weights = np.arange(1, len(shelf) + 1) ** -config.zipf
        popularity[shelf] = weights / weights.sum()
    transition = rng.lognormal(sigma=1.5, size=(config.num_genres + 1, config.num_genres))
    transition[-1] = 1.0
    sequel_weights = 0.5 ** np.arange(config.num_sequels)
    return World(
        config=config,
        items=_make_items(genre, rng),
        genre=genre,
        popularity=popularity,
        sequels=_make_sequels(genre, popularity, config.num_sequels, rng),
        sequel_weights=sequel_weights / sequel_weights.sum(),
        transition=transition,
        taste=rng.lognormal(sigma=1.5, size=(config.num_tastes, config.num_genres)),
        drift=_make_drift(config, rng),
    )


def _make_items(genre: Ints, rng: np.random.Generator) -> tuple[Item, ...]:
    """Give every item a title and genres: the one that generates it first, often a second one that is only a label."""
    items = []
    for number in range(1, len(genre)):
        names = [GENRES[genre[number]]]
        if rng.random() < 0.4:
            names.append(GENRES[rng.integers(len(GENRES))])
        title = make_title(names[0], rng)
        items.append(Item(number=number, id=f"item-{number}", title=title, genres=tuple(dict.fromkeys(names))))
    return tuple(items)


def _make_sequels(genre: Ints, popularity: Floats, num_sequels: int, rng: np.random.Generator) -> Ints:
    """Choose sequels for every item: distinct other items, mostly of the same genre and mostly popular ones."""
    num_items = len(genre) - 1
    sequels = np.zeros((num_items + 1, num_sequels), np.int64)
    for number in range(1, num_items + 1):
        weights = popularity[1:] * np.where(genre[1:] == genre[number], 1.0, 0.2 / len(GENRES))
        weights[number - 1] = 0.0
        sequels[number] = 1 + rng.choice(num_items, size=num_sequels, replace=False, p=weights / weights.sum())
    return sequels


def _make_drift(config: PopulationConfig, rng: np.random.Generator) -> Floats:
    """Let log interests walk from period to period with constant variance: regions together, and each its own way."""
    keep = 0.8
    shape = (config.num_regions + 1, config.num_genres)  # the last row is what all regions share
    walks = np.zeros((config.num_periods, *shape))
    walks[0] = rng.normal(size=shape)
    for period in range(1, config.num_periods):
        walks[period] = keep * walks[period - 1] + np.sqrt(1 - keep**2) * rng.normal(size=shape)
    share = config.common_drift
    walk = np.sqrt(share) * walks[:, -1:] + np.sqrt(1 - share) * walks[:, :-1]
    drift: Floats = np.exp(config.drift * walk).transpose(1, 0, 2)  # (regions, periods, genres)
    return drift
