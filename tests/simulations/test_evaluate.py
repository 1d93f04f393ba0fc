"""Which questions are made of histories."""

import numpy as np

from ownlet.simulations.evaluate import all_positions, positions


def test_every_event_with_one_before_it_is_a_question() -> None:
    assert positions([3, 1, 4]) == [(0, 1), (0, 2), (2, 1), (2, 2), (2, 3)]
    assert positions([3, 1, 4], last=1) == [(0, 2), (2, 3)]


def test_fewer_questions_are_always_the_same_ones_in_order_and_from_everywhere() -> None:
    lengths = [101] * 50
    everything, some = positions(lengths), positions(lengths, most=500)
    assert some == positions(lengths, most=500)
    assert len(some) == len(set(some)) == 500
    assert some == sorted(some)
    assert set(some) <= set(everything)
    users, places = np.array(some).T
    assert np.bincount(users, minlength=50).min() >= 1
    assert abs(places.mean() - 50.5) < 5  # a standard error is 1.3
    assert positions(lengths, most=5000) == everything


def test_cases_are_those_positions() -> None:
    histories = [np.arange(1, 9), np.arange(11, 16)]
    cases = all_positions(histories, most=6)
    places = positions([8, 5], most=6)
    assert [len(history) for history in cases.histories] == [at for _, at in places]
    assert cases.targets.tolist() == [histories[user][at] for user, at in places]
