"""The ranking stage in a bundle: the same numbers as the head in eager PyTorch, also beside a catalogue that grew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.export.bundle import write_bundle
from ownlet.export.frozen import FrozenBase
from ownlet.export.golden import GOLDEN_FILE, write_golden
from ownlet.export.grow import grow_catalogue
from ownlet.export.lower import trace
from ownlet.export.programs import ProgramShape, build_methods
from ownlet.export.verify import random_arguments
from ownlet.shared.config import AdapterConfig, ModelConfig, WindowConfig
from ownlet.shared.context import ContextField
from ownlet.shared.errors import BundleError
from ownlet.shared.interactions import Item
from ownlet.shared.item_table import open_item_table
from ownlet.shared.lora import applied, attach_adapter
from ownlet.shared.manifest import BASE_FILE, PROGRAM_FILE, RANKING_FILE, TABLE_FILE, read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.program import Program
from ownlet.shared.ranking import RankingConfig, RankingHead, load_ranking, popularity_of
from ownlet.shared.tensors import unpack


def test_the_manifest_names_the_stage_and_its_candidates(tiny_bundle: Path, ranked_bundle: Path) -> None:
    manifest = read_manifest(ranked_bundle)
    assert (manifest.num_candidates, manifest.top_k) == (12, 12)  # no answer is longer than the candidates
    assert {BASE_FILE, RANKING_FILE} <= set(manifest.files)
    assert manifest.method("rank").results[0].shape == (1, 12)
    assert read_manifest(tiny_bundle).num_candidates == 0


@pytest.mark.parametrize("events", [[], [7], [3, 1, 4, 1, 5], [*range(1, 13)]], ids=len)
def test_the_program_ranks_as_the_head_does(tiny: Any, tiny_head: RankingHead, ranked_bundle: Path, events: list[int]):
    history, candidates = np.zeros((1, 12), np.int64), np.arange(30, 42)[None]
    history[0, : len(events)] = events
    length = np.array([max(1, len(events))])
    table = open_item_table(ranked_bundle / TABLE_FILE)
    (got,) = Program(ranked_bundle / PROGRAM_FILE).run("rank", tiny.vector, table, history, length, candidates)
    with torch.no_grad(), applied(tiny.model, tiny.spec.split(torch.from_numpy(tiny.vector))):
        want = tiny_head.rank(tiny.model, *map(torch.from_numpy, (candidates, history, length)))
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)


def test_an_item_that_came_later_ranks_by_its_vector_and_without_popularity(
    tiny: Any, tiny_head: RankingHead, ranked_bundle: Path, tmp_path: Path
) -> None:
    new = tuple(Item(number=number, id=f"new-{number}") for number in (51, 52))
    vectors = np.random.default_rng(0).normal(0, 0.3, (2, 16)).astype(np.float32)
    grow_catalogue(ranked_bundle, tmp_path / "grown", new, vectors)
    history, candidates = np.array([[3, 1, 4] + 9 * [0]]), np.array([[51, 52, *range(1, 11)]])
    table = open_item_table(tmp_path / "grown" / TABLE_FILE)
    program = Program(tmp_path / "grown" / PROGRAM_FILE)
    (got,) = program.run("rank", tiny.vector, table, history, np.array([3]), candidates)
    model, items = tiny.model, torch.from_numpy(np.concatenate([np.zeros((1, 16), np.float32), table.T]))
    with torch.no_grad(), applied(model, tiny.spec.split(torch.from_numpy(tiny.vector))):
        hidden = model.encode_last(torch.from_numpy(history), torch.tensor([3]), items)
        features = tiny_head.features(hidden, torch.from_numpy(history), torch.from_numpy(candidates), items)
        want = tiny_head(features)
    assert features[0, 0, 1] == features[0, 1, 1] == tiny_head.popularity[-1]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)


def test_golden_vectors_hold_the_stage_and_need_its_head(
    tiny: Any, tiny_head: RankingHead, ranked_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="golden vectors must be of all methods"):
        write_golden(ranked_bundle, tmp_path, tiny.model)
    write_golden(ranked_bundle, tmp_path, tiny.model, ranking=tiny_head)
    tensors, _ = unpack((tmp_path / GOLDEN_FILE).read_bytes())
    assert tensors["rank/0/out/ranking_scores"].shape == (1, 12)


def test_a_head_of_another_base_is_refused(tiny: Any, tiny_head: RankingHead, ranked_bundle: Path, tmp_path: Path):
    other = RankingHead(tiny_head.config, tiny_head.popularity, "0" * 64)
    with pytest.raises(BundleError, match="ranking head must belong to base"):
        write_bundle(
            tmp_path / "b", tiny.model, tiny.spec, tiny.vector,
            version=0, items=tiny.items, windows=WindowConfig(), ranking=other,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
    with pytest.raises(BundleError, match="ranking head must belong to base 000000000000"):
        load_ranking(ranked_bundle / RANKING_FILE, base_hash="0" * 64)


def test_a_base_that_reads_context_ranks_by_it() -> None:
    fields = (ContextField(name="gap", kind="gap"), ContextField(name="hour", kind="hour"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        content = torch.cat([torch.zeros(1, 6), torch.randn(50, 6)])
        model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=12, context=fields), content).eval()
        with torch.no_grad():
            model.context_embedding[1:].normal_(std=0.5)
    head = RankingHead(RankingConfig(num_candidates=12), popularity_of(torch.arange(51)), "base")
    torch.nn.init.ones_(head.out.weight)
    spec = attach_adapter(model, AdapterConfig(rank=2, alpha=4.0))
    base = FrozenBase.of(model)
    shape = ProgramShape(windows=WindowConfig(window_length=6), batches=(1,), capacity=100)
    method = build_methods(base, spec, shape, head)[-1]
    assert method.arguments[-2:] == ("candidates", "context")
    arguments = random_arguments(method, base, spec, torch.Generator().manual_seed(0), 3)
    for function in (method.function, trace(method)):
        torch.testing.assert_close(function(*arguments)[0], method.reference(*arguments)[0], rtol=1e-4, atol=1e-4)
    untold = (*arguments[:-1], torch.zeros_like(arguments[-1]))
    assert not torch.allclose(method.function(*untold)[0], method.function(*arguments)[0], atol=1e-2)
