"""The nginx of docs/deployment.md before a real server: nodes come through it, and nothing else does."""

import http.client
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ownlet.server.certificates import CA_FILE, SERVER_CERT_FILE, SERVER_KEY_FILE
from ownlet.server.control import Control, wait_until_healthy
from ownlet.shared.flower_process import free_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # flwr 1.41 with pathspec 1.1
]


def documented(proxy: int, server: int, certs: Path) -> str:
    """Return the page's block, with the ports and files of this machine."""
    block = re.search(r"^    upstream superlink \{.*?(?=^\S)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    text = block.group().replace("listen 8443 ssl", f"listen 127.0.0.1:{proxy} ssl").replace("18443", str(server))
    for name in (CA_FILE, SERVER_CERT_FILE, SERVER_KEY_FILE):
        assert f" {name};" in text
        text = text.replace(f" {name};", f" {certs / name};")
    return text


@pytest.fixture
def proxy(place: Any, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx of our own before the server's."""
    port, home = free_port(), tmp_path / "nginx"
    home.mkdir()
    scratch = "".join(f"{kind}_temp_path {home};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    log = f"access_log {home}/access.log; error_log {home}/error.log;"
    (home / "nginx.conf").write_text(
        f"daemon off; pid {home}/pid; error_log {home}/error.log; events {{}} "
        f"http {{ {scratch} {log}\n{documented(port, place.port, place.certs)} }}"
    )
    process = subprocess.Popen([str(NGINX), "-p", str(home), "-c", str(home / "nginx.conf")])
    yield port
    process.terminate()
    process.wait(30)


def status(port: int, ca: Path, path: str, body: bytes = b"") -> int:
    """Return what a POST to a raw path, not made nicer by any client, is answered with."""
    line = http.client.HTTPSConnection(
        "localhost", port, context=ssl.create_default_context(cafile=str(ca)), timeout=30
    )
    line.request("POST", path, body=body, headers={"content-type": "application/protobuf"})
    code = line.getresponse().status
    line.close()
    return code


def test_a_node_takes_part_through_nginx_and_control_and_runtime_are_not_there(
    place: Any, proxy: int, tmp_path: Path
) -> None:
    ca = place.certs / CA_FILE
    serve = place.serve("--nodes", 1, "--rounds", 3)
    serve.wait_for("nodes join at port")
    wait_until_healthy(f"localhost:{proxy}", ca, 30)
    with Control(f"localhost:{place.port}", ca) as direct:
        assert direct.registered_keys()
    with Control(f"localhost:{proxy}", ca) as through, pytest.raises(httpx.HTTPStatusError, match="404"):
        through.registered_keys()
    assert status(place.port, ca, "/v1/runtime/acquire-task") not in (404, 405)  # is there, but for nginx
    around = (
        "/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/../control/list-nodes",
        "//v1/control/list-nodes", "/v1/fleet/..%2fcontrol/list-nodes", "/v1/fleet/%2e%2e/runtime/acquire-task",
        "/v1/fleet/..;/control/list-nodes",
        "/v1/control/list-nodes/../../fleet/", "/V1/control/list-nodes", "/docs", "/openapi.json", "/",
    )  # fmt: skip
    assert {path: status(proxy, ca, path) for path in around} == dict.fromkeys(around, 404)
    assert status(proxy, ca, "/v1/fleet/pull-messages") == 401  # by the server: no key
    assert status(proxy, ca, "/v1/fleet/push-object", bytes(3_000_000)) != 413
    place.join(0, "--server", f"localhost:{proxy}", "--partitions", 1)
    serve.wait_for("round 1 of 3: asked .* admitted 1 replies")
    serve.kill()
    again = place.serve("--nodes", 1, "--rounds", 3)  # the node stays, behind an nginx that says 502 meanwhile
    again.wait_for("round 3 of 3: asked .* admitted 1 replies")
    assert again.wait() == 0, again.text
    asked = (tmp_path / "nginx" / "access.log").read_text()
    assert '"POST /v1/fleet/push-object HTTP/1.1" 200' in asked
