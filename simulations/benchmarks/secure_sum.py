"""What secure aggregation costs: time and bytes against the number of clients, beside the open round.

Every client is a Flower node with one user, and its delta is made up, so that nothing but the aggregation is measured.
Both ways go through the real apps, in process, with Flower's serialisation. Seconds are CPU time. Bytes are those of
message contents, without Flower's and the network's own. Prints a table and writes ``secure_sum.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.client import make_client_app
from ownlet.server.ask import Answers, ask
from ownlet.server.checkpoint import ServerState
from ownlet.server.nodes import Nodes
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.noise import NoiseSource
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.secure_sum.terms import choose_terms
from ownlet.shared.windows import Windows
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.grid import Answer, Call, InProcessGrid

__all__ = ["Row", "main", "measure"]

_CLIP = 0.3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One round.

    Args:
        clients: nodes, of one user each.
        dropped: of these, how many fail when they are asked for the masked vector.
        neighbours: of each client; 0 in an open round.
        client_seconds: CPU time of one client, Flower's serialisation of its messages included.
        server_seconds: CPU time of the server.
        up_bytes, down_bytes: per client.
    """

    clients: int
    dropped: int
    neighbours: int
    client_seconds: float
    server_seconds: float
    up_bytes: int
    down_bytes: int


class _MadeUp:
    """An engine whose users all move to a point of norm C around the global adapter."""

    def __init__(self, numbers: int) -> None:
        layer = LayerShape(name="layer", in_features=1, out_features=numbers)
        self.spec = AdapterSpec(layers=(layer,), rank=1, alpha=1.0, base_hash="b" * 64)

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        trained = np.repeat(vector[None], len(users), axis=0)
        trained[:, self.spec.trainable] += np.float32(_CLIP / self.spec.num_trainable**0.5)
        return trained


class _Host:
    """A node's users, without events."""

    def __init__(self, numbers: int) -> None:
        self.engine = _MadeUp(numbers)
        self.base_hash = self.engine.spec.base_hash

    def windows(self, users: Sequence[int]) -> list[Windows]:
        empty = np.zeros((0, 2), np.int64)
        return [Windows(history=empty, target=empty, valid=np.zeros((0, 2), np.float32)) for _ in users]


class _MeasuredGrid(InProcessGrid):
    """Counts bytes and the clients' time; lets some nodes fail when they are to send their vector."""

    def __init__(self, host: _Host, num_nodes: int, dropped: int) -> None:
        super().__init__(make_client_app(lambda context: host, simulated=True), num_nodes)
        self.up_bytes, self.down_bytes, self.client_seconds, self._dropped = 0, 0, 0.0, dropped

    def _send(self, partition: int, call: Call) -> None:
        super()._send(partition, call)
        if "query.place" not in call.message_type:
            self.down_bytes += len(call.content)

    def _answer(self, partition: int, call: Call) -> Answer:
        started = time.process_time()
        answer = super()._answer(partition, call)
        if "query.place" in call.message_type:
            return answer
        self.client_seconds += time.process_time() - started
        if partition < self._dropped and call.message_type == "train.secure_masked":
            answer = Answer(error_code=2)
        self.up_bytes += len(answer.content)
        return answer


def measure(clients: int, numbers: int, *, secure: bool, dropped: int = 0) -> Row:
    """Run one round and return what it cost.

    Args:
        clients: nodes with one user each.
        numbers: in a delta.
        secure: whether the server may see only the sum.
        dropped: clients that fail when they are asked for their masked vector.
    """
    host = _Host(numbers)
    config = FederationConfig(cohort_rate=1.0, clip_norm=_CLIP, secure=SecureConfig(enabled=secure))
    grid = _MeasuredGrid(host, clients, dropped)
    nodes, spec = Nodes(grid, 60.0), host.engine.spec
    state = ServerState.start(config, spec, np.zeros(spec.size, np.float32), clients)
    nodes.connected()
    grid.client_seconds = 0.0
    started = time.process_time()
    answers = ask(nodes, config, spec, state, np.arange(clients), 1, clients)
    seconds = time.process_time() - started
    _check(answers, clients - dropped, config)
    tolerances = config.secure
    terms = choose_terms(
        clients, dropout=tolerances.dropout, colluding=tolerances.colluding, size=numbers, bits=tolerances.bits
    )
    return Row(
        clients=clients,
        dropped=dropped,
        neighbours=terms.degree if secure else 0,
        client_seconds=grid.client_seconds / clients,
        server_seconds=seconds - grid.client_seconds,
        up_bytes=grid.up_bytes // clients,
        down_bytes=grid.down_bytes // clients,
    )


def _check(answers: Answers, counted: int, config: FederationConfig) -> None:
    """Stop where a sum is wrong: its cost would be worth nothing."""
    assert answers.total is not None
    assert answers.num_admitted == counted
    exact = counted * _CLIP / len(answers.total) ** 0.5
    noise = (answers.noise_multiplier or 0.0) * config.clip_norm
    assert abs(float(answers.total.mean()) - exact) < 1e-4 * exact + 10 * noise / len(answers.total) ** 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="8,32,128", help="numbers of clients, with commas")
    parser.add_argument("--numbers", type=int, default=7168, help="in a delta; 7168 is rank 8 on four layers")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/secure_sum.json"))
    given = parser.parse_args(arguments)
    logging.getLogger("ownlet").setLevel(logging.ERROR)  # the clients that fail do so on purpose
    rows = []
    for clients in map(int, given.clients.split(",")):
        rows.append(measure(clients, given.numbers, secure=False))
        rows += [measure(clients, given.numbers, secure=True, dropped=lost) for lost in (0, clients // 10)]
    print(
        "| clients | dropped | neighbours | seconds of a client | of the server | bytes up | bytes down |\n|"
        + "---|" * 7
    )
    for row in rows:
        way = row.neighbours or "open"
        times = f"{row.client_seconds:.4f} | {row.server_seconds:.2f}"
        print(f"| {row.clients} | {row.dropped} | {way} | {times} | {row.up_bytes:,} | {row.down_bytes:,} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"numbers": given.numbers, "config": asdict(replace(SecureConfig(), enabled=True))}
    given.out.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
