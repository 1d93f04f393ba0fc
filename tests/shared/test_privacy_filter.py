"""Expectations: Renyi divergence of a Gaussian in closed form, order / (2 sigma^2), and its conversion by hand."""

import math

import dp_accounting as dp
import pytest

from ownlet.shared import privacy
from ownlet.shared.errors import BudgetExceededError, ConfigError, PrivacyError
from ownlet.shared.privacy_filter import PrivacyFilter, order_for

DELTA = 1e-6


def by_hand(sigmas: list[float], order: float, dp_delta: float) -> float:
    divergence = sum(order / (2 * sigma**2) for sigma in sigmas)
    return divergence + math.log1p(-1 / order) - math.log(dp_delta * order) / (order - 1)


def test_one_order_is_its_closed_form_whatever_noise_was_chosen() -> None:
    spent, sigmas = PrivacyFilter(10.0, DELTA, [8.0]), [3.0, 5.0, 2.0, 11.0]
    for sigma in sigmas:
        spent.charge(privacy.user_turns_event(sigma, 1))
    assert spent.epsilon == pytest.approx(by_hand(sigmas, 8.0, DELTA), rel=1e-9)


def test_several_orders_divide_delta() -> None:
    orders = (4.0, 16.0)
    both = PrivacyFilter(10.0, DELTA, orders)
    both.charge(privacy.user_turns_event(3.0, 1))
    assert both.epsilon == pytest.approx(min(by_hand([3.0], order, DELTA / 2) for order in orders), rel=1e-9)


def test_the_filter_stops_before_the_budget_and_a_refusal_changes_nothing() -> None:
    event, spent = privacy.user_level_event(0.1, 2.0, 1), PrivacyFilter(1.5, DELTA)
    admitted = 0
    while spent.fits(event):
        spent.charge(event)
        admitted += 1
    before = spent.epsilon
    assert admitted > 5
    with pytest.raises(BudgetExceededError, match="epsilon must not exceed"):
        spent.charge(event)
    assert spent.epsilon == before <= 1.5
    assert spent.fits(privacy.user_level_event(0.1, 50.0, 1))  # what is cheap enough may still run


def test_adaptivity_costs_something_over_parameters_that_were_fixed() -> None:
    event = privacy.user_level_event(0.1, 2.0, 30)
    planned = PrivacyFilter(10.0, DELTA, [order_for(event, DELTA)]).epsilon_with(event)
    assert privacy.epsilon(event, DELTA) < planned < PrivacyFilter(10.0, DELTA).epsilon_with(event)


def test_the_planned_order_is_the_best_of_all() -> None:
    event = privacy.user_turns_event(4.0, 20)
    best = order_for(event, DELTA)
    chosen = PrivacyFilter(10.0, DELTA, [best]).epsilon_with(event)
    for order in (best / 1.3, best * 1.3):
        assert chosen < PrivacyFilter(10.0, DELTA, [order]).epsilon_with(event)


def test_what_is_not_private_never_fits_and_nothing_always_does() -> None:
    spent = PrivacyFilter(5.0, DELTA)
    assert not spent.fits(privacy.user_turns_event(0.0, 1))
    assert spent.fits(dp.NoOpDpEvent())
    assert spent.epsilon == 0.0
    with pytest.raises(PrivacyError, match="LaplaceDpEvent"):
        spent.fits(dp.LaplaceDpEvent(1.0))


@pytest.mark.parametrize(
    ("epsilon", "delta", "orders"), [(0.0, 1e-5, (2.0,)), (1.0, 0.0, (2.0,)), (1.0, 1e-5, ()), (1.0, 1e-5, (1.0,))]
)
def test_numbers_out_of_range_are_refused(epsilon: float, delta: float, orders: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="must"):
        PrivacyFilter(epsilon, delta, orders)
