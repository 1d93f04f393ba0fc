import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ownlet.shared.adapter import AdapterSpec, LayerShape, hash_state, initial_adapter, load_adapter, save_adapter
from ownlet.shared.errors import AdapterError, ConfigError


def make_spec(**changes):
    layers = (LayerShape(name="x", in_features=6, out_features=8), LayerShape(name="y", in_features=8, out_features=4))
    return AdapterSpec(**({"layers": layers, "rank": 2, "alpha": 4.0, "base_hash": "base"} | changes))


def test_sizes_are_those_of_all_a_and_all_b():
    spec = make_spec()
    assert (spec.size_a, spec.size) == (2 * 6 + 2 * 8, 2 * 6 + 2 * 8 + 2 * 8 + 2 * 4)
    assert spec.num_trainable == 24
    assert make_spec(train_a=True).num_trainable == spec.size


def test_split_and_join_are_inverse_also_when_stacked():
    spec = make_spec()
    for shape in ((spec.size,), (3, spec.size)):
        vector = torch.randn(shape)
        torch.testing.assert_close(spec.join(spec.split(vector)), vector, rtol=0, atol=0)


def test_initial_adapter_has_orthonormal_a_and_zero_b():
    spec = make_spec()
    weights = spec.split(torch.from_numpy(initial_adapter(spec, seed=3)))
    for a, b in weights.values():
        torch.testing.assert_close(a @ a.T, torch.eye(2))
        assert not b.any()


def test_file_gives_back_spec_vector_and_version(tmp_path):
    spec = make_spec(train_a=True)
    vector = initial_adapter(spec, seed=0)
    save_adapter(tmp_path / "a.safetensors", spec, vector, version=7)
    found_spec, found, version = load_adapter(tmp_path / "a.safetensors", base_hash="base")
    assert (found_spec, version) == (spec, 7)
    np.testing.assert_array_equal(found, vector)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v.astype(np.float64), "float32"),
        (lambda v: v[:-1], "shape"),
        (lambda v: np.where(np.arange(len(v)) == 3, np.nan, v).astype(np.float32), "finite"),
        (lambda v: np.where(np.arange(len(v)) == 3, np.inf, v).astype(np.float32), "finite"),
    ],
)
def test_a_vector_that_does_not_fit_is_neither_written_nor_read(tmp_path, spoil, message):
    spec = make_spec()
    bad = spoil(initial_adapter(spec, seed=0))
    path = tmp_path / "a.safetensors"
    with pytest.raises(AdapterError, match=message):
        save_adapter(path, spec, bad, version=1)
    assert list(tmp_path.iterdir()) == []
    metadata = {"format": "ownlet-adapter-1", "spec": spec.to_json(), "version": "1"}
    save_file({"adapter": np.ascontiguousarray(bad)}, path, metadata=metadata)
    with pytest.raises(AdapterError, match=message):
        load_adapter(path)


def test_wrong_base_truncation_and_foreign_files_are_refused(tmp_path):
    spec = make_spec()
    path = tmp_path / "a.safetensors"
    save_adapter(path, spec, initial_adapter(spec, seed=0), version=1)
    with pytest.raises(AdapterError, match="base"):
        load_adapter(path, base_hash="another")
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(AdapterError, match="readable"):
        load_adapter(path)
    save_file({"weights": np.zeros(3, np.float32)}, path)
    with pytest.raises(AdapterError, match="format"):
        load_adapter(path)
    with pytest.raises(AdapterError, match="readable"):
        load_adapter(tmp_path / "absent")


def test_spec_survives_json_and_refuses_other_text():
    spec = make_spec()
    assert AdapterSpec.from_json(spec.to_json()) == spec
    for text in ("", "[]", "{}", '{"layers": 3}'):
        with pytest.raises(AdapterError):
            AdapterSpec.from_json(text)
    with pytest.raises(ConfigError):
        make_spec(layers=())


def test_hash_sees_every_bit_and_every_name():
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    changed = {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.ones(2)}
    assert hash_state(state) == hash_state(dict(reversed(state.items())))
    assert hash_state(state) != hash_state(changed)
    assert hash_state(state) != hash_state({"a": torch.zeros(3), "c": torch.ones(2)})
