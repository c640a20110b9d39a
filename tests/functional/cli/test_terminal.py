"""The output at a terminal while something takes its time, and what is left of it: nothing."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake_node
from toolkit import log
from toolkit.log import ProgressHandler


class Screen(io.StringIO):
    """A terminal of 80 columns that remembers what was written."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("toolkit.log.time.monotonic", lambda: now[0])
    return now


def test_a_line_comes_goes_on_and_goes(now: list[float]) -> None:
    screen = Screen()
    story = ProgressHandler(screen)
    assert story.under_way("installing") == ""
    story.tick(", 3 of 7 files")  # too soon for another one
    assert screen.getvalue() == "\r\x1b[K  installing ..."
    now[0] += 2
    story.tick(", 5 of 7 files")
    assert screen.getvalue().endswith("\r\x1b[K  installing, 5 of 7 files ... 2 s")
    assert story.under_way("") == "installing"
    assert screen.getvalue().endswith("2 s\r\x1b[K")
    before = screen.getvalue()
    now[0] += 2
    story.tick()
    assert screen.getvalue() == before, "nothing is under way any more"


def test_a_line_is_not_longer_than_the_screen(now: list[float]) -> None:
    screen = Screen()
    ProgressHandler(screen).under_way("x" * 200)
    assert len(screen.getvalue().removeprefix("\r\x1b[K")) == 79


def test_a_screen_that_is_gone_is_no_failure() -> None:
    class Gone(Screen):
        def write(self, text: str) -> int:
            raise OSError

    story = ProgressHandler(Gone())
    story.under_way("installing")
    story.tick()


@pytest.mark.parametrize(
    ("stream", "variables", "manner"),
    [
        (Screen(), {}, "colourful"),
        (io.StringIO(), {}, "plain"),
        (Screen(), {"TERM": "dumb"}, "plain"),
        (Screen(), {"NO_COLOR": ""}, "lines without colours"),
    ],
    ids=["terminal", "pipe", "dumb", "NO_COLOR"],
)
def test_who_gets_colours(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, variables: dict[str, str], manner: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert log.is_plain(stream) is (manner == "plain")
    assert log.is_colourful(stream) is (manner == "colourful")


def shown(*words: str) -> str:
    """Run the program with a terminal for stderr; return what it wrote there."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "toolkit", *words]
    with subprocess.Popen(
        argv,
        env=fake_node.ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ):
        os.close(theirs)
        text = b"".join(fake_node.chunks(ours))
    os.close(ours)
    return text.decode()


def as_seen(text: str) -> list[str]:
    """Return what is left on the screen, line by line."""
    text = re.sub(r"[^\n]*\r\x1b\[K", "", text.replace("\r\n", "\n"))
    return re.sub(r"\x1b\[\d+m", "", text).splitlines()


def test_an_install_shows_its_phases_and_leaves_the_story(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node")
    with fake_node.daemon(node.socket, home=tmp_path / "d"):
        text = shown("-n", *node.options())
    for phase in (
        "inspecting the node",
        "running preflight checks",
        "verifying the runtime",
    ):
        assert f"\r\x1b[K  {phase} ..." in text
    assert re.search(
        r"installing the toolkit, \d+ of \d+ files|installing the toolkit \.\.\.", text
    )
    left = as_seen(text)
    assert all(re.match(r"[IW] \w+: ", line) for line in left), left
    assert left[-1].startswith("I commit: done: ")


def test_an_error_is_red_and_alone_on_its_line(tmp_path: Path) -> None:
    node = fake_node.make_node(tmp_path / "node", b"version = \n")
    text = shown("-n", *node.options(restart_mode="none"))
    assert "\x1b[31merror:\x1b[0m" in text
    assert [line.split(":")[0] for line in as_seen(text)] == ["error", "hint"]
