"""A check of the part of JSON Schema (draft 2020-12) that our schema uses; an unknown word in a schema is an error."""

from __future__ import annotations

from typing import Any

_SAID = {"$schema", "$id", "$defs", "title", "description"}
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def errors_of(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$") -> list[str]:
    """Return where a value breaks a schema; empty where it fits."""
    root = schema if root is None else root
    found: list[str] = []
    for word, rule in schema.items():
        match word:
            case "$ref":
                found += errors_of(value, root["$defs"][rule.removeprefix("#/$defs/")], root, at)
            case "type":
                fits = isinstance(value, _TYPES[rule]) and (rule == "boolean" or not isinstance(value, bool))
                found += [] if fits else [f"{at} must be {rule}"]
            case "const":
                found += [] if value == rule else [f"{at} must be {rule}"]
            case "enum":
                found += [] if value in rule else [f"{at} must be one of {rule}"]
            case "minimum":
                found += [] if value >= rule else [f"{at} must be at least {rule}"]
            case "anyOf":
                found += [] if any(not errors_of(value, one, root, at) for one in rule) else [f"{at} must fit one"]
            case "required":
                found += [f"{at} must have {name}" for name in rule if name not in value]
            case "properties":
                for name in set(rule) & set(value):
                    found += errors_of(value[name], rule[name], root, f"{at}.{name}")
            case "additionalProperties":
                for name in set(value) - set(schema.get("properties", ())):
                    found += [f"{at} must not have {name}"] if rule is False else errors_of(value[name], rule, root, at)
            case "items":
                for number, item in enumerate(value):
                    found += errors_of(item, rule, root, f"{at}[{number}]")
            case _:
                if word not in _SAID:
                    raise ValueError(f"schema has an unknown word {word}")
    return found
