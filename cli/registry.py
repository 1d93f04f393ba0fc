"""``ownlet registry``: publish adapters, roll them out step by step, take them back."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ownlet.server.published import Published
    from ownlet.server.registry import Registry
    from ownlet.server.rollout import Rollout

__all__ = [
    "Json",
    "RegistryFolder",
    "deliver",
    "keygen",
    "list_versions",
    "pause",
    "promote",
    "publish",
    "resume",
    "rollback",
    "show",
]

RegistryFolder = Annotated[Path, typer.Option("--registry", help="The registry's folder; made by the first publish.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Why = Annotated[str, typer.Option(help="Reason, for the log.")]


def list_versions(registry: RegistryFolder = Path("registry"), as_json: Json = False) -> None:
    """List the published adapters and what the rollout makes of them."""
    opened = open_registry(registry)
    versions, state = opened.versions(), opened.rollout()
    damaged = {damage.number: damage.reason for damage in opened.damaged()}
    if as_json:
        plain = {"versions": [asdict(version) for version in versions], "damaged": damaged, "rollout": asdict(state)}
        typer.echo(json.dumps(plain, sort_keys=True))
        return
    _print_versions(versions, state)
    for number, reason in damaged.items():
        typer.echo(f"Version {number} is damaged: {reason}")
    typer.echo(serving(state))


def show(
    version: Annotated[
        int | None, typer.Argument(help="Number of a version; by default the rollout and its log.")
    ] = None,
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Show everything that is known of a version, or of the rollout."""
    opened = open_registry(registry)
    if version is None:
        _show_rollout(opened.rollout(), as_json)
        return
    found = opened.version(version)
    if as_json:
        typer.echo(json.dumps(asdict(found), sort_keys=True))
        return
    for line in _described(found):
        typer.echo(line)
    _print_together(opened)


def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `ownlet simulate`, or runs/NAME/seed-0 of a demo.")],
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Publish the adapter of a run as a candidate; no device gets it before `promote`.

    An adapter below the base on held-out public users is never published.
    """
    from ownlet.server.publication import read_publication
    from ownlet.server.registry import Registry

    published = Registry(registry).publish(read_publication(run))
    if as_json:
        typer.echo(json.dumps(asdict(published), sort_keys=True))
        return
    typer.echo(f"Version {published.number} published: {_quality(published)}, {_spent(published)}.")


def promote(
    version: Annotated[int, typer.Argument(help="Number of a version.")],
    percent: Annotated[float, typer.Option(help="Share of devices, never lower than before; 100 makes it stable.")],
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Give a version to a share of all devices. Each decides by itself; who is in at 5 % is in at 20 %."""
    _tell(open_registry(registry).promote(version, percent), as_json)


def rollback(registry: RegistryFolder = Path("registry"), why: _Why = "", as_json: Json = False) -> None:
    """Take the candidate back; without one, the stable version."""
    _tell(open_registry(registry).rollback(why), as_json)


def pause(
    why: Annotated[str, typer.Option(help="Reason, for the log.")],
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Let nobody new have the candidate; who has it keeps it."""
    _tell(open_registry(registry).pause(why), as_json)


def resume(registry: RegistryFolder = Path("registry"), why: _Why = "", as_json: Json = False) -> None:
    """Go on with a paused rollout."""
    _tell(open_registry(registry).resume(why), as_json)


def deliver(
    out: Annotated[Path, typer.Argument(help="Folder that a web server hands out.")],
    registry: RegistryFolder = Path("registry"),
    key: Annotated[
        Path | None, typer.Option(help="Sign the manifest with this private key, of `ownlet registry keygen`.")
    ] = None,
) -> None:
    """Write what devices fetch: the manifest and the adapters that it offers. To be called after every change."""
    from ownlet.server.rollout_key import read_rollout_key
    from ownlet.shared.errors import require

    inside = key is not None and key.resolve().is_relative_to(out.resolve())
    require(not inside, "key must not lie in the folder that is handed out", key=str(key))
    opened = open_registry(registry)
    manifest = opened.deliver(out, None if key is None else read_rollout_key(key))
    signed = "" if key is None else ", signed"
    typer.echo(f"{out}: manifest {manifest.serial}{signed}, {len(list(out.glob('*.safetensors')))} adapters")


def keygen(
    out: Annotated[Path, typer.Argument(help="Folder for rollout.key and rollout.pub; no web server hands it out.")],
) -> None:
    """Make the key that manifests are signed with (Ed25519); apps pin its public half, which is printed.

    Whoever has rollout.key decides which adapter all devices use. It is not needed on any web server.
    """
    from ownlet.server.rollout_key import make_rollout_key

    typer.echo(f"Public key, for the app's rollout_keys: {make_rollout_key(out).hex()}")


def open_registry(folder: Path) -> Registry:
    """Open a registry that is there.

    Raises:
        DataError: no such folder.
    """
    from ownlet.server.registry import Registry
    from ownlet.shared.errors import DataError

    if not folder.is_dir():
        raise DataError(f"registry must be a folder (`ownlet registry publish RUN` makes one), got {folder}")
    return Registry(folder)


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


def _tell(state: Rollout, as_json: bool) -> None:
    typer.echo(json.dumps(asdict(state), sort_keys=True) if as_json else serving(state))


def _print_versions(versions: list[Published], state: Rollout) -> None:
    """Print plain columns, which neither fold nor shorten in a narrow terminal."""
    row = "{:>7} {:>6}  {:<16}  {:>9} {:>6}  {:<27} {:>9}  {:<12}  {}".format
    typer.echo(
        row("version", "parent", "time (UTC)", "public", "base", "privacy", "bytes", "sha256", "serves").rstrip()
    )
    roles = {state.stable: "all" if not state.candidate else "the others", state.candidate: f"{state.percent:g} %"}
    for version in versions:
        at, role = _time(version.created)[:16], roles.get(version.number, "")
        quality = (f"{version.quality:.4f}", f"{version.base_quality:.4f}", _spent(version))
        told = (version.number, version.parent or "", at, *quality, f"{version.size:,}", version.sha256[:12], role)
        typer.echo(row(*told).rstrip())


def _show_rollout(state: Rollout, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(state), sort_keys=True))
        return
    typer.echo(serving(state))
    typer.echo(watching(state))
    for entry in state.log:
        typer.echo(f"{_time(entry.at)}  {entry.what}" + (f": {entry.why}" if entry.why else ""))


def _described(version: Published) -> list[str]:
    parent = f"made while version {version.parent} was stable" if version.parent else "no parent"
    return [
        f"Version {version.number}, {parent}, published {_time(version.created)} UTC from {version.source}",
        f"Quality: {_quality(version)}",
        f"Privacy: {_spent(version)}",
        f"Base: {version.base_hash}",
        f"File: {version.size:,} bytes, sha256 {version.sha256}, adapter version {version.adapter_version}",
    ]


def _print_together(opened: Registry) -> None:
    from ownlet.server.published import spent_together

    private = [version for version in opened.versions() if version.spent is not None]
    if len(private) < 2:
        return
    deltas = [version.spent.dp_delta for version in private if version.spent is not None]
    for unit, epsilon in spent_together(private, max(deltas)).items():
        typer.echo(
            f"All {len(private)} published runs together, where they had the same devices: "
            f"{unit} ε = {epsilon:.3f} at δ = {max(deltas):g}"
        )


def _quality(version: Published) -> str:
    return f"NDCG@10 {version.quality:.4f} on public users, base {version.base_quality:.4f}"


def _spent(version: Published) -> str:
    spent: Any = version.spent
    return "no privacy" if spent is None else f"ε {spent.epsilon:.3f} at δ {spent.dp_delta:g}, {spent.unit}"


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
