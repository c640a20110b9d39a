"""Patterns that compile themselves when they are first used."""

from __future__ import annotations

import copy
import gc
import importlib
import pkgutil
import re

import pytest

import runtimes
import toolkit
from runtimes import lazy_pattern as module
from runtimes.lazy_pattern import lazy_pattern


def test_it_compiles_once_and_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_(pattern: str, flags: int) -> re.Pattern[str]:
        compiled.append((pattern, flags))
        return re.compile(pattern, flags)

    monkeypatch.setattr(module, "re", type("re", (), {"compile": staticmethod(compile_)}))
    words = lazy_pattern("A+", re.IGNORECASE)
    assert words.pattern == "A+"
    assert not compiled
    assert words.fullmatch("aAa")
    assert words.sub("b", "xaa") == "xb"
    assert [found.group() for found in words.finditer("a-A")] == ["a", "A"]
    assert compiled == [("A+", re.IGNORECASE)]


def test_an_unknown_attribute_is_one() -> None:
    with pytest.raises(AttributeError, match="groups"):
        _ = lazy_pattern("a").groups
    assert copy.copy(lazy_pattern(b"a")).search(b"ba")


def test_every_pattern_of_the_program_is_valid() -> None:
    for package in (runtimes, toolkit):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    patterns = [made for made in gc.get_objects() if isinstance(made, module._LazyPattern)]
    assert len(patterns) > 50
    for pattern in patterns:
        empty = "" if isinstance(pattern.pattern, str) else b""
        pattern.search(empty)
