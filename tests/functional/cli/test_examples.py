"""The sample configurations: any user can plan each; it shows our keys and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.parametrize(
    ("runtime", "config", "drop_in"),
    [
        ("containerd", "containerd/config.toml", ""),
        ("docker", "docker/daemon.json", ""),
        ("crio", "crio/crio.conf", "crio/crio.conf.d/99-nvidia.toml"),
    ],
    ids=["containerd", "docker", "crio"],
)
def test_example_is_planned_without_a_node(
    runtime: str, config: str, drop_in: str, tmp_path: Path
) -> None:
    options = [
        f"--runtime={runtime}",
        f"--config={EXAMPLES / config}",
        f"--drop-in-config={EXAMPLES / drop_in if drop_in else ''}",
        f"--socket={tmp_path}/nowhere.sock",
        f"--toolkit-install-dir={tmp_path}/nvidia",
        "--config-source=file",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", "plan", "-o", "json", "--diff=full", *options],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    (change,) = json.loads(done.stdout)["changes"]
    assert change["path"] == str(EXAMPLES / (drop_in or config))
    removed = [line for line in change["diff"].splitlines()[2:] if line.startswith("-")]
    added = [line for line in change["diff"].splitlines()[2:] if line.startswith("+")]
    # A JSON object that goes on has a comma behind what was its last member.
    assert [line.removeprefix("-") + "," for line in removed] in ([], [added[0].removeprefix("+")])
    for binary in (
        "nvidia-container-runtime",
        "nvidia-container-runtime.cdi",
        "nvidia-container-runtime.legacy",
    ):
        assert any(line.rstrip('",').endswith(f"/toolkit/{binary}") for line in added)
