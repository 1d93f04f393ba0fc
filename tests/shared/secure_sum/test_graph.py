import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ownlet.shared.errors import ConfigError
from ownlet.shared.secure_sum.graph import hangs_together, neighbours_of


@pytest.mark.parametrize(("num_clients", "degree"), [(3, 2), (8, 7), (9, 4), (20, 6), (101, 12)])
def test_the_graph_is_regular_and_symmetric_without_loops(num_clients: int, degree: int):
    graph = neighbours_of(num_clients, degree, b"seed")
    assert {len(peers) for peers in graph} == {degree}
    for own, peers in enumerate(graph):
        assert own not in peers
        assert list(peers) == sorted(set(peers))
        assert all(own in graph[peer] for peer in peers)


def test_the_seed_decides_the_graph():
    assert neighbours_of(30, 4, b"a") == neighbours_of(30, 4, b"a") != neighbours_of(30, 4, b"b")


def test_every_pair_is_equally_likely_to_be_neighbours():
    counts = np.zeros((8, 8))
    for seed in range(700):
        for own, peers in enumerate(neighbours_of(8, 2, bytes([seed % 256, seed // 256]))):
            counts[own, peers] += 1
    rates = counts[~np.eye(8, dtype=bool)] / 700
    assert np.abs(rates - 2 / 7).max() < 5 * np.sqrt(2 / 7 * 5 / 7 / 700)


def test_hanging_together_agrees_with_scipys_components():
    rng = np.random.default_rng(0)
    answers = []
    for seed in range(60):
        graph = neighbours_of(24, 4, bytes([seed]))
        members = sorted(rng.choice(24, 17, replace=False).tolist())
        table = np.zeros((24, 24))
        for own, peers in enumerate(graph):
            table[own, peers] = 1
        number, _ = connected_components(csr_array(table[np.ix_(members, members)]))
        answers.append(number == 1)
        assert hangs_together(graph, members) == answers[-1]
    assert 5 < sum(answers) < 55  # both happen
    assert hangs_together(graph, [])
    assert hangs_together(graph, [3])


@pytest.mark.parametrize(("num_clients", "degree"), [(8, 3), (8, 8), (8, 0), (8, 9)])
def test_a_graph_that_does_not_exist_is_refused(num_clients: int, degree: int):
    with pytest.raises(ConfigError, match="degree must be"):
        neighbours_of(num_clients, degree, b"")
