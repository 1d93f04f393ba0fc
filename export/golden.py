"""Golden vectors: what a port of the device to another language must compute, written down number by number.

Two files. ``golden.bpte`` is an ExecuTorch BundledProgram: the program with inputs and expected outputs of every
method, which ExecuTorch's own runners check without any code of ours
(https://docs.pytorch.org/executorch/stable/bundled-io.html). ``golden.safetensors`` has the same cases by name, and
beside them what stands around the program: the random numbers of a key, and a whole training.

    METHOD/CASE/in/ARGUMENT, METHOD/CASE/out/RESULT   the cases of every method
    noise/key, noise/mask, noise/gaussian             ``shared.noise.AesNoise`` of a key of 32 bytes
    training/events, training/vector                  a history, and the adapter that a plan makes of the bundle's own
    training/times, training/context                  only where the base reads context: unix seconds of the events, and
                                                      the rows of each one's moment; columns are unknown in it

The metadata holds tolerances, the program's hash, and the numbers that belong to noise and training as JSON.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.export.frozen import FrozenBase
from ownlet.export.programs import Method, ProgramShape, build_methods
from ownlet.export.verify import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, random_arguments
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, load_adapter
from ownlet.shared.candidates import CandidateSampler
from ownlet.shared.config import Plan
from ownlet.shared.context import context_rows
from ownlet.shared.errors import BundleError
from ownlet.shared.manifest import ADAPTER_FILE, PROGRAM_FILE, Manifest, read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.ranking import RankingHead
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack
from ownlet.shared.windows import cut_windows

__all__ = ["BUNDLED_FILE", "GOLDEN_FILE", "golden_training", "write_golden"]

BUNDLED_FILE = "golden.bpte"
GOLDEN_FILE = "golden.safetensors"

_KEY = bytes(range(32))
_COINS, _RATE, _NORMALS, _STD = 64, 0.25, 256, 0.5
_PLAN = Plan(
    steps=5,
    learning_rate=0.1,
    sample_rate=0.5,
    expected_batch=2.0,
    clip_norm=0.2,
    noise_multiplier=1.0,
    weight_decay=0.2,
)
_CASES = 4

Case = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def write_golden(
    bundle: Path, folder: Path, model: SASRec, *, seed: int = 0, ranking: RankingHead | None = None
) -> None:
    """Write both files for a bundle; what is expected is what eager PyTorch computes, never the program itself.

    Args:
        bundle: what ``write_bundle`` wrote.
        folder: where the files go; made if it is missing.
        model: the base that the bundle was written from, prepared with ``attach``.
        seed: of the random inputs.
        ranking: the ranking head that the bundle was written with.

    Raises:
        BundleError: the bundle is incomplete or altered, or has a ranking stage and no head was given.
        AdapterError: its adapter does not belong to its base.
    """
    manifest = read_manifest(bundle)
    spec, vector, _ = load_adapter(bundle / ADAPTER_FILE, base_hash=hash_state(model.state_dict()))
    base = FrozenBase.of(model)
    shape = ProgramShape(
        windows=manifest.windows,
        batches=manifest.batches,
        capacity=manifest.capacity,
        objective=manifest.objective,
        num_negatives=manifest.num_negatives,
    )
    methods = build_methods(base, spec, shape, ranking)
    if {method.name for method in methods} != {method.name for method in manifest.methods}:
        raise BundleError(f"golden vectors must be of all methods {[m.name for m in manifest.methods]}, got no head")
    generator = torch.Generator().manual_seed(seed)
    cases = {m.name: [_case(m, base, spec, generator, trial) for trial in range(_CASES)] for m in methods}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / BUNDLED_FILE, _bundled(bundle / PROGRAM_FILE, cases))
    tensors = {**_named(methods, cases), **_noise(), **_training(base, spec, vector, manifest)}
    write_atomic(folder / GOLDEN_FILE, pack(tensors, _words(manifest)))


def golden_training(
    base: SASRec,
    spec: AdapterSpec,
    vector: Vector,
    events: NDArray[np.int64],
    manifest: Manifest,
    context: NDArray[np.int64] | None = None,
) -> Vector:
    """Return the adapter (P,) that the golden plan and key make of ``vector``, step by step in eager PyTorch.

    Each step draws one coin per window, the candidates of every window where the program takes any, uniformly, and one
    normal per trained number, each from its own stream of the key. ``context`` is (num_events, fields), the moment of
    each event, where the base reads any.
    """
    windows, noise = cut_windows(events, manifest.windows, context), AesNoise(_KEY)
    plan = _plan(manifest)
    sampler = CandidateSampler(plan, base.num_items)
    rows = [torch.from_numpy(array) for array in (windows.history, windows.target, windows.valid)]
    moments = [] if windows.context is None else [torch.from_numpy(windows.context)]
    clip, rate = torch.tensor(_PLAN.clip_norm), torch.tensor(_PLAN.learning_rate / _PLAN.expected_batch)
    current = torch.from_numpy(vector)
    for _ in range(_PLAN.steps):
        mask = noise.poisson_mask(len(windows), _PLAN.sample_rate)
        chosen, candidates = torch.from_numpy(mask), None
        if plan.num_negatives:
            candidates = sampler.candidates(sampler.draw(noise, windows, mask)[mask])
        drawn = torch.from_numpy(noise.gaussian(spec.num_trainable, _PLAN.noise_std))
        history, target, valid = (row[chosen] for row in rows)
        known = (rows[chosen] for rows in moments)
        stepped, _, _ = dp_sgd_step(
            base, spec, current, history, target, valid, drawn, clip, rate, *known, candidates=candidates
        )
        stepped[spec.trainable] -= _PLAN.decay * current[spec.trainable]
        current = stepped
    return current.numpy()


def _plan(manifest: Manifest) -> Plan:
    return replace(_PLAN, objective=manifest.objective, num_negatives=manifest.num_negatives)


def _case(method: Method, base: FrozenBase, spec: AdapterSpec, generator: torch.Generator, trial: int) -> Case:
    arguments = random_arguments(method, base, spec, generator, trial)
    with torch.no_grad():
        return arguments, tuple(result.detach() for result in method.reference(*arguments))


def _bundled(program: Path, cases: dict[str, list[Case]]) -> bytes:
    with warnings.catch_warnings():  # of their own deprecations, at import and at use
        warnings.simplefilter("ignore")
        return _serialised(program, cases)


def _serialised(program: Path, cases: dict[str, list[Case]]) -> bytes:
    from executorch.devtools import BundledProgram
    from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite
    from executorch.devtools.bundled_program.serialize import serialize_from_bundled_program_to_flatbuffer

    suites = [
        MethodTestSuite(
            method_name=name,
            test_cases=[MethodTestCase(inputs=list(given), expected_outputs=list(wanted)) for given, wanted in pairs],
        )
        for name, pairs in cases.items()
    ]
    bundled = BundledProgram(None, method_test_suites=suites, pte_file_path=str(program))
    return bytes(serialize_from_bundled_program_to_flatbuffer(bundled))


def _named(methods: Sequence[Method], cases: dict[str, list[Case]]) -> dict[str, NDArray[Any]]:
    tensors = {}
    for method in methods:
        for number, (given, wanted) in enumerate(cases[method.name]):
            for side, names, values in (("in", method.arguments, given), ("out", method.results, wanted)):
                for name, value in zip(names, values, strict=True):
                    tensors[f"{method.name}/{number}/{side}/{name}"] = value.contiguous().numpy()
    return tensors


def _noise() -> dict[str, NDArray[Any]]:
    source = AesNoise(_KEY)
    mask = source.poisson_mask(_COINS, _RATE).astype(np.uint8)
    key = np.frombuffer(_KEY, np.uint8)
    return {"noise/key": key, "noise/mask": mask, "noise/gaussian": source.gaussian(_NORMALS, _STD)}


def _training(base: FrozenBase, spec: AdapterSpec, vector: Vector, manifest: Manifest) -> dict[str, NDArray[Any]]:
    events = 1 + np.arange(3 * manifest.windows.window_length + 1, dtype=np.int64) * 7 % base.num_items
    if not manifest.context:
        return {"training/events": events, "training/vector": golden_training(base, spec, vector, events, manifest)}
    times = 1_700_000_000.0 + np.cumsum(7.0 ** (np.arange(len(events)) % 8))  # gaps from a second to nine days
    context = context_rows(manifest.context, times, np.concatenate([[np.nan], times[:-1]]))
    trained = golden_training(base, spec, vector, events, manifest, context)
    return {
        "training/events": events,
        "training/times": times,
        "training/context": context,
        "training/vector": trained,
    }


def _words(manifest: Manifest) -> dict[str, str]:
    return {
        "format": "ownlet-golden-1",
        "program_sha256": manifest.files[PROGRAM_FILE].sha256,
        "rtol": repr(RELATIVE_TOLERANCE),
        "atol": repr(ABSOLUTE_TOLERANCE),
        "noise": json.dumps({"rate": _RATE, "std": _STD}),
        "plan": json.dumps(asdict(_plan(manifest))),
    }
