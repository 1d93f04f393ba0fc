"""Interests change mid-stream: rounds until each adapter method has recovered, on a base that stays frozen.

The built-in population, whose interests are known: from one period on, the genres' places in every region's interests
are dealt anew (``changed_world``), while tastes, sequels and popularity stay. Then

* the base is trained on public users' events before the change, and frozen;
* devices, with the latest events since the change, go on with federated rounds without noise, method by method, at a
  learning rate that held-out public users chose;
* every few rounds NDCG@10 is measured on the devices' last events, all after the change;
* the ceiling is a base of the same recipe that was trained anew on everything up to now, public users' and devices'
  events alike: what nobody who keeps data on devices can do.

Told is in how many rounds 80 % of the ceiling's gain over the frozen base is back, and what personal adapters on top
give after the last round. What devices have is a snapshot: all of it is there in the first round.

``python -m ownlet.simulations.benchmarks.drift`` prints a table and writes ``bench/drift.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ownlet.server.compression import CompressionConfig
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import PERSONAL_PLAN, AdapterConfig, FederationConfig, MethodName, ModelConfig, Plan
from ownlet.shared.content import content_vectors
from ownlet.shared.lora import attach_adapter
from ownlet.shared.methods import METHODS, rounds_for
from ownlet.shared.metrics import ndcg, ranks
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.store import write_atomic
from ownlet.simulations.change import SHARE, Stream, changed_world, cut_stream, rounds_until
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.curves import Line, Panel, draw_panels
from ownlet.simulations.evaluate import mean_ndcg, model_ranks
from ownlet.simulations.oracle import bayes_scores
from ownlet.simulations.population import populate
from ownlet.simulations.pretrain import PretrainConfig, pretrain
from ownlet.simulations.progress import Silent
from ownlet.simulations.run import simulate
from ownlet.simulations.start import start_adapter
from ownlet.simulations.store import EventStore
from ownlet.simulations.world import DAY_SECONDS, START_SECONDS, PopulationConfig, World, make_world

__all__ = ["Recovery", "main"]

_METHODS: tuple[MethodName, ...] = ("lora-frozen-a", "lora", "bottleneck", "prefix", "iak")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How one method did.

    Args:
        method: its name.
        rate: the local learning rate that held-out public users chose.
        quality: round -> NDCG@10 on the devices' events after the change.
        recovered: the first measured round with 80 % of the ceiling's gain; None where it never was there.
        share: of the ceiling's gain, after the last round.
        personal: NDCG@10 with personal adapters on top of the last round's.
    """

    method: str
    rate: float
    quality: dict[int, float]
    recovered: int | None
    share: float
    personal: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--every", type=int, default=2, help="rounds between measurements")
    parser.add_argument("--dim", type=int, default=32, help="width of the base")
    parser.add_argument("--epochs", type=int, default=15, help="of a base, at the most")
    parser.add_argument("--rates", default="0.3,1.0", help="local learning rates that public users choose from")
    parser.add_argument("--methods", default=",".join(_METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, seed = Console(), options.seed
    world, at_seconds = _world(options.users, options.items, seed)
    data = populate(world).interactions
    stream = cut_stream(data, at_seconds, public=options.users // 4, held_out=options.users // 8)
    shape = ModelConfig(dim=options.dim)
    recipe = PretrainConfig(max_epochs=options.epochs, patience=4, seed=seed)
    content = content_vectors(data.items)
    base = pretrain(stream.before, stream.before_cases, content, shape, recipe)
    ceiling = mean_ndcg(pretrain(stream.everything, stream.public_cases, content, shape, recipe), stream.test)
    facts = {
        "users": data.num_users,
        "devices": len(stream.devices),
        "seed": seed,
        "before_ndcg@10": mean_ndcg(base, stream.before_cases),
        "frozen_ndcg@10": mean_ndcg(base, stream.test),
        "retrained_ndcg@10": ceiling,
        "bayes_ndcg@10": _bayes(world, stream),
    }
    frozen = float(facts["frozen_ndcg@10"])
    console.print({name: round(value, 4) for name, value in facts.items()}, highlight=False)
    found = []
    for method in options.methods.split(","):
        found.append(_recover(base, stream, method, options, frozen, ceiling))
        console.print(_row(found[-1]), highlight=False)
    console.print(_table(found, frozen, ceiling, stream))
    options.out.mkdir(parents=True, exist_ok=True)
    record = {**facts, "share": SHARE, "methods": [asdict(one) for one in found]}
    write_atomic(options.out / "drift.json", (json.dumps(record, indent=1) + "\n").encode())
    draw_panels(options.out / "drift.png", [_panel(found, frozen, ceiling)])
    console.print(f"{options.out / 'drift.json'}, {options.out / 'drift.png'}", highlight=False)


def _world(num_users: int, num_items: int, seed: int) -> tuple[World, int]:
    """Return a world whose interests change half-way and drift little otherwise, and when they do."""
    config = PopulationConfig(num_users=num_users, num_items=num_items, seed=seed, common_drift=0.8)
    world = make_world(config)
    steady = replace(world, drift=np.repeat(world.drift[:, :1], config.num_periods, axis=1))
    at_period = config.num_periods // 2
    return changed_world(steady, at_period, seed), START_SECONDS + at_period * config.period_days * DAY_SECONDS


def _bayes(world: World, stream: Stream) -> float:
    """Return the NDCG@10 that no recommender can exceed on average, on the devices' last events."""
    scores = bayes_scores(world, stream.test.histories, *stream.test_times)
    return float(ndcg(ranks(scores, stream.test.targets, stream.test.histories), 10).mean())


def _recover(
    base: SASRec, stream: Stream, method: MethodName, options: argparse.Namespace, frozen: float, ceiling: float
) -> Recovery:
    model = copy.deepcopy(base)
    adapter = AdapterConfig(method=method, rank=8, alpha=16.0)
    spec = attach_adapter(model, adapter)
    compression, windows = CompressionConfig(), FederationConfig().windows
    start = start_adapter(adapter, compression, model, spec, stream.before, windows, options.seed, Silent())
    best: tuple[float, float, dict[int, float], Vector] | None = None
    for rate in [float(text) for text in options.rates.split(",")]:
        quality, vector = _rounds(model, spec, start, stream, adapter, rate, options)
        public = mean_ndcg(model, stream.public_cases, spec=spec, vector=vector)
        if best is None or public > best[0]:
            best = (public, rate, quality, vector)
    assert best is not None
    _, rate, quality, vector = best
    return Recovery(
        method=method,
        rate=rate,
        quality=quality,
        recovered=rounds_until(quality, frozen, ceiling),
        share=(quality[max(quality)] - frozen) / (ceiling - frozen) if ceiling > frozen else 0.0,
        personal=_personal(model, spec, vector, stream, options.seed),
    )


def _rounds(
    model: SASRec,
    spec: AdapterSpec,
    start: Vector,
    stream: Stream,
    adapter: AdapterConfig,
    rate: float,
    options: argparse.Namespace,
) -> tuple[dict[int, float], Vector]:
    """Run the rounds at one learning rate; return what was measured, by round, and the last adapter."""
    config = FederationConfig(
        rounds=options.rounds, cohort_rate=0.2, unit="none", seed=options.seed, plan=Plan(steps=1, learning_rate=rate)
    )
    quality: dict[int, float] = {}

    def judge(number: int, vector: Vector) -> float | None:
        if number % options.every and number != options.rounds:
            return None
        quality[number] = mean_ndcg(model, stream.test, spec=spec, vector=vector)
        return quality[number]

    devices = EventStore.of(stream.devices)
    result = simulate(CohortEngine(model, spec), devices, start, rounds_for(adapter, config), judge=judge)
    return quality, result.vector


def _personal(model: SASRec, spec: AdapterSpec, vector: Vector, stream: Stream, seed: int) -> float:
    """Return NDCG@10 with an adapter of its own on every device, trained on from the shared one."""
    windows = EventStore.of(stream.devices).all_windows(FederationConfig().windows)
    noises = [AesNoise.seeded(seed, "personal", device) for device in range(len(stream.devices))]
    own = CohortEngine(model, spec).train(vector, windows, PERSONAL_PLAN, noises)
    return float(ndcg(model_ranks(model, stream.test, spec=spec, vectors=own), 10).mean())


def _row(one: Recovery) -> str:
    return f"{one.method}: " + ", ".join(f"{number}: {value:.4f}" for number, value in sorted(one.quality.items()))


def _table(found: Sequence[Recovery], frozen: float, ceiling: float, stream: Stream) -> Table:
    title = f"NDCG@10 after the change, {len(stream.devices):,} devices: frozen {frozen:.4f}, retrained {ceiling:.4f}"
    table = Table(title=title, title_justify="left")
    for column in ("method", "rate", "last round", "recovered", f"rounds to {SHARE:.0%}", "personal"):
        table.add_column(column, justify="left" if column == "method" else "right")
    table.add_row("none", "", f"{frozen:.4f}", "0 %", "never", "")
    for one in found:
        rounds = "never" if one.recovered is None else str(one.recovered)
        last = one.quality[max(one.quality)]
        table.add_row(
            one.method, f"{one.rate:g}", f"{last:.4f}", f"{100 * one.share:.0f} %", rounds, f"{one.personal:.4f}"
        )
    return table


def _panel(found: Sequence[Recovery], frozen: float, ceiling: float) -> Panel:
    """Draw every method's way from the frozen base to the one trained anew."""
    lines = [
        Line(
            label=one.method,
            x=sorted(one.quality),
            y=[one.quality[number] for number in sorted(one.quality)],
            colour=at,
        )
        for at, one in enumerate(found)
    ]
    last = max(number for one in found for number in one.quality)
    lines.append(Line(label="none", x=[0, last], y=[frozen, frozen], colour=len(found)))
    return Panel(
        title="NDCG@10 on events after the change",
        axis="round",
        lines=tuple(lines),
        level=ceiling,
        level_label="base trained anew",
    )


if __name__ == "__main__":
    main()
