"""How good recommendations of new items and for new users are, by what is known of an item.

``popular`` knows how often an item was chosen, ``id`` nothing but which item it is, ``hashed`` its genres and the words
of its title (``shared.content``), ``text`` the same as a text encoder reads them, ``tuned`` as it reads them with LoRA
on its own layers, trained on public users. Without ``--text-encoder`` the encoder is a tiny one, trained here on the
texts of all items but the held-out ones (``simulations.tiny_encoder``): a stand-in for a real DistilBERT, which has
read more.

``python -m ownlet.simulations.benchmarks.cold_start --data FOLDER`` prints a table and writes ``bench/cold_start.json``
and ``cold_start.png``. Seeds hold out different items and are pooled: a user is a case of each seed that asks for one.
docs/decisions.md has a run, and what follows from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ownlet.shared.metrics import Metric, paired_difference, summarise
from ownlet.shared.store import write_atomic
from ownlet.simulations.cold_start import KNOWN_EVENTS
from ownlet.simulations.cold_start_run import (
    METHODS,
    QUESTIONS,
    ColdStartConfig,
    ColdStartResult,
    run_cold_start,
)
from ownlet.simulations.progress import Step
from ownlet.simulations.results import plain_metrics
from ownlet.simulations.setting import DataConfig

__all__ = ["as_json", "main"]

_COLOURS = {"popular": "#718096", "id": "#a0522d", "hashed": "#2b6cb0", "text": "#2f855a", "tuned": "#805ad5"}
_PAIRS = (("hashed", "id"), ("text", "id"), ("text", "hashed"), ("tuned", "text"))


def as_json(result: ColdStartResult) -> dict[str, Any]:
    """Return what ``bench/cold_start.json`` holds: metrics with intervals, and paired differences of methods."""
    ranks = result.ranks
    return {
        "data": result.facts,
        "seeds": list(result.config.seeds),
        "cold_items": result.num_cold,
        "text_encoder": result.config.text_encoder or "tiny, trained here",
        "cases": {name: len(ranks["id"][name]) for name in QUESTIONS},
        "chance_hr@10_cold_among_cold": min(1.0, 10 / result.num_cold),
        "methods": {
            method: {name: plain_metrics(_metrics(result, method, name)) for name in QUESTIONS} for method in METHODS
        },
        "differences": {
            f"{a} - {b}": {name: plain_metrics(paired_difference(ranks[a][name], ranks[b][name])) for name in QUESTIONS}
            for a, b in _PAIRS
        },
        "seconds": result.seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="file or folder of interactions; default: the built-in population")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--fraction", type=float, default=0.15, help="share of the items that is held out")
    parser.add_argument("--text-encoder", default="", help="folder or hub id; default: a tiny one, trained here")
    parser.add_argument("--workers", type=int, default=1, help="processes that seeds are spread over")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    config = ColdStartConfig(
        data=DataConfig(path=options.data),
        seeds=tuple(int(seed) for seed in options.seeds.split(",")),
        fraction=options.fraction,
        text_encoder=options.text_encoder,
    )
    result = run_cold_start(config, _Lines(console), workers=options.workers)
    console.print(_table(result))
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "cold_start.json", (json.dumps(as_json(result), indent=1) + "\n").encode())
    _draw(result).savefig(options.out / "cold_start.png", dpi=120)
    console.print(f"{options.out / 'cold_start.json'}, {options.out / 'cold_start.png'}", highlight=False)


class _Lines:
    """The ``Progress`` of a benchmark: a line for every step."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """Open a stage; see ``Progress``."""
        yield lambda note, share=1.0: self._console.print(f"{name}: {note}", highlight=False)


def _metrics(result: ColdStartResult, method: str, question: str) -> Mapping[str, Metric]:
    """Return metrics at 10; among all items a cold one is seldom so high, so there also HR@100."""
    ranks = result.ranks[method][question]
    found = summarise(ranks)
    return found if question != "cold among all" else {**found, "hr@100": summarise(ranks, 100)["hr@100"]}


def _table(result: ColdStartResult) -> Table:
    table = Table(title=f"NDCG@10 with 95 % intervals, {result.num_cold} cold items, seeds {result.config.seeds}")
    for column in ("question", "cases", *METHODS):
        table.add_column(column, justify="left" if column == "question" else "right")
    for question in QUESTIONS:
        found = [_metrics(result, method, question)["ndcg@10"] for method in METHODS]
        cells = [f"{m.value:.4f}\n{m.low:.4f} to {m.high:.4f}" for m in found]
        table.add_row(question, str(len(result.ranks["id"][question])), *cells)
    return table


def _draw(result: ColdStartResult) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    items, users = figure.subplots(1, 2)
    groups = ("cold among cold", "warm")
    width = 0.8 / len(METHODS)
    for at, method in enumerate(METHODS):
        found = [_metrics(result, method, question)["ndcg@10"] for question in groups]
        places = np.arange(len(groups)) + (at - (len(METHODS) - 1) / 2) * width
        items.bar(
            places,
            [m.value for m in found],
            width,
            yerr=_errors(found),
            color=_COLOURS[method],
            label=method,
            capsize=2,
        )
        found = [_metrics(result, method, f"known {known}")["ndcg@10"] for known in KNOWN_EVENTS]
        users.errorbar(
            KNOWN_EVENTS, [m.value for m in found], yerr=_errors(found), color=_COLOURS[method], marker="o", capsize=2,
            label=method,
        )  # fmt: skip
    items.set_xticks(range(len(groups)), ["new items, among new ones", "known items, among all"])
    items.set_ylabel("NDCG@10")
    users.set_xlabel("known events of a new user")
    users.set_xticks(KNOWN_EVENTS)
    for panel in (items, users):
        panel.grid(True, axis="y", alpha=0.25)
        panel.set_axisbelow(True)
    users.legend(fontsize=8)
    return figure


def _errors(metrics: Sequence[Metric]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([[m.value - m.low for m in metrics], [m.high - m.value for m in metrics]])


if __name__ == "__main__":
    main()
