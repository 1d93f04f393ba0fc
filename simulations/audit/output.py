"""Writes a report where it was asked for: all of it, or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ownlet.shared.errors import StateError, require
from ownlet.shared.store import write_atomic
from ownlet.simulations.audit.page import write_page
from ownlet.simulations.audit.plain import to_plain
from ownlet.simulations.audit.report import AuditReport

__all__ = ["check_outputs", "write_report"]


def check_outputs(page: Path | None, json_file: Path | None) -> None:
    """Look, before a long audit, whether its report can be written.

    Raises:
        ConfigError: a name has another ending than its content, or a folder is in the way.
        StateError: a folder cannot be made, or must not be written into.
    """
    require(page is None or page.suffix in (".html", ".htm"), "out must end in .html", out=str(page))
    require(json_file is None or json_file.suffix == ".json", "json must end in .json", json=str(json_file))
    for path in (page, json_file):
        if path is None:
            continue
        require(not path.is_dir(), "report must be a file, not a folder", path=str(path))
        folder = next(above for above in path.resolve().parents if above.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise StateError(f"folder of a report must be writable, got {folder}")


def write_report(report: AuditReport, *, page: Path | None, json_file: Path | None) -> tuple[Path, ...]:
    """Write the page and the JSON file, each atomically.

    Args:
        report: what to write.
        page: the HTML file; None writes none.
        json_file: the JSON file; None writes none.

    Returns:
        What was written.

    Raises:
        StateError: the disk refuses.
    """
    written = []
    try:
        if page is not None:
            written.append(write_page(page, report))
        if json_file is not None:
            text = json.dumps(to_plain(report), indent=2, ensure_ascii=False, allow_nan=False)
            write_atomic(json_file, text.encode() + b"\n")
            written.append(json_file)
    except OSError as error:
        raise StateError(f"report must be written, got {error}") from error
    return tuple(written)
