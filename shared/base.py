"""A base in a file that any process can read safely: safetensors, with its shape in the metadata.

For devices that have PyTorch and train with it: everything that the model was made of, and no code.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ownlet.shared.config import ModelConfig
from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.model import SASRec
from ownlet.shared.store import write_atomic

__all__ = ["load_base_weights", "save_base_weights"]

_FORMAT = "ownlet-base-1"


def save_base_weights(path: Path, model: SASRec) -> None:
    """Write the weights and content vectors of a base, atomically; an attached adapter is not part of them.

    Raises:
        OSError: the disk refused.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.frequencies is not None:
        state["frequencies"] = model.frequencies.cpu()
    metadata = {"format": _FORMAT, "config": json.dumps(model.config.to_plain(), sort_keys=True)}
    write_atomic(path, save(state, metadata=metadata))


def load_base_weights(path: Path) -> SASRec:
    """Read what ``save_base_weights`` wrote, in evaluation mode, without adapter layers.

    Raises:
        BundleError: unreadable, of another format, or not the weights of the shape it names.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
        if metadata.get("format") != _FORMAT:
            raise BundleError(f"base must have format {_FORMAT}, got {metadata.get('format')!r} in {path}")
        model = SASRec(ModelConfig.from_plain(json.loads(metadata["config"])), state["content"])
        model.frequencies = state.pop("frequencies", None)
        model.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise BundleError(f"base must be readable safetensors, got {path}: {error}") from error
    return model.eval()
