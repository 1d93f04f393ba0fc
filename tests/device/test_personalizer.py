"""The front door, as an app uses it: on a real bundle, with real files."""

from __future__ import annotations

import asyncio
import doctest
import json
import math
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ownlet.device import Personalizer
from ownlet.device import personalizer as module
from ownlet.device.budget import Budget
from ownlet.device.policy import Policy, Reading
from ownlet.server.published import Publication, SpentOnce
from ownlet.server.registry import Registry
from ownlet.server.rollout_key import PRIVATE_FILE, make_rollout_key, read_rollout_key
from ownlet.shared.adapter import load_adapter, save_adapter
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import (
    AdapterError,
    BudgetExceededError,
    BundleError,
    ConfigError,
    DataError,
    NotEligibleError,
    OwnletError,
    PrivacyError,
    StateBusyError,
    StateError,
)
from ownlet.shared.lora import applied
from ownlet.shared.manifest import BASE_FILE, describe_file, read_manifest, write_manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import epsilon, event_from_json, event_to_json, user_level_event, window_level_event
from ownlet.shared.rollout import MANIFEST_FILE

WINDOWS = WindowConfig(window_length=6)
PRIVATE = Plan(steps=4, sample_rate=0.5, expected_batch=1.0, clip_norm=0.2, noise_multiplier=3.0)
TERMS = FederationConfig(unit="window", plan=PRIVATE, windows=WINDOWS, clip_norm=math.inf)
SERVER_NOISE = FederationConfig(unit="user", windows=WINDOWS, clip_norm=0.1, noise_multiplier=4.0, plan=Plan(steps=3))
SPENT = SpentOnce(unit="user", epsilon=2.0, dp_delta=1e-5, event=event_to_json(user_level_event(0.2, 4.0, 10)))
HABIT = [5, 9] * 8


class Stop:
    """Asks a training to stop after some looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def record_all(personalizer: Personalizer, numbers: list[int], start: float = 0) -> None:
    for time, number in enumerate(numbers):
        personalizer.record(f"item-{number}", start + time)


def eager_scores(tiny: Any, numbers: list[int], vector: Any = None) -> np.ndarray:
    kept = numbers[-12:]
    history = torch.zeros(1, 12, dtype=torch.int64)
    history[0, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    vector = tiny.vector if vector is None else vector
    with torch.no_grad(), applied(tiny.model, tiny.spec.split(torch.from_numpy(vector))):
        return tiny.model.score_last(history, torch.tensor([max(1, len(kept))]))[0].numpy()


def newer_shared(tiny: Any, path: Path, version: int = 4, change: float = 0.0) -> Path:
    vector = tiny.vector.copy()
    vector[tiny.spec.trainable] += np.float32(change)
    save_adapter(path, tiny.spec, vector, version=version)
    return path


def test_the_example_in_the_documentation_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    names = {"Personalizer": Personalizer, "bundle": tiny_bundle, "state": tmp_path, "terms": TERMS}
    names["terms"] = replace(TERMS, target_epsilon=8.0)
    example = doctest.DocTestParser().get_doctest(module.__doc__ or "", names, "personalizer", None, 0)
    assert len(example.examples) == 3
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=3)


@pytest.mark.parametrize("numbers", [[], [7], [3, 1, 4, 1, 5], list(range(1, 31))])
def test_recommendations_are_the_eager_models_best_unseen_items(
    tiny: Any, tiny_bundle: Path, tmp_path: Path, numbers: list[int]
) -> None:
    scores = eager_scores(tiny, numbers)
    scores[[0, *numbers]] = -np.inf
    best = np.argsort(-scores)[:10]
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, numbers)
        got = personalizer.recommend(10)
        assert personalizer.score(["item-2"]) == pytest.approx([eager_scores(tiny, numbers)[2]], rel=1e-4, abs=1e-5)
    assert [(r.item, r.title) for r in got] == [(f"item-{n}", f"Title {n}") for n in best]
    np.testing.assert_allclose([r.score for r in got], scores[best], rtol=1e-4, atol=1e-5)


def test_seen_items_and_candidates_are_the_callers_choice(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, [1, 2, 3])
        scores = eager_scores(tiny, [1, 2, 3])
        among = [f"item-{n}" for n in (2, 7, 20)]
        by_score = sorted((2, 7, 20), key=lambda n: -scores[n])
        got = personalizer.recommend(10, exclude_seen=False, candidates=among)
        assert [r.item for r in got] == [f"item-{n}" for n in by_score]
        assert {r.item for r in personalizer.recommend(10, candidates=among)} == {"item-7", "item-20"}
        assert personalizer.recommend(10, candidates=[]) == []
        with pytest.raises(DataError, match="must be in the catalogue, got item='no such'"):
            personalizer.recommend(1, candidates=["item-1", "no such"])


def test_nothing_is_recommended_to_a_user_who_has_seen_everything(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, list(range(1, 51)))
        assert personalizer.recommend(10) == []


def test_unknown_items_are_kept_and_ignored(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        Personalizer.open(tiny_bundle, tmp_path / "one") as one,
        Personalizer.open(tiny_bundle, tmp_path / "two") as two,
    ):
        record_all(one, [1, 2])
        two.record("a film of tomorrow", 0.5)
        record_all(two, [1, 2])
        assert one.recommend(5) == two.recommend(5)
        assert (two.status().events, two.status().unknown_events) == (2, 1)
        with pytest.raises(DataError, match="must be in the catalogue, got item='a film of tomorrow'"):
            two.score(["item-1", "a film of tomorrow"])


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_outside_the_bundle_is_refused(tiny_bundle: Path, tmp_path: Path, k: int) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer, pytest.raises(ConfigError, match="k must be from 1"):
        personalizer.recommend(k)


def test_two_open_personalizers_see_each_others_events_and_versions(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as one, Personalizer.open(tiny_bundle, tmp_path) as two:
        record_all(one, HABIT)
        assert one.recommend(5) == two.recommend(5)
        assert one.train(Plan(steps=20, learning_rate=0.5)).kept
        assert one.recommend(5) == two.recommend(5)
        assert two.status().personal_version == 1


# --- the personal adapter


def test_a_personal_adapter_learns_the_habit_and_survives_reopening(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        before = personalizer.score(["item-5", "item-9"])
        report = personalizer.train(Plan(steps=20, learning_rate=0.5))
        after = personalizer.score(["item-5", "item-9"])
        assert sum(after) > sum(before) + 0.1
        assert report.kept
        assert report.loss_after < report.loss_before == report.loss_shared
    with Personalizer.open(tiny_bundle, tmp_path) as again:
        assert again.score(["item-5", "item-9"]) == after


def test_a_training_that_does_harm_is_not_kept(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, [5, 9] * 5 + [1, 2, 3, 4])  # the held-out end is of another kind
        before = personalizer.score(["item-5"])
        report = personalizer.train(Plan(steps=30, learning_rate=2.0))
        assert not report.kept
        assert report.loss_after > report.loss_before
        assert personalizer.score(["item-5"]) == before
        assert personalizer.versions() == []


@pytest.mark.parametrize("numbers", [[], [7], [1, 2, 3, 4]])
def test_too_few_events_train_nothing(tiny_bundle: Path, tmp_path: Path, numbers: list[int]) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, numbers)
        report = personalizer.train()
        assert (report.steps_done, report.kept, report.outcome) == (0, False, "fewer than 5 known events")


def test_versions_roll_back_and_forward(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = Plan(steps=5, learning_rate=0.3)
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        scores = [personalizer.score(["item-5"])]
        for _ in range(2):
            assert personalizer.train(plan).kept
            scores.append(personalizer.score(["item-5"]))
        assert [(v.number, v.parent, v.current) for v in personalizer.versions()] == [(1, None, False), (2, 1, True)]
        for version, expected in ((1, scores[1]), (None, scores[0]), (2, scores[2])):
            personalizer.rollback(version)
            assert personalizer.score(["item-5"]) == expected
            assert personalizer.status().personal_version == version
        with pytest.raises(OwnletError, match="9"):
            personalizer.rollback(9)


def test_going_back_to_a_version_of_an_earlier_shared_adapter_asks_whether_it_still_serves(
    tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.train(Plan(steps=20, learning_rate=0.5)).version == 1
        personalizer.rollback(None)
        personalizer.adopt(newer_shared(tiny, tmp_path / "a", change=0.001))
        assert personalizer.status().personal_version is None
        personalizer.rollback(1)
        assert personalizer.status().personal_version == 2  # the same one, judged on the new shared adapter
        other_a = tiny.vector.copy()
        other_a[: tiny.spec.size_a] *= -1
        save_adapter(tmp_path / "b", tiny.spec, other_a, version=5)
        personalizer.adopt(tmp_path / "b")
        personalizer.rollback(1)
        assert personalizer.status().personal_version is None  # its frozen part is gone


def test_a_budget_stays_what_it_was_where_none_is_given(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path, budget=Budget(epsilon=3.0)) as personalizer:
        assert personalizer.status().privacy["window"].left == 3.0
    with Personalizer.open(tiny_bundle, tmp_path) as again:
        assert again.status().privacy["window"].left == 3.0


def test_an_adapter_that_falls_behind_is_taken_back_by_itself(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, [5, 9] * 6)
        assert personalizer.train(Plan(steps=40, learning_rate=1.0)).kept
        # from now on the user takes what the shared adapter would have recommended and the personal one would not
        numbers = [5, 9] * 6
        for second in range(8):
            shared = eager_scores(tiny, numbers)
            served = {r.item for r in personalizer.recommend(10)}
            shared[[0, *numbers]] = -np.inf
            best = [n for n in np.argsort(-shared)[:10] if f"item-{n}" not in served]
            if not best:
                break
            numbers.append(int(best[0]))
            personalizer.record(f"item-{best[0]}", 100 + second)
        assert second >= 5, "the two adapters must differ for this test"
        personalizer.train(Plan(steps=1, learning_rate=1e-6))
        status = personalizer.status()
        assert all(version.number != 1 or not version.current for version in personalizer.versions())
        assert status.drift.outcomes == ""


def test_a_new_shared_adapter_carries_the_personal_one_or_retires_it(
    tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.train(Plan(steps=20, learning_rate=0.5)).kept
        assert personalizer.adopt(newer_shared(tiny, tmp_path / "a", change=0.001)) == 4
        status = personalizer.status()
        assert (status.shared_version, status.personal_version) == (4, 2)
        with pytest.raises(AdapterError, match="must be newer than version 4, got 4"):
            personalizer.adopt(tmp_path / "a")
        other_a = tiny.vector.copy()
        other_a[: tiny.spec.size_a] *= -1
        save_adapter(tmp_path / "b", tiny.spec, other_a, version=5)
        personalizer.adopt(tmp_path / "b")  # its frozen part is another one: nothing can stand on it
        assert personalizer.status().personal_version is None
    with Personalizer.open(tiny_bundle, tmp_path / "state") as again:
        assert (again.status().shared_version, again.status().personal_version) == (5, None)


def test_a_shared_adapter_that_does_not_fit_is_refused(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "other", replace(tiny.spec, base_hash="0" * 64), tiny.vector, version=9)
    save_adapter(tmp_path / "alpha", replace(tiny.spec, alpha=1.0), tiny.vector, version=9)
    (tmp_path / "torn").write_bytes((tmp_path / "alpha").read_bytes()[:-7])
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        for name, rule in (
            ("other", "must belong to base"),
            ("alpha", "must have the layers, rank and alpha"),
            ("torn", "must be readable safetensors"),
            ("absent", "must be readable"),
        ):
            with pytest.raises(OwnletError, match=rule):
                personalizer.adopt(tmp_path / name)
        assert personalizer.status().shared_version == 3


# --- stopping and going on


def personal_delta(state: Path, version: int) -> np.ndarray:
    return load_file(state / "personal" / f"{version:06d}" / "adapter.safetensors")["delta"]


def test_a_stopped_training_goes_on_and_ends_like_one_that_was_not_stopped(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = Plan(steps=6, learning_rate=0.3)
    with Personalizer.open(tiny_bundle, tmp_path / "whole") as whole:
        record_all(whole, HABIT)
        assert whole.train(plan).version == 1
    seen: list[tuple[int, int]] = []
    with Personalizer.open(tiny_bundle, tmp_path / "cut") as cut:
        record_all(cut, HABIT)
        report = cut.train(plan, cancel=Stop(2), on_step=lambda done, total: seen.append((done, total)))
        assert (report.steps_done, report.kept, report.outcome) == (2, False, "stopped; call again")
        assert cut.status().halted == ("personal",)
        cut.record("item-1", 1e9)  # not part of what was started
    with Personalizer.open(tiny_bundle, tmp_path / "cut") as again:
        report = again.train(plan, on_step=lambda done, total: seen.append((done, total)))
        assert (report.steps_done, report.version) == (6, 1)
        assert again.status().halted == ()
    assert seen == [(n, 6) for n in range(1, 7)]
    np.testing.assert_array_equal(personal_delta(tmp_path / "cut", 1), personal_delta(tmp_path / "whole", 1))


def test_a_stopped_training_of_another_plan_starts_over(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.train(Plan(steps=6, learning_rate=0.3), cancel=Stop(2)).steps_done == 2
        seen: list[int] = []
        personalizer.train(Plan(steps=3, learning_rate=0.3), on_step=lambda done, total: seen.append(done))
        assert seen == [1, 2, 3]


def test_a_stopped_update_is_charged_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.update(TERMS, cancel=Stop(1)) is None
        spent = personalizer.status().privacy["window"]
        assert personalizer.update(TERMS, cancel=Stop(1)) is None
        update = personalizer.update(TERMS)
        assert update is not None
        after = personalizer.status().privacy["window"]
        assert (spent.charges, spent.uncommitted, after.charges, after.uncommitted) == (1, 1, 1, 0)
        assert after.epsilon == spent.epsilon == pytest.approx(epsilon(window_level_event(PRIVATE, 1), 1e-6))


def test_a_stopped_update_is_not_taken_up_under_other_terms(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.update(SERVER_NOISE, cancel=Stop(1)) is None
        dearer = replace(SERVER_NOISE, noise_multiplier=2.0)  # the same plan, but the server promises less noise
        assert personalizer.update(dearer) is not None
        spent = personalizer.status().privacy["user"]
        assert (spent.charges, spent.uncommitted) == (2, 1)


def test_training_beside_an_event_loop(tiny_bundle: Path, tmp_path: Path) -> None:
    async def app(personalizer: Personalizer) -> list[int]:
        cancel, steps = threading.Event(), []

        def on_step(done: int, total: int) -> None:
            steps.append(done)
            if done == 3:
                cancel.set()

        training = asyncio.to_thread(personalizer.train, Plan(steps=1000), cancel=cancel, on_step=on_step)
        report, best = await asyncio.gather(training, asyncio.to_thread(personalizer.recommend, 3))
        assert report.steps_done == 3
        assert len(best) == 3
        return steps

    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        assert asyncio.run(app(personalizer)) == [1, 2, 3]


def test_threads_record_recommend_and_train_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)

        def repeat(action: Any) -> None:
            try:
                for number in range(15):
                    action(number)
            except BaseException as error:
                errors.append(error)

        def train(number: int) -> None:
            with suppress(StateBusyError):
                personalizer.train()

        actions = [
            lambda n: personalizer.record(f"item-{n + 20}", 1000 + n),
            lambda n: personalizer.recommend(5),
            lambda n: personalizer.score(["item-1"]),
            lambda n: personalizer.status(),
            train,
            train,
        ]
        threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert personalizer.status().events == len(HABIT) + 15


def test_a_second_training_is_told_who_holds_the_state(tiny_bundle: Path, tmp_path: Path) -> None:
    import os

    with Personalizer.open(tiny_bundle, tmp_path) as one, Personalizer.open(tiny_bundle, tmp_path) as two:
        record_all(one, HABIT)

        def on_step(done: int, total: int) -> None:
            for call in (
                two.train,
                lambda: two.update(TERMS),
                lambda: two.rollback(None),
                lambda: two.forget(user=True),
            ):
                with pytest.raises(StateBusyError, match=f"got process {os.getpid()}"):
                    call()

        assert one.train(on_step=on_step).steps_done == 1


# --- the update


def test_an_update_is_trained_from_the_shared_adapter_and_never_from_the_personal_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with (
        Personalizer.open(tiny_bundle, tmp_path / "with") as trained,
        Personalizer.open(tiny_bundle, tmp_path / "without") as untrained,
    ):
        for personalizer in (trained, untrained):
            record_all(personalizer, HABIT)
        assert trained.train(Plan(steps=20, learning_rate=0.5)).kept
        updates = [p.update(TERMS, noise=AesNoise.seeded(1)) for p in (trained, untrained)]
    assert updates[0] is not None
    assert updates[1] is not None
    np.testing.assert_array_equal(updates[0].delta, updates[1].delta)


def test_an_update_names_base_version_event_and_ledger(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        update = personalizer.update(replace(TERMS, clip_norm=0.01))
        assert update is not None
        assert personalizer.update(replace(TERMS, clip_norm=0.01)).ledger_seq == update.ledger_seq  # type: ignore[union-attr]
    room = replace(TERMS, clip_norm=0.01).delta_bound(len(update.delta))
    assert 0.5 * room < np.linalg.norm(update.delta) <= room  # its noise, at full length
    assert (update.base_hash, update.adapter_version) == (tiny.spec.base_hash, 3)
    assert update.event == event_to_json(window_level_event(PRIVATE, 1))
    last = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    assert (last["seq"], last["mac"], last["state"]) == (update.ledger_seq, update.ledger_head, "commit")


def test_asking_twice_gives_the_same_update_and_costs_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        one, two = personalizer.update(TERMS), personalizer.update(TERMS)
        other = personalizer.update(replace(TERMS, clip_norm=0.5))
        assert one is not None
        assert two is not None
        assert other is not None
        np.testing.assert_array_equal(one.delta, two.delta)
        assert personalizer.status().privacy["window"].charges == 2


def test_a_device_without_events_answers_with_its_noise(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        update = personalizer.update(TERMS)
        assert update is not None
        std = PRIVATE.learning_rate * PRIVATE.noise_std * math.sqrt(PRIVATE.steps)
        assert update.delta.std() == pytest.approx(std, rel=0.15)
        quiet = personalizer.update(SERVER_NOISE)
        assert quiet is not None
        assert not quiet.delta.any()


def test_the_budget_is_enforced_with_what_is_spent_and_left(tiny_bundle: Path, tmp_path: Path) -> None:
    once = epsilon(window_level_event(PRIVATE, 1), 1e-6)
    budget = Budget(epsilon=once * 1.2, dp_delta=1e-6)
    with Personalizer.open(tiny_bundle, tmp_path, budget=budget) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.update(TERMS) is not None
        before = (tmp_path / "ledger.jsonl").read_bytes()
        with pytest.raises(BudgetExceededError, match=f"{once:.4f} is spent in 1 charges"):
            personalizer.update(replace(TERMS, clip_norm=0.5))
        assert (tmp_path / "ledger.jsonl").read_bytes() == before
        # the two units are never added: the other one has its own budget, which this plan exceeds on its own
        spent = personalizer.status().privacy
        assert (spent["window"].charges, spent["user"].charges, spent["user"].epsilon) == (1, 0, 0.0)
        assert personalizer.train().steps_done == 1  # what never leaves costs nothing
    with Personalizer.open(tiny_bundle, tmp_path, budget=Budget(epsilon=math.inf)) as free:
        assert free.update(replace(TERMS, clip_norm=0.5)) is not None


def test_an_update_without_any_noise_needs_an_infinite_budget(tiny_bundle: Path, tmp_path: Path) -> None:
    terms = FederationConfig(unit="none", windows=WINDOWS, plan=Plan(steps=1))
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        with pytest.raises(BudgetExceededError):
            personalizer.update(terms)


class CrashingNoise:
    """Stops in the middle of a training, after looking at what is on disk."""

    def __init__(self, ledger: Path) -> None:
        self.ledger, self.states = ledger, [""]

    def poisson_mask(self, size: int, rate: float) -> np.ndarray:
        self.states = [json.loads(line)["state"] for line in self.ledger.read_text().splitlines()]
        raise KeyboardInterrupt

    def gaussian(self, size: int, std: float) -> np.ndarray:
        raise AssertionError("never reached")

    def negatives(self, windows: int, number: int, num_items: int) -> np.ndarray:
        raise AssertionError("never reached")


def test_an_update_is_charged_before_it_is_trained_and_a_crash_keeps_the_charge(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    noise = CrashingNoise(tmp_path / "ledger.jsonl")
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        with pytest.raises(KeyboardInterrupt):
            personalizer.update(TERMS, noise=noise)
        assert noise.states == ["budget", "intent"]
        spent = personalizer.status().privacy["window"]
        assert (spent.charges, spent.uncommitted) == (1, 1)
        assert personalizer.update(TERMS) is not None
        assert personalizer.status().privacy["window"].charges == 2


@pytest.mark.parametrize(
    ("terms", "error", "rule"),
    [
        (None, ConfigError, "terms must be given where the bundle carries none"),
        (replace(TERMS, windows=WindowConfig(window_length=5)), ConfigError, "windows must be the bundle's"),
        (replace(TERMS, plan=replace(PRIVATE, num_negatives=4)), ConfigError, "num_negatives must be 0"),
    ],
)
def test_terms_that_do_not_fit_are_refused(
    tiny_bundle: Path, tmp_path: Path, terms: FederationConfig | None, error: type[Exception], rule: str
) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        with pytest.raises(error, match=rule):
            personalizer.update(terms)
        assert personalizer.status().privacy["window"].charges == 0


def test_a_bundle_may_carry_the_terms(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    write_manifest(bundle, replace(read_manifest(tiny_bundle), federation=TERMS))
    with Personalizer.open(bundle, tmp_path / "state") as personalizer:
        record_all(personalizer, HABIT)
        one, two = personalizer.update(), personalizer.update(TERMS)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.delta, two.delta)


def test_a_ledger_that_vanished_beside_an_adapter_counts_as_exhausted(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.update(TERMS) is not None
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(PrivacyError, match="exhausted"):
        Personalizer.open(tiny_bundle, tmp_path)


# --- policy


class Plugged:
    """A device whose charger comes and goes."""

    def __init__(self) -> None:
        self.reading = Reading(charging=False)

    def read(self) -> Reading:
        return self.reading


def test_the_policy_decides_when_to_train_and_says_why_not(tiny_bundle: Path, tmp_path: Path) -> None:
    conditions, now = Plugged(), [1e9]
    policy = Policy(charging=True, min_new_events=3, max_participations_per_day=1)
    with Personalizer.open(
        tiny_bundle, tmp_path, policy=policy, conditions=conditions, clock=lambda: now[0]
    ) as personalizer:
        record_all(personalizer, [1, 2])
        with pytest.raises(NotEligibleError, match="charging") as caught:
            personalizer.update(TERMS)
        assert len(caught.value.reasons) == 2
        assert len(personalizer.status().waiting_for) == 2
        record_all(personalizer, HABIT)
        conditions.reading = Reading(charging=True)
        assert personalizer.update(TERMS) is not None
        record_all(personalizer, HABIT, start=500)
        with pytest.raises(NotEligibleError, match="participations"):
            personalizer.update(replace(TERMS, clip_norm=0.5))
        now[0] -= 1e6  # the clock goes back: yesterday's participation is now in the future, and counts
        with pytest.raises(NotEligibleError, match="participations"):
            personalizer.update(replace(TERMS, clip_norm=0.5))
        now[0] += 1e6 + 100_000
        assert personalizer.update(replace(TERMS, clip_norm=0.5)) is not None


# --- forgetting, keys, damage


def test_what_is_forgotten_is_gone_and_so_is_what_was_learned_from_it(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        fresh = personalizer.score(["item-1"])
        assert personalizer.train(Plan(steps=20, learning_rate=0.5)).kept
        assert personalizer.update(TERMS) is not None
        assert personalizer.forget(item="item-40") == 0
        assert personalizer.status().personal_version == 1
        assert personalizer.forget(item="item-9") == 8
        status = personalizer.status()
        assert (status.events, status.personal_version, status.has_update) == (8, None, False)
        assert personalizer.versions() == []
        assert status.privacy["window"].charges == 1
        assert personalizer.forget(before=4) == 2
        assert personalizer.forget(user=True) == 6
        assert personalizer.status().events == 0
        assert personalizer.score(["item-1"]) != fresh
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"item-9" not in left
    assert b"item-5" not in left


def test_events_before_the_origin_of_time_can_be_forgotten(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, [1, 2, 3], start=-2)
        assert personalizer.forget(before=0.0) == 2
        assert personalizer.status().events == 1


@pytest.mark.parametrize("criteria", [{}, {"item": "a", "before": 1.0}, {"user": True, "item": "a"}])
def test_forgetting_needs_one_criterion(tiny_bundle: Path, tmp_path: Path, criteria: dict[str, Any]) -> None:
    with (
        Personalizer.open(tiny_bundle, tmp_path) as personalizer,
        pytest.raises(ConfigError, match="exactly one of item, before and user"),
    ):
        personalizer.forget(**criteria)


def test_a_key_hides_the_state_and_another_key_opens_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    key = bytes(range(32))
    with Personalizer.open(tiny_bundle, tmp_path, key=key) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.train(Plan(steps=20, learning_rate=0.5)).kept
        assert personalizer.train(Plan(steps=5), cancel=Stop(1)).steps_done == 1
        assert personalizer.update(TERMS) is not None
        expected = personalizer.recommend(3)
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"item-5" not in content
    assert b"delta" not in content.replace(b"dp_delta", b"")  # the safetensors header of adapter and update
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".sqlite"}
    for wrong in (None, bytes(32)):
        with pytest.raises(OwnletError, match="key"):
            Personalizer.open(tiny_bundle, tmp_path, key=wrong)
    assert {p: p.read_bytes() for p in before} == before
    with Personalizer.open(tiny_bundle, tmp_path, key=key) as again:
        assert again.recommend(3) == expected
        assert again.status().halted == ("personal",)
    with pytest.raises(ConfigError, match="key must have 32 bytes"):
        Personalizer.open(tiny_bundle, tmp_path, key=b"short")


def test_a_damaged_version_is_passed_over_and_named(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = Plan(steps=5, learning_rate=0.3)
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        assert personalizer.train(plan).kept
        first = personalizer.score(["item-5"])
        assert personalizer.train(plan).kept
    file = tmp_path / "personal" / "000002" / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with Personalizer.open(tiny_bundle, tmp_path) as again:
        assert again.score(["item-5"]) == first
        assert again.status().personal_version == 1
        (damage,) = again.status().damaged
        assert damage.startswith("version 2: ")


def test_a_training_that_diverges_leaves_what_served(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, HABIT)
        before = personalizer.score(["item-5"])
        with suppress(AdapterError):  # or the guard turns it down, where the runtime swallows a NaN
            assert not personalizer.train(Plan(steps=5, learning_rate=1e38)).kept
        assert personalizer.score(["item-5"]) == before
        assert personalizer.versions() == []


def test_a_bundle_whose_adapter_is_of_another_base_is_refused(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    _, vector, version = load_adapter(bundle / "adapter.safetensors")
    save_adapter(bundle / "adapter.safetensors", replace(tiny.spec, base_hash="0" * 64), vector, version=version)
    manifest = read_manifest(tiny_bundle)
    files = {**manifest.files, "adapter.safetensors": describe_file(bundle / "adapter.safetensors")}
    write_manifest(bundle, replace(manifest, files=files))
    with pytest.raises(AdapterError, match="must belong to base"):
        Personalizer.open(bundle, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def with_base(tiny: Any, bundle: Path, folder: Path) -> Path:
    """Return a copy of a bundle that holds its base, as ``write_bundle(with_base=True)`` writes it."""
    from ownlet.shared.base import save_base_weights

    shutil.copytree(bundle, folder)
    save_base_weights(folder / BASE_FILE, tiny.model)
    manifest = read_manifest(bundle)
    write_manifest(folder, replace(manifest, files={**manifest.files, BASE_FILE: describe_file(folder / BASE_FILE)}))
    return folder


def test_the_engine_opacus_does_what_the_program_does(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = with_base(tiny, tiny_bundle, tmp_path / "bundle")
    found = []
    for engine in ("executorch", "opacus"):
        with Personalizer.open(bundle, tmp_path / engine, engine=engine) as personalizer:  # type: ignore[arg-type]
            record_all(personalizer, HABIT)
            report = personalizer.train(Plan(steps=20, learning_rate=0.5))
            best = personalizer.recommend(5, exclude_seen=False)
            update = personalizer.update(TERMS, noise=AesNoise.seeded(1))
            assert update is not None
            found.append((report, best, update))
    (one, best, update), (other, best_of_other, update_of_other) = found
    assert (one.loss_before, one.loss_after) == pytest.approx((other.loss_before, other.loss_after), rel=1e-4)
    assert [r.item for r in best] == [r.item for r in best_of_other]
    np.testing.assert_allclose(update.delta, update_of_other.delta, rtol=1e-4, atol=1e-6)


def test_a_bundle_without_its_base_cannot_run_opacus(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="for the engine opacus"):
        Personalizer.open(tiny_bundle, tmp_path, engine="opacus")
    with pytest.raises(ConfigError, match="engine must be executorch or opacus"):
        Personalizer.open(tiny_bundle, tmp_path, engine="tensorflow")  # type: ignore[arg-type]


def test_a_fresh_process_with_the_bundle_alone_imports_no_server_package(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "from ownlet.device import Personalizer\n"
        f"with Personalizer.open({str(tiny_bundle)!r}, {str(tmp_path)!r}) as p:\n"
        "    for n in range(6): p.record(f'item-{n + 1}', n)\n"
        "    p.train()\n"
        "    names = [r.item for r in p.recommend(3)]\n"
        "heavy = [m for m in ('flwr', 'ray', 'polars', 'opacus', 'matplotlib') if m in sys.modules]\n"
        "print(json.dumps([names, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    names, heavy = json.loads(done.stdout.splitlines()[-1])
    assert len(names) == 3
    assert heavy == []


def test_an_event_reads_back_from_json(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        update = personalizer.update(TERMS)
        assert update is not None
        assert epsilon(event_from_json(update.event), 1e-6) == personalizer.status().privacy["window"].epsilon


def test_a_device_follows_a_rollout_and_reports_one_charged_bit(tiny: Any, tiny_bundle: Path, tmp_path: Path):
    registry, out = Registry(tmp_path / "registry"), tmp_path / "out"
    content = newer_shared(tiny, tmp_path / "newer", version=7, change=0.1).read_bytes()
    registry.publish(Publication(content=content, quality=0.2, base_quality=0.1, spent=SPENT, source="test"))
    registry.promote(1, 100)
    registry.start_count(CountTerms(count="week-1", epsilon=1.0))
    registry.deliver(out)
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        assert personalizer.report() is None
        assert personalizer.follow(out / MANIFEST_FILE, lambda offer: (out / offer.file).read_bytes()) == 7
        assert personalizer.status().shared_version == 7
        personalizer.shown(hit=True)
        report = personalizer.report()
        assert report is not None
        assert (report.count, report.version, report == personalizer.report()) == ("week-1", 7, True)
        assert personalizer.status().privacy["user"].epsilon == pytest.approx(1.0)
        record_all(personalizer, HABIT)
        personalizer.forget(user=True)
        assert personalizer.report() is None
        with pytest.raises(StateError, match="manifest must be readable"):
            personalizer.follow(tmp_path / "nowhere", lambda offer: b"")


def test_an_app_that_pins_a_key_follows_signed_manifests_only(tiny: Any, tiny_bundle: Path, tmp_path: Path):
    registry, out = Registry(tmp_path / "registry"), tmp_path / "out"
    content = newer_shared(tiny, tmp_path / "newer", version=7, change=0.1).read_bytes()
    registry.publish(Publication(content=content, quality=0.2, base_quality=0.1, spent=SPENT, source="test"))
    registry.promote(1, 100)
    registry.deliver(out)
    public_key = make_rollout_key(tmp_path / "keys")
    with Personalizer.open(tiny_bundle, tmp_path / "state", rollout_keys=[public_key]) as personalizer:
        with pytest.raises(StateError, match="got no signature"):
            personalizer.follow(out / MANIFEST_FILE, lambda offer: (out / offer.file).read_bytes())
        registry.deliver(out, read_rollout_key(tmp_path / "keys" / PRIVATE_FILE))
        assert personalizer.follow(out / MANIFEST_FILE, lambda offer: (out / offer.file).read_bytes()) == 7
    with pytest.raises(ConfigError, match="public key must have 32 bytes"):
        Personalizer.open(tiny_bundle, tmp_path / "state", rollout_keys=[b"short"])
