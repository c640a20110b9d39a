"""The program's dataclasses behave as Python's do."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest

from runtimes import dataclass as own


@pytest.fixture(params=[dataclasses, own], ids=["Python's", "own"])
def module(request: pytest.FixtureRequest) -> Any:
    assert isinstance(request.param, ModuleType)
    return request.param


@pytest.fixture
def point(module: Any) -> Any:
    """Return a frozen class with a default and a field that is neither compared nor shown."""

    class Point:
        """A place."""

        x: int
        y: int = 2
        note: list[str] = module.field(default_factory=list, compare=False, repr=False)

        @property
        def total(self) -> int:
            return self.x + self.y

    make: Any = module.dataclass(frozen=True, slots=True, kw_only=True)
    return make(Point)


def test_values_and_defaults(point: Any) -> None:
    made = point(x=1)
    assert (made.x, made.y, made.note, made.total) == (1, 2, [], 3)
    assert point(x=1, y=5, note=["a"]).note == ["a"]
    assert point(x=1).note is not made.note
    assert point.__doc__ == "A place."
    assert point.__qualname__.endswith(".Point")


@pytest.mark.parametrize("given", [{}, {"y": 1}, {"x": 1, "z": 2}, {"x": 1, "y": 2, "Y": 3}])
def test_a_missing_or_unknown_value_is_refused(point: Any, given: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        point(**given)


def test_a_keyword_only_class_takes_no_positional_value(point: Any) -> None:
    with pytest.raises(TypeError):
        point(1)


def test_equality_and_hash(point: Any, module: Any) -> None:
    assert point(x=1) == point(x=1, note=["other"])
    assert hash(point(x=1)) == hash(point(x=1, note=["other"]))
    assert point(x=1) != point(x=2)
    assert point(x=1) != (1, 2)
    assert len({point(x=1), point(x=1), point(x=3)}) == 2

    class Other:
        x: int
        y: int = 2

    make: Any = module.dataclass(frozen=True, slots=True)
    assert point(x=1) != make(Other)(1)


def test_a_frozen_one_does_not_change(point: Any) -> None:
    made = point(x=1)
    with pytest.raises(AttributeError, match="cannot assign to"):
        made.x = 2
    with pytest.raises((AttributeError, TypeError)):  # the latter from Python before 3.14
        made.new = 2
    with pytest.raises(AttributeError, match="cannot delete"):
        del made.x
    assert made.x == 1
    assert not hasattr(made, "__dict__")


def test_its_text(point: Any) -> None:
    assert repr(point(x=1, y="a")).endswith("Point(x=1, y='a')")


def test_replace(point: Any, module: Any) -> None:
    made = point(x=1, note=["a"])
    for replace in (module.replace, getattr(dataclasses, "replace")):  # noqa: B009  # not for mypy
        assert (replace(made, y=7).y, replace(made, y=7).note) == (7, ["a"])
        assert replace(made) == made
        with pytest.raises(TypeError):
            replace(made, z=1)
    with pytest.raises(TypeError):
        module.replace(object(), x=1)


def test_asdict(point: Any, module: Any) -> None:
    made = point(x=1, y=[point(x=2), {"k": (point(x=3, note=["n"]),)}])
    inner = {"x": 3, "y": 2, "note": ["n"]}
    expected = {
        "x": 1,
        "y": [{"x": 2, "y": 2, "note": []}, {"k": (inner,)}],
        "note": [],
    }
    assert module.asdict(made) == dataclasses.asdict(made) == expected


def test_python_s_own_functions_know_it(point: Any) -> None:
    for known in (point, point(x=1)):
        assert bool(dataclasses.is_dataclass(known))
        assert [field.name for field in dataclasses.fields(known)] == ["x", "y", "note"]


def test_positional_values_and_patterns(module: Any) -> None:
    class Pair:
        first: int
        second: int = 0

    make: Any = module.dataclass(frozen=True, slots=True)
    pair: Any = make(Pair)
    assert pair(1, 2) == pair(1, second=2) == pair(first=1, second=2)
    assert pair.__match_args__ == ("first", "second")
    with pytest.raises(TypeError):
        pair(1, 2, 3)
    with pytest.raises(TypeError):
        pair(1, first=1)


def test_one_that_is_not_frozen_changes_and_has_no_hash(module: Any) -> None:
    class Counter:
        count: int = 0
        seen: dict[str, int] = module.field(init=False, default_factory=dict)

    make: Any = module.dataclass(slots=True, kw_only=True)
    counter: Any = make(Counter)
    made = counter()
    made.count += 1
    assert made == counter(count=1)
    with pytest.raises(AttributeError):
        made.other = 1
    with pytest.raises(TypeError):
        hash(made)
    with pytest.raises(TypeError):
        counter(seen={})
    assert module.replace(made, count=5).seen == {}


def test_methods_of_the_class_itself_stay(module: Any) -> None:
    class Shown:
        x: int

        def __repr__(self) -> str:
            return "shown"

        def __getattr__(self, name: str) -> str:
            return f"no {name}"

    make: Any = module.dataclass(frozen=True, slots=True, kw_only=True)
    shown: Any = make(Shown)
    assert (repr(shown(x=1)), shown(x=1).y) == ("shown", "no y")


def test_what_a_class_does_after_its_values_are_set(module: Any) -> None:
    class Counter:
        start: int
        count: int = module.field(init=False, default=0)

        def __post_init__(self) -> None:
            self.count = self.start + 1

    make: Any = module.dataclass(slots=True, kw_only=True)
    assert make(Counter)(start=3).count == 4


def test_a_class_without_slots_is_refused() -> None:
    with pytest.raises(TypeError, match="must have slots"):
        own.dataclass(slots=False)


def test_defining_one_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("exec", "eval", "compile"):
        monkeypatch.setattr(f"builtins.{name}", None)

    class A:
        x: int

    make: Any = own.dataclass(frozen=True, slots=True)
    assert make(A)(1).x == 1
