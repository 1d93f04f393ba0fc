"""Which engine a device runs: the bundle's own program, or PyTorch with Opacus where there is room for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.train import LocalEngine
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.errors import BundleError, require
from ownlet.shared.manifest import BASE_FILE, RANKING_FILE, Manifest

__all__ = ["EngineName", "open_engine"]

EngineName = Literal["executorch", "opacus"]


def open_engine(name: EngineName, bundle: Path, manifest: Manifest, spec: AdapterSpec) -> LocalEngine:
    """Return the engine of a bundle whose files have been checked.

    Args:
        name: ``executorch`` or ``opacus``.
        bundle: the folder.
        manifest: what it says about itself.
        spec: its adapter's spec.

    Raises:
        ConfigError: another name.
        BundleError: ``opacus`` on a bundle without its base.
    """
    require(name in get_args(EngineName), "engine must be executorch or opacus", engine=name)
    if name == "executorch":
        return ExecutorchEngine.of_bundle(bundle, manifest, spec)
    if BASE_FILE not in manifest.files:
        raise BundleError(f"bundle must hold {BASE_FILE} for the engine opacus, got one exported without it: {bundle}")
    from ownlet.device.opacus_engine import OpacusEngine  # PyTorch's autograd and Opacus: only where they are asked for
    from ownlet.shared.base import load_base_weights
    from ownlet.shared.lora import attach_spec
    from ownlet.shared.ranking import load_ranking

    model = load_base_weights(bundle / BASE_FILE)
    attach_spec(model, spec)
    ranks = manifest.num_candidates > 0
    ranking = load_ranking(bundle / RANKING_FILE, base_hash=manifest.base_hash) if ranks else None
    return OpacusEngine(model, spec, ranking)
