"""Measurements without a node: wrapper calls, installed files, plans, the probe, the image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import clock, peer
from benchmarks.table import Row
from deploy.programs import build
from tests.support import artifacts, fake_node, images, nodes, programs
from tests.support.availability import Unavailable
from toolkit.node import elf

_MB: Final = 1_000_000
_INSTALLED: Final = 64 * _MB
_RUN: Final = [sys.executable, "-m", "toolkit"]
_LINES: Final = (300, 3_000, 30_000)
# Stands in for a loaded driver, for those who look into /proc and for those who look into /sys. A
# kernel without modules has no /proc/modules to lay another one over, and nobody who is measured
# needs the rest.
_DRIVER: Final = """
set -e
mount -t tmpfs driver /sys/module
mkdir /sys/module/nvidia
mount -t tmpfs driver /proc
echo "nvidia 1 0 - Live 0x0" > /proc/modules
exec "$@"
"""
_CALLS: Final = """
import os, statistics, sys, time
argv, times, took = sys.argv[2:], int(sys.argv[1]), []
quiet = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, quiet, fd) for fd in (0, 1, 2)]
for _ in range(times):
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    os.waitpid(pid, 0)
    took.append(time.perf_counter() - began)
os.write(1, str(statistics.median(took)).encode())
"""


def rows(*, short: bool) -> Iterator[Row]:
    """Measure one after the other."""
    with tempfile.TemporaryDirectory(dir=nodes.cache(), prefix="bench-") as place:
        yield from calls(Path(place) / "calls", 60 if short else 300)
        yield from files(Path(place) / "files", 3 if short else 9)
        yield from plans(Path(place) / "plans", 1 if short else 5)
        yield from probe(Path(place) / "probe", 10 if short else 50)
    if not why_no_image():
        yield from image()


# --- the wrapper --------------------------------------------------------------------------------


def calls(place: Path, times: int) -> Iterator[Row]:
    """Call a wrapper of the smallest possible program, so that only the wrapper is measured."""
    smallest = elf.minimal()
    if smallest is None or os.geteuid() != 0:
        return
    with suppress(Unavailable):
        programs.install()  # as the image has it
    source = artifacts.make(place / "source")
    runc = place / "bin/runc"
    runc.parent.mkdir()
    runc.write_bytes(smallest)
    runc.chmod(0o755)
    wrappers = [_installed(argv, place / name) for name, argv in _installers(source)]
    for wrapper in wrappers:
        wrapper.with_name(f"{wrapper.name}.real").write_bytes(smallest)
    for what, prefix in (
        (
            "an OCI call through the wrapper, driver there",
            ["unshare", "--mount", "sh", "-c", _DRIVER, "sh"],
        ),
        ("the same, driver absent", []),
    ):
        bare = _call(prefix, [str(runc), "state", "x"], times, runc.parent)
        took = [_call(prefix, [str(w), "state", "x"], times, runc.parent) for w in wrappers]
        yield Row(
            what=what,
            unit="s",
            ours=took[0],
            theirs=took[1] if len(took) > 1 else None,
            most=0.0011,
            note=f"median of {times}; the program alone takes {bare * 1000:.2g} ms",
        )


def _call(prefix: Sequence[str], argv: Sequence[str], times: int, path: Path) -> float:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _CALLS, str(times), *argv],
        env={"PATH": f"{path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


# --- the files ----------------------------------------------------------------------------------


def files(place: Path, times: int) -> Iterator[Row]:
    """Install the toolkit's files alone, on the file system of the tests' cache."""
    source = peer.source(place / "source")
    _pad(source / "usr/bin/nvidia-cdi-hook", _INSTALLED - _size(source))
    artifacts.list_hashes(source)  # the image has this list
    for what, is_cold, share in (
        ("first install of 64 MB, warm", False, 3.0),
        ("first install of 64 MB, source not in the page cache", True, 1.2),
    ):
        took: list[float] = []
        for _, argv in _installers(source):
            root = place / "root"
            took.append(
                clock.median(times, partial(_fresh, argv, root, source, is_cold=is_cold)).wall
            )
        yield Row(
            what=what,
            unit="s",
            ours=took[0],
            theirs=took[1] if len(took) > 1 else None,
            share=share,
            note="every byte synced; the peer syncs none",
        )


def _fresh(argv: Sequence[str], root: Path, source: Path, *, is_cold: bool) -> clock.Cost:
    shutil.rmtree(root, ignore_errors=True)
    os.sync()
    for path in source.rglob("*") if is_cold else ():
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    return clock.spawn([word.replace("@ROOT", str(root)) for word in argv])


def _installers(source: Path) -> list[tuple[str, list[str]]]:
    """Return how each installer is told to install files alone below @ROOT."""
    common = [
        "--no-daemon", "--no-runtime-config", "--runtime=containerd",
        f"--toolkit-source-root={source}", "--toolkit-install-dir=@ROOT",
        "--pid-file=@ROOT.run/toolkit.pid",
    ]  # fmt: skip
    found = [("ours", [*_RUN, "run", *common])]
    if theirs := peer.found():
        # In a session of its own: where it takes 0 for a PID it signals its whole group.
        found.append(("theirs", ["setsid", "--wait", str(theirs), *common]))
    return found


def _installed(argv: Sequence[str], root: Path) -> Path:
    root.with_name(f"{root.name}.run").mkdir(parents=True)
    clock.spawn([word.replace("@ROOT", str(root)) for word in argv])
    return root / "toolkit/nvidia-container-runtime"


def _pad(path: Path, size: int) -> None:
    if size > 0:
        with open(path, "ab") as stream:
            stream.write(os.urandom(size))


def _size(root: Path) -> int:
    return sum(
        path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()
    )


# --- plans and the probe ------------------------------------------------------------------------


def plans(place: Path, times: int) -> Iterator[Row]:
    """Plan for configurations of three sizes, in both languages, without a daemon or a binary."""
    place.mkdir()
    goals = dict(zip(_LINES, (0.15, None, 3.0), strict=True))
    for runtime, make in (("containerd", toml), ("docker", json_text)):
        for lines in _LINES:
            config = place / f"{runtime}-{lines}"
            config.write_bytes(make(lines))
            argv = [
                *_RUN, "plan", f"--runtime={runtime}", f"--config={config}",
                f"--socket={place}/none", f"--toolkit-install-dir={place}/nvidia",
                "--config-source=file", "--host-root=/",
            ]  # fmt: skip
            if runtime == "containerd":
                argv.append("--drop-in-config=")
            cost = clock.median(times, partial(clock.spawn, argv))
            memory = clock.memory(argv[2], argv[3:])
            yield Row(
                what=f"`plan`, {lines} lines of {'TOML' if runtime == 'containerd' else 'JSON'}",
                unit="s",
                ours=cost.wall,
                most=goals[lines],
                note=f"{cost.cpu * 1000:.0f} ms of the processor, {memory:.0f} MB",
            )


def toml(lines: int) -> bytes:
    """Return a root config of containerd with as many lines, most of them registries."""
    found = fake_node.KUBEADM.decode().splitlines(keepends=True)
    for number in range((lines - len(found)) // 4):
        name = (
            f'[plugins."io.containerd.grpc.v1.cri".registry.configs."r{number}.example.com".auth]\n'
        )
        found += [name, f'  username = "u{number}"\n', f'  password = "p{number}"\n', "\n"]
    return "".join(found).encode()


def json_text(lines: int) -> bytes:
    """Return a daemon.json with as many lines."""
    number = (lines - 8) // 4
    found = {
        "log-driver": "json-file",
        "insecure-registries": [f"r{i}.example.com:5000" for i in range(number)],
        "node-generic-resources": {f"k{i}": {"a": i} for i in range(number)},
    }
    return json.dumps(found, indent=2).encode()


def probe(place: Path, times: int) -> Iterator[Row]:
    """Ask as an exec probe does, of a node that is ready: with Python, and as in the image."""
    node = fake_node.make_node(place)
    told = place / "cri.json"
    told.write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
    with fake_node.daemon(node.socket, home=place / "d", cri=str(told)):
        fake_node.done("run", "--no-daemon", *node.options())
        argv = [*_RUN, "status", "--quiet", *node.options()]
        cost = clock.median(times, partial(clock.spawn, argv))
        memory = clock.memory(argv[2], argv[3:])
        in_image = _in_image(place, node.pid_file, times)
    yield Row(
        what="`status --quiet`",
        unit="s",
        ours=cost.wall,
        most=0.15,
        note=f"median of {times}; {cost.cpu * 1000:.0f} ms of the processor, {memory:.0f} MB of 25",
    )
    if in_image is None:
        return
    bare = clock.median(times, partial(clock.spawn, [sys.executable, "-I", "-c", "pass"]))
    yield Row(
        what="the same in the image, whose launcher answers",
        unit="s",
        ours=in_image.wall,
        most=2 * bare.wall,
        note=(
            f"{in_image.cpu * 1000:.2g} ms of the processor; `python -I -c pass`"
            f" {bare.cpu * 1000:.0f} ms"
        ),
    )


def _in_image(place: Path, pid_file: Path, times: int) -> clock.Cost | None:
    """Return the cost of the launcher's answer; None where it cannot be built or may not answer."""
    if os.geteuid() != 0:
        return None
    try:
        program = programs.program("launcher")
    except Unavailable:
        return None
    launcher = place / "nvidia-toolkit"
    # Without a Python to start, another answer than yes is an error.
    launcher.write_bytes(build.launcher(program, Path("/nonexistent"), Path("/nonexistent")))
    launcher.chmod(0o755)
    environment = {"TOOLKIT_PID_FILE": str(pid_file)}
    argv = [str(launcher), "status", "--quiet"]
    return clock.median(times, partial(clock.spawn, argv, environment))


# --- the image ----------------------------------------------------------------------------------


def image() -> Iterator[Row]:
    """Build the image from what the cache holds; compare all above libc with the peer's program.

    The peer's base holds no more than a C library either, so Python counts as ours.
    """
    theirs = peer.found()
    with tempfile.TemporaryDirectory(dir=nodes.cache(), prefix="bench-") as place:
        store = images.Store(Path(place))
        store.take_base()
        above, _ = images.sizes(store.build()[1])
        root = store.mounted()
        [packages] = root.glob("usr/local/lib/python3*/*-packages")
        [stdlib] = root.glob("usr/lib/python3*")
        parts = {each: _size(each) / _MB for each in (packages, stdlib)}
        store("rm", "--all")
    yield Row(
        what="image above the C library and artifacts",
        unit="MB",
        ours=above,
        theirs=theirs.stat().st_size / _MB if theirs else None,
        share=1.0,
        note=(
            f"{parts[packages]:.1f} MB are this program and its packages,"
            f" {parts[stdlib]:.1f} the standard library,"
            " the rest Python's interpreter, OpenSSL and a shell"
        ),
    )


def why_no_image() -> str:
    """Return why no image can be built of what is there; empty where it can."""
    return images.why_not() or images.lacking()
