import numpy as np
import pytest

from ownlet.shared.config import WindowConfig
from ownlet.simulations.fleet import window_advice
from ownlet.simulations.store import EventStore


@pytest.mark.parametrize(
    ("lengths", "window", "told"),
    [
        ([60, 60, 5], 20, True),
        ([60, 60, 5], 50, False),  # as long as what the base reads
        ([60, 50, 5], 20, False),  # half of the histories fit into what the base reads
    ],
)
def test_windows_are_called_short_where_base_and_histories_are_longer(lengths: list[int], window: int, told: bool):
    store = EventStore.of([np.ones(length, np.int64) for length in lengths])
    advice = window_advice(store, WindowConfig(window_length=window), max_length=50)
    assert (advice is not None) == told
    assert not told or "windows hold 20 events, the base reads 50" in str(advice)
