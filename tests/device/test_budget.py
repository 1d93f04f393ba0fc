import json
import math
import random

import dp_accounting as dp
import pytest
from dp_accounting.rdp import RdpAccountant

from ownlet.device.budget import Budget, epsilon_of, find_limit, quick_bound, totals_of
from ownlet.shared.errors import ConfigError, PrivacyError
from ownlet.shared.privacy import epsilon, event_to_json, user_level_event

DELTA = 1e-6


def mechanism(rate: float, sigma: float) -> str:
    (name,) = totals_of(event_to_json(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))))
    return name


def test_mechanisms_are_counted_through_repetition_and_composition():
    step = dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(2.0))
    event = dp.ComposedDpEvent(
        [dp.SelfComposedDpEvent(step, 3), dp.SelfComposedDpEvent(dp.SelfComposedDpEvent(step, 2), 5), dp.NoOpDpEvent()]
    )
    assert totals_of(event_to_json(event)) == {mechanism(0.1, 2.0): 13}
    assert totals_of(event_to_json(dp.NoOpDpEvent())) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"kind":"laplace"}',
        '{"kind":"gaussian","noise_multiplier":-1}',
        '{"kind":"gaussian","noise_multiplier":NaN}',
        '{"kind":"poisson","rate":0,"event":{"kind":"gaussian","noise_multiplier":1.0}}',
        '{"kind":"poisson","rate":1.5,"event":{"kind":"non_private"}}',
        '{"kind":"repeated","count":0,"event":{"kind":"non_private"}}',
        '{"kind":"repeated","count":-3,"event":{"kind":"gaussian","noise_multiplier":1.0}}',
        '{"kind":"repeated","count":1.5,"event":{"kind":"gaussian","noise_multiplier":1.0}}',
    ],
)
def test_what_is_no_event_is_refused(text: str):
    with pytest.raises(PrivacyError, match="privacy event must be one that ownlet records"):
        totals_of(text)


@pytest.mark.parametrize("event", [dp.NonPrivateDpEvent(), dp.GaussianDpEvent(0.0)])
def test_an_event_without_noise_costs_everything(event: dp.DpEvent):
    totals = totals_of(event_to_json(event))
    assert quick_bound(totals, DELTA) == epsilon_of(totals, DELTA) == math.inf


def test_nothing_costs_nothing():
    assert quick_bound({}, DELTA) == epsilon_of({}, DELTA) == 0.0


def test_epsilon_is_that_of_the_event_composed_from_scratch():
    event = user_level_event(0.02, 1.1, 200)
    assert epsilon_of(totals_of(event_to_json(event)), DELTA) == pytest.approx(epsilon(event, DELTA), abs=1e-9)


@pytest.mark.parametrize(("rate", "sigma", "count"), [(1.0, 4.0, 7), (0.3, 1.0, 2), (0.01, 0.8, 1000)])
def test_the_quick_bound_is_the_renyi_accountant_of_dp_accounting_at_integer_orders(
    rate: float, sigma: float, count: int
):
    orders = [*range(2, 17), 18, 20, 24, 28, 32, 40, 48, 64, 96, 128]
    accountant = RdpAccountant(orders)
    accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma)), count)
    # the grid's share is at most order * 1e-6 / 8 per step
    assert quick_bound({mechanism(rate, sigma): count}, DELTA) == pytest.approx(
        accountant.get_epsilon(DELTA), abs=count * 128e-6 / 8 + 1e-9
    )


def test_the_quick_bound_is_never_below_what_pld_says():
    chance = random.Random(1)
    for _ in range(25):
        rate = 10 ** chance.uniform(-4, 0)
        sigma = 10 ** chance.uniform(-0.3, 2)
        totals = {mechanism(rate, sigma): int(10 ** chance.uniform(0, 5))}
        bound = quick_bound(totals, DELTA)
        assert bound > 20 or bound >= epsilon_of(totals, DELTA)


def test_many_tiny_steps_are_where_the_grid_of_pld_matters():
    totals = {mechanism(0.006342, 16.541): 95_783}  # 0.40 by Renyi alone, 0.54 by PLD on its grid of 1e-3
    assert quick_bound(totals, 4.7e-5) >= epsilon_of(totals, 4.7e-5)


@pytest.mark.parametrize(("rate", "sigma", "others"), [(0.1, 1.5, {}), (1.0, 20.0, {(0.1, 1.5): 20})])
def test_a_limit_is_the_largest_count_that_fits(rate: float, sigma: float, others: dict[tuple[float, float], int]):
    rest = {mechanism(*name): count for name, count in others.items()}
    name, budget = mechanism(rate, sigma), Budget(epsilon=4.0, dp_delta=DELTA)
    count = find_limit({**rest, name: 1}, name, budget).count
    assert epsilon_of({**rest, name: count}, DELTA) <= 4.0 < epsilon_of({**rest, name: count + 1}, DELTA)


def test_an_epsilon_beyond_any_use_is_bounded_rather_than_computed():
    totals = {mechanism(1.0, 0.001): 1000}  # PLD would need a grid of 10^12 cells
    assert epsilon_of(totals, DELTA) > 1000


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"dp_delta": 0.0}, "dp_delta must be in"),
        ({"dp_delta": 1.0}, "dp_delta must be in"),
    ],
)
def test_a_budget_out_of_range_is_refused(settings: dict[str, float], rule: str):
    with pytest.raises(ConfigError, match=rule):
        Budget(**settings)


def test_mechanisms_are_named_by_canonical_json():
    assert json.loads(mechanism(0.1, 2.0)) == {
        "event": {"kind": "gaussian", "noise_multiplier": 2.0},
        "kind": "poisson",
        "rate": 0.1,
    }
