"""The status page of a run and its metrics, served by the process that runs the rounds.

    status = RunStatus(config, "my run")
    with serve_status(status, port=9464, registry=Path("registry")) as address:
        run_rounds(..., on_round=status.on_round)

``/`` is a page that needs no network, ``/metrics`` is for Prometheus; everything else is not found. It listens on the
loopback address unless told otherwise: whoever can reach it can read it, and there is nothing that it can be told.
``ownlet simulate`` and ``ownlet serve`` use it (``--status-port``); another process that runs rounds needs these lines
only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from ownlet.server.metrics import CONTENT_TYPE, RunStatus, Snapshot, exposition
from ownlet.server.registry import Registry
from ownlet.server.rollout import Rollout
from ownlet.shared.errors import ConfigError, OwnletError
from ownlet.shared.templates import page_template

__all__ = ["STATUS_HOST", "Chart", "chart_of", "serve_status", "status_page"]

STATUS_HOST = "127.0.0.1"
"""Whoever can reach page and metrics can read them."""

_WIDTH, _HEIGHT = 320.0, 110.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line over rounds, ready to be drawn.

    Args:
        points: of an SVG polyline in a box of 320 by 110.
        end: x and y of the last point.
        first: number of the first round.
        last: of the last one.
        low: the smallest value.
        high: the largest.
    """

    points: str
    end: tuple[float, float]
    first: int
    last: int
    low: float
    high: float


def chart_of(rounds: Sequence[int], values: Sequence[float]) -> Chart | None:
    """Return a chart of finite values over rounds; None where there are fewer than two."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    across, up = max(rounds[-1] - rounds[0], 1), (high - low) or 1.0
    placed = [
        (round(_WIDTH * (number - rounds[0]) / across, 1), round(_HEIGHT * (1 - (value - low) / up), 1))
        for number, value in zip(rounds, values, strict=True)
    ]
    points = " ".join(f"{x},{y}" for x, y in placed)
    return Chart(points=points, end=placed[-1], first=rounds[0], last=rounds[-1], low=low, high=high)


def status_page(now: Snapshot, registry: Rollout | str | None) -> str:
    """Return the page.

    Args:
        now: of the run.
        registry: its state, why it cannot be read, or None where none is shown.
    """
    spent = [(one.round, one.epsilon) for one in now.rounds if one.epsilon < float("inf")]
    judged = [(one.round, one.quality) for one in now.rounds if one.quality is not None]
    last = now.last
    return page_template("ownlet.server", "status.html.jinja", time=_time).render(
        now=now,
        last=last,
        done=0.0 if last is None else min(100.0, 100 * last.round / now.num_rounds),
        charts=[
            ("ε spent", chart_of(*_columns(spent)) if now.unit != "none" else None),
            ("NDCG@10 on public users", chart_of(*_columns(judged))),
        ],
        seconds=sum(one.seconds for one in now.rounds) / len(now.rounds) if now.rounds else None,
        resident=psutil.Process().memory_info().rss / 2**20,
        rollout=registry if isinstance(registry, Rollout) else None,
        trouble=registry if isinstance(registry, str) else None,
    )


@contextmanager
def serve_status(
    status: RunStatus, *, port: int, host: str = STATUS_HOST, registry: Path | None = None
) -> Iterator[str]:
    """Serve page and metrics from a thread for as long as the context lasts.

    Args:
        status: of the run.
        port: 0 takes a free one.
        host: the address to listen on.
        registry: a registry's folder to show, too.

    Yields:
        the page's address.

    Raises:
        ConfigError: the port cannot be had.
    """

    class Handler(_Handler):
        run, registry_folder = status, registry

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"status port must be free, got {host}:{port}: {error}") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of two paths; ``http.server`` refuses other methods by itself."""

    run: RunStatus
    registry_folder: Path | None
    timeout = 10.0  # a client that sends nothing holds a thread no longer
    server_version, sys_version = "ownlet", ""

    def do_GET(self) -> None:
        """Send the page, the metrics, or 404."""
        path = self.path.partition("?")[0]
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", status_page(self.run.now(), self._registry()))
        elif path == "/metrics":
            self._send(HTTPStatus.OK, CONTENT_TYPE, exposition(self.run.now()))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", "not found\n")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: requests are no news of the run."""

    def _registry(self) -> Rollout | str | None:
        if self.registry_folder is None:
            return None
        try:
            return Registry(self.registry_folder).rollout()
        except OwnletError as error:
            return str(error)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _columns(rows: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [number for number, _ in rows], [value for _, value in rows]


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
