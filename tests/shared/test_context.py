"""Rows of the context table, and what a base makes of them."""

import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import torch

from ownlet.shared.config import ModelConfig, WindowConfig
from ownlet.shared.context import ContextField, column_codes, context_rows, num_context_rows, pad_context
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.model import SASRec
from ownlet.shared.windows import cut_windows, stack_windows

GAP = ContextField(name="gap", kind="gap")
HOUR = ContextField(name="hour", kind="hour")
WEEKDAY = ContextField(name="weekday", kind="weekday")
DEVICE = ContextField(name="device", kind="column", values=("phone", "tablet"))
PERIOD = ContextField(name="period", kind="period", origin_seconds=1000, period_seconds=100, num_periods=3)
NOW = 1_700_000_000.0
UNKNOWN = float("nan")


def rows_of(field, times, previous=None):
    return context_rows([field], times, previous or [UNKNOWN] * len(times))[:, 0].tolist()


def test_a_gaps_row_is_the_number_of_binary_digits_of_one_more_than_its_whole_seconds():
    gaps = [0, 0.9, 1, 2, 3, 6, 7, 3600, 86_400, 2**31 - 2, 2**31 - 1, 2**40]
    want = [min(32, (1 + int(gap)).bit_length()) for gap in gaps]
    assert rows_of(GAP, gaps, [0.0] * len(gaps)) == want


def test_without_an_event_before_the_gap_is_unknown_and_a_clock_that_went_back_is_no_gap():
    assert rows_of(GAP, [NOW, NOW - 50], [UNKNOWN, NOW]) == [0, 1]


@pytest.mark.parametrize("offset_hours", [0, -5, 9])
def test_hour_and_weekday_are_those_of_the_calendar(offset_hours):
    zone = timezone(timedelta(hours=offset_hours)) if offset_hours else UTC
    times = [0.0, -1.0, NOW, NOW + 3599.5, NOW + 40 * 3600]
    local = [datetime.fromtimestamp(second, zone) for second in times]
    hour = ContextField(name="hour", kind="hour", utc_offset_seconds=3600 * offset_hours)
    weekday = ContextField(name="weekday", kind="weekday", utc_offset_seconds=3600 * offset_hours)
    assert rows_of(hour, times) == [1 + moment.hour for moment in local]
    assert rows_of(weekday, times) == [moment.isoweekday() for moment in local]


def test_moments_outside_of_the_calendar_belong_to_its_first_and_last_period():
    assert rows_of(PERIOD, [1000, 1099, 1100, 1299, 1300, 5000, -7]) == [1, 1, 2, 3, 3, 3, 1]


def test_a_moment_without_a_time_is_unknown():
    fields = [GAP, HOUR, WEEKDAY, PERIOD]
    assert context_rows(fields, [UNKNOWN], [NOW]).tolist() == [[0, 0, 0, 0]]


def test_text_outside_of_the_vocabulary_is_unknown():
    assert column_codes(DEVICE, ["tablet", "", "watch", "phone"]).tolist() == [2, 0, 0, 1]
    assert column_codes(DEVICE, np.array(["tablet", "watch"])).tolist() == [2, 0]
    floor = ContextField(name="floor", kind="column", values=("3", "1"))
    assert column_codes(floor, np.array([1, 2, 3])).tolist() == [2, 0, 1]
    assert column_codes(floor, np.zeros(0, np.int64)).tolist() == []


def test_fields_have_rows_of_their_own_and_share_row_0():
    fields = (DEVICE, HOUR, GAP)
    codes = {"device": np.array([0, 1, 2])}
    rows = context_rows(fields, [0.0, 3600.0, UNKNOWN], [UNKNOWN, 3600.0, 0.0], codes)
    assert rows.tolist() == [[0, 2 + 1, 0], [1, 2 + 2, 2 + 24 + 1], [2, 0, 0]]
    assert num_context_rows(fields) == 1 + 2 + 24 + 32
    assert context_rows(fields, [0.0], [UNKNOWN]).tolist() == [[0, 3, 0]]  # nobody said which device


def test_rows_are_padded_as_histories_are():
    rows = [np.array([[1, 5], [2, 6], [3, 7]]), np.array([[4, 8]])]
    assert pad_context(rows, 2, 2).tolist() == [[[2, 6], [3, 7]], [[4, 8], [0, 0]]]
    with pytest.raises(DataError, match="must have 3 fields"):
        pad_context(rows, 2, 3)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"name": "x", "kind": "mood"}, "kind must be one of"),
        ({"name": "", "kind": "hour"}, "must have a name"),
        ({"name": "x", "kind": "column"}, "must be different texts"),
        ({"name": "x", "kind": "column", "values": ("a", "a")}, "must be different texts"),
        ({"name": "x", "kind": "period", "num_periods": 2}, "period_seconds must be at least 1"),
    ],
)
def test_a_field_that_means_nothing_is_refused(wrong, rule):
    with pytest.raises(ConfigError, match=rule):
        ContextField(**wrong)


def test_two_fields_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="different names"):
        ModelConfig(context=(HOUR, HOUR))


def test_a_config_comes_back_from_json_and_without_context_says_what_it_always_said():
    config = ModelConfig(dim=8, context=(GAP, DEVICE, PERIOD))
    assert ModelConfig.from_plain(json.loads(json.dumps(config.to_plain()))) == config
    plain = {"dim": 64, "num_layers": 2, "num_heads": 2, "max_length": 50, "dropout": 0.2}
    assert ModelConfig().to_plain() == plain
    assert ModelConfig.from_plain(plain) == ModelConfig()


def base_of(*fields):
    torch.manual_seed(0)
    return SASRec(ModelConfig(dim=8, num_layers=1, max_length=6, context=fields), torch.zeros(11, 4)).eval()


def test_a_base_that_is_told_nothing_equals_the_base_without_context_bit_for_bit():
    plain, reader, history = base_of(), base_of(GAP, HOUR), torch.tensor([[3, 1, 4, 0]])
    with torch.no_grad():
        reader.context_embedding[1:].normal_()
        want = plain(history)
        assert torch.equal(reader(history), want)
        assert torch.equal(reader(history, torch.zeros(1, 4, 2, dtype=torch.int64)), want)
        assert not torch.equal(reader(history, torch.ones(1, 4, 2, dtype=torch.int64)), want)
    assert set(reader.state_dict()) - set(plain.state_dict()) == {"context_embedding"}


def test_a_position_reads_its_own_moment_and_those_before_but_none_after():
    reader, history = base_of(HOUR), torch.tensor([[3, 1, 4, 2]])
    with torch.no_grad():
        reader.context_embedding[1:].normal_()
        context = torch.tensor([[[1], [2], [3], [4]]])
        later = context.clone()
        later[0, 2:] = 9
        one, other = reader(history, context), reader(history, later)
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2], other[:, 2])


def test_unknown_stays_zero_while_the_other_rows_are_trained():
    reader = base_of(HOUR)
    context = torch.tensor([[[0], [5], [0], [6]]])
    reader(torch.tensor([[3, 1, 4, 2]]), context).logsumexp(-1).sum().backward()
    trained = reader.context_embedding.grad.abs().sum(dim=1).nonzero().squeeze(1)
    assert trained.tolist() == [5, 6]


def test_rows_of_other_fields_are_refused():
    with pytest.raises(ConfigError, match="base's 1 fields"):
        base_of(HOUR)(torch.tensor([[3]]), torch.zeros(1, 1, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="base's 0 fields"):
        base_of()(torch.tensor([[3]]), torch.zeros(1, 1, 2, dtype=torch.int64))


def test_a_window_has_the_moment_of_each_target():
    events, moments = np.arange(1, 8), np.arange(1, 8)[:, None] * [10, 100]
    windows = cut_windows(events, WindowConfig(window_length=4, context_length=1), moments)
    assert windows.context.shape == (2, 5, 2)
    has_target = windows.target > 0
    np.testing.assert_array_equal(windows.context[has_target], windows.target[has_target][:, None] * [10, 100])
    assert not windows.context[~has_target].any()
    assert cut_windows(events, WindowConfig(window_length=4)).context is None


def test_a_windows_context_depends_on_its_own_events_alone():
    """Where windows are the unit of privacy, changing another window's times and columns must change nothing here."""
    fields, config = (GAP, HOUR, WEEKDAY, DEVICE, PERIOD), WindowConfig(window_length=4)
    events, times = np.arange(1, 13), np.cumsum(np.random.default_rng(0).integers(1, 90_000, 12)).astype(float)

    def cut(times, device):
        previous = np.concatenate([[UNKNOWN], times[:-1]])
        return cut_windows(events, config, context_rows(fields, times, previous, {"device": device}))

    device = np.arange(12) % 3
    other_times, other_device = times.copy(), device.copy()
    other_times[:4] -= 1_000_000
    other_times[8:] += 1_000_000
    other_device[:4], other_device[8:] = 2, 1
    one, other = cut(times, device), cut(other_times, other_device)
    np.testing.assert_array_equal(one.context[1], other.context[1])
    assert not np.array_equal(one.context[2], other.context[2])


def test_windows_keep_their_context_in_stacks_and_choices():
    config = WindowConfig(window_length=3)
    users = [cut_windows(np.arange(1, n), config, np.arange(1, n)[:, None]) for n in (5, 2, 9)]
    stack = stack_windows(users)
    for user, windows in enumerate(users):
        np.testing.assert_array_equal(stack[user].context, windows.context)
    np.testing.assert_array_equal(stack.take(np.array([2, 0]))[0].context, users[2].context)
    plain = cut_windows(np.arange(1, 5), config)
    with pytest.raises(ConfigError, match="all have context, or none"):
        stack_windows([users[0], plain])
