"""Rows for TensorBoard, read back by TensorBoard itself."""

import builtins
from pathlib import Path
from typing import Any

import pytest

from ownlet.shared.errors import ConfigError
from ownlet.simulations.board import board_of


def test_numbers_are_written_under_their_run_and_texts_are_not(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with board_of(tmp_path, "base") as board:
        assert board is not None
        for at in (1, 2):
            board.row(at, {"round": at, "epsilon": at / 2, "void": False, "rejected": "x", "public_ndcg@10": None})
        board.row(7, {"loss": 0.25}, "inner")
    for folder, tag, found in (("base", "epsilon", [(1, 0.5), (2, 1.0)]), ("base/inner", "loss", [(7, 0.25)])):
        accumulator = events.EventAccumulator(str(tmp_path / folder))
        accumulator.Reload()
        assert accumulator.Tags()["scalars"] == [tag]
        assert [(event.step, event.value) for event in accumulator.Scalars(tag)] == found


def test_without_a_folder_nobody_watches() -> None:
    with board_of(None, "base") as board:
        assert board is None


def test_a_missing_tensorboard_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(ConfigError, match=r"tensorboard must be installed \(pip install 'ownlet\[tensorboard\]'\)"),
        board_of(tmp_path, "base"),
    ):
        pytest.fail("the block must not be entered")
    assert list(tmp_path.iterdir()) == []
