"""What Ctrl-C ends with."""

from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from ownlet.cli.interrupted import says_how_to_go_on, says_when_interrupted
from ownlet.cli.main import build_app


def _command(raised: BaseException | None) -> Callable[..., None]:
    def work() -> None:
        """Work."""
        with says_when_interrupted("stopped; the same command goes on"):
            if raised is not None:
                raise raised

    return work


@pytest.mark.parametrize(("raised", "code", "told"), [(KeyboardInterrupt(), 130, True), (None, 0, False)])
def test_an_interrupt_is_a_sentence_and_exit_code_130(raised: BaseException | None, code: int, told: bool) -> None:
    result = CliRunner().invoke(build_app({"work": _command(raised), "rest": _command(None)}), ["work"])
    assert result.exit_code == code
    assert ("stopped; the same command goes on" in result.output) == told


@pytest.mark.parametrize(
    ("name", "overwrite", "told"),
    [
        (None, False, "only a run with --name can go on"),
        ("x", False, "the same command goes on"),
        ("x", True, "the same command without --overwrite goes on"),
    ],
)
def test_a_run_with_a_name_can_go_on(
    name: str | None, overwrite: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit), says_how_to_go_on(name, overwrite):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == f"\nstopped; {told}\n"
