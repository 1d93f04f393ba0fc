"""A node takes the app that ``ownlet serve`` submits, as Flower packs it, and no other."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from ownlet.server.shim_app import write_shim_app
from ownlet.shared.errors import FederationError
from ownlet.simulations.supernode import require_own_app

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr 1.41 with pathspec 1.1

CLIENT, PROJECT = "ownlet_deployed/client.py", "pyproject.toml"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("app")
    write_shim_app(folder, {"adapter-spec": '{"a": 1}', "rounds": 3})
    packed = build_fab_from_disk(folder)
    require_own_app(packed)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def pack(files: dict[str, str], twice: str | None = None) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        if twice is not None:
            archive.writestr(twice, files[twice])
    return target.getvalue()


def test_another_run_of_ownlet_is_taken(files: dict[str, str]) -> None:
    require_own_app(pack({**files, PROJECT: files[PROJECT].replace("rounds = 3", "rounds = 4")}))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda files: {**files, CLIENT: files[CLIENT] + "print()\n"}, f"got another {CLIENT}"),
        (lambda files: {**files, "ownlet/__init__.py": ""}, "got the files .*ownlet/__init__.py"),
        (lambda files: {**files, "ownlet_deployed/flwr.py": ""}, "got the files"),
        (lambda files: {name: text for name, text in files.items() if name != CLIENT}, "got the files"),
        (
            lambda files: {**files, PROJECT: files[PROJECT].replace("ownlet_deployed.client:app", "os:system")},
            "got another pyproject.toml",
        ),
        (
            lambda files: {**files, PROJECT: files[PROJECT].replace("flwr=", "evil=")},
            "got another pyproject.toml",
        ),
        (
            lambda files: {**files, PROJECT: files[PROJECT].replace('name = "ownlet-deployed"', 'name = "../../x"')},
            "got another pyproject.toml",
        ),
        (lambda files: {**files, PROJECT: "no toml"}, "not readable"),
        (lambda files: {}, "not readable"),
    ],
)
def test_an_app_with_anything_else_is_refused(
    files: dict[str, str], change: Callable[[dict[str, str]], dict[str, str]], rule: str
) -> None:
    with pytest.raises(FederationError, match=rule):
        require_own_app(pack(change(files)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_no_archive_or_names_a_file_twice_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="not readable"):
        require_own_app(b"no archive")
    with pytest.raises(FederationError, match="got the files"):
        require_own_app(pack(files, twice=CLIENT))
