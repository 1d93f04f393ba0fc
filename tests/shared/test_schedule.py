"""Expectations: the formulas at points where they are plain, and torch's own cosine schedule."""

import pytest
import torch

from ownlet.shared.errors import ConfigError
from ownlet.shared.schedule import SCHEDULES, schedule_factor


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_line_that_reaches_one(schedule: str) -> None:
    assert [schedule_factor(schedule, at, 100, warmup=4) for at in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_constant_stays_and_a_line_falls_evenly_to_its_floor() -> None:
    assert {schedule_factor("constant", at, 10) for at in range(20)} == {1.0}
    falling = [schedule_factor("linear", at, 14, warmup=4, floor=0.5) for at in (4, 9, 14, 99)]
    assert falling == [1.0, 0.75, 0.5, 0.5]


def test_the_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for at in range(21):
        assert schedule_factor("cosine", at, 20, floor=0.1) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_schedule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule must be one of .*, got schedule='step'"):
        schedule_factor("step", 0, 1)
