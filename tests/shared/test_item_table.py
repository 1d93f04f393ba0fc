from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.item_table import open_item_table, save_item_table


@pytest.mark.parametrize("shape", [(4, 7), (64, 1000), (3, 1)])
def test_a_table_comes_back_mapped_and_aligned_and_any_safetensors_reader_reads_it(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    columns = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    save_item_table(tmp_path / "items.safetensors", columns)
    table = open_item_table(tmp_path / "items.safetensors")
    np.testing.assert_array_equal(table, columns)
    assert table.ctypes.data % 64 == 0
    np.testing.assert_array_equal(load_file(tmp_path / "items.safetensors")["items"], columns)


def test_what_is_written_to_an_open_table_never_reaches_the_file(tmp_path: Path) -> None:
    save_item_table(tmp_path / "items", np.ones((2, 3), np.float32))
    open_item_table(tmp_path / "items")[:] = 7
    np.testing.assert_array_equal(open_item_table(tmp_path / "items"), 1)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 100, (20).to_bytes(8, "little") + b'{"other": {}}       ']
)
def test_another_file_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "items").write_bytes(content)
    with pytest.raises(BundleError, match=r"items must be a readable table, got .*items"):
        open_item_table(tmp_path / "items")


def test_a_truncated_table_is_refused(tmp_path: Path) -> None:
    save_item_table(tmp_path / "items", np.ones((8, 300), np.float32))
    (tmp_path / "items").write_bytes((tmp_path / "items").read_bytes()[:-1])
    with pytest.raises(BundleError, match="readable table"):
        open_item_table(tmp_path / "items")


def test_numbers_that_are_no_table_are_refused(tmp_path: Path) -> None:
    for wrong in (np.ones(3, np.float32), np.ones((2, 2)), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ConfigError, match="items must be"):
            save_item_table(tmp_path / "items", wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_int8_table_is_a_quarter_as_large_and_off_by_half_a_step_at_the_most(tmp_path: Path) -> None:
    columns = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    columns[:, 3] = 0
    save_item_table(tmp_path / "int8", columns, quantize="int8")
    save_item_table(tmp_path / "float", columns)
    table = open_item_table(tmp_path / "int8")
    assert (tmp_path / "int8").stat().st_size < 0.27 * (tmp_path / "float").stat().st_size
    assert table.dtype == np.float32
    assert table.flags.c_contiguous
    assert not table[:, 3].any()
    assert (np.abs(table - columns) <= np.abs(columns).max(axis=0) / 127 * 0.501).all()
    assert load_file(tmp_path / "int8")["items"].dtype == np.int8
    save_item_table(tmp_path / "again", table, quantize="int8")  # as when a catalogue grows
    np.testing.assert_allclose(open_item_table(tmp_path / "again"), table, rtol=1e-6)


def test_an_unknown_way_to_quantise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize must be none or int8"):
        save_item_table(tmp_path / "items", np.ones((2, 2), np.float32), quantize="int4")  # type: ignore[arg-type]
