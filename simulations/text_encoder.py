"""A language model that turns text into vectors, such as DistilBERT (https://arxiv.org/abs/1910.01108).

Any encoder that ``transformers``' ``AutoModel`` and ``AutoTokenizer`` read, from a local folder or by its hub id. Only
weights in safetensors are loaded and no code of a model is run. A text's vector is the mean of the last hidden states
over its real tokens (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084, section 3), scaled to length 1.

``transformers`` is imported only when an encoder is loaded: nothing on a device needs it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.adapter import hash_state
from ownlet.shared.errors import ConfigError, DataError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoder", "encode_texts", "load_text_encoder", "pool", "tokenize"]

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEncoder:
    """A model and its tokenizer.

    Args:
        model: maps ``input_ids`` and ``attention_mask``, (batch, tokens) each, to ``last_hidden_state``; in eval mode.
        tokenizer: of the same model.
        source: the folder or hub id that it came from.
        max_tokens: longer texts are cut.
        fingerprint: SHA-256 over weights, configuration, tokenizer and ``max_tokens``: equal ones give equal vectors.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    source: str
    max_tokens: int
    fingerprint: str


def load_text_encoder(source: str, *, max_tokens: int = 128) -> TextEncoder:
    """Load an encoder.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a hub id such as ``distilbert-base-uncased``, which is
            downloaded once and then read from the hub's cache.
        max_tokens: longer texts are cut; less where the model reads less.

    Raises:
        ConfigError: ``transformers`` is not installed, or max_tokens is below 3.
        DataError: neither a folder with a model nor a hub id that can be reached or is cached.
    """
    require(max_tokens >= 3, "max_tokens must be at least 3", max_tokens=max_tokens)
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise ConfigError("text encoders must have transformers, got none: pip install 'ownlet[text]'") from error
    folder = _folder_of(source)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"text encoder must be a model and a tokenizer, got {source!r}: {_first_line(error)}"
        ) from error
    model = model.float().eval().requires_grad_(False)
    limit = min(max_tokens, tokenizer.model_max_length, _longest(model))
    return TextEncoder(
        model=model,
        tokenizer=tokenizer,
        source=source,
        max_tokens=limit,
        fingerprint=_fingerprint(model, tokenizer, limit),
    )


def tokenize(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask`` of some texts, (texts, longest) each."""
    tokens = encoder.tokenizer(
        list(texts), padding=True, truncation=True, max_length=encoder.max_tokens, return_tensors="pt"
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def pool(model: nn.Module, tokens: Mapping[str, Tensor]) -> Tensor:
    """Return the vectors of tokenized texts, (texts, width), each of length 1."""
    hidden: Tensor = model(**tokens).last_hidden_state  # (texts, tokens, width)
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (texts, tokens, 1)
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return nn.functional.normalize(mean, dim=-1)


@torch.no_grad()
def encode_texts(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda texts: None,
) -> NDArray[np.float32]:
    """Encode texts, those of similar length together.

    Args:
        encoder: the model.
        texts: any; an empty one has the zero vector.
        batch_size: texts at a time; never changes the result beyond rounding.
        on_batch: told after every batch how many texts it had.

    Returns:
        (texts, width), rows of length 1 or 0.
    """
    require(batch_size >= 1, "batch_size must be at least 1", batch_size=batch_size)
    vectors = np.zeros((len(texts), int(encoder.model.config.hidden_size)), np.float32)  # type: ignore[union-attr, arg-type]
    order = sorted((row for row, text in enumerate(texts) if text), key=lambda row: len(texts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens = tokenize(encoder, [texts[row] for row in rows])
        vectors[rows] = pool(encoder.model, tokens).numpy()
        on_batch(len(rows))
    return vectors


def _folder_of(source: str) -> str:
    """Return a local folder with the files of the model; those of a hub id are downloaded unless they are cached."""
    if Path(source).is_dir():
        return source
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(source, allow_patterns=list(_FILES), etag_timeout=_ANSWER_SECONDS)
    except (OSError, ValueError, HTTPError) as error:  # no network, no such id, or no id at all
        raise DataError(
            "text encoder must be a folder with a model, or a hub id that is cached or can be reached, "
            f"got {source!r}: {_first_line(error)}"
        ) from error


def _fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    config = model.config.to_dict()  # type: ignore[union-attr, operator]
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)  # where it lay and who wrote it change nothing
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        words = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    else:
        backend.no_truncation()  # state of the last call, not part of the tokenizer
        backend.no_padding()
        words = backend.to_str()
    settings = json.dumps([config, max_tokens, hash_state(model.state_dict())], sort_keys=True, default=str)
    return hashlib.sha256(f"{settings}\n{words}".encode()).hexdigest()


def _longest(model: nn.Module) -> int:
    """Return how many tokens the model has positions for. RoBERTa's begin behind the padding number."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return 1 << 30
    offset = 2 if str(getattr(config, "model_type", "")) in ("roberta", "xlm-roberta", "camembert") else 0
    return positions - offset


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
