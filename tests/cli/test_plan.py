import json

import pytest
from typer.testing import CliRunner, Result

from ownlet.cli.main import COMMANDS, build_app
from ownlet.shared.config import Plan
from ownlet.shared.privacy import epsilon, user_turns_event, window_level_event

TURNS = ("--rounds", "30", "--turns", "4")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(COMMANDS), ["plan", *arguments])


def test_the_table_shows_the_noise_of_the_plan_and_of_its_neighbours() -> None:
    result = run("--epsilon", "2", "--delta", "1e-6", *TURNS, "--users", "3000")
    assert result.exit_code == 0, result.output
    for told in ("this plan", "8 turns", "epsilon 4", "1e-10", "at delta 1e-06"):
        assert told in result.output
    assert "Warning" not in result.output


def test_json_is_nothing_but_json() -> None:
    result = run("--epsilon", "2", *TURNS, "--json", "--users", "50000000")
    plan = json.loads(result.stdout)
    sigma = plan["chosen"]["noise_multiplier"]
    assert plan["chosen"]["epsilon"] == epsilon(user_turns_event(sigma, 4), 1e-6) <= 2
    assert "not far below" in plan["warnings"][0]


def test_an_epoch_of_a_window_plan_keeps_its_last_step() -> None:
    options = ("--unit", "window", "--windows", "93", "--batch", "1", "--epochs", "1", "--noise-multiplier", "1")
    plan = json.loads(run(*options, "--json", "--delta", "1e-5").stdout)
    local = Plan(steps=93, sample_rate=1 / 93, clip_norm=1.0, noise_multiplier=1.0)
    assert plan["chosen"]["sums"] == 93
    assert plan["chosen"]["epsilon"] == epsilon(window_level_event(local, 1), 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "exactly one of epsilon and noise_multiplier"),
        (("--epsilon", "2", "--unit", "window", "--rounds", "3"), "rounds must not be given where unit is window"),
        (("--epsilon", "2", "--steps", "3"), "steps must not be given where unit is user"),
        (("--epsilon", "2", "--turns", "3", "--cohort-rate", "0.1"), "turns and cohort_rate"),
        (("--epsilon", "2", "--unit", "window", "--batch", "4"), "windows must be given"),
        (("--epsilon", "2", "--unit", "window", "--steps", "4", "--epochs", "1"), "steps and epochs"),
        (("--epsilon", "-1", *TURNS), "target_epsilon must be positive"),
        (("--epsilon", "2", "--delta", "0", *TURNS), "dp_delta must be in"),
    ],
)
def test_what_cannot_be_planned_ends_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
