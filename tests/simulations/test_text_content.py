import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ownlet.shared.errors import AdapterError, DataError
from ownlet.shared.interactions import Item
from ownlet.simulations.item_text import item_texts
from ownlet.simulations.text_content import TextConfig, TextSource, new_text_content, text_content
from ownlet.simulations.text_encoder import encode_texts, load_text_encoder
from ownlet.simulations.text_tuning import TextTuning
from ownlet.simulations.whitening import fit_whitening

ITEMS = tuple(
    Item(number=n, id=f"i{n}", title=title, genres=genres)
    for n, (title, genres) in enumerate(
        (
            ("alien", ("Horror",)),
            ("red moon", ()),
            ("", ()),
            ("wedding", ("Romance",)),
            ("robot crew", ("Drama",)),
            *((f"{a} {b}", ()) for a in ("love", "space", "red") for b in ("alien", "crew", "robot")),
        ),
        1,
    )
)
HISTORIES = [np.array([1, 5]), np.array([4, 2])] * 20
TUNING = TextTuning(rank=2, epochs=2, batch_size=8, learning_rate=1e-2, temperature=0.5)


@pytest.fixture
def config(tiny_encoder, tmp_path):
    return TextConfig(encoder=str(tiny_encoder), cache=tmp_path / "cache")


def test_content_is_the_text_of_every_item_with_a_row_of_zeros_for_padding(config, tiny_encoder):
    content = text_content(ITEMS, config)
    alone = encode_texts(load_text_encoder(str(tiny_encoder)), item_texts(ITEMS))
    np.testing.assert_allclose(content.vectors[1:], fit_whitening(alone)(alone), atol=1e-5)
    assert not content.vectors[0].any()
    assert not content.vectors[3].any()  # no text, no content


def test_new_items_get_their_vectors_from_the_encoder_of_the_base(config, tmp_path, tiny_encoder):
    content = text_content(ITEMS, config)
    source = TextSource.from_plain(content.source.to_plain())
    new = (Item(number=6, id="n", title="robot crew", genres=("Drama",)), Item(number=7, id="o", title="love"))
    found = new_text_content(source, new)
    np.testing.assert_allclose(found[0], content.vectors[5], atol=1e-6)
    moved = shutil.copytree(tiny_encoder, tmp_path / "moved")
    np.testing.assert_array_equal(new_text_content(source, new, encoder=str(moved)), found)
    (moved / "config.json").write_text((moved / "config.json").read_text().replace('"gelu"', '"relu"'))
    with pytest.raises(DataError, match="must be the one of the base"):
        new_text_content(source, new, encoder=str(moved))


def test_a_tuned_encoder_gives_other_vectors_and_is_remembered_with_its_weights(config, tiny_encoder):
    plain = text_content(ITEMS, config)
    tuned = text_content(ITEMS, replace(config, tune=True, tuning=TUNING), histories=HISTORIES, validation=HISTORIES)
    assert np.abs(tuned.vectors - plain.vectors).max() > 1e-3
    source = TextSource.from_plain(tuned.source.to_plain())
    np.testing.assert_allclose(new_text_content(source, ITEMS), tuned.vectors[1:], atol=1e-6)
    # merged by hand: W + (alpha / r) B A in every layer gives the same vectors without any adapter
    encoder = load_text_encoder(str(tiny_encoder))
    weights = source.tuned.spec.split(torch.from_numpy(source.tuned.vector))
    with torch.no_grad():
        for name, (a, b) in weights.items():
            encoder.model.get_submodule(name).weight += source.tuned.spec.alpha / source.tuned.spec.rank * b @ a
    merged = source.whitening(encode_texts(encoder, item_texts(ITEMS)))
    np.testing.assert_allclose(merged, tuned.vectors[1:], atol=1e-4)


def test_an_interrupted_run_does_not_tune_again(config, tmp_path):
    tuned = replace(config, tune=True, tuning=TUNING)
    first = text_content(ITEMS, tuned, histories=HISTORIES, validation=HISTORIES, adapter_file=tmp_path / "a")
    again = text_content(ITEMS, tuned, adapter_file=tmp_path / "a")  # without histories there is nothing to tune on
    np.testing.assert_array_equal(again.vectors, first.vectors)
    np.testing.assert_array_equal(again.source.tuned.vector, first.source.tuned.vector)
    with pytest.raises(AdapterError, match="must belong to base"):
        text_content(ITEMS, replace(tuned, encoder=str(other_encoder(tmp_path, config))), adapter_file=tmp_path / "a")


def other_encoder(folder, config):
    found = shutil.copytree(config.encoder, folder / "other")
    weights = load_file(found / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] += 1
    save_file(weights, found / "model.safetensors", metadata={"format": "pt"})
    return found


def test_whitening_is_fitted_on_the_known_items_alone(config):
    known = np.arange(15) % 15 != 3
    known[0] = False
    some = text_content(ITEMS, config, known=known).source.whitening
    others = (*ITEMS[:2], Item(number=3, id="x", title="space wedding"), *ITEMS[3:])
    np.testing.assert_array_equal(some.mean, text_content(others, config, known=known).source.whitening.mean)
    assert (some.mean != text_content(others, config).source.whitening.mean).any()


def test_items_without_any_text_are_refused(config):
    with pytest.raises(DataError, match="texts to read"):
        text_content((Item(number=1, id="a"),), config)
