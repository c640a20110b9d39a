"""The program as a process: what every way to start it has in common."""

import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, and end the process with its exit code.

    The interpreter is spared what one command does not need, which is a seventh of the CPU time of
    a start that finds nothing to do. Garbage collections: imports make many objects, and what a
    command leaves in cycles is little. And its own end, which frees each object: by then the
    command has written its output, and closed its files.
    """
    gc.disable()
    from toolkit.cli.main import main as run  # noqa: PLC0415  # its imports are many

    try:
        run()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    sys.exit(1)  # not reached: the command line always exits
