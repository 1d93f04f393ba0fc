"""A small DistilBERT that is trained here, from nothing, on the items' own texts.

It stands in for a real one where no model hub can be reached: two layers and a vocabulary of the catalogue's words,
trained to restore masked words (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1: 15 % of the
tokens are chosen, of which 80 % are masked, 10 % replaced and 10 % kept). It knows nothing of the world beyond these
texts, so what it gains over hashed words is a lower bound on what a real encoder gains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ownlet.shared.errors import DataError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TinyEncoderConfig", "train_tiny_encoder"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True)
class TinyEncoderConfig:
    """Shape and training.

    Args:
        dim: width.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide ``dim``.
        vocabulary: the most words; those that occur once are unknown words, as are the rarest above this number.
        max_tokens: longest text.
        epochs: passes over the texts.
        batch_size: texts in a step.
        learning_rate: peak of a one-cycle schedule (AdamW).
        seed: of everything random.
    """

    dim: int = 64
    num_layers: int = 2
    num_heads: int = 4
    vocabulary: int = 4000
    max_tokens: int = 64
    epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(self.dim % self.num_heads == 0, "num_heads must divide dim", dim=self.dim, num_heads=self.num_heads)


def train_tiny_encoder(
    folder: Path,
    texts: Sequence[str],
    config: TinyEncoderConfig,
    *,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> Path:
    """Train an encoder and leave it and its tokenizer in a folder that ``load_text_encoder`` reads.

    Args:
        folder: to write to; made where it is missing.
        texts: what it is trained on; empty ones teach nothing.
        config: shape and training.
        on_epoch: told the mean loss of every pass.

    Returns:
        The folder.

    Raises:
        DataError: there is no text.
    """
    from transformers import DistilBertConfig, DistilBertModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    texts = [text for text in texts if text]
    if not texts:
        raise DataError("a text encoder must be trained on some text, got none")
    tokenizer = _tokenizer(texts, config)
    torch.manual_seed(config.seed)
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=config.dim,
            n_layers=config.num_layers,
            n_heads=config.num_heads,
            hidden_dim=4 * config.dim,
            max_position_embeddings=config.max_tokens,
            pad_token_id=0,
        )
    )
    head = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.LayerNorm(config.dim))
    steps = config.epochs * -(-len(texts) // config.batch_size)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    for _ in range(config.epochs):
        total = 0.0
        for rows in torch.randperm(len(texts)).split(config.batch_size):
            tokens = tokenizer(
                [texts[row] for row in rows.tolist()],
                padding=True, truncation=True, max_length=config.max_tokens, return_tensors="pt",
            )  # fmt: skip
            ids, chosen = _mask(tokens["input_ids"], int(tokenizer.mask_token_id), len(tokenizer))
            hidden = model(input_ids=ids, attention_mask=tokens["attention_mask"]).last_hidden_state[chosen]
            scores = head(hidden) @ model.get_input_embeddings().weight.T  # (chosen tokens, words)
            loss = nn.functional.cross_entropy(scores, tokens["input_ids"][chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        on_epoch(total / len(texts))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str], config: TinyEncoderConfig) -> PreTrainedTokenizerBase:
    """Return a tokenizer of whole words, lower case without accents, as DistilBERT's own reads them.

    The trainer of ``tokenizers`` breaks ties differently in every run; counted words are the same every time.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    common = sorted((word for word in words if words[word] > 1), key=lambda word: (-words[word], word))
    vocabulary = [*_SPECIAL, *common[: config.vocabulary]]
    pieces = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizer, splitter
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pad, unknown, cls, sep, mask = _SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=pieces, pad_token=pad, unk_token=unknown, cls_token=cls, sep_token=sep, mask_token=mask,
        model_max_length=config.max_tokens,
    )  # fmt: skip


def _mask(ids: Tensor, mask_id: int, num_words: int) -> tuple[Tensor, Tensor]:
    """Hide tokens: returns the ids to read and which of them are asked for, (batch, tokens) each."""
    real = ids >= len(_SPECIAL)
    chosen = real & (torch.rand(ids.shape) < 0.15)
    if not chosen.any():
        chosen = real & (torch.arange(ids.shape[1]) == 1)  # a batch must ask something
    draw = torch.rand(ids.shape)
    hidden = ids.masked_fill(chosen & (draw < 0.8), mask_id)
    random = torch.randint(len(_SPECIAL), num_words, ids.shape)
    return torch.where(chosen & (draw >= 0.9), random, hidden), chosen
