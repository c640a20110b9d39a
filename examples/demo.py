"""Show the program on a throw-away node: plan, install, status, a second install, revert.

Needs nothing but Python and no root. The toolkit's binaries are stand-ins, and
no runtime is restarted; where a containerd binary is at hand, it judges.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime-hook",
    "nvidia-container-cli",
    "nvidia-ctk",
    "nvidia-cdi-hook",
)
LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")


def main() -> int:
    """Run the steps; return 0 when each did what it promises."""
    with tempfile.TemporaryDirectory(prefix="nvidia-toolkit-demo-") as name:
        node = Path(name)
        config = make_node(node)
        before = fingerprint(node / "etc")
        options = [
            "--runtime=containerd",
            f"--config={config}",
            f"--drop-in-config={node}/etc/containerd/conf.d/99-nvidia.toml",
            f"--socket={node}/run/containerd.sock",
            f"--toolkit-install-dir={node}/usr/local/nvidia",
            f"--toolkit-source-root={node}/artifacts",
            f"--pid-file={node}/run/toolkit.pid",
            "--restart-mode=none",
        ]
        judge = shutil.which("containerd")
        print(f"The node: {node}\nThe judge: {judge or 'none (no containerd binary here)'}")
        step("What would change?", ["plan", *options])
        step("Install.", ["run", "--no-daemon", *options])
        step(
            "Is the node as wanted? (No runtime runs here, so none can say that it is ready.)",
            ["status", *options],
        )
        after = fingerprint(node, times=True)
        step("Install once more: nothing may happen.", ["run", "--no-daemon", *options])
        assert fingerprint(node, times=True) == after, "the second install changed something"
        step("Take everything back.", ["revert", *options])
        assert fingerprint(node / "etc") == before, "the revert left something"
        print("\nEvery byte is as it was before.")
    return 0


def make_node(node: Path) -> Path:
    """Make the node's configuration and the toolkit's files; return the root config."""
    shutil.copytree(HERE / "containerd", node / "etc/containerd")
    (node / "run").mkdir()
    binaries = node / "artifacts/usr/bin"
    libraries = node / "artifacts/usr/lib64"
    binaries.mkdir(parents=True)
    libraries.mkdir(parents=True)
    for program in PROGRAMS:
        (binaries / program).write_text(f'#!/bin/sh\necho "{program} $*"\n', encoding="utf-8")
        (binaries / program).chmod(0o755)
    for library in LIBRARIES:
        (libraries / f"{library}.17.0").write_text("a stand-in\n", encoding="utf-8")
        (libraries / library).symlink_to(f"{library}.17.0")
    return node / "etc/containerd/config.toml"


def step(title: str, arguments: list[str]) -> None:
    """Show a command and run it."""
    shown = [word for word in arguments if not word.startswith("--") or word == "--no-daemon"]
    print(f"\n== {title}\n$ nvidia-toolkit {' '.join(shown)} ...", flush=True)
    subprocess.run([sys.executable, "-m", "toolkit", *arguments], check=True)


def fingerprint(root: Path, *, times: bool = False) -> str:
    """Return a hash over every file's name, mode and content, and its time of change where asked."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.relative_to(root)} {status.st_mode}".encode() + content)
        if times and path.is_file() and path.name != "toolkit.pid":
            digest.update(str(status.st_mtime_ns).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
