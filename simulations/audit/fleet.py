"""The fleet view: thousands of device ledgers verified and summed up, for an auditor who cannot look at each.

Worker processes verify the chains (half the work is hashing and parsing JSON), then epsilon is computed once per
distinct totals: devices that took part as often under the same plans have spent the same. One ledger that is broken is
listed with its line and reason, and stops nothing.

Two devices whose first charge has the same mac share a past: the same head means that one ledger stands under two
names, another that one was copied and went on by itself (a state folder put back, or cloned), so both have charged for
less than what was released. What it cannot see: a ledger that is missing, or was cut back; a server that keeps (seq,
head) can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from ownlet.shared.errors import ConfigError, DataError, require
from ownlet.shared.seal import read_key
from ownlet.simulations.audit.fleet_reading import DeviceLedger, LedgerFile, Spending, epsilons_of, read_ledgers
from ownlet.simulations.audit.fleet_summary import FleetSummary, needed_epsilons, summarise_fleet
from ownlet.simulations.progress import Progress, Silent

__all__ = ["audit_fleet", "device_keys", "find_ledgers"]

_LEDGERS, _EPSILONS = 100, 4  # handed to a worker at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def audit_fleet(
    folder: Path,
    *,
    keys: bytes | Mapping[str, bytes] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> FleetSummary:
    """Verify and sum up all ledgers of a folder.

    Args:
        folder: with a folder per device that holds ``ledger.jsonl``, or a file ``<device>.jsonl`` per device.
        keys: the app's key, of 32 bytes, where all devices have the same, or one per device; None without keys.
        workers: processes; by default as many as there are cores. 1 works in this process, and so does a small fleet.
        progress: told of ledgers and of epsilons.

    Raises:
        DataError: no ledger in the folder.
        ConfigError: a number is out of its range.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    require(workers >= 1, "workers must be at least 1", workers=workers)
    files = find_ledgers(folder, keys)
    watcher, ledgers, epsilons = progress or Silent(), list[DeviceLedger](), dict[tuple[Spending, float], float]()
    with _pool(workers if len(files) > _LEDGERS else 1) as pool:
        with watcher.stage("verifying ledgers", len(files)) as step:
            for chunk, read in _run(pool, read_ledgers, files, _LEDGERS):
                ledgers += read
                step("", len(chunk))
        needed = needed_epsilons(ledgers)
        with watcher.stage("computing epsilons", max(1, len(needed))) as step:
            for asked, found in _run(pool, epsilons_of, needed, _EPSILONS):
                epsilons.update(zip(asked, found, strict=True))
                step("", len(asked))
    ledgers.sort(key=lambda ledger: ledger.device)  # workers finish in any order
    return summarise_fleet(ledgers, epsilons, keyed=keys is not None)


def find_ledgers(folder: Path, keys: bytes | Mapping[str, bytes] | None = None) -> list[LedgerFile]:
    """Return the ledgers of a folder in order of their devices' names; see ``audit_fleet``.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"ledgers must be a folder, got {folder}")
    found = []
    for path in sorted(folder.rglob("*.jsonl")):
        own = path.parent.relative_to(folder)
        device = str(own) if path.name == "ledger.jsonl" and own.parts else str(own / path.stem)
        key = keys.get(device) if isinstance(keys, Mapping) else keys
        missing = isinstance(keys, Mapping) and key is None
        found.append(LedgerFile(device=device, path=path, key=key, missing_key=missing))
    if not found:
        raise DataError(f"ledgers must be files NAME/ledger.jsonl or NAME.jsonl, got none in {folder}")
    return found


def device_keys(folder: Path) -> dict[str, bytes]:
    """Read a folder of keys: a file ``<device>`` or ``<device>.key`` each, with 32 bytes or 64 hex digits.

    Raises:
        ConfigError: a file is not a key, or there is none.
    """
    keys = {
        str(path.relative_to(folder)).removesuffix(".key"): read_key(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if not keys:
        raise ConfigError(f"keys must be files, one per device, got none in {folder}")
    return keys


def _pool(workers: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    if workers == 1:
        return nullcontext()
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))  # a fork would copy locks of other threads


def _run(
    pool: ProcessPoolExecutor | None,
    function: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    size: int,
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Call the function on chunks of the items, here or in workers; yields them as they are done."""
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    if pool is None:
        for chunk in chunks:
            yield chunk, function(chunk)
        return
    running = {pool.submit(function, chunk): chunk for chunk in chunks}
    for done in as_completed(running):
        yield running[done], done.result()
