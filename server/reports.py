"""Reports of devices, kept as they came: a file of JSON lines per count, each report once.

A report carries a random number, so one that is sent twice counts once. Nothing in a report names a device, so the
server cannot know who sent many: put a rate limit in front, and remember that each moves a sum by one bit at most.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ownlet.server.sequential import Tally
from ownlet.shared.counters import CountReport, parse_report
from ownlet.shared.errors import DataError, StoreError
from ownlet.shared.line_file import append_lines, whole_end
from ownlet.shared.store import make_folder

__all__ = ["Collected", "ReportFile", "tally_arms"]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What became of some lines.

    Args:
        new: reports that were added.
        repeated: that were there already.
        refused: line number and reason of what is no report of this count.
    """

    new: tuple[CountReport, ...]
    repeated: int
    refused: tuple[str, ...]


class ReportFile:
    """The reports of one count; its caller holds the registry's lock to write."""

    def __init__(self, path: Path, count: str) -> None:
        """Name the file, and the count whose reports it takes."""
        self._path, self._count = path, count

    def read(self) -> list[CountReport]:
        """Return all reports; a last line that a crash cut off was never acknowledged and does not count.

        Raises:
            StoreError: a whole line is no report, or the file cannot be read.
        """
        try:
            lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
            return [parse_report(line) for line in lines]
        except (OSError, UnicodeDecodeError, DataError) as error:
            raise StoreError(f"reports must be as they were collected, got {self._path}: {error}") from error

    def collect(self, lines: Iterable[str]) -> Collected:
        """Add reports, on disk when this returns.

        Args:
            lines: of JSON; empty ones are skipped, and what is no report of this count is refused by its number.

        Raises:
            StoreError: the file cannot be read, or the disk refuses; then nothing was added.
        """
        known = {report.id for report in self.read()}
        new: list[CountReport] = []
        repeated, refused = 0, []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                report = parse_report(line)
            except DataError as error:
                refused.append(f"line {number}: {error}")
                continue
            if report.count != self._count:
                refused.append(f"line {number}: count must be {self._count}, got {report.count}")
            elif report.id in known:
                repeated += 1
            else:
                known.add(report.id)
                new.append(report)
        self._append("".join(f"{report.to_json()}\n" for report in new).encode())
        return Collected(new=tuple(new), repeated=repeated, refused=tuple(refused))

    def _append(self, content: bytes) -> None:
        make_folder(self._path.parent)
        handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            append_lines(handle, whole_end(handle), content)
        finally:
            os.close(handle)


def tally_arms(reports: Iterable[CountReport]) -> Tally:
    """Add up the reports of an experiment's arms."""
    counts = {"a": [0, 0], "b": [0, 0]}
    for report in reports:
        if report.arm is not None:
            counts[report.arm][0] += 1
            counts[report.arm][1] += report.bit
    (reports_a, ones_a), (reports_b, ones_b) = counts["a"], counts["b"]
    return Tally(reports_a=reports_a, ones_a=ones_a, reports_b=reports_b, ones_b=ones_b)
