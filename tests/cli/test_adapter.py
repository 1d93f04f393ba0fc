"""``ownlet adapter export|import``: an adapter to PEFT's form and back."""

from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.shared.adapter import load_adapter, save_adapter
from ownlet.simulations.pretrain import save_base


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments])


def test_an_adapter_goes_to_peft_and_comes_back_unchanged(tiny: Any, tmp_path: Path) -> None:
    save_base(tmp_path / "base.pt", tiny.model, tiny.items)
    save_adapter(tmp_path / "adapter.safetensors", tiny.spec, tiny.vector, version=3)
    folder, back = tmp_path / "peft", tmp_path / "back.safetensors"
    done = invoke("adapter", "export", "--adapter", tmp_path / "adapter.safetensors", "--peft", folder)
    assert done.exit_code == 0, done.output
    more = ["--base", tmp_path / "base.pt", "--out", back, "--version", 4]
    done = invoke("adapter", "import", "--peft", folder, *more)
    assert done.exit_code == 0, done.output
    assert "version 4, rank 4, alpha 8, 4 layers" in done.output
    spec, vector, version = load_adapter(back)
    assert (spec, version) == (tiny.spec, 4)
    np.testing.assert_array_equal(vector, tiny.vector)


def test_a_folder_without_an_adapter_ends_in_one_line(tiny: Any, tmp_path: Path) -> None:
    save_base(tmp_path / "base.pt", tiny.model, tiny.items)
    done = invoke(
        "adapter", "import", "--peft", tmp_path, "--base", tmp_path / "base.pt", "--out", tmp_path / "a.safetensors"
    )
    assert done.exit_code == 2
    assert done.stderr.startswith("error: PEFT configuration must be readable JSON")
    assert not (tmp_path / "a.safetensors").exists()
