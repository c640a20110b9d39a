"""The service manager that started this program: it is sent readiness, a status and keep-alives.

The protocol is that of sd_notify(3): one datagram of NAME=value lines to the socket that
NOTIFY_SOCKET names. systemd accepts a few datagrams at a time and drops none, so one that cannot be
sent now is sent later.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Final

from toolkit.errors import ToolkitError
from toolkit.log import LOGGER

ADDRESS: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"
_LONGEST_STATUS: Final = 500
_SEND_SECONDS: Final = 0.2
"""How long to wait while the service manager accepts no datagram; the NRI plugin has 2 s."""
_RETRY_SECONDS: Final = 2.0
_NEVER: Final = float("inf")


class ServiceManager:
    """The service manager, and what it was sent so far.

    `due` is the monotonic time at which `keep_alive` or `update` has something to send, whether or
    not anything changes.
    """

    def __init__(self, address: str, watchdog: float | None = None) -> None:
        """Take the address of its socket, and after how many seconds without a keep-alive it acts.

        An address that begins with @ is in the abstract namespace.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval = _NEVER if watchdog is None else watchdog / 2
        self._alive_due = _NEVER if watchdog is None else 0.0
        self._retry_due = _NEVER
        self._status = ""
        self._is_started = False
        self._is_reloading = False
        self._is_stopping = False
        self._stop_status = ""
        self._stop_end = _NEVER
        self._problem = ""

    @property
    def due(self) -> float:
        """Return the monotonic time of the next datagram."""
        return min(self._alive_due, self._retry_due)

    def update(self, status: str, *, is_ready: bool, is_settled: bool = True) -> None:
        """Send the status if it changed, and readiness once.

        The start of the service ends when it is ready for the first time. A reload ends when it
        `is_settled`, that is, when what was requested has been done: the protocol cannot report
        that it failed, so the status does.
        """
        if self._is_stopping:
            self._send_stop()
            return
        text = _one_line(status)
        is_done = (is_ready and not self._is_started) or (self._is_reloading and is_settled)
        lines = ["READY=1"] if is_done else []
        if text != self._status:
            lines.append(f"STATUS={text}")
        if not lines:
            self._retry_due = _NEVER
        elif self._may_send() and self._send(lines):
            self._status = text
            self._is_started = self._is_started or is_done
            self._is_reloading = self._is_reloading and not is_done

    def reloading(self, status: str) -> None:
        """Send that the settings are being read again.

        A service that is still starting is not reloading: the READY=1 that ends the reload would
        end the start.
        """
        if self._is_started and not self._is_stopping:
            moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            lines = ("RELOADING=1", f"MONOTONIC_USEC={moment}", f"STATUS={_one_line(status)}")
            if self._send(lines):
                self._is_reloading, self._status = True, _one_line(status)

    def stopping(self, status: str, seconds: float) -> None:
        """Send that the service stops, which takes at most some seconds.

        Nothing else is sent any more. If it is not accepted, `update` and `keep_alive` send it.
        """
        self._is_stopping, self._stop_status = True, _one_line(status)
        self._stop_end = time.monotonic() + seconds
        self._alive_due = _NEVER
        self._retry_due = 0.0
        self._send_stop()

    def _send_stop(self) -> None:
        """Send that the service stops, and the time that is left, unless that was accepted."""
        now = time.monotonic()
        if now >= self._retry_due:
            left = max(-((now - self._stop_end) // 1), 0.0)  # whole seconds, rounded up
            self._send(
                (
                    "STOPPING=1",
                    f"EXTEND_TIMEOUT_USEC={int(left) * 1_000_000}",
                    f"STATUS={self._stop_status}",
                )
            )

    def keep_alive(self, problem: str = "") -> None:
        """Send a keep-alive if one is due, unless a `problem` says why the service is unhealthy."""
        if self._is_stopping:
            self._send_stop()
            return
        now = time.monotonic()
        if now < self._alive_due:
            return
        if problem:
            self._alive_due = (
                now + self._interval / 4
            )  # it may have passed before the watchdog acts
        else:
            is_sent = self._send(("WATCHDOG=1",))
            self._alive_due = now + (self._interval if is_sent else _RETRY_SECONDS)

    def _may_send(self) -> bool:
        """Return whether to try now: each try may take a moment while nothing is accepted."""
        return self._retry_due == _NEVER or time.monotonic() >= self._retry_due

    def _send(self, lines: tuple[str, ...] | list[str]) -> bool:
        """Send a datagram; return whether it was accepted. A new problem is logged once."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
                client.settimeout(_SEND_SECONDS)
                client.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except (OSError, ValueError) as error:
            self._retry_due = time.monotonic() + _RETRY_SECONDS
            problem = f"the service manager cannot be notified: {error}"
            if problem != self._problem:
                LOGGER.warning("%s", problem)
            self._problem = problem
            return False
        self._retry_due, self._problem = _NEVER, ""
        return True


def of(environment: Mapping[str, str]) -> ServiceManager | None:
    """Return the service manager that the environment names, None if there is none.

    The keep-alives that another process must send do not count.
    """
    address = environment.get(ADDRESS, "")
    if not address.startswith(("/", "@")):  # others, such as vsock, are not for services
        return None
    pid = environment.get(_WATCHDOG_PID, "")
    text = environment.get(_WATCHDOG, "")
    is_own = not pid or pid == str(os.getpid())
    usec = int(text) if is_own and text.isdecimal() else 0
    return ServiceManager(address, usec / 1_000_000 if usec else None)


def take(environment: MutableMapping[str, str]) -> ServiceManager | None:
    """Return the service manager, and remove its variables: children must not send to it."""
    manager = of(environment)
    for name in (ADDRESS, _WATCHDOG, _WATCHDOG_PID):
        environment.pop(name, None)
    return manager


@contextmanager
def starting(status: str) -> Iterator[None]:
    """Send a status, and the error if one ends the block."""
    manager = of(os.environ)
    if manager is None:
        yield
        return
    manager.update(status, is_ready=False)
    try:
        yield
    except ToolkitError as error:
        manager.update(f"failed: {error.message}", is_ready=False)
        raise


def _one_line(text: str) -> str:
    """Return a text without line breaks, which would begin another message, and not too long."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= _LONGEST_STATUS else f"{line[: _LONGEST_STATUS - 3]}..."
