"""The line of a unit's journal that says why the unit did not start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from runtimes.lazy_pattern import lazy_pattern
from toolkit import redact
from toolkit.deadline import Timeout
from toolkit.errors import StepError
from toolkit.node import command
from toolkit.node.host import Host

_LINES: Final = "50"
_LONGEST: Final = 300
_SYSTEMD: Final = "1"
"""The PID of systemd, whose lines about a unit repeat what `systemctl` answered."""
# A daemon's own last line may be one of a stack trace, or "exiting".
_CAUSE: Final = lazy_pattern(
    r"level=(?:fatal|error|panic)\b|^panic: |\bfail(?:ed|ure)\b|\berror\b", re.I
)
# containerd says on level info why it skips a plugin.
_HARMLESS: Final = lazy_pattern(r"\blevel=(?:trace|debug|info|warn)")
# With it, the same failure would be another message each time, and no repetition be suppressed.
_TIME: Final = lazy_pattern(r"\btime=\"[^\"]*\"\s*")
_CONTROL: Final = lazy_pattern(r"[\x00-\x1f\x7f-\x9f]+")


def cause(
    host: Host, unit: str, *, since: float, until: float, without: int | None, timeout: Timeout
) -> str:
    """Return the line with which a unit most likely says why it did not start; "" if none is known.

    It is the last line that names an error, else the last one, of those between the times `since`
    and `until` (seconds since 1970), with secrets masked and without its own time. Lines of the
    process with the PID `without` are left out: it is the one from before the restart. A node
    without a journal has none; this raises nothing.
    """
    if host.executable("journalctl") is None:
        return ""
    try:
        result = command.run(
            (
                "journalctl",
                "--quiet",
                "--no-pager",
                "--output=json",
                f"--unit={unit}",
                f"--lines={_LINES}",
                # systemd.time(7): seconds since 1970, with a fraction.
                f"--since=@{since:.6f}",
                f"--until=@{until:.6f}",
            ),
            root=host.root,
            timeout=timeout,
        )
    except StepError:
        return ""
    lines = [line for line in _messages(result.out, {_SYSTEMD, str(without)}) if line]
    causes = [line for line in lines if _CAUSE.search(line) and not _HARMLESS.search(line)]
    found = (causes or lines or [""])[-1]
    return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 3]}..."


def _messages(said: str, others: set[str]) -> Iterator[str]:
    """Yield the text of each entry of a journal in JSON, except those of some PIDs."""
    for line in said.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("_PID") not in others:
            yield _text(entry.get("MESSAGE"))


def _text(message: Any) -> str:
    """Return a message as one line of text; one that is not UTF-8 is an array of numbers."""
    if isinstance(message, list):
        message = bytes(each for each in message if isinstance(each, int) and 0 <= each < 256)
        message = message.decode(errors="replace")
    if not isinstance(message, str):
        return ""
    return _CONTROL.sub(" ", redact.text(_TIME.sub("", message))).strip()
