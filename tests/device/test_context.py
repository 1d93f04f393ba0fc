"""A base that reads context, from the program to the app: the same numbers as eager PyTorch all the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.device import Personalizer
from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.history import EventHistory
from ownlet.device.moments import Moments, said_codes
from ownlet.device.opacus_engine import OpacusEngine
from ownlet.device.timeline import Timeline
from ownlet.export.bundle import write_bundle
from ownlet.export.golden import GOLDEN_FILE, write_golden
from ownlet.export.grow import grow_catalogue
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.context import ContextField, context_rows
from ownlet.shared.errors import DataError
from ownlet.shared.interactions import Item
from ownlet.shared.lora import applied, attach_adapter
from ownlet.shared.manifest import read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.seal import Seal
from ownlet.shared.tensors import unpack
from ownlet.shared.windows import Windows, cut_windows
from ownlet.simulations.cohort import CohortEngine

FIELDS = (
    ContextField(name="gap", kind="gap"),
    ContextField(name="device", kind="column", values=("phone", "tablet")),
    ContextField(name="weekday", kind="weekday"),
)
WINDOWS = WindowConfig(window_length=6)
PLAN = Plan(steps=6, learning_rate=0.3, sample_rate=0.5, expected_batch=2.0, clip_norm=0.2, noise_multiplier=0.7)
NOW = 1_700_000_000.0


class Reader:
    """A tiny base that reads context, prepared with ``attach``, and its bundle."""

    def __init__(self, folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            content = torch.cat([torch.zeros(1, 6), torch.randn(30, 6)])
            model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=12, context=FIELDS), content).eval()
            with torch.no_grad():
                model.item_embedding.weight[1:].normal_(std=0.3)
                model.context_embedding[1:].normal_(std=0.5)
        self.model: SASRec = model
        self.spec: AdapterSpec = attach_adapter(model, AdapterConfig(rank=4, alpha=8.0))
        self.vector: Vector = initial_adapter(self.spec, seed=1)
        self.vector[self.spec.size_a :] = np.random.default_rng(2).normal(0, 0.05, self.spec.num_trainable)
        self.items = tuple(Item(number=n, id=f"item-{n}") for n in range(1, 31))
        self.bundle = folder / "bundle"
        write_bundle(
            self.bundle,
            model,
            self.spec,
            self.vector,
            version=3,
            items=self.items,
            windows=WINDOWS,
            batches=(2,),
            top_k=10,
            with_base=True,
        )

    def eager(self, numbers: list[int], rows: Any) -> Any:
        """Score with the model itself; rows is None where nothing is known."""
        history = torch.tensor([numbers or [0]])
        context = None if rows is None else torch.from_numpy(np.asarray(rows))[None]
        with torch.no_grad(), applied(self.model, self.spec.split(torch.from_numpy(self.vector))):
            return self.model.score_last(history, torch.tensor([history.shape[1]]), context)[0].numpy()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def program(reader: Reader) -> ExecutorchEngine:
    return ExecutorchEngine.open(reader.bundle)


def some_windows(num_events: int, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    return cut_windows(rng.integers(1, 31, num_events), WINDOWS, rng.integers(0, 42, (num_events, 3)))


def test_the_manifest_says_what_the_base_reads_and_every_methods_last_argument_is_its_rows(
    reader: Reader, tiny_bundle: Path
) -> None:
    manifest = read_manifest(reader.bundle)
    assert manifest.context == FIELDS
    shapes = {method.name: method.arguments[-1] for method in manifest.methods}
    assert {entry.name for entry in shapes.values()} == {"context"}
    assert {name: entry.shape for name, entry in shapes.items()} == {
        "score": (1, 12, 3),
        "step_2": (2, 6, 3),
        "loss": (2, 6, 3),
    }
    plain = read_manifest(tiny_bundle)
    assert plain.context == ()
    assert "context" not in json.loads((tiny_bundle / "manifest.json").read_text())
    assert not any(entry.name == "context" for method in plain.methods for entry in method.arguments)


def test_every_engine_trains_alike_with_context(reader: Reader, program: ExecutorchEngine) -> None:
    windows = some_windows(30)
    engines = (program, OpacusEngine(reader.model, reader.spec), CohortEngine(reader.model, reader.spec))
    trained = [engine.train(reader.vector, [windows], PLAN, [AesNoise.seeded(0)])[0] for engine in engines]
    for other in trained[1:]:
        np.testing.assert_allclose(trained[0] - reader.vector, other - reader.vector, rtol=1e-4, atol=2e-6)
    untold = program.train(reader.vector, [replace(windows, context=None)], PLAN, [AesNoise.seeded(0)])[0]
    assert np.abs(untold - trained[0]).max() > 1e-3


def test_losses_and_scores_read_the_context(reader: Reader, program: ExecutorchEngine) -> None:
    opacus, windows = OpacusEngine(reader.model, reader.spec), some_windows(14)
    np.testing.assert_allclose(
        program.loss(reader.vector, windows), opacus.loss(reader.vector, windows), rtol=1e-4, atol=1e-5
    )
    rng = np.random.default_rng(1)
    for size in (0, 1, 5, 12, 40):
        history, rows = rng.integers(1, 31, size), rng.integers(0, 42, (max(1, size), 3))
        want = reader.eager(history[-12:].tolist(), rows[-12:])
        for engine in (program, opacus):
            np.testing.assert_allclose(engine.score(reader.vector, history, rows)[1:], want[1:], rtol=1e-4, atol=1e-4)
        untold = program.score(reader.vector, history)
        np.testing.assert_allclose(untold[1:], reader.eager(history[-12:].tolist(), None)[1:], rtol=1e-4, atol=1e-4)
        assert np.abs(untold[1:] - want[1:]).max() > 1e-2


def test_rows_that_the_table_lacks_never_reach_the_program(reader: Reader, program: ExecutorchEngine) -> None:
    history = np.array([1, 2])
    for wrong in (np.full((2, 3), 42), np.full((2, 3), -1)):
        with pytest.raises(DataError, match="rows from 0 to 41"):
            program.score(reader.vector, history, wrong)
    with pytest.raises(DataError, match="the 3 fields of the bundle"):
        program.score(reader.vector, history, np.zeros((2, 2), np.int64))
    windows = some_windows(8)
    assert windows.context is not None
    with pytest.raises(DataError, match="rows from 0 to 41"):
        program.loss(reader.vector, replace(windows, context=windows.context + 42))
    with pytest.raises(DataError, match="rows from 0 to 41"):
        list(program.steps(reader.vector, replace(windows, context=windows.context - 42), PLAN, AesNoise.seeded(0)))


def test_the_golden_training_is_the_devices_with_rows_computed_from_its_times(
    reader: Reader, program: ExecutorchEngine, tmp_path: Path
) -> None:
    write_golden(reader.bundle, tmp_path, reader.model)
    tensors, words = unpack((tmp_path / GOLDEN_FILE).read_bytes())
    times = tensors["training/times"]
    rows = context_rows(FIELDS, times, np.concatenate([[np.nan], times[:-1]]))
    np.testing.assert_array_equal(rows, tensors["training/context"])
    windows = cut_windows(tensors["training/events"], WINDOWS, rows)
    noise = AesNoise(tensors["noise/key"].tobytes())
    got = program.train(reader.vector, [windows], Plan(**json.loads(words["plan"])), [noise])[0]
    np.testing.assert_allclose(got, tensors["training/vector"], rtol=1e-4, atol=1e-5)


def test_a_catalogue_grows_under_a_base_that_reads_context(reader: Reader, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    new = [Item(number=n, id=f"item-{n}") for n in (31, 32)]
    grown = grow_catalogue(reader.bundle, tmp_path / "grown", new, vectors)
    assert (grown.num_items, grown.context) == (32, FIELDS)


@pytest.fixture
def opened(reader: Reader, tmp_path: Path) -> Iterator[Personalizer]:
    with Personalizer.open(reader.bundle, tmp_path / "state", clock=lambda: NOW + 7200) as personalizer:
        yield personalizer


EVENTS = [(3, 0.0, {"device": "phone"}), (7, 60.0, {"device": "tablet", "mood": "fine"}), (9, 90_000.0, None)]


def expected_rows(asked: float, device: int) -> Any:
    times = np.array([NOW + second for _, second, _ in EVENTS] + [asked])
    said = np.array([1, 2, 0, device])
    return context_rows(FIELDS, times, np.concatenate([[np.nan], times[:-1]]), {"device": said})[1:]


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["open", "sealed"])
def test_an_app_is_recommended_what_the_model_says_for_that_moment(reader: Reader, tmp_path: Path, key: Any) -> None:
    with Personalizer.open(reader.bundle, tmp_path / "state", key=key) as personalizer:
        for number, second, said in EVENTS:
            personalizer.record(f"item-{number}", NOW + second, said)
    with Personalizer.open(reader.bundle, tmp_path / "state", key=key) as personalizer:  # what was said is on disk
        for asked, said, device in ((NOW + 90_010, {"device": "phone"}, 1), (NOW + 900_000, {"device": "watch"}, 0)):
            scores = reader.eager([3, 7, 9], expected_rows(asked, device))
            scores[[0, 3, 7, 9]] = -np.inf
            found = personalizer.recommend(10, timestamp=asked, context=said)
            assert [one.item for one in found] == [f"item-{number}" for number in np.argsort(-scores)[:10]]
            got = personalizer.score(["item-1", "item-2"], timestamp=asked, context=said)
            np.testing.assert_allclose(got, scores[[1, 2]], rtol=1e-4, atol=1e-4)


def test_a_request_is_of_now_unless_the_app_says_otherwise(opened: Personalizer) -> None:
    opened.record("item-3", NOW)
    now = opened.recommend(3)
    assert now == opened.recommend(3, timestamp=NOW + 7200)
    assert now != opened.recommend(3, timestamp=NOW + 7200 + 3 * 86_400)


def test_what_an_app_says_of_a_request_must_be_text(opened: Personalizer) -> None:
    with pytest.raises(DataError, match="context must be text by name"):
        opened.recommend(3, context={"device": 3})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="context must be text by name"):
        opened.record("item-1", context={"device": 3})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="timestamp must be finite"):
        opened.recommend(3, timestamp=float("nan"))
    assert opened.status().events == 0


@pytest.mark.parametrize("unit", ["personal", "window"])
def test_a_device_trains_on_the_moments_of_its_events(reader: Reader, opened: Personalizer, unit: str) -> None:
    """Equal items and other times train another adapter, and exactly the one that the windows say."""
    rng = np.random.default_rng(5)
    numbers, times = rng.integers(1, 31, 12), NOW + np.cumsum(rng.integers(1, 90_000, 12))
    for number, second in zip(numbers, times, strict=True):
        opened.record(f"item-{number}", float(second), {"device": "tablet"})
    rows = context_rows(FIELDS, times, np.concatenate([[np.nan], times[:-1]]), {"device": np.full(12, 2)})
    engine = ExecutorchEngine.open(reader.bundle)
    if unit == "window":
        terms = FederationConfig(
            unit="window", plan=replace(PLAN, noise_multiplier=3.0), windows=WINDOWS, clip_norm=9.0
        )
        update = opened.update(terms, noise=AesNoise.seeded(1))
        assert update is not None
        windows = cut_windows(numbers, WINDOWS, rows)
        want = engine.train(reader.vector, [windows], terms.plan, [AesNoise.seeded(1)])[0] - reader.vector
        np.testing.assert_allclose(update.delta, want[reader.spec.trainable], rtol=1e-4, atol=1e-5)
        return
    report = opened.train(Plan(steps=2, learning_rate=0.05))
    held_out = report.held_out
    judges = cut_windows(numbers[-7:], WindowConfig(window_length=7), rows[-7:])
    valid = np.zeros_like(judges.valid)
    valid[0, 6 - held_out : 6] = 1
    judges = Windows(
        history=judges.history[:, :6], target=judges.target[:, :6], valid=valid[:, :6], context=judges.context[:, :6]
    )
    assert report.loss_before == pytest.approx(float(engine.loss(reader.vector, judges)[0]), rel=1e-4)


def test_a_base_without_context_ignores_what_the_app_says(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        personalizer.record("item-3", NOW, {"device": "phone"})
        said = personalizer.recommend(5, timestamp=NOW, context={"device": "phone"})
        assert said == personalizer.recommend(5)


def test_a_later_bundle_understands_what_an_earlier_one_ignored(
    reader: Reader, tiny_bundle: Path, tmp_path: Path
) -> None:
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        personalizer.record("item-3", NOW, {"device": "phone"})
        personalizer.record("item-4", NOW + 5, {"device": "phone"})
    with Personalizer.open(reader.bundle, tmp_path / "state") as personalizer:
        times = np.array([NOW, NOW + 5, NOW + 9])
        rows = context_rows(FIELDS, times, np.array([np.nan, NOW, NOW + 5]), {"device": np.array([1, 1, 0])})[1:]
        want = reader.eager([3, 4], rows)[[5, 6]]
        got = personalizer.score(["item-5", "item-6"], timestamp=NOW + 9)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_program_and_opacus_serve_alike_from_the_bundles_own_base(reader: Reader, tmp_path: Path) -> None:
    answers = []
    for engine in ("executorch", "opacus"):
        with Personalizer.open(reader.bundle, tmp_path / engine, engine=engine) as personalizer:  # type: ignore[arg-type]
            for number, second, said in EVENTS:
                personalizer.record(f"item-{number}", NOW + second, said)
            answers.append(personalizer.recommend(8, timestamp=NOW + 90_100, context={"device": "tablet"}))
    assert [one.item for one in answers[0]] == [one.item for one in answers[1]]


def test_an_event_that_comes_in_between_changes_the_gap_of_the_one_behind_it(tmp_path: Path) -> None:
    history = EventHistory(tmp_path / "history.sqlite", seal=Seal())
    history.record("a", NOW, {"device": "phone"})
    history.record("b", NOW + 100)
    timeline = Timeline(history, {"a": 1, "b": 2, "c": 3}, 3, FIELDS)
    before = timeline.snapshot().context
    history.record("c", NOW + 99, {"device": "tablet"})
    timeline.refresh()
    after = timeline.snapshot()
    assert before is not None
    assert after.context is not None
    assert before[:, :2].tolist() == [[0, 33], [(101).bit_length(), 0]]
    assert after.context[:, :2].tolist() == [[0, 33], [(100).bit_length(), 34], [2, 0]]
    np.testing.assert_array_equal(after.up_to(2).context, before)  # as they stood when two were recorded
    assert timeline.latest(1).numbers.tolist() == [2]
    history.close()


def test_without_events_a_request_has_a_moment_of_its_own() -> None:
    moments = Moments(fields=FIELDS, timestamps=np.zeros(0), said=said_codes(FIELDS, []))
    assert moments.asked(NOW, {"device": "tablet"}).tolist() == [[0, 34, 34 + 2]]  # a Tuesday
    assert moments.rows().shape == (0, 3)


def test_the_old_history_of_a_copied_state_is_read_without_context(reader: Reader, tmp_path: Path) -> None:
    """Rows that were written before there was context are rows about which nothing was said."""
    with Personalizer.open(reader.bundle, tmp_path / "state") as personalizer:
        personalizer.record("item-3", NOW)
        plain = personalizer.score(["item-5"], timestamp=NOW + 9)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with Personalizer.open(reader.bundle, tmp_path / "copy") as personalizer:
        assert personalizer.score(["item-5"], timestamp=NOW + 9) == plain
