"""Dotted names to dataclasses and back: types, rules, origins of errors."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ownlet.shared.errors import ConfigError, require
from ownlet.shared.settings import DEFAULTS, Given, build, default_values, describe_type, leaf_types


@dataclass(frozen=True, kw_only=True)
class Point:
    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    count: int = 3

    def __post_init__(self) -> None:
        require(self.rate < self.count, "rate must be below count", rate=self.rate, count=self.count)


@dataclass(frozen=True, kw_only=True)
class Outer:
    path: Path
    kind: Literal["a", "b"] = "a"
    seed: int | None = None
    flag: bool = False
    numbers: tuple[float, ...] = (1.0,)
    pairs: tuple[tuple[str, str], ...] = ()
    points: tuple[Point, ...] = ()
    inner: Inner = field(default_factory=lambda: Inner(count=9))


def given(source: str = "x.toml", **values: Any) -> dict[str, Given]:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return {name: Given(value=value, source=source) for name, value in named.items()}


def test_names_and_defaults_are_those_of_the_leaves() -> None:
    assert list(leaf_types(Outer))[-2:] == ["inner.rate", "inner.count"]
    defaults = default_values(Outer)
    assert "path" not in defaults
    assert (defaults["inner.count"], defaults["numbers"]) == (9, (1.0,))


def test_values_become_what_the_annotations_name() -> None:
    values = given(
        path="a/b", kind="b", seed=4, flag=True, numbers=[1, math.inf], pairs=[["user", "who"]], inner__rate=2,
        points=[{"name": "n", "weight": 3}],
    )  # fmt: skip
    built = build(Outer, values)
    assert built == Outer(
        path=Path("a/b"),
        kind="b",
        seed=4,
        flag=True,
        numbers=(1.0, math.inf),
        pairs=(("user", "who"),),
        points=(Point(name="n", weight=3.0),),
        inner=Inner(rate=2.0, count=9),
    )
    assert type(built.inner.rate) is float


def test_what_is_not_given_keeps_the_default_of_the_outer_dataclass() -> None:
    assert build(Outer, given(path="p")).inner == Inner(count=9)
    assert build(Outer, given(path="p", seed="none")).seed is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner__count": 2.5}, r"^inner\.count must be a whole number, got 2\.5 in x\.toml$"),
        ({"inner__count": True}, "inner.count must be a whole number, got True"),
        ({"inner__rate": "1"}, "inner.rate must be a number, got '1' in x.toml"),
        ({"kind": "c"}, "kind must be a or b, got 'c' in x.toml"),
        ({"seed": "x"}, "seed must be a whole number or none, got 'x'"),
        ({"numbers": 3}, "numbers must be a list of numbers, got 3"),
        ({"pairs": [["a"]]}, r"pairs must be a list of pairs, got \[\['a'\]\]"),
        ({"points": [{"nam": "x"}]}, "settings must have known keys, got nam in a table; did you mean name"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"inner__rate": 12.0}, r"^inner\.rate must be below count, got rate=12\.0, count=9 in x\.toml$"),
        ({"inner__rat": 1}, r"^settings must have known keys, got inner\.rat in x\.toml; did you mean inner\.rate\?$"),
        ({"count": 1}, r"got count in x\.toml; did you mean inner\.count\?"),
        ({"inner": 1}, r"must have known keys, got inner in x\.toml"),
    ],
)
def test_a_mistake_is_named_with_key_rule_value_and_origin(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, {**given(path="p"), **given(**values)})


def test_a_missing_value_is_named_as_it_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"^run\.path must be given$"):
        build(Outer, {}, shown=lambda name: f"run.{name}")


def test_an_error_does_not_blame_the_defaults() -> None:
    values = {**given("--rate", inner__rate=7.0), "inner.count": Given(value=1, source=DEFAULTS), **given(path="p")}
    with pytest.raises(ConfigError, match=r"rate=7\.0, count=1 in --rate$"):
        build(Outer, values)


def test_types_are_described_in_words() -> None:
    said = {name: describe_type(hint) for name, hint in leaf_types(Outer).items()}
    assert said["seed"] == "a whole number or none"
    assert said["kind"] == "a or b"
    assert (said["pairs"], said["path"], said["flag"]) == ("a list of pairs", "a path", "true or false")
