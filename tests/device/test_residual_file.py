from pathlib import Path

import numpy as np

from ownlet.device.residual_file import ResidualFile
from ownlet.shared.seal import Seal

RESIDUAL = np.linspace(-1, 1, 5, dtype=np.float32)


def test_what_is_kept_is_there_after_a_restart_for_this_user_and_base_only(tmp_path: Path) -> None:
    path = tmp_path / "residual"
    assert ResidualFile(path=path, seal=Seal()).of(7, "base") is None
    ResidualFile(path=path, seal=Seal(b"k" * 32)).keep(7, "base", RESIDUAL)
    kept = ResidualFile(path=path, seal=Seal(b"k" * 32))
    np.testing.assert_array_equal(kept.of(7, "base"), RESIDUAL)
    assert kept.of(8, "base") is None
    assert kept.of(7, "another") is None
    assert RESIDUAL.tobytes() not in path.read_bytes()


def test_a_file_under_another_key_or_broken_is_as_if_it_were_lost(tmp_path: Path) -> None:
    path = tmp_path / "residual"
    ResidualFile(path=path, seal=Seal(b"k" * 32)).keep(7, "base", RESIDUAL)
    assert ResidualFile(path=path, seal=Seal(b"j" * 32)).of(7, "base") is None
    path.write_bytes(b"broken")
    assert ResidualFile(path=path, seal=Seal()).of(7, "base") is None
