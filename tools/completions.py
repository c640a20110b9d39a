"""The shells' completion scripts, for packages: `python -m tools.completions` writes them.

They are what `nvidia-toolkit completion` prints. Each has the name by which its shell looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click.testing

from toolkit.cli import parser

PLACE: Final = Path(__file__).resolve().parents[1] / "deploy/completions"
NAMES: Final[Mapping[str, str]] = {
    "bash": "bash/nvidia-toolkit",
    "zsh": "zsh/_nvidia-toolkit",
    "fish": "fish/nvidia-toolkit.fish",
}


def text(shell: str) -> str:
    """Return the completion script of a shell."""
    done = click.testing.CliRunner().invoke(parser.app(), ["completion", shell])
    if done.exit_code != 0:
        raise ValueError(f"completion {shell}: {done.output}")
    return done.output


def main() -> None:
    """Write every script."""
    for shell, name in NAMES.items():
        (PLACE / name).parent.mkdir(parents=True, exist_ok=True)
        (PLACE / name).write_text(text(shell), encoding="utf-8")


if __name__ == "__main__":
    main()
