"""LoRA adapters in the form that the library PEFT reads and writes: JSON beside safetensors, without the library.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, whose tensors are named
``base_model.model.LAYER.lora_A.weight`` (rank, in) and ``...lora_B.weight`` (out, rank); the low-rank term is scaled by
``lora_alpha / r``, as ours is (https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint).

PEFT knows many variants of LoRA. What reads here is plain LoRA alone: a field that could change what a layer computes
must be empty, so a variant that a later PEFT brings is refused, not misread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector, hash_state
from ownlet.shared.errors import AdapterError
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "read_peft", "write_peft"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
_BASE_HASH = "ownlet_base_hash"

_READ = {"peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "bias", "init_lora_weights"}
_WITHOUT_EFFECT = {  # on what an adapted layer computes when it serves
    *("arrow_config", "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version"),
    *("megatron_core", "qalora_group_size", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform"),  # they choose layers, and the tensors name those
}
_STARTS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def write_peft(folder: Path, spec: AdapterSpec, vector: Vector) -> None:
    """Write an adapter as PEFT does.

    Each file is whole or absent, and the configuration comes last: a folder that a crash left half-way has none, so
    nobody reads old words beside new numbers.

    Args:
        folder: made if it is missing.
        spec: the adapter's spec.
        vector: (P,) the adapter.

    Raises:
        AdapterError: the adapter is not LoRA, or the vector does not fit the spec; nothing is written.
        OSError: the disk refused.
    """
    if spec.form != "lora":
        raise AdapterError(f"form must be lora for PEFT's files, got form={spec.form!r}")
    weights = spec.split(torch.from_numpy(spec.check(vector)))
    tensors = {
        f"{_PREFIX}{name}.lora_{part}.weight": tensor.contiguous().numpy()
        for name, pair in weights.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "target_modules": _exactly(spec.layers),
    }
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    write_atomic(folder / WEIGHTS_FILE, pack(tensors, {"format": "pt", _BASE_HASH: spec.base_hash}))
    write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")


def read_peft(
    folder: Path, model: nn.Module, *, base_hash: str | None = None, train_a: bool = False
) -> tuple[AdapterSpec, Vector]:
    """Read a LoRA adapter that PEFT or ``write_peft`` wrote for the linear layers of a model.

    Rank-stabilised LoRA (scale alpha / sqrt(r), https://arxiv.org/abs/2312.03732) is read as plain LoRA of the alpha
    that gives the same scale. Tensors of half precision become float32.

    Args:
        folder: where the two files are.
        model: the base, before or after ``attach``; its linear layers are all that an adapter may change.
        base_hash: of the base, ``adapter.hash_state`` of its state; computed where it is not given.
        train_a: whether A is to be trained on; PEFT's files do not say.

    Returns:
        (spec, vector (P,)); the layers are in the model's own order.

    Raises:
        AdapterError: a file is missing, truncated or unreadable; it is not plain LoRA with one rank and one alpha; it
            was written by ownlet for another base; or its layers or shapes are not the model's.
    """
    config = _read_config(folder / CONFIG_FILE)
    rank, alpha = _rank_and_alpha(config)
    tensors, written_for = _read_tensors(folder / WEIGHTS_FILE)
    base_hash = hash_state(model.state_dict()) if base_hash is None else base_hash
    if written_for not in (None, base_hash):
        raise AdapterError(f"adapter must belong to base {base_hash[:12]}, got base {written_for[:12]} in {folder}")
    pairs = _pairs(tensors)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    _check_layers(pairs, linears, config)
    layers = tuple(
        LayerShape(name=name, in_features=linear.in_features, out_features=linear.out_features)
        for name, linear in linears.items()
        if name in pairs
    )
    spec = AdapterSpec(layers=layers, rank=rank, alpha=alpha, base_hash=base_hash, train_a=train_a)
    _check_shapes(spec, pairs)
    vector = spec.join({name: (parts["A"], parts["B"]) for name, parts in pairs.items()})
    return spec, spec.check(vector.numpy(), what=f"adapter in {folder}")


def _exactly(layers: Sequence[LayerShape]) -> str:
    """Return the pattern of these names alone; PEFT would take a plain name for the end of longer ones, too."""
    return "|".join(re.escape(layer.name) for layer in layers)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AdapterError(f"PEFT configuration must be readable JSON, got {path}: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"PEFT configuration must be a JSON object, got {type(config).__name__} in {path}")
    return config


def _rank_and_alpha(config: Mapping[str, Any]) -> tuple[int, float]:
    """Return the rank and the alpha of plain LoRA that computes the same.

    Raises:
        AdapterError: anything but plain LoRA with one rank and one alpha.
    """
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type must be LORA, got peft_type={config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"bias must be none, got bias={config['bias']!r}")
    start = config.get("init_lora_weights")
    if start not in _STARTS_THAT_KEEP_THE_BASE:
        raise AdapterError(f"init_lora_weights must be one that leaves the base as it is, got {start!r}")
    for name, value in config.items():
        if value and name not in _READ | _WITHOUT_EFFECT:
            raise AdapterError(f"{name} must be empty for plain LoRA with one rank and one alpha, got {name}={value!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise AdapterError(f"r must be a number from 1, got r={rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise AdapterError(f"lora_alpha must be positive, got lora_alpha={alpha!r}")
    return rank, float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors, and the base that ownlet wrote them for, where it did."""
    if not path.is_file() and path.with_suffix(".bin").is_file():
        raise AdapterError(f"PEFT weights must be safetensors, which cannot run code, got {path.with_suffix('.bin')}")
    try:
        content = path.read_bytes()
        return load(content), _metadata(content).get(_BASE_HASH)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"PEFT weights must be readable safetensors, got {path}: {error}") from error


def _metadata(content: bytes) -> Mapping[str, str]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort tensors into layer name -> {"A": ..., "B": ...}, float32."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or not tensor.is_floating_point():
            raise AdapterError(f"PEFT weights must be lora_A and lora_B of linear layers, got {key!r} ({tensor.dtype})")
        pairs.setdefault(match["layer"], {})[match["part"]] = tensor.float()
    for name, parts in pairs.items():
        if len(parts) != 2:
            raise AdapterError(f"PEFT weights must hold lora_A and lora_B of layer {name}, got {sorted(parts)} alone")
    return pairs


def _check_layers(pairs: Mapping[str, object], linears: Mapping[str, nn.Linear], config: Mapping[str, Any]) -> None:
    if not pairs:
        raise AdapterError("PEFT weights must hold at least one layer, got none")
    foreign = [name for name in pairs if name not in linears]
    if foreign:
        raise AdapterError(f"PEFT weights must be for linear layers of the model, got {foreign}; it has {[*linears]}")
    if any(config.get(name) is not None for name in ("exclude_modules", "layers_pattern", "layers_to_transform")):
        return  # then target_modules alone does not say which layers PEFT chose
    missing = [name for name in linears if _is_target(name, config.get("target_modules")) and name not in pairs]
    if missing:
        raise AdapterError(f"PEFT weights must hold every layer that target_modules matches, got none for {missing}")


def _is_target(name: str, targets: object) -> bool:
    """Tell whether PEFT adapts a linear layer: a string is a pattern for whole names, a list holds ends of names."""
    if isinstance(targets, str):
        try:
            return targets == "all-linear" or re.fullmatch(targets, name) is not None
        except re.error as error:
            raise AdapterError(f"target_modules must be a regular expression, got {targets!r}: {error}") from error
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"target_modules must be a pattern or a list of names, got target_modules={targets!r}")
    return any(name == target or name.endswith("." + target) for target in targets)


def _check_shapes(spec: AdapterSpec, pairs: Mapping[str, Mapping[str, Tensor]]) -> None:
    for layer in spec.layers:
        if spec.rank > min(layer.in_features, layer.out_features):
            raise AdapterError(f"r must fit layer {layer.name}, got r={spec.rank} for {layer}")
        wanted = {"A": (spec.rank, layer.in_features), "B": (layer.out_features, spec.rank)}
        for part, shape in wanted.items():
            got = tuple(pairs[layer.name][part].shape)
            if got != shape:
                raise AdapterError(f"lora_{part} of layer {layer.name} must have shape {shape}, got shape={got}")
