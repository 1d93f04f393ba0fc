"""Encoders are loaded from folders and from the hub's cache; what they give is checked against one text at a time."""

import shutil
import subprocess
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ownlet.shared.errors import ConfigError, DataError
from ownlet.simulations.text_encoder import encode_texts, load_text_encoder

TEXTS = ("alien horror", "", "the red moon. drama, romance", "robot", "wedding in space (1999). sci-fi")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_vector_is_the_mean_over_real_tokens_scaled_to_length_1(tiny_encoder):
    encoder = load_text_encoder(str(tiny_encoder))
    found = encode_texts(encoder, TEXTS, batch_size=len(TEXTS))  # padded together
    for text, vector in zip(TEXTS, found, strict=True):
        if not text:
            assert not vector.any()
            continue
        ids = torch.tensor([encoder.tokenizer.encode(text)])
        with torch.no_grad():
            mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()  # alone: nothing is padded
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert found.dtype == np.float32


def test_vectors_do_not_depend_on_batches_and_every_batch_is_told(tiny_encoder):
    encoder = load_text_encoder(str(tiny_encoder))
    told = []
    one = encode_texts(encoder, TEXTS, batch_size=2, on_batch=told.append)
    np.testing.assert_allclose(one, encode_texts(encoder, TEXTS), atol=1e-6)
    assert told == [2, 2]  # the empty text is not encoded
    assert encode_texts(encoder, []).shape == (0, 16)


def test_a_text_is_cut_at_the_most_tokens(tiny_encoder):
    encoder = load_text_encoder(str(tiny_encoder), max_tokens=5)
    cut, whole = encode_texts(encoder, ["red moon space robot alien", "red moon space"])
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    assert load_text_encoder(str(tiny_encoder)).max_tokens == 40  # as many as the model has positions for
    with pytest.raises(ConfigError, match="max_tokens"):
        load_text_encoder(str(tiny_encoder), max_tokens=2)


def test_the_fingerprint_is_of_what_changes_a_vector(tiny_encoder, tmp_path):
    encoder = load_text_encoder(str(tiny_encoder))
    encode_texts(encoder, TEXTS)  # leaves padding and truncation in the tokenizer
    shutil.copytree(tiny_encoder, tmp_path / "copy")
    assert load_text_encoder(str(tmp_path / "copy")).fingerprint == encoder.fingerprint
    assert load_text_encoder(str(tiny_encoder), max_tokens=9).fingerprint != encoder.fingerprint
    shutil.copytree(tiny_encoder, tmp_path / "words")
    tokenizer = tmp_path / "words" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"alien"', '"aliens"'))
    assert load_text_encoder(str(tmp_path / "words")).fingerprint != encoder.fingerprint
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][3] += 1e-3
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert load_text_encoder(str(tmp_path / "copy")).fingerprint != encoder.fingerprint


def test_a_hub_id_that_nobody_can_reach_is_one_clear_error(offline):
    for source in ("nobody/no-such-encoder", "no/such/folder", "distilbert-base-uncased"):
        with pytest.raises(DataError, match="folder with a model, or a hub id that is cached or can be reached"):
            load_text_encoder(source)


def test_a_hub_id_that_is_cached_is_read_without_a_network(offline, tiny_encoder):
    model = offline / "models--someone--tiny"
    shutil.copytree(tiny_encoder, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    found = load_text_encoder("someone/tiny")
    assert found.fingerprint == load_text_encoder(str(tiny_encoder)).fingerprint
    assert found.source == "someone/tiny"


def test_a_folder_without_a_model_or_with_a_pickle_is_refused(tiny_encoder, tmp_path):
    with pytest.raises(DataError, match="model and a tokenizer"):
        load_text_encoder(str(tmp_path))
    shutil.copytree(tiny_encoder, tmp_path / "pickled")
    weights = load_file(tmp_path / "pickled" / "model.safetensors")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(DataError, match="model and a tokenizer"):
        load_text_encoder(str(tmp_path / "pickled"))


def test_without_transformers_the_error_says_what_to_install(monkeypatch, tiny_encoder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"ownlet\[text\]"):
        load_text_encoder(str(tiny_encoder))


def test_nothing_imports_transformers_before_an_encoder_is_loaded():
    modules = "ownlet.device, ownlet.cli.main, ownlet.simulations.base_run, ownlet.simulations.text_encoder"
    code = f"import sys, {modules}; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
