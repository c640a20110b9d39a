"""How the story is told: to people, to programs, and never over and over."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers, level, raises = log.LOGGER.handlers[:], log.LOGGER.level, logging.raiseExceptions
    propagates = log.LOGGER.propagate
    yield
    log.LOGGER.handlers[:], log.LOGGER.propagate = handlers, propagates
    log.LOGGER.setLevel(level)
    logging.raiseExceptions = raises


def started(*, debug: bool = False, as_json: bool = False, counted: bool = False) -> io.StringIO:
    stream = io.StringIO()
    log.start(stream, debug=debug, as_json=as_json, counted=counted)
    return stream


def test_people_get_level_phase_and_words() -> None:
    stream = started()
    log.LOGGER.info("restarting %s", "containerd.service")
    log.LOGGER.debug("not wanted")
    assert stream.getvalue() == "I cli: restarting containerd.service\n"


def test_programs_get_one_object_per_event() -> None:
    stream = started(as_json=True)
    log.LOGGER.warning("two\nlines", extra=log.facts(code=4, argv=["a", "b"]))
    [line] = stream.getvalue().splitlines()
    said: dict[str, Any] = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
    assert said == {
        "level": "warning",
        "phase": "cli",
        "message": "two\nlines",
        "code": 4,
        "argv": ["a", "b"],
    }


def test_the_same_words_are_counted_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("toolkit.log.time.monotonic", lambda: now[0])
    stream = started(counted=True)
    for _ in range(4):
        log.LOGGER.error("it fails")
        log.LOGGER.error("otherwise")
    assert stream.getvalue() == "E cli: it fails\nE cli: otherwise\n"
    now[0] = 601
    log.LOGGER.error("it fails")
    last = stream.getvalue().splitlines()[-1]
    assert last == "E cli: it fails (repeated 3 times in the last 601 s)"
    log.LOGGER.error("it fails")
    assert stream.getvalue().splitlines()[-1] == last


def test_a_wait_that_gets_shorter_is_the_same_message() -> None:
    stream = started(counted=True)
    for seconds in (1200, 890, 7):
        log.LOGGER.error("this change was rolled back 2 times: next attempt in %d s", seconds)
    log.LOGGER.error("this change was rolled back 3 times: next attempt in 2400 s")
    assert [line.rpartition(" in ")[2] for line in stream.getvalue().splitlines()] == [
        "1200 s",
        "2400 s",
    ]


def test_one_command_says_everything() -> None:
    stream = started()
    log.LOGGER.info("twice")
    log.LOGGER.info("twice")
    assert stream.getvalue() == "I cli: twice\n" * 2


def test_what_is_remembered_is_bounded() -> None:
    stream = started(counted=True)
    for number in range(1000):
        log.LOGGER.info("%d", number)
    [counted] = [each for each in log.LOGGER.handlers[0].filters if isinstance(each, log.Counted)]
    assert len(counted._seen) == 256
    assert len(stream.getvalue().splitlines()) == 1000


def test_what_a_child_tells_is_told_on_as_if_it_were_ours() -> None:
    child = started(as_json=True)
    log.LOGGER.info("changed %s", "/x", extra=log.facts(paths=["/x"]))
    line = child.getvalue().encode()
    text = started()
    log.relay(line)
    assert text.getvalue() == "I cli: changed /x\n"
    again = started(as_json=True)
    log.relay(line)
    assert {**json.loads(again.getvalue()), "time": ""} == {**json.loads(line), "time": ""}


def test_what_a_child_tells_is_counted_too() -> None:
    child = started(as_json=True)
    log.LOGGER.warning("sick")
    line = child.getvalue().encode()
    stream = started(counted=True)
    log.relay(line)
    log.relay(line)
    assert stream.getvalue() == "W cli: sick\n"


def test_a_child_that_tells_too_much_is_not_told_on() -> None:
    stream = started()
    log.relay(b'{"level": "debug", "phase": "x", "message": "y"}')
    assert stream.getvalue() == ""


@given(
    st.binary(max_size=60) | st.sampled_from([b"[]", b"1", b'{"level": "loud"}', b'{"level": []}'])
)
def test_any_line_of_a_child_is_told(line: bytes) -> None:
    stream = started()
    log.relay(line)
    assert stream.getvalue().startswith("W cli: ")


@given(st.text(), st.dictionaries(st.sampled_from(["code", "seconds"]), st.integers()))
def test_any_event_is_one_line_of_json(text: str, facts: dict[str, Any]) -> None:
    stream = started(as_json=True)
    log.LOGGER.info("%s", text, extra=log.facts(**facts))
    assert len(stream.getvalue().split("\n")) == 2
    assert json.loads(stream.getvalue())["message"] == text
