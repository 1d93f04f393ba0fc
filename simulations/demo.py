"""The main job, end to end: interactions -> base -> federated DP LoRA on Flower -> bundle -> device -> report.

Every stage is the real one, at the size of a workstation; nothing is skipped or mocked. ``run_demo`` shows the order.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ownlet.export.bundle import write_bundle
from ownlet.shared.methods import targets_of
from ownlet.shared.metrics import ndcg, paired_difference, summarise
from ownlet.shared.privacy import ACCOUNTANT
from ownlet.simulations.benchmarks.device_latency import measure
from ownlet.simulations.board import Board
from ownlet.simulations.device_check import Agreement, compare_with_device
from ownlet.simulations.findings import (
    DataFacts,
    Latency,
    PrivacyRow,
    QualityRow,
    ReportData,
    RoundRecord,
    RunRecord,
    quality_row,
)
from ownlet.simulations.progress import Progress
from ownlet.simulations.report import write_report
from ownlet.simulations.results import RunFolder, plain_metrics
from ownlet.simulations.setting import Setting, prepare_requested
from ownlet.simulations.traffic import wire_bytes
from ownlet.simulations.trial import (
    FederatedRun,
    SeedResult,
    TrialConfig,
    baseline_ranks,
    ranks_by_label,
    run_seed,
)
from ownlet.simulations.workers import worker_pool

__all__ = ["DemoResult", "run_demo"]

NOT_PROTECTED = (
    "The privacy promise holds against whoever sees published adapters. In user mode the server itself sees every "
    "node's reply and their sum before it adds the noise: it must be trusted. Secure aggregation is not part of this "
    "version.",
    "That a device takes part in federation is visible to the server and to the network.",
    "The events of public users are not protected: the base was trained on them openly.",
    "Personal adapters are trained without noise. They are as private as the device that they stay on.",
    "Epsilon bounds what any one user adds. It does not hide what is true of many users, such as a film's popularity.",
    "Choosing settings by looking at device users' results would spend privacy that is not counted. Here settings are "
    "chosen on public users only; the quality on device users in this page is for the reader of an experiment and "
    "could not be published by a deployment.",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoResult:
    """What the demo ends with.

    Args:
        report: the page's data.
        agreement: the bundle in a fresh process against the simulation's model.
        seed_ndcg: label -> NDCG@10 on device users, one per seed.
        published: whether the shipped adapter passed the guard, one per seed.
        bundle: the exported folder.
        page: the report.
    """

    report: ReportData
    agreement: Agreement
    seed_ndcg: dict[str, tuple[float, ...]]
    published: tuple[bool, ...]
    bundle: Path
    page: Path


def run_demo(config: TrialConfig, folder: RunFolder, progress: Progress, board: Board | None = None) -> DemoResult:
    """Run everything and leave metrics, bundle, report and summary in the run folder.

    Args:
        config: the settings.
        folder: of this run; bases from an interrupted run with equal settings are reused.
        progress: told of stages and steps.
        board: told of every row of the metrics, once the seeds are done.

    Returns:
        The findings.
    """
    started = time.monotonic()
    with progress.stage("reading interactions, most popular, item-kNN", 2) as step:
        setting = prepare_requested(config.data, config.context)
        config = replace(config, model=replace(config.model, context=setting.fields))
        step("")
        baselines = baseline_ranks(setting)
        step("")
    bundle = folder.path / "bundle"
    results = _train_and_export(config, setting, folder.path, bundle, progress)
    rows = [row for result in results for row in _metric_rows(result)]
    folder.write_metrics(rows)
    if board is not None:
        for row in rows:
            board.row(row["round"], row, f"{row['run']}-seed{row['seed']}")

    first = results[0]
    with progress.stage("recommending in a fresh process from the bundle", 1) as step:
        agreement = compare_with_device(bundle, first.model, first.spec, first.shipped, setting)
        step(f"{agreement.equal} of {agreement.asked} devices agree")
    with progress.stage("timing the device program", 1) as step:
        device = measure(bundle, first.model, first.spec)
        step("")
    everything = baselines | ranks_by_label(results)
    report = _report(config, setting, results, everything, device)
    page = write_report(folder.path / "report.html", report)
    folder.write_summary(_summary(everything, report, setting.facts, time.monotonic() - started))
    return DemoResult(
        report=report,
        agreement=agreement,
        seed_ndcg={
            label: tuple(float(ndcg(ranks, 10).mean()) for ranks in np.atleast_2d(everything[label]))
            for label in everything
        },
        published=tuple(result.runs[-1].published for result in results),
        bundle=bundle,
        page=page,
    )


def _train_and_export(
    config: TrialConfig, setting: Setting, folder: Path, bundle: Path, progress: Progress
) -> list[SeedResult]:
    """Run the seeds in processes of their own; the bundle is written as soon as the first seed is done."""
    workers = config.workers or min(len(config.seeds), os.cpu_count() or 1)
    with worker_pool(workers, progress) as pool:
        seeds = [pool.submit(run_seed, config, setting, seed, folder / f"seed-{seed}") for seed in config.seeds]
        exported = pool.submit(_export, config, setting, seeds[0].result(), bundle)
        results = [seed.result() for seed in seeds]
        exported.result()
    return results


def _export(config: TrialConfig, setting: Setting, result: SeedResult, bundle: Path, progress: Progress) -> None:
    with progress.stage("exporting and verifying the bundle", 1) as step:
        write_bundle(
            bundle,
            result.model,
            result.spec,
            result.shipped,
            version=result.shipped_version,
            items=setting.data.items,
            windows=config.federation.windows,
            federation=replace(result.runs[-1].config, seed=None),  # devices draw from their operating system
        )
        step("")


def _report(
    config: TrialConfig,
    setting: Setting,
    results: Sequence[SeedResult],
    everything: dict[str, Any],
    device: dict[str, Any],
) -> ReportData:
    first = results[0]
    up, down = wire_bytes(first.spec, first.runs[-1].config)
    data = setting.data
    federation = config.federation
    return ReportData(
        title=f"ownlet: {data.name}",
        data=DataFacts(name=data.name, users=data.num_users, items=data.num_items, interactions=len(data)),
        config={
            "public users": f"{len(setting.public)} train the base, {len(setting.held_out)} choose settings",
            "device users": f"{len(setting.devices)}",
            "seeds": ", ".join(map(str, config.seeds)),
            **({"context": ", ".join(config.context.fields)} if config.context.fields else {}),
            "adapter": f"rank {first.spec.rank}, {first.spec.num_trainable} trained numbers, "
            f"on {', '.join(targets_of(config.adapter))}",
            "rounds": f"{federation.rounds}, each user in a round with probability {federation.cohort_rate:g}",
            "local training": f"{federation.plan.steps} step(s), learning rate {federation.plan.learning_rate:g}",
            "clip norm": f"{federation.clip_norm:g}",
            "server": f"learning rate {federation.server_learning_rate:g}, momentum {federation.server_momentum:g}",
            "published": f"{sum(r.runs[-1].published for r in results)} of {len(results)} shipped adapters "
            "are not below the base on held-out public users",
        },
        quality=tuple(_quality_row(label, everything[label], everything["base"]) for label in everything),
        bytes_up_per_user_round=up,
        bytes_down_per_user_round=down,
        program_bytes=int(device["program_bytes"]),
        latencies=tuple(
            Latency(method=name, pte_ms=device[name]["pte_ms"], eager_ms=device[name]["eager_ms"])
            for name in ("recommend", "step")
        ),
        runs=tuple(_run_record(run, result.seed) for result in results for run in result.runs),
        base_by_round=summarise(np.stack([r.runs[0].public[0].ranks for r in results]))["ndcg@10"],
        privacy=tuple(_privacy_row(run) for run in first.runs if run.config.unit == "user"),
        not_protected=NOT_PROTECTED,
        interval=f"95 % bootstrap intervals over users, each user's value averaged over {len(results)} seeds",
    )


def _quality_row(label: str, ranks: Any, base: Any) -> QualityRow:
    trained = label not in ("popular", "item_knn", "base")
    return quality_row(label, summarise(ranks), paired_difference(ranks, base)["ndcg@10"] if trained else None)


def _run_record(run: FederatedRun, seed: int) -> RunRecord:
    public = {point.round: point for point in run.public}
    clip = run.config.clip_norm if run.config.unit == "user" else None
    spent = {0: 0.0 if run.config.unit == "user" else None}
    spent |= {r.round: r.epsilon if math.isfinite(r.epsilon) else None for r in run.result.rounds}
    rounds = []
    for number, epsilon in sorted(spent.items()):
        point = public.get(number)
        rounds.append(
            RoundRecord(
                round=number,
                ndcg=summarise(point.ranks)["ndcg@10"] if point else None,
                epsilon=epsilon,
                update_norm=point.delta_norm if point else None,
                clip_norm=clip,
            )
        )
    return RunRecord(label=run.label, seed=seed, rounds=tuple(rounds))


def _privacy_row(run: FederatedRun) -> PrivacyRow:
    return PrivacyRow(
        label=run.label,
        epsilon=run.result.epsilon,
        dp_delta=run.config.dp_delta,
        unit="user",
        rounds=len(run.result.rounds),
        sampling=f"Poisson over users, rate {run.config.cohort_rate:g}",
        noise_multiplier=run.config.noise_multiplier,
        clip_norm=run.config.clip_norm,
        accountant=ACCOUNTANT,
        trust_model="central: the server sees the sum before it adds the noise",
    )


def _metric_rows(result: SeedResult) -> list[dict[str, Any]]:
    """Return one row per round of every run, for ``metrics.parquet``."""
    rows: list[dict[str, Any]] = []
    for run in result.runs:
        public = {point.round: point for point in run.public}
        for record in run.result.rounds:
            point = public.get(record.round)
            rows.append(
                {
                    "run": run.label,
                    "seed": result.seed,
                    "round": record.round,
                    "version": record.version,
                    "void": record.void,
                    "num_asked": record.num_asked,
                    "epsilon": record.epsilon,
                    "update_norm": record.update_norm,
                    "public_ndcg@10": float(ndcg(point.ranks, 10).mean()) if point else None,
                    "public_delta_norm": point.delta_norm if point else None,
                    "seconds": record.seconds,
                }
            )
    return rows


def _summary(
    everything: dict[str, Any], report: ReportData, facts: dict[str, object], seconds: float
) -> dict[str, object]:
    return {
        "command": "demo",
        "seconds": seconds,
        "data": facts,
        "quality": {label: plain_metrics(summarise(ranks)) for label, ranks in everything.items()},
        "privacy": {
            row.label: {
                "epsilon": row.epsilon,
                "dp_delta": row.dp_delta,
                "unit": row.unit,
                "rounds": row.rounds,
                "accountant": row.accountant,
            }
            for row in report.privacy
        },
        "wire": {
            "bytes_up_per_user_round": report.bytes_up_per_user_round,
            "bytes_down_per_user_round": report.bytes_down_per_user_round,
        },
        "device": {
            "program_bytes": report.program_bytes,
            **{found.method: {"pte_ms": found.pte_ms, "eager_ms": found.eager_ms} for found in report.latencies},
        },
    }
