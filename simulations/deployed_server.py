"""The ServerApp of a deployed run, with adapters judged on public users where the server has some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.serverapp import ServerApp

from ownlet.server.deployed_app import Judging, make_deployed_app
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.metrics import PublicQuality
from ownlet.simulations.setting import DataConfig

__all__ = ["JudgingConfig", "load_judging", "server_app"]


@dataclass(frozen=True, kw_only=True)
class JudgingConfig:
    """What adapters are judged with.

    Args:
        base: file of the base, as ``ownlet pretrain`` leaves it.
        data: its held-out public users judge; its devices are not looked at.
        spec: of the adapter, as JSON.
        evaluate_every: rounds between evaluations.
    """

    base: Path
    data: DataConfig = field(default_factory=DataConfig)
    spec: str = ""
    evaluate_every: int = 5

    def to_plain(self) -> dict[str, Any]:
        """Return it as JSON can hold it, with absolute paths."""
        data = {**asdict(self.data), "path": None if self.data.path is None else str(self.data.path.resolve())}
        return {**asdict(self), "base": str(self.base.resolve()), "data": data}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> JudgingConfig:
        """Read what ``to_plain`` wrote, also where it went through JSON."""
        return cls(**{**values, "base": Path(values["base"]), "data": DataConfig.from_plain(values["data"])})


def load_judging(values: Mapping[str, Any], config: FederationConfig) -> Judging:
    """Return the judging of a deployment.

    Args:
        values: from ``JudgingConfig.to_plain``.
        config: of the run.

    Raises:
        DataError: base or data cannot be read.
    """
    from ownlet.shared.adapter import AdapterSpec  # torch and data frames: only where something is judged
    from ownlet.shared.lora import attach_spec
    from ownlet.simulations.evaluate import mean_ndcg, public_quality
    from ownlet.simulations.fleet import fleet_of_data
    from ownlet.simulations.line_search import chosen_length
    from ownlet.simulations.pretrain import load_base

    judging = JudgingConfig.from_plain(values)
    model, spec = load_base(judging.base), AdapterSpec.from_json(judging.spec)
    attach_spec(model, spec)
    validation = fleet_of_data(judging.data, judging.base, model).validation

    def judge(number: int, vector: Vector) -> float | None:
        if number % judging.evaluate_every and number != config.rounds:
            return None
        return mean_ndcg(model, validation, spec=spec, vector=vector)

    def quality(vector: Vector) -> PublicQuality:
        return public_quality(model, spec, vector, validation)

    def length(start: Vector, vector: Vector) -> tuple[Vector, float]:
        return chosen_length(config, model, spec, start, vector, validation)

    return Judging(judge=judge, quality=quality, length=length)


def server_app() -> ServerApp:
    """Return the app of the server that started this process."""
    return make_deployed_app(load_judging)
