"""Workers outlive neither their pool nor a parent that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ownlet.simulations.progress import Progress, Silent
from ownlet.simulations.workers import worker_pool

pytestmark = pytest.mark.slow  # every worker imports torch

PARENT = """
import sys
sys.path[:0] = {path!r}
from test_workers import sleep_and_tell
from ownlet.simulations.progress import Silent
from ownlet.simulations.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(1, Silent()) as pool:
        for number in range(100):
            pool.submit(sleep_and_tell, {folder!r}, number)
"""


def sleep_and_tell(folder: str, number: int, progress: Progress) -> int:
    Path(folder, f"{os.getpid()}-{number}").touch()
    time.sleep(0.2 if folder else 0)
    return number


def test_a_pool_returns_results_in_the_order_of_its_calls(tmp_path):
    with worker_pool(2, Silent()) as pool:
        futures = [pool.submit(sleep_and_tell, str(tmp_path), number) for number in range(4)]
        assert [future.result() for future in futures] == [0, 1, 2, 3]


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    (tmp_path / "told").mkdir()
    script.write_text(PARENT.format(path=[str(Path(__file__).parent)], folder=str(tmp_path / "told")))
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (told := sorted((tmp_path / "told").iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = psutil.Process(int(told[0].name.split("-")[0]))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    worker.wait(timeout=60)  # raises where it goes on
    assert len(list((tmp_path / "told").iterdir())) < 100
