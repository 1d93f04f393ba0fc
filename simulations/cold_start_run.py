"""The cold-start experiment: bases that know different things of an item, asked about new items and for new users."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import require
from ownlet.shared.interactions import Item
from ownlet.simulations.baselines import most_popular
from ownlet.simulations.cold_start import KNOWN_EVENTS, ColdSetting, cold_setting, measure, model_scorer
from ownlet.simulations.item_text import item_texts
from ownlet.simulations.pretrain import PretrainConfig, pretrain
from ownlet.simulations.progress import Progress
from ownlet.simulations.setting import DataConfig, data_facts, load_interactions
from ownlet.simulations.text_content import DEFAULT_CACHE, TextConfig, text_content
from ownlet.simulations.text_tuning import TextTuning
from ownlet.simulations.tiny_encoder import TinyEncoderConfig, train_tiny_encoder
from ownlet.simulations.workers import worker_pool

__all__ = ["METHODS", "QUESTIONS", "ColdStartConfig", "ColdStartResult", "run_cold_start", "run_seed"]

METHODS = ("popular", "id", "hashed", "text", "tuned")
"""What is known of an item: how often it was chosen, nothing but its id, hashed words, its text, its text tuned."""

QUESTIONS = ("cold among all", "cold among cold", "warm", *(f"known {known}" for known in KNOWN_EVENTS))
"""What is asked; see ``simulations.cold_start``."""

Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """Settings of the experiment.

    Args:
        data: which interactions.
        seeds: each holds out other items and trains other bases.
        fraction: share of the items that is held out.
        text_encoder: a folder or hub id; empty: a tiny one is trained here, on the texts of all other items.
        model: shape of the bases.
        recipe: training of the bases; its seed is replaced.
        tiny: shape and training of the tiny encoder.
        tuning: LoRA on the encoder's own layers.
        cache: of text vectors.
    """

    data: DataConfig = field(default_factory=DataConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    fraction: float = 0.15
    text_encoder: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: PretrainConfig = field(default_factory=PretrainConfig)
    tiny: TinyEncoderConfig = field(default_factory=TinyEncoderConfig)
    tuning: TextTuning = field(default_factory=TextTuning)
    cache: Path = DEFAULT_CACHE

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds must be at least one", seeds=self.seeds)
        require(0 < self.fraction < 1, "fraction must be in (0, 1)", fraction=self.fraction)


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdStartResult:
    """What came out.

    Args:
        config: the settings.
        facts: name and size of the data.
        num_cold: items that each seed held out.
        ranks: method -> question -> (cases of all seeds,) ranks, cases in the same order for every method.
        seconds: how long it took.
    """

    config: ColdStartConfig
    facts: dict[str, object]
    num_cold: int
    ranks: dict[str, dict[str, Ranks]]
    seconds: float


def run_cold_start(config: ColdStartConfig, progress: Progress, *, workers: int = 1) -> ColdStartResult:
    """Train every base for every seed and ask them all.

    Args:
        config: the settings.
        progress: told of encoders and bases as they are done.
        workers: processes that seeds are spread over; 1 is this process alone. Never changes the result.

    Raises:
        DataError: data or encoder cannot be read, or nobody could be asked.
        ConfigError: ``transformers`` is not installed.
    """
    started = time.monotonic()
    if workers == 1:
        found = [run_seed(config, seed, progress) for seed in config.seeds]
    else:
        with worker_pool(workers, progress) as pool:
            futures = [pool.submit(run_seed, config, seed) for seed in config.seeds]
            found = [future.result() for future in futures]
    data = load_interactions(config.data)
    return ColdStartResult(
        config=config,
        facts=data_facts(data),
        num_cold=int(cold_setting(data, fraction=config.fraction, seed=config.seeds[0]).cold.sum()),
        ranks={
            method: {name: np.concatenate([ranks[method][name] for ranks in found]) for name in QUESTIONS}
            for method in METHODS
        },
        seconds=time.monotonic() - started,
    )


def run_seed(config: ColdStartConfig, seed: int, progress: Progress) -> dict[str, dict[str, Ranks]]:
    """Return method -> question -> ranks of one seed."""
    data = load_interactions(config.data)
    everything = load_interactions(replace(config.data, core=0)).items
    setting = cold_setting(data, fraction=config.fraction, seed=seed)
    ranks = {"popular": measure(most_popular(setting.train, data.num_items), setting)}
    with progress.stage(f"seed {seed}", len(METHODS)) as step:
        vectors = _content(config, data.items, everything, setting)
        step("text encoders")
        for name, content in vectors.items():
            recipe = replace(config.recipe, seed=seed)
            model = pretrain(setting.train, setting.validation, content, config.model, recipe)
            ranks[name] = measure(model_scorer(model), setting)
            step(name)
    return ranks


def _content(
    config: ColdStartConfig, items: Sequence[Item], everything: Sequence[Item], setting: ColdSetting
) -> dict[str, NDArray[np.float32]]:
    """Return the content vectors of every method that has a base."""
    vectors = {"id": np.zeros((len(items) + 1, 1), np.float32), "hashed": content_vectors(items)}
    with tempfile.TemporaryDirectory() as folder:
        encoder = config.text_encoder
        if not encoder:
            held_out = {item.id for item in items if setting.cold[item.number]}
            texts = item_texts([item for item in everything if item.id not in held_out])
            encoder = str(train_tiny_encoder(Path(folder), texts, config.tiny))
        for name in ("text", "tuned"):
            text = TextConfig(encoder=encoder, cache=config.cache, tune=name == "tuned", tuning=config.tuning)
            made = text_content(
                items, text, histories=setting.train, validation=setting.held_out, known=setting.trained
            )
            vectors[name] = made.vectors
    return vectors
