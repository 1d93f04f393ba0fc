"""Correlated against independent noise at equal privacy: exact error on prefix sums, and NDCG@10 of the adapter.

Four ways to spend the same user-level epsilon over the same rounds, with the same expected cohort:

* ``blt``: correlated noise over groups that take part in turn;
* ``turns``: independent noise, every user in as many rounds as under ``blt``, nothing claimed for sampling;
* ``sampled``: independent noise and Poisson sampling, whose secrecy is counted;
* ``none``: the groups of ``blt`` without noise, which is not private.

``python -m ownlet.simulations.benchmarks.correlated_noise`` prints a table and writes ``bench/correlated_noise.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.server.noise_factor import INDEPENDENT, best_factor, prefix_error
from ownlet.shared.config import AdapterConfig, FederationConfig, simulated_federation
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.server_config import NoisePlan
from ownlet.shared.store import write_atomic
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.server_task import gain, load_tasks
from ownlet.simulations.setting import DataConfig

__all__ = ["arms", "main", "prefix_noise"]


def arms(rounds: int, separation: int, epsilon: float, rate: float) -> dict[str, FederationConfig]:
    """Return name -> config of each way; all of them are within ``epsilon`` but the one without noise.

    Args:
        rounds: n.
        separation: b; a cohort is one b-th of the users. It must divide the rounds.
        epsilon: at delta 1e-5.
        rate: the server's learning rate.
    """
    base = replace(simulated_federation(), rounds=rounds, server_learning_rate=rate)
    turns = rounds // separation

    def sigma(cohort_rate: float, sums: int) -> float:
        return noise_multiplier_for(epsilon, base.dp_delta, cohort_rate, sums)

    groups = replace(base, noise_plan=NoisePlan(name="blt", min_separation=separation))
    share = 1 / separation
    return {
        "blt": replace(groups, noise_multiplier=sigma(1.0, 1)),
        "turns": replace(base, turns=turns, noise_multiplier=sigma(1.0, turns)),
        "sampled": replace(base, cohort_rate=share, noise_multiplier=sigma(share, rounds)),
        "none": replace(groups, noise_multiplier=0.0),
    }


def prefix_noise(config: FederationConfig) -> float:
    """Return the root mean square noise on prefix sums over rounds, in clip norms over the expected share of users.

    Divided by the number of users it is the noise on the adapter, with a server that adds up averages.
    """
    if config.correlated:
        plan, most = config.noise_plan, config.max_participations
        factor = best_factor(config.rounds, plan.min_separation, most, plan.buffers)
        error = prefix_error(factor, config.rounds, plan.min_separation, most)
    else:
        error = prefix_error(INDEPENDENT, config.rounds, config.rounds, 1)
    return config.noise_multiplier * error / config.expected_share


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all ways over all bases; print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="by default the built-in population")
    parser.add_argument("--base", type=Path, action="append", default=[], help="one per seed; else they are trained")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--separation", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=0.3, help="the server's learning rate, the same for all")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/correlated_noise.json"))
    options = parser.parse_args(arguments)
    console = Console()
    tasks = load_tasks(DataConfig(path=options.data), options.base, options.seeds, AdapterConfig())
    ways = arms(options.rounds, options.separation, options.epsilon, options.rate)
    title = f"{options.rounds} rounds, 1/{options.separation} of the users each, ε = {options.epsilon:g}"
    table = Table("noise", "ε", "noise on prefix sums", "NDCG@10", "gain", "95 % interval", title=title)
    rows = []
    for name, config in track(ways.items(), description="ways", console=console):
        results = [task.run(replace(config, seed=task.seed)) for task in tasks]
        quality, gained = gain(tasks, [task.ranks(result.vector) for task, result in zip(tasks, results, strict=True)])
        spent = results[0].epsilon
        row = {
            "noise": name,
            "epsilon": spent if math.isfinite(spent) else None,
            "prefix_noise": prefix_noise(config),
            "ndcg@10": quality.value,
            "gain": gained.value,
            "low": gained.low,
            "high": gained.high,
        }
        rows.append(row)
        interval = f"{gained.low:+.4f} to {gained.high:+.4f}"
        table.add_row(
            name,
            f"{spent:.2f}",
            f"{prefix_noise(config):.0f}",
            f"{quality.value:.4f}",
            f"{gained.value:+.4f}",
            interval,
        )
        console.print(name, f"{gained.value:+.4f}", interval, highlight=False)
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = {"rounds": options.rounds, "separation": options.separation, "seeds": len(tasks), "rows": rows}
    write_atomic(options.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
