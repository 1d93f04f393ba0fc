"""How well a base knows users that it was trained on, and new ones; and how sure of itself it is.

``python -m ownlet.simulations.benchmarks.base_fit --data FOLDER`` prints, for the last event of users that trained the
base and of devices, how often it is among the ten best, its mean log-likelihood, and the temperature that scores would
have to be divided by to make that largest (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2). Where new
users are less likely than by guessing evenly, the base has learned its users by heart, and what gradients on new ones
say first is "be less sure", before anything about items.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.special import logsumexp  # type: ignore[import-untyped]

from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.interactions import History
from ownlet.shared.metrics import hr, ranks
from ownlet.shared.recommender import Recommender
from ownlet.simulations.evaluate import Cases, model_scores
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain
from ownlet.simulations.setting import DataConfig, last_event_cases, prepare

__all__ = ["Fit", "fit_of", "last_events"]

_COLDEST, _HOTTEST = 0.1, 20.0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a base fits the answers to some questions.

    Args:
        hr10: share whose answer is among the ten best items that are not in the history.
        log_likelihood: mean over questions, in nats, of the softmax over all items.
        temperature: what scores are divided by where that is largest.
        log_likelihood_there: the mean at that temperature.
    """

    hr10: float
    log_likelihood: float
    temperature: float
    log_likelihood_there: float


def fit_of(model: Recommender, cases: Cases) -> Fit:
    """Measure a base, in eval mode, on some questions; takes 8 bytes per question and item."""
    every = np.empty((len(cases), 1 + model.num_items))
    for rows, found in model_scores(model, cases):
        every[rows] = found
    scores = every[:, 1:]

    def log_likelihood(temperature: float) -> float:
        scaled = scores / temperature
        wanted: NDArray[np.float64] = scaled[np.arange(len(cases)), cases.targets - 1] - logsumexp(scaled, axis=1)
        return float(wanted.mean())

    best = minimize_scalar(
        lambda log: -log_likelihood(math.exp(log)), bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded"
    )
    return Fit(
        hr10=float(hr(ranks(every, cases.targets, cases.histories), 10).mean()),
        log_likelihood=log_likelihood(1.0),
        temperature=math.exp(best.x),
        log_likelihood_there=-float(best.fun),
    )


def last_events(histories: Sequence[History], most: int) -> Cases:
    """Ask for the last event of each history, or of ``most`` of those that have two or more, drawn evenly."""
    return _some(last_event_cases([history for history in histories if len(history) > 1]), most)


def _some(cases: Cases, most: int) -> Cases:
    return cases.at(np.sort(np.random.default_rng(0).permutation(len(cases))[:most]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or load a base, measure it on both kinds of users, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="by default the built-in population")
    parser.add_argument("--base", type=Path, help="of seed 0 and this data; else it is trained")
    parser.add_argument("--users", type=int, default=2000, help="asked of each kind, at the most")
    options = parser.parse_args(arguments)
    console = Console()
    setting = prepare(DataConfig(path=options.data))
    if options.base is None:
        with console.status("training the base"):
            content = content_vectors(setting.data.items)
            model = pretrain(setting.public, setting.validation, content, ModelConfig(), PretrainConfig())
    else:
        model = load_base(options.base)
    table = Table("last events of", "users", "HR@10", "log-likelihood", "best temperature", "log-likelihood there")
    public, devices = last_events(setting.public, options.users), _some(setting.test, options.users)
    for name, cases in {"users that trained the base": public, "devices": devices}.items():
        fit = fit_of(model, cases)
        told = [f"{fit.hr10:.3f}", f"{fit.log_likelihood:.2f}", f"{fit.temperature:.2f}"]
        table.add_row(name, f"{len(cases):,}", *told, f"{fit.log_likelihood_there:.2f}")
    console.print(table)
    console.print(f"guessing evenly among {model.num_items:,} items: {-math.log(model.num_items):.2f}", highlight=False)


if __name__ == "__main__":
    main()
