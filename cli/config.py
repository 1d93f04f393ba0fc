"""``ownlet config``: a file of all settings of a command, with their defaults and what they mean.

The text is made from the dataclasses that the command uses, and from their docstrings, so it cannot say anything else.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

__all__ = ["config", "document", "field_texts"]

_WIDTH = 100
_ORDER = ("data", "model", "context", "text", "pretrain", "adapter", "compression", "federation", "personal")


def config(
    command: Annotated[Literal["pretrain", "simulate", "demo"], typer.Argument(help="Whose settings.")] = "simulate",
) -> None:
    """Print every setting of a command as a TOML file for --config, with its default and what it means.

    Options win over --set, --set over the file, the file over the defaults. A key that is left out keeps its default.
    """
    typer.echo(document(command))


def document(command: str) -> str:
    """Return the settings of a command as TOML with comments."""
    from ownlet.cli.settings import command_kinds, settable_names
    from ownlet.shared.settings import default_values, describe_type, leaf_types

    kind = command_kinds()[command]
    defaults, hints, texts, notes = default_values(kind), leaf_types(kind), field_texts(kind), _notes(command)
    lines = [f"# Settings of `ownlet {command}`, with their defaults. Leave out what you do not change."]
    last = ""
    for name, path in sorted(settable_names(command).items(), key=lambda pair: _place(pair[0])):
        section, _, key = name.rpartition(".")
        if section != last:
            lines += ["", f"[{section}]"]
            last = section
        lines += [f"# {line}" for line in textwrap.wrap(f"{texts[path]} ({describe_type(hints[path])})", _WIDTH)]
        if path in defaults and name not in notes:
            lines.append(f"{key} = {_toml(defaults[path])}")
        else:
            lines.append(f"# {key} = ...  # {notes.get(name, 'must be given')}")
    return "\n".join(lines)


def field_texts(kind: type, prefix: str = "") -> dict[str, str]:
    """Return dotted name -> what the docstring of its dataclass says about the field."""
    texts: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        if is_dataclass(ancestor):
            texts |= _documented(inspect.cleandoc(ancestor.__doc__ or ""))
    found: dict[str, str] = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint) and isinstance(hint, type):
            found |= field_texts(hint, f"{prefix}{name}.")
        elif name in texts:
            found[prefix + name] = texts[name]
    return found


def _documented(docstring: str) -> dict[str, str]:
    """Return argument -> text, of the section ``Args`` of a docstring."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", docstring, flags=re.MULTILINE)
    entries = re.split(r"^    (?=\w+: )", section.group(1), flags=re.MULTILINE)[1:] if section else []
    pairs = (entry.split(": ", 1) for entry in entries)
    return {name: " ".join(text.split()).replace("``", "") for name, text in pairs}


def _notes(command: str) -> Mapping[str, str]:
    """Return name -> how its default follows from other settings."""
    from ownlet.cli.demo import DERIVED as OF_DEMO
    from ownlet.simulations.derived import DERIVED as OF_SIMULATE

    return {"simulate": OF_SIMULATE, "demo": OF_DEMO}.get(command, {})


def _place(name: str) -> tuple[int, str]:
    """Return where a section stands; within one, the order is the code's."""
    section = name.rpartition(".")[0]
    first = section.partition(".")[0]
    return _ORDER.index(first) if first in _ORDER else len(_ORDER) + (first == "run"), section


def _toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(part) for part in value)}]"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{{{', '.join(f'{name} = {_toml(inner)}' for name, inner in vars(value).items())}}}"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
