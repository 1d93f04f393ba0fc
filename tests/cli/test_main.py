import importlib.metadata

import pytest
from typer.testing import CliRunner, Result

from ownlet.cli.main import COMMANDS, GROUPS, build_app
from ownlet.shared.errors import BudgetExceededError, DataError


def greet(name: str = "world") -> None:
    """Greet someone."""
    print(f"hello {name}")


def refuse() -> None:
    """Fail on purpose."""
    raise DataError("line must have 4 fields, got fields=3 in ratings.csv:7")


def overspend() -> None:
    """Fail on purpose, further down the error tree."""
    raise BudgetExceededError("epsilon must not exceed 2.0, got epsilon=2.1")


def crash() -> None:
    """Fail by a bug."""
    raise ZeroDivisionError("a bug")


def run(*arguments: str) -> Result:
    app = build_app({"greet": greet, "refuse": refuse, "overspend": overspend, "crash": crash})
    return CliRunner().invoke(app, list(arguments))


def test_a_function_becomes_a_subcommand_with_its_options():
    result = run("greet", "--name", "you")
    assert (result.exit_code, result.stdout) == (0, "hello you\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults_without_a_backslash(command: str):
    result = CliRunner().invoke(build_app(COMMANDS), [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "\\" not in result.stdout


def test_a_default_is_in_brackets():
    assert "[default: world]" in run("greet", "--help").stdout


def test_help_lists_every_subcommand():
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("greet", "refuse", "Fail on purpose."))


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("refuse", "error: line must have 4 fields, got fields=3 in ratings.csv:7\n"),
        ("overspend", "error: epsilon must not exceed 2.0, got epsilon=2.1\n"),
    ],
)
def test_an_error_of_ours_is_one_line_on_stderr_and_exit_code_2(command: str, line: str):
    result = run(command)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)


def test_debug_shows_the_traceback_of_an_error_of_ours():
    result = run("--debug", "refuse")
    assert isinstance(result.exception, DataError)


def test_a_bug_is_not_disguised_as_a_clean_error():
    result = run("crash")
    assert isinstance(result.exception, ZeroDivisionError)


def test_version_is_that_of_the_installed_package():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"ownlet {importlib.metadata.version('ownlet')}\n")


@pytest.mark.parametrize("arguments", [(), ("nope",), ("greet", "--nope")])
def test_a_call_that_cannot_be_understood_exits_with_2(arguments: tuple[str, ...]):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_registered_subcommand_explains_itself(name: str):
    result = CliRunner().invoke(build_app(COMMANDS), [*name.split(), "--help"])
    assert result.exit_code == 0
    assert (COMMANDS[name].__doc__ or "").strip().split("\n")[0].rstrip(".") in " ".join(result.stdout.split())


def test_a_name_of_two_words_is_a_command_of_a_group():
    app = build_app({"greet": greet, "people greet": greet, "people refuse": refuse})
    assert CliRunner().invoke(app, ["people", "greet", "--name", "you"]).stdout == "hello you\n"
    assert CliRunner().invoke(app, ["people", "refuse"]).exit_code == 2
    assert "Fail on purpose." in CliRunner().invoke(app, ["people", "--help"]).stdout
    assert "refuse" not in CliRunner().invoke(app, ["--help"]).stdout


def test_every_group_explains_itself():
    told = CliRunner().invoke(build_app(COMMANDS), ["--help"]).stdout
    assert {name.partition(" ")[0] for name in COMMANDS if " " in name} == set(GROUPS)
    assert all(line in told for line in GROUPS.values())
