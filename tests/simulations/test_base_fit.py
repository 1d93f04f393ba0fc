import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ownlet.simulations.benchmarks.base_fit import fit_of, last_events
from ownlet.simulations.evaluate import Cases


class Sure(nn.Module):
    """Scores four items by the logarithm of what is true, three times too sure."""

    num_items, max_length = 4, 5

    def score_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        true = torch.tensor([1.0, 0.5, 0.25, 0.125, 0.125])
        return (3 * true.log()).expand(len(history), -1)


def test_the_temperature_is_how_much_too_sure_a_base_is_and_the_likelihood_there_the_entropy():
    targets = np.repeat([1, 2, 3, 4], [4, 2, 1, 1])  # as often as is true
    cases = Cases(histories=tuple(np.array([1 + t % 4]) for t in targets), targets=targets)
    fit = fit_of(Sure().eval(), cases)
    entropy = 1.75 * np.log(2)
    assert fit.temperature == pytest.approx(3, rel=1e-3)
    assert fit.log_likelihood_there == pytest.approx(-entropy)
    assert fit.log_likelihood < fit.log_likelihood_there
    assert fit.hr10 == 1


def test_last_events_are_asked_of_histories_that_have_one_before_them():
    cases = last_events([np.array([1]), np.array([1, 2]), np.array([3, 1, 4])], most=10)
    assert [history.tolist() for history in cases.histories] == [[1], [3, 1]]
    assert cases.targets.tolist() == [2, 4]
    assert len(last_events([np.array([1, 2])] * 9, most=3)) == 3
