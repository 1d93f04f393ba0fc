"""The folder that every long command leaves behind: ``runs/<name>/`` with config, versions, metrics and summary.

A number without the settings and versions that made it cannot be checked. ``docs/results.md`` documents the files; the
schema of ``summary.json`` is kept stable because other programs read it, so a summary that breaks it is never written.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import math
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError, DataError, OwnletError, require
from ownlet.shared.metrics import Metric
from ownlet.shared.store import write_atomic

__all__ = [
    "METRIC_NAMES",
    "QUALITY_LABELS",
    "RunFolder",
    "check_summary",
    "package_versions",
    "plain_json",
    "plain_metrics",
    "terms_of",
]

QUALITY_LABELS = (
    "popular",
    "item_knn",
    "base",
    "federated",
    "federated_eps8",
    "federated_eps2",
    "personal",
    "ranked",
)
METRIC_NAMES = ("hr@10", "ndcg@10", "mrr@10")

_log = logging.getLogger(__name__)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str) and value != "",
    "a count": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "a finite number": _is_number,
    "a finite number, not negative": lambda value: _is_number(value) and value >= 0,
}
_INTERVAL = {"value": "a finite number", "low": "a finite number", "high": "a finite number"}
_LATENCY = {"pte_ms": "a finite number, not negative", "eager_ms": "a finite number, not negative"}
_SPENT = {
    "epsilon": "a finite number, not negative",
    "dp_delta": "a finite number, not negative",
    "unit": "text",
    "rounds": "a count",
    "accountant": "text",
    "server_epsilon?": "a finite number, not negative",
}
# A key that ends in "?" may be absent; any key that is not here is refused.
_SUMMARY = {
    "command": "text",
    "seconds": "a finite number, not negative",
    "data": {"name": "text", "users": "a count", "items": "a count", "interactions": "a count"},
    "quality?": {f"{label}?": dict.fromkeys(METRIC_NAMES, _INTERVAL) for label in QUALITY_LABELS},
    "privacy?": {f"{label}?": _SPENT for label in QUALITY_LABELS},
    "genre_hit_rate?": {"head": "a finite number, not negative", "most_frequent": "a finite number, not negative"},
    "wire?": {
        "bytes_up_per_user_round": "a count",
        "bytes_down_per_user_round": "a count",
        "bytes_up_per_node_round?": "a count",
        "bytes_down_per_node_round?": "a count",
    },
    "device?": {"program_bytes": "a count", "recommend?": _LATENCY, "step?": _LATENCY},
}


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run's folder. Make it with ``create``; a run is finished once it has a ``summary.json``.

    Args:
        path: ``runs/<name>``.
    """

    path: Path

    @classmethod
    def create(
        cls,
        root: Path,
        command: str,
        config: object,
        seed: int | None,
        *,
        name: str | None = None,
        overwrite: bool = False,
    ) -> RunFolder:
        """Make the folder and write ``config.json`` and ``versions.json``.

        Args:
            root: the folder of all runs, usually ``runs``.
            command: the subcommand, ``demo``.
            config: the public settings: a dataclass or a mapping.
            seed: the seed of the run; None where randomness came from the operating system.
            name: the folder's name; by default the time (UTC) and the command.
            overwrite: move a folder of this name that holds another run to ``<name>.old-<time>`` instead of refusing
                it. An unfinished run with equal settings is always continued in place.

        Returns:
            the run folder.

        Raises:
            ConfigError: the name is not a plain file name, or is taken by a finished run or one with other settings.
        """
        settings = {"command": command, "seed": seed, "config": plain_json(config)}
        if name is None:
            path = _fresh_path(root, f"{_now()}-{command}")
        else:
            require(re.fullmatch(r"\w[\w.-]*", name) is not None, "name must be a plain file name", name=name)
            path = root / name
            if path.exists():
                _make_way(path, settings, overwrite=overwrite)
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "config.json", _dump(settings))
        write_atomic(path / "versions.json", _dump(package_versions()))
        return cls(path=path)

    @contextmanager
    def discarded_on_refusal(self) -> Iterator[None]:
        """Remove the folder if the block refuses its input before it has written anything."""
        try:
            yield
        except OwnletError:
            if {path.name for path in self.path.iterdir()} == {"config.json", "versions.json"}:
                shutil.rmtree(self.path)
            raise

    @property
    def finished(self) -> bool:
        """Whether the run's summary has been written."""
        return (self.path / "summary.json").exists()

    def write_metrics(self, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write per-round rows as ``metrics.parquet``, atomically; a key that a row lacks is null there.

        Args:
            rows: one mapping per round, column name -> number or text.

        Returns:
            the file.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [_scalar(row.get(name)) for row in rows] for name in names}
        buffer = io.BytesIO()
        pl.DataFrame(columns, strict=False).write_parquet(buffer)
        write_atomic(self.path / "metrics.parquet", buffer.getvalue())
        return self.path / "metrics.parquet"

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows that ``write_metrics`` has written so far; none where there is no file yet.

        Raises:
            DataError: the file cannot be read.
        """
        path = self.path / "metrics.parquet"
        try:
            return pl.read_parquet(path).to_dicts() if path.exists() else []
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"metrics must be readable Parquet, got {path}: {error}") from error

    def write_summary(self, summary: Mapping[str, object]) -> Path:
        """Check the summary and write it as ``summary.json``, atomically; this finishes the run.

        Args:
            summary: the results, in the schema of ``docs/results.md``.

        Returns:
            the file.

        Raises:
            ConfigError: a key is unknown or missing, or a value breaks its rule; nothing is written.
        """
        write_atomic(self.path / "summary.json", _dump(check_summary(summary)))
        return self.path / "summary.json"

    def read_summary(self) -> dict[str, Any]:
        """Return the summary of a finished run.

        Raises:
            DataError: the run is not finished, or the file cannot be read.
            ConfigError: the file breaks the schema.
        """
        return check_summary(_load(self.path / "summary.json"))


def check_summary(summary: Mapping[str, object]) -> dict[str, Any]:
    """Return the summary as plain JSON values if it fits the schema.

    Raises:
        ConfigError: a key is unknown or missing, or a value breaks its rule or lies outside its interval.
    """
    plain = {str(key): _scalar_tree(value) for key, value in summary.items()}
    _check_shape(plain, _SUMMARY, "summary")
    for label, metrics in plain.get("quality", {}).items():
        for metric, interval in metrics.items():
            require(
                interval["low"] <= interval["value"] <= interval["high"],
                f"quality {label} {metric} must have low <= value <= high",
                **interval,
            )
    return plain


def package_versions() -> dict[str, Any]:
    """Return the versions of Python, the platform, ownlet and every direct dependency that is installed."""
    requirements = importlib.metadata.requires("ownlet") or []
    names = sorted({re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements})
    packages = {"ownlet": importlib.metadata.version("ownlet")}
    for name in names:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": packages}


def plain_json(value: object) -> Any:
    """Return settings as values that strict JSON can hold: infinity and NaN become text, paths too.

    Args:
        value: a dataclass, mapping, sequence, path or scalar.

    Raises:
        TypeError: something else is in it.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    value = _scalar(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    raise TypeError(f"settings must be plain values, got {type(value).__name__}")


def plain_metrics(metrics: Mapping[str, Metric]) -> dict[str, dict[str, float]]:
    """Return metrics in the form of the summary's ``quality``."""
    return {name: asdict(metric) for name, metric in metrics.items()}


def _check_shape(value: object, shape: Any, where: str) -> None:
    if isinstance(shape, str):
        require(_KINDS[shape](value), f"{where} must be {shape}", got=value)
        return
    require(isinstance(value, dict), f"{where} must be an object", got=value)
    assert isinstance(value, dict)
    allowed = {key.removesuffix("?"): inner for key, inner in shape.items()}
    missing = sorted(key for key in shape if not key.endswith("?") and key not in value)
    require(not missing, f"{where} must have every required key", missing=missing)
    unknown = sorted(str(key) for key in value if key not in allowed)
    require(not unknown, f"{where} must have only the keys {sorted(allowed)}", unknown=unknown)
    for key, item in value.items():
        _check_shape(item, allowed[key], f"{where} {key}")


def terms_of(run: Path) -> FederationConfig | None:
    """Return the public numbers of a federated run, without its seed; None where the folder is not one of such a run.

    Raises:
        ConfigError: its ``config.json`` is not what a run writes.
    """
    path = run / "config.json"
    if not path.exists():
        return None
    raw = _load(path).get("config", {}).get("federation")
    if raw is None:
        return None
    try:
        return replace(FederationConfig.from_plain(raw), seed=None)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"config must be that of a federated run, got {error} in {path}") from error


def _make_way(path: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Leave an unfinished run with equal settings in place; move anything else aside, or refuse."""
    finished = (path / "summary.json").exists()
    if not finished and (path / "config.json").exists() and _load(path / "config.json") == settings:
        return
    state = "a finished run" if finished else "a folder that is not an unfinished run with these settings"
    require(overwrite, f"name must not be taken by {state} (choose another, or overwrite)", name=path.name)
    moved = _fresh_path(path.parent, f"{path.name}.old-{_now()}")
    path.rename(moved)
    _log.warning("moved the earlier run %s to %s", path, moved)


def _fresh_path(root: Path, name: str) -> Path:
    candidates = [root / name, *(root / f"{name}-{number}" for number in range(2, 1000))]
    return next(path for path in candidates if not path.exists())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def _scalar(value: object) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _scalar_tree(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _scalar_tree(item) for key, item in value.items()}
    return _scalar(value)


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"file must be readable JSON, got {path}: {error}") from error
