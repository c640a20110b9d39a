"""Take the pictures in docs/screenshots/: the program in a terminal of a booted node.

`make screenshots` boots a node with containerd, installs the program on it, runs each command in an
xterm of 100 columns, and takes a picture of what the xterm shows. It needs root, what booted nodes
need (CONTRIBUTING.md), and Xvfb, xterm, ImageMagick and the font DejaVu Sans Mono: on Debian
`apt-get install xvfb xterm imagemagick fonts-dejavu-core`.

For the rollback, the node's containerd is made to fail: while the handlers are in its
configuration, a directory takes the place of its socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support import artifacts, containers, hosts, nodes
from tests.support.nodes import Node

HOME: Final = hosts.ROOT / "docs/screenshots"
LARGEST: Final = 100_000
"""The most bytes that a picture may have."""
_PROGRAMS: Final = ("Xvfb", "xterm", "import", "convert", "identify")
_COLUMNS: Final = 100
_ROWS: Final = 340
_BORDER: Final = 10
_TITLE: Final = "screenshot"
_BACKGROUND: Final = "#1f242c"
# Readable on this background, which stands out from a light page and from a dark one.
_COLOURS: Final = {
    "foreground": "#d6dce4",
    "color1": "#ff7b72",
    "color2": "#6fd58b",
    "color3": "#e3b341",
    "color6": "#62c9e8",
}
_DONE: Final = "/run/screenshot-done"
_TIMEOUT: Final = 180.0
_PAUSE: Final = 0.3
_DROP_IN: Final = "/etc/systemd/system/containerd.service.d/screenshot.conf"
_FAULT: Final = """\
[Service]
ExecStartPre=/bin/sh -c 's=/run/containerd/containerd.sock; \
if grep -q nvidia /etc/containerd/config.toml; then rm -f $s; mkdir -p $s; \
elif test -d $s; then rmdir $s; fi'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture: its name, the commands that it shows, and how the node is prepared for it.

    `before` is a command for the node's shell that is not shown. The picture ends before the first
    line of the output that is `until`, if that is given.
    """

    name: str
    commands: tuple[str, ...]
    before: str = ""
    until: str = ""


SCENES: Final = (
    Scene(name="plan", commands=("nvidia-toolkit plan --runtime containerd",)),
    Scene(
        name="status",
        commands=(
            "nvidia-toolkit run --no-daemon --runtime containerd",
            "nvidia-toolkit status --runtime containerd",
        ),
    ),
    Scene(
        name="diagnose",
        commands=("nvidia-toolkit diagnose --runtime containerd",),
        before="rm /usr/local/nvidia/toolkit/nvidia-container-runtime.cdi",
        until="node",
    ),
    Scene(
        name="rollback",
        commands=("nvidia-toolkit run --no-daemon --runtime containerd",),
        before=(
            "nvidia-toolkit revert --runtime containerd;"
            " rm -f /run/nvidia/toolkit/restarts.json; systemctl daemon-reload"
        ),
    ),
)


def main() -> int:
    """Take every screenshot; return 1, with the reason, on a machine that cannot."""
    if reason := why_not():
        sys.stderr.write(f"no screenshots: {reason}\n")
        return 1
    HOME.mkdir(exist_ok=True)
    with _prepared() as node, _display() as display, tempfile.TemporaryDirectory() as scratch:
        for scene in SCENES:
            picture = HOME / f"{scene.name}.png"
            if scene.name == "rollback":
                _write(node, _DROP_IN, _FAULT)
            _sh(node, scene.before)
            _take(node, scene, display, Path(scratch), picture)
            size = picture.stat().st_size
            sys.stdout.write(f"{picture.relative_to(hosts.ROOT)}: {size} bytes\n")
            if size > LARGEST:
                sys.stderr.write(f"it may have {LARGEST}\n")
                return 1
    return 0


def why_not() -> str:
    """Return why this machine can take no screenshots, "" if it can."""
    if reason := nodes.why_not():
        return reason
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"it needs {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def _prepared() -> Iterator[Node]:
    """Boot a node with the program, the toolkit's files, and an image for pod sandboxes."""
    with nodes.boot(hosts.SUITE) as node:
        hosts.install(node)
        artifacts.make(nodes.path(node, "/artifacts/deb"))
        containers.prepare_images(node)
        yield node


@contextlib.contextmanager
def _display() -> Iterator[str]:
    """Run an X server without a screen, and yield its name."""
    reader, writer = os.pipe()
    size = f"{_COLUMNS * 10}x{_ROWS * 20}x24"
    server = subprocess.Popen(
        ("Xvfb", "-displayfd", str(writer), "-screen", "0", size, "-nolisten", "tcp"),
        pass_fds=(writer,),
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader, encoding="ascii") as answer:
            yield f":{answer.readline().strip()}"
    finally:
        server.terminate()
        server.wait(20)


def _take(node: Node, scene: Scene, display: str, scratch: Path, picture: Path) -> None:
    """Run the commands of a scene in a terminal, and write the picture of it."""
    shown_and_run = "".join(f"echo '# {each}'; {each}; " for each in scene.commands)
    script = f"printf '\\033[?25l'; {shown_and_run}touch {_DONE}; sleep 600"
    words = [
        f"-xrm=XTerm*VT100.{name}: {colour}"
        for name, colour in {"background": _BACKGROUND, **_COLOURS}.items()
    ]
    terminal = subprocess.Popen(
        (
            "xterm", "-display", display, "-title", _TITLE, "-geometry", f"{_COLUMNS}x{_ROWS}+0+0",
            "-fa", "DejaVu Sans Mono", "-fs", "11", "-b", str(_BORDER), "+sb",
            *(part for word in words for part in word.split("=", 1)),
            "-e", "nsenter", f"--target={node.pid}", "--mount", "--pid", "--uts", "--ipc",
            "--cgroup", "--net", "--root", "--wd", "--", "env", "-i", "TERM=xterm-256color",
            f"PATH={nodes.PATH}", "HOME=/root", "sh", "-c", script,
        ),
        env={"PATH": nodes.PATH, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    try:
        nodes.wait_for(node, nodes.path(node, _DONE).exists, _TIMEOUT)
        shown = _still(display, scratch)
    finally:
        terminal.terminate()
        terminal.wait(20)
        nodes.path(node, _DONE).unlink(missing_ok=True)
    rows = _rows_before(node, scene) if scene.until else 0
    _cut(shown, rows, picture)


def _still(display: str, scratch: Path) -> Path:
    """Return a picture of the terminal as soon as two in a row are the same."""
    before = b""
    path = scratch / "terminal.png"
    while True:
        time.sleep(_PAUSE)
        subprocess.run(
            ("import", "-display", display, "-window", _TITLE, "+repage", f"png24:{path}"),
            check=True,
        )
        # Without the times that a PNG may hold.
        now = _output("identify", "-format", "%#", str(path)).encode()
        if now == before:
            return path
        before = now


def _rows_before(node: Node, scene: Scene) -> int:
    """Return how many rows of the terminal precede the line at which a picture ends."""
    lines = _sh(node, scene.commands[-1]).splitlines()
    lines = lines[: lines.index(scene.until)]
    while lines and not lines[-1]:
        lines.pop()
    return 1 + sum(max(1, -(-len(line) // _COLUMNS)) for line in lines)


def _cut(shown: Path, rows: int, picture: Path) -> None:
    """Write the picture of the first rows, 0 for those that have text, in few colours."""
    width, height = map(int, _output("identify", "-format", "%w %h", str(shown)).split())
    if rows:
        used = _BORDER + rows * (height - 2 * _BORDER) // _ROWS
    else:
        box = ("-trim", "-format", "%[fx:page.y+h]", "info:")
        used = int(float(_output("convert", str(shown), *box)))
    subprocess.run(
        (
            "convert", str(shown), "-crop", f"{width}x{min(used + _BORDER, height)}+0+0",
            "+repage", "-strip", "+dither", "-colors", "48", f"png8:{picture}",
        ),
        check=True,
    )  # fmt: skip


def _sh(node: Node, line: str) -> str:
    return nodes.run(node, ("sh", "-c", line or "true"), timeout=_TIMEOUT).stdout


def _write(node: Node, name: str, text: str) -> None:
    path = nodes.path(node, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
