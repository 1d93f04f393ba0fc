"""The load test of the server sends, admits and adds up what it says; how fast, no test asks."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError, FederationError
from ownlet.simulations.benchmarks import server_load
from ownlet.simulations.benchmarks.load_nodes import made_up_deltas, serve_nodes
from ownlet.simulations.benchmarks.server_load import measure


@contextmanager
def thread(num_nodes: int, num_trainable: int, clip_norm: float) -> Iterator[socket.socket]:
    """Nodes in a thread: the same protocol without the start of a process."""
    near, far = socket.socketpair()
    deltas = made_up_deltas(num_trainable, clip_norm)
    nodes = threading.Thread(target=serve_nodes, args=(far, num_nodes, deltas))
    nodes.start()
    try:
        yield near
    finally:
        near.shutdown(socket.SHUT_RDWR)
        nodes.join()
        near.close()
        far.close()


def test_made_up_deltas_are_just_within_the_clip_norm() -> None:
    norms = np.linalg.norm(made_up_deltas(100, 0.3), axis=1)
    assert 0.9 * 0.3 <= norms.min() <= norms.max() <= 0.3


def test_every_update_after_the_first_round_is_counted_with_its_bytes() -> None:
    told: list[int] = []
    load = measure(20, 5, 512, connect=thread, on_updates=told.append)
    assert told == [5] * 4
    assert (load.updates, load.devices, load.numbers) == (20, 5, 512)
    assert 4 * 512 + 128 < load.bytes_per_update < 4 * 512 + 1000  # the .npy header and Flower's envelope
    assert min(load.rss_bytes_start, load.rss_bytes_end) > 50 * 2**20


def test_updates_that_are_not_admitted_stop_the_measurement() -> None:
    @contextmanager
    def longer(num_nodes: int, num_trainable: int, clip_norm: float) -> Iterator[socket.socket]:
        with thread(num_nodes, num_trainable, 1.2 * clip_norm) as connection:
            yield connection

    with pytest.raises(FederationError, match="all 5 updates must be admitted, got 0"):
        measure(5, 5, 512, connect=longer)


def test_updates_must_be_whole_rounds() -> None:
    with pytest.raises(ConfigError, match="multiple of 5"):
        measure(7, 5, 512)


@pytest.mark.slow
def test_the_command_writes_the_promised_keys(tmp_path) -> None:
    server_load.main(["--updates", "40", "--devices", "20", "--numbers", "512", "--out", str(tmp_path / "server.json")])
    found = json.loads((tmp_path / "server.json").read_text())
    assert {"updates_per_second", "rss_bytes_start", "rss_bytes_end", "updates"} <= set(found)
    assert found["updates"] == 40
