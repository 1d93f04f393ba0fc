"""From which fleet on does window-level (local) privacy pay? NDCG@10 against window-level epsilon and fleet size.

Under local privacy every device adds noise of its own to every one of the P numbers that it sends, so the sum of N
devices has signal ``N g`` and noise ``sigma sqrt(N P)``, both in units of the clip. What helps:

* a step that is the shorter, the more noise there is (``shared/window_mode.py``);
* every device is asked once (``turns = 1``): K turns need sqrt(K) times the noise for the same epsilon, and give
  sqrt(K) times the signal-to-noise ratio, so nothing is won, and unequal turns lose;
* one local step whose gradient is clipped to C, at a learning rate in units of the clip;
* the length of the step is chosen afterwards, on held-out public users. Scaling what was released is post-processing
  and costs no privacy. 0 is among the lengths, so what ships is never below the base on public users.

``python -m ownlet.simulations.benchmarks.window_level`` prints a table and writes ``bench/window_level.json`` and
``.png``: the built-in population in several fleet sizes, and a data set of one's own with ``--data``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.server.compression import CompressionConfig
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig, Plan
from ownlet.shared.content import content_vectors
from ownlet.shared.lora import attach_adapter
from ownlet.shared.metrics import Metric, paired_difference
from ownlet.shared.model import SASRec
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.store import write_atomic
from ownlet.shared.window_mode import window_federation
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import Cases, model_ranks
from ownlet.simulations.line_search import best_length
from ownlet.simulations.pretrain import PretrainConfig, pretrain
from ownlet.simulations.progress import Silent
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, Setting, prepare
from ownlet.simulations.start import start_adapter
from ownlet.simulations.store import EventStore

__all__ = ["Point", "main", "smallest_fleet"]

_TESTED = 3000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One fleet at one epsilon.

    Args:
        epsilon: window level; infinity is a run that clips and adds nothing.
        fleet: devices, each asked once.
        gain: NDCG@10 over the base on the tested devices, paired, mean over seeds.
        lengths: of the step that public users chose, per seed; 0 is nothing published.
    """

    epsilon: float
    fleet: int
    gain: Metric
    lengths: tuple[float, ...]


def smallest_fleet(points: Sequence[Point], epsilon: float) -> int | None:
    """Return the smallest fleet from which on the interval of the gain stays above 0, or None."""
    pays = None
    for point in sorted((p for p in points if p.epsilon == epsilon), key=lambda p: -p.fleet):
        if point.gain.low <= 0:
            break
        pays = point.fleet
    return pays


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="interactions; by default the built-in population")
    parser.add_argument("--fleets", default="300,1000,3000,10000,30000", help="devices; more than there are means all")
    parser.add_argument("--epsilons", default="none,8,4,2,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--method", default=AdapterConfig().method, choices=("lora-frozen-a", "iak"))
    parser.add_argument("--rank", type=int, default=AdapterConfig().rank)
    parser.add_argument("--targets", default="", help="layers with commas; by default what suits the method")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args(arguments)
    console = Console()
    setting = prepare(_data(options.data, max(_numbers(options.fleets))))
    adapter = AdapterConfig(
        method=options.method,
        rank=options.rank,
        alpha=2.0 * options.rank,
        target_modules=tuple(options.targets.split(",")) if options.targets else None,
    )
    fleets = sorted({min(fleet, len(setting.devices)) for fleet in _numbers(options.fleets)})
    epsilons = [math.inf if text == "none" else float(text) for text in options.epsilons.split(",")]
    cells = [(epsilon, fleet) for fleet in fleets for epsilon in epsilons]
    ranks: dict[tuple[float, int], list[tuple[NDArray[np.int64], float]]] = {cell: [] for cell in cells}
    base_ranks = []
    for seed in _numbers(options.seeds):
        model = _base(setting, seed)
        base_ranks.append(model_ranks(model, _test(setting)))
        for cell in track(cells, description=f"seed {seed}", console=console):
            ranks[cell].append(_run(model, setting, adapter, *cell, seed))
    points = [
        Point(
            epsilon=epsilon,
            fleet=fleet,
            gain=paired_difference(np.stack([r for r, _ in found]), np.stack(base_ranks))["ndcg@10"],
            lengths=tuple(length for _, length in found),
        )
        for (epsilon, fleet), found in ranks.items()
    ]
    console.print(_table(setting.data.name, points))
    for epsilon in epsilons:
        smallest = smallest_fleet(points, epsilon)
        pays = "no fleet that was tried" if smallest is None else f"{smallest:,} devices"
        console.print(f"ε {_label(epsilon)}: it pays from {pays}", highlight=False)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"window_level_{setting.data.name.replace(' ', '_')}"
    plain = [{**asdict(point), "epsilon": _label(point.epsilon)} for point in points]
    write_atomic(path.with_suffix(".json"), (json.dumps(plain, indent=1) + "\n").encode())
    _draw(setting.data.name, points).savefig(path.with_suffix(".png"), dpi=120)
    console.print(f"{path}.json, {path}.png", highlight=False)


def _data(path: Path | None, largest: int) -> DataConfig:
    """Return the data; in the built-in population 150 users train the base and 600 more judge."""
    if path is not None:
        return DataConfig(path=path)
    users = largest + 750
    return DataConfig(num_users=users, public_fraction=750 / users, held_out_fraction=0.8)


def _base(setting: Setting, seed: int) -> SASRec:
    content = content_vectors(setting.data.items)
    return pretrain(setting.public, setting.validation, content, ModelConfig(), PretrainConfig(seed=seed))


def _run(
    base: SASRec, setting: Setting, adapter: AdapterConfig, epsilon: float, fleet: int, seed: int
) -> tuple[NDArray[np.int64], float]:
    """Federate over the first devices; return ranks (tested,) of what public users let through, and its length."""
    model = copy.deepcopy(base)
    spec = attach_adapter(model, adapter)
    config = _federation(epsilon, seed)
    start = start_adapter(adapter, CompressionConfig(), model, spec, setting.public, config.windows, seed, Silent())
    devices = EventStore.of(setting.devices[:fleet])
    result = simulate(CohortEngine(model, spec), devices, start, config)
    vector, length = best_length(model, spec, start, result.vector, setting.validation)
    return model_ranks(model, _test(setting), spec=spec, vectors=vector), length


def _federation(epsilon: float, seed: int) -> FederationConfig:
    if math.isinf(epsilon):  # the same without noise: what the clip alone leaves
        return replace(window_federation(1.0, seed=seed), unit="none", plan=_noiseless())
    sigma = noise_multiplier_for(target_epsilon=epsilon, dp_delta=1e-5, cohort_rate=1.0, rounds=1)
    return window_federation(sigma, seed=seed, target_epsilon=epsilon)


def _noiseless() -> Plan:
    return replace(window_federation(1.0).plan, noise_multiplier=0.0)


def _test(setting: Setting) -> Cases:
    return Cases(histories=setting.test.histories[:_TESTED], targets=setting.test.targets[:_TESTED])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _label(epsilon: float) -> str:
    return "none" if math.isinf(epsilon) else f"{epsilon:g}"


def _table(name: str, points: Sequence[Point]) -> Table:
    table = Table(title=f"{name}: gain in NDCG@10 under window-level privacy", title_justify="left")
    for column in ("devices", "ε", "gain", "95 % interval", "lengths"):
        table.add_column(column, justify="right")
    for point in points:
        interval = f"{point.gain.low:+.4f} to {point.gain.high:+.4f}"
        lengths = ", ".join(f"{length:g}" for length in point.lengths)
        table.add_row(f"{point.fleet:,}", _label(point.epsilon), f"{point.gain.value:+.4f}", interval, lengths)
    return table


def _draw(name: str, points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    epsilons, fleets = sorted({p.epsilon for p in points}), sorted({p.fleet for p in points})
    for epsilon in epsilons:
        mine = sorted((p for p in points if p.epsilon == epsilon), key=lambda p: p.fleet)
        errors = [[p.gain.value - p.gain.low for p in mine], [p.gain.high - p.gain.value for p in mine]]
        label = "no noise" if math.isinf(epsilon) else f"ε = {epsilon:g}"
        left.errorbar(
            [p.fleet for p in mine], [p.gain.value for p in mine], errors, fmt="o-", markersize=4, label=label
        )
    left.set_xscale("log")
    left.set_xticks(fleets, [f"{fleet:,}" for fleet in fleets])
    left.set_xlabel("devices, each asked once")
    left.set_ylabel("gain in NDCG@10 over the base")
    for fleet in fleets:
        mine = sorted((p for p in points if p.fleet == fleet), key=lambda p: p.epsilon)
        right.plot(range(len(mine)), [p.gain.value for p in mine], "o-", markersize=4, label=f"{fleet:,} devices")
    right.set_xticks(range(len(epsilons)), [_label(epsilon) for epsilon in epsilons])
    right.set_xlabel("ε, window level")
    for axes in (left, right):
        axes.axhline(0, color="#718096", linewidth=1, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{name}: window-level privacy", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
