"""Audits a bundle folder and nothing else: the ``.pte`` that ships is what is audited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.shared.adapter import load_adapter
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.shared.manifest import ADAPTER_FILE, Manifest, read_manifest
from ownlet.simulations.audit.component import QUICK, Trials, audit_engine
from ownlet.simulations.audit.engine_mechanism import claim_of_plan
from ownlet.simulations.audit.result import AuditResult
from ownlet.simulations.progress import Progress

__all__ = ["audit_bundle", "plan_of_bundle"]


def audit_bundle(
    bundle: Path,
    plan: Plan | None = None,
    *,
    participations: int = 1,
    dp_delta: float | None = None,
    trials: Trials = QUICK,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit the training step of a bundle's program, at window level.

    Args:
        bundle: the folder.
        plan: the public numbers that devices run it with; by default those that the bundle carries.
        participations: how often a device runs the plan.
        dp_delta: of the claim; by default the bundle's, or 1e-5.
        trials: how much is measured.
        progress: told of the stages.

    Raises:
        BundleError: the bundle is incomplete, altered or of another format.
        ConfigError: neither the bundle nor the caller has a plan that adds noise.
        PrivacyError: no canaries were found that are loud enough.
    """
    manifest = read_manifest(bundle)
    spec, vector, _ = load_adapter(bundle / ADAPTER_FILE, base_hash=manifest.base_hash)
    chosen = plan_of_bundle(manifest) if plan is None else plan
    require(
        chosen is not None and chosen.noise_multiplier > 0,
        "a bundle's program must be audited with a plan that adds noise, its own or a given one",
        plan=chosen,
    )
    assert chosen is not None
    chosen = replace(chosen, objective=manifest.objective, num_negatives=manifest.num_negatives)
    federation = manifest.federation
    default = 1e-5 if federation is None else federation.dp_delta
    claim = claim_of_plan(chosen, participations=participations, dp_delta=default if dp_delta is None else dp_delta)
    return audit_engine(
        ExecutorchEngine.of_bundle(bundle, manifest, spec),
        chosen,
        num_items=manifest.num_items,
        window_length=manifest.windows.row_length,
        name=f"executorch, {bundle.name}",
        vector=vector,
        claim=claim,
        trials=trials,
        progress=progress,
    )


def plan_of_bundle(manifest: Manifest) -> Plan | None:
    """Return the plan of the run that a bundle belongs to where that is at window level."""
    federation = manifest.federation
    return federation.plan if federation is not None and federation.unit == "window" else None
