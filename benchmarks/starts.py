"""The processor time of starts, as multiples of a start of Python alone.

`python -m benchmarks.starts` prints a table. The commands take turns, so that what else the machine
does counts for all; the byte code is cached, as it is in the image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks import clock, local
from tests.support import fake_node

_ALONE: Final = "python -I -c pass"
_RUN: Final = [sys.executable, "-m", "toolkit"]
_ENVIRONMENT: Final = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
_PARSE: Final = "import sys, tomllib; tomllib.load(open(sys.argv[1], 'rb'))"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=21, help="how often each command is run")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="starts-") as place:
        node = fake_node.make_node(Path(place) / "node")
        told = Path(place) / "cri.json"
        told.write_text(json.dumps({"config": str(node.config)}), encoding="utf-8")
        with fake_node.daemon(node.socket, home=Path(place) / "d", cri=str(told)):
            fake_node.done("run", "--no-daemon", *node.options())
            took = _measured(_commands(node, Path(place)), times)
    alone = took[_ALONE]
    for name, seconds in took.items():
        sys.stdout.write(f"{seconds * 1000:8.1f} ms {seconds / alone:8.2f}  {name}\n")


def _commands(node: fake_node.Node, place: Path) -> dict[str, list[str]]:
    commands = {
        _ALONE: [sys.executable, "-I", "-c", "pass"],
        "run --no-daemon, nothing to do": [*_RUN, "run", "--no-daemon", *node.options()],
        "status --quiet": [*_RUN, "status", "--quiet", *node.options()],
    }
    for lines in (300, 30_000):
        config = place / f"config-{lines}.toml"
        config.write_bytes(local.toml(lines))
        commands[f"plan, {lines} lines of TOML"] = [
            *_RUN, "plan", "--runtime=containerd", f"--config={config}", f"--socket={place}/none",
            f"--toolkit-install-dir={place}/nvidia", "--config-source=file", "--host-root=/",
            "--drop-in-config=",
        ]  # fmt: skip
        commands[f"one tomllib parse of these {lines}"] = [
            sys.executable, "-I", "-c", _PARSE, str(config),
        ]  # fmt: skip
    return commands


def _measured(commands: Mapping[str, list[str]], times: int) -> dict[str, float]:
    """Return the median of each command's processor time in seconds."""
    took: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(times + 1):
        for name, argv in commands.items():
            cost = clock.spawn(argv, _ENVIRONMENT)
            if turn:  # the first one writes byte code
                took[name].append(cost.cpu)
    return {name: statistics.median(costs) for name, costs in took.items()}


if __name__ == "__main__":
    main()
