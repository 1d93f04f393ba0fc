"""Adapters per domain: each learns from its own devices alone and serves its own cases alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.domains import period_domain
from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import Interactions, Item
from ownlet.shared.lora import attach_adapter
from ownlet.shared.metrics import ndcg
from ownlet.shared.model import SASRec
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.domains import (
    composed_epsilon,
    domain_ranks,
    event_domains,
    federate_domains,
    no_worse_on_public,
    part_of,
    user_domains,
)
from ownlet.simulations.evaluate import all_positions, model_ranks
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, divide, load_interactions
from ownlet.simulations.store import EventStore

PLAIN = FederationConfig(
    rounds=3,
    cohort_rate=1.0,
    unit="none",
    server_momentum=0.0,
    seed=5,
    plan=Plan(steps=3, learning_rate=0.3),
    windows=WindowConfig(window_length=6),
)
DATA = Interactions(
    name="test",
    items=tuple(Item(number=number, id=str(number)) for number in range(1, 10)),
    user_ids=("a", "b", "c"),
    offsets=np.array([0, 3, 5, 9]),
    events=np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]),
    times=np.arange(9),
    context={"region": np.array(["n", "n", "s", "e", "e", "s", "w", "n", "n"])},
)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    content = torch.cat([torch.zeros(1, 4), torch.randn(30, 4)])
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=10), content).eval().requires_grad_(False)
    model.item_embedding.weight[1:].normal_(std=0.3)
    spec = attach_adapter(model, AdapterConfig(rank=4, alpha=8.0))
    return model, spec, initial_adapter(spec, 0)


def habits(domain, count, seed):
    """Users who take the first ten items of the catalogue, or its last ten."""
    rng = np.random.default_rng(seed)
    return [(1 if domain == "low" else 21) + rng.permutation(10)[:7] for _ in range(count)]


def test_a_users_domain_is_that_of_its_last_event_or_of_one_before():
    regions = event_domains(DATA, "region", period_seconds=1)
    assert user_domains(DATA, [0, 1, 2], regions) == ("s", "e", "n")
    assert user_domains(DATA, [2, 0], regions, before=1) == ("n", "n")
    with pytest.raises(ConfigError, match=r"must be a column of the data, got 'shop' of \['region'\]"):
        event_domains(DATA, "shop", period_seconds=1)


def test_a_period_has_the_name_that_the_app_gives_it():
    names = event_domains(DATA, "period", period_seconds=4)
    assert names.tolist() == [period_domain(second, period_seconds=4) for second in range(9)]
    assert user_domains(DATA, [0, 1, 2], names) == ("period-0", "period-1", "period-2")
    with pytest.raises(ConfigError, match="domain must be a column where the data has no times, got 'period'"):
        event_domains(replace(DATA, has_times=False), "period", period_seconds=4)


def test_a_setting_knows_whose_histories_it_holds():
    config = DataConfig(num_users=60, num_items=130, core=0)

    data = load_interactions(config)
    setting = divide(data, config)
    for user, history in zip(setting.device_users, setting.devices, strict=True):
        np.testing.assert_array_equal(data.histories[user][:-1], history)
    for user, history in zip(setting.held_out_users, setting.held_out, strict=True):
        np.testing.assert_array_equal(data.histories[user], history)
    np.testing.assert_array_equal(data.events[setting.judging_events], setting.judging.targets)


def test_each_domain_learns_its_own_habit_and_serves_its_own_cases(base):
    model, spec, start = base
    domains = ["low", "high"] * 6
    users = [habits(domain, 1, seed)[0] for seed, domain in enumerate(domains)]
    runs = federate_domains(
        CohortEngine(model, spec), EventStore.of(users), domains, start, PLAIN, min_devices=6, shared_version=4
    )
    assert set(runs.adapters.vectors) == set(runs.results) == {"low", "high"}
    assert runs.adapters.version == 4 + 3
    cases = {domain: all_positions(habits(domain, 8, 99)) for domain in ("low", "high")}

    def quality(domain, served):
        ranks = domain_ranks(model, cases[domain], [served] * len(cases[domain]), runs.adapters)
        return ndcg(ranks, 10).mean()

    for own, other in (("low", "high"), ("high", "low")):
        assert quality(own, own) > 1.1 * max(quality(own, "nobody's"), quality(own, other))
    both = replace(
        cases["low"],
        histories=cases["low"].histories + cases["high"].histories,
        targets=np.concatenate([cases["low"].targets, cases["high"].targets]),
    )
    names = ["low"] * len(cases["low"]) + ["high"] * len(cases["high"])
    expected = [
        model_ranks(model, cases[domain], spec=spec, vectors=runs.adapters.vectors[domain])
        for domain in ("low", "high")
    ]
    np.testing.assert_array_equal(domain_ranks(model, both, names, runs.adapters), np.concatenate(expected))
    guard = no_worse_on_public(model, spec, runs.adapters.vectors["low"], both, names)
    assert guard("high", runs.adapters.vectors["high"])
    assert not guard("low", runs.adapters.vectors["high"])
    assert not guard("sideways", runs.adapters.vectors["low"])


def test_a_domains_run_is_the_run_over_its_devices_and_few_or_refused_keep_the_shared(base):
    model, spec, start = base
    engine, domains = CohortEngine(model, spec), ["a"] * 4 + ["b"] * 4 + ["c"]
    context = [np.full((7, 2), user) for user in range(9)]
    store = EventStore.of(habits("low", 9, 0), context)
    part = part_of(store, np.array([5, 2]))
    np.testing.assert_array_equal(part.history(1), store.history(2))
    np.testing.assert_array_equal(part.context, np.concatenate([context[5], context[2]]))
    store = EventStore.of(habits("low", 9, 0))
    runs = federate_domains(
        engine, store, domains, start, PLAIN, min_devices=2, publishable=lambda domain, vector: domain != "a"
    )
    assert (set(runs.results), set(runs.adapters.vectors)) == ({"a", "b"}, {"b"})
    alone = simulate(engine, part_of(store, np.arange(4, 8)), start, replace(PLAIN, seed=6))
    np.testing.assert_array_equal(runs.adapters.choose("b"), alone.vector)
    np.testing.assert_array_equal(runs.adapters.choose("c"), start)
    with pytest.raises(ConfigError, match="domains must be one per device, 9"):
        federate_domains(engine, store, domains[:-1], start, PLAIN)


def test_a_user_spends_what_its_own_domain_spends_and_the_shared_run_adds_up(base):
    model, spec, start = base
    private = replace(PLAIN, unit="user", cohort_rate=0.5, noise_multiplier=2.0, rounds=2)
    store = EventStore.of(habits("low", 8, 0))
    runs = federate_domains(CohortEngine(model, spec), store, ["a", "b"] * 4, start, private, min_devices=1)
    assert runs.epsilon == pytest.approx(epsilon(user_level_event(0.5, 2.0, 2), 1e-5))
    both = composed_epsilon(replace(private, rounds=3), private)
    assert both == pytest.approx(epsilon(user_level_event(0.5, 2.0, 5), 1e-5), abs=2e-3)
    with pytest.raises(ConfigError, match="unit must be user"):
        composed_epsilon(PLAIN, private)


def test_without_any_domain_the_shared_adapter_is_all_there_is(base):
    model, spec, start = base
    runs = federate_domains(CohortEngine(model, spec), EventStore.of([]), [], start, PLAIN, shared_version=2)
    assert (runs.epsilon, dict(runs.adapters.vectors), runs.adapters.version) == (0.0, {}, 2)
    np.testing.assert_array_equal(runs.adapters.default, start)
