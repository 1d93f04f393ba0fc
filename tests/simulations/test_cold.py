"""Cold items and cold users."""

from __future__ import annotations

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.simulations.cold import cold_item_split, cold_user_split
from ownlet.simulations.leakage import check_leakage

RNG = np.random.default_rng(0)
HISTORIES = [RNG.choice(np.arange(1, 41), size=RNG.integers(0, 15), replace=False) for _ in range(60)]


def test_cold_items_are_in_no_training_and_in_no_history_and_are_every_target():
    split = cold_item_split(HISTORIES, fraction=0.25, seed=3)
    occurring = np.unique(np.concatenate(HISTORIES))
    assert len(split.cold) == round(0.25 * len(occurring))
    assert len(split.train) == len(HISTORIES)
    for part in (split.train, split.cases.histories):
        assert not np.isin(np.concatenate(part), split.cold).any()
    assert np.isin(split.cases.targets, split.cold).all()
    check_leakage(split.train, None, split.cases)


def test_a_case_is_the_last_cold_event_with_a_warm_one_before_it():
    split = cold_item_split(HISTORIES, fraction=0.25, seed=3)
    assert split.cases.users is not None
    asked = dict(zip(split.cases.users.tolist(), range(len(split.cases)), strict=True))
    assert len(asked) == len(split.cases) > 10
    for user, history in enumerate(HISTORIES):
        is_cold = [item in split.cold for item in history]
        places = [at for at, cold in enumerate(is_cold) if cold and not all(is_cold[:at])]
        assert (user in asked) == bool(places)
        end = places[-1] if places else len(history)
        warm = [int(item) for item, cold in zip(history[:end], is_cold, strict=False) if not cold]
        assert split.train[user].tolist() == warm
        if places:
            assert split.cases.histories[asked[user]].tolist() == warm
            assert split.cases.targets[asked[user]] == history[end]


def test_no_cold_items_and_nothing_but_cold_items():
    nobody = cold_item_split(HISTORIES, fraction=0.0)
    assert len(nobody.cases) == 0
    assert [h.tolist() for h in nobody.train] == [h.tolist() for h in HISTORIES]
    everything = cold_item_split(HISTORIES, fraction=1.0)
    assert len(everything.cases) == 0  # nobody has anything that is known
    assert sum(len(h) for h in everything.train) == 0


def test_cold_users_are_trained_on_nowhere_and_asked_for_the_event_after_the_known_ones():
    split = cold_user_split(HISTORIES, known_events=3, fraction=0.5, seed=1)
    able = [user for user, history in enumerate(HISTORIES) if len(history) >= 2]
    assert len(split.cold) == round(0.5 * len(able))
    for user, history in enumerate(HISTORIES):
        assert split.train[user].tolist() == ([] if user in split.cold else history.tolist())
    for user, known, target in zip(split.cold, split.cases.histories, split.cases.targets, strict=True):
        end = min(3, len(HISTORIES[user]) - 1)
        assert known.tolist() == HISTORIES[user][:end].tolist()
        assert target == HISTORIES[user][end]
    check_leakage(split.train, None, split.cases)


def test_who_is_cold_depends_on_the_seed_and_not_on_how_much_is_known():
    one = cold_user_split(HISTORIES, known_events=1, seed=1).cold.tolist()
    assert one == cold_user_split(HISTORIES, known_events=5, seed=1).cold.tolist()
    assert one != cold_user_split(HISTORIES, known_events=1, seed=2).cold.tolist()
    assert cold_item_split(HISTORIES, seed=1).cold.tolist() != cold_item_split(HISTORIES, seed=2).cold.tolist()


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="fraction must be in"):
        cold_item_split(HISTORIES, fraction=1.5)
    with pytest.raises(ConfigError, match="fraction must be in"):
        cold_user_split(HISTORIES, fraction=-0.1)
    with pytest.raises(ConfigError, match="known_events must be at least 1"):
        cold_user_split(HISTORIES, known_events=0)
