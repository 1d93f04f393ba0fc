import pytest

from ownlet.shared.errors import DataError
from ownlet.shared.interactions import Item
from ownlet.simulations.item_text import described, item_texts, read_descriptions

ALIEN = Item(number=1, id="tt1", title="Alien (1979)", genres=("Horror", "Sci-Fi"))


def test_a_text_holds_what_the_item_has_and_nothing_else():
    items = (
        ALIEN,
        Item(number=2, id="a", title="Alien (1979)"),
        Item(number=3, id="b", genres=("Horror",)),
        Item(number=4, id="c", description=" The crew wakes. "),
        Item(number=5, id="d"),
    )
    assert item_texts(items) == (
        "Alien (1979). Horror, Sci-Fi",
        "Alien (1979)",
        "Horror",
        "The crew wakes",
        "",
    )


def test_descriptions_are_matched_by_id(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"id": "tt1", "text": "The crew wakes."}\n\n{"id": "unknown", "text": "x"}\n')
    found = described((ALIEN, Item(number=2, id="a", description="kept")), read_descriptions(file))
    assert [item.description for item in found] == ["The crew wakes.", "kept"]
    assert item_texts(found)[0] == "Alien (1979). Horror, Sci-Fi. The crew wakes"


@pytest.mark.parametrize("line", ["{", '{"id": "a"}', '{"id": 1, "text": "b"}', "[]"])
def test_a_line_that_is_no_description_is_named(tmp_path, line):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"id": "a", "text": "b"}\n' + line)
    with pytest.raises(DataError, match=r"texts.jsonl:2: line must have id and text"):
        read_descriptions(file)
    with pytest.raises(DataError, match="readable JSON lines"):
        read_descriptions(tmp_path / "absent")
