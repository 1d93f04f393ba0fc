"""Imports run in one direction: all may use ``shared``, siblings never meet, ``simulations`` and ``cli`` see all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "device", "export", "server", "shared", "simulations")
ALLOWED = {
    "shared": {"shared"},
    "device": {"device", "shared"},
    "server": {"server", "shared"},
    "export": {"export", "shared"},
    "simulations": {"simulations", "device", "server", "export", "shared"},
    "cli": set(FOLDERS),
}
MODULES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported_folders(source: str) -> set[str]:
    """Return the parts ``x`` of every ``ownlet.x`` that the source imports anywhere, functions included."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("<relative>" if node.level else str(node.module))
            if node.module == "ownlet":
                names += [f"ownlet.{alias.name}" for alias in node.names]
    found = {name.split(".")[1] for name in names if name.startswith("ownlet.")}
    return found | ({"<relative>"} if "<relative>" in names else set())


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_the_folders_that_its_own_may_use(module: Path):
    forbidden = imported_folders((ROOT / module).read_text()) - ALLOWED[module.parts[0]]
    assert not forbidden, f"{module} imports from {sorted(forbidden)}"


def test_every_folder_has_modules_so_that_the_rule_is_checked_on_something():
    assert {module.parts[0] for module in MODULES} == set(FOLDERS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ownlet.server.app", {"server"}),
        ("from ownlet.device.train import Engine", {"device"}),
        ("from ownlet import export", {"export"}),
        ("def f():\n    from ownlet.cli import main", {"cli"}),
        ("from . import train", {"<relative>"}),
        ("from __future__ import annotations\nimport torch", set()),
    ],
)
def test_the_reader_of_imports_sees_every_form(source: str, expected: set[str]):
    assert imported_folders(source) == expected
