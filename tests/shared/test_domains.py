"""Adapters per domain in one file: what is chosen, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.adapter import AdapterSpec, LayerShape, save_adapter
from ownlet.shared.domains import (
    DomainAdapters,
    dump_domains,
    load_domains,
    parse_domains,
    period_domain,
    save_domains,
)
from ownlet.shared.errors import AdapterError, ConfigError
from ownlet.shared.tensors import pack, unpack

SPEC = AdapterSpec(
    layers=(LayerShape(name="up", in_features=3, out_features=2),), rank=1, alpha=2.0, base_hash="ab" * 32
)


def filled(value):
    return np.full(SPEC.size, value, np.float32)


ADAPTERS = DomainAdapters(
    spec=SPEC, default=filled(0.5), vectors={"north": filled(1), "default": filled(2), "é/2": filled(3)}, version=7
)


def test_a_domain_has_its_adapter_and_any_other_the_default():
    assert ADAPTERS.choose("north")[0] == 1
    assert ADAPTERS.choose("default")[0] == 2  # a domain may have any name
    assert ADAPTERS.choose("mars")[0] == ADAPTERS.choose("")[0] == ADAPTERS.choose(None)[0] == 0.5
    np.testing.assert_array_equal(ADAPTERS.stack(["é/2", "mars", None, "north"])[:, 0], [3, 0.5, 0.5, 1])
    assert ADAPTERS.stack([]).shape == (0, SPEC.size)


def test_what_is_saved_is_loaded(tmp_path):
    save_domains(tmp_path / "d", ADAPTERS)
    found = load_domains(tmp_path / "d", spec=SPEC)
    assert (found.spec, found.version, set(found.vectors)) == (SPEC, 7, {"north", "default", "é/2"})
    for name in (None, "north", "default", "é/2"):
        np.testing.assert_array_equal(found.choose(name), ADAPTERS.choose(name))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(AdapterError, match="adapter of domain 'north' must have shape"):
        replace(ADAPTERS, vectors={"north": filled(1)[:-1]})
    with pytest.raises(AdapterError, match="default adapter must be finite"):
        replace(ADAPTERS, default=filled(np.nan))
    with pytest.raises(ConfigError, match="domain must have a name"):
        replace(ADAPTERS, vectors={"": filled(1)})


def test_a_file_of_something_else_is_refused_with_its_name(tmp_path):
    content = dump_domains(ADAPTERS)
    tensors, words = unpack(content)
    (tmp_path / "torn").write_bytes(content[:-5])
    save_adapter(tmp_path / "one", SPEC, filled(1), version=1)
    (tmp_path / "headless").write_bytes(pack({"domain/north": filled(1)}, words))
    (tmp_path / "version").write_bytes(pack(tensors, {**words, "version": "two"}))
    (tmp_path / "nan").write_bytes(pack({**tensors, "domain/north": filled(np.inf)}, words))
    for name, rule in (
        ("absent", "must be readable safetensors"),
        ("torn", "must be readable safetensors"),
        ("one", "must have format ownlet-domains-1, got 'ownlet-adapter-1'"),
        ("headless", "must have format"),
        ("version", "must have format"),
        ("nan", "domain/north in .*nan must be finite"),
    ):
        with pytest.raises(AdapterError, match=rule) as caught:
            load_domains(tmp_path / name)
        assert name in str(caught.value)


def test_another_base_or_spec_is_refused():
    content = dump_domains(ADAPTERS)
    with pytest.raises(AdapterError, match="must belong to base cdcdcdcdcdcd, got base abababababab in memory"):
        parse_domains(content, spec=replace(SPEC, base_hash="cd" * 32))
    with pytest.raises(AdapterError, match="must have the layers, rank, alpha and form"):
        parse_domains(content, spec=replace(SPEC, alpha=1.0))


def test_periods_are_counted_from_the_origin():
    names = [period_domain(second, origin_seconds=100, period_seconds=10) for second in (99.9, 100, 109, 110)]
    assert names == ["period--1", "period-0", "period-0", "period-1"]
    with pytest.raises(ConfigError, match="period_seconds must be positive"):
        period_domain(0, origin_seconds=0, period_seconds=0)
