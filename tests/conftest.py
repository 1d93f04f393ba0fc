"""A tiny base and its bundle, built once per session and shared by the tests of several folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, initial_adapter
from ownlet.shared.config import ModelConfig, WindowConfig
from ownlet.shared.interactions import Item
from ownlet.shared.lora import attach
from ownlet.shared.methods import METHODS
from ownlet.shared.model import SASRec
from ownlet.shared.ranking import RankingConfig, RankingHead, popularity_of

torch.set_num_threads(1)  # the models are tiny: threads waiting for each other made tests ten times slower

NUM_ITEMS = 50
WINDOWS = WindowConfig(window_length=6)


def catalogue(size: int) -> tuple[Item, ...]:
    """Return items ``item-1``, ``item-2``, ..."""
    return tuple(Item(number=n, id=f"item-{n}", title=f"Title {n}") for n in range(1, size + 1))


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny base, prepared with ``attach``, an adapter with B other than 0, and its catalogue."""

    model: SASRec
    spec: AdapterSpec
    vector: Vector
    items: tuple[Item, ...]


def make_tiny(*, train_a: bool = False) -> Tiny:
    """Return a base of width 16 with one block and 50 items, the same numbers every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        content = torch.cat([torch.zeros(1, 6), torch.randn(NUM_ITEMS, 6)])
        model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=12), content).eval()
        with torch.no_grad():
            model.item_embedding.weight[1:].normal_(std=0.3)  # scores that differ clearly, gradients of some size
    targets = METHODS["lora-frozen-a"].targets
    base_hash = hash_state(model.state_dict())
    spec = attach(model, target_modules=targets, rank=4, alpha=8.0, base_hash=base_hash, train_a=train_a)
    vector = initial_adapter(spec, seed=1)
    vector[spec.size_a :] = np.random.default_rng(2).normal(0, 0.05, spec.size - spec.size_a)
    return Tiny(model=model, spec=spec, vector=vector, items=catalogue(NUM_ITEMS))


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(scope="session")
def tiny_with_a() -> Tiny:
    """The same base with an adapter whose A is trained too."""
    return make_tiny(train_a=True)


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of the tiny base, steps of 1 and of 2 windows of 6 events; tests copy it before they change it."""
    from ownlet.export.bundle import write_bundle  # slow to import, and most tests do without

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(
        folder,
        tiny.model,
        tiny.spec,
        tiny.vector,
        version=3,
        items=tiny.items,
        windows=WINDOWS,
        batches=(1, 2),
        top_k=10,
    )
    return folder


WORDS = ("alien", "crew", "drama", "horror", "love", "moon", "red", "robot", "romance", "sci", "fi", "space", "wedding")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random DistilBERT of width 16, and a WordPiece vocabulary of a few words and all letters."""
    from transformers import BertTokenizer, DistilBertConfig, DistilBertModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789().,-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        shape = DistilBertConfig(
            vocab_size=len(pieces), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40
        )
        model = DistilBertModel(shape)
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.normal_(std=1.0)  # words that differ clearly
    model.save_pretrained(folder)
    return folder


def make_head(model: SASRec, **shape: int) -> RankingHead:
    """Return a ranking head of the base whose order clearly differs from the first stage's."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        counts = torch.randint(0, 30, (NUM_ITEMS + 1,))
        head = RankingHead(RankingConfig(**shape), popularity_of(counts), hash_state(model.state_dict()))
        with torch.no_grad():
            head.mean.normal_(std=0.1)
            head.std.uniform_(0.3, 0.6)
            head.out.weight.normal_()
    return head.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def tiny_head(tiny: Tiny) -> RankingHead:
    """A head for 12 candidates, of the tiny base's 50 items."""
    return make_head(tiny.model, num_candidates=12)


@pytest.fixture(scope="session")
def ranked_bundle(tiny: Tiny, tiny_head: RankingHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a ranking stage, its base beside it, and only one variant of ``step``."""
    from ownlet.export.bundle import write_bundle  # slow to import, and most tests do without

    folder = tmp_path_factory.mktemp("bundles") / "ranked"
    write_bundle(
        folder,
        tiny.model,
        tiny.spec,
        tiny.vector,
        version=3,
        items=tiny.items,
        windows=WINDOWS,
        batches=(1,),
        with_base=True,
        ranking=tiny_head,
    )
    return folder
