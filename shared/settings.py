"""Frozen dataclasses as flat names, ``federation.plan.learning_rate``, and back.

Settings come from several places (defaults, a TOML file, the command line, Flower). Each place gives plain values under
dotted names; they are laid over each other as dictionaries, and one dataclass is built of the result. The types come
from the annotations and the rules from ``__post_init__``, so nothing is said twice. Every error names the key, the
rule, the value and where the value comes from.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ownlet.shared.errors import ConfigError

__all__ = [
    "DEFAULTS",
    "NONE",
    "Given",
    "build",
    "check_known",
    "default_values",
    "describe_type",
    "leaf_types",
    "takes_list",
]

NONE = "none"
"""The text that stands for "not set": TOML and the command line have no such value."""

T = TypeVar("T")

DEFAULTS = "the defaults"
"""The source of values that nobody gave; they are taken as they are."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value and where it comes from, such as the name of a file or of an option."""

    value: Any
    source: str


def leaf_types(kind: type) -> dict[str, Any]:
    """Return dotted name -> annotated type of every field that is not a dataclass itself."""
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in _fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            found |= {f"{field.name}.{name}": inner for name, inner in leaf_types(hint).items()}  # type: ignore[arg-type]
        else:
            found[field.name] = hint
    return found


def default_values(kind: type) -> dict[str, Any]:
    """Return dotted name -> default; a field that has none is absent."""
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in _fields(kind):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(hints[field.name]):
            known = default_values(hints[field.name]) if default is MISSING else _leaf_values(default)
            found |= {f"{field.name}.{name}": value for name, value in known.items()}
        elif default is not MISSING:
            found[field.name] = default
    return found


def check_known(names: Mapping[str, Given], known: Collection[str]) -> None:
    """Raise ConfigError for the first name that is not known, with the one that was probably meant."""
    for name, given in names.items():
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        close = close or [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]][:1]
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"settings must have known keys, got {name} in {given.source}{hint}")


def build(kind: type[T], values: Mapping[str, Given], *, prefix: str = "", shown: Callable[[str], str] = str) -> T:
    """Build a dataclass, and those inside it, from dotted names.

    Args:
        kind: the dataclass.
        values: dotted name -> value; a field that is not named keeps its default.
        prefix: in front of the names of this dataclass.
        shown: what errors call a name.

    Raises:
        ConfigError: an unknown name, a value of another type, a value that breaks its rule, or a missing one.
    """
    check_known(values, leaf_types(kind))
    hints, defaults = get_type_hints(kind), default_values(kind)
    arguments = {}
    for field in _fields(kind):
        hint, name = hints[field.name], field.name
        if is_dataclass(hint):
            inside = {key: Given(value=value, source=DEFAULTS) for key, value in _under(defaults, name).items()}
            inside |= _under(values, name)
            arguments[name] = build(hint, inside, prefix=f"{prefix}{name}.", shown=shown)  # type: ignore[arg-type]
        elif name in values:
            arguments[name] = _typed(shown(prefix + name), hint, values[name])
        elif name not in defaults:
            raise ConfigError(f"{shown(prefix + name)} must be given")
    try:
        return kind(**arguments)
    except ConfigError as error:
        first, _, rule = str(error).partition(" ")
        name = shown(prefix + first) if first in leaf_types(kind) else first
        raise ConfigError(f"{name} {rule}{_origin(str(error), values)}") from error


def describe_type(hint: Any) -> str:
    """Return a type in words: ``a whole number``, ``user, window or none``, ``a list of texts``."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    if hint in plain:
        return plain[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _either([str(argument) for argument in arguments])
    if origin in (Union, types.UnionType):
        return f"{describe_type(next(part for part in arguments if part is not type(None)))} or {NONE}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of {_plural(describe_type(arguments[0]))}"
    if origin is tuple:
        return "a pair" if len(arguments) == 2 else f"a list of {len(arguments)}"
    return f"a table of {', '.join(leaf_types(hint))}"


def takes_list(hint: Any) -> bool:
    """Tell whether values of a type are lists."""
    return get_origin(hint) is tuple or any(get_origin(part) is tuple for part in get_args(hint))


def _fields(kind: type) -> tuple[Field[Any], ...]:
    return tuple(field for field in fields(kind) if field.init)


def _leaf_values(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in _fields(type(value)):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            found |= {f"{field.name}.{name}": leaf for name, leaf in _leaf_values(inner).items()}
        else:
            found[field.name] = inner
    return found


def _under(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


def _typed(name: str, hint: Any, given: Given) -> Any:
    if given.source == DEFAULTS:
        return given.value
    try:
        return _convert(hint, given.value)
    except TypeError:
        raise ConfigError(f"{name} must be {describe_type(hint)}, got {given.value!r} in {given.source}") from None


def _convert(hint: Any, value: Any) -> Any:
    """Return the value as the type; TypeError where it is of another."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(part for part in arguments if part is not type(None))
        return None if value is None or value == NONE else _convert(inner, value)
    if origin is Literal:
        return _one_of(value, arguments)
    if origin is tuple and isinstance(value, list | tuple):
        return _convert_list(arguments, value)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return build(hint, {key: Given(value=inner, source="a table") for key, inner in value.items()})
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise TypeError


def _convert_list(arguments: tuple[Any, ...], value: Collection[Any]) -> tuple[Any, ...]:
    if arguments[-1] is Ellipsis:
        return tuple(_convert(arguments[0], part) for part in value)
    if len(arguments) != len(value):
        raise TypeError
    return tuple(_convert(hint, part) for hint, part in zip(arguments, value, strict=True))


def _one_of(value: Any, allowed: tuple[Any, ...]) -> Any:
    if value in allowed and type(value) in {type(one) for one in allowed}:
        return value
    raise TypeError


def _origin(message: str, values: Mapping[str, Given]) -> str:
    """Return where the values that an error names come from, as far as they were given."""
    named = [given.source for name, given in values.items() if re.search(rf"\b{name}\b", message)]
    sources = sorted({source for source in named if source != DEFAULTS})
    return f" in {' and '.join(sources)}" if sources else ""


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _plural(words: str) -> str:
    first, _, rest = words.partition(" ")
    return f"{rest}s" if first == "a" and " " not in rest else words.removeprefix("a ")
