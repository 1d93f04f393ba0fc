"""A change of interests: exactly the interests change, from that period on, and nothing after it is known before."""

import json

import numpy as np
import pytest

from ownlet.simulations.benchmarks import drift
from ownlet.simulations.change import changed_world, cut_stream, rounds_until
from ownlet.simulations.population import populate
from ownlet.simulations.world import DAY_SECONDS, START_SECONDS, PopulationConfig, make_world

WORLD = make_world(PopulationConfig(num_users=80, num_items=130, num_periods=4, period_days=60))
CHANGE = START_SECONDS + 2 * 60 * DAY_SECONDS


def test_every_genre_changes_its_place_from_the_period_on_and_nothing_else_does():
    changed = changed_world(WORLD, 2, seed=3)
    np.testing.assert_array_equal(changed.drift[:, :2], WORLD.drift[:, :2])
    assert (changed.drift[:, 2:] != WORLD.drift[:, 2:]).all()
    np.testing.assert_array_equal(np.sort(changed.drift, axis=2), np.sort(WORLD.drift, axis=2))
    assert changed.taste is WORLD.taste
    assert changed.items is WORLD.items


def test_histories_before_the_change_do_not_know_of_it():
    before, after = (populate(world).interactions for world in (WORLD, changed_world(WORLD, 2, seed=3)))
    until = before.times < CHANGE
    np.testing.assert_array_equal(before.events[until], after.events[until])
    assert (before.events[~until] != after.events[~until]).mean() > 0.3


def test_a_stream_is_cut_at_the_change():
    data = populate(WORLD).interactions
    stream = cut_stream(data, CHANGE, public=20, held_out=10)
    by_user = list(zip(data.histories, data.timestamps, strict=True))
    expected = [events[times < CHANGE] for events, times in by_user[:20]]
    assert [list(one) for one in stream.before] == [list(one) for one in expected if len(one) >= 2]
    after = [(events, times) for events, times in by_user[30:] if (times >= CHANGE).sum() >= 3]
    assert len(stream.devices) == len(stream.test) == len(after) > 5
    for own, history, target, (events, times) in zip(
        stream.devices, stream.test.histories, stream.test.targets, after, strict=True
    ):
        assert list(own) == list(events[times >= CHANGE][:-1])
        assert list(history) == list(events[:-1])
        assert target == events[-1]
    assert stream.test_times[1].min() >= CHANGE
    assert len(stream.everything) == 20 + len(after)


def test_recovered_is_the_first_measurement_with_the_share_of_the_gain():
    quality = {0: 0.10, 2: 0.17, 4: 0.185, 6: 0.16}
    assert rounds_until(quality, 0.1, 0.2, share=0.8) == 4
    assert rounds_until(quality, 0.1, 0.2, share=0.5) == 2
    assert rounds_until(quality, 0.1, 0.3) is None
    assert rounds_until(quality, 0.2, 0.2) is None


def test_the_benchmark_writes_what_it_measured(tmp_path):
    sizes = ["--users", "120", "--items", "130", "--rounds", "2", "--every", "1", "--dim", "16", "--epochs", "1"]
    drift.main([*sizes, "--rates", "0.3", "--methods", "lora-frozen-a", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "drift.json").read_text())
    (method,) = found["methods"]
    assert set(method["quality"]) == {"0", "1", "2"}
    assert method["quality"]["0"] == pytest.approx(found["frozen_ndcg@10"])  # an adapter that changes nothing yet
    assert 0 < found["frozen_ndcg@10"] < found["bayes_ndcg@10"] < 1
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
