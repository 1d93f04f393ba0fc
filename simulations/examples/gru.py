"""A GRU recommender of your own, from a module to a bundle that trains on the device.

    python -m ownlet.simulations.examples.gru

GRU4Rec (Hidasi et al. 2016, https://arxiv.org/abs/1511.06939) with full softmax. ``nn.GRU`` keeps its weights in one
fused kernel and has no ``nn.Linear``, so an adapter finds nothing to hold on to; the same cell written with two linear
layers (Cho et al. 2014, https://arxiv.org/abs/1406.1078) does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ownlet.shared.config import AdapterConfig
from ownlet.simulations.examples.walk import walk

__all__ = ["GRURecommender", "main"]


class GRURecommender(nn.Module):
    """Reads item vectors one after the other; a state times the item vectors are the scores.

    Args:
        num_items: items in the catalogue, numbered from 1; 0 is padding.
        max_length: the longest history that is read.
        dim: width of item vectors and of the state.
    """

    def __init__(self, num_items: int, max_length: int, dim: int = 32) -> None:
        super().__init__()
        self.num_items, self.max_length = num_items, max_length
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.gates_of_input = nn.Linear(dim, 3 * dim)
        self.gates_of_state = nn.Linear(dim, 3 * dim)
        nn.init.normal_(self.items.weight[1:], std=0.1)

    def states(self, history: Tensor) -> Tensor:
        """Return the state after every event: history (batch, length) -> (batch, length, dim)."""
        inputs = self.gates_of_input(self.items(history))  # (batch, length, 3 dim): all positions at once
        state = inputs.new_zeros(len(history), self.items.embedding_dim)
        states = []
        for position in range(history.shape[1]):
            reset_x, update_x, new_x = inputs[:, position].chunk(3, dim=-1)
            reset_h, update_h, new_h = self.gates_of_state(state).chunk(3, dim=-1)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            state = new + torch.sigmoid(update_x + update_h) * (state - new)
            states.append(state)
        return torch.stack(states, dim=1)

    def forward(self, history: Tensor) -> Tensor:
        """Score after every position: (batch, length) -> (batch, length, num_items + 1)."""
        return self.states(history) @ self.items.weight.T

    def score_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Score after the last of ``lengths`` (batch,) events: (batch, num_items + 1)."""
        last = self.states(history)[torch.arange(len(history)), lengths - 1]  # (batch, dim)
        return last @ self.items.weight.T


def main() -> None:
    """Walk the GRU from a module to a device, in a folder that goes away afterwards."""
    walk(GRURecommender, AdapterConfig(target_modules=("gates_of_input", "gates_of_state"), rank=4, alpha=8.0))


if __name__ == "__main__":
    main()
