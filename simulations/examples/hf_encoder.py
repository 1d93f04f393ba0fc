"""A Hugging Face encoder as a recommender, from a module to a bundle that trains on the device.

    python -m ownlet.simulations.examples.hf_encoder

DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108) reads item vectors in place of word vectors, as in
BERT4Rec (Sun et al. 2019, https://arxiv.org/abs/1904.06690), but causally: the next item must not be seen. The weights
here are random and small, so nothing is downloaded; ``AutoModel.from_pretrained`` in place of ``from_config`` is all
that a trained encoder takes. Needs ``ownlet[text]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ownlet.shared.config import AdapterConfig
from ownlet.shared.recommender import ScoredModule
from ownlet.simulations.examples.walk import walk

__all__ = ["ItemEncoder", "encoder_recommender", "main", "score_history"]


class ItemEncoder(nn.Module):
    """Item vectors and a transformer over them; what it does not have is any method of ours.

    Args:
        num_items: items in the catalogue, numbered from 1; 0 is padding.
        max_length: the longest history that is read.
        dim: width of item vectors and of the encoder.
        num_layers: transformer blocks.
    """

    def __init__(self, num_items: int, max_length: int, dim: int = 32, num_layers: int = 1) -> None:
        super().__init__()
        from transformers import AutoModel, DistilBertConfig

        config = DistilBertConfig(
            vocab_size=1,  # items come as vectors
            max_position_embeddings=max_length,
            dim=dim,
            hidden_dim=2 * dim,
            n_layers=num_layers,
            n_heads=2,
        )
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight[1:], std=0.1)
        # eager attention: a fused kernel has no place in the device program
        self.encoder = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]


def score_history(model: nn.Module, history: Tensor) -> Tensor:
    """Score every item after every position: history (batch, length) -> (batch, length, num_items + 1)."""
    assert isinstance(model, ItemEncoder)
    batch, length = history.shape
    causal = torch.full((length, length), -1e9, device=history.device).triu(
        1
    )  # a finite number: no NaN on the way back
    mask = causal.expand(batch, 1, length, length)
    hidden = model.encoder(inputs_embeds=model.items(history), attention_mask=mask).last_hidden_state
    return hidden @ model.items.weight.T  # type: ignore[no-any-return]


def encoder_recommender(num_items: int, max_length: int) -> ScoredModule:
    """Return the encoder with its scoring function, which is all that ownlet asks of it."""
    return ScoredModule(ItemEncoder(num_items, max_length), score_history, num_items=num_items, max_length=max_length)


def main() -> None:
    """Walk the encoder from a module to a device, in a folder that goes away afterwards."""
    walk(encoder_recommender, AdapterConfig(target_modules=("q_lin", "v_lin", "lin1", "lin2"), rank=4, alpha=8.0))


if __name__ == "__main__":
    main()
