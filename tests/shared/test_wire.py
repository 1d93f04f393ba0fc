import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from ownlet.shared.config import Plan
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.wire import (
    Place,
    TrainReply,
    TrainRequest,
    decode_vector,
    place_from_records,
    place_to_records,
    reply_to_records,
    request_from_records,
    request_to_records,
    requests_to_records,
)

REQUEST = TrainRequest(
    vector=np.linspace(0, 1, 6, dtype=np.float32),
    round=3,
    version=2,
    base_hash="b" * 64,
    plan=Plan(steps=2, clip_norm=0.5, noise_multiplier=1.0, sample_rate=0.25),
    unit="window",
    clip_norm=math.inf,
    users=(4, 0, 2**40),
    seed=None,
)


def _sent(records: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(records))


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_a_request_survives_the_wire(seed: int | None) -> None:
    request = replace(REQUEST, seed=seed)
    received = request_from_records(_sent(request_to_records(request)), 6)
    np.testing.assert_array_equal(received.vector, request.vector)
    assert replace(received, vector=request.vector) == request


def test_without_a_seed_the_word_is_not_on_the_wire() -> None:
    assert "seed" not in request_to_records(REQUEST)["request"]


def test_messages_hold_one_array_and_no_private_output() -> None:
    reply = TrainReply(total=np.zeros(3, np.float32), round=1, version=0, base_hash="b", num_users=9)
    records = reply_to_records(reply)
    assert set(records["reply"]) == {"round", "version", "base-hash", "num-users"}
    assert len(records.metric_records) == 0
    for sent in (records, request_to_records(REQUEST)):
        assert sum(len(arrays) for arrays in sent.array_records.values()) == 1


def test_a_request_with_a_missing_field_or_a_plan_that_breaks_a_rule_is_refused() -> None:
    records = request_to_records(REQUEST)
    del records["request"]["round"]
    with pytest.raises(FederationError, match="every field, got 'round'"):
        request_from_records(records, 6)
    records = request_to_records(REQUEST)
    records["request"]["plan"] = '{"sample_rate": 2.0}'
    with pytest.raises(ConfigError, match="sample_rate"):
        request_from_records(records, 6)
    for broken in ("{", "[1]", '{"no_such": 1}', '{"steps": "three"}'):
        records["request"]["plan"] = broken
        with pytest.raises(FederationError, match="every field"):
            request_from_records(records, 6)
    with pytest.raises(FederationError, match="config record request"):
        request_from_records(RecordDict(), 6)


def test_requests_of_one_round_share_the_vector_that_they_carry() -> None:
    others = replace(REQUEST, users=(3,)), replace(REQUEST, vector=REQUEST.vector + 1)
    first, second, third = requests_to_records([REQUEST, *others])
    assert first["adapter"] is second["adapter"]
    for records, request in ((first, REQUEST), (second, others[0]), (third, others[1])):
        read = request_from_records(records, 6)
        np.testing.assert_array_equal(read.vector, request.vector)
        assert (read.users, read.plan) == (request.users, request.plan)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(FederationError, match=r"shape \(5,\), got shape=\(6,\)"):
        request_from_records(request_to_records(REQUEST), 5)


def test_an_empty_vector_is_decoded() -> None:
    records = RecordDict({"x": ArrayRecord([np.zeros(0, np.float32)])})
    assert decode_vector(records, "x", "0", 0).shape == (0,)


def test_a_place_survives_the_wire_and_nonsense_is_refused() -> None:
    place = Place(partition=2, num_partitions=3)
    assert place_from_records(_sent(place_to_records(place))) == place
    for partition, count in ((3, 3), (-1, 3), (0, 0), (0.0, 1), (True, 2)):
        config = ConfigRecord({"partition": partition, "num-partitions": count})
        with pytest.raises(FederationError, match="place must be"):
            place_from_records(RecordDict({"place": config}))
