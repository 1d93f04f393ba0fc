"""The picture of a run: what is drawn, and that it can be read back."""

import math
import xml.etree.ElementTree
from pathlib import Path

import matplotlib.image
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.simulations.curves import Line, Panel, draw_panels, panels_of_rows

ROUNDS = [
    {"round": 1, "epsilon": 0.5, "public_ndcg@10": None, "void": False},
    {"round": 2, "epsilon": 0.9, "public_ndcg@10": 0.2, "void": False},
]


def test_every_known_measure_gets_a_panel_of_the_places_where_it_was_measured() -> None:
    panels = panels_of_rows({"a": ROUNDS, "b": [{"round": 1, "epsilon": math.inf, "public_ndcg@10": 0.1}]}, base=0.15)
    quality, spent = panels
    assert [(line.label, list(line.x), list(line.y)) for line in quality.lines] == [
        ("a", [2], [0.2]),
        ("b", [1], [0.1]),
    ]
    assert (quality.level, quality.axis) == (0.15, "round")
    assert [(line.label, list(line.y)) for line in spent.lines] == [("a", [0.5, 0.9])]  # infinity is no promise
    assert spent.level is None


def test_epochs_are_named_epochs_and_no_rows_give_no_panels() -> None:
    panels = panels_of_rows({"base": [{"epoch": 1, "loss": 3.0, "validation_ndcg@10": 0.1}]})
    assert [panel.axis for panel in panels] == ["epoch", "epoch"]
    assert panels_of_rows({}) == panels_of_rows({"x": []}) == ()


@pytest.mark.parametrize(("count", "wide", "high"), [(1, 1, 1), (2, 2, 1), (3, 2, 2)])
def test_a_picture_holds_two_panels_in_a_row(tmp_path: Path, count: int, wide: int, high: int) -> None:
    panel = Panel(title="t", axis="round", lines=(Line(label="a", x=[1, 2], y=[0.1, 0.2]),), level=0.1)
    pixels = matplotlib.image.imread(draw_panels(tmp_path / "p.png", [panel] * count))
    assert pixels.shape[:2] == (round(3.9 * 130) * high, round(5.6 * 130) * wide)


def test_an_svg_holds_its_titles_and_is_the_same_every_time(tmp_path: Path) -> None:
    panel = Panel(title="t", axis="round", lines=(Line(label="a", x=[1, 2], y=[0.1, 0.2], joined=False),))
    first, second = (draw_panels(tmp_path / f"{n}.svg", [panel]).read_bytes() for n in (1, 2))
    assert first == second
    assert xml.etree.ElementTree.fromstring(first).tag.endswith("svg")


def test_nothing_to_draw_and_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="picture must have something to show"):
        draw_panels(tmp_path / "p.png", [])
    with pytest.raises(ConfigError, match=r"picture must end in \.png or \.svg"):
        draw_panels(tmp_path / "p.pdf", [])
