import numpy as np
import pytest

from ownlet.shared.errors import ConfigError, DataError
from ownlet.simulations.text_encoder import encode_texts, load_text_encoder
from ownlet.simulations.tiny_encoder import TinyEncoderConfig, train_tiny_encoder

TEXTS = [f"{a} {b}. {g}" for a, g in (("red", "drama"), ("dark", "horror")) for b in ("moon", "sun", "star")] * 8


def test_an_encoder_that_is_trained_here_restores_words_and_can_be_loaded(tmp_path):
    config = TinyEncoderConfig(dim=16, num_layers=1, num_heads=2, epochs=8, batch_size=8, learning_rate=5e-3)
    losses = []
    folder = train_tiny_encoder(tmp_path / "encoder", ["", *TEXTS], config, on_epoch=losses.append)
    assert losses[-1] < 0.7 * losses[0]
    encoder = load_text_encoder(str(folder))
    found = encode_texts(encoder, ["red moon. drama", "Red Moon. Drama", "dark sun. horror"])
    np.testing.assert_array_equal(found[0], found[1])  # case is not read
    assert abs(found[0] @ found[2]) < 0.999
    assert encoder.tokenizer.decode(encoder.tokenizer.encode("red moon")) == "[CLS] red moon [SEP]"
    again = train_tiny_encoder(tmp_path / "again", ["", *TEXTS], config)
    assert load_text_encoder(str(again)).fingerprint == encoder.fingerprint


def test_without_text_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match="some text"):
        train_tiny_encoder(tmp_path / "encoder", ["", ""], TinyEncoderConfig())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="num_heads must divide"):
        TinyEncoderConfig(dim=10, num_heads=4)
