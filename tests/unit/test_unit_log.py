"""Which line of a unit's journal is quoted as the reason why it did not start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import StepError
from toolkit.node import command
from toolkit.node.host import Host
from toolkit.runtime.supervision import unit_log

OLD = 41
FATAL = 'level=fatal msg="failed to load plugin"'


def entry(message: Any, pid: int | None = 42) -> str:
    found = {"MESSAGE": message} | ({} if pid is None else {"_PID": str(pid)})
    return json.dumps(found)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    program = tmp_path / "usr/bin/journalctl"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    return Host(root=tmp_path)


def cause(
    host: Host, monkeypatch: pytest.MonkeyPatch, *lines: str, asked: list[Any] | None = None
) -> str:
    def run(argv: tuple[str, ...], **_: Any) -> command.Result:
        if asked is not None:
            asked.append(argv)
        return command.Result(argv=argv, code=0, out="\n".join(lines), err="")

    monkeypatch.setattr(command, "run", run)
    return unit_log.cause(host, "a.service", since=1.5, until=3, without=OLD, timeout=1)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], "", id="no entry"),
        pytest.param([entry("one"), entry("two")], "two", id="the last line"),
        pytest.param([entry(f'time="2026-11-30T09:00:00.1Z" {FATAL}')], FATAL, id="no time"),
        pytest.param([entry(FATAL), entry("goroutine 1")], FATAL, id="one that names an error"),
        pytest.param([entry("an error"), entry(FATAL)], FATAL, id="the last that names one"),
        pytest.param([entry(FATAL), entry('level=info msg="skip loading" error="no aufs"')], FATAL,
                     id="an error that is none"),
        pytest.param([entry("panic: x"), entry("main.go:1")], "panic: x", id="a panic"),
        pytest.param([entry("why"), entry("Failed with result 'exit-code'", 1)], "why",
                     id="not systemd's"),
        pytest.param([entry("why"), entry("an error of the old one", OLD)], "why",
                     id="not the process from before"),
        pytest.param([entry("why", None)], "why", id="an entry without a PID"),
        pytest.param([entry("why"), entry(""), entry(" ")], "why", id="empty lines"),
        pytest.param([entry([119, 104, 255, 121])], "wh\ufffdy", id="not UTF-8"),
        pytest.param([entry("why"), entry([-1, 300, "x", None])], "why", id="no bytes"),
        pytest.param([entry("a\n\x1b[31mb\x9b")], "a [31mb", id="control characters"),
        pytest.param(["{", "[]", "7", entry("why"), entry(None), entry({})], "why", id="no JSON"),
        pytest.param([entry("password=hunter2")], "password=***", id="a secret"),
        pytest.param([entry("x" * 500)], f"{'x' * 297}...", id="a long line"),
    ],
)  # fmt: skip
def test_the_line_that_most_likely_is_the_cause(
    host: Host, monkeypatch: pytest.MonkeyPatch, lines: list[str], expected: str
) -> None:
    assert cause(host, monkeypatch, *lines) == expected


def test_the_journal_is_asked_for_the_unit_and_the_time(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    cause(host, monkeypatch, asked=asked)
    assert asked[0][0] == "journalctl"
    assert {"--unit=a.service", "--since=@1.500000", "--until=@3.000000"} <= set(asked[0])


def test_a_node_without_a_journal_says_nothing(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> command.Result:
        raise StepError("too slow")

    monkeypatch.setattr(command, "run", fail)
    assert unit_log.cause(host, "a.service", since=1, until=2, without=None, timeout=1) == ""
    (tmp_path / "usr/bin/journalctl").unlink()
    monkeypatch.undo()
    assert unit_log.cause(host, "a.service", since=1, until=2, without=None, timeout=1) == ""
