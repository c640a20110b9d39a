"""The messages to the service manager: what is in a datagram, and when it is sent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service_manager import Manager
from toolkit.node import service_manager
from toolkit.node.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    abstract = f"@nvidia-toolkit-test-{os.getpid()}"
    made = Manager(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    yield made
    made.close()


def test_the_start_ends_when_the_node_is_ready_for_the_first_time(manager: Manager) -> None:
    sender = ServiceManager(manager.address)
    sender.update("not ready: no driver", is_ready=False)
    sender.update("not ready: no driver", is_ready=False)
    assert manager.received() == [["STATUS=not ready: no driver"]]
    sender.update("ready", is_ready=True)
    assert manager.received() == [["READY=1", "STATUS=ready"]]
    sender.update("not ready: gone", is_ready=False)
    sender.update("ready", is_ready=True)
    assert manager.received() == [["STATUS=not ready: gone"], ["STATUS=ready"]]


def test_a_reload_ends_when_the_requested_sync_has_ended(manager: Manager) -> None:
    sender = ServiceManager(manager.address)
    sender.update("ready", is_ready=True)
    manager.received()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    sender.reloading("reading")
    [[first, moment, status]] = manager.received()
    assert (first, status) == ("RELOADING=1", "STATUS=reading")
    usec = int(moment.removeprefix("MONOTONIC_USEC="))
    assert before <= usec <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    sender.update("ready", is_ready=True, is_settled=False)
    assert manager.received() == [["STATUS=ready"]]
    sender.update("not ready: it failed", is_ready=False, is_settled=True)
    assert manager.received() == [["READY=1", "STATUS=not ready: it failed"]]
    sender.update("not ready: it failed", is_ready=False, is_settled=True)
    assert manager.received() == []


def test_a_reload_does_not_end_the_start(manager: Manager) -> None:
    sender = ServiceManager(manager.address)
    sender.reloading("reading")
    sender.update("not ready: no driver", is_ready=False)
    assert manager.received() == [["STATUS=not ready: no driver"]]


def test_a_text_from_outside_adds_no_message(manager: Manager) -> None:
    sender = ServiceManager(manager.address)
    sender.update("not ready: a\nREADY=1\r\x00\u2028b\udcff", is_ready=False)
    assert manager.received() == [["STATUS=not ready: a READY=1 b"]]
    sender.update("x" * 10_000, is_ready=False)
    [[line]] = manager.received()
    assert line == f"STATUS={'x' * 497}..."


def test_what_is_not_accepted_is_sent_later(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    manager.crowd()
    sender = ServiceManager(manager.address)
    sender.update("ready", is_ready=True)
    assert sender.due == 1002
    assert {lines[0] for lines in manager.received()} == {"X=1"}
    sender.update("ready", is_ready=True)
    assert manager.received() == []
    now = 1002
    sender.update("ready", is_ready=True)
    assert manager.received() == [["READY=1", "STATUS=ready"]]
    assert sender.due == float("inf")


@pytest.mark.parametrize("way", ["update", "keep_alive"])
def test_a_stop_that_is_not_accepted_is_sent_later_with_the_time_that_is_left(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Without it the service manager kills a sync after its own, shorter time."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sender = ServiceManager(manager.address, watchdog=120)
    sender.update("ready", is_ready=True)

    def go_on() -> list[list[str]]:
        if way == "update":
            sender.update("not ready: anything", is_ready=False)
        else:
            sender.keep_alive()
        return manager.received()

    manager.crowd()
    sender.stopping("SIGTERM: stopping", 50)
    assert sender.due == 1002
    manager.received()
    assert go_on() == []
    now = 1002
    manager.crowd()
    assert {lines[0] for lines in go_on()} == {"X=1"}
    assert sender.due == 1004
    now = 1005
    sent = ["STOPPING=1", "EXTEND_TIMEOUT_USEC=45000000", "STATUS=SIGTERM: stopping"]
    assert go_on() == [sent]
    # Nothing follows: neither another status nor a keep-alive of what is about to end.
    assert sender.due == float("inf")
    now = 2000
    sender.reloading("reading")
    assert go_on() == []


def test_a_stop_that_is_accepted_is_sent_once(manager: Manager) -> None:
    sender = ServiceManager(manager.address, watchdog=120)
    sender.stopping("SIGTERM: stopping", 50)
    sender.update("ready", is_ready=True)
    sender.keep_alive()
    [[first, _, _]] = manager.received()
    assert (first, sender.due) == ("STOPPING=1", float("inf"))


def test_keep_alives_are_sent_twice_as_often_as_needed_and_never_while_unhealthy(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sender = ServiceManager(manager.address, watchdog=120)
    sender.keep_alive()
    sender.keep_alive()
    assert (manager.received(), sender.due) == ([["WATCHDOG=1"]], 1060)
    now = 1060
    sender.keep_alive("a sync has been running for 300 s")
    assert (manager.received(), sender.due) == ([], 1075)
    now = 1075
    sender.keep_alive()
    assert (manager.received(), sender.due) == ([["WATCHDOG=1"]], 1135)


def test_a_manager_that_is_gone_is_logged_once_and_costs_no_loop_without_a_pause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("toolkit.log.LOGGER.propagate", True)
    for address in (str(tmp_path / "none"), f"/{'x' * 200}"):
        sender = ServiceManager(address, watchdog=120)
        caplog.clear()
        for _ in range(3):
            sender.update("ready", is_ready=True)
            sender.reloading("reading")
            sender.keep_alive()
            assert sender.due == now + 2
            now += 2
        [message] = caplog.messages
        assert message.startswith("the service manager cannot be notified: ")


@pytest.mark.parametrize(
    ("environment", "is_there", "due"),
    [
        ({}, False, 0),
        ({"NOTIFY_SOCKET": ""}, False, 0),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, False, 0),
        ({"NOTIFY_SOCKET": "relative"}, False, 0),
        ({"NOTIFY_SOCKET": "/s"}, True, float("inf")),
        ({"NOTIFY_SOCKET": "@s", "WATCHDOG_USEC": "120000000"}, True, 0),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, True, float("inf")),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, True, float("inf")),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}, True, float("inf")),
        (
            {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "9", "WATCHDOG_PID": str(os.getpid())},
            True,
            0,
        ),
    ],
)
def test_the_environment_names_the_manager_and_children_do_not_inherit_it(
    environment: dict[str, str], due: float, *, is_there: bool
) -> None:
    own = {"PATH": "/bin", **environment}
    found = service_manager.take(own)
    assert (found is not None) is is_there
    assert found is None or found.due == due
    assert own == {"PATH": "/bin"}
