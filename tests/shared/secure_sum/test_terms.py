from dataclasses import replace
from math import comb

import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.secure_sum.terms import choose_terms, least_survivors


def chosen(num_clients: int, dropout: float = 0.2, colluding: float = 0.1):
    return choose_terms(num_clients, dropout=dropout, colluding=colluding, size=5, bits=24)


def tail(population: int, marked: int, drawn: int, at_least: int) -> float:
    """P[at least so many of the drawn are marked], from its definition."""
    ways = sum(comb(marked, hit) * comb(population - marked, drawn - hit) for hit in range(at_least, drawn + 1))
    return ways / comb(population, drawn)


@pytest.mark.parametrize("num_clients", [250, 1000])
def test_a_sparse_graph_keeps_all_three_bounds_and_the_next_smaller_does_not(num_clients: int):
    terms = chosen(num_clients)
    assert terms.degree < num_clients - 1

    def good(degree: int, threshold: int) -> bool:
        bad = num_clients // 10
        corrupt = num_clients * tail(num_clients - 1, bad, degree, threshold) <= 2**-40
        whole = num_clients * 0.3 ** (degree // 2) <= 2**-40
        stay = terms.least - 1
        answer = num_clients * (1 - tail(num_clients - 1, stay, degree, threshold)) <= 2**-30 * 1.01 + 1e-12
        return corrupt and whole and answer

    assert good(terms.degree, terms.threshold)
    smaller = terms.degree - 2
    assert not any(good(smaller, threshold) for threshold in range(smaller // 2 + 1, smaller))
    assert 2 * terms.threshold > terms.degree


def test_few_clients_are_all_neighbours_and_nothing_is_left_to_chance():
    for num_clients in range(3, 50):
        terms = chosen(num_clients)
        assert terms.degree == num_clients - 1
        assert terms.num_colluding < terms.threshold <= terms.least - 1  # the least survivors can unmask each other
        assert terms.agreement <= terms.least


def test_the_number_of_neighbours_grows_slowly():
    assert chosen(10_000).degree < 1.3 * chosen(1000).degree < 0.2 * 1000


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 10), (0.2, 8), (0.25, 8), (0.3, 7), (0.99, 1)])
def test_the_tolerated_number_of_dropouts_is_rounded_down(dropout: float, expected: int):
    assert least_survivors(10, dropout) == expected


@pytest.mark.parametrize(("num_clients", "dropout", "colluding"), [(2, 0.0, 0.0), (10, 0.5, 0.0), (10, 0.3, 0.5)])
def test_shares_that_no_graph_can_bear_are_refused(num_clients: int, dropout: float, colluding: float):
    with pytest.raises(ConfigError):
        chosen(num_clients, dropout, colluding)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 3},
        {"threshold": 8},
        {"least": 4},
        {"least": 9},
        {"degree": 5},
        {"num_colluding": 6},
        {"num_colluding": -1},
        {"num_clients": 2, "degree": 1},
        {"bits": 20},
        {"size": 0},
    ],
)
def test_terms_under_which_a_client_would_not_be_safe_are_refused(change: dict[str, int]):
    assert chosen(8).threshold == 4
    with pytest.raises(ConfigError):
        replace(chosen(8), **change)


def test_two_agreements_share_an_honest_signer():
    for num_clients in range(3, 60):
        terms = chosen(num_clients, 0.2, 0.15)
        assert 2 * terms.agreement - num_clients > terms.num_colluding
