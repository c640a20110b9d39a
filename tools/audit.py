"""Look for known vulnerabilities in the locked packages: `python -m tools.audit` (`make audit`).

The package index is asked for each package of every requirements.txt. It publishes the advisories
of the Python Packaging Advisory Database with every version. Exit status: 0 if every package was
looked up and none has a known vulnerability, 1 if one has, 3 if some could not be looked up: that
is no success.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCKS: Final = (
    "requirements.txt",
    "deploy/image/requirements.txt",
    "deploy/programs/requirements.txt",
)
"""What is in the image and in the packages, and what makes the bill of materials and programs."""
VULNERABLE: Final = 1
INCOMPLETE: Final = 3
_SECONDS: Final = 20
_LARGEST: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result for a package: IDs of its known vulnerabilities, or why it was not looked up."""

    package: str
    vulnerabilities: tuple[str, ...] = ()
    problem: str = ""


def main(words: Sequence[str] | None = None) -> int:
    """Look every package up, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.audit",
        description="Look for known vulnerabilities in locked packages.",
    )
    parser.add_argument(
        "--index", default=index(), help="the JSON API of a package index (that of pip's default)"
    )
    asked = parser.parse_args(words)
    findings = [look_up(asked.index, name, version) for name, version in locked(ROOT)]
    for finding in findings:
        if finding.vulnerabilities:
            _say(f"{finding.package}: {', '.join(finding.vulnerabilities)}")
        if finding.problem:
            _say(f"{finding.package}: not looked up: {finding.problem}")
    code = status(findings)
    _say(
        f"audit: {len(findings)} packages,"
        f" {sum(bool(each.vulnerabilities) for each in findings)} vulnerable,"
        f" {sum(bool(each.problem) for each in findings)} not looked up"
    )
    return code


def index() -> str:
    """Return the address of the JSON API of the index from which pip installs by default."""
    return str(importlib.import_module("pip._internal.models.index").PyPI.pypi_url)


def locked(root: Path) -> list[tuple[str, str]]:
    """Return name and version of every locked package below a checkout, sorted."""
    texts = [(root / name).read_text(encoding="utf-8") for name in LOCKS]
    found = {each for text in texts for each in re.findall(r"(?m)^([\w.-]+)==([^\s\\]+)", text)}
    return sorted(found)


def status(findings: Iterable[Finding]) -> int:
    """Return the exit status for some results."""
    findings = list(findings)
    if any(finding.vulnerabilities for finding in findings):
        return VULNERABLE
    return INCOMPLETE if not findings or any(finding.problem for finding in findings) else 0


def look_up(api: str, name: str, version: str) -> Finding:
    """Ask an index about a version of a package.

    An index that has no page for the version may have one for the package, which is about the
    newest version. It counts only if that is this version.
    """
    package = f"{name} {version}"
    try:
        page = _page(f"{api}/{name}/{version}/json")
        if page is None:
            page = _page(f"{api}/{name}/json")
        if page is None:
            return Finding(package=package, problem="the index does not have it")
        newest = str(page["info"]["version"])
        if newest != version:
            return Finding(
                package=package, problem=f"the index has a page for {newest} only: run `make lock`"
            )
        known = page["vulnerabilities"]
        return Finding(
            package=package,
            vulnerabilities=tuple(each["id"] for each in known if not each.get("withdrawn")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Finding(package=package, problem=f"{type(error).__name__}: {error}")


def _page(url: str) -> dict[str, Any] | None:
    """Return a JSON object, or None if there is no such page. Raises OSError, ValueError."""
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310  # by the caller
            found = json.loads(answer.read(_LARGEST))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    if not isinstance(found, dict):
        raise TypeError(f"{url} is no JSON object")
    return found


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
