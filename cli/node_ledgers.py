"""The ledgers of a node's users (``ownlet join --state``) in a few lines: there is one file per user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["NodeLedgers", "ledgers_of_node", "summary_of"]


@dataclass(frozen=True, kw_only=True)
class NodeLedgers:
    """What a node's users have spent.

    Args:
        users: with a ledger: who was asked at least once.
        rounds: for which anybody was charged, in order.
        charges: of all users.
        least_left: the smallest epsilon that a user has left, over users and units.
    """

    users: int
    rounds: tuple[int, ...]
    charges: int
    least_left: float


def ledgers_of_node(path: Path) -> list[Path]:
    """Return a node's ledgers in the order of its users; none where the path is no node's folder."""
    found = (path / "ledgers").glob("*.jsonl") if path.is_dir() else ()
    return sorted(found, key=lambda file: (len(file.name), file.name))


def summary_of(files: list[Path]) -> NodeLedgers:
    """Return what the ledgers say together.

    Args:
        files: one per user, at least one.

    Raises:
        LedgerError: one cannot be read.
    """
    from ownlet.device.ledger import read_ledger

    rounds, charges, left = set[int](), 0, list[float]()
    for file in files:
        report, entries = read_ledger(file)
        charges += report.charges
        left.append(min(spent.left for spent in report.spent.values()))
        rounds |= {entry["round"] for entry in entries if entry["state"] == "intent" and entry["round"] is not None}
    return NodeLedgers(
        users=len(files),
        rounds=tuple(sorted(rounds)),
        charges=charges,
        least_left=min(left),
    )
