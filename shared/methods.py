"""Adapter methods: what is trained where, in one table.

==============  ==========  =======  ================================================================================
method          form        trained  source
==============  ==========  =======  ================================================================================
lora            lora        A and B  Hu et al. 2021, https://arxiv.org/abs/2106.09685; averaging A and B is biased by
                                     the users' covariance, and noise on both multiplies
lora-frozen-a   lora        B        FFA-LoRA, Sun et al. 2024, https://arxiv.org/abs/2403.12313; the default
fedsvd          lora        B        FedSVD, Lee et al. 2025, https://arxiv.org/abs/2505.12805: the server turns A after
                                     every round (``server/fedsvd.py``)
rolora          lora        B, or A  RoLoRA, Chen et al. 2025, https://arxiv.org/abs/2502.01755: in turn, round by
                                     round (``shared/alternate.py``); on its own a device trains both
iak             lora        B        A is learned on public data (``server/compression.py``): our reading of Jiang et
                                     al. 2025, not a reproduction
bottleneck      bottleneck  A and B  Houlsby et al. 2019, https://arxiv.org/abs/1902.00751
prefix          prefix      A and B  Li and Liang 2021, https://arxiv.org/abs/2101.00190 (``shared/sites.py``)
==============  ==========  =======  ================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ownlet.shared.config import AdapterConfig, FederationConfig, MethodName
from ownlet.shared.sites import Form

__all__ = ["METHODS", "AdapterMethod", "rounds_for", "targets_of"]


@dataclass(frozen=True, kw_only=True)
class AdapterMethod:
    """What sets one method apart.

    Args:
        form: how a pair enters the model.
        train_a: whether devices train A too.
        targets: last parts of the names of the layers that carry it where nobody says otherwise.
        svd_every: rounds between two turns of A by the server; 0 is never.
        alternate: whether rounds train B and A in turn.
        learned_a: whether A is learned on public data before the first round.
    """

    form: Form
    train_a: bool
    targets: tuple[str, ...]
    svd_every: int = 0
    alternate: bool = False
    learned_a: bool = False


_LORA_TARGETS = ("query", "value", "up", "down")

METHODS: Mapping[MethodName, AdapterMethod] = {
    "lora": AdapterMethod(form="lora", train_a=True, targets=_LORA_TARGETS),
    "lora-frozen-a": AdapterMethod(form="lora", train_a=False, targets=_LORA_TARGETS),
    "fedsvd": AdapterMethod(form="lora", train_a=False, targets=_LORA_TARGETS, svd_every=1),
    "rolora": AdapterMethod(form="lora", train_a=True, targets=_LORA_TARGETS, alternate=True),
    "iak": AdapterMethod(form="lora", train_a=False, targets=_LORA_TARGETS, learned_a=True),
    "bottleneck": AdapterMethod(form="bottleneck", train_a=True, targets=("output", "down")),
    "prefix": AdapterMethod(form="prefix", train_a=True, targets=("prefix",)),
}


def targets_of(config: AdapterConfig) -> tuple[str, ...]:
    """Return the names of the places that carry the adapter."""
    return METHODS[config.method].targets if config.target_modules is None else config.target_modules


def rounds_for(config: AdapterConfig, federation: FederationConfig) -> FederationConfig:
    """Return the settings of a run with what the adapter's method asks of the server."""
    method = METHODS[config.method]
    if method.alternate:
        return replace(federation, alternate=True)
    wanted = method.svd_every and not federation.svd_every
    return replace(federation, svd_every=method.svd_every) if wanted else federation
