import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ownlet.shared.flower_process import new_lines, start_flower

PARENT = """
import sys, time
from pathlib import Path
from ownlet.shared.flower_process import start_flower
home = Path(sys.argv[1])
arguments = ["--insecure", "--runtime-api-address", "127.0.0.1:1"]
child = start_flower("flower-superexec", arguments, home=home, log=home / "log")
print(child.pid, flush=True)
time.sleep(600)
"""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True


def test_a_program_runs_quietly_in_a_home_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = start_flower("flwr", ["--version"], home=home, log=tmp_path / "log")
    assert process.wait(120) == 0
    told: list[str] = []
    assert new_lines(tmp_path / "log", 0, told.append) == (tmp_path / "log").stat().st_size
    assert told[-1].startswith("Flower version: 1.41")
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_program_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 90
    while _is_alive(child):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)


def test_new_lines_are_told_once_whole_and_without_colours(tmp_path: Path) -> None:
    log, told = tmp_path / "log", []
    assert new_lines(log, 0, told.append) == 0
    log.write_bytes(b"\x1b[92mINFO\x1b[0m: one\ntw")
    at = new_lines(log, 0, told.append)
    assert told == ["INFO: one"]
    log.write_bytes(log.read_bytes() + b"o\n")
    assert new_lines(log, at, told.append) == log.stat().st_size
    assert told == ["INFO: one", "two"]
