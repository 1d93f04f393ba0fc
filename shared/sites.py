"""Sites: the places of a model where an adapter enters, and the three forms in which it does.

Every form has one pair of matrices per site, A (r, in) and B (out, r), handed in for the duration of a forward pass.
Either may carry a leading batch dimension, one adapter per example. B = 0 changes nothing, in every form, so an adapter
is one flat vector with the same layout whatever its form; whoever moves, clips, noises or averages it need not know.

==========  ==========================================  ========================================================
form        at a linear layer ``y = x Wᵀ + b``          source
==========  ==========================================  ========================================================
lora        ``y + s · (x Aᵀ) Bᵀ``                       Hu et al. 2021, https://arxiv.org/abs/2106.09685, 4.1
bottleneck  ``y + s · relu(y Aᵀ) Bᵀ``                   serial adapter, Houlsby et al. 2019,
                                                        https://arxiv.org/abs/1902.00751, section 2.1
prefix      at attention, per head:                     prefix tuning, Li and Liang 2021,
            ``mix + s · softmax(q Aᵀ) Bᵀ``              https://arxiv.org/abs/2101.00190; with the prefix in a softmax
                                                        of its own as in LLaMA-Adapter, Zhang et al. 2023,
                                                        https://arxiv.org/abs/2303.16199, section 3.2
==========  ==========================================  ========================================================

``s`` is alpha / rank. In a prefix the rows of A are r learned keys, in units of the square root of a head's width, and
the columns of B are the values. In one softmax with the real keys, as Li and Liang have it, no prefix would change
nothing, and a federation could not start from the base.
"""

from __future__ import annotations

from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["FORMS", "BottleneckLinear", "Form", "LoRALinear", "Pair", "PrefixSite", "Site"]

Form = Literal["lora", "bottleneck", "prefix"]
Pair = tuple[Tensor, Tensor]
"""A (r, in) or (batch, r, in), and B (out, r) or (batch, out, r)."""


class Site(Protocol):
    """A module that adds what its pair makes of its input, and nothing while it has none."""

    pair: Pair | None

    @property
    def pair_shape(self) -> tuple[int, int]:
        """(in, out): A is (r, in), B is (out, r)."""
        ...

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Tell whether a module can become such a site."""
        ...

    @classmethod
    def wrap(cls, module: nn.Module, scale: float) -> Self:
        """Return the site that takes a module's place, sharing its weights and their names."""
        ...


class LoRALinear(nn.Linear):
    """A frozen linear layer with a low-rank term beside it."""

    scale: float
    pair: Pair | None

    @property
    def pair_shape(self) -> tuple[int, int]:
        """A reads the layer's input, B writes to its output."""
        return self.in_features, self.out_features

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Any linear layer."""
        return isinstance(module, nn.Linear)

    @classmethod
    def wrap(cls, module: nn.Module, scale: float) -> Self:
        """Return a layer that shares the weight and bias of a linear one."""
        assert isinstance(module, nn.Linear)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = module.in_features, module.out_features
        layer.weight, layer.bias = module.weight, module.bias
        layer.scale, layer.pair = scale, None
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, ..., in) to (batch, ..., out)."""
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.pair is None else y + self.scale * _product(_product(x, self.pair[0]), self.pair[1])


class BottleneckLinear(LoRALinear):
    """A frozen linear layer with a serial adapter behind it."""

    @property
    def pair_shape(self) -> tuple[int, int]:
        """A reads the layer's output, B writes to it."""
        return self.out_features, self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, ..., in) to (batch, ..., out)."""
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.pair is None else y + self.scale * _product(_product(y, self.pair[0]).relu(), self.pair[1])


class PrefixSite(nn.Module):
    """The place in multi-head attention where learned keys and values can be read besides the real ones.

    A model that offers it calls it with what attention mixed and with the queries. Without a pair it is free.
    """

    scale: float
    pair: Pair | None

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.scale, self.pair = 1.0, None

    @property
    def pair_shape(self) -> tuple[int, int]:
        """A row of A is a key for all heads, a column of B a value."""
        return self.dim, self.dim

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        """Only the place that the model offers."""
        return isinstance(module, PrefixSite)

    @classmethod
    def wrap(cls, module: nn.Module, scale: float) -> Self:
        """Return a site of the same shape."""
        assert isinstance(module, PrefixSite)
        site = cls(module.dim, module.num_heads)
        site.scale = scale
        return site

    def forward(self, mixed: Tensor, query: Tensor) -> Tensor:
        """Add what the prefix gives to mixed, for query; both (batch, heads, length, d / heads)."""
        if self.pair is None:
            return mixed
        a, b = self.pair
        keys = a.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # (..., heads, r, d / heads)
        values = b.mT.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # (..., heads, r, d / heads)
        added: Tensor = torch.softmax(query @ keys.mT, dim=-1) @ values
        return mixed + self.scale * added


FORMS: dict[Form, type[Site]] = {"lora": LoRALinear, "bottleneck": BottleneckLinear, "prefix": PrefixSite}


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply x (batch, ..., n) by a matrix (m, n), or each example by its own of (batch, m, n)."""
    if x.dim() == 2 and matrix.dim() == 3:
        return torch.bmm(matrix, x.unsqueeze(2)).squeeze(2)  # (batch, m, n) (batch, n, 1)
    if x.dim() > 3 and matrix.dim() == 3:
        matrix = matrix.reshape(len(matrix), *[1] * (x.dim() - 3), *matrix.shape[1:])  # (batch, 1, ..., m, n)
    y: Tensor = x @ matrix.mT
    return y
