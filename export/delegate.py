"""Which parts of a graph XNNPACK gets: what ExecuTorch's own partitioner hands it, with two changes.

* A ``linear`` whose weight is computed, an adapter's, is handed over too. The stock rule takes constant weights only,
  or with its option all weights as inputs, the base's among them, which would then be packed at every call.
* The delegate runs one graph pass, the one that makes linear layers, instead of seventeen. The others rewrite what our
  graphs do not hold (convolutions, batch norms, quantised values, clones), and each walks every node again. The switch
  is the delegate's own compile spec.

``verify`` compares the outcome with eager. This file is imported only where something is lowered: its imports take
seconds.
"""

from __future__ import annotations

from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.utils.utils import get_input_node, is_param_node
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from torch import fx
from torch.export import ExportedProgram

__all__ = ["delegate"]


class _AnyLinear(LinearConfig):  # type: ignore[misc]
    """Takes a ``linear`` with a constant weight, which becomes the delegate's own, or with a computed one."""

    def _get_weight_deps(
        self, node: fx.Node, ep: ExportedProgram, precision: ConfigPrecisionType
    ) -> tuple[bool, list[fx.Node]]:
        if precision == ConfigPrecisionType.FP32 and not is_param_node(ep, get_input_node(node, 1)):
            return True, []
        constant: tuple[bool, list[fx.Node]] = super()._get_weight_deps(node, ep, precision)
        return constant


class _Partitioner(XnnpackPartitioner):  # type: ignore[misc]
    def _check_if_called_from_to_backend(self) -> bool:
        return False  # the path it recommends decomposes every graph three times, and takes twice as long


def delegate() -> XnnpackPartitioner:
    """Return the partitioner."""
    rules = [_AnyLinear if rule is LinearConfig else rule for rule in ALL_PARTITIONER_CONFIGS]
    partitioner = _Partitioner(configs=rules)
    partitioner.delegation_spec = DelegationSpec(XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")])
    return partitioner
