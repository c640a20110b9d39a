"""The only name that an installed program adds to the names that Python imports.

`toolkit` and `runtimes` are names of other distributions as well. A wheel therefore installs both
packages in the directory of this one, and only a process of this program has that directory on its
path (see docs/release.md). In a checkout they lie beside this directory.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the program and exit the process with its exit code: what the installed commands call."""
    directory = os.path.dirname(os.path.abspath(__file__))
    if os.path.isdir(f"{directory}/toolkit"):
        sys.path.insert(0, directory)
    from toolkit.program import main as run  # noqa: PLC0415  # it is found only now

    run()
