"""The second stage of a recommendation: a small network that orders the few candidates that the first stage found.

The first stage scores the whole catalogue by one product, hidden state times item vector. Whatever looks at a candidate
and a history together costs too much for every item; so the best of the first stage are its candidates (Covington et
al. 2016, https://dl.acm.org/doi/10.1145/2959100.2959190, section 2: candidate generation, then ranking).

    score = s + out(relu(within(f)))

with the first stage's score s and six features f of a candidate, standardised: s itself; its popularity; the cosine of
its vector with the hidden state; and with the items of the history the cosine of the last, the largest, and the mean
that weighs the latest most. The last layer starts at zero, so an untrained head keeps the order of the first stage.
Features that are so few generalise from hundreds of users; the vectors themselves did not (docs/decisions.md).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ownlet.shared.errors import BundleError, ConfigError, require
from ownlet.shared.model import SASRec
from ownlet.shared.store import write_atomic

__all__ = ["NUM_FEATURES", "RankingConfig", "RankingHead", "load_ranking", "popularity_of", "save_ranking"]

NUM_FEATURES = 6
_FORMAT = "ownlet-ranking-1"


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The shape of a ranking head.

    Args:
        num_candidates: C, items that the first stage hands over; the longest answer of two stages.
        width: of the hidden layer.
        decay: weight of an event of the history beside the one after it.
    """

    num_candidates: int = 100
    width: int = 8
    decay: float = 0.8

    def __post_init__(self) -> None:
        for name in ("num_candidates", "width"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(0 < self.decay <= 1, "decay must be in (0, 1]", decay=self.decay)


class RankingHead(nn.Module):
    """Scores candidates; belongs to one base.

    Args:
        config: the shape.
        popularity: (num_items + 2,) from ``popularity_of``.
        base_hash: SHA-256 of the base.
    """

    popularity: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: RankingConfig, popularity: Tensor, base_hash: str) -> None:
        super().__init__()
        self.config, self.base_hash = config, base_hash
        self.register_buffer("popularity", popularity)
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("std", torch.ones(NUM_FEATURES))
        self.within = nn.Linear(NUM_FEATURES, config.width)
        self.out = nn.Linear(config.width, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, C, NUM_FEATURES) to scores (batch, C)."""
        inner = torch.relu(self.within((features - self.mean) / self.std))
        scores: Tensor = features[..., 0] + self.out(inner).squeeze(-1)
        return scores

    def features(self, hidden: Tensor, history: Tensor, candidates: Tensor, items: Tensor) -> Tensor:
        """Return what the head reads.

        Args:
            hidden: (batch, d) what the base made of each history.
            history: (batch, length) item numbers, 0 behind the last event.
            candidates: (batch, C) item numbers.
            items: (num_items + 1, d) item vectors.

        Returns:
            (batch, C, NUM_FEATURES).
        """
        vectors, user = items[candidates], hidden.unsqueeze(2)  # (batch, C, d), (batch, d, 1)
        first = vectors @ user  # (batch, C, 1)
        popularity = self.popularity[candidates.clamp(max=len(self.popularity) - 1)].unsqueeze(-1)
        unit = nn.functional.normalize(vectors, dim=-1)
        is_event, place = history > 0, torch.arange(history.shape[1], device=history.device)
        alike = unit @ nn.functional.normalize(items[history], dim=-1).mT  # (batch, C, length)
        age = is_event.sum(dim=1, keepdim=True) - 1 - place  # (batch, length): 0 at the last event
        weights = torch.where(is_event, self.config.decay**age, 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        parts = (
            first,
            popularity,
            unit @ nn.functional.normalize(user, dim=1),
            alike @ (is_event & (age == 0)).float().unsqueeze(2),
            alike.masked_fill(~is_event.unsqueeze(1), -1.0).amax(dim=2, keepdim=True),
            alike @ weights.unsqueeze(2),
        )
        return torch.cat(parts, dim=-1)

    def rank(
        self, model: SASRec, candidates: Tensor, history: Tensor, lengths: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Score candidates (batch, C) as the next item; the others are the arguments of ``SASRec.score_last``."""
        items = model.item_vectors()
        hidden = model.encode_last(history, lengths, items, context)
        return self(self.features(hidden, history, candidates, items))  # type: ignore[no-any-return]


def popularity_of(counts: Tensor) -> Tensor:
    """Return what the head knows of each item's popularity: log(1 + count), with mean 0 and variance 1 over items.

    Args:
        counts: (num_items + 1,) events of each item among public users; number 0 is padding.

    Returns:
        (num_items + 2,): the last place stands for every item that came later, which has no events.
    """
    counts = torch.cat([counts.float(), torch.zeros(1)])
    counts[0] = 0
    logs = torch.log1p(counts)
    return (logs - logs[1:-1].mean()) / logs[1:-1].std(correction=0).clamp(min=0.1)


def save_ranking(path: Path, head: RankingHead) -> None:
    """Write a head, atomically: safetensors, with its shape and its base in the metadata.

    Raises:
        OSError: the disk refused.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    config = json.dumps(asdict(head.config), sort_keys=True)
    write_atomic(path, save(state, metadata={"format": _FORMAT, "config": config, "base_hash": head.base_hash}))


def load_ranking(path: Path, *, base_hash: str | None = None) -> RankingHead:
    """Read what ``save_ranking`` wrote, in evaluation mode.

    Args:
        path: the file.
        base_hash: when given, the only base that is accepted.

    Raises:
        BundleError: unreadable, of another format or base, or not the weights of the shape it names.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
        if metadata.get("format") != _FORMAT:
            raise BundleError(f"ranking head must have format {_FORMAT}, got {metadata.get('format')!r} in {path}")
        config = RankingConfig(**json.loads(metadata["config"]))
        head = RankingHead(config, state["popularity"], metadata["base_hash"])
        head.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise BundleError(f"ranking head must be readable safetensors, got {path}: {error}") from error
    if base_hash not in (None, head.base_hash):
        raise BundleError(
            f"ranking head must belong to base {base_hash[:12]}, got base {head.base_hash[:12]} in {path}"
        )
    return head.requires_grad_(False).eval()
