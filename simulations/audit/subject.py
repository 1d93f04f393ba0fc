"""What is audited, read into plain values: the folder of a simulated run, a device's ledger, or a bundle.

Nothing here judges. What cannot be read at all is an error; a ledger that can be read but does not verify is a finding
(``LedgerSubject.broken``), because a report has to say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ownlet.device.chain import Entry
from ownlet.device.ledger import LEDGER_FILE, LedgerReport, read_ledger, verify_ledger
from ownlet.device.state import StateFolder
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError, DataError, PrivacyError
from ownlet.shared.manifest import ADAPTER_FILE, MANIFEST_FILE, Manifest, read_manifest
from ownlet.shared.seal import Keys
from ownlet.simulations.audit.fleet_summary import FleetSummary
from ownlet.simulations.compare import FinishedRun, load_run

__all__ = ["BundleSubject", "Checkpoint", "FleetSubject", "LedgerSubject", "RunSubject", "Subject", "open_subject"]

_CHECKPOINT_FILE = "federation.ckpt"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What the server wrote down of its rounds, beside the metrics.

    Args:
        terms: the public numbers that the rounds ran with.
        event: canonical JSON of the privacy event that it charged.
        participations: (num_users,) how often each user was asked.
        rounds: how many rounds began.
        adapters: (P,) the last adapter, and the best one.
    """

    terms: FederationConfig
    event: str
    participations: NDArray[np.int64]
    rounds: int
    adapters: tuple[Vector, Vector]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSubject:
    """A finished run of ``ownlet simulate``.

    Args:
        path: its folder.
        run: settings, versions, rows of the metrics, and the summary.
        terms: the public numbers that were asked for, without their seed.
        seed: None where cohorts and noise came from the operating system.
        engine: what trained.
        checkpoint: None where the folder has none.
        adapter: spec, (P,) vector and version of what was published; None where nothing was.
    """

    path: Path
    run: FinishedRun
    terms: FederationConfig
    seed: int | None
    engine: str
    checkpoint: Checkpoint | None
    adapter: tuple[AdapterSpec, Vector, int] | None

    @property
    def stated(self) -> Mapping[str, Any]:
        """The summary's promise, ``epsilon`` and so on; empty where it promises nothing."""
        stated: Mapping[str, Any] = self.run.summary.get("privacy", {}).get("federated", {})
        return stated

    @property
    def realised(self) -> tuple[float, ...]:
        """The noise multipliers that rounds were charged with, where secure aggregation tells them only afterwards."""
        if not self.terms.secure.enabled:
            return ()
        found = (row.get("noise_multiplier") for row in self.rows)
        return tuple(noise for noise in found if isinstance(noise, float) and not math.isnan(noise))

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One row per round."""
        return self.run.rows


@dataclass(frozen=True, kw_only=True, eq=False)
class LedgerSubject:
    """A device's ledger.

    Args:
        path: the file.
        report: its totals; None where not even the order of the lines can be followed.
        entries: oldest first; empty without a report.
        broken: why it does not verify; None where it does. Then report and entries, if any, are not to be trusted.
        keyed: whether the app's key was at hand, so that forgery would show.
    """

    path: Path
    report: LedgerReport | None
    entries: Sequence[Entry]
    broken: str | None
    keyed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class BundleSubject:
    """What ``ownlet export`` ships: a folder whose files all have the hashes of its manifest."""

    path: Path
    manifest: Manifest
    adapter: tuple[AdapterSpec, Vector, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class FleetSubject:
    """The ledgers of many devices, verified and summed up."""

    path: Path
    summary: FleetSummary


Subject = RunSubject | LedgerSubject | BundleSubject | FleetSubject


def open_subject(path: Path, key: bytes | None = None) -> Subject:
    """Find out what lies at a path, and read it.

    Args:
        path: a run folder, a bundle folder, a device's state folder, or a ledger file.
        key: of the app, for a ledger that was written with one.

    Raises:
        DataError: nothing is there, it is none of these, or a file of a run cannot be read.
        BundleError: the bundle is incomplete or altered.
        AdapterError: the adapter is damaged.
        PrivacyError: the ledger is missing beside what was trained.
        ConfigError: settings break their rules, or the key has a wrong length.
    """
    if not path.exists():
        raise DataError(f"audited path must exist, got {path}")
    if path.is_file():
        return _open_ledger(path, key)
    if (path / MANIFEST_FILE).is_file():
        manifest = read_manifest(path)
        adapter = load_adapter(path / ADAPTER_FILE, base_hash=manifest.base_hash)
        return BundleSubject(path=path, manifest=manifest, adapter=adapter)
    if (path / LEDGER_FILE).is_file():
        return _open_ledger(path / LEDGER_FILE, key)
    if (path / "config.json").is_file():
        return _open_run(path)
    if StateFolder(path).has_trained:
        raise PrivacyError(f"ledger must be present beside what was trained, got none in {path}")
    raise DataError(f"audited path must be a run folder, a bundle, a state folder or a ledger file, got {path}")


def _open_ledger(path: Path, key: bytes | None) -> LedgerSubject:
    _require_ledger(path)
    keyed = key is not None
    try:
        verify_ledger(path, Keys.of(key).ledger)
        broken = None
    except PrivacyError as error:
        broken = str(error)
    try:
        report, entries = read_ledger(path)  # also where only a mac is wrong: what it says is shown, as unverified
    except PrivacyError:
        return LedgerSubject(path=path, report=None, entries=(), broken=broken, keyed=keyed)
    return LedgerSubject(path=path, report=report, entries=tuple(entries), broken=broken, keyed=keyed)


def _require_ledger(path: Path) -> None:
    """Raise DataError unless the file begins as a ledger does: nobody wants a page about another file's chain."""
    try:
        with path.open("rb") as file:
            first = file.readline()
        entry = json.loads(first)
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else "no entry in its first line"
        raise DataError(f"audited file must be a readable ledger, got {path}: {what}") from error
    if not (isinstance(entry, dict) and {"seq", "prev", "state", "mac"} <= set(entry)):
        raise DataError(f"audited file must be a ledger, got {path}, whose first line is no entry")
    if not first.endswith(b"\n"):
        raise DataError(f"ledger must have a whole line, got {path} cut off within its first one")


def _open_run(path: Path) -> RunSubject:
    run = load_run(path)
    if run.command != "simulate":
        bundle = path / "bundle"
        hint = f"; audit its bundle {bundle}" if (bundle / MANIFEST_FILE).is_file() else ""
        raise DataError(f"audited run must be one of `ownlet simulate`, got one of `ownlet {run.command}`{hint}")
    raw = json.loads((path / "config.json").read_bytes())
    try:
        terms = FederationConfig.from_plain(raw["config"]["federation"])
        engine = str(raw["config"]["engine"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"config must be that of a federated run, got {error} in {path / 'config.json'}") from error
    return RunSubject(
        path=path,
        run=run,
        terms=replace(terms, seed=None),
        seed=terms.seed,
        engine=engine,
        checkpoint=_read_checkpoint(path / _CHECKPOINT_FILE),
        adapter=load_adapter(path / ADAPTER_FILE) if (path / ADAPTER_FILE).is_file() else None,
    )


def _read_checkpoint(path: Path) -> Checkpoint | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            words = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("adapter", "best", "participations")}
        return Checkpoint(
            terms=FederationConfig.from_plain(json.loads(words["config"])),
            event=words["event"],
            participations=tensors["participations"],
            rounds=len(json.loads(words["results"])),
            adapters=(tensors["adapter"], tensors["best"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"checkpoint must be readable, got {path}: {error}") from error
