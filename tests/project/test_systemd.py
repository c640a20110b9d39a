"""The systemd unit: its directives are documented, and the example of its settings is current."""

from __future__ import annotations

import re
import signal
from typing import Final

from tests.support.documents import ROOT
from toolkit.settings.options import SETTINGS

UNITS: Final = ROOT / "deploy/systemd"
DOCUMENT: Final = ROOT / "docs/systemd.md"


def test_every_directive_is_documented_and_no_other() -> None:
    used = {
        line.partition("=")[0]
        for unit in ("nvidia-toolkit.service", "nvidia-toolkit-runtimes.target")
        for line in (UNITS / unit).read_text(encoding="utf-8").splitlines()
        if re.match(r"[A-Z]\w+=", line)
    }
    text = DOCUMENT.read_text(encoding="utf-8")
    _, _, rest = text.partition("## Directives\n")
    section, _, unused = rest.partition("## Directives that are not set\n")
    documented = set(re.findall(r"`([A-Z]\w+)=", "".join(first_cells(section))))
    assert used == documented
    assert used.isdisjoint(re.findall(r"`([A-Z]\w+)=`", "".join(first_cells(unused))))


def test_a_sync_that_a_stop_ended_is_no_failure_of_the_unit() -> None:
    text = (UNITS / "nvidia-toolkit.service").read_text(encoding="utf-8")
    assert f"\nSuccessExitStatus={128 + signal.SIGTERM}\n" in text


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]


def test_the_example_of_the_settings_names_variables_that_there_are() -> None:
    variables = {variable for row in SETTINGS for variable in row.variables}
    text = (UNITS / "nvidia-toolkit.env").read_text(encoding="utf-8")
    named = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    assert named
    assert named <= variables
