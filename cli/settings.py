"""The settings of a command: its defaults, a TOML file over them, ``--set`` over that, its own options on top.

One file can serve several commands: keys that only another command knows are passed over, aloud. A key that no command
knows is an error. ``ownlet config`` prints a file with every key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from ownlet.cli.options import column_pairs
from ownlet.shared.errors import ConfigError
from ownlet.shared.settings import NONE, Given, build, check_known, leaf_types, takes_list

__all__ = ["Config", "Set", "Settings", "command_kinds", "read_settings", "shown_name"]

T = TypeVar("T")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings, see `ownlet config`; options given here win over it."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its name in that file; may be repeated."),
]

_SECTIONS = {"recipe": "pretrain"}  # field -> section, where they differ; fields outside of a section are in [run]

_READ: dict[str, Callable[[Any], Any]] = {
    "columns": column_pairs,
    "context": lambda text: [part.strip() for part in text.split(",") if part.strip()],
    "seeds": lambda count: list(range(count)),
}
"""Option -> how its value becomes that of the setting."""

NOT_SETTABLE = {
    "pretrain": {"model.context"},  # made from [context] and the data
    "demo": {  # decided per run and seed, or made from [context] and the data
        *("pretrain.seed", "federation.seed", "federation.unit", "federation.noise_multiplier"),
        *("federation.target_epsilon", "model.context"),
    },
}


@dataclass(frozen=True, kw_only=True)
class Settings(Generic[T]):
    """A command's settings, and which of them somebody gave; the others are defaults."""

    config: T
    given: frozenset[str]


def command_kinds() -> dict[str, type]:
    """Return command -> the dataclass of its settings."""
    from ownlet.simulations.base_run import BaseRunConfig
    from ownlet.simulations.federated_run import FederatedRunConfig
    from ownlet.simulations.trial import TrialConfig

    return {"pretrain": BaseRunConfig, "simulate": FederatedRunConfig, "demo": TrialConfig}


def shown_name(path: str) -> str:
    """Return what a field is called in a file: its section, and its name."""
    first, dot, rest = path.partition(".")
    return f"{_SECTIONS.get(first, first)}.{rest}" if dot else f"run.{path}"


def settable_names(command: str) -> dict[str, str]:
    """Return name in a file -> path of the field, of all that a command lets one set."""
    names = {shown_name(path): path for path in leaf_types(command_kinds()[command])}
    return {name: path for name, path in names.items() if name not in NOT_SETTABLE.get(command, ())}


def read_settings(
    command: str,
    kind: type[T],
    context: typer.Context,
    options: Mapping[str, Sequence[str]],
    *,
    file: Path | None,
    sets: Sequence[str] | None,
    derive: Callable[[Mapping[str, Given]], dict[str, Given]] = dict,
) -> Settings[T]:
    """Lay the sources over each other and build the settings.

    Args:
        command: the subcommand.
        kind: the dataclass of its settings.
        context: of the call; tells which options were given.
        options: option -> the settings that it stands for.
        file: the TOML file.
        sets: texts ``KEY=VALUE``.
        derive: adds what follows from what was given.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is of another type or breaks its rule.
    """
    known = settable_names(command)
    given = read_file(file, command) if file is not None else {}
    given |= _given_sets(sets or (), known, leaf_types(kind))
    given |= _given_options(context, options)
    values = {known[name]: value for name, value in derive(given).items()}
    return Settings(config=build(kind, values, shown=shown_name), given=frozenset(given))


def read_file(path: Path, command: str) -> dict[str, Given]:
    """Return what a TOML file sets for a command; say what it passes over.

    Raises:
        ConfigError: unreadable, or a key that no command has.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config must be readable TOML, got {path}: {error}") from error
    everywhere = {shown_name(leaf) for kind in command_kinds().values() for leaf in leaf_types(kind)}
    given = {name: Given(value=value, source=str(path)) for name, value in _flat(tables, everywhere).items()}
    check_known(given, everywhere)
    known = settable_names(command)
    passed_over = sorted(set(given) - set(known))
    if passed_over:
        typer.echo(f"{path}: {command} does not use {', '.join(passed_over)}", err=True)
    return {name: value for name, value in given.items() if name in known}


def _flat(table: Mapping[str, Any], leaves: set[str], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, Mapping) and name not in leaves:
            found |= _flat(value, leaves, f"{name}.")
        else:
            found[name] = value
    return found


def _given_sets(texts: Sequence[str], known: Mapping[str, str], types: Mapping[str, Any]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set must be KEY=VALUE, got {text!r}")
        given[name.strip()] = Given(value=_toml_value(value.strip()), source="--set")
    check_known(given, known)
    for name, one in given.items():  # a list of one needs no brackets
        if takes_list(types[known[name]]) and not isinstance(one.value, list) and one.value != NONE:
            given[name] = Given(value=[one.value], source=one.source)
    return given


def _toml_value(text: str) -> Any:
    """Read a value as TOML does; what is none is a text, or a list where it has commas."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [_toml_value(part.strip()) for part in text.split(",")] if "," in text else text


def _given_options(context: typer.Context, options: Mapping[str, Sequence[str]]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for option, names in options.items():
        source = context.get_parameter_source(option)
        if source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            flag = f"--{option.replace('_', '-')}"
            value = _READ.get(option, lambda value: value)(context.params[option])
            given |= {name: Given(value=value, source=flag) for name in names}
    return given
