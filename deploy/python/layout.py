"""How setuptools lays out what it installs: all packages in one directory, under one name.

pyproject.toml names these classes as commands of setuptools. An editable installation does not
copy packages, and finds them where they are in the checkout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

NAME: Final = "nvidia_toolkit"


class Build(build_py):
    """The command that copies the modules into a wheel."""

    def get_module_outfile(self, build_dir: str, package: list[str], module: str) -> str:
        """Return where a module goes: below the directory of the one package."""
        below = package if package[:1] == [NAME] else [NAME, *package]
        return super().get_module_outfile(build_dir, below, module)


class Describe(egg_info):
    """The command that writes the metadata."""

    def run(self) -> None:
        """Write the metadata; the one name that can be imported is that of the package."""
        super().run()
        Path(self.egg_info, "top_level.txt").write_text(f"{NAME}\n", encoding="utf-8")
