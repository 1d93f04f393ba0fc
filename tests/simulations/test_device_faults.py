"""Faults are really done, nothing is lost, and what is lost would be seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ownlet.device import Personalizer
from ownlet.simulations.benchmarks import device_faults


def run(bundle: Path, *options: str) -> dict[str, dict[str, int]]:
    """Run the faults in a process of their own, which forks: pytest's has threads."""
    command = [sys.executable, "-m", "ownlet.simulations.benchmarks.device_faults", "--bundle", str(bundle), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lost" not in done.stdout, done.stdout
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_device_loses_nothing_when_it_is_killed(tiny_bundle: Path) -> None:
    assert run(tiny_bundle, "--kills", "10", "--only", "kill") == {"kill": {"trials": 10, "losses": 0}}


def test_damaged_bundles_and_bad_input_are_refused(tiny_bundle: Path) -> None:
    assert run(tiny_bundle, "--kills", "24", "--only", "damaged_bundle")["damaged_bundle"]["losses"] == 0
    assert run(tiny_bundle, "--kills", "1", "--only", "bad_input")["bad_input"]["losses"] == 0


@pytest.mark.slow
def test_a_device_survives_every_fault_many_times(tiny_bundle: Path) -> None:
    found = run(tiny_bundle, "--kills", "200")
    assert {fault["losses"] for fault in found.values()} == {0}
    assert found["kill"]["trials"] == found["damaged_bundle"]["trials"] == 200
    if not found["full_disk"]["trials"]:
        pytest.skip("a small disk cannot be mounted here; all other faults were done")


def test_what_is_missing_is_seen(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from ownlet.simulations.benchmarks import device_faults as faults\n"
        f"bundle, state = Path({str(tiny_bundle)!r}), Path({str(tmp_path / 'state')!r})\n"
        "told = faults._in_child(lambda say: faults._use(bundle, state, say, first=0, count=8))\n"
        "print(faults._lost(bundle, state, told))\n"
        "for lie in ('event 99', 'version 99', 'update ' + '0' * 64):\n"
        "    print(faults._lost(bundle, state, [*told, lie]))\n"
        "(state / 'outbox').unlink()\n"
        "(state / 'ledger.jsonl').write_text((state / 'ledger.jsonl').read_text()[1:])\n"
        "print(faults._lost(bundle, state, told))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    verdicts = [line for line in done.stdout.splitlines() if not line.startswith("lost")]
    assert verdicts == ["False", "True", "True", "True", "True"]


def test_a_full_disk_is_tried_where_one_can_be_mounted(tiny_bundle: Path, tmp_path: Path) -> None:
    with device_faults._small_disk(tmp_path / "disk", size=2**20) as disk:
        if disk is None:
            pytest.skip("a small disk cannot be mounted here")
        with Personalizer.open(tiny_bundle, disk / "state") as personalizer:
            assert personalizer.status().events == 0
    assert run(tiny_bundle, "--kills", "8", "--only", "full_disk")["full_disk"] == {"trials": 8, "losses": 0}
