"""The stand-in for containerd that restarts within a fork: one request per line, one answer each.

It is started under the name `containerd` and forks tests/support/fake_daemon.py whenever that ends,
as systemd would start it again. A request is {"do": "start", "argv", "files", "had", "mounts"} or
{"do": "stop"}; the answer is the PID, or 0. `files` are those whose content at the start is noted
in the file `had`, `mounts` is the file of another mount namespace for it, or empty.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Final

RESTART_PAUSE: Final = 0.03
"""systemd needs some time, too: a start closer to a write would count as one before it."""


def main(standin: str, *packages: str) -> None:
    # It is a supervisor, and has the name of one.
    Path("/proc/self/comm").write_text("runsv", encoding="ascii")
    sys.path += packages
    module = _loaded(standin)
    if packages:
        importlib.import_module("hpack")
    wanted: dict[str, Any] = {}
    pid = 0
    while True:
        fds = [os.pidfd_open(pid)] if pid else []
        ready, _, _ = select.select([0, *fds], [], [])
        for fd in fds:
            os.close(fd)
        if 0 in ready:
            line = sys.stdin.readline()
            _end(pid)
            if not line:
                return
            wanted = json.loads(line)
            pid = _started(module, **wanted)
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
        elif pid:
            os.waitpid(pid, 0)
            time.sleep(RESTART_PAUSE)
            pid = _started(module, **wanted)


def _loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("standin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _end(pid: int) -> None:
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _started(
    module: ModuleType,
    do: str,
    argv: list[str] | None = None,
    files: list[str] | None = None,
    had: str = "",
    mounts: str = "",
) -> int:
    if do != "start":
        return 0
    pid = os.fork()
    if pid:
        return pid
    try:
        if mounts:
            _enter(mounts)
        seen = {
            path: Path(path).read_text("utf-8") if Path(path).exists() else None
            for path in files or []
        }
        Path(had).write_text(json.dumps(seen), encoding="utf-8")
        sys.argv = [sys.argv[0], *(argv or [])]
        module.main()
    finally:
        os._exit(1)


def _enter(mounts: str) -> None:
    """Enter a mount namespace (os.setns is of Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(mounts, "rb") as namespace:
        if libc.setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    main(*sys.argv[1:])
