"""Make the virtual environment that the Makefile's targets run in.

    python3 tools/venv.py DIRECTORY program|tests

`program` installs the program with what it needs, `tests` also what the tests need. An environment
of another Python, or one that an earlier try left half made, is made again. This file is read by
whatever `python3` is, so that an old one can be told in one line: it holds nothing newer than
Python 3.6.
"""

import os
import re
import shutil
import subprocess
import sys
from typing import Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEWEST, OLDEST = 16, 11
"""The minor versions of Python 3 that are looked for where this one is too old."""
STAMPS = {"program": ".program", "tests": ".made"}
"""The files in the environment that tell what was installed there."""


def main() -> int:
    """Make the environment; return the exit status."""
    if len(sys.argv) != 3 or sys.argv[2] not in STAMPS:
        return fail("usage: python3 tools/venv.py DIRECTORY program|tests")
    directory, what = sys.argv[1:]
    least = minimum()
    if sys.version_info[:3] < least:
        return fail(
            "Python %s or newer is needed, this is %s: make %s PYTHON=%s"
            % (dotted(least), dotted(sys.version_info[:3]), goal(what), newer() or "python3.12")
        )
    if not is_usable(directory):
        shutil.rmtree(directory, ignore_errors=True)
        if not make(directory):
            return 1
    target = ROOT + ("[test]" if what == "tests" else "")
    command = [
        os.path.join(directory, "bin/python"), "-m", "pip", "install", "--quiet",
        "--disable-pip-version-check", "--constraint", os.path.join(ROOT, "constraints.txt"),
        # By a path: the other way, a finder of setuptools, costs every start a tenth of its time.
        "--config-settings", "editable_mode=compat", "--editable", target,
    ]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, universal_newlines=True, check=False)
    if done.returncode:
        # What fails while a package is built is indented, with remarks that say nothing below it.
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or ["pip failed"]
        return fail(
            "%s\nNo network? PIP_NO_INDEX=1 PIP_FIND_LINKS=DIRECTORY takes the packages from there"
            " (setuptools too)" % errors[-1]
        )
    with open(os.path.join(directory, STAMPS[what]), "w") as stamp:
        stamp.write(identity())
    if what == "tests":  # what the tests need includes the program
        with open(os.path.join(directory, STAMPS["program"]), "w") as stamp:
            stamp.write(identity())
    return 0


def minimum() -> Tuple[int, ...]:
    """Return the oldest Python that pyproject.toml allows."""
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as stream:
        text = stream.read().decode("utf-8")
    found = re.search(r'^requires-python = ">=([0-9.]+)"', text, re.MULTILINE)
    if found is None:
        raise ValueError("pyproject.toml does not say which Python it needs")
    return tuple(int(part) for part in found.group(1).split("."))


def is_usable(directory: str) -> bool:
    """Tell whether an environment was finished by this very Python and still has it."""
    for stamp in STAMPS.values():
        try:
            with open(os.path.join(directory, stamp)) as stream:
                said = stream.read()
        except (IOError, UnicodeDecodeError):
            continue
        if said == identity():
            return has_pip(directory)
    return False


def has_pip(directory: str) -> bool:
    """Tell whether an environment's Python can be run and has pip."""
    command = [os.path.join(directory, "bin/python"), "-c", "import pip"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    except OSError:
        return False
    return done.returncode == 0


def identity() -> str:
    """Return what tells this Python from another one."""
    return "%s %s\n" % (dotted(sys.version_info[:3]), os.path.realpath(sys.executable))


def make(directory: str) -> bool:
    """Make an empty environment with pip; tell whether that worked."""
    command = [sys.executable, "-m", "venv", directory]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        check=False,
    )
    if done.returncode == 0:
        return True
    shutil.rmtree(directory, ignore_errors=True)
    if "ensurepip" in done.stdout:
        fail(
            "this Python has no ensurepip, which makes virtual environments: apt-get install"
            " python3-venv"
        )
    else:
        said = [line for line in done.stdout.splitlines() if line.strip()] or ["no reason given"]
        fail("%s: %s" % (" ".join(command), said[-1]))
    return False


def newer() -> str:
    """Return the name of a Python on the PATH that is new enough; empty where there is none."""
    for minor in range(NEWEST, OLDEST - 1, -1):
        name = "python3.%d" % minor
        try:
            done = subprocess.run(
                [name, "-c", ""], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False
            )
        except OSError:
            continue
        if done.returncode == 0:
            return name
    return ""


def goal(what: str) -> str:
    """Return the target of make that was most likely asked for."""
    asked = os.environ.get("MAKECMDGOALS", "")
    return asked or ("demo" if what == "program" else "test")


def dotted(version: Tuple[int, ...]) -> str:
    """Return a version as it is written."""
    return ".".join(str(part) for part in version)


def fail(message: str) -> int:
    """Print a message for people; return the exit status for it."""
    sys.stderr.write(message + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
