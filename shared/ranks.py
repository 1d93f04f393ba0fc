"""Adapters of a smaller rank inside a larger one: devices of different strength in one federation.

A device of rank s trains the first s rows of every A and columns of every B; the rest of its delta is zero. alpha /
rank is the same for all, so the scale of what the adapter adds is, too. The server divides every number by how many
users train it, which is public because ranks are: zero-padding as in HetLoRA (Cho et al. 2024,
https://arxiv.org/abs/2401.06432), weighted by rank slice and by users in place of norms, which are private.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.errors import require

__all__ = ["check_ranks", "low_rank_spec", "places_of", "rank_of_node", "rank_weights", "users_of_rank"]


def low_rank_spec(spec: AdapterSpec, rank: int) -> AdapterSpec:
    """Return the spec of a smaller rank with the same alpha / rank.

    Raises:
        ConfigError: a rank above that of the spec, or another form than LoRA, whose numbers have no ranks.
    """
    require(spec.form == "lora", "ranks must be of an adapter of the form lora", form=spec.form)
    require(1 <= rank <= spec.rank, f"rank must be in 1..{spec.rank}", rank=rank)
    return replace(spec, rank=rank, alpha=spec.alpha * rank / spec.rank)


def check_ranks(spec: AdapterSpec, ranks: Sequence[int]) -> None:
    """Check the ranks of a run against its adapter.

    Raises:
        ConfigError: the largest is not the adapter's, or its numbers have no ranks.
    """
    if ranks:
        require(max(ranks) == spec.rank, f"largest of ranks must be the adapter's, {spec.rank}", ranks=tuple(ranks))
        low_rank_spec(spec, min(ranks))


def rank_of_node(spec: AdapterSpec, ranks: Sequence[int], partition: int, own: int | None = None) -> int:
    """Return the rank that a node trains.

    A node may take less than the run has for it, so that the server divides by too many users and its numbers beyond
    move less. It may not take more: the server would divide by too few, and move them too far.

    Args:
        spec: of the run's adapter.
        ranks: of the run; empty where all are the adapter's.
        partition: that the node hosts.
        own: what the node is set to; None takes what the run has for it.

    Raises:
        ConfigError: more than the run has for it, or an adapter whose numbers have no ranks.
    """
    most = ranks[partition % len(ranks)] if ranks else spec.rank
    if own is None:
        return most
    require(own <= most, f"rank of the node must be at most {most}, the run's for partition {partition}", rank=own)
    return low_rank_spec(spec, own).rank


def places_of(spec: AdapterSpec, rank: int) -> NDArray[np.int64]:
    """Return where the numbers of an adapter of a smaller rank stand in the whole vector, (size of the smaller,)."""
    at, firsts, seconds = 0, [], []
    for layer in spec.layers:
        block = np.arange(at, at + spec.rank * layer.in_features).reshape(spec.rank, layer.in_features)
        firsts.append(block[:rank].ravel())
        at += block.size
    for layer in spec.layers:
        block = np.arange(at, at + spec.rank * layer.out_features).reshape(layer.out_features, spec.rank)
        seconds.append(block[:, :rank].ravel())
        at += block.size
    return np.concatenate([*firsts, *seconds])


def users_of_rank(ranks: Sequence[int], num_users: int) -> dict[int, int]:
    """Return rank -> how many of users 0..N-1 have it, where user u has ``ranks[u % len(ranks)]``."""
    counts: dict[int, int] = {}
    for at, rank in enumerate(ranks):
        counts[rank] = counts.get(rank, 0) + len(range(at, num_users, len(ranks)))
    return counts


def rank_weights(spec: AdapterSpec, counts: Mapping[int, int]) -> NDArray[np.float64]:
    """Return, for every trained number, all users over those who train it, (num_trainable,); 0 where nobody does."""
    trained_by = np.zeros(spec.size)
    for rank, users in counts.items():
        trained_by[places_of(spec, rank)] += users
    whole, mine = float(sum(counts.values())), trained_by[spec.trainable]
    return np.divide(whole, mine, out=np.zeros_like(mine), where=mine > 0)
