"""Does a long history slow a device down? ``recommend`` with few and with many recorded events, taking turns."""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ownlet.device import Personalizer
from ownlet.device.history import EventHistory
from ownlet.device.state import StateFolder
from ownlet.shared.bundle_items import read_catalogue
from ownlet.shared.manifest import ITEMS_FILE, read_manifest
from ownlet.simulations.benchmarks.turns import take_turns

__all__ = ["recommend_milliseconds"]


def recommend_milliseconds(
    bundle: Path, events: tuple[int, int] = (100, 100_000), *, repeats: int = 100, warmup: int = 10, seed: int = 0
) -> dict[str, float]:
    """Time ``recommend`` right after one more event was recorded, so that there is something new to read.

    Args:
        bundle: any.
        events: two numbers of recorded events.
        repeats: timed calls; the median is returned.
        warmup: calls before them that are not timed.
        seed: of the items.

    Returns:
        number of events, as text -> milliseconds.
    """
    items = read_catalogue(bundle / ITEMS_FILE, read_manifest(bundle).num_items).ids[1:]
    rng = random.Random(seed)
    with ExitStack() as stack:
        personalizers = []
        for count in events:
            folder = StateFolder.make(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            history = EventHistory(folder.history)
            history.record_many((rng.choice(items[: len(items) // 2]), float(second)) for second in range(count))
            history.close()
            personalizers.append(stack.enter_context(Personalizer.open(bundle, folder.root)))
        for personalizer in personalizers:
            personalizer.recommend(1)
        seconds = take_turns(
            {
                str(count): partial(personalizer.recommend, 10)
                for count, personalizer in zip(events, personalizers, strict=True)
            },
            repeats=repeats,
            warmup=warmup,
            before=lambda: _record_one(personalizers, items[0]),
        )
    return {name: 1e3 * taken for name, taken in seconds.items()}


def _record_one(personalizers: list[Personalizer], item: str) -> None:
    for personalizer in personalizers:
        personalizer.record(item)
