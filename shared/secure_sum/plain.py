"""Messages and states as flat dictionaries of whole numbers, texts, bytes and lists of them, and back.

That is what Flower's config records hold. Reading is strict: exactly the fields, each of its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ownlet.shared.errors import ConfigError, FederationError

__all__ = ["from_plain", "to_plain"]

T = TypeVar("T")


def to_plain(value: Any) -> dict[str, Any]:
    """Return field -> value of a dataclass; fields of one inside it as ``outer.inner``."""
    plain: dict[str, Any] = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            plain |= {f"{field.name}.{name}": part for name, part in to_plain(inner).items()}
        else:
            plain[field.name] = list(inner) if isinstance(inner, tuple) else inner
    return plain


def from_plain(kind: type[T], plain: Mapping[str, Any]) -> T:
    """Read what ``to_plain`` wrote.

    Raises:
        FederationError: other fields, a value of another type, or one that breaks its rule.
    """
    try:
        return _read(kind, plain)
    except (ConfigError, TypeError, KeyError) as error:
        raise FederationError(f"{kind.__name__} must be readable, got {type(error).__name__}: {error}") from error


def _read(kind: type[T], plain: Mapping[str, Any]) -> T:
    hints, values, known = get_type_hints(kind), {}, set()
    for field in fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            prefix = f"{field.name}."
            inside = {name: value for name, value in plain.items() if name.startswith(prefix)}
            values[field.name] = _read(hint, {name.removeprefix(prefix): value for name, value in inside.items()})
            known |= set(inside)
        else:
            values[field.name] = _typed(field.name, hint, plain[field.name])
            known.add(field.name)
    if extra := set(plain) - known:
        raise TypeError(f"fields must be known, got {sorted(extra)}")
    return kind(**values)


def _typed(name: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        part = get_args(hint)[0]
        if isinstance(value, list) and all(type(one) is part for one in value):
            return tuple(value)
    elif type(value) is hint:
        return value
    raise TypeError(f"{name} must be {hint}, got {type(value).__name__}")
