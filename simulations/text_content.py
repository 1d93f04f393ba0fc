"""Content vectors of a base from the texts of its items, and what must be known to make those of new items later.

What an encoder gives is whitened over the catalogue (``simulations.whitening``); without that a recommender can tell
hardly any two texts apart.

A base holds the vectors themselves, so a device needs no encoder. Beside them ``base.pt`` remembers which encoder made
them, with its fingerprint and the LoRA weights it was tuned with: new items get vectors from the same encoder or none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, hash_state, load_adapter, save_adapter
from ownlet.shared.errors import DataError
from ownlet.shared.interactions import History, Item
from ownlet.shared.lora import applied, attach_spec
from ownlet.simulations.item_text import item_texts
from ownlet.simulations.progress import Progress, Silent
from ownlet.simulations.text_cache import cached_vectors
from ownlet.simulations.text_encoder import TextEncoder, encode_texts, load_text_encoder
from ownlet.simulations.text_tuning import TextTuning, TunedText, tune_encoder
from ownlet.simulations.whitening import Whitening, fit_whitening

__all__ = ["DEFAULT_CACHE", "TextConfig", "TextContent", "TextSource", "new_text_content", "text_content"]

DEFAULT_CACHE = Path("~/.cache/ownlet/text")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How content vectors are made from text.

    Args:
        encoder: a folder or a hub id; empty: content vectors are hashed, see ``shared.content``.
        descriptions: JSON lines with ``id`` and ``text``: what else is known of items than title and genres.
        cache: folder of vectors that were made before.
        max_tokens: longer texts are cut.
        tune: train LoRA on the encoder's own layers first.
        tuning: how.
    """

    encoder: str = ""
    descriptions: Path | None = None
    cache: Path = DEFAULT_CACHE
    max_tokens: int = 128
    tune: bool = False
    tuning: TextTuning = field(default_factory=TextTuning)


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSource:
    """Where the content vectors of a base came from.

    Args:
        encoder: the folder or hub id.
        fingerprint: of the encoder, without the adapter.
        max_tokens: longer texts were cut.
        whitening: what followed the encoder, fitted on the base's catalogue.
        tuned: LoRA weights of the encoder, where it was tuned.
    """

    encoder: str
    fingerprint: str
    max_tokens: int
    whitening: Whitening
    tuned: TunedText | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return texts, numbers and tensors, as ``base.pt`` holds them."""
        plain: dict[str, Any] = {
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "max_tokens": self.max_tokens,
            "mean": torch.from_numpy(self.whitening.mean),
            "matrix": torch.from_numpy(self.whitening.matrix),
        }
        if self.tuned is not None:
            plain |= {"spec": self.tuned.spec.to_json(), "vector": torch.from_numpy(self.tuned.vector)}
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TextSource:
        """Read what ``to_plain`` returned."""
        tuned = None
        if "spec" in plain:
            spec = AdapterSpec.from_json(plain["spec"])
            tuned = TunedText(spec=spec, vector=spec.check(plain["vector"].numpy(), what="adapter of the encoder"))
        return cls(
            encoder=plain["encoder"],
            fingerprint=plain["fingerprint"],
            max_tokens=plain["max_tokens"],
            whitening=Whitening(mean=plain["mean"].numpy(), matrix=plain["matrix"].numpy()),
            tuned=tuned,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TextContent:
    """Content vectors (num_items + 1, width), row 0 zero, and where they came from."""

    vectors: NDArray[np.float32]
    source: TextSource


def text_content(
    items: Sequence[Item],
    config: TextConfig,
    *,
    histories: Sequence[History] = (),
    validation: Sequence[History] = (),
    known: NDArray[np.bool_] | None = None,
    adapter_file: Path | None = None,
    progress: Progress | None = None,
) -> TextContent:
    """Make the content vectors of a catalogue.

    Args:
        items: the catalogue in order of item number.
        config: the encoder, and how it is tuned.
        histories: of public users; they tune the encoder.
        validation: of held-out public users; they choose the epoch of the tuning.
        known: (num_items + 1,) which items the whitening is fitted on; by default all.
        adapter_file: keeps the tuned weights, so that an interrupted run does not tune again; of one run alone.
        progress: told of tuning and encoding.

    Raises:
        ConfigError: ``transformers`` is not installed, or the encoder has no layers of the names to tune.
        DataError: the encoder cannot be had, no item has a text, or too few pairs to tune on.
        AdapterError: the adapter file belongs to another encoder.
    """
    texts, progress = item_texts(items), progress or Silent()
    if not any(texts):
        raise DataError(f"a text encoder must have texts to read, got {len(items)} items without title and genres")
    encoder = load_text_encoder(config.encoder, max_tokens=config.max_tokens)
    tuned = _tuned(encoder, texts, config, histories, validation, adapter_file, progress)
    found = cached_vectors(
        config.cache.expanduser(), _key(encoder, tuned), texts, lambda: _encode(encoder, tuned, texts, progress)
    )
    vectors = np.concatenate([np.zeros((1, found.shape[1]), np.float32), found])  # (num_items + 1, width)
    whitening = fit_whitening(vectors if known is None else vectors[known])
    source = TextSource(
        encoder=config.encoder,
        fingerprint=encoder.fingerprint,
        max_tokens=config.max_tokens,
        whitening=whitening,
        tuned=tuned,
    )
    return TextContent(vectors=whitening(vectors), source=source)


def new_text_content(
    source: TextSource, items: Sequence[Item], *, encoder: str = "", progress: Progress | None = None
) -> NDArray[np.float32]:
    """Make the content vectors of items that a base does not know yet, with the encoder of its own.

    Args:
        source: what the base remembers.
        items: the new items.
        encoder: the folder or hub id to load from; empty: the one that the base remembers.
        progress: told of encoding.

    Returns:
        (items, width).

    Raises:
        DataError: the encoder cannot be had, or is another one.
    """
    name = encoder or source.encoder
    loaded = load_text_encoder(name, max_tokens=source.max_tokens)
    if loaded.fingerprint != source.fingerprint:
        raise DataError(
            f"text encoder must be the one of the base, {source.encoder!r} with fingerprint {source.fingerprint[:12]}, "
            f"got {name!r} with {loaded.fingerprint[:12]}"
        )
    if source.tuned is not None:
        attach_spec(loaded.model, source.tuned.spec)
    return source.whitening(_encode(loaded, source.tuned, item_texts(items), progress or Silent()))


def _tuned(
    encoder: TextEncoder,
    texts: Sequence[str],
    config: TextConfig,
    histories: Sequence[History],
    validation: Sequence[History],
    adapter_file: Path | None,
    progress: Progress,
) -> TunedText | None:
    """Tune the encoder where that is asked for, or take up what an interrupted run tuned."""
    if not config.tune:
        return None
    if adapter_file is not None and adapter_file.exists():
        spec, vector, _ = load_adapter(adapter_file, base_hash=hash_state(encoder.model.state_dict()))
        attach_spec(encoder.model, spec)
        return TunedText(spec=spec, vector=vector)
    with progress.stage("tuning of the text encoder", config.tuning.epochs) as step:
        tuned = tune_encoder(
            encoder, texts, histories, validation, config.tuning, on_epoch=lambda epoch: step(str(epoch))
        )
    if adapter_file is not None:
        save_adapter(adapter_file, tuned.spec, tuned.vector, version=0)
    return tuned


def _key(encoder: TextEncoder, tuned: TunedText | None) -> str:
    """Return a hash over all that changes a vector of the encoder."""
    digest = hashlib.sha256(encoder.fingerprint.encode())
    if tuned is not None:
        digest.update(tuned.spec.to_json().encode() + tuned.vector.tobytes())
    return digest.hexdigest()


def _encode(
    encoder: TextEncoder, tuned: TunedText | None, texts: Sequence[str], progress: Progress
) -> NDArray[np.float32]:
    weights = {} if tuned is None else tuned.spec.split(torch.from_numpy(tuned.vector))
    with progress.stage("item texts", len(texts)) as step, applied(encoder.model, weights):
        return encode_texts(encoder, texts, on_batch=lambda count: step("", float(count)))
