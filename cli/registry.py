"""``ownlet registry``: publish adapters, roll them out step by step, take them back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ownlet.cli.options import check_registry
from ownlet.cli.registry_text import described, print_versions, quality_of, serving, spent_of, together, utc, watching

if TYPE_CHECKING:
    from ownlet.server.registry import Registry
    from ownlet.server.rollout import Rollout

__all__ = [
    "Json",
    "RegistryFolder",
    "WithoutPrivacy",
    "deliver",
    "keygen",
    "list_versions",
    "pause",
    "promote",
    "publish",
    "restore",
    "resume",
    "rollback",
    "show",
]

RegistryFolder = Annotated[Path, typer.Option("--registry", help="The registry's folder; made by the first publish.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WithoutPrivacy = Annotated[
    bool, typer.Option("--without-privacy", help="Allow versions whose run had no privacy (`--unit none`).")
]
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
    print_versions(versions, state)
    for number, reason in damaged.items():
        typer.echo(f"Version {number} is damaged: {reason}")
    for line in together(versions):
        typer.echo(line)
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
        _show_rollout(opened, as_json)
        return
    found = opened.version(version)
    if as_json:
        typer.echo(json.dumps(asdict(found), sort_keys=True))
        return
    for line in [*described(found), *together(opened.versions())]:
        typer.echo(line)


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
    typer.echo(f"Version {published.number} published: {quality_of(published)}, {spent_of(published)}.")
    if published.spent is None:
        typer.echo("Its run had no privacy: it is promoted only with --without-privacy.")


def promote(
    version: Annotated[int, typer.Argument(help="Number of a version.")],
    percent: Annotated[float, typer.Option(help="Share of devices, never lower than before; 100 makes it stable.")],
    without_privacy: WithoutPrivacy = False,
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Give a version to a share of all devices. Each decides by itself; who is in at 5 % is in at 20 %."""
    _tell(open_registry(registry).promote(version, percent, without_privacy=without_privacy), as_json)


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


def restore(
    source: Annotated[
        Path | None, typer.Option("--from", help="An older registry.json, in place of registry.json.bak.")
    ] = None,
    above: Annotated[
        int | None, typer.Option(min=0, help="With --from: the serial number in the newest rollout.json delivered.")
    ] = None,
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Go on from the copy of a registry.json that is damaged or lost; a rollout under way is paused.

    The last step may be lost: look at `show`. The serial number rises above all that devices may have followed.
    """
    _tell(open_registry(registry).restore(source, above), as_json)


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
    offered = {offer.file for offer in manifest.offers}
    kept = len({path.name for path in out.glob("*.safetensors")} - offered)
    still = f", {kept} kept for devices that are fetching it" if kept else ""
    typer.echo(f"{out}: manifest {manifest.serial}{signed}, {len(offered)} offered{still}")


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

    check_registry(folder)
    return Registry(folder)


def _tell(state: Rollout, as_json: bool) -> None:
    typer.echo(json.dumps(asdict(state), sort_keys=True) if as_json else serving(state))


def _show_rollout(opened: Registry, as_json: bool) -> None:
    state = opened.rollout()
    if as_json:
        typer.echo(json.dumps(asdict(state), sort_keys=True))
        return
    typer.echo(serving(state))
    for line in [watching(state), *together(opened.versions())]:
        typer.echo(line)
    for entry in state.log:
        typer.echo(f"{utc(entry.at)}  {entry.what}" + (f": {entry.why}" if entry.why else ""))
