"""Does the device recommend what the simulation's model recommends? Asked of the bundle in a fresh process.

The other process imports nothing but ``ownlet.device``: it records each sampled history with a ``Personalizer``, as an
app would, and asks for recommendations.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.context import context_rows, pad_context
from ownlet.shared.errors import BundleError
from ownlet.shared.interactions import History, pad_histories
from ownlet.shared.lora import applied
from ownlet.shared.model import SASRec
from ownlet.simulations.setting import Setting

__all__ = ["Agreement", "compare_with_device"]

_PROGRAM = """
import json, sys, pathlib
from ownlet.device import Personalizer
request = json.load(sys.stdin)
answers = []
for number, history in enumerate(request["histories"]):
    state = pathlib.Path(request["state"]) / str(number)
    with Personalizer.open(pathlib.Path(request["bundle"]), state) as personalizer:
        for second, item in enumerate(history):
            personalizer.record(item, second)
        answers.append([found.item for found in personalizer.recommend(request["k"], timestamp=len(history))])
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """On how many of the asked devices the bundle and the model gave the same list, in the same order."""

    asked: int
    equal: int


def compare_with_device(
    bundle: Path, model: SASRec, spec: AdapterSpec, vector: Vector, setting: Setting, *, devices: int = 20, k: int = 10
) -> Agreement:
    """Compare lists of recommendations for a sample of devices.

    Args:
        bundle: the exported folder.
        model: the base, prepared with ``attach``.
        spec: the adapter's spec.
        vector: (P,) the adapter in the bundle.
        setting: whose devices' histories are asked about.
        devices: how many, drawn evenly over the population.
        k: length of a list.

    Raises:
        BundleError: the other process failed.
    """
    chosen = np.linspace(0, len(setting.test) - 1, min(devices, len(setting.test))).astype(int)
    histories = [setting.test.histories[device] for device in chosen]
    ids = [[setting.data.items[item - 1].id for item in history] for history in histories]
    with tempfile.TemporaryDirectory() as state:
        request = json.dumps({"histories": ids, "bundle": str(bundle.resolve()), "state": state, "k": k})
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], input=request, capture_output=True, text=True, cwd=state, check=False
        )
    if done.returncode != 0:
        raise BundleError(f"a fresh process must be able to recommend from {bundle}, got: {done.stderr[-2000:]}")
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    expected = [[setting.data.items[item - 1].id for item in _top(model, spec, vector, h, k)] for h in histories]
    return Agreement(asked=len(chosen), equal=sum(a == b for a, b in zip(found, expected, strict=True)))


@torch.no_grad()
def _top(model: SASRec, spec: AdapterSpec, vector: Vector, history: History, k: int) -> list[int]:
    items, lengths = pad_histories([history], model.config.max_length)
    with applied(model, spec.split(torch.from_numpy(vector))):
        context = None
        if model.config.context:  # the other process records one event per second, and asks a second later
            seconds = np.arange(len(history), dtype=np.float64)
            rows = context_rows(model.config.context, seconds + 1, seconds)
            context = torch.from_numpy(pad_context([rows], model.config.max_length, rows.shape[1]))
        scores = model.score_last(torch.from_numpy(items), torch.from_numpy(lengths), context)[0]  # (num_items + 1,)
    scores[torch.from_numpy(history)] = -torch.inf
    scores[0] = -torch.inf
    return [int(item) for item in scores.topk(k).indices]
