"""Rounds that train A and B in turn: RoLoRA (Chen et al. 2025, https://arxiv.org/abs/2502.01755).

With one of the two fixed and shared, the average of the users' products is the product of the averages, for A as for B;
only training both at once makes the average wrong. B begins: it is 0 at the start, so that gradients of A vanish.

Everything here follows from the round's number, a public one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.errors import require

__all__ = ["PARTS", "Part", "part_of_round", "places_of_part", "spec_of_part"]

Part = Literal["all", "a", "b"]
"""What a round trains: all that the spec says is trained, or only every A, or only every B."""

PARTS: tuple[Part, ...] = get_args(Part)


def part_of_round(alternate: bool, round_number: int) -> Part:
    """Return what a round trains.

    Args:
        alternate: whether rounds train A and B in turn.
        round_number: from 1, void rounds included.
    """
    if not alternate:
        return "all"
    return "b" if round_number % 2 else "a"


def spec_of_part(spec: AdapterSpec, part: Part) -> AdapterSpec:
    """Return the spec of the same vector of which only a part is trained.

    Raises:
        ConfigError: a part of an adapter whose A and B are not both trained.
    """
    if part == "all":
        return spec
    both = spec.train_a and spec.train_b
    require(both, "rounds must not alternate for an adapter whose A and B are not both trained", train_a=spec.train_a)
    return replace(spec, train_a=part == "a", train_b=part == "b")


def places_of_part(spec: AdapterSpec, part: Part) -> slice:
    """Return where the numbers of a part stand among those that the spec trains."""
    trained, first = spec_of_part(spec, part).trainable, spec.trainable.start
    return slice(trained.start - first, trained.stop - first)
