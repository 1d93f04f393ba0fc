import numpy as np
import pytest

from ownlet.device.event import (
    MAX_ITEM_BYTES,
    checked_context,
    checked_item,
    checked_timestamp,
    decode_events,
    encode_event,
)
from ownlet.shared.errors import DataError


@pytest.mark.parametrize(
    "item, rule",
    [
        ("", "non-empty"),
        (None, "non-empty string"),
        (7, "non-empty string"),
        (b"a", "non-empty string"),
        ("a\0b", "NUL"),
        ("a\ud800", "UTF-8 can hold"),
        ("é" * (MAX_ITEM_BYTES // 2 + 1), "at most 1024 bytes"),
    ],
)
def test_an_item_that_breaks_its_rule_is_refused(item: object, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        checked_item(item)


@pytest.mark.parametrize("item", ["a", " ", "é" * (MAX_ITEM_BYTES // 2), "x" * MAX_ITEM_BYTES, "😀", "'; DROP TABLE"])
def test_any_other_text_is_an_item(item: str) -> None:
    assert checked_item(item) == item


@pytest.mark.parametrize(
    "timestamp", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), "1", None, True, 1j, 10**400]
)
def test_a_timestamp_that_is_not_a_finite_number_is_refused(timestamp: object) -> None:
    with pytest.raises(DataError, match="timestamp must be"):
        checked_timestamp(timestamp)


@pytest.mark.parametrize("timestamp", [0, -1.5, 1_700_000_000, np.int64(3), np.float32(0.5), 1.7e308])
def test_any_real_number_is_a_timestamp(timestamp: float) -> None:
    assert checked_timestamp(timestamp) == float(timestamp)


@pytest.mark.parametrize("block_bytes", [1, 64])
def test_decoding_gives_what_was_encoded(block_bytes: int) -> None:
    rng = np.random.default_rng(1)
    items = ["".join(map(chr, rng.integers(1, 0xD7FF, size))) for size in rng.integers(1, 200, 300)]
    timestamps = rng.normal(0, 1e9, 300)
    rows = [encode_event(item, time, block_bytes=block_bytes) for item, time in zip(items, timestamps, strict=True)]
    assert all(len(row) % block_bytes == 0 for row in rows)
    decoded_timestamps, decoded_items, said = decode_events(rows)
    assert decoded_items == items
    assert not any(said)
    np.testing.assert_array_equal(decoded_timestamps, timestamps)


@pytest.mark.parametrize("block_bytes", [1, 64])
def test_what_the_app_said_of_a_moment_comes_back_with_its_event(block_bytes: int) -> None:
    contexts = [{"device": "phone"}, {}, {"région": "Île", "scene": "a" * 900}, {}]
    rows = [encode_event(f"item-{n}", float(n), said, block_bytes=block_bytes) for n, said in enumerate(contexts)]
    timestamps, items, said = decode_events(rows)
    assert timestamps.tolist() == [0, 1, 2, 3]
    assert items == ["item-0", "item-1", "item-2", "item-3"]
    assert [dict(found) for found in said] == contexts


def test_a_row_without_context_has_the_bytes_that_it_always_had() -> None:
    assert encode_event("abc", 1.0, {}) == bytes.fromhex("3ff000000000000000000003616263")


@pytest.mark.parametrize(
    "context", ["phone", {"device": 3}, {"": "phone"}, {3: "phone"}, {"scene": "x" * 2000}, {"scene": "\ud800"}, ["a"]]
)
def test_context_that_is_not_text_by_name_is_refused(context: object) -> None:
    with pytest.raises(DataError, match="context must"):
        checked_context(context)


def test_saying_nothing_is_context_too() -> None:
    assert checked_context(None) == checked_context({}) == {}
    assert checked_context({"device": "phone"}) == {"device": "phone"}


def test_padding_hides_the_length_of_ordinary_names() -> None:
    assert len({len(encode_event("x" * size, 1.0, block_bytes=64)) for size in range(1, 53)}) == 1


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"short",
        encode_event("abc", 1.0)[:-1],
        encode_event("é", 1.0)[:-1] + b"\xff",
        encode_event("abc", 1.0, {"device": "phone"})[:-1],
        encode_event("abc", 1.0) + b"\x00\x02[]",
    ],
)
def test_damaged_bytes_are_refused(row: bytes) -> None:
    with pytest.raises(DataError, match="must hold an event"):
        decode_events([encode_event("good", 1.0), row])
