"""Servers and nodes as a user starts them: real processes of ``ownlet serve`` and ``ownlet join`` on this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ownlet.server.certificates import CA_FILE, NODES_FOLDER, make_certificates, node_name
from ownlet.server.deployment import ServeFolder
from ownlet.shared.config import ModelConfig
from ownlet.shared.flower_process import free_port
from ownlet.shared.model import SASRec
from ownlet.simulations.pretrain import save_base
from ownlet.simulations.setting import DataConfig, load_interactions

NUM_NODES = 4
LONG_SECONDS = 600.0  # a process of Flower per message, and machines that do other things, too


@dataclass(frozen=True, kw_only=True)
class Program:
    """A running ``ownlet``, and what it has printed."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = LONG_SECONDS, start: int = 0) -> re.Match[str]:
        """Wait until it prints something, behind the first ``start`` characters."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            if found := re.search(pattern, self.text[start:]):
                return found
            assert not ended, f"ended before it said {pattern!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"did not say {pattern!r} in time:\n{self.text}"
            time.sleep(0.2)

    def wait(self, seconds: float = LONG_SECONDS) -> int:
        """Wait until it ends; return its exit code."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder in which servers and nodes are started."""

    root: Path
    data: Path
    base: Path
    port: int
    certs: Path
    programs: list[Program] = field(default_factory=list)

    @property
    def run(self) -> ServeFolder:
        return ServeFolder(self.root / "server")

    def start(self, name: str, *arguments: object) -> Program:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        log = self.root / f"{name}-{len(self.programs)}.log"
        command = [sys.executable, "-m", "ownlet.cli", *(str(argument) for argument in arguments)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        program = Program(process=process, log=log)
        self.programs.append(program)
        return program

    def serve(self, *more: object) -> Program:
        return self.start(
            "serve", "serve", "--base", self.base, "--data", self.data, "--core", 0, "--certs", self.certs,
            "--state", self.run.root, "--port", self.port, "--nodes", NUM_NODES, "--cohort-rate", 0.5,
            "--noise-multiplier", 1, "--set", "federation.seed=5", "--simulated", *more,
        )  # fmt: skip

    def join(self, number: int, *more: object, key: Path | None = None, certs: Path | None = None) -> Program:
        key = key or self.certs / NODES_FOLDER / node_name(number)
        return self.start(
            f"node-{number}", "join", "--server", f"localhost:{self.port}", "--certs", certs or self.certs,
            "--key", key, "--state", self.root / f"state-{number}", "--partition", number, "--partitions", NUM_NODES,
            "--base", self.base, "--data", self.data, "--core", 0, "--simulated", "--budget", "inf", *more,
        )  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions of 80 users in which every item is followed by its neighbour most of the time."""
    rng = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(80):
        item = int(rng.integers(20))
        for second in range(10):
            lines.append(f"u{user},i{item},{second}")
            item = (item + 1) % 20 if rng.random() < 0.8 else int(rng.integers(20))
    path = tmp_path_factory.mktemp("data") / "events.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def base(data: Path) -> Path:
    """A base of the data's catalogue whose output is all but random: what is trained here is the federation."""
    import torch

    items = load_interactions(DataConfig(path=data, core=0)).items
    with torch.random.fork_rng():
        torch.manual_seed(3)
        content = torch.cat([torch.zeros(1, 6), torch.randn(len(items), 6)])
        model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=20), content).eval()
    path = data.parent / "base.pt"
    save_base(path, model, items)
    return path


@pytest.fixture
def place(data: Path, base: Path, tmp_path: Path) -> Iterator[Place]:
    """A place with certificates; whatever was started there is ended."""
    certs = tmp_path / "certs"
    make_certificates(certs, hosts=[], num_nodes=NUM_NODES)
    found = Place(root=tmp_path, data=data, base=base, port=free_port(), certs=certs)
    yield found
    for program in found.programs:
        if program.process.poll() is None:
            program.process.send_signal(signal.SIGINT)
    for program in found.programs:
        try:
            program.process.wait(30)
        except subprocess.TimeoutExpired:
            program.kill()


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    """A CA that has nothing to do with the server's."""
    make_certificates(tmp_path / "other", hosts=[], num_nodes=1)
    assert (tmp_path / "other" / CA_FILE).exists()
    return tmp_path / "other"
