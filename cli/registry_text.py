"""What ``ownlet registry`` says: who has which version, what is watched, and what versions are worth and cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ownlet.server.published import Published
    from ownlet.server.rollout import Rollout

__all__ = ["described", "print_versions", "quality_of", "serving", "spent_of", "together", "utc", "watching"]


def serving(state: Rollout) -> str:
    """Say in one line who has what."""
    stable = f"version {state.stable}" if state.stable else "the bundle's own adapter"
    if not state.candidate:
        return f"All devices: {stable}." + (f" Paused: {state.paused}." if state.paused else "")
    paused = f", PAUSED: {state.paused}" if state.paused else ""
    return f"Version {state.candidate} on {state.percent:g} % of devices{paused}; the others: {stable}."


def watching(state: Rollout) -> str:
    """Say in one line what is watched, and what the watch has seen."""
    detector, seen = state.detector, state.watched
    if detector is None:
        return "Quality is not watched."
    kind = "Bits of devices are" if detector.of_bits else "Quality, as `observe` is given it, is"
    return (
        f"{kind} watched from {detector.baseline:g} for a fall of {detector.drop:g}: {seen.values} values, "
        f"log evidence of a fall {max(0.0, seen.log_evidence):.2f}"
    )


def print_versions(versions: list[Published], state: Rollout) -> None:
    """Print plain columns, which neither fold nor shorten in a narrow terminal."""
    row = "{:>7} {:>6}  {:<16}  {:>9} {:>6}  {:<27} {:>9}  {:<12}  {}".format
    typer.echo(
        row("version", "parent", "time (UTC)", "public", "base", "privacy", "bytes", "sha256", "serves").rstrip()
    )
    roles = {state.stable: "all" if not state.candidate else "the others", state.candidate: f"{state.percent:g} %"}
    for version in versions:
        at, role = utc(version.created)[:16], roles.get(version.number, "")
        quality = (f"{version.quality:.4f}", f"{version.base_quality:.4f}", spent_of(version))
        told = (version.number, version.parent or "", at, *quality, f"{version.size:,}", version.sha256[:12], role)
        typer.echo(row(*told).rstrip())


def described(version: Published) -> list[str]:
    """Return all that is known of a version."""
    parent = f"made while version {version.parent} was stable" if version.parent else "no parent"
    return [
        f"Version {version.number}, {parent}, published {utc(version.created)} UTC from {version.source}",
        f"Quality: {quality_of(version)}",
        f"Privacy: {spent_of(version)}",
        f"Base: {version.base_hash}",
        f"File: {version.size:,} bytes, sha256 {version.sha256}, adapter version {version.adapter_version}",
    ]


def together(versions: Sequence[Published]) -> list[str]:
    """Say what the devices of all runs spent, where they were in all of them; nothing is said of a single run."""
    from ownlet.server.published import spent_together

    if len(versions) < 2:
        return []
    private = [version for version in versions if version.spent is not None]
    dp_delta = max((version.spent.dp_delta for version in private if version.spent is not None), default=0.0)
    open_ = [str(version.number) for version in versions if version.spent is None]
    runs = f"All {len(versions)} published runs" if not open_ else f"{len(private)} of {len(versions)} published runs"
    lines = [
        f"{runs} together, where they had the same devices: {unit} ε = {epsilon:.3f} at δ = {dp_delta:g}"
        for unit, epsilon in spent_together(private, dp_delta).items()
    ]
    if open_:
        several = f"runs with no privacy (versions {', '.join(open_)})"
        one = f"run with no privacy (version {open_[0]})"
        plus = f"{len(open_)} {one if len(open_) == 1 else several}: no ε holds for its devices"
        lines = [f"{line}, plus {plus}" for line in lines] or [plus]
    return lines


def quality_of(version: Published) -> str:
    """Say how good a version is."""
    return f"NDCG@10 {version.quality:.4f} on public users, base {version.base_quality:.4f}"


def spent_of(version: Published) -> str:
    """Say what a version's run spent."""
    spent: Any = version.spent
    return "no privacy" if spent is None else f"ε {spent.epsilon:.3f} at δ {spent.dp_delta:g}, {spent.unit}"


def utc(at: float) -> str:
    """Return a time in unix seconds for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
