"""What benchmarks take on the command line, checked before anything is measured."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["file_to_write"]


def file_to_write(text: str) -> Path:
    """Return the path of a file to write, for ``add_argument(type=)``: a folder is refused now and not in an hour."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {text}")
    return path
