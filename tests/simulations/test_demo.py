"""The whole flow on a tiny population: every stage is real, only the sizes are small."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from ownlet.device import Personalizer
from ownlet.shared.adapter import load_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.manifest import read_manifest
from ownlet.simulations.demo import run_demo
from ownlet.simulations.moments import ContextRequest
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.progress import Silent
from ownlet.simulations.results import RunFolder, check_summary
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.trial import TrialConfig

CONFIG = TrialConfig(
    data=DataConfig(num_users=200, num_items=120),
    model=ModelConfig(dim=16, num_layers=1, max_length=20),
    context=ContextRequest(fields=("gap", "hour")),
    recipe=PretrainConfig(max_epochs=4, warmup_steps=5, learning_rate=5e-3),
    adapter=AdapterConfig(target_modules=("down",), rank=2, alpha=4.0),
    federation=FederationConfig(
        rounds=3, cohort_rate=0.3, plan=Plan(steps=1, learning_rate=0.3), windows=WindowConfig(window_length=10)
    ),
    seeds=(0, 1),
    evaluate_every=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    stages = []
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "demo", CONFIG, 0, name="tiny")

    class Watcher(Silent):
        def stage(self, name, total):
            stages.append(name)
            return super().stage(name, total)

    return run_demo(CONFIG, folder, Watcher()), folder, stages


def test_every_stage_runs_and_the_bundle_recommends_what_the_model_does(finished):
    result, _, stages = finished
    assert result.agreement.asked == 20
    assert result.agreement.equal == result.agreement.asked
    assert [row.label for row in result.report.quality] == [
        "popular", "item_knn", "base", "federated", "federated_eps8", "federated_eps2", "personal",
    ]  # fmt: skip
    assert sum("federated" in stage for stage in stages) == 6  # three runs for each of two seeds
    assert [field.name for field in read_manifest(result.bundle).context] == ["gap", "hour"]


def test_summary_metrics_and_page_are_there_and_agree(finished):
    result, folder, _ = finished
    summary = check_summary(json.loads((folder.path / "summary.json").read_text()))
    for row in result.report.quality:
        assert summary["quality"][row.label]["ndcg@10"]["value"] == row.ndcg.value
    assert 1.9 < summary["privacy"]["federated_eps2"]["epsilon"] <= 2.0
    assert 7.5 < summary["privacy"]["federated_eps8"]["epsilon"] <= 8.0
    metrics = pl.read_parquet(folder.path / "metrics.parquet")
    assert metrics.height == 2 * 3 * 3
    assert set(metrics["run"]) == {"federated", "federated_eps8", "federated_eps2"}
    page = (folder.path / "report.html").read_text()
    assert not re.search(r'(src|href)="https?:', page)
    assert summary["wire"]["bytes_up_per_user_round"] < summary["wire"]["bytes_down_per_user_round"]


def test_an_adapter_below_the_base_is_never_shipped(finished):
    result, folder, _ = finished
    for seed, published in zip(CONFIG.seeds, result.published, strict=True):
        _, _, version = load_adapter(Path(folder.path) / f"seed-{seed}" / "adapter.safetensors")
        assert version == (CONFIG.federation.rounds if published else 0)
    assert read_manifest(result.bundle).adapter_version == (CONFIG.federation.rounds if result.published[0] else 0)


def test_an_app_can_use_the_bundle(finished, tmp_path):
    result, _, _ = finished
    items = [json.loads(line) for line in (result.bundle / "items.jsonl").read_text().splitlines()]
    with Personalizer.open(result.bundle, tmp_path / "state") as personalizer:
        for second, item in enumerate(items[:8]):
            personalizer.record(item["id"], second)
        found = personalizer.recommend(5)
        personalizer.train(CONFIG.personal)
        assert len(personalizer.recommend(5)) == 5
    assert len(found) == 5
    assert not {f.item for f in found} & {item["id"] for item in items[:8]}
