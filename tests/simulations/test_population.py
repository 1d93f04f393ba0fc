"""The synthetic population and its Bayes-optimal scores."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.metrics import paired_difference, ranks, summarise
from ownlet.shared.splits import leave_one_out
from ownlet.simulations.baselines import item_knn, most_popular
from ownlet.simulations.oracle import bayes_scores, popularity_scores
from ownlet.simulations.population import Population, draw_blocks, make_population, populate
from ownlet.simulations.titles import GENRES
from ownlet.simulations.world import PopulationConfig, Shelf, World, make_world

SMALL = PopulationConfig(
    num_users=150, num_items=60, num_genres=3, num_tastes=2, num_regions=2, num_periods=3, max_events=25
)


@pytest.fixture(scope="module")
def population() -> Population:
    return make_population()


def next_item_by_the_definition(world: World, past: list[int], taste: int, region: int, period: int) -> np.ndarray:
    """The probabilities of the next item, written out item by item from the module's docstring."""
    genre = world.genre
    row = genre[past[-1]] if past else world.config.num_genres
    walk = np.zeros(len(genre))
    for item in range(1, len(genre)):
        if item not in past:
            g = genre[item]
            interest = world.taste[taste, g] * world.drift[region, period, g]
            walk[item] = world.transition[row, g] * interest * world.popularity[item]
    walk /= walk.sum()
    follow = np.zeros(len(genre))
    if past:
        for sequel, weight in zip(world.sequels[past[-1]], world.sequel_weights, strict=True):
            if sequel not in past:
                follow[sequel] += weight
    if follow.sum() == 0:
        return walk
    return world.config.follow * follow / follow.sum() + (1 - world.config.follow) * walk


def test_bayes_scores_are_the_sum_over_every_taste_and_region():
    world = make_world(SMALL)
    data = populate(world).interactions
    users = range(4)
    lengths = [0, 1, 7, 20]
    histories = [data.histories[u][:n] for u, n in zip(users, lengths, strict=True)]
    times = [data.timestamps[u][:n] for u, n in zip(users, lengths, strict=True)]
    next_times = np.array([data.timestamps[u][-1] for u in users])
    expected = []
    for history, when, at in zip(histories, times, next_times, strict=True):
        mixed, total = np.zeros(61), 0.0
        for taste, region in itertools.product(range(2), range(2)):
            weight, past = 1.0, []
            for item, period in zip(history.tolist(), world.periods(when), strict=True):
                weight *= next_item_by_the_definition(world, past, taste, region, period)[item]
                past.append(item)
            mixed += weight * next_item_by_the_definition(world, past, taste, region, int(world.periods(at)))
            total += weight
        expected.append(mixed / total)
    np.testing.assert_allclose(bayes_scores(world, histories, times, next_times), expected, rtol=1e-9, atol=1e-15)


def test_draws_follow_the_probabilities_that_the_oracle_knows():
    world = make_world(
        PopulationConfig(num_users=4000, num_items=30, num_genres=2, min_events=2, max_events=2, num_periods=1)
    )
    events = np.concatenate([block.events for block in draw_blocks(world)])
    first = [np.zeros(0, np.int64)]
    expected = bayes_scores(world, first, first, np.zeros(1, np.int64))[0]
    counts = np.bincount(events[:, 0], minlength=31)
    expect_counts = 4000 * expected[1:]
    chi_squared = ((counts[1:] - expect_counts) ** 2 / expect_counts).sum()
    assert chi_squared < 29 + 4 * np.sqrt(2 * 29)  # mean and 4 standard deviations of chi-squared with 29 degrees
    top = int(counts.argmax())
    after = events[events[:, 0] == top, 1]
    scores = bayes_scores(world, [np.array([top])], [np.zeros(1, np.int64)], np.zeros(1, np.int64))[0]
    share = np.bincount(after, minlength=31) / len(after)
    assert np.abs(share - scores).max() < 4 * np.sqrt(0.25 / len(after))


def test_probabilities_sum_to_one_and_seen_items_have_none(population: Population):
    data = population.interactions
    histories, times = data.histories[:50], data.timestamps[:50]
    scores = bayes_scores(population.world, histories, times, np.array([t[-1] for t in times]))
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert (scores[:, 0] == 0).all()
    assert all((scores[row, items] == 0).all() for row, items in enumerate(histories))


def test_bayes_beats_item_knn_beats_popularity_by_a_margin(population: Population):
    data, world = population.interactions, population.world
    split = leave_one_out(data)
    users = split.evaluated
    seen = [split.test_history(int(user)) for user in users]
    target = split.test[users]
    bayes = ranks(
        bayes_scores(world, seen, [data.timestamps[u][:-1] for u in users], split.test_times[users]), target, seen
    )
    popular = ranks(most_popular(split.train, data.num_items)(seen), target, seen)
    knn = ranks(item_knn(split.train, data.num_items)(seen), target, seen)
    by_world = ranks(popularity_scores(world, len(users)), target, seen)
    assert summarise(bayes)["ndcg@10"].value > 2 * summarise(popular)["ndcg@10"].value
    assert paired_difference(bayes, knn)["ndcg@10"].low > 0.05
    assert paired_difference(knn, popular)["ndcg@10"].low > 0.01
    assert abs(paired_difference(popular, by_world)["ndcg@10"].value) < 0.02  # counting finds what the parameters say


def interest_of(population: Population, region: int, half: int) -> np.ndarray:
    """Share of each genre in a region's events in one half of the horizon."""
    world, data = population.world, population.interactions
    late = world.periods(data.times) >= world.config.num_periods // 2
    mask = (data.context["region"] == region) & (late == bool(half))
    counts = np.bincount(world.genre[data.events[mask]], minlength=world.config.num_genres)
    return counts / counts.sum()


def test_interests_drift_over_time_and_differ_by_region():
    drifting = populate(make_world(PopulationConfig(num_periods=2, period_days=120)))
    still = populate(make_world(PopulationConfig(num_periods=2, period_days=120, drift=0.0)))

    def distance(population: Population, a: tuple[int, int], b: tuple[int, int]) -> float:
        return 0.5 * float(np.abs(interest_of(population, *a) - interest_of(population, *b)).sum())

    for a, b in (((0, 0), (0, 1)), ((0, 1), (1, 1)), ((2, 0), (3, 0))):
        assert distance(drifting, a, b) > 0.1
        assert distance(still, a, b) < 0.06


def test_users_of_a_region_change_together():
    population = populate(make_world(PopulationConfig(num_periods=2, period_days=120)))
    world, data = population.world, population.interactions
    late = world.periods(data.times) == 1
    odd = data.users % 2 == 1  # two halves of a region's users that share nothing but the region
    changes = []
    for half in (odd, ~odd):
        shares = []
        for when in (~late, late):
            counts = np.bincount(world.genre[data.events[half & when & (data.context["region"] == 0)]], minlength=12)
            shares.append(counts / counts.sum())
        changes.append(shares[1] - shares[0])
    assert np.corrcoef(changes)[0, 1] > 0.8


def test_nobody_sees_an_item_twice_and_times_fit_the_horizon(population: Population):
    data, config = population.interactions, population.world.config
    pairs = data.users * (data.num_items + 1) + data.events
    assert len(np.unique(pairs)) == len(pairs)
    lengths = np.diff(data.offsets)
    assert lengths.min() == config.min_events
    assert lengths.max() == config.max_events
    assert len(np.unique(data.times % 86_400)) > 10_000  # seconds, not days
    assert (data.num_users, data.num_items) == (2000, 1000)


def test_a_genre_can_run_empty():
    config = PopulationConfig(
        num_users=50, num_items=20, num_genres=2, min_events=10, max_events=10, zipf=3.0, drift=3.0
    )
    data = populate(make_world(config)).interactions
    assert all(len(set(h.tolist())) == 10 for h in data.histories)


def test_popularity_within_a_genre_is_zipfs():
    world = make_world(SMALL)
    for genre in range(3):
        shelf = np.sort(world.popularity[1:][world.genre[1:] == genre])[::-1]
        np.testing.assert_allclose(shelf / shelf[0], np.arange(1, 21) ** -SMALL.zipf)


def test_items_have_titles_with_years_and_their_genre_first():
    world = make_world(SMALL)
    for item in world.items:
        assert re.fullmatch(r"The \S+ \S+ \((19|20)\d\d\)", item.title)
        assert item.genres[0] == GENRES[world.genre[item.number]]


def test_a_population_follows_from_its_seed():
    first, again, other = (make_population(num_users=30, seed=seed).interactions for seed in (3, 3, 4))
    assert first.items == again.items
    np.testing.assert_array_equal(first.events, again.events)
    np.testing.assert_array_equal(first.times, again.times)
    assert first.items != other.items


def test_a_user_does_not_depend_on_how_many_users_there_are():
    few, many = make_population(num_users=10).interactions, make_population(num_users=1010).interactions
    assert len(many.histories) == 1010
    np.testing.assert_array_equal(np.concatenate(few.histories), np.concatenate(many.histories[:10]))


def test_blocks_are_small_whatever_the_number_of_users():
    world = make_world(PopulationConfig(num_users=10**9, num_items=60, num_genres=3, min_events=3, max_events=3))
    block = next(draw_blocks(world))
    assert block.events.shape == (1000, 3)


def test_users_can_be_drawn_from_a_later_block_on():
    world = make_world(PopulationConfig(num_users=1200, num_items=80, num_genres=3))
    blocks = list(draw_blocks(world, first_user=2000))
    assert [len(block.events) for block in blocks] == [1000, 200]
    whole = list(draw_blocks(make_world(PopulationConfig(num_users=3200, num_items=80, num_genres=3))))
    for block, same in zip(blocks, whole[2:], strict=True):
        for name in ("events", "times", "lengths", "taste", "region"):
            np.testing.assert_array_equal(getattr(block, name), getattr(same, name))


@pytest.mark.parametrize("first_user", [-1000, 1, 999, 1500])
def test_users_cannot_be_drawn_from_the_middle_of_a_block_on(first_user: int):
    with pytest.raises(ConfigError, match="first_user must be a multiple of 1000"):
        draw_blocks(make_world(SMALL), first_user=first_user)


def test_a_world_does_not_depend_on_how_many_users_it_has():
    few, many = (make_world(PopulationConfig(num_users=n, num_items=120)) for n in (1, 10**6))
    assert few.items == many.items
    for name in ("genre", "popularity", "sequels", "sequel_weights", "transition", "taste", "drift"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name))


@pytest.mark.parametrize("num_items", [90, 91])  # shelves of equal and of different length
def test_a_shelf_says_the_same_by_item_and_by_place(num_items: int):
    world = make_world(PopulationConfig(num_items=num_items, num_genres=3))
    shelf, users = Shelf(world, 4), np.arange(4)
    rng = np.random.default_rng(0)
    for _ in range(15):
        taken = np.array([rng.choice(np.flatnonzero(~shelf.seen[user])) for user in users])
        taken[3] = 0  # marks nothing
        shelf.take(taken)
        for genre in range(3):
            numbers = world.shelves[0][genre]
            unseen = shelf.unseen_places(np.full(4, genre))
            np.testing.assert_array_equal(unseen[:, numbers > 0], ~shelf.seen[:, numbers[numbers > 0]])


@pytest.mark.parametrize(
    "wrong, rule",
    [
        ({"num_users": 0}, "num_users must be at least 1, got num_users=0"),
        ({"num_items": 100}, "num_items must be at least 10 per genre"),
        ({"num_genres": 1}, "num_genres must be 2 to 18"),
        ({"min_events": 50}, "min_events <= max_events"),
        ({"follow": 1.0}, r"follow must be in \[0, 1\)"),
        ({"mean_gap_days": 0.0}, "mean_gap_days must be positive"),
        ({"drift": -1.0}, "zipf and drift must not be negative"),
    ],
)
def test_settings_that_break_a_rule_are_refused(wrong: dict[str, int], rule: str):
    with pytest.raises(ConfigError, match=rule):
        PopulationConfig(**wrong)


def test_the_oracle_refuses_histories_without_times():
    world = make_world(SMALL)
    with pytest.raises(ConfigError, match="every event must have a time"):
        bayes_scores(world, [np.array([1, 2])], [np.array([0])], np.array([0]))
