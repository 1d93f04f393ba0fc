"""Files that are either whole or absent: one at a time (``write_atomic``), or several as a version (``VersionStore``).

``write_atomic`` writes a temporary file in the same folder, fsyncs it, renames it over the target and fsyncs the
folder: after a crash at any instant the target is the old content or the new one, never a mixture (POSIX
rename(2), fsync(2)).

``VersionStore`` does the same with folders. In its own folder stand

    000001/ 000002/ ...   a version each: its files and ``version.json``, which names their sizes and hashes
    000003.removed/       a version on its way out; the highest number stays behind as an empty folder, so that no
                          number is ever given twice
    current               the number in use, 0 for none; written before the first version, so a missing one is lost
    lock                  held (flock) by whoever writes; the kernel lets it go when a process dies
    .publish.* .current.* what a writer has not finished; under the lock, all that are there are of dead ones

Readers take no lock: a version appears and disappears by one rename. Order is by number; clocks play no part.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ownlet.shared.errors import StoreError, require
from ownlet.shared.filelock import held_lock
from ownlet.shared.versions import (
    DOCUMENT_FILE,
    POINTER_FILE,
    REMOVED,
    Damage,
    FileEntry,
    Version,
    check_file_name,
    encode_pointer,
    encode_version,
    inspect_version,
    list_numbers,
    plain_metadata,
    pointed_number,
    read_document,
    read_pointer,
    resolve_current,
    version_path,
)

__all__ = ["Damage", "FileEntry", "Version", "VersionStore", "make_folder", "sync_folder", "write_atomic"]

_LOCK, _PUBLISH = "lock", ".publish."

_log = logging.getLogger(__name__)


def write_atomic(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace the file at ``path`` with ``content`` in one step that survives a crash.

    Args:
        path: the file; its folder is made if it is missing.
        content: all of it.
        mode: permissions from the first byte on; the umask applies, as to any new file.

    Raises:
        OSError: the disk refused; the old file is untouched and no temporary file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        _write_new(name, content, mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that brought us here says more
            os.unlink(name)
        raise
    sync_folder(path.parent)


class VersionStore:
    """Numbered, immutable versions of a few files, one of them current.

    It knows bytes and JSON, not what they mean. Threads and processes may share a folder; one writes at a time. What it
    finds damaged it skips, and says so once in the log.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time, lock_seconds: float = 30.0) -> None:
        """Name a store; nothing is touched until something is published.

        Args:
            folder: of the store alone; made when the first version is published.
            clock: gives ``created`` in unix seconds.
            lock_seconds: how long to wait while another writes.
        """
        self._folder, self._clock, self._lock_seconds = folder, clock, lock_seconds
        self._said: set[str] = set()

    def publish(
        self,
        files: Mapping[str, bytes],
        metadata: Mapping[str, Any],
        *,
        parent: int | None,
        make_current: bool = True,
    ) -> Version:
        """Add a version. When this returns, it survives a crash of the machine; when it raises, there is none.

        Args:
            files: name and content of each.
            metadata: anything that JSON can hold.
            parent: number of the version it was made from; None for a first one.
            make_current: False leaves the current version in use, and this one a candidate.

        Raises:
            ConfigError: a name that is not plain, metadata that is not JSON, a parent that never was.
            StoreError: the disk refused, or another held the lock for too long.
        """
        for name in files:
            check_file_name(name)
        metadata = plain_metadata(metadata)
        entries = {name: FileEntry.of(content) for name, content in files.items()}
        with self._locked():
            number = self._highest() + 1
            known = parent is None or 1 <= parent < number
            require(known, f"parent must be None or a number from 1 to {number - 1}", parent=parent)
            version = Version(
                number=number,
                parent=parent,
                created=float(self._clock()),
                metadata=metadata,
                files=entries,
                made_current=make_current,
            )
            if not self._numbers() and read_pointer(self._folder) is None:
                self._point(0)
            try:
                self._write(version, files)
                sync_folder(self._folder)
                if make_current:
                    self._point(number)
            except BaseException:
                self._take_back(number)
                raise
        return version

    def versions(self) -> list[Version]:
        """Return the intact versions in the order of their numbers."""
        return [found for found in self._inspect_all() if isinstance(found, Version)]

    def damaged(self) -> list[Damage]:
        """Return what ``versions`` skips, and why."""
        return [found for found in self._inspect_all() if isinstance(found, Damage)]

    def current(self) -> Version | None:
        """Return the version in use, None where there is none.

        Where the pointer or its version is damaged, the nearest intact ancestor stands in, and the log says so. Where
        not even the ancestors are known, it is the newest intact version that was published as current or that another
        was made from: a candidate never comes into use by accident. ``set_current`` repairs the pointer.
        """
        while True:
            pointer = read_pointer(self._folder)
            version, trouble = resolve_current(self._folder, pointer)
            if not trouble:
                return version
            if read_pointer(self._folder) == pointer:  # else another process moved on while we looked
                self._warn(f"current version of {self._folder}: {trouble}; in use instead: {_name(version)}")
                return version

    def set_current(self, number: int | None) -> None:
        """Put another version into use: a rollback, or the promotion of a candidate.

        Args:
            number: of an intact version; None or 0 for none.

        Raises:
            StoreError: unknown or damaged, or the disk refused.
        """
        with self._locked():
            if number:
                self._intact(number)
            self._point(number or 0)

    def read(self, number: int, name: str) -> bytes:
        """Return the content of one file, compared with its hash as it is read.

        Raises:
            StoreError: no such version or file, or it is damaged.
        """
        try:
            version = read_document(self._folder, number)
            if name not in version.files:
                raise StoreError(f"name must be one of {sorted(version.files)}, got name={name!r}")
            return version.files[name].check(name, (version_path(self._folder, number) / name).read_bytes())
        except OSError as error:
            what = f"version {number} must be there with its files"
            raise StoreError(f"{what}, got {error.strerror or error} in {self._folder}") from error

    def prune(self, keep: int) -> list[int]:
        """Delete what is older than the newest intact versions, damaged ones included.

        The current version, its parent and the one that the pointer names always stay.

        Args:
            keep: how many intact versions are the newest; at least 1.

        Returns:
            The numbers of the deleted.

        Raises:
            StoreError: the disk refused.
        """
        require(keep >= 1, "keep must be at least 1", keep=keep)
        with self._locked():
            newest = [version.number for version in self.versions()][-keep:]
            old = [number for number in self._numbers() if newest and number < newest[0]]
            used = self._in_use(with_parent=True)
            gone = [number for number in old if number not in used]
            self._delete(gone)
        return gone

    def remove(self, number: int) -> None:
        """Delete one version, intact or damaged.

        Raises:
            StoreError: unknown, or in use.
        """
        with self._locked():
            if number not in self._numbers():
                raise StoreError(f"version must be there, got number={number} in {self._folder}")
            if number in self._in_use():
                raise StoreError(f"version must not be in use (set_current another first), got number={number}")
            self._delete([number])

    def clear(self) -> None:
        """Delete all versions and use none. Numbers go on where they were.

        Files are unlinked; whether flash memory still holds their blocks is the file system's business, so secrets
        belong sealed in the files.
        """
        with self._locked():
            self._delete(self._numbers())  # first: it makes room for the pointer on a full disk
            self._point(0)

    def stamp(self) -> bytes | None:
        """Return what is another value after every change of what is in use: cheaper than ``current``."""
        return read_pointer(self._folder)

    # Reading. Nothing below takes the lock.

    def _numbers(self) -> list[int]:
        return sorted(number for number, removed in list_numbers(self._folder) if not removed)

    def _highest(self) -> int:
        """Return the highest number ever given: its folder is there, or what remains of it."""
        return max((number for number, _ in list_numbers(self._folder)), default=0)

    def _inspect_all(self) -> list[Version | Damage]:
        found = [what for number in self._numbers() if (what := inspect_version(self._folder, number)) is not None]
        for what in found:
            if isinstance(what, Damage):
                self._warn(f"version {what.number} of {self._folder} is damaged and skipped: {what.reason}")
        return found

    def _intact(self, number: int) -> Version:
        found = inspect_version(self._folder, number)
        if isinstance(found, Version):
            return found
        trouble = f"version {number}: {found.reason}" if found else f"number={number}"
        raise StoreError(f"version must be there and intact, got {trouble} in {self._folder}")

    def _in_use(self, *, with_parent: bool = False) -> set[int | None]:
        """Return the number in the pointer, that of the version in use (not the same after damage), and its parent."""
        current = self.current()
        used = {pointed_number(read_pointer(self._folder)), current.number if current else None}
        return used | {current.parent} if current and with_parent else used

    def _warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning(message)

    # Writing. All below is called with the lock held.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out, finish what dead ones left, and turn what the disk says into our error."""
        try:
            make_folder(self._folder)
            with held_lock(self._folder / _LOCK, wait_seconds=self._lock_seconds):
                self._sweep()
                yield
        except OSError as error:
            raise StoreError(
                f"disk must take what the store writes, got {self._folder}: {error.strerror or error}"
            ) from error

    def _write(self, version: Version, files: Mapping[str, bytes]) -> None:
        """Write a version under a temporary name and rename it to its own."""
        temporary = self._folder / f"{_PUBLISH}{secrets.token_hex(8)}"
        try:
            temporary.mkdir()
            for name, content in {**files, DOCUMENT_FILE: encode_version(version)}.items():
                _write_new(temporary / name, content)
            sync_folder(temporary)
            os.rename(temporary, version_path(self._folder, version.number))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _point(self, number: int) -> None:
        write_atomic(self._folder / POINTER_FILE, encode_pointer(number))

    def _take_back(self, number: int) -> None:
        """Delete a version that could not be made current, unless the pointer leads to it after all."""
        if number in self._numbers() and pointed_number(read_pointer(self._folder)) != number:
            self._delete([number])

    def _delete(self, numbers: list[int]) -> None:
        for number in numbers:
            os.rename(version_path(self._folder, number), self._folder / f"{number:06d}{REMOVED}")
        sync_folder(self._folder)
        self._sweep()

    def _sweep(self) -> None:
        """Delete what removed versions and dead writers left; only the mark of the highest number stays."""
        for name in os.listdir(self._folder):
            if name.startswith(_PUBLISH):
                shutil.rmtree(self._folder / name)
            elif name.startswith(f".{POINTER_FILE}."):
                (self._folder / name).unlink()
        highest = self._highest()
        for number in [number for number, removed in list_numbers(self._folder) if removed]:
            gone = self._folder / f"{number:06d}{REMOVED}"
            _empty(gone)
            if number < highest:
                gone.rmdir()


def _name(version: Version | None) -> str:
    return f"version {version.number}" if version else "none"


def _write_new(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file that is not there yet, and wait until it is on disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they outlive a crash of the machine."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    if missing:
        path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def _empty(folder: Path) -> None:
    """Delete all that a folder holds."""
    if folder.is_symlink() or not folder.is_dir():  # somebody put another thing in its place
        folder.unlink()
        folder.mkdir()
    children = list(folder.iterdir())
    for child in children:
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    if children:
        sync_folder(folder)
