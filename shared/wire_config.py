"""In which form a device's delta travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ownlet.shared.errors import require

__all__ = ["FLOAT32", "WireConfig", "WireName"]

WireName = Literal["float32", "float16", "int8", "sparse"]


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    """How a delta travels (``shared/coding.py``).

    Args:
        name: ``float32``: 4 bytes per number. ``float16``: 2. ``int8``: 1, rounded at random so that the mean is right.
            ``sparse``: 4 bytes for each of a share of the numbers; which ones, the round's number says, for all alike.
        keep: of ``sparse``: that share.
        error_feedback: every device keeps what its message left out and adds it to its next one.
    """

    name: WireName = "float32"
    keep: float = 0.125
    error_feedback: bool = False

    def __post_init__(self) -> None:
        names = get_args(WireName)
        require(self.name in names, f"name must be one of {', '.join(names)}", name=self.name)
        require(0 < self.keep <= 1, "keep must be in (0, 1]", keep=self.keep)
        require(
            not self.error_feedback or self.name != "float32",
            "error_feedback must be false where float32 travels, which leaves nothing out",
            name=self.name,
        )

    @property
    def is_coded(self) -> bool:
        """Whether a message is something else than float32 numbers."""
        return self.name in ("float16", "int8")


FLOAT32 = WireConfig()
