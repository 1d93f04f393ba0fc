"""Hits among a device's first impressions, and the one private bit about them that may leave (``shared/counters.py``).

The order is that of an update (``device/release.py``): charge the ledger, on disk; draw the bit; write the report, on
disk; commit the charge with its hash; hand it out. A report that lies here is handed out again, so asking twice costs
one charge; a kill in between costs budget, never privacy.

Two processes that count impressions at the same instant may lose one of them; a report never counts more than there
were.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass, replace

from ownlet.device.history import EventHistory
from ownlet.device.ledger import Charge, Ledger
from ownlet.device.state import StateFolder
from ownlet.shared.counters import Arm, CountReport, CountTerms, chance_of_one, parse_report
from ownlet.shared.errors import DataError, StateError
from ownlet.shared.noise import NoiseSource
from ownlet.shared.privacy import event_to_json, randomized_response_event
from ownlet.shared.store import write_atomic

__all__ = ["Counting", "HitCounter"]

_KEY = "count"


@dataclass(frozen=True, kw_only=True)
class Counting:
    """What a device counts at present.

    Args:
        terms: of the count.
        arm: of the experiment, where the device is in it.
        version: of the shared adapter that it is about.
        impressions: seen so far, at most as many as the terms ask for.
        hits: among them.
        reported: whether the report was drawn; it is drawn once.
    """

    terms: CountTerms
    arm: Arm | None
    version: int
    impressions: int = 0
    hits: int = 0
    reported: bool = False


class HitCounter:
    """One device's counter; safe for several threads."""

    def __init__(self, history: EventHistory, ledger: Ledger, folder: StateFolder) -> None:
        """Take the device's history, where the numbers are kept, its ledger and its folder."""
        self._history, self._ledger, self._folder = history, ledger, folder
        self._mutex = threading.Lock()

    @property
    def counting(self) -> Counting | None:
        """What is counted; None where the server asks for nothing."""
        text = self._history.get(_KEY)
        if text is None:
            return None
        plain = json.loads(text)
        return Counting(**{**plain, "terms": CountTerms(**plain["terms"])})

    def begin(self, terms: CountTerms | None, arm: Arm | None, version: int) -> None:
        """Count for these terms from now on; what is counted already goes on where nothing has changed.

        Args:
            terms: None to count nothing.
            arm: of the experiment.
            version: of the shared adapter that serves; another one starts anew, since its hits are not the same.
        """
        with self._mutex:
            before = self.counting
            if terms is None:
                self._history.put(_KEY, None)
                return
            after = Counting(terms=terms, arm=arm, version=version)
            same_count = before is not None and before.terms.count == terms.count
            if before is None or not same_count or (not before.reported and _about(before) != _about(after)):
                self._keep(after)

    def shown(self, hit: bool) -> None:
        """Count one impression, a hit or none, while fewer than the terms ask for were counted."""
        with self._mutex:
            counting = self.counting
            if counting is None or counting.reported or counting.impressions >= counting.terms.impressions:
                return
            self._keep(replace(counting, impressions=counting.impressions + 1, hits=counting.hits + bool(hit)))

    def report(self, base_hash: str, noise: NoiseSource) -> CountReport | None:
        """Return the report of the present count, charged; see ``Personalizer.report``. Its caller holds the state.

        Raises:
            BudgetExceededError: it would spend more than is left; nothing is charged.
            PrivacyError: the ledger does not verify.
            StateError: the disk refuses; the charge stays.
        """
        with self._mutex:
            counting = self.counting
            if counting is None or counting.reported:
                return self._waiting(counting)
            terms = counting.terms
            paid = self._ledger.charge(
                Charge(
                    unit="user",
                    event=event_to_json(randomized_response_event(terms.epsilon)),
                    base_hash=base_hash,
                    adapter_version=counting.version,
                    plan=terms,
                )
            )
            bit = int(noise.poisson_mask(1, chance_of_one(counting.hits, terms))[0])
            report = CountReport(
                count=terms.count, arm=counting.arm, version=counting.version, bit=bit, id=os.urandom(16).hex()
            )
            line = report.to_json().encode()
            try:
                write_atomic(self._folder.report, line)
            except OSError as error:
                raise StateError(f"state must accept a report, got {self._folder.report}: {error}") from error
            self._keep(replace(counting, reported=True))
            self._ledger.commit(paid, hashlib.sha256(line).hexdigest())
            return report

    def forget(self) -> None:
        """Drop what was counted and a report that lies here; one that was drawn is not drawn again."""
        with self._mutex:
            counting = self.counting
            if counting is not None:
                self._keep(replace(counting, impressions=0, hits=0))
            self._folder.report.unlink(missing_ok=True)

    def _waiting(self, counting: Counting | None) -> CountReport | None:
        """Return the report that was drawn, if it still lies here and is that of the present count."""
        try:
            report = parse_report(self._folder.report.read_text())
        except (FileNotFoundError, DataError, UnicodeDecodeError):
            return None
        return report if counting is not None and report.count == counting.terms.count else None

    def _keep(self, counting: Counting) -> None:
        self._history.put(_KEY, json.dumps(asdict(counting), sort_keys=True))


def _about(counting: Counting) -> tuple[Arm | None, int]:
    return counting.arm, counting.version
